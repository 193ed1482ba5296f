"""An error about a run names it, or says that the run has no id."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest
import structlog

from bpsd.errors import RunNotFound, no_run
from bpsd.interface import ServiceContext
from bpsd_adapters.htcondor.finder import Finder
from bpsd_adapters.local.service import LocalConfig, LocalService


def test_the_text_is_whole_with_and_without_an_id() -> None:
    assert str(no_run("b", "12")).startswith("backend b has no run 12 (")
    assert no_run("b", "12", "it is not in the queue").message == "backend b has no run 12: it is not in the queue"
    assert no_run("b", "").message == "backend b was asked for a run without an id"


async def test_the_local_adapter_refuses_an_empty_id_of_a_run(tmp_path: Path) -> None:
    async with anyio.create_task_group() as group:
        context = ServiceContext(
            backend="b",
            state_dir=tmp_path / "state" / "backends" / "b",
            log=structlog.get_logger(),
            clock=time.time,
            wake=lambda _: None,
            task_group=group,
        )
        context.state_dir.mkdir(parents=True)
        service = LocalService(LocalConfig(cores=1, memory_mb=100, ledger=str(tmp_path / "ledger")), context)
        for order in (service.cancel, service.restart, service.hold):
            with pytest.raises(RunNotFound, match="backend b was asked for a run without an id"):
                await order("")


async def test_htcondor_looks_nowhere_for_an_empty_id() -> None:
    finder = Finder(None, "b", (None,))  # type: ignore[arg-type]  # a pool that was asked would fail

    with pytest.raises(RunNotFound, match="backend b was asked for a run without an id"):
        await finder.run(" ")
