"""``hold`` and ``release``: safe to repeat, so a doubt is settled by asking again."""

from __future__ import annotations

__all__ = ["Hold", "Release"]

from bpsd.commands.outcomes import Again, Desk, Done, Failed, Outcome
from bpsd.errors import BackendAuthError, BackendUnavailable, BpsdError, Conflict
from bpsd.interface import WmsService
from bpsd.journal import CommandRecord


class Hold:
    """Puts a run on hold."""

    participle = "held"

    async def perform(self, desk: Desk, command: CommandRecord) -> Outcome:
        """Ask the WMS once."""
        record = desk.cache.get(command.run_id)
        wms_id = record.wms_id if record is not None else ""
        try:
            service = desk.service
            agreed, message = await desk.call(command.verb, self.ask, service, wms_id)
        except (BackendUnavailable, BackendAuthError) as exc:
            return Again(str(exc))
        except BpsdError as exc:
            return Failed(exc)
        desk.backend.wake(command.verb)
        if not agreed:
            return Failed(Conflict(f"run {command.run_id} was not {self.participle}: {message}"))
        return Done(note=message)

    async def look_up(self, desk: Desk, command: CommandRecord) -> Outcome:
        """Whatever happened, asking again is safe."""
        return Again(f"{command.verb} is safe to repeat")

    async def ask(self, service: WmsService, wms_id: str) -> tuple[bool, str]:
        """The call itself."""
        return await service.hold(wms_id)


class Release(Hold):
    """Releases a run."""

    participle = "released"

    async def ask(self, service: WmsService, wms_id: str) -> tuple[bool, str]:
        """The call itself."""
        return await service.release(wms_id)
