"""What a verb says happened, and the desk at which it works."""

from __future__ import annotations

__all__ = ["Again", "Desk", "Done", "Doubt", "Failed", "Outcome", "Verb", "after_look_up"]

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread

from bpsd.cache import Cache
from bpsd.commandlog import running_s
from bpsd.diskfull import is_full
from bpsd.errors import BpsdError, DeadlineExceeded, StorageError
from bpsd.interface import WmsService
from bpsd.journal import CommandRecord, Journal
from bpsd.messages import Event
from bpsd.models import JobObservation
from bpsd.poller import Backend
from bpsd.runs import RunRecord

T = TypeVar("T")

CLOCK_SET_S = 5.0
"""A clock that is ahead of what has passed by more than this was set."""


@dataclass(frozen=True, slots=True)
class Done:
    """It was done, seen or proved."""

    result: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """It was refused, and nothing was done."""

    error: BpsdError


@dataclass(frozen=True, slots=True)
class Doubt:
    """Nobody knows whether the WMS did it. ``storage``: because our own disk failed."""

    reason: str
    storage: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """It is certain that it was not done, and it may be tried again. ``storage``: when our own disk takes data."""

    reason: str
    storage: bool = False


Outcome = Done | Failed | Doubt | Again


def after_look_up(outcome: Outcome, disk: str) -> Outcome:
    """Return what a look-up found; the next try of a command still waits for the disk that stopped the last one."""
    return Again(f"{outcome.reason}; {disk}", storage=True) if disk and isinstance(outcome, Again) else outcome


class Desk:
    """What a verb works with: one backend, the cache to look at, and calls with a deadline."""

    def __init__(
        self,
        *,
        backend: Backend,
        cache: Cache,
        journal: Journal,
        slot: Callable[[], AbstractAsyncContextManager[None]],
        deadline_s: float,
        verify_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.backend, self.cache, self.journal, self.clock = backend, cache, journal, clock
        self.verify_s = verify_s
        self._slot, self._deadline_s = slot, deadline_s

    @property
    def service(self) -> WmsService:
        """The open service; `BackendUnavailable` if it is not."""
        return self.backend.service

    def since(self, command: CommandRecord) -> float:
        """Return when a command was begun, not later than that was by the clock as it is set now."""
        started = command.started_at or command.accepted_at
        return min(started, self.clock() - running_s(command, self.clock()))

    def settles_in_s(self, command: CommandRecord) -> float:
        """Return the seconds for which "absent" proves nothing yet since the clock was set forward; 0 if it was not."""
        passed = running_s(command, self.clock())
        shown = self.clock() - (command.started_at or command.accepted_at)
        return 0.0 if shown <= passed + CLOCK_SET_S else max(self.service.capabilities.settle_s - passed, 0.0)

    def order_id(self, record: RunRecord) -> str:
        """Return the id by which an order names a run (see `bpsd.cache.Cache.order_id`)."""
        return self.cache.order_id(record, self.service)

    async def call(self, what: str, ask: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Ask the WMS (``await ask(*args)``), at most N at once and no longer than the deadline.

        Raises
        ------
        DeadlineExceeded
            If it took longer; what was asked for may have happened all the same.
        StorageError
            If a disk of ours is full: the command is tried again.
        """
        async with self._slot():
            try:
                with anyio.fail_after(self._deadline_s):
                    return await ask(*args)
            except TimeoutError as exc:
                raise DeadlineExceeded(
                    f"{what} on backend {self.backend.name}: no answer within {self._deadline_s:g} s",
                    backend=self.backend.name,
                ) from exc
            except OSError as exc:
                if not is_full(exc):
                    raise
                about = f"{what} on backend {self.backend.name}"
                raise await anyio.to_thread.run_sync(StorageError.of, about, exc, self.backend.state_dir) from exc

    async def until(self, run_id: str, reached: Callable[[RunRecord], bool], timeout_s: float) -> bool:
        """Wait until the cache's record of a run satisfies ``reached``; `False` when the time is over."""
        changed = anyio.Event()

        def listener(event: Event, _: Sequence[JobObservation]) -> None:
            if event.run == run_id:
                changed.set()

        end = self.cache.events.listen(listener)
        try:
            with anyio.move_on_after(timeout_s):
                while True:
                    record = self.cache.get(run_id)
                    if record is not None and reached(record):
                        return True
                    await changed.wait()
                    changed = anyio.Event()
        finally:
            end()
        return False


class Verb(Protocol):
    """One kind of command."""

    async def perform(self, desk: Desk, command: CommandRecord) -> Outcome:
        """Ask the WMS for it. Raising `BpsdError` means `Failed`; anything else is a doubt."""
        ...

    async def look_up(self, desk: Desk, command: CommandRecord) -> Outcome:
        """Find out whether an earlier `perform` was carried out."""
        ...
