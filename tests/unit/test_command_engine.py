"""The engine beside a full disk and an adapter with strange answers: it goes on, and each word is written once."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import msgspec
import pytest
import structlog

from bpsd.cache import Cache
from bpsd.commandlog import CommandRecord, may_follow
from bpsd.commands.engine import CommandEngine
from bpsd.config import Commands
from bpsd.errors import Conflict, Problem, StorageError, WorkflowInvalid
from bpsd.journal import Journal
from bpsd.models import TokenAnswer
from bpsd.poller import Backend


class OneCommand:
    """A journal of one command, with the journal's own rules. ``full``: states that the disk has no room for."""

    def __init__(self, **what: Any) -> None:
        self.command_now = CommandRecord(
            id="c1", run_id="r1", uid=1, pid=1, user="ann", accepted_at=1.0, attempt=1, **what
        )
        self.full: set[str] = set()

    async def unfinished(self) -> Sequence[CommandRecord]:
        return [self.command_now]

    async def command(self, _: str) -> CommandRecord:
        return self.command_now

    async def begin(self, id: str) -> CommandRecord:
        return await self.finish(id, "RUNNING")

    async def note(self, _: str, note: str) -> CommandRecord:
        self.command_now = msgspec.structs.replace(self.command_now, note=note)
        return self.command_now

    async def finish(self, _: str, state: str, **said: Any) -> CommandRecord:
        await anyio.lowlevel.checkpoint()
        before = self.command_now
        if not may_follow(before.state, state):
            raise Conflict(f"the command is {before.state} and cannot become {state}")
        if state in self.full:
            raise StorageError("the disk is full")
        changes = {name: value for name, value in said.items() if value is not None}
        self.command_now = msgspec.structs.replace(before, state=state, **changes)
        return self.command_now


class NoCache:
    """A cache that keeps nothing."""

    def __contains__(self, _: str) -> bool:
        return True

    def get(self, _: str) -> None:
        return None

    async def announce(self, *_: object, **__: object) -> None: ...

    async def note_run(self, *_: object) -> None: ...


class Picky:
    """A backend, and its service, that finds mistakes where there is no document to find them in."""

    name = "picky"
    commands_at_once = 1
    commands_deadline_s = 60.0
    finds_by_token = True
    state_dir = Path("/")

    @property
    def service(self) -> Picky:
        return self

    settings = capabilities = service

    async def find_by_token(self, *_: object) -> TokenAnswer:
        return TokenAnswer(verdict="absent")

    async def restart(self, *_: object, **__: object) -> None:
        raise WorkflowInvalid("step.yaml", [Problem(("jobs", 0), "there is no such program")])


def engine(journal: OneCommand, **backends: Picky) -> CommandEngine:
    async def finished(_: CommandRecord) -> None: ...

    async def place(command: CommandRecord, mistakes: WorkflowInvalid) -> WorkflowInvalid:
        raise LookupError(f"{command.verb} brought no document")

    return CommandEngine(
        journal=cast("Journal", journal),
        cache=cast("Cache", NoCache()),
        backends=cast("dict[str, Backend]", backends),
        settings=Commands(doubt_retry_initial_s=0.1, doubt_retry_max_s=0.1),
        log=structlog.get_logger(),
        clock=lambda: 2.0,
        finished=finished,
        place=place,
    )


@pytest.mark.parametrize(("outcome", "state"), [("done", "DONE"), ("failed", "FAILED")])
async def test_a_persons_word_is_not_written_over_while_the_disk_is_full(outcome: str, state: str) -> None:
    journal = OneCommand(verb="submit", state="IN_DOUBT", backend="gone")
    journal.full = {state}
    made = engine(journal)
    with structlog.testing.capture_logs() as refused:
        async with anyio.create_task_group() as tasks:
            await tasks.start(made.run)
            with anyio.fail_after(60):
                async with anyio.create_task_group() as person:
                    person.start_soon(made.resolve, "c1", outcome, None, "")
                    while len(refused) < 10:  # noqa: ASYNC110 - the pauses between two look-ups end meanwhile
                        await anyio.sleep(0.02)
                    journal.full = set()
                over = await made.wait("c1", 60)
            tasks.cancel_scope.cancel()

    assert (over.state, journal.command_now.state) == (state, state)


async def test_a_restart_in_which_a_backend_finds_mistakes_has_failed() -> None:
    journal = OneCommand(verb="restart", backend="picky", token="t" * 20)
    made = engine(journal, picky=Picky())
    async with anyio.create_task_group() as tasks:
        await tasks.start(made.run)
        with anyio.fail_after(60):
            over = await made.wait("c1", 60)
        tasks.cancel_scope.cancel()

    assert (over.state, over.note.splitlines()[-1]) == ("FAILED", "  step.yaml: jobs[0]: there is no such program")


async def test_a_person_who_says_again_is_heard_though_the_time_of_the_command_is_over() -> None:
    journal = OneCommand(verb="restart", state="IN_DOUBT", backend="gone", expires_at=1.5)
    made = engine(journal)
    async with anyio.create_task_group() as tasks:
        await tasks.start(made.run)
        await made.resolve("c1", "again", None, "")
        with anyio.fail_after(60):
            while "not configured" not in journal.command_now.note:  # noqa: ASYNC110 - until it is to be begun
                await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()

    assert (journal.command_now.state, journal.command_now.expires_at) == ("ACCEPTED", 2.5)


async def test_a_fault_in_one_command_ends_nothing_and_the_command_goes_on() -> None:
    class Faulty(OneCommand):
        async def begin(self, id: str) -> CommandRecord:
            written = await super().begin(id)
            if faults:
                raise faults.pop()
            return written

    faults = [RuntimeError("as if a write had been cancelled that was made")]
    made = engine(Faulty(verb="restart", backend="picky", token="t" * 20), picky=Picky())
    with structlog.testing.capture_logs() as logged:
        async with anyio.create_task_group() as tasks:
            await tasks.start(made.run)
            with anyio.fail_after(60):
                over = await made.wait("c1", 60)
            tasks.cancel_scope.cancel()

    assert over.state == "FAILED"
    assert [entry["event"] for entry in logged] == ["command_broke"]


@pytest.mark.parametrize("full_at", ["prepare", "restart"])
async def test_a_command_that_waits_for_a_full_disk_does_not_expire(full_at: str) -> None:
    """``restart``: the disk is full once the WMS was asked, so that the command is looked up before the next try."""

    class Full(Picky):
        async def restart(self, *_: object, **__: object) -> None:
            tries.append(full_at)
            if len(tries) < 4:
                raise OSError(errno.ENOSPC, "No space left on device", "/")
            await super().restart()

    tries: list[str] = []
    journal = OneCommand(verb="restart", backend="picky", token="t" * 20, expires_at=1000.0)
    if full_at == "prepare":  # it waited before the daemon was started, and its time is over
        journal.command_now = msgspec.structs.replace(
            journal.command_now, note="preparing failed (No space left on device: /)", expires_at=1.5
        )
    made = engine(journal, picky=Full())
    async with anyio.create_task_group() as tasks:
        await tasks.start(made.run)
        with anyio.fail_after(20):
            while not tries:  # noqa: ASYNC110 - until the first try
                await anyio.sleep(0.02)
            journal.command_now = msgspec.structs.replace(journal.command_now, expires_at=1.5)
            over = await made.wait("c1", 60)
        tasks.cancel_scope.cancel()

    assert (over.state, len(tries)) == ("FAILED", 4)
