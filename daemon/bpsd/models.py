"""The words of the field as types: states, reports, and what an adapter's poll saw.

The names, values and fields of `WmsStates`, `WmsJobReport`, `WmsRunReport` and `WmsSpecificInfo` are those of
``lsst.ctrl.bps.wms_service`` (release 30.2026.4300), so that a report means the same here and there.
"""

from __future__ import annotations

__all__ = [
    "ABSENT_JOB_INFO",
    "TERMINAL",
    "JobObservation",
    "KnownRun",
    "PollRequest",
    "PollResult",
    "Question",
    "RunObservation",
    "SourceReport",
    "TokenAnswer",
    "WmsJobReport",
    "WmsRunReport",
    "WmsSpecificInfo",
    "WmsStates",
    "empty_counts",
    "ending",
    "made_ready",
    "normal_exit_code",
    "signal_of",
]

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Literal

import msgspec

from bpsd import wire
from bpsd.wire import ending, normal_exit_code, signal_of


def made_ready(*types: Any) -> None:
    """Have msgspec look at these types now, while one thread is there; call it where a module defines them.

    msgspec (0.22) learns a type when it is first decoded or converted to, and another thread that comes to the same
    type in that moment finds it half learnt: the process dies of a segmentation fault.
    """
    for one in types:
        msgspec.json.Decoder(one)


class WmsStates(IntEnum):
    """Run and job states; the values are the exit codes of ``bps status``."""

    UNKNOWN = 10
    """Cannot determine the state."""

    MISFIT = 11
    """Determined, but fits no other state."""

    UNREADY = 12
    """Waits for its parents."""

    READY = 13
    """All parents have succeeded."""

    PENDING = 14
    """Ready and visible in the WMS's queue."""

    RUNNING = 15
    """Runs."""

    DELETED = 16
    """Being deleted, or deleted."""

    HELD = 17
    """On hold."""

    SUCCEEDED = 0
    """Ended with success."""

    FAILED = 19
    """Ended without success."""

    PRUNED = 20
    """Will not run, since a parent failed or was pruned."""

    @property
    def is_terminal(self) -> bool:
        """Whether only a new attempt leaves this state."""
        return self in TERMINAL


TERMINAL = frozenset(WmsStates[name] for name in wire.TERMINAL_STATES)


def empty_counts() -> dict[WmsStates, int]:
    """A count of zero for every state, in the order of `WmsStates`."""
    return dict.fromkeys(WmsStates, 0)


class WmsSpecificInfo(msgspec.Struct):
    """Free text of a WMS: templates with named fields in braces, and the values of the fields."""

    templates: list[str] = msgspec.field(default_factory=list)
    context: dict[str, Any] = msgspec.field(default_factory=dict)

    def add_message(self, template: str, context: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Add a line.

        Raises
        ------
        ValueError
            If a field has no value, or the value of a field of an earlier line would change.
        """
        values = {**(context or {}), **kwargs}
        try:
            template.format_map(values)
        except Exception as exc:
            raise ValueError(f"the message {template!r} cannot be rendered with {values!r}") from exc
        changed = sorted(k for k, v in values.items() if k in self.context and self.context[k] != v)
        if changed:
            raise ValueError(f"the message {template!r} changes the value of {', '.join(changed)}")
        self.context.update(values)
        self.templates.append(template)

    def __bool__(self) -> bool:
        return bool(self.templates)

    def __str__(self) -> str:
        return "\n".join(template.format_map(self.context) for template in self.templates)


class WmsJobReport(msgspec.Struct):
    """One job in a detailed report."""

    wms_id: str
    name: str
    label: str
    state: WmsStates


class WmsRunReport(msgspec.Struct, kw_only=True):
    """One run in a report, field by field as upstream."""

    wms_id: str | None = None
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
    state: WmsStates | None = None
    jobs: list[WmsJobReport] | None = None
    total_number_jobs: int | None = None
    job_state_counts: dict[WmsStates, int] | None = None
    job_summary: dict[str, dict[WmsStates, int]] | None = None
    exit_code_summary: dict[str, list[int]] | None = None
    specific_info: WmsSpecificInfo | None = None


ABSENT_JOB_INFO = ""
"""`JobObservation.wms_id` of a job that the WMS has given no id (yet)."""


class JobObservation(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One job as one source saw it.

    ``attempt`` is monotone within one attempt of the run and made from the WMS's own counter (Restarts, NumJobStarts,
    DAG retry, else a new id); `None` where it is not known. ``time`` is the source's time of the change (epoch
    seconds of that WMS). ``exit_code`` is that of the last ended attempt; a signal is 128 + N
    (`normal_exit_code`). ``note`` says why, in a few words (hold reason, error), capped by the reducer.
    """

    name: str
    label: str
    state: WmsStates
    attempt: int | None = None
    rank: int = 0
    wms_id: str = ABSENT_JOB_INFO
    exit_code: int | None = None
    time: float | None = None
    start_time: float | None = None
    end_time: float | None = None
    host: str = ""
    note: str = ""


class RunObservation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run as one source saw it; a field that is `None` was not seen and changes nothing.

    Parameters of identity
    ----------------------
    ``wms_id``
        The run's id in the WMS now; a new one with the same ``token`` or ``path`` is the next attempt of the same run.
    ``token``
        The identity of a run that bpsd submitted.
    ``attempt``
        Run attempt from 1, monotone, from the WMS's own counter; `None` if the source cannot tell.
    ``source``, ``rank``
        Which source saw it, and how far the adapter trusts it between two terminal states (higher wins; by custom
        queue 0, history 10, log 20, exit file 30).
    ``source_time``
        The source's own time of the state (epoch seconds of that WMS).

    ``jobs`` holds what changed, or every job; the reducer keeps the rest. Counts that come without jobs
    (``job_state_counts``, ``job_summary``) are used only while no jobs are known.
    """

    wms_id: str
    source: str
    state: WmsStates | None = None
    token: str | None = None
    attempt: int | None = None
    rank: int = 0
    source_time: float | None = None

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
    note: str | None = None
    total_number_jobs: int | None = None
    job_state_counts: dict[WmsStates, int] | None = None
    job_summary: dict[str, dict[WmsStates, int]] | None = None
    exit_code_summary: dict[str, list[int]] | None = None
    specific_info: WmsSpecificInfo | None = None
    jobs: Sequence[JobObservation] = ()

    @property
    def key(self) -> str:
        """Return the name that its WMS never gives twice, where it has one; else the WMS id."""
        return self.global_wms_id or self.wms_id


class KnownRun(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A run that the daemon believes to be live, handed to `poll`. ``cursor`` is what the adapter gave for it last.

    ``global_wms_id`` is that of the attempt that has ``wms_id``. An answer about ``wms_id`` with another global id is
    about another run: the WMS gave the id again.
    """

    run_id: str
    wms_id: str
    global_wms_id: str | None = None
    token: str | None = None
    path: str | None = None
    attempt: int = 1
    state: WmsStates = WmsStates.UNKNOWN
    submit_time: float | None = None
    cursor: str | None = None

    @property
    def key(self) -> str:
        """Return the name that its WMS never gives twice, where it has one; else the WMS id."""
        return self.global_wms_id or self.wms_id


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What upstream's readers were asked: one run, or those of a user, with what ended in the last ``hist`` days.

    ``pass_thru`` is in the WMS's own language; ``is_global`` asks all of its queues.
    """

    wms_id: str | None = None
    user: str | None = None
    hist: float = 0.0
    pass_thru: str | None = None
    is_global: bool = False


class PollRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon wants to know.

    ``cursor`` is the adapter's own, as of the last poll whose observations are durable (`None`: from the beginning);
    ``known`` every live run; ``deadline_s`` the seconds left.
    A ``question`` is there where one of upstream's readers asks: an adapter that can answer it more cheaply than by
    telling everything does, or tells more than its poll would (``pass_thru``, ``is_global``).
    """

    cursor: str | None = None
    known: tuple[KnownRun, ...] = ()
    deadline_s: float = 60.0
    question: Question | None = None


class SourceReport(msgspec.Struct, frozen=True, kw_only=True):
    """How asking one source went: ``covers`` says in words what it would know of; cost in seconds and bytes.

    Where one source is asked for each user, ``user`` says for whom: its trouble and its cost concern no other user's
    runs. ``asked`` is false if it was not asked this time, or has not answered yet, which is no error.
    """

    name: str
    user: str = ""
    asked: bool = True
    status: Literal["ok", "partial", "failed"]
    covers: str = ""
    cost_s: float = 0.0
    cost_bytes: int = 0
    error: str = ""


class PollResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a poll saw.

    ``cursor`` and ``run_cursors`` (by ``key``) are stored in the transaction that stores the observations.
    ``absent`` lists known runs (``key``, or ``run_id`` where the WMS gave the id to another run) that *no* source
    knows, and may name a run only if every source that could know it answered completely. ``more`` asks for another
    poll at once: there was more than fits one result.
    ``clock_offset_s`` is how far the WMS's clock is ahead of ours, where the adapter can tell.
    """

    observations: Sequence[RunObservation] = ()
    cursor: str | None = None
    run_cursors: Mapping[str, str] = {}
    sources: tuple[SourceReport, ...] = ()
    absent: tuple[str, ...] = ()
    more: bool = False
    clock_offset_s: float | None = None


class TokenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `find_by_token` found.

    ``verdict`` is ``found`` (then ``wms_id`` is set), ``absent`` (proof that the WMS does not have it: every source
    that could know answered completely, is healthy, and the settle time is over) or ``cannot_tell`` (``reason`` says
    why).
    """

    verdict: Literal["found", "absent", "cannot_tell"]
    wms_id: str | None = None
    path: str | None = None
    reason: str = ""
