"""The scripted backend passes the contract that every adapter passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpsd.testing.contract import AdapterContract, Bed
from bpsd.testing.observer import Observer
from bpsd.testing.scripted import ScriptedService
from bpsd.testing.wms import ScriptedWms


class ScriptedBed(Bed):
    """Nothing runs by itself here: `finish` says how the run ends."""

    async def finish(self, observer: Observer, wms_id: str) -> None:
        ScriptedWms(self.folder / "state" / "wms.json").change(wms_id, state="SUCCEEDED", jobs="SUCCEEDED")


class TestScripted(AdapterContract):
    @pytest.fixture
    def bed(self, tmp_path: Path) -> Bed:
        return ScriptedBed(ScriptedService, {}, tmp_path)
