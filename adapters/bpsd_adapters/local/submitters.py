"""The local backend of a system's daemon: each run is a service of systemd's, as the user who submitted it.

The daemon itself touches nothing of these runs. An agent, one for each user with live runs, reads their logs; another
one, in a unit of the run's own, launches its driver and leaves it there (`bpsd_adapters.local.agent`). So runs outlive
the daemon, and whatever a user does to the files of a run is that user's own loss.

Ids are ``UID-NUMBER``: the number is the user's own count.
"""

from __future__ import annotations

__all__ = ["SubmitterService"]

import math
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread
import msgspec

from bpsd.errors import BackendUnavailable, BpsdError, PermissionDenied, UnsupportedOperation, no_run
from bpsd.interface import Capabilities, OutputPiece, ServiceContext, WmsService, WmsWorkflow
from bpsd.logs import LogEvent
from bpsd.models import KnownRun, PollRequest, PollResult, TokenAnswer
from bpsd.processes import run_process
from bpsd.workflow import WorkflowFile
from bpsd_adapters.driven import umask_of
from bpsd_adapters.local.agents import AgentLink, start_agent
from bpsd_adapters.local.agentwire import (
    CHUNK_BYTES,
    AgentSettings,
    Chunk,
    Named,
    OutputOrder,
    Prepared,
    Restart,
    TokenOrder,
)
from bpsd_adapters.local.checks import capacity_of
from bpsd_adapters.local.fields import FIELDS
from bpsd_adapters.local.ledger import Capacity
from bpsd_adapters.local.observe import LOG, PROCESSES
from bpsd_adapters.local.shares import Share, cursors_of, is_number, renamed, together, watches, whole_id
from bpsd_adapters.local.units import SLICE, limits, service_command, slice_command, unit_name
from bpsd_adapters.usernames import UserNames

if TYPE_CHECKING:
    from bpsd_adapters.local.service import LocalConfig

_OPEN: dict[str, Capacity] = {}
"""What each open backend of this daemon that runs jobs as their submitters has."""

_LIMITED: dict[str, Capacity] = {}
"""What the slice was limited to last."""

IDLE_S = 300.0
"""An agent that nobody has asked for so long is let go."""

ANSWER_WAIT_S = 20.0
"""Longest time for an agent to answer a poll; then it is closed, and another one is started for the next."""

ANSWER_PART = 0.8
"""The part of that after which it should end with what it has."""

PROMPT_S = 1.0
"""How long a poll waits for agents; what a slow one says comes with a later poll, so no other user waits for it."""

CALL_WAIT_S = 60.0
"""Longest time for an agent to answer any other call."""

COST_FACTOR = 20.0
"""An agent that took t seconds is not asked again within this times t."""

PACE_MAX_S = 300.0
"""Longest time that a slow agent is not asked."""

PAUSE_S = 10.0
"""An agent that failed is not asked again for this long; each further failure doubles it, up to `REFUSED_S`."""

REFUSED_S = 600.0
"""Nor is a failed agent without live runs for this long: users go, and what they once ran is still there."""

MORE_ROUNDS = 900
"""How often in a row an agent may have more to tell at once (of 2000 jobs each time)."""


class SubmitterService(WmsService):
    """Runs jobs on this machine as who submitted them."""

    def __init__(self, config: LocalConfig, context: ServiceContext) -> None:
        super().__init__(config, context)
        settings = msgspec.to_builtins(msgspec.structs.replace(config, run_as="daemon"))
        told = AgentSettings(backend=context.backend, folder=context.state_dir.name, config=settings)
        self._capacity = capacity_of(config)
        self._told = msgspec.json.encode(told).decode()
        self._owners = _Owners(context.state_dir / "submitters")
        self._agents: dict[int, AgentLink] = {}
        self._run_dir = config.run_dir
        self._asked: dict[int, float] = {}
        self._starting: dict[int, anyio.Lock] = {}
        self._expected: set[int] = set()
        self._names = UserNames()
        self._failures: dict[int, int] = {}
        self._failed_at: dict[int, float] = {}
        self._due: dict[int, float] = {}
        self._pending: dict[int, Share] = {}
        self._rounds: dict[int, int] = {}

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(self._owners.load)
        _OPEN[self.context.backend] = self._capacity
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        _OPEN.pop(self.context.backend, None)
        for agent in self._agents.values():
            agent.close()

    def folders(self) -> tuple[Path, ...]:
        """Return the folder of the runs."""
        return () if self._run_dir is None else (Path(self._run_dir),)

    @property
    def capabilities(self) -> Capabilities:
        """What a single machine can do."""
        return Capabilities(fields=FIELDS, sources=(PROCESSES, LOG), poll_floor_s=0.5, holds=True, reads_output=True)

    # -- commands ----------------------------------------------------------------------------------------------------

    async def prepare(
        self, config: Mapping[str, Any], generic_workflow: WorkflowFile, out_prefix: str | None = None
    ) -> WmsWorkflow:
        """Have the submitter's agent look at every job and make the run's folder.

        Raises
        ------
        PermissionDenied
            If root submits: what runs here runs as a person.
        UnsupportedOperation
            If nobody is known to have submitted it.
        """
        uid = self._submitter(config)
        await anyio.to_thread.run_sync(self._owners.note, generic_workflow.token, uid)
        umask = umask_of(generic_workflow, self.config.umask, config)
        workflow = msgspec.structs.replace(generic_workflow, umask=umask)
        done: Prepared = await self._with_document(uid, "prepare", workflow)
        if not is_number(done.wms_id) or done.token != generic_workflow.token:
            raise BackendUnavailable(f"the agent of user {uid} answered with a run that is none")
        return WmsWorkflow(done.name, done.token, done.path, data={"uid": uid, "prepared": done})

    async def check_workflow(self, config: Mapping[str, Any], generic_workflow: WorkflowFile) -> None:
        """Have the submitter's agent look at every job."""
        await self._with_document(self._submitter(config), "check", generic_workflow)

    def _submitter(self, config: Mapping[str, Any]) -> int:
        uid: int | None = config.get("submitter_uid")
        if uid is None:
            raise UnsupportedOperation(
                f"backend {self.context.backend} runs jobs as who submitted them: that is nobody"
            )
        if uid == 0:
            raise PermissionDenied(
                f"backend {self.context.backend} runs no jobs as root",
                advice="submit as the person whose jobs these are",
            )
        return uid

    async def _with_document(self, uid: int, call: str, workflow: WorkflowFile) -> Any:
        """Send a workflow's document to a user's agent, and ask it about that workflow."""
        async with self._reader(uid) as agent:
            async with await anyio.open_file(workflow.path, "rb") as document:
                offset = 0
                while data := await document.read(CHUNK_BYTES):
                    await agent.call("receive", Chunk(workflow.token, offset, data))
                    offset += len(data)
            return await agent.call(call, workflow)

    async def submit(self, workflow: WmsWorkflow, **kwargs: Any) -> None:
        """Launch the run's first driver, in a unit of its own, unless that was done before."""
        uid, prepared = workflow.data["uid"], workflow.data["prepared"]
        await self._launching(uid, prepared.wms_id, "submit", prepared)
        workflow.run_id = whole_id(uid, prepared.wms_id)

    async def restart(
        self, wms_workflow_id: str, *, attempt_token: str | None = None
    ) -> tuple[str | None, str | None, str]:
        """Launch a driver for the next attempt, in a unit of its own."""
        uid, number = self._parts(wms_workflow_id)
        answer = await self._launching(uid, number, "restart", Restart(number, attempt_token))
        return wms_workflow_id, answer[1], renamed(answer[2], uid, number)

    async def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        """Ask the driver to end all jobs; if it is dead, one is launched to do that."""
        uid, number = self._parts(wms_id)
        agreed, words = await self._launching(uid, number, "cancel", Named(number))
        return agreed, renamed(words, uid, number)

    async def hold(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """Let the run start no more jobs; those that run go on."""
        return await self._held("hold", wms_id, jobs)

    async def release(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """Let the run start jobs again."""
        return await self._held("release", wms_id, jobs)

    async def _held(self, verb: str, wms_id: str, jobs: tuple[str, ...]) -> tuple[bool, str]:
        if jobs:
            raise UnsupportedOperation(f"backend {self.context.backend} holds whole runs, not single jobs")
        uid, number = self._parts(wms_id)
        agreed, words = await self._called(uid, verb, Named(number))
        return agreed, renamed(words, uid, number)

    # -- asking ------------------------------------------------------------------------------------------------------

    async def find_by_token(self, token: str, since: float) -> TokenAnswer:
        """Whether a run, or an attempt of it, has begun: its submitter's agent is asked."""
        uid = self._owners.of(token.partition(".")[0])
        if uid is None:  # that is written before anything else is done with a token
            return TokenAnswer(verdict="absent")
        answer: TokenAnswer = await self._called(uid, "find", TokenOrder(token, since))
        if answer.wms_id is None:
            return answer
        if not is_number(answer.wms_id):
            return TokenAnswer(verdict="cannot_tell", reason=f"the agent of user {uid} names a run that is none")
        return msgspec.structs.replace(answer, wms_id=whole_id(uid, answer.wms_id))

    async def read_output(self, wms_id: str, job: str, stream: str, offset: int, limit: int) -> OutputPiece:
        """A piece of what the last attempt of a job printed."""
        uid, number = self._parts(wms_id)
        piece: OutputPiece = await self._called(uid, "read", OutputOrder(number, job, stream, offset, limit))
        return piece

    async def run_submission_checks(self) -> None:
        """Raise what would make any submission fail."""
        status, message = await self.ping()
        if status:
            raise BackendUnavailable(message, advice="nothing was submitted; mend this and try again")

    async def ping(self, pass_thru: str | None = None) -> tuple[int, str]:
        """Whether units can be asked for at all; whether systemd lets us have them is seen when one is wanted."""
        if await anyio.to_thread.run_sync(shutil.which, "systemd-run") is None:
            return 1, f"backend {self.context.backend} needs systemd-run to run jobs as who submitted them"
        return 0, f"jobs run as who submitted them; {len(self._agents)} users have live runs"

    async def poll(self, request: PollRequest) -> PollResult:
        """Ask the agents of all users who have something to tell; each is timed and paced by itself.

        No user waits for another's agent: what is not answered soon is read on in the background.
        """
        began = time.monotonic()
        cursors = cursors_of(request.cursor)
        known: dict[int, list[KnownRun]] = {}
        for run in request.known:
            uid, number = self._parts(run.wms_id)
            known.setdefault(uid, []).append(msgspec.structs.replace(run, wms_id=number))
        # Who was never read, is: of such a user nothing is known, or no more.
        new = {uid for uid in self._owners.users() - cursors.keys() if self._may_ask(uid, REFUSED_S)}
        wanted = known.keys() | self._expected | new | {uid for uid, text in cursors.items() if watches(text)}
        self._let_go(wanted)
        shares = [Share(uid, tuple(known.get(uid, ())), cursors.get(uid)) for uid in sorted(wanted)]
        deadline_s = min(ANSWER_WAIT_S, request.deadline_s / 2)
        if request.question is not None:  # somebody waits for the whole answer, and reads from the beginning
            async with anyio.create_task_group() as asking:
                for share in shares:
                    asking.start_soon(self._ask, share, deadline_s)
            return together(shares, cursors, time.monotonic() - began, self._owners.of, self._names.known)
        asked = [share for share in shares if self._is_due(share, began)]
        for share in asked:
            self._expected.discard(share.uid)
            self._pending[share.uid] = share
            self.context.task_group.start_soon(self._ask, share, deadline_s)
        with anyio.move_on_after(min(PROMPT_S, deadline_s)):
            for share in asked:
                await share.done.wait()
        answered = {uid: share for uid, share in self._pending.items() if share.done.is_set()}
        for uid in answered:
            del self._pending[uid]
        cost_s = max((share.cost_s for share in asked if share.done.is_set()), default=0.0)
        shares = [answered.pop(share.uid, share) for share in shares] + [*answered.values()]
        return together(shares, cursors, cost_s, self._owners.of, self._names.known)

    def _is_due(self, share: Share, now: float) -> bool:
        """Whether an agent is to be asked now: it did its work lately, and has had its pause."""
        uid = share.uid
        if uid in self._pending:
            return False
        pause_s = self._pause_s(uid)
        if not self._may_ask(uid, pause_s):
            again_s = self._failed_at[uid] + pause_s - now
            share.error = f"the agent of user {self._names.known(uid)} failed and is asked again in {again_s:.0f} s"
            return False
        at_once = share.cursor is None or uid in self._expected or self._rounds.get(uid, 0) > 0
        return at_once or now >= self._due.get(uid, -math.inf)

    async def _ask(self, share: Share, deadline_s: float) -> None:
        asked = began = time.monotonic()
        started = False
        await self._names.look_up(share.uid)
        request = PollRequest(cursor=share.cursor, known=share.known, deadline_s=deadline_s * ANSWER_PART)
        try:
            with anyio.fail_after(deadline_s):
                async with self._reader(share.uid) as agent:
                    started = True
                    began = time.monotonic()  # to start the agent is no part of what its polls cost
                    share.result = await agent.call("poll", request)
        except TimeoutError:
            self._failed(share, f"no answer within {deadline_s:g} s")
        except BpsdError as exc:
            share.denied = not started
            self._failed(share, exc.message)
        else:
            self._failures.pop(share.uid, None)
            rounds = self._rounds[share.uid] = self._rounds.get(share.uid, 0) + 1 if share.result.more else 0
            share.more = 0 < rounds < MORE_ROUNDS
        finally:
            now = time.monotonic()
            share.cost_s = now - began
            # What failed has its pause; how long it was waited for says nothing of what the next answer costs.
            self._due[share.uid] = now if share.error else now + min(share.cost_s * COST_FACTOR, PACE_MAX_S)
            share.done.set()
        if now - asked > PROMPT_S:
            self.context.wake(f"the agent of user {share.uid} has answered, or failed")

    def _failed(self, share: Share, why: str) -> None:
        """Close an agent that does not do its work; there will be another."""
        share.error = f"the agent of user {self._names.known(share.uid)} failed: {why}"
        self._failures[share.uid] = self._failures.get(share.uid, 0) + 1
        self._failed_at[share.uid] = time.monotonic()
        self._rounds.pop(share.uid, None)
        if (agent := self._agents.pop(share.uid, None)) is not None:
            agent.close()

        self.context.task_group.start_soon(self._wake_after, self._pause_s(share.uid))

    def _pause_s(self, uid: int) -> float:
        return min(PAUSE_S * 2.0 ** (min(self._failures.get(uid, 1), 10) - 1), REFUSED_S)

    async def _wake_after(self, pause_s: float) -> None:
        """Ask for a poll when a failed agent may be asked again: the next one by itself may be far off."""
        await anyio.sleep(pause_s)
        self.context.wake("an agent that failed may be asked again")

    # -- agents ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _reader(self, uid: int) -> AsyncIterator[AgentLink]:
        """The agent that reads a user's runs, started if there is none."""
        async with self._starting.setdefault(uid, anyio.Lock()):
            agent = self._agents.get(uid)
            if agent is None or agent.broken:
                agent = self._agents[uid] = await self._start(uid, unit_name("agent", uid), outlived=False)
        self._asked[uid] = time.monotonic()
        yield agent

    async def _called(self, uid: int, call: str, args: msgspec.Struct) -> Any:
        """Ask the agent that reads a user's runs; one that does not answer (it may be stopped) is closed.

        Raises
        ------
        BackendUnavailable
            If it does not answer in time, or ended.
        """
        async with self._reader(uid) as agent:
            try:
                with anyio.fail_after(CALL_WAIT_S):
                    return await agent.call(call, args)
            except TimeoutError:
                agent.close()
                raise BackendUnavailable(
                    f"{agent.name} did not answer {call} within {CALL_WAIT_S:g} s",
                    advice="try again: another is started",
                ) from None

    async def _launching(self, uid: int, number: str, call: str, args: msgspec.Struct) -> Any:
        """Ask an agent in a unit of the run's own, where what it launches stays."""
        await self._limit_all_runs()
        agent = await self._start(uid, unit_name("run", uid, number), outlived=True)
        try:
            answer = await agent.call(call, args)
        finally:
            agent.close()
        await self._called(uid, "expect", Named(number))
        self._expected.add(uid)
        self.context.wake("a driver was launched")
        return answer

    async def _start(self, uid: int, unit: str, *, outlived: bool) -> AgentLink:
        # -P: a file of that name in the working folder must not be taken for a module of ours.
        program = [sys.executable, "-P", "-X", "utf8", "-m", "bpsd_adapters.local.agent", self._told]
        limiting = limits(*self._capacity) if outlived else ()
        command = service_command(unit, uid, program, outlived=outlived, limiting=limiting)
        return await start_agent(command, f"{unit}.service", self.context.task_group, self.context.wake)

    async def _limit_all_runs(self) -> None:
        """Keep all runs together within what the backends have; a host that does not let us runs jobs all the same."""
        wanted = Capacity(sum(each.cores for each in _OPEN.values()), sum(each.memory_mb for each in _OPEN.values()))
        if _LIMITED.get(SLICE) == wanted:
            return
        _LIMITED[SLICE] = wanted
        try:
            done = await run_process(slice_command(*wanted))
        except OSError as exc:
            said = str(exc)
        else:
            said = "" if done.returncode == 0 else done.stderr.decode(errors="replace").strip()
        if said:
            self.context.log.warning(
                LogEvent.SLICE_NOT_LIMITED,
                slice=SLICE,
                error=said[:300],
                advice="`bpsd install --system --run-as-submitter` brings the rule that allows it",
            )

    def _let_go(self, wanted: Iterable[int]) -> None:
        now = time.monotonic()
        for uid in self._agents.keys() - set(wanted):
            if now - self._asked.get(uid, 0.0) > IDLE_S:
                self._agents.pop(uid).close()

    def _may_ask(self, uid: int, pause_s: float) -> bool:
        """Whether an agent did its work, or failed long enough ago."""
        return time.monotonic() - self._failed_at.get(uid, -math.inf) >= pause_s

    def _parts(self, wms_id: str) -> tuple[int, str]:
        uid, dash, number = wms_id.partition("-")
        if not (dash and is_number(uid) and is_number(number)):
            raise no_run(self.context.backend, wms_id)
        return int(uid), number


class _Owners:
    """Whose each token is, on the disk before anything is done with it.

    Parameters
    ----------
    folder : `~pathlib.Path`
        With a link for each token, which leads to its user's number.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._uids: dict[str, int] = {}

    def of(self, token: str) -> int | None:
        """The user, if there is one."""
        return self._uids.get(token)

    def users(self) -> set[int]:
        """Everybody who ever submitted."""
        return set(self._uids.values())

    def load(self) -> None:
        """Read what was noted before."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._uids = {link.name: int(link.readlink().name) for link in self._folder.iterdir()}

    def note(self, token: str, uid: int) -> None:
        """Note a token; whose it was before it stays."""
        if self._uids.setdefault(token, uid) != uid:
            raise PermissionDenied(f"the token {token} belongs to somebody else's run")
        try:
            (self._folder / token).symlink_to(str(uid))
        except FileExistsError:
            return
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
