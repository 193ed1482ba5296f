"""Methods that read memory: ``ping version backends list report status jobs`` (and history where it is asked for)."""

from __future__ import annotations

__all__ = ["Reads", "is_mine"]

import fnmatch
import os
import platform
import pwd
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import anyio
import msgspec

from bpsd import __version__, wire
from bpsd.api.deps import Deps
from bpsd.api.paging import PAGE_BYTES, fitting, holding
from bpsd.errors import InvalidParams, RunNotFound
from bpsd.jobtable import JobTable
from bpsd.messages import (
    BackendPing,
    BackendPingResult,
    BackendsParams,
    BackendsResult,
    Filters,
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
    RunRow,
    StatusParams,
    StatusResult,
    VersionResult,
)
from bpsd.models import WmsStates
from bpsd.runs import RunRecord, decode_record
from bpsd.server import Call

SECONDS_PER_DAY = 86_400.0
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

    def list_runs(self, call: Call, params: ListParams) -> object:
        """Ids of runs; answered at once unless history is asked for."""
        self._deps.check_backends(params.backend)
        if params.after is not None and params.after.startswith(_COLD):
            return self._cold_list(params, call)
        page, more = fitting(map(_list_row, self._after(params, call, params.after)), self._limit(params))
        following = page[-1].id if more else _COLD if self._reaches_back(params) else None
        return ListResult(runs=page, seq=self._deps.cache.seq, next=following)

    async def _cold_list(self, params: ListParams, call: Call) -> msgspec.Raw:
        rows, following = await self._cold_rows(params, call, _list_row)
        return holding(ListResult(runs=[], seq=self._deps.cache.seq, next=following), "runs", rows)

    def report(self, call: Call, params: ReportParams) -> object:
        """Rows of runs; answered at once unless history or a fresh poll is asked for."""
        self._deps.check_backends(params.backend)
        if params.run is not None or params.max_age_s is not None or self._reaches_back(params):
            return self._report_slowly(call, params)
        return self._hot_page(call, params)

    def _reaches_back(self, params: ListParams | ReportParams) -> bool:
        if params.after is not None and params.after.startswith(_COLD):
            return True
        return params.hist is not None and params.hist > self._deps.config.history.hot_days and not params.active

    def _hot_page(self, call: Call, params: ReportParams) -> msgspec.Raw:
        cache = self._deps.cache
        rows: list[bytes] = []
        size, last, limit = 0, "", self._limit(params)
        following: str | None = None
        for record in self._after(params, call, params.after):
            row = cache.row(record.run_id)
            size += len(row) + 1
            if rows and (len(rows) == limit or size > PAGE_BYTES):
                following = last
                break
            rows.append(row)
            last = record.run_id
        if following is None and self._reaches_back(params):
            following = _COLD
        return self._page(rows, following)

    def _page(self, rows: list[bytes], following: str | None) -> msgspec.Raw:
        around = ReportResult(
            runs=[],
            seq=self._deps.cache.seq,
            time=self._deps.clock(),
            next=following,
            backends={backend.name: backend.row() for backend in self._deps.backends.values()},
        )
        return holding(around, "runs", rows)

    async def _report_slowly(self, call: Call, params: ReportParams) -> object:
        if params.max_age_s is not None:
            await self._freshen(params.run, params.backend, params.max_age_s)
        if params.run is not None:
            return await self._one(params)
        if params.after is not None and params.after.startswith(_COLD):
            return await self._cold_page(params, call)
        return self._hot_page(call, params)

    async def _one(self, params: ReportParams) -> ReportResult:
        deps = self._deps
        backend = params.backend[0] if params.backend else None
        assert params.run is not None
        record, jobs, hot = await deps.find(params.run, backend)
        row = record.as_row(jobs, full=True)
        row.observed_at = deps.cache.observed_at(record)
        if not hot:
            row.source = "history"
        return ReportResult(
            runs=[row],
            seq=deps.cache.seq,
            time=deps.clock(),
            backends={b.name: b.row() for b in deps.backends.values() if b.name == record.backend},
        )

    async def _cold_page(self, params: ReportParams, call: Call) -> msgspec.Raw:
        def as_row(record: RunRecord) -> RunRow:
            row = record.as_row(None)
            row.source = "history"
            return row

        return self._page(*await self._cold_rows(params, call, as_row))

    async def _cold_rows(
        self, params: ListParams | ReportParams, call: Call, as_row: Callable[[RunRecord], object]
    ) -> tuple[list[bytes], str | None]:
        """A page of what has cooled, encoded, and the ``after`` of the next one."""
        assert params.after is not None
        anchor, limit = params.after.removeprefix(_COLD) or None, self._limit(params)
        since = self._deps.clock() - (params.hist or 0.0) * SECONDS_PER_DAY
        stored = await self._deps.store.history(ended_after=since, backends=params.backend, limit=limit, after=anchor)
        rows: list[bytes] = []
        size, full = 0, len(stored) == limit
        for entry in stored:
            record = decode_record(entry.doc)
            if record.run_id not in self._deps.cache and self.matches(params, call, record):
                data = msgspec.json.encode(as_row(record))
                size += len(data) + 1
                if rows and size > PAGE_BYTES:
                    full = True
                    break
                rows.append(data)
            anchor = record.run_id
        return rows, f"{_COLD}{anchor}" if full else None

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
        total = record.total(jobs)
        counts = record.counts(jobs)
        return StatusResult(
            id=record.run_id,
            backend=record.backend,
            wms_id=record.wms_id,
            name=record.name,
            state=record.state.name,  # type: ignore[arg-type]  # the names are those of StateName
            code=int(record.state),
            attempt=record.attempt,
            percent=int(counts.get("SUCCEEDED", 0) / total * 100) if total else None,
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

    def jobs(self, call: Call, params: JobsParams) -> object:
        """A page of jobs of one run."""
        try:
            record = self._deps.cache.resolve(params.run, params.backend)
        except RunNotFound:
            return self._jobs_slowly(params)
        jobs = self._deps.cache.jobs(record.run_id)
        if not len(jobs) and not record.live:
            return self._jobs_slowly(params)
        return self._jobs_page(params, record, jobs, hot=True)

    async def _jobs_slowly(self, params: JobsParams) -> JobsResult:
        record, jobs, hot = await self._deps.find(params.run, params.backend)
        return self._jobs_page(params, record, jobs if jobs is not None else JobTable(), hot=hot)

    def _jobs_page(self, params: JobsParams, record: RunRecord, jobs: JobTable, *, hot: bool) -> JobsResult:
        names = jobs.names()
        rows = list(jobs.select(frozenset(WmsStates[name] for name in params.state), params.label))
        if params.pattern is not None:
            rows = [row for row in rows if fnmatch.fnmatchcase(names[row], params.pattern)]
        start = 0
        if params.after is not None:
            if not params.after.isdigit():
                raise InvalidParams(f"jobs: after is {params.after!r}, expected the next of the page before")
            start = next((n for n, row in enumerate(rows) if row > int(params.after)), len(rows))
        page = JobsResult(
            run=record.run_id,
            jobs=[],
            total=len(rows),
            seq=self._deps.cache.seq,
            observed_at=self._deps.cache.observed_at(record),
            source=record.source if hot else "history",
        )
        page.jobs, more = fitting((jobs.row(row) for row in rows[start:]), self._limit(params))
        page.next = str(rows[start + len(page.jobs) - 1]) if more else None
        return page

    def _limit(self, params: ListParams | ReportParams | JobsParams) -> int:
        return min(params.limit, self._deps.config.limits.page_rows)

    # -- filters -----------------------------------------------------------------------------------------------------

    def _after(self, params: Filters, call: Call, after: str | None) -> Iterator[RunRecord]:
        """Matching hot runs behind the one called ``after``, newest first."""
        records = iter(self._deps.cache.records())
        if after is not None:
            anchor = self._deps.cache.get(after)
            if anchor is None:
                raise InvalidParams(
                    f"the run {after}, after which the page begins, is not there any more",
                    advice="begin again with the first page",
                )
            records = (r for r in records if (-r.since, r.run_id) > (-anchor.since, anchor.run_id))
        return (record for record in records if self.matches(params, call, record))

    def matches(self, params: Filters, call: Call, record: RunRecord) -> bool:
        """Whether a run fulfils all conditions."""
        if params.backend and record.backend not in params.backend:
            return False
        if params.state and record.state.name not in params.state:
            return False
        if params.active and not record.live:
            return False
        if params.mine and not is_mine(record, call.peer.uid):
            return False
        if params.user and not ({record.owner, record.operator} & set(params.user)):
            return False
        if params.label is not None and record.label != params.label and params.label not in record.expected():
            return False
        if params.hist is not None and not record.live:
            ended = record.end_time or record.changed_at or 0.0
            if ended < self._deps.clock() - params.hist * SECONDS_PER_DAY:
                return False
        return params.pattern is None or any(
            fnmatch.fnmatchcase(text, params.pattern)
            for text in (record.run, record.payload, record.campaign, record.project, record.label)
            if text is not None
        )


def _list_row(record: RunRecord) -> ListRow:
    return ListRow(
        id=record.run_id,
        backend=record.backend,
        wms_id=record.wms_id,
        name=record.name,
        state=record.state.name,  # type: ignore[arg-type]  # the names are those of StateName
    )


def is_mine(record: RunRecord, uid: int) -> bool:
    """Whether a run is this user's: submitted through us, or under an account of that name."""
    return record.uid == uid if record.uid is not None else record.owner == _user_name(uid)


@lru_cache(maxsize=256)
def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
