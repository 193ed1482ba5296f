"""What keeps the history small: pruning by age, number and size, and giving pages back. Small steps, each a job of
`bpsd.database.Database`: whoever writes meanwhile waits for one of them at most.
"""

from __future__ import annotations

__all__ = ["ENDED", "crowded", "prune_events", "prune_oldest_runs", "prune_runs", "used_bytes", "vacuum"]

import sqlite3

from bpsd.writebehind import Batch, Pending

ENDED = "coalesce(ended_at, updated_at)"
"""When a run ended, as far as anybody knows: the expression of the index."""

PRUNE_RUNS_STEP = 100
"""Runs that `prune_runs` and `prune_oldest_runs` remove at most."""

PRUNE_EVENTS_STEP = 2_000
"""Events that `prune_events` removes at most."""

VACUUM_PAGES_STEP = 1_000
"""Free pages that `vacuum` gives back at most (4 MB)."""


def prune_runs(connection: sqlite3.Connection, keep_before: float) -> int:
    """Forget some runs that ended before a time; returns how many."""
    return _forget(
        connection,
        f"SELECT run_id FROM runs WHERE NOT live AND {ENDED} < ? LIMIT ?",  # noqa: S608 - our own literals
        keep_before,
        PRUNE_RUNS_STEP,
    )


def prune_oldest_runs(connection: sqlite3.Connection) -> int:
    """Forget some of the runs that ended first: not more than the tenth part of them, for little may be too much."""
    ended = int(connection.execute("SELECT count(*) FROM runs WHERE NOT live").fetchone()[0])
    return _forget(
        connection,
        f"SELECT run_id FROM runs WHERE NOT live ORDER BY {ENDED}, run_id LIMIT ?",  # noqa: S608 - our own literals
        min(PRUNE_RUNS_STEP, -(-ended // 10)),
    )


def _forget(connection: sqlite3.Connection, which: str, *values: float) -> int:
    rows = connection.execute(which, values).fetchall()
    Pending(Batch(forget=[run_id for (run_id,) in rows])).write(connection)
    return len(rows)


def crowded(connection: sqlite3.Connection, most: int) -> list[tuple[str | None, int]]:
    """Runs with more events than ``most``, each with the number of the first event to keep."""
    crowded = connection.execute("SELECT run_id FROM timeline GROUP BY run_id HAVING count(*) > ?", (most,)).fetchall()
    return [
        (
            run_id,
            connection.execute(
                "SELECT seq FROM timeline WHERE run_id IS ? ORDER BY seq DESC LIMIT 1 OFFSET ?", (run_id, most - 1)
            ).fetchone()[0],
        )
        for (run_id,) in crowded
    ]


def prune_events(connection: sqlite3.Connection, run_id: str | None, first_kept: int) -> int:
    """Forget some events of a run that come before one; returns how many."""
    return connection.execute(
        "DELETE FROM timeline WHERE seq IN (SELECT seq FROM timeline WHERE run_id IS ? AND seq < ? LIMIT ?)",
        (run_id, first_kept, PRUNE_EVENTS_STEP),
    ).rowcount


def used_bytes(connection: sqlite3.Connection) -> int:
    """What the file holds, its free pages left out."""
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def vacuum(connection: sqlite3.Connection) -> int:
    """Give some free pages back to the file system; returns how many bytes."""
    free = int(connection.execute("PRAGMA freelist_count").fetchone()[0])
    connection.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES_STEP})").fetchall()
    left = int(connection.execute("PRAGMA freelist_count").fetchone()[0])
    return (free - left) * int(connection.execute("PRAGMA page_size").fetchone()[0])
