"""``bpsctl status``: one run in a line; the state is the exit code, as with ``bps status``."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "lines_of", "run"]

import time

from bpsd.cli.options import add_json, add_one_backend, add_run, seconds
from bpsd.cli.render import clean, joined, long_age

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

EPILOG = "The exit code is the number of the state: SUCCEEDED 0, RUNNING 15, FAILED 19, ... (see `bpsctl --help`)."


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_run(to)
    add_one_backend(to)
    to.add("--max-age", metavar="TIME", type=seconds, help="poll first what was seen longer ago than that")
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell."""
    args = session.args
    row = session.client.status(args.run, backend=args.backend, max_age_s=args.max_age)
    if session.json:
        session.document(row)
    else:
        session.print(*lines_of(row, time.time(), session.coloured(row["state"])))
    return int(row["code"])


def lines_of(row: dict[str, Any], now: float, state: str) -> list[str]:
    """What to say of a `~bpsd.messages.StatusResult` at a moment."""
    what = [state]
    if row["state"] == "UNKNOWN" and row.get("last_known"):
        ago = f" {long_age(now - row['last_known_at'])} ago" if row.get("last_known_at") is not None else ""
        why = f"; {joined(row['note'])}" if row.get("note") else ""
        what.append(f"(was {row['last_known']}{ago}{why})")
    what.append(row["id"])
    if clean(row["name"]) != row["id"]:
        what.append(clean(row["name"]))
    if row.get("percent") is not None:
        what.append(f"{row['percent']}%")
    if row.get("attempt", 1) > 1:
        what.append(f"attempt {row['attempt']}")
    lines = ["  ".join(what), "  " + _where(row, now)]
    if row.get("note") and not (row["state"] == "UNKNOWN" and row.get("last_known")):
        lines += [f"  {clean(line)}" for line in str(row["note"]).splitlines()]
    if row.get("stale"):
        reason = f": {clean(row['error'])}" if row.get("error") else ""
        lines.append(f"  the backend does not answer, so this may have changed{reason}")
    return lines


def _where(row: dict[str, Any], now: float) -> str:
    where = f"on {clean(row['backend'])}"
    if row.get("wms_id") and row["wms_id"] != row["id"]:
        where += f" as {clean(row['wms_id'])}"
    if row.get("observed_at") is None:
        return f"{where}, not seen there yet"
    source = f" ({clean(row['source'])})" if row.get("source") else ""
    return f"{where}, seen {long_age(now - row['observed_at'])} ago{source}"
