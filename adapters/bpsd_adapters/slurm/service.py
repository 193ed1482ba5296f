"""Slurm as a backend: bpsd keeps the order of the jobs and drives them from within the daemon, here or over SSH."""

from __future__ import annotations

__all__ = ["SlurmService"]

import posixpath
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import anyio
import anyio.to_thread
import msgspec

from bpsd.errors import (
    BackendAuthError,
    BackendUnavailable,
    Conflict,
    JobNotFound,
    Problem,
    StorageError,
    WorkflowInvalid,
    no_run,
)
from bpsd.interface import Capabilities, OutputPiece, ServiceContext, WmsService, WmsWorkflow
from bpsd.logs import LogEvent
from bpsd.models import KnownRun, PollRequest, PollResult, RunObservation, SourceReport, TokenAnswer, WmsStates
from bpsd.pathchecks import cannot_write_in
from bpsd.workflow import WorkflowFile
from bpsd_adapters import runlog
from bpsd_adapters.driven import umask_of
from bpsd_adapters.files import DOCUMENT_MAX_BYTES, read_limited, safe_name
from bpsd_adapters.helper import ask_if_large
from bpsd_adapters.quarantine import Quarantine
from bpsd_adapters.slurm.cluster import Cluster
from bpsd_adapters.slurm.driver import Driver
from bpsd_adapters.slurm.engine import Engine
from bpsd_adapters.slurm.events import Begin, End, decode
from bpsd_adapters.slurm.fields import FIELDS
from bpsd_adapters.slurm.layout import Meta, StateFolder, run_id, token_of
from bpsd_adapters.slurm.observe import LOG, QUEUE, BackendCursor, Follower, Look
from bpsd_adapters.slurm.prepare import Findings, Order, look_at
from bpsd_adapters.slurm.settings import SlurmConfig
from bpsd_adapters.slurm.watch import Status
from bpsd_adapters.transports.settings import check_host, make_transport

ACCOUNTING, EXITS = "accounting", "exit"
JOBS_PER_POLL = 20_000
"""How many observations of jobs one poll brings; then it asks for another."""

TOOLS = ("sbatch", "squeue", "scancel", "scontrol")
"""Programs of Slurm without which nothing works; a cluster may have no accounting, and so no sacct."""

SLICE_S = 0.002
"""How long a poll works in its thread before the event loop has its turn."""

OPTION_SETS_TRIED = 20
"""How many different sets of options are tried with ``sbatch --test-only`` before a submission."""

OUTPUT_MAX_BYTES = 1024 * 1024


class SlurmService(WmsService):
    """Runs jobs in a Slurm cluster, as one account there."""

    Config: ClassVar[type[msgspec.Struct]] = SlurmConfig

    @classmethod
    def check_settings(cls, config: SlurmConfig) -> Sequence[Problem]:
        """See `WmsService.check_settings`."""
        problems = check_host(config.ssh, config.bin_dir, config.environment, TOOLS)
        if config.ssh is None and (wrong := cannot_write_in(config.work_dir)):
            problems.append(Problem(("work_dir",), wrong))
        return problems

    def __init__(self, config: SlurmConfig, context: ServiceContext) -> None:
        super().__init__(config, context)
        self._settings = config
        self._state = StateFolder(context.state_dir)
        self._quarantine = Quarantine(context.log, context.backend, expected=(OSError,))
        self._follower = Follower(self._state, self._quarantine)
        self._driving, self._busy = anyio.CancelScope(), anyio.Lock()
        self._told_at = 0.0

    async def __aenter__(self) -> Self:
        config = self._settings
        path = () if config.bin_dir is None else (config.bin_dir,)
        self._transport = await make_transport(config.ssh, config.environment, path)
        await self._transport.__aenter__()
        self._cluster = Cluster(self._transport, config)
        self._driver = Driver(self._cluster, self._state, config, self.context, self._quarantine)
        await anyio.to_thread.run_sync(self._state.make)
        self.context.task_group.start_soon(self._drive, name=f"{self.context.backend}: drive runs")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._driving.cancel()
        with anyio.CancelScope(shield=True):
            async with self._busy:  # what it does in a thread just now comes to its end
                self._driver.close()
            await self._transport.__aexit__(exc_type, exc, tb)

    @property
    def capabilities(self) -> Capabilities:
        """See `WmsService.capabilities`."""
        return Capabilities(
            fields=FIELDS,
            sources=(QUEUE, ACCOUNTING, LOG, EXITS),
            poll_floor_s=min(2.0, self._settings.poll_interval_s),
            holds=True,
            reads_output=True,
        )

    def folders(self) -> tuple[Path, ...]:
        """Return the folder of the runs, unless it is on another host."""
        return (Path(self._settings.work_dir),) if self._settings.ssh is None else ()

    # -- submitting --------------------------------------------------------------------------------------------------

    async def prepare(
        self, config: Mapping[str, Any], generic_workflow: WorkflowFile, out_prefix: str | None = None
    ) -> WmsWorkflow:
        """Look at every job, ask the site about programs and resources, and make the run's folders.

        Raises
        ------
        WorkflowInvalid
            If jobs cannot run there: with all of them.
        StorageError
            If the daemon cannot keep the run.
        BackendUnavailable
            If the submit host cannot be asked.
        """
        token, settings = generic_workflow.token, self._settings
        folder = posixpath.join(settings.work_dir, token)
        if self._state.meta(token) is None:
            await self.check_workflow(config, generic_workflow)
        umask = self._umask_of(config, generic_workflow)
        await self._cluster.make_run(folder, umask)
        try:
            await anyio.to_thread.run_sync(self._add, generic_workflow, folder, umask)
        except OSError as exc:
            about = f"preparing run {generic_workflow.name}"
            raise await anyio.to_thread.run_sync(StorageError.of, about, exc, self.context.state_dir) from exc
        return WmsWorkflow(name=generic_workflow.name, token=token, submit_path=folder)

    async def check_workflow(self, config: Mapping[str, Any], generic_workflow: WorkflowFile) -> None:
        """Look at every job, and ask the site about programs and resources.

        Raises
        ------
        WorkflowInvalid
            If jobs cannot run there: with all of them.
        BackendUnavailable
            If the submit host cannot be asked.
        """
        folder = posixpath.join(self._settings.work_dir, generic_workflow.token)
        found = await self._look_at(generic_workflow, folder)
        await self._ask_site(found)
        if found.total:
            raise WorkflowInvalid(generic_workflow.name, found.problems, total=found.total)

    async def submit(self, workflow: WmsWorkflow, **kwargs: Any) -> None:
        """Begin the run's first attempt, unless it was begun before; jobs are submitted from then on.

        Raises
        ------
        BackendUnavailable
            If it cannot be begun.
        """
        await self._begin(workflow.token, 1)
        workflow.run_id = run_id(workflow.token)

    async def restart(
        self, wms_workflow_id: str, *, attempt_token: str | None = None
    ) -> tuple[str | None, str | None, str]:
        """Begin the next attempt of a run: what succeeded is not run again.

        Raises
        ------
        RunNotFound
            If there is no such run.
        Conflict
            If it runs, or has succeeded.
        """
        meta = self._meta(wms_workflow_id)
        last, end = await anyio.to_thread.run_sync(self._marks, meta.token)
        attempt = last + 1 if attempt_token is None else int(attempt_token.rpartition(".")[2])
        if last < attempt:
            if end is None and last:
                raise Conflict(f"run {wms_workflow_id} runs (attempt {last})", advice="wait for its end, or cancel it")
            if end is not None and end.state == WmsStates.SUCCEEDED:
                raise Conflict(f"run {wms_workflow_id} has succeeded: there is nothing to restart")
            await self._cluster.make_run(meta.folder, meta.umask)
            await self._begin(meta.token, attempt)
        return run_id(meta.token), meta.name, ""

    async def run_submission_checks(self) -> None:
        """See `WmsService.run_submission_checks`: the tools are there and the work folder can be written."""
        await self._cluster.probe()

    async def find_by_token(self, token: str, since: float) -> TokenAnswer:
        """Whether a run, or an attempt of it (``TOKEN.N``), has begun: our own log knows at once."""
        run, _, number = token.partition(".")
        meta = self._state.meta(run)
        if meta is None:
            return TokenAnswer(verdict="absent")
        last, _ = await anyio.to_thread.run_sync(self._marks, run)
        if last >= (int(number) if number.isdecimal() else 1):
            return TokenAnswer(verdict="found", wms_id=run_id(run), path=meta.folder)
        return TokenAnswer(verdict="absent")

    # -- changing ----------------------------------------------------------------------------------------------------

    async def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        """Have the run end: it is asked of Slurm until nothing of it is left there.

        Raises
        ------
        RunNotFound
            If there is no such run.
        """
        meta = self._meta(wms_id)
        engine = await self._driver.open(meta.token)
        if engine is None:
            last, end = await anyio.to_thread.run_sync(self._marks, meta.token)
            state = "never begun" if end is None else WmsStates(end.state).name
            return bool(last), f"run {wms_id} is over: {state}"
        await self._driver.tell(meta.token, lambda engine: engine.cancel(self.context.clock()))
        return True, ""

    async def hold(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """Submit nothing more of the run and hold what waits in Slurm, or only hold jobs of it."""
        engine = await self._live(wms_id)
        if engine is None:
            return False, f"run {wms_id} is not running"
        if jobs:
            return await self._of_jobs(engine, jobs, self._cluster.hold)
        await self._driver.tell(engine.meta.token, lambda engine: engine.hold(self.context.clock(), held=True))
        said = await self._cluster.hold(engine.waiting())
        return True, said

    async def release(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """Release what of the run is held in Slurm, and submit again."""
        engine = await self._live(wms_id)
        if engine is None:
            return False, f"run {wms_id} is not running"
        if jobs:
            offered = await self._driver.tell(engine.meta.token, lambda engine: engine.offer_again(jobs))
            return (True, "") if offered == len(jobs) else await self._of_jobs(engine, jobs, self._cluster.release)
        await self._driver.tell(engine.meta.token, lambda engine: engine.hold(self.context.clock(), held=False))
        said = await self._cluster.release(engine.on_hold() | engine.waiting())
        return not said, said

    async def _of_jobs(self, engine: Engine, jobs: tuple[str, ...], order: Any) -> tuple[bool, str]:
        ids = engine.slurm_ids(jobs)
        if not ids:
            return False, "none of these jobs is in Slurm now"
        said = await order(ids)
        self._driver.nudge()
        return not said, said

    # -- reading -----------------------------------------------------------------------------------------------------

    async def poll(self, request: PollRequest) -> PollResult:
        """Read on in the logs of runs; the driver looks at Slurm at its own pace, and soon if it has not for long."""
        began = time.monotonic()
        cursor = BackendCursor.parsed(request.cursor)
        looks = self._follower.looks(request, cursor)
        observations: list[RunObservation] = []
        run_cursors: dict[str, str] = {}
        absent, errors, jobs, read_bytes, more = [], [], 0, 0, False
        while taken := await anyio.to_thread.run_sync(_take_for, looks, SLICE_S):
            for look in taken:
                observations += look.observations
                run_cursors[look.wms_id] = look.cursor.text()
                jobs, read_bytes = jobs + look.job_count, read_bytes + look.read_bytes
                absent += [look.wms_id] if look.absent else []
                errors += [look.error] if look.error else []
            more = jobs >= JOBS_PER_POLL or time.monotonic() - began > 0.8 * request.deadline_s
            if more:
                break
        if errors:
            self.context.log.warning(LogEvent.RUN_LOGS_DAMAGED, errors=errors[:5], count=len(errors))
        if not more:
            observations += self._still_there(request)
        log = SourceReport(
            name=LOG,
            status="partial" if errors else "ok",
            covers="what bpsd submitted on this backend",
            cost_s=time.monotonic() - began,
            cost_bytes=read_bytes,
            error="; ".join(errors[:3]),
        )
        return PollResult(
            observations=self._quarantine.noted(observations, request.known, LOG, self._note_of),
            cursor=cursor.text(),
            run_cursors=run_cursors,
            sources=(*self._sources(), log),
            absent=tuple(absent),
            more=more,
        )

    def _note_of(self, run: KnownRun) -> str | None:
        return None if run.token is None else self._driver.note_of(run.token)

    def _still_there(self, request: PollRequest) -> list[RunObservation]:
        """Live runs, if Slurm was asked since the last poll: nothing new of them is news too."""
        queue = self._driver.watch.queue
        if queue.at <= self._told_at or not queue.ok:
            return []
        self._told_at = queue.at
        attempts = self._driver.attempts
        return [
            RunObservation(wms_id=run.wms_id, source=QUEUE, token=run.token, attempt=attempts[run.token])
            for run in request.known
            if run.token in attempts
        ]

    def _sources(self) -> list[SourceReport]:
        watch = self._driver.watch
        return [
            self._source(QUEUE, "jobs in Slurm, and those that ended within MinJobAge", watch.queue),
            self._source(ACCOUNTING, "jobs that the queue has forgotten", watch.accounting),
            self._source(EXITS, "how jobs ended, as their wrappers wrote it", watch.exits),
        ]

    def _source(self, name: str, covers: str, status: Status) -> SourceReport:
        error = status.error
        if not status.ok and status.at:
            error = f"{error} (last answer {self.context.clock() - status.at:.0f} s ago)"
        return SourceReport(name=name, status="ok" if status.ok else "failed", covers=covers, error=error)

    async def read_output(self, wms_id: str, job: str, stream: str, offset: int, limit: int) -> OutputPiece:
        """A piece of what the last attempt of a job printed; empty if it was not started yet.

        Raises
        ------
        RunNotFound
            If there is no such run.
        JobNotFound
            If the run has no such job.
        """
        meta = self._meta(wms_id)
        suffix = "err" if stream == "stderr" else "out"
        attempt = await anyio.to_thread.run_sync(self._last_attempt, meta.token, job)
        if attempt is None:
            raise JobNotFound(f"run {wms_id} has no job {job}", advice=f"`bpsctl jobs {wms_id}` lists those it has")
        path = posixpath.join(meta.folder, "out", f"{safe_name(job)}.{attempt}.{suffix}")
        info = await self._transport.stat(path)
        if info is None:
            return OutputPiece(data=b"", offset=0, size=0, path=path)
        start = max(info.size + offset, 0) if offset < 0 else min(offset, info.size)
        data = await self._transport.read(path, start, max(0, min(limit, OUTPUT_MAX_BYTES)))
        return OutputPiece(data=data, offset=start, size=max(info.size, start + len(data)), path=path)

    async def ping(self, pass_thru: str | None = None) -> tuple[int, str]:
        """Whether slurmctld is up."""
        try:
            return await self._cluster.ping()
        except (BackendUnavailable, BackendAuthError) as exc:
            return 1, exc.message

    def resolve_id(self, text: str) -> tuple[str, ...]:
        """Runs go by the beginning of their jobs' names: ``bps-TOKEN``, ``bps-TOKEN-7`` and ``TOKEN`` are one."""
        token = token_of(text)
        return (text,) if token is None or text == run_id(token) else (text, run_id(token))

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        async with self._busy:
            with self._driving:
                await self._driver.run()

    async def _look_at(self, workflow: WorkflowFile, folder: str) -> Findings:
        order = Order(
            workflow=workflow, folder=folder, defaults=self._settings.defaults, hands_off=self._settings.hands_off
        )
        about = f"preparing run {workflow.name}"
        return await ask_if_large(look_at, order, Findings, job_count=workflow.job_count, about=about)

    async def _ask_site(self, found: Findings) -> None:
        """What the submit host and slurmctld say against it; slurmctld that is away says nothing."""
        if self._settings.check_executables and found.programs:
            for program in await self._cluster.absent_programs(list(found.programs)):
                where = found.programs.get(program, ())
                found.add((*where, "executable"), f"there is no executable file {program} on {self._transport.host}")
        for options, where in found.options[:OPTION_SETS_TRIED]:
            said = await self._cluster.would_refuse(options)
            if said:
                found.add(where, f"sbatch {' '.join(options)}: {said}")

    def _umask_of(self, config: Mapping[str, Any], workflow: WorkflowFile) -> str:
        """The umask of a run's jobs: of the document, the settings or the submitter; over SSH else the account's."""
        if self._settings.ssh is not None:
            return workflow.umask or self._settings.umask or ""
        return umask_of(workflow, self._settings.umask, config)

    def _add(self, workflow: WorkflowFile, folder: str, umask: str) -> Meta:
        now, hands_off = self.context.clock(), self._settings.hands_off
        return self._state.add(workflow, folder, now, hands_off=hands_off, umask=umask)

    async def _begin(self, token: str, attempt: int) -> None:
        try:
            await self._driver.begin(token, attempt)
        except OSError as exc:
            raise BackendUnavailable(f"attempt {attempt} of run {token} cannot be written down: {exc}") from exc
        self._follower.expect(token)

    def _meta(self, wms_id: str) -> Meta:
        token = token_of(wms_id)
        meta = None if token is None else self._state.meta(token)
        if meta is None:
            raise no_run(self.context.backend, wms_id)
        return meta

    async def _live(self, wms_id: str) -> Engine | None:
        return await self._driver.open(self._meta(wms_id).token)

    def _marks(self, token: str) -> tuple[int, End | None]:
        """The last attempt of a run that was begun (0: none), and how it ended, if it did."""
        attempt, end = 0, None
        for payload in runlog.events(self._state.run(token).log, bytes):
            if payload.startswith((b'{"e":"begin"', b'{"e":"end"')):
                event = decode(payload)
                if isinstance(event, Begin):
                    attempt, end = event.attempt, None
                elif isinstance(event, End):
                    end = event
        return attempt, end

    def _last_attempt(self, token: str, job: str) -> int | None:
        """The last attempt of a job that was submitted (1 if none was); `None` if the run has no such job."""
        folder, quoted, last = self._state.run(token), msgspec.json.encode(job), 0
        for payload in runlog.events(folder.log, bytes):
            if quoted in payload and payload.startswith(b'{"e":"intent"'):
                intent = decode(payload)
                last = max([last, *(ref.attempt for ref in getattr(intent, "jobs", ()) if ref.name == job)])
        if last:
            return last
        return 1 if b'"name":' + quoted in read_limited(folder.workflow, DOCUMENT_MAX_BYTES) else None


def _take_for(source: Any, seconds: float) -> list[Look]:
    until, taken = time.monotonic() + seconds, []
    for look in source:
        taken.append(look)
        if time.monotonic() >= until:
            break
    return taken
