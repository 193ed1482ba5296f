"""What a run's log says to the daemon: observations made of events, and how far it was read."""

from __future__ import annotations

__all__ = ["LEDGER", "LOG", "PROCESSES", "Phase", "RunCursor", "Teller", "driver_died", "log_unreadable", "still_there"]

from collections.abc import Collection, Iterable
from enum import Enum
from typing import Any

import msgspec

from bpsd.models import JobObservation, KnownRun, RunObservation, WmsStates
from bpsd_adapters.driven import KeptCursor, identity
from bpsd_adapters.local.events import Begin, End, Ended, Event, Held, Started, States
from bpsd_adapters.local.history import History, OpenJob
from bpsd_adapters.local.layout import Meta
from bpsd_adapters.runlog import Position

LEDGER = "ledger"
LOG = "log"
PROCESSES = "processes"
_RANK = {PROCESSES: 5, LOG: 20}
"""What the log says of an end outweighs what the absence of a driver says."""


class Phase(Enum):
    """How far a run is, as far as its log was read."""

    NEW = ""
    """No attempt has begun."""

    RUNNING = "run"
    HELD = "held"
    ENDING = "ending"
    """A killed driver's attempt has a driver again, only to end what was left."""

    ENDED = "end"
    ORPHANS = "orphans"
    """The log has no end and nobody writes it, but processes of the run still live; that was told."""

    DEAD = "dead"
    """The log has no end, nobody writes it, and nothing runs; that was told."""


class RunCursor(KeptCursor, msgspec.Struct, frozen=True, array_like=True):
    """How far the log of a run was read, and what is wanted of it to read on."""

    inode: int = 0
    head: str = ""
    offset: int = 0
    attempt: int = 0
    phase: Phase = Phase.NEW

    @property
    def position(self) -> Position:
        """Where to read on."""
        return Position(self.inode, self.head, self.offset)

    def moved(self, position: Position) -> RunCursor:
        """The cursor at another place of the log."""
        return RunCursor(*position, self.attempt, self.phase)

    def in_phase(self, phase: Phase) -> RunCursor:
        """The cursor with another phase."""
        return RunCursor(*self.position, self.attempt, phase)


class Teller:
    """Makes observations of the events of one run, in the order of its log.

    Parameters
    ----------
    meta : `Meta`
        What the run is.
    path : `str`
        Its folder.
    owner : `str`
        Whose jobs these are.
    cursor : `RunCursor`
        Where the events begin.
    """

    def __init__(self, meta: Meta, path: str, owner: str, cursor: RunCursor) -> None:
        self._meta, self._path, self._owner = meta, path, owner
        self._first = cursor.offset == 0
        self._attempt, self._phase = cursor.attempt, cursor.phase
        self._time: float | None = None
        self._start: float | None = None
        self._note: str | None = None
        self._end: End | None = None
        self._jobs: dict[str, JobObservation] = {}
        self._told: list[RunObservation] = []

    def tell(self, events: Iterable[Event]) -> list[RunObservation]:
        """What these events say: an observation for each attempt of the run, with the last word on every job."""
        for event in events:
            if isinstance(event, Started):
                self._job(event.job.name, event.job.label, WmsStates.RUNNING, event.job.attempt, event.time)
            elif isinstance(event, Ended):
                self._ended(event)
            elif isinstance(event, States):
                for job in event.jobs:
                    self._job(job.name, job.label, WmsStates(job.state), job.attempt, event.time)
            elif isinstance(event, Begin):
                self._begin(event)
            elif isinstance(event, End):
                self._end, self._note = event, event.note
                self._time, self._phase = event.time, Phase.ENDED
            elif isinstance(event, Held):
                self._time = event.time
                if self._phase is not Phase.ENDING:
                    self._phase = Phase.HELD if event.held else Phase.RUNNING
        self._flush()
        told, self._told = self._told, []
        return told

    def cursor(self, position: Position) -> RunCursor:
        """Where the events that were told end."""
        return RunCursor(*position, self._attempt, self._phase)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _begin(self, event: Begin) -> None:
        self._flush()
        again = event.attempt == self._attempt
        self._attempt, self._phase = event.attempt, Phase.ENDING if again else Phase.RUNNING
        self._time, self._end, self._note = event.time, None, None
        self._start = None if again else event.time

    def _ended(self, event: Ended) -> None:
        job, state, attempt = event.job, WmsStates(event.state), event.job.attempt
        if event.again:  # the failed attempt is of interest for its exit code; the job is ready for the next one
            state, attempt = WmsStates.READY, attempt + 1
        ended = None if event.again else event.time
        self._job(
            job.name,
            job.label,
            state,
            attempt,
            event.time,
            exit_code=event.exit_code,
            end_time=ended,
            note=event.note,
        )

    def _job(self, name: str, label: str, state: WmsStates, attempt: int, time: float, **more: Any) -> None:
        self._time = time
        if state is WmsStates.RUNNING:
            more["start_time"] = time
        before = self._jobs.get(name)
        if before is not None and before.attempt == attempt:  # then what was said of it still holds
            more = {
                "exit_code": before.exit_code,
                "start_time": before.start_time,
                "end_time": before.end_time,
                "note": before.note,
            } | more
        self._jobs[name] = JobObservation(
            name=name, label=label, state=state, attempt=attempt, rank=_RANK[LOG], time=time, **more
        )

    def _state(self) -> WmsStates | None:
        if self._end is not None:
            return WmsStates(self._end.state)
        if self._phase is Phase.ENDING:
            return None  # it was told as dead, and is not said to be over yet
        return WmsStates.HELD if self._phase is Phase.HELD else WmsStates.RUNNING

    def _flush(self) -> None:
        if self._time is None:
            return
        self._told.append(
            RunObservation(
                wms_id=self._meta.wms_id,
                source=LOG,
                state=self._state(),
                token=self._meta.token,
                attempt=self._attempt,
                rank=_RANK[LOG],
                source_time=self._time,
                start_time=self._start,
                end_time=None if self._end is None else self._end.time,
                note=self._note,
                jobs=tuple(self._jobs.values()),
                **(identity(self._meta, self._path) | {"owner": self._owner} if self._first else {}),
            )
        )
        self._first = False
        self._jobs, self._time = {}, None


def driver_died(
    meta: Meta, history: History, left: int, lost: Iterable[OpenJob], said: str, now: float
) -> RunObservation:
    """A run whose driver is gone without a word: RUNNING while processes of it live, then FAILED.

    Jobs whose processes are still there stay RUNNING; of the others nobody knows the end: UNKNOWN.

    Parameters
    ----------
    meta : `Meta`
        What the run is.
    history : `History`
        All of its log.
    left : `int`
        The number of processes of the run that live.
    lost : `~collections.abc.Iterable` [`OpenJob`]
        Which of ``history.open`` ran, and run no more.
    said : `str`
        The last words of the driver, if it had any.
    now : `float`
        Epoch seconds.
    """
    how = f"ended with an error ({said})" if said else "was killed"
    note = f"the driver (pid {history.driver.pid}) {how}; "
    if left:
        note += (
            f"{left} process{'es' if left > 1 else ''} of the run still live{'' if left > 1 else 's'}, and it is over "
            f"when the last has ended: wait, or end them with `bpsctl cancel {meta.wms_id}`"
        )
    else:
        note += f"`bpsctl restart {meta.wms_id}` resumes the run"
    jobs = tuple(
        JobObservation(
            name=job.job.name,
            label=job.job.label,
            state=WmsStates.UNKNOWN,
            attempt=job.job.attempt,
            rank=_RANK[PROCESSES],
            time=now,
            note="its driver is gone: nobody saw how it ended",
        )
        for job in lost
    )
    return RunObservation(
        wms_id=meta.wms_id,
        source=PROCESSES,
        state=WmsStates.RUNNING if left else WmsStates.FAILED,
        token=meta.token,
        attempt=history.attempt,
        rank=_RANK[PROCESSES],
        source_time=now,
        note=note,
        jobs=jobs,
    )


def log_unreadable(meta: Meta, cursor: RunCursor, unread: int, now: float) -> RunObservation:
    """A run without a driver, whose log goes on with what cannot be read: nobody can tell how it ended."""
    note = (
        f"the last {unread} bytes of run.log are unreadable and its driver is gone: how the run ended is not known; "
        f"`bpsctl restart {meta.wms_id}` mends the log and resumes the run"
    )
    return RunObservation(
        wms_id=meta.wms_id,
        source=LOG,
        state=WmsStates.UNKNOWN,
        token=meta.token,
        attempt=cursor.attempt,
        rank=_RANK[LOG],
        source_time=now,
        note=note,
    )


def still_there(known: Iterable[KnownRun], besides: Collection[str]) -> list[RunObservation]:
    """Runs of which the log had nothing new: they are as they were, whatever is wrong with those of ``besides``."""
    return [
        RunObservation(wms_id=run.wms_id, source=LOG, token=run.token, attempt=run.attempt)
        for run in known
        if run.wms_id not in besides
    ]
