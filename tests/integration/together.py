"""Tests that wait for a slow world, run at once: each is a test of its own for pytest, the waiting is shared."""

from __future__ import annotations

__all__ = ["Outcomes", "Rows"]

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

Row = Callable[[Any], Awaitable[None]]


class Rows:
    """Coroutine functions of one argument (what they share), gathered by the decorator `row`."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    @property
    def names(self) -> Sequence[str]:
        """What pytest is to show."""
        return tuple(self._rows)

    def row(self, test: Row) -> Row:
        """Take a row in, under its own name."""
        self.add(getattr(test, "__name__", str(test)), test)
        return test

    def add(self, name: str, test: Row) -> None:
        """Take a row in."""
        assert name not in self._rows, f"there are two rows {name}"
        self._rows[name] = test

    def run(self, shared: Any, *, at_once: int, pause_s: float) -> Outcomes:
        """Run them all, ``at_once`` of them at a time, each polling every ``pause_s``."""
        outcomes = Outcomes()

        async def one(name: str, test: Row, room: anyio.CapacityLimiter) -> None:
            async with room:
                try:
                    await test(shared)
                except Exception as exc:  # noqa: BLE001  # told by the test of that name
                    outcomes.failed[name] = exc
                outcomes.done.add(name)

        async def every() -> None:
            room = anyio.CapacityLimiter(at_once)
            async with anyio.create_task_group() as group:
                for name, test in self._rows.items():
                    group.start_soon(one, name, test, room)

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as thread:
            patch.setattr("bpsd.testing.observer.POLL_PAUSE_S", pause_s)
            thread.submit(anyio.run, every).result()
        return outcomes


class Outcomes:
    """How each row ended."""

    def __init__(self) -> None:
        self.failed: dict[str, Exception] = {}
        self.done: set[str] = set()

    def check(self, name: str) -> None:
        """Be that row's test."""
        assert name in self.done
        if name in self.failed:
            raise self.failed[name]
