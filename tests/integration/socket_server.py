"""A server in a process of its own, for tests that need one: to pass it a socket, to starve it, to see its memory.

``python -m tests.integration.socket_server PATH [LIMITS]``, limits as JSON. It prints a line when it serves and ends in
order on SIGTERM.
"""

from __future__ import annotations

__all__ = ["METHODS", "hello", "main"]

import os
import resource
import signal
import sys
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from bpsd import messages, wire
from bpsd.config import Limits
from bpsd.logs import get_logger, log_to
from bpsd.peers import Policy
from bpsd.server import Call, MethodSpec, SocketServer, open_listener


def hello() -> messages.Hello:
    return messages.Hello(
        version="0", protocol=1, pid=os.getpid(), mode="user", max_message_bytes=wire.MAX_MESSAGE_BYTES
    )


def ping(call: Call, params: messages.Nothing) -> messages.PingResult:
    """Answer at once."""
    return messages.PingResult(time=1.0)


def status(call: Call, params: messages.StatusParams) -> messages.StatusResult:
    """Answer at once, with what was asked."""
    return messages.StatusResult(
        id=params.run, backend="here", wms_id="7", name="n", state="RUNNING", code=15, seq=call.connection.id
    )


def report(call: Call, params: messages.ReportParams) -> msgspec.Raw:
    """Answer at once, with 110 bytes for each row that was asked for."""
    return msgspec.Raw(b'{"rows":"%s"}' % (b"x" * 110 * params.limit))


async def refresh(call: Call, params: messages.RefreshParams) -> messages.RefreshResult:
    """Answer later."""
    await anyio.sleep(params.timeout_s)
    return messages.RefreshResult(last_good_at={"here": params.timeout_s})


METHODS = {
    "ping": MethodSpec(ping, "none"),
    "status": MethodSpec(status, "read"),
    "report": MethodSpec(report, "read"),
    "refresh": MethodSpec(refresh, "read"),
}


async def main(path: str, limits: Limits) -> None:
    """Serve until told to stop."""
    log = get_logger()
    listener = await anyio.to_thread.run_sync(lambda: open_listener(path, mode=0o600, environ=os.environ, log=log))
    server = SocketServer(METHODS, limits=limits, hello=hello(), policy=Policy(owner_uid=os.getuid()), log=log)
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.serve, listener)
            print("serving", listener.path, flush=True)
            async for _ in signals:
                break
            await server.stop(5.0)
    await anyio.to_thread.run_sync(listener.close)


if __name__ == "__main__":
    settings: dict[str, Any] = msgspec.json.decode(sys.argv[2]) if sys.argv[2:] else {}
    if files := settings.pop("open_files", 0):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    with log_to(2):
        anyio.run(main, sys.argv[1], Limits(**settings))
