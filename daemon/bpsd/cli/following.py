"""Waiting for commands and runs on behalf of several verbs, with what a person sees and hears meanwhile."""

from __future__ import annotations

__all__ = ["await_command", "await_runs"]

import time

from bpsd.cli.live import Bars
from bpsd.cli.render import clean, long_age
from bpsd.client.failures import ClientError
from bpsd.client.goals import Goal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bpsd.cli.session import Session

    Row = dict[str, Any]

PROGRESS_EVERY_S = 1.0
"""How often a run that makes progress is asked how far it is, at most, in seconds."""


def await_command(session: Session, command: Row) -> Row:
    """Wait until a command is over or in doubt; say what it waits for, and if the daemon goes away."""
    told = [command.get("note") or ""]

    def seen(row: Row) -> None:
        note = row.get("note") or ""
        if note != told[0]:
            told[0] = note
            if note:
                session.say(f"{row['run']}: {clean(note)}")

    def lost(error: ClientError) -> None:
        if told[0] != "lost":
            told[0] = "lost"
            session.say(f"bpsctl: {error.message}; looking for it again")

    return session.client.wait_command(command["id"], seen=seen, lost=lost)


def await_runs(
    session: Session, rows: Sequence[Row], until: Sequence[str], *, any_of: bool = False, timeout_s: float | None = None
) -> tuple[Goal, bool]:
    """Wait until runs have reached something, showing how far they are.

    Parameters
    ----------
    session : `~bpsd.cli.session.Session`
        Where to show it.
    rows : sequence of `dict`
        A `~bpsd.messages.StatusResult` of each.
    until, any_of, timeout_s
        As of `bpsd.client.sync.Client.wait`.

    Returns
    -------
    goal : `~bpsd.client.goals.Goal`
        What became of it.
    in_time : `bool`
        Whether it was over before the time was.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ids = [row["id"] for row in rows]
    goal = Goal(ids, until, any_of=any_of)
    behind: set[str] = set()
    asked = time.monotonic()
    with session.client.watch(ids) as watch, Bars(session, {row["id"]: row["name"] for row in rows}) as bars:
        while not goal.over:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return goal, False
            item = watch.read(_sooner(left, asked + PROGRESS_EVERY_S - time.monotonic() if behind else None))
            if item is not None:
                goal.see(item)
                _show(session, bars, item, behind)
            if behind and time.monotonic() >= asked + PROGRESS_EVERY_S:
                asked = time.monotonic()
                _catch_up(session, bars, behind)
    return goal, True


def _sooner(a: float | None, b: float | None) -> float | None:
    return a if b is None else max(b, 0.0) if a is None else max(0.0, min(a, b))


def _show(session: Session, bars: Bars, item: Row, behind: set[str]) -> None:
    kind = item["kind"]
    if kind == "snapshot":
        for row in item["runs"]:
            bars.show(row)
    elif kind == "run.state":
        bars.show(_now(session, item["run"]) or {"id": item["run"], **item["data"]})
        behind.discard(item["run"])
    elif kind == "run.progress":
        behind.add(item["run"])
    elif kind == "run.attempt":
        bars.say(f"{item['run']}: attempt {item['data'].get('attempt')}")
    elif kind == "client.lost":
        bars.say(f"bpsctl: {item['data']['error']}; the runs go on, looking for the daemon again")
    elif kind == "client.back":
        bars.say(f"bpsctl: the daemon is back after {long_age(item['data']['away_s'])}")


def _catch_up(session: Session, bars: Bars, behind: set[str]) -> None:
    """Show how far the runs are that made progress."""
    for run in sorted(behind):
        row = _now(session, run)
        if row is None:
            return
        bars.show(row)
        behind.discard(run)


def _now(session: Session, run: str) -> Row | None:
    """The status of a run; `None` if the daemon is away just now, which the watch will tell."""
    try:
        return session.client.status(run)
    except ClientError:
        return None
