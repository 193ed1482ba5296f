"""A cancel comes before the next try of a submit or restart, wherever it arrives, over restarts of the daemon too."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import msgspec
import pytest
import structlog

from bpsd.cache import Cache
from bpsd.commandlog import CommandRecord
from bpsd.commands.engine import CommandEngine
from bpsd.config import Commands
from bpsd.errors import BackendUnavailable
from bpsd.interface import WmsWorkflow
from bpsd.journal import Journal
from bpsd.models import KnownRun, PollResult, RunObservation, SourceReport, TokenAnswer, WmsStates
from bpsd.poller import Backend
from bpsd.store import Batch
from bpsd.workflow import RunAttributes, WorkflowFile

PATIENCE_S = 60.0
TOKEN = "t" * 20
PLACES = ("prepare", "submit", "find_by_token")
"""Calls of the adapter during which the cancel may arrive."""


class Wms:
    """An adapter and its WMS. ``lost``: the answer of the first effect does not arrive; ``effective``: it had one."""

    def __init__(self, *, lost: bool, effective: bool) -> None:
        self.lost, self.effective = lost, effective
        self.calls: list[str] = []
        self.runs: dict[str, WmsStates] = {}
        self.during: dict[str, Callable[[], None]] = {}

    def _reached(self, call: str) -> None:
        self.calls.append(call)
        arrives = self.during.pop(call, None)
        if arrives is not None:
            arrives()

    async def run_submission_checks(self) -> None: ...

    async def prepare(self, config: Any, workflow: WorkflowFile) -> WmsWorkflow:
        self._reached("prepare")
        return WmsWorkflow(name="n", token=workflow.token, submit_path="/p")

    async def submit(self, workflow: WmsWorkflow) -> None:
        workflow.run_id = self._begin("submit", workflow.token)

    async def restart(self, wms_id: str, *, attempt_token: str) -> tuple[str, str, str]:
        return self._begin("restart", attempt_token), "n", ""

    def _begin(self, call: str, name: str) -> str:
        self._reached(call)
        lost, self.lost = self.lost, False
        if not lost or self.effective:
            self.runs[name] = WmsStates.RUNNING
        if lost:
            raise BackendUnavailable("the connection broke")
        return name

    async def find_by_token(self, token: str, since: float) -> TokenAnswer:
        self._reached("find_by_token")
        if token in self.runs:
            return TokenAnswer(verdict="found", wms_id=token)
        return TokenAnswer(verdict="absent")

    async def cancel(self, wms_id: str, pass_thru: str | None) -> tuple[bool, str]:
        self._reached("cancel")
        self.runs[wms_id] = WmsStates.DELETED
        return True, ""

    def order_id(self, run: KnownRun) -> str:
        return run.wms_id


def backend_of(wms: Wms, woken: Callable[[str], None]) -> Backend:
    service = cast("Any", wms)
    service.capabilities = SimpleNamespace(commands_at_once=4, finds_by_token=True)
    settings = SimpleNamespace(commands_at_once=4, commands_deadline_s=PATIENCE_S)
    return cast("Backend", SimpleNamespace(name="b", service=service, settings=settings, wake=woken))


class Daemon:
    """A journal on the disk, with a cache and an engine that a restart makes anew."""

    def __init__(self, folder: Path, wms: Wms) -> None:
        self.wms = wms
        self.folder = folder
        self.run = ""
        self.settings = Commands(doubt_retry_initial_s=0.02, doubt_retry_max_s=0.05, cancel_verify_s=0.05)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[CommandEngine]:
        async def put(batch: Batch) -> None: ...

        async def identify(backend: str, seen: Sequence[RunObservation]) -> list[str]:
            return [self.run for _ in seen]

        async def recall(run_ids: Sequence[str]) -> list[object]:
            return []

        async def finished(_: CommandRecord) -> None: ...

        self.cache = Cache(put=put, identify=identify, recall=recall)  # type: ignore[arg-type]  # nothing is recalled
        async with Journal(self.folder / "journal.db", backups=0) as self.journal, anyio.create_task_group() as group:

            def woken(_: str) -> None:
                group.start_soon(self.poll)

            engine = CommandEngine(
                journal=self.journal,
                cache=self.cache,
                backends={"b": backend_of(self.wms, woken)},
                settings=self.settings,
                log=structlog.get_logger(),
                clock=lambda: 1000.0,
                finished=finished,
                place=cast("Any", None),
            )
            if self.run:
                await self.poll()
            await group.start(engine.run)
            yield engine
            group.cancel_scope.cancel()

    async def poll(self) -> None:
        """Show the newest run of the WMS."""
        for attempt, (wms_id, state) in enumerate(self.wms.runs.items(), 1):
            seen = RunObservation(wms_id=wms_id, source="queue", state=state, token=TOKEN, attempt=attempt)
            result = PollResult(observations=(seen,), sources=(SourceReport(name="queue", status="ok"),))
            await self.cache.apply_poll("b", result, 2000.0)

    async def accept(self, verb: str, **more: Any) -> CommandRecord:
        record = CommandRecord(
            verb=verb, backend="b", uid=1, pid=1, user="ann", run_id=self.run, accepted_at=1.0, **more
        )
        command, _ = await self.journal.accept(record, name="n")
        self.run = command.run_id
        return command


def workflow() -> dict[str, Any]:
    file = WorkflowFile(
        name="n", path="/w", token=TOKEN, run=RunAttributes(), job_count=1, run_summary="", size_bytes=1
    )
    return cast("dict[str, Any]", msgspec.to_builtins(file))


CASES = [
    (place, lost, effective, restarted)
    for place, lost, effective, restarted in itertools.product(PLACES, (False, True), (False, True), (False, True))
    if (lost or not effective) and (lost or place != "find_by_token")
]


@pytest.mark.parametrize(("place", "lost", "effective", "restarted"), CASES)
async def test_no_submission_begins_after_a_cancel_was_accepted(
    tmp_path: Path, place: str, *, lost: bool, effective: bool, restarted: bool
) -> None:
    wms = Wms(lost=lost, effective=effective)
    daemon = Daemon(tmp_path, wms)
    arrived = anyio.Event()
    wms.during[place] = arrived.set
    async with daemon.running() as engine:
        submit = await daemon.accept("submit", token=TOKEN, args={"workflow": workflow()})
        engine.enqueue(submit)
        with anyio.fail_after(PATIENCE_S):
            await arrived.wait()
        cancel = await daemon.accept("cancel")
        begun = wms.calls.count("submit")
        if not restarted:
            engine.enqueue(cancel)
            await engine.wait(cancel.id, PATIENCE_S)

    async with daemon.running() as engine:
        over = await engine.wait(cancel.id, PATIENCE_S)
        assert (await engine.wait(submit.id, PATIENCE_S)).state in ("DONE", "SUPERSEDED")
    assert over.state == "DONE", over
    assert wms.calls.count("submit") <= max(begun, 1)
    assert wms.runs.get(TOKEN) in (None, WmsStates.DELETED)
