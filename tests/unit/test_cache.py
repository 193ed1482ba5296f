"""The cache takes large polls in pieces and gives way in between; what is seen then is always whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from bpsd.cache import Cache
from bpsd.errors import Conflict
from bpsd.jobtable import JobTable
from bpsd.models import JobObservation, KnownRun, PollResult, RunObservation, SourceReport, WmsStates
from bpsd.runs import RunRecord
from bpsd.slices import JOBS_PER_PIECE, in_pieces
from bpsd.store import Batch

JOBS = 4 * JOBS_PER_PIECE + 1


def make_cache(batches: list[Batch]) -> Cache:
    async def put(batch: Batch) -> None:
        batches.append(batch)

    async def identify(backend: str, seen: Sequence[RunObservation]) -> list[str]:
        return [f"r{int(obs.wms_id):08d}" for obs in seen]

    async def recall(run_ids: Sequence[str]) -> list[object]:
        return []

    return Cache(put=put, identify=identify, recall=recall)  # type: ignore[arg-type]  # nothing is ever recalled


def seen(
    state: WmsStates, *, jobs: int = 0, wms_id: str = "1", time: float | None = None, rank: int = 0
) -> RunObservation:
    return RunObservation(
        wms_id=wms_id,
        source="queue",
        state=state,
        attempt=1,
        rank=rank,
        source_time=time,
        jobs=[JobObservation(name=f"j{n}", label="l", state=state, attempt=1) for n in range(jobs)],
    )


def polled(*observations: RunObservation, cursor: str | None = None) -> PollResult:
    run_cursors = {} if cursor is None else {obs.wms_id: cursor for obs in observations}
    return PollResult(
        observations=observations,
        cursor=cursor,
        run_cursors=run_cursors,
        sources=(SourceReport(name="queue", status="ok"),),
    )


def test_pieces_say_all_that_the_whole_says_and_the_end_comes_last() -> None:
    whole = seen(WmsStates.SUCCEEDED, jobs=JOBS)
    pieces = in_pieces(whole)

    assert [job for piece in pieces for job in piece.jobs] == list(whole.jobs)
    assert all(0 < len(piece.jobs) <= JOBS_PER_PIECE for piece in pieces)
    assert [piece.state for piece in pieces] == [None, None, None, None, WmsStates.SUCCEEDED]
    assert in_pieces(seen(WmsStates.FAILED, jobs=3)) == [seen(WmsStates.FAILED, jobs=3)]
    assert {piece.state for piece in in_pieces(seen(WmsStates.RUNNING, jobs=JOBS))} == {WmsStates.RUNNING}


async def test_who_looks_while_a_large_poll_is_applied_never_sees_an_end_without_its_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bpsd.slices.SLICE_S", 0.0)
    cache = make_cache([])
    await cache.apply_poll("b", polled(seen(WmsStates.RUNNING, jobs=JOBS)), 1.0)
    looks: list[tuple[bool, int]] = []
    over = asyncio.Event()

    async def look() -> None:
        while not over.is_set():
            record, jobs = cache.record("r00000001"), cache.jobs("r00000001")
            assert sum(jobs.state_counts().values()) == JOBS
            looks.append((record.live, jobs.in_state(WmsStates.SUCCEEDED)))
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(look())
        await cache.apply_poll("b", polled(seen(WmsStates.SUCCEEDED, jobs=JOBS)), 2.0)
        over.set()

    assert len({succeeded for _, succeeded in looks}) >= 4  # it did give way between the pieces
    assert all(live or succeeded == JOBS for live, succeeded in looks)
    assert not cache.record("r00000001").live


async def test_cursors_come_after_what_they_cover_and_batches_stay_small() -> None:
    batches: list[Batch] = []
    cache = make_cache(batches)
    small = [seen(WmsStates.RUNNING, wms_id=str(n)) for n in range(2, 1000)]

    changed = await cache.apply_poll("b", polled(seen(WmsStates.RUNNING, jobs=JOBS), *small, cursor="c"), 1.0)

    assert changed == 999
    first_cursor = next(n for n, batch in enumerate(batches) if batch.run_cursors)
    assert sum("r00000001" in (*batch.jobs_append, *batch.jobs_replace) for batch in batches[: first_cursor + 1]) == 5
    assert [batch.cursors for batch in batches if batch.cursors] == [{"b": "c"}]
    assert batches[-1].cursors
    assert max(len(batch.runs) for batch in batches) <= 100
    assert len(await cache.known("b")) == cache.live_runs("b") == 999
    assert {known.cursor for known in await cache.known("b")} == {"c"}


async def test_a_report_has_the_rows_of_now_also_of_those_that_were_made_ready() -> None:
    cache = make_cache([])
    await cache.apply_poll("b", polled(seen(WmsStates.RUNNING, jobs=3)), 1.0)
    assert json.loads(cache.row("r00000001"))["state"] == "RUNNING"

    for began, state in ((2.0, WmsStates.HELD), (3.0, WmsStates.PENDING)):  # once after a reader, once after none
        await cache.apply_poll("b", polled(seen(state, jobs=3)), began)
    row = json.loads(cache.row("r00000001"))

    assert (row["state"], row["counts"], row["observed_at"], row["source"]) == ("PENDING", {"PENDING": 3}, 3.0, "queue")
    assert cache.counts() == {"b": {"live": 1, "hot": 1, "jobs": 3}}
    await cache.apply_poll("b", polled(seen(WmsStates.FAILED, jobs=4)), 4.0)
    assert cache.counts() == {"b": {"live": 0, "hot": 1, "jobs": 4}}


async def test_what_a_cancelled_poll_has_changed_reaches_the_store() -> None:
    batches: list[Batch] = []
    cache = make_cache(batches)
    some = [seen(WmsStates.RUNNING, jobs=JOBS, wms_id=str(n)) for n in range(1, 50)]

    async with anyio.create_task_group() as group:
        group.start_soon(cache.apply_poll, "b", polled(*some, cursor="c"), 1.0)
        while cache.counts().get("b", {}).get("hot", 0) < 5:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()

    hot = cache.counts()["b"]["hot"]
    assert 5 <= hot < 49
    assert len({run.run_id for batch in batches for run in batch.runs}) == hot
    told = [
        job for batch in batches for doc in batch.jobs_append.values() for job in JobTable.load(None, [doc]).names()
    ]
    assert len(told) == cache.counts()["b"]["jobs"]
    assert not any(batch.cursors for batch in batches)


async def test_many_changes_are_folded_into_a_snapshot_that_holds_all_of_them() -> None:
    batches: list[Batch] = []
    cache = make_cache(batches)
    for began, state in enumerate([WmsStates.READY, WmsStates.RUNNING, WmsStates.SUCCEEDED]):
        await cache.apply_poll("b", polled(seen(state, jobs=2000)), float(began))

    folded = [n for n, batch in enumerate(batches) if batch.jobs_replace]
    assert folded
    later = [doc for batch in batches[folded[-1] + 1 :] for doc in batch.jobs_append.values()]
    table = JobTable.load(batches[folded[-1]].jobs_replace["r00000001"], later)
    assert table.state_counts() == cache.jobs("r00000001").state_counts() == {"SUCCEEDED": 2000}
    assert not any(batch.jobs_replace and batch.jobs_append for batch in batches)


async def test_many_sightings_of_one_run_in_a_poll_write_pieces_and_no_snapshots() -> None:
    batches: list[Batch] = []
    cache = make_cache(batches)
    states = [WmsStates.READY, WmsStates.RUNNING, WmsStates.SUCCEEDED]
    await cache.apply_poll("b", polled(*(seen(state, jobs=20) for state in states)), 1.0)

    assert not any(batch.jobs_replace for batch in batches)
    assert sum(len(batch.jobs_append) for batch in batches) == 3


# -- ids that a WMS gives again ---------------------------------------------------------------------------------------


OLD, NEW = "s#1.0#100", "s#1.0#900"


def shown(global_wms_id: str, state: WmsStates, **facts: Any) -> RunObservation:
    submitted = float(global_wms_id.rpartition("#")[2])
    return RunObservation(
        wms_id="1.0",
        source="queue",
        state=state,
        global_wms_id=global_wms_id,
        submit_time=submitted,
        path=f"/{submitted}",
        **facts,
    )


def cache_of_reused_ids() -> Cache:
    async def put(batch: Batch) -> None:
        pass

    async def identify(backend: str, seen: Sequence[RunObservation]) -> list[str]:
        return ["rold00000" if obs.global_wms_id == OLD else "rnew00000" for obs in seen]

    async def recall(run_ids: Sequence[str]) -> list[object]:
        return []

    cache = Cache(put=put, identify=identify, recall=recall)  # type: ignore[arg-type]  # nothing is ever recalled
    cache.use_forms("b", lambda text: (text,))
    return cache


def as_polled(*observations: RunObservation, cursors: dict[str, str] | None = None, absent: str = "") -> PollResult:
    return PollResult(
        observations=observations,
        run_cursors=cursors or {},
        absent=(absent,) if absent else (),
        sources=(SourceReport(name="queue", status="ok"),),
    )


async def test_a_reused_id_with_another_global_id_is_another_run_and_names_the_newer_one() -> None:
    cache = cache_of_reused_ids()
    await cache.apply_poll("b", as_polled(shown(OLD, WmsStates.SUCCEEDED), cursors={OLD: "end"}), 1.0)

    both = shown(NEW, WmsStates.RUNNING), shown(OLD, WmsStates.SUCCEEDED)  # the older is seen last
    await cache.apply_poll("b", as_polled(*both, cursors={NEW: "begin", OLD: "end"}), 2.0)

    assert {r.run_id: r.state for r in cache.records()} == {
        "rold00000": WmsStates.SUCCEEDED,
        "rnew00000": WmsStates.RUNNING,
    }
    assert cache.resolve("1.0").run_id == "rnew00000"
    assert cache.resolve(OLD).run_id == "rold00000"
    assert [(k.run_id, k.global_wms_id, k.cursor) for k in await cache.known("b")] == [("rnew00000", NEW, "begin")]


async def test_the_absence_of_a_run_whose_id_was_reused_is_not_that_of_the_newer_run() -> None:
    cache = cache_of_reused_ids()
    await cache.apply_poll("b", as_polled(shown(OLD, WmsStates.RUNNING), shown(NEW, WmsStates.RUNNING)), 1.0)

    await cache.apply_poll("b", as_polled(shown(NEW, WmsStates.RUNNING), absent=OLD), 2.0)

    assert cache.record("rold00000").state is WmsStates.UNKNOWN
    assert cache.record("rnew00000").state is WmsStates.RUNNING


async def test_the_same_id_with_another_global_id_in_the_same_folder_is_the_next_attempt() -> None:
    cache = make_cache([])
    old = RunObservation(wms_id="1", source="history", state=WmsStates.FAILED, global_wms_id="s#1.0#5", rank=10)
    new = RunObservation(wms_id="1", source="queue", state=WmsStates.RUNNING, global_wms_id="s#1.0#9")
    await cache.apply_poll("b", as_polled(old), 1.0)

    await cache.apply_poll("b", as_polled(new), 2.0)
    await cache.apply_poll("b", as_polled(old), 3.0)

    (record,) = cache.records()
    assert (record.attempt, record.state, record.global_wms_id) == (2, WmsStates.RUNNING, "s#1.0#9")
    assert [a.global_wms_id for a in record.attempts] == ["s#1.0#5", "s#1.0#9"]


class ByWmsId:
    """A service whose orders name runs by their WMS ids."""

    def order_id(self, run: KnownRun) -> str:
        return run.wms_id


class ByGlobalId:
    """A service whose orders name runs by their global ids."""

    def order_id(self, run: KnownRun) -> str:
        return run.key


async def test_an_order_for_a_run_whose_id_was_reused_names_it_globally_or_is_refused() -> None:
    cache = cache_of_reused_ids()
    await cache.apply_poll("b", as_polled(shown(OLD, WmsStates.RUNNING), shown(NEW, WmsStates.RUNNING)), 1.0)
    old, new = cache.record("rold00000"), cache.record("rnew00000")

    assert cache.order_id(old, ByGlobalId()) == OLD  # type: ignore[arg-type]  # all that is asked of a service here
    assert cache.order_id(new, ByGlobalId()) == NEW  # type: ignore[arg-type]
    assert cache.order_id(new, ByWmsId()) == "1.0"  # type: ignore[arg-type]
    with pytest.raises(Conflict, match=r"gave the id 1\.0 of run rold00000 to run rnew00000"):
        cache.order_id(old, ByWmsId())  # type: ignore[arg-type]


def test_of_one_source_the_later_to_arrive_counts_whatever_its_clock_says() -> None:
    record = RunRecord(run_id="r1", backend="b", source="journal")
    for state, time in ((WmsStates.RUNNING, 11.0), (WmsStates.HELD, 1.0), (WmsStates.RUNNING, -5.0)):
        record.fold(seen(state, time=time), time, None, 100)
        assert record.state is state


def test_an_end_that_a_better_source_confirmed_is_as_firm_as_that() -> None:
    record = RunRecord(run_id="r1", backend="b", source="journal")
    record.fold(seen(WmsStates.FAILED, rank=0), 1.0, None, 100)
    file = RunObservation(wms_id="1", source="exit file", state=WmsStates.FAILED, attempt=1, rank=30)
    record.fold(file, 2.0, None, 100)
    changes, _ = record.fold(seen(WmsStates.SUCCEEDED, rank=10), 3.0, None, 100)

    assert record.state is WmsStates.FAILED
    assert [change.kind for change in changes] == ["run.conflict"]
