"""What waits to be written to the store: batches, folded into one.

While the disk is busy or full, batches gather here. A run that is put three times is written once, so that what waits
is bounded by what there is and not by how long the disk takes. Folding changes nothing: writing the fold is writing the
batches one by one (a test proves it).
"""

from __future__ import annotations

__all__ = ["Batch", "Handover", "Pending", "StoredRun", "TimelineEvent"]

import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self, TypeVar

import msgspec

from bpsd.messages import Event
from bpsd.sqlitefile import text

K = TypeVar("K")
V = TypeVar("V")


class StoredRun(msgspec.Struct, frozen=True):
    """A run as the store keeps it: ``doc`` is the cache's, the rest is what is searched by. Times are epoch seconds."""

    run_id: str
    backend: str
    doc: bytes
    state: int
    live: bool
    updated_at: float
    ended_at: float | None
    wms_id: str
    token: str | None
    path: str | None
    name: str
    global_wms_id: str | None = None


class TimelineEvent(msgspec.Struct, frozen=True):
    """Something that happened, in the order of ``seq``."""

    seq: int
    time: float
    run_id: str | None
    backend: str
    kind: str
    doc: bytes

    def shown(self) -> Event:
        """As a client sees it."""
        return Event(
            seq=self.seq,
            time=self.time,
            kind=self.kind,
            backend=self.backend or None,
            run=self.run_id,
            data=msgspec.json.decode(self.doc, type=dict[str, Any]),
        )


class Batch(msgspec.Struct, kw_only=True):
    """What belongs together: it is written in one transaction, in this order.

    ``forget`` removes all that is known of runs; then ``runs`` are written over what was there, ``jobs_replace`` sets
    the snapshot of a run's jobs, ``jobs_append`` adds a piece behind it, ``events`` go to the timeline, and ``cursors``
    (by backend) and ``run_cursors`` (by backend and run id) are set, or removed with `None`.
    """

    runs: list[StoredRun] = []
    jobs_replace: dict[str, bytes] = {}
    jobs_append: dict[str, bytes] = {}
    events: list[TimelineEvent] = []
    cursors: dict[str, str | None] = {}
    run_cursors: dict[tuple[str, str], str | None] = {}
    forget: list[str] = []


class Handover:
    """Batches on their way to the store: what was put into one reaches it, also if the work on it is cancelled."""

    def __init__(self, put: Callable[[Batch], Awaitable[None]]) -> None:
        self._put = put
        self.batch = Batch()

    async def flush(self) -> None:
        """Hand over what there is."""
        full, self.batch = self.batch, Batch()
        await self._put(full)

    async def make_room(self, run_id: str) -> None:
        """Have a batch that may take a piece of this run's jobs: each holds one of a run at most."""
        if run_id in self.batch.jobs_append:
            await self.flush()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.flush()


ROW_BYTES = 300
"""What a row takes beside its document, roughly, in memory."""


def _cursor(value: str | None) -> bytes | None:
    """A cursor as bytes: whatever an adapter put into it comes back as it was."""
    return None if value is None else value.encode("utf-8", "surrogatepass")


def _run_row(run: StoredRun) -> tuple[object, ...]:
    return (
        run.run_id,
        text(run.backend),
        bytes(run.doc),
        int(run.state),
        bool(run.live),
        float(run.updated_at),
        None if run.ended_at is None else float(run.ended_at),
        text(run.wms_id),
        None if run.token is None else text(run.token),
        None if run.path is None else text(run.path),
        text(run.name),
        None if run.global_wms_id is None else text(run.global_wms_id),
    )


def _event_row(event: TimelineEvent) -> tuple[object, ...]:
    return (
        int(event.seq),
        float(event.time),
        event.run_id,
        text(event.backend),
        text(event.kind),
        bytes(event.doc),
    )


class Pending:
    """A fold of batches. Rows are made when a batch comes in: what cannot be written is its caller's error at once.

    ``size`` is about what it takes in memory, in bytes: never less, and at most twice as much.
    """

    __slots__ = (
        "_append",
        "_cursors",
        "_events",
        "_forget",
        "_last_seq",
        "_measured",
        "_replace",
        "_run_cursors",
        "_runs",
        "size",
    )

    def __init__(self, batch: Batch | None = None) -> None:
        self._forget: dict[str, None] = {}
        self._runs: dict[str, tuple[object, ...]] = {}
        self._replace: dict[str, bytes] = {}
        self._append: dict[str, list[bytes]] = {}
        self._events: dict[int, tuple[object, ...]] = {}
        self._last_seq = 0
        self._cursors: dict[str, bytes | None] = {}
        self._run_cursors: dict[tuple[str, str], bytes | None] = {}
        self.size = self._measured = 0
        if batch is not None:
            self._forget = dict.fromkeys(batch.forget)
            self._runs = {run.run_id: _run_row(run) for run in batch.runs}
            self._replace = {run_id: bytes(doc) for run_id, doc in batch.jobs_replace.items()}
            self._append = {run_id: [bytes(doc)] for run_id, doc in batch.jobs_append.items()}
            self._events = {event.seq: _event_row(event) for event in batch.events}
            self._last_seq = max(self._events, default=0)
            self._cursors = {text(name): _cursor(value) for name, value in batch.cursors.items()}
            self._run_cursors = {
                (text(backend), run_id): _cursor(value) for (backend, run_id), value in batch.run_cursors.items()
            }
            self._measure()

    def __bool__(self) -> bool:
        parts = self._forget, self._runs, self._replace, self._append, self._cursors, self._run_cursors, self._last_seq
        return any(parts)

    def __repr__(self) -> str:
        return f"<Pending {len(self._runs)} runs, {len(self._events)} events, {self.size} bytes>"

    def absorb(self, newer: Pending) -> None:
        """Let ``newer`` be written with this, as if after it."""
        if newer._forget:
            self._drop(newer._forget)
        self._forget.update(newer._forget)
        self._runs.update(newer._runs)
        for run_id in newer._replace:
            self._append.pop(run_id, None)
        self._replace.update(newer._replace)
        for run_id, pieces in newer._append.items():
            self._append.setdefault(run_id, []).extend(pieces)
        self._events.update(newer._events)
        self._last_seq = max(self._last_seq, newer._last_seq)
        self._cursors.update(newer._cursors)
        self._run_cursors.update(newer._run_cursors)
        self.size += newer.size
        if self.size > 2 * self._measured:  # seldom, so that much that waits is not measured with every batch
            self._measure()

    def _drop(self, run_ids: Iterable[str]) -> None:
        """Take out what a later ``forget`` would remove."""
        gone = set(run_ids)
        for run_id in gone:
            self._runs.pop(run_id, None)
            self._replace.pop(run_id, None)
            self._append.pop(run_id, None)
        self._events = {seq: row for seq, row in self._events.items() if row[2] not in gone}
        self._run_cursors = {key: value for key, value in self._run_cursors.items() if key[1] not in gone}

    def _measure(self) -> None:
        self.size = self._measured = (
            _bytes(self._runs, lambda row: len(row[2]))  # type: ignore[arg-type]
            + _bytes(self._replace, len)
            + _bytes(self._append, lambda pieces: sum(map(len, pieces)))
            + _bytes(self._events, lambda row: len(row[5]))  # type: ignore[arg-type]
            + ROW_BYTES * (len(self._forget) + len(self._cursors) + len(self._run_cursors))
        )

    def write(self, connection: sqlite3.Connection) -> None:
        """Write it all, inside a transaction of the store."""
        execute = connection.executemany
        gone = [(run_id,) for run_id in self._forget]
        for table in ("runs", "job_snapshots", "job_pieces", "timeline", "run_cursors"):
            execute(f"DELETE FROM {table} WHERE run_id = ?", gone)  # noqa: S608 - our own literals
        execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._runs.values())
        execute("DELETE FROM job_pieces WHERE run_id = ?", [(run_id,) for run_id in self._replace])
        execute("INSERT OR REPLACE INTO job_snapshots VALUES (?, ?)", self._replace.items())
        execute(
            "INSERT INTO job_pieces (run_id, doc) VALUES (?, ?)",
            [(run_id, piece) for run_id, pieces in self._append.items() for piece in pieces],
        )
        execute("INSERT OR REPLACE INTO timeline VALUES (?, ?, ?, ?, ?, ?)", self._events.values())
        if self._last_seq:
            # Numbers are never given twice, also when the end of the timeline is forgotten.
            connection.execute(
                "INSERT INTO meta VALUES ('last_seq', ?) ON CONFLICT DO UPDATE SET value = max(value, excluded.value)",
                (self._last_seq,),
            )
        for name, value in self._cursors.items():
            if value is None:
                connection.execute("DELETE FROM cursors WHERE backend = ?", (name,))
            else:
                connection.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", (name, value))
        kept = [(*key, value) for key, value in self._run_cursors.items() if value is not None]
        execute("INSERT OR REPLACE INTO run_cursors VALUES (?, ?, ?)", kept)
        ended = [key for key, value in self._run_cursors.items() if value is None]
        execute("DELETE FROM run_cursors WHERE backend = ? AND run_id = ?", ended)


def _bytes(rows: dict[K, V], measure: Callable[[V], int]) -> int:
    return ROW_BYTES * len(rows) + sum(map(measure, rows.values()))
