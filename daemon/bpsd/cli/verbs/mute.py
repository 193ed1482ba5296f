"""``bpsctl mute``: notify nobody of runs any more."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

from bpsd.cli import muting
from bpsd.cli.muting import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.session import Session

EPILOG = "Conditions choose among the runs that are not over."


def run(session: Session) -> int:
    """Mute."""
    return muting.run(session, ("UNREADY", "READY", "PENDING", "RUNNING", "HELD", "UNKNOWN"), muted=True)
