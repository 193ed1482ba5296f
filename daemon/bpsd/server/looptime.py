"""How long a request holds the event loop: the time in which its code runs, not that in which it waits."""

from __future__ import annotations

__all__ = ["SLOW_REQUEST_S", "LoopTime"]

import time
from collections.abc import Awaitable, Callable, Generator
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SLOW_REQUEST_S = 0.05
"""Time of the loop that one request may use before it is logged, in seconds."""


class LoopTime:
    """A stopwatch that runs while the request runs: ``with`` it, or `metered`.

    Parameters
    ----------
    clock : callable, optional
        Seconds.
    """

    __slots__ = ("_began", "_clock", "used_s")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = 0.0
        self.used_s = 0.0

    def __enter__(self) -> None:
        self._began = self._clock()

    def __exit__(self, *_: object) -> None:
        self.used_s += self._clock() - self._began

    @coroutine
    def metered(self, awaitable: Awaitable[T]) -> Generator[Any, Any, T]:
        """Await something, with the stopwatch on between its waits."""
        steps = _steps(awaitable)
        resume: Callable[[Any], Any] = steps.send
        value: Any = None
        try:
            while True:
                try:
                    with self:
                        waits_for = resume(value)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
                try:
                    value, resume = (yield waits_for), steps.send
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001 - a cancellation too is for what is awaited
                    value, resume = error, steps.throw
        finally:
            steps.close()


async def _steps(awaitable: Awaitable[T]) -> T:
    return await awaitable
