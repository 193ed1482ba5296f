"""The submit host is another machine: one SSH connection per host, shared by all who use it.

A connection carries at most `MAX_CHANNELS` channels, is kept alive, checks the host's key, and is made again with
jittered, growing pauses; in between every call fails at once with the reason. Commands run under ``timeout`` on the
host, so that their deadline holds there even if the connection breaks; a call that is given up ends its command by a
signal. Sizes and times are bounded.
"""

from __future__ import annotations

__all__ = ["MAX_CHANNELS", "SshTransport"]

import contextlib
import math
import os
import random
import stat as modes
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

import anyio
import anyio.lowlevel
import anyio.to_thread
import asyncssh

from bpsd.errors import DeadlineExceeded
from bpsd.pathchecks import expanded
from bpsd_adapters.transports.base import (
    MAX_OUTPUT_BYTES,
    STDERR_CHARS,
    Channel,
    CommandMissing,
    Completed,
    FileInfo,
    HostKeyRefused,
    LoginRefused,
    OutputTooLarge,
    ShellFailed,
    Transport,
    Unreachable,
)
from bpsd_adapters.transports.loginshell import LoginScript, after_mark, login_script
from bpsd_adapters.transports.settings import SshSettings, hops
from bpsd_adapters.transports.shellfiles import ShellFiles

MAX_CHANNELS = 8
"""Channels on one connection, the one for files included (OpenSSH's servers allow 10)."""

RECONNECT_MIN_S = 1.0
RECONNECT_MAX_S = 60.0
SFTP_START_S = 10.0
"""How long SFTP may take to start; then files are read and written by shell commands."""

_GRACE_S = 3.0
"""How long after a command's deadline on the host its answer is waited for."""

_CHUNK_BYTES = 256 * 1024
_PIECE_BYTES = 256 * 1024
"""What one request for a piece of a file asks for (OpenSSH's servers give at most that)."""

_TIMED_OUT = 124
_KILLED = 137
_NO_PROGRAM = (126, 127)
_BROKEN = (asyncssh.ConnectionLost, asyncssh.DisconnectError, asyncssh.ChannelOpenError, OSError)


class SshTransport(Transport):
    """Programs and files of another machine.

    Parameters
    ----------
    settings : `SshSettings`
        Transports with the same settings share one connection.
    environment : `~collections.abc.Mapping`
        Variables set for every program.
    path : `~collections.abc.Sequence` [`str`]
        Folders in which programs are looked for before the ``PATH`` there.
    """

    shares_files: ClassVar[bool] = False

    def __init__(
        self, settings: SshSettings, environment: Mapping[str, str] | None = None, path: Sequence[str] = ()
    ) -> None:
        self._settings = settings
        self._environment = dict(environment or {})
        self._path = tuple(path)
        self._link: _Link | None = None
        self._shell_files = ShellFiles(self._file_script, settings.host)

    async def __aenter__(self) -> Self:
        link = _LINKS.get(self._settings)
        if link is None:
            link = _LINKS[self._settings] = _Link(self._settings)
        link.users += 1
        self._link = link
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        link, self._link = self._link, None
        assert link is not None
        link.users -= 1
        if link.users == 0:
            _LINKS.pop(self._settings, None)
            with anyio.CancelScope(shield=True):
                await link.close()

    @property
    def host(self) -> str:
        """The host's name as the settings have it."""
        return self._settings.host

    @property
    def link(self) -> _Link:
        """The connection, while the transport is open."""
        assert self._link is not None, "the transport is not open"
        return self._link

    def login_script(self, argv: Sequence[str], deadline_s: float | None, cwd: str | None) -> LoginScript:
        """How to run a program there: under ``timeout`` if there is a deadline."""
        whole_s = None if deadline_s is None else max(1, math.ceil(deadline_s))
        return login_script(argv, environment=self._environment, path=self._path, cwd=cwd, deadline_s=whole_s)

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
        script = self.login_script(argv, deadline_s, cwd)
        began = time.monotonic()
        try:
            with anyio.fail_after(deadline_s + _GRACE_S):
                async with self.link.channel():
                    began = time.monotonic()
                    done = self._checked(await self._run(script, argv, input, max_output_bytes), script.mark)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"{argv[0]} on {self.host} did not end within {deadline_s:g} s") from exc
        if done.returncode in (_TIMED_OUT, _KILLED) and time.monotonic() - began >= deadline_s:
            raise DeadlineExceeded(f"{argv[0]} on {self.host} did not end within {deadline_s:g} s")
        if done.returncode in _NO_PROGRAM and done.stderr.startswith((b"env:", b"timeout:", b"/bin/sh:", b"sh:")):
            raise CommandMissing(
                f"{argv[0]} cannot be run on {self.host}: {done.error_text}",
                advice="install it there, or tell where it is in the backend's settings",
            )
        return done

    def _checked(self, done: Completed, mark: bytes) -> Completed:
        """What the program itself printed, without what startup files of the account printed before it."""
        out, err = after_mark(done.stdout, mark), after_mark(done.stderr, mark)
        if out is None or err is None:
            said = done.error_text or f"exit code {done.returncode}, no word of why"
            raise ShellFailed(
                f"the login shell of the account on {self.host} did not run {done.argv[0]}: {said}",
                advice="log in there and see what the startup files of its shell do when no terminal is there",
            )
        return done._replace(stdout=out, stderr=err)

    async def _run(self, script: LoginScript, argv: Sequence[str], input: bytes, limit: int) -> Completed:
        """Run it; once more if the connection turns out to be dead before anything was asked on it."""
        whole = script.script + input
        try:
            return await _run(await self.link.connected(), script.line, argv, whole, limit)
        except _NotBegun:
            return await _run(await self.link.connected(), script.line, argv, whole, limit)

    async def converse(self, argv: Sequence[str]) -> Channel:
        """See `Transport.converse`. It has one of the connection's channels until its end."""
        script = self.login_script(argv, None, None)
        link, borrower = self.link, object()
        try:
            with anyio.fail_after(self._settings.connect_timeout_s):
                await link.limiter.acquire_on_behalf_of(borrower)
        except TimeoutError as exc:
            raise Unreachable(f"all {MAX_CHANNELS} channels to {self.host} are in use") from exc
        try:
            try:
                process = await (await link.connected()).create_process(script.line, encoding=None)
            except asyncssh.ChannelOpenError:  # it was dead before anything was asked on it
                process = await (await link.connected()).create_process(script.line, encoding=None)
            process.stdin.write(script.script)
        except BaseException as exc:
            link.limiter.release_on_behalf_of(borrower)
            if isinstance(exc, _BROKEN):
                raise Unreachable(f"the connection to run {argv[0]} could not be used: {exc}") from exc
            raise
        return _SshChannel(process, argv[0], script.mark, lambda: link.limiter.release_on_behalf_of(borrower))

    async def stat(self, path: str) -> FileInfo | None:
        """See `Transport.stat`."""
        if await self._without_sftp():
            return await self._shell_files.stat(path)
        try:
            async with self._files() as sftp:
                found = await sftp.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileInfo(found.size or 0, float(found.mtime or 0), modes.S_ISDIR(found.permissions or 0))

    async def read(self, path: str, offset: int, limit: int) -> bytes:
        """See `Transport.read`."""
        if await self._without_sftp():
            return await self._shell_files.read(path, offset, limit)
        # One request at a time: of several at once, those that a broken connection takes along are nobody's to await.
        async with self._files() as sftp, sftp.open(path, "rb", block_size=0) as file:
            data = bytearray()
            while len(data) < limit:
                piece = await file.read(min(_PIECE_BYTES, limit - len(data)), offset + len(data))
                if not piece:
                    break
                data += piece
            return bytes(data)

    async def write(self, path: str, data: bytes) -> None:
        """See `Transport.write`."""
        if await self._without_sftp():
            await self._shell_files.write(path, data)
            return
        half = f"{path}.{uuid.uuid4().hex[:8]}.part"
        async with self._files() as sftp:
            async with sftp.open(half, "wb") as file:
                await file.write(data)
            await sftp.posix_rename(half, path)

    async def listdir(self, path: str) -> list[str]:
        """See `Transport.listdir`."""
        if await self._without_sftp():
            return await self._shell_files.listdir(path)
        try:
            async with self._files() as sftp:
                names = await sftp.listdir(path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(str(name) for name in names if name not in (".", ".."))

    async def _without_sftp(self) -> bool:
        """Whether files are to be had by shell commands alone, since SFTP does not work on this connection."""
        if not self.link.sftp_works:
            return True
        try:
            with anyio.fail_after(SFTP_START_S):
                await self.link.sftp()
        except (asyncssh.SFTPError, asyncssh.ChannelOpenError, TimeoutError) as exc:
            if isinstance(exc, (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection)) and self.link.is_broken:
                return False  # not the server's fault: who asks next makes the connection again, or says why not
            self.link.sftp_works = False
            return True
        return False

    async def _file_script(self, script: str, arguments: tuple[str, ...], input: bytes) -> Completed:
        deadline_s = self._settings.connect_timeout_s + 30.0
        return await self.run(["sh", "-c", script, "sh", *arguments], deadline_s=deadline_s, input=input)

    @contextlib.asynccontextmanager
    async def _files(self) -> AsyncIterator[Any]:
        try:
            with anyio.fail_after(self._settings.connect_timeout_s + 30.0):
                yield await self.link.sftp()
        except asyncssh.SFTPNoSuchFile as exc:
            raise FileNotFoundError(str(exc)) from exc
        except asyncssh.SFTPPermissionDenied as exc:
            raise PermissionError(str(exc)) from exc
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as exc:
            await self.link.forget_sftp()
            raise Unreachable(f"the connection to {self.host} broke while its files were used: {exc}") from exc
        except asyncssh.SFTPError as exc:
            raise OSError(f"{self.host}: {exc}") from exc
        except TimeoutError as exc:
            raise DeadlineExceeded(f"{self.host} did not answer in time about its files") from exc
        except (asyncssh.ConnectionLost, asyncssh.DisconnectError, asyncssh.ChannelOpenError) as exc:
            await self.link.forget_sftp()
            raise Unreachable(f"the connection to {self.host} broke while its files were used: {exc}") from exc


class _SshChannel(Channel):
    """A process of the other machine."""

    def __init__(self, process: Any, program: str, mark: bytes, release: Callable[[], None]) -> None:
        self._process, self._program, self._release = process, program, release
        self._mark: bytes | None = mark
        """What is to be printed before the program's own output; `None` once it was."""

        self._open = True
        self._said = ""

    async def send(self, data: bytes) -> None:
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except _BROKEN as exc:
            raise Unreachable(f"{self._program} has ended, or the connection to it broke") from exc

    async def receive(self) -> bytes:
        before = b""
        try:
            while data := await self._process.stdout.read(_CHUNK_BYTES):
                if self._mark is None:
                    return bytes(data)
                before = (before + data)[-MAX_OUTPUT_BYTES:]
                rest = after_mark(before, self._mark)
                if rest is not None:
                    self._mark = None
                    if rest:
                        return rest
        except _BROKEN:
            pass
        return b""

    async def end(self) -> str:
        if not self._open:
            return self._said
        self._open = False
        with anyio.CancelScope(shield=True), contextlib.suppress(asyncssh.Error, OSError):
            with anyio.move_on_after(1.0):
                said = await self._process.stderr.read(_CHUNK_BYTES) if self._process.stdout.at_eof() else b""
                self._said = " ".join(said.decode(errors="replace").split())[-STDERR_CHARS:]
            self._process.send_signal("KILL")
            self._process.close()
        self._release()
        return self._said


class _NotBegun(Unreachable):
    """The connection was dead before the command could be asked for."""


class _Link:
    """One connection, made when it is wanted and made again when it broke."""

    def __init__(self, settings: SshSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.users = 0
        self.connects = 0
        self.sftp_works = True
        self._clock = clock
        self.limiter = anyio.CapacityLimiter(MAX_CHANNELS - 1)
        self._lock = anyio.Lock()
        self._connection: Any = None
        self._sftp: Any = None
        self._failures = 0
        self._not_before = 0.0
        self._why = ""

    def __repr__(self) -> str:
        state = "connected" if self._connection is not None else f"not connected ({self._why or 'not yet tried'})"
        return f"<_Link to {self.settings.host}, {state}, {self.users} users>"

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[None]:
        """The right to one channel."""
        async with self.limiter:
            yield

    async def sftp(self) -> Any:
        """The one client for files; it takes many requests at once."""
        connection = await self.connected()
        async with self._lock:
            if self._sftp is None:
                self._sftp = await connection.start_sftp_client()
            return self._sftp

    @property
    def is_broken(self) -> bool:
        """Whether there is no connection now."""
        return self._connection is None or bool(self._connection.is_closed())

    async def forget_sftp(self) -> None:
        """Take a new client for files next time."""
        self._sftp = None

    async def close(self) -> None:
        """Close the connection, at most 2 s politely."""
        connection, self._connection, self._sftp = self._connection, None, None
        if connection is not None:
            connection.close()
            with anyio.move_on_after(2.0):
                await connection.wait_closed()
            connection.abort()

    async def connected(self) -> Any:
        """The connection, made if need be."""
        async with self._lock:
            if self._connection is not None and not self._connection.is_closed():
                return self._connection
            self._connection = self._sftp = None
            wait = self._not_before - self._clock()
            if wait > 0 and self._failures:
                raise Unreachable(
                    f"{self.settings.host} could not be reached ({self._why}); tried again in {wait:.0f} s"
                )
            await anyio.sleep(max(0.0, wait))
            try:
                self._connection = await self._connect()
            except Exception as exc:
                self._failures += 1
                self._why = str(exc)
                pause = min(RECONNECT_MAX_S, RECONNECT_MIN_S * 2 ** min(self._failures, 10))
                self._not_before = self._clock() + pause * random.uniform(0.5, 1.0)  # noqa: S311  # spreads, no secret
                raise
            self.connects += 1
            self.sftp_works = True
            self._failures = 0
            self._not_before = self._clock() + RECONNECT_MIN_S
            return self._connection

    async def _connect(self) -> Any:
        """To the host itself, or hop by hop: each connection carries the next, and is closed with it."""
        connection: Any = None
        try:
            for hop in hops(self.settings):
                next_one = await _to_hop(hop, connection)
                if connection is not None:
                    next_one.set_tunnel(connection)
                connection = next_one
        except BaseException:
            if connection is not None:
                connection.abort()
            raise
        return connection


OPTION_THREADS = 4
"""Threads that read keys and configuration files at the same time, over all hosts."""

_threads: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("bpsd_ssh_option_threads")

_LINKS: dict[SshSettings, _Link] = {}
"""The open connections of this process; there is one event loop in it."""


async def _to_hop(settings: SshSettings, tunnel: Any) -> Any:
    try:
        with anyio.fail_after(settings.connect_timeout_s):
            # It reads files, and may ask the name service: what does not answer is left in its thread.
            options, config = await anyio.to_thread.run_sync(
                _options, settings, abandon_on_cancel=True, limiter=_option_threads()
            )
            # With the options, the configuration is told once more: for the ProxyJump hosts that it names.
            return await asyncssh.connect(
                settings.host, options=options, tunnel=() if tunnel is None else tunnel, config=config
            )
    except asyncssh.HostKeyNotVerifiable as exc:
        raise HostKeyRefused(
            f"the key of {settings.host} is not the one that is known: {exc.reason}",
            advice="if the host has a new key, learn it from its administrator and put it into known_hosts",
        ) from exc
    except (asyncssh.PermissionDenied, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as exc:
        raise LoginRefused(
            f"{settings.host} does not let us in: {exc}",
            advice="check user and key, load the key into the agent, or renew the certificate",
        ) from exc
    except TimeoutError as exc:
        raise Unreachable(f"{settings.host} did not answer within {settings.connect_timeout_s:g} s") from exc
    except (KeyError, RuntimeError) as exc:  # of the lookup of our own name and home
        raise Unreachable(
            f"cannot prepare the connection to {settings.host}: user {os.getuid()} has no entry in the user database",
            advice="set HOME and USER for the daemon, and ssh.user, ssh.keys and ssh.known_hosts of the backend",
        ) from exc
    except (asyncssh.Error, OSError) as exc:
        raise Unreachable(f"{settings.host} cannot be reached: {exc}") from exc


def _option_threads() -> anyio.CapacityLimiter:
    """The threads that read such files: one that a dead file system keeps must not take the place of others' work."""
    try:
        return _threads.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(OPTION_THREADS)
        _threads.set(limiter)
        return limiter


def _options(settings: SshSettings) -> tuple[Any, Any]:
    """Read keys, known hosts and configuration files (which blocks: in a thread); returns the last apart too."""
    config: Any = () if settings.config is None else [expanded(settings.config)]
    chosen: dict[str, Any] = {
        "keepalive_interval": settings.keepalive_s,
        "keepalive_count_max": 3,
        # Ads and event logs shrink to a tenth.
        "compression_algs": ["zlib@openssh.com", "none"],
        "login_timeout": settings.connect_timeout_s,
        "connect_timeout": settings.connect_timeout_s,
    }
    if settings.port is not None:
        chosen["port"] = settings.port
    if settings.user is not None:
        chosen["username"] = settings.user
    if settings.keys:
        chosen["client_keys"] = [expanded(key) for key in settings.keys]
    if settings.certificates:
        chosen["client_certs"] = [expanded(name) for name in settings.certificates]
    if settings.known_hosts is not None:
        chosen["known_hosts"] = asyncssh.read_known_hosts(expanded(settings.known_hosts))
    if settings.config is not None:
        chosen["config"] = config
    return asyncssh.SSHClientConnectionOptions(host=settings.host, **chosen), config


async def _run(connection: Any, line: str, argv: Sequence[str], input: bytes, limit: int) -> Completed:
    try:
        process = await connection.create_process(line, encoding=None)
    except asyncssh.ChannelOpenError as exc:
        raise _NotBegun(f"the connection to run {argv[0]} was lost: {exc}") from exc
    except _BROKEN as exc:
        raise Unreachable(f"the connection to run {argv[0]} could not be used: {exc}") from exc
    out, err = bytearray(), bytearray()
    finished = False
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_feed, process, input)
            group.start_soon(_drain, process.stderr, err, limit)
            await _drain(process.stdout, out, limit)
        await process.wait_closed()
        finished = True
    except* OutputTooLarge:
        raise OutputTooLarge(f"{argv[0]} printed more than {limit} bytes and was ended") from None
    except* _BROKEN as group_exc:
        raise Unreachable(f"the connection broke while {argv[0]} ran: {group_exc.exceptions[0]}") from group_exc
    finally:
        if not finished:
            with contextlib.suppress(asyncssh.Error, OSError):
                process.send_signal("KILL")
            process.close()
    status = process.returncode
    if status is None:
        raise Unreachable(f"the connection broke while {argv[0]} ran: its return code is not known")
    return Completed(tuple(argv), status, bytes(out), bytes(err))


async def _feed(process: Any, data: bytes) -> None:
    try:
        if data:
            process.stdin.write(data)
            await process.stdin.drain()
        process.stdin.write_eof()
    except (BrokenPipeError, ConnectionResetError):
        pass  # it did not want it all: its return code tells whether that matters


async def _drain(stream: Any, into: bytearray, limit: int) -> None:
    while chunk := await stream.read(_CHUNK_BYTES):
        into += chunk
        if len(into) > limit:
            raise OutputTooLarge("more than was allowed")
