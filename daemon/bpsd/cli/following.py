"""Waiting for commands and runs on behalf of several verbs, with what a person sees and hears meanwhile."""

from __future__ import annotations

__all__ = ["await_command", "await_runs", "is_open"]

import time

from bpsd.cli.live import Bars
from bpsd.cli.render import clean, long_age
from bpsd.client import endpoint
from bpsd.client.failures import OutOfTime
from bpsd.client.goals import Goal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bpsd.cli.session import Session
    from bpsd.client.failures import ClientError

    Row = dict[str, Any]


def await_command(session: Session, command: Row) -> Row:
    """Wait until a command is over or in doubt; say what it waits for, and if the daemon goes away.

    Returns
    -------
    command : `dict`
        As it then is; with ``--timeout``, as it was last seen when the time was over (see `is_open`).
    """
    told = [command.get("note") or ""]
    last, begun = [command], time.monotonic()

    def seen(row: Row) -> None:
        last[0], note = row, row.get("note") or ""
        if note and note != told[0]:
            session.say(f"{row['run']}: {clean(note)}")
        elif told[0] == "" and time.monotonic() - begun >= endpoint.WAITING_AFTER_S:
            note = "waiting"
            session.say(f"{row['run']}: {_waits_for(row)}")
        told[0] = note or told[0]

    def lost(error: ClientError) -> None:
        if told[0] != "lost":
            told[0] = "lost"
            session.say(f"bpsctl: {error.message}; looking for it again")

    try:
        return session.client.wait_command(command["id"], timeout_s=session.left(), seen=seen, lost=lost)
    except OutOfTime:
        return last[0]


def is_open(command: Row) -> bool:
    """Whether it is not known yet what becomes of a command."""
    return command["state"] in ("ACCEPTED", "RUNNING")


def _waits_for(row: Row) -> str:
    if row["state"] == "ACCEPTED":
        return f"waiting for the daemon to begin the {row['verb']} on backend {row['backend']}"
    return f"waiting for backend {row['backend']} to carry out the {row['verb']}"


def await_runs(
    session: Session, rows: Sequence[Row], until: Sequence[str], *, any_of: bool = False
) -> tuple[Goal, bool]:
    """Wait until runs have reached something, showing how far they are.

    Parameters
    ----------
    session : `~bpsd.cli.session.Session`
        Where to show it.
    rows : sequence of `dict`
        A `~bpsd.messages.StatusResult` of each.
    until, any_of
        As of `bpsd.client.sync.Client.wait`.

    Returns
    -------
    goal : `~bpsd.client.goals.Goal`
        What became of it.
    in_time : `bool`
        Whether it was over before the time of ``--timeout`` was.
    """
    goal = Goal([row["id"] for row in rows], until, any_of=any_of)
    for row in rows:
        goal.see_row(row)
    if goal.is_over():
        return goal, True
    try:
        return goal, _followed(session, goal, rows)
    except OutOfTime:
        return goal, False


def _followed(session: Session, goal: Goal, rows: Sequence[Row]) -> bool:
    """Follow runs until the goal is over (true), or the time is."""
    with (
        session.client.watch(goal.to_watch()) as watch,
        Bars(session, {row["id"]: row["name"] for row in rows}) as bars,
    ):
        for row in rows:
            bars.show(row)
        while not goal.is_over():
            item = watch.read(session.left())
            if item is None:
                return False
            for run in goal.see(item):
                goal.see_row(session.client.patiently(None, session.client.status, run))
            _show(bars, item)
    return True


def _show(bars: Bars, item: Row) -> None:
    kind, data = item["kind"], item.get("data") or {}
    if kind == "snapshot":
        for row in item["runs"]:
            bars.show(row)
    elif kind in ("run.state", "run.progress", "run.seen"):
        if data.get("row"):
            bars.show(data["row"])
    elif kind == "run.attempt":
        bars.say(f"{item['run']}: attempt {data.get('attempt')}")
    elif kind == "client.lost":
        bars.say(f"bpsctl: {data['error']}; the runs go on, looking for the daemon again")
    elif kind == "client.back":
        bars.say(f"bpsctl: the daemon is back after {long_age(data['away_s'])}")
