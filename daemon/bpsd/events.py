"""What happened, as numbered events: handed to listeners at once, and kept for watchers that come back.

A number is never used twice, over restarts too: each start of the daemon counts from a number of its own
(`first_number`). So a watcher that comes back with a number gets every event since, or learns that it cannot.
"""

from __future__ import annotations

__all__ = ["EVENTS_KEPT", "TRANSIENT_KINDS", "EventBus", "Listener", "Missed", "first_number"]

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bpsd.messages import Event
from bpsd.models import JobObservation

EVENTS_KEPT = 20_000
"""Events in memory, for watchers that come back after a broken connection."""

JOBS_KEPT = 50_000
"""Changed jobs in memory, for watchers of jobs that come back: about 15 MB."""

TRANSIENT_KINDS = frozenset({"run.progress", "job.state"})
"""Events for watchers only: the timeline would drown in them."""

NUMBERS_PER_START = 1_000_000_000
"""Events that one run of the daemon may number: at 1,000 a second 11 days; a start also counts what the store has."""

NUMBERED_AT_RANDOM = 1_000
"""Ranges of numbers among which a start that could not be counted chooses one."""

Listener = Callable[[Event, Sequence[JobObservation]], None]
"""Gets every event at once, with the changed jobs of a ``job.state``; must not block and must not raise."""


class Missed(NamedTuple):
    """An event that a watcher missed, with the changed jobs of a ``job.state``."""

    event: Event
    moved: Sequence[JobObservation]


def first_number(starts: int | None, last_stored: int) -> int:
    """Return the number before the first event of this run of the daemon.

    Parameters
    ----------
    starts : `int`, optional
        How often the daemon was started, this time included, as the journal counts. `None` if the disk did not let it
        count: then some numbers are left out at random, so that no other start has them.
    last_stored : `int`
        The highest number in the store. It counts where the journal was restored from an older copy.
    """
    if starts is None:
        starts = last_stored // NUMBERS_PER_START + 1 + secrets.randbelow(NUMBERED_AT_RANDOM)
    return max(starts, last_stored // NUMBERS_PER_START + 1) * NUMBERS_PER_START


class EventBus:
    """Numbers events, hands them to listeners and keeps the latest.

    Parameters
    ----------
    clock : callable
        Epoch seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seq = 0
        """The number of the latest event."""
        self._events: deque[Event] = deque()
        self._moved: dict[int, Sequence[JobObservation]] = {}
        self._moved_count = 0
        self._jobs_from = 0  # the changed jobs of events up to this number are not kept any more
        self._listeners: list[Listener] = []

    def begin(self, seq: int) -> None:
        """Count from a number on."""
        self.seq = self._jobs_from = seq

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with every event from now on; returns the function that ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def emit(
        self,
        kind: str,
        data: dict[str, object],
        backend: str | None,
        run: str | None,
        moved: Sequence[JobObservation] = (),
    ) -> Event:
        """Make the next event and hand it to the listeners."""
        self.seq += 1
        event = Event(seq=self.seq, time=self._clock(), kind=kind, backend=backend, run=run, data=data)
        self._keep(event, moved)
        for listener in tuple(self._listeners):
            listener(event, moved)
        return event

    def _keep(self, event: Event, moved: Sequence[JobObservation]) -> None:
        self._events.append(event)
        if moved:
            self._moved[event.seq] = moved
            self._moved_count += len(moved)
        while len(self._events) > EVENTS_KEPT:
            self._drop_jobs(self._events.popleft().seq)
        while self._moved_count > JOBS_KEPT:
            self._drop_jobs(next(iter(self._moved)))

    def _drop_jobs(self, seq: int) -> None:
        self._moved_count -= len(self._moved.pop(seq, ()))
        self._jobs_from = max(self._jobs_from, seq)

    def after(self, seq: int, *, jobs: bool) -> list[Missed] | None:
        """Return the events after ``seq``; `None` if they are not all kept, with their jobs if these are wanted."""
        if seq > self.seq:
            return None
        if seq == self.seq:
            return []
        if not self._events or self._events[0].seq > seq + 1 or (jobs and seq < self._jobs_from):
            return None
        return [Missed(event, self._moved.get(event.seq, ())) for event in self._events if event.seq > seq]
