"""``bpsctl refresh``: poll now."""

from __future__ import annotations

__all__ = ["arguments", "run"]

from bpsd.cli.options import add_json, add_one_backend, seconds
from bpsd.cli.render import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_one_backend(to, "poll this backend alone")
    to.add("--timeout", metavar="TIME", type=seconds, default=60.0, help="wait at most so long (default 60 s)")
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell; 1 if a backend was not seen well by this poll."""
    client, args = session.client, session.args
    before = client.ping()["time"]
    seen = client.refresh(args.backend, timeout_s=args.timeout)["last_good_at"]
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
        session.say("bpsctl: `bpsctl backends` tells why")
    return 1 if missed else 0
