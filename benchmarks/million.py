"""A thousand runs with a million jobs: memory, the start of the daemon, and what a command costs."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from tests.integration.daemons import RunningDaemon

from benchmarks.measure import Line, ask, change, daemon, latencies, memory_mb, opened, pid_of, quantile
from benchmarks.synthetic import Plan

RUNS = 1000
JOBS_PER_RUN = 1000
COMMANDS = 200
MEMORY_MB = 400.0


def million(folder: Path) -> list[Line]:
    """Fill, change everything, stop, start."""
    folder.mkdir()
    lines = []
    with daemon(folder / "bare", Plan(runs=RUNS, jobs=JOBS_PER_RUN, ids=False)) as running:
        lines.append(memory_line(running, "jobs without ids of the WMS (local)"))
    plan = Plan(runs=RUNS, jobs=JOBS_PER_RUN)
    with daemon(folder / "ids", plan) as running:
        lines.append(memory_line(running, "jobs with ids of the WMS (HTCondor)"))
        change(running, Plan(version=2, runs=RUNS, jobs=JOBS_PER_RUN, changed=JOBS_PER_RUN))
        with opened(running) as client:
            began = time.perf_counter()
            ask(client, "refresh", timeout_s=300)
            took = time.perf_counter() - began
            lines.append(Line("a poll in which all of them changed, applied", f"{took:.1f} s"))
        lines.append(memory_line(running, "after that poll"))
        lines += commands(running, folder)
        running.stop()
        began = time.perf_counter()
        running.start()
        took = time.perf_counter() - began
        with running.client() as client_:
            known = client_.backends()["backends"][0]["jobs_known"]
        assert known == RUNS * JOBS_PER_RUN, known
        lines.append(Line("start with all of them known, until it answers", f"{took:.1f} s"))
        lines.append(memory_line(running, "after that start"))
    return lines


def commands(running: RunningDaemon, folder: Path) -> list[Line]:
    """From a command to its durable acceptance, beside an append and fsync of as many bytes on the same disk."""
    with running.client() as client:
        runs = [row["id"] for row in client.list_runs(limit=COMMANDS)["runs"]]
    ours, disk = [], []
    with opened(running) as client_, (folder / "appended").open("ab", buffering=0) as file:
        for run in runs:
            began = time.perf_counter()
            ask(client_, "hold", run=run)
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            disk.append(time.perf_counter() - began)
    return [
        Line(
            f"a command until it is accepted and durable ({COMMANDS}, one after the other, their effects under way)",
            latencies(ours),
            f"append 4 KiB and fsync: {latencies(disk)}",
            statistics.median(ours) / statistics.median(disk),
            quantile(ours, 0.99),
        )
    ]


def memory_line(running: RunningDaemon, what: str) -> Line:
    """Resident memory, once what was in flight is over."""
    time.sleep(2)
    pid = pid_of(running)
    memory = memory_mb(pid)
    return Line(
        f"memory with {RUNS:,} runs and {RUNS * JOBS_PER_RUN:,} jobs known, {what}",
        f"{memory:.0f} MB (most so far: {memory_mb(pid, 'VmHWM'):.0f})",
        "",
        None,
        memory,
        MEMORY_MB,
        "< 400 MB",
    )
