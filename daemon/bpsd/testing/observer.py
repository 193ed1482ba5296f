"""A small daemon without a socket: opens one service and folds what its polls say, as the real one does."""

from __future__ import annotations

__all__ = ["Observer", "check_result", "document", "open_service", "shell_job"]

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog

from bpsd import wire
from bpsd.interface import Capabilities, ServiceContext, WmsService
from bpsd.jobtable import JobTable
from bpsd.models import KnownRun, PollRequest, PollResult, SourceReport, WmsStates
from bpsd.reducer import JOURNAL_SOURCE, absence_is_proof
from bpsd.runs import RunRecord
from bpsd.validate_worker import Instructions, work
from bpsd.workflow import WorkflowFile

TEXT_CHARS = 4096
POLL_PAUSE_S = 0.05


class Observer:
    """What the polls of one service have shown, run by run (by WMS id of the first sight)."""

    def __init__(self, service: WmsService, folder: Path) -> None:
        self.service = service
        self.folder = folder
        self.runs: dict[str, RunRecord] = {}
        self.jobs: dict[str, JobTable] = {}
        self.sources: tuple[SourceReport, ...] = ()
        self.cursor: str | None = None
        self.cursors: dict[str, str] = {}

    async def poll(self) -> PollResult:
        """Poll once (with all that is to follow) and fold it."""
        while True:
            result = await self.service.poll(PollRequest(cursor=self.cursor, known=self.known(), deadline_s=60.0))
            check_result(result, self.service.capabilities)
            self.fold(result)
            if not result.more:
                return result

    def known(self) -> tuple[KnownRun, ...]:
        """The live runs, as the daemon would name them."""
        return tuple(
            KnownRun(
                run_id=run.run_id,
                wms_id=run.wms_id,
                token=run.token,
                path=run.path,
                attempt=run.attempt,
                state=run.state,
                submit_time=run.submit_time,
                global_wms_id=run.global_wms_id,
                cursor=self.cursors.get(run.global_wms_id or run.wms_id),
            )
            for run in self.runs.values()
            if run.live
        )

    def fold(self, result: PollResult, began: float | None = None) -> None:
        """Take a poll's result; twice does no harm."""
        began = time.time() if began is None else began
        for seen in result.observations:
            run = self.runs.get(seen.wms_id)
            if run is None:
                attempt = 1 if seen.attempt is None else seen.attempt
                run = RunRecord(run_id=seen.wms_id, backend="b", attempt=attempt, source=JOURNAL_SOURCE)
                run.wms_id = seen.wms_id
                self.runs[seen.wms_id] = run
                self.jobs[seen.wms_id] = JobTable()
            run.fold(seen, began, self.jobs[run.run_id], TEXT_CHARS)
        self.sources = result.sources
        self.cursor = result.cursor if result.cursor is not None else self.cursor
        self.cursors.update(result.run_cursors)

    async def until(self, wms_id: str, reached: Callable[[RunRecord], bool], timeout_s: float = 60.0) -> RunRecord:
        """Poll until a run satisfies ``reached``.

        Raises
        ------
        AssertionError
            With what was seen last, when the time is over.
        """
        with anyio.move_on_after(timeout_s):
            while True:
                await self.poll()
                run = self.runs.get(wms_id)
                if run is not None and reached(run):
                    return run
                await anyio.sleep(POLL_PAUSE_S)
        seen, jobs = self.runs.get(wms_id), self.jobs.get(wms_id)
        rows = [jobs.row(n) for n in range(min(len(jobs), 20))] if jobs is not None else []
        raise AssertionError(f"run {wms_id} did not get there in {timeout_s:g} s: {seen!r}, jobs {rows!r}")

    async def until_over(self, wms_id: str, attempt: int = 1, timeout_s: float = 60.0) -> RunRecord:
        """Poll until that attempt of a run is over."""
        return await self.until(wms_id, lambda run: run.attempt >= attempt and not run.live, timeout_s)

    def states(self, wms_id: str) -> dict[str, str]:
        """Job to state."""
        jobs = self.jobs[wms_id]
        return {jobs.row(n).name: str(jobs.row(n).state) for n in range(len(jobs))}

    async def workflow(self, document: Mapping[str, Any]) -> WorkflowFile:
        """A document, validated against this backend, as the daemon would hand it over."""
        return await anyio.to_thread.run_sync(self._validate, document)

    def _validate(self, document: Mapping[str, Any]) -> WorkflowFile:
        token = wire.new_token()
        source = self.folder / f"{token}.source.json"
        source.write_bytes(msgspec.json.encode(document))
        capabilities = self.service.capabilities
        answer = work(
            Instructions(
                input=str(source),
                source="contract",
                output=str(self.folder / f"{token}.json"),
                fields={name: (support.value, note) for name, (support, note) in capabilities.fields.items()},
                token=token,
            )
        )
        assert answer["ok"], answer
        facts = {name: answer[name] for name in ("name", "run", "job_count", "run_summary", "size_bytes", "umask")}
        return msgspec.convert({"path": str(self.folder / f"{token}.json"), "token": token, **facts}, WorkflowFile)

    async def submit(self, document: Mapping[str, Any]) -> tuple[str, WorkflowFile]:
        """Prepare and submit a document; returns the run's id in the WMS and its workflow."""
        workflow = await self.workflow(document)
        await self.service.run_submission_checks()
        prepared = await self.service.prepare({}, workflow)
        await self.service.submit(prepared)
        assert prepared.run_id is not None
        return prepared.run_id, workflow

    async def restart(self, wms_id: str, token: str, attempt: int) -> str:
        """Restart a run, and know of it what the daemon would; returns its id now."""
        new_id, _, message = await self.service.restart(wms_id, attempt_token=f"{token}.{attempt}")
        assert new_id is not None, message
        run = self.runs[wms_id]
        run.from_journal(WmsStates.READY, "restarted", time.time(), attempt=attempt)
        run.wms_id = new_id
        if new_id != wms_id:
            self.runs[new_id], self.jobs[new_id] = run, self.jobs[wms_id]
        return new_id


def check_result(result: PollResult, capabilities: Capabilities) -> None:
    """Assert what is true of every result of every poll."""
    assert result.sources, "a poll names the sources that it asked"
    declared = set(capabilities.sources)
    reported = {source.name for source in result.sources}
    assert reported <= declared, f"capabilities.sources does not declare {sorted(reported - declared)}"
    for source in result.sources:
        assert source.status != "failed" or source.error, f"the source {source.name} failed and does not say why"
    assert not result.absent or absence_is_proof(result.sources), "a run is absent although a source did not answer"
    for seen in result.observations:
        assert seen.source in declared, f"the source {seen.source!r} of run {seen.wms_id} is not declared"
        names = [job.name for job in seen.jobs]
        assert len(names) == len(set(names)), f"run {seen.wms_id} has a job twice"


@asynccontextmanager
async def open_service(
    kind: type[WmsService], settings: Mapping[str, Any], state_dir: Path, *, backend: str = "b"
) -> AsyncIterator[Observer]:
    """Open a service as the daemon would, in a task group of its own."""
    scratch = state_dir / "contract"
    await anyio.Path(scratch).mkdir(parents=True, exist_ok=True)
    async with anyio.create_task_group() as group:
        context = ServiceContext(
            backend=backend,
            state_dir=state_dir,
            log=structlog.get_logger(),
            clock=time.time,
            wake=lambda _: None,
            task_group=group,
        )
        service = kind(msgspec.convert(dict(settings), kind.Config), context)
        async with service:
            yield Observer(service, scratch)
        group.cancel_scope.cancel()


def shell_job(name: str, script: str, *, parents: Sequence[str] = (), **fields: Any) -> dict[str, Any]:
    """A job that is a line of shell."""
    quoted = script.replace("'", "'\\''")
    return {
        "name": name,
        "label": fields.pop("label", name.split("_", maxsplit=1)[0]),
        "executable": "/bin/sh",
        "arguments": f"-c '{quoted}'",
        "parents": list(parents),
        **fields,
    }


def document(*jobs: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A workflow document of these jobs."""
    return {"bpsd": 1, "name": fields.pop("name", "contract"), "jobs": list(jobs), **fields}
