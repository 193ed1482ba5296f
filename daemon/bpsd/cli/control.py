"""What ``cancel``, ``restart``, ``hold`` and ``release`` have in common."""

from __future__ import annotations

__all__ = ["arguments", "give", "run"]

from bpsd import wire
from bpsd.cli.describe import command_outcome
from bpsd.cli.following import await_command, is_open
from bpsd.cli.options import add_filters, add_json, add_runs, seconds
from bpsd.cli.problems import candidate_lines
from bpsd.cli.render import clean, plural
from bpsd.cli.selection import ACT_ON_JOBS, select
from bpsd.client.failures import ClientError, NoDaemon, OutOfTime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

    Row = dict[str, Any]


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_runs(to, least=0)
    to.add("--detach", action="store_true", help="do not wait: the daemon has it and will do it")
    to.add("-n", "--dry-run", action="store_true", help="say what would be done and do nothing")
    to.add("-y", "--yes", action="store_true", help="do not ask, whatever the conditions select")
    to.add("--expires", metavar="TIME", type=seconds, help="give up if it cannot be begun for so long (default: 1h)")
    to.add("--pass-thru", metavar="TEXT", help="handed to the WMS as it is")
    add_json(to)
    add_filters(to, limit=0)


def run(session: Session, states: tuple[str, ...]) -> int:
    """Choose runs, and give the command for each."""
    runs = select(session, states)
    label = session.args.label if session.verb in ACT_ON_JOBS else None
    return 1 if runs is None else give(session, runs, label=label)


def give(session: Session, runs: list[str], **more: str | None) -> int:
    """Give the command for every run, then wait for the end of each; one that is refused does not stop the others."""
    given: list[Row] = []
    failed: list[Row] = []
    for name in runs:
        if not session.args.dry_run:
            session.interrupted = (
                f"stopped after {plural(len(given), 'command')} for {plural(len(runs), 'run')}, in {clean(name)}; "
                "the daemon goes on with what it accepted: `bpsctl commands` tells"
            )
        try:
            given.append(_give(session, name, more))
        except (NoDaemon, OutOfTime):
            raise
        except ClientError as error:
            failed.append({"run": name, "error": {**error.fields, "code": error.code, "message": error.message}})
            session.say(f"bpsctl: {session.verb} {clean(name)}: {error.message}", *_advice(error))
            session.say(*candidate_lines(error.fields))
    ended = [row if _is_over(session, row) else _wait(session, row) for row in given]
    if session.json:
        session.document({"commands": ended, "errors": failed})
    else:
        session.print(*(_line(session, row) for row in ended))
    open_ = [] if session.args.detach or session.args.dry_run else [row for row in ended if is_open(row)]
    if open_:
        session.say("bpsctl: the time is over; the daemon goes on: `bpsctl commands ID` tells how far it is")
        return wire.EXIT_CODES["timeout"]
    good = ("DONE", "ACCEPTED", "RUNNING")  # the latter two only with --detach or --dry-run
    return 0 if not failed and all(row["state"] in good for row in ended) else 1


def _give(session: Session, name: str, more: dict[str, str | None]) -> Row:
    args = session.args
    return session.client.command(
        session.verb,
        name,
        backend=args.backend[0] if args.runs and args.backend else None,
        pass_thru=args.pass_thru,
        expires_s=args.expires,
        dry_run=args.dry_run,
        **more,
    )


def _is_over(session: Session, row: Row) -> bool:
    return bool(session.args.detach or session.args.dry_run or row["state"] in ("DONE", "FAILED"))


def _wait(session: Session, row: Row) -> Row:
    session.interrupted = (
        f"no longer waiting; the daemon goes on with it: `bpsctl commands {row['id']}` tells how far it is"
    )
    if session.args.verbose:
        session.say(f"{row['run']}: accepted as {row['id']}")
    return await_command(session, row)


def _line(session: Session, row: Row) -> str:
    if session.args.dry_run:
        wms_id = (row.get("args") or {}).get("wms_id")
        what = (row.get("note") or "").partition("; it would be ")[2] or "it"
        line = f"{row['run']}: would {row['verb']} {clean(what)} on {row['backend']}"
        return line + (f" as {clean(wms_id)}" if wms_id else "")
    if session.args.detach:
        return f"{row['run']}: accepted as {row['id']}"
    line = f"{row['run']}: {command_outcome(row)}"
    if row["state"] == "IN_DOUBT":
        line += f"\n  it is looked up again and again; `bpsctl commands resolve {row['id']} ...` ends the doubt"
    return line


def _advice(error: ClientError) -> list[str]:
    return [f"  {error.advice}"] if error.advice else []
