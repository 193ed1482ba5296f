"""``bpsctl backends``: how each backend is doing, and what it does with every field of a job."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "backend_table", "field_lines", "run", "source_lines"]

from bpsd.cli.options import add_json, add_one_backend, add_wide
from bpsd.cli.render import age, clean, duration, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

    Row = dict[str, Any]

EPILOG = (
    "States: up; down (the last polls failed); auth (it refuses us); starting; stopped (its adapter failed). A breaker "
    "that is open means that the backend is left alone until NEXT."
)


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_one_backend(to, "show this backend alone")
    to.add("--fields", action="store_true", help="show which fields of a job each backend honours")
    add_wide(to)
    to.add("-q", "--quiet", action="store_true", help="print the names alone, one a line")
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell."""
    answer = session.client.backends(session.args.backend, fields=session.args.fields)
    if session.json:
        session.document(answer)
    elif session.args.quiet:
        session.print(*(clean(row["name"]) for row in answer["backends"]))
    elif session.args.fields:
        session.print(*field_lines(answer["backends"]))
    else:
        session.print(*backend_table(session, answer["backends"], answer["time"]))
        if session.args.verbose:
            session.print(*source_lines(answer["backends"], session.width))
    return 0


def backend_table(session: Session, rows: list[Row], now: float) -> list[str]:
    """One line for each backend."""
    header = ["NAME", "TYPE", "STATE", "BREAKER", "SEEN", "NEXT", "EVERY", "COST", "LIVE", "HOT", "JOBS", "ERROR"]
    cells = [
        (
            row["name"],
            row["type"],
            row["state"] + (" (stale)" if row.get("stale") else ""),
            row.get("breaker", "closed"),
            age(_since(now, row.get("last_good_at"))) or "never",
            age(_since(row.get("next_poll_at"), now)),
            age(row.get("interval_s")),
            duration(row["poll_cost_s"]) if row.get("poll_cost_s") is not None else "",
            row.get("runs_live"),
            row.get("runs_hot"),
            row.get("jobs_known"),
            row.get("error"),
        )
        for row in rows
    ]
    right = ("SEEN", "NEXT", "EVERY", "COST", "LIVE", "HOT", "JOBS")
    drop = ("BREAKER", "EVERY", "COST", "HOT", "TYPE", "JOBS", "NEXT", "LIVE", "SEEN", "ERROR")
    return table(
        header, cells, right=right, shrink=("NAME", "ERROR"), drop=drop, width=session.width, paint=session.paint
    )


def _since(later: float | None, earlier: float | None) -> float | None:
    return None if later is None or earlier is None else max(0.0, later - earlier)


def source_lines(rows: list[Row], width: int | None = None) -> list[str]:
    """Every source of every backend, and what the last poll of it cost."""
    cells = [
        (
            row["name"],
            source["name"],
            source.get("user"),
            source["status"],
            source.get("covers"),
            duration(source.get("cost_s", 0.0)),
            source.get("cost_bytes"),
            source.get("error"),
        )
        for row in rows
        for source in row.get("sources", [])
    ]
    extra = [
        f"{clean(row['name'])}: "
        + ", ".join(
            [
                f"{row.get('polls', 0)} polls, {row.get('failures', 0)} failed",
                *([f"account {clean(row['account'])}"] if row.get("account") else []),
                *([f"its clock is off by {row['clock_offset_s']:+.1f} s"] if row.get("clock_offset_s") else []),
                *(["no submission allowed to you"] if row.get("submit_allowed") is False else []),
            ]
        )
        for row in rows
    ]
    header = ("BACKEND", "SOURCE", "USER", "STATUS", "COVERS", "COST", "BYTES", "ERROR")
    return [
        "",
        *extra,
        "",
        *table(
            header,
            cells,
            right=("COST", "BYTES"),
            shrink=("SOURCE", "COVERS", "ERROR"),
            drop=("BYTES", "COVERS", "COST", "STATUS", "ERROR"),
            width=width,
        ),
    ]


def field_lines(rows: list[Row]) -> list[str]:
    """A table of job fields by backend, and below it how a field is approximated, or why it is refused."""
    names = [row["name"] for row in rows]
    tables = [row.get("fields") or {} for row in rows]
    known = [*dict.fromkeys(field for fields in tables for field in fields)]
    cells = [(field, *(fields.get(field, ("-",))[0] for fields in tables)) for field in known]
    notes = [
        f"{clean(field)} on {clean(name)}: {clean(fields[field][0])}: {clean(fields[field][1])}"
        for field in known
        for name, fields in zip(names, tables, strict=True)
        if field in fields and fields[field][1]
    ]
    return [*table(("FIELD", *names), cells), *(["", *notes] if notes else [])]
