"""What is done for one run: submitting its chunks, and finding out about those whose submission was cut off."""

from __future__ import annotations

__all__ = ["Acts"]

from collections.abc import Sequence

import anyio

from bpsd.errors import BackendUnavailable
from bpsd.interface import ServiceContext
from bpsd.logs import LogEvent
from bpsd_adapters.slurm.answers import Outcome, Submission
from bpsd_adapters.slurm.chunks import Chunk, Plan
from bpsd_adapters.slurm.cluster import Cluster
from bpsd_adapters.slurm.engine import REFUSED_MAX_S, Engine
from bpsd_adapters.slurm.pacing import Window
from bpsd_adapters.slurm.runs import Held, Runs
from bpsd_adapters.slurm.settings import SlurmConfig
from bpsd_adapters.slurm.watch import Watch

NOTE_CHARS = 300
"""How much of what sbatch said goes into a note."""

REFUSED_RETRY_LOOKS = 10
"""After so many poll intervals what Slurm refused is offered again, the first time."""

HANDED_AT_ONCE = 200
"""How many jobs of a run that is handed over whole are submitted in one call: some ten seconds."""


class Acts:
    """Acts for the runs of one backend, one run at a time.

    Parameters
    ----------
    cluster : `Cluster`
        Who does it.
    watch : `Watch`
        Who knows of accounting.
    runs : `Runs`
        All runs, which share the window.
    window : `Window`
        How many jobs may be in Slurm.
    config : `SlurmConfig`
        The backend's settings.
    context : `~bpsd.interface.ServiceContext`
        Log and clock.
    """

    def __init__(
        self, cluster: Cluster, watch: Watch, runs: Runs, window: Window, config: SlurmConfig, context: ServiceContext
    ) -> None:
        self._cluster, self._watch, self._runs, self._window = cluster, watch, runs, window
        self._config, self._context = config, context

    # -- in doubt ----------------------------------------------------------------------------------------------------

    async def resolve(self, held: Held, chunks: Sequence[Chunk]) -> None:
        """Find out about chunks whose submission was cut off: not begun, in Slurm, or in doubt for now."""
        engine, now = held.engine, self._context.clock()
        said = await self._cluster.call_off(engine.meta.folder, [chunk.number for chunk in chunks])
        tried: list[Chunk] = []
        for chunk in chunks:
            word, job_id = said.get(chunk.number, ("", None))  # nothing readable: it stays in doubt
            if job_id is not None:
                await held.do(Engine.submitted, chunk.number, job_id, now)
            elif word == "off":
                await held.do(Engine.withdraw, chunk.number, now, unused=True)
            elif word == "tried":
                tried.append(chunk)
        if tried:
            await self._look_up(held, tried)

    async def _look_up(self, held: Held, chunks: Sequence[Chunk]) -> None:
        """The queue does not have them, as `Engine.see` would know: ask accounting, and at last take their claims."""
        now = self._context.clock()
        names = {chunk.name: chunk for chunk in chunks}
        if self._watch.limits.has_accounting:
            age = now - min(chunk.intended for chunk in chunks)
            try:
                rows = await self._watch.accounts_by_name(list(names), age + 600)
            except BackendUnavailable:
                return  # they stay in doubt
            for row in rows:
                chunk = names.pop(row.name, None)
                if chunk is not None and chunk.job_id is None:
                    await held.do(Engine.submitted, chunk.number, row.array_id, now)
        for chunk in names.values():
            ended = chunk.intended + self._config.submit_deadline_s if chunk.doubted is None else chunk.doubted
            if now > ended + self._config.settle_s:
                await self.void(held, chunk, list(chunk.open))

    async def void(self, held: Held, chunk: Chunk, indices: Sequence[int]) -> None:
        """Take the claims of jobs that nobody knows: those that had not begun never will, and are ready again."""
        engine, now = held.engine, self._context.clock()
        claims = {f"{chunk.open[i].ref.node}.{chunk.open[i].ref.attempt}": i for i in indices}
        owners = await self._cluster.void(engine.meta.folder, list(claims))
        free = [claims[claim] for claim, owner in owners.items() if owner == "void"]
        begun = {claims[claim]: owner for claim, owner in owners.items() if owner != "void"}
        if free:
            # What sbatch itself left in doubt would be left so again: it waits as what is refused does.
            note = chunk.why or "not in Slurm any more: tried again"
            refused_s = self._refused_s if chunk.why else None
            await held.do(Engine.withdraw, chunk.number, now, note, free, refused_s=refused_s)
        if begun and chunk.job_id is None:  # it was submitted after all: how its jobs ended is for the next looks
            await held.do(Engine.submitted, chunk.number, min(map(int, begun.values())), now)
            return
        for index, owner in begun.items():
            note = f"Slurm job {owner} ran it and is not known any more: nobody saw how it ended"
            await held.do(Engine.lose, chunk.number, index, now, note)

    # -- submitting --------------------------------------------------------------------------------------------------

    async def submit(self, held: Held, plan: Plan, limiter: anyio.CapacityLimiter) -> None:
        """Submit a chunk, and take in what came of it."""
        engine = held.engine
        try:
            async with limiter:
                done = await self._cluster.submit(engine.meta.folder, plan)
        except BaseException:
            engine.in_doubt(plan.chunk, self._context.clock())
            raise
        now = self._context.clock()
        if done.outcome is Outcome.SUBMITTED:
            await held.do(Engine.submitted, plan.chunk, done.job_id, now)
            self._window.taken()
            return
        self._not_submitted(held, done)
        others = self._runs.in_queue - plan.size
        if done.outcome in (Outcome.LIMITED, Outcome.FULL):
            self._window.refused(others)
        if done.outcome in (Outcome.DOUBT, Outcome.FULL):
            engine.in_doubt(plan.chunk, now, done.text[:NOTE_CHARS] if done.outcome is Outcome.DOUBT else "")
            return
        note, refused_s = done.text[:NOTE_CHARS], None
        if done.outcome is not Outcome.LIMITED or others < 1:  # with nothing of ours there it would be the same again
            refused_s = self._refused_s
            note = note if done.outcome is Outcome.NOT_WRITTEN else f"sbatch refuses it: {note}"
        await held.do(Engine.withdraw, plan.chunk, now, note, unused=True, refused_s=refused_s)

    @property
    def _refused_s(self) -> float:
        """How long what Slurm refused waits for its next offer, the first time."""
        return REFUSED_RETRY_LOOKS * self._config.poll_interval_s

    async def hand_over(self, held: Held) -> None:
        """Give Slurm what it does not have yet of a run that it is to keep the order of, some at a time."""
        engine = held.engine
        if self._context.clock() < held.not_before:
            return
        jobs, lines = await held.do(Engine.hand_over, self._context.clock())
        if not lines:
            return
        await self._cluster.write_all(engine.meta.folder, jobs)
        for start in range(0, len(lines), HANDED_AT_ONCE):
            some = lines[start : start + HANDED_AT_ONCE]
            found, why = await self._cluster.submit_all(engine.meta.folder, some)
            for number, job_id in found.items():
                await held.do(Engine.submitted, number, job_id, self._context.clock())
            if why is not None:
                await self._hand_over_stopped(held, why, [int(line[0]) for line in some if int(line[0]) not in found])
                return  # the rest with a later look
        held.refusals = 0

    async def _hand_over_stopped(self, held: Held, why: Submission, left: Sequence[int]) -> None:
        engine, now = held.engine, self._context.clock()
        self._not_submitted(held, why)
        held.trouble = why.text
        if why.outcome in (Outcome.DOUBT, Outcome.FULL) and left:
            engine.in_doubt(left[0], now, why.text[:NOTE_CHARS])
        elif left:
            await self._cluster.discard(engine.meta.folder, left[:1])  # it may be tried again under its number
            pause_s = self._refused_s if why.outcome is Outcome.REFUSED else self._config.poll_interval_s
            held.not_before = now + min(pause_s * 2.0 ** min(held.refusals, 20), max(pause_s, REFUSED_MAX_S))
            held.refusals += 1

    async def discard_spent(self, held: Held) -> None:
        """Remove the files of chunks of which nothing is open any more."""
        spent = held.engine.take_spent()
        if spent:
            await self._cluster.discard(held.engine.meta.folder, spent)

    def _not_submitted(self, held: Held, why: Submission) -> None:
        self._context.log.info(
            LogEvent.SLURM_NOT_SUBMITTED,
            backend=self._context.backend,
            run=held.engine.meta.token,
            outcome=why.outcome.value,
            error=why.text,
        )
