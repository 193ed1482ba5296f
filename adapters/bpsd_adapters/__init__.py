"""The adapters that come with bpsd: one package for each kind of WMS, found by the entry points ``bpsd.adapters``."""
