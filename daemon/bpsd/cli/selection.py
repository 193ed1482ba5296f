"""Which runs an acting verb is about: those named, or those that fulfil conditions, after a person has said yes."""

from __future__ import annotations

__all__ = ["select"]

import sys

from bpsd.cli.options import UsageError, filters_of
from bpsd.cli.render import plural, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.session import Session

    Row = dict[str, Any]


def select(session: Session, states: tuple[str, ...]) -> list[str] | None:
    """The runs to act on.

    Parameters
    ----------
    session : `~bpsd.cli.session.Session`
        Its arguments: ``runs``, the filters, ``yes``, ``dry_run``.
    states : `tuple` of `str`
        States to choose from where conditions but no state were given: those in which the verb makes sense.

    Returns
    -------
    runs : `list` [`str`] or `None`
        `None` if the person said no.

    Raises
    ------
    UsageError
        Neither runs nor conditions, or both, or nobody is there to ask.
    """
    args, verb = session.args, session.verb
    conditions = filters_of(args)
    if args.runs:
        other = set(conditions) - {"backend"}
        if other or len(args.backend) > 1:
            raise UsageError(f"{verb}: both runs and conditions were given", "name runs, or give conditions, not both")
        return [*dict.fromkeys(args.runs)]
    if not conditions:
        raise UsageError(f"{verb}: which runs?", f"name them, or give conditions: bpsctl {verb} --mine --state HELD")
    conditions.setdefault("state", [*states])
    rows: list[Row] = []
    for page in session.client.pages(session.client.list_runs, "runs", args.limit or None, **conditions):
        rows += page["runs"]
    if rows and not args.dry_run and not args.yes and not _agreed(session, rows):
        session.say("bpsctl: nothing was done")
        return None
    if not rows:
        session.say("bpsctl: no run fulfils the conditions")
    return [row["id"] for row in rows]


def _agreed(session: Session, rows: list[Row]) -> bool:
    """Show what would be hit, and ask."""
    cells = [(row["id"], row["backend"], row["wms_id"], row["state"], row["name"]) for row in rows]
    session.say(*table(("ID", "BACKEND", "WMS ID", "STATE", "RUN"), cells))
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(
            f"{session.verb}: {plural(len(rows), 'run')} would be hit, and nobody is there to say yes",
            "--yes says it; --dry-run shows what would be done",
        )
    print(f"{session.verb} {plural(len(rows), 'run')}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
