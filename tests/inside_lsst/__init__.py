"""Tests that run in a Python which has LSST's middleware, started by ``tests/integration/test_lsst_inside.py``."""
