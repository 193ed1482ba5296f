"""Waiting for commands and runs on behalf of several verbs, with what a person sees and hears meanwhile."""

from __future__ import annotations

__all__ = ["await_command", "await_runs"]

import time

from bpsd.cli.live import Bars
from bpsd.cli.render import clean, long_age
from bpsd.client.goals import Goal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bpsd.cli.session import Session
    from bpsd.client.failures import ClientError

    Row = dict[str, Any]


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
    goal = Goal([row["id"] for row in rows], until, any_of=any_of)
    for row in rows:
        goal.see_row(row)
    if goal.is_over():
        return goal, True
    with (
        session.client.watch(goal.undecided()) as watch,
        Bars(session, {row["id"]: row["name"] for row in rows}) as bars,
    ):
        for row in rows:
            bars.show(row)
        while not goal.is_over():
            item = watch.read(None if deadline is None else deadline - time.monotonic())
            if item is None:
                return goal, False
            for run in goal.see(item):
                goal.see_row(session.client.patiently(None, session.client.status, run))
            _show(bars, item)
    return goal, True


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
