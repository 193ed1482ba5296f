"""Methods that read memory: ``ping version backends list report status jobs`` (and history where it is asked for)."""

from __future__ import annotations

__all__ = ["Reads"]

import os
import platform
from collections.abc import Callable, Iterable

import anyio
import msgspec

from bpsd import __version__, wire
from bpsd.api.conditions import SECONDS_PER_DAY, Condition, JobCondition
from bpsd.api.deps import Deps
from bpsd.api.paging import Page, holding, position
from bpsd.errors import InvalidParams, RunNotFound
from bpsd.jobtable import JobTable
from bpsd.messages import (
    BackendPing,
    BackendPingResult,
    BackendsParams,
    BackendsResult,
    JobsParams,
    JobsResult,
    ListParams,
    ListResult,
    ListRow,
    Nothing,
    PingResult,
    RefreshParams,
    RefreshResult,
    ReportParams,
    ReportResult,
    StatusParams,
    StatusResult,
    VersionResult,
)
from bpsd.peers import may_submit
from bpsd.runs import RunRecord, decode_record
from bpsd.server import Call
from bpsd.slices import Pause

_COLD = "history:"


class Reads:
    """The methods that answer from what is known."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    def ping(self, call: Call, params: Nothing) -> PingResult:
        """The daemon is there."""
        return PingResult(time=self._deps.clock())

    def version(self, call: Call, params: Nothing) -> VersionResult:
        """Which daemon this is."""
        deps = self._deps
        return VersionResult(
            version=__version__,
            protocol=wire.PROTOCOL_VERSION,
            python=platform.python_version(),
            pid=os.getpid(),
            mode=deps.config.mode,
            uid=os.getuid(),
            socket=deps.config.socket,
            state_dir=deps.config.state_dir,
            config=deps.config_path,
            started_at=deps.started_at,
        )

    def backends(self, call: Call, params: BackendsParams) -> BackendsResult:
        """How the backends are doing."""
        chosen = [self._deps.backend(params.backend)] if params.backend else list(self._deps.backends.values())
        rows = []
        for backend in chosen:
            row = backend.row()
            row.submit_allowed = may_submit(call.peer, self._deps.policy, backend.name)
            if params.fields:
                fields = backend.service.capabilities.fields
                row.fields = {name: (support.value, note) for name, (support, note) in fields.items()}
            rows.append(row)
        return BackendsResult(backends=rows, time=self._deps.clock())

    async def backend_ping(self, call: Call, params: BackendPing) -> BackendPingResult:
        """Ask the WMS of one backend, or of all at once."""
        deps = self._deps
        chosen = [deps.backend(params.backend)] if params.backend else list(deps.backends.values())
        answers: dict[str, tuple[int, str, float]] = {}

        async def ask(name: str) -> None:
            answers[name] = await deps.backends[name].ping(params.pass_thru)

        async with anyio.create_task_group() as group:
            for backend in chosen:
                group.start_soon(ask, backend.name)
        return BackendPingResult(answers={b.name: answers[b.name] for b in chosen})

    async def refresh(self, call: Call, params: RefreshParams) -> RefreshResult:
        """Poll now, or join the poll in flight."""
        chosen = [self._deps.backend(params.backend)] if params.backend else list(self._deps.backends.values())
        await self._poll([backend.name for backend in chosen], params.timeout_s)
        return RefreshResult(last_good_at={backend.name: backend.last_good_at for backend in chosen})

    async def _poll(self, names: Iterable[str], timeout_s: float) -> None:
        with anyio.move_on_after(timeout_s):
            async with anyio.create_task_group() as group:
                for name in names:
                    group.start_soon(self._deps.backends[name].refresh)

    # -- runs --------------------------------------------------------------------------------------------------------

    async def list_runs(self, call: Call, params: ListParams) -> msgspec.Raw:
        """Ids of runs, as they were when the answer was begun."""
        self._deps.check_backends(params.backend)
        seq = self._deps.cache.seq
        rows, following = await self._rows(params, call, lambda record: msgspec.json.encode(_list_row(record)), None)
        return holding(ListResult(runs=[], seq=seq, next=following), "runs", rows)

    async def report(self, call: Call, params: ReportParams) -> object:
        """Rows of runs, as they were when the answer was begun (or when it was polled, with ``max_age_s``)."""
        self._deps.check_backends(params.backend)
        if params.max_age_s is not None:
            await self._freshen(params.run, params.backend, params.max_age_s)
        if params.run is not None:
            return await self._one(call, params)
        cache, sight = self._deps.cache, self._deps.sight(call)
        seq = cache.seq

        def hot(record: RunRecord) -> bytes:
            return sight.encoded(record, cache.row(record.run_id))

        def cold(record: RunRecord) -> bytes:
            return sight.encoded(record, _cold_row(record))

        return self._page(seq, *await self._rows(params, call, hot, cold))

    async def _rows(
        self,
        params: ListParams | ReportParams,
        call: Call,
        hot: Callable[[RunRecord], bytes],
        cold: Callable[[RunRecord], bytes] | None,
    ) -> tuple[list[bytes], str | None]:
        """A page of encoded rows, and the ``after`` of the next one: first what is hot, then what has cooled."""
        condition = Condition(params, call.peer, self._deps.clock(), self._deps.policy)
        async with self._deps.scans.turn(call.peer.uid):
            if params.after is not None and params.after.startswith(_COLD):
                return await self._cold_rows(params, condition, cold or hot)
            return await self._hot_rows(params, condition, hot)

    def _reaches_back(self, params: ListParams | ReportParams) -> bool:
        return params.hist is not None and params.hist > self._deps.config.history.hot_days and not params.active

    async def _hot_rows(
        self, params: ListParams | ReportParams, condition: Condition, encoded: Callable[[RunRecord], bytes]
    ) -> tuple[list[bytes], str | None]:
        page, last, pause = Page(self._limit(params)), "", Pause()

        def take(record: RunRecord) -> tuple[str, bytes] | None:
            return (record.run_id, encoded(record)) if condition(record) else None

        self._check_anchor(params.after)
        with self._deps.cache.scan(take, after=params.after) as scan:
            for taken in scan:
                if taken is not None:
                    if not page.add(taken[1]):
                        return page.rows, last
                    last = taken[0]
                await pause.if_due()
        return page.rows, _COLD if self._reaches_back(params) else None

    def _check_anchor(self, after: str | None) -> None:
        if after is not None and after not in self._deps.cache:
            raise InvalidParams(
                f"the run {after}, after which the page begins, is not there any more",
                advice="begin again with the first page",
            )

    def _page(self, seq: int, rows: list[bytes], following: str | None) -> msgspec.Raw:
        around = ReportResult(
            runs=[],
            seq=seq,
            time=self._deps.clock(),
            next=following,
            backends={backend.name: backend.row() for backend in self._deps.backends.values()},
        )
        return holding(around, "runs", rows)

    async def _one(self, call: Call, params: ReportParams) -> ReportResult:
        deps = self._deps
        backend = params.backend[0] if params.backend else None
        assert params.run is not None
        record, jobs, hot = await deps.find(params.run, backend)
        row = deps.sight(call).row(record, record.as_row(jobs, full=True))
        row.observed_at = deps.cache.observed_at(record)
        if not hot:
            row.source = "history"
        return ReportResult(
            runs=[row],
            seq=deps.cache.seq,
            time=deps.clock(),
            backends={b.name: b.row() for b in deps.backends.values() if b.name == record.backend},
        )

    async def _cold_rows(
        self, params: ListParams | ReportParams, condition: Condition, encoded: Callable[[RunRecord], bytes]
    ) -> tuple[list[bytes], str | None]:
        assert params.after is not None
        anchor, limit, pause = params.after.removeprefix(_COLD) or None, self._limit(params), Pause()
        since = self._deps.clock() - (params.hist or 0.0) * SECONDS_PER_DAY
        stored = await self._deps.store.history(ended_after=since, backends=params.backend, limit=limit, after=anchor)
        page = Page(limit)
        for entry in stored:
            record = decode_record(entry.doc)
            if record.run_id not in self._deps.cache and condition(record) and not page.add(encoded(record)):
                break
            anchor = record.run_id
            await pause.if_due()
        return page.rows, f"{_COLD}{anchor}" if page.full or len(stored) == limit else None

    def status(self, call: Call, params: StatusParams) -> object:
        """The state of one run; from memory unless it is cold or a fresh poll is asked for."""
        if params.max_age_s is None:
            try:
                record = self._deps.cache.resolve(params.run, params.backend)
            except RunNotFound:
                return self._status_slowly(params)
            return self._status_of(record, hot=True)
        return self._status_slowly(params)

    async def _status_slowly(self, params: StatusParams) -> StatusResult:
        if params.max_age_s is not None:
            await self._freshen(params.run, [params.backend] if params.backend else [], params.max_age_s)
        record, _, hot = await self._deps.find(params.run, params.backend)
        return self._status_of(record, hot=hot)

    def _status_of(self, record: RunRecord, *, hot: bool) -> StatusResult:
        backend = self._deps.backends.get(record.backend)
        observed_at = self._deps.cache.observed_at(record)
        stale = record.live and (backend is None or backend.is_stale(observed_at))
        jobs = self._deps.cache.jobs(record.run_id) if hot else None
        return StatusResult(
            id=record.run_id,
            backend=record.backend,
            wms_id=record.wms_id,
            name=record.name,
            state=record.state.name,  # type: ignore[arg-type]  # the names are those of StateName
            code=int(record.state),
            attempt=record.attempt,
            percent=record.percent(jobs),
            note=record.note,
            last_known=record.last_known.name if record.last_known is not None else None,  # type: ignore[arg-type]
            last_known_at=record.last_known_at,
            ended_at=record.end_time,
            observed_at=observed_at,
            source=record.source if hot else "history",
            stale=stale,
            error="" if not stale else backend.error if backend is not None else "it is not configured any more",
            seq=self._deps.cache.seq,
        )

    async def _freshen(self, run: str | None, backends: list[str], max_age_s: float) -> None:
        """Poll the backends concerned whose last good answer is older than ``max_age_s``."""
        deps = self._deps
        names = backends or list(deps.backends)
        if run is not None:
            found = {r.backend for r in deps.cache.candidates(run) if r.backend in deps.backends}
            names = [name for name in names if name in found] or names
        now = deps.clock()
        old = [name for name in names if now - (deps.backend(name).last_good_at or 0.0) > max_age_s]
        await self._poll(old, max(deps.backends[name].settings.polling.deadline_s for name in old) if old else 0.0)

    # -- jobs --------------------------------------------------------------------------------------------------------

    async def jobs(self, call: Call, params: JobsParams) -> msgspec.Raw:
        """A page of jobs of one run; each is as it was when it was found to fulfil the conditions."""
        deps = self._deps
        after, condition = position("jobs", params.after), JobCondition(params)
        async with deps.scans.turn(call.peer.uid):
            record, jobs, hot = await deps.find(params.run, params.backend)
            answer = JobsResult(
                run=record.run_id,
                jobs=[],
                total=0,
                seq=deps.cache.seq,
                observed_at=deps.cache.observed_at(record),
                source=record.source if hot else "history",
            )
            page = await self._jobs_page(answer, jobs or JobTable(), condition, after, self._limit(params))
        return holding(answer, "jobs", page.rows)

    async def _jobs_page(
        self, answer: JobsResult, jobs: JobTable, condition: JobCondition, after: int | None, limit: int
    ) -> Page:
        page, last, pause = Page(limit), 0, Pause()
        for row in condition.rows(jobs):
            if row is not None:
                answer.total += 1
                wanted = not page.full and (after is None or row > after)
                if wanted and page.add(msgspec.json.encode(jobs.row(row))):
                    last = row
            await pause.if_due()
        answer.next = str(last) if page.full else None
        return page

    def _limit(self, params: ListParams | ReportParams | JobsParams) -> int:
        return min(params.limit, self._deps.config.limits.page_rows)


def _cold_row(record: RunRecord) -> bytes:
    row = record.as_row(None)
    row.source = "history"
    return msgspec.json.encode(row)


def _list_row(record: RunRecord) -> ListRow:
    return ListRow(
        id=record.run_id,
        backend=record.backend,
        wms_id=record.wms_id,
        name=record.name,
        state=record.state.name,  # type: ignore[arg-type]  # the names are those of StateName
    )
