"""Long work in short slices, so that the loop answers in between."""

from __future__ import annotations

__all__ = ["JOBS_PER_PIECE", "SLICE_S", "Pause", "in_pieces", "in_turns"]

import asyncio
import time
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from bpsd.models import TERMINAL, RunObservation

T = TypeVar("T")

SLICE_S = 0.001
"""How long `apply_poll` works before it lets requests through, in seconds."""

JOBS_PER_PIECE = 250
"""Jobs of one run that are taken in one slice (about 4 us each)."""


class Pause:
    """Gives way after each `SLICE_S` of work."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due = time.perf_counter() + SLICE_S

    async def if_due(self) -> None:
        """Let others have their turn, if it is time."""
        if time.perf_counter() > self._due:
            await asyncio.sleep(0)
            self._due = time.perf_counter() + SLICE_S


async def in_turns(steps: Iterable[T]) -> list[T]:
    """Take all ``steps``, and let others have their turn between them."""
    pause = Pause()
    taken = []
    for step in steps:
        taken.append(step)
        await pause.if_due()
    return taken


def in_pieces(seen: RunObservation) -> list[RunObservation]:
    """An observation with many jobs as several with few; only the last says that the run is over.

    Who waits for the end of a run asks at once how its jobs ended.
    """
    if len(seen.jobs) <= JOBS_PER_PIECE:
        return [seen]
    early = seen
    if seen.state in TERMINAL:
        early = msgspec.structs.replace(seen, state=None, end_time=None, note=None)
    starts = range(0, len(seen.jobs), JOBS_PER_PIECE)
    return [
        msgspec.structs.replace(
            early if start + JOBS_PER_PIECE < len(seen.jobs) else seen, jobs=seen.jobs[start : start + JOBS_PER_PIECE]
        )
        for start in starts
    ]
