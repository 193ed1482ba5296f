"""Slots that users take in turn: one user with many requests does not delay another with one."""

from __future__ import annotations

__all__ = ["FairSlots"]

from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import anyio


class _Waiter:
    __slots__ = ("granted", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.granted = anyio.Event()


class FairSlots:
    """At most ``limit`` holders at once; those who wait are served round robin over users, and in order within each.

    Parameters
    ----------
    limit : `int`
        The number of slots.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._waiting: dict[Hashable, deque[_Waiter]] = {}  # the first user is served next

    def __repr__(self) -> str:
        return f"<FairSlots {self._held} of {self._limit} held, {self.waiting} wait>"

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    def resize(self, limit: int) -> None:
        """Change the number of slots; those held stay held."""
        self._limit = limit
        self._grant()

    @asynccontextmanager
    async def slot(self, user: Hashable, name: str = "") -> AsyncIterator[None]:
        """Hold a slot, when it is this user's turn; ``name`` is for `place`."""
        await self._acquire(user, name)
        try:
            yield
        finally:
            self._release()

    def place(self, name: str) -> tuple[int, int] | None:
        """Return the place (from 1) of the waiter of this name in the order of service, and how many wait."""
        for turn, (user, queue) in enumerate(self._waiting.items()):
            depth = next((depth for depth, waiter in enumerate(queue) if waiter.name == name), None)
            if depth is not None:
                ahead = sum(
                    min(len(other), depth + (number < turn))
                    for number, (key, other) in enumerate(self._waiting.items())
                    if key != user
                )
                return ahead + depth + 1, self.waiting
        return None

    async def _acquire(self, user: Hashable, name: str) -> None:
        if self._held < self._limit and not self._waiting:
            self._held += 1
            return
        waiter = _Waiter(name)
        self._waiting.setdefault(user, deque()).append(waiter)
        try:
            await waiter.granted.wait()
        except BaseException:
            if waiter.granted.is_set():  # in the same moment
                self._release()
            else:
                self._leave(user, waiter)
            raise

    def _leave(self, user: Hashable, waiter: _Waiter) -> None:
        queue = self._waiting[user]
        queue.remove(waiter)
        if not queue:
            del self._waiting[user]

    def _release(self) -> None:
        self._held -= 1
        self._grant()

    def _grant(self) -> None:
        while self._held < self._limit and self._waiting:
            user, queue = next(iter(self._waiting.items()))
            del self._waiting[user]
            waiter = queue.popleft()
            if queue:
                self._waiting[user] = queue  # behind the others
            self._held += 1
            waiter.granted.set()
