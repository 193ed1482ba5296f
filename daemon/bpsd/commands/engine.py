"""The engine: takes commands, keeps their order and their journal, and carries each one out once.

Commands of one run go one at a time in the order of acceptance; of one backend at most ``at_once`` touch the WMS at the
same time, and users take turns. Submissions and restarts, which are slow, leave one slot to the quick verbs. A command
is durable before its acceptance is answered and before the WMS is touched. What was RUNNING when the daemon died is
looked up in the WMS before anything else is done for its run.
"""

from __future__ import annotations

__all__ = ["VERBS", "CommandEngine"]

import math
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import TaskGroup

from bpsd.cache import Cache
from bpsd.commandlog import OPEN_STATES, has_expired, left_s, passed_s
from bpsd.commands.cancel import Cancel
from bpsd.commands.hold import Hold, Release
from bpsd.commands.outcomes import Again, Desk, Done, Doubt, Failed, Outcome, Verb, after_look_up
from bpsd.commands.restart import Restart
from bpsd.commands.submit import Submit
from bpsd.config import Commands
from bpsd.errors import BackendUnavailable, BpsdError, Conflict, StorageError, WorkflowInvalid
from bpsd.fair import FairSlots
from bpsd.journal import CommandRecord, Journal
from bpsd.logs.events import LogEvent
from bpsd.logs.redaction import redact_text
from bpsd.models import WmsStates
from bpsd.poller import Backend
from bpsd.runs import Change, RunRecord

VERBS: Mapping[str, Verb] = {
    "submit": Submit(),
    "cancel": Cancel(),
    "restart": Restart(),
    "hold": Hold(),
    "release": Release(),
}


SUPERSEDED_BY_CANCEL = frozenset({"submit", "restart"})
"""Verbs of which a cancel of the run precedes the next try."""

SLOW_VERBS = frozenset({"submit", "restart"})
"""They wait for their user's turn before they begin; the others only for a slot for each call."""


class _Slots:
    """The slots of one backend: ``calls`` to the WMS; ``turns`` of slow commands as a whole, one less if possible."""

    def __init__(self) -> None:
        self.calls, self.turns = FairSlots(1), FairSlots(1)

    def resize(self, at_once: int) -> None:
        """Use another number of slots."""
        self.calls.resize(at_once)
        self.turns.resize(max(1, at_once - 1))


class _Entry:
    """An unfinished command.

    ``waiting`` is the wait for its turn, which a cancel or the end of its time ends. ``superseded``: a later cancel of
    the run comes before the next try. ``looking_up`` is the look-up in flight; ``settling`` is held by whoever writes
    what came of the command, the engine or a person, whose word wins.
    """

    __slots__ = ("command", "disk", "looking_up", "nudge", "over", "resolved", "settling", "superseded", "waiting")

    def __init__(self, command: CommandRecord) -> None:
        self.command = command
        self.disk = ""  # the error of our own disk that it waits for
        self.superseded = False
        self.resolved = False
        self.looking_up = anyio.CancelScope()
        self.waiting = anyio.CancelScope()
        self.settling = anyio.Lock()
        self.over = anyio.Event()
        self.nudge = anyio.Event()


class CommandEngine:
    """Carries out commands while `run` runs.

    Parameters
    ----------
    backends : `~collections.abc.Mapping`
        Name to `~bpsd.poller.Backend`.
    finished : callable
        Told of every command that is over (to let its spooled workflow go).
    place : callable
        Says where in the document that a command brought the mistakes are that its backend has found.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        cache: Cache,
        backends: Mapping[str, Backend],
        settings: Commands,
        log: Any,
        clock: Callable[[], float],
        finished: Callable[[CommandRecord], Awaitable[None]],
        place: Callable[[CommandRecord, WorkflowInvalid], Awaitable[WorkflowInvalid]],
    ) -> None:
        self._journal, self._cache, self._backends = journal, cache, backends
        self.settings, self._log, self._clock = settings, log, clock
        self._finished, self._place = finished, place
        self._slots: dict[str, _Slots] = {}
        self._entries: dict[str, _Entry] = {}
        self._queues: dict[str, deque[_Entry]] = {}
        self._group: TaskGroup | None = None
        self.journal_failure = ""
        """Why the state of a command could not be written last (empty: it could)."""

    def __repr__(self) -> str:
        return f"<CommandEngine {len(self._entries)} open commands of {len(self._queues)} runs>"

    def use(self, settings: Commands) -> None:
        """Follow other settings from now on; those of the backends have changed before."""
        self.settings = settings
        for name in self._slots.keys() & self._backends.keys():
            with suppress(BackendUnavailable):  # not open now: its next command asks again
                self._sized_slots(self._backends[name])

    # -- life --------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take up what the journal holds, then work until cancelled."""
        async with anyio.create_task_group() as group:
            self._group = group
            for command in await self._journal.unfinished():
                await self._show_again(command)
                self.enqueue(command)
            task_status.started()
            await anyio.sleep_forever()

    async def _show_again(self, command: CommandRecord) -> None:
        """A run whose submission was under way at a crash must be in the report before anybody asks."""
        if command.verb == "submit" and command.run_id not in self._cache:
            await self.show_accepted(command)

    async def show_accepted(self, command: CommandRecord) -> None:
        """Put a run into the report as soon as its submission is accepted."""
        facts = command.args.get("workflow", {})
        attributes = facts.get("run", {})

        def edit(record: RunRecord) -> list[Change]:
            record.token, record.uid, record.owner = command.token, command.uid, command.user
            record.run, record.run_summary = facts.get("name"), facts.get("run_summary")
            record.total_number_jobs = facts.get("job_count")
            for name in ("project", "campaign", "payload", "operator", "site", "label"):
                setattr(record, name, attributes.get(name))
            record.submit_time, record.command = command.accepted_at, command.id
            return record.from_journal(WmsStates.READY, "accepted, not yet handed to the WMS", self._clock())

        await self._cache.note_run(command.run_id, command.backend, edit)

    # -- asking ------------------------------------------------------------------------------------------------------

    @property
    def open_commands(self) -> int:
        """How many commands are not over."""
        return len(self._entries)

    def open_by_state(self) -> dict[str, int]:
        """How many commands that are not over are in each state."""
        states = Counter(entry.command.state for entry in self._entries.values())
        return {state: states[state] for state in sorted(OPEN_STATES)}

    def in_doubt(self) -> list[CommandRecord]:
        """The commands of which nobody knows whether they were done."""
        return [entry.command for entry in self._entries.values() if entry.command.state == "IN_DOUBT"]

    def waiting_for_disk(self) -> list[tuple[CommandRecord, str]]:
        """The commands that go on when a disk of ours takes data again, with the error of each."""
        return [(entry.command, entry.disk) for entry in self._entries.values() if entry.disk]

    def open_of_run(self, run_id: str) -> list[CommandRecord]:
        """The commands of a run that are not over, in order."""
        return [entry.command for entry in self._queues.get(run_id, ())]

    def pinned_blobs(self) -> frozenset[tuple[str, int]]:
        """The documents (sha256, uid) that commands which are not over came from."""
        return frozenset(
            (entry.command.args["blob"], entry.command.uid)
            for entry in self._entries.values()
            if "blob" in entry.command.args
        )

    def open_of_user(self, uid: int, verb: str | None = None) -> int:
        """How many commands of a user, or of one verb of a user, are not over."""
        return sum(entry.command.uid == uid and verb in (None, entry.command.verb) for entry in self._entries.values())

    def place(self, command: CommandRecord) -> tuple[int, int] | None:
        """Return the place of a command that waits for its turn, and how many wait on its backend."""
        slots = self._slots.get(command.backend)
        return slots.turns.place(command.id) if slots is not None and command.state == "ACCEPTED" else None

    async def wait(self, command_id: str, timeout_s: float) -> CommandRecord:
        """The command when it is over, or as it is when the time is."""
        entry = self._entries.get(command_id)
        if entry is not None:
            with anyio.move_on_after(timeout_s):
                await entry.over.wait()
            return entry.command
        return await self._journal.command(command_id)

    # -- taking ------------------------------------------------------------------------------------------------------

    def enqueue(self, command: CommandRecord) -> None:
        """Put an accepted command behind the others of its run."""
        if command.id in self._entries or command.state not in OPEN_STATES or self._group is None:
            return
        entry = _Entry(command)
        self._entries[command.id] = entry
        queue = self._queues.get(command.run_id)
        if command.verb == "cancel" and queue:
            for earlier in queue:
                if earlier.command.verb in SUPERSEDED_BY_CANCEL:
                    earlier.superseded = True
                    earlier.nudge.set()
                    earlier.waiting.cancel()
        if queue is None:
            self._queues[command.run_id] = deque([entry])
            self._group.start_soon(self._work, command.run_id, name=f"commands of {command.run_id}")
        else:
            queue.append(entry)

    async def resolve(self, command_id: str, outcome: str, wms_id: str | None, note: str) -> CommandRecord:
        """A person's word on a command in doubt.

        Raises
        ------
        Conflict
            If the command is not in doubt.
        """
        entry = self._entries.get(command_id)
        if entry is None:
            raise _not_in_doubt(await self._journal.command(command_id))
        async with entry.settling:
            if entry.command.state != "IN_DOUBT":
                raise _not_in_doubt(entry.command)
            entry.resolved = True
            entry.looking_up.cancel()
            await self._take_word(entry, outcome, wms_id, f"resolved as {outcome}" + (f": {note}" if note else ""))
        entry.nudge.set()
        return entry.command

    async def _take_word(self, entry: _Entry, outcome: str, wms_id: str | None, word: str) -> None:
        if outcome == "again":
            # Its time begins anew: a doubt may be older than all that it was given.
            command = entry.command
            passed = passed_s(command, self._clock())
            expires_at = None if command.expires_at is None else command.expires_at + passed
            await self._set(entry, "ACCEPTED", note=word, expires_at=expires_at)
        elif outcome == "failed":
            await self._fail(entry, Conflict(word))
        else:
            if wms_id:
                await self._journal.bind(
                    entry.command.run_id, entry.command.attempt or 1, wms_id, None, entry.command.id
                )
                await self._adopt(entry.command, wms_id)
            await self._set(entry, "DONE", result={"wms_id": wms_id}, note=word)

    async def _adopt(self, command: CommandRecord, wms_id: str) -> None:
        def edit(record: RunRecord) -> list[Change]:
            record.wms_id = record.wms_id or wms_id
            return record.from_journal(WmsStates.READY, "submitted, by a person's word", self._clock())

        await self._cache.note_run(command.run_id, command.backend, edit)
        if command.backend in self._backends:
            self._backends[command.backend].wake("resolved")

    # -- carrying out ------------------------------------------------------------------------------------------------

    async def _work(self, run_id: str) -> None:
        queue = self._queues[run_id]
        while queue:
            entry = queue[0]
            await self._carry_out(entry)
            queue.popleft()
            del self._entries[entry.command.id]
            entry.over.set()
        del self._queues[run_id]

    async def _carry_out(self, entry: _Entry) -> None:
        pause = self.settings.doubt_retry_initial_s
        while entry.command.state in OPEN_STATES:
            entry.resolved = False
            try:
                outcome = await self._step(entry)
                async with entry.settling:
                    if outcome is None or entry.resolved:
                        continue
                    await self._settle(entry, outcome)
            except Exception as exc:  # noqa: BLE001  # a fault of ours in one command: the others go on
                self._log.error(LogEvent.COMMAND_BROKE, command=entry.command.id, error=repr(exc), exc_info=exc)
                outcome = await self._reread(entry, exc)
            entry.disk = outcome.reason if isinstance(outcome, Doubt | Again) and outcome.storage else ""
            if isinstance(outcome, Doubt | Again):
                with anyio.move_on_after(pause * random.uniform(0.75, 1.25)):  # noqa: S311  # spreads load, keeps no secret
                    await entry.nudge.wait()
                async with entry.settling:  # a person's word that is being written comes before another try
                    entry.nudge = anyio.Event()
                pause = min(pause * 2, self.settings.doubt_retry_max_s)
        await self._finished(entry.command)

    async def _reread(self, entry: _Entry, fault: Exception) -> Outcome:
        """Take a command as the journal has it, after a fault of ours: what was done to it is not known."""
        try:
            entry.command = await self._journal.command(entry.command.id)
        except BpsdError as exc:
            fault = exc
        return Doubt(f"internal error: {fault!r}")

    async def _settle(self, entry: _Entry, outcome: Outcome) -> None:
        """Write down what came of a try."""
        if isinstance(outcome, Done):
            await self._set(entry, "DONE", result=outcome.result, note=outcome.note)
        elif isinstance(outcome, Failed):
            await self._fail(entry, outcome.error, refused=True)
        else:
            state = "IN_DOUBT" if isinstance(outcome, Doubt) else "ACCEPTED"
            await self._set(entry, state, note=outcome.reason)

    async def _step(self, entry: _Entry) -> Outcome | None:
        """One try; `None` if nothing came of it, as the command ended without one or a person was quicker."""
        command = entry.command
        verb = VERBS[command.verb]
        backend = self._backends.get(command.backend)
        if command.state == "ACCEPTED":
            if entry.superseded:
                await self._set(entry, "SUPERSEDED", note="cancelled before it was carried out")
                return None
            if has_expired(command, self._clock()):
                await self._expire(entry)
                return None
        if backend is None:
            return self._same(entry, f"backend {command.backend} is not configured any more")
        try:
            # One's own cancel does not wait behind one's own submissions.
            desk = self._desk(backend, (command.uid, command.verb in SLOW_VERBS))
        except BackendUnavailable as exc:  # the adapter is not open: then nothing is begun
            return self._same(entry, str(exc))
        if command.state == "ACCEPTED":
            if command.verb in SLOW_VERBS:
                return await self._perform_in_turn(entry, verb, desk)
            return await self._perform(entry, verb, desk)
        with anyio.CancelScope() as entry.looking_up:
            return after_look_up(await self._ask(verb.look_up, desk, entry), entry.disk)
        return None

    async def _perform_in_turn(self, entry: _Entry, verb: Verb, desk: Desk) -> Outcome | None:
        """Begin when it is the user's turn; `None` if the command was cancelled or its time was over before that."""
        command = entry.command
        with anyio.move_on_after(left_s(command, self._clock())) as scope:
            entry.waiting = scope
            async with self._slots[command.backend].turns.slot(command.uid, command.id):
                if not (entry.superseded or scope.cancel_called):
                    scope.deadline = math.inf
                    entry.waiting = anyio.CancelScope()  # it waits no more: what ended the wait ends nothing now
                    return await self._perform(entry, verb, desk)
        return None

    async def _perform(self, entry: _Entry, verb: Verb, desk: Desk) -> Outcome:
        await self._set(entry, "RUNNING")
        return await self._ask(verb.perform, desk, entry)

    def _same(self, entry: _Entry, reason: str) -> Outcome:
        """Nothing was tried, so nothing changes: what was in doubt stays so."""
        return Again(reason) if entry.command.state == "ACCEPTED" else Doubt(reason)

    async def _ask(
        self, ask: Callable[[Desk, CommandRecord], Awaitable[Outcome]], desk: Desk, entry: _Entry
    ) -> Outcome:
        try:
            return await ask(desk, entry.command)
        except BpsdError as exc:
            return Doubt(str(exc), storage=isinstance(exc, StorageError))
        except Exception as exc:  # noqa: BLE001  # an adapter's mistake: nobody knows what it did before
            self._log.error(LogEvent.COMMAND_BROKE, command=entry.command.id, error=repr(exc), exc_info=exc)
            return Doubt(f"the adapter failed: {exc!r}")

    def _desk(self, backend: Backend, user: Hashable = None) -> Desk:
        slots = self._sized_slots(backend)
        return Desk(
            backend=backend,
            cache=self._cache,
            journal=self._journal,
            slot=lambda: slots.calls.slot(user),
            deadline_s=backend.settings.commands_deadline_s,
            verify_s=self.settings.cancel_verify_s,
            clock=self._clock,
        )

    def _sized_slots(self, backend: Backend) -> _Slots:
        """The slots of a backend, as many as its settings and its adapter allow now."""
        at_once = min(backend.settings.commands_at_once, backend.service.capabilities.commands_at_once)
        slots = self._slots.setdefault(backend.name, _Slots())
        slots.resize(at_once)
        return slots

    async def _fail(self, entry: _Entry, error: BpsdError, *, refused: bool = False) -> None:
        """Write a failure down; a submission that was ``refused`` leaves no run behind."""
        command = entry.command
        if isinstance(error, WorkflowInvalid) and command.verb == "submit":  # the others brought no document
            error = await self._place(command, error)
        message = redact_text(error.message, lines=True)  # what a WMS said may hold what opens a door
        told = {**error.data(), "message": message}
        why = redact_text(str(error), lines=True) if isinstance(error, WorkflowInvalid) else message
        # Before the command is over: who waits for that must not find a run of which nothing will come.
        refusal = f"not submitted: {why}"
        gone = command.verb == "submit" and refused and await self._cache.withdraw(command.run_id, refusal)
        await self._set(entry, "FAILED", error=told, note=str(error), gone=gone)
        if command.verb == "submit" and not gone:
            await self._not_submitted(command, WmsStates.FAILED, refusal)

    async def _expire(self, entry: _Entry) -> None:
        await self._set(entry, "EXPIRED", note=f"not tried: {entry.command.note or 'its time was over'}")
        if entry.command.verb == "submit":
            await self._not_submitted(entry.command, WmsStates.DELETED, "never submitted: the command expired")

    async def _not_submitted(self, command: CommandRecord, state: WmsStates, note: str) -> None:
        await self._cache.note_run(
            command.run_id, command.backend, lambda record: record.from_journal(state, note, self._clock())
        )

    async def _set(
        self,
        entry: _Entry,
        state: str,
        *,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        note: str = "",
        expires_at: float | None = None,
        gone: bool = False,
    ) -> None:
        """Write a state to the journal, however long the disk takes, and tell the watchers.

        ``gone``: its run is not there any more, and the event does not belong to its timeline.
        """
        command, note = entry.command, redact_text(note, lines=True)
        if command.state == state:
            if note and note != command.note:
                entry.command = await self._durably(lambda: self._journal.note(command.id, note))
            return
        if state == "RUNNING":
            entry.command = await self._durably(lambda: self._journal.begin(command.id))
        else:
            entry.command = await self._durably(
                lambda: self._journal.finish(
                    command.id, state, result=result, error=error, note=note, expires_at=expires_at
                )
            )
        more: dict[str, Any] = {} if error is None else {"error": error, "user": command.user}
        if gone:
            more |= {"refused": command.run_id, "name": command.args.get("workflow", {}).get("name", "")}
        await self._cache.announce(
            "command.state",
            backend=command.backend,
            run=None if gone else command.run_id,
            command=command.id,
            verb=command.verb,
            state=state,
            note=note,
            **more,
        )

    async def _durably(self, write: Callable[[], Awaitable[CommandRecord]]) -> CommandRecord:
        """Repeat a write that the disk refuses: what the WMS did must not be forgotten for a full disk."""
        pause = self.settings.doubt_retry_initial_s
        while True:
            try:
                command = await write()
                self.journal_failure = ""
                return command
            except StorageError as exc:
                self.journal_failure = str(exc)
                self._log.error(LogEvent.JOURNAL_WRITE_FAILED, error=str(exc), retry_s=pause)
                await anyio.sleep(pause)
                pause = min(pause * 2, self.settings.doubt_retry_max_s)


def _not_in_doubt(command: CommandRecord) -> Conflict:
    return Conflict(
        f"command {command.id} is {command.state}, not IN_DOUBT",
        advice="only a command in doubt needs a person's word",
    )
