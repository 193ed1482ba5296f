from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from bpsd import filesystems, sqlitefile, storecare
from bpsd import store as store_module
from bpsd.errors import CannotStart, LimitExceeded, StorageError
from bpsd.store import SCHEMA, Batch, Store, StoredRun, StoreStatus, TimelineEvent
from tests.disks import DISKS, small_disk
from tests.fixtures.schemas import KEPT, NOW, build

DAY_S = 86400.0
MANY_BYTES = 1 << 40


def _run(run_id: str, **facts: Any) -> StoredRun:
    given = {
        "backend": "here",
        "doc": run_id.encode(),
        "state": 15,
        "live": True,
        "updated_at": 1000.0,
        "ended_at": None,
        "wms_id": f"{run_id}.0",
        "token": None,
        "path": f"/submit/{run_id}",
        "name": f"u_op_{run_id}",
        **facts,
    }
    return StoredRun(run_id=run_id, **given)


def _over(run_id: str, ended_at: float | None, **facts: Any) -> StoredRun:
    return _run(run_id, **{"live": False, "state": 0, "ended_at": ended_at, **facts})


def _event(seq: int, run_id: str | None = None, backend: str = "here") -> TimelineEvent:
    return TimelineEvent(seq, float(seq), run_id, backend, "run.state", b"{}")


def _ids(runs: list[StoredRun]) -> list[str]:
    return [run.run_id for run in runs]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    async with Store(path) as store:
        yield store


async def _until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not holds():  # noqa: ASYNC110 - it comes about by a timer of the store, in some hundredths of a second
            await anyio.sleep(0.01)


@asynccontextmanager
async def _held(store: Store) -> AsyncIterator[None]:
    """The writer thread does nothing meanwhile."""
    begun, go_on = threading.Event(), threading.Event()

    def stop(connection: sqlite3.Connection) -> None:
        begun.set()
        assert go_on.wait(30)

    future = store._database.submit(stop)
    await anyio.to_thread.run_sync(begun.wait, 30)
    try:
        yield
    finally:
        go_on.set()
        await future


# -- writing and loading ---------------------------------------------------------------------------------------------


async def test_what_was_put_is_there_after_a_restart(path: Path) -> None:
    live, fresh, old = _run("r1"), _over("r2", 900.0), _over("r3", 100.0)
    async with Store(path) as store:
        assert store.status == StoreStatus("fresh")
        await store.put(
            Batch(
                runs=[live, fresh, old],
                jobs_replace={"r1": b"snapshot", "r2": b"over"},
                jobs_append={"r1": b"piece 1"},
                events=[_event(7, "r1")],
                cursors={"here": "5", "there": None},
                run_cursors={("here", "r1"): "offset"},
            )
        )
        await store.put(Batch(jobs_append={"r1": b"piece 2"}))
    async with Store(path) as store:
        assert store.status == StoreStatus("ok")
        loaded = await store.load(500.0)

        assert sorted(loaded.runs, key=lambda run: run.run_id) == [live, fresh]
        assert loaded.jobs == {"r1": (b"snapshot", [b"piece 1", b"piece 2"])}
        assert loaded.cursors == {"here": "5"}
        assert loaded.run_cursors == {("here", "r1"): "offset"}
        assert loaded.last_seq == 7
        assert await store.jobs("r2") == (b"over", [])
        assert await store.jobs("r9") == (None, [])
        assert await store.recall(["r3", "r9", "r1"]) == [
            (old, None, []),
            (live, b"snapshot", [b"piece 1", b"piece 2"]),
        ]


async def test_putting_does_not_wait_for_the_disk(store: Store) -> None:
    async with _held(store):
        for n in range(500):
            await store.put(Batch(runs=[_run("r1", updated_at=float(n))], cursors={"here": str(n)}))
        assert store.waiting_bytes > 0
        assert "bytes waiting" in repr(store)
    await store.flush()

    assert store.waiting_bytes == 0
    assert store.statistics.commits <= 4  # the hold, what came first, and the fold of the rest
    loaded = await store.load(0.0)
    assert loaded.runs == [_run("r1", updated_at=499.0)]
    assert loaded.cursors == {"here": "499"}


async def test_too_much_that_waits_makes_putting_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_WAITING_BYTES", 10_000)
    put = []

    async def put_many() -> None:
        for n in range(20):
            await store.put(Batch(runs=[_run(f"r{n}", doc=b"x" * 5000)]))
            put.append(n)

    async with anyio.create_task_group() as group, _held(store):
        group.start_soon(put_many)
        await anyio.wait_all_tasks_blocked()
        assert len(put) == 3  # one is being written, then as many as do not exceed the limit before they come
    await store.flush()

    assert len((await store.load(0.0)).runs) == 20


async def test_who_is_cancelled_while_waiting_has_put_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_WAITING_BYTES", 1000)
    async with _held(store):
        for n in range(2):
            await store.put(Batch(runs=[_run(f"r{n}", doc=b"x" * 5000)]))
        with anyio.move_on_after(0.05) as scope:
            await store.put(Batch(runs=[_run("r2")]))
        assert scope.cancelled_caught
    await store.flush()

    assert len((await store.load(0.0)).runs) == 3


async def test_flush_waits_for_all_that_was_put_before(store: Store) -> None:
    await store.flush()  # nothing waits
    await store.put(Batch())
    await store.flush()
    flushed = []

    async def flush(name: str) -> None:
        await store.flush()
        flushed.append((name, len((await store.load(0.0)).runs)))

    async with anyio.create_task_group() as group, _held(store):
        await store.put(Batch(runs=[_run("r1")]))
        await store.put(Batch(runs=[_run("r2")]))
        group.start_soon(flush, "first")
        await anyio.wait_all_tasks_blocked()
        assert flushed == []

    assert flushed == [("first", 2)]


async def test_batch_that_cannot_be_written_is_refused_and_harms_no_other(store: Store) -> None:
    with pytest.raises(AttributeError):
        await store.put(Batch(runs=[_run("r1", name=None)]))
    await store.put(Batch(runs=[_run("r2")]))
    await store.flush()

    assert _ids((await store.load(0.0)).runs) == ["r2"]


async def test_numbers_of_events_are_never_given_twice(store: Store) -> None:
    await store.put(Batch(events=[_event(5, "r1"), _event(6, "r1")]))
    await store.put(Batch(forget=["r1"]))
    await store.flush()

    assert await store.timeline() == []
    assert (await store.load(0.0)).last_seq == 6


# -- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DISKS)
async def test_full_disk_loses_nothing_and_is_told(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RETRY_S", 0.02)
    with small_disk(kind, tmp_path) as disk:
        async with Store(disk.folder / "state" / "store.db") as store:
            await store.put(Batch(runs=[_run("r0")], cursors={"here": "0"}))
            await store.flush()
            disk.fill()
            with pytest.raises(StorageError, match="free some space"):
                await _put_on(store)
            assert store.failure is not None
            for n in range(5):
                await store.put(Batch(runs=[_run("r0", updated_at=float(n))], cursors={"here": f"late {n}"}))
            assert store.waiting_bytes > 0
            assert (await store.load(0.0)).cursors["here"] != "late 4"  # reading goes on
            disk.free()
            await _until(lambda: store.failure is None)  # it is tried again by itself
            await store.flush()
            loaded = await store.load(0.0)

        assert loaded.cursors == {"here": "late 4"}
        assert len(loaded.runs) == 51
        assert store.status.kind == "fresh"


async def _put_on(store: Store) -> None:
    """Put until the room that the log still has is used up."""
    for n in range(1, 51):
        await store.put(Batch(runs=[_run(f"r{n}", doc=b"x" * 30_000)], cursors={"here": str(n)}))
    await store.flush()


async def test_leaving_with_a_full_disk_gives_up_what_waits(path: Path) -> None:
    with small_disk("file_size", path.parent.parent) as disk:
        async with Store(path) as store:
            await store.put(Batch(runs=[_run("r1")]))
            await store.flush()
            disk.fill()
            await store.put(Batch(runs=[_run("r2", doc=b"x" * 3_000_000)]))
        disk.free()
    async with Store(path) as store:
        assert store.status.kind == "ok"
        assert _ids((await store.load(0.0)).runs) == ["r1"]


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000])
async def test_damaged_store_is_set_aside_and_begins_empty(path: Path, content: bytes) -> None:
    async with Store(path) as store:
        await store.put(Batch(runs=[_run("r1")]))
    _write(path, content)

    async with Store(path) as store:
        assert store.status.kind == "emptied"
        assert store.status.reason
        aside = store.status.set_aside
        assert (await store.load(0.0)).runs == []
        await store.put(Batch(runs=[_run("r2")]))
    assert aside is not None
    assert _bytes(Path(aside)) == content
    async with Store(path) as store:
        assert store.status.kind == "ok"
        assert _ids((await store.load(0.0)).runs) == ["r2"]


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def _spoil(path: Path, first_page: int, pages: int) -> None:
    """Overwrite pages of a database while it is open, and let the log be folded in before."""
    connection = sqlitefile.connect(path, "rw")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with path.open("r+b") as file:
        file.seek(4096 * first_page)
        file.write(b"\xa5" * 4096 * pages)


async def test_damage_that_shows_while_writing_empties_the_store_and_is_told(path: Path) -> None:
    told: list[StoreStatus] = []
    async with Store(path, on_emptied=told.append) as store:
        await store.put(Batch(runs=[_run(f"r{n}", doc=b"x" * 3000) for n in range(2000)]))
        await store.flush()
        size = (await anyio.Path(path).stat()).st_size
        await anyio.to_thread.run_sync(_spoil, path, 2, size // 4096 - 2)
        with anyio.fail_after(30):
            for n in range(2000):  # the cache of the connection may hide the damage for a while
                await store.put(Batch(runs=[_run(f"r{n}", updated_at=2.0)]))
                await store.flush()
                if told:
                    break
        await store.put(Batch(runs=[_run("rlast")]))
        await store.flush()

        assert told == [store.status]
        assert (store.status.kind, store.failure) == ("emptied", None)
        assert {"rlast", f"r{n}"} <= set(_ids((await store.load(0.0)).runs))  # what found the damage is written too
        assert await store.check() == []
    assert store.status.set_aside is not None


async def test_damage_that_the_check_missed_is_found_by_loading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Store(path) as store:
        await store.put(Batch(runs=[_run(f"r{n}", doc=b"x" * 3000) for n in range(500)]))
    size = (await anyio.Path(path).stat()).st_size
    await anyio.to_thread.run_sync(_spoil, path, size // 8192, size // 8192)
    monkeypatch.setattr(sqlitefile, "integrity", lambda *_: [])

    async with Store(path) as store:
        statuses = [store.status.kind]
        assert (await store.load(0.0)).runs == []
        statuses.append(store.status.kind)
        assert statuses == ["ok", "emptied"]
        await store.put(Batch(runs=[_run("r1")]))
        await store.flush()
        assert _ids((await store.load(0.0)).runs) == ["r1"]


async def test_store_that_cannot_be_emptied_at_once_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RETRY_S", 0.02)
    told: list[StoreStatus] = []
    failures = [StorageError("setting aside failed"), StorageError("again")]
    set_aside = sqlitefile.set_aside

    def failing(path: Path) -> Path | None:
        if failures:
            raise failures.pop()
        return set_aside(path)

    monkeypatch.setattr(sqlitefile, "set_aside", failing)
    async with Store(path, on_emptied=told.append) as store:
        await store.put(Batch(runs=[_run("r0")]))
        await store.flush()
        await anyio.to_thread.run_sync(_spoil, path, 1, 8)
        store._database.submit(_forget_cache).add_done_callback(lambda done: done.exception())
        await store.put(Batch(runs=[_run("r1")]))
        with pytest.raises(StorageError, match="again"):
            await store.flush()
        await _until(lambda: bool(told))
        await store.flush()

        assert failures == []
        assert _ids((await store.load(0.0)).runs) == ["r1"]


def _forget_cache(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA shrink_memory")


@pytest.mark.parametrize("dump", KEPT["store"], ids=lambda dump: dump.stem)
async def test_store_of_every_earlier_version_opens(path: Path, dump: Path) -> None:
    path.parent.mkdir()
    build(dump, path)

    async with Store(path) as store:
        assert store.status.kind == "ok"
        loaded = await store.load(NOW - 1)
        timeline = await store.timeline()
        await store.put(Batch(runs=[_run("rdddddddd")]))

    assert sorted(_ids(loaded.runs)) == ["rbbbbbbbb", "rcccccccc"]
    assert loaded.jobs == {"rbbbbbbbb": (b"snapshot", [b"piece"])}
    assert (loaded.cursors, loaded.run_cursors) == ({"here": "cursor"}, {("here", "rbbbbbbbb"): "offset 5"})
    assert loaded.last_seq == 2
    assert [(event.seq, event.run_id, event.kind) for event in timeline] == [
        (1, "rbbbbbbbb", "run.seen"),
        (2, None, "daemon.start"),
    ]


@pytest.mark.parametrize("dump", KEPT["store"], ids=lambda dump: dump.stem)
def test_migrations_lead_to_the_schema_that_new_stores_have(tmp_path: Path, dump: Path) -> None:
    build(dump, tmp_path / "old.db")
    sqlitefile.create(tmp_path / "new.db", SCHEMA)

    assert _schema_of(tmp_path / "old.db") == _schema_of(tmp_path / "new.db")


def _schema_of(path: Path) -> set[tuple[str, str]]:
    connection = sqlitefile.open_checked(
        path, SCHEMA, use_wal=True, check_s=None, copies_folder=path.parent, accept_cut=None
    )
    try:
        rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    finally:
        connection.close()
    return {(name, " ".join(sql.split())) for name, sql in rows}


async def test_newer_store_is_refused(path: Path) -> None:
    async with Store(path):
        pass
    _set_version(path, 99)

    with pytest.raises(CannotStart, match="schema 99"):
        async with Store(path):
            pass


def _set_version(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={version}")
    connection.close()


async def test_network_file_system(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"1 0 0:1 / {tmp_path} rw - fuse.sshfs x rw\n")
    monkeypatch.setattr(filesystems, "MOUNTINFO", mountinfo)

    with pytest.raises(CannotStart, match=r"fuse.sshfs"):
        async with Store(path):
            pass
    async with Store(path, allow_network=True) as store:
        await store.put(Batch(runs=[_run("r1")]))
        await store.flush()
        assert _ids((await store.load(0.0)).runs) == ["r1"]


# -- history, timeline and names -------------------------------------------------------------------------------------


async def test_history_is_filtered_and_paged(store: Store) -> None:
    runs = [
        _over("r1", 100.0),
        _over("r2", 300.0, state=19),
        _over("r3", 200.0, backend="there"),
        _over("r4", 300.0),
        _over("r5", None, updated_at=250.0),  # nobody knows when it ended
        _run("r6"),
    ]
    await store.put(Batch(runs=runs))
    await store.flush()

    async def ids(**filters: Any) -> list[str]:
        return _ids(await store.history(**filters))

    assert await ids() == ["r4", "r2", "r5", "r3", "r1"]
    assert await ids(ended_after=200.0) == ["r4", "r2", "r5"]
    assert await ids(ended_before=250.0) == ["r3", "r1"]
    assert await ids(backends=["there", "nowhere"]) == ["r3"]
    assert await ids(states=[19]) == ["r2"]
    pages, after = [], None
    while page := await ids(limit=2, after=after):
        pages.append(page)
        after = page[-1]
    assert pages == [["r4", "r2"], ["r5", "r3"], ["r1"]]


async def test_timeline_of_one_and_of_all(store: Store) -> None:
    await store.put(
        Batch(events=[_event(1, "r1"), _event(2, None, "there"), _event(3, "r2"), _event(4, "r1"), _event(5, "r1")])
    )
    await store.flush()

    async def seqs(*args: Any, **filters: Any) -> list[int]:
        return [event.seq for event in await store.timeline(*args, **filters)]

    assert await seqs() == [1, 2, 3, 4, 5]
    assert await seqs(limit=2) == [4, 5]  # without a beginning: the last ones
    assert await seqs(after_seq=1, limit=2) == [2, 3]
    assert await seqs(after_seq=5) == []
    assert await seqs("r1") == [1, 4, 5]
    assert await seqs("r1", after_seq=1, limit=1) == [4]
    assert await seqs(backend="there") == [2]
    assert await seqs(since=2.0) == [2, 3, 4, 5]
    assert await seqs(since=1.5, until=4.0, limit=2) == [2, 3]  # with a beginning: the first ones
    assert await seqs(until=4.0, limit=2) == [3, 4]
    assert (await store.timeline("r2")) == [_event(3, "r2")]


async def test_runs_are_found_by_every_name(store: Store) -> None:
    token = "abcdefghij0123456789"
    runs = [
        _over(
            "r1",
            1.0,
            wms_id="12.0",
            global_wms_id="here#12.0#1",
            token=token,
            path="/data/submit/demo",
            name="u_op_demo",
        ),
        _over("r2", 2.0, wms_id="12.0", backend="there", path="/data/submit/other", name="u_op_demo2"),
        _over("r3", 3.0, wms_id="7", path="/data/\udce9", name="100%_a*b?"),
    ]
    await store.put(Batch(runs=runs))
    await store.flush()

    async def ids(name: str) -> list[str]:
        return _ids(await store.find(name))

    assert await ids("r1") == ["r1"]
    assert await ids("12.0") == ["r2", "r1"]  # twins, the latest first
    assert await ids(token) == await ids("here#12.0#1") == ["r1"]
    assert await ids("/data/submit/demo") == ["r1"]
    assert await ids("/data/\udce9") == ["r3"]
    assert await ids("u_op") == ["r2", "r1"]
    assert await ids("u_op_demo") == ["r1", "r2"]  # called exactly so comes first
    assert await ids("100%_a*") == ["r3"]
    assert await ids("%") == await ids("*") == await ids("/data/submit") == []


async def test_as_many_candidates_as_anybody_can_use(store: Store) -> None:
    await store.put(Batch(runs=[_over(f"r{n}", float(n), name="same") for n in range(500)]))
    await store.flush()

    found = await store.find("same")

    assert _ids(found) == [f"r{n}" for n in range(499, 499 - store_module.MAX_CANDIDATES, -1)]


async def test_reading_goes_on_while_the_writer_is_held(store: Store) -> None:
    await store.put(Batch(runs=[_run("r1")]))
    await store.flush()
    async with _held(store):
        await store.put(Batch(runs=[_run("r2")]))
        assert _ids((await store.load(0.0)).runs) == ["r1"]


async def test_slow_question_is_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(connection: sqlite3.Connection, name: str) -> None:
        connection.execute("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT max(n) FROM c")

    monkeypatch.setattr(store_module, "_find", slow)
    monkeypatch.setattr(store._database, "read", partial(store._database.read, deadline_s=0.05))

    with pytest.raises(LimitExceeded, match="a query of the store took longer than"):
        await store.find("x")


# -- care ------------------------------------------------------------------------------------------------------------


async def test_prune_forgets_old_runs_with_all_that_is_theirs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storecare, "PRUNE_RUNS_STEP", 3)
    old = [_over(f"r{n}", float(n)) for n in range(10)]
    await store.put(
        Batch(
            runs=[*old, _run("rlive", updated_at=0.0)],
            jobs_replace={run.run_id: b"x" for run in [*old, _run("rlive")]},
            jobs_append={run.run_id: b"x" for run in old},
            events=[_event(n + 1, f"r{n}") for n in range(10)],
            run_cursors={("here", run.run_id): "x" for run in old},
        )
    )
    await store.flush()

    assert await store.prune(8.0, 100, MANY_BYTES) == 8

    loaded = await store.load(-1.0)
    assert sorted(_ids(loaded.runs)) == ["r8", "r9", "rlive"]
    assert sorted(loaded.run_cursors) == [("here", "r8"), ("here", "r9")]
    assert [event.seq for event in await store.timeline()] == [9, 10]
    assert await store.jobs("r7") == (None, [])
    assert await store.jobs("r8") == (b"x", [b"x"])


async def test_prune_keeps_the_last_events_of_each_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storecare, "PRUNE_EVENTS_STEP", 4)
    events = [_event(3 * n + k, run_id) for n in range(20) for k, run_id in enumerate(("r1", None, f"r{n}x"), 1)]
    await store.put(Batch(events=events))
    await store.flush()

    assert await store.prune(0.0, 5, MANY_BYTES) == 30

    assert [event.seq for event in await store.timeline("r1")] == [46, 49, 52, 55, 58]
    kept = await store.timeline(limit=1000)
    assert [event.seq for event in kept if event.run_id is None] == [47, 50, 53, 56, 59]
    assert len(kept) == 30
    assert (await store.load(0.0)).last_seq == 60


async def test_prune_by_size_forgets_what_ended_first_and_nothing_that_lives(store: Store) -> None:
    doc = b"x" * 20_000
    await store.put(
        Batch(runs=[*(_over(f"r{n:02}", float(n), doc=doc) for n in range(60)), _run("rlive", updated_at=0.0, doc=doc)])
    )
    await store.flush()
    full = await store.used_bytes()
    limit = full // 2

    assert 25 <= await store.prune(0.0, 100, limit) <= 36

    assert limit * 0.8 < await store.used_bytes() <= limit
    left = sorted(_ids((await store.load(-1.0)).runs))
    assert left == [*(f"r{n:02}" for n in range(61 - len(left), 60)), "rlive"]
    assert await store.prune(0.0, 100, limit) == 0
    await store.prune(0.0, 100, 1)
    assert _ids((await store.load(-1.0)).runs) == ["rlive"]


async def test_vacuum_gives_space_back(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storecare, "VACUUM_PAGES_STEP", 10)
    await store.put(Batch(runs=[_over(f"r{n}", 1.0, doc=b"x" * 20_000) for n in range(100)]))
    await store.flush()
    await store.prune(2.0, 100, MANY_BYTES)

    freed = await store.vacuum()

    assert freed > 1_500_000
    assert await store.vacuum() == 0
    assert await store.check() == []


async def test_backup_is_a_store_of_its_own(store: Store, tmp_path: Path) -> None:
    await store.put(Batch(runs=[_run("r1")]))
    await store.flush()

    copy = await store.backup(1)

    elsewhere = tmp_path / "elsewhere" / "store.db"
    elsewhere.parent.mkdir()
    copy.rename(elsewhere)
    async with Store(elsewhere) as other:
        assert other.status.kind == "ok"
        assert _ids((await other.load(0.0)).runs) == ["r1"]
