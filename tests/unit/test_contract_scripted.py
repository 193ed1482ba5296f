"""The scripted backend passes the contract that every adapter passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpsd.errors import BpsdError
from bpsd.testing.contract import AdapterContract, Bed
from bpsd.testing.mutants import MUTANTS, Mutant
from bpsd.testing.observer import Observer
from bpsd.testing.scripted import ScriptedService
from bpsd.testing.wms import ScriptedWms


class ScriptedBed(Bed):
    """Nothing runs by itself here: `finish` says how the run ends."""

    async def finish(self, observer: Observer, wms_id: str) -> None:
        ScriptedWms(self.folder / "state" / "wms.json").change(wms_id, state="SUCCEEDED", jobs="SUCCEEDED")


async def finds(contract: Any, bed: Bed, mutant: Mutant) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # looked at below; a service's errors come in a group
        await getattr(contract, f"test_{mutant.caught_by}")(bed)
    reason: BaseException = caught.value
    while isinstance(reason, BaseExceptionGroup):
        reason = reason.exceptions[0]
    assert isinstance(reason, AssertionError | BpsdError | OSError), reason


@pytest.mark.blocking_allowed  # the fault of some mutants
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
async def test_the_contract_finds_every_mutant(tmp_path: Path, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case that the mutant names fails on it."""
    monkeypatch.setattr("bpsd.testing.steady.TRIES", 2)  # a mutant that blocks does so each time
    bed = ScriptedBed(mutant.of(ScriptedService), {}, tmp_path, patience_s=1.0)
    await finds(AdapterContract(), bed, mutant)


class TestScripted(AdapterContract):
    @pytest.fixture
    def bed(self, tmp_path: Path) -> Bed:
        return ScriptedBed(ScriptedService, {}, tmp_path)
