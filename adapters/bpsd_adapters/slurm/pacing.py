"""When to look at the queue next. Pure: the site is spared, whatever people want."""

from __future__ import annotations

__all__ = ["Window", "next_look"]

from dataclasses import dataclass

COST_FACTOR = 20.0
"""A look that took t seconds is not repeated within so many times t: a slow answer may be Slurm's rate limit."""

SLACK_PART = 0.5
"""Between looks more is submitted only if no more than this part of the window is in Slurm: few calls, of many jobs."""

FAILED_MAX_S = 300.0
GROWTH = 1.5
MIN_JOB_AGE_PART = 1 / 3
"""Finished jobs leave the queue after MinJobAge: they are to be seen there before."""

COUNT_PART = 0.1
"""The part of MaxJobCount, which all users share, that one backend of ours may take."""


def next_look(
    interval_s: float,
    idle_s: float,
    *,
    before_s: float,
    cost_s: float,
    changed: bool,
    failures: int = 0,
    min_job_age_s: int | None = None,
) -> float:
    """Seconds from one look at Slurm, or at what jobs wrote, to the next.

    Parameters
    ----------
    interval_s, idle_s : `float`
        What the settings say for when something changes, and for when nothing does.
    before_s : `float`
        How long it was before the last look.
    cost_s : `float`
        How long the last look took.
    changed : `bool`
        Whether it showed anything new.
    failures : `int`
        How many looks failed in a row.
    min_job_age_s : `int` or `None`
        Slurm's MinJobAge, if it is known.
    """
    if failures:
        return max(min(interval_s * 2.0 ** min(failures, 20), FAILED_MAX_S), interval_s)
    wanted = interval_s if changed else min(max(before_s, interval_s) * GROWTH, idle_s)
    if min_job_age_s:
        wanted = min(wanted, max(min_job_age_s * MIN_JOB_AGE_PART, interval_s))
    return max(wanted, COST_FACTOR * cost_s)


@dataclass(slots=True)
class Window:
    """How many jobs may be in Slurm at once: less after a refusal, and slowly more again."""

    wanted: int
    """What the settings say."""

    most: int = 0
    now: int = 0

    def __post_init__(self) -> None:
        self.now = self.most = self.wanted

    def limit(self, *, array_size: int | None, job_count: int | None, association: int | None) -> None:
        """Keep to what the site says."""
        self.most = self.wanted
        for limit in (
            None if array_size is None else array_size - 1,
            None if job_count is None else int(job_count * COUNT_PART),
            association,
        ):
            if limit is not None:
                self.most = max(1, min(self.most, limit))
        self.now = min(self.now, self.most)

    def slack(self, in_queue: int) -> bool:
        """Whether so little of ours is in Slurm that it may run out of work before the next look."""
        return in_queue <= SLACK_PART * self.now

    def refused(self, in_queue: int) -> None:
        """Slurm took no more while so many of ours were there."""
        self.now = max(1, min(self.now // 2, in_queue))

    def taken(self) -> None:
        """Slurm took what it was given."""
        self.now = min(self.most, self.now + max(1, self.now // 10))
