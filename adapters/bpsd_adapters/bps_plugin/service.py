"""Any ``BaseWmsService`` class as a backend: it lives in processes of its own, and we know what it forgets.

Two control workers, one for questions and one for commands, so that a long submission makes no report wait. Where the
plugin's ``submit`` blocks until the end, each run has a host process (`bpsd_adapters.bps_plugin.host`) and is read from
its log; else the plugin reports. What a plugin does not implement is done from what we know ourselves.
"""

from __future__ import annotations

__all__ = ["BpsPluginService"]

import contextlib
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import anyio
import anyio.to_thread
import msgspec

from bpsd.diskfull import mentions_full
from bpsd.errors import (
    BackendAuthError,
    BackendUnavailable,
    BpsdError,
    Conflict,
    JobNotFound,
    PermissionDenied,
    Problem,
    RunNotFound,
    UnsupportedOperation,
    WorkflowInvalid,
    no_run,
)
from bpsd.interface import Capabilities, OutputPiece, ServiceContext, WmsService, WmsWorkflow
from bpsd.logs import LogEvent
from bpsd.models import TERMINAL, PollRequest, PollResult, TokenAnswer, WmsRunReport, WmsStates
from bpsd.pathchecks import cannot_run, cannot_write_in, expanded
from bpsd.workflow import WorkflowFile
from bpsd_adapters.bps_plugin.bridge import BridgedRuns
from bpsd_adapters.bps_plugin.entries import Entries, Entry, token_and_number
from bpsd_adapters.bps_plugin.fields import fields_of
from bpsd_adapters.bps_plugin.hosted import HostedRuns
from bpsd_adapters.bps_plugin.link import Deployment, WorkerError, WorkerLink
from bpsd_adapters.bps_plugin.plugin import says_no
from bpsd_adapters.bps_plugin.settings import BpsPluginConfig, traits_of
from bpsd_adapters.quarantine import Quarantine
from bpsd_adapters.transports.base import Transport
from bpsd_adapters.transports.settings import check_host, make_transport

MAX_OUTPUTS_BYTES = 64 * 1024 * 1024
"""The longest list of output files of a run that is read."""

_AUTH = re.compile(r"\b(401|403)\b|authenticat|unauthori[sz]ed|token (has )?expired|id_token|credential", re.IGNORECASE)
"""What an error says when the WMS refused us; every library has its own exception for that."""

_NOT_IMPLEMENTED = "NotImplementedError"


class BpsPluginService(WmsService):
    """A backend that is a plugin of ``bps``."""

    Config: ClassVar[type[msgspec.Struct]] = BpsPluginConfig

    @classmethod
    def check_settings(cls, config: BpsPluginConfig) -> Sequence[Problem]:
        """See `WmsService.check_settings`."""
        problems = check_host(config.ssh, None, {}, ())
        if config.ssh is None:
            if wrong := cannot_run(config.python):
                problems.append(Problem(("python",), wrong))
            if wrong := cannot_write_in(expanded(config.submit_root)):
                problems.append(Problem(("submit_root",), wrong))
        return problems

    def __init__(self, config: BpsPluginConfig, context: ServiceContext) -> None:
        super().__init__(config, context)
        self._config = config
        self._traits = traits_of(config)
        self._id_pattern = re.compile(self._traits.id_pattern)
        self._transport: Transport
        self._deployment: Deployment
        self._reading: WorkerLink
        self._commanding: WorkerLink
        self._entries: Entries
        self._runs: BridgedRuns | HostedRuns

    async def __aenter__(self) -> Self:
        config = self._config
        self._transport = await make_transport(config.ssh)
        await self._transport.__aenter__()
        self._deployment = Deployment(self._transport, config.submit_root, self.context.state_dir / "submit_root")
        self._reading, self._commanding = self._link("questions"), self._link("commands")
        self._entries = Entries(self._reading, config.call_deadline_s)
        quarantine = Quarantine(self.context.log, self.context.backend, expected=(OSError,))
        if self._traits.blocks:
            self._runs = HostedRuns(
                self._reading,
                self._entries,
                config.call_deadline_s,
                config.history_days,
                quarantine,
                end_left=config.leftover_processes == "end",
            )
        else:
            self._runs = BridgedRuns(
                self._reading,
                self._entries,
                self._traits,
                deadline_s=config.call_deadline_s,
                settle_s=config.settle_s,
                history_days=config.history_days,
                quarantine=quarantine,
            )
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self._reading.close()
            await self._commanding.close()
            await self._transport.__aexit__(exc_type, exc, tb)

    def _link(self, purpose: str) -> WorkerLink:
        return WorkerLink(
            purpose,
            self._deployment,
            self._transport,
            self._config.python,
            self._config.environment,
            {"plugin": self._config.plugin, "settings": self._config.settings},
            self._config.start_deadline_s,
            self.context.log,
            self.context.task_group,
        )

    @property
    def capabilities(self) -> Capabilities:
        """What any plugin can be made to do."""
        return Capabilities(
            fields=fields_of(self._config.plugin),
            sources=self._runs.sources,
            settle_s=0.0 if self._traits.blocks else self._config.settle_s,
            poll_floor_s=1.0 if self._traits.blocks else 2.0,
            reads_output=self._traits.blocks,
            commands_at_once=1,
        )

    def folders(self) -> tuple[Path, ...]:
        """Return the folder of the runs, unless it is on another host."""
        return (Path(self._config.submit_root).expanduser(),) if self._config.ssh is None else ()

    # -- commands ----------------------------------------------------------------------------------------------------

    async def prepare(
        self, config: Mapping[str, Any], generic_workflow: WorkflowFile, out_prefix: str | None = None
    ) -> WmsWorkflow:
        """Bring the document to the plugin's host and let the plugin make its files.

        Raises
        ------
        WorkflowInvalid
            If the plugin, or we for it, cannot run the workflow.
        """
        folder = await self._made_ready(generic_workflow)
        facts = {"run_summary": generic_workflow.run_summary, "job_count": generic_workflow.job_count}
        return WmsWorkflow(name=generic_workflow.name, token=generic_workflow.token, submit_path=folder, data=facts)

    async def check_workflow(self, config: Mapping[str, Any], generic_workflow: WorkflowFile) -> None:
        """Let the plugin make its files, and remove them.

        Raises
        ------
        WorkflowInvalid
            If the plugin, or we for it, cannot run the workflow.
        """
        token = generic_workflow.token
        try:
            await self._made_ready(generic_workflow)
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(BpsdError, OSError):
                await self._commanding.ask("forget", self._config.call_deadline_s, token=token)

    async def _made_ready(self, workflow: WorkflowFile) -> str:
        """Bring the document to a folder of its own and have the plugin prepare it there."""
        token, name = workflow.token, workflow.name
        with self._mapped("prepare"):
            await self._deployment.ensure()
            folder = f"{self._deployment.root}/{token}"
            done = await self._transport.run(["mkdir", "-p", folder], deadline_s=self._config.call_deadline_s)
            done.check(self._transport.host)
            document = await anyio.to_thread.run_sync(Path(workflow.path).read_bytes)
            await self._transport.write(f"{folder}/workflow.json", document)
        try:
            await self._commanding.ask(
                "prepare",
                self._config.submit_deadline_s,
                token=token,
                check_executables=self._config.check_executables,
            )
        except WorkerError as exc:
            self._tell("prepare", exc)
            if exc.kind in _SURROUNDINGS or mentions_full(exc.text):
                raise self._as_error("prepare", exc) from exc
            raise WorkflowInvalid(name, _problems(self._config.plugin, exc)) from exc
        return folder

    async def submit(self, workflow: WmsWorkflow, **kwargs: Any) -> None:
        """Hand it to the plugin, or to a host of its own if the plugin blocks; once.

        Raises
        ------
        BackendUnavailable
            If it is not known whether the WMS took it.
        """
        with self._mapped("submit"):
            workflow.run_id = await self._taken(workflow.token, 1, workflow.data)
        self.context.wake("submitted")

    async def _taken(self, token: str, number: int, facts: Mapping[str, Any]) -> str:
        deadline_s = self._config.submit_deadline_s
        if self._traits.blocks:
            wms_id = await self._commanding.ask("host_begin", deadline_s, token=token, number=number, facts=facts)
        else:
            wms_id = await self._commanding.ask("submit", deadline_s, token=token, facts=facts)
        return str(wms_id)

    async def restart(
        self, wms_workflow_id: str, *, attempt_token: str | None = None
    ) -> tuple[str | None, str | None, str]:
        """The plugin's ``restart``, once for an attempt; in a host of its own if it blocks.

        Raises
        ------
        RunNotFound
            If nobody knows such a run.
        Conflict
            If it goes on, or has succeeded.
        """
        entry = await self._entry(wms_workflow_id)
        token, number = self._attempt(entry, wms_workflow_id, attempt_token)
        with self._mapped("restart"):
            if entry is None or number > entry.last:  # else it was restarted before: then that is the answer
                await self._check_restart(wms_workflow_id)
            if self._traits.blocks:
                assert entry is not None
                return await self._taken(token, number, {}), str(entry.run.get("run")), ""
            answer = await self._commanding.ask(
                "restart", self._config.submit_deadline_s, wms_id=wms_workflow_id, token=token, number=number
            )
        self.context.wake("restarted")
        new_id, name, message = answer
        return new_id, name or (None if entry is None else str(entry.run.get("run"))), str(message or "")

    def _attempt(self, entry: Entry | None, wms_id: str, attempt_token: str | None) -> tuple[str, int]:
        if attempt_token is not None:
            return token_and_number(attempt_token)
        if entry is None:
            return f"run-{re.sub(r'[^A-Za-z0-9.]', '_', wms_id)}".replace(".", "_"), 2
        return entry.token, entry.last + 1

    async def _check_restart(self, wms_id: str) -> None:
        state, _ = await self.get_status(wms_id, hist=self._config.history_days)
        if state is WmsStates.SUCCEEDED:
            raise Conflict(f"run {wms_id} has succeeded: there is nothing to restart")
        if state not in TERMINAL and state is not WmsStates.UNKNOWN:
            raise Conflict(f"run {wms_id} goes on ({state.name})", advice="wait for its end, or cancel it")

    async def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        """The plugin's ``cancel``, for a run that somebody knows; a run of a host is ended by that.

        Raises
        ------
        RunNotFound
            If nobody knows such a run.
        """
        entry = await self._entry(wms_id)
        deadline_s = self._config.call_deadline_s
        with self._mapped("cancel"):
            if self._traits.blocks:
                assert entry is not None
                grace_s = self._config.cancel_grace_s
                message = await self._commanding.ask("host_cancel", deadline_s, token=entry.token, grace_s=grace_s)
                self.context.wake("cancelled")
                return True, str(message)
            state, _ = await self.get_status(wms_id, hist=self._config.history_days)
            if state in TERMINAL:
                return True, f"run {wms_id} is over: {state.name}"
            if entry is not None and entry.ours:
                await self._commanding.ask("note_cancel", deadline_s, token=entry.token)
            agreed, message = await self._ask("cancel", self._commanding, wms_id=wms_id, pass_thru=pass_thru)
        self.context.wake("cancelled")
        return bool(agreed) and not says_no(message), str(message or "")

    async def ping(self, pass_thru: str | None = None) -> tuple[int, str]:
        """The plugin's ``ping``; if it has none, whether the plugin can be loaded where it is."""
        try:
            status, message = await self._ask("ping", self._reading, pass_thru=pass_thru)
        except WorkerError as exc:
            if exc.kind != _NOT_IMPLEMENTED:
                return 1, str(exc)
            release, python = self._reading.facts.get("release"), self._reading.facts.get("python")
            return 0, f"{self._config.plugin} ({release}, Python {python}) is loaded; it has no ping of its own"
        except (BackendUnavailable, BackendAuthError) as exc:
            return 1, str(exc)
        return int(status), str(message or "")

    async def run_submission_checks(self) -> None:
        """The plugin's ``run_submission_checks``; if it has none, whether it can be loaded."""
        with self._mapped("run_submission_checks"):
            try:
                await self._ask("run_submission_checks", self._commanding)
            except WorkerError as exc:
                if exc.kind != _NOT_IMPLEMENTED:
                    raise

    # -- readers -----------------------------------------------------------------------------------------------------

    async def poll(self, request: PollRequest) -> PollResult:
        """See `WmsService.poll`: the plugin's reports, or the logs of hosts."""
        await self._commanding.rest(self._config.idle_s)
        with self._mapped("poll"):
            return await self._runs.poll(request)

    async def report(
        self,
        wms_workflow_id: str | None = None,
        user: str | None = None,
        hist: float = 0,
        pass_thru: str | None = None,
        is_global: bool = False,
        return_exit_codes: bool = False,
    ) -> tuple[list[WmsRunReport], str]:
        """See `WmsService.report`."""
        more: dict[str, Any] = {"user": user, "hist": hist, "pass_thru": pass_thru}
        if wms_workflow_id is not None:
            self._check_id(wms_workflow_id)
            more |= {"is_global": is_global, "return_exit_codes": return_exit_codes}
        with self._mapped("report"):
            return await self._runs.report(wms_workflow_id, **more), ""

    async def get_status(self, wms_workflow_id: str, hist: float = 1, is_global: bool = False) -> tuple[WmsStates, str]:
        """See `WmsService.get_status`."""
        self._check_id(wms_workflow_id)
        with self._mapped("get_status"):
            told, message = await self._runs.status(wms_workflow_id, hist)
        if told is WmsStates.UNKNOWN and self._entries.of_id(wms_workflow_id) is None:
            raise no_run(self.context.backend, wms_workflow_id, message or "the plugin gave no reason")
        return told, message

    async def list_submitted_jobs(
        self,
        wms_id: str | None = None,
        user: str | None = None,
        require_bps: bool = True,
        pass_thru: str | None = None,
        is_global: bool = False,
    ) -> list[str]:
        """See `WmsService.list_submitted_jobs`; without an id from a report of what is live."""
        if wms_id is not None and not self._traits.blocks:
            self._check_id(wms_id)
            arguments = {"wms_id": wms_id, "user": user, "require_bps": require_bps, "pass_thru": pass_thru}
            try:
                with self._mapped("list_submitted_jobs"):
                    return [str(one) for one in await self._ask("list_submitted_jobs", self._reading, **arguments)]
            except UnsupportedOperation:
                pass
        reports, _ = await self.report(wms_id, user, 0, pass_thru, is_global)
        return [r.wms_id for r in reports if r.wms_id is not None and r.state not in TERMINAL]

    async def find_by_token(self, token: str, since: float) -> TokenAnswer:
        """See `WmsService.find_by_token`: what the worker wrote down, else what the plugin says of the token."""
        run, number = token_and_number(token)
        deadline_s = self._config.call_deadline_s
        try:
            known = await self._commanding.ask("find", deadline_s, token=run, number=number)
        except (BackendUnavailable, BackendAuthError) as exc:
            return TokenAnswer(verdict="cannot_tell", reason=exc.message)
        if known["state"] == "done":
            return TokenAnswer(verdict="found", wms_id=known["wms_id"], path=known["path"])
        if known["state"] != "begun":
            return TokenAnswer(verdict="absent")  # the plugin is asked only after that was written
        try:
            return await self._settle(run, number, known, since)
        except (BackendUnavailable, BackendAuthError) as exc:
            return TokenAnswer(verdict="cannot_tell", reason=exc.message)

    async def _settle(self, token: str, number: int, known: Mapping[str, Any], since: float) -> TokenAnswer:
        """What became of an attempt that was begun, and whose end nobody wrote down."""
        found = await self._runs.find(token, number, known["path"])
        wait = since + self.capabilities.settle_s - self.context.clock()
        if found is None and wait > 0:
            return TokenAnswer(verdict="cannot_tell", reason=f"not found, which is proof only in {wait:.0f} s")
        await self._commanding.ask("settle", self._config.call_deadline_s, token=token, number=number, wms_id=found)
        if found is None:
            return TokenAnswer(verdict="absent")
        return TokenAnswer(verdict="found", wms_id=found, path=known["path"])

    def resolve_id(self, text: str) -> tuple[str, ...]:
        """See `WmsService.resolve_id`: with HTCondor ``12`` is ``12.0``; a folder may end in a slash."""
        bare = text.rstrip("/").removesuffix(".0")
        return tuple(dict.fromkeys((text, bare, f"{bare}.0" if bare.isdecimal() else bare)))

    async def read_output(self, wms_id: str, job: str, stream: str, offset: int, limit: int) -> OutputPiece:
        """See `WmsService.read_output`; where the plugin's workflow says where output goes (Parsl).

        Raises
        ------
        JobNotFound
            If the run has no such job, or it has not run yet.
        """
        entry = await self._entry(wms_id)
        if entry is None or not self._traits.blocks:
            raise UnsupportedOperation(f"backend {self.context.backend} cannot show the output of jobs")
        try:
            listed = await self._transport.read(posixpath.join(entry.path, "outputs.json"), 0, MAX_OUTPUTS_BYTES)
        except FileNotFoundError as exc:
            raise JobNotFound(f"run {wms_id} has no output yet") from exc
        path = msgspec.json.decode(listed, type=dict[str, tuple[str | None, str | None]]).get(job, (None, None))[
            stream == "stderr"
        ]
        info = None if path is None else await self._transport.stat(path)
        if path is None or info is None:
            raise JobNotFound(f"job {job} of run {wms_id} has no {stream} yet")
        begin = max(0, info.size + offset) if offset < 0 else offset
        data = await self._transport.read(path, begin, limit)
        return OutputPiece(data=data, offset=begin, size=info.size, path=path)

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _ask(self, method: str, link: WorkerLink, **arguments: Any) -> Any:
        return await link.ask("plugin", self._config.call_deadline_s, method=method, arguments=arguments)

    async def _entry(self, wms_id: str) -> Entry | None:
        """What we know of a run; a run of a plugin that blocks is ours, or there is none."""
        self._check_id(wms_id)
        with self._mapped("looking for a run"):
            await self._entries.refresh()
        entry = self._entries.of_id(wms_id)
        if entry is None and self._traits.blocks:
            raise no_run(self.context.backend, wms_id)
        return entry

    def _check_id(self, wms_id: str) -> None:
        """What a plugin could not understand is not handed to it: some put it into SQL."""
        if not wms_id:
            raise no_run(self.context.backend, wms_id)
        if not self._id_pattern.fullmatch(wms_id):
            raise RunNotFound(f"{wms_id!r} is no id of a run of {self._config.plugin}")

    @contextlib.contextmanager
    def _mapped(self, call: str) -> Iterator[None]:
        """Turn what the plugin raised into our errors, and have the daemon's log tell where it came from."""
        try:
            yield
        except WorkerError as exc:
            self._tell(call, exc)
            raise self._as_error(call, exc) from exc

    def _tell(self, call: str, exc: WorkerError) -> None:
        self.context.log.info(LogEvent.PLUGIN_CALL_FAILED, call=call, error=exc.message, trace=exc.trace)

    def _as_error(self, call: str, exc: WorkerError) -> BpsdError:
        """A plugin's exception as the error that says what the reader does next."""
        what = f"{self._config.plugin}: {call}: {exc.text or exc.kind}"
        if exc.kind == _NOT_IMPLEMENTED:
            return UnsupportedOperation(f"{self._config.plugin} does not implement {call}")
        if exc.kind in _OURS:
            return _OURS[exc.kind](what)
        if exc.kind == "PermissionError":
            return PermissionDenied(what)
        if _AUTH.search(exc.text):
            return BackendAuthError(what, advice="renew the credentials that the plugin uses")
        return BackendUnavailable(f"{what} ({exc.kind})", advice="the daemon's log has the plugin's own words")


_OURS: Mapping[str, type[BpsdError]] = {"RunNotFound": RunNotFound, "TimeoutError": Conflict}
_SURROUNDINGS = frozenset({"ImportError", "ModuleNotFoundError", "OSError", "PermissionError", "Busy"})
"""Kinds of error that say nothing of the workflow."""


def _problems(plugin: str, exc: WorkerError) -> list[Problem]:
    """What a worker found wrong: each of our own mistakes, or what the plugin said."""
    if exc.kind == WorkflowInvalid.__name__:
        return [Problem((), line) for line in exc.text.splitlines()]
    return [Problem((), f"{plugin}: {exc.kind}: {exc.text}")]
