"""The process of an agent: ``python -P -m bpsd_adapters.local.agent SETTINGS``, as the user whose runs these are.

It is a local backend of that one user, asked over the socket that is its stdin (see `bpsd_adapters.local.agentwire`).
It ends when nobody is at the other end any more; the drivers that it launched go on.
"""

from __future__ import annotations

__all__ = ["Agent", "main"]

import asyncio
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from bpsd.errors import BackendUnavailable, BpsdError, StorageError
from bpsd.interface import ServiceContext, WmsWorkflow
from bpsd.logs import get_logger
from bpsd.models import PollRequest
from bpsd.workflow import WorkflowFile
from bpsd_adapters.local.agentwire import (
    CALLS,
    MAX_LINE_BYTES,
    AgentSettings,
    Ask,
    Chunk,
    Named,
    OutputOrder,
    Prepared,
    Restart,
    Tell,
    TokenOrder,
    trouble_of,
)
from bpsd_adapters.local.ledgerfile import ledger_in
from bpsd_adapters.local.service import LocalConfig, LocalService

T = TypeVar("T")

JOBS_PER_POLL = 2_000
"""How many observations of jobs go over at once: the daemon decodes them, and its loop has to wait for that."""

_OF_THE_UNIT = ("INVOCATION_ID", "JOURNAL_STREAM", "STATE_DIRECTORY", "SYSTEMD_EXEC_PID")
"""What systemd tells a service of itself (systemd.exec(5))."""


class _Local(LocalService):
    """The local backend of one user, in a unit of systemd's that is that user's already."""

    jobs_per_poll = JOBS_PER_POLL
    makes_scopes = False


class Agent:
    """Answers requests until its socket ends.

    Parameters
    ----------
    service : `LocalService`
        Whom to ask.
    incoming : `~pathlib.Path`
        A folder for documents that are on their way.
    """

    def __init__(self, service: LocalService, incoming: Path) -> None:
        self._service, self._incoming = service, incoming
        self._writer: asyncio.StreamWriter | None = None
        self._calls: Mapping[str, Callable[[Any], Awaitable[object]]] = {
            "receive": self._receive,
            "check": self._check,
            "prepare": self._prepare,
            "submit": self._submit,
            "restart": self._restart,
            "cancel": self._cancel,
            "hold": self._hold,
            "release": self._release,
            "expect": self._expect,
            "find": self._find,
            "read": self._read,
            "poll": self._poll,
        }

    async def serve(self, link: socket.socket) -> None:
        """Answer, each request as a task."""
        reader, self._writer = await asyncio.open_unix_connection(sock=link, limit=MAX_LINE_BYTES)
        self._tell(Tell(hello=True))
        async with anyio.create_task_group() as tasks:
            with suppress(OSError):  # the daemon is gone
                while line := await reader.readline():
                    tasks.start_soon(self._answer, msgspec.json.decode(line, type=Ask))
            tasks.cancel_scope.cancel()

    def wake(self, reason: str) -> None:
        """Tell the daemon that a poll is worth while."""
        self._tell(Tell(wake=reason))

    def _tell(self, message: Tell) -> None:
        if self._writer is not None:
            self._writer.write(msgspec.json.encode(message) + b"\n")

    async def _answer(self, ask: Ask) -> None:
        try:
            args = msgspec.json.decode(ask.args, type=CALLS[ask.call][0])
            result = await self._calls[ask.call](args)
            answer = Tell(id=ask.id, result=msgspec.Raw(msgspec.json.encode(result)))
        except BpsdError as exc:
            answer = Tell(id=ask.id, error=trouble_of(exc))
        except Exception as exc:  # noqa: BLE001  # the boundary: a mistake of ours is an answer too, and the rest goes on
            answer = Tell(id=ask.id, error=trouble_of(BackendUnavailable(f"{ask.call} broke: {exc!r}")))
        self._tell(answer)

    # -- calls -------------------------------------------------------------------------------------------------------

    async def _receive(self, chunk: Chunk) -> None:
        try:
            await anyio.to_thread.run_sync(_write_at, self._incoming / chunk.token, chunk)
        except OSError as exc:
            raise StorageError(f"the workflow cannot be written to {self._incoming}: {exc.strerror}") from exc

    async def _check(self, workflow: WorkflowFile) -> None:
        await self._with_document(self._service.check_workflow, workflow)

    async def _with_document(
        self, ask: Callable[[Mapping[str, Any], WorkflowFile], Awaitable[T]], run: WorkflowFile
    ) -> T:
        """Ask about a workflow whose document has come; it is gone afterwards."""
        document = self._incoming / run.token
        try:
            return await ask({}, msgspec.structs.replace(run, path=str(document)))
        finally:
            await anyio.to_thread.run_sync(document.unlink, True)

    async def _prepare(self, workflow: WorkflowFile) -> Prepared:
        done = await self._with_document(self._service.prepare, workflow)
        return Prepared(done.name, done.token, done.submit_path, done.data["wms_id"])

    async def _submit(self, run: Prepared) -> str:
        workflow = WmsWorkflow(run.name, run.token, run.path, data={"wms_id": run.wms_id})
        await self._service.submit(workflow)
        return run.wms_id

    async def _restart(self, run: Restart) -> tuple[str | None, str | None, str]:
        return await self._service.restart(run.wms_id, attempt_token=run.attempt_token)

    async def _cancel(self, run: Named) -> tuple[bool, str]:
        return await self._service.cancel(run.wms_id)

    async def _hold(self, run: Named) -> tuple[bool, str]:
        return await self._service.hold(run.wms_id)

    async def _release(self, run: Named) -> tuple[bool, str]:
        return await self._service.release(run.wms_id)

    async def _expect(self, run: Named) -> None:
        self._service.expect(run.wms_id)

    async def _find(self, order: TokenOrder) -> object:
        return await self._service.find_by_token(order.token, order.since)

    async def _read(self, order: OutputOrder) -> object:
        return await self._service.read_output(order.wms_id, order.job, order.stream, order.offset, order.limit)

    async def _poll(self, request: PollRequest) -> object:
        return await self._service.poll(request)


def _write_at(path: Path, chunk: Chunk) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("r+b" if chunk.offset else "wb") as file:
        file.seek(chunk.offset)
        file.write(chunk.data)


async def _run(settings: AgentSettings) -> None:
    own = Path(os.environ["STATE_DIRECTORY"])
    folder = own / settings.folder
    for name in _OF_THE_UNIT:  # jobs inherit the rest
        os.environ.pop(name, None)
    config = msgspec.structs.replace(msgspec.convert(settings.config, LocalConfig), ledger=str(ledger_in(own)))
    if config.run_dir is not None:
        config = msgspec.structs.replace(config, run_dir=f"{config.run_dir}/{os.getuid()}")
    link = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # who started us reads our last words until we say hello, and none after
        os.dup2(nothing, fd)
    agents: list[Agent] = []
    async with anyio.create_task_group() as tasks:
        context = ServiceContext(
            backend=settings.backend,
            state_dir=folder,
            log=get_logger(),
            clock=time.time,
            wake=lambda reason: agents[0].wake(reason),
            task_group=tasks,
        )
        service = _Local(config, context)
        agents.append(Agent(service, folder / "incoming"))
        async with service:
            await agents[0].serve(link)
        tasks.cancel_scope.cancel()


def main(arguments: list[str]) -> int:
    """Serve until the socket ends."""
    anyio.run(_run, msgspec.json.decode(arguments[0], type=AgentSettings))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
