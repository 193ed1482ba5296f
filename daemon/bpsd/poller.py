"""One poller per backend: opens its service, asks it at the right times, and confines whatever goes wrong there.

Each backend lives in a task group of its own. A poll that fails, hangs or is refused ages that backend's rows and
changes nothing else; an adapter whose background task dies is closed, shown as ``stopped`` and opened again after a
pause.
"""

from __future__ import annotations

__all__ = ["Backend"]

import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from bpsd.cache import Cache
from bpsd.config import BackendConfig
from bpsd.errors import BackendAuthError, BackendUnavailable, BpsdError, DeadlineExceeded, Problem
from bpsd.interface import ServiceContext, WmsService
from bpsd.logs.events import LogEvent
from bpsd.logs.redaction import redact_text
from bpsd.messages import BackendRow, SourceRow
from bpsd.models import PollRequest, PollResult, SourceReport
from bpsd.pacing import Pace, breaker, next_delay, soonest

ERROR_CHARS = 500
"""How much of an error's text a row of a backend shows."""

STUCK_AFTER_S = 60.0
"""How long after its own deadline a backend that does nothing more counts as stuck: the loop may be busy meanwhile."""

STOOD_STILL_S = 0.5
"""A poll that took longer may have been under way while this process was stopped."""

SETTLE_S = 0.05

CLOCK_OFFSET_S = 5.0
"""How far a WMS's clock may be from ours before it is said."""

CHECK_WAIT_S = 10.0
"""Time for the check of a backend's settings; its files may lie on a file system that does not answer."""

MAX_DETAIL_ROUNDS = 1000
"""How many results in a row a backend may ask to be followed up at once (``more``), before it is a failure."""


class Backend:
    """A configured backend while the daemon runs.

    Parameters
    ----------
    uid : `str`
        Its identity over renames.
    make : callable
        Makes the service from a `~bpsd.interface.ServiceContext`.
    settings : `~bpsd.config.BackendConfig`
        Its section of the configuration.
    check : callable
        Returns what keeps these settings from working on this host; it may block. While there is anything, the backend
        is ``stopped`` with that reason.
    polled : callable
        Told of every poll that ended: the backend, ``ok``, ``partial`` or ``failed``, and how many seconds it took.
    stood_still_s : callable
        How long, in all, this process was stopped or its loop blocked.
    """

    def __init__(
        self,
        *,
        uid: str,
        make: Callable[[ServiceContext], WmsService],
        check: Callable[[], Sequence[Problem]] = tuple,
        settings: BackendConfig,
        cache: Cache,
        state_dir: Path,
        log: Any,
        polled: Callable[[str, str, float], None],
        stood_still_s: Callable[[], float],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tell_polled, self._stood_still_s = polled, stood_still_s
        self.name, self.uid, self.type = settings.name, uid, settings.type
        self.settings = settings
        self._make, self._cache, self.state_dir, self._clock = make, cache, state_dir, clock
        self._check, self._checking = check, anyio.CapacityLimiter(1)
        self._log = log
        self._service: WmsService | None = None
        self._state: Literal["starting", "up", "down", "auth", "stopped"] = "starting"
        self._pace = Pace()
        self._asking = False
        self._error = ""
        self._polls = self._failures_ever = 0
        self._last_good: float | None = None
        self._last_good_mono: float | None = None
        self._last_attempt: float | None = None
        self._next_poll: float | None = None
        self._due = math.inf  # monotonic: when what goes on now is to be over
        self._sources: list[SourceRow] = []
        self._heard: dict[str, float] = {}  # source to when it answered last (monotonic), or first did not
        self._clock_offset_s: float | None = None
        self._wanted = anyio.Event()
        self._polled = anyio.Event()

    def __repr__(self) -> str:
        return f"<Backend {self.name} ({self.type}) {self._state}, {self._polls} polls, {self._pace.failures} failures>"

    # -- what others see ---------------------------------------------------------------------------------------------

    @property
    def service(self) -> WmsService:
        """The open service.

        Raises
        ------
        BackendUnavailable
            If the adapter is not open: it is starting, or it failed and is to be opened again.
        """
        if self._service is None:
            raise BackendUnavailable(
                f"backend {self.name} is {self._state}" + (f": {self._error}" if self._error else ""),
                advice="`bpsctl backends` shows how it is doing; what you asked for can be tried again",
                backend=self.name,
            )
        return self._service

    @property
    def error(self) -> str:
        """What the last failed poll said, or the sources that did not answer the last one; empty while all is well."""
        return self._error or "; ".join(f"{_label(s)}: {s.error}" for s in self._sources if s.status != "ok")

    async def ping(self, pass_thru: str | None) -> tuple[int, str, float]:
        """Ask the WMS itself; returns its status (0: fine), its message and the seconds it took. Never raises."""
        began = time.monotonic()
        try:
            with anyio.fail_after(self.settings.polling.deadline_s):
                status, message = await self.service.ping(pass_thru)
        except TimeoutError:
            status, message = 1, f"no answer within {self.settings.polling.deadline_s:g} s"
        except BpsdError as exc:
            status, message = 1, str(exc)
        except Exception as exc:  # noqa: BLE001  # an adapter's mistake is an answer too: the WMS cannot be used
            self._log.error(LogEvent.PING_BROKE, backend=self.name, error=repr(exc), exc_info=exc)
            status, message = 1, f"the adapter failed: {exc!r}"
        return status, message, time.monotonic() - began

    @property
    def last_good_at(self) -> float | None:
        """When the last good poll began (epoch seconds)."""
        return self._last_good

    @property
    def stale(self) -> bool:
        """Whether nothing good has been heard for longer than ``stale_after_s`` (measured by the monotonic clock)."""
        return self._last_good_mono is None or time.monotonic() - self._last_good_mono > self._patience_s

    @property
    def stale_before(self) -> float | None:
        """A live run that was confirmed last before then (epoch seconds) is stale, although the backend is not.

        The last good poll heard nothing of it, nor did those before: the sources that know it do not answer. Both times
        are beginnings of polls, so that a clock that was set makes nothing stale.
        """
        return None if self._last_good is None else self._last_good - self._patience_s

    def is_stale(self, observed_at: float | None) -> bool:
        """Whether a live run that was confirmed last at ``observed_at`` may have changed since."""
        before = self.stale_before
        return self.stale or before is None or (observed_at is not None and observed_at < before)

    @property
    def silent(self) -> list[str]:
        """Its sources that have not answered for longer than ``stale_after_s``, whatever the others do."""
        before = time.monotonic() - self._patience_s
        return [name for name, at in self._heard.items() if at < before]

    @property
    def is_whole(self) -> bool:
        """Whether all of its sources answered the last poll, be it in part."""
        return all(source.status != "failed" for source in self._sources)

    @property
    def _patience_s(self) -> float:
        # A long interval that we chose ourselves is no reason for alarm.
        return max(self.settings.polling.stale_after_s, 2 * self._pace.delay_s)

    def is_stuck(self) -> bool:
        """Whether its task keeps its own deadlines no more. A WMS that times out makes it not so: that is progress."""
        return time.monotonic() > self._due + STUCK_AFTER_S

    def row(self) -> BackendRow:
        """The backend as a client sees it."""
        counts = self._cache.counts().get(self.name, {})
        return BackendRow(
            name=self.name,
            uid=self.uid,
            type=self.type,
            state=self._state,
            breaker=breaker(self.settings.polling, self._pace.failures, self._asking),
            stale=self.stale,
            stale_before=self.stale_before,
            last_good_at=self._last_good,
            last_attempt_at=self._last_attempt,
            next_poll_at=self._next_poll,
            interval_s=round(self._pace.delay_s, 3),
            poll_cost_s=round(self._pace.cost_s, 6),
            polls=self._polls,
            failures=self._failures_ever,
            error=self._error,
            clock_offset_s=self._clock_offset_s if abs(self._clock_offset_s or 0.0) > CLOCK_OFFSET_S else None,
            runs_live=counts.get("live", 0),
            runs_hot=counts.get("hot", 0),
            jobs_known=counts.get("jobs", 0),
            sources=self._sources,
        )

    def use(self, settings: BackendConfig) -> None:
        """Follow other settings from now on; those of its adapter are the same."""
        if settings != self.settings:
            self.settings = settings
            self.wake("other settings")

    def wake(self, reason: str) -> None:
        """Ask for a poll soon: joins the one that is due, never sooner than the WMS can bear."""
        self._wanted.set()

    async def refresh(self) -> float | None:
        """Wait for the poll in flight or, if there is none, for the next one, which is made soon.

        Returns
        -------
        last_good_at : `float` or `None`
            When the last good poll began; unchanged if this one failed, or if the backend was closed meanwhile.
        """
        polled = self._polled
        if not self._asking:
            self.wake("refresh")
        await polled.wait()
        return self._last_good

    # -- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the backend open and polled until cancelled. Whoever waits for a poll then gets an answer."""
        try:
            await self._live()
        finally:
            self._polled.set()

    async def _live(self) -> None:
        opened_failures = 0
        while True:
            self._state = "starting"
            self._due = math.inf  # an adapter opens as slowly as its host answers; it shows as starting
            began = time.monotonic()
            try:
                await self._live_once()
            except Exception as exc:  # noqa: BLE001  # the boundary: whatever an adapter does wrong ends here
                if time.monotonic() - began > self.settings.polling.backoff_max_s:
                    opened_failures = 0
                opened_failures += 1
                await self._stopped(exc, opened_failures)

    async def _check_settings(self) -> None:
        """Look at what the settings name, in a thread: one that hangs is left, and takes no other's place.

        Raises
        ------
        BackendUnavailable
            If something is not as needed; or the check did not end.
        """
        problems: Sequence[Problem] | None = None
        with anyio.move_on_after(CHECK_WAIT_S):
            problems = await anyio.to_thread.run_sync(self._check, abandon_on_cancel=True, limiter=self._checking)
        if problems is None:
            raise BackendUnavailable(
                f"the files that the settings of backend {self.name} name could not be checked within "
                f"{CHECK_WAIT_S:g} s",
                advice="look for a file system that does not answer",
            )
        if problems:
            raise BackendUnavailable("; ".join(map(str, problems)), advice="`bpsd check-config` lists all mistakes")

    async def _live_once(self) -> None:
        await self._check_settings()
        async with anyio.create_task_group() as group:
            service = self._make(self._context(group))
            async with service:
                self._service = service
                self._cache.use_forms(self.name, service.resolve_id)
                try:
                    await self._poll_forever(service)
                finally:
                    self._service = None

    async def _stopped(self, exc: Exception, failures: int) -> None:
        error = _root(exc)
        self._log.error(LogEvent.BACKEND_FAILED, backend=self.name, error=str(error), exc_info=exc)
        await self._change_state("stopped", str(error) or type(error).__name__)
        self._finish_poll()
        delay = next_delay(self.settings.polling, Pace(failures=failures), random.random)
        self._next_poll = self._clock() + delay
        self._due = time.monotonic() + delay
        await anyio.sleep(delay)

    def _context(self, group: TaskGroup) -> ServiceContext:
        return ServiceContext(
            backend=self.name,
            state_dir=self.state_dir,
            log=self._log,
            clock=self._clock,
            wake=self.wake,
            task_group=group,
        )

    async def _poll_forever(self, service: WmsService) -> None:
        while True:
            self._wanted = anyio.Event()
            await self._poll_once(service)
            delay = next_delay(self.settings.polling, self._pace, random.random)
            self._pace = self._pace._replace(delay_s=delay)
            self._next_poll = self._clock() + delay
            self._due = time.monotonic() + delay
            floor = soonest(service.capabilities.poll_floor_s, self._pace.cost_s)
            await anyio.sleep(min(floor, delay))
            with anyio.move_on_after(max(0.0, delay - floor)):
                await self._wanted.wait()

    async def _poll_once(self, service: WmsService) -> None:
        self._asking = True
        began, outcome = time.monotonic(), "failed"
        self._last_attempt = self._clock()
        self._polls += 1
        try:
            changed = await self._ask(service)
        except BackendAuthError as exc:
            await self._failed("auth", exc)
        except BpsdError as exc:
            await self._failed("down", exc)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as exc:
            # What an adapter did not foresee in an answer: a failed poll, not the end of the backend.
            self._log.error(LogEvent.POLL_BROKE, backend=self.name, error=repr(exc), exc_info=exc)
            await self._failed("down", exc)
        else:
            outcome = "ok" if all(source.status == "ok" for source in self._sources) else "partial"
            self._pace = self._pace._replace(
                changed=changed > 0, failures=0, live_runs=self._cache.live_runs(self.name)
            )
            await self._change_state("up", "")
        finally:
            self._asking = False
            self._tell_polled(self.name, outcome, time.monotonic() - began)
            self._finish_poll()

    async def _ask(self, service: WmsService) -> int:
        changed = 0
        began = self._clock()
        began_mono, still_s = time.monotonic(), self._stood_still_s()
        deadline = self.settings.polling.deadline_s
        for _ in range(MAX_DETAIL_ROUNDS):
            self._due = time.monotonic() + deadline
            result = await self._within(
                deadline,
                service.poll(
                    PollRequest(
                        cursor=self._cache.cursor(self.name),
                        known=await self._cache.known(self.name),
                        deadline_s=deadline,
                    )
                ),
            )
            self._sources = [_source_row(s) for s in result.sources]
            now, before = time.monotonic(), self._heard
            self._heard = {
                _label(s): before.get(_label(s), now) if s.status == "failed" else now for s in result.sources
            }
            self._clock_offset_s = result.clock_offset_s
            cost_s = await self._cost(result, time.monotonic() - began_mono, still_s)
            self._pace = self._pace._replace(cost_s=cost_s)
            changed += await self._cache.apply_poll(self.name, result, began)
            if result.sources and all(s.status == "failed" for s in result.sources):
                raise BackendUnavailable("; ".join(f"{s.name}: {s.error}" for s in result.sources))
            if not result.more:
                break
            began, began_mono, still_s = self._clock(), time.monotonic(), self._stood_still_s()
        else:
            raise BackendUnavailable(f"the adapter had more to say {MAX_DETAIL_ROUNDS} times in a row")
        self._last_good, self._last_good_mono = began, began_mono
        return changed

    async def _cost(self, result: PollResult, took_s: float, still_s: float) -> float:
        """What the WMS bore: what the adapter measured at its sources, or else how long the call took.

        To wait in vain for a source is no cost: those beside it that answer are not to be asked less often for that.
        While this process was stopped the WMS bore nothing; it would otherwise be left alone for many times as long.
        """
        cost_s = sum(s.cost_s for s in result.sources if s.status != "failed" and not s.user) or took_s
        if took_s > STOOD_STILL_S:
            await anyio.sleep(SETTLE_S)  # what measures the loop's lag may come to it after us
            cost_s = max(0.0, cost_s - (self._stood_still_s() - still_s))
        return cost_s

    async def _within(self, deadline_s: float, call: Awaitable[PollResult]) -> PollResult:
        try:
            with anyio.fail_after(deadline_s):
                return await call
        except TimeoutError as exc:
            raise DeadlineExceeded(f"no answer within {deadline_s:g} s", backend=self.name) from exc

    async def _failed(self, state: Literal["down", "auth"], exc: Exception) -> None:
        self._failures_ever += 1
        self._pace = self._pace._replace(failures=self._pace.failures + 1)
        text = str(exc) or type(exc).__name__
        self._log.warning(
            LogEvent.POLL_FAILED, backend=self.name, failures=self._pace.failures, error=text[:ERROR_CHARS]
        )
        await self._change_state(state, text)

    async def _change_state(self, state: Literal["up", "down", "auth", "stopped"], error: str) -> None:
        before, self._state = self._state, state
        self._error = redact_text(error)[:ERROR_CHARS]
        if before != state:
            await self._cache.announce(
                "backend.state", backend=self.name, state=state, before=before, error=self._error
            )

    def _finish_poll(self) -> None:
        self._polled.set()
        self._polled = anyio.Event()


def _label(source: SourceReport | SourceRow) -> str:
    return f"{source.name} of {source.user}" if source.user else source.name


def _source_row(source: SourceReport) -> SourceRow:
    return SourceRow(
        name=source.name,
        user=source.user,
        status=source.status,
        covers=source.covers,
        cost_s=source.cost_s,
        cost_bytes=source.cost_bytes,
        error=redact_text(source.error)[:ERROR_CHARS],
    )


def _root(exc: BaseException) -> BaseException:
    """The first plain exception inside a group."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
