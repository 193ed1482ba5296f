"""A clock that was set makes nothing old, and a process that was stopped blames no WMS for it."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from bpsd import poller, sqlitefile
from bpsd.config import BackendConfig, History, Polling
from bpsd.models import PollResult, SourceReport
from bpsd.upkeep import DAY_S, Clocks, Upkeep


def test_a_clock_that_was_set_is_noticed() -> None:
    offset = 0.0
    clocks = Clocks(lambda: time.time() + offset)
    assert abs(clocks.apart_s()) < 60
    for offset in (400 * DAY_S, -400 * DAY_S):
        assert abs(clocks.apart_s() - offset) < 60


async def test_nothing_is_pruned_by_a_clock_that_was_set() -> None:
    offset = 0.0
    pruned: list[float] = []

    async def prune(before: float, *limits: int) -> int:
        pruned.append(before)
        return 0

    nothing: Any = SimpleNamespace(prune=prune, status=SimpleNamespace(read_only=True))
    upkeep = Upkeep(
        config=lambda: SimpleNamespace(history=History()),  # type: ignore[arg-type,return-value]  # all that it looks at
        cache=nothing,
        store=nothing,
        journal=nothing,
        spool=nothing,
        pinned=frozenset,
        log=structlog.get_logger(),
        clock=lambda: time.time() + offset,
    )
    with structlog.testing.capture_logs() as logs:
        await upkeep._prune()
        assert len(pruned) == 1
        offset = 2 * 400 * DAY_S
        await upkeep._prune()
        offset = -DAY_S
        await upkeep._prune()
    assert len(pruned) == 1
    assert {line["event"] for line in logs} == {"clock_jumped"}


@pytest.mark.parametrize(("stopped_s", "expected"), [(0.0, 8.0), (5.0, 3.0), (9.0, 0.0)])
async def test_a_poll_costs_the_wms_nothing_while_we_were_stopped(
    stopped_s: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "SETTLE_S", 0.0)
    nothing: Any = None
    backend = poller.Backend(
        uid="b",
        make=nothing,
        settings=BackendConfig(
            name="usdf",
            type="scripted",
            settings=nothing,
            polling=Polling(),
            commands_at_once=1,
            commands_deadline_s=1.0,
        ),
        cache=nothing,
        state_dir=nothing,
        log=nothing,
        polled=lambda *_: None,
        stood_still_s=lambda: 100.0 + stopped_s,
    )

    for sources in ((SourceReport(name="queue", status="ok", cost_s=8.0),), ()):
        assert await backend._cost(PollResult(sources=sources), 8.0, 100.0) == expected
    assert await backend._cost(PollResult(), 0.25, 100.0) == 0.25


def test_copies_of_days_to_come_are_the_last_to_be_trusted(tmp_path: Path) -> None:
    today = sqlitefile.copy_name(tmp_path / "thing.db")
    for name in ("thing-2020-01-01.db", "thing-2099-01-01.db", "thing-2098-01-01.db", today):
        (tmp_path / name).touch()

    found = [copy.name for copy in sqlitefile.copies(tmp_path / "thing.db", tmp_path)]

    assert found == [today, "thing-2020-01-01.db", "thing-2099-01-01.db", "thing-2098-01-01.db"]
