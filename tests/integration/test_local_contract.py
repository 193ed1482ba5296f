"""The local backend keeps the contract of all adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpsd.testing.contract import AdapterContract, Bed, ExecutionContract
from bpsd_adapters.local.service import LocalService


class TestLocal(AdapterContract, ExecutionContract):
    @pytest.fixture
    def bed(self, tmp_path: Path) -> Bed:
        settings = {"cores": 2, "ledger": str(tmp_path / "ledger"), "terminate_grace_s": 2.0}
        return Bed(LocalService, settings, tmp_path)
