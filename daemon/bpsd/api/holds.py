"""The method ``holds``: what is on hold, over all runs and backends, grouped by reason."""

from __future__ import annotations

__all__ = ["Holds"]

from itertools import islice

import msgspec

from bpsd.api.conditions import Condition
from bpsd.api.deps import Deps
from bpsd.api.paging import fitting, holding, position
from bpsd.holds import HoldGroups, held_in
from bpsd.messages import HoldsParams, HoldsResult
from bpsd.runs import RunRecord
from bpsd.server import Call
from bpsd.slices import Pause


class Holds:
    """Answers from memory, in slices."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    async def holds(self, call: Call, params: HoldsParams) -> msgspec.Raw:
        """The groups, the largest first."""
        deps = self._deps
        deps.check_backends(params.backend)
        start = position("holds", params.after) or 0
        groups, pause, seq = HoldGroups(params.label, params.group), Pause(), deps.cache.seq
        async with deps.scans.turn(call.peer.uid):
            for record in await self._runs(call, params):
                jobs = deps.cache.jobs(record.run_id) if record.run_id in deps.cache else None
                for held in held_in(record, jobs) if jobs is not None else ():
                    if held is not None:
                        groups.add(record, held)
                    await pause.if_due()
                await pause.if_due()
            rows = groups.rows()
            page, _ = await fitting(islice(rows, start, None), params.limit)
        answer = HoldsResult(
            groups=[],
            held=sum(group.held for group in rows),
            run_count=groups.run_count,
            seq=seq,
            time=deps.clock(),
            next=str(start + len(page.rows)) if page.full else None,
        )
        return holding(answer, "groups", page.rows)

    async def _runs(self, call: Call, params: HoldsParams) -> list[RunRecord]:
        """The live runs that may have something on hold; a label chooses among their jobs, not among them."""
        if params.runs:
            return await self._deps.hot(params.runs, params.backend[0] if params.backend else None)
        conditions = msgspec.structs.replace(params, label=None, active=True)
        condition = Condition(conditions, call.peer, self._deps.clock(), self._deps.policy)
        pause = Pause()
        found = []
        for record in self._deps.cache.records():
            if condition(record):
                found.append(record)
            await pause.if_due()
        return found
