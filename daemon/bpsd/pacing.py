"""When to ask a backend next: the pure decision behind every poller.

The WMS is spared: a poll that cost t seconds is not repeated within ``cost_factor`` times t, whatever else is wanted;
one that failed is repeated with growing, jittered gaps; after ``breaker_failures`` in a row the breaker is open and
each try is a single probe. Soon after a change it is asked often, and less and less while nothing happens.
"""

from __future__ import annotations

__all__ = ["Pace", "breaker", "next_delay", "soonest"]

from collections.abc import Callable
from typing import Literal, NamedTuple

from bpsd.config import Polling

_GROWTH = 1.5
_SOON_COST_FACTOR = 5.0
"""A poll that somebody waits for may come after so many times the last cost."""


class Pace(NamedTuple):
    """How polling has gone: the delay before the last poll, what that cost, and what it brought."""

    delay_s: float = 0.0
    cost_s: float = 0.0
    changed: bool = True
    live_runs: int = 0
    failures: int = 0


def next_delay(settings: Polling, pace: Pace, random: Callable[[], float]) -> float:
    """Seconds from the end of one poll to the beginning of the next; ``random`` gives [0, 1)."""
    if pace.failures:
        wanted = min(settings.backoff_initial_s * 2.0 ** min(pace.failures - 1, 30), settings.backoff_max_s)
        # Full jitter on the upper half: clients of one site must not come back in step.
        return wanted * (0.5 + 0.5 * random())
    if not pace.live_runs:
        wanted = settings.idle_interval_s
    elif pace.changed:
        wanted = settings.min_interval_s
    else:
        wanted = min(max(pace.delay_s, settings.min_interval_s) * _GROWTH, settings.idle_interval_s)
    wanted = max(wanted, settings.cost_factor * pace.cost_s)
    wanted = min(wanted, max(settings.max_interval_s, settings.min_interval_s))
    return wanted * (1.0 + settings.jitter * (2.0 * random() - 1.0))


def soonest(floor_s: float, cost_s: float) -> float:
    """How long after the end of one poll the next may begin at the earliest, however much it is wanted."""
    return max(floor_s, _SOON_COST_FACTOR * cost_s)


def breaker(settings: Polling, failures: int, asking: bool) -> Literal["closed", "open", "half_open"]:
    """The breaker's state: open after too many failures, half open while a probe is under way."""
    if failures < settings.breaker_failures:
        return "closed"
    return "half_open" if asking else "open"
