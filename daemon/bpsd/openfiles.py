"""File descriptors: how many this process holds, and room for as many as its clients may need."""

from __future__ import annotations

__all__ = ["make_room", "open_files"]

import os
import resource

BESIDE_CLIENTS = 512
"""Descriptors for everything but clients: databases, backends, processes, logs."""


def open_files() -> float:
    """How many file descriptors this process holds."""
    return float(len(os.listdir("/proc/self/fd")) - 1)  # noqa: PTH208  # names are enough, and one is the listing's own


def make_room(clients: int) -> tuple[int, int]:
    """Raise the soft limit of this process as far as so many clients need it, and never above the hard one.

    No higher: what a job inherits stays a number that old programs can loop over.

    Returns
    -------
    limit, wanted : `int`
        Descriptors that there may be, and that there may have to be.
    """
    wanted = clients + BESIDE_CLIENTS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted, wanted
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit, wanted
