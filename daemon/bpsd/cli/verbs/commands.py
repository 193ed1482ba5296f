"""``bpsctl commands``: what was asked for, by whom, and what became of it."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "detail_lines", "run"]

from bpsd.cli.describe import command_cells, command_outcome
from bpsd.cli.options import add_json, add_one_backend, add_wide, command_states, count, moment, run_name
from bpsd.cli.problems import problem_lines
from bpsd.cli.render import clean, clock, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

    Row = dict[str, Any]

EPILOG = "A command IN_DOUBT is looked up until it is known; `bpsctl commands resolve ID ...` is a person's word on it."


def arguments(to: Arguments) -> None:
    """Define the options."""
    to.add("id", metavar="ID", nargs="?", help="this command, in full")
    to.add("--run", metavar="RUN", type=run_name, help="commands on this run", completes="run")
    add_one_backend(to, "commands for this backend")
    to.add(
        "-s",
        "--state",
        metavar="STATE",
        type=command_states,
        action="extend",
        help="commands in this state (A,B: either)",
    )
    to.add("-u", "--user", metavar="NAME", help="commands of this user")
    to.add("--since", metavar="TIME", type=moment, help="accepted from then on: 2h (ago), 03:00 or '2026-07-01 03:00'")
    to.add("--limit", metavar="N", type=count, default=100, help="the latest N (default 100; 0: 10000)")
    add_wide(to)
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell."""
    args = session.args
    answer = session.client.commands(
        args.id,
        run=args.run,
        backend=args.backend,
        state=args.state,
        user=args.user,
        since=args.since,
        limit=min(args.limit or 10_000, 10_000),
    )
    rows = answer["commands"]
    if session.json:
        session.document(answer)
    elif args.id:
        session.print(*detail_lines(rows[0]))
    else:
        header = ("ID", "VERB", "STATE", "RUN", "BACKEND", "USER", "ACCEPTED", "NOTE")
        cells = [command_cells(row) for row in rows[::-1]]
        drop = ("USER", "BACKEND", "ACCEPTED", "VERB", "RUN", "NOTE")
        session.print(*table(header, cells, shrink=("NOTE",), drop=drop, width=session.width, paint=session.paint))
        if not rows:
            session.say("bpsctl: no command fulfils the conditions")
        if answer.get("next"):
            session.say(f"bpsctl: only the latest {len(rows)} are shown; --limit N shows N")
    return 0


def detail_lines(row: Row) -> list[str]:
    """One command in full."""
    facts = [
        ("Command", row["id"]),
        ("Verb", row["verb"]),
        ("Run", f"{row['run']} on {row['backend']}"),
        ("State", f"{row['state']}: {command_outcome(row)}"),
        ("By", f"{row['user']} (uid {row['uid']}, process {row['pid']})"),
        # The process words these itself: for people to read, proof of nothing.
        ("It says", ", ".join(filter(None, (row.get("client"), (row.get("args") or {}).get("command_line"))))),
        ("Accepted", clock(row["accepted_at"])),
        ("Begun", clock(row.get("started_at"))),
        ("Ended", clock(row.get("ended_at"))),
        ("Expires", clock(row.get("expires_at")) if row["state"] == "ACCEPTED" else ""),
        ("Token", row.get("token")),
        ("Result", ", ".join(f"{name} {value}" for name, value in (row.get("result") or {}).items() if value)),
        ("Advice", (row.get("error") or {}).get("advice")),
    ]
    error = row.get("error") or {}
    return [f"{name + ':':<10}{clean(value)}" for name, value in facts if value] + problem_lines(error)
