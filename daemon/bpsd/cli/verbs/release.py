"""``bpsctl release``: let what is held go on: runs, or jobs by label or reason."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

from bpsd.cli import control
from bpsd.cli.options import UsageError, count
from bpsd.cli.selection import select_held

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

EPILOG = (
    "Conditions choose among the runs that have something on hold. With --label or --reason only what is held of that "
    "label, for that reason, is released."
)


def arguments(to: Arguments) -> None:
    """Define the options."""
    to.add("--reason", metavar="GROUP", help="only what is held for this reason: a group of `bpsctl holds`")
    to.add("--confirm", metavar="N", type=count, help="say yes if just so many jobs and runs would be released")
    control.arguments(to)


def run(session: Session) -> int:
    """Release."""
    args = session.args
    if args.confirm is not None and args.yes:
        raise UsageError("release: both --confirm and --yes were given", "--confirm N says yes, but only to N")
    runs = select_held(session)
    return 1 if runs is None else control.give(session, runs, label=args.label, group=args.reason)
