"""What Slurm's tools and our wrappers print, as rows. Pure: text in, rows out, and a `ValueError` if it is garbled."""

from __future__ import annotations

__all__ = [
    "SACCT_FORMAT",
    "SQUEUE_FORMAT",
    "AccountRow",
    "ClusterLimits",
    "ExitRecord",
    "QueueRow",
    "chunk_name",
    "parse_chunk_name",
    "parse_exits",
    "parse_indices",
    "parse_limits",
    "parse_sacct",
    "parse_squeue",
    "smallest_limit",
]

import re
from collections.abc import Iterable
from typing import NamedTuple

NAME_PREFIX = "bps-"
SQUEUE_FORMAT = "%F|%K|%A|%j|%T|%Q|%S|%r"
"""Array id, index or indices, own id, name, state, priority, start, reason (last, since it may hold anything)."""

SACCT_FORMAT = "JobID,JobName,State,ExitCode,Start,End,NodeList"
"""What 22.05 knows too, which has no Restarts."""

MAX_ARRAY_INDEX = 4_000_000

_NAME = re.compile(r"bps-([a-z0-9]{20})-([0-9]+)(?:\.[A-Za-z0-9_.-]*)?", re.ASCII)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+", re.ASCII)
LABEL_MAX_CHARS = 40
"""How much of a label a job name shows."""

_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+)(?::([0-9]+))?)?", re.ASCII)
_SACCT_ID = re.compile(r"([0-9]+)(?:_(?:([0-9]+)|\[([0-9,:%-]+)\]))?", re.ASCII)


class QueueRow(NamedTuple):
    """A line of ``squeue``; ``indices`` has several where tasks are shown together, none where there is no array."""

    array_id: int
    indices: tuple[int, ...]
    job_id: int
    name: str
    state: str
    priority: int
    start: float | None
    reason: str


class AccountRow(NamedTuple):
    """A line of ``sacct -X``; a signal that ended the job is ``signal``."""

    array_id: int
    indices: tuple[int, ...]
    name: str
    state: str
    exit_code: int
    signal: int
    start: float | None
    end: float | None
    nodes: str


class ExitRecord(NamedTuple):
    """What the wrapper of a job wrote when the job ended: the first witness."""

    node: int
    attempt: int
    job_id: int
    restarts: int
    exit_code: int | None
    start: float
    end: float
    host: str
    note: str


class ClusterLimits(NamedTuple):
    """What ``scontrol show config`` says of limits; `None` where it does not."""

    version: str = ""
    cluster: str = ""
    min_job_age_s: int | None = None
    max_array_size: int | None = None
    max_job_count: int | None = None
    message_timeout_s: int | None = None
    has_accounting: bool = True


def chunk_name(token: str, chunk: int, label: str = "") -> str:
    """The job name of a chunk of a run: the one mark that Slurm shows everywhere and always.

    The label is for people.
    """
    shown = _NOT_IN_NAMES.sub("_", label)[:LABEL_MAX_CHARS]
    return f"{NAME_PREFIX}{token}-{chunk}" + (f".{shown}" if shown else "")


def parse_chunk_name(name: str) -> tuple[str, int] | None:
    """Token and chunk of a job name; `None` if it is not one of ours."""
    found = _NAME.fullmatch(name)
    return None if found is None else (found[1], int(found[2]))


def parse_indices(text: str) -> tuple[int, ...]:
    """The indices of ``7``, ``0-99``, ``[1,4-9:2%10]``; none of ``N/A``.

    Raises
    ------
    ValueError
        If it is cut off or no such list.
    """
    text = text.strip("[]").partition("%")[0]
    if text in ("", "N/A"):
        return ()
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None or int(match[2] or 0) > MAX_ARRAY_INDEX:
            raise ValueError(f"{text[:80]!r} is no list of array indices")
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        found += range(first, last + 1, max(step, 1))
    return tuple(found)


def parse_squeue(text: str) -> list[QueueRow]:
    """The lines of ``squeue -h -o SQUEUE_FORMAT``.

    Raises
    ------
    ValueError
        If one is garbled: then the answer is not complete. What is no row at all is passed over.
    """
    rows = []
    for line in text.splitlines():
        parts = line.split("|", 7)
        if len(parts) == 1:
            continue  # the banner of a site's wrapper
        if len(parts) != 8:
            raise ValueError(f"squeue printed {line[:120]!r}")
        array_id, indices, job_id, name, state, priority, start, reason = parts
        rows.append(
            QueueRow(
                int(array_id),
                parse_indices(indices),
                int(job_id),
                name,
                state,
                int(priority),
                _epoch(start),
                reason.strip("()"),
            )
        )
    return rows


def parse_sacct(text: str) -> list[AccountRow]:
    """The lines of ``sacct -X -n -P -o SACCT_FORMAT``.

    Raises
    ------
    ValueError
        If one is garbled.
    """
    rows = []
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) == 1:
            continue
        found = _SACCT_ID.fullmatch(parts[0].partition("+")[0])
        if len(parts) != 7 or found is None:
            raise ValueError(f"sacct printed {line[:120]!r}")
        _, name, state, code, start, end, nodes = parts
        exit_code, _, signal = code.partition(":")
        rows.append(
            AccountRow(
                int(found[1]),
                parse_indices(found[2] or found[3] or ""),
                name,
                state,
                int(exit_code or 0),
                int(signal or 0),
                _epoch(start),
                _epoch(end),
                "" if nodes == "None assigned" else nodes,
            )
        )
    return rows


def parse_exits(text: str) -> dict[str, ExitRecord]:
    """The records of wrappers by their paths, a ``PATH:RECORD`` a line. One that is not whole (yet) is passed over."""
    records = {}
    for line in text.splitlines():
        path, _, record = line.partition(":")
        parts = record.split(" ", 8)
        if len(parts) != 9 or not parts[8].endswith("."):
            continue
        node, attempt, job_id, restarts, code, start, end, host, note = parts
        try:
            records[path] = ExitRecord(
                int(node),
                int(attempt),
                int(job_id),
                int(restarts),
                None if code == "-" else int(code),
                float(start),
                float(end),
                host,
                note[:-1],
            )
        except ValueError:
            continue
    return records


def parse_limits(text: str) -> ClusterLimits:
    """What ``scontrol show config`` prints."""
    said: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            said[key.strip()] = value.strip()

    def number(key: str) -> int | None:
        found = re.match(r"[0-9]+", said.get(key, ""))
        return int(found[0]) if found else None

    return ClusterLimits(
        version=said.get("SLURM_VERSION", ""),
        cluster=said.get("ClusterName", ""),
        min_job_age_s=number("MinJobAge"),
        max_array_size=number("MaxArraySize"),
        max_job_count=number("MaxJobCount"),
        message_timeout_s=number("MessageTimeout"),
        has_accounting=said.get("AccountingStorageType", "(null)") not in ("(null)", "accounting_storage/none", ""),
    )


def smallest_limit(texts: Iterable[str]) -> int | None:
    """The least of the numbers among these, `None` if there is none (``sacctmgr show assoc``: empty is no limit)."""
    return min((int(text) for text in texts if text.isdecimal()), default=None)


def _epoch(text: str) -> float | None:
    return float(text) if text.isdecimal() else None
