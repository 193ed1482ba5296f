"""How often the same thing is worth a line: a client that is refused a thousand times a second fills no disk."""

from __future__ import annotations

__all__ = ["Throttle"]

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

BURST = 5
"""Lines about one thing in a row, before some are left out."""

WINDOW_S = 10.0
"""After so long there may be as many again, and the first says how many were left out."""

MAX_KEYS = 1_000
"""Things that are told apart; what was not heard of for longest is forgotten first."""


class Throttle:
    """Counts lines by what they are about.

    Parameters
    ----------
    clock : callable, optional
        Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()  # since when, how many

    def admit(self, key: Hashable) -> int | None:
        """Whether to write a line about ``key``.

        Returns
        -------
        left_out : `int` or `None`
            How many were left out since the last one that was written; `None`: leave this one out too.
        """
        now = self._clock()
        since, count = self._told.pop(key, (now, 0))
        left_out = 0
        if now - since >= WINDOW_S:
            left_out, since, count = max(0, count - BURST), now, 0
        self._told[key] = (since, count + 1)
        if len(self._told) > MAX_KEYS:
            self._told.popitem(last=False)
        return left_out if count < BURST else None
