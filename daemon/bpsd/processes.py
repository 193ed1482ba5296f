"""Start programs so that a cancellation at any moment leaves no process behind.

If a task is cancelled while `asyncio` starts a program, anyio also cancels asyncio's own clean-up: the process is
killed, but nothing waits for it. So a start is not cancelled. The cancellation arrives at the next await, when the
caller has the process. `anyio.run_process` has no way to ask for this, hence `run_process`.
"""

from __future__ import annotations

__all__ = ["feed", "run_process", "start_process"]

import contextlib
import subprocess
from collections.abc import Sequence
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream, Process


async def start_process(command: Sequence[str], **options: Any) -> Process:
    """Start a program; ``options`` are those of `anyio.open_process`.

    Raises
    ------
    OSError
        If it cannot be started.
    """
    with anyio.CancelScope(shield=True):
        process = await anyio.open_process(command, **options)
    return process  # noqa: RET504  # inside the scope, which may suppress exceptions, it would be an optional return


async def feed(process: Process, data: bytes) -> None:
    """Write to a program's standard input and close it. If the program does not read it all, its exit code says why."""
    assert process.stdin is not None
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        if data:
            await process.stdin.send(data)
        await process.stdin.aclose()


async def run_process(
    command: Sequence[str], *, input: bytes = b"", **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, whatever its exit code.

    Parameters
    ----------
    command : `~collections.abc.Sequence` [`str`]
        The program and its arguments.
    input : `bytes`
        What it reads on its standard input.
    **options
        Those of `anyio.open_process`. Its three streams are pipes, unless these say otherwise.

    Raises
    ------
    OSError
        If it cannot be started.
    """
    process = await start_process(command, **options)
    out, err = bytearray(), bytearray()
    async with process:
        try:
            async with anyio.create_task_group() as group:
                if process.stdin is not None:
                    group.start_soon(feed, process, input)
                group.start_soon(_gather, process.stdout, out)
                group.start_soon(_gather, process.stderr, err)
            code = await process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise
    return subprocess.CompletedProcess(command, code, bytes(out), bytes(err))


async def _gather(stream: ByteReceiveStream | None, into: bytearray) -> None:
    if stream is not None:
        async for piece in stream:
            into += piece
