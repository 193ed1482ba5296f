"""Which runs an acting verb is about: those named, or those that fulfil conditions, after a person has said yes."""

from __future__ import annotations

__all__ = ["ACT_ON_JOBS", "hold_groups", "select", "select_held"]

import sys

from bpsd.cli.options import UsageError, filters_of
from bpsd.cli.render import clean, plural, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.session import Session

    Row = dict[str, Any]


ACT_ON_JOBS = ("hold", "release")
"""Verbs for which ``--label`` chooses jobs; for all others it chooses whole runs."""


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
        return _named(session, conditions)
    if not conditions:
        raise UsageError(f"{verb}: which runs?", f"name them, or give conditions: bpsctl {verb} --mine --state HELD")
    conditions.setdefault("state", [*states])
    rows: list[Row] = []
    for page in session.client.pages(
        session.client.list_runs, "runs", args.limit or None, commandable=True, **conditions
    ):
        rows += page["runs"]
    if rows and not args.dry_run and not args.yes and not _agreed(session, rows):
        session.say("bpsctl: nothing was done")
        return None
    if not rows:
        session.say(f"bpsctl: no run that you may {verb} fulfils the conditions")
    return [row["id"] for row in rows]


def _named(session: Session, conditions: Row) -> list[str]:
    args, verb = session.args, session.verb
    free = {"backend", "label"} if verb in ACT_ON_JOBS else {"backend"}
    if set(conditions) - free or len(args.backend) > 1:
        raise UsageError(f"{verb}: both runs and conditions were given", "name runs, or give conditions, not both")
    return [*dict.fromkeys(args.runs)]


def _agreed(session: Session, rows: list[Row]) -> bool:
    """Show what would be hit, and ask."""
    cells = [(row["id"], row["backend"], row["wms_id"], row["state"], row["name"]) for row in rows]
    header = ("ID", "BACKEND", "WMS ID", "STATE", "RUN")
    session.say(*table(header, cells, shrink=("RUN",), drop=("BACKEND", "WMS ID"), width=session.width))
    args = session.args
    if session.verb in ACT_ON_JOBS and args.label:
        what = f"the waiting jobs with label {clean(args.label)} of {plural(len(rows), 'run')}"
    else:
        what = plural(len(rows), "whole run")
    return _asked(session, what, "--yes says it; --dry-run shows what would be done")


def _asked(session: Session, what: str, advice: str) -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"{session.verb}: {what} would be hit, and nobody is there to say yes", advice)
    print(f"{session.verb} {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def hold_groups(session: Session, runs: list[str], group: str | None, conditions: Row, limit: int | None) -> Row:
    """The answer of ``holds`` with all of its pages in one."""
    known = {name: value for name, value in conditions.items() if name not in ("hist", "active")}
    answer: Row = {}
    for page in session.client.pages(session.client.holds, "groups", limit or None, runs=runs, group=group, **known):
        page["groups"] = answer.get("groups", []) + page["groups"]
        answer = page
    return answer


def select_held(session: Session) -> list[str] | None:
    """The runs in which something held is to be released (``args``: also ``label``, ``reason`` and ``confirm``).

    Returns
    -------
    runs : `list` [`str`] or `None`
        `None` if the person said no, or something else is held than ``confirm`` says.
    """
    args = session.args
    conditions = filters_of(args)
    by_jobs = args.label is not None or args.reason is not None
    if args.runs and args.confirm is None:
        return _named(session, {name: value for name, value in conditions.items() if name != "label"})
    if not conditions and not by_jobs and not args.runs:
        raise UsageError("release: which runs?", "name them, or give conditions: bpsctl release --reason GROUP")
    groups = hold_groups(session, args.runs, args.reason, {**conditions, "commandable": True}, None)["groups"]
    runs = [*dict.fromkeys(run for group in groups for run in group["runs"])][: args.limit or None]
    chosen = {*runs}
    held = sum(number for group in groups for run, number in group["runs"].items() if run in chosen)
    if args.confirm is not None and args.confirm != held:
        session.say(f"bpsctl: release: {held} would be released, not {args.confirm}: nothing was done")
        return None
    if not runs:
        session.say("bpsctl: nothing that fulfils the conditions is on hold")
    elif (
        args.confirm is None and not args.dry_run and not args.yes and not _release_agreed(session, groups, runs, held)
    ):
        session.say("bpsctl: nothing was done")
        return None
    return runs


def _release_agreed(session: Session, groups: list[Row], runs: list[str], held: int) -> bool:
    cells = [(group["group"], group["held"], group["run_count"], group["reason"]) for group in groups]
    header = ("GROUP", "HELD", "RUNS", "REASON")
    session.say(*table(header, cells, right=("HELD", "RUNS"), shrink=("REASON",), width=session.width))
    advice = f"--confirm {held} or --yes says it; --dry-run shows what would be done"
    return _asked(session, f"{held} on hold in {plural(len(runs), 'run')}", advice)
