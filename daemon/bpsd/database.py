"""A SQLite database for an event loop: one thread that writes, one that reads.

::

    run(job) ──► waiting ──► writer thread: BEGIN  job  job  job  COMMIT ──► each caller's answer
    read(query) ───────────► reader thread: read-only connection, with a deadline

*Group commit*: while a transaction is being synced to the disk, jobs gather; all of them go into the next one and
share its sync. Each runs in a savepoint of its own, so that an exception undoes one job and reaches one caller. A
transaction that fails as a whole (the disk is full) is tried again job by job, so that only those fail that cannot be
done: a job is a function of the connection alone and may be run twice, of which once counts.

*Cancellation*: a job that was handed over is done, whether or not its caller still waits.
"""

from __future__ import annotations

__all__ = ["Database", "Job", "Statistics"]

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio

from bpsd import sqlitefile
from bpsd.errors import CannotStart, LimitExceeded, Stopping
from bpsd.filesystems import network_mount
from bpsd.sqlitefile import AcceptCut, Damaged, Schema, translated

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]
"""Work on the database, run in its thread."""

MAX_WAITING_JOBS = 4096
"""Jobs that may wait for the writer thread; further callers wait for a place."""

MAX_GROUP_JOBS = 512
"""Jobs that share one transaction at most."""

MAX_WAITING_READS = 64
"""Queries that may wait for the reader thread; further ones are refused."""

READ_DEADLINE_S = 5.0
"""How long a query may take, waiting included."""

DEADLINE_STEPS = 10_000
"""SQLite instructions between two looks at the clock (about a millisecond)."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the writer thread did since it was opened: ``commits`` counts transactions, each of them one sync."""

    jobs: int = 0
    commits: int = 0
    largest_group: int = 0
    failures: int = 0
    waiting: int = 0


class _Answer:
    """What became of one job."""

    __slots__ = ("error", "value")

    def __init__(self, value: Any = None, error: BaseException | None = None) -> None:
        self.value = value
        self.error = error


@dataclass(frozen=True, slots=True)
class _Work:
    """A job on its way to the writer thread."""

    job: Job[Any]
    future: asyncio.Future[Any]
    on_done: Callable[[], None]


class Database:
    """One database file.

    Parameters
    ----------
    path : `~pathlib.Path`
        The file; its folder is made if need be, for our eyes only.
    schema : `~bpsd.sqlitefile.Schema`
        What it holds.
    check_s : `float` or `None`
        How long looking for damage may take at opening (`None`: as long as it takes).
    recover : callable
        Called in the writer thread with a `~bpsd.sqlitefile.Damaged`; it must leave a sound file, or none.
    accept_cut : callable, optional
        A commit must survive a power cut, and this writes down that some did not (see `~bpsd.sqlitefile.AcceptCut`).
        Without it the last commits may be lost.
    allow_network : `bool`, optional
        Run on a network file system too, and there without a write-ahead log, instead of refusing to.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        *,
        check_s: float | None,
        recover: Callable[[Damaged], None],
        accept_cut: AcceptCut | None = None,
        allow_network: bool = False,
    ) -> None:
        self.path = path
        self.schema = schema
        self.copies_folder = path.parent / "copies"
        self._check_s = check_s
        self._recover = recover
        self._accept_cut = accept_cut
        self._allow_network = allow_network
        self._copying = threading.Lock()  # two copies at once would write one file
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"bpsd-{schema.name}")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix=f"bpsd-{schema.name}-read")
        self._waiting: deque[_Work] = deque()
        self._places = asyncio.Semaphore(MAX_WAITING_JOBS)
        self._reads = 0
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._state = "new"
        # Touched by the writer thread alone:
        self._use_wal = True
        self._connection: sqlite3.Connection | None = None
        self._jobs = self._commits = self._largest_group = self._failures = 0
        self._generation = 0  # counts the files that there were; the reader thread looks at it
        # Touched by the reader thread alone:
        self._read_connection: sqlite3.Connection | None = None
        self._read_generation = 0

    def __repr__(self) -> str:
        return f"<Database {self.schema.name} {str(self.path)!r} {self._state}, {len(self._waiting)} waiting>"

    @property
    def statistics(self) -> Statistics:
        """Figures of the writer thread."""
        return Statistics(
            jobs=self._jobs,
            commits=self._commits,
            largest_group=self._largest_group,
            failures=self._failures,
            waiting=len(self._waiting),
        )

    # -- opening and closing -----------------------------------------------------------------------------------------

    async def open(self, *, must_exist: Callable[[], bool] = lambda: False) -> bool:
        """Open the file, or make it.

        Parameters
        ----------
        must_exist : callable, optional
            Asked in the writer thread if there is no file: whether that is damage.

        Returns
        -------
        fresh : `bool`
            Whether it was made just now, with nothing before it.

        Raises
        ------
        CannotStart
            If the folder lies on a network file system, or a newer bpsd wrote the file.
        StorageError
            If the disk fails.
        """
        fresh = await asyncio.get_running_loop().run_in_executor(self._writer, self._open, must_exist)
        self._state = "open"
        return fresh

    def _open(self, must_exist: Callable[[], bool]) -> bool:
        with translated("making the folder of", self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.parent.chmod(0o700)
        mount = network_mount(self.path.parent)
        if mount is not None and not self._allow_network:
            raise _on_network(self.path, *mount)
        self._use_wal = mount is None
        fresh = not self.path.exists() and not sqlitefile.is_missing(self.path) and not must_exist()
        if fresh:
            self._create()
        try:
            if not self.path.exists():
                raise Damaged(self.path, "it is gone")
            self._connection = self._open_checked()
        except Damaged as damage:
            self._open_recovered(damage)
        return fresh

    def _create(self) -> None:
        with translated("making the database", self.path):
            sqlitefile.create(self.path, self.schema)

    def _open_checked(self) -> sqlite3.Connection:
        return sqlitefile.open_checked(
            self.path,
            self.schema,
            use_wal=self._use_wal,
            check_s=self._check_s,
            copies_folder=self.copies_folder,
            accept_cut=self._accept_cut,
        )

    def _open_recovered(self, damage: Damaged) -> None:
        self._recover(damage)
        if not self.path.exists():
            self._create()
        self._connection = self._open_checked()

    async def close(self) -> None:
        """Do what waits, then close the file. Nothing is taken any more; closing again does nothing."""
        if self._state == "closed":
            return
        self._state = "closed"
        with anyio.CancelScope(shield=True):
            await self._idle.wait()
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._reader, self._close_reader)
            await loop.run_in_executor(self._writer, self._close_writer)
            await anyio.to_thread.run_sync(self._reader.shutdown)
            await anyio.to_thread.run_sync(self._writer.shutdown)

    def _close_reader(self) -> None:
        if self._read_connection is not None:
            self._read_connection.close()
            self._read_connection = None

    def _close_writer(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # -- writing -----------------------------------------------------------------------------------------------------

    async def run(self, job: Job[T]) -> T:
        """Run a job in a transaction, and return when that is committed.

        Raises
        ------
        StorageError
            If the disk failed; nothing of the job was kept, and a later one may work.
        Stopping
            If the database is closed.
        Exception
            What the job raised; nothing of it was kept.
        """
        await self._places.acquire()
        try:
            work = self._enqueue(job, on_done=self._places.release)
        except Stopping:
            self._places.release()
            raise
        return await work

    def submit(self, job: Job[T]) -> asyncio.Future[T]:
        """As `run`, for a caller that bounds by itself how much it hands over."""
        return self._enqueue(job, on_done=lambda: None)

    def _enqueue(self, job: Job[T], on_done: Callable[[], None]) -> asyncio.Future[T]:
        if self._state != "open":
            raise Stopping(f"the {self.schema.name} is closed", advice="try again when bpsd runs again")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Work(job, future, on_done))
        self._kick()
        return future

    def _kick(self) -> None:
        """Hand the next group to the writer thread, if it has nothing to do."""
        if self._busy:
            return
        if not self._waiting:
            self._idle.set()
            return
        self._idle.clear()
        self._busy = True
        group = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_GROUP_JOBS))]
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._writer, self._commit, [work.job for work in group])
        done.add_done_callback(partial(self._deliver, group))

    def _deliver(self, group: Sequence[_Work], done: asyncio.Future[list[_Answer]]) -> None:
        """Give each caller its answer, and go on."""
        error = done.exception()
        answers = [_Answer(error=error)] * len(group) if error else done.result()
        for work, answer in zip(group, answers, strict=True):
            work.on_done()
            if work.future.done():
                continue  # the caller was cancelled; what it asked for is done or not, all the same
            if answer.error is not None:
                work.future.set_exception(answer.error)
            else:
                work.future.set_result(answer.value)
        self._busy = False
        self._kick()

    def _commit(self, jobs: Sequence[Job[Any]]) -> list[_Answer]:
        """Run jobs in one transaction; if that fails as a whole, in one each. In the writer thread."""
        try:
            if self._connection is None:
                raise Damaged(self.path, "it could not be opened again")
            with translated("writing to the database", self.path):
                answers = self._transaction(self._connection, jobs)
        except Exception as exc:  # noqa: BLE001 - whatever it was, it belongs to the callers
            self._roll_back()
            if len(jobs) == 1:
                self._failures += 1
                return [_Answer(error=exc)]
            return [answer for job in jobs for answer in self._commit([job])]
        self._jobs += len(jobs)
        self._commits += 1
        self._largest_group = max(self._largest_group, len(jobs))
        return answers

    def _roll_back(self) -> None:
        # What cannot be rolled back now (the disk fails) is tried again before the next transaction.
        with contextlib.suppress(sqlite3.Error):
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _transaction(self, connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> list[_Answer]:
        answers = []
        self._roll_back()
        connection.execute("BEGIN IMMEDIATE")
        for job in jobs:
            connection.execute("SAVEPOINT job")
            try:
                with translated("writing to the database", self.path):
                    answer = _Answer(job(connection))
            except Exception as exc:
                # After some errors (the disk is full) SQLite has undone the whole transaction: nothing is left to go
                # on with (https://www.sqlite.org/lang_transaction.html, "Response To Errors Within A Transaction").
                if not connection.in_transaction:
                    raise
                connection.execute("ROLLBACK TO job")
                answer = _Answer(error=exc)
            connection.execute("RELEASE job")
            answers.append(answer)
        connection.execute("COMMIT")
        return answers

    # -- reading -----------------------------------------------------------------------------------------------------

    async def read(self, query: Job[T], *, deadline_s: float = READ_DEADLINE_S) -> T:
        """Run a query on a read-only connection in a thread of its own; it sees one state of the database.

        Raises
        ------
        LimitExceeded
            If it took too long, or too many wait.
        StorageError
            If the disk failed.
        Stopping
            If the database is closed.
        """
        if self._state != "open":
            raise Stopping(f"the {self.schema.name} is closed", advice="try again when bpsd runs again")
        if self._reads >= MAX_WAITING_READS:
            raise LimitExceeded(
                f"{MAX_WAITING_READS} queries of the {self.schema.name} are waiting already",
                advice="try again in a moment",
                limit="waiting_reads",
                value=MAX_WAITING_READS,
            )
        self._reads += 1
        end = time.monotonic() + deadline_s
        done = asyncio.get_running_loop().run_in_executor(self._reader, self._query, query, end, deadline_s)
        done.add_done_callback(self._count_read)
        return await asyncio.shield(done)

    def _count_read(self, done: asyncio.Future[Any]) -> None:
        self._reads -= 1
        done.exception()  # a caller that was cancelled does not look at it

    def _query(self, query: Job[T], end: float, deadline_s: float) -> T:
        try:
            with translated("reading the database", self.path):
                if time.monotonic() > end:
                    raise _too_slow(self.schema, deadline_s)
                connection = self._reading()
                connection.set_progress_handler(lambda: time.monotonic() > end, DEADLINE_STEPS)
                connection.execute("BEGIN")
                try:
                    return query(connection)
                finally:
                    connection.set_progress_handler(None, 0)
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                raise _too_slow(self.schema, deadline_s) from exc
            raise

    def _reading(self) -> sqlite3.Connection:
        """The read-only connection, to the file that the writer has now."""
        if self._read_connection is not None and self._read_generation != self._generation:
            self._close_reader()
        if self._read_connection is None:
            self._read_generation = self._generation
            self._read_connection = sqlitefile.connect(self.path, "ro")
        return self._read_connection

    # -- care --------------------------------------------------------------------------------------------------------

    async def backup(self, keep: int, *, again: bool = False) -> Path:
        """Write today's copy into the folder ``copies``, and keep those of the newest ``keep`` days.

        It replaces today's copy, or with ``again`` is one more, which nothing replaces. Writers go on meanwhile.

        Raises
        ------
        StorageError
            If the disk fails or the database is damaged; older copies are then left alone.
        """
        return await anyio.to_thread.run_sync(lambda: self._backup(keep, again=again))

    def _backup(self, keep: int, *, again: bool) -> Path:
        with self._copying, translated("copying the database", self.path):
            target = self.copies_folder / sqlitefile.copy_name(self.path)
            number = 1
            while again and target.exists():
                number += 1
                target = self.copies_folder / sqlitefile.copy_name(self.path, str(number))
            with contextlib.closing(sqlitefile.connect(self.path, "ro")) as source:
                sqlitefile.copy_database(source, target)
            for old in sqlitefile.copies_of_older_days(self.path, self.copies_folder, keep):
                old.unlink(missing_ok=True)
        return target

    async def check(self) -> list[str]:
        """Everything that SQLite finds wrong with the file, however long looking takes (nothing: an empty list)."""
        return await anyio.to_thread.run_sync(self._check)

    def _check(self) -> list[str]:
        try:
            with (
                translated("checking the database", self.path),
                contextlib.closing(sqlitefile.connect(self.path, "ro")) as connection,
            ):
                return sqlitefile.integrity(connection, None)
        except Damaged as damage:
            return [damage.reason]

    def reopen(self, damage: Damaged) -> asyncio.Future[None]:
        """Let ``recover`` deal with damage that showed while the file was in use, and go on with what it leaves.

        Jobs that wait are run on the new file. If that fails too (the future's exception), they are told that the file
        is `~bpsd.sqlitefile.Damaged`, and this may be called again.
        """
        return asyncio.get_running_loop().run_in_executor(self._writer, self._reopen, damage)

    def _reopen(self, damage: Damaged) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._close_writer()
        with translated("opening the database", self.path):
            self._open_recovered(damage)
        self._generation += 1


def _on_network(path: Path, mount_point: str, file_system: str) -> CannotStart:
    return CannotStart(
        f"the database {path} would lie on the network file system {mount_point} ({file_system}), where databases are"
        " damaged by locks that do not hold",
        advice="set state_dir to a folder on a local disk, or state_on_network: true to run there all the same, slower"
        " and on one host at a time",
        path=str(path),
        mount_point=mount_point,
        file_system=file_system,
    )


def _too_slow(schema: Schema, deadline_s: float) -> LimitExceeded:
    return LimitExceeded(
        f"a query of the {schema.name} took longer than {deadline_s:g} s",
        advice="ask for less at once: a narrower filter, a smaller limit",
        limit="read_deadline_s",
        value=deadline_s,
    )
