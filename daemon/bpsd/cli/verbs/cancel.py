"""``bpsctl cancel``: end runs, and see to it that they are gone."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

from bpsd.cli import control
from bpsd.cli.control import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.session import Session

EPILOG = (
    "It returns when the runs were seen to be gone. Conditions choose among the runs that are not over; "
    "--label, too, chooses whole runs."
)

LIVE = ("UNKNOWN", "MISFIT", "UNREADY", "READY", "PENDING", "RUNNING", "HELD")


def run(session: Session) -> int:
    """Cancel."""
    return control.run(session, LIVE)
