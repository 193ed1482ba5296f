"""The log is made by SQLite itself; what SQLite takes of it after damage is what SQLite says."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bpsd.wal import FRAME_HEADER_BYTES, HEADER_BYTES, commits_cut_off, frame_headers

PAGE_BYTES = 4096
FRAME_BYTES = FRAME_HEADER_BYTES + PAGE_BYTES
COMMITS = 12


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as a crash leaves it: all commits are in the log, behind frames of an earlier generation of it."""
    folder = tmp_path_factory.mktemp("crashed")
    live = folder / "live.db"
    with closing(sqlite3.connect(live, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, doc BLOB)")
        for n in range(100, 130):
            connection.execute("INSERT INTO t VALUES (?, ?)", (n, b"x" * 2000))
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
        for n in range(COMMITS):
            connection.execute("INSERT INTO t VALUES (?, ?)", (n, b"x" * 2000))
        crashed = folder / "crashed.db"
        shutil.copyfile(live, crashed)
        shutil.copyfile(folder / "live.db-wal", folder / "crashed.db-wal")
    return crashed


def _examine(path: Path, damaged_log: bytes | bytearray, folder: Path) -> tuple[int, int]:
    """How many of the commits SQLite sees behind this log, and how many we say are cut off."""
    database = folder / "x.db"
    log = folder / "x.db-wal"
    shutil.copyfile(path, database)
    log.write_bytes(damaged_log)
    with log.open("rb") as file:
        header = file.read(HEADER_BYTES)
        frames = list(frame_headers(file, PAGE_BYTES))
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        seen = connection.execute("SELECT count(*) FROM t WHERE n < 100").fetchone()[0]
        valid = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
    for file_ in folder.iterdir():
        file_.unlink()
    return seen, commits_cut_off(header, frames, max(valid, 0))


def _log(path: Path) -> bytearray:
    return bytearray(path.with_name(path.name + "-wal").read_bytes())


def test_whole_log(crashed: Path, tmp_path: Path) -> None:
    assert _examine(crashed, _log(crashed), tmp_path) == (COMMITS, 0)


def test_log_with_the_end_cut_off_is_torn_and_not_damaged(crashed: Path, tmp_path: Path) -> None:
    log = _log(crashed)
    seen_before = COMMITS
    for cut in sorted({*range(0, len(log), FRAME_BYTES // 3), 1, HEADER_BYTES - 1, HEADER_BYTES}, reverse=True):
        seen, lost = _examine(crashed, log[:cut], tmp_path)

        assert lost == 0
        assert seen <= seen_before  # what is left is a beginning, never more and never a mixture
        seen_before = seen
    assert seen_before == 0


def test_torn_last_commit_is_not_damage(crashed: Path, tmp_path: Path) -> None:
    log = _log(crashed)
    # The last frame of the present generation is that of the last commit.
    last = max(i for i in range(len(log) // FRAME_BYTES) if _salts(log, i) == bytes(log[16:24]))
    log[HEADER_BYTES + last * FRAME_BYTES + 100] ^= 1

    assert _examine(crashed, log, tmp_path) == (COMMITS - 1, 0)


def _salts(log: bytearray, frame: int) -> bytes:
    start = HEADER_BYTES + frame * FRAME_BYTES
    return bytes(log[start + 8 : start + 16])


@pytest.mark.parametrize("where", [8, 18, 30])
def test_damaged_header_loses_all(crashed: Path, tmp_path: Path, where: int) -> None:
    log = _log(crashed)
    log[where] ^= 1

    assert _examine(crashed, log, tmp_path) == (0, COMMITS)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5])
def test_damage_in_the_middle_is_told(crashed: Path, tmp_path: Path, share: float) -> None:
    log = _log(crashed)
    mine = sum(_salts(log, i) == bytes(log[16:24]) for i in range(len(log) // FRAME_BYTES))
    log[HEADER_BYTES + int(share * mine) * FRAME_BYTES + 500] ^= 1

    seen, lost = _examine(crashed, log, tmp_path)

    # The commit that was hit may have had its last frame hit, which then does not count as one behind the damage.
    assert lost in {COMMITS - seen, COMMITS - seen - 1}
    assert lost > 1


def test_no_log_at_all() -> None:
    assert commits_cut_off(b"", [], 0) == 0
