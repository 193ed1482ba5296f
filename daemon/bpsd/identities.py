"""Who is who: run ids, attempts, and the ids that a WMS gave them.

A run is its token if it is ours; else its global id where the WMS has such ids; else it is (backend, submit directory,
first submit time). The same directory with a new id is the next attempt of the same run; a WMS id that was seen before
is the same run, unless the WMS gave it to another run. The decisions are in `may_be`, `is_recycled` and
`next_attempt`, which are pure; the rest looks rows up and writes them. All functions with a connection run inside a
transaction of the journal.
"""

from __future__ import annotations

__all__ = [
    "Attempt",
    "RunIdentity",
    "Sighting",
    "add_attempt",
    "backend_uid",
    "bind",
    "create_run",
    "fresh_id",
    "identify",
    "is_recycled",
    "load",
    "may_be",
    "next_attempt",
    "rename_backend",
]

import secrets
import sqlite3
from collections.abc import Sequence

import msgspec

from bpsd import wire
from bpsd.errors import Conflict, RunNotFound, UnknownBackend
from bpsd.sqlitefile import text

SUBMIT_TIME_TOLERANCE_S = 3600.0
"""How far two sources of one WMS may differ about when a run was submitted (a requeue moves it, clocks drift)."""


GLOBAL_ID_TOLERANCE_S = 60.0
"""How far two sources of a WMS with global ids may differ about when a run was submitted."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One submit or restart of a run.

    ``attempt`` counts from 1; what turns out to be older than the first that we saw is numbered downwards, so that a
    number never changes and an older attempt never overtakes. ``wms_id`` is `None` until the WMS has it;
    ``global_wms_id`` is the name that the WMS never gives twice, `None` until a source shows it.
    """

    attempt: int
    wms_id: str | None = None
    global_wms_id: str | None = None
    path: str | None = None
    submit_time: float | None = None
    command_id: str | None = None
    created_at: float = 0.0


class RunIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """One run over all its attempts.

    ``uid`` is that of the peer that submitted it through us, ``owner`` the WMS account of a run that we found.
    ``attempts`` are in ascending order.
    """

    run_id: str
    backend_uid: str
    token: str | None = None
    path: str | None = None
    first_submit_time: float | None = None
    uid: int | None = None
    owner: str | None = None
    name: str = ""
    created_at: float = 0.0
    attempts: tuple[Attempt, ...] = ()

    @property
    def wms_ids(self) -> tuple[str, ...]:
        """Its ids in the WMS, the newest last."""
        return tuple(dict.fromkeys(a.wms_id for a in self.attempts if a.wms_id is not None))

    def attempt_of(self, wms_id: str) -> int | None:
        """The number of the newest attempt that has this WMS id."""
        return next((a.attempt for a in reversed(self.attempts) if a.wms_id == wms_id), None)


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """What a poll says of who a run is. Times are epoch seconds of the WMS; ``attempt`` only from its own counter."""

    backend_uid: str
    wms_id: str
    global_wms_id: str | None = None
    token: str | None = None
    path: str | None = None
    submit_time: float | None = None
    attempt: int | None = None
    owner: str | None = None

    def names(self, attempt: Attempt) -> bool:
        """Return whether its ids are those of an attempt."""
        return attempt.wms_id == self.wms_id and not _differ(self.global_wms_id, attempt.global_wms_id)


# -- decisions -------------------------------------------------------------------------------------------------------


def _differ(a: object, b: object) -> bool:
    """Whether both are known, and not the same."""
    return a is not None and b is not None and a != b


def may_be(sighting: Sighting, run: RunIdentity) -> bool:
    """Whether the tokens allow that a sighting is of this run."""
    return not _differ(sighting.token, run.token)


def is_recycled(sighting: Sighting, run: RunIdentity, attempt: Attempt) -> bool:
    """Return whether a WMS id that ``attempt`` had belongs to another run now.

    Two global ids settle it. Without them it was submitted at another time *and* elsewhere; one of the two is not
    enough: a requeue changes the time, and a source may report a path in another way. Where times are not known, the
    path decides.
    """
    if sighting.global_wms_id is not None and attempt.global_wms_id is not None:
        return sighting.global_wms_id != attempt.global_wms_id
    if sighting.global_wms_id is not None and sighting.submit_time is not None and attempt.submit_time is not None:
        # An attempt of before global ids were kept. A WMS that has them never moves the time of a submission.
        return abs(sighting.submit_time - attempt.submit_time) > GLOBAL_ID_TOLERANCE_S
    times = sighting.submit_time, attempt.submit_time
    if times[0] is None or times[1] is None:
        return _differ(sighting.path, attempt.path or run.path)
    if abs(times[0] - times[1]) <= SUBMIT_TIME_TOLERANCE_S:
        return False
    return _differ(sighting.path, attempt.path or run.path) or _differ(sighting.owner, run.owner)


def next_attempt(sighting: Sighting, attempts: Sequence[Attempt]) -> int:
    """The number of an attempt that was not known.

    Parameters
    ----------
    sighting : `Sighting`
        The WMS id is not among those of ``attempts``.
    attempts : `~collections.abc.Sequence` [`Attempt`]
        Those known, in ascending order.
    """
    if not attempts:
        return sighting.attempt or 1
    taken = {a.attempt for a in attempts}
    if sighting.attempt is not None and sighting.attempt not in taken:
        return sighting.attempt
    newest = attempts[-1].submit_time
    if sighting.submit_time is not None and newest is not None and sighting.submit_time < newest:
        return attempts[0].attempt - 1
    return attempts[-1].attempt + 1


# -- rows ------------------------------------------------------------------------------------------------------------


def fresh_id(connection: sqlite3.Connection, prefix: str, table: str, column: str) -> str:
    """An id of 8 of `bpsd.wire.RUN_ID_ALPHABET` that no row has."""
    base = len(wire.RUN_ID_ALPHABET)
    while True:
        number = secrets.randbelow(base**8)  # asking the system once costs a tenth of asking for each letter
        id_ = prefix + "".join(wire.RUN_ID_ALPHABET[number // base**place % base] for place in range(8))
        # Table and column are literals of our own code.
        if connection.execute(f"SELECT 1 FROM {table} WHERE {column} = ?", (id_,)).fetchone() is None:  # noqa: S608
            return id_


def backend_uid(connection: sqlite3.Connection, name: str, now: float) -> str:
    """The uid of the backend of that name, made now if it is new."""
    row = connection.execute("SELECT uid FROM backends WHERE name = ?", (name,)).fetchone()
    if row is not None:
        return str(row[0])
    uid = fresh_id(connection, "b", "backends", "uid")
    connection.execute("INSERT INTO backends (uid, name, created_at) VALUES (?, ?, ?)", (uid, name, now))
    return uid


def rename_backend(connection: sqlite3.Connection, old: str, new: str) -> str:
    """Let a backend keep its uid, and so its history, under a new name.

    Raises
    ------
    UnknownBackend
        If there never was one of the old name.
    Conflict
        If there is one of the new name.
    """
    names = dict(connection.execute("SELECT name, uid FROM backends").fetchall())
    if old not in names:
        raise UnknownBackend(f"no backend was ever called {old}", advice=f"known: {', '.join(sorted(names)) or 'none'}")
    if new in names:
        raise Conflict(
            f"backend {old} cannot be renamed to {new}, which has a history of its own",
            advice="choose a name that was never used",
            backend=new,
        )
    connection.execute("UPDATE backends SET name = ? WHERE name = ?", (new, old))
    return str(names[old])


_RUN_FIELDS = ("run_id", "backend_uid", "token", "path", "first_submit_time", "uid", "owner", "name", "created_at")
_RUN_COLUMNS = ", ".join(_RUN_FIELDS)
_ATTEMPT_FIELDS = ("attempt", "wms_id", "global_wms_id", "path", "submit_time", "command_id", "created_at")
_ATTEMPT_COLUMNS = ", ".join(_ATTEMPT_FIELDS)


def _attempt(row: Sequence[object]) -> Attempt:
    return Attempt(**dict(zip(_ATTEMPT_FIELDS, row, strict=True)))  # type: ignore[arg-type]


def _run(row: Sequence[object], attempts: tuple[Attempt, ...]) -> RunIdentity:
    return RunIdentity(**dict(zip(_RUN_FIELDS, row, strict=True)), attempts=attempts)  # type: ignore[arg-type]


def load(connection: sqlite3.Connection, run_ids: Sequence[str] | None = None) -> list[RunIdentity]:
    """The runs of these ids (unknown ones are left out), or all there are, in the order in which they were made."""
    if run_ids is not None:
        found = (_one(connection, run_id) for run_id in dict.fromkeys(run_ids))
        return [run for run in found if run is not None]
    attempts: dict[str, list[Attempt]] = {}
    for run_id, *rest in connection.execute(
        f"SELECT run_id, {_ATTEMPT_COLUMNS} FROM attempts ORDER BY run_id, attempt"  # noqa: S608 - our own literals
    ):
        attempts.setdefault(run_id, []).append(_attempt(rest))
    return [
        _run(row, tuple(attempts.get(row[0], ())))
        for row in connection.execute(f"SELECT {_RUN_COLUMNS} FROM runs ORDER BY rowid")  # noqa: S608
    ]


def _attempts(connection: sqlite3.Connection, run_id: str) -> tuple[Attempt, ...]:
    rows = connection.execute(
        f"SELECT {_ATTEMPT_COLUMNS} FROM attempts WHERE run_id = ? ORDER BY attempt",  # noqa: S608
        (run_id,),
    )
    return tuple(_attempt(row) for row in rows)


def _one(connection: sqlite3.Connection, run_id: str) -> RunIdentity | None:
    row = connection.execute(f"SELECT {_RUN_COLUMNS} FROM runs WHERE run_id = ?", (run_id,)).fetchone()  # noqa: S608
    return None if row is None else _run(row, _attempts(connection, run_id))


def create_run(
    connection: sqlite3.Connection,
    *,
    backend_uid: str,
    now: float,
    token: str | None = None,
    path: str | None = None,
    uid: int | None = None,
    owner: str | None = None,
    name: str = "",
) -> str:
    """Make a run without attempts; returns its id."""
    run_id = fresh_id(connection, "r", "runs", "run_id")
    connection.execute(
        f"INSERT INTO runs ({_RUN_COLUMNS}) VALUES (?, ?, ?, ?, NULL, ?, ?, ?, ?)",  # noqa: S608
        (run_id, backend_uid, token, path, uid, owner, text(name), now),
    )
    return run_id


def add_attempt(connection: sqlite3.Connection, run_id: str, attempt: Attempt) -> None:
    """Write an attempt, over what was known of it."""
    connection.execute(
        f"INSERT OR REPLACE INTO attempts (run_id, {_ATTEMPT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (run_id, *(getattr(attempt, field) for field in _ATTEMPT_FIELDS)),
    )


_TEXTS = ("token", "path", "owner", "global_wms_id")


# -- sightings -------------------------------------------------------------------------------------------------------


def identify(connection: sqlite3.Connection, sightings: Sequence[Sighting], now: float) -> list[str]:
    """The run ids of sightings, in their order; runs and attempts that are new are recorded.

    Sightings are taken in the order of submission, so that the attempts of one run, seen at once, are numbered in it.
    """
    sightings = [_clean(sighting) for sighting in sightings]
    ids = [""] * len(sightings)
    no_time = float("inf")
    for index in sorted(range(len(sightings)), key=lambda i: no_time if (t := sightings[i].submit_time) is None else t):
        ids[index] = _identify_one(connection, sightings[index], now)
    return ids


def _clean(sighting: Sighting) -> Sighting:
    """A sighting as it can be written and found again (paths need not be Unicode)."""
    return msgspec.structs.replace(
        sighting,
        wms_id=text(sighting.wms_id),
        **{name: text(value) for name in _TEXTS if (value := getattr(sighting, name)) is not None},
    )


def _identify_one(connection: sqlite3.Connection, sighting: Sighting, now: float) -> str:
    run = (
        _by_token(connection, sighting)
        or _by_global_wms_id(connection, sighting)
        or _by_wms_id(connection, sighting)
        or _by_path(connection, sighting)
    )
    if run is None:
        run_id = create_run(
            connection,
            backend_uid=sighting.backend_uid,
            now=now,
            token=sighting.token,
            path=sighting.path,
            owner=sighting.owner,
        )
        run = RunIdentity(run_id=run_id, backend_uid=sighting.backend_uid)
    _learn(connection, run, sighting)
    _record(connection, run, sighting, now)
    return run.run_id


def _by_token(connection: sqlite3.Connection, sighting: Sighting) -> RunIdentity | None:
    """A token is an identity on the backend that it was submitted to; on another it is a copy that somebody made."""
    if sighting.token is None:
        return None
    row = connection.execute(
        "SELECT run_id FROM runs WHERE token = ? AND backend_uid = ?", (sighting.token, sighting.backend_uid)
    ).fetchone()
    return None if row is None else _one(connection, row[0])


def _by_global_wms_id(connection: sqlite3.Connection, sighting: Sighting) -> RunIdentity | None:
    if sighting.global_wms_id is None:
        return None
    rows = connection.execute(
        "SELECT a.run_id FROM attempts a JOIN runs r USING (run_id)"
        " WHERE a.global_wms_id = ? AND r.backend_uid = ? ORDER BY r.rowid DESC",
        (sighting.global_wms_id, sighting.backend_uid),
    ).fetchall()
    runs = (_one(connection, run_id) for (run_id,) in rows)
    return next((run for run in runs if run is not None and may_be(sighting, run)), None)


def _by_wms_id(connection: sqlite3.Connection, sighting: Sighting) -> RunIdentity | None:
    rows = connection.execute(
        "SELECT a.run_id, a.attempt FROM attempts a JOIN runs r USING (run_id)"
        " WHERE a.wms_id = ? AND r.backend_uid = ? ORDER BY r.rowid DESC, a.attempt DESC",
        (sighting.wms_id, sighting.backend_uid),
    ).fetchall()
    for run_id, number in rows:
        run = _one(connection, run_id)
        assert run is not None
        attempt = next(a for a in run.attempts if a.attempt == number)
        if may_be(sighting, run) and not is_recycled(sighting, run, attempt):
            return run
    return None


def _by_path(connection: sqlite3.Connection, sighting: Sighting) -> RunIdentity | None:
    if sighting.path is None:
        return None
    rows = connection.execute(
        "SELECT run_id FROM runs WHERE path = ? AND backend_uid = ? ORDER BY rowid DESC",
        (sighting.path, sighting.backend_uid),
    ).fetchall()
    runs = (_one(connection, run_id) for (run_id,) in rows)
    return next((run for run in runs if run is not None and may_be(sighting, run)), None)


def _learn(connection: sqlite3.Connection, run: RunIdentity, sighting: Sighting) -> None:
    """Keep what a sighting says of its run that was not known."""
    facts = (
        ("token", run.token, sighting.token),
        ("path", run.path, sighting.path),
        ("first_submit_time", run.first_submit_time, sighting.submit_time),
        ("owner", run.owner, sighting.owner),
    )
    new = {column: seen for column, known, seen in facts if known is None and seen is not None}
    if new:
        columns = ", ".join(f"{column} = ?" for column in new)
        connection.execute(f"UPDATE runs SET {columns} WHERE run_id = ?", (*new.values(), run.run_id))  # noqa: S608


def _record(connection: sqlite3.Connection, run: RunIdentity, sighting: Sighting, now: float) -> None:
    """Keep which attempt has this WMS id."""
    known = next((a for a in reversed(run.attempts) if sighting.names(a)), None)
    if known is None:
        # We may see what we have just submitted before the submission has returned.
        known = _awaited(connection, run, sighting) or Attempt(
            attempt=next_attempt(sighting, run.attempts), created_at=now
        )
    seen = msgspec.structs.replace(
        known,
        wms_id=sighting.wms_id,
        global_wms_id=sighting.global_wms_id if known.global_wms_id is None else known.global_wms_id,
        path=sighting.path if known.path is None else known.path,
        submit_time=sighting.submit_time if known.submit_time is None else known.submit_time,
    )
    if seen not in run.attempts:
        add_attempt(connection, run.run_id, seen)


def _awaited(connection: sqlite3.Connection, run: RunIdentity, sighting: Sighting) -> Attempt | None:
    """The attempt of a command under way that the WMS has given no id yet, as far as we know."""
    for attempt in reversed(run.attempts):
        if attempt.wms_id is not None or attempt.command_id is None or _differ(sighting.attempt, attempt.attempt):
            continue
        state = connection.execute("SELECT state FROM commands WHERE id = ?", (attempt.command_id,)).fetchone()
        if state is not None and state[0] in {"RUNNING", "IN_DOUBT"}:
            return attempt
    return None


def bind(
    connection: sqlite3.Connection,
    run_id: str,
    attempt: int,
    wms_id: str,
    *,
    path: str | None,
    command_id: str | None,
    now: float,
) -> list[str]:
    """Record the WMS id of an attempt that we made.

    A source without tokens may have shown it before as a run that nobody knew; that one is folded into ours.

    Returns
    -------
    absorbed : `list` [`str`]
        Run ids that are gone now.

    Raises
    ------
    RunNotFound
        If the run is unknown.
    """
    wms_id, path = text(wms_id), None if path is None else text(path)
    run = _one(connection, run_id)
    if run is None:
        raise RunNotFound(f"no run has the id {run_id}", run=run_id)
    known = next((a for a in run.attempts if a.attempt == attempt), None) or Attempt(attempt=attempt, created_at=now)
    for mistaken in run.attempts:
        # A poll may have taken it for a restart by other hands.
        if mistaken.wms_id == wms_id and mistaken.command_id is None and mistaken.attempt != attempt:
            connection.execute("DELETE FROM attempts WHERE run_id = ? AND attempt = ?", (run_id, mistaken.attempt))
    bound = msgspec.structs.replace(
        known, wms_id=wms_id, path=path or known.path, command_id=command_id or known.command_id
    )
    if bound != known or known not in run.attempts:
        add_attempt(connection, run_id, bound)
    if path is not None and run.path is None:
        connection.execute("UPDATE runs SET path = ? WHERE run_id = ?", (path, run_id))
    return _absorb(connection, run, wms_id, since=known.created_at)


def _absorb(connection: sqlite3.Connection, run: RunIdentity, wms_id: str, since: float) -> list[str]:
    rows = connection.execute(
        "SELECT r.run_id FROM attempts a JOIN runs r USING (run_id) WHERE a.wms_id = ? AND r.backend_uid = ?"
        " AND r.run_id != ? AND r.uid IS NULL AND r.token IS NULL AND r.created_at >= ?",
        (wms_id, run.backend_uid, run.run_id, since),
    ).fetchall()
    for (run_id,) in rows:
        connection.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))
    return [run_id for (run_id,) in rows]
