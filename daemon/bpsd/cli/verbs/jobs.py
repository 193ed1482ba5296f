"""``bpsctl jobs``: the jobs of one run."""

from __future__ import annotations

__all__ = ["arguments", "run"]

from bpsd.cli.options import DEFAULT_LIMIT, add_json, add_one_backend, add_run, count, states
from bpsd.cli.render import clock, duration, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_run(to)
    add_one_backend(to)
    to.add("-s", "--state", metavar="STATE", type=states, action="extend", help="jobs in this state (A,B: either)")
    to.add("--label", metavar="LABEL", help="jobs with this label")
    to.add("--pattern", metavar="GLOB", help="shell pattern over the names of jobs")
    to.add(
        "--limit",
        metavar="N",
        type=count,
        default=DEFAULT_LIMIT,
        help=f"at most so many (default {DEFAULT_LIMIT}; 0: all)",
    )
    to.add("-q", "--quiet", action="store_true", help="print the names alone, one a line")
    to.add("--wide", action="store_true", help="shorten nothing, however narrow the terminal is")
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell."""
    args = session.args
    answer: dict[str, Any] = {}
    for page in session.client.pages(
        session.client.jobs,
        "jobs",
        args.limit or None,
        run=args.run,
        backend=args.backend,
        state=args.state,
        label=args.label,
        pattern=args.pattern,
    ):
        page["jobs"] = answer.get("jobs", []) + page["jobs"]
        answer = page
    jobs = answer["jobs"]
    if session.json:
        session.document(answer)
    elif args.quiet:
        session.print(*(job["name"] for job in jobs))
    else:
        header = ("NAME", "LABEL", "STATE", "ATTEMPT", "EXIT", "HOST", "STARTED", "TOOK", "NOTE")
        lines = table(
            header,
            [_cells(job) for job in jobs],
            right=("ATTEMPT", "EXIT", "TOOK"),
            shrink=("NAME", "LABEL", "HOST", "NOTE"),
            optional=("HOST", "NOTE"),
            width=session.width,
            paint=session.paint,
        )
        session.print(*lines)
    if len(jobs) < answer["total"] and not session.json:
        session.say(f"bpsctl: {len(jobs)} of {answer['total']} jobs are shown; --limit N shows N, --limit 0 all")
    return 0


def _cells(job: dict[str, Any]) -> tuple[object, ...]:
    start, end = job.get("started_at"), job.get("ended_at")
    took = duration(end - start) if start is not None and end is not None and end >= start else ""
    return (
        job["name"],
        job["label"],
        job["state"],
        job.get("attempt"),
        job.get("exit_code"),
        job.get("host"),
        clock(start),
        took,
        job.get("note"),
    )
