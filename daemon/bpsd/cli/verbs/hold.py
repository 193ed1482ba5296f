"""``bpsctl hold``: let runs begin no more jobs for now."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

from bpsd.cli import control
from bpsd.cli.control import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.session import Session

EPILOG = (
    "Conditions choose among the runs that are not over and not held. With --label only their waiting jobs of that "
    "label are held, where the backend can."
)


def run(session: Session) -> int:
    """Hold."""
    return control.run(session, ("UNREADY", "READY", "PENDING", "RUNNING"))
