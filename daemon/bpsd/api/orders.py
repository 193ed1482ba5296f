"""Methods that ask a WMS for something: ``submit cancel restart hold release``, and ``commands`` and its kin."""

from __future__ import annotations

__all__ = ["Orders", "command_row"]

import secrets
from collections.abc import Awaitable
from typing import Any

import msgspec

from bpsd import wire
from bpsd.api.deps import Deps
from bpsd.api.paging import fitting, holding
from bpsd.api.uploads import Uploads
from bpsd.commandlog import CLOCK, INTERNAL_ARGS, boot_clock
from bpsd.errors import Conflict, InvalidParams, LimitExceeded, PermissionDenied, RunNotFound, UnsupportedOperation
from bpsd.holds import held_in, select_held, select_waiting, waiting_in
from bpsd.journal import CommandRecord
from bpsd.logs.events import LogEvent
from bpsd.logs.redaction import redact_text
from bpsd.messages import (
    CommandRow,
    CommandsParams,
    CommandsResolve,
    CommandsResult,
    CommandsWait,
    RunCommand,
    SubmitParams,
)
from bpsd.models import WmsStates
from bpsd.peers import Peer, claimed_command_line, may_command
from bpsd.runs import RunRecord
from bpsd.server import Call
from bpsd.slices import found_in


class Orders:
    """The methods that write the journal."""

    def __init__(self, deps: Deps, uploads: Uploads) -> None:
        self._deps, self._uploads = deps, uploads

    # -- submit ------------------------------------------------------------------------------------------------------

    def submit(self, call: Call, params: SubmitParams) -> Awaitable[CommandRow]:
        """Validate, accept durably, and leave the rest to the engine."""
        self._uploads.own(call, params.blob)
        return self._submit(call, params)

    async def _submit(self, call: Call, params: SubmitParams) -> CommandRow:
        async with self._uploads.in_use(call, params.blob):
            return await self._accept(call, params)

    async def _accept(self, call: Call, params: SubmitParams) -> CommandRow:
        deps = self._deps
        known = await deps.journal.by_token(params.token)
        if known is not None:
            return self._same_token(call.peer, params, known)
        self._check_quota(call.peer, "submit")
        backend = deps.backend(params.backend)
        deps.check_submitter(call.peer, backend)
        blob = await deps.spool.open_blob(params.blob, call.peer.uid)
        checked = await deps.workflows.check(
            blob,
            params.source,
            backend=backend.name,
            capabilities=backend.service.capabilities,
            token=params.token,
            uid=call.peer.uid,
        )
        command = await self._command(
            "submit",
            call.peer,
            backend=backend.name,
            run_id="",
            token=params.token,
            attempt=1,
            args={
                "workflow": msgspec.to_builtins(checked.file),
                "blob": params.blob,
                "source": params.source,
                "umask": params.umask,
                "warnings": checked.warnings,
            },
            client=params.client,
            expires_s=params.expires_s,
        )
        accepted, created = await deps.journal.accept(command, name=checked.file.name)
        if created:
            await deps.engine.show_accepted(accepted)
            await self._accepted(accepted)
        return command_row(accepted, created=created)

    def _same_token(self, peer: Peer, params: SubmitParams, known: CommandRecord) -> CommandRow:
        if known.uid != peer.uid:
            raise PermissionDenied(
                f"the token {params.token} belongs to somebody else's run", advice="make a new token for a new run"
            )
        if known.args.get("blob") != params.blob:
            raise Conflict(
                f"the token {params.token} is that of run {known.run_id}, which is another workflow",
                advice="make a new token for a new run",
                run=known.run_id,
            )
        return command_row(known, created=False)

    # -- runs --------------------------------------------------------------------------------------------------------

    async def cancel(self, call: Call, params: RunCommand) -> CommandRow:
        """End a run."""
        record = await self._hot_run(params)
        submitting = any(c.verb == "submit" for c in self._deps.engine.open_of_run(record.run_id))
        if not record.live and not submitting and not self._restarting(record):
            raise Conflict(
                f"run {record.run_id} is over ({record.state.name}): there is nothing to cancel",
                advice=f"`bpsctl report {record.run_id}` shows how it ended",
                run=record.run_id,
                state=record.state.name,
            )
        return await self._order("cancel", call, params, record)

    async def restart(self, call: Call, params: RunCommand) -> CommandRow:
        """Begin a new attempt of a run that is over."""
        record = await self._hot_run(params)
        if record.live and record.state is not WmsStates.UNKNOWN:
            raise Conflict(
                f"run {record.run_id} is {record.state.name}: only a run that is over can be restarted",
                advice="cancel it first, or wait until it is over",
                run=record.run_id,
                state=record.state.name,
            )
        if record.state is WmsStates.SUCCEEDED:
            raise Conflict(
                f"run {record.run_id} has SUCCEEDED: there is nothing to restart",
                advice="submit the workflow again for a new run",
                run=record.run_id,
                state=record.state.name,
            )
        if not record.wms_id:
            raise Conflict(
                f"run {record.run_id} was never submitted: {record.note}",
                advice="submit the workflow again",
                run=record.run_id,
            )
        return await self._order("restart", call, params, record)

    async def hold(self, call: Call, params: RunCommand) -> CommandRow:
        """Put a run on hold, or what waits of it with a label."""
        record = await self._live_run(params, "hold")
        if params.label is None:
            return await self._order("hold", call, params, record)
        waiting = await found_in(waiting_in(self._deps.cache.jobs(record.run_id), params.label))
        chosen = select_waiting(record, waiting, params.label)
        if chosen is None:
            raise Conflict(
                f"no job of run {record.run_id} waits {_for(params)}",
                advice=f"`bpsctl jobs {record.run_id}` shows its jobs",
                run=record.run_id,
            )
        what = "the whole run" if chosen.whole else f"{len(chosen.jobs)} of its jobs"
        return await self._order("hold", call, params, record, what)

    async def release(self, call: Call, params: RunCommand) -> CommandRow:
        """Release a run, or what is held of it by label or reason."""
        record = await self._live_run(params, "release")
        if params.label is None and params.group is None:
            return await self._order("release", call, params, record)
        everything = await found_in(held_in(record, self._deps.cache.jobs(record.run_id)))
        chosen = select_held(record, everything, params.label, params.group)
        if chosen is None:
            raise Conflict(
                f"nothing of run {record.run_id} is held {_for(params)}",
                advice="`bpsctl holds` shows what is held, and why",
                run=record.run_id,
            )
        what = "all that is held" if chosen.whole else f"{len(chosen.jobs)} of its jobs"
        return await self._order("release", call, params, record, what)

    def _restarting(self, record: RunRecord) -> bool:
        return any(c.verb == "restart" for c in self._deps.engine.open_of_run(record.run_id))

    async def _live_run(self, params: RunCommand, verb: str) -> RunRecord:
        record = await self._hot_run(params)
        if not self._deps.can(record.backend, "holds"):
            raise UnsupportedOperation(
                f"backend {record.backend} cannot hold and release runs: run {record.run_id} is as it was",
                advice=f"`bpsctl cancel {record.run_id}` ends it; a cancelled run can be restarted",
            )
        if not record.live:
            raise Conflict(
                f"run {record.run_id} is over ({record.state.name}): there is nothing to {verb}",
                advice=f"`bpsctl report {record.run_id}` shows how it ended",
                run=record.run_id,
                state=record.state.name,
            )
        return record

    async def _hot_run(self, params: RunCommand) -> RunRecord:
        """The run, taken back into memory if it had cooled."""
        record, _, hot = await self._deps.find(params.run, params.backend)
        if not hot:
            await self._deps.cache.thaw([record.run_id])
            record = self._deps.cache.get(record.run_id) or record
        if record.backend not in self._deps.backends:
            raise RunNotFound(
                f"run {record.run_id} is on backend {record.backend}, which is not configured any more",
                advice="put the backend back into the configuration and reload",
            )
        return record

    async def _order(self, verb: str, call: Call, params: RunCommand, record: RunRecord, what: str = "") -> CommandRow:
        if (verb not in ("hold", "release") and params.label is not None) or (
            verb != "release" and params.group is not None
        ):
            raise InvalidParams(
                f"{verb}: a label chooses jobs for hold and release, a group for release; {verb} is about whole runs"
            )
        self._check_owner(f"{verb} run {record.run_id}", call.peer, record.backend, record.uid, record.owner)
        command = await self._command(
            verb,
            call.peer,
            backend=record.backend,
            run_id=record.run_id,
            token=record.token,
            attempt=None,
            args={
                "pass_thru": params.pass_thru,
                "wms_id": record.wms_id,
                "label": params.label,
                "group": params.group,
            },
            client=params.client,
            expires_s=params.expires_s,
        )
        if params.dry_run:
            command.note = "dry run: nothing was done" + (f"; it would be {what}" if what else "")
            return command_row(command, created=False)
        self._check_quota(call.peer, verb)
        accepted, created = await self._deps.journal.accept(command)
        if created:
            await self._accepted(accepted)
        return command_row(accepted, created=created)

    # -- commands ----------------------------------------------------------------------------------------------------

    async def commands(self, call: Call, params: CommandsParams) -> object:
        """Commands, the newest first."""
        deps = self._deps
        if params.id is not None:
            found = await deps.engine.wait(params.id, 0)
            return CommandsResult(commands=[self._row(call, found)])
        run_id = None
        if params.run is not None:
            run_id = await deps.find_id(params.run, None)
        page = await deps.journal.commands(
            run_id=run_id,
            backend=params.backend,
            states=params.state,
            user=params.user,
            since=params.since,
            before=params.before,
            limit=params.limit + 1,
        )
        if not page and params.backend is not None:
            deps.check_backends([params.backend])  # one that is gone has left its commands; a mistyped one has none
        rows, last = await fitting((self._row(call, found) for found in page), params.limit)
        following = last.id if rows.full and last is not None else None
        return holding(CommandsResult(commands=[], next=following), "commands", rows.rows)

    async def wait(self, call: Call, params: CommandsWait) -> CommandRow:
        """Wait for the end of a command."""
        return self._row(call, await self._deps.engine.wait(params.id, params.timeout_s))

    async def resolve(self, call: Call, params: CommandsResolve) -> CommandRow:
        """Settle a command in doubt by a person's word."""
        command = await self._deps.engine.wait(params.id, 0)
        self._check_owner(f"resolve command {command.id}", call.peer, command.backend, command.uid, command.user)
        word = f"{params.note} (by {call.peer.user})".strip()
        return self._row(call, await self._deps.engine.resolve(params.id, params.outcome, params.wms_id, word))

    def _row(self, call: Call, command: CommandRecord) -> CommandRow:
        """A command as the caller may see it, with its place if it waits for its turn."""
        row = self._deps.sight(call).command(command_row(command))
        place = self._deps.engine.place(command)
        if place is not None:
            row.position, row.waiting = place
            row.note = f"{_ordinal(row.position)} of {row.waiting} waiting on backend {row.backend}"
        return row

    # -- the record --------------------------------------------------------------------------------------------------

    def _check_owner(self, act: str, peer: Peer, backend: str, uid: int | None, account: str | None) -> None:
        """People do as they like with their own; with what is others' only who may command."""
        if may_command(peer, self._deps.policy, uid=uid, backend=backend, account=account):
            return
        raise PermissionDenied(
            f"{peer.user} may not {act}, which is {account}'s" if account else f"{peer.user} may not {act}",
            advice="ask its owner, or an operator (`rights` in the daemon's configuration)",
            right="command",
        )

    def _check_quota(self, peer: Peer, verb: str) -> None:
        settings, engine = self._deps.config.commands, self._deps.engine
        if engine.open_of_user(peer.uid) >= settings.queue_per_user:
            raise _limited("queue_per_user", settings.queue_per_user, f"unfinished commands of user {peer.user}")
        if verb != "submit":
            return
        if engine.open_of_user(peer.uid, "submit") >= settings.submissions_per_user:
            limit = settings.submissions_per_user
            raise _limited("submissions_per_user", limit, f"unfinished submissions of user {peer.user}")
        if self._deps.cache.live_runs_of(peer.uid) >= settings.runs_per_user:
            raise LimitExceeded(
                f"user {peer.user} has {settings.runs_per_user} active runs, as many as commands.runs_per_user allows",
                advice="wait until some end, or cancel some (`bpsctl list --mine --active`)",
                limit="runs_per_user",
                value=settings.runs_per_user,
            )

    async def _command(
        self,
        verb: str,
        peer: Peer,
        *,
        backend: str,
        run_id: str,
        token: str | None,
        attempt: int | None,
        args: dict[str, Any],
        client: str,
        expires_s: float | None,
    ) -> CommandRecord:
        now = self._deps.clock()
        args = {**args, CLOCK: boot_clock()}
        expires = self._deps.config.commands.expires_s if expires_s is None else expires_s
        return CommandRecord(
            id="c" + "".join(secrets.choice(wire.RUN_ID_ALPHABET) for _ in range(8)),
            verb=verb,
            backend=backend,
            run_id=run_id,
            token=token,
            attempt=attempt,
            args={**args, "command_line": redact_text(await claimed_command_line(peer.pid))} if peer.pid else args,
            state="ACCEPTED",
            uid=peer.uid,
            pid=peer.pid,
            user=peer.user,
            client=client,
            accepted_at=now,
            expires_at=None if verb == "cancel" else now + expires,
        )

    async def _accepted(self, command: CommandRecord) -> None:
        self._deps.log.info(
            LogEvent.COMMAND_ACCEPTED,
            command=command.id,
            verb=command.verb,
            backend=command.backend,
            run=command.run_id,
            uid=command.uid,
            pid=command.pid,
            user=command.user,
        )
        await self._deps.cache.announce(
            "command.state",
            backend=command.backend,
            run=command.run_id,
            command=command.id,
            verb=command.verb,
            state="ACCEPTED",
            note="",
        )
        self._deps.engine.enqueue(command)


def _limited(limit: str, value: int, what: str) -> LimitExceeded:
    return LimitExceeded(
        f"there are {value} {what}, as many as commands.{limit} allows",
        advice="wait until some are over (`bpsctl commands --state ACCEPTED`), or cancel their runs",
        limit=limit,
        value=value,
    )


def _for(params: RunCommand) -> str:
    words = [f"in group {params.group}"] if params.group is not None else []
    words += [f"with label {params.label}"] if params.label is not None else []
    return " ".join(words)


def _ordinal(number: int) -> str:
    """Return a place in words: 1st, 2nd, 3rd, 4th, 11th."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def command_row(command: CommandRecord, *, created: bool = True) -> CommandRow:
    """A command as a client sees it."""
    hidden = {"workflow", *INTERNAL_ARGS}
    args = {name: value for name, value in command.args.items() if name not in hidden and value is not None}
    workflow = command.args.get("workflow")
    if workflow:
        args["workflow"] = {name: workflow.get(name) for name in ("name", "job_count", "run_summary")}
    return CommandRow(
        id=command.id,
        verb=command.verb,
        state=command.state,  # type: ignore[arg-type]  # the journal holds only these words
        backend=command.backend,
        run=command.run_id,
        token=command.token,
        attempt=command.attempt,
        uid=command.uid,
        pid=command.pid,
        user=command.user,
        client=command.client,
        args=args,
        accepted_at=command.accepted_at,
        expires_at=command.expires_at,
        started_at=command.started_at,
        ended_at=command.ended_at,
        result=command.result,
        error=command.error,
        note=command.note,
        created=created,
    )
