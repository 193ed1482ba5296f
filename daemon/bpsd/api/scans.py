"""Whose long request goes on: of each user one at a time, so that a user who asks for much delays only himself."""

from __future__ import annotations

__all__ = ["Scans"]

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


class Scans:
    """The long requests that are under way.

    They also hold their answers while they make them: so at most one page of each user is in memory.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[anyio.Lock, int]] = {}  # and how many hold it or wait for it

    @asynccontextmanager
    async def turn(self, uid: int) -> AsyncIterator[None]:
        """Wait until no other long request of this user is under way."""
        lock, count = self._of.get(uid, (anyio.Lock(), 0))
        self._of[uid] = (lock, count + 1)
        try:
            async with lock:
                yield
        finally:
            lock, count = self._of.pop(uid)
            if count > 1:
                self._of[uid] = (lock, count - 1)
