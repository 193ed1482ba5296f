"""``bpsctl ping``: does the daemon answer, and do the WMSs behind it?"""

from __future__ import annotations

__all__ = ["arguments", "run"]

import time

from bpsd.cli.options import add_json, add_one_backend
from bpsd.cli.render import clean, duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_one_backend(to, "ask this backend alone")
    to.add("--daemon", action="store_true", help="ask the daemon alone")
    to.add("--pass-thru", metavar="TEXT", help="handed to the WMS as it is")
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell."""
    client, args = session.client, session.args
    hello = client.connect()
    start = time.perf_counter()
    client.ping()
    took = time.perf_counter() - start
    answers = {} if args.daemon else client.backend_ping(args.backend, pass_thru=args.pass_thru)["answers"]
    if session.json:
        session.document(
            {"daemon": {"version": hello["version"], "pid": hello["pid"], "seconds": took}, "backends": answers}
        )
    else:
        session.print(f"daemon: ok, {duration(took)} (bpsd {hello['version']}, pid {hello['pid']})")
        for name, (status, message, seconds) in answers.items():
            word = "ok" if status == 0 else f"failed ({status})"
            text = f": {clean(message)}" if message else ""
            session.print(f"{clean(name)}: {word}, {duration(seconds)}{text}")
    return 1 if any(answer[0] for answer in answers.values()) else 0
