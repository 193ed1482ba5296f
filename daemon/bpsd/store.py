"""The store: all that the daemon knows and could learn again. Runs, jobs, timeline, cursors of polls.

Documents are opaque here; the cache makes and reads them. Writing is *behind*: `Store.put` returns at once, and what
waits is folded together (`bpsd.writebehind`). A disk that is full costs nothing but time: what could not be written
stays in memory and is tried again. Reading goes over a read-only connection in a thread of its own, with a deadline.

If the file turns out to be damaged, at start or later, it is set aside, and the store goes on empty: live runs come
back from the backends and from memory.
"""

from __future__ import annotations

__all__ = ["SCHEMA", "Batch", "Loaded", "Store", "StoreStatus", "StoredRun", "TimelineEvent"]

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import anyio
import msgspec

from bpsd import sqlitefile, storecare
from bpsd.database import Database, Statistics
from bpsd.errors import Stopping, StorageError
from bpsd.sqlitefile import Damaged, Schema, text
from bpsd.storecare import ENDED
from bpsd.writebehind import Batch, Pending, StoredRun, TimelineEvent

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""What may wait to be written, roughly; beyond it `Store.put` waits."""

RETRY_S = 2.0
"""Pause before what the disk refused is tried again."""

CHECK_S = 2.0
"""How long looking for damage may take at start-up."""

LOAD_DEADLINE_S = 120.0
"""How long reading everything hot may take at start-up."""

CARE_DEADLINE_S = 60.0
"""How long finding what is to be pruned may take; nobody waits for it."""

MAX_CANDIDATES = 50
"""Runs that `Store.find` returns at most."""

SCHEMA = Schema(
    name="store",
    application_id=0x62707373,  # "bpss"
    steps=(
        """
        CREATE TABLE meta (key TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;

        CREATE TABLE runs (
            run_id TEXT PRIMARY KEY NOT NULL,
            backend TEXT NOT NULL,
            doc BLOB NOT NULL,
            state INTEGER NOT NULL,
            live INTEGER NOT NULL,
            updated_at REAL NOT NULL,
            ended_at REAL,
            wms_id TEXT NOT NULL,
            token TEXT,
            path TEXT,
            name TEXT NOT NULL
        ) STRICT;
        CREATE INDEX runs_live ON runs (run_id) WHERE live;
        CREATE INDEX runs_by_end ON runs (coalesce(ended_at, updated_at), run_id);
        CREATE INDEX runs_by_wms_id ON runs (wms_id);
        CREATE INDEX runs_by_token ON runs (token) WHERE token IS NOT NULL;
        CREATE INDEX runs_by_path ON runs (path) WHERE path IS NOT NULL;
        CREATE INDEX runs_by_name ON runs (name);

        CREATE TABLE job_snapshots (run_id TEXT PRIMARY KEY NOT NULL, doc BLOB NOT NULL) STRICT;
        CREATE TABLE job_pieces (number INTEGER PRIMARY KEY, run_id TEXT NOT NULL, doc BLOB NOT NULL) STRICT;
        CREATE INDEX job_pieces_by_run ON job_pieces (run_id, number);

        CREATE TABLE timeline (
            seq INTEGER PRIMARY KEY,
            time REAL NOT NULL,
            run_id TEXT,
            backend TEXT NOT NULL,
            kind TEXT NOT NULL,
            doc BLOB NOT NULL
        ) STRICT;
        CREATE INDEX timeline_by_run ON timeline (run_id, seq);

        CREATE TABLE cursors (backend TEXT PRIMARY KEY NOT NULL, cursor BLOB NOT NULL) STRICT;
        CREATE TABLE run_cursors (
            backend TEXT NOT NULL,
            run_id TEXT NOT NULL,
            cursor BLOB NOT NULL,
            PRIMARY KEY (backend, run_id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX run_cursors_by_run ON run_cursors (run_id);
        """,
        # Of runs that were over before, it is in the document alone.
        """
        ALTER TABLE runs ADD COLUMN global_wms_id TEXT;
        CREATE INDEX runs_by_global_wms_id ON runs (global_wms_id) WHERE global_wms_id IS NOT NULL;
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How the store was found: made just now, as it was left, or ``emptied``, since it was damaged (``reason``)."""

    kind: Literal["fresh", "ok", "emptied"]
    set_aside: str | None = None
    reason: str = ""


class Loaded(msgspec.Struct, kw_only=True):
    """What the cache starts with: hot runs, the jobs of the live ones, cursors, and the last number of the timeline."""

    runs: list[StoredRun]
    jobs: dict[str, tuple[bytes | None, list[bytes]]]
    cursors: dict[str, str | None]
    run_cursors: dict[tuple[str, str], str | None]
    last_seq: int


class Store:
    """The store of one daemon. An async context manager; leaving it writes what waits, if the disk lets it.

    Parameters
    ----------
    path : `~pathlib.Path`
        ``store.db``.
    allow_network : `bool`, optional
        Run on a network file system, without a write-ahead log, instead of refusing to.
    on_emptied : callable, optional
        Called in the event loop when damage showed while the daemon runs: the cache should put its hot runs again.

    Raises
    ------
    CannotStart
        On entering: the folder lies on a network file system, or a newer bpsd wrote the file.
    StorageError
        On entering: the disk fails.
    """

    def __init__(
        self,
        path: Path,
        *,
        allow_network: bool = False,
        on_emptied: Callable[[StoreStatus], None] | None = None,
    ) -> None:
        self.status = StoreStatus("fresh")
        self._on_emptied = on_emptied
        self._emptied: StoreStatus | None = None
        self._database = Database(path, SCHEMA, check_s=CHECK_S, recover=self._recover, allow_network=allow_network)
        self._pending = Pending()
        self._writing: Pending | None = None
        self._room = asyncio.Event()
        self._retry: asyncio.TimerHandle | None = None
        self._failure: BaseException | None = None
        # Each put gets a number; a flush waits for the number of the last one.
        self._puts = self._puts_in_writing = self._puts_written = 0
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []

    def __repr__(self) -> str:
        return f"<Store {str(self._database.path)!r} {self.status.kind}, {self.waiting_bytes} bytes waiting>"

    async def __aenter__(self) -> Self:
        try:
            fresh = await self._database.open()
        except BaseException:
            await self._database.close()
            raise
        self.status = self._emptied or StoreStatus("fresh" if fresh else "ok")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await self.flush()
            except StorageError:
                pass  # said in `failure` since it began; the backends are asked again after the next start
            if self._retry is not None:
                self._retry.cancel()
            await self._database.close()

    @property
    def statistics(self) -> Statistics:
        """Figures of the writer thread."""
        return self._database.statistics

    @property
    def waiting_bytes(self) -> int:
        """How much is not written yet, roughly."""
        return self._pending.size + (self._writing.size if self._writing is not None else 0)

    @property
    def failure(self) -> BaseException | None:
        """Why the last attempt to write failed; `None` if it did not. It is tried again."""
        return self._failure

    # -- writing -----------------------------------------------------------------------------------------------------

    async def put(self, batch: Batch) -> None:
        """Have a batch written soon, in one transaction; waits only while `MAX_WAITING_BYTES` are waiting already.

        Who is cancelled while waiting has put it all the same.
        """
        rows = Pending(batch)
        try:
            while self._pending.size > MAX_WAITING_BYTES:
                self._room.clear()
                await self._room.wait()
        finally:
            self._pending.absorb(rows)
            self._puts += 1
            if self._retry is None:
                self._kick()

    async def marks(self) -> dict[str, int]:
        """Return the numbers that `set_marks` kept, by name."""
        return await self._database.read(lambda connection: dict(connection.execute("SELECT key, value FROM meta")))

    def set_marks(self, marks: Mapping[str, int]) -> None:
        """Keep numbers by name; those that the disk refuses now come with the next ones."""

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(marks.items()))

        with suppress(Stopping):
            self._database.submit(write).add_done_callback(lambda done: done.exception())

    async def flush(self) -> None:
        """Wait until all that was put before is in the file.

        Raises
        ------
        StorageError
            If the disk refuses it; it stays in memory and is tried again.
        """
        if self._puts_written == self._puts:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.append((self._puts, future))
        self._kick()
        await future

    def _kick(self) -> None:
        """Begin to write what waits, unless something is being written."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._writing is not None or not self._pending:
            if self._writing is None:
                self._note_written(self._puts)  # empty batches
            return
        self._writing, self._pending = self._pending, Pending()
        self._puts_in_writing = self._puts
        self._database.submit(self._writing.write).add_done_callback(self._written)

    def _written(self, done: asyncio.Future[None]) -> None:
        error = done.exception()
        if isinstance(error, Damaged):
            self._database.reopen(error).add_done_callback(self._reopened)
        elif error is not None:
            self._fail(error)
        else:
            self._writing = self._failure = None
            self._room.set()
            self._note_written(self._puts_in_writing)
            self._kick()

    def _note_written(self, puts: int) -> None:
        self._puts_written = puts
        for number, future in self._flushes:
            if number <= puts and not future.done():
                future.set_result(None)
        self._flushes = [(number, future) for number, future in self._flushes if not future.done()]

    def _put_back(self) -> None:
        """Let what could not be written wait again, before what came since."""
        assert self._writing is not None
        newer, self._pending, self._writing = self._pending, self._writing, None
        self._pending.absorb(newer)

    def _fail(self, error: BaseException) -> None:
        """Tell who waits, and try again after a while."""
        self._put_back()
        self._failure = error
        for _, future in self._flushes:
            if not future.done():
                future.set_exception(error)
        self._flushes = []
        self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._kick)

    def _reopened(self, done: asyncio.Future[None]) -> None:
        error = done.exception()
        if error is not None:
            self._fail(error)
            return
        self._put_back()
        self._kick()
        assert self._emptied is not None
        self.status = self._emptied
        if self._on_emptied is not None:
            self._on_emptied(self.status)

    def _recover(self, damage: Damaged) -> None:
        """Set the file aside; a new one is made. In the writer thread."""
        aside = sqlitefile.set_aside(self._database.path)
        self._emptied = StoreStatus("emptied", set_aside=str(aside) if aside else None, reason=damage.reason)

    # -- reading -----------------------------------------------------------------------------------------------------

    async def load(self, ended_after: float) -> Loaded:
        """Everything hot: live runs, and those that ended after a time (nothing, if the file turns out damaged)."""
        query = partial(_load, ended_after=ended_after)
        try:
            return await self._database.read(query, deadline_s=LOAD_DEADLINE_S)
        except Damaged as damage:  # further on than the check at start-up came
            await self._database.reopen(damage)
            assert self._emptied is not None
            self.status = self._emptied
            return await self._database.read(query, deadline_s=LOAD_DEADLINE_S)

    async def recall(self, run_ids: Sequence[str]) -> list[tuple[StoredRun, bytes | None, list[bytes]]]:
        """Runs with the snapshot of their jobs and the pieces behind it; unknown ones are left out."""
        return await self._database.read(partial(_recall, run_ids=tuple(run_ids)))

    async def jobs(self, run_id: str) -> tuple[bytes | None, list[bytes]]:
        """The snapshot of a run's jobs (`None`: there is none), and the pieces behind it in order."""
        return await self._database.read(partial(_jobs, run_id=run_id))

    async def history(
        self,
        *,
        ended_after: float | None = None,
        ended_before: float | None = None,
        backends: Collection[str] = (),
        states: Collection[int] = (),
        limit: int = 100,
        after: str | None = None,
    ) -> list[StoredRun]:
        """Runs that are over, the latest end first; ``after`` is the run id at the end of the page before."""
        return await self._database.read(
            partial(
                _history,
                ended_after=ended_after,
                ended_before=ended_before,
                backends=tuple(backends),
                states=tuple(states),
                limit=limit,
                after=after,
            )
        )

    async def timeline(
        self,
        run_id: str | None = None,
        *,
        after_seq: int | None = None,
        since: float | None = None,
        until: float | None = None,
        backend: str | None = None,
        limit: int = 200,
    ) -> list[TimelineEvent]:
        """Events of one run or of all, in order: the first behind ``after_seq`` or ``since``, else the last ones.

        ``since`` and ``until`` are epoch seconds.
        """
        return await self._database.read(
            partial(
                _timeline, run_id=run_id, after_seq=after_seq, since=since, until=until, backend=backend, limit=limit
            )
        )

    async def changed_after(self, seq: int, limit: int) -> list[str]:
        """Return our ids of runs with an event after ``seq``, at most ``limit``."""
        return await self._database.read(partial(_changed_after, seq=seq, limit=limit))

    async def find(self, name: str) -> list[StoredRun]:
        """Runs that answer to a name: our id, a WMS id, the token, the path, or the beginning of the run's name.

        At most `MAX_CANDIDATES`; those that are called exactly so come first, then the latest.
        """
        return await self._database.read(partial(_find, name=text(name)))

    # -- care --------------------------------------------------------------------------------------------------------

    async def prune(self, keep_before: float, timeline_events_per_run: int, max_bytes: int) -> int:
        """Forget runs that ended before a time, and the oldest events of those that have too many, in small steps.

        Events that belong to no run (of backends and of the daemon) count as those of one run. What is then still
        larger than ``max_bytes`` loses the runs that ended first; live ones stay, whatever they take.

        Returns
        -------
        removed : `int`
            How many runs and events are gone.
        """
        run = self._database.run
        removed = 0
        while count := await run(partial(storecare.prune_runs, keep_before=keep_before)):
            removed += count
        crowded = await self._database.read(
            partial(storecare.crowded, most=timeline_events_per_run), deadline_s=CARE_DEADLINE_S
        )
        for run_id, first_kept in crowded:
            while count := await run(partial(storecare.prune_events, run_id=run_id, first_kept=first_kept)):
                removed += count
        while await self.used_bytes() > max_bytes and (count := await run(storecare.prune_oldest_runs)):
            removed += count
        return removed

    async def used_bytes(self) -> int:
        """What the history takes, without the free pages of its file."""
        return await self._database.read(storecare.used_bytes)

    async def vacuum(self) -> int:
        """Give free pages back to the file system, in small steps; returns how many bytes."""
        total = 0
        while freed := await self._database.run(storecare.vacuum):
            total += freed
        return total

    async def check(self) -> list[str]:
        """What is wrong with the file (nothing: an empty list)."""
        return await self._database.check()

    async def backup(self, keep: int) -> Path:
        """Write one more copy into the folder ``copies`` next to the store, and keep those of the newest ``keep`` days.

        Raises
        ------
        StorageError
            If the disk fails, or the store is damaged.
        """
        return await self._database.backup(keep, again=True)


# -- queries ---------------------------------------------------------------------------------------------------------

_RUN_COLUMNS = "run_id, backend, doc, state, live, updated_at, ended_at, wms_id, token, path, name, global_wms_id"


def _run(row: Sequence[Any]) -> StoredRun:
    """In the order of the columns, which is that of the fields."""
    run_id, backend, doc, state, live, *rest = row
    return StoredRun(run_id, backend, doc, state, bool(live), *rest)


def _load(connection: sqlite3.Connection, ended_after: float) -> Loaded:
    runs = [
        _run(row)
        for row in connection.execute(
            f"SELECT {_RUN_COLUMNS} FROM runs WHERE live"  # noqa: S608 - our own literals
            f" UNION ALL SELECT {_RUN_COLUMNS} FROM runs WHERE NOT live AND {ENDED} > ?",
            (ended_after,),
        )
    ]
    last_seq = connection.execute("SELECT value FROM meta WHERE key = 'last_seq'").fetchone()
    return Loaded(
        runs=runs,
        jobs={run.run_id: _jobs(connection, run.run_id) for run in runs if run.live},
        cursors={
            backend: _cursor(cursor) for backend, cursor in connection.execute("SELECT backend, cursor FROM cursors")
        },
        run_cursors={
            (backend, run_id): _cursor(cursor)
            for backend, run_id, cursor in connection.execute("SELECT backend, run_id, cursor FROM run_cursors")
        },
        last_seq=last_seq[0] if last_seq else 0,
    )


def _changed_after(connection: sqlite3.Connection, seq: int, limit: int) -> list[str]:
    rows = connection.execute(
        "SELECT DISTINCT run_id FROM timeline WHERE seq > ? AND run_id IS NOT NULL LIMIT ?", (seq, limit)
    )
    return [run_id for (run_id,) in rows]


def _cursor(kept: bytes) -> str | None:
    """A cursor as the adapter gave it; none, if it is damaged: the adapter begins anew."""
    try:
        return kept.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None


def _jobs(connection: sqlite3.Connection, run_id: str) -> tuple[bytes | None, list[bytes]]:
    snapshot = connection.execute("SELECT doc FROM job_snapshots WHERE run_id = ?", (run_id,)).fetchone()
    pieces = connection.execute("SELECT doc FROM job_pieces WHERE run_id = ? ORDER BY number", (run_id,))
    return snapshot[0] if snapshot else None, [doc for (doc,) in pieces]


def _recall(
    connection: sqlite3.Connection, run_ids: Sequence[str]
) -> list[tuple[StoredRun, bytes | None, list[bytes]]]:
    found = []
    for run_id in run_ids:
        row = connection.execute(f"SELECT {_RUN_COLUMNS} FROM runs WHERE run_id = ?", (run_id,)).fetchone()  # noqa: S608
        if row is not None:
            found.append((_run(row), *_jobs(connection, run_id)))
    return found


def _history(
    connection: sqlite3.Connection,
    ended_after: float | None,
    ended_before: float | None,
    backends: Sequence[str],
    states: Sequence[int],
    limit: int,
    after: str | None,
) -> list[StoredRun]:
    conditions: list[tuple[str, Sequence[object]]] = [("NOT live", ())]
    if ended_after is not None:
        conditions.append((f"{ENDED} > ?", (ended_after,)))
    if ended_before is not None:
        conditions.append((f"{ENDED} < ?", (ended_before,)))
    if backends:
        conditions.append((f"backend IN ({', '.join('?' * len(backends))})", backends))
    if states:
        conditions.append((f"state IN ({', '.join('?' * len(states))})", states))
    if after is not None:
        conditions.append((f"({ENDED}, run_id) < (SELECT {ENDED}, run_id FROM runs WHERE run_id = ?)", (after,)))  # noqa: S608
    where = " AND ".join(condition for condition, _ in conditions)
    values = [value for _, some in conditions for value in some]
    rows = connection.execute(
        f"SELECT {_RUN_COLUMNS} FROM runs WHERE {where} ORDER BY {ENDED} DESC, run_id DESC LIMIT ?",  # noqa: S608
        (*values, limit),
    )
    return [_run(row) for row in rows]


def _timeline(
    connection: sqlite3.Connection,
    run_id: str | None,
    after_seq: int | None,
    since: float | None,
    until: float | None,
    backend: str | None,
    limit: int,
) -> list[TimelineEvent]:
    forwards = after_seq is not None or since is not None
    conditions: list[tuple[str, object]] = []
    if run_id is not None:
        conditions.append(("run_id = ?", run_id))
    if backend is not None:
        conditions.append(("backend = ?", backend))
    if after_seq is not None:
        conditions.append(("seq > ?", after_seq))
    if since is not None:
        conditions.append(("time >= ?", since))
    if until is not None:
        conditions.append(("time <= ?", until))
    where = " AND ".join(condition for condition, _ in conditions) or "TRUE"
    order = "ASC" if forwards else "DESC"
    rows = connection.execute(
        f"SELECT seq, time, run_id, backend, kind, doc FROM timeline WHERE {where} ORDER BY seq {order} LIMIT ?",  # noqa: S608
        (*(value for _, value in conditions), limit),
    )
    events = [TimelineEvent(*row) for row in rows]
    return events if forwards else events[::-1]


def _find(connection: sqlite3.Connection, name: str) -> list[StoredRun]:
    found: dict[str, StoredRun] = {}
    exact = ("run_id = ?", "wms_id = ?", "global_wms_id = ?", "token = ?", "path = ?", "name = ?")
    # The last character there is, so that an index serves "begins with".
    beginning = ("name >= ? AND name < ? || char(1114111)",)
    for condition in (*exact, *beginning):
        rows = connection.execute(
            f"SELECT {_RUN_COLUMNS} FROM runs WHERE {condition} ORDER BY {ENDED} DESC LIMIT ?",  # noqa: S608
            (*([name] * condition.count("?")), MAX_CANDIDATES),
        )
        for row in rows:
            found.setdefault(row[0], _run(row))
    return list(found.values())[:MAX_CANDIDATES]
