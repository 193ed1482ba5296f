from __future__ import annotations

import asyncio
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from bpsd import database as database_module
from bpsd import filesystems, sqlitefile
from bpsd.database import MAX_GROUP_JOBS, Database, Job
from bpsd.errors import CannotStart, LimitExceeded, Stopping, StorageError
from bpsd.sqlitefile import Damaged, Schema
from tests.disks import DISKS, small_disk

SCHEMA = Schema("thing", 0x74657374, ("CREATE TABLE t (n INTEGER PRIMARY KEY, doc TEXT NOT NULL) STRICT;",))
FOREVER = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT max(n) FROM c"


def _no_recovery(damage: Damaged) -> None:
    raise damage


def _no_cut(connection: sqlite3.Connection, aside: Path, reason: str) -> None:
    raise AssertionError(reason)


@asynccontextmanager
async def _opened(
    path: Path,
    recover: Callable[[Damaged], None] = _no_recovery,
    *,
    durable: bool = True,
    allow_network: bool = False,
) -> AsyncIterator[Database]:
    database = Database(
        path,
        SCHEMA,
        check_s=None,
        accept_cut=_no_cut if durable else None,
        recover=recover,
        allow_network=allow_network,
    )
    try:
        await database.open()
        yield database
    finally:
        await database.close()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with _opened(tmp_path / "state" / "thing.db") as database:
        yield database


def _insert(n: int, doc: str = "x") -> Job[int]:
    def job(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO t VALUES (?, ?)", (n, doc))
        return n

    return job


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def _numbers(connection: sqlite3.Connection) -> list[int]:
    return [n for (n,) in connection.execute("SELECT n FROM t ORDER BY n")]


class _Stop:
    """A job that holds the writer thread until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, connection: sqlite3.Connection) -> None:
        self.begun.set()
        assert self.go_on.wait(30)

    async def until_begun(self) -> None:
        await anyio.to_thread.run_sync(self.begun.wait, 30)


# -- writing ---------------------------------------------------------------------------------------------------------


async def test_job_gives_its_value_and_is_kept(database: Database) -> None:
    assert await database.run(_insert(1)) == 1
    assert await database.read(_numbers) == [1]


async def test_concurrent_jobs_share_their_syncs(database: Database) -> None:
    async with anyio.create_task_group() as group:
        for n in range(2000):
            group.start_soon(database.run, _insert(n))

    statistics = database.statistics
    assert statistics.jobs == 2000
    assert statistics.commits <= 20  # one for whoever came first, then in groups of MAX_GROUP_JOBS
    assert statistics.largest_group == MAX_GROUP_JOBS
    assert await database.read(_numbers) == list(range(2000))


async def test_error_undoes_one_job_and_reaches_one_caller(database: Database) -> None:
    def breaks(connection: sqlite3.Connection) -> None:
        _insert(2)(connection)
        raise LookupError("two")

    stop = _Stop()
    blocked = database.submit(stop)
    await stop.until_begun()
    jobs = [database.submit(job) for job in (_insert(1), breaks, _insert(1), _insert(3))]
    stop.go_on.set()
    await blocked
    outcomes = [await _outcome(job) for job in jobs]

    assert outcomes[0] == 1
    assert outcomes[3] == 3
    assert isinstance(outcomes[1], LookupError)
    assert isinstance(outcomes[2], sqlite3.IntegrityError)
    assert await database.read(_numbers) == [1, 3]
    assert database.statistics.commits == 2


async def _outcome(job: asyncio.Future[Any]) -> object:
    try:
        return await job
    except Exception as exc:  # noqa: BLE001 - the test looks at it
        return exc


async def test_waiting_jobs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "MAX_WAITING_JOBS", 5)
    stop = _Stop()
    async with _opened(tmp_path / "thing.db") as database, anyio.create_task_group() as group:
        group.start_soon(database.run, stop)
        await stop.until_begun()
        for n in range(20):
            group.start_soon(database.run, _insert(n))
        await anyio.wait_all_tasks_blocked()

        assert database.statistics.waiting == 4  # and the one that holds the thread
        assert "4 waiting" in repr(database)
        stop.go_on.set()

    async with _opened(tmp_path / "thing.db") as database:
        assert await database.read(_numbers) == list(range(20))


async def test_job_is_done_though_its_caller_was_cancelled(database: Database) -> None:
    stop = _Stop()
    blocked = database.submit(stop)
    await stop.until_begun()
    async with anyio.create_task_group() as group:
        group.start_soon(database.run, _insert(1))
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    stop.go_on.set()
    await blocked
    await database.run(_insert(2))

    assert await database.read(_numbers) == [1, 2]


async def test_closing_does_what_waits_and_takes_nothing_more(tmp_path: Path) -> None:
    async with _opened(tmp_path / "thing.db") as database:
        jobs = [database.submit(_insert(n)) for n in range(1000)]
        await database.close()

        assert [await job for job in jobs] == list(range(1000))
        with pytest.raises(Stopping):
            await database.run(_insert(1))
        with pytest.raises(Stopping):
            await database.read(_numbers)
        assert "closed" in repr(database)
    assert _names(tmp_path) == ["thing.db"]  # the log was folded in


# -- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DISKS)
@pytest.mark.parametrize("durable", [True, False])
async def test_full_disk_is_told_and_a_later_write_works(tmp_path: Path, kind: str, *, durable: bool) -> None:
    with small_disk(kind, tmp_path) as disk:
        async with _opened(disk.folder / "state" / "thing.db", durable=durable) as database:
            await database.run(_insert(1))
            disk.fill()
            with pytest.raises(StorageError, match="free some space") as caught:
                await _write_on(database)
            assert not isinstance(caught.value, Damaged)
            assert 1 in await database.read(_numbers)
            disk.free()
            await database.run(_insert(2, "y" * 1_000_000))
            kept = await database.read(_numbers)
        async with _opened(disk.folder / "state" / "thing.db") as database:
            assert await database.read(_numbers) == kept
            assert {1, 2} <= set(kept)
            assert await database.check() == []


async def _write_on(database: Database) -> None:
    for n in range(100, 200):  # the log may have room for some
        await database.run(_insert(n, "x" * 100_000))


async def test_job_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    async with _opened(tmp_path / "thing.db") as database:

        def limit(connection: sqlite3.Connection) -> None:
            connection.execute("PRAGMA max_page_count=40")

        await database.run(limit)
        stop = _Stop()
        blocked = database.submit(stop)
        await stop.until_begun()
        jobs = [database.submit(job) for job in (_insert(1), _insert(2, "x" * 4_000_000), _insert(3))]
        stop.go_on.set()
        await blocked
        outcomes = [await _outcome(job) for job in jobs]

        assert outcomes[0] == 1
        assert isinstance(outcomes[1], StorageError)
        assert outcomes[2] == 3
        assert await database.read(_numbers) == [1, 3]


# -- reading ---------------------------------------------------------------------------------------------------------


async def test_query_that_takes_too_long_is_ended(database: Database) -> None:
    with pytest.raises(LimitExceeded, match=r"took longer than 0.05 s .*ask for less"):
        await database.read(lambda connection: connection.execute(FOREVER).fetchone(), deadline_s=0.05)

    assert await database.read(_numbers) == []


async def test_waiting_for_the_reader_counts_into_the_deadline(database: Database) -> None:
    stop = _Stop()
    async with anyio.create_task_group() as group:
        group.start_soon(database.read, stop)
        await stop.until_begun()
        late = asyncio.get_running_loop().create_future()

        async def ask() -> None:
            with pytest.raises(LimitExceeded):
                await database.read(_numbers, deadline_s=0.0)
            late.set_result(None)

        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        stop.go_on.set()
        await late


async def test_readers_that_wait_are_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "MAX_WAITING_READS", 3)
    stop = _Stop()
    async with anyio.create_task_group() as group:
        group.start_soon(database.read, stop)
        await stop.until_begun()
        for _ in range(2):
            group.start_soon(database.read, _numbers)
        await anyio.wait_all_tasks_blocked()

        with pytest.raises(LimitExceeded, match="3 queries of the thing are waiting"):
            await database.read(_numbers)
        stop.go_on.set()
    assert await database.read(_numbers) == []


async def test_reader_cannot_write(database: Database) -> None:
    with pytest.raises(StorageError, match="readonly"):
        await database.read(_insert(1))


async def test_query_sees_one_state(database: Database) -> None:
    await database.run(_insert(1))
    seen: list[list[int]] = []
    loop = asyncio.get_running_loop()

    def twice(connection: sqlite3.Connection) -> None:
        seen.append(_numbers(connection))
        asyncio.run_coroutine_threadsafe(database.run(_insert(2)), loop).result(30)
        seen.append(_numbers(connection))

    await database.read(twice)

    assert seen == [[1], [1]]
    assert await database.read(_numbers) == [1, 2]


async def test_cancelled_reader_leaves_the_thread_in_order(database: Database) -> None:
    stop = _Stop()
    async with anyio.create_task_group() as group:
        group.start_soon(database.read, stop)
        await stop.until_begun()
        group.cancel_scope.cancel()
    stop.go_on.set()

    assert await database.read(_numbers) == []


# -- opening ---------------------------------------------------------------------------------------------------------


async def test_folder_and_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    async with _opened(folder / "thing.db") as database:
        await database.run(_insert(1))
        await database.backup(2)

        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}

    assert {path for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == set()
    assert len(modes) == 6  # the folder, the database, its log and index, the folder of copies, the copy


async def test_damage_is_put_before_the_policy(tmp_path: Path) -> None:
    path = tmp_path / "thing.db"
    path.write_text("garbage")
    told: list[str] = []

    def recover(damage: Damaged) -> None:
        told.append(damage.reason)
        sqlitefile.set_aside(path)

    async with _opened(path, recover) as database:
        await database.run(_insert(1))
    async with _opened(path) as database:
        assert await database.read(_numbers) == [1]
    assert told == ["file is not a database"]


async def test_damage_that_stays_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "thing.db").write_text("garbage")

    with pytest.raises(Damaged):
        async with _opened(tmp_path / "thing.db", lambda _: None):
            pass


async def test_fresh_means_that_there_was_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "thing.db", SCHEMA, check_s=None, recover=_no_recovery)
    assert await database.open()
    await database.close()
    database = Database(tmp_path / "thing.db", SCHEMA, check_s=None, recover=_no_recovery)
    assert not await database.open()
    await database.close()
    (tmp_path / "thing.db").unlink()

    database = Database(tmp_path / "thing.db", SCHEMA, check_s=None, recover=_no_recovery)
    with pytest.raises(Damaged, match="it is gone"):
        await database.open(must_exist=lambda: True)
    await database.close()


async def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match="making the folder of"):
        async with _opened(tmp_path / "file" / "thing.db"):
            pass


@pytest.fixture
def on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "remote"
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {folder} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr(filesystems, "MOUNTINFO", mountinfo)
    return folder


async def test_network_file_system_is_refused_with_advice(on_nfs: Path) -> None:
    with pytest.raises(CannotStart, match=r"network file system .*remote \(nfs4\).*state_on_network: true"):
        async with _opened(on_nfs / "thing.db"):
            pass

    assert _names(on_nfs) == []


async def test_network_file_system_is_used_without_a_log_if_so_told(on_nfs: Path) -> None:
    async with _opened(on_nfs / "thing.db", allow_network=True) as database:
        await database.run(_insert(1))
        assert await database.read(_numbers) == [1]
        await database.run(_insert(2))
        assert await database.run(_mode) == "truncate"
        await database.backup(1)
        assert _names(on_nfs) == ["copies", "thing.db", "thing.db-journal"]


async def test_local_disk_keeps_its_log_though_a_network_is_allowed(tmp_path: Path) -> None:
    async with _opened(tmp_path / "thing.db", allow_network=True) as database:
        assert await database.run(_mode) == "wal"


def _mode(connection: sqlite3.Connection) -> str:
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


# -- care ------------------------------------------------------------------------------------------------------------


async def test_copies_are_one_a_day_and_as_many_as_wanted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(1, 6):
        monkeypatch.setattr(sqlitefile, "copy_name", lambda _, day=day: f"thing-2026-01-0{day}.db")
        await database.run(_insert(day))
        copy = await database.backup(3)
        assert copy == await database.backup(3)

    assert _names(database.copies_folder) == [f"thing-2026-01-0{day}.db" for day in (3, 4, 5)]
    copy = database.copies_folder / "thing-2026-01-04.db"
    assert await anyio.to_thread.run_sync(_numbers_elsewhere, copy) == [1, 2, 3, 4]


def _numbers_elsewhere(path: Path) -> list[int]:
    connection = sqlitefile.connect(path, "immutable")
    try:
        return _numbers(connection)
    finally:
        connection.close()


async def test_writers_go_on_while_a_copy_is_made(database: Database) -> None:
    await database.run(_insert(0))
    async with anyio.create_task_group() as group:
        group.start_soon(database.backup, 1)
        for n in range(1, 50):
            await database.run(_insert(n))

    copy = database.copies_folder / sqlitefile.copy_name(database.path)
    copied = await anyio.to_thread.run_sync(_numbers_elsewhere, copy)
    assert copied == list(range(len(copied)))
    assert copied
    assert await database.check() == []


async def test_check_tells_damage(database: Database) -> None:
    for n in range(200):
        await database.run(_insert(n, "x" * 1000))
    await anyio.to_thread.run_sync(_overwrite_pages, database.path)

    assert await database.check()


def _overwrite_pages(path: Path) -> None:
    connection = sqlitefile.connect(path, "rw")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096 * 5)


async def test_reopening_puts_another_file_in_place(tmp_path: Path) -> None:
    path = tmp_path / "thing.db"

    def recover(damage: Damaged) -> None:
        sqlitefile.set_aside(path)

    async with _opened(path, recover) as database:
        await database.run(_insert(1))
        assert await database.read(_numbers) == [1]
        await database.reopen(Damaged(path, "the test says so"))
        await database.run(_insert(2))

        assert await database.read(_numbers) == [2]


async def test_reopening_that_fails_is_told_to_writers_and_can_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "thing.db"
    works = False

    def recover(damage: Damaged) -> None:
        if not works:
            raise damage
        sqlitefile.set_aside(path)

    async with _opened(path, recover) as database:
        with pytest.raises(Damaged, match="says so"):
            await database.reopen(Damaged(path, "the test says so"))
        with pytest.raises(Damaged, match="could not be opened again"):
            await database.run(_insert(1))
        works = True
        await database.reopen(Damaged(path, "the test says so"))
        await database.run(_insert(2))
        assert await database.read(_numbers) == [2]
