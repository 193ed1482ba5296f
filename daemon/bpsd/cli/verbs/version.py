"""``bpsctl version``: which client, which daemon."""

from __future__ import annotations

__all__ = ["arguments", "run"]

import sys

from bpsd import __version__, wire
from bpsd.cli.options import add_json
from bpsd.cli.render import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell; our own version also when no daemon answers."""
    ours = {"version": __version__, "protocol": wire.PROTOCOL_VERSION, "python": sys.version.split()[0]}
    if not session.json:
        session.print(f"client: bpsd {__version__}, protocol {ours['protocol']}, Python {ours['python']}")
    daemon = session.client.version()
    if session.json:
        session.document({"client": ours, "daemon": daemon})
        return 0
    session.print(
        f"daemon: bpsd {daemon['version']}, protocol {daemon['protocol']}, Python {daemon['python']}, "
        f"pid {daemon['pid']}, {daemon['mode']} mode, since {clock(daemon['started_at'])}",
        f"  socket {daemon['socket']}, state {daemon['state_dir']}, config {daemon['config'] or 'none (defaults)'}",
    )
    return 0
