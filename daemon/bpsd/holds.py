"""What is on hold and why: reasons that differ only in hosts, files and numbers are one group. Pure.

A reason belongs to a group by its text alone, so a group has the same name on all backends, and tomorrow.
"""

from __future__ import annotations

__all__ = [
    "Held",
    "HoldGroups",
    "Selection",
    "group_of",
    "held_in",
    "reason_of",
    "select_held",
    "select_waiting",
    "waiting_in",
]

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from bpsd.jobtable import JobTable
from bpsd.messages import HoldGroup
from bpsd.models import WmsStates
from bpsd.runs import RunRecord

MAX_RUNS = 10_000
"""How many runs a group names; `HoldGroup.run_count` counts them all."""

MAX_REASON_CHARS = 300
MAX_READ_CHARS = 2 * MAX_REASON_CHARS
"""So much of a reason is looked through: what looks for identifiers may go over a text many times."""

NO_REASON = "no reason given"
NOT_SINGLY = "the jobs of this run are not known one by one, only how many are held"

_VARIABLE = (
    (re.compile(r"^held: "), ""),
    (re.compile(r"<\d[^<>\s]*:\d+[^<>\s]*>"), "ADDRESS"),
    (re.compile(r"(?<![\w.-])[\w.-]+@[\w.-]+"), "HOST"),
    (re.compile(r"(?<![\w/.])~?(?:/[\w.+@%=,:~-]*[\w+@%=~-])+/?"), "PATH"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"), "ADDRESS"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b(?=[0-9a-f-]*\d)[0-9a-f]{8}(?:[0-9a-f-]*[0-9a-f])?\b"), "ID"),
    (re.compile(r"(?<![\w.-])(?:[A-Za-z0-9-]+\.){2,}[A-Za-z]{2,}\b"), "HOST"),
)
_CODE = re.compile(r" ?\(code -?\d+\.-?\d+\)$")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class Held(NamedTuple):
    """A job on hold; or, where ``job`` is `None`, the run itself, or ``number`` of its jobs that nobody can name."""

    job: str | None
    label: str
    note: str
    group: str
    time: float | None
    number: int = 1


class Selection(NamedTuple):
    """What of a run is to be released.

    ``jobs`` are those that have names; ``whole``: it is all that is known to be held; ``itself``: the run as such (or
    jobs without names) is among it. ``note`` says what stays on hold.
    """

    whole: bool
    jobs: tuple[str, ...] = ()
    itself: bool = False
    note: str = ""


@lru_cache(maxsize=4096)
def reason_of(note: str) -> str:
    """The reason of a hold without what differs from job to job; HTCondor's hold code stays.

    >>> reason_of("held: memory usage 2105 MB exceeded request of 2048 MB (code 34.0)")
    'memory usage N MB exceeded request of N MB (code 34.0)'
    """
    code = _CODE.search(note)
    text = (note[: code.start()] if code is not None else note)[:MAX_READ_CHARS]
    for pattern, word in _VARIABLE:
        text = pattern.sub(word, text)
    text = " ".join(_NUMBER.sub("N", text).split())[:MAX_REASON_CHARS] or NO_REASON
    return text + (code[0] if code is not None else "")


@lru_cache(maxsize=4096)
def group_of(reason: str) -> str:
    """The short name of a reason's group: ``h`` and eight characters of [0-9a-f]."""
    return f"h{hashlib.sha256(reason.encode()).hexdigest()[:8]}"


def held_in(record: RunRecord, jobs: JobTable) -> Iterator[Held | None]:
    """Go over a run for what is on hold in it, with `None` for each job that is not: a caller can pause anywhere.

    Nothing is on hold in a run that is over.
    """
    if not record.live:
        return
    if record.state is WmsStates.HELD:
        yield _held(None, record.label or "", record.note, record.changed_at)
    if len(jobs):
        if jobs.in_state(WmsStates.HELD):
            for number in jobs.scan(frozenset({WmsStates.HELD}), None):
                yield None if number is None else _held_job(jobs, number)
    elif count := record.counts(jobs).get("HELD", 0):
        yield _held(None, record.label or "", NOT_SINGLY, record.changed_at, count)


def _held_job(jobs: JobTable, number: int) -> Held:
    job = jobs.row(number)
    return _held(job.name, job.label, job.note, jobs.since(number))


def _held(job: str | None, label: str, note: str, time: float | None, number: int = 1) -> Held:
    return Held(job, label, note, group_of(reason_of(note)), time, number)


def select_held(
    record: RunRecord, everything: Sequence[Held], label: str | None, group: str | None
) -> Selection | None:
    """What of a run a release by label and group is about, of ``everything`` that is held in it; `None` if nothing.

    The run's own label stands for all of its jobs. What cannot be chosen one by one is chosen with its run.
    """
    chosen = [
        held
        for held in everything
        if group in (None, held.group) and (label is None or label in (held.label, record.label))
    ]
    if not chosen:
        return None
    names = tuple(held.job for held in chosen if held.job is not None)
    itself = len(names) < len(chosen)
    if len(chosen) == len(everything):
        return Selection(whole=True, jobs=names, itself=itself)
    if not names:
        return Selection(
            whole=False, itself=itself, note="other jobs of it are held for other reasons: release it by name"
        )
    stays = "the run itself stays on hold: release it by name" if itself else ""
    return Selection(whole=False, jobs=names, itself=itself, note=stays)


_WAITING = frozenset({WmsStates.READY, WmsStates.PENDING})


def waiting_in(jobs: JobTable, label: str) -> Iterator[str | None]:
    """Go over all jobs: the name of each that waits and has the label, `None` for each other."""
    names = jobs.names()
    for row in jobs.scan(_WAITING, label):
        yield None if row is None else names[row]


def select_waiting(record: RunRecord, names: Sequence[str], label: str) -> Selection | None:
    """What of a run a hold by label is about, of the jobs that `waiting_in` names; `None` if nothing.

    The run's own label stands for the whole run.
    """
    if label == record.label:
        return Selection(whole=True, itself=True)
    return Selection(whole=False, jobs=tuple(names)) if names else None


class HoldGroups:
    """Counts what is held, group by group."""

    def __init__(self, label: str | None = None, group: str | None = None) -> None:
        self._label, self._group = label, group
        self._groups: dict[str, HoldGroup] = {}
        self._runs: dict[str, set[str]] = {}
        self._all_runs: set[str] = set()

    @property
    def run_count(self) -> int:
        """How many runs have something on hold."""
        return len(self._all_runs)

    def add(self, record: RunRecord, held: Held) -> None:
        """Take in something that a run has on hold."""
        if self._group in (None, held.group) and (self._label is None or self._label in (held.label, record.label)):
            self._count(record, held)

    def _count(self, record: RunRecord, held: Held) -> None:
        group = self._groups.get(held.group)
        if group is None:
            group = HoldGroup(group=held.group, reason=reason_of(held.note), example=held.note)
            self._groups[held.group], self._runs[held.group] = group, set()
        group.held += held.number
        runs = self._runs[held.group]
        runs.add(record.run_id)
        self._all_runs.add(record.run_id)
        if record.run_id in group.runs or len(group.runs) < MAX_RUNS:
            group.runs[record.run_id] = group.runs.get(record.run_id, 0) + held.number
        group.run_count = len(runs)
        if held.job is not None:
            group.labels[held.label] = group.labels.get(held.label, 0) + 1
        if record.backend not in group.backends:
            group.backends.append(record.backend)
        if held.time is not None and (group.oldest_at is None or held.time < group.oldest_at):
            group.oldest_at = held.time

    def rows(self) -> list[HoldGroup]:
        """The groups, the largest first."""
        return sorted(self._groups.values(), key=lambda group: (-group.held, group.group))
