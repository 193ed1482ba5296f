"""One client: bytes from the transport to requests, answers back, and the flow control both ways.

It is an `asyncio.BufferedProtocol` and not a pair of anyio streams because of the price: a stream costs two task
switches and a dozen objects for each small message, about twice to three times the whole of answering ``status``. A
protocol is called back with the bytes and answers within the callback. It brings its own buffer because asyncio would
else allocate 256 KiB for each message, which can cost as much again (see ``benchmarks/bench_socket.py``). Handlers that
wait still run as tasks of the server's task group.

A connection takes no more than it can handle: it stops reading while too many requests are in flight, while the client
does not read its answers, and while lines wait that exceed its share of a turn (see `Turns`).
"""

from __future__ import annotations

__all__ = ["Connection", "Core", "Turns"]

import asyncio
import inspect
import os
import select
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import anyio
import msgspec

from bpsd.config import Limits
from bpsd.diskfull import is_full
from bpsd.errors import BpsdError, DeadlineExceeded, PermissionDenied, StorageError
from bpsd.logs import LogEvent
from bpsd.logs.throttle import Throttle
from bpsd.messages import Goodbye
from bpsd.peers import Peer, Right
from bpsd.protocol import Refused, Request, RequestId, ServerProtocol, decode_params, unknown_method
from bpsd.server.figures import SocketFigures
from bpsd.server.looptime import SLOW_REQUEST_S, LoopTime
from bpsd.server.methods import Call, MethodSpec

READ_BYTES = 65_536
"""Received at once, into a buffer that all connections share (each reads and uses it within one callback)."""

REQUESTS_PER_SHARE = 8
"""Requests of one connection that are answered before others have their turn."""

FLUSH_BYTES = 65_536
"""Answers of one share that are sent before the share is over: else they would pile up where no limit sees them."""

MAX_REFERENCES = 1_000
"""Internal errors whose last line in the log is remembered."""

TURN_S = 0.004
"""How long connections with more to do are served before the loop looks for news from all others."""


_RESULTS = (msgspec.Struct, msgspec.Raw)


GRANTED_IN: Mapping[Right, str] = {
    "read": "rights.viewer",
    "output": "rights.output",
    "audit": "rights.audit",
    "submit": "submitters of a backend",
    "command": "rights.operator",
    "admin": "rights.admin",
}
"""Where the configuration gives a right."""


class Turns:
    """Connections that have lines left, served one share each, round and round, and for a bounded time at once."""

    def __init__(self) -> None:
        self._waiting: deque[Connection] = deque()
        self._scheduled = False

    def add(self, connection: Connection) -> None:
        """Serve the connection once more, soon."""
        self._waiting.append(connection)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        self._scheduled = False
        end = time.monotonic() + TURN_S
        waiting = self._waiting
        while waiting and time.monotonic() < end:
            waiting.popleft().serve_share()
        if waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._serve)


class Core:
    """What all connections of a server share."""

    def __init__(
        self,
        *,
        methods: Mapping[str, MethodSpec],
        limits: Limits,
        hello: msgspec.Raw,
        log: Any,
        opened: Callable[[Connection], None],
        closed: Callable[[Connection], None],
        spawn: Callable[..., None],
    ) -> None:
        self.methods, self.limits, self.hello, self.log = methods, limits, hello, log
        self.opened, self.closed, self.spawn = opened, closed, spawn
        self.figures = SocketFigures()
        self.turns = Turns()
        self.buffer = memoryview(bytearray(READ_BYTES))
        self._throttle = Throttle()
        self._references: dict[tuple[object, ...], str] = {}  # of the last line about each internal error

    def warn(self, event: LogEvent, about: tuple[object, ...], **fields: object) -> None:
        """Log what a client could make happen as often as it likes, and of many times ``about`` the same only some."""
        left_out = self._throttle.admit((event, *about))
        if left_out is not None:
            self.log.warning(event, **fields, **({"left_out": left_out} if left_out else {}))

    def account(self, peer: Peer, method: str, held: LoopTime) -> None:
        """Log a request that held the loop for long."""
        if held.used_s < SLOW_REQUEST_S:
            return
        self.figures.requests_slow += 1
        self.warn(
            LogEvent.REQUEST_SLOW,
            (peer.uid, method),
            method=method,
            uid=peer.uid,
            pid=peer.pid,
            user=peer.user,
            held_s=round(held.used_s, 4),
        )

    def internal_error(self, peer: Peer, method: str, error: BaseException) -> BpsdError:
        """Log an error of the daemon; return what the client is told of it.

        A user who causes the same error again and again gets the reference of its last line in the log.
        """
        self.figures.internal_errors += 1
        about = (LogEvent.REQUEST_BROKE, peer.uid, method, type(error).__name__, _place(error))
        left_out = self._throttle.admit(about)
        reference = self._references.pop(about, None)
        if left_out is not None or reference is None:
            reference = os.urandom(4).hex()
            self.log.error(
                LogEvent.REQUEST_BROKE,
                method=method,
                uid=peer.uid,
                pid=peer.pid,
                user=peer.user,
                reference=reference,
                left_out=left_out or 0,
                exc_info=error,
            )
        self._references[about] = reference
        if len(self._references) > MAX_REFERENCES:
            del self._references[next(iter(self._references))]
        return BpsdError(
            f"{method} failed: internal error of the daemon; the request may not have been carried out",
            advice=f"report it; the daemon's log has the details under {reference}",
            reference=reference,
        )


def _place(error: BaseException) -> tuple[str, int]:
    """Where an error was raised, to tell one from another."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return (step.tb_frame.f_code.co_filename, step.tb_lineno) if step is not None else ("", 0)


class Connection(asyncio.BufferedProtocol):
    """One client.

    Handlers use `send_lines`, `on_close`, `id`, `peer` and `lost`; the rest is for the server and the event loop.
    """

    def __init__(self, core: Core, id: int, peer: Peer, rights: frozenset[Right]) -> None:
        self.id = id
        self.peer = peer
        self.rights = rights
        self.lost = 0
        """Notifications that were dropped because the client was too slow."""
        self.watching = 0
        """Subscriptions: a connection that has any is never idle."""
        self._core = core
        self._protocol = ServerProtocol()
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)  # until connection_made
        self._scopes: dict[RequestId, anyio.CancelScope] = {}  # of requests that end when the client leaves
        self._on_close: list[Callable[[], object]] = []
        self._waits_for_turn = False
        self._reading = True
        self._writable = True  # the transport's buffer is not full
        self._eof = False  # the client sends no more, but perhaps still reads
        self._finishing: Goodbye | None = None  # no more requests are taken; said when the last one is answered
        self._over = False  # goodbye was said, or the client is gone
        self._messages = 0  # received
        self._bytes_out = 0
        now = time.monotonic()
        # What `check` remembers from one look to the next.
        self._delivered, self._delivered_at = 0, now
        self._half, self._half_since = -1, now
        self._heard, self._heard_at = 0, now

    def __repr__(self) -> str:
        state = "over" if self._over else "finishing" if self._finishing else "half-closed" if self._eof else "open"
        return f"<Connection {self.id} uid={self.peer.uid} pid={self.peer.pid} {state} in_flight={self.in_flight}>"

    # -- for handlers ------------------------------------------------------------------------------------------------

    def send_lines(self, lines: bytes, count: int) -> bool:
        """Send ``count`` notifications that were encoded before (`bpsd.protocol.event_line`).

        Returns
        -------
        sent : `bool`
            `False` if they were dropped: the client reads too slowly, or it is gone.
        """
        if self._over:
            return False
        waiting = self._protocol.pending_bytes + self._transport.get_write_buffer_size()
        if waiting > self._core.limits.write_buffer_bytes:
            self.lost += count
            self._core.figures.notifications_lost += count
            return False
        self._protocol.send_lines(lines)
        self._flush()
        return True

    def on_close(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called when the connection ends. What it returns is awaited if it can be."""
        self._on_close.append(callback)

    @property
    def stopping(self) -> bool:
        """Whether it ends because the daemon does."""
        return self._finishing is not None and self._finishing.code == "stopping"

    def idle_s(self, now: float) -> float | None:
        """Return for how long nothing was asked, or `None` if the client waits for an answer or watches something."""
        if self._over or self._messages != self._heard or self._protocol.in_flight or self.watching:
            return None
        return now - self._heard_at

    def close_idle(self, reason: str) -> None:
        """Close it in favour of another user's connection."""
        self._drop("limit_exceeded", reason)

    # -- for the server ----------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How many requests wait for their answer."""
        return len(self._protocol.in_flight)

    def finish(self, goodbye: Goodbye) -> None:
        """Take no more requests, and say goodbye when those in flight are answered."""
        self._finishing = self._finishing or goodbye
        self._pause_reading()
        self._end_if_done()

    def end(self, goodbye: Goodbye) -> None:
        """Say goodbye and close, after what has been written before. Requests in flight are not waited for."""
        if self._over:
            return
        self._protocol.send_notification("goodbye", goodbye)
        self._flush()
        self._over = True
        self._transport.close()

    def abort(self) -> None:
        """Close without a word; what the client has not read is lost."""
        self._over = True
        self._transport.abort()

    def check(self, now: float) -> None:
        """Look whether the client has kept something waiting for too long (the server calls this about once a second).

        Times are rounded up to the next look; in exchange nothing has to be scheduled or cancelled for each message.
        """
        if self._is_stuck(now):
            self._drop("deadline_exceeded", f"nothing was read for {self._core.limits.write_timeout_s:g} s")
        elif self._over or self._finishing:
            return
        elif self._eof or not self._reading:  # the loop would not hear of it
            if self._is_gone():
                self.abort()
        elif self._is_half_a_message(now):
            self._drop("deadline_exceeded", f"half a message and no more for {self._core.limits.read_timeout_s:g} s")
        elif limit := self._is_silent(now):
            self._drop("deadline_exceeded", f"nothing was asked for {limit:g} s")

    def excuse(self, seconds: float) -> None:
        """Hold nothing against the client that it did or did not do while this process stood still."""
        self._delivered_at += seconds
        self._half_since += seconds
        self._heard_at += seconds

    def serve_share(self) -> None:
        """Answer some of what was received; the rest waits for its turn."""
        self._waits_for_turn = False
        protocol = self._protocol
        for _ in range(REQUESTS_PER_SHARE):
            if self._over or self._finishing or not self._writable:
                break
            if len(protocol.in_flight) >= self._core.limits.requests_in_flight:
                break
            event = protocol.next_event()
            if event is None:
                self._flush()
                self._resume_reading()
                self._end_if_done()
                return
            self._messages += 1
            if type(event) is Request:
                self._answer(event)
            else:
                self._refused(cast("Refused", event))
            if protocol.pending_bytes >= FLUSH_BYTES:
                self._flush()
        else:
            self._serve_again()
        self._flush()
        self._pause_reading()

    # -- from the event loop -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        self._transport = cast("asyncio.Transport", transport)
        self.use_limits()
        self._core.opened(self)
        self._protocol.send_notification("hello", self._core.hello)
        self._flush()

    def use_limits(self) -> None:
        """Have a write buffer of the size that the limits allow now."""
        self._transport.set_write_buffer_limits(high=self._core.limits.write_buffer_bytes)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to receive."""
        return self._core.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the client sent."""
        self._core.figures.bytes_in += nbytes
        self._protocol.receive_data(self._core.buffer[:nbytes])
        self.serve_share()

    def eof_received(self) -> bool:
        """Learn that the client sends no more; return whether to keep the connection for its answers.

        ``echo ... | socat - UNIX:...`` shuts its half and waits for the answers; a client that has left altogether gets
        none, and nothing goes on for it.
        """
        self._eof = True
        self._protocol.receive_eof()
        if self._is_gone():
            return False
        self.serve_share()
        return not self._over

    def pause_writing(self) -> None:
        """Learn that the client does not read fast enough."""
        self._writable = False

    def resume_writing(self) -> None:
        """Learn that the client has read."""
        self._writable = True
        self._serve_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client, and what was done for it alone."""
        self._over = True
        for scope in self._scopes.values():
            scope.cancel()
        for callback in self._on_close:
            try:
                result = callback()
                if inspect.isawaitable(result):
                    self._core.spawn(self._finish_closing, result, name=f"end of client {self.id}")
            except Exception:  # the boundary: one holder's mistake must not keep the others from letting go
                self._core.log.exception(LogEvent.CLOSE_CALLBACK_BROKE, connection=self.id)
        self._core.closed(self)

    async def _finish_closing(self, result: Awaitable[object]) -> None:
        try:
            await result
        except Exception:  # the boundary, as in connection_lost
            self._core.log.exception(LogEvent.CLOSE_CALLBACK_BROKE, connection=self.id)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> None:
        core = self._core
        core.figures.requests += 1
        call, held = Call(self.peer, self), LoopTime()
        with held:
            started = self._begin(request, call)
        if started is not None:
            self._start(request, *started, call, held)
        else:
            core.account(self.peer, request.method, held)

    def _begin(self, request: Request, call: Call) -> tuple[MethodSpec, Awaitable[object]] | None:
        """Answer a request; what has to be awaited for the answer is returned."""
        methods = self._core.methods
        try:
            method = methods.get(request.method)
            if method is None:
                raise unknown_method(request.method, methods)
            if method.right not in self.rights:
                raise PermissionDenied(
                    f"{self.peer.user} may not {request.method}",
                    advice=f"an administrator can name you, or a group of yours, in {GRANTED_IN[method.right]}",
                    right=method.right,
                )
            result = method.handler(call, decode_params(request.method, request.params))
        except Exception as error:  # noqa: BLE001 - the boundary: what a handler raises is its answer
            self._send_failure(request, error)
            return None
        if not isinstance(result, _RESULTS) and inspect.isawaitable(result):
            return method, result
        self._send_result(request, call, result)
        return None

    def _start(
        self, request: Request, method: MethodSpec, awaitable: Awaitable[object], call: Call, held: LoopTime
    ) -> None:
        scope = anyio.CancelScope()
        if not method.finish:
            self._scopes[request.id] = scope
        name = f"{request.method} of client {self.id}"
        self._core.spawn(self._run, request, call, awaitable, scope, held, name=name)

    async def _run(
        self, request: Request, call: Call, awaitable: Awaitable[object], scope: anyio.CancelScope, held: LoopTime
    ) -> None:
        result: object = None
        failure: Exception | None = None
        with scope:
            try:
                result = await held.metered(awaitable)
            except Exception as error:  # noqa: BLE001 - the boundary, as in _begin
                failure = error
        self._scopes.pop(request.id, None)
        if not self._over:
            with held:
                if failure is not None:
                    self._send_failure(request, failure)
                else:
                    self._send_result(request, call, result)
                self._flush()
            if not self._reading:
                self._serve_again()
            self._end_if_done()
        elif failure is not None and not isinstance(failure, BpsdError):
            # Nobody is left to be told, but the log is.
            self._core.internal_error(self.peer, request.method, failure)
        self._core.account(self.peer, request.method, held)

    def _send_result(self, request: Request, call: Call, result: object) -> None:
        try:
            self._protocol.send_result(request.id, cast("msgspec.Struct | msgspec.Raw", result))
            call.replied()
        except Exception as error:  # noqa: BLE001 - the boundary: a result that cannot be sent is a handler's mistake
            self._send_failure(request, error)

    def _send_failure(self, request: Request, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            told: BpsdError = DeadlineExceeded(f"{request.method} took longer than it may", advice="try again later")
        elif isinstance(error, OSError) and is_full(error):
            told = StorageError(f"{request.method} failed: {error}", advice="free some space there, then try again")
        elif isinstance(error, BpsdError):
            told = error
            if isinstance(error, PermissionDenied):
                self._core.warn(
                    LogEvent.REQUEST_DENIED,
                    (self.peer.uid, request.method),
                    method=request.method,
                    uid=self.peer.uid,
                    pid=self.peer.pid,
                    user=self.peer.user,
                    reason=error.message,
                )
        else:
            told = self._core.internal_error(self.peer, request.method, error)
        if request.id in self._protocol.in_flight:  # else it was answered, and what followed the answer failed
            self._protocol.send_error(request.id, told)

    def _refused(self, refused: Refused) -> None:
        self._core.figures.messages_malformed += 1
        self._core.log.debug(LogEvent.MESSAGE_REFUSED, connection=self.id, code=refused.error.code)

    # -- flow --------------------------------------------------------------------------------------------------------

    def _serve_again(self) -> None:
        if not self._waits_for_turn and not self._over:
            self._waits_for_turn = True
            self._core.turns.add(self)

    def _flush(self) -> None:
        if self._over:
            return
        data = self._protocol.data_to_send()
        if data:
            self._core.figures.bytes_out += len(data)
            self._bytes_out += len(data)
            self._transport.write(data)

    def _pause_reading(self) -> None:
        if self._reading and not self._over:
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self._over and not self._eof:
            self._reading = True
            self._transport.resume_reading()

    # -- the end -----------------------------------------------------------------------------------------------------

    def _end_if_done(self) -> None:
        """Close if nothing more can come of this connection."""
        if self._over or self._protocol.in_flight:
            return
        if self._finishing:
            self.end(self._finishing)
        elif self._eof and not self._waits_for_turn and not self.watching:
            self._over = True
            self._transport.close()

    def _is_gone(self) -> bool:
        """Whether the client has closed the socket altogether (else: it sends no more, but may read)."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), 0)
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))

    def _drop(self, code: str, reason: str) -> None:
        self._core.figures.clients_dropped += 1
        self._core.warn(
            LogEvent.CLIENT_DROPPED,
            (self.peer.uid, code, reason),
            connection=self.id,
            uid=self.peer.uid,
            pid=self.peer.pid,
            code=code,
            reason=reason,
        )
        if self._transport.get_write_buffer_size():
            self.abort()  # it does not read: a goodbye would wait in the same buffer
        else:
            self.end(Goodbye(code=code, message=reason))

    def _is_stuck(self, now: float) -> bool:
        """Whether the kernel has taken nothing of what waits for the client for too long."""
        waiting = self._transport.get_write_buffer_size()
        delivered = self._bytes_out - waiting
        if not waiting or delivered != self._delivered:
            self._delivered, self._delivered_at = delivered, now
        return now - self._delivered_at >= self._core.limits.write_timeout_s

    def _is_half_a_message(self, now: float) -> bool:
        """Whether a message was begun too long ago; a trickle of bytes is no excuse, that we did not read is."""
        half = self._messages if self._reading and self._protocol.mid_message else -1
        if half == -1 or half != self._half:
            self._half, self._half_since = half, now
        return now - self._half_since >= self._core.limits.read_timeout_s

    def _is_silent(self, now: float) -> float:
        """The limit that a client without requests has exceeded, or 0."""
        limits = self._core.limits
        if self._messages != self._heard or self._protocol.in_flight or self.watching:
            self._heard, self._heard_at = self._messages, now
        limit = limits.idle_timeout_s if self._messages else limits.greet_timeout_s
        return limit if limit and now - self._heard_at >= limit else 0.0
