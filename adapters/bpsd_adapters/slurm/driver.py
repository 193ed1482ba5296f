"""What drives all runs of a backend: one look at Slurm for all of them, then what follows for each.

From one look to the next it reads what jobs wrote of their ends, which asks nothing of Slurm. It runs in the daemon.
Nothing is lost when that is killed: what was done is in the logs, and what is in Slurm goes on.
"""

from __future__ import annotations

__all__ = ["Driver"]

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import anyio

from bpsd.errors import BackendAuthError, BackendUnavailable
from bpsd.interface import ServiceContext
from bpsd.logs import LogEvent
from bpsd_adapters.quarantine import Quarantine
from bpsd_adapters.slurm.acts import Acts
from bpsd_adapters.slurm.chunks import Sight
from bpsd_adapters.slurm.cluster import Cluster
from bpsd_adapters.slurm.engine import Engine
from bpsd_adapters.slurm.layout import StateFolder, run_id
from bpsd_adapters.slurm.pacing import Window, next_look
from bpsd_adapters.slurm.parsing import ExitRecord
from bpsd_adapters.slurm.runs import Held, Runs
from bpsd_adapters.slurm.settings import SlurmConfig
from bpsd_adapters.slurm.watch import Watch
from bpsd_adapters.transports.base import CommandFailed

SUBMITS_AT_ONCE = 4
"""How many sbatch run at the same time."""

JITTER = 0.1

NUDGE_FLOOR_S, NUDGE_COST_FACTOR = 2.0, 5.0
"""Who is in a hurry waits so long after a look, or so many times what that took."""

SEEING = "taking in what Slurm shows of its jobs"
ACTING = "carrying out what is due for it"
NOTING = "writing its note"
SUBMITTING = "submitting its jobs"
READING = "reading what its jobs wrote"
ENDING = "ending its jobs in Slurm"
"""Parts of the work for a run; each pauses by itself after an unexpected error."""

T = TypeVar("T")


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
    quarantine : `~bpsd_adapters.quarantine.Quarantine`
        Runs that broke in an unexpected way, by their ids.
    """

    def __init__(
        self,
        cluster: Cluster,
        state: StateFolder,
        config: SlurmConfig,
        context: ServiceContext,
        quarantine: Quarantine,
    ) -> None:
        self._cluster, self._config, self._context = cluster, config, context
        self._quarantine = quarantine
        self._runs = Runs(state, config.defaults, context, quarantine)
        self.watch = Watch(cluster, context.clock)
        self._window = Window(config.window_jobs)
        self._acts = Acts(cluster, self.watch, self._runs, self._window, config, context)
        self._nudge = anyio.Event()
        self._failures = 0

    def __repr__(self) -> str:
        return f"<Driver of {len(self._runs)} runs, {self._runs.in_queue} jobs in Slurm, window {self._window.now}>"

    @property
    def attempts(self) -> dict[str | None, int]:
        """The runs that are driven, by token, and their attempts."""
        return {held.engine.meta.token: held.engine.attempt for held in self._runs.live}

    # -- runs --------------------------------------------------------------------------------------------------------

    async def open(self, token: str) -> Engine | None:
        """The engine of a run, its log held; `None` if it is over.

        Raises
        ------
        BackendUnavailable
            If another process holds it, or its files cannot be read.
        """
        held = await self._runs.open(token)
        return None if held is None else held.engine

    async def begin(self, token: str, attempt: int) -> None:
        """Begin an attempt of a run, unless it was begun; it is on the disk when this returns.

        Raises
        ------
        BackendUnavailable
            If another process holds the run, or its files cannot be read.
        OSError
            If that cannot be written.
        """
        await self._runs.begin(token, attempt)
        self._context.wake("a run began")
        self.nudge()

    def note_of(self, token: str) -> str | None:
        """Return the note of a run that is driven; `None` of any other run."""
        held = self._runs.get(token)
        return None if held is None else held.engine.shown_note

    async def tell(self, token: str, order: Callable[[Engine], T]) -> T:
        """Have the engine of an open run do something, alone."""
        self._quarantine.retry_now(run_id(token))
        done = await self._runs[token].do(order)
        self._context.wake("a run changed")
        self.nudge()
        return done

    def nudge(self) -> None:
        """Look soon."""
        self._nudge.set()

    def close(self) -> None:
        """Let all logs go; what is in Slurm goes on."""
        self._runs.close()

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take up every run that is not over, and drive until cancelled."""
        await self._runs.find_all()
        delay, written = 0.0, 0
        while True:
            await self._runs.take_up()
            if not self._runs.live and not self._runs.unopened:
                await self._nudge.wait()
            self._nudge = anyio.Event()
            self.watch.cost_s = 0.0
            try:
                await self.look()
                self._failures = 0
            except (BackendUnavailable, BackendAuthError, OSError) as exc:
                self._failures += 1
                self._context.log.info(
                    LogEvent.SLURM_LOOK_FAILED, backend=self._context.backend, failures=self._failures, error=str(exc)
                )
            except Exception as exc:  # an error outside of any run: the backend tries again
                self._failures += 1
                self._context.log.exception(
                    LogEvent.SLURM_LOOK_FAILED,
                    backend=self._context.backend,
                    failures=self._failures,
                    error=repr(exc),
                )
            changed, written = self._runs.written != written, self._runs.written
            if changed or self._failures == 1:
                self._context.wake("jobs changed")
            delay = next_look(
                self._config.poll_interval_s,
                self._config.idle_interval_s,
                before_s=delay,
                cost_s=self.watch.cost_s,
                changed=changed,
                failures=self._failures,
                min_job_age_s=self.watch.limits.min_job_age_s,
            )
            await self._pause(delay * (1.0 + JITTER * random.uniform(-1.0, 1.0)))  # noqa: S311  # spreads, no secret

    async def _pause(self, delay: float) -> None:
        """Wait, reading records; a nudge makes it shorter, but nobody's hurry is to be a burden to the site."""
        now = time.monotonic()
        floor = now + min(delay, max(NUDGE_FLOOR_S, NUDGE_COST_FACTOR * self.watch.cost_s))
        end, pause = now + delay, self._config.record_interval_s
        due = now + pause
        while now < (floor if self._nudge.is_set() else end):
            if now >= due:
                written = self._runs.written
                readable = await self.read_records()
                pause = next_look(
                    self._config.record_interval_s,
                    self._config.poll_interval_s,
                    before_s=pause,
                    cost_s=self.watch.exits.took_s,
                    changed=self._runs.written != written,
                )
                due = time.monotonic() + pause if readable else end
            elif now < floor:
                await anyio.sleep(min(floor, due) - now)
            else:
                with anyio.move_on_after(min(end, due) - now):
                    await self._nudge.wait()
            now = time.monotonic()

    async def read_records(self) -> bool:
        """Between looks: take in who wrote that it succeeded, and do not let Slurm run out of work.

        Returns
        -------
        readable : `bool`
            `False` if there is no use in trying again before the next look, which will tell why.
        """
        written = self._runs.written
        try:
            for token, records in (await self._records(dict.fromkeys(self._runs))).items():
                if records:
                    with self._quarantine.guard(run_id(token), READING):
                        await self._runs[token].do(Engine.take_records, records, self._context.clock())
            if self._runs.written == written:
                return True
            self._context.wake("jobs ended")
            if not self._failures and self._window.slack(self._runs.in_queue):
                await self._submit_ready()
        except (BackendUnavailable, BackendAuthError, OSError):
            return False
        return True

    async def look(self) -> None:
        """One look at Slurm, and what follows from it.

        Raises
        ------
        BackendUnavailable, BackendAuthError
            If Slurm does not answer: then nothing follows.
        """
        if any(held.engine.chunks for held in self._runs.values()):
            await self._see()
        if self._runs.live:
            await self.watch.learn_limits(self._window)
        for token, held in list(self._runs.items()):
            held.trouble = ""
            for part, do in ((ENDING, self._end), (ACTING, self._act)):
                try:
                    await self._guarded(token, part, do, held)
                except CommandFailed as exc:  # the host answers: it is this run's folder, say, and no other's trouble
                    held.trouble = exc.message
                    self._context.log.warning(
                        LogEvent.SLURM_RUN_FAILED, backend=self._context.backend, run=token, error=exc.message
                    )
            await self._guarded(token, NOTING, held.do, Engine.note, held.trouble, self._context.clock())
            if not held.engine.live:
                await self._runs.let_go(token)
        await self._submit_ready()

    async def _guarded(self, token: str, part: str, do: Callable[..., Awaitable[T]], *arguments: Any) -> T | None:
        """Do a part of the work for a run, unless that part pauses; `None` if it pauses or broke."""
        run = run_id(token)
        if self._quarantine.is_due(run, part):
            with self._quarantine.guard(run, part):
                return await do(*arguments)
        return None

    async def _see(self) -> None:
        """Ask the queue, the disk and accounting of those that it does not show as alive, and tell the engines."""
        began = self._context.clock()
        rows = await self.watch.rows()
        runs = dict(self._runs)
        sights = {token: Sight(began, self._context.clock(), rows.get(token, {})) for token in runs}
        records = await self._records(sights)
        missing: set[int] = set()
        readable = {token: held for token, held in runs.items() if token in records}
        for token, held in readable.items():
            sights[token] = sights[token]._replace(records=records[token])
            missing |= await self._guarded(token, SEEING, held.do, Engine.missing, sights[token]) or set()
        accounts, complete = await self.watch.accounts(missing)
        lost_after_s = self._config.lost_after_s if complete else float("inf")
        for token, held in readable.items():
            sight = sights[token]._replace(accounts=accounts)
            held.lost = await self._guarded(token, SEEING, held.do, Engine.see, sight, lost_after_s) or []

    async def _records(self, sights: Mapping[str, Sight | None]) -> dict[str, dict[tuple[int, int], ExitRecord]]:
        """The exit records of the jobs that `Engine.record_paths` has for these runs, by chunk and index.

        A run whose paths cannot be had now is left out: without them nothing is known of how its jobs ended.
        """
        whose: dict[str, tuple[str, tuple[int, int]]] = {}
        records: dict[str, dict[tuple[int, int], ExitRecord]] = {}
        for token, sight in sights.items():
            paths = await self._guarded(token, READING, self._runs[token].do, Engine.record_paths, sight)
            if paths is not None:
                records[token] = {}
                whose.update((path, (token, place)) for path, place in paths.items())
        for path, record in (await self.watch.records(list(whose))).items():
            if path in whose:
                token, place = whose[path]
                records[token][place] = record
        return records

    async def _end(self, held: Held) -> None:
        """End what of a run is to go: first of all, whatever else of it breaks."""
        ending = await held.do(Engine.ending)
        if ending:
            await self._cluster.cancel(ending)

    async def _act(self, held: Held) -> None:
        """What is to be done for a run beside submitting what is ready."""
        engine, lost = held.engine, held.lost
        held.lost = []
        for number, indices in lost:
            chunk = engine.chunks.get(number)
            if chunk is not None:
                await self._acts.void(held, chunk, [i for i in indices if i in chunk.open])
        doubtful = engine.doubtful()
        if doubtful:
            await self._acts.resolve(held, doubtful)
        if engine.held:
            await self._cluster.hold(engine.waiting())
        if engine.refused:
            await held.do(Engine.offer_due, self._context.clock())
        if engine.meta.hands_off and engine.live and not (engine.cancelled or engine.held):
            await self._acts.hand_over(held)
        await self._acts.discard_spent(held)

    async def _submit_ready(self) -> None:
        """Fill the window from all runs in turn."""
        waiting = [held for held in self._runs.live if held.engine.has_ready]
        limiter = anyio.CapacityLimiter(SUBMITS_AT_ONCE)
        for held in waiting:
            room = self._window.now - self._runs.in_queue
            if room < 1:
                return
            token = held.engine.meta.token
            await self._guarded(token, SUBMITTING, self._submit_some, held, max(1, room // len(waiting)), limiter)

    async def _submit_some(self, held: Held, limit: int, limiter: anyio.CapacityLimiter) -> None:
        plans = await held.do(Engine.plan, limit, self._context.clock())
        try:
            async with anyio.create_task_group() as group:
                for plan in plans:
                    group.start_soon(self._acts.submit, held, plan, limiter)
        except* OSError as failed:  # our own disk: what was submitted is looked up when it can be written again
            raise OSError(
                f"the log of run {held.engine.meta.token} cannot be written: {failed.exceptions[0]}"
            ) from failed
