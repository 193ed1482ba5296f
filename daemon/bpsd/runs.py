"""One run as the daemon knows it: how an observation is folded into it, and how it looks to a client.

No I/O and no clock: times come in as arguments. The weighing of evidence is `bpsd.reducer`'s.
"""

from __future__ import annotations

__all__ = ["Change", "RunRecord", "decode_record", "encode_record"]

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from bpsd import wire
from bpsd.jobtable import JobTable
from bpsd.messages import AttemptRow, RunRow
from bpsd.models import TERMINAL, JobObservation, KnownRun, RunObservation, WmsStates
from bpsd.reducer import JOURNAL_SOURCE, RunKey, Verdict, judge_run

_INFO_FIELDS = (
    "global_wms_id",
    "path",
    "label",
    "run",
    "project",
    "campaign",
    "payload",
    "operator",
    "site",
    "run_summary",
    "owner",
    "submit_time",
    "start_time",
    "end_time",
    "total_number_jobs",
    "job_state_counts",
    "job_summary",
    "exit_code_summary",
)
_TEXT_FIELDS = frozenset(
    {"global_wms_id", "path", "label", "run", "project", "campaign", "payload", "operator", "site", "owner", "note"}
)


MAX_COUNT_DIGITS = 16
"""A longer number of jobs in a run summary is nonsense (and `int` refuses one of 4,300 digits)."""


class Change(NamedTuple):
    """Something worth an event: its kind and data (see `bpsd.messages.Event`)."""

    kind: str
    data: dict[str, Any]


class RunRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One run. ``began`` is when the poll began that gave the present state; all times are epoch seconds."""

    run_id: str
    backend: str
    wms_id: str = ""
    token: str | None = None
    uid: int | None = None
    attempt: int = 1
    state: WmsStates = WmsStates.UNKNOWN
    source: str = ""
    rank: int = 0
    source_time: float | None = None
    began: float = 0.0
    observed_at: float | None = None
    changed_at: float | None = None
    first_seen_at: float = 0.0

    global_wms_id: str | None = None
    path: str | None = None
    label: str | None = None
    run: str | None = None
    project: str | None = None
    campaign: str | None = None
    payload: str | None = None
    operator: str | None = None
    site: str | None = None
    run_summary: str | None = None
    owner: str | None = None
    submit_time: float | None = None
    start_time: float | None = None
    end_time: float | None = None
    note: str = ""
    last_known: WmsStates | None = None
    last_known_at: float | None = None
    total_number_jobs: int | None = None
    job_state_counts: dict[WmsStates, int] | None = None
    job_summary: dict[str, dict[WmsStates, int]] | None = None
    exit_code_summary: dict[str, list[int]] | None = None
    exit_codes: dict[str, dict[str, int]] | None = None
    info: str | None = None
    attempts: list[AttemptRow] = []
    command: str | None = None
    muted: bool = False

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        """Whether something may still happen by itself."""
        return self.state not in TERMINAL

    @property
    def name(self) -> str:
        """The name that people gave it."""
        return self.run or self.label or self.wms_id or self.run_id

    @property
    def since(self) -> float:
        """When it came to be, for the order of lists."""
        return self.submit_time or self.first_seen_at

    def key(self) -> RunKey:
        """What the reducer weighs."""
        return RunKey(self.attempt, self.wms_id, self.state, self.source, self.rank)

    def _told_apart(self, seen: RunObservation) -> tuple[str, tuple[str, ...]]:
        """Return the id of an observation as the reducer compares it, and that id again if an earlier attempt had it.

        A WMS id that comes with another global id than an attempt had is not the id of that attempt.
        """
        wms_id = seen.wms_id
        if seen.global_wms_id is not None and seen.global_wms_id == self.global_wms_id:
            return self.wms_id, ()
        if wms_id == self.wms_id:
            if not _differ(seen.global_wms_id, self.global_wms_id):
                return wms_id, ()
            wms_id = seen.key
        had = any(
            row.wms_id == seen.wms_id
            and row.attempt < self.attempt
            and not _differ(seen.global_wms_id, row.global_wms_id)
            for row in self.attempts
        )
        return wms_id, (wms_id,) if had else ()

    # -- folding -----------------------------------------------------------------------------------------------------

    def fold(
        self, seen: RunObservation, began: float, jobs: JobTable | None, text_chars: int
    ) -> tuple[list[Change], list[JobObservation]]:
        """Take what may be taken of an observation.

        Returns
        -------
        changes : `list` [`Change`]
            For the timeline and for watchers; empty if the row only was confirmed.
        jobs : `list` [`~bpsd.models.JobObservation`]
            The jobs that changed a state or an attempt.
        """
        wms_id, older_ids = self._told_apart(seen)
        verdict = judge_run(
            self.key(),
            attempt=seen.attempt,
            wms_id=wms_id,
            state=seen.state,
            rank=seen.rank,
            older_ids=older_ids,
        )
        if verdict is Verdict.STALE:
            return [], []
        changes: list[Change] = []
        if verdict is Verdict.NEW_ATTEMPT:
            changes.append(self._new_attempt(seen, began))
        self._identify(seen)
        if verdict is Verdict.CONFLICT:
            changes.append(
                Change(
                    "run.conflict",
                    {
                        "state": self.state.name,
                        "source": self.source,
                        "other_state": _name(seen.state),
                        "other_source": seen.source,
                    },
                )
            )
        elif verdict in (Verdict.TAKE, Verdict.NEW_ATTEMPT):
            changes += self._take(seen, began)
        elif seen.state is self.state:
            self._confirm(seen, began)
        details_changed = self._details(seen, text_chars, agrees=verdict is not Verdict.CONFLICT)
        self.observed_at = began
        moved = jobs.apply(self.attempt, seen.jobs) if jobs is not None and seen.jobs else []
        if (moved or details_changed) and not changes:
            changes.append(Change("run.progress", {}))
        return changes, moved

    def _new_attempt(self, seen: RunObservation, began: float) -> Change:
        number = seen.attempt if seen.attempt is not None else self.attempt + 1
        before = self.state.name
        self._keep_attempt()
        self.attempt, self.wms_id, self.global_wms_id = number, seen.wms_id, None
        self.state, self.source, self.rank, self.source_time = WmsStates.UNKNOWN, JOURNAL_SOURCE, 0, None
        self.began = began
        self.note, self.info, self.end_time = "", None, None
        self.last_known = self.last_known_at = None
        return Change("run.attempt", {"attempt": number, "wms_id": seen.wms_id, "before": before})

    def _keep_attempt(self) -> None:
        row = self._attempt_row()
        row.wms_id, row.state = self.wms_id or row.wms_id, _name(self.state)  # type: ignore[assignment]
        row.global_wms_id = self.global_wms_id or row.global_wms_id

    def _attempt_row(self) -> AttemptRow:
        for row in self.attempts:
            if row.attempt == self.attempt:
                return row
        row = AttemptRow(attempt=self.attempt, wms_id=self.wms_id or None, at=self.began or None)
        self.attempts = [*self.attempts, row]
        return row

    def _identify(self, seen: RunObservation) -> None:
        if self.wms_id != seen.wms_id:
            self.wms_id, self.global_wms_id = seen.wms_id, None
        row = self._attempt_row()
        row.wms_id = seen.wms_id
        row.global_wms_id = seen.global_wms_id or row.global_wms_id

    def _confirm(self, seen: RunObservation, began: float) -> None:
        """The same state again, from later or from a better source: older or weaker evidence does not undo it."""
        self.began = began
        if seen.source == self.source:
            self.source_time = seen.source_time or self.source_time
        elif seen.rank > self.rank and not self.live:
            self.source, self.rank, self.source_time = seen.source, seen.rank, seen.source_time

    def _take(self, seen: RunObservation, began: float) -> list[Change]:
        if seen.state is None:
            return []
        before = self.state
        self.state, self.source, self.rank, self.source_time = seen.state, seen.source, seen.rank, seen.source_time
        self.began = began
        self.last_known = self.last_known_at = None
        if seen.note is None:
            self.note = ""
        self._attempt_row().state = seen.state.name  # type: ignore[assignment]  # the names are those of StateName
        if before is seen.state:
            return []
        self.changed_at = seen.source_time or began
        if seen.state in TERMINAL and seen.end_time is None:
            self.end_time = self.changed_at
        return [_state_change(seen.state, before, seen.source, seen.note or "")]

    def _details(self, seen: RunObservation, text_chars: int, *, agrees: bool) -> bool:
        changed = False
        for field in _INFO_FIELDS:
            value = getattr(seen, field)
            if value is None:
                continue
            if field in _TEXT_FIELDS:
                value = value[:text_chars]
            if getattr(self, field) != value:
                setattr(self, field, value)
                changed = True
        if agrees and seen.note is not None and self.note != seen.note[:text_chars]:
            self.note, changed = seen.note[:text_chars], True
        if seen.specific_info is not None:
            info = str(seen.specific_info)[:text_chars]
            changed, self.info = changed or info != self.info, info
        if seen.token is not None and self.token is None:
            self.token, changed = seen.token, True
        return changed

    def vanish(self, began: float, sources: tuple[str, ...]) -> list[Change]:
        """No source knows the run any more: UNKNOWN, unless it is over (rule 2)."""
        if not self.live or (self.state is WmsStates.UNKNOWN and self.last_known is not None):
            return []
        if self.source == JOURNAL_SOURCE and self.state is not WmsStates.UNKNOWN:
            return []  # accepted and not yet in the WMS: the command knows better than a poll
        before = self.state
        self.last_known, self.last_known_at = before, self.observed_at
        self.state, self.began, self.changed_at = WmsStates.UNKNOWN, began, began
        self.note = f"not in {', '.join(sources)}"
        return [Change("run.state", {"state": "UNKNOWN", "before": before.name, "source": "absence"})]

    def from_journal(self, state: WmsStates, note: str, now: float, *, attempt: int | None = None) -> list[Change]:
        """What a command knows of the run before any source has seen it (or its new attempt)."""
        changes: list[Change] = []
        if attempt is not None and attempt > self.attempt:
            before = self.state.name
            self._keep_attempt()
            self.attempt = attempt
            self.info = self.end_time = self.global_wms_id = None
            changes.append(Change("run.attempt", {"attempt": attempt, "wms_id": self.wms_id, "before": before}))
        elif self.source != JOURNAL_SOURCE and self.source:
            return []  # the WMS has been seen to know it: its word counts
        before_state = self.state
        self.state, self.source, self.rank, self.source_time = state, JOURNAL_SOURCE, 0, None
        self.note, self.began, self.observed_at = note, now, now
        self.last_known = self.last_known_at = None
        self._attempt_row().state = state.name  # type: ignore[assignment]  # the names are those of StateName
        if before_state is not state:
            self.changed_at = now
            if state in TERMINAL:
                self.end_time = now
            changes.append(_state_change(state, before_state, JOURNAL_SOURCE, note))
        return changes

    def keep_summary(self, jobs: JobTable) -> None:
        """Keep what a report says of the jobs: those of a run that is over lie on the disk."""
        self.job_state_counts = _states(jobs.state_counts())
        self.job_summary = {label: _states(counts) for label, counts in jobs.label_counts().items()}
        self.exit_codes = self._exit_codes(jobs)

    def as_known(self, cursor: str | None = None) -> KnownRun:
        """Return the run as a poll or an order names it to its adapter."""
        return KnownRun(
            run_id=self.run_id,
            wms_id=self.wms_id,
            global_wms_id=self.global_wms_id,
            token=self.token,
            path=self.path,
            attempt=self.attempt,
            state=self.state,
            submit_time=self.submit_time,
            cursor=cursor,
        )

    # -- showing -----------------------------------------------------------------------------------------------------

    def total(self, jobs: JobTable | None) -> int | None:
        """The number of jobs, as far as it is known."""
        if self.total_number_jobs is not None:
            return self.total_number_jobs
        if jobs is not None and len(jobs):
            return len(jobs)
        return sum(self.expected().values()) or None

    def percent(self, jobs: JobTable | None) -> int | None:
        """``%S``: the share of jobs that succeeded; of all that are counted, where a WMS has more than it expected."""
        total, counts = self.total(jobs), self.counts(jobs)
        return int(counts.get("SUCCEEDED", 0) / max(total, sum(counts.values())) * 100) if total else None

    def counts(self, jobs: JobTable | None) -> dict[str, int]:
        """Jobs by state: from the jobs if they are known, else as the WMS counts them."""
        if jobs is not None and len(jobs):
            return jobs.state_counts()
        return _names(self.job_state_counts or {})

    def expected(self) -> dict[str, int]:
        """Label to number of jobs, in the order of the pipeline, from the run summary (``label:count;...``)."""
        expected: dict[str, int] = {}
        for part in (self.run_summary or "").split(";"):
            label, colon, count = part.rpartition(":")
            if colon and count.isascii() and count.isdigit() and len(count) < MAX_COUNT_DIGITS:
                expected[label] = int(count)
        return expected

    def as_row(self, jobs: JobTable | None, *, full: bool = False) -> RunRow:
        """The run as a client sees it; ``full`` adds labels, exit codes and attempts."""
        counts, total = self.counts(jobs), self.total(jobs)
        row = RunRow(
            id=self.run_id,
            backend=self.backend,
            wms_id=self.wms_id,
            name=self.name,
            state=self.state.name,  # type: ignore[arg-type]  # the names are those of StateName
            flag=_flag(self.state, counts),
            percent=self.percent(jobs),
            attempt=self.attempt,
            total=total,
            counts=counts,
            global_wms_id=self.global_wms_id,
            path=self.path,
            label=self.label,
            project=self.project,
            campaign=self.campaign,
            payload=self.payload,
            operator=self.operator,
            site=self.site,
            owner=self.owner,
            ours=self.token is not None,
            token=self.token if full else None,
            run_summary=self.run_summary,
            submitted_at=self.submit_time,
            started_at=self.start_time,
            ended_at=self.end_time,
            changed_at=self.changed_at,
            note=self.note,
            last_known=_name(self.last_known),  # type: ignore[arg-type]  # the names are those of StateName
            last_known_at=self.last_known_at,
            command=self.command,
            muted=self.muted,
            observed_at=self.observed_at,
            source=self.source,
        )
        if full:
            row.labels = self._labels(jobs)
            row.expected = self.expected()
            row.exit_codes = self._exit_codes(jobs)
            row.attempts = self.attempts
            row.info = self.info
        return row

    def _labels(self, jobs: JobTable | None) -> dict[str, dict[str, int]]:
        if jobs is not None and len(jobs):
            return jobs.label_counts()
        return {label: _names(counts) for label, counts in (self.job_summary or {}).items()}

    def _exit_codes(self, jobs: JobTable | None) -> dict[str, dict[str, int]]:
        if jobs is not None and len(jobs):
            return {label: {str(c): n for c, n in codes.items()} for label, codes in jobs.exit_codes().items()}
        if self.exit_codes is not None:
            return self.exit_codes
        return {
            label: {str(code): codes.count(code) for code in sorted(set(codes))}
            for label, codes in (self.exit_code_summary or {}).items()
        }


_TELL_WHY = frozenset({WmsStates.FAILED, WmsStates.HELD, WmsStates.DELETED})
_EVENT_NOTE_CHARS = 4000


def _state_change(state: WmsStates, before: WmsStates, source: str, note: str) -> Change:
    """A change of state as an event; where a person asks for the reason, with the reason."""
    data = {"state": state.name, "before": before.name, "source": source}
    if note and state in _TELL_WHY:
        data["note"] = note[:_EVENT_NOTE_CHARS]
    return Change("run.state", data)


def _flag(state: WmsStates, counts: Mapping[str, int]) -> str:
    if state is WmsStates.RUNNING:
        for name, flag in wire.JOB_FLAG_STATES:
            if counts.get(name):
                return flag
    return " "


def _differ(one: str | None, other: str | None) -> bool:
    """Return whether both are known and not the same."""
    return one is not None and other is not None and one != other


def _name(state: WmsStates | None) -> str | None:
    return None if state is None else state.name


def _states(counts: Mapping[str, int]) -> dict[WmsStates, int]:
    return {WmsStates[name]: n for name, n in counts.items()}


def _names(counts: Mapping[WmsStates, int]) -> dict[str, int]:
    return {WmsStates(state).name: n for state, n in counts.items() if n}


_RECORD = msgspec.msgpack.Decoder(RunRecord)


def encode_record(record: RunRecord) -> bytes:
    """The record as bytes for the store (its jobs are kept apart)."""
    return msgspec.msgpack.encode(record)


def decode_record(data: bytes) -> RunRecord:
    """The record that `encode_record` wrote.

    Raises
    ------
    msgspec.MsgspecError
        If the bytes are not such a record.
    """
    return _RECORD.decode(data)
