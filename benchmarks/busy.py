"""How long a request takes while the daemon has much to do, and whether anybody starves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from tests.integration.daemons import RunningDaemon

from benchmarks.measure import Line, change, daemon, for_seconds, latencies, opened, probe, quantile, receive
from benchmarks.synthetic import Plan
from bpsd import wire

RUNS = 10_000
POLLS = 3
JOBS = 100_000
CLIENTS = 200
CROWD_S = 5.0
TARGET_S = 0.020


def under_polls(folder: Path) -> list[Line]:
    """While polls in which every run and a job of each changed are applied."""
    plan = Plan(runs=RUNS, jobs=10)
    with daemon(folder, plan) as running:
        run = first_run(running)
        idle = probe(running, run, for_seconds(3))
        taken = []
        for version in range(2, 2 + POLLS):
            change(running, msgspec.structs.replace(plan, version=version))
            taken += probe(running, run, refreshing(running))
    return [line(f"status while a poll of {RUNS:,} changed runs is applied", taken, idle)]


def under_big_poll(folder: Path) -> list[Line]:
    """While one run shows all of its jobs for the first time, and again when all of them changed."""
    plan = Plan(runs=1)
    with daemon(folder, plan) as running:
        run = first_run(running)
        idle = probe(running, run, for_seconds(2))
        taken = []
        for version in range(2, 2 + POLLS):
            change(running, Plan(version=version, runs=1, jobs=JOBS, changed=JOBS))
            taken += probe(running, run, refreshing(running))
    return [line(f"status while a poll of one run with {JOBS:,} changed jobs is applied", taken, idle)]


def under_submit(folder: Path) -> list[Line]:
    """While `bpsctl submit` brings a large workflow: to a WMS that costs nothing, and to the local backend."""
    document = folder / "workflow.json"
    folder.mkdir()
    document.write_bytes(big_workflow())
    lines = []
    with daemon(folder / "plan", Plan(runs=10)) as running:
        run = first_run(running)
        idle = probe(running, run, for_seconds(2))
        taken = probe(running, run, submitting(running, document))
    name = f"status while a workflow of {JOBS:,} jobs ({document.stat().st_size / 1e6:.0f} MB) is submitted"
    lines.append(line(name, taken, idle))
    with daemon(folder / "local") as running:
        client = running.client()
        run = str(client.submit_document(tiny_workflow())["run"])
        idle = probe(running, run, for_seconds(2))
        with submitted(running, document) as busy:
            taken = probe(running, run, busy)
            newest = client.list_runs()["runs"][0]["id"]
            first = [0.0]

            def unseen() -> bool:
                first[0] = first[0] or time.monotonic()
                return time.monotonic() - first[0] < 10

            after = probe(running, run, unseen)
        client.cancel(newest)
        deadline = time.monotonic() + 60
        while client.status(newest)["code"] in range(10, 16) and time.monotonic() < deadline:
            time.sleep(0.2)
        client.close()
    lines.append(line(f"{name}, to the local backend", taken, idle))
    lines.append(line("status in the 10 s after that, while it runs", after, idle))
    return lines


def crowd(folder: Path) -> list[Line]:
    """Many clients at once, each asking as fast as it is answered."""
    with daemon(folder, Plan(runs=100)) as running:
        run = first_run(running)
        served, taken = asyncio.run(crowded(str(running.socket), run))
    ratio = max(served) / max(1, min(served))
    return [
        Line(
            f"{CLIENTS} clients at once for {CROWD_S:g} s: answers to the one served least and most",
            f"{min(served)} to {max(served)}; {latencies(taken)}",
            f"{sum(served) / CROWD_S:,.0f} answers/s in all",
            ratio,
            ratio,
            2.0,
            "none starved: most / least <= 2",
        )
    ]


async def crowded(path: str, run: str) -> tuple[list[int], list[float]]:
    """Answers for each client, and how long they took."""
    request = wire.encode_request(1, "status", {"run": run})
    served, taken = [0] * CLIENTS, []
    loop = asyncio.get_running_loop()
    pairs = [await asyncio.open_unix_connection(path, limit=1 << 20) for _ in range(CLIENTS)]
    for reader, _ in pairs:
        await reader.readline()
    end = loop.time() + CROWD_S

    async def one(number: int) -> None:
        reader, writer = pairs[number]
        while loop.time() < end:
            began = time.perf_counter()
            writer.write(request)
            await reader.readline()
            taken.append(time.perf_counter() - began)
            served[number] += 1
        writer.close()

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(one(number))
    return served, taken


def line(name: str, taken: list[float], idle: list[float]) -> Line:
    """The latency beside that of the same daemon with nothing to do."""
    p99 = quantile(taken, 0.99)
    return Line(
        name,
        latencies(taken),
        f"idle: {latencies(idle)}",
        p99 / quantile(idle, 0.99),
        p99,
        TARGET_S,
        "p99 <= 20 ms",
    )


def first_run(running: RunningDaemon) -> str:
    """The id of a run."""
    with running.client() as client:
        return str(client.list_runs(limit=1)["runs"][0]["id"])


def refreshing(running: RunningDaemon) -> Callable[[], bool]:
    """Let the daemon poll; busy until it has."""
    done = threading.Event()

    def wait() -> None:
        with opened(running) as client:
            client.sendall(wire.encode_request(1, "refresh", {"timeout_s": 300}))
            receive(client)
        done.set()

    threading.Thread(target=wait, daemon=True).start()
    return lambda: not done.is_set()


def submitting(running: RunningDaemon, document: Path) -> Callable[[], bool]:
    """Let `bpsctl` submit; busy until it is done."""
    process = bpsctl_submit(running, document)
    return lambda: process.poll() is None


@contextmanager
def submitted(running: RunningDaemon, document: Path) -> Iterator[Callable[[], bool]]:
    """Let `bpsctl` submit; yields whether it is still at it."""
    process = bpsctl_submit(running, document)
    try:
        yield lambda: process.poll() is None
    finally:
        process.wait(60)


def bpsctl_submit(running: RunningDaemon, document: Path) -> subprocess.Popen[bytes]:
    """A process that submits."""
    return subprocess.Popen(
        [Path(sys.executable).with_name("bpsctl"), "--socket", running.socket, "submit", document],
        stdout=subprocess.DEVNULL,
    )


def tiny_workflow() -> bytes:
    """One job."""
    return msgspec.json.encode({"bpsd": 1, "name": "tiny", "jobs": [{"name": "a", "label": "a", "executable": "true"}]})


def big_workflow() -> bytes:
    """A hundred thousand jobs as a pipeline has them: long command lines, parents, requests."""
    jobs = [
        {
            "name": f"isr_{number:06d}",
            "label": "isr",
            "executable": "/usr/bin/true",
            "arguments": f"--long-log run-qbb /repo/main /submit/u/operator/run.qgraph --id {number} " + "x" * 180,
            "request_memory": 2048,
            "request_cpus": 1,
            "number_of_retries": 2,
            "tags": {"visit": str(number // 189), "detector": str(number % 189)},
        }
        for number in range(JOBS)
    ]
    return msgspec.json.encode({"bpsd": 1, "name": "big", "jobs": jobs})
