from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from bpsd import sqlitefile
from bpsd.errors import CannotStart, StorageError
from bpsd.sqlitefile import AcceptCut, Damaged, Schema
from tests.figures import figure

FLIPS = figure("DATABASE_FLIPS", test=60, soak=3000)
"""Files with flipped bytes that are opened."""

ROWS = 400
STEPS = (
    """
    CREATE TABLE t (n INTEGER PRIMARY KEY, doc TEXT NOT NULL CHECK (json_valid(doc))) STRICT;
    CREATE INDEX d ON t (doc);
    """,
    "ALTER TABLE t ADD COLUMN more TEXT; UPDATE t SET more = 'x' || n;",
    "CREATE TABLE u (m INTEGER); INSERT INTO u SELECT n FROM t;",
)
SCHEMA = Schema("thing", 0x74657374, STEPS[:1])


def _schema(version: int) -> Schema:
    return Schema("thing", 0x74657374, STEPS[:version])


def _refuse_cut(connection: sqlite3.Connection, aside: Path, reason: str) -> None:
    raise AssertionError(reason)


def _open(
    path: Path, schema: Schema = SCHEMA, *, use_wal: bool = True, accept_cut: AcceptCut | None = _refuse_cut
) -> sqlite3.Connection:
    return sqlitefile.open_checked(
        path,
        schema,
        use_wal=use_wal,
        check_s=None,
        copies_folder=path.parent / "copies",
        accept_cut=accept_cut,
    )


def _fill(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO t (n, doc) VALUES (?, ?)", [(n, f'{{"n": {n}}}') for n in range(ROWS)])
    connection.execute("COMMIT")


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "thing.db"
    path.parent.mkdir(mode=0o700)
    sqlitefile.create(path, SCHEMA, _fill)
    return path


def _count(path: Path, schema: Schema = SCHEMA) -> int:
    with contextlib.closing(_open(path, schema)) as connection:
        return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])


# -- making and opening ----------------------------------------------------------------------------------------------


def test_files_are_for_our_eyes_only(filled: Path) -> None:
    filled.chmod(0o644)

    with contextlib.closing(_open(filled)) as connection:
        connection.execute("DELETE FROM t WHERE n = 1")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in filled.parent.iterdir()}

    assert modes == {"thing.db": 0o600, "thing.db-wal": 0o600, "thing.db-shm": 0o600}


def test_durable_means_synced_at_every_commit(filled: Path) -> None:
    with contextlib.closing(_open(filled)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_without_a_log_where_memory_cannot_be_shared(filled: Path) -> None:
    _open(filled).close()  # leaves a file in the mode of the log

    with contextlib.closing(_open(filled, use_wal=False)) as connection:
        connection.execute("DELETE FROM t WHERE n = 1")

        assert connection.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
        assert not filled.with_name("thing.db-wal").exists()
        with contextlib.closing(sqlitefile.connect(filled, "ro")) as other:
            assert other.execute("SELECT count(*) FROM t").fetchone() == (ROWS - 1,)


def test_names_with_odd_characters(tmp_path: Path) -> None:
    path = tmp_path / "100% a?b#c" / "thing.db"
    path.parent.mkdir()
    sqlitefile.create(path, SCHEMA, _fill)

    assert _count(path) == ROWS


# -- schema versions -------------------------------------------------------------------------------------------------


def test_newer_schema_is_refused_and_left_alone(filled: Path) -> None:
    _count(filled, _schema(3))
    before = filled.read_bytes()

    with pytest.raises(CannotStart, match=r"schema 3, this one knows 1.*install that bpsd again"):
        _open(filled)

    assert filled.read_bytes() == before


def test_migration_takes_every_step_and_a_copy_first(filled: Path) -> None:
    with contextlib.closing(_open(filled, _schema(3))) as connection:
        assert connection.execute("SELECT more FROM t WHERE n = 7").fetchone() == ("x7",)
        assert connection.execute("SELECT count(*) FROM u").fetchone() == (ROWS,)
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)

    copies = sqlitefile.copies(filled, filled.parent / "copies")
    assert [copy.name.endswith("-schema-1.db") for copy in copies] == [True]
    assert stat.S_IMODE(copies[0].stat().st_mode) == 0o600
    with contextlib.closing(sqlitefile.connect(copies[0], "immutable")) as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (1,)
        assert copy.execute("SELECT count(*) FROM t").fetchone() == (ROWS,)


def test_failed_step_undoes_itself_and_can_be_tried_again(filled: Path) -> None:
    broken = Schema("thing", SCHEMA.application_id, (*STEPS[:2], "DELETE FROM t; INSERT INTO absent VALUES (1);"))

    with pytest.raises(CannotStart, match="from schema 2 to 3 failed: no such table: absent"):
        _open(filled, broken)

    assert _count(filled, _schema(2)) == ROWS
    assert _count(filled, _schema(3)) == ROWS


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"hello, I am no database", b"\0" * 8192])
def test_what_is_no_database_is_damaged(filled: Path, content: bytes) -> None:
    filled.write_bytes(content)

    with pytest.raises(Damaged) as caught:
        _open(filled)

    assert "sets the file aside" in str(caught.value)


def test_a_database_of_something_else_is_damaged(filled: Path) -> None:
    filled.unlink()
    with contextlib.closing(sqlite3.connect(filled)) as connection:
        connection.execute("CREATE TABLE t (n, doc)")
        connection.commit()

    with pytest.raises(Damaged, match="it is not a thing of bpsd"):
        _open(filled)


def test_rows_that_break_their_promises_are_damage(filled: Path) -> None:
    content = filled.read_bytes()
    assert content.count(b'{"n": 123}') == 2  # the row and the index
    filled.write_bytes(content.replace(b'{"n": 123}', b'{"n": 123]'))

    with pytest.raises(Damaged, match="CHECK constraint"):
        _open(filled)


def test_truncated_file_is_damaged(filled: Path) -> None:
    content = filled.read_bytes()

    for cut in sorted({*range(1, len(content), 1500), len(content) - 1}):
        filled.write_bytes(content[:cut])
        with pytest.raises(Damaged):
            _open(filled)


def test_flipped_bytes_are_told_or_do_no_harm(filled: Path) -> None:
    """Whatever a byte becomes, the file opens sound or is told as damaged; nothing else is raised, nothing hangs."""
    content = filled.read_bytes()
    chance = random.Random(20261122)
    told = 0

    for _ in range(FLIPS):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 8))):
            damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        filled.write_bytes(damaged)
        try:
            connection = _open(filled)
        except Damaged:
            told += 1
        except CannotStart as exc:  # the flipped byte was in the number of the schema
            told += exc.fields["schema"] > SCHEMA.version
        else:
            assert sqlitefile.integrity(connection, None) == []
            connection.close()
        for file in filled.parent.glob("thing.db-*"):
            file.unlink()
    assert told > FLIPS // 10


def test_damaged_log_is_told_and_kept(filled: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "thing.db"
    copy.parent.mkdir()
    with contextlib.closing(_open(filled)) as connection:
        for n in range(10):
            connection.execute("INSERT INTO t (n, doc) VALUES (?, '{}')", (ROWS + n,))
        shutil.copyfile(filled, copy)
        log = bytearray(filled.with_name("thing.db-wal").read_bytes())
    log[len(log) // 2] ^= 1
    copy.with_name("thing.db-wal").write_bytes(log)
    told = []

    def accept_cut(connection: sqlite3.Connection, aside: Path, reason: str) -> None:
        told.append((aside, reason))
        assert copy.with_name("thing.db-wal").read_bytes() == log  # were we killed now, it would be told again
        connection.execute("INSERT INTO t (n, doc) VALUES (-1, '{}')")

    with contextlib.closing(_open(copy, accept_cut=accept_cut)) as connection:
        rows = [n for (n,) in connection.execute("SELECT n FROM t ORDER BY n")]

    ((aside, reason),) = told
    assert "commits behind that place are lost" in reason
    assert aside.read_bytes() == log
    assert aside.name.startswith("thing.db-wal.damaged-")
    assert rows == [-1, *range(len(rows) - 1)]
    assert ROWS < len(rows) < ROWS + 10
    _open(copy).close()


def test_log_may_lose_its_end_where_that_is_agreed(filled: Path) -> None:
    with contextlib.closing(_open(filled, accept_cut=None)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (1,)


def test_check_with_a_time_limit_takes_what_it_does_not_reach_for_good(filled: Path) -> None:
    with contextlib.closing(_open(filled)) as connection:
        connection.execute(
            "WITH RECURSIVE c(n) AS (SELECT 1000 UNION ALL SELECT n + 1 FROM c WHERE n < 60000)"
            " INSERT INTO t (n, doc) SELECT n, '{}' FROM c"
        )

        assert sqlitefile.integrity(connection, 0.0) == []
        assert sqlitefile.integrity(connection, 60.0) == []


# -- copies and setting aside ----------------------------------------------------------------------------------------


def test_copies_are_found_newest_first(tmp_path: Path) -> None:
    names = ["thing-2026-01-31.db", "thing-2026-02-01-schema-1.db", "thing-2026-02-01.db", "thing-2025-12-31.db"]
    for age, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    for name in ("other-2026-03-01.db", "thing-2026-03-01.db.new", "thing.db", "thing-x.db"):
        (tmp_path / name).touch()

    found = [copy.name for copy in sqlitefile.copies(tmp_path / "thing.db", tmp_path)]

    assert found == [
        "thing-2026-02-01-schema-1.db",
        "thing-2026-02-01.db",
        "thing-2026-01-31.db",
        "thing-2025-12-31.db",
    ]
    assert sqlitefile.copies(tmp_path / "thing.db", tmp_path / "none") == []


def test_copy_that_fails_leaves_the_older_one(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = filled.parent / "copies" / "thing-2026-01-01.db"
    with contextlib.closing(_open(filled)) as connection:
        sqlitefile.copy_database(connection, copy)
        before = copy.read_bytes()
        monkeypatch.setattr(sqlitefile, "integrity", lambda *_: ["rotten"])

        with pytest.raises(Damaged, match="rotten"):
            sqlitefile.copy_database(connection, copy)

    assert [file.name for file in copy.parent.iterdir()] == [copy.name]
    assert copy.read_bytes() == before


def test_set_aside_takes_the_log_along_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "thing.db"
    asides = []
    for round_ in range(3):
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).write_text(f"{round_}{suffix}")
        asides.append(sqlitefile.set_aside(path))

    assert len(set(asides)) == 3
    for round_, aside in enumerate(asides):
        assert aside is not None
        assert aside.name.startswith("thing.db.damaged-")
        assert aside.read_text() == str(round_)
        assert aside.with_name(aside.name + "-wal").read_text() == f"{round_}-wal"
    assert not path.exists()
    assert not path.with_name("thing.db-shm").exists()
    assert sqlitefile.set_aside(path) is None


def test_log_without_its_database_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "thing.db"

    assert not sqlitefile.is_missing(path)
    path.with_name("thing.db-wal").touch()
    assert sqlitefile.is_missing(path)
    path.touch()
    assert not sqlitefile.is_missing(path)


# -- errors ----------------------------------------------------------------------------------------------------------


def test_a_length_that_was_damaged_is_damage_and_a_document_too_large_is_not(filled: Path) -> None:
    with contextlib.closing(sqlite3.connect(filled)) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100)
        with pytest.raises(Damaged, match="too big"), sqlitefile.translated("opening", filled, distrust=True):
            connection.execute("SELECT zeroblob(1000)").fetchall()
        with pytest.raises(StorageError, match="larger than SQLite takes"), sqlitefile.translated("writing", filled):
            connection.execute("SELECT zeroblob(1000)").fetchall()


def test_errors_of_the_disk_are_ours_and_errors_of_logic_are_not(filled: Path) -> None:
    with contextlib.closing(_open(filled)) as connection:
        with pytest.raises(sqlite3.IntegrityError), sqlitefile.translated("writing", filled):
            connection.execute("INSERT INTO t VALUES (1, '{}')")
        connection.execute("PRAGMA max_page_count=1")
        with (
            pytest.raises(StorageError, match=r"writing .*thing.db failed: .*full \(free some space"),
            sqlitefile.translated("writing", filled),
        ):
            connection.executemany("INSERT INTO t VALUES (?, ?)", [(n, f'"{"x" * 3000}"') for n in range(900, 999)])
    with pytest.raises(StorageError, match="No such file"), sqlitefile.translated("reading", filled):
        (filled.parent / "none").read_bytes()


@pytest.mark.parametrize(
    ("given", "kept"), [("plain", "plain"), ("größe", "größe"), ("a\udce9b", "a\\udce9b"), ("", "")]
)
def test_text_is_kept_or_escaped(given: str, kept: str) -> None:
    assert sqlitefile.text(given) == kept
