"""``events``, ``watch`` and ``unwatch``: what happened, and what happens."""

from __future__ import annotations

__all__ = ["Watches"]

from collections.abc import Callable
from functools import partial

from bpsd.api.deps import Deps
from bpsd.api.feeds import Feeds, Subject, Watcher
from bpsd.api.paging import PAGE_BYTES, fitting, holding
from bpsd.api.reads import is_mine
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
from bpsd.server import Call, Connection
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

    async def events(self, call: Call, params: EventsParams) -> EventsResult:
        """A page of the timeline."""
        run_id = None
        if params.run is not None:
            record, _, _ = await self._deps.find(params.run, params.backend)
            run_id = record.run_id
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
        events, more = fitting(map(TimelineEvent.shown, entries), params.limit)
        return EventsResult(events=events, next=events[-1].seq if more else None)

    def watch(self, call: Call, params: WatchParams) -> object:
        """A snapshot (or what was missed), then every change, as notifications."""
        deps = self._deps
        deps.check_backends(params.backend)
        runs = frozenset(deps.cache.resolve(name).run_id for name in params.runs)
        mine = self._of.get(call.connection)
        if mine is None:
            mine = self._of[call.connection] = _OfConnection()
            call.connection.on_close(lambda: self._forget(call.connection))
        limit = deps.config.limits.watchers_per_connection
        if len(mine.ends) >= limit:
            raise LimitExceeded(f"this connection watches {limit} times (limits.watchers_per_connection)")
        number = mine.next_number()
        subject = Subject(runs, frozenset(params.backend), call.peer.uid if params.mine else None, params.jobs)
        watcher = Watcher(number, call.connection)
        missed = self._missed(params.since)
        seq = deps.cache.seq
        mine.ends[number] = self._feeds.join(subject, watcher)
        call.connection.watching = len(mine.ends)
        if missed is not None:
            # They go out after the answer: the client knows the number of its subscription first.
            call.after_reply(partial(self._feeds.replay, subject, watcher, missed))
            return WatchResult(watch=number, seq=seq, resumed=True, snapshot=[])
        answer = WatchResult(watch=number, seq=seq, resumed=False, snapshot=[])
        return holding(answer, "snapshot", self._snapshot(subject))

    def _missed(self, since: int | None) -> list[Event] | None:
        if since is None:
            return None
        missed = self._deps.cache.events_after(since)
        return missed if missed is not None and len(missed) <= MAX_REPLAY_EVENTS else None

    def _snapshot(self, subject: Subject) -> list[bytes]:
        """Rows of the latest runs that are watched, as many as fit a message."""
        rows: list[bytes] = []
        size = 0
        for record in self._deps.cache.records():
            if not subject.holds(record.run_id, record.backend, record, is_mine):
                continue
            if not (subject.runs or record.live):
                continue
            row = self._deps.cache.row(record.run_id)
            size += len(row) + 1
            if len(rows) == MAX_SNAPSHOT_ROWS or size > PAGE_BYTES:
                break
            rows.append(row)
        return rows

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
