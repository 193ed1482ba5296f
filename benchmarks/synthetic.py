"""An adapter whose WMS is a plan: so many runs with so many jobs, all of which change when the plan says so.

It costs nothing to speak of itself and works in short steps, so that what is measured is the daemon. `installed` makes
it known to a daemon as any other adapter is: by an entry point.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import msgspec

from bpsd.interface import Capabilities, FieldSupport, ServiceContext, WmsService, WmsWorkflow
from bpsd.models import JobObservation, PollRequest, PollResult, RunObservation, SourceReport, TokenAnswer, WmsStates
from bpsd.workflow import JOB_FIELDS, WorkflowFile

ROUND_RUNS = 10_000
"""Runs in one result."""

ROUND_JOBS = 50_000
"""Jobs in one result."""

STEP = 100
"""Observations that are made before others get their turn."""

LABELS = ("isr", "calibrate", "makeWarp", "assembleCoadd", "finalJob")
LIVE = (WmsStates.RUNNING, WmsStates.PENDING)


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """What the WMS has. ``version`` grows with each change; a change of it touches ``changed`` jobs of each run."""

    version: int = 1
    runs: int = 0
    jobs: int = 0
    changed: int = 1
    ids: bool = True

    def write(self, path: Path) -> None:
        """Let the WMS be so from now on."""
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(self))
        temporary.replace(path)


class SyntheticConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Settings: where the plan lies."""

    plan: str


class SyntheticService(WmsService):
    """Tells what the plan says; takes every command and does nothing."""

    Config: ClassVar[type[msgspec.Struct]] = SyntheticConfig

    def __init__(self, config: SyntheticConfig, context: ServiceContext) -> None:
        super().__init__(config, context)
        self._path = Path(config.plan)
        self._submitted: dict[str, str] = {}

    @property
    def capabilities(self) -> Capabilities:
        """Everything."""
        fields = dict.fromkeys(JOB_FIELDS, (FieldSupport.HONOURS, ""))
        return Capabilities(fields=fields, sources=("queue",), poll_floor_s=0.05, holds=True)

    async def prepare(
        self, config: Mapping[str, Any], generic_workflow: WorkflowFile, out_prefix: str | None = None
    ) -> WmsWorkflow:
        """Nothing to prepare."""
        return WmsWorkflow(generic_workflow.name, generic_workflow.token, f"/synthetic/{generic_workflow.token}")

    async def submit(self, workflow: WmsWorkflow, **kwargs: Any) -> None:
        """Give it an id."""
        workflow.run_id = self._submitted.setdefault(workflow.token, f"9{len(self._submitted):08d}")

    async def restart(
        self, wms_workflow_id: str, *, attempt_token: str | None = None
    ) -> tuple[str | None, str | None, str]:
        """Agree."""
        return wms_workflow_id, None, ""

    async def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        """Agree."""
        return True, ""

    async def hold(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """Agree."""
        return True, ""

    async def ping(self, pass_thru: str | None = None) -> tuple[int, str]:
        """Always there."""
        return 0, ""

    async def find_by_token(self, token: str, since: float) -> TokenAnswer:
        """Whether it was submitted."""
        wms_id = self._submitted.get(token)
        return TokenAnswer(verdict="absent") if wms_id is None else TokenAnswer(verdict="found", wms_id=wms_id)

    async def poll(self, request: PollRequest) -> PollResult:
        """All runs, if the plan is newer than the cursor; in rounds."""
        plan = msgspec.json.decode(self._path.read_bytes(), type=Plan)  # a hundred bytes
        version, _, told = (request.cursor or "0:0").partition(":")
        first = int(told) if int(version) == plan.version else 0
        jobs = plan.jobs if plan.version == 1 else plan.changed
        last = min(plan.runs, first + ROUND_RUNS, first + max(1, ROUND_JOBS // max(1, jobs)))
        seen = []
        made = 0
        for number in range(first, last):
            changed = []
            for first_job in range(0, jobs, STEP):
                changed += observe_jobs(plan, number, range(first_job, min(jobs, first_job + STEP)))
                made += min(jobs, STEP)
                if made >= STEP:
                    made = 0
                    await anyio.lowlevel.checkpoint()
            seen.append(observe(plan, number, changed))
        return PollResult(
            observations=seen,
            cursor=f"{plan.version}:{last}",
            sources=(SourceReport(name="queue", status="ok"),),
            more=last < plan.runs,
        )


def observe_jobs(plan: Plan, number: int, jobs: range) -> list[JobObservation]:
    """Some jobs of a run."""
    return [
        JobObservation(
            name=f"{LABELS[job % len(LABELS)]}_{number:06d}_{job:06d}",
            label=LABELS[job % len(LABELS)],
            state=LIVE[plan.version % 2],
            attempt=1,
            wms_id=f"{number + 1}.{job}" if plan.ids else "",
            time=1_780_000_000.0 + plan.version,
        )
        for job in jobs
    ]


def observe(plan: Plan, number: int, jobs: list[JobObservation]) -> RunObservation:
    """One run with the jobs that changed."""
    return RunObservation(
        wms_id=str(number + 1),
        source="queue",
        state=LIVE[plan.version % 2],
        attempt=1,
        run=f"u/operator/DRP/20260801T{number:06d}Z",
        path=f"/sdf/data/submit/u/operator/{number:06d}",
        project="dev",
        campaign="quick",
        payload="DRP",
        operator="operator",
        run_summary=";".join(f"{label}:{plan.jobs // len(LABELS)}" for label in LABELS),
        submit_time=1_780_000_000.0 + number,
        jobs=jobs,
    )


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Let daemons that are started from here find the adapter as ``synthetic``."""
    info = folder / "bpsd_benchmarks-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bpsd-benchmarks\nVersion: 0\n", encoding="ascii")
    (info / "entry_points.txt").write_text(
        f"[bpsd.adapters]\nsynthetic = {__name__}:{SyntheticService.__name__}\n", encoding="ascii"
    )
    before = os.environ.get("PYTHONPATH")
    here = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), here, before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
