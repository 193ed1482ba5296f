"""Runs that the plugin reports itself: its reports as observations, under what we know of our own runs."""

from __future__ import annotations

__all__ = ["SOURCE", "BridgedRuns", "as_observation", "convert_reports", "counted", "settled"]

import time
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import msgspec

from bpsd.errors import BackendUnavailable
from bpsd.models import (
    TERMINAL,
    JobObservation,
    KnownRun,
    PollRequest,
    PollResult,
    RunObservation,
    SourceReport,
    WmsRunReport,
    WmsStates,
    made_ready,
)
from bpsd_adapters.bps_plugin.entries import Entries, Entry
from bpsd_adapters.bps_plugin.link import WorkerError, WorkerLink
from bpsd_adapters.bps_plugin.settings import Traits
from bpsd_adapters.quarantine import Quarantine

SOURCE = "plugin"

DETAIL_EVERY_S = 60.0
"""How often, at most, the jobs of a run that goes on are asked for: with most plugins that is a costly question."""

DETAIL_COST_FACTOR = 10.0
"""... and never more often than so many times what it cost the last time."""

DEADLINE_PART = 0.6
"""The part of a poll's deadline after which no further run is asked for."""

OBSERVING, ASKING = "making out its report", "asking the plugin for it"
"""Parts of the work for a run; each pauses by itself after an unexpected error."""

UNREADABLE = "UnreadableReport"
"""The kind of error of an unreadable report."""

_SECONDS_PER_DAY = 86_400.0

_CURSORS = msgspec.json.Decoder(list[str])

_SAME = tuple(
    name
    for name in WmsRunReport.__struct_fields__
    if name in RunObservation.__struct_fields__ and name not in {"jobs", "wms_id", "state"}
)

made_ready(WmsRunReport)


def settled(
    state: WmsStates | None, entry: Entry | None, wms_id: str, traits: Traits, now: float, settle_s: float
) -> WmsStates | None:
    """What a plugin's word on a run's state is worth.

    Nothing if it cannot tell, and nothing if it speaks of the end of the attempt before: after a restart under the
    same id the WMS shows the old end for a while. A run that we cancelled is DELETED where the WMS calls it failed.
    """
    if state is None or state is WmsStates.UNKNOWN:
        return None
    if entry is not None and state in TERMINAL:
        restarted = entry.restarted_at(wms_id)
        if restarted is not None and now - restarted < settle_s and state is not WmsStates.SUCCEEDED:
            return None
        if entry.cancelled and state is WmsStates.FAILED and traits.failed_if_cancelled:
            return WmsStates.DELETED
    return state


def counted(report: WmsRunReport) -> bool:
    """Whether a report of a run that succeeded counts any job that did.

    Before DAGMan has written its first line, ctrl_bps_htcondor's report of a single run says SUCCEEDED of no jobs.
    """
    counts = report.job_state_counts
    return counts is None or bool(sum(counts.values()))


def as_observation(report: WmsRunReport, entry: Entry | None, state: WmsStates | None) -> RunObservation:
    """A plugin's report as an observation, under the token of the run if it is ours."""
    wms_id = report.wms_id or ""
    values: dict[str, Any] = {name: getattr(report, name) for name in _SAME}
    if entry is not None:
        attempt = entry.attempt_of(wms_id)
        values["attempt"] = attempt or None
        values["path"] = entry.path if entry.ours else report.path
        if entry.ours:
            first = entry.attempts["1"]
            values.update(token=entry.token, submit_time=first.time or None)
            # Some plugins do not know what the run was filed under (PanDA); we do.
            values.update({name: value for name, value in entry.run.items() if value is not None})
    return RunObservation(
        wms_id=wms_id,
        source=SOURCE,
        state=state,
        jobs=tuple(_jobs(report)),
        **{name: value for name, value in values.items() if value is not None},
    )


def _jobs(report: WmsRunReport) -> list[JobObservation]:
    """The jobs of a report; an exit code is a job's where the label's failures leave no choice."""
    codes = report.exit_code_summary or {}
    failed: dict[str, int] = {}
    for job in report.jobs or ():
        if job.state is WmsStates.FAILED:
            failed[job.label] = failed.get(job.label, 0) + 1
    observations = []
    for job in report.jobs or ():
        code = None
        known = codes.get(job.label, [])
        if job.state is WmsStates.FAILED and len(known) == failed[job.label] and len(set(known)) == 1:
            code = known[0]
        observations.append(
            JobObservation(name=job.name, label=job.label, state=job.state, wms_id=job.wms_id, exit_code=code)
        )
    return observations


def _is_another(seen: RunObservation, run: KnownRun) -> bool:
    """Return whether what the plugin reports under a run's id is another run: its ids may begin again."""
    for one, other in ((seen.global_wms_id, run.global_wms_id), (seen.token, run.token), (seen.path, run.path)):
        if one is not None and other is not None:
            return one != other
    return False


def _shows(seen: RunObservation) -> tuple[Any, ...]:
    """What of a summary tells that jobs changed."""
    return seen.state, seen.attempt, tuple((seen.job_state_counts or {}).values())


class BridgedRuns:
    """The readers of a backend whose plugin reports.

    Parameters
    ----------
    link : `WorkerLink`
        The worker for questions.
    entries : `Entries`
        Our own runs.
    traits : `Traits`
        What the plugin is like.
    deadline_s, settle_s, history_days : `float`
        See `BpsPluginConfig`.
    quarantine : `~bpsd_adapters.quarantine.Quarantine`
        Runs that broke in an unexpected way, by their ids.
    """

    sources = (SOURCE,)

    def __init__(
        self,
        link: WorkerLink,
        entries: Entries,
        traits: Traits,
        *,
        deadline_s: float,
        settle_s: float,
        history_days: float,
        quarantine: Quarantine,
    ) -> None:
        self._quarantine = quarantine
        self._link, self._entries, self._traits = link, entries, traits
        self._deadline_s, self._settle_s, self._history_days = deadline_s, settle_s, history_days
        self._due: dict[str, None] = {}
        self._shown: dict[str, tuple[Any, ...]] = {}
        self._detailed_at: dict[str, float] = {}
        self._detail_cost_s = 0.0
        self._ended_at: dict[str, float] = {}
        self._garbled: dict[str, str] = {}
        """The runs whose reports could not be read in the last poll, with the reason."""

    async def poll(self, request: PollRequest) -> PollResult:
        """The plugin's summary, and the jobs of those runs that changed."""
        began = time.monotonic()
        await self._entries.refresh()
        if request.cursor is None:  # the daemon knows nothing: it is told everything again
            self._shown.clear()
        known = {run.wms_id: run for run in request.known}
        over = self._told_over(request.cursor)
        seen: dict[str, RunObservation] = {}
        errors: list[str] = []
        before, self._garbled = self._garbled, {}
        if self._traits.lists:
            seen = await self._summaries()
            errors += [f"{wms_id}: {why}" for wms_id, why in self._garbled.items()]
            self._choose(seen, known, over)
        else:
            self._due.update(dict.fromkeys(self._own_live(known, over)))
        self._due.update(dict.fromkeys(wms_id for wms_id in known if wms_id not in {*seen, *self._garbled}))
        unseen: list[str] = []
        again: dict[str, None] = {}
        for wms_id in list(self._due):
            if time.monotonic() - began > request.deadline_s * DEADLINE_PART:
                break
            del self._due[wms_id]
            detailed, error = await self._guarded_detail(wms_id)
            if error:  # of this run; the others can still be asked for
                errors.append(f"{wms_id}: {error}")
                continue
            summed_up = seen.get(wms_id)
            if summed_up is not None:
                self._shown[wms_id] = _shows(summed_up)
            if detailed is None:
                unseen.append(wms_id)
                continue
            if summed_up is not None:  # the queue knows better than files whether a run goes on
                detailed = msgspec.structs.replace(detailed, state=summed_up.state)
            seen[wms_id] = detailed
            if self._is_told(detailed):
                over.add(self._key(wms_id))
            elif detailed.state in TERMINAL:
                again[wms_id] = None
        self._due.update(again)
        self._forget(known.keys() | seen.keys(), over)
        told = [
            *(msgspec.structs.replace(one, note="") if wms_id in before else one for wms_id, one in seen.items()),
            *(_unreadable(known[wms_id], why) for wms_id, why in self._garbled.items() if wms_id in known),
        ]
        return PollResult(
            observations=self._quarantine.noted(told, request.known, SOURCE),
            cursor=msgspec.json.encode(sorted(over)).decode(),
            sources=(
                SourceReport(
                    name=SOURCE,
                    status="partial" if errors else "ok",
                    covers="what the plugin lists" if self._traits.lists else "the runs that were submitted here",
                    cost_s=time.monotonic() - began,
                    error="; ".join(errors[:3]),
                ),
            ),
            absent=() if errors else tuple(self._absent(known, seen, unseen)),
        )

    async def _summaries(self) -> dict[str, RunObservation]:
        """What the plugin lists, by id; `_garbled` has those that cannot be read."""
        arguments = {"wms_workflow_id": None, "hist": self._history_days}
        reports, self._garbled = await self._reported(arguments)
        seen: dict[str, RunObservation] = {}
        for report in reports:
            with self._quarantine.guard(report.wms_id or "", OBSERVING):
                seen[report.wms_id or ""] = self._observed(report)
        return seen

    def _absent(
        self, known: Mapping[str, KnownRun], seen: Mapping[str, RunObservation], unseen: Sequence[str]
    ) -> Iterator[str]:
        """Return the known runs that the plugin does not know, also under an id that it gave to another run since."""
        for wms_id, run in known.items():
            given_away = wms_id in seen and _is_another(seen[wms_id], run)
            if (wms_id in unseen or given_away) and self._may_be_absent(run):
                yield run.run_id

    def _forget(self, wms_ids: Set[str], over: Set[str]) -> None:
        """Drop what is kept of runs that nobody speaks of any more."""
        self._shown = {wms_id: shows for wms_id, shows in self._shown.items() if wms_id in wms_ids}
        self._detailed_at = {wms_id: at for wms_id, at in self._detailed_at.items() if wms_id in wms_ids}
        self._ended_at = {key: at for key, at in self._ended_at.items() if key not in over}

    def _told_over(self, cursor: str | None) -> set[str]:
        """Our runs whose end, with all their jobs, the daemon was told; those of long ago are not looked at at all."""
        recent = {self._key(wms_id) for wms_id in self._own_ids()}
        return set() if cursor is None else recent & set(_CURSORS.decode(cursor))

    def _key(self, wms_id: str) -> str:
        """A run's attempt, told apart from what had the same id before."""
        entry = self._entries.of_id(wms_id)
        return wms_id if entry is None else f"{entry.token}.{entry.attempt_of(wms_id)}"

    def _observed(self, report: WmsRunReport) -> RunObservation:
        wms_id = report.wms_id or ""
        entry = (self._entries.of_id(report.path) if report.path else None) or self._entries.of_id(wms_id)
        state = settled(report.state, entry, wms_id, self._traits, self._entries.now, self._settle_s)
        if state is WmsStates.SUCCEEDED and not counted(report):
            state = None
        return as_observation(report, entry, state)

    def _is_told(self, seen: RunObservation) -> bool:
        """Whether that was the last word on a run: it is over, and so are its jobs (or it is over for long enough)."""
        if seen.state not in TERMINAL:
            return False
        ended = self._ended_at.setdefault(self._key(seen.wms_id), time.monotonic())
        return all(job.state in TERMINAL for job in seen.jobs) or time.monotonic() - ended > self._settle_s

    def _choose(self, seen: Mapping[str, RunObservation], known: Mapping[str, KnownRun], over: set[str]) -> None:
        """Which runs to ask for job by job: those that changed, live ones not too often."""
        pause = max(DETAIL_EVERY_S, DETAIL_COST_FACTOR * self._detail_cost_s)
        for wms_id, observation in seen.items():
            entry = self._entries.of_id(wms_id)
            if self._key(wms_id) in over or (wms_id not in known and entry is None and observation.state in TERMINAL):
                continue  # its end was told, or it is somebody else's that had ended before we came
            if _shows(observation) == self._shown.get(wms_id):
                continue
            waited = time.monotonic() - self._detailed_at.get(wms_id, float("-inf"))
            if observation.state in TERMINAL or waited > pause:
                self._due[wms_id] = None

    def _own_ids(self) -> list[str]:
        """The ids of the last attempts of our runs, if they were made not too long ago."""
        return [
            attempt.wms_id
            for entry in self._entries.all()
            if (attempt := entry.attempts.get(str(entry.last))) is not None
            and attempt.wms_id is not None
            and self._entries.now - attempt.time < self._history_days * _SECONDS_PER_DAY
        ]

    def _own_live(self, known: Mapping[str, KnownRun], over: set[str]) -> list[str]:
        """The ids of our runs whose end was not told yet, where the plugin lists none."""
        return [wms_id for wms_id in self._own_ids() if wms_id in known or self._key(wms_id) not in over]

    async def _guarded_detail(self, wms_id: str) -> tuple[RunObservation | None, str]:
        """A run job by job, `None` if the plugin does not know it; and why that could not be had, if so."""
        detailed, done = None, False
        if self._quarantine.is_due(wms_id, ASKING):
            try:
                with self._quarantine.guard(wms_id, ASKING):
                    detailed, done = await self._detail(wms_id), True
            except WorkerError as exc:
                if exc.kind == UNREADABLE:
                    self._garbled[wms_id] = exc.message
                return None, exc.message
        return detailed, "" if done else self._quarantine.note(wms_id) or "not asked for again yet"

    async def _detail(self, wms_id: str) -> RunObservation | None:
        began = time.monotonic()
        self._detailed_at[wms_id] = began
        reports = await self._told(wms_id, hist=max(2.0, self._history_days), return_exit_codes=True)
        self._detail_cost_s = time.monotonic() - began
        known = [report for report in reports if report.state not in (None, WmsStates.UNKNOWN)]
        if not known:
            return None
        report = msgspec.structs.replace(known[0], wms_id=wms_id)
        if self._traits.status_decides and report.state is WmsStates.SUCCEEDED:
            state, _ = await self.status(wms_id, self._history_days)
            report = msgspec.structs.replace(report, state=state)
        return self._observed(report)

    def _may_be_absent(self, run: KnownRun) -> bool:
        """Neither among what the plugin lists, nor found by its id, and not only just submitted."""
        return run.submit_time is None or self._entries.now - run.submit_time > self._settle_s

    async def _told(self, wms_id: str | None = None, **more: Any) -> list[WmsRunReport]:
        """The plugin's ``report``, as it is."""
        arguments = {"wms_workflow_id": wms_id, **more}
        good, garbled = await self._reported(arguments)
        for why in garbled.values():
            raise WorkerError(why, UNREADABLE, why, "")
        return good

    async def _reported(self, arguments: dict[str, Any]) -> tuple[list[WmsRunReport], dict[str, str]]:
        """The plugin's ``report``: what can be read of it, and why the rest cannot, by the ids of the runs."""
        reports, _ = await self._link.ask("plugin", self._deadline_s, method="report", arguments=arguments)
        return convert_reports(reports)

    async def report(
        self, wms_id: str | None = None, *, user: str | None = None, hist: float = 0, **more: Any
    ) -> list[WmsRunReport]:
        """The plugin's ``report``; without an id, where it lists nothing, one question for each of our runs."""
        if wms_id is None and self._traits.lists:
            return (await self._reported({"wms_workflow_id": None, "user": user, "hist": hist, **more}))[0]
        if wms_id is not None:
            return await self._told(wms_id, user=user, hist=hist, **more)
        await self._entries.refresh()
        found = []
        for entry in self._entries.all():
            attempt = entry.attempts.get(str(entry.last))
            if attempt is not None and attempt.wms_id is not None:
                reports = await self._told(attempt.wms_id)
                found += [msgspec.structs.replace(r, wms_id=attempt.wms_id) for r in reports[:1]]
        return [r for r in found if user in (None, r.operator) and (r.state not in TERMINAL or hist > 0)]

    async def status(self, wms_id: str, hist: float) -> tuple[WmsStates, str]:
        """The plugin's ``get_status``, or else the state in its report."""
        await self._entries.refresh()
        try:
            value, message = await self._link.ask(
                "plugin",
                self._deadline_s,
                method="get_status",
                arguments={"wms_workflow_id": wms_id, "hist": hist},
            )
            state = WmsStates(value)
        except WorkerError as exc:
            if exc.kind != "NotImplementedError":
                raise
            reports, message = await self._told(wms_id, hist=max(hist, 2.0)), ""
            state = WmsStates.UNKNOWN if not reports or reports[0].state is None else reports[0].state
        told = settled(state, self._entries.of_id(wms_id), wms_id, self._traits, self._entries.now, self._settle_s)
        if told is None:  # it cannot tell, or tells of the attempt before
            told = WmsStates.UNKNOWN if state is WmsStates.UNKNOWN else WmsStates.RUNNING
        return told, message or ""

    async def find(self, token: str, number: int, path: str) -> str | None:
        """The id of a run that the plugin was asked to submit and did not come back; `None` if it knows none.

        Raises
        ------
        BackendUnavailable
            If it cannot be asked for that.
        """
        if not self._traits.token_query or number != 1:
            raise BackendUnavailable("the plugin was asked for it and did not come back, and cannot be asked by token")
        query = self._traits.token_query.format(token=token)
        reports = await self._told(hist=self._history_days, pass_thru=query)
        return reports[0].wms_id if reports else None


def _unreadable(run: KnownRun, why: str) -> RunObservation:
    """A known run whose report cannot be read: its state is as it was, and its note says why."""
    return RunObservation(
        wms_id=run.wms_id,
        global_wms_id=run.global_wms_id,
        source=SOURCE,
        token=run.token,
        attempt=run.attempt,
        note=why,
    )


def convert_reports(reports: Any) -> tuple[list[WmsRunReport], dict[str, str]]:
    """A worker's answer as reports, and for those that are none the reason, by the ids of their runs.

    Raises
    ------
    BackendUnavailable
        If it is no list of reports, or it cannot be told of which run one is.
    """
    if not isinstance(reports, list):
        raise BackendUnavailable(f"the plugin's report is not a list of reports: {str(reports)[:200]!r}")
    good, garbled = [], {}
    for report in reports:
        try:
            good.append(msgspec.convert(report, WmsRunReport, strict=False, str_keys=True))
        except msgspec.ValidationError as exc:
            why = f"the plugin's report is not what a report looks like: {exc}"
            wms_id = report.get("wms_id") if isinstance(report, dict) else None
            if not isinstance(wms_id, str):
                raise BackendUnavailable(why) from exc
            garbled[wms_id] = why
    return good, garbled
