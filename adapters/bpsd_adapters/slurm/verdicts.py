"""What became of one job, from all that was seen of it: the exit record, the queue, accounting. Pure.

The queue beats accounting while it lists the job as alive: what sacct tells of it then is an earlier incarnation. The
exit record is the first witness; but if a signal ended the job, Slurm knows better why (out of time, out of memory,
cancelled), and so it does if it requeued the job after all. Absence is no end.
"""

from __future__ import annotations

__all__ = ["Doubt", "Evidence", "Live", "Over", "judge"]

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from bpsd.models import WmsStates
from bpsd_adapters.slurm.parsing import AccountRow, ExitRecord, QueueRow
from bpsd_adapters.slurm.states import meaning_of

_ENDING = frozenset({"COMPLETING"})


class Evidence(NamedTuple):
    """All that is known of a job in one look. ``rows`` has one entry for each Slurm job that bears its name."""

    rows: Sequence[QueueRow] = ()
    record: ExitRecord | None = None
    account: AccountRow | None = None


class Live(NamedTuple):
    """It waits or runs."""

    state: WmsStates
    note: str = ""
    start: float | None = None
    wms_id: str = ""


class Over(NamedTuple):
    """It ended. ``exit_code`` is the job's own, `None` if it has none."""

    state: WmsStates
    exit_code: int | None = None
    note: str = ""
    start: float | None = None
    end: float | None = None
    host: str = ""
    source: str = ""


class Doubt(Enum):
    """It is not known, and not to be guessed."""

    MISSING = "missing"
    """No source that answered knows it."""

    WAITING = "waiting"
    """Slurm says that it is over, and what the wrapper wrote is not to be seen yet."""


def judge(seen: Evidence, *, waited_s: float, grace_s: float) -> Live | Over | Doubt:
    """What became of a job.

    Parameters
    ----------
    seen : `Evidence`
        What was seen of it.
    waited_s : `float`
        For how long Slurm has said that it is over, without a record.
    grace_s : `float`
        How long a record may take to be seen on the submit host.
    """
    live, over = _rows(seen)
    record = seen.record
    if record is not None and record.exit_code == 0:
        return _recorded(record)
    if live is not None and (live.state not in _ENDING or record is None):
        meaning = meaning_of(live.state, live.reason, live.priority)
        return Live(meaning.state, meaning.note, live.start, str(live.array_id))
    if record is not None:
        slurm_told = live is not None or over or seen.account is not None
        # Why it got a signal is Slurm's to say.
        return _recorded(record, over) if slurm_told or waited_s >= grace_s or not _by_signal(record) else Doubt.WAITING
    if over:
        return _without_record(over, seen.account, waited_s, grace_s)
    return Doubt.MISSING if seen.account is None else _accounted(seen.account, waited_s, grace_s)


def _rows(seen: Evidence) -> tuple[QueueRow | None, list[QueueRow]]:
    """The row in which it is alive, and those in which it is not."""
    live, over = None, []
    for row in seen.rows:
        if meaning_of(row.state, row.reason, row.priority).over:
            over.append(row)
        else:
            live = row
    return live, over


def _without_record(over: list[QueueRow], account: AccountRow | None, waited_s: float, grace_s: float) -> Over | Doubt:
    row = min(over, key=lambda row: row.state == "COMPLETED")
    meaning = meaning_of(row.state, row.reason, row.priority)
    ended_by_itself = row.state == "COMPLETED" or (row.state == "FAILED" and row.reason == "NonZeroExitCode")
    if ended_by_itself and waited_s < grace_s:
        return Doubt.WAITING
    if account is not None and meaning_of(account.state).over:
        return Over(meaning.state, _code(account), meaning.note, row.start, account.end, account.nodes, "queue")
    note = meaning.note or ("no exit record was found" if ended_by_itself else "")
    return Over(meaning.state, None, note, row.start, None, "", "queue")


def _accounted(account: AccountRow, waited_s: float, grace_s: float) -> Over | Doubt:
    meaning = meaning_of(account.state)
    if not meaning.over:
        return Doubt.MISSING  # accounting has not heard of its end, and the queue has forgotten it
    if meaning.state is WmsStates.SUCCEEDED and waited_s < grace_s:
        return Doubt.WAITING
    return Over(meaning.state, _code(account), meaning.note, account.start, account.end, account.nodes, "accounting")


def _recorded(record: ExitRecord, over: Sequence[QueueRow] = ()) -> Over:
    state = WmsStates.SUCCEEDED if record.exit_code == 0 else WmsStates.FAILED
    note = record.note
    if state is WmsStates.FAILED and over and (record.exit_code is None or _by_signal(record)):
        meaning = meaning_of(over[0].state, over[0].reason, over[0].priority)
        if meaning.state is not WmsStates.SUCCEEDED:
            state, note = meaning.state, meaning.note or note
    return Over(state, record.exit_code, note, record.start, record.end, record.host, "exit")


def _by_signal(record: ExitRecord) -> bool:
    return record.exit_code is not None and record.exit_code > 128


def _code(account: AccountRow) -> int | None:
    """The exit code that accounting has; none for states that say nothing by it (TIMEOUT has 0:0)."""
    if account.signal:
        return -account.signal
    return account.exit_code or (0 if account.state == "COMPLETED" else None)
