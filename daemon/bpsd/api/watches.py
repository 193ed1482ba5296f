"""``events``, ``watch`` and ``unwatch``: what happened, and what happens."""

from __future__ import annotations

__all__ = ["Watches"]

from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from bpsd.api.conditions import is_mine
from bpsd.api.deps import Deps
from bpsd.api.feeds import Feeds, Subject, Watcher
from bpsd.api.paging import Page, fitting, holding
from bpsd.api.visibility import Sight
from bpsd.errors import InvalidParams, LimitExceeded
from bpsd.events import Missed
from bpsd.messages import (
    EventsParams,
    EventsResult,
    PingResult,
    UnwatchParams,
    WatchParams,
    WatchResult,
)
from bpsd.runs import RunRecord
from bpsd.server import Call, Connection
from bpsd.slices import Pause
from bpsd.store import TimelineEvent

MAX_SNAPSHOT_ROWS = 500
"""Rows of a snapshot at most; who watches more runs than it holds reads `report` first and watches from its ``seq``."""

MAX_REPLAY_EVENTS = 5_000
"""Events sent at once to a watcher that resumes; with more to tell it gets a snapshot."""


class Watches:
    """The subscriptions of all connections."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._feeds = Feeds(deps.cache, is_mine, lambda: deps.policy)
        self._of: dict[Connection, _OfConnection] = {}

    @property
    def count(self) -> int:
        """How many subscriptions there are."""
        return sum(len(mine.ends) for mine in self._of.values())

    async def events(self, call: Call, params: EventsParams) -> msgspec.Raw:
        """A page of the timeline."""
        run_id = None
        if params.run is not None:
            run_id = await self._deps.find_id(params.run, params.backend)
        await self._deps.store.flush()
        entries = await self._deps.store.timeline(
            run_id,
            after_seq=params.after,
            since=params.since,
            until=params.until,
            limit=params.limit + 1,
            backend=params.backend,
        )
        if not entries and params.backend is not None:
            self._deps.check_backends([params.backend])  # one that is gone has left its events; a mistyped one has none
        if params.after is None and params.since is None:
            entries = entries[-params.limit :]  # the latest ones: there is nothing behind them
        page, last = await fitting(map(TimelineEvent.shown, entries), params.limit)
        following = last.seq if page.full and last is not None else None
        return holding(EventsResult(events=[], next=following), "events", page.rows)

    async def watch(self, call: Call, params: WatchParams) -> object:
        """A snapshot (or what was missed), then every change, as notifications."""
        deps = self._deps
        deps.check_backends(params.backend)
        peer = call.peer
        async with deps.scans.turn(peer.uid):
            runs = frozenset(record.run_id for record in await deps.hot(params.runs))
            mine = (peer.uid, peer.user) if params.mine else None
            reader = msgspec.structs.replace(peer, pid=0)
            subject = Subject(runs, frozenset(params.backend), mine, params.jobs, reader)
            seq, missed = deps.cache.seq, self._missed(params.since, subject)
            if missed is not None:
                answer = WatchResult(watch=0, seq=seq, resumed=True, snapshot=[])
                return self._begin(call, subject, missed, answer)
            ended = await self._changed_since(params.since)
            while True:  # again if more happens meanwhile than can be sent after it
                seq = deps.cache.seq
                page = await self._snapshot(subject, ended, deps.sight(call))
                missed = self._missed(seq, subject)
                if missed is not None:
                    break
            answer = WatchResult(
                watch=0, seq=seq, resumed=False, snapshot=[], complete=not page.full and len(ended) <= MAX_SNAPSHOT_ROWS
            )
            self._begin(call, subject, missed, answer)
        return holding(answer, "snapshot", page.rows)

    def _begin(self, call: Call, subject: Subject, missed: list[Missed], answer: WatchResult) -> WatchResult:
        """Subscribe; ``missed`` goes out after the answer, from which the client knows the number."""
        mine = self._of.get(call.connection)
        if mine is None:
            mine = self._of[call.connection] = _OfConnection()
            call.connection.on_close(lambda: self._forget(call.connection))
        limit = self._deps.config.limits.watchers_per_connection
        if len(mine.ends) >= limit:
            raise LimitExceeded(f"this connection watches {limit} times (limits.watchers_per_connection)")
        answer.watch = mine.next_number()
        watcher = Watcher(answer.watch, call.connection)
        mine.ends[answer.watch] = self._feeds.join(subject, watcher)
        call.connection.watching = len(mine.ends)
        if missed:
            call.after_reply(partial(self._feeds.replay, subject, watcher, missed))
        return answer

    def _missed(self, since: int | None, subject: Subject) -> list[Missed] | None:
        if since is None:
            return None
        missed = self._deps.cache.events.after(since, jobs=subject.jobs)
        return missed if missed is not None and len(missed) <= MAX_REPLAY_EVENTS else None

    async def _changed_since(self, since: int | None) -> list[str]:
        """Return our ids of runs that changed since a number that a client has: some of them ended unseen."""
        if since is None:
            return []
        store = self._deps.store
        await store.flush()
        return await store.changed_after(since, MAX_SNAPSHOT_ROWS + 1)

    async def _snapshot(self, subject: Subject, changed: Sequence[str], sight: Sight) -> Page:
        """Return rows of named runs, else of changed runs that are over and of the latest live ones, as many as fit."""
        cache, page, pause = self._deps.cache, Page(MAX_SNAPSHOT_ROWS), Pause()
        for run_id in cache.newest_first(subject.runs or changed):
            record = cache.get(run_id)
            if record is None or not (subject.runs or not record.live):
                continue
            wanted = subject.holds_run(run_id, record.backend, record, is_mine)
            if wanted and not page.add(sight.encoded(record, cache.row(run_id))):
                return page
            await pause.if_due()
        if subject.runs:
            return page

        def take(record: RunRecord) -> bytes | None:
            wanted = record.live and subject.holds_run(record.run_id, record.backend, record, is_mine)
            return sight.encoded(record, cache.row(record.run_id)) if wanted else None

        with cache.scan(take) as scan:
            for row in scan:
                if row is not None and not page.add(row):
                    break
                await pause.if_due()
        return page

    def unwatch(self, call: Call, params: UnwatchParams) -> PingResult:
        """End a subscription."""
        mine = self._of.get(call.connection)
        end = mine.ends.pop(params.watch, None) if mine is not None else None
        if end is None:
            raise InvalidParams(f"this connection has no watch {params.watch}")
        end()
        call.connection.watching -= 1
        return PingResult(time=self._deps.clock())

    def _forget(self, connection: Connection) -> None:
        for end in self._of.pop(connection).ends.values():
            end()


class _OfConnection:
    """The subscriptions of one connection: number to the function that ends it.

    They are numbered for each connection, so that a notification is mostly the same bytes for all. No number is used
    twice.
    """

    def __init__(self) -> None:
        self.ends: dict[int, Callable[[], None]] = {}
        self._last = 0

    def next_number(self) -> int:
        """Return a number that was not used before."""
        self._last += 1
        return self._last
