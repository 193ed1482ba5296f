"""Names of users, looked up in threads of their own, with a time limit: the name service may not answer."""

from __future__ import annotations

__all__ = ["UserNames", "user_name"]

import math
import pwd
import time

import anyio
import anyio.lowlevel
import anyio.to_thread

LOOKUP_WAIT_S = 2.0
"""Time for the name of one user."""

RETRY_S = 60.0
"""A name that did not come in time is asked for again after this pause."""

LOOKUP_THREADS = 2
"""Threads that ask the name service at the same time, over all backends."""

_threads: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("bpsd_user_name_threads")


class UserNames:
    """Names of users by number; a user whose name is not known, or not yet, is ``#UID``."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._again: dict[int, float] = {}

    def known(self, uid: int) -> str:
        """Return the name, if it was looked up before."""
        return self._names.get(uid, f"#{uid}")

    async def look_up(self, uid: int) -> str:
        """Return the name; asks for it once, and again after a pause if no answer came in time."""
        if uid not in self._names and time.monotonic() >= self._again.get(uid, -math.inf):
            self._again[uid] = math.inf  # others do not wait for the same answer
            try:
                with anyio.move_on_after(LOOKUP_WAIT_S):
                    self._names[uid] = await anyio.to_thread.run_sync(
                        user_name, uid, abandon_on_cancel=True, limiter=_limiter()
                    )
            finally:
                self._again[uid] = time.monotonic() + RETRY_S
        return self.known(uid)


def _limiter() -> anyio.CapacityLimiter:
    try:
        return _threads.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(LOOKUP_THREADS)
        _threads.set(limiter)
        return limiter


def user_name(uid: int) -> str:
    """Return the name of a user; ``#UID`` if the user has no entry (as in a container). It blocks."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
