"""Slurm for real: the contract of every adapter, over SSH and as if in the cluster, against daemons in namespaces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bpsd.testing.contract import AdapterContract, Bed, ExecutionContract
from bpsd_adapters.slurm.service import SlurmService
from tests.integration.slurmbed import OLD_SLURM, SlurmBed

pytestmark = pytest.mark.timeout(300)


class TestOverSsh(AdapterContract, ExecutionContract):
    @pytest.fixture
    def bed(self, slurm: SlurmBed) -> Iterator[Bed]:
        folder = slurm.new_folder()
        yield Bed(SlurmService, slurm.settings(), folder, patience_s=90.0)
        slurm.remove(folder)


class TestOnTheSubmitHost(AdapterContract):
    @pytest.fixture
    def bed(self, slurm: SlurmBed) -> Iterator[Bed]:
        folder = slurm.new_folder()
        yield Bed(SlurmService, slurm.local_settings(folder), folder, patience_s=90.0)
        slurm.remove(folder)


if OLD_SLURM:

    class TestTheOldestVersion(AdapterContract, ExecutionContract):
        """Slurm 22.05, over SSH."""

        @pytest.fixture
        def bed(self, old_slurm: SlurmBed) -> Iterator[Bed]:
            folder = old_slurm.new_folder()
            yield Bed(SlurmService, old_slurm.settings(), folder, patience_s=90.0)
            old_slurm.remove(folder)
