"""``bpsctl submit``: hand a workflow to the daemon, which hands it to a WMS, exactly once."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run", "token"]

from bpsd import wire
from bpsd.cli.describe import command_outcome
from bpsd.cli.documents import read_document
from bpsd.cli.following import await_command, await_runs, is_open
from bpsd.cli.live import sending
from bpsd.cli.options import add_json, add_one_backend, seconds
from bpsd.cli.render import clean
from bpsd.cli.verbs import validate
from bpsd.client.goals import DONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

    Row = dict[str, Any]

EPILOG = (
    "A script that must not submit twice makes a token once (20 of a-z and 0-9), keeps it, and gives it with every "
    "try: the same token is the same run. Exit code: 0 submitted (with --wait: and succeeded), 1 refused or failed, "
    "3 the time of --timeout is over; then the run goes on."
)


def token(text: str) -> str:
    """A run's identity, made by whoever submits it."""
    from bpsd.cli.arguments import BadValue

    if len(text) != wire.TOKEN_LENGTH or set(text) - set(wire.TOKEN_ALPHABET):
        raise BadValue(f"{text!r} is no token: {wire.TOKEN_LENGTH} characters of a-z and 0-9")
    return text


def arguments(to: Arguments) -> None:
    """Define the options."""
    to.add("file", metavar="FILE", completes="file", help="the workflow, YAML or JSON; - reads standard input")
    add_one_backend(to, "where to; needed if there are several")
    to.add("--wait", action="store_true", help="wait until the run is over")
    to.add("--detach", action="store_true", help="do not even wait until the WMS has it: the daemon has it")
    to.add("--token", metavar="TOKEN", type=token, help="submit under this token; the same token again is the same run")
    to.add("--expires", metavar="TIME", type=seconds, help="give up if it cannot be begun for so long (default: 1h)")
    to.add("-n", "--dry-run", action="store_true", help="check it and submit nothing")
    to.add("-q", "--quiet", action="store_true", help="print the run's id alone")
    add_json(to)


def run(session: Session) -> int:
    """Submit and tell."""
    args, client = session.args, session.client
    data, source = read_document(args.file)
    progress = sending(session, len(data))
    if args.dry_run:
        return validate.tell(
            session, client.validate_document(data, source=source, backend=args.backend, progress=progress), source
        )
    mine = args.token or wire.new_token()
    session.interrupted = (
        "it is not known whether it was submitted; "
        f"`bpsctl submit --token {mine} {source}` asks, and does not do it twice"
    )
    row = client.submit_document(
        data, token=mine, source=source, backend=args.backend, expires_s=args.expires, progress=progress
    )
    session.interrupted = (
        f"no longer waiting; run {row['run']} goes on: `bpsctl status {row['run']}` tells, `bpsctl cancel` ends it"
    )
    if not row.get("created", True):
        session.say(
            f"bpsctl: this token is that of run {row['run']}, which is there already; nothing was submitted again"
        )
    if not args.quiet:
        session.say(
            *(f"{clean(source)}: warning: {clean(text)}" for text in (row.get("args") or {}).get("warnings", ()))
        )
    if not args.detach:
        row = await_command(session, row)
    if is_open(row) and not args.detach:
        _tell(session, row, source, good=True)
        session.say(f"bpsctl: the time is over; the submit {command_outcome(row)}", f"bpsctl: {session.interrupted}")
        return wire.EXIT_CODES["timeout"]
    good = row["state"] == "DONE" or (args.detach and is_open(row))
    if not (good and args.wait):
        _tell(session, row, source, good=good)
        return 0 if good else wire.EXIT_CODES["failed"]
    return _wait(session, row, source)


def _tell(session: Session, row: Row, source: str, *, good: bool, state: str | None = None) -> None:
    if session.json:
        session.document({"run": row["run"], "command": row, **({"state": state} if state else {})})
        return
    if not good:
        _tell_failure(session, row, source)
        return
    result = row.get("result") or {}
    if session.args.quiet:
        session.print(row["run"])
        return
    if result.get("path"):
        session.print(f"Submit dir: {result['path']}")
    session.print(f"Run Id: {row['run']}")
    if result.get("wms_id") and result["wms_id"] != row["run"]:
        session.print(f"WMS Id: {result['wms_id']}")
    session.print(f"Backend: {row['backend']}")
    if session.args.verbose or session.args.detach:
        session.print(f"Command: {row['id']}")
    if session.args.verbose:
        session.print(f"Token: {row.get('token')}")


def _tell_failure(session: Session, row: Row, source: str) -> None:
    error = row.get("error") or {}
    if error.get("problems"):
        from bpsd.cli.problems import problem_lines

        session.say(*problem_lines({**error, "source": source}))
    session.say(f"bpsctl: submit: run {row['run']}: {command_outcome(row)}")
    if error.get("advice"):
        session.say(f"  {error['advice']}")
    if row["state"] == "IN_DOUBT":
        session.say(f"  it is looked up again and again; `bpsctl commands {row['id']}` tells")


def _wait(session: Session, row: Row, source: str) -> int:
    status = session.client.status(row["run"])
    if not session.json:
        _tell(session, row, source, good=True)
    goal, in_time = await_runs(session, [status], [DONE])
    state = goal.states[status["id"]]
    if session.json:
        _tell(session, row, source, good=True, state=state)
    elif not session.args.quiet:
        session.print(f"State: {session.coloured(state)}")
    if not in_time:
        session.say(f"bpsctl: {goal.unmet()}; the run goes on")
        return wire.EXIT_CODES["timeout"]
    if not goal.met:
        session.say(f"bpsctl: `bpsctl logs {row['run']} --failed` shows what the failed jobs said")
    return 0 if goal.met else wire.EXIT_CODES["failed"]
