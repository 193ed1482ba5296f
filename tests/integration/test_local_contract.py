"""The local backend keeps the contract of all adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpsd.testing.contract import AdapterContract, Bed, ExecutionContract
from bpsd.testing.mutants import EXECUTION_MUTANTS, Mutant
from bpsd_adapters.local.service import LocalService
from tests.unit.test_contract_scripted import finds


def local_bed(folder: Path, mutant: Mutant | None = None) -> Bed:
    settings = {"cores": 2, "ledger": str(folder / "ledger"), "terminate_grace_s": 2.0}
    service = LocalService if mutant is None else mutant.of(LocalService)
    return Bed(service, settings, folder, **({} if mutant is None else {"patience_s": 15.0}))


@pytest.mark.parametrize("mutant", EXECUTION_MUTANTS, ids=lambda mutant: mutant.name)
async def test_the_contract_finds_every_mutant_that_runs_jobs(tmp_path: Path, mutant: Mutant) -> None:
    """A backend that claims to honour a field and does nothing with it fails the case of that field."""
    await finds(ExecutionContract(), local_bed(tmp_path, mutant), mutant)


class TestLocal(AdapterContract, ExecutionContract):
    @pytest.fixture
    def bed(self, tmp_path: Path) -> Bed:
        return local_bed(tmp_path)
