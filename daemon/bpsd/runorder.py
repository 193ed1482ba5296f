"""The hot runs in the order of lists, and scans that see all of them as they were at one moment.

A scan of 50,000 runs takes many turns of the loop, and runs change meanwhile. So what a scan wants of a run is taken
when the scan comes to it or just before the run changes, whichever is first: the answer is that of the moment at which
the scan began, and no run is copied for it.
"""

from __future__ import annotations

__all__ = ["RunOrder", "Scan"]

import math
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

_Key = tuple[float, str]


class RunOrder:
    """Ids of runs, the newest first; kept in order, so that nobody has to sort them."""

    def __init__(self) -> None:
        self._keys: list[_Key] = []
        self._key_of: dict[str, _Key] = {}
        self._scans: list[Scan[Any]] = []

    def __len__(self) -> int:
        return len(self._keys)

    def load(self, runs: Iterable[tuple[str, float]]) -> None:
        """Take many runs at once, each with the time at which it began to be."""
        self._key_of.update((run_id, _key(run_id, since)) for run_id, since in runs)
        self._keys = sorted(self._key_of.values())

    def place(self, run_id: str, since: float) -> None:
        """Put a run where it belongs."""
        key, before = _key(run_id, since), self._key_of.get(run_id)
        if key == before:
            return
        if before is not None:
            self._drop(before)
        insort(self._keys, key)
        self._key_of[run_id] = key

    def remove(self, run_id: str) -> None:
        """Forget a run."""
        self._drop(self._key_of.pop(run_id))

    def _drop(self, key: _Key) -> None:
        del self._keys[bisect_right(self._keys, key) - 1]

    def run_ids(self, after: str | None = None) -> Iterator[str]:
        """All runs as they are in order now, or those behind the run ``after``, which must be there."""
        return (run_id for _, run_id in self._behind(after))

    def _behind(self, after: str | None) -> list[_Key]:
        # A copy of 50,000 references costs 0.1 ms; a list made of them in Python would cost twenty times as much.
        return self._keys[0 if after is None else bisect_right(self._keys, self._key_of[after]) :]

    def sorted(self, run_ids: Iterable[str]) -> list[str]:
        """Some runs in order, without those that are not there."""
        return [run_id for _, run_id in sorted(self._key_of[run_id] for run_id in run_ids if run_id in self._key_of)]

    def scan(self, take: Callable[[str], T], after: str | None = None) -> Scan[T]:
        """Go over all runs, or those behind the run ``after``: see `Scan`."""
        return Scan(self._scans, self._behind(after), take)

    def about_to_change(self, run_id: str) -> None:
        """Let scans take what they want of a run, as it is about to change or to go."""
        for scan in self._scans:
            scan.take_early(run_id)


class Scan(Generic[T]):
    """What ``take`` says of each run, as it was when the scan began. A context manager, and an iterator inside it."""

    def __init__(self, scans: list[Scan[Any]], keys: list[_Key], take: Callable[[str], T]) -> None:
        self._scans, self._keys, self._take = scans, keys, take
        self._ahead: set[str] | None = None  # made when the first run changes
        self._early: dict[str, T] = {}
        self._at = 0

    def __enter__(self) -> Self:
        self._scans.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._scans.remove(self)

    def __iter__(self) -> Iterator[T]:
        for _, run_id in self._keys:
            self._at += 1
            if self._ahead is not None:
                self._ahead.discard(run_id)
            yield self._early.pop(run_id) if run_id in self._early else self._take(run_id)

    def take_early(self, run_id: str) -> None:
        """Take a run before its turn, if the scan has not come to it and has not taken it."""
        if self._ahead is None:
            self._ahead = {run_id for _, run_id in self._keys[self._at :]}
        if run_id in self._ahead:
            self._ahead.discard(run_id)
            self._early[run_id] = self._take(run_id)


def _key(run_id: str, since: float) -> _Key:
    return (-since if math.isfinite(since) else 0.0, run_id)
