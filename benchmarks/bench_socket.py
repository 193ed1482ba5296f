"""How much a request on the daemon's socket costs beside a bare echo of the same bytes.

Three servers in processes of their own, one client with blocking sockets, one request at a time, in short rounds that
alternate between the servers, so that whatever else the machine does meets all alike::

    echo, protocol   an asyncio.Protocol that writes back what it receives: nothing on asyncio can be cheaper
    echo, streams    the same with asyncio's streams
    bpsd             the daemon's own server: credentials, JSON-RPC, typed parameters, a typed answer of ``status``

The client sends the same ``status`` request to all; the echoes answer with those bytes, bpsd with its (longer) answer.
Run it with ``python benchmarks/bench_socket.py [ROUNDS]``; ``--profile`` shows where bpsd's time goes instead.
"""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console
from rich.table import Table

from bpsd import wire
from bpsd.config import Limits
from bpsd.logs import get_logger, log_to
from bpsd.messages import Hello, StatusParams, StatusResult
from bpsd.peers import Policy
from bpsd.server import Call, MethodSpec, SocketServer, open_listener

ROUNDS = 60
REQUESTS_PER_ROUND = 200
TARGET = 2.0
"""bpsd's p50 over the bare echo's (the plan of the project)."""

REQUEST = wire.encode_request(1, "status", {"run": "rbcdfghjk"})


Serve = Callable[[str], Coroutine[Any, Any, None]]


def status(_: Call, params: StatusParams) -> StatusResult:
    """Answer as the daemon does for a hot run."""
    return StatusResult(
        id=params.run,
        backend="here",
        wms_id="12345.0",
        name="u/operator/DRP/20260801T000000Z",
        state="RUNNING",
        code=15,
        percent=42,
        observed_at=1_780_000_000.25,
        source="log",
        seq=123_456,
    )


class Echo(asyncio.Protocol):
    """Writes back what it receives."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Echo."""
        self._transport.write(data)


async def echo_protocol(path: str) -> None:
    """Serve the echo, from a protocol."""
    server = await asyncio.get_running_loop().create_unix_server(Echo, path)
    await server.serve_forever()


async def echo_streams(path: str) -> None:
    """Serve the echo, from streams."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()

    server = await asyncio.start_unix_server(serve, path)
    await server.serve_forever()


async def bpsd(path: str) -> None:
    """Serve ``status``, from the daemon's server."""
    server = SocketServer(
        {"status": MethodSpec(status, "read")},
        limits=Limits(),
        hello=Hello(version="0", protocol=1, pid=os.getpid(), mode="user", max_message_bytes=wire.MAX_MESSAGE_BYTES),
        policy=Policy(owner_uid=os.getuid()),
        log=get_logger(),
    )
    listener = await anyio.to_thread.run_sync(
        lambda: open_listener(path, mode=0o600, environ=os.environ, log=get_logger())
    )
    await server.serve(listener)


@contextmanager
def running(serve: Serve, path: str, *, profile: bool = False) -> Iterator[None]:
    """Run a server in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            with log_to(2, level="warning"):
                _serve(serve, path, profile=profile)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def _serve(serve: Serve, path: str, *, profile: bool) -> None:
    if not profile:
        anyio.run(serve, path)
        return
    profiler = cProfile.Profile()

    async def until_told() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve, path)
                profiler.enable()
                async for _ in signals:
                    break
                profiler.disable()
                tasks.cancel_scope.cancel()

    anyio.run(until_told)
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(22)
    sys.stdout.flush()


def connected(path: str) -> socket.socket:
    """Connect as soon as the server listens."""
    deadline = time.monotonic() + 20
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(path)
        except OSError:
            client.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return client


def one_round(client: socket.socket, count: int, into: list[float]) -> None:
    """Ask ``count`` times, one after the other; add how long each took (seconds)."""
    clock, send, receive = time.perf_counter, client.sendall, client.recv
    for _ in range(count):
        start = clock()
        send(REQUEST)
        while not receive(65_536).endswith(b"\n"):
            pass
        into.append(clock() - start)


def percentile(times: list[float], percent: int) -> float:
    """In microseconds."""
    return statistics.quantiles(times, n=100)[percent - 1] * 1e6


def measure(rounds: int) -> dict[str, list[float]]:
    """Alternate between the servers; return the times of each."""
    servers = {"echo, protocol": echo_protocol, "echo, streams": echo_streams, "bpsd": bpsd}
    times: dict[str, list[float]] = {name: [] for name in servers}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b", dir="/tmp")))
        clients = {}
        for number, (name, serve) in enumerate(servers.items()):
            path = str(folder / str(number))
            stack.enter_context(running(serve, path))
            clients[name] = stack.enter_context(connected(path))
        assert clients["bpsd"].recv(65_536).startswith(b'{"jsonrpc":"2.0","method":"hello"')
        for client in clients.values():
            one_round(client, REQUESTS_PER_ROUND, [])  # warm
        for _ in range(rounds):
            for name, client in clients.items():
                one_round(client, REQUESTS_PER_ROUND, times[name])
    return times


def show(times: dict[str, list[float]]) -> float:
    """Print the table; return the ratio that counts."""
    base = percentile(times["echo, protocol"], 50)
    table = Table("server", "p50 us", "p99 us", "p50 / echo", title=f"one status request, {len(times['bpsd'])} times")
    for name, taken in times.items():
        p50, p99 = percentile(taken, 50), percentile(taken, 99)
        table.add_row(name, f"{p50:.1f}", f"{p99:.1f}", f"{p50 / base:.2f}")
    Console().print(table)
    ratio = percentile(times["bpsd"], 50) / base
    print(f"bpsd / bare echo: {ratio:.2f} (target: at most {TARGET})")
    return ratio


def profile() -> None:
    """Show where the server's time goes."""
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as folder:
        path = str(Path(folder) / "s")
        with running(bpsd, path, profile=True), connected(path) as client:
            client.recv(65_536)
            one_round(client, 20_000, [])


if __name__ == "__main__":
    if sys.argv[1:] == ["--profile"]:
        profile()
    else:
        sys.exit(show(measure(int(sys.argv[1]) if sys.argv[1:] else ROUNDS)) > TARGET)
