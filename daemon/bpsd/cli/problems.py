"""What an error lists, as lines: mistakes in a document (editors can jump to them), runs that share an id."""

from __future__ import annotations

__all__ = ["candidate_lines", "problem_lines"]

from bpsd.cli.render import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def problem_lines(fields: dict[str, Any]) -> list[str]:
    """``FILE:LINE:COLUMN: KEY: what is wrong``, one line each, from the fields of an error or a `ValidateResult`."""
    source = clean(fields.get("source") or "workflow")
    problems = fields.get("problems") or []
    lines = []
    for problem in problems:
        place = [source]
        if problem.get("line"):
            place.append(str(problem["line"]))
            if problem.get("column"):
                place.append(str(problem["column"]))
        key = f"{clean(problem['key'])}: " if problem.get("key") else ""
        lines.append(f"{':'.join(place)}: {key}{clean(problem.get('message', ''))}")
    more = int(fields.get("total") or 0) - len(problems)
    if more > 0:
        lines.append(f"{source}: ... and {more} more")
    return lines


def candidate_lines(fields: dict[str, Any]) -> list[str]:
    """The runs that share an id, one line each, from the fields of an error."""
    return [
        "  " + "  ".join(clean(run.get(key) or "-") for key in ("id", "backend", "wms_id", "name"))
        for run in fields.get("candidates") or ()
    ]
