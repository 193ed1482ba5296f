"""A run of many jobs over SSH while the daemon is killed: nothing is lost, and every job runs exactly once."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bpsd.testing.observer import shell_job
from tests.figures import figure
from tests.integration.daemons import RunningDaemon, document, until
from tests.integration.slurmbed import SlurmBed

SLURM_JOBS = figure("SLURM_JOBS", test=1000, soak=10_000)
"""How many jobs the run has."""

SLURM_KILLS = figure("SLURM_KILLS", test=3, soak=10)
"""How often the daemon is killed meanwhile."""

LAYERS = 5
PATIENCE_S = 60.0 + 0.3 * SLURM_JOBS

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)


def layered(trace: Path, count: int) -> list[dict[str, Any]]:
    """Layers of jobs, each with two parents in the layer before."""
    width = count // LAYERS
    jobs = []
    for layer in range(LAYERS):
        for n in range(width):
            parents = {f"l{layer - 1}_{n}", f"l{layer - 1}_{(7 * n + 1) % width}"} if layer else set()
            name = f"l{layer}_{n}"
            jobs.append(shell_job(name, f"echo {name} >> {trace}", parents=sorted(parents), request_memory=50))
    return jobs


def test_a_killed_daemon_goes_on_and_runs_nothing_twice(slurm: SlurmBed, state_dir: Path) -> None:
    chance = random.Random(20261122)
    folder = slurm.new_folder()
    trace = folder / "scratch" / "ran"
    jobs = layered(trace, SLURM_JOBS)
    with RunningDaemon(state_dir, {"site": {"type": "slurm", **slurm.settings()}}) as daemon:
        with daemon.client() as client:
            until(lambda: client.backends("site")["backends"][0]["state"] == "up", "the backend is open")
            run = client.submit_document(document(*jobs))["run"]

        def ran() -> int:
            return len(trace.read_text().split()) if trace.exists() else 0

        for kill in range(SLURM_KILLS):
            goal = len(jobs) * (kill + chance.random()) / (SLURM_KILLS + 1)
            until(lambda goal=goal: ran() >= goal, f"{goal:.0f} jobs ran before kill {kill}", PATIENCE_S)  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 0.5))  # any moment of a look or of a submission
            daemon.kill()
            daemon.start()

        def over() -> str | None:
            with daemon.client() as client:
                state = str(client.status(run)["state"])
            return state if state in ("SUCCEEDED", "FAILED", "DELETED") else None

        assert until(over, "the run is over", PATIENCE_S) == "SUCCEEDED"
        with daemon.client() as client:
            assert client.report(run)["runs"][0]["counts"] == {"SUCCEEDED": len(jobs)}
    assert Counter(trace.read_text().split()) == Counter(job["name"] for job in jobs)
    slurm.remove(folder)
