"""``bpsctl watch``: runs, live: a table that renews itself on a terminal, a line for every change elsewhere."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

import time

from bpsd.cli import reports
from bpsd.cli.describe import event_line
from bpsd.cli.options import add_json, run_name
from bpsd.client.failures import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session
    from bpsd.client.sync_watch import Watch

    Row = dict[str, Any]

EPILOG = "Ctrl-C ends the watching; the runs go on."

REDRAW_S = 1.0
"""Ages grow: the table is drawn again at least and at most so often, in seconds."""


def arguments(to: Arguments) -> None:
    """Define the options."""
    to.add(
        "runs",
        metavar="RUN",
        type=run_name,
        nargs="*",
        help="these runs (default: all that are not over)",
        completes="run",
    )
    to.add("-b", "--backend", metavar="NAME", action="append", help="runs of this backend", completes="backend")
    to.add("--plain", action="store_true", help="a line for every change, also on a terminal")
    add_json(to)


def run(session: Session) -> int:
    """Watch until told to stop."""
    args = session.args
    session.interrupted = "no longer watching; the runs go on"
    with session.client.watch(args.runs, backend=args.backend) as watch:
        if session.json:
            for item in watch:
                session.document(item, one_line=True)
        elif session.terminal and not args.plain:
            _draw(session, watch)
        else:
            _lines(session, watch)
    return 0


def _lines(session: Session, watch: Watch) -> None:
    for item in watch:
        if item["kind"] == "snapshot":
            for row in item["runs"]:
                percent = "" if row.get("percent") is None else f"  {row['percent']}%"
                print(f"{row['id']} on {row['backend']}  {row['state']}{percent}", flush=True)
        elif item["kind"] == "client.lost":
            session.say(f"bpsctl: {item['data']['error']}; looking for the daemon again")
        elif item["kind"] == "client.back":
            session.say("bpsctl: the daemon is back")
        elif item["kind"] != "run.progress":
            print(event_line(item), flush=True)


def _draw(session: Session, watch: Watch) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(no_color=session.args.no_color)
    answer: Row = {"runs": [], "backends": {}, "time": time.time()}
    taken, away = 0.0, ""
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            item = watch.read(REDRAW_S)
            if item is not None and item["kind"] in ("client.lost", "client.back"):
                away = item["data"].get("error", "")
            if time.monotonic() - taken < REDRAW_S:
                continue
            try:
                answer = _now(session)
                taken = time.monotonic()
            except ClientError as error:
                away = error.message
            live.update(Text.from_ansi("\n".join(_screen(session, answer, away, console))), refresh=True)


def _now(session: Session) -> Row:
    args = session.args
    if not args.runs:
        return session.client.report(backend=args.backend, active=True, limit=1000)
    answers = [session.client.report(name) for name in args.runs]
    backends = {name: row for answer in answers for name, row in answer["backends"].items()}
    return {**answers[0], "runs": [row for answer in answers for row in answer["runs"]], "backends": backends}


def _screen(session: Session, answer: Row, away: str, console: Any) -> list[str]:
    """What fits: the newest runs, and below them what is wrong."""
    now = answer["time"]
    notes = reports.backend_lines(answer["backends"], now)
    if away:
        notes.append(f"no daemon: {away}")
    rows = answer["runs"][: max(3, console.size.height - 4 - len(notes))]
    hidden = len(answer["runs"]) - len(rows)
    lines = reports.summary_lines(rows[::-1], now, answer["backends"], width=console.size.width, paint=session.paint)
    if hidden:
        notes.insert(0, f"{hidden} older runs are not shown")
    return [*lines, "", *notes]
