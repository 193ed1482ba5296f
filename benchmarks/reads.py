"""What an answer costs: ``status`` beside a bare echo, ``report`` of a thousand runs, ``bpsctl`` beside ``python3``."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tests.integration.daemons import RunningDaemon

from benchmarks.bench_socket import ALLOWED_CORES, connected, echo_buffered, one_round
from benchmarks.bench_socket import running as serving
from benchmarks.busy import first_run
from benchmarks.measure import Line, ask, change, cpu_s, daemon, latencies, memory_mb, opened, pid_of, quantile
from benchmarks.synthetic import Plan
from bpsd import wire

RUNS = 1000
ROUNDS = 150
REQUESTS_PER_ROUND = 100
REPORTS = 100
CHANGES = 15
PROCESSES = 60


def status(folder: Path) -> list[Line]:
    """One request at a time on an open connection, in rounds that alternate with an echo of the same bytes."""
    lines = []
    with ExitStack() as stack:
        os.sched_setaffinity(0, {min(ALLOWED_CORES)})  # see bench_socket for why all share a core
        stack.callback(os.sched_setaffinity, 0, ALLOWED_CORES)
        running = stack.enter_context(daemon(folder, Plan(runs=RUNS, jobs=20)))
        request = wire.encode_request(1, "status", {"run": first_run(running)})
        stack.enter_context(serving(echo_buffered, str(folder / "echo")))
        ours, echo = stack.enter_context(opened(running)), stack.enter_context(connected(str(folder / "echo")))
        rounds = [
            (one_round(ours, REQUESTS_PER_ROUND, request), one_round(echo, REQUESTS_PER_ROUND, request))
            for _ in range(ROUNDS)
        ]
        ratio = statistics.median(statistics.median(one) / statistics.median(other) for one, other in rounds)
        lines.append(
            Line(
                "status on an open connection (real daemon and run)",
                micros([taken for one, _ in rounds for taken in one]),
                f"bare echo: {micros([taken for _, other in rounds for taken in other])}",
                ratio,
                ratio,
                2.0,
                "p50 <= 2x the echo",
            )
        )
    return lines


def report(folder: Path) -> list[Line]:
    """A report of a thousand runs: how long the daemon is at it, when nothing and when every row has changed."""
    with daemon(folder, Plan(runs=RUNS, jobs=20)) as running, opened(running) as client:
        warm = [one_report(running, client) for _ in range(REPORTS)]
        changed = []
        for version in range(2, 2 + CHANGES):
            change(running, Plan(version=version, runs=RUNS, jobs=20))
            ask(client, "refresh", timeout_s=60)
            time.sleep(0.1)  # the store writes behind: its thread is not what is measured here
            changed.append(one_report(running, client))
    return [
        report_line(f"report of {RUNS:,} runs, time in the daemon", warm),
        report_line(f"report of {RUNS:,} runs that have all just changed", changed),
    ]


def one_report(running: RunningDaemon, client: object) -> tuple[float, float]:
    """CPU seconds of the daemon, and seconds that the client waited."""
    pid = pid_of(running)
    cpu, began = cpu_s(pid), time.perf_counter()
    answer = ask(client, "report", limit=RUNS)  # type: ignore[arg-type]  # a socket
    waited = time.perf_counter() - began
    assert answer.count(b'"wms_id"') == RUNS, answer.count(b'"wms_id"')
    return cpu_s(pid) - cpu, waited


def report_line(name: str, taken: list[tuple[float, float]]) -> Line:
    """The CPU time counts; the client's time also has the transfer of the answer in it."""
    cpu = statistics.median(cpu for cpu, _ in taken)
    return Line(
        name,
        f"p50 {cpu * 1e3:.2f}, p99 {quantile([c for c, _ in taken], 0.99) * 1e3:.2f} ms CPU",
        f"the client waits {latencies([waited for _, waited in taken])}",
        None,
        cpu,
        0.005,
        "p50 <= 5 ms",
    )


def bpsctl(folder: Path) -> list[Line]:
    """`bpsctl status RUN` as a process, alternating with a Python that does nothing."""
    scripts = Path(sys.executable).parent
    with daemon(folder, Plan(runs=RUNS)) as running:
        run = first_run(running)
        commands = (
            [str(scripts / "bpsctl"), "--socket", str(running.socket), "status", run],
            [str(scripts / "python3"), "-c", "pass"],
        )
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(PROCESSES):
            for command, times in zip(commands, taken, strict=True):
                began = time.perf_counter()
                subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
                times.append(time.perf_counter() - began)
    ratio = statistics.median(taken[0]) / statistics.median(taken[1])
    return [
        Line(
            "`bpsctl status RUN` as a process",
            f"median {statistics.median(taken[0]) * 1e3:.1f}, least {min(taken[0]) * 1e3:.1f} ms",
            f"`python3 -c pass`: {statistics.median(taken[1]) * 1e3:.1f}, {min(taken[1]) * 1e3:.1f} ms",
            ratio,
            ratio,
            3.0,
            "<= 3x",
        )
    ]


def idle(folder: Path) -> list[Line]:
    """The memory of a daemon with the local backend and nothing to do."""
    with daemon(folder) as running:
        time.sleep(3)
        memory = memory_mb(pid_of(running))
    return [Line("memory of an idle daemon", f"{memory:.0f} MB", "", None, memory, 70.0, "< 70 MB")]


def micros(taken: list[float]) -> str:
    """Median and p99 in us."""
    return f"p50 {statistics.median(taken) * 1e6:.1f}, p99 {quantile(taken, 0.99) * 1e6:.0f} us"
