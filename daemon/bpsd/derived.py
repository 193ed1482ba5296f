"""Upstream's three readers from one `poll`, and `poll` from upstream's three readers: folds without I/O."""

from __future__ import annotations

__all__ = [
    "as_observation",
    "as_report",
    "list_from_poll",
    "poll_from_reports",
    "report_from_poll",
    "status_from_poll",
]

import time
from typing import TYPE_CHECKING

from bpsd.errors import no_run
from bpsd.models import (
    TERMINAL,
    JobObservation,
    KnownRun,
    PollRequest,
    PollResult,
    Question,
    RunObservation,
    SourceReport,
    WmsJobReport,
    WmsRunReport,
    WmsStates,
    empty_counts,
    normal_exit_code,
)

if TYPE_CHECKING:
    from bpsd.interface import WmsService

SECONDS_PER_DAY = 86_400.0


def as_report(seen: RunObservation) -> WmsRunReport:
    """An observation as upstream's report; counts come from the jobs if there are any."""
    jobs = [WmsJobReport(wms_id=j.wms_id, name=j.name, label=j.label, state=j.state) for j in seen.jobs]
    counts, summary = seen.job_state_counts, seen.job_summary
    if jobs:
        counts, summary = empty_counts(), {}
        for job in jobs:
            counts[job.state] += 1
            summary.setdefault(job.label, empty_counts())[job.state] += 1
    return WmsRunReport(
        wms_id=seen.wms_id,
        global_wms_id=seen.global_wms_id,
        path=seen.path,
        label=seen.label,
        run=seen.run,
        project=seen.project,
        campaign=seen.campaign,
        payload=seen.payload,
        operator=seen.operator,
        site=seen.site,
        run_summary=seen.run_summary,
        state=seen.state,
        jobs=jobs,
        total_number_jobs=seen.total_number_jobs if seen.total_number_jobs is not None else len(jobs) or None,
        job_state_counts=counts,
        job_summary=summary,
        exit_code_summary=_exit_codes(seen),
        specific_info=seen.specific_info,
    )


def _exit_codes(seen: RunObservation) -> dict[str, list[int]] | None:
    if not seen.jobs:
        return seen.exit_code_summary and {
            label: [normal_exit_code(code) for code in codes] for label, codes in seen.exit_code_summary.items()
        }
    codes: dict[str, list[int]] = {job.label: [] for job in seen.jobs}
    for job in seen.jobs:
        if job.exit_code and job.state is not WmsStates.SUCCEEDED:
            codes[job.label].append(normal_exit_code(job.exit_code))
    return codes


async def report_from_poll(
    service: WmsService,
    wms_workflow_id: str | None,
    user: str | None,
    hist: float,
    pass_thru: str | None = None,
    is_global: bool = False,
) -> tuple[list[WmsRunReport], str]:
    """`WmsService.report` of a native adapter: a poll from the beginning, filtered."""
    question = Question(wms_id=wms_workflow_id, user=user, hist=hist, pass_thru=pass_thru, is_global=is_global)
    observations, messages = await _everything(service, question)
    wanted = service.resolve_id(wms_workflow_id) if wms_workflow_id is not None else ()
    after = time.time() - hist * SECONDS_PER_DAY
    reports = [
        as_report(seen)
        for seen in observations
        if (
            (seen.wms_id in wanted or wms_workflow_id in (seen.path, seen.global_wms_id))
            if wms_workflow_id is not None
            else _recent(seen, after)
        )
        and user in (None, seen.owner, seen.operator)
    ]
    return reports, "\n".join(messages)


def _recent(seen: RunObservation, after: float) -> bool:
    return seen.state not in TERMINAL or (seen.end_time or seen.source_time or 0.0) >= after


async def status_from_poll(
    service: WmsService, wms_workflow_id: str, hist: float, is_global: bool = False
) -> tuple[WmsStates, str]:
    """`WmsService.get_status` of a native adapter."""
    reports, message = await service.report(wms_workflow_id, hist=hist, is_global=is_global)
    if not reports:
        raise no_run(service.context.backend, wms_workflow_id)
    state = reports[0].state
    return WmsStates.UNKNOWN if state is None else state, message


async def list_from_poll(service: WmsService, wms_id: str | None, user: str | None) -> list[str]:
    """`WmsService.list_submitted_jobs` of a native adapter: what is live, or the one asked for."""
    reports, _ = await service.report(wms_id, user)
    return [report.wms_id for report in reports if report.wms_id is not None]


async def _everything(service: WmsService, question: Question) -> tuple[list[RunObservation], list[str]]:
    """All that polls from the beginning say, and what is amiss with the sources."""
    merged: dict[str, RunObservation] = {}
    messages: list[str] = []
    request = PollRequest(question=question)
    while True:
        result = await service.poll(request)
        for seen in result.observations:
            before = merged.get(seen.key)
            merged[seen.key] = seen if before is None else _merge(before, seen)
        messages += [f"{s.name}: {s.error or s.status}" for s in result.sources if s.status != "ok"]
        if not result.more:
            return list(merged.values()), messages
        request = PollRequest(
            cursor=result.cursor,
            known=tuple(k for k in request.known if k.key not in result.run_cursors) + _continued(result),
            question=question,
        )


def _continued(result: PollResult) -> tuple[KnownRun, ...]:
    return tuple(KnownRun(run_id=key, wms_id=key, cursor=cursor) for key, cursor in result.run_cursors.items())


def _merge(before: RunObservation, after: RunObservation) -> RunObservation:
    """The later observation, with what only the earlier one said, and the last word on every job."""
    jobs: dict[str, JobObservation] = {job.name: job for job in before.jobs}
    jobs.update((job.name, job) for job in after.jobs)
    values = {
        field: after_value if (after_value := getattr(after, field)) is not None else getattr(before, field)
        for field in RunObservation.__struct_fields__
    }
    values["jobs"] = tuple(jobs.values())
    return RunObservation(**values)


async def poll_from_reports(service: WmsService) -> PollResult:
    """`WmsService.poll` of a bridged plugin: its summary.

    A run that the plugin does not list is *not* absent: most plugins forget what has ended.
    """
    began = time.monotonic()
    reports, message = await service.report(hist=1)
    seen = [as_observation(report) for report in reports if report.wms_id]
    source = SourceReport(
        name="plugin", status="ok", covers="what the plugin lists", cost_s=time.monotonic() - began, error=message or ""
    )
    return PollResult(observations=seen, sources=(source,))


def as_observation(report: WmsRunReport) -> RunObservation:
    """A plugin's report as an observation."""
    jobs = tuple(
        JobObservation(name=job.name, label=job.label, state=job.state, wms_id=job.wms_id) for job in report.jobs or ()
    )
    return RunObservation(
        wms_id=report.wms_id or "",
        source="plugin",
        state=report.state,
        global_wms_id=report.global_wms_id,
        path=report.path,
        label=report.label,
        run=report.run,
        project=report.project,
        campaign=report.campaign,
        payload=report.payload,
        operator=report.operator,
        site=report.site,
        run_summary=report.run_summary,
        total_number_jobs=report.total_number_jobs,
        job_state_counts=report.job_state_counts,
        job_summary=report.job_summary,
        exit_code_summary=report.exit_code_summary,
        specific_info=report.specific_info,
        jobs=jobs,
    )
