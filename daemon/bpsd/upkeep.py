"""What the daemon does for itself now and then: watch its loop, cool what is over, copy the journal, tidy up."""

from __future__ import annotations

__all__ = ["DAY_S", "Clocks", "LoopMeter", "Upkeep", "memory_bytes"]

import resource
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio

from bpsd.cache import Cache
from bpsd.config import Config
from bpsd.journal import Journal
from bpsd.logs.events import LogEvent
from bpsd.sdnotify import SystemdNotifier
from bpsd.spool import Spool
from bpsd.store import Store

TICK_S = 0.25
"""How often the loop's lag is measured."""

STOOD_STILL_S = 0.5
"""A lag beyond this is no lag of a busy loop."""

LAG_WINDOW = int(60.0 / TICK_S)
"""Measurements kept: the figures of `health` speak of the last minute."""

UPKEEP_S = 600.0
"""How often memory, spool and history are looked after."""

SPOOL_KEEP_S = 86_400.0
"""A document in the spool that nothing refers to goes after so long without use."""

DAY_S = 86_400.0

MAX_CLOCK_JUMP_S = 3_600.0
"""While the clock is further off than that from where it was, nothing is pruned; a restart takes it as it is."""


class LoopMeter:
    """How late the loop comes to what is due: its lag is what every client feels. Feeds systemd's watchdog.

    Parameters
    ----------
    systemd : `~bpsd.sdnotify.SystemdNotifier`
        Whom to tell that all is well.
    observe : callable
        Told of each lag, in seconds.
    stuck : callable
        Names the tasks that keep their own deadlines no more: while there are any, the watchdog is not fed.
    log : `object`
        A logger.
    """

    def __init__(
        self,
        systemd: SystemdNotifier,
        observe: Callable[[float], None],
        stuck: Callable[[], Sequence[str]],
        log: Any,
    ) -> None:
        self._systemd, self._observe, self._stuck, self._log = systemd, observe, stuck, log
        self._lags: deque[float] = deque(maxlen=LAG_WINDOW)
        self.stood_still_s = 0.0
        """How long, in all, the loop did nothing for long: the process was stopped, or blocked."""

    async def run(self) -> None:
        """Measure until cancelled, and tell systemd that the loop turns."""
        fed = time.monotonic()
        while True:
            due = time.monotonic() + TICK_S
            await anyio.sleep(TICK_S)
            now = time.monotonic()
            self._lags.append(max(0.0, now - due))
            self._observe(self._lags[-1])
            if self._lags[-1] > STOOD_STILL_S:
                self.stood_still_s += self._lags[-1]
            if self._systemd.watchdog_s is not None and now - fed >= self._systemd.watchdog_s / 2:
                fed = now
                if stuck := self._stuck():
                    self._log.error(LogEvent.WATCHDOG_NOT_FED, stuck=list(stuck))
                else:
                    self._systemd.watchdog()

    def figures(self) -> dict[str, float]:
        """Mean and greatest lag of the last minute, in seconds."""
        if not self._lags:
            return {"loop_lag_mean_s": 0.0, "loop_lag_max_s": 0.0}
        return {"loop_lag_mean_s": sum(self._lags) / len(self._lags), "loop_lag_max_s": max(self._lags)}


class Clocks:
    """Whether the clock on the wall goes as the one that counts seconds since the boot, suspensions included.

    Parameters
    ----------
    wall : callable
        Epoch seconds.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._offset = wall() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def apart_s(self) -> float:
        """How far the wall's clock was set forward (or back, if negative) since the start."""
        return self._wall() - time.clock_gettime(time.CLOCK_BOOTTIME) - self._offset


class Upkeep:
    """The slow round: every part of it may fail without harm to the others."""

    def __init__(
        self,
        *,
        config: Callable[[], Config],
        cache: Cache,
        store: Store,
        journal: Journal,
        spool: Spool,
        pinned: Callable[[], frozenset[tuple[str, int]]],
        log: Any,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._cache, self._store, self._journal, self._spool = config, cache, store, journal, spool
        self._pinned, self._log, self._clock = pinned, log, clock
        self._copied_at = float("-inf")
        self._clocks = Clocks(clock)

    async def run(self) -> None:
        """Go round until cancelled."""
        while True:
            await self._try("cool", self._cool)
            await self._try("spool", self._clear_spool)
            await self._try("backup", self._copy_journal)
            await self._try("prune", self._prune)
            await anyio.sleep(UPKEEP_S)

    async def _try(self, what: str, act: Callable[[], Awaitable[None]]) -> None:
        try:
            await act()
        except Exception as exc:  # noqa: BLE001  # upkeep must never end the daemon: the next round tries again
            self._log.error(LogEvent.UPKEEP_FAILED, what=what, error=str(exc) or repr(exc))

    async def _cool(self) -> None:
        await self._cache.cool(self._clock() - self._config().history.hot_days * DAY_S)

    async def _clear_spool(self) -> None:
        await self._spool.collect(SPOOL_KEEP_S, self._pinned())

    async def _copy_journal(self) -> None:
        if time.monotonic() - self._copied_at > DAY_S and not self._journal.status.read_only:
            await self._journal.backup()
            self._copied_at = time.monotonic()

    async def _prune(self) -> None:
        apart = self._clocks.apart_s()
        if abs(apart) > MAX_CLOCK_JUMP_S:
            # What a wrong clock calls old is gone for good.
            self._log.warning(LogEvent.CLOCK_JUMPED, seconds=round(apart))
            return
        history = self._config().history
        before = self._clock() - history.keep_days * DAY_S
        if await self._store.prune(before, history.timeline_events_per_run, history.store_bytes):
            await self._store.vacuum()
        if not self._journal.status.read_only:
            await self._journal.prune(before)


def memory_bytes() -> float:
    """What the daemon holds in memory now (`/proc/self/statm`), in bytes."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return float(int(pages) * resource.getpagesize())
