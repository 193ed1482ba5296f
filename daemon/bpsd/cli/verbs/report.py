"""``bpsctl report``: the runs, or one run in full, as ``bps report`` shows them."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

from bpsd.cli import reports
from bpsd.cli.options import UsageError, add_filters, add_json, add_wide, filters_of, none_of_them, run_name, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

    Row = dict[str, Any]

EPILOG = (
    "Flags of running runs: H jobs are held, D deleted, F failed. %S is the share of jobs that succeeded. "
    "AGE tells when SOURCE last confirmed the row; with a star, the backend does not answer and the run may have "
    "changed since."
)


def arguments(to: Arguments) -> None:
    """Define the options."""
    to.add(
        "run",
        metavar="RUN",
        type=run_name,
        nargs="?",
        help="show this run in full, label by label",
        completes="run",
    )
    to.add("--id", metavar="RUN", type=run_name, help="the same, as `bps report` has it", completes="run")
    to.add("--return-exit-codes", action="store_true", help="with a run: also the exit codes of its failed jobs")
    to.add("--global", action="store_true", help="show the WMS's global ids")
    to.add("--max-age", metavar="TIME", type=seconds, help="poll first what was seen longer ago than that")
    add_wide(to)
    add_json(to)
    add_filters(to)


def run(session: Session) -> int:
    """Ask and tell."""
    args = session.args
    if args.run and args.id and args.run != args.id:
        raise UsageError("report: two runs were named", "name one, or none for a list of all")
    wanted = args.run or args.id
    if wanted and (other := set(filters_of(args)) - {"backend"}):
        raise UsageError(f"report: a run was named, so --{min(other)} says nothing", "name a run or give conditions")
    answer = _ask(session, wanted)
    if session.json:
        session.document(answer)
    else:
        _tell(session, answer, detailed=wanted is not None)
    return 0


def _ask(session: Session, wanted: str | None) -> Row:
    args = session.args
    if wanted is not None:
        return session.client.report(wanted, backend=args.backend, max_age_s=args.max_age)
    answer: Row = {}
    pages = session.client.pages(
        session.client.report, "runs", args.limit or None, max_age_s=args.max_age, **filters_of(args)
    )
    for page in pages:
        if answer:
            answer["runs"] += page["runs"]
            answer["next"] = page.get("next")
        else:
            answer = page
    return answer


def _tell(session: Session, answer: Row, *, detailed: bool) -> None:
    # The daemon gives the newest first; on a terminal the newest belong at the end, as with `bps report`.
    rows, now, backends = answer["runs"][::-1], answer["time"], answer.get("backends") or {}
    is_global = getattr(session.args, "global")
    session.print(
        *reports.summary_lines(rows, now, backends, width=session.width, paint=session.paint, is_global=is_global)
    )
    if not rows:
        session.say(none_of_them(session.args))
    words = [*answer.get("messages", ())]
    if detailed:
        for row in rows:
            words += _tell_one(session, row, now)
    words += reports.backend_lines(backends, now)
    if answer.get("next"):
        words.append(f"only the newest {len(rows)} runs are shown; --limit N shows N, --limit 0 all")
    stale = [row for row in rows if reports.is_stale(row, backends)]
    words += [f"backend {name}: not configured any more" for name in {row["backend"] for row in stale} - {*backends}]
    if stale:
        words.append("* the backend does not answer: the run may have changed since")
    if words:
        session.print("", *dict.fromkeys(words))


def _tell_one(session: Session, row: Row, now: float) -> list[str]:
    lines, words = reports.label_lines(row, session.width)
    session.print("", *reports.detail_lines(row, now, session.width), "", *lines)
    if session.args.return_exit_codes:
        lines, more = reports.exit_code_lines(row, session.width)
        words += more
        if lines:
            session.print("", *lines)
    return words
