"""``bpsctl unmute``: notify of runs again."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

from bpsd.cli import muting
from bpsd.cli.muting import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.session import Session

EPILOG = "Conditions choose among all runs, muted or not."


def run(session: Session) -> int:
    """Unmute."""
    return muting.run(session, (), muted=False)
