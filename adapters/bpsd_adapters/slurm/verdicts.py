"""What became of one job, from all that was seen of it: the exit record, the queue, accounting. Pure.

The queue beats accounting while it lists the job as alive: what sacct tells of it then is an earlier incarnation. The
exit record is the first witness; but why a job failed Slurm knows better (out of time, out of memory, cancelled), once
it is done with it, and whether it requeued the job after all. Absence is no end.
"""

from __future__ import annotations

__all__ = ["Doubt", "Evidence", "Live", "Over", "is_alive", "judge"]

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from bpsd.models import WmsStates, normal_exit_code
from bpsd_adapters.slurm.parsing import AccountRow, ExitRecord, QueueRow
from bpsd_adapters.slurm.scripts import NOT_CLAIMED, NOT_SEEN
from bpsd_adapters.slurm.states import NO_OUTPUT, NO_OUTPUT_SIGNAL, Meaning, is_live, meaning_of

_ENDING = frozenset({"COMPLETING"})

_NOT_RUN = {
    NOT_SEEN: "not run: its node does not see the run's folder; is work_dir on a file system that the nodes share?",
    normal_exit_code(-NO_OUTPUT_SIGNAL): NO_OUTPUT,
    NOT_CLAIMED: "not run: its claim could not be made (work_dir full?), or is another Slurm job's",
}
"""What exit codes mean that are no job's own, where there is no record of that."""


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
    """Slurm says that it is over, and what the wrapper wrote is not to be seen yet; or the other way round."""


def is_alive(rows: Sequence[QueueRow]) -> bool:
    """Whether the queue shows a job as waiting or running: then there is nothing to be known of its end."""
    return any(row.state not in _ENDING and is_live(row.state) for row in rows)


def judge(seen: Evidence, *, waited_s: float, grace_s: float) -> Live | Over | Doubt:
    """What became of a job.

    Parameters
    ----------
    seen : `Evidence`
        What was seen of it.
    waited_s : `float`
        For how long one of Slurm and the record has said that it is over, without the other.
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
        why = _why(record, over, seen.account)
        # Why it failed is Slurm's to say, which does not while it is completing: a cancelled job tidies up meanwhile.
        untold = why is None and (live is not None or _by_signal(record))
        return Doubt.WAITING if untold and waited_s < grace_s else _recorded(record, why)
    if over:
        return _without_record(over, seen.account, waited_s, grace_s)
    return Doubt.MISSING if seen.account is None else _accounted(seen.account, waited_s, grace_s)


def _rows(seen: Evidence) -> tuple[QueueRow | None, list[QueueRow]]:
    """The row in which it is alive, and those in which it is not."""
    live, over = None, []
    for row in seen.rows:
        if meaning_of(row.state, row.reason, row.priority).over:
            over.append(row)
        elif live is None or live.state in _ENDING:
            live = row
    return live, over


def _without_record(over: list[QueueRow], account: AccountRow | None, waited_s: float, grace_s: float) -> Over | Doubt:
    row = min(over, key=_ended_by_itself)  # one that found another's claim ended so, and says nothing of the job
    by_itself = _ended_by_itself(row)
    if by_itself and waited_s < grace_s:
        return Doubt.WAITING
    meaning = meaning_of(row.state, row.reason, row.priority)
    if account is not None and meaning_of(account.state).over:
        code = _code(account)
        note = _NOT_RUN.get(code or 0) or meaning.note or ("no exit record was found" if by_itself else "")
        return Over(meaning.state, code, note, row.start, account.end, account.nodes, "queue")
    note = meaning.note or ("no exit record was found" if by_itself else "")
    if row.reason == "JobLaunchFailure":  # which 22.05 says where 24.11 tells the signal
        note = f"JobLaunchFailure: perhaps {NO_OUTPUT}"
    return Over(meaning.state, None, note, row.start, None, "", "queue")


def _ended_by_itself(row: QueueRow) -> bool:
    """Whether it was its wrapper that ended the job, so that there is to be a record."""
    return row.state == "COMPLETED" or (row.state == "FAILED" and row.reason == "NonZeroExitCode")


def _accounted(account: AccountRow, waited_s: float, grace_s: float) -> Over | Doubt:
    meaning = meaning_of(account.state)
    if not meaning.over:
        return Doubt.MISSING  # accounting has not heard of its end, and the queue has forgotten it
    if meaning.state is WmsStates.SUCCEEDED and waited_s < grace_s:
        return Doubt.WAITING
    code = _code(account)
    note = _NOT_RUN.get(code or 0, meaning.note)
    return Over(meaning.state, code, note, account.start, account.end, account.nodes, "accounting")


def _why(record: ExitRecord, over: Sequence[QueueRow], account: AccountRow | None) -> Meaning | None:
    """What Slurm says of the end that a record tells of."""
    for row in sorted(over, key=lambda row: row.job_id != record.job_id):
        return meaning_of(row.state, row.reason, row.priority)
    meaning = None if account is None else meaning_of(account.state)
    return meaning if meaning is not None and meaning.over else None


def _recorded(record: ExitRecord, why: Meaning | None = None) -> Over:
    """The end as its wrapper wrote it; but whatever a job does when it is cancelled or out of time, that it was."""
    state = WmsStates.SUCCEEDED if record.exit_code == 0 else WmsStates.FAILED
    note = record.note
    if state is WmsStates.FAILED and why is not None and why.state is not WmsStates.SUCCEEDED:
        state, note = why.state, note or why.note
    return Over(state, record.exit_code, note, record.start, record.end, record.host, "exit")


def _by_signal(record: ExitRecord) -> bool:
    return record.exit_code is not None and record.exit_code > 128


def _code(account: AccountRow) -> int | None:
    """The exit code that accounting has; none for states that say nothing by it (TIMEOUT has 0:0)."""
    if account.signal:
        return normal_exit_code(-account.signal)
    return account.exit_code or (0 if account.state == "COMPLETED" else None)
