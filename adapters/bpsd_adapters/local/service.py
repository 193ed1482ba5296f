"""The local backend as the daemon sees it: it prepares runs, launches drivers, signals them and reads their logs.

The daemon is not needed for anything once a driver has begun: all that is said here is said in files of the run.
"""

from __future__ import annotations

__all__ = ["LocalConfig", "LocalService", "capacity_of"]

import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import anyio
import anyio.to_thread
import msgspec
from msgspec import Meta

from bpsd.diskfull import describe
from bpsd.errors import (
    BackendUnavailable,
    BpsdError,
    Conflict,
    JobNotFound,
    Problem,
    StorageError,
    UnsupportedOperation,
    WorkflowInvalid,
    no_run,
)
from bpsd.interface import Capabilities, OutputPiece, ServiceContext, WmsService, WmsWorkflow
from bpsd.models import PollRequest, PollResult, RunObservation, SourceReport, TokenAnswer, WmsStates
from bpsd.workflow import WorkflowFile
from bpsd_adapters import helper, runlog
from bpsd_adapters.driven import UmaskSetting, umask_of
from bpsd_adapters.files import try_folder, write_durably
from bpsd_adapters.local import history as histories
from bpsd_adapters.local import outputs, processes
from bpsd_adapters.local.checks import capacity_of, ledger_of, local_problems
from bpsd_adapters.local.driver import BEGUN, REFUSED
from bpsd_adapters.local.engine import DriverSettings
from bpsd_adapters.local.fields import FIELDS
from bpsd_adapters.local.follow import BackendCursor, Follower, take_for
from bpsd_adapters.local.history import History
from bpsd_adapters.local.launch import check_driver, launch_driver
from bpsd_adapters.local.layout import RunFolder, StateFolder
from bpsd_adapters.local.ledger import Ledger
from bpsd_adapters.local.ledgerfile import living_drivers
from bpsd_adapters.local.observe import LEDGER, LOG, PROCESSES, Phase, still_there
from bpsd_adapters.local.prepare import Answer, Order, work
from bpsd_adapters.local.units import limits, scope_command
from bpsd_adapters.quarantine import Quarantine
from bpsd_adapters.usernames import UserNames

JOBS_PER_POLL = 20_000
"""How many observations of jobs one poll brings; then it asks for another."""

SLICE_S = 0.001
"""How long a poll works in its thread before the event loop has its turn: while it does, the loop has to wait."""

DEADLINE_PART = 0.8
"""The part of a poll's deadline after which it ends with what it has."""

LOOK_EVERY_S = 0.1
"""How often the logs of live runs are looked at, to poll as soon as one has come to its end."""

LOOK_PART = 0.02
"""The part of the time that this may take: with many runs it is done less often."""

GROWN_EVERY_S = 1.0
"""How often at most a log that only grew is a reason to poll."""

START_WAIT_S = 20.0
"""How long to wait for somebody else who is starting the same run."""

_LOOK_AGAIN_S = 0.05

T = TypeVar("T")


class LocalConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a local backend."""

    cores: Annotated[int, Meta(ge=1, description="cores for jobs; default: those that the daemon may use")] | None = (
        None
    )
    memory_mb: Annotated[int, Meta(ge=1, description="memory for jobs in MB; default: that of the machine")] | None = (
        None
    )
    run_dir: (
        Annotated[
            str, Meta(pattern="^/", description="where the folders of runs are made; default: in the state folder")
        ]
        | None
    ) = None
    ledger: (
        Annotated[
            str,
            Meta(
                pattern="^/",
                description="file in which all runs of a user on a machine share cores and memory, in a folder that "
                "nobody else can write to (default: one in the user's state folder; not used with run_as: submitter)",
            ),
        ]
        | None
    ) = None
    run_as: Annotated[
        Literal["daemon", "submitter"],
        Meta(description="as whom jobs run; submitter: as who submitted them, in units of systemd (mode system)"),
    ] = "daemon"
    runs_at_once: Annotated[
        int,
        Meta(
            ge=1,
            description="maximum number of runs of one user that go on at the same time; a driver takes about 16 MB "
            "(default 200)",
        ),
    ] = 200
    umask: UmaskSetting = None
    terminate_grace_s: Annotated[
        float, Meta(ge=0, le=3600, description="from SIGTERM to SIGKILL when a job is to end")
    ] = 10.0
    leftover_processes: Annotated[
        Literal["wait", "end"],
        Meta(
            description="processes that a killed driver left: wait (the run is RUNNING until the last has ended) or end"
        ),
    ] = "wait"


class LocalService(WmsService):
    """Runs jobs on this machine."""

    Config: ClassVar[type[msgspec.Struct]] = LocalConfig

    jobs_per_poll: ClassVar[int] = JOBS_PER_POLL
    makes_scopes: ClassVar[bool] = True
    """Whether drivers get units of their own where this process is a unit of systemd's."""

    @classmethod
    def made(cls, config: LocalConfig, context: ServiceContext) -> WmsService:
        """One for the daemon's user, or one for all who submit."""
        if config.run_as == "daemon":
            return cls(config, context)
        from bpsd_adapters.local.submitters import SubmitterService

        return SubmitterService(config, context)

    @classmethod
    def check_settings(cls, config: LocalConfig) -> Sequence[Problem]:
        """See `WmsService.check_settings`."""
        return local_problems(config)

    def __init__(self, config: LocalConfig, context: ServiceContext) -> None:
        super().__init__(config, context)
        self._config = config
        self._state = StateFolder(context.state_dir, None if config.run_dir is None else Path(config.run_dir))
        self._names = UserNames()
        self.capacity = capacity_of(config)
        self._quarantine = Quarantine(context.log, context.backend, expected=(FileNotFoundError,))
        self._follower = Follower(self._state, self._names.known(os.getuid()), self._quarantine)
        self._watching, self._have_live = anyio.CancelScope(), anyio.Event()
        self._ending: set[str] = set()

    async def __aenter__(self) -> Self:
        await _in_thread(self._state.make)
        self._ledger = await _in_thread(ledger_of, self._config, self.context.state_dir.parent.parent)
        self.context.task_group.start_soon(self._watch, name=f"{self.context.backend}: watch logs")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._watching.cancel()

    @property
    def capabilities(self) -> Capabilities:
        """What a single machine can do."""
        return Capabilities(
            fields=FIELDS, sources=(LEDGER, PROCESSES, LOG), poll_floor_s=0.2, holds=True, reads_output=True
        )

    def folders(self) -> tuple[Path, ...]:
        """Return the folder of the runs."""
        return () if self._config.run_dir is None else (Path(self._config.run_dir),)

    # -- submitting --------------------------------------------------------------------------------------------------

    async def prepare(
        self, config: Mapping[str, Any], generic_workflow: WorkflowFile, out_prefix: str | None = None
    ) -> WmsWorkflow:
        """Look at every job and make the run's folder, in a helper process.

        Raises
        ------
        WorkflowInvalid
            If jobs cannot run here: with all of them.
        StorageError
            If the folder could not be made.
        """
        umask = umask_of(generic_workflow, self._config.umask, config)
        workflow = msgspec.structs.replace(generic_workflow, umask=umask)
        answer = await self._looked_at(workflow, only_check=False)
        return WmsWorkflow(
            name=generic_workflow.name,
            token=generic_workflow.token,
            submit_path=answer.path,
            data={"wms_id": answer.wms_id},
        )

    async def check_workflow(self, config: Mapping[str, Any], generic_workflow: WorkflowFile) -> None:
        """Look at every job, in a helper process.

        Raises
        ------
        WorkflowInvalid
            If jobs cannot run here: with all of them.
        """
        await self._looked_at(generic_workflow, only_check=True)

    async def _looked_at(self, workflow: WorkflowFile, *, only_check: bool) -> Answer:
        order = Order(
            workflow=workflow,
            state=str(self._state.path),
            runs=str(self._state.runs),
            cores=self.capacity.cores,
            memory_mb=self.capacity.memory_mb,
            only_check=only_check,
        )
        about = f"{'checking' if only_check else 'preparing'} run {workflow.name}"
        answer = await helper.ask(work, order, Answer, about=about)
        if answer.error:
            raise StorageError(f"{about}: the files of the run failed: {answer.error}", advice=answer.advice)
        if answer.problems:
            problems = [Problem(p.where, p.message) for p in answer.problems]
            raise WorkflowInvalid(workflow.name, problems, total=answer.total)
        return answer

    async def submit(self, workflow: WmsWorkflow, **kwargs: Any) -> None:
        """Launch the run's first driver, unless that was done before.

        Raises
        ------
        BackendUnavailable
            If no driver came to life.
        """
        await self._begin(RunFolder(Path(workflow.submit_path)), 1)
        workflow.run_id = workflow.data["wms_id"]

    async def restart(
        self, wms_workflow_id: str, *, attempt_token: str | None = None
    ) -> tuple[str | None, str | None, str]:
        """Launch a driver for the next attempt: what succeeded is not run again.

        Raises
        ------
        RunNotFound
            If there is no such run.
        Conflict
            If it runs, or has succeeded.
        BackendUnavailable
            If no driver came to life.
        """
        folder = await self._folder(wms_workflow_id)
        meta = await _in_thread(folder.meta)
        told = await _in_thread(histories.read_marks, folder.log)
        attempt = told.attempt + 1 if attempt_token is None else int(attempt_token.rpartition(".")[2])
        if told.attempt < attempt:
            if told.end is not None and told.end.state == WmsStates.SUCCEEDED:
                raise Conflict(f"run {meta.wms_id} has succeeded: there is nothing to restart")
            if await _in_thread(_is_driven, folder.log, told):
                raise Conflict(
                    f"run {meta.wms_id} runs (attempt {told.attempt})",
                    advice=f"wait for its end, or end it with `bpsctl cancel {meta.wms_id}`",
                )
            await self._begin(folder, attempt)
        return meta.wms_id, meta.name, ""

    async def run_submission_checks(self) -> None:
        """Raise what would make any submission fail.

        Raises
        ------
        StorageError
            If the state folder cannot be written.
        BackendUnavailable
            If drivers cannot start, or share no ledger.
        """
        status, message = await self.ping()
        if status:
            raise BackendUnavailable(message, advice="nothing was submitted; mend this and try again")

    async def find_by_token(self, token: str, since: float) -> TokenAnswer:
        """Whether a run, or an attempt of it (``TOKEN.N``), has begun; waits for who is beginning it now."""
        run, _, number = token.partition(".")
        attempt = int(number) if number.isdecimal() else 1
        folder = self._state.run(run)
        with anyio.move_on_after(START_WAIT_S):
            while True:
                if not await _in_thread(folder.path.is_dir):
                    return TokenAnswer(verdict="absent")
                held = await _in_thread(runlog.is_held, folder.log)  # before reading: it begins while it holds
                told = await _in_thread(histories.read_marks, folder.log)
                if told.attempt >= attempt:
                    meta = await _in_thread(folder.meta)
                    return TokenAnswer(verdict="found", wms_id=meta.wms_id, path=str(folder.path))
                if not held or await _in_thread(_is_driven, folder.log, told):
                    return TokenAnswer(verdict="absent")
                await anyio.sleep(_LOOK_AGAIN_S)
        return TokenAnswer(verdict="cannot_tell", reason=f"somebody holds {folder.log} and begins nothing")

    # -- changing ----------------------------------------------------------------------------------------------------

    async def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        """Ask the driver to end all jobs; if it is dead, launch one to do that.

        Raises
        ------
        RunNotFound
            If there is no such run.
        """
        folder = await self._folder(wms_id)
        told = await self._settled(folder)
        if not told.attempt:
            return False, f"run {wms_id} was never begun"
        if told.end is not None:
            return True, f"run {wms_id} is over: {WmsStates(told.end.state).name}"
        await _in_thread(write_durably, folder.cancel_request(told.attempt), b"")
        if await _in_thread(_wake_driver, folder.log, told):
            return True, f"the driver of run {wms_id} was asked to end its jobs"
        await self._begin(folder, told.attempt, only_end=True)
        return True, f"the driver of run {wms_id} was dead: what it left is being ended"

    async def hold(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """Let the run start no more jobs; those that run go on."""
        return await self._hold(wms_id, jobs, held=True)

    async def release(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """Let the run start jobs again."""
        return await self._hold(wms_id, jobs, held=False)

    async def _hold(self, wms_id: str, jobs: tuple[str, ...], *, held: bool) -> tuple[bool, str]:
        if jobs:
            raise UnsupportedOperation(f"backend {self.context.backend} holds whole runs, not single jobs")
        folder = await self._folder(wms_id)
        told = await self._settled(folder)
        if told.end is not None or not told.attempt:
            return False, f"run {wms_id} is not running"
        request = folder.hold_request(told.attempt)
        if held:
            await _in_thread(write_durably, request, b"")
        else:
            await _in_thread(request.unlink, True)
        if not await _in_thread(_wake_driver, folder.log, told):
            return False, f"the driver of run {wms_id} is dead; `bpsctl restart {wms_id}` resumes the run"
        return True, f"run {wms_id} {'starts no more jobs' if held else 'goes on'}"

    # -- reading -----------------------------------------------------------------------------------------------------

    async def poll(self, request: PollRequest) -> PollResult:
        """Read on in the logs of live runs, and find runs that are not known yet."""
        began = time.monotonic()
        self._follower.owner = await self._names.look_up(os.getuid())
        cursor = BackendCursor.parsed(request.cursor)
        looks = self._follower.looks(request, cursor)
        observations: list[RunObservation] = []
        run_cursors: dict[str, str] = {}
        absent: list[str] = []
        errors: dict[str, str] = {}
        jobs = read_bytes = 0
        more = False
        while taken := await _in_thread(take_for, looks, SLICE_S):
            for look in taken:
                observations += look.observations
                run_cursors[look.wms_id] = look.cursor.text()
                jobs, read_bytes = jobs + look.job_count, read_bytes + look.read_bytes
                if look.absent:
                    absent.append(look.wms_id)
                if look.cursor.phase is Phase.ORPHANS and self._config.leftover_processes == "end":
                    self._end_leftovers(look.wms_id, look.cursor.attempt)
                if look.error:
                    errors[look.wms_id] = look.error
            more = jobs >= self.jobs_per_poll or time.monotonic() - began > request.deadline_s * DEADLINE_PART
            if more:
                break
        if errors:
            self.context.log.warning("run_logs_damaged", errors=[*errors.values()][:5], count=len(errors))
        fault = await _in_thread(self._ledger_fault)
        if (errors or fault) and not more:
            observations += still_there(request.known, {*errors, *absent})
        if self._follower.live:
            self._have_live.set()
        cost = time.monotonic() - began
        return PollResult(
            observations=self._quarantine.noted(observations, request.known, LOG, lambda _: ""),
            cursor=cursor.text(),
            run_cursors=run_cursors,
            sources=(
                SourceReport(
                    name=LEDGER,
                    status="partial" if fault else "ok",
                    covers="cores and memory that runs hold",
                    error=fault,
                ),
                SourceReport(name=PROCESSES, status="ok", covers="drivers and jobs of this machine"),
                SourceReport(
                    name=LOG,
                    status="partial" if errors else "ok",
                    covers="all runs of this backend",
                    cost_s=cost,
                    cost_bytes=read_bytes,
                    error="; ".join([*errors.values()][:3]),
                ),
            ),
            absent=tuple(absent),
            more=more,
        )

    async def read_output(self, wms_id: str, job: str, stream: str, offset: int, limit: int) -> OutputPiece:
        """A piece of what the last attempt of a job printed; empty if it was not started yet.

        Raises
        ------
        RunNotFound
            If there is no such run.
        JobNotFound
            If the run has no such job.
        """
        folder = await self._folder(wms_id)
        path = await _in_thread(outputs.last_output, folder, job, "err" if stream == "stderr" else "out")
        if path is None:
            raise JobNotFound(f"run {wms_id} has no job {job}", advice=f"`bpsctl jobs {wms_id}` lists those it has")
        return await _in_thread(outputs.read_piece, path, offset, limit)

    def resolve_id(self, text: str) -> tuple[str, ...]:
        """Runs have numbers; ``12.0`` is ``12`` too."""
        number = text.removesuffix(".0")
        return (text, number) if number != text and number.isdecimal() else (text,)

    async def ping(self, pass_thru: str | None = None) -> tuple[int, str]:
        """Whether a run could be submitted now: the state folder takes files, the ledger works, drivers start."""
        try:
            await _in_thread(self._try_files)
        except OSError as exc:
            reason, _ = await _in_thread(describe, exc, self._state.path)
            return 1, f"backend {self.context.backend} cannot write its files: {reason}"
        code, said = await check_driver()
        if code != BEGUN:
            return 1, f"backend {self.context.backend} cannot start drivers: {said or f'exit code {code}'}"
        return 0, f"{self.capacity.cores} cores and {self.capacity.memory_mb} MB of memory for jobs"

    def expect(self, wms_id: str) -> None:
        """A run that was over has a driver again: it is looked at in the next poll."""
        self._quarantine.retry_now(wms_id)
        self._follower.expect(wms_id)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _try_files(self) -> None:
        for folder in (self._state.path, self._state.runs, self._state.ids):
            try_folder(folder)
        Ledger(self._ledger, self.capacity, processes.GONE).read()  # a damaged one stops no submission

    def _ledger_fault(self) -> str:
        return Ledger(self._ledger, self.capacity, processes.GONE).fault()

    async def _folder(self, wms_id: str) -> RunFolder:
        folder = await _in_thread(self._state.numbered, wms_id)
        if folder is None or not await _in_thread(folder.path.is_dir):
            raise no_run(self.context.backend, wms_id)
        return folder

    async def _settled(self, folder: RunFolder) -> History:
        """When attempts began and ended, once nobody is just beginning one."""
        with anyio.move_on_after(START_WAIT_S):
            while True:
                held = await _in_thread(runlog.is_held, folder.log)
                told = await _in_thread(histories.read_marks, folder.log)
                if not held or await _in_thread(_is_driven, folder.log, told):
                    return told
                await anyio.sleep(_LOOK_AGAIN_S)
        raise BackendUnavailable(f"somebody holds {folder.log} and begins nothing", advice="try again")

    async def _begin(self, folder: RunFolder, attempt: int, *, only_end: bool = False) -> None:
        """See to it that an attempt has begun; whoever else wants that too, it begins once."""
        deadline = time.monotonic() + START_WAIT_S
        while (log_fd := await _in_thread(runlog.lock, folder.log)) is None:
            if (await _in_thread(histories.read_marks, folder.log)).attempt >= attempt:
                return
            if time.monotonic() > deadline:
                raise BackendUnavailable(
                    f"somebody holds {folder.log} and begins no attempt {attempt}",
                    advice="look who does, and try again",
                )
            await anyio.sleep(_LOOK_AGAIN_S)
        await self._launch(folder, attempt, log_fd, only_end=only_end)

    async def _launch(self, folder: RunFolder, attempt: int, log_fd: int, *, only_end: bool) -> None:
        if not only_end and len(await _in_thread(living_drivers, self._ledger)) >= self._config.runs_at_once:
            os.close(log_fd)
            raise BackendUnavailable(
                f"{self._config.runs_at_once} runs go on: no more are started at the same time",
                advice="it is started when one of them is over; `runs_at_once` of the backend is the limit",
            )
        settings = DriverSettings(
            attempt=attempt,
            cores=self.capacity.cores,
            memory_mb=self.capacity.memory_mb,
            ledger=str(self._ledger),
            grace_s=self._config.terminate_grace_s,
            log_fd=log_fd,
            only_end=only_end,
        )
        try:
            scope: list[str] = []
            if self.makes_scopes:
                scope = await _in_thread(scope_command, folder.token, os.environ, os.getpid(), limits(*self.capacity))
            code, said = await launch_driver(folder.path, settings, scope)
        finally:
            os.close(log_fd)
        if code == REFUSED:
            raise Conflict(f"run {folder.path.name} does not begin attempt {attempt}: {said}")
        if code != BEGUN:
            raise BackendUnavailable(
                f"the driver of attempt {attempt} did not start (exit code {code}): {said}",
                advice=f"{folder.driver_err} may tell more; nothing of this attempt runs",
            )
        self.expect((await _in_thread(folder.meta)).wms_id)
        self.context.wake("a driver was launched")

    def _end_leftovers(self, wms_id: str, attempt: int) -> None:
        """Have a driver end what a killed one left, next to the poll that has seen it."""

        async def end() -> None:
            try:
                await self._begin(await self._folder(wms_id), attempt, only_end=True)
            except BpsdError as exc:  # the next poll sees them again
                self.context.log.warning("leftover_processes_live", run=wms_id, error=str(exc))
            finally:
                self._ending.discard(wms_id)

        if wms_id not in self._ending:
            self._ending.add(wms_id)
            self.context.task_group.start_soon(end, name=f"{self.context.backend}: end what run {wms_id} left")

    async def _watch(self) -> None:
        """Ask for a poll as soon as nobody writes a log of a live run any more, and now and then when one has grown."""
        with self._watching:
            told: dict[str, tuple[int, bool]] = {}
            told_at = -math.inf
            while True:
                if not self._follower.live:
                    self._have_live = anyio.Event()
                    await self._have_live.wait()
                began = time.monotonic()
                seen = await _in_thread(_glance, dict(self._follower.live))
                cost = time.monotonic() - began
                changed = [run for run, glance in seen.items() if told.setdefault(run, glance) != glance]
                if any(seen[run][1] != told[run][1] for run in changed) or (
                    changed and began - told_at >= GROWN_EVERY_S
                ):
                    told, told_at = seen, began
                    self.context.wake("a log has grown, or come to its end")
                await anyio.sleep(max(LOOK_EVERY_S, cost / LOOK_PART))


def _glance(logs: Mapping[str, Path]) -> dict[str, tuple[int, bool]]:
    """The size of each log, and whether somebody writes it."""
    found = {}
    for wms_id, log in logs.items():
        try:
            found[wms_id] = (log.stat().st_size, runlog.is_held(log))
        except OSError:
            found[wms_id] = (-1, False)
    return found


def _is_driven(log: Path, told: History) -> bool:
    """Whether the last attempt that the log tells of goes on: its driver lives, and not only to let go of the log."""
    if told.begin is None or told.end is not None or told.begin.boot != processes.boot_id():
        return False
    return processes.is_alive(told.driver) and runlog.is_held(log)


def _wake_driver(log: Path, told: History) -> bool:
    """Let the driver of the last attempt look at its requests; false if there is none any more."""
    return _is_driven(log, told) and processes.send(told.driver, signal.SIGUSR1)


async def _in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """All that touches files is done beside the event loop."""
    return await anyio.to_thread.run_sync(call, *arguments)
