"""The adapter of the scripted WMS: the in-memory twin of a backend, for tests of everything above the adapters."""

from __future__ import annotations

__all__ = ["ScriptedConfig", "ScriptedService"]

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import anyio
import anyio.to_thread
import msgspec

from bpsd.errors import (
    BackendAuthError,
    BackendUnavailable,
    Conflict,
    PermissionDenied,
    Problem,
    RunNotFound,
    WorkflowInvalid,
)
from bpsd.interface import Capabilities, FieldSupport, OutputPiece, ServiceContext, WmsService, WmsWorkflow
from bpsd.models import (
    TERMINAL,
    JobObservation,
    PollRequest,
    PollResult,
    RunObservation,
    SourceReport,
    TokenAnswer,
    WmsStates,
)
from bpsd.testing.wms import Fault, ScriptedJob, ScriptedRun, ScriptedWms, WmsFile, add_run, touch
from bpsd.workflow import JOB_FIELDS, Workflow, WorkflowFile

T = TypeVar("T")

_FIELDS = dict.fromkeys(JOB_FIELDS, (FieldSupport.HONOURS, "")) | {
    "preemptible": (FieldSupport.REFUSES, "nothing is ever preempted in a scripted WMS"),
    "priority": (FieldSupport.APPROXIMATES, "written down, but nothing is ordered by it"),
}
_POLL_ROUND = 50_000  # job observations in one result


class ScriptedConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Settings of a scripted backend. ``path``: its file (default: ``wms.json`` in the backend's state folder)."""

    path: str | None = None


class ScriptedService(WmsService):
    """Reads and writes a `~bpsd.testing.wms.ScriptedWms`."""

    Config: ClassVar[type[msgspec.Struct]] = ScriptedConfig

    def __init__(self, config: ScriptedConfig, context: ServiceContext) -> None:
        super().__init__(config, context)
        self.wms = ScriptedWms(config.path or context.state_dir / "wms.json")

    @property
    def capabilities(self) -> Capabilities:
        """Everything, but for two fields of a job."""
        return Capabilities(
            fields=_FIELDS,
            sources=("queue", "history"),
            poll_floor_s=0.05,
            holds=True,
            reads_output=True,
        )

    # -- commands ----------------------------------------------------------------------------------------------------

    async def prepare(
        self, config: Mapping[str, Any], generic_workflow: WorkflowFile, out_prefix: str | None = None
    ) -> WmsWorkflow:
        """Read the workflow and check it."""
        workflow = await _checked(generic_workflow)
        await self._call("prepare", lambda _: None)
        jobs = [ScriptedJob(name=job.name, label=job.label) for job in workflow.jobs if job.kind != "noop"]
        return WmsWorkflow(
            name=workflow.name,
            token=generic_workflow.token,
            submit_path=f"/scripted/{generic_workflow.token}",
            data={"jobs": jobs, "file": generic_workflow},
        )

    async def run_submission_checks(self) -> None:
        """Well, unless a fault says otherwise."""
        await self._call("run_submission_checks", lambda _: None)

    async def check_workflow(self, config: Mapping[str, Any], generic_workflow: WorkflowFile) -> None:
        """Refuse a job whose executable is ``missing``, as a real backend would."""
        await self._call("check_workflow", lambda _: None)
        await _checked(generic_workflow)

    async def submit(self, workflow: WmsWorkflow, **kwargs: Any) -> None:
        """Put the run into the file, once for a token."""

        def effect(wms: WmsFile) -> str:
            for run in wms.runs.values():
                if workflow.token in run.tokens:
                    return run.wms_id
            facts: WorkflowFile = workflow.data["file"]
            run = add_run(
                wms,
                workflow.name,
                state="PENDING",
                tokens=[workflow.token, f"{workflow.token}.1"],
                attributes={**msgspec.to_builtins(facts.run), "path": workflow.submit_path},
                run_summary=facts.run_summary,
            )
            run.jobs = workflow.data["jobs"]
            return run.wms_id

        workflow.run_id = await self._call("submit", effect)

    async def restart(
        self, wms_workflow_id: str, *, attempt_token: str | None = None
    ) -> tuple[str | None, str | None, str]:
        """The next attempt of a run that is over, under the same id."""

        def effect(wms: WmsFile) -> tuple[str | None, str | None, str]:
            run = _run(wms, wms_workflow_id)
            if attempt_token in run.tokens:
                return run.wms_id, run.name, ""
            if WmsStates[run.state] not in TERMINAL:
                raise Conflict(f"run {run.wms_id} is {run.state}")
            run.attempt = (run.attempt or 1) + 1
            if attempt_token is not None:
                run.tokens.append(attempt_token)
            run.state, run.end_time, run.note = "PENDING", None, None
            for job in run.jobs:
                if job.state != "SUCCEEDED":
                    job.state, job.exit_code = "READY", None
            touch(wms, run)
            return run.wms_id, run.name, ""

        return await self._call("restart", effect)

    async def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        """Delete a run that is not over."""

        def effect(wms: WmsFile) -> tuple[bool, str]:
            run = _run(wms, wms_id)
            if WmsStates[run.state] in TERMINAL:
                return False, f"run {wms_id} is {run.state}"
            run.state, run.end_time = "DELETED", time.time()
            touch(wms, run)
            return True, ""

        return await self._call("cancel", effect)

    async def hold(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """HELD until released: the run, or these of its jobs."""
        return await self._call("hold", lambda wms: _hold(wms, wms_id, jobs))

    async def release(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """RUNNING again: the run, or these of its jobs."""
        return await self._call("release", lambda wms: _release(wms, wms_id, jobs))

    async def ping(self, pass_thru: str | None = None) -> tuple[int, str]:
        """Always there, unless a fault says otherwise."""
        await self._call("ping", lambda _: None)
        return 0, "the scripted WMS is there"

    # -- readers -----------------------------------------------------------------------------------------------------

    async def poll(self, request: PollRequest) -> PollResult:
        """What has a higher version than the cursor."""
        wms = await self._call("poll", lambda wms: wms)
        fault = wms.faults.get("poll")
        kind = fault.kind if fault is not None and fault.times else None
        after = int(request.cursor or 0)
        changed = sorted((r for r in wms.runs.values() if r.version > after and not r.hidden), key=lambda r: r.version)
        if kind == "partial":
            changed = changed[::2]
        if kind == "empty":
            return PollResult(sources=(SourceReport(name="queue", status="partial", error="it answered nothing"),))
        observations, jobs = [], 0
        for run in changed:
            observations.append(_observe(run))
            jobs += len(run.jobs)
            if jobs > _POLL_ROUND:
                break
        more = len(observations) < len(changed)
        cursor = str(changed[len(observations) - 1].version) if more else str(wms.version)
        status: Literal["ok", "partial"] = "partial" if kind == "partial" else "ok"
        visible = {run.wms_id for run in wms.runs.values() if not run.hidden}
        return PollResult(
            observations=observations,
            cursor=None if kind == "partial" else cursor,
            sources=(
                SourceReport(name="queue", status=status, covers="what runs"),
                SourceReport(name="history", status="ok", covers="what is over"),
            ),
            absent=tuple(known.wms_id for known in request.known if known.wms_id not in visible),
            more=more,
        )

    async def find_by_token(self, token: str, since: float) -> TokenAnswer:
        """Look into the file."""

        def look(wms: WmsFile) -> TokenAnswer:
            if not wms.token_asks_tell:
                return TokenAnswer(verdict="cannot_tell", reason="the scripted WMS keeps its secrets")
            for run in wms.runs.values():
                if token in run.tokens:
                    return TokenAnswer(verdict="found", wms_id=run.wms_id, path=run.attributes.get("path"))
            return TokenAnswer(verdict="absent")

        return await self._call("find_by_token", look)

    async def read_output(self, wms_id: str, job: str, stream: str, offset: int, limit: int) -> OutputPiece:
        """The scripted log of a job."""

        def read(wms: WmsFile) -> OutputPiece:
            for known in _run(wms, wms_id).jobs:
                if known.name == job:
                    data = known.log.encode()
                    start = max(0, len(data) + offset) if offset < 0 else min(offset, len(data))
                    path = f"{self.wms.path}#{wms_id}/{job}"
                    return OutputPiece(data=data[start : start + limit], offset=start, size=len(data), path=path)
            raise RunNotFound(f"run {wms_id} has no job {job}")

        return await self._call("read_output", read)

    def resolve_id(self, text: str) -> tuple[str, ...]:
        """``12`` and ``12.0`` are the same, as in HTCondor."""
        return (text, text.removesuffix(".0")) if text.endswith(".0") else (text,)

    # -- the file ----------------------------------------------------------------------------------------------------

    async def _call(self, name: str, effect: Callable[[WmsFile], T]) -> T:
        """One call to the WMS, as well or as badly as the file says."""
        fault = await anyio.to_thread.run_sync(self._next_fault, name)
        kind = fault.kind if fault is not None else None
        if kind in ("hang", "slow"):
            await anyio.sleep(fault.seconds or 3600.0 if fault is not None else 0.0)
        if kind == "error":
            raise BackendUnavailable("the scripted WMS does not answer")
        if kind == "auth":
            raise BackendAuthError("the scripted WMS does not know us", advice="renew the token")
        if kind == "bug":
            raise ZeroDivisionError("a bug in the adapter")
        if kind == "refuse":
            raise PermissionDenied("the scripted WMS says no")
        if kind == "crash":
            self.context.task_group.start_soon(_crash)
            await anyio.sleep_forever()
        result = await anyio.to_thread.run_sync(self._effect, effect)
        if kind == "lost":
            raise BackendUnavailable("the connection broke before the answer came")
        return result

    def _next_fault(self, name: str) -> Fault | None:
        with self.wms.edit() as wms:
            wms.calls[name] = wms.calls.get(name, 0) + 1
            fault = wms.faults.get(name)
            if fault is None or fault.times == 0:
                return None
            if fault.times > 0:
                fault.times -= 1
            return fault

    def _effect(self, effect: Callable[[WmsFile], T]) -> T:
        with self.wms.edit() as wms:
            return effect(wms)


async def _checked(file: WorkflowFile) -> Workflow:
    workflow = msgspec.json.decode(await anyio.Path(file.path).read_bytes(), type=Workflow)
    problems = [
        Problem(("jobs", number, "executable"), "the executable missing is not there")
        for number, job in enumerate(workflow.jobs)
        if job.executable == "missing"
    ]
    if problems:
        raise WorkflowInvalid(workflow.name, problems)
    return workflow


async def _crash() -> None:
    raise RuntimeError("the adapter's background task died")


def _run(wms: WmsFile, wms_id: str) -> ScriptedRun:
    run = wms.runs.get(wms_id)
    if run is None or run.hidden:
        raise RunNotFound(f"the scripted WMS has no run {wms_id}")
    return run


def _set_state(wms: WmsFile, wms_id: str, state: str) -> tuple[bool, str]:
    run = _run(wms, wms_id)
    run.state = state
    touch(wms, run)
    return True, ""


def _hold(wms: WmsFile, wms_id: str, jobs: tuple[str, ...]) -> tuple[bool, str]:
    if not jobs:
        return _set_state(wms, wms_id, "HELD")
    run = _run(wms, wms_id)
    for job in run.jobs:
        if job.name in jobs:
            job.state = "HELD"
    touch(wms, run)
    return True, ""


def _release(wms: WmsFile, wms_id: str, jobs: tuple[str, ...]) -> tuple[bool, str]:
    run = _run(wms, wms_id)
    if not jobs:
        run.state = "RUNNING"
    for job in run.jobs:
        if job.state == "HELD" and (not jobs or job.name in jobs):
            job.state, job.note, job.attempt = "RUNNING", "", (job.attempt or 0) + 1
    touch(wms, run)
    return True, ""


def _observe(run: ScriptedRun) -> RunObservation:
    attributes = run.attributes
    return RunObservation(
        wms_id=run.wms_id,
        source="history" if WmsStates[run.state] in TERMINAL else "queue",
        rank=10 if WmsStates[run.state] in TERMINAL else 0,
        state=WmsStates[run.state],
        token=run.tokens[0] if run.tokens else None,
        attempt=run.attempt,
        run=run.name,
        global_wms_id=attributes.get("global_wms_id"),
        path=attributes.get("path"),
        project=attributes.get("project"),
        campaign=attributes.get("campaign"),
        payload=attributes.get("payload"),
        operator=attributes.get("operator"),
        site=attributes.get("site"),
        owner=attributes.get("owner"),
        run_summary=run.run_summary,
        submit_time=run.submit_time,
        end_time=run.end_time,
        note=run.note,
        jobs=[
            JobObservation(
                name=job.name,
                label=job.label,
                state=WmsStates[job.state],
                attempt=job.attempt,
                exit_code=job.exit_code,
                note=job.note,
            )
            for job in run.jobs
        ],
    )
