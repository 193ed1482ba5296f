"""``hold`` and ``release``: safe to repeat, so a doubt is settled by asking again."""

from __future__ import annotations

__all__ = ["Hold", "Release"]

from bpsd.commands.outcomes import Again, Desk, Done, Failed, Outcome
from bpsd.errors import BackendAuthError, BackendUnavailable, BpsdError, Conflict, StorageError, UnsupportedOperation
from bpsd.holds import Selection, held_in, select_held, select_waiting, waiting_in
from bpsd.interface import WmsService
from bpsd.journal import CommandRecord
from bpsd.slices import found_in


class Hold:
    """Puts a run on hold, or what waits of it with a label."""

    participle = "held"

    async def perform(self, desk: Desk, command: CommandRecord) -> Outcome:
        """Ask the WMS once."""
        record = desk.cache.get(command.run_id)
        chosen = await self.choose(desk, command)
        if chosen is None:
            return Done(note="nothing of it is held for that any more")
        if not chosen.whole and not chosen.jobs:
            return Failed(Conflict(f"run {command.run_id} was not {self.participle}: {chosen.note}"))
        try:
            wms_id = desk.order_id(record) if record is not None else ""
            agreed, message = await self._ask_for(desk, command, wms_id, chosen)
        except (BackendUnavailable, BackendAuthError) as exc:
            return Again(str(exc))
        except StorageError as exc:
            return Again(str(exc), storage=True)
        except BpsdError as exc:
            return Failed(exc)
        desk.backend.wake(command.verb)
        if not agreed:
            return Failed(Conflict(f"run {command.run_id} was not {self.participle}: {message}"))
        return Done(note="; ".join(filter(None, (message, chosen.note))))

    async def _ask_for(self, desk: Desk, command: CommandRecord, wms_id: str, chosen: Selection) -> tuple[bool, str]:
        """By name, so that nothing is hit that came meanwhile; the run as a whole where that is what is meant."""
        if chosen.jobs and not (chosen.whole and chosen.itself):
            try:
                return await desk.call(command.verb, self.ask, desk.service, wms_id, chosen.jobs)
            except UnsupportedOperation:  # it holds and releases whole runs only
                if not chosen.whole:
                    raise
        return await desk.call(command.verb, self.ask, desk.service, wms_id, ())

    async def look_up(self, desk: Desk, command: CommandRecord) -> Outcome:
        """Whatever happened, asking again is safe."""
        return Again(f"{command.verb} is safe to repeat")

    async def choose(self, desk: Desk, command: CommandRecord) -> Selection | None:
        """What of the run it is about, as it is now; `None`: nothing any more."""
        label, record = command.args.get("label"), desk.cache.get(command.run_id)
        if record is None or label is None:
            return Selection(whole=True, itself=True)
        waiting = await found_in(waiting_in(desk.cache.jobs(command.run_id), label))
        return select_waiting(record, waiting, label)

    async def ask(self, service: WmsService, wms_id: str, jobs: tuple[str, ...]) -> tuple[bool, str]:
        """The call itself."""
        return await service.hold(wms_id, jobs)


class Release(Hold):
    """Releases a run, or what is held of it by label or reason."""

    participle = "released"

    async def choose(self, desk: Desk, command: CommandRecord) -> Selection | None:
        """Whatever is held; with a label or a group, what of it is held now."""
        label, group = command.args.get("label"), command.args.get("group")
        record = desk.cache.get(command.run_id)
        if record is None or (label is None and group is None):
            return Selection(whole=True, itself=True)
        everything = await found_in(held_in(record, desk.cache.jobs(command.run_id)))
        return select_held(record, everything, label, group)

    async def ask(self, service: WmsService, wms_id: str, jobs: tuple[str, ...]) -> tuple[bool, str]:
        """The call itself."""
        return await service.release(wms_id, jobs)
