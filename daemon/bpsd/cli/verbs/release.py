"""``bpsctl release``: let held runs go on."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

from bpsd.cli import control
from bpsd.cli.control import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.session import Session

EPILOG = "Conditions choose among the runs that are held, and those that run with held jobs."


def run(session: Session) -> int:
    """Release."""
    return control.run(session, ("HELD", "RUNNING"))
