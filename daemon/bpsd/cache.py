"""What the daemon knows now: hot runs in memory, every change as a numbered event, and what the store is to keep.

Everything here runs on the event loop and touches memory only. What walks over many runs or jobs gives way to waiting
requests (a poll of 10,000 changed runs must not delay an answer). Between two slices every run is whole, so that a
reader sees each run before or after its change. One run with very many changed jobs is taken in pieces, as if the
source had told of them one after the other: its counts are right at each moment, and its end comes with the last piece.
"""

from __future__ import annotations

__all__ = ["Cache", "Recalled"]

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from bpsd.errors import Conflict, RunAmbiguous, RunNotFound
from bpsd.events import TRANSIENT_KINDS, EventBus
from bpsd.hotrun import HotRun, RunCounts
from bpsd.interface import WmsService
from bpsd.jobtable import JobTable, encode_changes
from bpsd.models import JobObservation, KnownRun, PollResult, RunObservation, WmsStates
from bpsd.reducer import JOURNAL_SOURCE, absence_is_proof, confirms_all
from bpsd.runnames import RunNames
from bpsd.runorder import RunOrder, Scan
from bpsd.runs import Change, RunRecord, decode_record, encode_record
from bpsd.slices import Pause, in_pieces, in_turns
from bpsd.store import Batch, Loaded, StoredRun, TimelineEvent
from bpsd.writebehind import Handover

RUNS_PER_BATCH = 100
"""Runs that are handed to the store at once: making its rows of them is a slice of its own."""

SNAPSHOT_BYTES = 65_536
"""Changes of a run's jobs in the store beyond which they are folded into a new snapshot, unless that is larger: a start
reads a job from a snapshot fifty times as fast as from a change."""

INDEX_IDLE_S = 120.0
"""After so many seconds without a change a run's job index is dropped (it is made again when needed)."""

T = TypeVar("T")

Recalled = tuple[StoredRun, bytes | None, Sequence[bytes]]
"""A run in the store, with the snapshot of its jobs and the changes since."""

_ROW_TAIL = b',"observed_at":null,"source":""}'


class Cache:
    """The hot runs of all backends.

    Parameters
    ----------
    put : callable
        Hands a `~bpsd.store.Batch` to the store; waits only if the store is far behind.
    identify : callable
        Gives run ids to sightings of one backend, durably: ``(backend, observations) -> run ids`` in the same order.
    recall : callable
        Reads runs that have cooled back from the store, by our ids.
    text_chars : `int`
        Longest text field taken from outside.
    clock : callable
        Epoch seconds.
    """

    def __init__(
        self,
        *,
        put: Callable[[Batch], Awaitable[None]],
        identify: Callable[[str, Sequence[RunObservation]], Awaitable[Sequence[str]]],
        recall: Callable[[Sequence[str]], Awaitable[Sequence[Recalled]]],
        text_chars: int = 4096,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._put = put
        self._identify = identify
        self._recall = recall
        self.text_chars = text_chars
        self._clock = clock
        self._hot: dict[str, HotRun] = {}
        self._names = RunNames()
        self._order = RunOrder()
        self._counts = RunCounts()
        self._tail: tuple[float | None, str] = (None, "")
        self._tail_bytes = _ROW_TAIL
        self._cursors: dict[str, str | None] = {}
        self._confirmed: dict[str, float] = {}
        self.events = EventBus(clock)

    def __repr__(self) -> str:
        return f"<Cache {len(self._hot)} runs, seq {self.seq}>"

    # -- starting ----------------------------------------------------------------------------------------------------

    def load(self, loaded: Loaded) -> list[str]:
        """Take what the store kept; returns the ids of runs whose record could not be read (they are seen anew).

        ``loaded`` is emptied on the way: a million jobs in two forms at once would be the most the daemon ever holds.
        """
        damaged = []
        for stored in loaded.runs:
            try:
                record = decode_record(stored.doc)
                hot = HotRun(record, cursor=loaded.run_cursors.get((record.backend, record.run_id)))
                if record.live:
                    kept = loaded.jobs.pop(stored.run_id, (None, ()))
                    hot.take_jobs(JobTable.load(*kept), *kept)
            except (msgspec.MsgspecError, ValueError):
                damaged.append(stored.run_id)
                continue
            hot.shelved = not record.live
            self._add(hot)
        self._order.load((run_id, hot.record.since) for run_id, hot in self._hot.items())
        self._cursors.update(loaded.cursors)
        return damaged

    @property
    def seq(self) -> int:
        """The number of the latest event."""
        return self.events.seq

    def use_forms(self, backend: str, forms: Callable[[str], tuple[str, ...]]) -> None:
        """How this backend's WMS ids may be written (`~bpsd.interface.WmsService.resolve_id`)."""
        self._names.use_forms(backend, forms)

    # -- asking ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._hot)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._hot

    def get(self, run_id: str) -> RunRecord | None:
        """The record of a hot run, by our id."""
        hot = self._hot.get(run_id)
        return hot.record if hot else None

    def record(self, run_id: str) -> RunRecord:
        """The record of a hot run, by our id; `KeyError` if it is not hot."""
        return self._hot[run_id].record

    def jobs(self, run_id: str) -> JobTable:
        """The jobs of a hot run; `KeyError` if it is not hot."""
        return self._hot[run_id].jobs

    def records(self) -> Iterator[RunRecord]:
        """All hot runs, the newest first; those that go meanwhile are left out."""
        return (self._hot[run_id].record for run_id in self._order.run_ids() if run_id in self._hot)

    def scan(self, take: Callable[[RunRecord], T | None], *, after: str | None = None) -> Scan[T | None]:
        """Take something (`None`: nothing) of all hot runs, or of those behind ``after``, as they are now."""

        def of_run(run_id: str) -> T | None:
            return take(self._hot[run_id].record) if run_id in self._hot else None

        return self._order.scan(of_run, after)

    def newest_first(self, run_ids: Iterable[str]) -> list[str]:
        """These runs in the order of `records`, without those that are not hot."""
        return self._order.sorted(run_ids)

    def by_token(self, token: str) -> RunRecord | None:
        """The hot run that bpsd submitted under ``token``."""
        run_id = self._names.of_token(token)
        return self._hot[run_id].record if run_id else None

    def resolve(self, text: str, backend: str | None = None) -> RunRecord:
        """The hot run that a person calls ``text``: our id, a WMS id in any form, the global id, the token or the path.

        Raises
        ------
        RunNotFound
            If no hot run answers to it.
        RunAmbiguous
            If several do.
        """
        found = self.candidates(text, backend)
        if len(found) == 1:
            return found[0]
        if found:
            raise RunAmbiguous(
                f"{len(found)} runs are called {text}",
                advice="name the backend (--backend), or use one of the ids that begin with r",
                candidates=[{"id": r.run_id, "backend": r.backend, "wms_id": r.wms_id, "name": r.name} for r in found],
            )
        raise RunNotFound(
            f"no run is called {text}" + (f" on backend {backend}" if backend else ""),
            advice="`bpsctl list` shows what there is",
        )

    def latest_names(self) -> list[str]:
        """Names of the latest runs: what a mistyped one may have meant."""
        return self._names.latest()

    def candidates(self, text: str, backend: str | None = None) -> list[RunRecord]:
        """All hot runs that a person may call ``text``."""
        ids = [text] if text in self._hot else self._names.called(text)
        found = [self._hot[run_id].record for run_id in ids]
        return [r for r in found if backend is None or r.backend == backend]

    def wms_ids(self, text: str) -> dict[str, tuple[str, ...]]:
        """The WMS ids that a person may mean by ``text``, by backend."""
        return self._names.wms_ids(text)

    def row(self, run_id: str) -> bytes:
        """The report row of a run as JSON (a `~bpsd.messages.RunRow` without the parts of a single run)."""
        hot = self._hot[run_id]
        hot.read = True
        tail = (self.observed_at(hot.record), hot.record.source)
        if tail != self._tail:  # most runs of a backend were last seen in the same poll
            self._tail = tail
            self._tail_bytes = b',"observed_at":%s,"source":%s}' % tuple(map(msgspec.json.encode, tail))
        return (hot.row or self._encode_row(hot)) + self._tail_bytes

    def _encode_row(self, hot: HotRun) -> bytes:
        row = hot.record.as_row(hot.jobs)
        # What every poll changes comes last and is put in when the row is read; the rest stays encoded.
        row.observed_at, row.source = None, ""
        hot.row = msgspec.json.encode(row).removesuffix(_ROW_TAIL)
        return hot.row

    def observed_at(self, record: RunRecord) -> float | None:
        """When a source last confirmed the row: for a live run also by a complete poll that had nothing new of it."""
        confirmed = self._confirmed.get(record.backend) if record.live else None
        if confirmed is None or record.observed_at is None:
            return record.observed_at
        return max(confirmed, record.observed_at)

    def cursor(self, backend: str) -> str | None:
        """The adapter's own cursor."""
        return self._cursors.get(backend)

    async def known(self, backend: str) -> tuple[KnownRun, ...]:
        """The live runs of a backend, for a poll."""
        known = []
        pause = Pause()
        for hot in tuple(self._hot.values()):
            r = hot.record
            if r.backend == backend and r.wms_id and r.live:
                known.append(r.as_known(hot.cursor))
            await pause.if_due()
        return tuple(known)

    def order_id(self, record: RunRecord, service: WmsService) -> str:
        """Return the id by which an order of a backend's service names a run.

        Raises
        ------
        Conflict
            If all that is known of the run is an id that its WMS gave to another run since, or it has no id.
        """
        order_id = service.order_id(record.as_known())
        if not order_id:
            raise Conflict(
                f"run {record.run_id} has no id in the WMS of backend {record.backend}: it was not submitted yet, or"
                " its submission failed",
                advice=f"`bpsctl report {record.run_id}` shows its state",
                run=record.run_id,
            )
        holder = self._names.of_wms_id(record.backend, record.wms_id)
        if order_id == record.wms_id and holder not in (None, record.run_id):
            raise Conflict(
                f"backend {record.backend} gave the id {record.wms_id} of run {record.run_id} to run {holder} since:"
                " an order would reach that run",
                advice=f"look for jobs of {record.run_id} with the tools of the WMS;"
                f" `bpsctl report {holder}` shows the other run",
                run=record.run_id,
                holder=holder,
            )
        return order_id

    # -- taking ------------------------------------------------------------------------------------------------------

    async def apply_poll(self, backend: str, result: PollResult, began: float) -> int:
        """Fold a poll into the runs; returns how many runs changed.

        What was folded when it is cancelled has been handed to the store: the next poll goes on from there.
        """
        changed = 0
        touched: list[str] = []
        pause = Pause()
        async with Handover(self._put) as out:
            for first in range(0, len(result.observations), RUNS_PER_BATCH):
                some = result.observations[first : first + RUNS_PER_BATCH]
                for run_id, seen in zip(await self._run_ids(backend, some), some, strict=True):
                    *pieces, last = in_pieces(seen)
                    moved = False
                    for piece in pieces:
                        await out.make_room(run_id)
                        moved |= self._apply_one(run_id, backend, piece, began, None, out.batch)
                        await pause.if_due()
                    await out.make_room(run_id)
                    cursor = result.run_cursors.get(seen.key)
                    if self._apply_one(run_id, backend, last, began, cursor, out.batch) or moved:
                        changed += 1
                        touched.append(run_id)
                    await self._fold(self._hot[run_id], out)
                    await pause.if_due()
                await out.flush()
                await asyncio.sleep(0)
            if absence_is_proof(result.sources):
                names = tuple(dict.fromkeys(source.name for source in result.sources))
                for key in result.absent:
                    changed += self._vanish(backend, key, began, names, out.batch)
            if confirms_all(result.sources) and not result.more:
                self._confirmed[backend] = began
            for key, cursor in result.run_cursors.items():
                self._keep_cursor(backend, key, cursor, out.batch)
                await pause.if_due()
            if result.cursor is not None:
                self._cursors[backend] = result.cursor
                out.batch.cursors[backend] = result.cursor  # last: a cursor never runs ahead of what it covers
        await self._encode_rows(touched)
        return changed

    async def _fold(self, hot: HotRun, out: Handover) -> None:
        """Replace the changes of a run's jobs in the store by a snapshot, if they are many."""
        if hot.appended_bytes > max(SNAPSHOT_BYTES, hot.snapshot_bytes):
            await out.flush()
            out.batch.jobs_replace[hot.record.run_id] = await hot.snapshot()
            await out.flush()

    async def _encode_rows(self, run_ids: Sequence[str]) -> None:
        """Make the rows ready that somebody read before they changed: who reads them again need not wait for it."""
        pause = Pause()
        for run_id in run_ids:
            hot = self._hot.get(run_id)
            if hot is not None and hot.read:
                hot.read = False
                self._encode_row(hot)
                await pause.if_due()

    async def _run_ids(self, backend: str, seen: Sequence[RunObservation]) -> list[str]:
        given: Iterator[str] = iter(())
        found = [self._known_id(backend, obs) for obs in seen]
        missing = [obs for obs, run_id in zip(seen, found, strict=True) if run_id is None]
        if missing:
            ids = await self._identify(backend, missing)
            # A run that ended long ago may come back (restarted by hand): its past must come back with it.
            await self.thaw([run_id for run_id in ids if run_id not in self._hot])
            given = iter(ids)
        # What is told of jobs adds to what was known of them: it must be there.
        pairs = zip(found, seen, strict=True)
        await self.thaw([run_id for run_id, obs in pairs if run_id and obs.jobs and self._hot[run_id].shelved])
        return [run_id if run_id is not None else next(given) for run_id in found]

    def _known_id(self, backend: str, seen: RunObservation) -> str | None:
        run_id = self._of_key(backend, seen.key)
        if run_id is None and seen.global_wms_id is not None:
            run_id = self._names.of_wms_id(backend, seen.wms_id)
            if run_id is not None and self._hot[run_id].record.global_wms_id is not None:
                return None  # another attempt, or the WMS gave the id to another run: the journal knows
        if run_id is None:
            return None
        record = self._hot[run_id].record
        if seen.token is not None and record.token is not None and seen.token != record.token:
            return None  # the WMS gave the id to somebody else
        return run_id

    def _of_key(self, backend: str, key: str) -> str | None:
        """Return our id of a run of a backend by our id, its global id, or else its WMS id."""
        if key in self._hot and self._hot[key].record.backend == backend:
            return key
        for run_id in self._names.of_global_id(key):
            if self._hot[run_id].record.backend == backend:
                return run_id
        return self._names.of_wms_id(backend, key)

    def _apply_one(
        self, run_id: str, backend: str, seen: RunObservation, began: float, cursor: str | None, batch: Batch
    ) -> bool:
        hot = self._hot.get(run_id)
        changes: list[Change] = []
        if hot is None:
            hot = HotRun(RunRecord(run_id=run_id, backend=backend, first_seen_at=began, began=began, source="journal"))
            if seen.attempt is not None:
                hot.record.attempt = seen.attempt
            hot.record.wms_id = seen.wms_id
            self._insert(hot)
            changes.append(Change("run.seen", {"wms_id": seen.wms_id, "name": seen.run}))
        self._order.about_to_change(run_id)
        folded, moved = hot.record.fold(seen, began, hot.jobs, self.text_chars)
        changes += folded
        self._names.add(hot.record)
        if seen.global_wms_id is not None:
            self._names.add_global_id(run_id, seen.global_wms_id[: self.text_chars])
        if cursor is not None:
            hot.cursor = cursor
            batch.run_cursors[(backend, run_id)] = cursor
        if not changes:
            return False
        self._publish(hot, changes, moved, batch)
        return True

    def _vanish(self, backend: str, key: str, began: float, sources: tuple[str, ...], batch: Batch) -> int:
        run_id = self._of_key(backend, key)
        if run_id is None:
            return 0
        hot = self._hot[run_id]
        self._order.about_to_change(run_id)
        changes = hot.record.vanish(began, sources)
        if not changes:
            return 0
        self._publish(hot, changes, (), batch)
        return 1

    def _keep_cursor(self, backend: str, key: str, cursor: str, batch: Batch) -> None:
        run_id = self._of_key(backend, key)
        if run_id is not None:
            self._hot[run_id].cursor = cursor
            batch.run_cursors[(backend, run_id)] = cursor

    async def note_run(self, run_id: str, backend: str, edit: Callable[[RunRecord], list[Change]]) -> None:
        """Let a command say what it knows of a run (made if it is not there yet)."""
        hot = self._hot.get(run_id)
        changes: list[Change] = []
        if hot is None:
            now = self._clock()
            hot = HotRun(RunRecord(run_id=run_id, backend=backend, first_seen_at=now, source="journal"))
            self._insert(hot)
            changes.append(Change("run.seen", {}))
        self._order.about_to_change(run_id)
        changes += edit(hot.record)
        self._names.add(hot.record)
        batch = Batch()
        self._publish(hot, changes, (), batch)
        await self._put(batch)

    async def withdraw(self, run_id: str, note: str) -> bool:
        """Forget a run that its WMS refused and tell its watchers; false for one that the WMS may have."""
        hot = self._hot.get(run_id)
        if hot is None or hot.record.wms_id or hot.record.source != JOURNAL_SOURCE:
            return False
        for kind, data in hot.record.from_journal(WmsStates.FAILED, note, self._clock()):
            hot.row = None
            # Not for the timeline, which would keep it.
            self.events.emit(kind, {**data, "refused": True, "note": note}, hot.record.backend, run_id)
        self._remove(run_id)
        await self._put(Batch(forget=[run_id]))
        return True

    async def put_again(self) -> None:
        """Hand everything to a store that had to begin anew."""
        for run_id in list(self._hot):
            hot = self._hot.get(run_id)
            if hot is None:
                continue
            batch = Batch()
            if len(hot.jobs):
                batch.jobs_replace[run_id] = await hot.snapshot()
            if hot.cursor is not None:
                batch.run_cursors[(hot.record.backend, run_id)] = hot.cursor
            self._publish(hot, (), (), batch)
            await self._put(batch)
            await asyncio.sleep(0)
        await self._put(Batch(cursors=dict(self._cursors)))

    async def announce(self, kind: str, *, backend: str | None = None, run: str | None = None, **data: Any) -> None:
        """Make an event that is about no run's state (a backend, a command, the daemon)."""
        batch = Batch()
        self._emit(Change(kind, data), backend, run, batch)
        await self._put(batch)

    async def thaw(self, run_ids: Sequence[str]) -> None:
        """Take runs that have cooled, and the jobs of shelved ones, back into memory, if the store has them."""
        if not run_ids:
            return
        for stored, snapshot, appended in await self._recall(run_ids):
            jobs = JobTable()
            await in_turns(jobs.loading(snapshot, appended))
            hot = self._hot.get(stored.run_id)
            if hot is None:
                hot = HotRun(decode_record(stored.doc))
                self._insert(hot)
            elif not hot.shelved:
                continue  # somebody else was quicker
            hot.take_jobs(jobs, snapshot, appended)
            self._counts.update(hot)

    def absorb(self, run_id: str, others: Sequence[str]) -> None:
        """Let runs go that turned out to be ``run_id``, seen by a source that shows no tokens.

        Their cursors go with them, so the next poll tells of ``run_id`` what was told of them.
        """
        for other in others:
            if other in self._hot and other != run_id:
                self._remove(other)

    async def cool(self, ended_before: float) -> int:
        """Let runs that ended before that time go from memory (they stay in the store); returns how many.

        Of runs that are over the jobs go sooner: after `INDEX_IDLE_S`.
        """
        pause = Pause()
        idle = time.monotonic() - INDEX_IDLE_S
        gone = 0
        for run_id, hot in list(self._hot.items()):
            if self._hot.get(run_id) is not hot:
                continue
            if not hot.record.live and (hot.record.end_time or hot.record.changed_at or 0.0) < ended_before:
                self._remove(run_id)
                gone += 1
            elif hot.moved_at < idle and hot.record.live:
                hot.jobs.forget_index()
            elif hot.moved_at < idle and len(hot.jobs):
                hot.jobs, hot.shelved = JobTable(), True
                self._counts.update(hot)
            await pause.if_due()
        return gone

    # -- bookkeeping -------------------------------------------------------------------------------------------------

    def _publish(self, hot: HotRun, changes: Sequence[Change], moved: Sequence[JobObservation], batch: Batch) -> None:
        hot.row = None
        self._counts.update(hot)
        hot.moved_at = time.monotonic()
        record = hot.record
        self._order.place(record.run_id, record.since)
        if moved:
            self._keep_jobs(hot, moved, batch)
        if len(hot.jobs) and not record.live:
            record.keep_summary(hot.jobs)
        for change in changes:
            self._emit(change, record.backend, record.run_id, batch)
        if moved:
            self.events.emit("job.state", {}, record.backend, record.run_id, moved)
        batch.runs.append(
            StoredRun(
                run_id=record.run_id,
                backend=record.backend,
                doc=encode_record(record),
                state=int(record.state),
                live=record.live,
                updated_at=self._clock(),
                ended_at=record.end_time,
                wms_id=record.wms_id,
                token=record.token,
                path=record.path,
                name=record.name,
                global_wms_id=record.global_wms_id,
            )
        )

    def _keep_jobs(self, hot: HotRun, moved: Sequence[JobObservation], batch: Batch) -> None:
        piece = encode_changes(hot.record.attempt, moved)
        hot.appended_bytes += len(piece)
        batch.jobs_append[hot.record.run_id] = piece

    def _emit(self, change: Change, backend: str | None, run_id: str | None, batch: Batch) -> None:
        event = self.events.emit(change.kind, change.data, backend, run_id)
        if change.kind not in TRANSIENT_KINDS:
            batch.events.append(
                TimelineEvent(
                    seq=event.seq,
                    time=event.time,
                    run_id=run_id,
                    backend=backend or "",
                    kind=change.kind,
                    doc=msgspec.json.encode(change.data),
                )
            )

    def _insert(self, hot: HotRun) -> None:
        self._add(hot)
        self._order.place(hot.record.run_id, hot.record.since)

    def _add(self, hot: HotRun) -> None:
        self._hot[hot.record.run_id] = hot
        self._counts.update(hot)
        self._names.add(hot.record)

    def _remove(self, run_id: str) -> None:
        self._order.about_to_change(run_id)
        hot = self._hot.pop(run_id)
        record = hot.record
        self._order.remove(run_id)
        self._counts.update(hot, gone=True)
        self._names.remove(record)

    def live_runs(self, backend: str) -> int:
        """How many live runs of a backend there are."""
        return self._counts.live(backend)

    def live_runs_of(self, uid: int) -> int:
        """How many live runs a user has submitted."""
        return self._counts.live_of[uid]

    def counts(self) -> dict[str, dict[str, int]]:
        """Per backend: live runs, hot runs, jobs known."""
        return self._counts.by_backend
