"""Events and commands as sentences. Pure functions."""

from __future__ import annotations

__all__ = ["command_cells", "command_outcome", "event_line", "event_text"]

from bpsd.cli.render import clean, clock, joined

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Row = dict[str, Any]


def event_line(event: Row) -> str:
    """When, where, which run, what: one line of a timeline."""
    who = event.get("run") or event.get("backend") or "bpsd"
    where = f" on {event['backend']}" if event.get("run") and event.get("backend") else ""
    return f"{clock(event['time'])}  {clean(who)}{clean(where)}  {event_text(event)}"


def event_text(event: Row) -> str:
    """What happened."""
    kind, data = event["kind"], event.get("data") or {}
    before = f" (was {clean(data['before'])})" if data.get("before") else ""
    if kind == "run.state":
        source = f", by {clean(data['source'])}" if data.get("source") else ""
        return f"{clean(data.get('state', '?'))}{before}{source}{_why(data)}"
    if kind == "run.seen":
        return "first seen" + (f": {clean(data['name'])}" if data.get("name") else "")
    if kind == "run.attempt":
        return f"attempt {data.get('attempt')}" + (f" as {clean(data['wms_id'])}" if data.get("wms_id") else "")
    if kind == "run.conflict":
        return (
            f"stays {clean(data.get('state'))} by {clean(data.get('source'))}, "
            f"though {clean(data.get('other_source'))} says {clean(data.get('other_state'))}"
        )
    if kind == "run.muted":
        return f"{'muted' if data.get('muted') else 'unmuted'} by {clean(data.get('user'))}"
    if kind == "backend.state":
        return f"{clean(data.get('state', '?'))}{before}" + (f": {clean(data['error'])}" if data.get("error") else "")
    if kind == "command.state":
        words = (data.get("verb"), data.get("command"), data.get("state"))
        return " ".join(clean(word) for word in words if word) + _why(data)
    facts = ", ".join(
        f"{clean(name)} {clean(value)}"
        for name, value in data.items()
        if name != "row" and value not in (None, "", [], {})
    )
    return f"{kind}: {facts}" if facts else kind


def _why(data: Row) -> str:
    return f": {joined(data['note'])}" if data.get("note") else ""


def command_cells(row: Row) -> tuple[object, ...]:
    """A command as cells of a table: id, verb, state, run, backend, user, when, what is to be said of it."""
    said = row.get("note") or (row.get("error") or {}).get("message") or ""
    return (
        row["id"],
        row["verb"],
        row["state"],
        row["run"],
        row["backend"],
        row["user"],
        clock(row["accepted_at"]),
        joined(said),
    )


_DONE = {
    "submit": "submitted",
    "cancel": "cancelled and gone",
    "restart": "restarted",
    "hold": "held",
    "release": "released",
}


def command_outcome(row: Row) -> str:
    """What became of a command, in words."""
    note = joined(row.get("note") or "")
    error = clean((row.get("error") or {}).get("message") or "") or note
    state = row["state"]
    if state == "DONE":
        return _DONE.get(row["verb"], "done") + (f" ({note})" if note else "")
    if state == "FAILED":
        return f"not {_DONE.get(row['verb'], 'done').partition(' ')[0]}: {error or 'no reason given'}"
    if state == "EXPIRED":
        return note or "not tried in time"
    if state == "SUPERSEDED":
        return f"overtaken by a later command{': ' + note if note else ''}"
    if state == "IN_DOUBT":
        return f"in doubt: nobody knows whether it was done{': ' + note if note else ''}"
    return f"{'under way' if state == 'RUNNING' else 'waits'}{': ' + note if note else ''}"
