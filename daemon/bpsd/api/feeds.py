"""From one event of the cache to all the clients that watch: encoded once, filtered once per filter, written together.

Watchers with the same filter share a *feed*. An event goes into the feeds that it concerns as JSON that was made once.
At the end of the turn of the loop, or `GATHER_S` after the block before, each feed makes one block of its events, and
each of its clients gets that block in one write. The work for each client does not depend on how many events there are.
"""

from __future__ import annotations

__all__ = ["Feeds", "Subject", "Watcher"]

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from bpsd.api.visibility import Sight
from bpsd.cache import Cache
from bpsd.events import Missed
from bpsd.messages import Event
from bpsd.models import JobObservation
from bpsd.peers import Peer, Policy
from bpsd.protocol import event_line
from bpsd.runs import RunRecord
from bpsd.server import Connection
from bpsd.slices import SLICE_S

MAX_MOVED_JOBS = 500
"""Jobs named in one ``job.state`` event; the counts in the row are always whole."""

LOSS_REPORT_S = 1.0
"""A client that lost events because it reads too slowly is informed after this time, if no other event follows."""

GATHER_S = 0.05
"""After a block of events, the next one gathers events for this time: a burst costs few writes to each client."""

BLOCK_BYTES = 256 * 1024
"""A feed with this much to send does not wait."""

IsMine = Callable[[RunRecord, int, str], bool]
"""Whether a run belongs to a user, by uid and name."""


class Subject(NamedTuple):
    """The filter of a watcher; empty sets mean everything.

    ``mine``: only runs of this user, by uid and name. ``jobs``: with an event for changed jobs. ``reader`` is the peer,
    without its process: what it may see of a run follows from who it is.
    """

    runs: frozenset[str]
    backends: frozenset[str]
    mine: tuple[int, str] | None
    jobs: bool
    reader: Peer

    def holds(self, event: Event, record: RunRecord | None, is_mine: IsMine) -> bool:
        """Whether an event, about the run of this record if about one, belongs to it."""
        wanted = self.jobs or event.kind != "job.state"
        return wanted and self.holds_run(event.run, event.backend, record, is_mine)

    def holds_run(self, run: str | None, backend: str | None, record: RunRecord | None, is_mine: IsMine) -> bool:
        """Whether events about this run (`None`: about none) or this backend belong to it."""
        if (self.runs and run not in self.runs) or (self.backends and backend not in self.backends):
            return False
        return self.mine is None or (record is not None and is_mine(record, *self.mine))


class _Encoded:
    """One event as JSON, made when the first feed wants it."""

    __slots__ = ("_json", "_moved", "_record", "_row", "event")

    def __init__(
        self, event: Event, moved: Sequence[JobObservation], record: RunRecord | None, row: bytes | None
    ) -> None:
        self.event, self._moved, self._record, self._row = event, moved, record, row
        self._json: dict[bytes | None, bytes] = {}  # by the row in it, of which there are two

    def json(self, sight: Sight) -> bytes:
        """The event as JSON, as a reader may see it."""
        row = self._row
        if row is not None and self._record is not None:
            row = sight.encoded(self._record, row)
        made = self._json.get(row)
        if made is None:
            data = self.event.data if row is None else {**self.event.data, "row": msgspec.Raw(row)}
            if self._moved:
                data = {**data, "jobs": _moved(self._moved), "of": len(self._moved)}
            made = self._json[row] = _encode(self.event, self.event.kind, data)
        return made


class Watcher:
    """One subscription of one connection: the number that its client knows it by, and what the client has lost."""

    def __init__(self, number: int, connection: Connection) -> None:
        self.number = number
        self._connection = connection
        self._lost = 0
        self._last: Event | None = None  # the latest event that was lost
        self._held: list[tuple[Sequence[bytes], Event]] | None = None  # what waits until the replay is over
        self.ended = False

    def end(self) -> None:
        """Send nothing more."""
        self.ended = True

    def hold(self) -> None:
        """Keep events until `go_on`: those that it missed come first."""
        self._held = []

    def go_on(self) -> None:
        """Send what was kept."""
        held, self._held = self._held, None
        for events, last in held or ():
            self.send(events, last, {})

    def send(self, events: Sequence[bytes], last: Event, blocks: dict[int, tuple[bytes, int]]) -> None:
        """Send events, from ``blocks`` if another watcher of the same number has sent the same before."""
        if self._held is not None:
            self._held.append((events, last))
        elif not self.ended:
            self.send_now(events, last, blocks)

    def send_now(self, events: Sequence[bytes], last: Event, blocks: dict[int, tuple[bytes, int]]) -> None:
        """Send events before all that is kept."""
        if self._lost:
            block, count = _block(self.number, events, self._lost)
        else:
            if self.number not in blocks:
                blocks[self.number] = _block(self.number, events, 0)
            block, count = blocks[self.number]
        if count and self._connection.send_lines(block, count):
            self._lost = len(events) - count
        else:
            self._lost += len(events)
        if self._lost:
            self._report_later(last)

    def _report_later(self, last: Event) -> None:
        """Report the loss even if no event follows: the lost one may be the end that the client waits for."""
        if self._last is None:
            asyncio.get_running_loop().call_later(LOSS_REPORT_S, self._report_loss)
        self._last = last

    def _report_loss(self) -> None:
        last, self._last = self._last, None
        if not self._lost or self.ended or last is None:
            return
        line = event_line(self.number, _encode(last, "watch.lost", {}), self._lost)
        if line is not None and self._connection.send_lines(line, 1):
            self._lost = 0
        else:
            self._report_later(last)


class _Feed:
    """The watchers of one subject, and the events that wait for them."""

    __slots__ = ("_bytes", "_events", "_last", "members", "subject")

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.members: set[Watcher] = set()
        self._events: list[bytes] = []
        self._bytes = 0
        self._last: Event | None = None

    def add(self, encoded: _Encoded, sight: Sight) -> None:
        """Take an event; a full block is sent at once."""
        part = encoded.json(sight)
        self._events.append(part)
        self._bytes += len(part)
        self._last = encoded.event
        if self._bytes >= BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        events, last = self._events, self._last
        if not events or last is None:
            return
        self._events, self._bytes, self._last = [], 0, None
        blocks: dict[int, tuple[bytes, int]] = {}
        for member in tuple(self.members):
            member.send(events, last, blocks)


class Feeds:
    """All feeds: the one listener that the cache has for watchers."""

    def __init__(self, cache: Cache, is_mine: IsMine, policy: Callable[[], Policy]) -> None:
        self._cache, self._is_mine, self._policy = cache, is_mine, policy
        self._seen_by: tuple[Policy | None, dict[Peer, Sight]] = (None, {})
        self._feeds: dict[Subject, _Feed] = {}
        self._wide: dict[Subject, _Feed] = {}  # those not restricted to runs
        self._of_run: dict[str, dict[Subject, _Feed]] = {}
        self._dirty: set[_Feed] = set()
        self._flushed_at = 0.0  # by the clock of the loop
        self._stop_listening: Callable[[], None] | None = None

    def join(self, subject: Subject, watcher: Watcher) -> Callable[[], None]:
        """Send a watcher every event from now on; returns the function that ends it."""
        feed = self._feeds.get(subject)
        if feed is None:
            feed = self._feeds[subject] = _Feed(subject)
            for index in self._indexes(subject):
                index[subject] = feed
        feed.flush()  # what happened before is not for the new watcher
        feed.members.add(watcher)
        if self._stop_listening is None:
            self._stop_listening = self._cache.events.listen(self._on_event)
        return lambda: self._leave(feed, watcher)

    def replay(self, subject: Subject, watcher: Watcher, events: Sequence[Missed]) -> None:
        """Send a watcher the events that it missed, in slices; the events of the meantime follow."""
        watcher.hold()
        self._replay(subject, watcher, deque(events))

    def _replay(self, subject: Subject, watcher: Watcher, events: deque[Missed]) -> None:
        parts: list[bytes] = []
        end = time.monotonic() + SLICE_S
        event = None
        while events and time.monotonic() < end and not watcher.ended:
            event, moved = events.popleft()
            record = self._record(event)
            if subject.holds(event, record, self._is_mine):
                parts.append(_Encoded(event, moved, record, self._row(event)).json(self._sight(subject.reader)))
        if parts and event is not None:
            watcher.send_now(parts, event, {})
        if events and not watcher.ended:
            asyncio.get_running_loop().call_soon(self._replay, subject, watcher, events)
        else:
            watcher.go_on()

    def _leave(self, feed: _Feed, watcher: Watcher) -> None:
        watcher.end()
        feed.members.discard(watcher)
        if feed.members or self._feeds.get(feed.subject) is not feed:
            return
        del self._feeds[feed.subject]
        for index in self._indexes(feed.subject):
            index.pop(feed.subject, None)
        for run in feed.subject.runs:
            if not self._of_run.get(run):
                self._of_run.pop(run, None)
        if not self._feeds and self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None

    def _indexes(self, subject: Subject) -> Iterable[dict[Subject, _Feed]]:
        return [self._of_run.setdefault(run, {}) for run in subject.runs] if subject.runs else [self._wide]

    def _on_event(self, event: Event, moved: Sequence[JobObservation]) -> None:
        """Put an event into the feeds that it concerns."""
        candidates = [*self._wide.values()]
        if event.run is not None:
            candidates += self._of_run.get(event.run, {}).values()
        if not candidates:
            return
        record = self._record(event)
        encoded: _Encoded | None = None
        for feed in candidates:
            if not feed.subject.holds(event, record, self._is_mine):
                continue
            if encoded is None:
                encoded = _Encoded(event, moved, record, self._row(event))
            if not self._dirty:
                self._flush_soon()
            self._dirty.add(feed)
            feed.add(encoded, self._sight(feed.subject.reader))

    def _flush_soon(self) -> None:
        loop = asyncio.get_running_loop()
        due = self._flushed_at + GATHER_S
        if due <= loop.time():
            loop.call_soon(self._flush)
        else:
            loop.call_at(due, self._flush)

    def _flush(self) -> None:
        self._flushed_at = asyncio.get_running_loop().time()
        dirty, self._dirty = self._dirty, set()
        for feed in dirty:
            feed.flush()

    def _sight(self, reader: Peer) -> Sight:
        """What a reader may see now; worked out once for each policy."""
        policy = self._policy()
        if policy is not self._seen_by[0]:
            self._seen_by = (policy, {})
        sights = self._seen_by[1]
        if reader not in sights:
            sights[reader] = Sight(reader, policy)
        return sights[reader]

    def _record(self, event: Event) -> RunRecord | None:
        return self._cache.get(event.run) if event.run is not None else None

    def _row(self, event: Event) -> bytes | None:
        if event.run is None or not event.kind.startswith("run.") or event.run not in self._cache:
            return None
        return self._cache.row(event.run)


def _block(number: int, events: Sequence[bytes], lost: int) -> tuple[bytes, int]:
    """Return the lines of events, without those too long for a message, and their number; the first reports a loss."""
    lines: list[bytes] = []
    for event in events:
        line = event_line(number, event, 0 if lines else lost)
        if line is not None:
            lines.append(line)
    return b"".join(lines), len(lines)


def _encode(event: Event, kind: str, data: dict[str, Any]) -> bytes:
    return msgspec.json.encode(
        {
            "seq": event.seq,
            "time": event.time,
            "kind": kind,
            "backend": event.backend,
            "run": event.run,
            "data": data,
        }
    )


def _moved(moved: Sequence[JobObservation]) -> list[dict[str, Any]]:
    return [
        {"name": job.name, "label": job.label, "state": job.state.name, "attempt": job.attempt, "note": job.note}
        for job in moved[:MAX_MOVED_JOBS]
    ]
