"""Which evidence may change a state: the rules that make a report true, as pure functions.

1. Only positive evidence changes a state. A poll that failed or was partial changes nothing. 2. A run that every source
*which answered completely* denies becomes UNKNOWN and keeps ``last_known``; a terminal run never. 3. Evidence is
ordered by attempt; a higher attempt wins. Within an attempt terminal wins over live; between two terminals
   the source that the adapter ranks higher wins, and the other is a conflict for the timeline. Between two live states
   the later to arrive wins: a backend's polls are folded in their order, and an adapter keeps the order of its logs.
4. Without a known attempt nothing leaves a terminal state.
5. Everything may be seen twice, late, or out of order.
"""

from __future__ import annotations

__all__ = [
    "JOURNAL_SOURCE",
    "JobKey",
    "RunKey",
    "Verdict",
    "absence_is_proof",
    "confirms_all",
    "job_wins",
    "judge_run",
]

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from bpsd.models import TERMINAL, SourceReport, WmsStates

JOURNAL_SOURCE = "journal"
"""The source of what only our own journal says of a run (accepted, not yet seen in the WMS): any sighting beats it."""


class JobKey(NamedTuple):
    """What the order of evidence about a job depends on."""

    run_attempt: int
    attempt: int | None
    state: WmsStates
    rank: int
    time: float | None


def job_wins(before: JobKey, after: JobKey) -> bool:
    """Whether ``after`` may replace ``before``. Repeating what is known does no harm and may add details."""
    if after.run_attempt != before.run_attempt:
        return after.run_attempt > before.run_attempt
    if after.attempt is not None and before.attempt is not None and after.attempt != before.attempt:
        return after.attempt > before.attempt
    if before.state in TERMINAL:
        if after.state not in TERMINAL:
            return False
        return after.rank > before.rank or after.state == before.state
    if after.state in TERMINAL:
        return True
    # Both live: of one source what it says later, in the order in which it says it; its clock may have been set. Of
    # two sources of one WMS what is later by its clock.
    return after.rank == before.rank or after.time is None or before.time is None or after.time >= before.time


class RunKey(NamedTuple):
    """What the order of evidence about a run depends on. No time is part of it: clocks are set."""

    attempt: int
    wms_id: str
    state: WmsStates
    source: str
    rank: int


class Verdict(Enum):
    """What becomes of an observation of a run."""

    TAKE = "take"
    """It is the state now."""

    NEW_ATTEMPT = "new_attempt"
    """It is the state of a new attempt."""

    AGREES = "agrees"
    """It says what is known: the row is confirmed."""

    STALE = "stale"
    """It is older than what is known, or weaker: it changes nothing."""

    CONFLICT = "conflict"
    """It contradicts a terminal state without the weight to change it: it goes to the timeline."""


def judge_run(
    before: RunKey,
    *,
    attempt: int | None,
    wms_id: str,
    state: WmsStates | None,
    rank: int,
    older_ids: Sequence[str] = (),
) -> Verdict:
    """Weigh an observation against what is known.

    ``older_ids`` are the WMS ids of earlier attempts. A run seen under an id that is neither the present one nor an
    older one is a new attempt, if the WMS's counter does not say otherwise.
    """
    if attempt is None:
        if wms_id == before.wms_id or not before.wms_id:
            attempt = before.attempt
        elif wms_id in older_ids:
            return Verdict.STALE
        else:
            attempt = before.attempt + 1
    if attempt < before.attempt:
        return Verdict.STALE
    if attempt > before.attempt:
        return Verdict.NEW_ATTEMPT
    if state is None or state is WmsStates.UNKNOWN:  # "I cannot tell" is no evidence
        return Verdict.AGREES
    if before.source == JOURNAL_SOURCE:
        return Verdict.TAKE
    if before.state is WmsStates.UNKNOWN:
        return Verdict.TAKE
    return _judge_same_attempt(before, state, rank)


def _judge_same_attempt(before: RunKey, state: WmsStates, rank: int) -> Verdict:
    if before.state in TERMINAL:
        if state not in TERMINAL:
            return Verdict.STALE
        if state is before.state:
            return Verdict.AGREES
        return Verdict.TAKE if rank > before.rank else Verdict.CONFLICT
    if state is before.state:
        return Verdict.AGREES
    return Verdict.TAKE


def absence_is_proof(sources: Sequence[SourceReport]) -> bool:
    """Whether "no source knows the run" may be believed: there were sources, and every one answered completely.

    A source of one user cannot know the runs of others: an adapter names a run absent only if its owner's answered.
    """
    return bool(sources) and all(source.status == "ok" or source.user for source in sources)


def confirms_all(sources: Sequence[SourceReport]) -> bool:
    """Return whether every live run is as the poll found it, also those that it says nothing of."""
    return bool(sources) and all(source.status == "ok" and source.asked for source in sources)
