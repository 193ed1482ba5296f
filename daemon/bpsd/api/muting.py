"""``mute`` and ``unmute``: whether the notifications of the configuration tell of a run."""

from __future__ import annotations

__all__ = ["Muting"]

from bpsd.api.deps import Deps
from bpsd.errors import PermissionDenied
from bpsd.messages import MuteParams, MuteResult
from bpsd.peers import may_command
from bpsd.runs import Change, RunRecord
from bpsd.server import Call


class Muting:
    """What a person says of a run that the WMS need not know. It goes to the timeline with the person's name."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    async def mute(self, call: Call, params: MuteParams) -> MuteResult:
        """Notify nobody of this run any more."""
        return await self._set(call, params, muted=True)

    async def unmute(self, call: Call, params: MuteParams) -> MuteResult:
        """Notify of this run again."""
        return await self._set(call, params, muted=False)

    async def _set(self, call: Call, params: MuteParams, *, muted: bool) -> MuteResult:
        record, _, hot = await self._deps.find(params.run, params.backend)
        if not may_command(call.peer, self._deps.policy, uid=record.uid, backend=record.backend, account=record.owner):
            raise PermissionDenied(
                f"{call.peer.user} may not mute run {record.run_id}, which is somebody else's",
                advice="ask its owner, or an operator (`rights` in the daemon's configuration)",
                right="command",
            )
        if not hot:
            await self._deps.cache.thaw([record.run_id])

        def edit(record: RunRecord) -> list[Change]:
            if record.muted is muted:
                return []
            record.muted = muted
            return [Change("run.muted", {"muted": muted, "user": call.peer.user, "uid": call.peer.uid})]

        await self._deps.cache.note_run(record.run_id, record.backend, edit)
        return MuteResult(run=record.run_id, muted=muted)
