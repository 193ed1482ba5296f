"""What a local backend's settings mean on this machine: the room for jobs, and what cannot work."""

from __future__ import annotations

__all__ = ["capacity_of", "ledger_of", "local_problems"]

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bpsd.errors import Problem
from bpsd.pathchecks import cannot_run, cannot_write_in
from bpsd_adapters.local.ledger import Capacity
from bpsd_adapters.local.ledgerfile import default_path

if TYPE_CHECKING:
    from bpsd_adapters.local.service import LocalConfig


def capacity_of(config: LocalConfig) -> Capacity:
    """Return what a backend has for jobs."""
    return Capacity(
        config.cores or len(os.sched_getaffinity(0)),
        config.memory_mb or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
    )


def ledger_of(config: LocalConfig, state_dir: Path) -> Path:
    """Return where the ledger is; it looks at the home directory, which may not answer."""
    return default_path(state_dir) if config.ledger is None else Path(config.ledger)


def local_problems(config: LocalConfig) -> list[Problem]:
    """Look at the folders of runs and ledger; with ``run_as: submitter`` these are the submitters', unknown to us."""
    if config.run_as == "submitter":
        wrong = cannot_run("systemd-run")
        return [Problem(("run_as",), wrong)] if wrong else []
    ledger = None if config.ledger is None else str(Path(config.ledger).parent)
    return [
        Problem((key,), wrong)
        for key, folder in (("run_dir", config.run_dir), ("ledger", ledger))
        if folder is not None and (wrong := cannot_write_in(folder))
    ]
