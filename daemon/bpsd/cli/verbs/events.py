"""``bpsctl events``: what happened, and when; of one run or of all."""

from __future__ import annotations

__all__ = ["arguments", "run"]

from bpsd.cli.describe import event_line
from bpsd.cli.options import UsageError, add_json, add_one_backend, add_wide, count, moment, run_name
from bpsd.cli.render import clip, columns_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

    Row = dict[str, Any]

DEFAULT_LIMIT = 200
TRANSIENT = ("run.progress", "job.state")
"""What only watchers hear of: it is not in the timeline."""


def arguments(to: Arguments) -> None:
    """Define the options."""
    to.add("run", metavar="RUN", type=run_name, nargs="?", help="the timeline of this run alone", completes="run")
    add_one_backend(to, "events of this backend alone")
    to.add("--after", metavar="SEQ", type=count, help="what came after this sequence number")
    to.add("--since", metavar="TIME", type=moment, help="from then on: 2h (ago), 03:00 or '2026-07-01 03:00'")
    to.add("--until", metavar="TIME", type=moment, help="up to then")
    to.add(
        "--limit",
        metavar="N",
        type=count,
        default=DEFAULT_LIMIT,
        help=f"the last N, or the first with --after or --since (default {DEFAULT_LIMIT}; 0: 10000)",
    )
    to.add("-f", "--follow", action="store_true", help="go on with what happens")
    add_wide(to)
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell."""
    args = session.args
    if args.follow and args.until is not None:
        raise UsageError("events: --follow and --until exclude each other", "leave one out")
    answer = session.client.events(
        args.run,
        backend=args.backend,
        after=args.after,
        since=args.since,
        until=args.until,
        limit=min(args.limit or 10_000, 10_000),
    )
    if not args.follow:
        if session.json:
            session.document(answer)
            return 0
        session.print(*(_line(session, event) for event in answer["events"]))
        if any(columns_of(_whole(session, event)) > (session.width or 10**9) for event in answer["events"]):
            session.say("bpsctl: long lines are shortened; --wide shows them whole")
        if not answer["events"]:
            session.say("bpsctl: nothing happened then" if args.since or args.until else "bpsctl: nothing happened yet")
        if answer.get("next"):
            session.say(f"bpsctl: more happened; --after {answer['next']} goes on, --limit N shows N")
        return 0
    _tell(session, answer["events"])
    _follow(session, answer["events"][-1]["seq"] if answer["events"] else args.after)
    return 0


def _line(session: Session, event: Row) -> str:
    """An event as one line that fits the terminal."""
    text = _whole(session, event)
    return text if session.width is None else clip(text, session.width)


def _whole(session: Session, event: Row) -> str:
    return f"{event['seq']:>8}  {event_line(event)}" if session.args.verbose else event_line(event)


def _tell(session: Session, events: list[Row]) -> None:
    for event in events:
        if session.json:
            session.document(event, one_line=True)
        else:
            print(_line(session, event), flush=True)


def _follow(session: Session, last: int | None) -> None:
    """Go on from the last event told; what a watch cannot give again is taken from the timeline."""
    args = session.args
    session.interrupted = "no longer following"
    with session.client.watch(
        [args.run] if args.run else [], backend=[args.backend] if args.backend else [], since=last
    ) as watch:
        for item in watch:
            if item["kind"] == "snapshot":
                if last is not None:
                    missed = session.client.events(args.run, backend=args.backend, after=last, limit=10_000)["events"]
                    _tell(session, [event for event in missed if event["seq"] <= item["seq"]])
                last = max(item["seq"], last or 0)
            elif item["kind"] == "client.lost":
                session.say(f"bpsctl: {item['data']['error']}; looking for the daemon again")
            elif item["kind"] == "client.back":
                session.say("bpsctl: the daemon is back")
            elif item["kind"] not in TRANSIENT:
                last = item["seq"]
                _tell(session, [item])
