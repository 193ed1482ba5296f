"""``bpsctl admin``: care for the daemon's own records."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

from bpsd.cli.options import add_json
from bpsd.cli.render import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

EPILOG = """accept  take commands again after the journal was restored from a copy: first look in the WMS for
        what runs, since commands given after the copy was made are not known any more
check   read journal and history from end to end, looking for damage (exit code 1 if there is any)
backup  copy journal and history now, into the folder copies of the state
vacuum  give the free pages of the history back to the file system"""


def arguments(to: Arguments) -> None:
    """Define the options."""
    to.add("act", choices=("accept", "check", "backup", "vacuum"), help="what to do (see below)")
    add_json(to)


def run(session: Session) -> int:
    """Do it and tell."""
    answer = session.client.admin(session.args.act)
    if session.json:
        session.document(answer)
    else:
        for line in answer["done"]:
            session.print(clean(line))
        for line in answer["problems"]:
            session.print(f"DAMAGED: {clean(line)}")
    return 1 if answer["problems"] else 0
