"""What is worth telling of what happens, grouped by cause: no I/O and no clock.

::

    event -> notice (kind, subject, cause) -> digest: one group for all of one cause -> message

A *problem* of a subject (a run, a backend) is open until it is *recovered*. What is recovered before it was told is
not told at all. A cause that there was before is told as ``again``, until it was quiet for long enough.
"""

from __future__ import annotations

__all__ = ["Digest", "Group", "Memory", "Message", "Notice", "Remembered", "Told", "cause_of", "compose", "notices_of"]

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from bpsd import wire
from bpsd.errors import refusal_text
from bpsd.logs.redaction import redact_text
from bpsd.messages import Event
from bpsd.outlets import NotificationKind
from bpsd.runs import RunRecord

MAX_GROUPS = 100
"""Causes in one digest; what comes besides is only counted."""

MAX_EXAMPLES = 10
"""Runs that a group names; all are counted."""

MAX_SUBJECTS = 10_000
"""Open problems, causes and members of a group that are remembered; the oldest are forgotten first."""

CAUSE_CHARS = 200
MAX_CAUSE_LABELS = 3

_PROPER = re.compile(r"\b\d+(\.\d+)*\b|\b[0-9a-f]{8,}\b|/\S+")
"""What differs between runs that fail alike: numbers, digests, paths."""

_DOWN = ("down", "auth", "stopped")

Outcome = Literal["first", "again", "recovered"]


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to one subject."""

    kind: NotificationKind
    subject: str
    backend: str
    cause: str
    time: float
    seq: int = 0
    recovered: bool = False
    run: dict[str, str] | None = None
    users: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


class Group(msgspec.Struct, kw_only=True, omit_defaults=True):
    """All of one cause. ``runs`` are examples."""

    kind: str
    outcome: Outcome
    backend: str
    cause: str
    count: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    runs: list[dict[str, str]] = []


class Message(msgspec.Struct, kw_only=True):
    """What is sent: for programs ``groups``, for people ``subject`` and ``text``. ``omitted`` are in none."""

    version: int
    daemon: str
    time: float
    subject: str
    text: str
    groups: list[Group]
    omitted: int = 0


# -- what happened ---------------------------------------------------------------------------------------------------


def notices_of(event: Event, record: RunRecord | None, causes: Mapping[str, Mapping[str, int]]) -> list[Notice]:
    """What an event says that somebody may want to be told.

    Parameters
    ----------
    event : `~bpsd.messages.Event`
        What happened.
    record : `~bpsd.runs.RunRecord` or `None`
        The run that it happened to.
    causes : `~collections.abc.Mapping`
        Of its failed jobs, by label: the number of jobs by note or exit code.
    """
    if event.kind == "backend.state":
        return _of_backend(event)
    if event.kind == "command.state" and "refused" in event.data:
        return _of_refusal(event)
    if event.kind == "run.state" and record is not None and not record.muted and "refused" not in event.data:
        return _of_run(event, record, causes)
    return []


def _of_backend(event: Event) -> list[Notice]:
    name, state = event.backend or "", event.data.get("state")
    if state not in _DOWN and state != "up":
        return []
    return [
        Notice(
            kind="backend_down",
            subject=f"backend {name}",
            backend=name,
            cause="" if state == "up" else _likened(f"{state}: {event.data.get('error', '')}"),
            time=event.time,
            seq=event.seq,
            recovered=state == "up",
        )
    ]


def _of_refusal(event: Event) -> list[Notice]:
    """A submission that its backend refused: it has left no run, so that its command says all."""
    told, error = event.data, event.data.get("error") or {}
    user, name = str(told.get("user") or ""), str(told.get("name") or "")
    lines = [f"{p['key']}: {p['message']}" if p.get("key") else p["message"] for p in error.get("problems") or ()]
    if (more := int(error.get("total") or 0) - len(lines)) > 0 and lines:
        lines.append(f"... and {more} more")
    return [
        Notice(
            kind="failed",
            subject=f"run {told['refused']}",
            backend=event.backend or "",
            cause=_likened(f"submission refused: {refusal_text(error)}"),
            time=event.time,
            seq=event.seq,
            run={
                "id": str(told["refused"]),
                "name": redact_text(name),
                "wms_id": "",
                "operator": redact_text(user),
                "note": redact_text(str(error.get("message", "")))[:CAUSE_CHARS],
                "mistakes": "\n".join(redact_text(line) for line in lines),
            },
            users=frozenset(filter(None, (user,))),
            names=frozenset(filter(None, (name,))),
        )
    ]


def _of_run(event: Event, record: RunRecord, causes: Mapping[str, Mapping[str, int]]) -> list[Notice]:
    state, before = event.data.get("state"), event.data.get("before")
    lost = state == "UNKNOWN" and event.data.get("source") == "absence"
    told: list[tuple[NotificationKind, bool, str]] = []
    if before == "HELD":
        told.append(("held", True, ""))
    if before == "UNKNOWN":
        told.append(("stale", True, ""))
    if state == "SUCCEEDED":
        told += [("failed", True, ""), ("finished", False, "")]
    elif state == "FAILED":
        told.append(("failed", False, cause_of(record.note, causes)))
    elif state == "HELD":
        told.append(("held", False, _likened(record.note)))
    elif lost:
        told.append(("stale", False, _likened(record.note)))
    return [
        Notice(
            kind=kind,
            subject=f"run {record.run_id}",
            backend=record.backend,
            cause=cause,
            time=event.time,
            seq=event.seq,
            recovered=recovered,
            run={
                "id": record.run_id,
                "name": redact_text(record.name),
                "wms_id": redact_text(record.wms_id),
                "operator": redact_text(record.operator or record.owner or ""),
                "note": redact_text(record.note)[:CAUSE_CHARS],
            },
            users=frozenset(filter(None, (record.operator, record.owner))),
            names=frozenset(filter(None, (record.name, record.payload, record.campaign, record.project))),
        )
        for kind, recovered, cause in told
    ]


def cause_of(note: str, causes: Mapping[str, Mapping[str, int]]) -> str:
    """Why a run failed, so that runs which failed alike have the same cause."""
    parts = [f"{label}: {_endings(found)}" for label, found in causes.items() if found]
    if parts:
        more = "; ..." if len(parts) > MAX_CAUSE_LABELS else ""
        return redact_text("; ".join(parts[:MAX_CAUSE_LABELS]) + more)[:CAUSE_CHARS]
    return _likened(note)


def _endings(causes: Iterable[str]) -> str:
    """Return ``exit code 1, 2, signal 11 (SIGSEGV), walltime of 2 s exceeded`` of exit codes and notes."""
    ordered = sorted(causes, key=lambda cause: (len(cause), cause))
    signals = {cause: wire.signal_of(int(cause)) for cause in ordered if cause.isascii() and cause.isdigit()}
    plain = ", ".join(cause for cause, signal in signals.items() if not signal)
    notes = [cause for cause in ordered if cause not in signals]
    return ", ".join([*([f"exit code {plain}"] if plain else []), *filter(None, signals.values()), *notes])


def _likened(text: str) -> str:
    return _PROPER.sub("#", redact_text(text))[:CAUSE_CHARS]


# -- what was told ---------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """How a notice is told; ``open_before``: the subject had a problem of this kind already."""

    outcome: Outcome
    cause: str
    open_before: bool = True


class Remembered(msgspec.Struct):
    """A `Memory` as it is kept over a restart."""

    open: list[tuple[str, str]] = []
    causes: list[tuple[str, float]] = []


class Memory:
    """What one route heard of: open problems by subject, and when there was last one of each cause."""

    def __init__(self, kept: Remembered | None = None) -> None:
        self._open: OrderedDict[str, str] = OrderedDict(kept.open if kept else ())
        self._causes: OrderedDict[str, float] = OrderedDict(kept.causes if kept else ())

    def outcome(self, notice: Notice, again_after_s: float) -> Told | None:
        """How to tell it; `None` if there is nothing to tell."""
        subject = f"{notice.kind} {notice.subject}"
        before = self._open.get(subject)
        if notice.recovered:
            self._open.pop(subject, None)
            return None if before is None else Told("recovered", before)
        if notice.run is None and before == notice.cause:
            return None  # a backend that is still down, after a restart of ours
        if notice.kind != "finished":
            self._open[subject] = notice.cause
            _forget_oldest(self._open)
        key = f"{notice.kind} {notice.backend} {notice.cause}"
        last = self._causes.pop(key, None)
        self._causes[key] = notice.time
        _forget_oldest(self._causes)
        # A clock that was set back makes nothing new.
        first = last is None or notice.time - last > again_after_s
        return Told("first" if first else "again", notice.cause, before is not None)

    def open_subjects(self, kind: NotificationKind) -> list[str]:
        """What has a problem of this kind that is not over."""
        return [subject.removeprefix(f"{kind} ") for subject in self._open if subject.startswith(f"{kind} ")]

    def dump(self) -> Remembered:
        """What to keep over a restart."""
        return Remembered(list(self._open.items()), list(self._causes.items()))


def _forget_oldest(of: OrderedDict[str, Any]) -> None:
    while len(of) > MAX_SUBJECTS:
        of.popitem(last=False)


class _Member(NamedTuple):
    """A problem in a digest: its group, and whether people believe from an earlier message that there is one."""

    key: tuple[str, str, str, str]
    told_before: bool


class Digest:
    """What is collected for one message."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str, str, str], Group] = {}
        self._members: OrderedDict[str, _Member] = OrderedDict()
        self.omitted = 0
        self.first_seq: int | None = None

    def __len__(self) -> int:
        return len(self._groups)

    def __bool__(self) -> bool:
        return bool(self._groups) or self.omitted > 0

    def __repr__(self) -> str:
        return f"<Digest of {len(self._groups)} causes, {self.omitted} omitted>"

    def add(self, notice: Notice, told: Told) -> None:
        """Take one more. A problem that is over before it was told is taken out instead, and a new one replaces it."""
        subject = f"{notice.kind} {notice.subject}"
        replaced = self._retract(subject)
        told_before = told.open_before if replaced is None else replaced.told_before
        if told.outcome == "recovered" and not told_before:
            return
        if self.first_seq is None:
            self.first_seq = notice.seq
        key = (notice.kind, "recovered" if told.outcome == "recovered" else "problem", notice.backend, told.cause)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= MAX_GROUPS:
                self.omitted += 1
                return
            group = self._groups[key] = Group(
                kind=notice.kind,
                outcome=told.outcome,
                backend=notice.backend,
                cause=told.cause,
                first_at=notice.time,
                runs=[],
            )
        group.count += 1
        group.last_at = notice.time
        if notice.run is not None and len(group.runs) < MAX_EXAMPLES:
            group.runs.append(notice.run)
        if told.outcome != "recovered" and notice.kind != "finished":
            self._members[subject] = _Member(key, told_before)
            _forget_oldest(self._members)

    def _retract(self, subject: str) -> _Member | None:
        member = self._members.pop(subject, None)
        if member is None:
            return None
        group = self._groups[member.key]
        group.count -= 1
        group.runs = [run for run in group.runs if not subject.endswith(f" run {run['id']}")]
        if not group.count:
            del self._groups[member.key]
        return member

    def groups(self) -> list[Group]:
        """All causes, the worst news first."""
        return sorted(self._groups.values(), key=lambda group: (group.outcome == "recovered", _KINDS.index(group.kind)))


# -- what is said ----------------------------------------------------------------------------------------------------

_KINDS = ("backend_down", "failed", "held", "stale", "finished")


def compose(digest: Digest, daemon: str, now: float) -> Message:
    """The message of a digest."""
    groups = digest.groups()
    paragraphs = [_paragraph(group) for group in groups]
    if digest.omitted:
        paragraphs.append(f"And {digest.omitted} more of other causes: `bpsctl report` shows them.")
    return Message(
        version=1,
        daemon=daemon,
        time=now,
        subject=_subject(groups, digest.omitted, daemon),
        text="\n\n".join(paragraphs) + f"\n\n-- \nbpsd on {daemon}; `bpsctl mute RUN` silences a run\n",
        groups=groups,
        omitted=digest.omitted,
    )


def _subject(groups: Sequence[Group], omitted: int, daemon: str) -> str:
    said = _headline(groups[0]) if groups else f"{omitted} changes"
    rest = len(groups) - 1
    return f"bpsd on {daemon}: {said}" + (f", and {rest} more" if rest > 0 else "")


def _headline(group: Group) -> str:
    many = group.count != 1
    runs = f"{group.count} run{'s' if many else ''}"
    back = group.outcome == "recovered"
    match group.kind:
        case "backend_down":
            return f"{group.backend} is {'back' if back else 'down'}"
        case "failed":
            return f"{runs} {'succeeded after failing' if back else 'failed'} on {group.backend}"
        case "held":
            return f"{runs} {'went on' if back else ('are held' if many else 'is held')} on {group.backend}"
        case "finished":
            return f"{runs} finished on {group.backend}"
    if group.runs:
        return f"{runs} of {group.backend} {'seen again' if back else 'not seen any more'}"
    return f"what is shown of {group.backend} is {'fresh again' if back else 'old'}"


def _paragraph(group: Group) -> str:
    first = _headline(group)
    if group.outcome == "again":
        first += " (again)"
    lines = [first + (f": {group.cause}" if group.cause else "")]
    for run in group.runs:
        lines.append(f"  {' '.join(_words(run))}")
        lines += [f"    {mistake}" for mistake in run.get("mistakes", "").splitlines()]
    if group.runs and group.count > len(group.runs):
        lines.append(f"  ... and {group.count - len(group.runs)} more")
    return "\n".join(lines)


def _words(run: Mapping[str, str]) -> Iterable[str]:
    return filter(None, (run["id"], run["name"], run["operator"] and f"({run['operator']})"))
