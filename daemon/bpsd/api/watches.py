"""``events``, ``watch`` and ``unwatch``: what happened, and what happens."""

from __future__ import annotations

__all__ = ["Watches"]

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from bpsd.api.deps import Deps
from bpsd.api.paging import PAGE_BYTES, fitting, holding
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
from bpsd.models import JobObservation
from bpsd.server import Call, Connection
from bpsd.store import TimelineEvent

MAX_SNAPSHOT_ROWS = 500
"""Rows of a snapshot at most; who watches more runs than it holds reads `report` first and watches from its ``seq``."""

MAX_MOVED_JOBS = 500
"""Jobs named in one ``job.state`` event; the counts in the row are always whole."""

LOSS_TOLD_S = 1.0
"""How long after events were lost to a client that reads too slowly it is told, if nothing else is to be said."""

MAX_REPLAY_EVENTS = 5_000
"""Events sent at once to a watcher that resumes; with more to tell it gets a snapshot."""


class Watches:
    """The subscriptions of all connections."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._next = 1
        self._of: dict[Connection, dict[int, Callable[[], None]]] = {}

    @property
    def count(self) -> int:
        """How many subscriptions there are."""
        return sum(map(len, self._of.values()))

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
        if params.after is None and params.since is None:
            entries = entries[-params.limit :]  # the latest ones: there is nothing behind them
        events, more = fitting(map(TimelineEvent.shown, entries), params.limit)
        return EventsResult(events=events, next=events[-1].seq if more else None)

    def watch(self, call: Call, params: WatchParams) -> object:
        """A snapshot (or what was missed), then every change, as notifications."""
        deps = self._deps
        deps.check_backends(params.backend)
        runs = frozenset(deps.cache.resolve(name).run_id for name in params.runs)
        mine = self._of.setdefault(call.connection, {})
        limit = deps.config.limits.watchers_per_connection
        if len(mine) >= limit:
            raise LimitExceeded(f"this connection watches {limit} times (limits.watchers_per_connection)")
        if not mine:
            call.connection.on_close(lambda: self._forget(call.connection))
        number, self._next = self._next, self._next + 1
        watcher = _Watcher(number, runs, frozenset(params.backend), params.jobs, call.connection, self._row)
        missed = self._missed(params.since)
        seq = deps.cache.seq
        stop_listening = deps.cache.listen(watcher)

        def end() -> None:
            stop_listening()
            watcher.end()

        mine[number] = end
        if missed is not None:
            # They go out after the answer: the client knows the number of its subscription first.
            call.after_reply(partial(watcher.replay, missed))
            return WatchResult(watch=number, seq=seq, resumed=True, snapshot=[])
        answer = WatchResult(watch=number, seq=seq, resumed=False, snapshot=[])
        return holding(answer, "snapshot", self._snapshot(runs, frozenset(params.backend)))

    def _missed(self, since: int | None) -> list[Event] | None:
        if since is None:
            return None
        missed = self._deps.cache.events_after(since)
        return missed if missed is not None and len(missed) <= MAX_REPLAY_EVENTS else None

    def _snapshot(self, runs: frozenset[str], backends: frozenset[str]) -> list[bytes]:
        """Rows of the latest runs that are watched, as many as fit a message."""
        rows: list[bytes] = []
        size = 0
        for record in self._deps.cache.records():
            if (runs and record.run_id not in runs) or (backends and record.backend not in backends):
                continue
            if not runs and not record.live:
                continue
            row = self._deps.cache.row(record.run_id)
            size += len(row) + 1
            if len(rows) == MAX_SNAPSHOT_ROWS or size > PAGE_BYTES:
                break
            rows.append(row)
        return rows

    def _row(self, run_id: str) -> bytes | None:
        return self._deps.cache.row(run_id) if run_id in self._deps.cache else None

    def unwatch(self, call: Call, params: UnwatchParams) -> PingResult:
        """End a subscription."""
        end = self._of.get(call.connection, {}).pop(params.watch, None)
        if end is None:
            raise InvalidParams(f"this connection has no watch {params.watch}")
        end()
        return PingResult(time=self._deps.clock())

    def _forget(self, connection: Connection) -> None:
        for end in self._of.pop(connection, {}).values():
            end()


class _Watcher:
    """Turns events of the cache into notifications of one subscription."""

    def __init__(
        self,
        number: int,
        runs: frozenset[str],
        backends: frozenset[str],
        jobs: bool,
        connection: Connection,
        row: Callable[[str], bytes | None],
    ) -> None:
        self._number, self._runs, self._backends, self._jobs = number, runs, backends, jobs
        self._connection, self._row = connection, row
        self._lost = 0
        self._ended = False

    def end(self) -> None:
        """Say nothing more."""
        self._ended = True

    def __call__(self, event: Event, moved: Sequence[JobObservation]) -> None:
        if self._runs and event.run not in self._runs:
            return
        if self._backends and event.backend not in self._backends:
            return
        self._send(event, self._with_row(event))
        if self._jobs and moved:
            self._send(event, {"jobs": _moved(moved), "of": len(moved)}, kind="job.state")

    def replay(self, events: Sequence[Event]) -> None:
        """Tell what was missed."""
        for event in events:
            self(event, ())

    def _with_row(self, event: Event) -> dict[str, Any]:
        row = self._row(event.run) if event.run is not None and event.kind.startswith("run.") else None
        return event.data if row is None else {**event.data, "row": msgspec.Raw(row)}

    def _send(self, event: Event, data: dict[str, Any], kind: str | None = None) -> None:
        if self._tell(event, data, kind or event.kind):
            self._lost = 0
            return
        if not self._lost and not self._ended:
            asyncio.get_running_loop().call_later(LOSS_TOLD_S, self._tell_loss, event)
        self._lost += 1

    def _tell_loss(self, event: Event) -> None:
        """Say that something was lost, also if nothing follows: it may have been the end that is waited for."""
        if not self._lost or self._ended:
            return
        if self._tell(event, {}, "watch.lost"):
            self._lost = 0
        else:
            asyncio.get_running_loop().call_later(LOSS_TOLD_S, self._tell_loss, event)

    def _tell(self, event: Event, data: dict[str, Any], kind: str) -> bool:
        body = {
            "watch": self._number,
            "event": {
                "seq": event.seq,
                "time": event.time,
                "kind": kind,
                "backend": event.backend,
                "run": event.run,
                "data": data,
            },
            "lost": self._lost,
        }
        return self._connection.notify("event", msgspec.Raw(msgspec.json.encode(body)))


def _moved(moved: Sequence[JobObservation]) -> list[dict[str, Any]]:
    return [
        {"name": job.name, "label": job.label, "state": job.state.name, "attempt": job.attempt, "note": job.note}
        for job in moved[:MAX_MOVED_JOBS]
    ]
