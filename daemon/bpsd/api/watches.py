"""``events``, ``watch`` and ``unwatch``: what happened, and what happens."""

from __future__ import annotations

__all__ = ["Watches"]

from collections.abc import Callable
from functools import partial

import msgspec

from bpsd.api.conditions import is_mine
from bpsd.api.deps import Deps
from bpsd.api.feeds import Feeds, Subject, Watcher
from bpsd.api.paging import Page, fitting, holding
from bpsd.errors import InvalidParams, LimitExceeded
from bpsd.messages import (
    Event,
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
        self._feeds = Feeds(deps.cache, is_mine)
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
            subject = Subject(
                runs, frozenset(params.backend), (peer.uid, peer.user) if params.mine else None, params.jobs
            )
            seq, missed = deps.cache.seq, self._missed(params.since)
            if missed is not None:
                answer = WatchResult(watch=0, seq=seq, resumed=True, snapshot=[])
                return self._begin(call, subject, missed, answer)
            rows = await self._snapshot(subject)
            while (missed := self._missed(seq)) is None:  # more happened meanwhile than can be sent after it
                seq = deps.cache.seq
                rows = await self._snapshot(subject)
            answer = self._begin(call, subject, missed, WatchResult(watch=0, seq=seq, resumed=False, snapshot=[]))
        return holding(answer, "snapshot", rows)

    def _begin(self, call: Call, subject: Subject, missed: list[Event], answer: WatchResult) -> WatchResult:
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

    def _missed(self, since: int | None) -> list[Event] | None:
        if since is None:
            return None
        missed = self._deps.cache.events_after(since)
        return missed if missed is not None and len(missed) <= MAX_REPLAY_EVENTS else None

    async def _snapshot(self, subject: Subject) -> list[bytes]:
        """Rows of the latest runs that are watched, as many as fit a message."""
        cache, page, pause = self._deps.cache, Page(MAX_SNAPSHOT_ROWS), Pause()
        if subject.runs:
            for run_id in cache.newest_first(subject.runs):
                record = cache.get(run_id)
                wanted = record is not None and subject.holds(run_id, record.backend, record, is_mine)
                if wanted and not page.add(cache.row(run_id)):
                    break
                await pause.if_due()
            return page.rows

        def take(record: RunRecord) -> bytes | None:
            wanted = record.live and subject.holds(record.run_id, record.backend, record, is_mine)
            return cache.row(record.run_id) if wanted else None

        with cache.scan(take) as scan:
            for row in scan:
                if row is not None and not page.add(row):
                    break
                await pause.if_due()
        return page.rows

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
