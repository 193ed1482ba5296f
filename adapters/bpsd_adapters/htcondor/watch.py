"""What the polls of one pool see: runs from queue and history of each schedd, jobs from the runs' logs."""

from __future__ import annotations

__all__ = ["Watcher"]

import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import msgspec

from bpsd.errors import BackendAuthError, BackendUnavailable, DeadlineExceeded
from bpsd.models import (
    TERMINAL,
    JobObservation,
    KnownRun,
    PollRequest,
    PollResult,
    RunObservation,
    SourceReport,
    WmsSpecificInfo,
    WmsStates,
)
from bpsd_adapters.htcondor.classads import Ad, as_number, as_text, run_note, run_state
from bpsd_adapters.htcondor.finder import Found
from bpsd_adapters.htcondor.observe import HISTORY, QUEUE, Ids, dag_file, observe_child, observe_run
from bpsd_adapters.htcondor.pool import Answer, Pool
from bpsd_adapters.htcondor.runfiles import RunFiles

OVERLAP_S = 120.0
"""How much of the history is read again: what entered it late is not missed."""

CLOCK_KEPT_S = 600.0

LEFT_ALONE_S = 60.0
"""How long one schedd of several that did not answer in time is left alone, so that the others are not kept waiting."""

SECONDS_PER_DAY = 86_400.0
_CHILDREN = "children:"


class _Seen(msgspec.Struct):
    """What one schedd said in a poll."""

    schedd: str | None
    runs: dict[str, tuple[dict[str, Any], str]] = {}
    sources: list[SourceReport] = []
    born_held: list[dict[str, Any]] = []
    complete: bool = False
    refused: BackendAuthError | None = None


class _Held:
    """Jobs that were submitted on hold, by the DAGMan that did it; those of a group may belong to any run."""

    def __init__(self, runs: Mapping[str, tuple[dict[str, Any], str]], seen: Sequence[_Seen]) -> None:
        clusters = {as_number(ad, "ClusterId") for ad, _ in runs.values()}
        self._ads: dict[tuple[str | None, int | None], list[dict[str, Any]]] = {}
        for each in seen:
            for ad in each.born_held:
                dagman = as_number(ad, "DAGManJobId")
                self._ads.setdefault((each.schedd, dagman if dagman in clusters else None), []).append(ad)

    def of(self, schedd: str | None, cluster: int | None) -> list[dict[str, Any]]:
        """Those that may be jobs of a run."""
        return [*self._ads.get((schedd, cluster), ()), *self._ads.get((schedd, None), ())]


class Watcher:
    """Sees the runs of a pool.

    Parameters
    ----------
    pool : `~bpsd_adapters.htcondor.pool.Pool`
        Whom to ask.
    schedds : `~collections.abc.Sequence`
        Names; `None` for the one that the backend submits to.
    history_days : `float`
        How far back the first look goes.
    read_bytes : `int`
        The most that is read of logs in one poll; 0: no logs, the DAGs' own counters must do.
    """

    def __init__(self, pool: Pool, schedds: Sequence[str | None], history_days: float, read_bytes: int) -> None:
        self._pool = pool
        self._schedds = tuple(schedds)
        self._history_s = history_days * SECONDS_PER_DAY
        self._read_bytes = read_bytes
        self._files: dict[str, RunFiles] = {}
        self._clock: tuple[float, float] | None = None
        self._clock_at = 0.0
        self._held_since: dict[str | None, float] = {}
        """Jobs submitted on hold are asked for once; all of them again when logs are read from their beginning."""
        self._reread = False
        self._hung: dict[tuple[str | None, str], tuple[float, str]] = {}

    def files_of(self, wms_id: str) -> RunFiles | None:
        """The files of a run that is watched."""
        return self._files.get(wms_id)

    async def look(self, found: Found) -> RunObservation:
        """One run in full, now."""
        _, zone = await self.clock()
        run = {found.wms_id: (dict(found.ad), found.source)}
        while True:
            seen, _, more = await self._observe(run, _Held(run, ()), {}, PollRequest(), zone)
            if not more:
                return seen[0]

    async def clock(self) -> tuple[float, float]:
        """The submit host's time now, and its zone."""
        now = time.monotonic()
        if self._clock is None or now - self._clock_at > CLOCK_KEPT_S:
            self._clock = await self._pool.host_clock()
            self._clock_at = now
        return self._clock[0] + now - self._clock_at, self._clock[1]

    async def poll(self, request: PollRequest) -> PollResult:
        """See `~bpsd.interface.WmsService.poll`."""
        now, zone = await self.clock()
        since = _since(request.cursor, now - self._history_s)
        seen = [_Seen(schedd) for schedd in self._schedds]
        async with anyio.create_task_group() as group:
            for each in seen:
                group.start_soon(self._ask, each, since.get(each.schedd or "", now - self._history_s))
        if all(each.refused is not None for each in seen):
            raise BackendAuthError(str(seen[0].refused))
        runs: dict[str, tuple[dict[str, Any], str]] = {}
        for each in seen:
            runs.update(each.runs)
        absent = await self._look_up(request.known, runs, seen)
        held = _Held(runs, seen)
        left = await self._left_behind(request.known, runs)
        self._reread = False
        observations, cursors, more = await self._observe(runs, held, left, request, zone)
        for each in seen:
            if each.complete:
                since[each.schedd or ""] = now - OVERLAP_S
                self._held_since[each.schedd] = 0.0 if self._reread else now - OVERLAP_S
        return PollResult(
            observations=observations,
            cursor=msgspec.json.encode(since).decode(),
            run_cursors=cursors,
            sources=tuple(source for each in seen for source in each.sources),
            absent=absent,
            more=more,
        )

    # -- runs --------------------------------------------------------------------------------------------------------

    async def _ask(self, seen: _Seen, since: float) -> None:
        """The queue first: what leaves it meanwhile is then in the history."""
        held_since = self._held_since.get(seen.schedd, 0.0)
        queue = await self._source(seen, QUEUE, lambda: self._pool.runs(seen.schedd, held_since))
        history = await self._source(seen, HISTORY, lambda: self._pool.ended(seen.schedd, since))
        for ad in queue.ads if queue is not None else ():
            if as_number(ad, "JobUniverse") == 7:
                seen.runs[Ids.of(ad, seen.schedd).text(ad)] = (ad, QUEUE)
            else:
                seen.born_held.append(ad)
        for ad in history.ads if history is not None else ():  # one that left in between is in both
            seen.runs[Ids.of(ad, seen.schedd).text(ad)] = (ad, HISTORY)
        seen.complete = queue is not None and history is not None

    async def _source(self, seen: _Seen, name: str, ask: Any) -> Answer | None:
        where = name if seen.schedd is None else f"{name} of {seen.schedd}"
        began = time.monotonic()
        until, why = self._hung.get((seen.schedd, name), (0.0, ""))
        if until > began:
            seen.sources.append(SourceReport(name=where, status="failed", error=f"{why}; asked again soon"))
            return None
        try:
            answer: Answer = await ask()
        except DeadlineExceeded as exc:
            if len(self._schedds) > 1:
                self._hung[seen.schedd, name] = (time.monotonic() + LEFT_ALONE_S, exc.message)
            seen.sources.append(
                SourceReport(name=where, status="failed", cost_s=time.monotonic() - began, error=exc.message)
            )
            return None
        except (BackendUnavailable, BackendAuthError) as exc:
            if isinstance(exc, BackendAuthError):
                seen.refused = exc
            seen.sources.append(
                SourceReport(name=where, status="failed", cost_s=time.monotonic() - began, error=exc.message)
            )
            return None
        covers = "runs in the queue" if name == QUEUE else "runs that left the queue"
        seen.sources.append(
            SourceReport(name=where, status="ok", covers=covers, cost_s=answer.cost_s, cost_bytes=answer.cost_bytes)
        )
        return answer

    async def _look_up(
        self, known: Sequence[KnownRun], runs: dict[str, tuple[dict[str, Any], str]], seen: Sequence[_Seen]
    ) -> tuple[str, ...]:
        """Known runs that are in neither: their history is read as far as it goes, then nobody knows them."""
        complete = {each.schedd for each in seen if each.complete}
        absent = []
        for run in known:
            ids = Ids.parse(run.wms_id)
            if run.wms_id in runs or ids is None or not self._watches(ids, complete):
                continue
            schedd = self._watched(ids)
            try:
                found = await self._pool.history(schedd, f"ClusterId == {ids.cluster} && ProcId == 0", "-limit", "1")
            except (BackendUnavailable, BackendAuthError):
                continue
            same = [ad for ad in found.ads if run.token in (None, as_text(ad, "bps_token"))]
            if same:
                runs[run.wms_id] = (same[0], HISTORY)
            else:
                absent.append(run.wms_id)
        return tuple(absent)

    async def _left_behind(
        self, known: Sequence[KnownRun], runs: Mapping[str, tuple[dict[str, Any], str]]
    ) -> dict[str, int]:
        """Live runs whose DAGMan was removed, and how many of their jobs are in the queue all the same."""
        removed: dict[str | None, dict[str, dict[str, Any]]] = {}
        for run in known:
            ad, source = runs.get(run.wms_id, ({}, QUEUE))
            if source == HISTORY and run_state(ad) is WmsStates.DELETED and run.state not in TERMINAL:
                removed.setdefault(self._watched_of(run.wms_id), {})[run.wms_id] = ad
        left: dict[str, int] = {}
        for schedd, ads in removed.items():
            try:
                counted = await self._pool.left_behind(schedd, [*ads.values()])
            except (BackendUnavailable, BackendAuthError):
                continue  # that the run is over is known; what else is there, the next poll cannot tell either
            left |= {wms_id: counted.get(as_number(ad, "ClusterId") or 0, 0) for wms_id, ad in ads.items()}
        return left

    def _watched(self, ids: Ids) -> str | None:
        return ids.schedd if ids.schedd in self._schedds else None

    def _watches(self, ids: Ids, complete: set[str | None]) -> bool:
        return self._watched(ids) in complete

    # -- jobs --------------------------------------------------------------------------------------------------------

    async def _observe(
        self,
        runs: Mapping[str, tuple[dict[str, Any], str]],
        held: _Held,
        left: Mapping[str, int],
        request: PollRequest,
        zone: float,
    ) -> tuple[list[RunObservation], dict[str, str], bool]:
        before = {run.wms_id: run.cursor for run in request.known}
        newest = _newest(runs)
        for gone in [wms_id for wms_id in self._files if wms_id not in runs]:
            del self._files[gone]
        observations, cursors, more = [], {}, False
        room = self._read_bytes
        sizes = await self._sizes()
        for wms_id, (ad, source) in runs.items():
            if not self._read_bytes:
                observations.append(observe_run(ad, wms_id, source))
                continue
            dag = dag_file(ad)
            info, files = None, None
            if dag is not None and wms_id in newest:
                files, info, unread = await self._read(wms_id, dag, ad, zone, room, sizes)
                room -= files.bytes_read if files is not None else 0
                more |= unread
            if files is None:
                children, cursors[wms_id] = await self._children(wms_id, ad, source, before.get(wms_id))
                observations.append(observe_run(ad, wms_id, source, jobs=children, left=left.get(wms_id, 0), info=info))
                continue
            tracker = files.tracker
            for job in held.of(self._watched_of(wms_id), as_number(ad, "ClusterId")):
                name = as_text(job, "bps_job_name") or as_text(job, "DAGNodeName") or ""
                if tracker.cluster_of(name) == as_number(job, "ClusterId"):
                    tracker.born_held(name, float(as_number(job, "EnteredCurrentStatus") or 0), run_note(job))
            if source == HISTORY and not left.get(wms_id):
                await files.finish(run_state(ad))
            jobs = tracker.changed(before.get(wms_id))
            cursors[wms_id] = tracker.cursor
            observations.append(
                observe_run(
                    ad,
                    wms_id,
                    source,
                    jobs=jobs,
                    total=len(tracker),
                    job_failed=tracker.failed(),
                    left=left.get(wms_id, 0),
                )
            )
        return observations, cursors, more

    async def _children(
        self, wms_id: str, ad: dict[str, Any], source: str, cursor: str | None
    ) -> tuple[list[JobObservation], str]:
        """The jobs of a run whose files cannot be read, as far as they changed: asked of the pool itself."""
        ids = Ids.of(ad, self._watched_of(wms_id))
        number = (cursor or "").removeprefix(_CHILDREN)
        since = float(number) if (cursor or "").startswith(_CHILDREN) and number.isdigit() else 0.0
        if source == HISTORY and since and since > (as_number(ad, "EnteredCurrentStatus") or 0) + OVERLAP_S:
            return [], f"{_CHILDREN}{int(since)}"
        now, _ = await self.clock()
        try:
            ads = await self._pool.children(ids.schedd, ids.cluster, since)
        except (BackendUnavailable, BackendAuthError):
            return [], cursor or ""
        jobs = [job for each in ads if (job := observe_child(each)) is not None]
        return jobs, f"{_CHILDREN}{int(now - OVERLAP_S)}"

    async def _sizes(self) -> dict[str, int]:
        """How large the logs are that are followed, asked for all of them at once."""
        paths = [path for files in self._files.values() for path in files.logs]
        try:
            return await self._pool.sizes(paths)
        except BackendUnavailable:
            return {}  # each is then asked for by itself, and says what is wrong with it

    def _watched_of(self, wms_id: str) -> str | None:
        ids = Ids.parse(wms_id)
        return None if ids is None else self._watched(ids)

    async def _read(
        self, wms_id: str, dag: str, ad: Ad, zone: float, room: int, sizes: Mapping[str, int]
    ) -> tuple[RunFiles | None, WmsSpecificInfo | None, bool]:
        """The run's files, read as far as there is room; or why not."""
        files = self._files.get(wms_id)
        if files is None:
            files = self._files[wms_id] = RunFiles(self._pool.transport, dag, zone)
            self._reread |= (as_number(ad, "QDate") or 0) < (await self.clock())[0] - OVERLAP_S
        tracker = files.tracker
        try:
            more = await files.update(max(0, room), sizes)
            self._reread |= files.tracker is not tracker
            return files, None, more
        except (OSError, BackendUnavailable) as exc:
            del self._files[wms_id]
            info = WmsSpecificInfo()
            info.add_message(
                "jobs come from the queue and the history: {dag} cannot be read ({why})", dag=dag, why=str(exc)
            )
            return None, info, False


def _since(cursor: str | None, otherwise: float) -> dict[str, float]:
    if cursor is None:
        return {}
    try:
        return msgspec.json.decode(cursor, type=dict[str, float])
    except msgspec.MsgspecError:
        return {"": otherwise}


def _newest(runs: Mapping[str, tuple[dict[str, Any], str]]) -> set[str]:
    """The newest run in each folder: the files there are its own."""
    best: dict[str, tuple[int, str]] = {}
    for wms_id, (ad, _) in runs.items():
        folder = dag_file(ad)
        if folder is not None:
            best[folder] = max(best.get(folder, (-1, "")), (as_number(ad, "QDate") or 0, wms_id))
    return {wms_id for _, wms_id in best.values()}
