"""A backend between its adapter and those who ask: does it keep its deadlines, and which runs may have changed?"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import msgspec
import pytest
import structlog

from bpsd import poller
from bpsd.cache import Cache
from bpsd.config import BackendConfig, Polling
from bpsd.errors import BackendUnavailable, Problem
from bpsd.interface import WmsService
from bpsd.models import PollRequest, PollResult, RunObservation, SourceReport, WmsStates
from bpsd.poller import Backend
from bpsd.store import Batch


class Settings(msgspec.Struct):
    """Of an adapter that has none."""


class Slow:
    """An adapter whose polls do what a test wants. All that `Backend` uses of one."""

    class _Capabilities:
        poll_floor_s = 0.01

    capabilities = _Capabilities()

    def __init__(self, poll: Callable[[], Any]) -> None:
        self._poll = poll

    async def __aenter__(self) -> Slow:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def resolve_id(self, text: str) -> tuple[str, ...]:
        return (text,)

    async def poll(self, request: PollRequest) -> PollResult:
        await self._poll()
        return PollResult()


class NoCache:
    """A cache that keeps nothing."""

    def use_forms(self, *_: object) -> None: ...

    def cursor(self, _: str) -> None:
        return None

    async def known(self, _: str) -> tuple[()]:
        return ()

    async def apply_poll(self, *_: object) -> int:
        return 0

    async def announce(self, *_: object, **__: object) -> None: ...

    def live_runs(self, _: str) -> int:
        return 0

    def counts(self) -> dict[str, dict[str, int]]:
        return {}


@asynccontextmanager
async def backend(service: Slow, tmp_path: Path, **more: Any) -> AsyncIterator[Backend]:
    pace = Polling(
        min_interval_s=0.1,
        idle_interval_s=0.1,
        deadline_s=0.1,
        backoff_initial_s=0.1,
        backoff_max_s=0.1,
        jitter=0,
        stale_after_s=more.pop("stale_after_s", 120.0),
    )
    made = Backend(
        uid="u",
        make=lambda _: cast("WmsService", service),
        settings=BackendConfig(
            name="b", type="x", settings=Settings(), polling=pace, commands_at_once=1, commands_deadline_s=1
        ),
        cache=more.pop("cache", cast("Cache", NoCache())),
        state_dir=tmp_path,
        log=structlog.get_logger(),
        polled=lambda *_: None,
        stood_still_s=lambda: 0.0,
        **more,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.run)
        yield made
        tasks.cancel_scope.cancel()


async def test_a_wms_that_times_out_is_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "STUCK_AFTER_S", 30.0)
    with structlog.testing.capture_logs() as logs:
        async with backend(Slow(anyio.sleep_forever), tmp_path) as slow:
            with anyio.fail_after(60):
                while len(logs) < 5:
                    await anyio.sleep(0.02)
                    assert not slow.is_stuck()

    assert {entry["event"] for entry in logs} == {"poll_failed"}


async def test_a_task_that_heeds_no_deadline_is_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "STUCK_AFTER_S", 0.3)
    go_on = anyio.Event()

    async def deaf() -> None:
        with anyio.CancelScope(shield=True):
            await go_on.wait()

    async with backend(Slow(deaf), tmp_path) as stuck:
        assert not stuck.is_stuck()
        with anyio.fail_after(60):
            while not stuck.is_stuck():  # noqa: ASYNC110 - it is a question of time alone
                await anyio.sleep(0.02)
            go_on.set()
            monkeypatch.setattr(poller, "STUCK_AFTER_S", 30.0)
            while stuck.is_stuck():  # noqa: ASYNC110 - as above
                await anyio.sleep(0.02)


async def test_what_a_wms_said_is_shown_without_its_secrets(tmp_path: Path) -> None:
    async def refuse() -> None:
        raise BackendUnavailable("cannot log in with password=hunter2")

    with structlog.testing.capture_logs():
        async with backend(Slow(refuse), tmp_path) as refused:
            with anyio.fail_after(60):
                while not refused.error:  # noqa: ASYNC110 - it has no event for that
                    await anyio.sleep(0.02)

    assert refused.error == "cannot log in with password=[redacted]"


@pytest.mark.parametrize("error", [KeyError("Owner"), msgspec.ValidationError("expected int"), ZeroDivisionError()])
async def test_an_answer_that_the_adapter_did_not_foresee_is_a_failed_poll(tmp_path: Path, error: Exception) -> None:
    async def break_() -> None:
        raise error

    with structlog.testing.capture_logs() as logged:
        async with backend(Slow(break_), tmp_path) as broken:
            with anyio.fail_after(60):
                while broken._polls < 2:  # noqa: ASYNC110 - it has no event for that
                    await anyio.sleep(0.02)

    assert broken._state == "down"
    assert {entry["event"] for entry in logged} == {"poll_broke", "poll_failed"}


class Schedds(Slow):
    """A service with two runs, each known to a source of its own; the sources of ``silent`` do not answer."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.polls = 0

    async def poll(self, request: PollRequest) -> PollResult:
        self.polls += 1
        answering = [name for name in ("1", "2") if name not in self.silent]
        return PollResult(
            observations=[RunObservation(wms_id=name, source="queue", state=WmsStates.RUNNING) for name in answering],
            sources=tuple(
                SourceReport(name=f"queue {name}", status="failed", error="it hangs with password=hunter2")
                if name in self.silent
                else SourceReport(name=f"queue {name}", status="ok")
                for name in ("1", "2")
            ),
        )


async def test_a_run_whose_own_source_is_silent_is_stale_and_the_others_are_not(tmp_path: Path) -> None:
    async def identify(_: str, seen: Sequence[RunObservation]) -> list[str]:
        return [f"r{each.wms_id}" for each in seen]

    async def put(_: Batch) -> None: ...

    async def recall(_: Sequence[str]) -> list[Any]:
        return []

    now = 1000.0
    schedds = Schedds()
    cache = Cache(put=put, identify=identify, recall=recall)
    async with backend(schedds, tmp_path, cache=cache, clock=lambda: now, stale_after_s=60.0) as half:

        async def stale_after(seconds: float) -> list[bool]:
            nonlocal now
            now += seconds
            polls = schedds.polls
            with anyio.fail_after(60):
                while schedds.polls < polls + 3:  # noqa: ASYNC110 - it has no event for that
                    await anyio.sleep(0.02)
            return [half.is_stale(cache.observed_at(cache.record(run_id))) for run_id in ("r1", "r2")]

        assert await stale_after(0.0) == [False, False]
        assert await stale_after(3600.0) == [False, False]  # a clock that is set makes nothing stale
        assert (half.error, half.stale) == ("", False)
        schedds.silent = {"2"}
        assert await stale_after(30.0) == [False, False]
        assert await stale_after(31.0) == [False, True]
        assert (half.error, half.stale) == ("queue 2: it hangs with password=[redacted]", False)
        assert half.row().stale_before == now - 60.0
        assert (half.silent, half.is_whole) == ([], False)  # it is not silent for so long, whatever the clock says
        patient, polling = half.settings, msgspec.structs.replace(half.settings.polling, stale_after_s=0.3)
        half.settings = msgspec.structs.replace(patient, polling=polling)
        with anyio.fail_after(60):
            while half.silent != ["queue 2"]:  # noqa: ASYNC110 - it is a question of time alone
                await anyio.sleep(0.02)
        half.settings = patient
        schedds.silent = set()
        assert await stale_after(1.0) == [False, False]
        assert (half.silent, half.is_whole) == ([], True)


async def reaches(observed: Backend, state: str) -> None:
    with anyio.fail_after(120):
        while observed.row().state != state:  # noqa: ASYNC110  # a backend announces it to its cache, which is none here
            await anyio.sleep(0.02)


async def test_a_backend_whose_settings_cannot_work_is_stopped_with_the_reason_until_they_do(tmp_path: Path) -> None:
    wrong = [Problem(("ssh", "keys", 0), "cannot read /k: No such file or directory")]
    threads: list[int] = []

    def check() -> list[Problem]:
        threads.append(threading.get_ident())
        return [*wrong]

    with structlog.testing.capture_logs():
        async with backend(Slow(anyio.lowlevel.checkpoint), tmp_path, check=check) as kept:
            await reaches(kept, "stopped")
            assert kept.row().error.startswith("ssh.keys[0]: cannot read /k: No such file or directory")
            wrong.clear()
            await reaches(kept, "up")

    assert threading.get_ident() not in threads


async def test_a_check_of_settings_that_hangs_holds_up_nothing_but_its_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "CHECK_WAIT_S", 0.1)
    answered = threading.Event()
    with structlog.testing.capture_logs():
        async with backend(Slow(anyio.lowlevel.checkpoint), tmp_path, check=lambda: answered.wait(300) and ()) as hung:
            await reaches(hung, "stopped")
            assert "could not be checked within 0.1 s" in hung.row().error
            answered.set()
            await reaches(hung, "up")


async def test_who_waits_for_a_poll_of_a_backend_that_is_closed_is_answered(tmp_path: Path) -> None:
    answers: list[float | None] = []

    async def wait(closed: Backend) -> None:
        answers.append(await closed.refresh())

    with anyio.fail_after(60):
        async with anyio.create_task_group() as waiting, backend(Slow(anyio.sleep_forever), tmp_path) as closed:
            waiting.start_soon(wait, closed)
            await anyio.wait_all_tasks_blocked()
        await wait(closed)  # who held it from before

    assert answers == [None, None]
