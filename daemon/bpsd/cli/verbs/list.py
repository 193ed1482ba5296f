"""``bpsctl list``: ids of runs, for people and for ``xargs``."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

from bpsd.cli.options import add_filters, add_json, add_wide, filters_of, none_of_them
from bpsd.cli.render import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

EPILOG = "Runs in a loop: bpsctl list -q --state FAILED --mine | xargs -n1 bpsctl report"


def arguments(to: Arguments) -> None:
    """Define the options."""
    to.add("-q", "--quiet", action="store_true", help="print the ids alone, one a line")
    add_wide(to)
    add_json(to)
    add_filters(to)


def run(session: Session) -> int:
    """Ask and tell."""
    answer: dict[str, Any] = {}
    for page in session.client.pages(
        session.client.list_runs, "runs", session.args.limit or None, **filters_of(session.args)
    ):
        page["runs"] = answer.get("runs", []) + page["runs"]
        answer = page
    rows = answer["runs"]
    if session.json:
        session.document(answer)
    elif session.args.quiet:
        session.print(*(row["id"] for row in rows))
    else:
        header, drop = ("ID", "BACKEND", "WMS ID", "STATE", "RUN"), ("BACKEND", "WMS ID", "STATE")
        cells = [(row["id"], row["backend"], row["wms_id"], row["state"], row["name"]) for row in rows[::-1]]
        session.print(*table(header, cells, width=session.width, shrink=("RUN",), drop=drop, paint=session.paint))
        if not rows:
            session.say(none_of_them(session.args))
    if answer.get("next") and not session.json:
        session.say(f"bpsctl: only the newest {len(rows)} runs are shown; --limit N shows N, --limit 0 all")
    return 0
