"""Beds that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.condorbed import CondorBed, twin_bed
from tests.integration.slurmbed import SlurmBed


@pytest.fixture(scope="session")
def pool() -> Iterator[CondorBed]:
    """A real HTCondor pool with two schedds and an SSH server."""
    bed = CondorBed()
    bed.start()
    yield bed
    bed.stop()


@pytest.fixture(scope="session")
def twin() -> Iterator[CondorBed]:
    """A second pool whose schedds are called like those of the first; the one to do violence to."""
    bed = twin_bed()
    bed.start()
    yield bed
    bed.stop()


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmBed]:
    """A real Slurm cluster (24.11) with accounting and an SSH server."""
    bed = SlurmBed()
    bed.start()
    yield bed
    bed.stop()


@pytest.fixture(scope="session")
def old_slurm() -> Iterator[SlurmBed]:
    """A real Slurm cluster of the oldest version that is supported (22.05)."""
    bed = SlurmBed(name="slurm-22.05", suite="bookworm", port=16917, ssh_port=2224)
    bed.start()
    yield bed
    bed.stop()
