"""The journal: what must never be lost. Commands, run ids, attempts, tokens; and with that the audit.

A command is durable before it is acknowledged, and before the WMS is touched. If the file turns out to be damaged when
it is opened, it is set aside and the newest sound copy takes its place. Commands of the time since are then unknown, so
the journal takes and begins none until a person has looked at the WMS and said so (``bpsctl admin accept``). Runs are
still given their names meanwhile: a status needs them, and they harm nobody.
"""

from __future__ import annotations

__all__ = [
    "AUDIT_KEEP_DAYS",
    "SCHEMA",
    "Attempt",
    "CommandRecord",
    "Journal",
    "JournalStatus",
    "Position",
    "RunIdentity",
    "Sighting",
]

import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar

import msgspec

from bpsd import commandlog, identities, sqlitefile
from bpsd.commandlog import CommandRecord
from bpsd.database import Database, Job, Statistics
from bpsd.errors import CannotStart, Conflict, ReadOnly, StorageError
from bpsd.identities import Attempt, RunIdentity, Sighting
from bpsd.sqlitefile import Damaged, Schema, translated

T = TypeVar("T")

AUDIT_KEEP_DAYS = 365.0
"""How long commands are kept at least, unless the configuration says otherwise."""

PRUNE_STEP = 500
"""Commands that one transaction of `Journal.prune` removes at most."""

IDENTITIES_DEADLINE_S = 60.0
"""How long reading all identities at start-up may take."""

STARTS_KEY = "starts"
"""The row of table ``meta`` that counts the starts of the daemon."""

RESTORED_KEY = "restored"
"""The row of table ``meta`` that is there while a restored journal waits to be accepted."""

SCHEMA = Schema(
    name="journal",
    application_id=0x6270736A,  # "bpsj"
    steps=(
        """
        CREATE TABLE meta (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

        CREATE TABLE backends (
            uid TEXT PRIMARY KEY NOT NULL,
            name TEXT NOT NULL UNIQUE,
            created_at REAL NOT NULL
        ) STRICT;

        CREATE TABLE runs (
            run_id TEXT PRIMARY KEY NOT NULL CHECK (run_id GLOB 'r????????'),
            backend_uid TEXT NOT NULL REFERENCES backends (uid),
            token TEXT,
            path TEXT,
            first_submit_time REAL,
            uid INTEGER,
            owner TEXT,
            name TEXT NOT NULL,
            created_at REAL NOT NULL
        ) STRICT;
        CREATE UNIQUE INDEX runs_by_token ON runs (token, backend_uid) WHERE token IS NOT NULL;
        CREATE INDEX runs_by_path ON runs (path) WHERE path IS NOT NULL;

        CREATE TABLE attempts (
            run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
            attempt INTEGER NOT NULL,
            wms_id TEXT,
            path TEXT,
            submit_time REAL,
            command_id TEXT,
            created_at REAL NOT NULL,
            PRIMARY KEY (run_id, attempt)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX attempts_by_wms_id ON attempts (wms_id) WHERE wms_id IS NOT NULL;

        CREATE TABLE commands (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE CHECK (id GLOB 'c????????'),
            verb TEXT NOT NULL,
            backend_uid TEXT NOT NULL REFERENCES backends (uid),
            run_id TEXT NOT NULL,
            token TEXT,
            attempt INTEGER,
            args TEXT NOT NULL CHECK (json_valid(args)),
            state TEXT NOT NULL CHECK (
                state IN ('ACCEPTED', 'RUNNING', 'DONE', 'FAILED', 'IN_DOUBT', 'EXPIRED', 'SUPERSEDED')
            ),
            uid INTEGER NOT NULL,
            pid INTEGER NOT NULL,
            user TEXT NOT NULL,
            client TEXT NOT NULL,
            accepted_at REAL NOT NULL,
            expires_at REAL,
            started_at REAL,
            ended_at REAL,
            result TEXT CHECK (result IS NULL OR json_valid(result)),
            error TEXT CHECK (error IS NULL OR json_valid(error)),
            note TEXT NOT NULL
        ) STRICT;
        CREATE UNIQUE INDEX commands_by_token ON commands (token) WHERE verb = 'submit';
        CREATE INDEX commands_by_run ON commands (run_id, seq);
        CREATE INDEX commands_open ON commands (seq) WHERE state IN ('ACCEPTED', 'RUNNING', 'IN_DOUBT');
        CREATE INDEX commands_by_end ON commands (ended_at) WHERE ended_at IS NOT NULL;
        """,
        """
        ALTER TABLE attempts ADD COLUMN global_wms_id TEXT;
        CREATE INDEX attempts_by_global_wms_id ON attempts (global_wms_id) WHERE global_wms_id IS NOT NULL;
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """How the journal was found.

    ``fresh``: made just now. ``ok``: as it was left. ``restored``: it was damaged (``reason``) and stands as of
    ``restored_from`` (`None`: empty, there was no copy); what it was lies in ``set_aside``. ``read_only`` holds until
    `Journal.accept_restored`, over restarts. ``older``: it was not damaged, but the history knows of later commands.
    """

    kind: Literal["fresh", "ok", "restored"]
    read_only: bool = False
    restored_from: str | None = None
    set_aside: str | None = None
    reason: str = ""
    older: bool = False


class Position(NamedTuple):
    """What a journal has counted: starts of the daemon, and commands, those that were pruned included."""

    starts: int
    commands: int


class Journal:
    """The journal of one daemon. An async context manager.

    Parameters
    ----------
    path : `~pathlib.Path`
        ``journal.db``; its copies are in the folder ``copies`` beside it.
    backups : `int`
        How many daily copies are kept.
    allow_network : `bool`, optional
        Run on a network file system, without a write-ahead log, instead of refusing to.
    keep_days : `float`, optional
        What `prune` never removes is younger than this.
    clock : callable, optional
        Epoch seconds.

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
        backups: int,
        allow_network: bool = False,
        keep_days: float = AUDIT_KEEP_DAYS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.status = JournalStatus("fresh")
        self.position = Position(0, 0)
        """What it had counted when a start or a command was counted last."""
        self.when_counted: Callable[[Position], None] = lambda _: None
        """Called when a command was counted."""
        self._backups = backups
        self._keep_days = keep_days
        self._clock = clock
        self._database = Database(
            path,
            SCHEMA,
            check_s=None,
            recover=self._recover,
            accept_cut=self._accept_cut,
            allow_network=allow_network,
        )

    def __repr__(self) -> str:
        return f"<Journal {str(self._database.path)!r} {self.status.kind}{', read-only' * self.status.read_only}>"

    async def __aenter__(self) -> Self:
        try:
            fresh = await self._database.open(must_exist=lambda: bool(self._copies()))
            restored = await self._database.read(_restored)
        except BaseException:
            await self._database.close()
            raise
        self.status = restored or JournalStatus("fresh" if fresh else "ok")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._database.close()

    @property
    def statistics(self) -> Statistics:
        """Figures of the writer thread."""
        return self._database.statistics

    # -- commands ----------------------------------------------------------------------------------------------------

    async def accept(self, record: CommandRecord, *, name: str = "") -> tuple[CommandRecord, bool]:
        """Make a command durable.

        A ``submit`` whose token is known is the command that it was; otherwise its run gets an id. A ``restart`` of a
        run that is being restarted is that restart; otherwise it gets the number after all that are known (and after
        ``record.attempt``, if the caller knows of more).

        Parameters
        ----------
        record : `CommandRecord`
            As the caller wants it; ``id`` and what the class says are filled in.
        name : `str`, optional
            The name of the run of a ``submit``.

        Returns
        -------
        record : `CommandRecord`
            The command as it is in the journal, on the disk.
        created : `bool`
            Whether it is new.

        Raises
        ------
        Conflict
            If the token was used for another workflow or backend.
        PermissionDenied
            If the token is another user's.
        RunNotFound
            If another verb than ``submit`` names a run that is unknown.
        ReadOnly
            If a restored journal has not been accepted.
        StorageError
            If the disk fails: nothing was accepted.
        """
        accept = partial(commandlog.accept, record=record, name=name, now=self._clock())
        (accepted, created), self.position = await self._command(lambda c: (accept(c), _position(c)))
        if created:
            self.when_counted(self.position)
        return accepted, created

    async def begin(self, id: str) -> CommandRecord:
        """Take a command to RUNNING, durably: from here on the WMS may have heard of it.

        Raises
        ------
        Conflict
            If it is not ACCEPTED.
        """
        return await self._command(partial(commandlog.change, id=id, state="RUNNING", now=self._clock()))

    async def finish(
        self,
        id: str,
        state: str,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        note: str | None = None,
        expires_at: float | None = None,
    ) -> CommandRecord:
        """Take a command to its next state, as `bpsd.commandlog.TRANSITIONS` allows.

        ``ACCEPTED`` puts it back in the queue: only with proof that the WMS does not have it, or on a person's word,
        which may have it expire later.

        Raises
        ------
        Conflict
            If that state may not follow.
        CommandNotFound
            If there is no such command.
        """
        return await self._command(
            partial(
                commandlog.change,
                id=id,
                state=state,
                result=result,
                error=error,
                note=note,
                expires_at=expires_at,
                now=self._clock(),
            )
        )

    async def note(self, id: str, note: str) -> CommandRecord:
        """Say something of a command (what is being waited for, why it is in doubt), in whatever state it is."""
        return await self._command(partial(commandlog.change, id=id, state=None, note=note, now=self._clock()))

    async def command(self, id: str) -> CommandRecord:
        """One command.

        Raises
        ------
        CommandNotFound
            If there is no such command.
        """
        return await self._database.read(partial(commandlog.by_id, id=id))

    async def by_token(self, token: str) -> CommandRecord | None:
        """The submission that carried this token, if there is one."""
        return await self._database.read(partial(commandlog.by_token, token=token))

    async def unfinished(self) -> list[CommandRecord]:
        """All commands that are ACCEPTED, RUNNING or IN_DOUBT, in the order in which they were accepted."""
        return await self._database.read(commandlog.unfinished)

    async def commands(
        self,
        *,
        run_id: str | None = None,
        backend: str | None = None,
        states: Collection[str] = (),
        user: str | None = None,
        uid: int | None = None,
        since: float | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> list[CommandRecord]:
        """Commands for which all conditions hold, the newest first.

        ``since`` is the time of acceptance, ``before`` the id of the last command of the page before.
        """
        return await self._database.read(
            partial(
                commandlog.select,
                run_id=run_id,
                backend=backend,
                states=tuple(states),
                user=user,
                uid=uid,
                since=since,
                before=before,
                limit=limit,
            )
        )

    # -- identities --------------------------------------------------------------------------------------------------

    async def identify(self, sightings: Sequence[Sighting]) -> list[str]:
        """The run ids of what a poll saw, in its order; new runs get one. `identities` tells the attempts."""
        return await self._database.run(partial(identities.identify, sightings=tuple(sightings), now=self._clock()))

    async def bind(
        self, run_id: str, attempt: int, wms_id: str, path: str | None = None, command_id: str | None = None
    ) -> list[str]:
        """Record the WMS id of an attempt that we made.

        Returns
        -------
        absorbed : `list` [`str`]
            Ids of runs that are gone: the same thing, seen before by a source that does not show tokens.
        """
        return await self._database.run(
            partial(
                identities.bind,
                run_id=run_id,
                attempt=attempt,
                wms_id=wms_id,
                path=path,
                command_id=command_id,
                now=self._clock(),
            )
        )

    async def identities(self, run_ids: Sequence[str] | None = None) -> list[RunIdentity]:
        """The runs of these ids (unknown ones are left out), or all of them in the order in which they were made."""
        return await self._database.read(partial(identities.load, run_ids=run_ids), deadline_s=IDENTITIES_DEADLINE_S)

    async def backend_uid(self, name: str) -> str:
        """The uid of a backend, made at first sight."""
        return await self._database.run(partial(identities.backend_uid, name=name, now=self._clock()))

    async def rename_backend(self, old: str, new: str) -> str:
        """Let a backend keep its history under a new name; returns its uid.

        Raises
        ------
        UnknownBackend
            If there never was one of the old name.
        Conflict
            If the new name has a history.
        """
        return await self._database.run(partial(identities.rename_backend, old=old, new=new))

    # -- care --------------------------------------------------------------------------------------------------------

    def keep(self, *, backups: int, days: float) -> None:
        """Keep so many daily copies, and commands for so many days, from now on."""
        self._backups, self._keep_days = backups, days

    async def backup(self, *, again: bool = False) -> Path:
        """Make today's copy, in place of the earlier one of today, or with ``again`` one more.

        Raises
        ------
        ReadOnly
            If a restored journal has not been accepted: older copies may be wanted still.
        StorageError
            If the disk fails, or the journal is damaged.
        """
        self._require_accepted()
        return await self._database.backup(self._backups, again=again)

    async def prune(self, before: float) -> int:
        """Remove commands that ended before a time, but none younger than ``keep_days``; returns how many.

        Runs and tokens stay: an old token is never taken for a new one.
        """
        before = min(before, self._clock() - self._keep_days * 86400)
        total = 0
        while True:
            removed = await self._command(partial(commandlog.prune, before=before, limit=PRUNE_STEP))
            total += removed
            if removed < PRUNE_STEP:
                return total

    async def check(self) -> list[str]:
        """What is wrong with the file (nothing: an empty list)."""
        return await self._database.check()

    async def count_start(self) -> Position:
        """Return what the journal has counted: how often a daemon was started on it, this time included.

        Raises
        ------
        StorageError
            If the disk fails: nothing was counted.
        """
        self.position = await self._database.run(_count_start)
        return self.position

    async def distrust(self, reason: str) -> None:
        """Take no commands until a person accepts that this journal is older than what is known elsewhere.

        Raises
        ------
        StorageError
            If the disk fails: nothing changed.
        """
        status = JournalStatus("restored", read_only=True, reason=reason, older=True)
        await self._database.run(partial(_mark_restored, status=status))
        self.status = status

    async def accept_restored(self) -> None:
        """Take commands again, on a person's word.

        Raises
        ------
        Conflict
            If there is nothing to accept.
        """
        if not self.status.read_only:
            raise Conflict("the journal is not a restored one", advice="nothing needs to be accepted")
        await self._database.run(_forget_restored)
        self.status = JournalStatus("ok")
        self.when_counted(self.position)

    def _require_accepted(self) -> None:
        if self.status.older:
            raise ReadOnly(
                f"the journal is older than the history ({self.status.reason}): commands of the time since may be "
                "unknown to it",
                advice="put the newer journal back, or see what runs in the WMS and let this one take commands again "
                "with: bpsctl admin accept",
            )
        if self.status.read_only:
            origin = self.status.restored_from or "nothing, for want of a copy"
            raise ReadOnly(
                f"the journal was damaged and restored from {origin}: commands of the time since may be unknown to it",
                advice="see what runs in the WMS, then let it take commands again with: bpsctl admin accept",
                restored_from=self.status.restored_from,
                set_aside=self.status.set_aside,
            )

    async def _command(self, job: Job[T]) -> T:
        self._require_accepted()
        return await self._database.run(job)

    # -- damage (in the writer thread) -------------------------------------------------------------------------------

    def _copies(self) -> list[Path]:
        return sqlitefile.copies(self._database.path, self._database.copies_folder)

    def _recover(self, damage: Damaged) -> None:
        """Leave a sound journal that says what happened to it: a copy, or an empty one."""
        path = self._database.path
        status = JournalStatus("restored", read_only=True, reason=damage.reason)
        aside = sqlitefile.set_aside(path)
        status = replace(status, set_aside=str(aside) if aside else None)
        failure: StorageError | None = None
        for copy in self._copies():
            try:
                sqlitefile.restore(
                    copy, path, SCHEMA, partial(_mark_restored, status=replace(status, restored_from=str(copy)))
                )
            except (Damaged, CannotStart):
                continue  # not sound, or not for us: the one before it may be
            except StorageError as exc:
                failure = exc
                continue
            return
        if failure is not None:
            raise failure  # a copy may be sound: nothing is made in its place while the disk keeps us from it
        with translated("making the database", path):
            sqlitefile.create(path, SCHEMA, partial(_mark_restored, status=status))

    def _accept_cut(self, connection: sqlite3.Connection, aside: Path, reason: str) -> None:
        """Keep what SQLite can read of a damaged log; a person decides, as on a copy."""
        path = str(self._database.path)
        _mark_restored(
            connection, JournalStatus("restored", True, restored_from=path, set_aside=str(aside), reason=reason)
        )


# -- rows of table meta ----------------------------------------------------------------------------------------------


def _count_start(connection: sqlite3.Connection) -> Position:
    connection.execute(
        "INSERT INTO meta (key, value) VALUES (?, '1')"
        " ON CONFLICT DO UPDATE SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT)",
        (STARTS_KEY,),
    )
    return _position(connection)


def _position(connection: sqlite3.Connection) -> Position:
    starts = connection.execute("SELECT value FROM meta WHERE key = ?", (STARTS_KEY,)).fetchone()
    commands = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'commands'").fetchone()
    return Position(int(starts[0]) if starts else 0, int(commands[0]) if commands else 0)


def _mark_restored(connection: sqlite3.Connection, status: JournalStatus) -> None:
    value = msgspec.json.encode(status).decode()
    connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (RESTORED_KEY, value))


def _restored(connection: sqlite3.Connection) -> JournalStatus | None:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (RESTORED_KEY,)).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=JournalStatus)


def _forget_restored(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM meta WHERE key = ?", (RESTORED_KEY,))
