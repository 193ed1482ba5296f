"""Commands as rows: what one is, which states follow which, and how they are written and found.

All functions with a connection run inside a transaction of the journal, but for `select`, which may run beside it.
"""

from __future__ import annotations

__all__ = [
    "CLOCK",
    "COMMAND_ID_PREFIX",
    "INTERNAL_ARGS",
    "OPEN_STATES",
    "STARTED_CLOCK",
    "TRANSITIONS",
    "CommandRecord",
    "accept",
    "boot_clock",
    "by_id",
    "by_token",
    "change",
    "has_expired",
    "left_s",
    "may_follow",
    "passed_s",
    "prune",
    "running_s",
    "select",
    "unfinished",
]

import json
import math
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bpsd import identities
from bpsd.diskfull import mentions_full
from bpsd.errors import CommandNotFound, Conflict, PermissionDenied, RunNotFound
from bpsd.identities import Attempt
from bpsd.sqlitefile import text

COMMAND_ID_PREFIX = "c"

CONTENT_KEY = "blob"
"""The argument of ``submit`` that holds the sha256 of the document: two submissions are the same only if it is."""

OPEN_STATES = frozenset({"ACCEPTED", "RUNNING", "IN_DOUBT"})
"""States in which something is still to be done or found out."""

TRANSITIONS: Mapping[str, frozenset[str]] = {
    "ACCEPTED": frozenset({"RUNNING", "EXPIRED", "SUPERSEDED", "FAILED"}),
    # Back to ACCEPTED only with proof that the WMS does not have it.
    "RUNNING": frozenset({"DONE", "FAILED", "IN_DOUBT", "ACCEPTED"}),
    "IN_DOUBT": frozenset({"DONE", "FAILED", "ACCEPTED"}),
    "DONE": frozenset(),
    "FAILED": frozenset(),
    "EXPIRED": frozenset(),
    "SUPERSEDED": frozenset(),
}
"""State of a command to those that may follow it."""


class CommandRecord(msgspec.Struct, kw_only=True):
    """One command: what was asked, by whom (the kernel's word), and what became of it.

    ``id`` is given by `accept`, and so are the ``run_id`` of a ``submit`` and the ``attempt`` of a ``submit`` or
    ``restart``. ``client`` is what the client says of itself. Times are epoch seconds of this host.
    """

    verb: str
    backend: str
    uid: int
    pid: int
    user: str
    accepted_at: float
    id: str = ""
    run_id: str = ""
    token: str | None = None
    attempt: int | None = None
    args: dict[str, Any] = {}
    state: str = "ACCEPTED"
    client: str = ""
    expires_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    note: str = ""


CLOCK, STARTED_CLOCK = "clock", "started_clock"
"""The arguments of a command that hold the moments of its acceptance and its start by a clock that nobody sets."""

INTERNAL_ARGS = frozenset({CLOCK, STARTED_CLOCK})

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_boot = _BOOT_ID.read_text("ascii").strip() if _BOOT_ID.exists() else ""


def boot_clock() -> list[Any]:
    """Return this boot of the machine, and the seconds since then: they go on while the machine is suspended."""
    return [_boot, time.clock_gettime(time.CLOCK_BOOTTIME)]


def passed_s(record: CommandRecord, now: float) -> float:
    """Return the seconds that have passed since a command was accepted, whatever was done to the clock.

    Over a boot of the machine the clock on the wall is all there is: ``now``, in epoch seconds.
    """
    return _passed_s(record.args.get(CLOCK), now - record.accepted_at)


def running_s(record: CommandRecord, now: float) -> float:
    """Return the seconds that have passed since a command was last begun, or accepted; see `passed_s`."""
    if record.started_at is None:
        return passed_s(record, now)
    return _passed_s(record.args.get(STARTED_CLOCK), now - record.started_at)


def _passed_s(moment: list[Any] | None, as_the_clock_shows: float) -> float:
    boot, at = moment or ("", 0.0)
    current, seconds = boot_clock()
    return seconds - at if boot and boot == current else as_the_clock_shows


def has_expired(record: CommandRecord, now: float) -> bool:
    """Return whether a command's time is over. A cancel's never is: what was acknowledged is to end."""
    return left_s(record, now) < 0


def left_s(record: CommandRecord, now: float) -> float:
    """Return the seconds that a command has left; infinite for one that never expires.

    A command that waits for a full disk, here or at the WMS, does not expire meanwhile: its note says that it waits.
    """
    if record.expires_at is None or record.verb == "cancel" or mentions_full(record.note):
        return math.inf
    return record.expires_at - record.accepted_at - passed_s(record, now)


def may_follow(state: str, then: str) -> bool:
    """Whether a command may go from one state to another."""
    return then in TRANSITIONS[state]


# -- rows ------------------------------------------------------------------------------------------------------------

_COLUMNS = tuple(field.name for field in msgspec.structs.fields(CommandRecord) if field.name != "backend")
_SELECT = (
    f"SELECT {', '.join('c.' + name for name in _COLUMNS)}, b.name"  # noqa: S608 - our own literals
    " FROM commands c JOIN backends b ON b.uid = c.backend_uid"
)
_DOCUMENTS = ("args", "result", "error")


def _json(document: dict[str, Any] | None) -> str | None:
    if document is None:
        return None
    try:
        return msgspec.json.encode(document).decode()
    except UnicodeEncodeError:
        # Bytes of somebody's message that are not Unicode, kept by surrogates: the rest must not be lost for them.
        return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace").decode()


def _column(name: str, value: Any) -> Any:
    """A field of a record as its column holds it."""
    if name in _DOCUMENTS:
        return _json(value)
    return text(value) if isinstance(value, str) else value


def _record(row: Sequence[Any]) -> CommandRecord:
    fields = dict(zip((*_COLUMNS, "backend"), row, strict=True))
    for name in _DOCUMENTS:
        if fields[name] is not None:
            fields[name] = msgspec.json.decode(fields[name])
    return CommandRecord(**fields)


def _insert(connection: sqlite3.Connection, record: CommandRecord, backend_uid: str) -> None:
    values = [_column(name, getattr(record, name)) for name in _COLUMNS]
    marks = ", ".join("?" * (len(values) + 1))
    connection.execute(
        f"INSERT INTO commands ({', '.join(_COLUMNS)}, backend_uid) VALUES ({marks})",  # noqa: S608
        (*values, backend_uid),
    )


def by_id(connection: sqlite3.Connection, id: str) -> CommandRecord:
    """The command of that id.

    Raises
    ------
    CommandNotFound
        If there is none.
    """
    row = connection.execute(f"{_SELECT} WHERE c.id = ?", (id,)).fetchone()
    if row is None:
        raise CommandNotFound(
            f"no command has the id {id}", advice="`bpsctl commands` lists those there are", command=id
        )
    return _record(row)


def by_token(connection: sqlite3.Connection, token: str | None) -> CommandRecord | None:
    """The submission that carried this token, if there is one."""
    row = connection.execute(f"{_SELECT} WHERE c.token = ? AND c.verb = 'submit'", (token,)).fetchone()
    return None if row is None else _record(row)


def unfinished(connection: sqlite3.Connection) -> list[CommandRecord]:
    """All commands in `OPEN_STATES`, in the order in which they were accepted."""
    marks = ", ".join("?" * len(OPEN_STATES))
    return [
        _record(row)
        for row in connection.execute(f"{_SELECT} WHERE c.state IN ({marks}) ORDER BY c.seq", [*OPEN_STATES])
    ]


def select(
    connection: sqlite3.Connection,
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
    """Commands for which all conditions hold, the newest first; ``before`` is the last id of the page before."""
    conditions: list[tuple[str, Sequence[object]]] = []
    if run_id is not None:
        conditions.append(("c.run_id = ?", (run_id,)))
    if backend is not None:
        conditions.append(("b.name = ?", (backend,)))
    if states:
        conditions.append((f"c.state IN ({', '.join('?' * len(states))})", tuple(states)))
    if user is not None:
        conditions.append(("c.user = ?", (user,)))
    if uid is not None:
        conditions.append(("c.uid = ?", (uid,)))
    if since is not None:
        conditions.append(("c.accepted_at >= ?", (since,)))
    if before is not None:
        conditions.append(("c.seq < (SELECT seq FROM commands WHERE id = ?)", (before,)))
    where = " AND ".join(text for text, _ in conditions) or "TRUE"
    values = [value for _, some in conditions for value in some]
    rows = connection.execute(f"{_SELECT} WHERE {where} ORDER BY c.seq DESC LIMIT ?", (*values, limit))
    return [_record(row) for row in rows]


# -- acceptance ------------------------------------------------------------------------------------------------------


def accept(
    connection: sqlite3.Connection, record: CommandRecord, *, name: str, now: float
) -> tuple[CommandRecord, bool]:
    """Write a new command, or find the one that it repeats; see `bpsd.journal.Journal.accept`."""
    known = _repeated(connection, record)
    if known is not None:
        return known, False
    backend_uid = identities.backend_uid(connection, record.backend, now)
    id_ = identities.fresh_id(connection, COMMAND_ID_PREFIX, "commands", "id")
    record = msgspec.structs.replace(record, id=id_, state="ACCEPTED")
    if record.verb == "submit":
        record = _new_run(connection, record, backend_uid, name, now)
    else:
        known_attempts = _known_run(connection, record)
        if record.verb == "restart":
            record = _new_attempt(connection, record, known_attempts, now)
    _insert(connection, record, backend_uid)
    return record, True


def _repeated(connection: sqlite3.Connection, record: CommandRecord) -> CommandRecord | None:
    """The command that this one repeats: the same token again, or a restart of what is being restarted."""
    if record.verb == "submit":
        return _same_submission(connection, record)
    if record.verb == "restart":
        marks = ", ".join("?" * len(OPEN_STATES))
        row = connection.execute(
            f"{_SELECT} WHERE c.run_id = ? AND c.verb = 'restart' AND c.state IN ({marks}) ORDER BY c.seq LIMIT 1",
            (record.run_id, *OPEN_STATES),
        ).fetchone()
        return None if row is None else _record(row)
    return None


def _same_submission(connection: sqlite3.Connection, record: CommandRecord) -> CommandRecord | None:
    known = by_token(connection, record.token)
    if known is None:
        return None
    advice = "to submit another workflow, make a new token"
    if known.uid != record.uid:
        raise PermissionDenied(f"the token {record.token} belongs to a submission of another user", advice=advice)
    if known.backend != record.backend:
        raise Conflict(
            f"the token {record.token} was used to submit run {known.run_id} to {known.backend}, not {record.backend}",
            advice=advice,
            command=known.id,
            run=known.run_id,
        )
    if known.args.get(CONTENT_KEY) != record.args.get(CONTENT_KEY):
        raise Conflict(
            f"the token {record.token} was used to submit another workflow as run {known.run_id}",
            advice=advice,
            command=known.id,
            run=known.run_id,
        )
    return known


def _new_run(
    connection: sqlite3.Connection, record: CommandRecord, backend_uid: str, name: str, now: float
) -> CommandRecord:
    row = connection.execute(
        "SELECT run_id FROM runs WHERE token = ? AND (backend_uid = ? OR uid IS NOT NULL)", (record.token, backend_uid)
    ).fetchone()
    if row is not None:
        # Its command is not in this journal (any more): whether the caller made it cannot be told from the token, which
        # everybody who sees the WMS can read.
        raise Conflict(
            f"run {row[0]} has the token {record.token} already, submitted through another journal or long ago",
            advice=f"`bpsctl report {row[0]}` shows it; to run the workflow once more, make a new token",
            run=row[0],
        )
    run_id = identities.create_run(
        connection, backend_uid=backend_uid, token=record.token, uid=record.uid, owner=None, name=name, now=now
    )
    identities.add_attempt(connection, run_id, Attempt(attempt=1, command_id=record.id, created_at=now))
    return msgspec.structs.replace(record, run_id=run_id, attempt=1)


def _known_run(connection: sqlite3.Connection, record: CommandRecord) -> tuple[Attempt, ...]:
    """The attempts of the run that a command names."""
    runs = identities.load(connection, [record.run_id])
    if not runs:
        raise RunNotFound(f"no run has the id {record.run_id}", run=record.run_id)
    return runs[0].attempts


def _new_attempt(
    connection: sqlite3.Connection, record: CommandRecord, attempts: Sequence[Attempt], now: float
) -> CommandRecord:
    """Give a restart the number after all that are known, to us and to the caller."""
    number = 1 + max([record.attempt or 0, *(a.attempt for a in attempts)])
    identities.add_attempt(connection, record.run_id, Attempt(attempt=number, command_id=record.id, created_at=now))
    return msgspec.structs.replace(record, attempt=number)


# -- changes ---------------------------------------------------------------------------------------------------------


def change(
    connection: sqlite3.Connection,
    id: str,
    state: str | None,
    *,
    now: float,
    result: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
    note: str | None = None,
    expires_at: float | None = None,
) -> CommandRecord:
    """Take a command to another state (`None`: leave it), with what is to be said of it.

    Raises
    ------
    CommandNotFound
        If there is none of that id.
    Conflict
        If the state may not follow the one that it has.
    """
    record = by_id(connection, id)
    changes: dict[str, Any] = {}
    if state is not None:
        if not may_follow(record.state, state):
            raise Conflict(
                f"command {id} ({record.verb} of {record.run_id}) is {record.state} and cannot become {state}",
                advice=f"`bpsctl commands {id}` tells what became of it",
                command=id,
                state=record.state,
            )
        changes["state"] = state
        if state == "RUNNING":
            changes["started_at"] = now
            changes["args"] = {**record.args, STARTED_CLOCK: boot_clock()}
        elif state == "ACCEPTED":
            changes["started_at"] = None
        elif state not in OPEN_STATES:
            changes["ended_at"] = now
    if result is not None:
        changes["result"] = result
    if error is not None:
        changes["error"] = error
    if note is not None:
        changes["note"] = note
    if expires_at is not None:
        changes["expires_at"] = expires_at
    if changes:
        columns = ", ".join(f"{name} = ?" for name in changes)
        values = [_column(name, value) for name, value in changes.items()]
        connection.execute(f"UPDATE commands SET {columns} WHERE id = ?", (*values, id))  # noqa: S608
    return msgspec.structs.replace(record, **changes)


def prune(connection: sqlite3.Connection, before: float, limit: int) -> int:
    """Remove at most ``limit`` commands that ended before a time; returns how many."""
    cursor = connection.execute(
        "DELETE FROM commands WHERE seq IN"
        " (SELECT seq FROM commands WHERE ended_at IS NOT NULL AND ended_at < ? ORDER BY seq LIMIT ?)",
        (before, limit),
    )
    return cursor.rowcount
