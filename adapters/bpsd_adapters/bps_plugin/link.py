"""The daemon's end of a control worker: start it, ask it, end it when it does not answer."""

from __future__ import annotations

__all__ = ["Deployment", "WorkerError", "WorkerLink"]

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from bpsd.errors import BackendUnavailable, BpsdError, DeadlineExceeded
from bpsd.logs import LogEvent
from bpsd_adapters.transports.base import Channel, Transport

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""The longest line that is taken from a worker (a report of a million jobs is about 100 MB)."""

DEPLOY_DEADLINE_S = 60.0

_OF_THE_PLUGIN = frozenset({"plugin", "prepare", "submit", "restart"})
"""Calls that need the plugin; to import it takes seconds, and has a deadline of its own."""

_START = (
    'exec env -i HOME="$HOME" USER="${USER:-$(id -un)}" LOGNAME="${LOGNAME:-$(id -un)}" LANG=C.UTF-8 '
    'PATH=/usr/local/bin:/usr/bin:/bin "$@"'
)
"""A shell line: only the backend's own environment, and who we are on that host."""


class WorkerError(BackendUnavailable):
    """The plugin answered with an exception: ``kind`` is its class, ``trace`` where it came from."""

    def __init__(self, message: str, kind: str, text: str, trace: str) -> None:
        super().__init__(message, plugin_error=kind)
        self.kind, self.text, self.trace = kind, text, trace


class Deployment:
    """Our files on the plugin's host, in a folder named after their content."""

    FILES: ClassVar[Mapping[str, tuple[str, str]]] = {
        "bpsd_worker.py": ("bpsd_adapters.bps_plugin", "worker.py"),
        "bpsd_plugin.py": ("bpsd_adapters.bps_plugin", "plugin.py"),
        "bpsd_host.py": ("bpsd_adapters.bps_plugin", "host.py"),
        "bpsd_jobs.py": ("bpsd_adapters.bps_plugin", "jobs.py"),
        "bpsd_convert.py": ("bpsd.lsst", "convert.py"),
        "bpsd_processes.py": ("bpsd_adapters.local", "processes.py"),
    }

    def __init__(self, transport: Transport, submit_root: str, seen: Path) -> None:
        self._transport = transport
        self._root, self._seen = submit_root, seen
        self.root = ""
        self.folder = ""

    async def ensure(self) -> None:
        """Put the files where they belong, unless that was done; then ``root`` and ``folder`` are absolute paths.

        Raises
        ------
        BackendUnavailable
            If the folder of the runs was there once and is not: an empty one in its place would deny every run.
        """
        if self.folder:
            return
        files = await anyio.to_thread.run_sync(_contents)
        digest = hashlib.sha256(b"".join(files.values())).hexdigest()[:16]
        before = await anyio.to_thread.run_sync(_read_or_empty, self._seen)
        known = "known" if before == self._root else "new"
        done = await self._transport.run(
            ["/bin/sh", "-c", _DEPLOY, "sh", self._root, digest, known], deadline_s=DEPLOY_DEADLINE_S
        )
        if done.returncode == _NOT_THERE:
            raise BackendUnavailable(
                f"{self._root} on {self._transport.host} is not there, or not what it was",
                advice=f"is its file system mounted? If the runs in it are gone for good, remove {self._seen}",
            )
        self.root = done.check(self._transport.host).stdout.decode().strip()
        folder = f"{self.root}/.bpsd/{digest}"
        for name, data in files.items():
            if await self._transport.stat(f"{folder}/{name}") is None:
                await self._transport.write(f"{folder}/{name}", data)
        await anyio.to_thread.run_sync(self._seen.write_text, self._root)
        self.folder = folder


_NOT_THERE = 66

_DEPLOY = f"""
case "$1" in "~/"*) r="$HOME/${{1#"~/"}}";; *) r="$1";; esac
[ "$3" = new ] || [ -d "$r/.bpsd" ] || exit {_NOT_THERE}
mkdir -p "$r/.bpsd/$2" && cd "$r" && pwd
"""


def _read_or_empty(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _contents() -> dict[str, bytes]:
    return {
        name: resources.files(package).joinpath(file).read_bytes() for name, (package, file) in Deployment.FILES.items()
    }


@dataclass(slots=True)
class _Start:
    """A start that is under way, and what came of it."""

    over: anyio.Event
    error: BaseException | None = None


class WorkerLink:
    """One control worker, started when it is first asked and again after it was ended.

    Parameters
    ----------
    purpose : `str`
        For messages: what it is asked for.
    deployment : `Deployment`
        Where our files are.
    transport : `~bpsd_adapters.transports.base.Transport`
        The way to its host.
    python : `str`
        Its interpreter.
    environment : `~collections.abc.Mapping`
        All that the plugin finds in its environment.
    order : `~collections.abc.Mapping`
        What the worker is to load.
    start_deadline_s : `float`
        How long that may take.
    log : logger
        Where what the plugin prints goes.
    group : `~anyio.abc.TaskGroup`
        Where it is started: to import a plugin may take longer than who asks can wait, and is done once.
    """

    def __init__(
        self,
        purpose: str,
        deployment: Deployment,
        transport: Transport,
        python: str,
        environment: Mapping[str, str],
        order: Mapping[str, Any],
        start_deadline_s: float,
        log: Any,
        group: TaskGroup,
    ) -> None:
        self.purpose = purpose
        self.facts: dict[str, Any] = {}
        self._deployment, self._transport = deployment, transport
        self._python, self._environment, self._order = python, dict(environment), dict(order)
        self._start_deadline_s, self._log, self._group = start_deadline_s, log, group
        self._starting: _Start | None = None
        self._lock = anyio.Lock()
        self._channel: Channel | None = None
        self._buffer = bytearray()
        self._number = 0
        self._last_asked = time.monotonic()

    def __repr__(self) -> str:
        state = f"pid {self.facts.get('pid')}" if self._channel is not None else "not running"
        return f"<WorkerLink for {self.purpose}, {state}>"

    async def ask(self, call: str, deadline_s: float, **arguments: Any) -> Any:
        """Ask the worker. When it does not answer in time, or nobody waits any more, its process is ended.

        Raises
        ------
        WorkerError
            If the plugin raised something.
        DeadlineExceeded, BackendUnavailable
            If there was no answer.
        """
        async with self._lock:
            while not self._is_ready(call):
                await self._started(call)
            self._last_asked = time.monotonic()
            return await self._exchange(call, arguments, deadline_s)

    async def rest(self, idle_s: float) -> None:
        """End the process if it was not asked anything for so long."""
        if self._channel is not None and time.monotonic() - self._last_asked > idle_s and not self._lock.locked():
            async with self._lock:
                await self._end("it was idle")

    async def close(self) -> None:
        """End the process."""
        await self._end("the backend is closed")

    # -- inside ------------------------------------------------------------------------------------------------------

    def _is_ready(self, call: str) -> bool:
        up = self._channel is not None and self._starting is None
        return up and (call not in _OF_THE_PLUGIN or "implements" in self.facts)

    async def _started(self, call: str) -> None:
        """Wait for a start, which goes on if we are not there any more when it is done."""
        if self._starting is None:
            self._starting = _Start(anyio.Event())
            self._group.start_soon(self._start, self._starting, call in _OF_THE_PLUGIN, name=f"start {self!r}")
        start = self._starting
        await start.over.wait()
        if start.error is not None:
            raise start.error

    async def _start(self, start: _Start, with_plugin: bool) -> None:
        try:
            if self._channel is None:
                await self._begin()
            if with_plugin:
                self.facts |= await self._exchange("import", {}, self._start_deadline_s)
                self._log.info(LogEvent.PLUGIN_LOADED, purpose=self.purpose, **self.facts)
        except (BpsdError, OSError) as exc:
            start.error = exc
        finally:
            self._starting = None
            start.over.set()

    async def _begin(self) -> None:
        await self._deployment.ensure()
        variables = [f"{name}={value}" for name, value in sorted(self._environment.items())]
        program = [self._python, "-u", "-X", "utf8", f"{self._deployment.folder}/bpsd_worker.py"]
        self._channel = await self._transport.converse(["/bin/sh", "-c", _START, "sh", *variables, *program])
        self._buffer.clear()
        order = {**self._order, "root": self._deployment.root}
        self.facts = await self._exchange("begin", order, self._start_deadline_s)
        self._log.info(LogEvent.PLUGIN_STARTED, purpose=self.purpose, **self.facts)

    async def _exchange(self, call: str, arguments: Mapping[str, Any], deadline_s: float) -> Any:
        self._number += 1
        request = {"id": self._number, "call": call, "args": arguments}
        answer: dict[str, Any] | None = None
        try:
            with anyio.fail_after(deadline_s):
                assert self._channel is not None
                await self._channel.send(msgspec.json.encode(request) + b"\n")
                answer = await self._answer(self._number)
        except TimeoutError as exc:
            raise DeadlineExceeded(
                f"{self._order['plugin']} on {self._transport.host} did not answer {call} within {deadline_s:g} s; "
                "its process was ended"
            ) from exc
        finally:
            if answer is None:  # what it says next would be the answer to this
                await self._end(f"{call} came to no answer")
        if "error" in answer:
            error = answer["error"]
            if call == "import":  # half of a package may be there: the next try begins anew
                await self._end("it could not import the plugin")
            raise WorkerError(
                f"{self._order['plugin']} on {self._transport.host} failed in {call}: {error['kind']}: {error['text']}",
                error["kind"],
                error["text"],
                error["trace"],
            )
        return answer["ok"]

    async def _answer(self, number: int) -> dict[str, Any]:
        while True:
            line = await self._line()
            try:
                message = msgspec.json.decode(line)
            except msgspec.DecodeError as exc:
                if line.startswith(b'{"id": %d,' % number):  # waiting longer would bring no other answer
                    raise BackendUnavailable(
                        f"the answer of {self._order['plugin']} on {self._transport.host} cannot be read: {exc}"
                    ) from exc
                self._log.info(LogEvent.PLUGIN_SAID, purpose=self.purpose, stream="stdout", text=repr(line[:200]))
                continue
            if "log" in message:
                self._log.info(LogEvent.PLUGIN_SAID, purpose=self.purpose, stream=message["log"], text=message["text"])
            elif message.get("id") == number:
                answer: dict[str, Any] = message
                return answer

    async def _line(self) -> bytes:
        assert self._channel is not None
        at = 0
        while (end := self._buffer.find(b"\n", at)) < 0:
            at = len(self._buffer)
            data = await self._channel.receive()
            if not data:
                said = await self._channel.end()
                what = f"the process of {self._order['plugin']} on {self._transport.host}"
                raise BackendUnavailable(
                    f"{what} ended: {said or 'without a word'}",
                    advice="check `python` and `environment` of the backend, and that the plugin is installed there",
                )
            self._buffer += data
            if len(self._buffer) > MAX_ANSWER_BYTES:
                raise BackendUnavailable(
                    f"{self._order['plugin']} answered with more than {MAX_ANSWER_BYTES} bytes; its process was ended"
                )
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def _end(self, reason: str) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            with anyio.CancelScope(shield=True):
                said = await channel.end()
            self._log.info(LogEvent.PLUGIN_ENDED, purpose=self.purpose, reason=reason, stderr=said)
