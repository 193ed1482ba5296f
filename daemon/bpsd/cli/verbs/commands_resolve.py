"""``bpsctl commands resolve``: a person's word on a command of which nobody knows whether it was done."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

from bpsd.cli.describe import command_outcome
from bpsd.cli.options import UsageError, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

EPILOG = "Look in the WMS first. What is tried again although it was done runs twice."


def arguments(to: Arguments) -> None:
    """Define the options."""
    to.add("id", metavar="ID", help="the command")
    to.add(
        "outcome",
        metavar="OUTCOME",
        choices=("done", "failed", "again"),
        help="done: the WMS did it; failed: it did not, and shall not; again: it did not, try once more",
    )
    to.add("--wms-id", metavar="ID", help="with done: the run's id in the WMS")
    to.add("--note", metavar="TEXT", help="why, for the record")
    add_json(to)


def run(session: Session) -> int:
    """Say it and tell what became of it."""
    args = session.args
    if args.wms_id and args.outcome != "done":
        raise UsageError("commands resolve: --wms-id belongs to done", "leave it out")
    row = session.client.commands_resolve(args.id, args.outcome, wms_id=args.wms_id, note=args.note)
    if session.json:
        session.document({"command": row})
    else:
        session.print(f"{row['id']}: {row['state']}: {command_outcome(row)}")
    return 0
