"""``bpsctl jobs``: the jobs of one run."""

from __future__ import annotations

__all__ = ["arguments", "run"]

import time

from bpsd.cli.options import DEFAULT_LIMIT, add_json, add_one_backend, add_run, add_wide, count, nearest, states
from bpsd.cli.render import clean, clock, duration, joined, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
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
    to.add(
        "--sort",
        choices=("started", "took", "exit"),
        help="all of them by when they started, how long they took (the longest first) or exit code (failures first)",
    )
    to.add("-q", "--quiet", action="store_true", help="print the names alone, one a line")
    add_wide(to)
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell."""
    args = session.args
    answer: dict[str, Any] = {}
    for page in session.client.pages(
        session.client.jobs,
        "jobs",
        None if args.sort else args.limit or None,
        run=args.run,
        backend=args.backend,
        state=args.state,
        label=args.label,
        pattern=args.pattern,
    ):
        page["jobs"] = answer.get("jobs", []) + page["jobs"]
        answer = page
    now = time.time()
    if args.sort:
        answer["jobs"].sort(key=lambda job: _ORDERS[args.sort](job, now))
        answer["jobs"], answer["next"] = answer["jobs"][: args.limit or None], None
    jobs = answer["jobs"]
    if session.json:
        session.document(answer)
    elif args.quiet:
        session.print(*(job["name"] for job in jobs))
    else:
        header = ("NAME", "LABEL", "STATE", "ATTEMPT", "EXIT", "HOST", "STARTED", "TOOK", "NOTE")
        lines = table(
            header,
            [_cells(job, now) for job in jobs],
            right=("ATTEMPT", "EXIT", "TOOK"),
            shrink=("NAME", "LABEL", "HOST", "NOTE"),
            drop=("ATTEMPT", "HOST", "LABEL", "STARTED", "TOOK", "EXIT", "NOTE", "STATE"),
            optional=("HOST", "NOTE"),
            width=session.width,
            paint=session.paint,
        )
        session.print(*lines)
        if not jobs:
            session.say(f"bpsctl: {_none(session)}")
    if len(jobs) < answer["total"] and not session.json:
        session.say(f"bpsctl: {len(jobs)} of {answer['total']} jobs are shown; --limit N shows N, --limit 0 all")
    return 0


def _none(session: Session) -> str:
    """Why there are no jobs to show."""
    args = session.args
    if args.label is not None:
        row = session.client.report(args.run, backend=[args.backend] if args.backend else [])["runs"][0]
        labels = [*(row.get("expected") or ()), *(row.get("labels") or ())]
        if labels and args.label not in labels:
            hint = nearest(args.label, labels) or f"there are {', '.join(map(clean, dict.fromkeys(labels)))}"
            return f"no job has the label {clean(args.label)}; {hint}"
    if args.state or args.label is not None or args.pattern is not None:
        return "no job fulfils the conditions"
    return "no source has told of jobs of this run yet"


def _took(job: dict[str, Any], now: float) -> float | None:
    """Seconds that a job took, or has taken up to now."""
    start, end = job.get("started_at"), job.get("ended_at")
    if start is not None and end is None and job["state"] == "RUNNING":
        end = now
    return None if start is None or end is None or end < start else end - start


_ORDERS: dict[str, Callable[[dict[str, Any], float], Any]] = {
    "started": lambda job, _: (job.get("started_at") is None, job.get("started_at") or 0.0),
    "took": lambda job, now: 1.0 if (took := _took(job, now)) is None else -took,
    "exit": lambda job, _: not job.get("exit_code"),
}


def _cells(job: dict[str, Any], now: float) -> tuple[object, ...]:
    took = _took(job, now)
    return (
        job["name"],
        job["label"],
        job["state"],
        job.get("attempt"),
        job.get("exit_code"),
        job.get("host"),
        clock(job.get("started_at")),
        "" if took is None else duration(took),
        joined(job.get("note") or "") or None,
    )
