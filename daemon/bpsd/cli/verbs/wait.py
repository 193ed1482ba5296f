"""``bpsctl wait``: sleep until runs are over, or as far as wanted. Nothing is polled: the daemon tells."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "goals", "run"]

from bpsd import wire
from bpsd.cli.following import await_runs
from bpsd.cli.options import UsageError, add_json, add_one_backend, add_runs, nearest
from bpsd.client.goals import DONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

EPILOG = (
    "Exit code: 0 all (with --any: one) of them succeeded or reached the state; 1 they ended in another way; 3 the "
    "time is over; 130 Ctrl-C. A daemon that goes away is waited for; the runs depend neither on it nor on us."
)


def goals(text: str) -> list[str]:
    """States, or ``done``, separated by commas."""
    from bpsd.cli.arguments import BadValue

    found = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        state = DONE if word.lower() == DONE else word.upper()
        if state != DONE and state not in wire.STATES:
            hint = nearest(state, [*wire.STATES, DONE]) or f"there are done, {', '.join(wire.STATES)}"
            raise BadValue(f"{word} is no state; {hint}")
        found.append(state)
    return found


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_runs(to)
    add_one_backend(to)
    to.add(
        "--until",
        metavar="STATE",
        type=goals,
        action="extend",
        help="wait for this state (A,B: either), or done: over in whatever way (default)",
    )
    to.add("--any", action="store_true", help="one of the runs is enough")
    to.add("--all", action="store_true", help="wait for all of the runs (default)")
    add_json(to)


def run(session: Session) -> int:
    """Wait and tell."""
    args, client = session.args, session.client
    if args.any and args.all:
        raise UsageError("wait: --any and --all exclude each other", "leave one out")
    rows = [client.status(name, backend=args.backend) for name in dict.fromkeys(args.runs)]
    names = " ".join(row["id"] for row in rows)
    session.interrupted = f"no longer waiting; the runs go on: `bpsctl wait {names}` waits again"
    goal, in_time = await_runs(session, rows, args.until or [DONE], any_of=args.any)
    if session.json:
        session.document({"runs": goal.states, "reached": goal.met, "in_time": in_time})
    else:
        session.print(*(f"{run}  {session.coloured(state)}" for run, state in goal.states.items()))
        if not in_time:
            session.say(f"bpsctl: {goal.unmet()}; the runs go on")
    if not in_time:
        return wire.EXIT_CODES["timeout"]
    return 0 if goal.met else wire.EXIT_CODES["failed"]
