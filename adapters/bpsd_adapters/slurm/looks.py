"""Sorting what Slurm said by run, chunk and index. Pure."""

from __future__ import annotations

__all__ = ["WHOLE", "by_run", "record_path"]

from collections.abc import Iterable

from bpsd_adapters.slurm.chunks import Chunk
from bpsd_adapters.slurm.parsing import QueueRow, parse_chunk_name
from bpsd_adapters.slurm.scripts import ALL

WHOLE = -1
"""The index of a row that tells none: 22.05 shows so an array of which all that waited was cancelled."""


def by_run(rows: Iterable[QueueRow]) -> dict[str, dict[int, dict[int, list[QueueRow]]]]:
    """The rows of our jobs by token, chunk and index; all others are left out."""
    found: dict[str, dict[int, dict[int, list[QueueRow]]]] = {}
    for row in rows:
        name = parse_chunk_name(row.name)
        if name is not None:
            chunk = found.setdefault(name[0], {}).setdefault(name[1], {})
            for index in row.indices or (WHOLE,):
                chunk.setdefault(index, []).append(row)
    return found


def record_path(token: str, chunk: Chunk, index: int) -> str:
    """Where the exit record of a job of a chunk will be, below the work folder."""
    place = f"{ALL}/{chunk.open[index].ref.node}" if chunk.whole else f"{chunk.number}/{index}"
    return f"{token}/exits/{place}"
