"""``bpsctl restart``: run again what failed, keeping what succeeded."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

from bpsd.cli import control
from bpsd.cli.control import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.session import Session

EPILOG = (
    "It returns when the WMS has taken them. Conditions choose among the runs that failed or were deleted; "
    "--label, too, chooses whole runs."
)


def run(session: Session) -> int:
    """Restart."""
    return control.run(session, ("FAILED", "DELETED"))
