"""The runs that this process drives: each held by the lock of its log, and asked for one thing at a time."""

from __future__ import annotations

__all__ = ["Held", "Runs"]

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar

import anyio
import anyio.to_thread
import msgspec

from bpsd.errors import BackendUnavailable
from bpsd.interface import ServiceContext
from bpsd.logs import LogEvent
from bpsd_adapters import runlog
from bpsd_adapters.quarantine import Quarantine
from bpsd_adapters.runlog import RunLog
from bpsd_adapters.slurm.engine import Engine
from bpsd_adapters.slurm.layout import StateFolder, run_id
from bpsd_adapters.slurm.options import Defaults

OPENING = "opening it"
"""The part of the work for a run that `Runs.take_up` does; it pauses by itself after an unexpected error."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Held:
    """A run that this process drives."""

    engine: Engine
    refusals: int = 0
    """Hands-off: how often the next job was refused."""

    not_before: float = 0.0
    """Hands-off: when the next job is offered (epoch seconds)."""

    trouble: str = ""
    """What went wrong with this run alone in the last look."""

    lost: list[tuple[int, list[int]]] = field(default_factory=list)
    """Jobs that no source knows any more, by chunk and index, as the last look had it."""

    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    async def do(self, method: Callable[Concatenate[Engine, P], T], *arguments: P.args, **more: P.kwargs) -> T:
        """Have the engine do something, alone and in a thread: there may be many jobs to go through."""
        async with self._lock:
            return await anyio.to_thread.run_sync(lambda: method(self.engine, *arguments, **more))


class Runs(dict[str, Held]):
    """The runs that are held, by token.

    Parameters
    ----------
    state : `StateFolder`
        Where they are.
    defaults : `Defaults`
        What every job gets.
    context : `~bpsd.interface.ServiceContext`
        Log and clock.
    quarantine : `~bpsd_adapters.quarantine.Quarantine`
        Runs that broke in an unexpected way, by their ids.
    """

    def __init__(self, state: StateFolder, defaults: Defaults, context: ServiceContext, quarantine: Quarantine) -> None:
        super().__init__()
        self._quarantine = quarantine
        self._state, self._defaults, self._context = state, defaults, context
        self._opening = anyio.Lock()
        self._written_before = 0
        self.unopened: dict[str, str] = {}
        """Runs that may not be over and are still to be opened, and why that did not succeed."""

    @property
    def written(self) -> int:
        """How many events this process has written of all runs, those that are over too."""
        return self._written_before + sum(held.engine.written for held in self.values())

    @property
    def live(self) -> list[Held]:
        """Those that are not over."""
        return [held for held in self.values() if held.engine.live]

    @property
    def in_queue(self) -> int:
        """How many jobs of all of them are in Slurm, or may be."""
        return sum(held.engine.in_queue for held in self.values())

    async def find_all(self) -> None:
        """Look which runs may not be over: they are to be taken up."""
        for meta in self._state.metas():
            if await anyio.to_thread.run_sync(self._state.run(meta.token).log.exists):
                self.unopened.setdefault(meta.token, "")

    async def take_up(self) -> None:
        """Open what is unopened; what cannot be is told of, tried again the next time, and keeps no other back."""
        for token, before in list(self.unopened.items()):
            if not self._quarantine.is_due(run_id(token), OPENING):
                continue
            try:
                with self._quarantine.guard(run_id(token), OPENING):
                    await self.open(token)
                    del self.unopened[token]
            except BackendUnavailable as exc:
                self.unopened[token] = exc.message
                if exc.message != before:
                    self._context.log.warning(
                        LogEvent.SLURM_RUN_FAILED, backend=self._context.backend, run=token, error=exc.message
                    )

    async def open(self, token: str) -> Held | None:
        """A run, its log held; `None` if it is over.

        Raises
        ------
        BackendUnavailable
            If another process holds it, or its files cannot be read.
        """
        async with self._opening:
            held = self.get(token) or await self._loaded(token, only_live=True)
            if held is None or not held.engine.live:
                return None
            self[token] = held
            return held

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
            held = self.get(token) or await self._loaded(token, only_live=False)
            assert held is not None
            self[token] = held  # also if it does not come to begin it: who holds it is to let it go
            if held.engine.attempt < attempt:
                await held.do(Engine.begin, attempt, self._context.clock())

    async def let_go(self, token: str) -> None:
        """Let the log of a run go, if the run is over."""
        async with self._opening:
            if not self[token].engine.live:
                held = self.pop(token)
                self._written_before += held.engine.written
                self._quarantine.forget(run_id(token))
                await held.do(Engine.close)

    def close(self) -> None:
        """Let all logs go."""
        for held in self.values():
            held.engine.close()
        self.clear()

    async def _loaded(self, token: str, *, only_live: bool) -> Held | None:
        try:
            engine = await anyio.to_thread.run_sync(self._load, token, only_live)
        except (OSError, msgspec.MsgspecError, ValueError) as exc:
            raise BackendUnavailable(f"run {token} cannot be opened: {exc}") from exc
        return None if engine is None else Held(engine)

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
