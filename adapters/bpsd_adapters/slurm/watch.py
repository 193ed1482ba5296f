"""Asking Slurm and the work folder: how that went, and what it cost."""

from __future__ import annotations

__all__ = ["Status", "Watch"]

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import anyio.to_thread

from bpsd.errors import BackendUnavailable, BpsdError
from bpsd_adapters.slurm.cluster import Cluster
from bpsd_adapters.slurm.looks import by_run
from bpsd_adapters.slurm.pacing import Window
from bpsd_adapters.slurm.parsing import AccountRow, ClusterLimits, ExitRecord, QueueRow

LIMITS_EVERY_S = 3600.0
"""How often the site's limits are read again."""

T = TypeVar("T")


@dataclass(slots=True)
class Status:
    """How asking a source went last."""

    ok: bool = True
    error: str = ""
    at: float = 0.0
    """When it last answered (epoch seconds); 0 if it was not asked yet."""

    took_s: float = 0.0
    """How long asking it took last; 0 if there was nothing to ask."""

    cost_bytes: int = 0

    def not_needed(self) -> None:
        """Nothing is to be known of it now: that it failed before is of no concern any more."""
        self.ok, self.error, self.took_s = True, "", 0.0


class Watch:
    """What one backend asks, and remembers of asking.

    Parameters
    ----------
    cluster : `Cluster`
        Whom it asks.
    clock : `~collections.abc.Callable`
        Epoch seconds.
    """

    def __init__(self, cluster: Cluster, clock: Callable[[], float]) -> None:
        self._cluster, self._clock = cluster, clock
        self._limits_at = float("-inf")
        self.limits = ClusterLimits()
        self.cost_s = 0.0
        """What the dearest question to Slurm took since somebody set this to 0."""

        self.queue, self.accounting, self.exits = Status(), Status(), Status()

    async def rows(self) -> dict[str, dict[int, dict[int, list[QueueRow]]]]:
        """The queue's rows of our jobs, by token, chunk and index.

        Raises
        ------
        BackendUnavailable
            If there is no complete answer.
        """
        rows, self.queue.cost_bytes = await self._ask(self.queue, self._cluster.queue())
        return await anyio.to_thread.run_sync(by_run, rows)

    async def records(self, paths: Sequence[str]) -> Mapping[str, ExitRecord]:
        """The exit records among these paths.

        Raises
        ------
        BackendUnavailable
            If the work folder cannot be read.
        """
        if not paths:
            self.exits.not_needed()
            return {}
        records, self.exits.cost_bytes = await self._ask(self.exits, self._cluster.exits(paths))
        return records

    async def accounts(self, ids: set[int]) -> tuple[dict[tuple[int, int], AccountRow], bool]:
        """What accounting knows of arrays, by id and index; and whether that is all that there is to know."""
        if not ids or not self.limits.has_accounting:
            self.accounting.not_needed()
            return {}, True
        try:
            rows = await self._ask(self.accounting, self._cluster.accounts(ids))
        except BackendUnavailable:
            return {}, False
        return {(row.array_id, index): row for row in rows for index in row.indices}, True

    async def accounts_by_name(self, names: Sequence[str], since_s: float) -> list[AccountRow]:
        """What accounting has under these names, from so many seconds ago.

        Raises
        ------
        BackendUnavailable
            If it does not answer.
        """
        return await self._ask(self.accounting, self._cluster.accounts_by_name(names, since_s))

    async def learn_limits(self, window: Window) -> None:
        """Read what the site allows, if that was not done for long.

        Raises
        ------
        BackendUnavailable
            If slurmctld does not tell.
        """
        if time.monotonic() - self._limits_at < LIMITS_EVERY_S:
            return
        self.limits = await self._ask(self.queue, self._cluster.limits())
        self._limits_at = time.monotonic()
        window.limit(
            array_size=self.limits.max_array_size,
            job_count=self.limits.max_job_count,
            association=await self._cluster.association_limit(self.limits.cluster),
        )

    async def _ask(self, status: Status, question: Awaitable[T]) -> T:
        began = time.monotonic()
        try:
            answer = await question
        except BpsdError as exc:
            status.ok, status.error = False, exc.message
            raise
        finally:
            status.took_s = time.monotonic() - began
            if status is not self.exits:  # files are no burden to slurmctld
                self.cost_s = max(self.cost_s, status.took_s)
        status.ok, status.error, status.at = True, "", self._clock()
        return answer
