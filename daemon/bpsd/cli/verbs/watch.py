"""``bpsctl watch``: runs, live: a table that renews itself on a terminal, a line for every change elsewhere."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

import time

from bpsd.cli import board
from bpsd.cli.describe import event_line
from bpsd.cli.options import add_json, run_name
from bpsd.client.failures import ClientError, OutOfTime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session
    from bpsd.client.sync_watch import Watch

    Row = dict[str, Any]

EPILOG = (
    "On a terminal, failed and held runs stand first, and a run that failed stays for half an hour. Keys: q quits, c "
    "clears away what is over, space shows the next page. Ctrl-C ends the watching, too; the runs go on."
)

KEY_EVERY_S = 0.1
"""How often keys are looked for, in seconds."""

REDRAW_S = 1.0
"""Interval at which the table is drawn again, in seconds: ages grow."""


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
    to.add("--mine", action="store_true", help="only my runs")
    to.add("--plain", action="store_true", help="a line for every change, also on a terminal")
    add_json(to)


def run(session: Session) -> int:
    """Watch until told to stop."""
    args = session.args
    session.interrupted = "no longer watching; the runs go on"
    with session.client.watch(args.runs, backend=args.backend, mine=args.mine) as watch:
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

    console = Console(no_color=not session.colours, highlight=False)
    answer: Row = {"runs": [], "backends": {}, "time": time.time()}
    cleared: set[tuple[str, int]] = set()
    taken, away, page, stale = 0.0, "", 0, True
    with board.Keys() as keys, Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            item = watch.read(KEY_EVERY_S)
            if item is not None and item["kind"] in ("client.lost", "client.back"):
                away = item["data"].get("error", "")
            for key in keys.pressed():
                stale = True
                if key in "qQ":
                    return
                if key == "c":
                    cleared |= {(row["id"], row.get("attempt", 1)) for row in answer["runs"]}
                if key == " ":
                    page += 1
            if time.monotonic() - taken >= REDRAW_S:
                try:
                    answer, away = _now(session), ""
                except OutOfTime:
                    raise
                except ClientError as error:
                    away = error.message
                taken, stale = time.monotonic(), True
            if stale:
                rows = board.ordered(answer["runs"], cleared, all_ends=bool(session.args.runs))
                size = (console.size.width, console.size.height)
                lines = board.screen(answer, rows, away, size, page=page, keys=keys.heard, paint=session.paint)
                live.update(Text.from_ansi("\n".join(lines), no_wrap=True), refresh=True)
                stale = False


def _now(session: Session) -> Row:
    args = session.args
    if not args.runs:
        days = board.KEEP_S / 86400.0
        return session.client.report(backend=args.backend, mine=args.mine, hist=days, limit=1000)
    answers = [session.client.report(name) for name in args.runs]
    backends = {name: row for answer in answers for name, row in answer["backends"].items()}
    return {**answers[0], "runs": [row for answer in answers for row in answer["runs"]], "backends": backends}
