"""Agents as the daemon sees them: started as services of another user, asked over a socket, let go by closing it."""

from __future__ import annotations

__all__ = ["AgentLink", "start_agent"]

import asyncio
import itertools
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import Process, TaskGroup

from bpsd.errors import BackendUnavailable
from bpsd.processes import start_process
from bpsd_adapters.local.agentwire import CALLS, MAX_LINE_BYTES, Ask, Tell, error_of

START_WAIT_S = 30.0
"""How long an agent may take to say hello."""

_COMPLAINT_MAX_BYTES = 500


class _Slot:
    """Where an answer is waited for."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.answer: Tell | None = None


class AgentLink:
    """The way to one agent.

    Parameters
    ----------
    name : `str`
        Its unit.
    woken : callable
        Told when the agent says that something happened.
    """

    def __init__(self, name: str, woken: Callable[[str], None]) -> None:
        self.name = name
        self.broken = False
        """Whether it can be asked no more."""
        self._woken = woken
        self._ids = itertools.count(1)
        self._slots: dict[int, _Slot] = {}
        self._hello = anyio.Event()
        self._writer: asyncio.StreamWriter | None = None

    def __repr__(self) -> str:
        return f"<AgentLink {self.name} {'broken' if self.broken else f'{len(self._slots)} calls'}>"

    async def call(self, name: str, args: msgspec.Struct) -> Any:
        """Ask, and wait for the answer.

        Raises
        ------
        BackendUnavailable
            If the agent ended first: nobody knows whether it did what was asked.
        BpsdError
            What it answered.
        """
        if self.broken or self._writer is None:
            raise self._gone(name)
        id_, slot = next(self._ids), _Slot()
        self._slots[id_] = slot
        try:
            self._writer.write(msgspec.json.encode(Ask(id_, name, msgspec.Raw(msgspec.json.encode(args)))) + b"\n")
            await self._writer.drain()
            await slot.done.wait()
        except OSError as exc:
            raise self._gone(name) from exc
        finally:
            del self._slots[id_]
        answer = slot.answer
        if answer is None:
            raise self._gone(name)
        if answer.error is not None:
            raise error_of(answer.error)
        try:
            return await anyio.to_thread.run_sync(_decoded, answer.result, CALLS[name][1])
        except msgspec.MsgspecError as exc:
            raise BackendUnavailable(f"{self.name} answered {name} with what makes no sense: {exc}") from exc

    def close(self) -> None:
        """Let the agent go: it ends, what it launched goes on."""
        self.broken = True
        if self._writer is not None:
            self._writer.close()

    async def listen(self, link: socket.socket) -> None:
        """Take what the agent says until it ends, or says what cannot be."""
        reader, self._writer = await asyncio.open_unix_connection(sock=link, limit=MAX_LINE_BYTES)
        try:
            while line := await reader.readline():
                self._heard(msgspec.json.decode(line, type=Tell))
        except (OSError, ValueError):  # too long a line, or none of ours: it is a process of somebody else's
            pass
        finally:
            self.close()
            self._hello.set()
            for slot in self._slots.values():
                slot.done.set()

    async def greeted(self) -> bool:
        """Wait until the agent has said hello, or ended; whether it did."""
        await self._hello.wait()
        return not self.broken

    def _heard(self, told: Tell) -> None:
        if told.hello:
            self._hello.set()
        elif told.id is None:
            self._woken(told.wake[:100])
        elif (slot := self._slots.get(told.id)) is not None:
            slot.answer = told
            slot.done.set()

    def _gone(self, name: str) -> BackendUnavailable:
        return BackendUnavailable(
            f"{self.name} ended before it had answered {name}", advice=f"`systemctl status {self.name}` may tell more"
        )


def _decoded(raw: msgspec.Raw, type_: Any) -> Any:
    return msgspec.json.decode(raw, type=type_)


async def start_agent(command: Sequence[str], name: str, tasks: TaskGroup, woken: Callable[[str], None]) -> AgentLink:
    """Start an agent; it has said hello when this returns.

    Parameters
    ----------
    command : `~collections.abc.Sequence` [`str`]
        Starts it with our end of a socket as its stdin (`bpsd_adapters.local.units.service_command`).
    name : `str`
        Its unit.
    tasks : `~anyio.abc.TaskGroup`
        Where it is listened to.
    woken : callable
        Told when the agent says that something happened.

    Raises
    ------
    BackendUnavailable
        If it did not come to life; nothing of it runs then.
    """
    ours, theirs = socket.socketpair()
    agent = AgentLink(name, woken)
    try:
        with theirs:
            process = await start_process(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
    except OSError as exc:
        ours.close()
        raise BackendUnavailable(
            f"{command[0]} cannot be run: {exc.strerror}", advice="run_as: submitter needs a host with systemd"
        ) from exc
    tasks.start_soon(agent.listen, ours, name=f"agent {name}")
    said = bytearray()
    alive = False
    try:
        async with anyio.create_task_group() as beside:
            beside.start_soon(_last_words, process, said, agent)
            with anyio.move_on_after(START_WAIT_S):
                alive = await agent.greeted()
            beside.cancel_scope.cancel()
    finally:
        # It would only wait for the service to end, with a copy of the agent's end of the socket.
        with anyio.CancelScope(shield=True):
            await _end(process)
    if alive:
        return agent
    agent.close()
    words = " ".join(said.decode(errors="replace").split())
    units = f"{name.rpartition('-')[0]}-*"  # the same words at each try: what repeats itself is shown once
    raise BackendUnavailable(
        f"the service {units} did not start: {words or f'no sign of life within {START_WAIT_S:g} s'}",
        advice="`bpsd install --system --run-as-submitter` brings the rule that allows it; "
        f"`journalctl -u '{units}'` may tell more",
    )


async def _last_words(process: Process, said: bytearray, agent: AgentLink) -> None:
    """Read what is said of a service that does not start; nobody listens at its end of the socket then."""
    assert process.stderr is not None
    async for chunk in process.stderr:
        said += chunk
        del said[:-_COMPLAINT_MAX_BYTES]
    await process.wait()
    agent.close()


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
    await process.aclose()
