"""What a run's log says to the daemon: observations made of events, and how far it was read."""

from __future__ import annotations

__all__ = ["LOG", "QUEUE", "BackendCursor", "Follower", "Look", "RunCursor"]

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bpsd.models import JobObservation, KnownRun, PollRequest, RunObservation, WmsStates, made_ready
from bpsd_adapters import runlog
from bpsd_adapters.driven import KeptCursor, identity
from bpsd_adapters.quarantine import Quarantine
from bpsd_adapters.runlog import Position
from bpsd_adapters.slurm.events import Begin, End, Ended, Event, Held, Note, States, decode
from bpsd_adapters.slurm.layout import Meta, StateFolder, run_id, token_of

LOG = "log"
QUEUE = "queue"
RANK = 20
FOLLOWING = "reading its log"
"""The part of the work for a run that `Follower` does; it pauses by itself after an unexpected error."""

_SLICE_BYTES = 32 * 1024
_RANK_OF = {"exit": 30, "accounting": 10, "queue": 5}
"""How far the source of a job's end is trusted."""


class RunCursor(KeptCursor, msgspec.Struct, frozen=True, array_like=True):
    """How far the log of a run was read, and what is wanted of it to read on. ``state`` is the run's; -1: not begun."""

    inode: int = 0
    head: str = ""
    offset: int = 0
    attempt: int = 0
    state: int = -1

    @property
    def live(self) -> bool:
        """Whether the run was not over there."""
        return self.state in (-1, int(WmsStates.RUNNING), int(WmsStates.HELD))


class BackendCursor(KeptCursor, msgspec.Struct, array_like=True):
    """Runs up to a number were told; those in ``watch`` (by token) go on, and the daemon does not know them as live."""

    upto: int = 0
    watch: dict[str, RunCursor] = msgspec.field(default_factory=dict)


made_ready(RunCursor, BackendCursor)


@dataclass(slots=True)
class Look:
    """What one look at one run brought."""

    wms_id: str
    cursor: RunCursor
    observations: list[RunObservation] = field(default_factory=list)
    absent: bool = False
    error: str = ""
    read_bytes: int = 0

    @property
    def job_count(self) -> int:
        """How many jobs it tells of."""
        return sum(len(seen.jobs) for seen in self.observations)


class Follower:
    """Reads the logs of a backend's runs, a slice at a time. Synchronous; the service calls it in a thread.

    Parameters
    ----------
    state : `StateFolder`
        Where they are.
    quarantine : `~bpsd_adapters.quarantine.Quarantine`
        Runs that broke in an unexpected way, by their ids.
    """

    def __init__(self, state: StateFolder, quarantine: Quarantine) -> None:
        self._state, self._quarantine = state, quarantine
        self._expected: set[str] = set()

    def expect(self, token: str) -> None:
        """A run that was over goes on: look at it in the next poll, though the daemon may not ask for it."""
        self._expected.add(token)

    def looks(self, request: PollRequest, cursor: BackendCursor) -> Iterator[Look]:
        """Look at the runs that the request knows, that the cursor watches, and that are new; it moves along."""
        done = set()
        for token in self._expected:
            cursor.watch.setdefault(token, RunCursor())
        self._expected.clear()
        for one in request.known:
            token = one.token or token_of(one.wms_id) or ""
            done.add(token)
            cursor.watch.pop(token, None)
            yield from self._known(one, token)
        for token, where in list(cursor.watch.items()):
            if token not in done:
                done.add(token)
                yield from self._unknown(token, where, cursor)
        for meta in self._state.metas():
            if meta.number > cursor.upto:
                cursor.upto = meta.number
                if meta.token not in done:
                    yield from self._unknown(meta.token, RunCursor(), cursor)

    def _known(self, run: KnownRun, token: str) -> Iterator[Look]:
        meta = self._state.load(token)
        if meta is None or not self._state.run(token).path.is_dir():
            self._state.forget(token)
            yield Look(run.wms_id, RunCursor(), absent=not self._state.run(token).path.exists())
            return
        yield from self._read(meta, RunCursor.parsed(run.cursor))

    def _unknown(self, token: str, where: RunCursor, cursor: BackendCursor) -> Iterator[Look]:
        meta = self._state.load(token)
        cursor.watch.pop(token, None)
        if meta is None:
            return
        cursor.watch[token] = where
        for look in self._read(meta, where):
            cursor.watch[token] = where = look.cursor
            yield look
        if not where.live:
            del cursor.watch[token]

    def _read(self, meta: Meta, where: RunCursor) -> Iterator[Look]:
        run, more = run_id(meta.token), self._quarantine.is_due(run_id(meta.token), FOLLOWING)
        while more:
            look = Look(run, where)
            more = False
            try:
                with self._quarantine.guard(run, FOLLOWING):
                    more = self._read_on(meta, look)
            except FileNotFoundError:
                return  # prepared, and never begun
            except OSError as exc:
                look.error = f"run {meta.token}: {exc}"
            where = look.cursor
            yield look

    def _read_on(self, meta: Meta, look: Look) -> bool:
        """Read one slice of a log; returns whether there is more."""
        folder, where = self._state.run(meta.token), look.cursor
        position = Position(where.inode, where.head, where.offset) if where.offset else None
        piece = runlog.read_from(folder.log, position, _SLICE_BYTES, decode)
        if piece.restarted:
            where = RunCursor()
        teller = _Teller(meta, where)
        look.observations = teller.tell(piece.events)
        look.read_bytes = piece.position.offset - where.offset
        look.cursor = RunCursor(*piece.position, teller.attempt, teller.state)
        look.error = f"{folder.log}: {'; '.join(map(str, piece.damage[:3]))}" if piece.damage else ""
        return piece.more


class _Teller:
    """Makes observations of the events of one run, in the order of its log."""

    def __init__(self, meta: Meta, cursor: RunCursor) -> None:
        self._meta = meta
        self._first = cursor.offset == 0
        self.attempt, self.state = cursor.attempt, cursor.state
        self._time: float | None = None
        self._start: float | None = None
        self._end: float | None = None
        self._note: str | None = None
        self._jobs: dict[str, JobObservation] = {}
        self._told: list[RunObservation] = []

    def tell(self, events: Iterable[Event]) -> list[RunObservation]:
        """What these events say: an observation for each attempt of the run, with the last word on every job."""
        for event in events:
            if isinstance(event, States):
                for job in event.jobs:
                    state = WmsStates(job.state)
                    self._job(
                        job.name,
                        job.label,
                        state,
                        max(job.attempt, 1),
                        event.time,
                        wms_id=job.wms_id,
                        note=job.note,
                        start_time=job.start,
                    )
            elif isinstance(event, Ended):
                self._ended(event)
            elif isinstance(event, Begin):
                self._flush()
                self.attempt, self.state, self._time = event.attempt, int(WmsStates.RUNNING), event.time
                self._start, self._end, self._note = event.time, None, ""
            elif isinstance(event, End):
                self._time = self._end = event.time
                self.state, self._note = event.state, event.note
            elif isinstance(event, Held):
                self._time = event.time
                self.state = int(WmsStates.HELD if event.held else WmsStates.RUNNING)
            elif isinstance(event, Note):
                self._time, self._note = event.time, event.note
        self._flush()
        told, self._told = self._told, []
        return told

    def _ended(self, event: Ended) -> None:
        job, attempt = event.job, max(event.shown_attempt, event.job.attempt)
        state, ended, rank = WmsStates(event.state), event.time, _RANK_OF.get(event.source, RANK)
        if event.again:  # it is ready for its next attempt
            self._job(job.name, job.label, WmsStates.READY, attempt + 1, event.time, exit_code=event.exit_code)
            return
        self._job(
            job.name,
            job.label,
            state,
            attempt,
            event.time,
            rank=rank,
            exit_code=event.exit_code,
            note=event.note,
            wms_id=event.wms_id,
            start_time=event.start,
            end_time=ended,
            host=event.host,
        )

    def _job(self, name: str, label: str, state: WmsStates, attempt: int, time: float, **more: Any) -> None:
        self._time = max(time, self._time or 0.0)
        self._jobs[name] = JobObservation(
            **{"rank": RANK, **more}, name=name, label=label, state=state, attempt=attempt, time=time
        )

    def _flush(self) -> None:
        if self._time is None:
            return
        self._told.append(
            RunObservation(
                wms_id=run_id(self._meta.token),
                source=LOG,
                state=WmsStates(self.state) if self.state >= 0 else None,
                token=self._meta.token,
                attempt=self.attempt,
                rank=RANK,
                source_time=self._time,
                start_time=self._start,
                end_time=self._end,
                note=self._note,
                jobs=tuple(self._jobs.values()),
                **(identity(self._meta, self._meta.folder) if self._first else {}),
            )
        )
        self._first = False
        self._jobs, self._time, self._note = {}, None, None
