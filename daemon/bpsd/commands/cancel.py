"""``cancel``: a desired state, asked for until a source shows that the run is over."""

from __future__ import annotations

__all__ = ["Cancel"]

from bpsd.commands.outcomes import Again, Desk, Done, Failed, Outcome
from bpsd.errors import BackendAuthError, BackendUnavailable, BpsdError, Conflict, RunNotFound, StorageError
from bpsd.journal import CommandRecord
from bpsd.models import WmsStates
from bpsd.runs import Change, RunRecord


class Cancel:
    """Cancels a run and waits for the proof. Repeating it does no harm, so a doubt is settled by asking again."""

    async def perform(self, desk: Desk, command: CommandRecord) -> Outcome:
        """Ask, look, ask again, until the run is over."""
        pass_thru = command.args.get("pass_thru")
        while True:
            record = desk.cache.get(command.run_id)
            if record is not None and not record.live:
                return _over(record)
            if record is None or not record.wms_id:
                return await self._never_submitted(desk, command)
            message = ""
            try:
                service = desk.service
                agreed, message = await desk.call("cancelling", service.cancel, desk.order_id(record), pass_thru)
            except RunNotFound as exc:
                if record.state is WmsStates.UNKNOWN:  # every source that could know it has denied it: none to ask
                    return Failed(_unknown(record, exc))
                agreed = True  # gone from where it can be cancelled: the poll says what became of it
            except (BackendUnavailable, BackendAuthError, StorageError) as exc:
                agreed, message = False, str(exc)
            except BpsdError as exc:
                return Failed(exc)
            desk.backend.wake("cancelled")
            if await desk.until(command.run_id, lambda r: not r.live, desk.verify_s):
                continue
            if not agreed and message:
                await desk.journal.note(command.id, f"not cancelled yet: {message}")

    async def look_up(self, desk: Desk, command: CommandRecord) -> Outcome:
        """Whatever happened, asking again is safe."""
        return Again("cancelling is safe to repeat")

    async def _never_submitted(self, desk: Desk, command: CommandRecord) -> Outcome:
        def edit(record: RunRecord) -> list[Change]:
            return record.from_journal(WmsStates.DELETED, "cancelled before it was submitted", desk.clock())

        await desk.cache.note_run(command.run_id, command.backend, edit)
        return Done({"state": "DELETED"}, note="it had not been submitted")


def _unknown(record: RunRecord, error: RunNotFound) -> Conflict:
    return Conflict(
        f"backend {record.backend} does not know run {record.run_id} any more: {error.message}",
        advice="nobody can end what nobody knows; look for processes or jobs of it, and cancel again if it shows up",
        run=record.run_id,
    )


def _over(record: RunRecord) -> Done:
    note = "" if record.state is WmsStates.DELETED else f"it had ended by itself: {record.state.name}"
    return Done({"state": record.state.name}, note=note)
