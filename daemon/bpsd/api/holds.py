"""The method ``holds``: what is on hold, over all runs and backends, grouped by reason."""

from __future__ import annotations

__all__ = ["Holds"]

import msgspec

from bpsd.api.deps import Deps
from bpsd.api.paging import fitting
from bpsd.api.reads import Reads
from bpsd.errors import InvalidParams
from bpsd.holds import HoldGroups
from bpsd.messages import HoldsParams, HoldsResult
from bpsd.runs import RunRecord
from bpsd.server import Call
from bpsd.slices import Pause


class Holds:
    """Answers from memory, in slices."""

    def __init__(self, deps: Deps, reads: Reads) -> None:
        self._deps, self._reads = deps, reads

    async def holds(self, call: Call, params: HoldsParams) -> HoldsResult:
        """The groups, the largest first."""
        cache = self._deps.cache
        self._deps.check_backends(params.backend)
        groups, pause = HoldGroups(params.label, params.group), Pause()
        for record in self._runs(call, params):
            if record.run_id in cache:
                groups.add(record, cache.jobs(record.run_id))
            await pause.if_due()
        rows = groups.rows()
        start = 0
        if params.after is not None:
            if not params.after.isdigit():
                raise InvalidParams(f"holds: after is {params.after!r}, expected the next of the page before")
            start = int(params.after)
        page, more = fitting(rows[start:], params.limit)
        return HoldsResult(
            groups=page,
            held=sum(group.held for group in rows),
            run_count=len({run for group in rows for run in group.runs}),
            seq=cache.seq,
            time=self._deps.clock(),
            next=str(start + len(page)) if more else None,
        )

    def _runs(self, call: Call, params: HoldsParams) -> list[RunRecord]:
        """The live runs that may have something on hold; a label chooses among their jobs, not among them."""
        if params.runs:
            backend = params.backend[0] if params.backend else None
            return [self._deps.cache.resolve(run, backend) for run in params.runs]
        conditions = msgspec.structs.replace(params, label=None, active=True)
        return [record for record in self._deps.cache.records() if self._reads.matches(conditions, call, record)]
