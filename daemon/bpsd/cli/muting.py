"""What ``mute`` and ``unmute`` have in common."""

from __future__ import annotations

__all__ = ["arguments", "run"]

from bpsd.cli.options import add_filters, add_json, add_runs
from bpsd.cli.problems import candidate_lines
from bpsd.cli.render import clean
from bpsd.cli.selection import select
from bpsd.client.failures import ClientError, NoDaemon, OutOfTime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_runs(to, least=0)
    to.add("-n", "--dry-run", action="store_true", help="say what would be done and do nothing")
    to.add("-y", "--yes", action="store_true", help="do not ask, whatever the conditions select")
    add_json(to)
    add_filters(to, limit=0)


def run(session: Session, states: tuple[str, ...], *, muted: bool) -> int:
    """Do it for every run; one that is refused does not stop the others."""
    args = session.args
    runs = select(session, states)
    if runs is None:
        return 1
    backend = args.backend[0] if args.runs and args.backend else None
    done, failed = [], []
    for name in runs:
        try:
            answer = session.client.status(name, backend=backend) if args.dry_run else None
            done.append(
                {"run": answer["id"], "muted": muted}
                if answer is not None
                else session.client.mute(name, backend=backend, muted=muted)
            )
        except (NoDaemon, OutOfTime):
            raise
        except ClientError as error:
            failed.append({"run": name, "error": {**error.fields, "code": error.code, "message": error.message}})
            session.say(f"bpsctl: {session.verb} {clean(name)}: {error.message}")
            if error.advice:
                session.say(f"  {error.advice}")
            session.say(*candidate_lines(error.fields))
    if session.json:
        session.document({"runs": done, "errors": failed})
    else:
        would = f"would {session.verb} it" if args.dry_run else f"{session.verb}d"
        session.print(*(f"{row['run']}: {would}" for row in done))
    return 1 if failed else 0
