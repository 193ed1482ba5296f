"""``bps report`` through bpsd, beside ``bps report`` with upstream's own plugin for HTCondor and ``bpsctl report``.

All three run on the submit host of a real pool (``tests/testbeds/htcondor.sh``), in turns, as a person would start
them; the runs are in the pool's queue and bpsd found them there. Only root can start that pool.
"""

from __future__ import annotations

__all__ = ["RUNS", "bps_reports"]

import statistics
import subprocess
import time
from pathlib import Path

from tests.integration.condorbed import CondorBed
from tests.integration.daemons import RunningDaemon, until
from tests.integration.lsstbed import ROOT

from benchmarks.measure import Line

RUNS = (1, 50, 200)
"""How many runs are in the queue."""

TURNS = 3

SLEEPERS = """
universe = scheduler
executable = /bin/sleep
arguments = 3600
+bps_isjob = "True"
initialdir = $(folder)
+bps_run = "u_op_night_$(number)"
+bps_project = "dev"
+bps_campaign = "night"
+bps_payload = "drp"
+bps_operator = "op"
+bps_runsite = "here"
+bps_job_summary = "isr:50;calib:49;coadd:1"
+DAG_NodesTotal = 100
+DAG_NodesDone = 40
+DAG_NodesReady = 10
+DAG_NodesUnready = 50
+DAG_NodesFailed = 0
queue
"""
"""Runs as the queue shows them: the attributes of DAGMan and of bps, and next to no work."""


def bps_reports(folder: Path) -> list[Line]:
    """A line for each number of runs."""
    folder.mkdir()
    pool = CondorBed()
    pool.start()
    share = pool.folder()
    try:
        subprocess.run(["cp", "-r", ROOT / "daemon", ROOT / "adapters", share], check=True)
        settings = {"type": "htcondor", **pool.settings()}
        with RunningDaemon(share, {"pool": settings}, polling={"deadline_s": 60.0}) as daemon:
            return [measured(pool, share, daemon, count) for count in RUNS]
    finally:
        pool.run("condor_rm", "-all")
        pool.stop()
        pool.remove([share])


def measured(pool: CondorBed, share: Path, daemon: RunningDaemon, count: int) -> Line:
    """Fill the queue up to ``count`` runs and time the three commands."""
    have = len(pool.run("condor_q", "-af", "ClusterId").split())
    (share / "runs.sub").write_text(SLEEPERS)
    for number in range(have, count):  # each has a folder and a cluster of its own, as runs have
        folder = share / "scratch" / str(number)
        folder.mkdir()
        pool.run("condor_submit", f"number={number}", f"folder={folder}", str(share / "runs.sub"))

    def known() -> bool:
        with daemon.client() as client:
            client.refresh()
            return len(client.report(active=True, limit=10_000)["runs"]) == count

    until(known, f"bpsd knows {count} runs")
    variables = [
        "env",
        "HOME=/home/op",
        f"PYTHONPATH={share}/daemon:{share}/adapters",
        f"BPSD_SOCKET={daemon.socket}",
        f"XDG_CACHE_HOME={share}/cache",
    ]
    plugin = "lsst.ctrl.bps.htcondor.HTCondorService"
    commands = {
        "bpsd": [*variables, "/opt/bps/bin/bps", "report", "--wms-service-class", "bpsd.lsst.BpsdService"],
        "plugin": [*variables, "/opt/bps/bin/bps", "report", "--wms-service-class", plugin],
        "bpsctl": [*variables, "/opt/bps/bin/python", "-m", "bpsd.cli.bpsctl", "report", "--active"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(TURNS + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            shown = pool.as_root(*command)
            if turn:  # the first fills the caches of files and of compiled modules
                taken[name].append(time.perf_counter() - began)
            assert shown.count("u_op_night_") == count, f"{name}: {shown}"
    middle = {name: statistics.median(times) for name, times in taken.items()}
    return Line(
        f"`bps report` of {count} runs through bpsd, as a process",
        f"{middle['bpsd']:.2f} s; `bpsctl report`: {middle['bpsctl']:.3f} s",
        f"`bps report` with HTCondorService: {middle['plugin']:.2f} s",
        middle["bpsd"] / middle["plugin"],
        None,
        None,
        "",
    )
