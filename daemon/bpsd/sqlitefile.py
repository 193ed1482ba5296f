"""One SQLite file: made whole, opened with distrust, copied, migrated, set aside.

Everything here blocks and runs in a thread of `bpsd.database`. A file is *made* under another name and renamed when its
schema is in it, so whatever lies at its place without one is damaged, an empty file included.
"""

from __future__ import annotations

__all__ = [
    "AcceptCut",
    "Damaged",
    "Schema",
    "connect",
    "copies",
    "copies_of_older_days",
    "copy_database",
    "copy_name",
    "create",
    "integrity",
    "is_missing",
    "open_checked",
    "restore",
    "set_aside",
    "sync_folder",
    "text",
    "translated",
]

import contextlib
import datetime as dt
import itertools
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bpsd import wal
from bpsd.errors import CannotStart, StorageError

BUSY_TIMEOUT_S = 30.0
"""How long a connection waits for another's lock; longer than any read may take (`bpsd.database.READ_DEADLINE_S`)."""

LOG_KEEP_BYTES = 16 * 1024 * 1024
"""A write-ahead log that grew beyond this is cut back when it is written from its beginning again."""

LOG_SUFFIXES = ("-wal", "-journal")
"""What SQLite appends to the name of a database for the names of its logs."""

CHECK_STEPS = 50_000
"""SQLite instructions between two looks at the clock during a check with a time limit (some milliseconds)."""

_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_ADVICE = {
    sqlite3.SQLITE_FULL: "free some space there; the next attempt may work",
    sqlite3.SQLITE_IOERR: "free some space there or look for disk errors in the kernel log; the next attempt may work",
    sqlite3.SQLITE_CANTOPEN: "make sure that the folder exists and that bpsd may write there",
    sqlite3.SQLITE_READONLY: "make sure that bpsd may write there and that the file system is not read-only",
    sqlite3.SQLITE_PERM: "make sure that bpsd may write there",
    sqlite3.SQLITE_AUTH: "make sure that bpsd may write there",
    sqlite3.SQLITE_BUSY: "end the other program that has the database open; the next attempt may work",
    sqlite3.SQLITE_LOCKED: "end the other program that has the database open; the next attempt may work",
    sqlite3.SQLITE_NOMEM: "the host is short of memory; the next attempt may work",
    sqlite3.SQLITE_TOOBIG: "the document is larger than SQLite takes (1 GB)",
}


AcceptCut = Callable[[sqlite3.Connection, Path, str], None]
"""Writes down durably, in the database itself, that its log was cut: where the log is kept, and the reason."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a kind of database looks like.

    ``name`` is for people ("journal"); ``application_id`` marks the file as ours (https://www.sqlite.org/pragma.html).
    Step *i* of ``steps`` is the SQL that leads from version *i* to *i* + 1; steps that were released never change.
    """

    name: str
    application_id: int
    steps: tuple[str, ...]

    @property
    def version(self) -> int:
        """The version that all steps together make (``PRAGMA user_version``)."""
        return len(self.steps)


class Damaged(StorageError):
    """The file is not the database that it should be."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"the database {path} is damaged: {reason}",
            advice="restart bpsd: it sets the file aside and goes on with what it can rebuild or restore",
            path=str(path),
            reason=reason,
        )
        self.path = path
        self.reason = reason


def _code(exc: sqlite3.Error) -> int:
    """The primary result code of an error (0: it came from Python's module)."""
    return int(getattr(exc, "sqlite_errorcode", 0) or 0) & 0xFF


@contextlib.contextmanager
def translated(doing: str, path: Path, *, distrust: bool = False) -> Iterator[None]:
    """Turn what SQLite and the operating system say about the disk into `StorageError` or `Damaged`.

    Errors of logic (a broken constraint, wrong SQL) are ours and pass as they are, unless we ``distrust`` the file: a
    damaged schema names tables and functions that there are not.
    """
    try:
        yield
    except sqlite3.Error as exc:
        code = _code(exc)
        # We write no documents while we distrust: one that is too big is a length that was damaged.
        if code in _DAMAGE or (distrust and (code not in _ADVICE or code == sqlite3.SQLITE_TOOBIG)):
            raise Damaged(path, str(exc)) from exc
        if code not in _ADVICE:
            raise
        raise StorageError(f"{doing} {path} failed: {exc}", advice=_ADVICE[code], path=str(path)) from exc
    except UnicodeDecodeError as exc:
        if not distrust:
            raise
        # Python's module could not even read the message of the error, which quotes the damaged schema.
        raise Damaged(path, "its schema is not text") from exc
    except OSError as exc:
        raise StorageError(
            f"{doing} {path} failed: {exc.strerror or exc}",
            advice="make sure that there is space and that bpsd may write there; the next attempt may work",
            path=str(path),
        ) from exc


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection to a file that exists.

    ``mode`` is that of the SQLite URI: ``rw``, ``ro``, or ``immutable`` for a copy that nobody writes.
    """
    query = "immutable=1" if mode == "immutable" else f"mode={mode}"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        cached_statements=256,
    )
    # A text with a damaged character must not keep the rest from being read.
    connection.text_factory = lambda value: value.decode("utf-8", "replace")
    connection.execute("PRAGMA foreign_keys=ON")
    return connection


def _run_step(connection: sqlite3.Connection, schema: Schema, version: int) -> None:
    """Lead the schema from ``version - 1`` to ``version``, wholly or not at all."""
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{schema.steps[version - 1]}\nPRAGMA user_version={version};\nCOMMIT;"
        )
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, durably."""
    handle = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    temporary.replace(path)
    sync_folder(path.parent)


def _private_file(path: Path) -> None:
    """An empty file for our eyes only; whatever was there is gone."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def create(path: Path, schema: Schema, prepare: Callable[[sqlite3.Connection], None] | None = None) -> None:
    """Make a database of the current version; ``prepare`` may put rows into it before anybody can see it."""
    temporary = path.with_name(path.name + ".new")
    _private_file(temporary)
    with contextlib.closing(connect(temporary, "rw")) as connection:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute(f"PRAGMA application_id={schema.application_id}")
        for version in range(1, schema.version + 1):
            _run_step(connection, schema, version)
        if prepare is not None:
            prepare(connection)
    _publish(temporary, path)


def integrity(connection: sqlite3.Connection, limit_s: float | None) -> list[str]:
    """What SQLite finds wrong with a file.

    Parameters
    ----------
    connection : `sqlite3.Connection`
        A connection to it.
    limit_s : `float` or `None`
        `None` checks everything, however long it takes. Otherwise indices are not compared with their tables, and a
        check that is not over after so many seconds is taken for good.
    """
    if limit_s is None:
        rows = connection.execute("PRAGMA integrity_check(20)").fetchall()
        return [row[0] for row in rows if row[0] != "ok"]
    end = time.monotonic() + limit_s
    connection.set_progress_handler(lambda: time.monotonic() > end, CHECK_STEPS)
    try:
        rows = connection.execute("PRAGMA quick_check(20)").fetchall()
        return [row[0] for row in rows if row[0] != "ok"]
    except sqlite3.OperationalError as exc:
        if _code(exc) == sqlite3.SQLITE_INTERRUPT:
            return []
        raise
    finally:
        connection.set_progress_handler(None, 0)


def _require_identity(connection: sqlite3.Connection, path: Path, schema: Schema) -> int:
    """The schema version of a file, if it is one of ours that we can read."""
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if application_id != schema.application_id or version < 1:
        raise Damaged(path, f"it is not a {schema.name} of bpsd")
    if version > schema.version:
        raise CannotStart(
            f"the {schema.name} {path} was written by a newer bpsd (schema {version}, this one knows {schema.version})",
            advice="install that bpsd again, or stop it and put back the copy that was taken before the upgrade, in the"
            " folder 'copies' beside it",
            path=str(path),
            schema=version,
            known=schema.version,
        )
    return version


def _read_log(path: Path) -> tuple[bytes, list[bytes]]:
    """The header of the write-ahead log and of its frames, as they lie there (empty without a log)."""
    try:
        with path.with_name(path.name + "-wal").open("rb") as log:
            header = log.read(wal.HEADER_BYTES)
            # The log's header may be the damage: the page size is asked of the database, which is where it came from.
            with path.open("rb") as database:
                database.seek(16)
                page_bytes = int.from_bytes(database.read(2), "big")
            return header, list(wal.frame_headers(log, page_bytes if page_bytes > 1 else 65536))
    except FileNotFoundError:
        return b"", []


def _set_modes(connection: sqlite3.Connection, path: Path, *, durable: bool, use_wal: bool) -> None:
    """Set how the file is written: with a write-ahead log, or without one where memory cannot be shared."""
    mode = connection.execute(f"PRAGMA journal_mode={'WAL' if use_wal else 'TRUNCATE'}").fetchone()[0]
    if mode != ("wal" if use_wal else "truncate"):
        raise CannotStart(
            f"the database {path} cannot be used in the way it needs (journal mode {mode})",
            advice="set state_dir to a folder on a local disk",
            path=str(path),
        )
    connection.execute("PRAGMA locking_mode=NORMAL")
    # Without a log, NORMAL could damage the file when the power fails (https://www.sqlite.org/pragma.html#pragma_synchronous).
    connection.execute(f"PRAGMA synchronous={'FULL' if durable or not use_wal else 'NORMAL'}")
    connection.execute(f"PRAGMA journal_size_limit={LOG_KEEP_BYTES}")


def _look_for_lost_commits(
    connection: sqlite3.Connection, path: Path, header: bytes, frames: list[bytes], accept_cut: AcceptCut
) -> None:
    """See whether SQLite took all that the write-ahead log held when it was opened.

    What it took is consistent and newer than any copy. The log as it was is kept for people; it stays in its place too
    until `AcceptCut` has written down what happened, so that a crash on the way changes nothing.
    """
    valid = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
    lost = wal.commits_cut_off(header, frames, max(valid, 0))
    if lost:
        log = path.with_name(path.name + "-wal")
        aside = _free_name(log)
        shutil.copyfile(log, aside)
        aside.chmod(0o600)
        accept_cut(connection, aside, f"its write-ahead log is broken, and {lost} commits behind that place are lost")


def open_checked(
    path: Path,
    schema: Schema,
    *,
    use_wal: bool,
    check_s: float | None,
    copies_folder: Path,
    accept_cut: AcceptCut | None,
) -> sqlite3.Connection:
    """Open a file that exists, look for damage, and bring its schema up to date.

    Parameters
    ----------
    path : `~pathlib.Path`
        The file.
    schema : `Schema`
        What it should hold.
    use_wal : `bool`
        Whether there is a write-ahead log.
    check_s : `float` or `None`
        See `integrity`.
    copies_folder : `~pathlib.Path`
        Where the copy goes that is taken before a migration.
    accept_cut : callable or `None`
        A commit must survive a power cut (``synchronous=FULL``), and this writes down that some did not. `None`: the
        last commits may be lost.

    Raises
    ------
    Damaged
        If it is not the database that it should be.
    CannotStart
        If a newer bpsd wrote it, or a migration failed.
    StorageError
        If the disk fails.
    """
    with translated("opening the database", path, distrust=True):
        if path.stat().st_size == 0:
            raise Damaged(path, "it is empty")
        path.chmod(0o600)
        header, frames = _read_log(path)
        connection = connect(path, "rw")
        try:
            if not use_wal:
                # Reading a file that was left with a log, without sharing memory for it.
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            version = _require_identity(connection, path, schema)
            problems = integrity(connection, check_s)
            if problems:
                raise Damaged(path, "; ".join(problems[:3]))
            _set_modes(connection, path, durable=accept_cut is not None, use_wal=use_wal)
            if accept_cut is not None and header:
                _look_for_lost_commits(connection, path, header, frames, accept_cut)
            if version < schema.version:
                _migrate(connection, path, schema, version, copies_folder)
        except BaseException:
            connection.close()
            raise
        return connection


def _migrate(connection: sqlite3.Connection, path: Path, schema: Schema, version: int, copies_folder: Path) -> None:
    """Copy the file, then take the steps that it lacks."""
    copy = copies_folder / copy_name(path, f"schema-{version}")
    copy_database(connection, copy)
    for target in range(version + 1, schema.version + 1):
        try:
            _run_step(connection, schema, target)
        except sqlite3.Error as exc:
            if _code(exc) in _DAMAGE:
                raise
            raise CannotStart(
                f"bringing the {schema.name} {path} from schema {target - 1} to {target} failed: {exc}",
                advice=f"nothing of that step was kept, and {copy} is the file as it was; free some space if the disk"
                " is full, otherwise install the bpsd of before and report this",
                path=str(path),
            ) from exc


# -- copies ----------------------------------------------------------------------------------------------------------


def copy_name(path: Path, suffix: str = "") -> str:
    """The name of today's copy of a database (UTC): ``journal-2026-11-22.db``."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return f"{path.stem}-{today}{'-' + suffix if suffix else ''}{path.suffix}"


def copies(path: Path, folder: Path) -> list[Path]:
    """All copies of a database in a folder, the newest first: by the day in the name, then by time of writing.

    Those of days that are still to come were written while the clock was wrong, and come last.
    """
    tomorrow = (dt.datetime.now(dt.UTC).date() + dt.timedelta(days=1)).isoformat()
    pattern = re.compile(rf"{re.escape(path.stem)}-(\d{{4}}-\d\d-\d\d)(-schema-\d+|-\d+)?{re.escape(path.suffix)}")
    found = []
    if folder.is_dir():
        for entry in folder.iterdir():
            match = pattern.fullmatch(entry.name)
            if match:
                found.append(((match[1] <= tomorrow, match[1], entry.stat().st_mtime_ns), entry))
    return [entry for _, entry in sorted(found, reverse=True)]


def copies_of_older_days(path: Path, folder: Path, days: int) -> list[Path]:
    """The copies of a database that are not of the newest ``days`` days of which there are copies."""
    date = slice(len(path.stem) + 1, len(path.stem) + 11)
    found = copies(path, folder)
    kept = list(dict.fromkeys(copy.name[date] for copy in found))[:days]
    return [copy for copy in found if copy.name[date] not in kept]


def copy_database(source: sqlite3.Connection, target: Path) -> None:
    """Write a consistent copy of an open database, check it, and only then give it its name.

    Raises
    ------
    StorageError
        If the disk fails; an older file of that name stays as it was.
    Damaged
        If the copy is not sound, which means that the source is not.
    """
    with translated("copying the database to", target):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".new")
        _private_file(temporary)
        try:
            with contextlib.closing(connect(temporary, "rw")) as copy:
                source.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")  # a copy is one file, readable everywhere
                problems = integrity(copy, None)
            if problems:
                raise Damaged(target, "; ".join(problems[:3]))
            _publish(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def restore(copy: Path, path: Path, schema: Schema, prepare: Callable[[sqlite3.Connection], None]) -> None:
    """Put a copy in the place of a database, after looking whether it is sound. ``prepare``: as in `create`.

    Raises
    ------
    Damaged
        If the copy is not sound.
    CannotStart
        If the copy was written by a newer bpsd.
    StorageError
        If the disk fails.
    """
    with translated("restoring the database from", copy, distrust=True):
        temporary = path.with_name(path.name + ".new")
        _private_file(temporary)
        shutil.copyfile(copy, temporary)
        with contextlib.closing(connect(temporary, "rw")) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            _require_identity(connection, copy, schema)
            problems = integrity(connection, None)
            if problems:
                raise Damaged(copy, "; ".join(problems[:3]))
            prepare(connection)
        _publish(temporary, path)


def set_aside(path: Path) -> Path | None:
    """Rename a damaged database, with its log, to a name that carries the time; it can be opened there as it is.

    Returns
    -------
    aside : `~pathlib.Path` or `None`
        Its new name, or `None` if there was nothing.
    """
    with translated("setting aside", path):
        aside = _free_name(path)
        found = False
        # The database first: a database without its log would pass for whole, a log without its database does not.
        for suffix in ("", *LOG_SUFFIXES):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
                found = True
        path.with_name(path.name + "-shm").unlink(missing_ok=True)
        sync_folder(path.parent)
        return aside if found else None


def _free_name(path: Path) -> Path:
    """A name beside a damaged file that carries the time and that nothing has, with or without a log."""
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    names = itertools.chain([stamp], (f"{stamp}-{count}" for count in itertools.count(2)))
    asides = (path.with_name(f"{path.name}.damaged-{name}") for name in names)
    return next(
        aside
        for aside in asides
        if not any(aside.with_name(aside.name + suffix).exists() for suffix in ("", *LOG_SUFFIXES))
    )


def is_missing(path: Path) -> bool:
    """Whether there is no database, though its log lies there: somebody or something took it away."""
    return not path.exists() and any(path.with_name(path.name + suffix).exists() for suffix in LOG_SUFFIXES)


def text(value: str) -> str:
    r"""A text as SQLite can keep it: what is not Unicode (bytes of a path, as surrogates) is written as ``\udcNN``."""
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
