"""The submit host is this machine: programs as processes of their own group, files as files."""

from __future__ import annotations

__all__ = ["LocalTransport"]

import os
import signal
import socket
import stat as modes
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import anyio
import anyio.to_thread
from anyio.abc import ByteReceiveStream, Process

from bpsd.errors import DeadlineExceeded
from bpsd.processes import feed, start_process
from bpsd_adapters.files import open_regular
from bpsd_adapters.transports.base import (
    MAX_OUTPUT_BYTES,
    STDERR_CHARS,
    Channel,
    CommandMissing,
    Completed,
    FileInfo,
    OutputTooLarge,
    Transport,
    Unreachable,
)


class LocalTransport(Transport):
    """Programs and files of this machine.

    Parameters
    ----------
    environment : `~collections.abc.Mapping`
        Variables added to our own for every program.
    path : `~collections.abc.Sequence` [`str`]
        Folders in which programs are looked for before ``PATH``.
    """

    shares_files: ClassVar[bool] = True

    def __init__(self, environment: Mapping[str, str] | None = None, path: Sequence[str] = ()) -> None:
        self._environment = dict(environment or {})
        self._path = tuple(path)

    @property
    def host(self) -> str:
        """The name of this machine."""
        return socket.gethostname()

    async def run(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        input: bytes = b"",
        cwd: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Completed:
        """See `Transport.run`."""
        process = await self._open(argv, cwd)
        room = _Room(max_output_bytes)
        try:
            with anyio.fail_after(deadline_s):
                return await self._finish(process, argv, input, room)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"{argv[0]} on {self.host} did not end within {deadline_s:g} s") from exc
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)

    async def converse(self, argv: Sequence[str]) -> Channel:
        """See `Transport.converse`."""
        return _LocalChannel(await self._open(argv, None), argv[0])

    async def _open(self, argv: Sequence[str], cwd: str | None) -> Process:
        environment = {**os.environ, **self._environment}
        if self._path:
            environment["PATH"] = ":".join((*self._path, environment.get("PATH", os.defpath)))
        try:
            return await start_process(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=environment,
                start_new_session=True,
            )
        except (FileNotFoundError, PermissionError, NotADirectoryError) as exc:
            raise CommandMissing(
                f"{argv[0]} cannot be run on {self.host}: {exc.strerror}",
                advice="install it, or tell where it is in the backend's settings",
            ) from exc

    async def _finish(self, process: Process, argv: Sequence[str], input: bytes, room: _Room) -> Completed:
        out, err = bytearray(), bytearray()
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(feed, process, input)
                group.start_soon(_drain, process.stderr, err, room, argv[0])
                await _drain(process.stdout, out, room, argv[0])
        except* OutputTooLarge:
            raise OutputTooLarge(f"{argv[0]} printed more than {room.limit} bytes and was ended") from None
        returncode = await process.wait()
        return Completed(tuple(argv), returncode, bytes(out), bytes(err))

    async def stat(self, path: str) -> FileInfo | None:
        """See `Transport.stat`."""
        try:
            found = await anyio.Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileInfo(found.st_size, found.st_mtime, modes.S_ISDIR(found.st_mode))

    async def read(self, path: str, offset: int, limit: int) -> bytes:
        """See `Transport.read`."""
        return await anyio.to_thread.run_sync(_read, path, offset, limit)

    async def write(self, path: str, data: bytes) -> None:
        """See `Transport.write`."""
        await anyio.to_thread.run_sync(_write, path, data)

    async def listdir(self, path: str) -> list[str]:
        """See `Transport.listdir`."""
        try:
            return sorted(await anyio.to_thread.run_sync(os.listdir, path))
        except (FileNotFoundError, NotADirectoryError):
            return []


class _LocalChannel(Channel):
    """A process of this machine."""

    def __init__(self, process: Process, program: str) -> None:
        self._process, self._program = process, program
        self._open = True
        self._said = ""

    async def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise Unreachable(f"{self._program} has ended") from exc

    async def receive(self) -> bytes:
        assert self._process.stdout is not None
        try:
            return await self._process.stdout.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return b""

    async def end(self) -> str:
        if not self._open:  # its id may be another's by now
            return self._said
        self._open = False
        process, said = self._process, bytearray()
        assert process.stderr is not None
        with anyio.CancelScope(shield=True):
            _kill_group(process)
            with anyio.move_on_after(1.0):  # what is left in the pipe; a child of another group may hold it open
                try:
                    async for chunk in process.stderr:
                        said += chunk
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    pass
            await process.wait()
            await process.aclose()
        self._said = " ".join(said.decode(errors="replace").split())[-STDERR_CHARS:]
        return self._said


class _Room:
    """How much may still be printed, by both streams together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = limit

    def take(self, count: int, program: str) -> None:
        self.left -= count
        if self.left < 0:
            raise OutputTooLarge(program)


async def _drain(stream: ByteReceiveStream, into: bytearray, room: _Room, program: str) -> None:
    async for chunk in stream:
        room.take(len(chunk), program)
        into += chunk


async def _end(process: Process) -> None:
    """End the whole process group, also what the program left behind in it."""
    _kill_group(process)
    await process.wait()
    await process.aclose()


def _kill_group(process: Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)  # the leader is not reaped before `wait`, or the group is not empty
    except (ProcessLookupError, PermissionError):
        pass


def _read(path: str, offset: int, limit: int) -> bytes:
    with os.fdopen(open_regular(path, follow=True), "rb") as file:
        file.seek(offset)
        return file.read(limit)


def _write(path: str, data: bytes) -> None:
    target = Path(path)
    half = target.with_name(f".{target.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with os.fdopen(open_regular(half, flags, mode=0o666), "wb") as file:
        file.write(data)
    half.replace(target)
