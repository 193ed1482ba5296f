"""What is told to Prometheus of how things are now: gathered on the event loop in slices, written down in a thread.

`bpsd.metrics` counts what happens when it happens; here is the rest, which somebody else keeps anyway.
"""

from __future__ import annotations

__all__ = ["HELP", "Monitor"]

import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import anyio.to_thread

from bpsd.cache import Cache
from bpsd.commands.engine import CommandEngine
from bpsd.messages import BackendRow
from bpsd.metrics import Metrics
from bpsd.poller import Backend
from bpsd.server.figures import COUNTERS as SOCKET_COUNTERS
from bpsd.server.figures import HELP as SOCKET_HELP
from bpsd.slices import Pause

PAGE_KEPT_S = 1.0
"""Who asks within so long after another gets the same page: being scraped costs the same, by however many."""

BACKEND_STATES = ("starting", "up", "down", "auth", "stopped")
BREAKER_STATES = ("closed", "open", "half_open")

HELP: Mapping[str, str] = {
    "loop_lag_mean_seconds": "How late the event loop came to what was due, mean of the last minute",
    "loop_lag_max_seconds": "How late the event loop came to what was due, at most in the last minute",
    "memory_bytes": "Resident memory of the daemon",
    "open_files": "File descriptors that the daemon holds",
    "journal_waiting_jobs": "Writes that wait for the journal",
    "store_waiting_bytes": "What is not yet written to the history, roughly",
    "journal_read_only": "1 if the journal was restored from a copy and takes no commands",
    "disk_free_bytes": "Room that is left for the records: free bytes of the file system of the state folder",
    "config_refused": "1 if the last reload was refused, so that an older configuration is in force",
    **SOCKET_HELP,
}
"""The figures that the daemon keeps for `health` too (there ``_s`` is what Prometheus calls ``_seconds``)."""


class Monitor:
    """Makes the page that Prometheus reads.

    Parameters
    ----------
    figures : callable
        The daemon's own figures, as for ``health``; it must have those of `HELP`.
    waiting : callable
        Route to the number of causes that wait to be told.
    state_dir : `~pathlib.Path`
        Where the records are.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        cache: Cache,
        engine: CommandEngine,
        backends: Mapping[str, Backend],
        figures: Callable[[], Mapping[str, float]],
        waiting: Callable[[], Mapping[str, int]],
        state_dir: Path,
        clock: Callable[[], float],
    ) -> None:
        self._metrics, self._cache, self._engine, self._backends = metrics, cache, engine, backends
        self._figures, self._waiting, self._state_dir, self._clock = figures, waiting, state_dir, clock
        self._shown: dict[str, float] = {}
        self._page = b""
        self._page_at = float("-inf")
        self._lock = anyio.Lock()
        metrics.add(lambda: self._shown, counters=SOCKET_COUNTERS, help=HELP)

    async def page(self) -> bytes:
        """All figures in the Prometheus text format, at most `PAGE_KEPT_S` old."""
        async with self._lock:
            if time.monotonic() - self._page_at > PAGE_KEPT_S:
                await self._gather()
                self._page = await anyio.to_thread.run_sync(self._metrics.render)
                self._page_at = time.monotonic()
            return self._page

    async def write(self, path: Path) -> None:
        """Write the page for node_exporter, which must never see half a file.

        Raises
        ------
        OSError
            If the disk refuses it.
        """
        await anyio.to_thread.run_sync(_replace, path, await self.page())

    async def _gather(self) -> None:
        runs, jobs = await self._tally()
        room = await anyio.to_thread.run_sync(_free_bytes, self._state_dir)
        metrics = self._metrics
        now = self._clock()
        figures = {**self._figures(), "disk_free_bytes": room}
        self._shown = {name: value for key, value in figures.items() if (name := _named(key)) in HELP}
        metrics.collected_at.set(now)
        for family in (*metrics.of_backends(), metrics.notifications_waiting):
            family.clear()
        for labels, count in runs.items():
            metrics.runs.labels(*labels).set(count)
        for labels, count in jobs.items():
            metrics.jobs.labels(*labels).set(count)
        for backend in self._backends.values():
            self._show_backend(backend.row(), now)
        for state, count in self._engine.open_by_state().items():
            metrics.commands_open.labels(state).set(count)
        for route, count in self._waiting().items():
            metrics.notifications_waiting.labels(route).set(count)

    async def _tally(self) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
        """Hot runs, and their jobs, by backend and state."""
        runs: Counter[tuple[str, str]] = Counter()
        jobs: Counter[tuple[str, str]] = Counter()
        pause = Pause()
        for record in list(self._cache.records()):
            if record.run_id in self._cache:
                runs[record.backend, record.state.name] += 1
                for state, count in record.counts(self._cache.jobs(record.run_id)).items():
                    jobs[record.backend, state] += count
            await pause.if_due()
        return runs, jobs

    def _show_backend(self, row: BackendRow, now: float) -> None:
        metrics = self._metrics
        metrics.backend_up.labels(row.name).set(row.state == "up")
        metrics.backend_stale.labels(row.name).set(row.stale)
        for state in BACKEND_STATES:
            metrics.backend_state.labels(row.name, state).set(row.state == state)
        for state in BREAKER_STATES:
            metrics.backend_breaker.labels(row.name, state).set(row.breaker == state)
        if row.last_good_at is not None:
            metrics.backend_last_good_at.labels(row.name).set(row.last_good_at)
            metrics.backend_last_good_age_s.labels(row.name).set(max(0.0, now - row.last_good_at))
        metrics.backend_cost_s.labels(row.name).set(row.poll_cost_s or 0.0)
        metrics.backend_interval_s.labels(row.name).set(row.interval_s or 0.0)


def _named(figure: str) -> str:
    return f"{figure[:-2]}_seconds" if figure.endswith("_s") else figure


def _free_bytes(folder: Path) -> float:
    """Room in a folder; not a number if nobody can tell, as the figures are the more wanted when the disk is away."""
    try:
        return float(shutil.disk_usage(folder).free)
    except OSError:
        return math.nan


def _replace(path: Path, page: bytes) -> None:
    """Write a file that is whole whenever it is read; not synced, for the next one comes in seconds."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(page)
        beside.chmod(0o644)  # node_exporter is another user, and no figure is secret
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
