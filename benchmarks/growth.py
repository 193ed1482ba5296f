"""How the daemon grows: with the number of runs it knows, and with the number of backends it polls."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tests.integration.daemons import RunningDaemon

from benchmarks.measure import Line, ask, cpu_s, for_seconds, memory_mb, opened, pid_of, probe, quantile
from benchmarks.synthetic import Plan

RUNS = (100, 1_000, 10_000, 50_000)
BACKENDS = (1, 10, 50, 100)
RUNS_EACH = 100
JOBS = 5
IDLE_S = 5.0
REPORTS = 5


class Size(NamedTuple):
    """What one size of daemon costs. Times in seconds, memory in MB, ``idle`` in percent of a core."""

    memory: float
    idle: float
    p99: float
    report: float
    poll_cpu: float
    poll: float
    start: float

    def __str__(self) -> str:
        return (
            f"{self.memory:.0f} MB, idle {self.idle:.1f} %, status p99 {self.p99 * 1e3:.1f} ms,"
            f" report of 1,000 rows {self.report * 1e3:.1f} ms, poll with all runs changed {self.poll:.2f} s"
            f" ({self.poll_cpu:.2f} s CPU), start {self.start:.2f} s"
        )


def growth(folder: Path) -> list[Line]:
    """Measure both tables."""
    folder.mkdir()
    by_runs = [measured(folder / f"runs-{runs}", 1, runs) for runs in RUNS]
    by_backends = [measured(folder / f"backends-{count}", count, RUNS_EACH) for count in BACKENDS]
    return [
        *lines([f"{runs:,} runs with {JOBS} jobs each, one backend" for runs in RUNS], by_runs),
        *lines([f"{count} backends with {RUNS_EACH} runs each" for count in BACKENDS], by_backends),
    ]


def lines(names: Sequence[str], sizes: Sequence[Size]) -> Iterator[Line]:
    """Return a line for each size; the ratio is that of its memory to the smallest size's."""
    for name, size in zip(names, sizes, strict=True):
        ratio = size.memory / sizes[0].memory
        yield Line(name, str(size), f"memory of the smallest: {sizes[0].memory:.0f} MB", ratio)


def measured(folder: Path, backends: int, runs: int) -> Size:
    """Measure a daemon with so many backends of so many runs each."""
    with sized(folder, backends, runs) as (running, plans):
        pid = pid_of(running)
        with opened(running) as client:
            listed = msgspec.json.decode(ask(client, "list", limit=1))
            run = listed["result"]["runs"][0]["id"]
            before, began = cpu_s(pid), time.perf_counter()
            time.sleep(IDLE_S)
            idle = (cpu_s(pid) - before) / (time.perf_counter() - began) * 100
            taken = probe(running, run, for_seconds(IDLE_S))
            reports = []
            for _ in range(REPORTS):
                began = time.perf_counter()
                ask(client, "report", limit=1_000)
                reports.append(time.perf_counter() - began)
            for plan in plans:
                Plan(version=2, runs=runs, jobs=JOBS).write(plan)
            before, began = cpu_s(pid), time.perf_counter()
            ask(client, "refresh", timeout_s=300)
            polled = time.perf_counter() - began
            poll_cpu = cpu_s(pid) - before
        memory = memory_mb(pid)
        running.stop()
        began = time.perf_counter()
        running.start()
        started = time.perf_counter() - began
    return Size(memory, idle, quantile(taken, 0.99), min(reports), poll_cpu, polled, started)


@contextmanager
def sized(folder: Path, backends: int, runs: int) -> Iterator[tuple[RunningDaemon, list[Path]]]:
    """Start a daemon with so many backends, each polled once."""
    folder.mkdir()
    plans = [folder / f"plan-{number}.json" for number in range(backends)]
    for plan in plans:
        Plan(runs=runs, jobs=JOBS).write(plan)
    configured: dict[str, Any] = {
        f"toy{number}": {"type": "synthetic", "plan": str(plan)} for number, plan in enumerate(plans)
    }
    running = RunningDaemon(folder, configured)
    running.configure(
        {
            "socket": str(running.socket),
            "state_dir": str(running.state),
            "backends": configured,
            "logs": {"level": "warning"},
        }
    )
    with running:
        with running.client(timeout_s=600) as client:
            client.refresh(timeout_s=300)
        yield running, plans
