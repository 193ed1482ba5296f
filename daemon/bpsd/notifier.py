"""Tells people of changes, over the routes of the configuration, and never in the way of anything else.

::

    cache -> listener (memory only) -> a digest of each route -> a task of each route: wait, compose, deliver, try again

What was told is remembered in a file, with the number of the last event of which everything was: after a restart, or
a crash, each route goes on behind it. So everything is told at least once, unless a route was dead for too long.
"""

from __future__ import annotations

__all__ = ["Notifier"]

import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskStatus

from bpsd.cache import Cache
from bpsd.couriers import DeliveryFailed, deliver
from bpsd.errors import BpsdError
from bpsd.logs.events import LogEvent
from bpsd.messages import Event
from bpsd.metrics import Metrics
from bpsd.models import JobObservation, made_ready
from bpsd.notices import Digest, Memory, Notice, Remembered, compose, notices_of
from bpsd.outlets import Notifications, Route
from bpsd.poller import Backend
from bpsd.runs import RunRecord
from bpsd.store import TimelineEvent

REPLAY_PAGE = 1_000
LOOK_S = 1.0
"""How often is looked whether a backend has become stale."""

SAVE_S = 60.0
"""How often is kept how far each route is, besides after each message."""

KINDS = frozenset({"run.state", "backend.state", "command.state"})

Timeline = Callable[[int, int], Awaitable[Sequence[TimelineEvent]]]
"""Gives events behind a number, at most so many."""


class _Kept(msgspec.Struct):
    """The file: how far each route is, and what it was told."""

    seq: dict[str, int] = {}
    memory: dict[str, Remembered] = {}


made_ready(_Kept)


class _Lane:
    """A route with what it is to be told."""

    def __init__(self, name: str, route: Route, seq: int, memory: Memory) -> None:
        self.name, self.route, self.memory = name, route, memory
        self.digest = Digest()
        self.sealed: Digest | None = None  # being delivered
        self.wanted = anyio.Event()
        self.seq = seq  # the last event that was looked at
        self.catching_up = True

    def offer(self, notice: Notice, again_after_s: float) -> None:
        if not self.route.takes(notice.kind, notice.backend, notice.users, notice.names):
            return
        told = self.memory.outcome(notice, again_after_s)
        if told is not None:
            self.digest.add(notice, told)
            if self.digest:
                self.wanted.set()

    @property
    def told_seq(self) -> int:
        """Up to which event everything was told."""
        waiting = [d.first_seq for d in (self.sealed, self.digest) if d and d.first_seq is not None]
        return min([self.seq, *(first - 1 for first in waiting)])


class Notifier:
    """Runs the routes.

    Parameters
    ----------
    path : `~pathlib.Path`
        Where is kept what was told.
    timeline : callable
        Reads past events.
    daemon : `str`
        What messages call this daemon.
    """

    def __init__(
        self,
        settings: Notifications,
        *,
        path: Path,
        cache: Cache,
        backends: Mapping[str, Backend],
        timeline: Timeline,
        metrics: Metrics,
        daemon: str,
        log: Any,
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._path, self._cache, self._backends = settings, path, cache, backends
        self._timeline, self._metrics, self._daemon, self._log, self._clock = timeline, metrics, daemon, log, clock
        self._lanes: dict[str, _Lane] = {}
        self._kept = _Kept()
        self._stale: set[str] = set()
        self._changed = anyio.Event()
        self._saving = anyio.Lock()
        self._began = time.monotonic()

    def __repr__(self) -> str:
        return f"<Notifier of {', '.join(self._lanes) or 'nobody'}>"

    def waiting(self) -> dict[str, int]:
        """Route to the number of causes that wait to be told."""
        return {lane.name: len(lane.digest) + len(lane.sealed or ()) for lane in self._lanes.values()}

    def use(self, settings: Notifications) -> None:
        """Follow another configuration from now on; routes that keep their names keep what waits."""
        if settings != self._settings:
            self._settings = settings
            self._changed.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen and tell until cancelled; ``started`` means that nothing is missed from now on."""
        self._kept = await anyio.to_thread.run_sync(_read, self._path)
        stop_listening = self._cache.events.listen(self._listen)
        task_status.started()
        try:
            while True:
                settings, self._changed = self._settings, anyio.Event()
                new = self._make_lanes(settings)
                async with anyio.create_task_group() as group:
                    group.start_soon(self._catch_up, new, self._cache.seq)
                    for lane in self._lanes.values():
                        group.start_soon(self._work, lane, settings, name=f"notifications {lane.name}")
                    group.start_soon(self._look)
                    group.start_soon(self._save_now_and_then)
                    await self._changed.wait()
                    group.cancel_scope.cancel()
        finally:
            stop_listening()
            with anyio.CancelScope(shield=True):
                await self._save()

    def _make_lanes(self, settings: Notifications) -> list[_Lane]:
        """Open the routes; returns those that were not open before."""
        before, self._lanes = self._lanes, {}
        new = []
        for name, route in settings.routes.items():
            lane = before.get(name)
            if lane is None:
                # A number behind the last event is one of events that a crash has taken back.
                seq = min(self._kept.seq.get(name, self._cache.seq), self._cache.seq)
                lane = _Lane(name, route, seq, Memory(self._kept.memory.get(name)))
                self._stale |= {subject.removeprefix("backend ") for subject in lane.memory.open_subjects("stale")}
                new.append(lane)
            lane.route = route
            self._lanes[name] = lane
            for outcome in ("sent", "retried", "dropped"):
                self._metrics.notifications.labels(name, outcome)
        return new

    # -- hearing -----------------------------------------------------------------------------------------------------

    def _listen(self, event: Event, moved: Sequence[JobObservation]) -> None:
        if event.kind in KINDS and self._lanes:
            self._hear(event, self._lanes.values())
        for lane in self._lanes.values():
            if not lane.catching_up:
                lane.seq = event.seq

    def _hear(self, event: Event, lanes: Any) -> None:
        record = self._cache.get(event.run) if event.run is not None else None
        failed = record is not None and event.data.get("state") == "FAILED"
        for notice in notices_of(event, record, self._causes(record) if failed and record is not None else {}):
            for lane in lanes:
                lane.offer(notice, self._settings.again_after_s)

    def _causes(self, record: RunRecord) -> dict[str, dict[str, int]]:
        """Why jobs of a run failed; once its jobs have left the memory, their exit codes alone."""
        jobs = self._cache.jobs(record.run_id)
        if len(jobs):
            return jobs.causes()
        return record.as_row(None, full=True).exit_codes or {}

    async def _catch_up(self, lanes: list[_Lane], until: int) -> None:
        """Tell of what happened since each route was last told everything."""
        for lane in lanes:
            after = lane.seq
            try:
                while after < until and (page := await self._timeline(after, REPLAY_PAGE)):
                    for entry in page:
                        if entry.seq <= until and entry.kind in KINDS:
                            self._hear(entry.shown(), [lane])
                    after = page[-1].seq
            except BpsdError as exc:
                self._log.error(LogEvent.UPKEEP_FAILED, what="catching up with notifications", error=str(exc))
            lane.seq, lane.catching_up = self._cache.seq, False

    async def _look(self) -> None:
        """Notice backends of which, or of a source of which, nothing good was heard for too long; no event says so."""
        while True:
            await anyio.sleep(LOOK_S)
            for name, backend in self._backends.items():
                young = backend.last_good_at is None and (
                    time.monotonic() - self._began < backend.settings.polling.stale_after_s
                )
                silent = [] if backend.stale else backend.silent
                # What was told as stale is so until all of it answers: after a restart nothing was silent for long.
                stale = backend.stale or bool(silent) or (name in self._stale and not backend.is_whole)
                if stale != (name in self._stale) and not young:
                    (self._stale.add if stale else self._stale.discard)(name)
                    self._tell_stale(name, f"no answer from {', '.join(silent)}" if silent else "", recovered=not stale)

    def _tell_stale(self, name: str, cause: str, *, recovered: bool) -> None:
        notice = Notice(
            kind="stale",
            subject=f"backend {name}",
            backend=name,
            cause=cause,
            time=self._clock(),
            seq=self._cache.seq,
            recovered=recovered,
        )
        for lane in self._lanes.values():
            lane.offer(notice, self._settings.again_after_s)

    # -- telling -----------------------------------------------------------------------------------------------------

    async def _work(self, lane: _Lane, settings: Notifications) -> None:
        while True:
            if lane.sealed is None:
                await lane.wanted.wait()
                await anyio.sleep(settings.digest_s)
                lane.wanted = anyio.Event()
                lane.sealed, lane.digest = lane.digest, Digest()
            if lane.sealed:
                await self._deliver(lane, lane.sealed, settings)
            lane.sealed = None
            await self._save()

    async def _deliver(self, lane: _Lane, digest: Digest, settings: Notifications) -> None:
        message = compose(digest, self._daemon, self._clock())
        count = self._metrics.notifications.labels
        began, pause = time.monotonic(), settings.retry_initial_s
        while True:
            try:
                await deliver(lane.route, message, settings.deadline_s)
            except Exception as exc:  # noqa: BLE001  # whatever is wrong with a route, it is nobody else's trouble
                over = time.monotonic() - began + pause > settings.give_up_s
                count(lane.name, "dropped" if over else "retried").inc()
                self._log.error(
                    LogEvent.NOTIFICATION_DROPPED if over else LogEvent.NOTIFICATION_FAILED,
                    route=lane.name,
                    causes=len(digest),
                    error=exc.message if isinstance(exc, DeliveryFailed) else repr(exc),
                )
            else:
                count(lane.name, "sent").inc()
                return
            if over:
                return
            await anyio.sleep(pause)
            pause = min(pause * 2, settings.retry_max_s)

    # -- remembering -------------------------------------------------------------------------------------------------

    async def _save_now_and_then(self) -> None:
        while True:
            await self._save()
            await anyio.sleep(SAVE_S)

    async def _save(self) -> None:
        async with self._saving:
            kept = _Kept(
                {lane.name: lane.told_seq for lane in self._lanes.values()},
                {lane.name: lane.memory.dump() for lane in self._lanes.values()},
            )
            if kept.seq == self._kept.seq and kept.memory == self._kept.memory:
                return
            try:
                await anyio.to_thread.run_sync(_write, self._path, kept)
            except OSError as exc:
                self._log.error(LogEvent.UPKEEP_FAILED, what=str(self._path), error=str(exc))
            else:
                self._kept = kept


def _read(path: Path) -> _Kept:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.MsgspecError):  # none yet, or of no use: what happens from now on is told
        return _Kept()


def _write(path: Path, kept: _Kept) -> None:
    beside = path.with_suffix(".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(kept))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
