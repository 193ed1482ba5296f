"""Long work in short slices, so that the loop answers in between."""

from __future__ import annotations

__all__ = ["JOBS_PER_PIECE", "SLICE_S", "Pause", "found_in", "in_pieces", "in_turns", "nearest_of"]

import asyncio
import difflib
import time
from collections import deque
from collections.abc import Iterable
from typing import TypeVar
from weakref import WeakKeyDictionary

import msgspec

from bpsd.errors import MAX_NEAREST_CHARS, NEAREST_CUTOFF
from bpsd.models import TERMINAL, RunObservation

T = TypeVar("T")

SLICE_S = 0.001
"""How long a piece of long work goes on before others have their turn, in seconds."""

JOBS_PER_PIECE = 250
"""Jobs of one run that are taken in one slice (about 4 us each)."""


class _Turns:
    """Long work of one loop, a slice in each turn of the loop, round and round.

    With `asyncio.sleep` all of it would go on in the same turn: what came in meanwhile would wait for a slice of each.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._scheduled = False

    async def next(self) -> None:
        """Wait until all others that wait have had a slice."""
        turn = self._loop.create_future()
        self._waiting.append(turn)
        self._schedule()
        await turn

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._let_one_go_on)

    def _let_one_go_on(self) -> None:
        self._scheduled = False
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else it was cancelled
                turn.set_result(None)
                break
        self._schedule()


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


async def _next_turn() -> None:
    loop = asyncio.get_running_loop()
    turns = _turns.get(loop)
    if turns is None:
        turns = _turns[loop] = _Turns(loop)
    await turns.next()


class Pause:
    """Gives way after each `SLICE_S` of work."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due = time.perf_counter() + SLICE_S

    async def if_due(self) -> None:
        """Let others have their turn, if it is time."""
        if time.perf_counter() > self._due:
            await _next_turn()
            self._due = time.perf_counter() + SLICE_S


async def in_turns(steps: Iterable[T]) -> list[T]:
    """Take all ``steps``, and let others have their turn between them."""
    pause = Pause()
    taken = []
    for step in steps:
        taken.append(step)
        await pause.if_due()
    return taken


async def found_in(steps: Iterable[T | None]) -> list[T]:
    """Take all ``steps`` as `in_turns` does; returns those that are something."""
    pause = Pause()
    found = []
    for step in steps:
        if step is not None:
            found.append(step)
        await pause.if_due()
    return found


async def nearest_of(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return what `bpsd.errors.nearest` returns, in slices: for the names of runs and jobs, of which there are many."""
    if len(word) > MAX_NEAREST_CHARS:
        return []
    pause = Pause()
    compared: difflib.SequenceMatcher[str] = difflib.SequenceMatcher(b=word)
    found: list[tuple[float, str]] = []
    for name in known:
        compared.set_seq1(name)
        may_be_near = compared.real_quick_ratio() >= NEAREST_CUTOFF and compared.quick_ratio() >= NEAREST_CUTOFF
        if may_be_near and (ratio := compared.ratio()) >= NEAREST_CUTOFF:
            found.append((ratio, name))
        await pause.if_due()
    return [name for _, name in sorted(found, reverse=True)[:count]]


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
