"""The files of a run with DAGs inside it: read in any order, and again when a job of the run has written one."""

from __future__ import annotations

from pathlib import Path

from bpsd_adapters.htcondor.hostclock import HostClock
from bpsd_adapters.htcondor.runfiles import Room, RunFiles
from bpsd_adapters.transports.local import LocalTransport

MAIN = """\
000 (002.000.000) 2026-11-22 19:50:25 Job submitted from host: <x>
    DAG Node: {group}
...
"""
INNER = """\
000 (003.000.000) 2026-11-22 19:50:26 Job submitted from host: <x>
    DAG Node: A
...
001 (003.000.000) 2026-11-22 19:50:27 Job executing on host: <x>
...
012 (003.000.000) 2026-11-22 19:50:28 Job was held.
\tvia condor_hold (by user op)
\tCode 1 Subcode 0
...
013 (003.000.000) 2026-11-22 19:50:29 Job was released.
\tvia condor_release (by user op)
...
001 (003.000.000) 2026-11-22 19:50:30 Job executing on host: <x>
...
"""


def run_files(folder: Path, group: str, inner: str) -> RunFiles:
    (folder / "run.dag").write_text(f"SUBDAG EXTERNAL {group} inner.dag\n")
    (folder / "inner.dag").write_text(inner)
    return RunFiles(LocalTransport(), str(folder / "run.dag"), HostClock(), 1)


async def read_all(files: RunFiles) -> dict[str, tuple[str, int | None]]:
    """Read until there is no more; returns state and attempt by job."""
    for _ in range(20):
        if not await files.update(Room(1_000_000)):
            break
    return {job.name: (job.state.name, job.attempt) for job in files.tracker.changed("")}


async def test_a_group_that_was_submitted_long_ago_is_read_once(tmp_path: Path) -> None:
    files = run_files(tmp_path, "wms_group", "JOB A a.sub\n")
    (tmp_path / "run.dag.nodes.log").write_text(MAIN.format(group="wms_group"))
    (tmp_path / "inner.dag.nodes.log").write_text(INNER)

    assert await read_all(files) == {"A": ("RUNNING", 2)}


async def test_a_group_that_a_job_of_the_run_writes_is_read_when_it_is_submitted(tmp_path: Path) -> None:
    files = run_files(tmp_path, "wms_group", "JOB placeholder p.sub\n")
    assert await read_all(files) == {"placeholder": ("UNREADY", 1)}

    (tmp_path / "inner.dag").write_text("JOB A a.sub\n")
    (tmp_path / "run.dag.nodes.log").write_text(MAIN.format(group="wms_group"))
    (tmp_path / "inner.dag.nodes.log").write_text(INNER)

    assert await read_all(files) == {"placeholder": ("PRUNED", 1), "A": ("RUNNING", 2)}
