"""``restart``: a new attempt of a run, from the point of failure."""

from __future__ import annotations

__all__ = ["Restart"]

from functools import partial

from bpsd.commands.outcomes import Again, Desk, Done, Doubt, Failed, Outcome
from bpsd.errors import BackendAuthError, BackendUnavailable, BpsdError, Conflict, StorageError
from bpsd.journal import CommandRecord
from bpsd.models import WmsStates
from bpsd.runs import Change, RunRecord


class Restart:
    """Restarts a run under an attempt token of its own, so that an interrupted restart is found, not repeated."""

    async def perform(self, desk: Desk, command: CommandRecord) -> Outcome:
        """Ask the WMS for the next attempt."""
        record = desk.cache.get(command.run_id)
        try:
            service = desk.service
            wms_id = desk.order_id(record) if record is not None else command.args.get("wms_id", "")
        except BackendUnavailable as exc:
            return Again(str(exc))
        except Conflict as exc:
            return Failed(exc)
        try:
            new_id, _, message = await desk.call(
                "restarting", partial(service.restart, wms_id, attempt_token=_attempt_token(command))
            )
        except BackendAuthError as exc:
            return Again(str(exc))
        except BackendUnavailable as exc:
            return Doubt(str(exc))
        except StorageError as exc:
            return Doubt(str(exc), storage=True)
        except BpsdError as exc:
            return Failed(exc)
        if new_id is None:
            return Failed(
                Conflict(
                    f"backend {command.backend} did not restart {command.run_id}: {message or 'it gave no reason'}",
                    advice=f"`bpsctl report {command.run_id}` shows the state of the run",
                )
            )
        return await self._done(desk, command, new_id, message)

    async def look_up(self, desk: Desk, command: CommandRecord) -> Outcome:
        """Ask the WMS for the attempt's token."""
        since = desk.since(command)
        service = desk.service
        answer = await desk.call("looking for the attempt", service.find_by_token, _attempt_token(command), since)
        if answer.verdict == "found" and answer.wms_id is not None:
            return await self._done(desk, command, answer.wms_id, "")
        if answer.verdict == "absent" and (wait := desk.settles_in_s(command)) > 0:
            return Doubt(f"not found, which is proof only in {wait:.0f} s")
        if answer.verdict == "absent":
            return Again("the WMS does not have the new attempt")
        return Doubt(answer.reason or "the WMS cannot tell")

    async def _done(self, desk: Desk, command: CommandRecord, wms_id: str, message: str) -> Outcome:
        attempt = command.attempt or 1
        absorbed = await desk.journal.bind(command.run_id, attempt, wms_id, None, command.id)
        desk.cache.absorb(command.run_id, absorbed)

        def edit(record: RunRecord) -> list[Change]:
            changes = record.from_journal(
                WmsStates.READY, "restarted, not seen in the WMS yet", desk.clock(), attempt=attempt
            )
            if changes:
                record.wms_id = wms_id
            return changes

        await desk.cache.note_run(command.run_id, command.backend, edit)
        desk.backend.wake("restarted")
        return Done({"wms_id": wms_id, "attempt": attempt}, note=message)


def _attempt_token(command: CommandRecord) -> str:
    return f"{command.token or command.run_id}.{command.attempt}"
