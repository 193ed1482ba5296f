"""What the polls of one pool see: its runs, from queue and history of each schedd; `jobs` sees what is in them.

A poll is one wave of questions, all at once: of each schedd the queue, and of all followed logs the size. What comes
after it is asked only if something happened: the history if a run left the queue, logs that grew.
"""

from __future__ import annotations

__all__ = ["Watcher", "source_name"]

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from bpsd.errors import BackendAuthError, BackendUnavailable, DeadlineExceeded
from bpsd.models import TERMINAL, KnownRun, PollRequest, PollResult, RunObservation, SourceReport, WmsStates
from bpsd_adapters.htcondor.classads import Ad, as_number, as_text, run_state
from bpsd_adapters.htcondor.finder import Found
from bpsd_adapters.htcondor.hostclock import HostClock
from bpsd_adapters.htcondor.jobs import OBSERVING, OVERLAP_S, Held, JobWatcher, Looked, each
from bpsd_adapters.htcondor.observe import HISTORY, QUEUE, Ids, observe_run
from bpsd_adapters.htcondor.pool import Answer, Gone, Pool
from bpsd_adapters.htcondor.runfiles import Room, RunFiles
from bpsd_adapters.quarantine import Quarantine

CLOCK_KEPT_S = 600.0

LEFT_ALONE_S = 60.0
"""How long one schedd of several that did not answer in time is left alone, so that the others are not kept waiting."""

DENIED_S = 3600.0
"""How long a whole history that did not have a run is not read again for it: that costs a second for 50 MB of it."""

LOOKED_UP_AT_ONCE = 500
"""How many missing runs one question names: a command line has an end (128 kB for a word of it)."""

HISTORY_EVERY_S = 30.0
"""How often the history is read although no run is missed: others' runs may have come and gone between two polls."""

READING_S = 5.0
"""How long logs are read at least, however slow the pool was before that."""

SECONDS_PER_DAY = 86_400.0


class _Seen(msgspec.Struct):
    """What one schedd said in a poll."""

    schedd: str | None
    queue: Answer | None = None
    history: Answer | None = None
    history_asked: bool = False
    sources: list[SourceReport] = []
    refused: BackendAuthError | None = None

    @property
    def is_complete(self) -> bool:
        return self.queue is not None and self.history is not None

    def runs(self) -> dict[str, Found]:
        """Return the runs by their keys. One that left the queue in between is in both answers: then it has left it."""
        runs = {}
        for source, answer in ((QUEUE, self.queue), (HISTORY, self.history)):
            for ad in answer.ads if answer is not None else ():
                if as_number(ad, "JobUniverse") in (7, None):
                    found = Found(ad, Ids.of(ad, self.schedd), source)
                    runs[found.key] = found
        return runs

    def born_held(self) -> list[Ad]:
        """Jobs that were submitted on hold."""
        ads = self.queue.ads if self.queue is not None else ()
        return [ad for ad in ads if as_number(ad, "JobUniverse") not in (7, None)]


class _History(NamedTuple):
    """What a schedd's history said last: when that was (monotonic), and from when on (by the host's clock)."""

    at: float
    since: float
    ads: list[dict[str, Any]]


class _Cursor(msgspec.Struct, frozen=True):
    """Up to when the history of each schedd was read (by the submit host's clock), in which poll of how many."""

    since: dict[str, float] = {}
    poll: int = 0

    @classmethod
    def parse(cls, text: str | None) -> _Cursor:
        try:
            return msgspec.json.decode(text or "{}", type=cls)
        except msgspec.MsgspecError:
            return cls()

    def text(self) -> str:
        return msgspec.json.encode(self).decode()


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
    quarantine : `~bpsd_adapters.quarantine.Quarantine`
        Runs that broke in an unexpected way, by their ids.
    """

    def __init__(
        self,
        pool: Pool,
        schedds: Sequence[str | None],
        history_days: float,
        read_bytes: int,
        quarantine: Quarantine,
    ) -> None:
        self._quarantine = quarantine
        self._pool = pool
        self._schedds = tuple(schedds)
        self._history_s = history_days * SECONDS_PER_DAY
        self._read_bytes = read_bytes
        self._jobs = JobWatcher(pool, quarantine)
        self._clock: HostClock | None = None
        self._clock_at = 0.0
        self._ahead_s = 0.0
        self._held_since: dict[str | None, float] = {}
        """Jobs submitted on hold are asked for once; all of them again when logs are read from their beginning."""
        self._histories: dict[str | None, _History] = {}
        self._hung: dict[tuple[str | None, str], tuple[float, str]] = {}
        self._denied: dict[str, float] = {}
        self._polls = 0
        self._over: dict[str, str] = {}
        """Runs of the history, by key, that were reported to their end, with their cursors of then."""

        self._told: dict[str, str] = {}
        self._told_with = ""

    def files_of(self, key: str) -> RunFiles | None:
        """Return the files of a run that is watched."""
        return self._jobs.files_of(key)

    async def look(self, found: Found) -> RunObservation:
        """One run in full, now."""
        clock = await self.clock()
        runs = {found.key: found}
        while True:
            looked = await self._jobs.look(runs, {}, Held((), {}), {}, clock, Room(), {})
            if not looked.observations:
                raise BackendUnavailable(
                    f"run {found.wms_id} cannot be shown: {self._quarantine.note(found.key)}",
                    advice="the daemon's log has the traceback",
                )
            if not looked.more:
                return looked.observations[0]

    async def clock(self) -> HostClock:
        """The submit host's clock, now."""
        now = time.monotonic()
        if self._clock is None or now - self._clock_at > CLOCK_KEPT_S:
            clock = await self._pool.host_clock()
            answered = time.monotonic()
            # It was read somewhere between question and answer.
            self._clock, self._clock_at = clock, (now + answered) / 2
            self._ahead_s = clock.now - (time.time() - (answered - self._clock_at))
            now = answered
        return self._clock._replace(now=self._clock.now + now - self._clock_at)

    async def poll(self, request: PollRequest) -> PollResult:
        """See `~bpsd.interface.WmsService.poll`."""
        began = time.monotonic()
        clock = await self.clock()
        cursor = _Cursor.parse(request.cursor)
        seen = [_Seen(schedd) for schedd in self._schedds]
        sizes: dict[str, int] = {}

        async def measure() -> None:
            sizes.update(await self._jobs.sizes())

        live = self._live(request.known)
        since = {one.schedd: cursor.since.get(one.schedd or "", clock.now - self._history_s) for one in seen}
        asks = [self._ask(one, since[one.schedd], live.get(one.schedd, ())) for one in seen]
        await each([*asks, measure()], len(asks) + 1)
        if all(one.refused is not None for one in seen):
            raise BackendAuthError(str(seen[0].refused))
        runs: dict[str, Found] = {}
        for one in seen:
            for key, found in one.runs().items():
                runs.setdefault(key, found)  # a schedd that is named twice shows its runs twice
        request = msgspec.structs.replace(request, known=_with_keys(request.known, runs))
        absent = await self._look_up(request.known, runs, {one.schedd for one in seen if one.is_complete})
        request = msgspec.structs.replace(request, known=_with_keys(request.known, runs))
        room = Room(self._read_bytes, max(began + request.deadline_s / 2, time.monotonic() + READING_S))
        looked = await self._look(request, runs, seen, clock, room, sizes)
        read = dict(cursor.since)
        if self._jobs.reread:
            self._held_since.clear()
        for one in seen:
            if one.is_complete and not looked.more:  # what there was no room for is to be told again
                if one.history_asked:
                    read[one.schedd or ""] = clock.now - OVERLAP_S
                if not self._jobs.reread:
                    self._held_since[one.schedd] = clock.now - OVERLAP_S
        self._polls += 1
        self._told, self._told_with = looked.cursors, _Cursor(read, self._polls).text()
        return PollResult(
            observations=self._quarantine.noted(looked.observations, request.known, QUEUE),
            cursor=self._told_with,
            run_cursors=looked.cursors,
            sources=tuple(source for one in seen for source in one.sources),
            absent=absent,
            more=looked.more,
            clock_offset_s=self._ahead_s,
        )

    async def _look(
        self,
        request: PollRequest,
        runs: Mapping[str, Found],
        seen: Sequence[_Seen],
        clock: HostClock,
        room: Room,
        sizes: Mapping[str, int],
    ) -> Looked:
        """What is in the runs."""
        if not self._read_bytes:
            summed_up = []
            for key, found in runs.items():
                with self._quarantine.guard(key, OBSERVING):
                    summed_up.append(observe_run(found.ad, found.wms_id, found.source))
            return Looked(summed_up, {}, False)
        # What the last poll told of runs that are over by now is known, if that poll is known at all.
        told: dict[str, str | None] = dict(self._told if request.cursor == self._told_with else {})
        told.update((run.key, run.cursor) for run in request.known)
        self._over = self._past(request.known, runs, told, clock.now - OVERLAP_S)
        held = Held(runs.values(), {one.schedd: one.born_held() for one in seen})
        left = await self._left_behind(request.known, runs)
        others = {key: found for key, found in runs.items() if key not in self._over}
        looked = await self._jobs.look(others, told, held, left, clock, room, sizes)
        return looked._replace(cursors={**self._over, **looked.cursors})

    def _past(
        self, known: Sequence[KnownRun], runs: Mapping[str, Found], told: Mapping[str, str | None], before: float
    ) -> dict[str, str]:
        """Runs that were over before that time, were told to their last job, and nobody waits for: with their cursors.

        While the first look at a long history takes many polls, the jobs of those are not to be kept.
        """
        live = {run.key for run in known}
        return {
            key: cursor
            for key, found in runs.items()
            if (cursor := told.get(key)) is not None
            and found.source == HISTORY
            and (as_number(found.ad, "EnteredCurrentStatus") or before) < before
            and key not in live
            and (self._over.get(key) == cursor or self._jobs.let_go(key, cursor))
        }

    # -- runs --------------------------------------------------------------------------------------------------------

    def _live(self, known: Sequence[KnownRun]) -> dict[str | None, set[str]]:
        """Return the keys of known runs, by schedd; without those that every source denied."""
        live: dict[str | None, set[str]] = {}
        for run in known:
            ids = self._parsed(run.wms_id)
            if ids is not None and run.key not in self._denied:
                live.setdefault(ids.schedd, set()).add(run.key)
        return live

    async def _ask(self, seen: _Seen, since: float, live: Collection[str]) -> None:
        """The queue first: what left it is then in the history, which is read if a run is missed, or now and then."""
        held_since = self._held_since.get(seen.schedd, 0.0)
        seen.queue = await self._source(seen, QUEUE, lambda: self._pool.runs(seen.schedd, held_since))
        there = {name for ad in seen.queue.ads for name in _names(ad, seen.schedd)} if seen.queue is not None else set()
        last = self._histories.get(seen.schedd)
        now = time.monotonic()
        if last is not None and now - last.at < HISTORY_EVERY_S and last.since <= since and there.issuperset(live):
            # It only grows: this is what it would say of runs that are known.
            ads = [ad for ad in last.ads if (as_number(ad, "EnteredCurrentStatus") or 0) >= since]
            seen.history = Answer(ads, 0.0, 0)
            covers = "runs that left the queue: none did since it was read"
            seen.sources.append(SourceReport(name=source_name(HISTORY, seen.schedd), status="ok", covers=covers))
            return
        seen.history = await self._source(seen, HISTORY, lambda: self._pool.ended(seen.schedd, since))
        if seen.history is not None:
            seen.history_asked = True
            self._histories[seen.schedd] = _History(now, since, seen.history.ads)

    async def _source(self, seen: _Seen, name: str, ask: Callable[[], Awaitable[Answer]]) -> Answer | None:
        where = source_name(name, seen.schedd)
        began = time.monotonic()
        until, why = self._hung.get((seen.schedd, name), (0.0, ""))
        if until > began:
            seen.sources.append(SourceReport(name=where, status="failed", error=f"{why}; asked again soon"))
            return None
        try:
            answer = await ask()
        except (BackendUnavailable, BackendAuthError, DeadlineExceeded) as exc:
            cost_s = time.monotonic() - began
            if isinstance(exc, DeadlineExceeded) and len(self._schedds) > 1:
                # The history of another host's schedd is told by that schedd; ours is a file.
                for hung in (name,) if seen.schedd is None else (QUEUE, HISTORY):
                    self._hung[seen.schedd, hung] = (time.monotonic() + LEFT_ALONE_S, exc.message)
            if isinstance(exc, BackendAuthError):
                seen.refused = exc
            seen.sources.append(SourceReport(name=where, status="failed", cost_s=cost_s, error=exc.message))
            return None
        covers = "runs in the queue" if name == QUEUE else "runs that left the queue"
        seen.sources.append(
            SourceReport(name=where, status="ok", covers=covers, cost_s=answer.cost_s, cost_bytes=answer.cost_bytes)
        )
        return answer

    async def _look_up(
        self, known: Sequence[KnownRun], runs: dict[str, Found], complete: set[str | None]
    ) -> tuple[str, ...]:
        """Known runs that are in neither: their history is read as far as it goes, once; then nobody knows them."""
        now = time.monotonic()
        self._denied = {run.key: at for run in known if (at := self._denied.get(run.key)) is not None}
        missing: dict[str | None, dict[str, Gone]] = {}
        absent = []
        for run in known:
            ids = self._parsed(run.wms_id)
            if run.key in runs or ids is None or ids.schedd not in complete:
                continue
            if now - self._denied.get(run.key, -DENIED_S) < DENIED_S:
                absent.append(run.key)
            elif len(those := missing.setdefault(ids.schedd, {})) < LOOKED_UP_AT_ONCE:  # the rest in the next polls
                those[run.key] = Gone(ids.cluster, run.token, run.global_wms_id)
        for schedd, those in missing.items():
            try:
                ads = await self._pool.gone(schedd, [*those.values()])
            except (BackendUnavailable, BackendAuthError):
                continue
            for key, gone in those.items():
                ad = next((ad for ad in ads if gone.is_it(ad) and _may_be(ad, key)), None)
                if ad is not None:
                    found = Found(ad, Ids(schedd, gone.cluster), HISTORY)
                    runs[found.key] = found
                else:
                    self._denied[key] = now
                    absent.append(key)
        return tuple(absent)

    def _parsed(self, wms_id: str) -> Ids | None:
        """Which cluster of which of our schedds that is."""
        ids = Ids.parse(wms_id)
        return None if ids is None else ids if ids.schedd in self._schedds else ids._replace(schedd=None)

    async def _left_behind(self, known: Sequence[KnownRun], runs: Mapping[str, Found]) -> dict[str, int]:
        """Live runs whose DAGMan was removed, and how many of their jobs are in the queue all the same."""
        removed: dict[str | None, dict[str, Found]] = {}
        for run in known:
            found = runs.get(run.key)
            if found is None or found.source != HISTORY or run.state in TERMINAL:
                continue
            if run_state(found.ad) is WmsStates.DELETED:
                removed.setdefault(found.ids.schedd, {})[run.key] = found
        left: dict[str, int] = {}
        for schedd, those in removed.items():
            try:
                counted = await self._pool.left_behind(schedd, [found.ad for found in those.values()])
            except (BackendUnavailable, BackendAuthError):
                continue  # that the run is over is known; what else is there, the next poll cannot tell either
            left |= {key: counted.get(found.ids.cluster, 0) for key, found in those.items()}
        return left


def _with_keys(known: Sequence[KnownRun], runs: Mapping[str, Found]) -> tuple[KnownRun, ...]:
    """Return the known runs with the global ids of those that the pool shows for the first time."""
    by_id: dict[str, Found] = {}
    for found in runs.values():
        by_id[found.wms_id] = max(by_id.get(found.wms_id, found), found, key=lambda each: each.submitted_at)

    def completed(run: KnownRun) -> KnownRun:
        found = by_id.get(run.wms_id) if run.global_wms_id is None else None
        if found is None or run.token not in (None, as_text(found.ad, "bps_token")):
            return run
        return msgspec.structs.replace(run, global_wms_id=found.key)

    return tuple(map(completed, known))


def _names(ad: Ad, schedd: str | None) -> tuple[str, str]:
    """Return what a run may be known by: its global id, or its WMS id before that was seen."""
    return as_text(ad, "GlobalJobId") or "", Ids.of(ad, schedd).text(ad)


def _may_be(ad: Ad, key: str) -> bool:
    """Whether the ad is of the schedd that the key names, if it names one: every schedd counts by itself."""
    return "#" not in key or (as_text(ad, "GlobalJobId") or "").partition("#")[0] == key.partition("#")[0]


def source_name(name: str, schedd: str | None) -> str:
    """Return the name of a source in reports: that of another schedd says which."""
    return name if schedd is None else f"{name} of {schedd}"
