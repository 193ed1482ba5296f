"""``submit``: prepare a workflow and hand it to the WMS under its token."""

from __future__ import annotations

__all__ = ["Submit", "check_submission", "workflow_of"]

from typing import Any

import msgspec

from bpsd.commands.outcomes import Again, Desk, Done, Doubt, Failed, Outcome
from bpsd.errors import BackendAuthError, BackendUnavailable, BpsdError, StorageError
from bpsd.interface import WmsService
from bpsd.journal import CommandRecord
from bpsd.models import WmsStates
from bpsd.runs import Change, RunRecord
from bpsd.workflow import WorkflowFile


def workflow_of(command: CommandRecord) -> WorkflowFile:
    """The validated workflow that a submit command carries."""
    return msgspec.convert(command.args["workflow"], WorkflowFile)


def _about(uid: int, umask: str | None = None) -> dict[str, Any]:
    """What an adapter is told of who submits."""
    return {"submitter_uid": uid, "submitter_umask": umask}


async def check_submission(service: WmsService, uid: int, workflow: WorkflowFile) -> None:
    """Ask an adapter what `Submit.perform` asks it before the WMS is touched; for validate and the dry run.

    Raises
    ------
    BpsdError
        What the submission would be refused with.
    """
    await service.run_submission_checks()
    await service.check_workflow(_about(uid), workflow)


class Submit:
    """Hands a run to the WMS, and finds it there by its token when that was interrupted."""

    async def perform(self, desk: Desk, command: CommandRecord) -> Outcome:
        """Prepare and submit; only ``submit`` itself can leave a doubt."""
        workflow, about = workflow_of(command), _about(command.uid, command.args.get("umask"))
        try:
            service = desk.service
            await desk.call("checking before submission", service.run_submission_checks)
            prepared = await desk.call("preparing", service.prepare, about, workflow)
        except (BackendUnavailable, BackendAuthError, StorageError) as exc:  # it says nothing of the workflow
            return Again(str(exc), storage=isinstance(exc, StorageError))
        except BpsdError as exc:
            return Failed(exc)
        try:
            await desk.call("submitting", service.submit, prepared)
        except BackendAuthError as exc:
            return Again(str(exc))
        except (BackendUnavailable, StorageError) as exc:
            return Doubt(str(exc), storage=isinstance(exc, StorageError))
        except BpsdError as exc:
            return Failed(exc)
        if prepared.run_id is None:
            return Doubt("the adapter gave no id for the run")
        return await self._done(desk, command, prepared.run_id, prepared.submit_path)

    async def look_up(self, desk: Desk, command: CommandRecord) -> Outcome:
        """Ask the WMS for the token."""
        token, since = command.token or "", desk.since(command)
        service = desk.service
        if not service.capabilities.finds_by_token:
            return Doubt(f"backend {command.backend} finds no run by its token; look there whether it has the run")
        answer = await desk.call("looking for the run", service.find_by_token, token, since)
        if answer.verdict == "found" and answer.wms_id is not None:
            return await self._done(desk, command, answer.wms_id, answer.path)
        if answer.verdict == "absent" and (wait := desk.settles_in_s(command)) > 0:
            return Doubt(f"not found, which is proof only in {wait:.0f} s")
        if answer.verdict == "absent":
            return Again("the WMS does not have it")
        return Doubt(answer.reason or "the WMS cannot tell")

    async def _done(self, desk: Desk, command: CommandRecord, wms_id: str, path: str | None) -> Outcome:
        absorbed = await desk.journal.bind(command.run_id, 1, wms_id, path, command.id)
        desk.cache.absorb(command.run_id, absorbed)

        def edit(record: RunRecord) -> list[Change]:
            if not record.wms_id:
                record.wms_id = wms_id
            record.path = record.path or path
            return record.from_journal(WmsStates.READY, "handed to the WMS, not seen there yet", desk.clock())

        await desk.cache.note_run(command.run_id, command.backend, edit)
        desk.backend.wake("submitted")
        return Done({"wms_id": wms_id, "path": path})
