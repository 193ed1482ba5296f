"""Waiting for signals, with a time limit, in a way that a stop of the process cannot break.

`signal.sigtimedwait` may return an unset record when a stopped process is continued (CPython 3.6 to 3.14), and then
names signal 0. Here Python's own handlers note what arrived, and a pipe that they write to ends the wait.
"""

from __future__ import annotations

__all__ = ["SignalInbox"]

import os
import select
import signal
import time
from collections.abc import Collection
from types import FrameType

_READ_BYTES = 4096

_WAIT_MAX_S = 3600.0
"""The longest wait at once: poll(2) counts milliseconds in an int."""


class SignalInbox:
    """Collects the signals that arrive from now on. One for a process, made in its main thread.

    Parameters
    ----------
    numbers : `~collections.abc.Collection` [`int`]
        The signals to collect. If they were blocked, they no longer are when this returns: what arrived meanwhile is
        in the inbox.
    """

    def __init__(self, numbers: Collection[int]) -> None:
        self._numbers = frozenset(numbers)
        self._noted: set[int] = set()
        self._reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A pipe that is full has woken us already; the handlers note every number.
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def wait(self, timeout_s: float | None) -> frozenset[int]:
        """Return what arrived since the last call; wait for it until the time is over, without a limit if `None`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        waiting = select.poll()
        waiting.register(self._reading, select.POLLIN)
        while True:
            got = self._taken()
            left = None if deadline is None else deadline - time.monotonic()
            if got or (left is not None and left <= 0):
                return got
            # Up to a millisecond late rather than early again and again.
            waiting.poll(None if left is None else min(left, _WAIT_MAX_S) * 1000 + 1)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted.add(number)

    def _taken(self) -> frozenset[int]:
        """What the handlers noted, and what the pipe says: a handler may run a moment after its byte was read."""
        try:
            told = set(os.read(self._reading, _READ_BYTES))
        except BlockingIOError:
            told = set()
        noted, self._noted = self._noted, set()
        return frozenset((told | noted) & self._numbers)
