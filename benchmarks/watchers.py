"""What it costs the daemon to tell many clients of the same events."""

from __future__ import annotations

import os
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.integration.daemons import RunningDaemon

from benchmarks.measure import Line, ask, change, daemon, opened, pid_of
from benchmarks.synthetic import Plan

RUNS = 1000
WATCHERS = 400
TURNS = 6
TARGET = 3.0


def watchers(folder: Path) -> list[Line]:
    """A poll in which a thousand runs change, for one watcher and for 400 in turns."""
    plan = Plan(runs=RUNS, jobs=5)
    limits = {"clients": 1024, "clients_per_user": 1024}
    one: list[tuple[float, float]] = []
    many: list[tuple[float, float]] = []
    with daemon(folder, plan, limits=limits) as running, opened(running) as client:
        for version in range(2, 2 + 2 * TURNS):
            few = version % 2 == 0
            with watched(running, 1 if few else WATCHERS) as seen:
                began = times(pid_of(running))
                change(running, Plan(version=version, runs=RUNS, jobs=5))
                ask(client, "refresh", timeout_s=300)
                seen.until_all(RUNS)
                ended = times(pid_of(running))
            (one if few else many).append((ended[0] - began[0], ended[1] - began[1]))
    user = statistics.median(u for u, _ in many) / statistics.median(u for u, _ in one)
    return [
        Line(
            f"{RUNS:,} runs change while {WATCHERS} clients watch, CPU of the daemon without the kernel's part",
            shown(many),
            f"one client watches: {shown(one)}",
            user,
            user,
            TARGET,
            "<= 3x one watcher",
        )
    ]


def shown(taken: list[tuple[float, float]]) -> str:
    """The medians in ms."""
    user, system = statistics.median(u for u, _ in taken), statistics.median(s for _, s in taken)
    return f"{user * 1e3:.0f} ms, and {system * 1e3:.0f} ms in the kernel (the writes)"


def times(pid: int) -> tuple[float, float]:
    """CPU seconds of a process in its own code and in the kernel (`/proc/PID/stat`)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / ticks, int(fields[12]) / ticks


class Seen:
    """Clients that watch everything; a thread reads what they are sent and counts the events."""

    def __init__(self, clients: list[socket.socket]) -> None:
        self._events = dict.fromkeys(clients, 0)
        self._selector = selectors.DefaultSelector()
        for client in clients:
            client.setblocking(False)
            self._selector.register(client, selectors.EVENT_READ)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.1):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                self._events[client] += client.recv(1 << 18).count(b"\n")

    def until_all(self, count: int) -> None:
        """Wait until each has heard of so many runs."""
        deadline = time.monotonic() + 120
        while min(self._events.values()) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{min(self._events.values())} of {count} events after 120 s")
            time.sleep(0.01)

    def end(self) -> None:
        """Read no more."""
        self._ended.set()
        self._thread.join()


@contextmanager
def watched(running: RunningDaemon, count: int) -> Iterator[Seen]:
    """So many clients that watch."""
    with ExitStack() as stack:
        clients = [stack.enter_context(opened(running)) for _ in range(count)]
        for client in clients:
            ask(client, "watch")
        seen = Seen(clients)
        stack.callback(seen.end)
        yield seen
