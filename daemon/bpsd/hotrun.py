"""A run in memory: its record, its jobs, and its row as bytes."""

from __future__ import annotations

__all__ = ["HotRun", "RunCounts"]

import time
from collections import Counter
from collections.abc import Sequence

from bpsd.jobtable import JobTable
from bpsd.runs import RunRecord
from bpsd.slices import in_turns


class HotRun:
    """A run with its jobs, and its row as bytes until something changes.

    ``shelved``: the run is over, and its jobs are in the store alone; its record keeps their counts.
    """

    __slots__ = (
        "appended_bytes",
        "counted",
        "counted_for",
        "cursor",
        "jobs",
        "moved_at",
        "read",
        "record",
        "row",
        "shelved",
        "snapshot_bytes",
    )

    def __init__(self, record: RunRecord, jobs: JobTable | None = None, cursor: str | None = None) -> None:
        self.record = record
        self.jobs = jobs if jobs is not None else JobTable()
        self.cursor = cursor
        self.row: bytes | None = None
        self.read = False
        self.counted = (0, 0, 0)  # live, hot, jobs: what it adds to the counts of its backend
        self.counted_for: int | None = None  # the user in whose active runs it is counted
        # How much of the jobs the store holds as a snapshot and as changes since: decides when to write a new snapshot.
        self.snapshot_bytes = 0
        self.appended_bytes = 0
        self.moved_at = time.monotonic()
        self.shelved = False

    def take_jobs(self, jobs: JobTable, snapshot: bytes | None, appended: Sequence[bytes]) -> None:
        """Take the jobs that the store has so."""
        self.jobs = jobs
        self.snapshot_bytes, self.appended_bytes = len(snapshot or b""), sum(map(len, appended))
        self.moved_at = time.monotonic()  # who asked for them is about to use them
        self.shelved = False

    async def snapshot(self) -> bytes:
        """All jobs for the store, instead of what it has of them."""
        while True:
            version = self.jobs.version
            snapshot = b"".join(await in_turns(self.jobs.parts()))
            if version == self.jobs.version:  # nothing was applied between the parts
                self.snapshot_bytes, self.appended_bytes = len(snapshot), 0
                return snapshot


class RunCounts:
    """Live runs, hot runs and known jobs of each backend: every report shows them, so nobody counts them again."""

    def __init__(self) -> None:
        self.by_backend: dict[str, dict[str, int]] = {}
        self.live_of: Counter[int] = Counter()
        """Live runs that each user has submitted."""

    def live(self, backend: str) -> int:
        """How many live runs of a backend there are."""
        return self.by_backend[backend]["live"] if backend in self.by_backend else 0

    def update(self, hot: HotRun, *, gone: bool = False) -> None:
        """Put right what this run adds to the counts."""
        of = self.by_backend.setdefault(hot.record.backend, {"live": 0, "hot": 0, "jobs": 0})
        before, now = hot.counted, (0, 0, 0) if gone else (int(hot.record.live), 1, len(hot.jobs))
        if now != before:
            of["live"] += now[0] - before[0]
            of["hot"] += now[1] - before[1]
            of["jobs"] += now[2] - before[2]
            hot.counted = now
        uid = None if gone or not hot.record.live else hot.record.uid
        if uid != hot.counted_for:
            if hot.counted_for is not None:
                self.live_of[hot.counted_for] -= 1
            if uid is not None:
                self.live_of[uid] += 1
            hot.counted_for = uid
