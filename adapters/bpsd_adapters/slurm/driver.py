"""What drives all runs of a backend: one look at Slurm for all of them, then what follows for each.

It runs in the daemon. Nothing is lost when that is killed: what was done is in the logs, and what is in Slurm goes on.
"""

from __future__ import annotations

__all__ = ["Driver", "Status"]

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from bpsd.errors import BackendAuthError, BackendUnavailable, BpsdError
from bpsd.interface import ServiceContext
from bpsd.logs import LogEvent
from bpsd_adapters import runlog
from bpsd_adapters.runlog import RunLog
from bpsd_adapters.slurm.chunks import Chunk, Sight
from bpsd_adapters.slurm.cluster import Cluster, Outcome
from bpsd_adapters.slurm.engine import Engine
from bpsd_adapters.slurm.layout import StateFolder
from bpsd_adapters.slurm.looks import by_run, collect_folder
from bpsd_adapters.slurm.options import Defaults
from bpsd_adapters.slurm.pacing import Window, next_look
from bpsd_adapters.slurm.parsing import AccountRow, ClusterLimits, ExitRecord, chunk_name
from bpsd_adapters.slurm.settings import SlurmConfig

SUBMITS_AT_ONCE = 4
"""How many sbatch run at the same time."""

HANDED_AT_ONCE = 200
"""How many jobs of a run that is handed over whole are submitted in one call: some ten seconds."""

REFUSED_RETRY_LOOKS = 10
"""After so many poll intervals what Slurm refused is offered again."""

LIMITS_EVERY_S = 3600.0
"""How often the site's limits are read again."""

JITTER = 0.1

T = TypeVar("T")
_INF = float("inf")


@dataclass(slots=True)
class Status:
    """How asking a source went last."""

    ok: bool = True
    error: str = ""
    at: float = 0.0
    """When it last answered (epoch seconds); 0 if it was not asked yet."""

    cost_s: float = 0.0
    cost_bytes: int = 0
    asks: int = 0


@dataclass(slots=True)
class _Held:
    """A run that this process drives."""

    engine: Engine
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    refused_at: float = 0.0


class Driver:
    """Drives the runs of one backend.

    Parameters
    ----------
    cluster : `Cluster`
        How to ask Slurm.
    state : `StateFolder`
        Where the runs are.
    config : `SlurmConfig`
        The backend's settings.
    context : `~bpsd.interface.ServiceContext`
        Log, clock and ``wake``.
    """

    def __init__(self, cluster: Cluster, state: StateFolder, config: SlurmConfig, context: ServiceContext) -> None:
        self._cluster, self._state, self._config, self._context = cluster, state, config, context
        self._defaults = Defaults(config.partition, config.account, config.qos, config.options)
        self._runs: dict[str, _Held] = {}
        self._opening = anyio.Lock()
        self._nudge = anyio.Event()
        self._window = Window(config.window_jobs)
        self._limits = ClusterLimits()
        self._limits_at = -_INF
        self._changed = True
        self._failures = 0
        self.queue, self.accounting, self.exits = Status(), Status(), Status()

    def __repr__(self) -> str:
        return f"<Driver of {len(self._runs)} runs, {self.in_queue} jobs in Slurm, window {self._window.now}>"

    @property
    def in_queue(self) -> int:
        """How many jobs of all runs are in Slurm, or may be."""
        return sum(held.engine.in_queue for held in self._runs.values())

    @property
    def attempts(self) -> dict[str | None, int]:
        """The runs that are driven, by token, and their attempts."""
        return {token: held.engine.attempt for token, held in self._runs.items() if held.engine.live}

    @property
    def live(self) -> bool:
        """Whether there is anything to drive."""
        return any(held.engine.live for held in self._runs.values())

    # -- runs --------------------------------------------------------------------------------------------------------

    async def open_all(self) -> None:
        """Take up every run that is not over."""
        for meta in self._state.metas():
            if await anyio.to_thread.run_sync(_has_log, self._state, meta.token):
                await self.open(meta.token)

    async def open(self, token: str) -> Engine | None:
        """The engine of a run, its log held; `None` if it is over.

        Raises
        ------
        BackendUnavailable
            If another process holds it, or its files cannot be read.
        """
        async with self._opening:
            held = self._runs.get(token) or await self._loaded(token, only_live=True)
            if held is None or not held.engine.live:
                return None
            self._runs[token] = held
        self.nudge()
        return held.engine

    async def begin(self, token: str, attempt: int) -> None:
        """Begin an attempt of a run, unless it was begun; it is on the disk when this returns.

        Raises
        ------
        BackendUnavailable
            If another process holds the run, or its files cannot be read.
        OSError
            If that cannot be written.
        """
        async with self._opening:
            held = self._runs.get(token)
            if held is None:
                held = await self._loaded(token, only_live=False)
                assert held is not None
            async with held.lock:
                if held.engine.attempt < attempt:
                    await anyio.to_thread.run_sync(held.engine.begin, attempt, self._context.clock())
            self._runs[token] = held
        self._changed = True
        self._context.wake("a run began")
        self.nudge()

    async def _loaded(self, token: str, *, only_live: bool) -> _Held | None:
        try:
            engine = await anyio.to_thread.run_sync(self._load, token, only_live)
        except (OSError, msgspec.MsgspecError, ValueError) as exc:
            raise BackendUnavailable(f"run {token} cannot be opened: {exc}") from exc
        return None if engine is None else _Held(engine)

    async def _let_go(self, token: str) -> None:
        async with self._opening:
            held = self._runs[token]
            async with held.lock:
                if not held.engine.live:
                    held.engine.close()
                    del self._runs[token]

    def _load(self, token: str, only_live: bool) -> Engine | None:
        meta, folder = self._state.load(token), self._state.run(token)
        if meta is None:
            raise OSError(f"{folder.path} is not there or damaged")
        fd = runlog.lock(folder.log)
        if fd is None:
            raise OSError(f"another process holds {folder.log}")
        log = RunLog(folder.log, fd)
        if str(log.repair):
            self._context.log.warning(LogEvent.RUN_LOGS_DAMAGED, errors=[f"{folder.log}: {log.repair}"], count=1)
        try:
            engine = Engine(meta, folder, log, self._defaults)
        except BaseException:
            log.close()
            raise
        if engine.skipped_events:
            lost = f"{folder.log}: {engine.skipped_events} events do not fit what is before them"
            self._context.log.warning(LogEvent.RUN_LOGS_DAMAGED, errors=[lost], count=engine.skipped_events)
        if only_live and not engine.live:
            log.close()
            return None
        return engine

    async def tell(self, token: str, order: Callable[[Engine], T]) -> T:
        """Have the engine of an open run do something, alone."""
        held = self._runs[token]
        async with held.lock:
            done = await anyio.to_thread.run_sync(order, held.engine)
        self._changed = True
        self._context.wake("a run changed")
        self.nudge()
        return done

    def nudge(self) -> None:
        """Look soon."""
        self._nudge.set()

    async def close(self) -> None:
        """Let all logs go; what is in Slurm goes on."""
        for held in self._runs.values():
            held.engine.close()
        self._runs.clear()

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drive until cancelled."""
        delay = 0.0
        while True:
            if not self.live:
                await self._nudge.wait()
            self._nudge = anyio.Event()
            self._changed = False
            began = time.monotonic()
            try:
                await self.look()
                self._failures = 0
            except (BackendUnavailable, BackendAuthError, OSError) as exc:
                self._failures += 1
                self._context.log.info(
                    LogEvent.SLURM_LOOK_FAILED, backend=self._context.backend, failures=self._failures, error=str(exc)
                )
            if self._changed:
                self._context.wake("jobs changed")
            delay = next_look(
                self._config.poll_interval_s,
                self._config.idle_interval_s,
                before_s=delay,
                cost_s=max(self.queue.cost_s, self.accounting.cost_s)
                if not self._failures
                else time.monotonic() - began,
                changed=self._changed,
                failures=self._failures,
                min_job_age_s=self._limits.min_job_age_s,
            )
            await self._pause(delay * (1.0 + JITTER * random.uniform(-1.0, 1.0)))  # noqa: S311  # spreads, no secret

    async def _pause(self, delay: float) -> None:
        """Wait; a nudge makes it shorter, but the site is not asked more often than at the settings' interval."""
        floor = min(delay, self._config.poll_interval_s, 2.0)
        await anyio.sleep(floor)
        with anyio.move_on_after(max(0.0, delay - floor)):
            await self._nudge.wait()

    async def look(self) -> None:
        """One look at Slurm, and what follows from it.

        Raises
        ------
        BackendUnavailable, BackendAuthError
            If Slurm does not answer: then nothing follows.
        """
        if any(held.engine.chunks for held in self._runs.values()):
            await self._see()
        await self._learn_limits()
        for token in list(self._runs):
            held = self._runs[token]
            await self._act(token, held)
            if held.engine.meta.hands_off and held.engine.live and not (held.engine.cancelled or held.engine.held):
                await self._hand_over(held)
            if not held.engine.live:
                await self._let_go(token)
        await self._submit_ready()

    # -- seeing ------------------------------------------------------------------------------------------------------

    async def _see(self) -> None:
        began = self._context.clock()
        answer = await self._ask(self.queue, self._cluster.queue())
        self.queue.cost_bytes = answer.cost_bytes
        rows = by_run(answer.rows)
        folders: dict[str, list[tuple[str, int]]] = {}
        for token, held in self._runs.items():
            for chunk in held.engine.chunks.values():
                if chunk.job_id is not None:
                    folders.setdefault(collect_folder(token, chunk), []).append((token, chunk.number))
        records, size = await self._ask(self.exits, self._cluster.exits(list(folders)))
        self.exits.cost_bytes = size
        found: dict[str, dict[int, dict[tuple[int, int], ExitRecord]]] = {token: {} for token in self._runs}
        for folder, chunks in folders.items():
            known = {(record.node, record.attempt): record for record in records.get(folder, ())}
            for token, number in chunks:
                found[token][number] = known
        now = self._context.clock()
        sights = {token: Sight(began, now, rows.get(token, {}), own) for token, own in found.items()}
        wanted: set[int] = set()
        for token, sight in sights.items():
            wanted |= self._runs[token].engine.missing(sight)
        accounts, complete = await self._accounts(wanted)
        for token, sight in sights.items():
            if token not in self._runs:
                continue
            held = self._runs[token]
            whole = sight._replace(accounts=accounts)
            after = self._config.lost_after_s if complete else _INF
            async with held.lock:
                before = held.engine.written
                lost = await anyio.to_thread.run_sync(held.engine.see, whole, after)
                self._changed |= held.engine.written != before
            for number, indices in lost:
                await self._settle_lost(held, number, indices)

    async def _accounts(self, ids: set[int]) -> tuple[dict[tuple[int, int], AccountRow], bool]:
        """What accounting knows of arrays, by id and index; and whether that is all that there is to know."""
        if not ids or not self._limits.has_accounting:
            return {}, True
        try:
            rows = await self._ask(self.accounting, self._cluster.accounts(ids))
        except BackendUnavailable:
            return {}, False
        return {(row.array_id, index): row for row in rows for index in row.indices}, True

    async def _ask(self, status: Status, call: Any) -> Any:
        began = time.monotonic()
        try:
            answer = await call
        except BpsdError as exc:
            status.ok, status.error = False, exc.message
            raise
        finally:
            status.cost_s = time.monotonic() - began
            status.asks += 1
        status.ok, status.error, status.at = True, "", self._context.clock()
        return answer

    async def _learn_limits(self) -> None:
        if time.monotonic() - self._limits_at < LIMITS_EVERY_S or not self.live:
            return
        self._limits = await self._ask(self.queue, self._cluster.limits())
        self._limits_at = time.monotonic()
        association = await self._cluster.association_limit()
        self._window.limit(
            array_size=self._limits.max_array_size, job_count=self._limits.max_job_count, association=association
        )

    # -- acting ------------------------------------------------------------------------------------------------------

    async def _act(self, token: str, held: _Held) -> None:
        """What is to be done for a run beside submitting."""
        engine = held.engine
        doubtful = engine.doubtful()
        if doubtful:
            await self._resolve(held, doubtful)
        ending = [chunk for chunk in engine.chunks.values() if chunk.ending and chunk.job_id is not None]
        if ending:
            await self._cluster.cancel(i for chunk in ending for i in (chunk.job_id or 0, *chunk.others))
        if engine.held:
            await self._cluster.hold(engine.waiting())
        if (
            engine.refusal
            and self._context.clock() - held.refused_at > REFUSED_RETRY_LOOKS * self._config.poll_interval_s
        ):
            engine.refusal = ""

    async def _resolve(self, held: _Held, chunks: Sequence[Chunk]) -> None:
        """Find out about chunks whose submission was cut off: not begun, in Slurm, or in doubt for now."""
        engine = held.engine
        said = await self._cluster.call_off(engine.meta.folder, [chunk.number for chunk in chunks])
        tried: list[Chunk] = []
        for chunk in chunks:
            word, _, job_id = said.get(chunk.number, "").partition(" ")
            if word == "id":
                await self._now(held, engine.submitted, chunk.number, int(job_id.partition(";")[0]))
            elif word == "off":
                await self._now(held, engine.withdraw, chunk.number)
            elif word == "tried":
                tried.append(chunk)
        if tried:
            await self._look_up(held, tried)

    async def _look_up(self, held: _Held, chunks: Sequence[Chunk]) -> None:
        """The queue does not have them, as `Engine.see` would know: ask accounting, and at last take their claims."""
        engine, now = held.engine, self._context.clock()
        names = {chunk_name(engine.meta.token, chunk.number): chunk for chunk in chunks}
        if self._limits.has_accounting:
            age = now - min(chunk.intended for chunk in chunks)
            try:
                rows = await self._ask(self.accounting, self._cluster.accounts_by_name(list(names), age + 600))
            except BackendUnavailable:
                return  # they stay in doubt
            for row in rows:
                chunk = names.pop(row.name, None)
                if chunk is not None and chunk.job_id is None:
                    await self._now(held, engine.submitted, chunk.number, row.array_id)
        for chunk in names.values():
            ended = chunk.intended + self._config.submit_deadline_s if chunk.doubted is None else chunk.doubted
            if now > ended + self._config.settle_s:
                await self._void(held, chunk, list(chunk.open))

    async def _settle_lost(self, held: _Held, number: int, indices: Sequence[int]) -> None:
        chunk = held.engine.chunks.get(number)
        if chunk is not None:
            await self._void(held, chunk, [i for i in indices if i in chunk.open])

    async def _void(self, held: _Held, chunk: Chunk, indices: Sequence[int]) -> None:
        """Take the claims of jobs that nobody knows: those that had not begun never will, and are ready again."""
        engine = held.engine
        claims = {f"{chunk.open[i].ref.node}.{chunk.open[i].ref.attempt}": i for i in indices}
        owners = await self._cluster.void(engine.meta.folder, list(claims))
        free = [claims[claim] for claim, owner in owners.items() if owner == "void"]
        begun = {claims[claim]: owner for claim, owner in owners.items() if owner != "void"}
        if free:
            await self._now(
                held, engine.withdraw, chunk.number, note="not in Slurm any more: tried again", indices=free
            )
        for index, owner in begun.items():
            if chunk.job_id is None:  # it was submitted after all, and is gone from the queue already
                await self._now(held, engine.submitted, chunk.number, int(owner))
            else:
                note = f"Slurm job {owner} ran it and is not known any more: nobody saw how it ended"
                await self._now(held, engine.lose, chunk.number, index, note=note)

    async def _now(self, held: _Held, order: Callable[..., Any], *arguments: Any, **more: Any) -> None:
        async with held.lock:
            await anyio.to_thread.run_sync(lambda: order(*arguments, now=self._context.clock(), **more))
        self._changed = True

    # -- submitting --------------------------------------------------------------------------------------------------

    async def _submit_ready(self) -> None:
        """Fill the window from all runs in turn."""
        waiting = [held for held in self._runs.values() if held.engine.live and held.engine.has_ready]
        for held in waiting:
            room = self._window.now - self.in_queue
            if room < 1:
                return
            share = max(1, room // len(waiting))
            async with held.lock:
                plans = await anyio.to_thread.run_sync(held.engine.plan, share, self._context.clock())
            self._changed |= bool(plans)
            limiter = anyio.CapacityLimiter(SUBMITS_AT_ONCE)
            try:
                async with anyio.create_task_group() as group:
                    for plan in plans:
                        group.start_soon(self._submit, held, plan, limiter)
            except* OSError as failed:  # our own disk: what was submitted is looked up when it can be written again
                raise OSError(
                    f"the log of run {held.engine.meta.token} cannot be written: {failed.exceptions[0]}"
                ) from failed

    async def _hand_over(self, held: _Held) -> None:
        """Give Slurm what it does not have yet of a run that it is to keep the order of, some at a time."""
        engine = held.engine
        while True:
            async with held.lock:
                jobs, lines = await anyio.to_thread.run_sync(engine.hand_over, self._context.clock())
            if not lines:
                return
            self._changed = True
            found, why = await self._cluster.submit_all(engine.meta.folder, jobs, lines[:HANDED_AT_ONCE])
            for number, job_id in found.items():
                await self._now(held, engine.submitted, number, job_id)
            if why is not None:
                self._context.log.info(
                    LogEvent.SLURM_NOT_SUBMITTED,
                    backend=self._context.backend,
                    run=engine.meta.token,
                    outcome=why.outcome.value,
                    error=why.text,
                )
                if why.outcome is Outcome.DOUBT and len(found) < len(lines):
                    engine.in_doubt(int(lines[len(found)][0]), self._context.clock())
                return  # the rest with the next look

    async def _submit(self, held: _Held, plan: Any, limiter: anyio.CapacityLimiter) -> None:
        engine = held.engine
        try:
            async with limiter:
                done = await self._cluster.submit(engine.meta.folder, plan)
        except BaseException:
            engine.in_doubt(plan.chunk, self._context.clock())
            raise
        if done.outcome is Outcome.SUBMITTED:
            await self._now(held, engine.submitted, plan.chunk, done.job_id)
            self._window.taken()
            return
        self._context.log.info(
            LogEvent.SLURM_NOT_SUBMITTED,
            backend=self._context.backend,
            run=engine.meta.token,
            outcome=done.outcome.value,
            error=done.text,
        )
        if done.outcome in (Outcome.LIMITED, Outcome.FULL):
            self._window.refused(self.in_queue - plan.size)
        if done.outcome in (Outcome.DOUBT, Outcome.FULL):
            engine.in_doubt(plan.chunk, self._context.clock())
            return
        if done.outcome is Outcome.REFUSED:
            engine.refusal, held.refused_at = done.text[:300], self._context.clock()
        await self._now(held, engine.withdraw, plan.chunk, note=done.text[:300])


def _has_log(state: StateFolder, token: str) -> bool:
    return state.run(token).log.exists()
