"""``bpsctl refresh``: poll now."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

import time

from bpsd import wire
from bpsd.cli.options import add_json, add_one_backend
from bpsd.cli.render import clock
from bpsd.cli.session import GRACE_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session


EPILOG = "Exit code: 0 all were polled; 1 a poll failed; 3 a poll was not over in time (--timeout, default 60 s)."

POLL_S = 60.0
"""Seconds that the polls may take, unless told otherwise."""


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_one_backend(to, "poll this backend alone")
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell; 1 if a backend was not seen well by this poll."""
    client, args = session.client, session.args
    session.interrupted = "no longer waiting; the daemon goes on polling"
    before = client.ping()["time"]
    left = session.left()
    timeout_s, begun = POLL_S if left is None else left, time.monotonic()
    client.deadline = begun + timeout_s + GRACE_S  # the daemon itself answers when the time is over
    seen = client.refresh(args.backend, timeout_s=timeout_s)["last_good_at"]
    in_time = time.monotonic() - begun < timeout_s
    if session.json:
        session.document({"last_good_at": seen})
    missed = []
    for name, when in seen.items():
        good = when is not None and when >= before
        if not good:
            missed.append(name)
        if not session.json:
            session.print(f"{name}: " + ("polled" if good else f"not seen; last seen well {clock(when) or 'never'}"))
    if missed and not session.json:
        session.say(*([] if in_time else ["bpsctl: the time is over; the polls go on"]))
        session.say("bpsctl: `bpsctl backends` tells why")
    return 0 if not missed else wire.EXIT_CODES["failed" if in_time else "timeout"]
