"""Runs whose plugin blocks: what their hosts wrote into ``run.log``, as observations and as reports."""

from __future__ import annotations

__all__ = ["SOURCE", "HostedRuns", "RunCursor", "observations_of"]

import base64
import time
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec

from bpsd.errors import RunNotFound
from bpsd.models import (
    TERMINAL,
    JobObservation,
    KnownRun,
    PollRequest,
    PollResult,
    RunObservation,
    SourceReport,
    WmsJobReport,
    WmsRunReport,
    WmsStates,
    empty_counts,
    made_ready,
)
from bpsd_adapters import runlog
from bpsd_adapters.bps_plugin.entries import Entries, Entry
from bpsd_adapters.bps_plugin.link import WorkerLink
from bpsd_adapters.quarantine import Quarantine

SOURCE = "run log"
RANK = 20
"""How far a log is trusted between two terminal states (`bpsd.models.RunObservation`)."""

FOLLOWING = "reading its log"
"""The part of the work for a run that a poll does; it pauses by itself after an unexpected error."""

READ_BYTES = 16 * 1024 * 1024
"""How much of all logs one poll reads."""

_SECONDS_PER_DAY = 86_400.0


class RunCursor(msgspec.Struct, frozen=True):
    """How far a log was read: offset, the attempt there, and whether it was over."""

    offset: int = 0
    attempt: int = 0
    over: bool = False


class _Begin(msgspec.Struct, frozen=True, tag_field="e", tag="begin"):
    n: int
    t: float
    pid: int


class _Jobs(msgspec.Struct, frozen=True, tag_field="e", tag="jobs"):
    t: float
    jobs: list[tuple[str, str, WmsStates, int | None, str]]


class _End(msgspec.Struct, frozen=True, tag_field="e", tag="end"):
    n: int
    t: float
    state: WmsStates
    note: str


_EVENTS: msgspec.json.Decoder[_Begin | _Jobs | _End] = msgspec.json.Decoder(_Begin | _Jobs | _End)
_CURSORS = msgspec.json.Decoder(RunCursor)
_BACKEND_CURSORS = msgspec.json.Decoder(dict[str, Literal[1]])
made_ready(RunCursor)


class _Attempt:
    """What a stretch of a log says of one attempt."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.state: WmsStates | None = WmsStates.RUNNING
        self.began: float | None = None
        self.time: float | None = None
        self.ended: float | None = None
        self.note = ""
        self.jobs: dict[str, JobObservation] = {}

    def take(self, event: _Begin | _Jobs | _End) -> None:
        self.time = event.t
        if isinstance(event, _Begin):
            self.began = event.t
        elif isinstance(event, _End):
            self.state, self.ended, self.note = event.state, event.t, event.note
        else:
            for name, label, state, code, note in event.jobs:
                self.jobs[name] = _job(name, label, state, code, note, event.t, self.jobs.get(name))

    def orphaned(self, wms_id: str, left: int) -> None:
        """Its host is gone without a word, and processes of it live: it is not over."""
        self.state = WmsStates.RUNNING
        self.note = (
            f"its host process is gone; {left} process{'es' if left > 1 else ''} of the run still "
            f"live{'' if left > 1 else 's'}, and it is over when the last has ended: wait, or end them with "
            f"`bpsctl cancel {wms_id}`"
        )

    def lost(self) -> None:
        """Its host is gone without a word: it goes no further, and of what ran nobody knows the end."""
        self.state, self.ended = WmsStates.FAILED, self.time
        self.note = "its host process is gone; a restart goes on from where it was"
        for name, job in self.jobs.items():
            if job.state not in TERMINAL:
                ran = job.state is WmsStates.RUNNING
                self.jobs[name] = msgspec.structs.replace(
                    job, state=WmsStates.UNKNOWN if ran else job.state, note="its host process is gone" if ran else ""
                )

    def observation(self, entry: Entry) -> RunObservation:
        """What the daemon is told."""
        run = entry.run
        return RunObservation(
            wms_id=entry.path,
            source=SOURCE,
            rank=RANK,
            state=self.state,
            token=entry.token,
            attempt=self.number,
            source_time=self.time,
            path=entry.path,
            note=self.note or None,
            submit_time=entry.attempts["1"].time if "1" in entry.attempts else None,
            start_time=self.began,
            end_time=self.ended,
            jobs=tuple(self.jobs.values()),
            **{name: value for name, value in run.items() if value is not None},  # type: ignore[arg-type]
        )


def _job(
    name: str, label: str, state: WmsStates, code: int | None, note: str, at: float, before: JobObservation | None
) -> JobObservation:
    started = at if state is WmsStates.RUNNING else (before.start_time if before is not None else None)
    return JobObservation(
        name=name,
        label=label,
        state=state,
        rank=RANK,
        exit_code=code,
        time=at,
        start_time=started,
        end_time=at if state in TERMINAL else None,
        note=note,
    )


def observations_of(
    entry: Entry, data: bytes, held: bool, cursor: RunCursor, left: int = 0
) -> tuple[list[RunObservation], RunCursor, bool]:
    """What a stretch of a run's log says.

    Parameters
    ----------
    entry : `Entry`
        Whose log it is.
    data : `bytes`
        The log from ``cursor.offset`` on, to its end.
    held : `bool`
        Whether the host lived before that was read.
    cursor : `RunCursor`
        Where the stretch begins.
    left : `int`
        The number of processes of the run that live although the host does not.

    Returns
    -------
    observations : `list` [`~bpsd.models.RunObservation`]
        One per attempt that the stretch tells of.
    cursor : `RunCursor`
        Where the next stretch begins.
    lost : `bool`
        Whether the host is gone without a word.
    """
    payloads, _, _, consumed = runlog.parse(data, cursor.offset)
    number, over = cursor.attempt, cursor.over
    attempts: dict[int, _Attempt] = {}
    for payload in payloads:
        try:
            event = _EVENTS.decode(payload)
        except msgspec.MsgspecError:
            continue  # of a later release: what it means we cannot say
        if isinstance(event, _Begin):
            number, over = event.n, False
        attempts.setdefault(number, _Attempt(number)).take(event)
        over = over or isinstance(event, _End)
    gone = bool(number) and not over and not held
    lost = gone and not left
    if gone and left:
        attempts.setdefault(number, _Attempt(number)).orphaned(entry.path, left)
    if lost:
        attempts.setdefault(number, _Attempt(number)).lost()
    now = RunCursor(cursor.offset + consumed, number, over or lost)
    return [attempts[n].observation(entry) for n in sorted(attempts)], now, lost


class _Log(NamedTuple):
    """What was appended to the log of a run, and how its host is."""

    data: bytes
    held: bool
    """Whether the host lived before that was read."""

    there: bool
    """Whether the folder of the run is there."""

    left: int
    """The number of processes of the run that live although the host does not."""


class HostedRuns:
    """The readers of a backend whose plugin blocks.

    Parameters
    ----------
    link : `WorkerLink`
        The worker that reads logs on the host.
    entries : `Entries`
        Our runs.
    deadline_s : `float`
        How long a question may take.
    history_days : `float`
        How far back runs that are over are shown to a daemon that knows nothing.
    quarantine : `~bpsd_adapters.quarantine.Quarantine`
        Runs that broke in an unexpected way, by their ids.
    end_left : `bool`
        Whether processes that a killed host left are ended.
    """

    sources = (SOURCE,)

    def __init__(
        self,
        link: WorkerLink,
        entries: Entries,
        deadline_s: float,
        history_days: float,
        quarantine: Quarantine,
        *,
        end_left: bool,
    ) -> None:
        self._quarantine = quarantine
        self._link, self._entries, self._deadline_s = link, entries, deadline_s
        self._end_left = end_left
        self._history_s = history_days * _SECONDS_PER_DAY

    async def poll(self, request: PollRequest) -> PollResult:
        """Read on in the logs of live runs, and find those that are not known yet."""
        began = time.monotonic()
        await self._entries.refresh()
        done = _BACKEND_CURSORS.decode(request.cursor) if request.cursor else {}
        recent = {f"{entry.path}#{entry.last}" for entry in self._entries.all() if self._is_recent(entry)}
        done = {key: one for key, one in done.items() if key in recent}
        known = {run.wms_id: run for run in request.known}
        wanted = {entry.path: entry for entry in self._entries.all() if self._is_wanted(entry, known, done)}
        cursors = {path: _cursor(known.get(path)) for path in wanted if self._quarantine.is_due(path, FOLLOWING)}
        observations: list[RunObservation] = []
        run_cursors: dict[str, str] = {}
        read_bytes = 0
        looked = await self._look(cursors)
        gone = [run.wms_id for run in request.known if self._entries.of_id(run.wms_id) is None]
        for path, log in looked.items():
            read_bytes += len(log.data)
            if not log.there:
                gone += [path] if path in known else []
                continue
            with self._quarantine.guard(path, FOLLOWING):
                seen, cursor, lost = observations_of(wanted[path], log.data, log.held, cursors[path], log.left)
                if lost and cursors[path].offset:  # which jobs ran stands before the cursor
                    whole = (await self._look({path: RunCursor()}))[path]
                    seen, cursor, _ = observations_of(wanted[path], whole.data, whole.held, RunCursor(), whole.left)
                observations += seen
                run_cursors[path] = msgspec.json.encode(cursor).decode()
                if cursor.over:
                    done[f"{path}#{wanted[path].last}"] = 1
        return PollResult(
            observations=self._quarantine.noted(observations, request.known, SOURCE),
            cursor=msgspec.json.encode(done).decode(),
            run_cursors=run_cursors,
            sources=(
                SourceReport(
                    name=SOURCE,
                    status="ok",
                    covers="all runs of this backend",
                    cost_s=time.monotonic() - began,
                    cost_bytes=read_bytes,
                ),
            ),
            absent=tuple(gone),
            more=len(looked) < len(cursors),
        )

    def _is_wanted(self, entry: Entry, known: dict[str, KnownRun], done: dict[str, Literal[1]]) -> bool:
        if not entry.ours:
            return False
        if entry.path in known:
            return True
        return self._is_recent(entry) and f"{entry.path}#{entry.last}" not in done

    def _is_recent(self, entry: Entry) -> bool:
        return any(self._entries.now - attempt.time < self._history_s for attempt in entry.attempts.values())

    async def report(
        self, wms_id: str | None = None, *, user: str | None = None, hist: float = 0, **_more: Any
    ) -> list[WmsRunReport]:
        """What the logs say, whole: of one run, else of those that go on and, with ``hist``, of those that are over.

        Raises
        ------
        RunNotFound
            If we submitted no such run.
        """
        await self._entries.refresh()
        if wms_id is None:
            entries = [e for e in self._entries.all() if e.ours and user in (None, e.run.get("operator"))]
            reports = await self._reports(entries)
            return [report for report in reports if hist > 0 or report.state not in TERMINAL]
        entry = self._entries.of_id(wms_id)
        if entry is None:
            raise RunNotFound(f"no run {wms_id} was submitted here")
        return await self._reports([entry])

    async def status(self, wms_id: str, hist: float) -> tuple[WmsStates, str]:
        """The state that the log of a run tells."""
        reports = await self.report(wms_id, hist=hist)
        return (WmsStates.UNKNOWN if not reports or reports[0].state is None else reports[0].state), ""

    async def find(self, token: str, number: int, path: str) -> str | None:
        """The id of a run, if an attempt of it has begun; `None` if it has not."""
        log = (await self._look({path: RunCursor()}))[path]
        _, cursor, _ = observations_of(Entry(token=token, path=path), log.data, True, RunCursor())
        return path if cursor.attempt >= number else None

    async def _reports(self, entries: Iterable[Entry]) -> list[WmsRunReport]:
        by_path = {entry.path: entry for entry in entries}
        reports = []
        for path, log in (await self._look({path: RunCursor() for path in by_path})).items():
            if log.there:
                seen, _, _ = observations_of(by_path[path], log.data, log.held, RunCursor(), log.left)
                reports += [_report(seen[-1])] if seen else []
        return reports

    async def _look(self, cursors: dict[str, RunCursor]) -> dict[str, _Log]:
        """What was appended to logs, and how their hosts are."""
        if not cursors:
            return {}
        answer = await self._link.ask(
            "host_looks",
            self._deadline_s,
            wanted={path: cursor.offset for path, cursor in cursors.items()},
            max_bytes=READ_BYTES,
            end_left=self._end_left,
        )
        return {
            path: _Log(base64.b64decode(one["data"]), one["held"], one["there"], one["left"])
            for path, one in answer.items()
        }


def _cursor(run: KnownRun | None) -> RunCursor:
    return RunCursor() if run is None or run.cursor is None else _CURSORS.decode(run.cursor)


def _report(seen: RunObservation) -> WmsRunReport:
    """An observation of a whole log as upstream's report."""
    counts, summary, codes = empty_counts(), dict[str, dict[WmsStates, int]](), dict[str, list[int]]()
    for job in seen.jobs:
        counts[job.state] += 1
        summary.setdefault(job.label, empty_counts())[job.state] += 1
        codes.setdefault(job.label, []).extend([job.exit_code] if job.exit_code else [])
    shared = {name: getattr(seen, name) for name in _SHARED}
    return WmsRunReport(
        **shared,
        jobs=[WmsJobReport(wms_id=job.wms_id, name=job.name, label=job.label, state=job.state) for job in seen.jobs],
        total_number_jobs=len(seen.jobs) or seen.total_number_jobs,
        job_state_counts=counts,
        job_summary=summary,
        exit_code_summary=codes,
    )


_SHARED = (
    "wms_id", "global_wms_id", "path", "label", "run", "project", "campaign", "payload", "operator", "site",
    "run_summary", "state",
)  # fmt: skip
