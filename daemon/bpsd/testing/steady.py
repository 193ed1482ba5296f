"""Cases of the contract that need one run only: an event loop that is never blocked, cancellation, honest capabilities.

They are a part of `bpsd.testing.contract.AdapterContract`.
"""

from __future__ import annotations

__all__ = [
    "AWAITS",
    "BLOCKED_S",
    "HOSTILE_NAMES",
    "TRIES",
    "SteadyContract",
    "blocks",
    "is_held",
    "longest_block_s",
    "swallowed",
]

import time
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any

import anyio

from bpsd.errors import BpsdError, RunNotFound, UnsupportedOperation
from bpsd.models import PollRequest, WmsStates
from bpsd.testing.observer import Observer, document, shell_job

BLOCKED_S = 0.2
"""The event loop may not stand still for longer than this in every try of a call."""
TRIES = 20
"""A busy machine stops a process too: one try without a stop proves that the call does not block."""
HOSTILE_NAMES = (
    "BASH_ENV", "CDPATH", "ENV", "IFS", "LANG", "OLDPWD", "PS4", "PWD", "SECONDS", "SHELLOPTS", "TMPDIR", "attempt",
    "base", "chunk", "code", "entry", "err", "exit_code", "folder", "index", "job", "log", "mine", "name", "node",
    "note", "out", "owner", "pid", "post", "pre", "rc", "ret", "run", "start", "state", "status", "tmp", "token",
)  # fmt: skip
"""Variables that a wrapper of jobs may use itself, and those that a shell treats in a way of its own."""
AWAITS = 12
"""At how many awaits of a call it is cancelled."""

Call = Callable[[], Awaitable[Any]]


async def longest_block_s(call: Call) -> float:
    """Return the longest time for which the event loop stood still during a call, whatever the call answered."""
    longest, last = 0.0, time.monotonic()

    async def beat() -> None:
        nonlocal longest, last
        while True:
            await anyio.sleep(0.01)
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    async with anyio.create_task_group() as group:
        group.start_soon(beat)
        await anyio.sleep(0.02)
        longest, last = 0.0, time.monotonic()
        try:
            await call()
        except BpsdError:
            pass
        longest = max(longest, time.monotonic() - last)
        group.cancel_scope.cancel()
    return longest


async def blocks(call: Call) -> bool:
    """Return whether a call blocks the event loop each time that it is tried."""
    for _ in range(TRIES):
        if await longest_block_s(call) < BLOCKED_S:
            return False
    return True


class _CancelledAt:
    """A call that is cancelled at its n-th await, and what it does with the cancellation."""

    def __init__(self, call: Awaitable[Any], at: int, scope: anyio.CancelScope) -> None:
        self.call = call
        self.at = at
        self.scope = scope
        self.awaits = 0
        self.delivered = False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.call.__await__()
        value: Any = None
        failure: BaseException | None = None
        while True:
            try:
                awaited = steps.send(value) if failure is None else steps.throw(failure)
            except StopIteration as end:
                return end.value
            self.awaits += 1
            if self.awaits == self.at:
                self.scope.cancel()
            value = failure = None
            try:
                value = yield awaited
            except BaseException as exc:  # noqa: BLE001  # handed on to the call at once
                failure = exc
                self.delivered = self.delivered or (self.scope.cancel_called and _is_cancellation(exc))


def _is_cancellation(exc: BaseException) -> bool:
    return isinstance(exc, anyio.get_cancelled_exc_class())


async def swallowed(call: Call, at: int) -> tuple[bool, bool]:
    """Cancel a call at its n-th await; return whether it got that far, and whether it hid the cancellation."""
    with anyio.CancelScope() as scope:
        driven = _CancelledAt(call(), at, scope)
        try:
            await driven
        except BpsdError:
            return driven.awaits >= at, driven.delivered
        return driven.awaits >= at, driven.delivered
    return True, False


def is_held(observer: Any, run: Any) -> bool:
    """Return whether a run, or what it would start next, is on hold. A WMS may let a running job continue."""
    return run.state is WmsStates.HELD or "HELD" in observer.states(run.wms_id).values()


def _is_attempt(attempt: int, run: Any) -> bool:
    return bool(run.attempt == attempt)


class SteadyContract:
    """What one live run shows of an adapter."""

    async def test_a_live_run_shows_a_steady_adapter(self, bed: Any) -> None:
        """No call blocks the loop or hides a cancellation, what is claimed works, and a live run is not restarted."""
        async with bed.open() as observer:
            service = observer.service
            wms_id, workflow = await observer.submit(document(shell_job("long_1", "sleep 300")))
            await observer.until(wms_id, lambda _: True, bed.patience_s)
            readers: dict[str, Call] = {
                "poll": lambda: service.poll(PollRequest(cursor=observer.cursor, known=observer.known())),
                "ping": service.ping,
                "find_by_token": lambda: service.find_by_token(workflow.token, time.time() - 600),
                "report": lambda: service.report(wms_id),
            }
            for name, call in readers.items():
                assert not await blocks(call), f"{name} blocks the event loop for more than {BLOCKED_S} s each time"
                for at in range(1, AWAITS + 1):
                    reached, hidden = await swallowed(call, at)
                    assert not hidden, f"{name} hides a cancellation (await {at})"
                    if not reached:
                        break
            await self._check_claims(observer, wms_id, workflow.token, bed.patience_s)
            await self._check_refused(service.restart(wms_id, attempt_token=f"{workflow.token}.2"), "a live run")
            found = await service.find_by_token(f"{workflow.token}.2", time.time() - 600)
            assert found.verdict != "found", "an attempt that was never made is found"
            agreed, message = await service.cancel(wms_id)
            assert agreed, message
            run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert run.state is WmsStates.DELETED

    async def test_a_restart_is_the_next_attempt(self, bed: Any) -> None:
        """A restart raises the attempt that polls report, has its own token, and may be asked for twice."""
        async with bed.open() as observer:
            service = observer.service
            wms_id, workflow = await observer.submit(document(shell_job("long_1", "sleep 300")))
            await observer.until(wms_id, lambda _: True, bed.patience_s)
            await service.cancel(wms_id)
            await observer.until_over(wms_id, timeout_s=bed.patience_s)
            for attempt in (2, 3):
                attempt_token = f"{workflow.token}.{attempt}"
                before = wms_id
                wms_id, _, message = await service.restart(before, attempt_token=attempt_token)
                assert wms_id is not None, message
                again, _, message = await service.restart(before, attempt_token=attempt_token)
                assert again == wms_id, message
                found = await service.find_by_token(attempt_token, time.time() - 600)
                assert (found.verdict, found.wms_id) == ("found", wms_id)
                fresh = Observer(service, observer.folder)
                await fresh.until(wms_id, partial(_is_attempt, attempt), bed.patience_s)
                await service.cancel(wms_id)
                await fresh.until_over(wms_id, attempt=attempt, timeout_s=bed.patience_s)

    async def _check_claims(self, observer: Any, wms_id: str, token: str, timeout_s: float) -> None:
        service, claims = observer.service, observer.service.capabilities
        answer = await service.find_by_token(token, time.time() - 600)
        assert (answer.verdict == "found") is claims.finds_by_token, "finds_by_token does not say what it does"
        try:
            await service.read_output(wms_id, "long_1", "stdout", 0, 100)
            reads = True
        except UnsupportedOperation:
            reads = False
        except BpsdError:
            reads = True  # the file is not there yet
        assert reads or not claims.reads_output, "reads_output is claimed, and read_output is not there"
        if not claims.holds:
            return
        agreed, message = await service.hold(wms_id)
        assert agreed, message
        await observer.until(wms_id, lambda run: is_held(observer, run), timeout_s)
        agreed, message = await service.release(wms_id)
        assert agreed, message
        await observer.until(wms_id, lambda run: not is_held(observer, run), timeout_s)

    async def _check_refused(self, call: Awaitable[tuple[Any, ...]], what: str) -> None:
        try:
            answer = await call
        except RunNotFound as exc:
            raise AssertionError(f"{what} is not known") from exc
        except BpsdError:
            return
        assert not answer[0], f"{what} is restarted"
        assert answer[-1], "a refusal says why"
