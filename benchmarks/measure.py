"""What the parts share: a daemon of their own, a prober, quantiles, and the lines of the table."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.daemons import RunningDaemon

from benchmarks.bench_socket import connected
from benchmarks.synthetic import Plan
from bpsd import wire

PROBE_EVERY_S = 0.005
"""A prober's schedule: a request that cannot be sent in time counts from when it was due."""


@dataclass(frozen=True)
class Line:
    """One line of the table; ``target`` is met if ``figure`` is at most that (`None`: for information)."""

    name: str
    ours: str
    baseline: str = ""
    ratio: float | None = None
    figure: float | None = None
    target: float | None = None
    target_text: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; `None` without one."""
        if self.target is None or self.figure is None:
            return None
        return self.figure <= self.target


@contextmanager
def daemon(folder: Path, plan: Plan | None = None, **settings: Any) -> Iterator[RunningDaemon]:
    """A daemon with the settings that everybody has, over a plan or over the local backend."""
    folder.mkdir()
    if plan is None:
        backends: dict[str, Any] = {"here": {"type": "local", "ledger": str(folder / "ledger"), "cores": 2}}
    else:
        plan.write(folder / "plan.json")
        backends = {"toy": {"type": "synthetic", "plan": str(folder / "plan.json")}}
    running = RunningDaemon(folder, backends)
    running.configure(
        {
            "socket": str(running.socket),
            "state_dir": str(running.state),
            "backends": backends,
            "logs": {"level": "warning"},
            **settings,
        }
    )
    with running:
        if plan is not None:
            with running.client(timeout_s=600) as client:
                client.refresh(timeout_s=600)
        yield running


def change(running: RunningDaemon, plan: Plan) -> None:
    """Let the WMS of ``running`` be so from now on."""
    plan.write(running.folder / "plan.json")


def opened(running: RunningDaemon) -> socket.socket:
    """A connection that has heard the greeting."""
    client = connected(str(running.socket))
    client.settimeout(600)
    receive(client)
    return client


def receive(client: socket.socket) -> bytes:
    """One answer."""
    parts = []
    while True:
        part = client.recv(1 << 20)
        if not part:
            raise ConnectionError("the daemon closed the connection")
        parts.append(part)
        if part.endswith(b"\n"):
            return b"".join(parts)


def ask(client: socket.socket, method: str, **params: Any) -> bytes:
    """Ask on a connection and wait for the answer."""
    client.sendall(wire.encode_request(1, method, params))
    answer = receive(client)
    assert b'"result"' in answer, answer[:500]
    return answer


def probe(running: RunningDaemon, run: str, busy: Callable[[], bool]) -> list[float]:
    """Ask for a status on a fixed schedule while ``busy``; how long each answer took since it was due (seconds)."""
    request = wire.encode_request(1, "status", {"run": run})
    taken = []
    with opened(running) as client:
        due = time.perf_counter()
        while busy():
            client.sendall(request)
            receive(client)
            now = time.perf_counter()
            taken.append(now - due)
            due += PROBE_EVERY_S
            if due > now:
                time.sleep(due - now)
    return taken


def for_seconds(seconds: float) -> Callable[[], bool]:
    """Busy for so long."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() < end


def quantile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def latencies(values: Sequence[float]) -> str:
    """Median, p99 and the worst, in ms."""
    p50, p99 = statistics.median(values), quantile(values, 0.99)
    return f"p50 {p50 * 1e3:.2f}, p99 {p99 * 1e3:.1f}, worst {max(values) * 1e3:.1f} ms"


def cpu_s(pid: int) -> float:
    """CPU seconds of the threads of a process so far (`/proc/PID/task/*/schedstat`)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


def memory_mb(pid: int, field: str = "VmRSS") -> float:
    """Resident memory of a process in MB (``VmHWM``: the most so far)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def pid_of(running: RunningDaemon) -> int:
    """The daemon's process."""
    assert running.process is not None
    return running.process.pid
