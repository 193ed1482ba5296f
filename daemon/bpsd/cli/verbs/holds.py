"""``bpsctl holds``: what is on hold, over all runs and backends, grouped by reason."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

from bpsd.cli.options import add_filters, add_json, add_runs, add_wide, filters_of
from bpsd.cli.render import age, clean, plural, table
from bpsd.cli.selection import hold_groups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

    Row = dict[str, Any]

EPILOG = "`bpsctl release --reason GROUP` releases a group."

MOST_NAMES = 20
"""Runs and labels that `-v` names of a group."""


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_runs(to, least=0)
    to.add("--reason", metavar="GROUP", help="only this group")
    add_wide(to)
    add_json(to)
    add_filters(to)


def run(session: Session) -> int:
    """Ask and tell."""
    args = session.args
    answer = hold_groups(session, args.runs, args.reason, filters_of(args), args.limit)
    groups = answer["groups"]
    if session.json:
        session.document(answer)
        return 0
    if not groups:
        session.print("nothing is on hold")
        return 0
    session.print(
        *table(
            ("GROUP", "HELD", "RUNS", "OLDEST", "LABELS", "BACKEND", "REASON"),
            [_cells(group, answer["time"]) for group in groups],
            right=("HELD", "RUNS", "OLDEST"),
            shrink=("GROUP", "LABELS", "BACKEND", "REASON"),
            drop=("BACKEND", "OLDEST", "LABELS", "RUNS"),
            width=session.width,
        )
    )
    if args.verbose:
        for group in groups:
            session.print("", *_more(group))
    session.say(
        f"bpsctl: {answer['held']} on hold in {plural(answer['run_count'], 'run')}"
        + ("" if len(groups) == 1 else f", {len(groups)} reasons")
    )
    return 0


def _cells(group: Row, now: float) -> tuple[object, ...]:
    oldest = group.get("oldest_at")
    return (
        group["group"],
        group["held"],
        group["run_count"],
        age(None if oldest is None else now - oldest),
        _named(group["labels"], 3),
        ", ".join(group["backends"]),
        group["reason"],
    )


def _named(counts: dict[str, int], most: int) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{name} {number}" for name, number in ordered[:most]]
    return ", ".join(words) + (f", {len(ordered) - most} more" if len(ordered) > most else "")


def _more(group: Row) -> list[str]:
    return [
        f"{group['group']}: {clean(group['example'])}",
        f"  runs: {clean(_named(group['runs'], MOST_NAMES))}",
        *([f"  labels: {clean(_named(group['labels'], MOST_NAMES))}"] if group["labels"] else []),
    ]
