"""``bpsctl logs``: what a job printed, or the tails of all failed jobs of a run."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

import sys
import time

from bpsd import wire
from bpsd.cli import tails
from bpsd.cli.options import UsageError, add_json, add_one_backend, add_run, count
from bpsd.cli.render import clean, plural
from bpsd.client.failures import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

    Row = dict[str, Any]

EPILOG = "Without --stream it is standard error, where programs say why they fail."

FOLLOW_EVERY_S = 1.0
"""How often a log that is followed is looked at, in seconds."""

DEFAULT_LINES = 40
FAILED_LINES = 15
"""Lines of a tail: of one job, and of each of the failed ones."""

MOST_FAILED = 50
"""Failed jobs whose logs are fetched, unless told otherwise."""


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_run(to)
    to.add("job", metavar="JOB", nargs="?", help="the job's name (`bpsctl jobs RUN` lists them)")
    add_one_backend(to)
    to.add("--stream", choices=("stdout", "stderr"), default="stderr", help="which of its outputs (default: stderr)")
    to.add("-f", "--follow", action="store_true", help="go on with what it prints, until it has ended")
    to.add(
        "--lines",
        metavar="N",
        type=count,
        help=f"the last N lines (default {DEFAULT_LINES}, of failed {FAILED_LINES}; 0: all)",
    )
    to.add("--failed", action="store_true", help="the tail of every failed job's log, like ones together")
    to.add(
        "--limit",
        metavar="N",
        type=count,
        default=MOST_FAILED,
        help=f"with --failed: of so many jobs (default {MOST_FAILED})",
    )
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell."""
    args = session.args
    if args.failed:
        if args.job or args.follow:
            raise UsageError("logs: --failed shows all failed jobs once", "leave out the job and --follow")
        return _failed(session)
    if not args.job:
        raise UsageError("logs: which job?", "`bpsctl jobs RUN` lists them; --failed shows those that failed")
    piece = tails.tail(session.client, args.run, args.job, _lines(session, DEFAULT_LINES), args.stream, args.backend)
    if session.json:
        session.document(piece)
        return 0
    if piece["offset"] > 0 and session.args.verbose:
        session.say(f"{clean(piece['path'])}: from byte {piece['offset']} of {piece['size']}")
    _print(piece["text"], end=not args.follow)
    if not piece["size"] and not args.follow:
        other = "stdout" if args.stream == "stderr" else "stderr"
        session.say(f"bpsctl: {clean(args.job)} has printed nothing to {args.stream}; --stream {other} shows the other")
    return _follow(session, piece) if args.follow else 0


def _lines(session: Session, default: int) -> int:
    return default if session.args.lines is None else int(session.args.lines)


def _print(text: str, *, end: bool = True) -> None:
    """A log as it is, without what would command a terminal."""
    text = tails.printable(text)
    sys.stdout.write(text + ("\n" if end and text and not text.endswith("\n") else ""))
    sys.stdout.flush()


def _follow(session: Session, piece: Row) -> int:
    """Print what is added until the job is over and there is nothing more."""
    args, client = session.args, session.client
    session.interrupted = "no longer following; the job goes on"
    path, offset, ended = piece["path"], piece["next"], False
    while True:
        try:
            piece = client.logs(args.run, args.job, backend=args.backend, stream=args.stream, offset=offset)
            if piece["path"] != path or piece["size"] < offset:  # the job's next attempt, or it began its log anew
                session.say(f"bpsctl: now {clean(piece['path'])}")
                path, offset = piece["path"], 0
                continue
            _print(piece["text"], end=False)
            offset = piece["next"]
            if offset < piece["size"]:
                continue
            if ended:
                return 0
            ended = _has_ended(session)
        except ClientError as error:
            if error.code not in (
                "no_daemon",
                "connection_lost",
                "stopping",
                "backend_unavailable",
                "deadline_exceeded",
            ):
                raise
        if not ended:
            time.sleep(client.within(FOLLOW_EVERY_S, "logs"))


def _has_ended(session: Session) -> bool:
    """Whether the job will print nothing more."""
    args = session.args
    pattern = tails.literal(args.job)
    jobs = session.client.jobs(args.run, backend=args.backend, pattern=pattern, limit=1)["jobs"]
    if jobs:
        return jobs[0]["state"] in wire.TERMINAL_STATES
    return session.client.status(args.run, backend=args.backend)["state"] in wire.TERMINAL_STATES


def _failed(session: Session) -> int:
    args = session.args
    answer = session.client.jobs(
        args.run, backend=args.backend, state=["FAILED"], limit=min(args.limit or 10_000, 10_000)
    )
    found = [
        (
            job,
            tails.tail_or_reason(
                session.client, answer["run"], job["name"], _lines(session, FAILED_LINES), args.stream
            ),
        )
        for job in answer["jobs"]
    ]
    groups = tails.grouped(found)
    if session.json:
        session.document({"run": answer["run"], "total": answer["total"], "groups": groups})
        return 0
    if not groups:
        session.print(f"{answer['run']}: no job has failed")
    for group in groups:
        session.print(*tails.group_lines(group), "")
    if len(answer["jobs"]) < answer["total"]:
        shown, total = len(answer["jobs"]), plural(answer["total"], "failed job")
        session.say(f"bpsctl: the logs of {shown} of {total} are shown; --limit N shows those of N")
    return 0
