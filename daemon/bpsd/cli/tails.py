"""Tails of logs: fetching them in pieces, making them fit for a terminal, and putting like failures together."""

from __future__ import annotations

__all__ = ["group_lines", "grouped", "last_lines", "literal", "printable", "tail", "tail_or_reason"]

import re

from bpsd import wire
from bpsd.cli.render import clean, plural
from bpsd.client.failures import ClientError, NoDaemon, OutOfTime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from bpsd.client.sync import Client

    Row = dict[str, Any]

FIRST_BYTES = 16 * 1024
"""What is asked for first of a tail; four times as much if the lines are not in it, and so on."""

PIECE_BYTES = 256 * 1024
"""The most that one request brings."""

MOST_BYTES = 64 * 1024 * 1024
"""The longest log that is fetched whole."""

MOST_NAMES = 10
"""Jobs of a group that are named."""


def tail(client: Client, run: str, job: str, lines: int, stream: str, backend: str | None = None) -> Row:
    """The last lines of a log (0: all of it), as a `~bpsd.messages.LogsResult`."""
    size = FIRST_BYTES
    while True:
        want = MOST_BYTES if lines == 0 else size
        piece = _fetch(client, run, job, stream, backend, want)
        if lines == 0 or piece["offset"] == 0 or piece["text"].count("\n") > lines or want >= MOST_BYTES:
            break
        size *= 4
    if lines:
        kept = last_lines(piece["text"], lines)
        cut = len(piece["text"].encode()) - len(kept.encode())
        piece = {**piece, "text": kept, "offset": piece["offset"] + cut}
    return piece


def _fetch(client: Client, run: str, job: str, stream: str, backend: str | None, want: int) -> Row:
    """The last ``want`` bytes, in as many requests as it takes."""
    first = client.logs(run, job, backend=backend, stream=stream, offset=-want, limit=min(want, PIECE_BYTES))
    texts, piece = [first["text"]], first
    while piece["next"] < first["size"] and piece["next"] > piece["offset"]:
        piece = client.logs(run, job, backend=backend, stream=stream, offset=piece["next"], limit=PIECE_BYTES)
        texts.append(piece["text"])
    return {**piece, "offset": first["offset"], "text": "".join(texts)}


def tail_or_reason(client: Client, run: str, job: str, lines: int, stream: str) -> str:
    """The last lines of a log, or why there are none: one log that is gone must not hide the others."""
    try:
        text: str = tail(client, run, job, lines or 1000, stream)["text"]
    except (NoDaemon, OutOfTime):
        raise
    except ClientError as error:
        return f"(no log: {error.message})\n"
    return text


def last_lines(text: str, lines: int) -> str:
    """The last ``lines`` lines of a text."""
    return "".join(text.splitlines(keepends=True)[-lines:])


_COMMANDS = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def printable(text: str) -> str:
    """A log without what would command a terminal; tabs, line ends and every letter stay."""
    return _COMMANDS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def literal(name: str) -> str:
    """A shell pattern that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


# -- like failures -----------------------------------------------------------------------------------------------------

_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|\d+|[0-9a-f]{8,}|/\S+")


def _cause(text: str) -> str:
    """The last line that says something, without what differs from job to job: numbers, paths, hashes."""
    said = [line.strip() for line in printable(text).splitlines() if line.strip()]
    return _VARIABLE.sub("#", said[-1]) if said else ""


def grouped(found: Iterable[tuple[Row, str]]) -> list[Row]:
    """Put jobs with the same label, exit code, note and last words together, the largest group first.

    Each group has ``label``, ``exit_code``, ``note``, ``cause`` (the last words), ``jobs`` (their names) and ``text``,
    the tail of the first.
    """
    groups: dict[tuple[object, ...], Row] = {}
    for job, text in found:
        why = _cause(job.get("note") or "")
        key = (job["label"], job.get("exit_code"), why, _cause(text))
        group = groups.setdefault(
            key,
            {
                "label": job["label"],
                "exit_code": job.get("exit_code"),
                "note": job.get("note") or "",
                "cause": key[3],
                "jobs": [],
                "text": text,
            },
        )
        group["jobs"].append(job["name"])
    return sorted(groups.values(), key=lambda group: -len(group["jobs"]))


def group_lines(group: Row) -> list[str]:
    """A group for people: how many of what failed how, who they are, and what the first one said."""
    names = group["jobs"]
    why = clean(group.get("note") or "") or ("" if group["exit_code"] is None else wire.ending(group["exit_code"]))
    why = f", {why}" if why else ""
    shown = ", ".join(clean(name) for name in names[:MOST_NAMES])
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    said = printable(group["text"]).rstrip("\n").split("\n") if group["text"] else ["(it printed nothing)"]
    return [f"== {plural(len(names), 'job')} of {clean(group['label'])} failed{why}: {shown}{more}", *said]
