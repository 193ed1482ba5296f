"""One connection of the asynchronous client: a reader hands answers to those who wait, and events to watches."""

from __future__ import annotations

__all__ = ["MOST_EVENTS", "Link", "Subscription", "open_link"]

from collections import deque
from typing import Any

import anyio
import msgspec
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteReceiveStream

from bpsd import messages, wire
from bpsd.client import endpoint
from bpsd.client.failures import ClientError, ConnectionLost, from_response

MOST_EVENTS = 10_000
"""Events that wait for a slow reader of a watch; beyond that it gets a new snapshot instead."""


class _Message(msgspec.Struct):
    """Whatever the daemon sends; which fields are there tells what it is."""

    id: int | None = None
    method: str | None = None
    params: msgspec.Raw = msgspec.Raw(b"{}")
    result: msgspec.Raw = msgspec.Raw(b"{}")
    error: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Message).decode
_decode_event = msgspec.json.Decoder(messages.WatchEvent).decode
_decode_watch = msgspec.json.Decoder(messages.WatchResult).decode
_decode_goodbye = msgspec.json.Decoder(messages.Goodbye).decode


class _Pending:
    """A request that waits for its answer."""

    __slots__ = ("answer", "done", "error", "subscription")

    def __init__(self, subscription: Subscription | None) -> None:
        self.done = anyio.Event()
        self.answer: msgspec.Raw | None = None
        self.error: ClientError | None = None
        self.subscription = subscription


class Subscription:
    """The events of one watch, between the reader of the connection and the reader of the watch."""

    def __init__(self) -> None:
        self.events: deque[messages.Event] = deque()
        self.lost = False
        """Events were dropped, by the daemon or here: what is known must be asked anew."""
        self.error: ClientError | None = None
        self.changed = anyio.Event()

    def put(self, told: messages.WatchEvent) -> None:
        """Take an event."""
        if told.lost or len(self.events) >= MOST_EVENTS:
            self.lost = True
            self.events.clear()
        elif not self.lost:
            self.events.append(told.event)
        self.changed.set()

    def fail(self, error: ClientError) -> None:
        """Learn that no more events will come."""
        self.error = error
        self.changed.set()


class Link:
    """A live connection; `run` must be running for anything to be answered."""

    def __init__(self, stream: ByteStream, lines: BufferedByteReceiveStream, hello: messages.Hello, path: str) -> None:
        self.hello = hello
        self.broken: ClientError | None = None
        """Why it can no longer be used."""
        self._stream, self._lines, self._path = stream, lines, path
        self._sending = anyio.Lock()
        self._pending: dict[int, _Pending] = {}
        self._subscriptions: dict[int, Subscription] = {}
        self._id = 0
        self._goodbye = ""

    def __repr__(self) -> str:
        state = "broken" if self.broken else f"{len(self._pending)} in flight, {len(self._subscriptions)} watches"
        return f"<Link to bpsd {self.hello.version} on {self._path}, {state}>"

    async def run(self) -> None:
        """Read until the connection ends; then everybody who waits is told."""
        try:
            while True:
                self._take(await _line(self._lines))
        except (
            OSError,
            anyio.EndOfStream,
            anyio.IncompleteRead,
            anyio.BrokenResourceError,
            anyio.ClosedResourceError,
        ) as exc:
            self._break(
                ConnectionLost(
                    f"the connection to {self._path} broke: {self._goodbye or str(exc) or 'the daemon closed it'}",
                    advice="the daemon's log tells why; what it accepted is not lost",
                )
            )
        except (msgspec.MsgspecError, anyio.DelimiterNotFound) as exc:
            self._break(ClientError(f"what came from {self._path} is no message: {exc}", code="protocol_error"))
        finally:
            if self.broken is None:  # cancelled
                self._break(ConnectionLost(f"the connection to {self._path} was closed"))
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(self._stream)

    def _take(self, line: bytes) -> None:
        message = _decode(line)
        if message.method == "event":
            told = _decode_event(message.params)
            subscription = self._subscriptions.get(told.watch)
            if subscription is not None:
                subscription.put(told)
        elif message.method == "goodbye":
            said = _decode_goodbye(message.params)
            self._goodbye = f"{said.message} [{said.code}]"
        elif message.id is not None and (pending := self._pending.pop(message.id, None)) is not None:
            if message.error is not None:
                pending.error = from_response(message.error)
            else:
                pending.answer = message.result
                if pending.subscription is not None:  # before the next line is read, which may be its first event
                    self._subscriptions[_decode_watch(message.result).watch] = pending.subscription
            pending.done.set()

    def _break(self, error: ClientError) -> None:
        self.broken = error
        for pending in self._pending.values():
            pending.error = error
            pending.done.set()
        for subscription in self._subscriptions.values():
            subscription.fail(error)
        self._pending, self._subscriptions = {}, {}

    async def request(
        self, method: str, params: messages.Params, subscription: Subscription | None = None
    ) -> msgspec.Raw:
        """Send a request and wait for its result, still as JSON.

        Raises
        ------
        RemoteError
            The daemon refused it.
        ConnectionLost
            The connection broke; whether it was carried out is not known.
        """
        if self.broken is not None:
            raise self.broken
        self._id += 1
        number, pending = self._id, _Pending(subscription)
        line = msgspec.json.encode({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + b"\n"
        if len(line) > wire.MAX_MESSAGE_BYTES:
            raise endpoint.too_large(method, len(line))
        self._pending[number] = pending
        try:
            await self._send(line)
            await pending.done.wait()
        finally:
            self._pending.pop(number, None)
        if pending.error is not None:
            raise pending.error
        assert pending.answer is not None
        return pending.answer

    async def _send(self, line: bytes) -> None:
        """Send a line whole: what is cancelled halfway would spoil every line behind it."""
        async with self._sending:
            try:
                await self._stream.send(line)
            except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
                raise self.broken or ConnectionLost(f"the connection to {self._path} broke: {exc}") from exc
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await anyio.aclose_forcefully(self._stream)
                raise

    def forget(self, watch: int) -> None:
        """Take no more events of a watch."""
        self._subscriptions.pop(watch, None)


async def open_link(path: str, chosen: str) -> Link:
    """Connect and hear the daemon's first word.

    Raises
    ------
    NoDaemon, VersionMismatch, RemoteError, ClientError
        As `bpsd.client.connection.Connection.connect`.
    """
    try:
        with anyio.fail_after(endpoint.HELLO_TIMEOUT_S):
            stream = await anyio.connect_unix(path)
    except OSError as exc:
        raise endpoint.no_daemon(path, chosen, exc) from exc
    lines = BufferedByteReceiveStream(stream)
    try:
        with anyio.fail_after(endpoint.HELLO_TIMEOUT_S):
            first = await _line(lines)
        params = endpoint.check_hello(msgspec.json.decode(first), path)
        return Link(stream, lines, msgspec.convert(params, messages.Hello), path)
    except TimeoutError as exc:
        await anyio.aclose_forcefully(stream)
        raise endpoint.no_daemon(path, chosen, exc) from exc
    except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError) as exc:
        await anyio.aclose_forcefully(stream)
        raise ConnectionLost(f"the connection to {path} broke before the daemon said hello") from exc
    except (msgspec.MsgspecError, anyio.DelimiterNotFound) as exc:
        await anyio.aclose_forcefully(stream)
        raise ClientError(f"what answers on {path} is not bpsd: {exc}", code="protocol_error") from exc
    except BaseException:
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(stream)
        raise


async def _line(lines: BufferedByteReceiveStream) -> bytes:
    return await lines.receive_until(b"\n", wire.MAX_MESSAGE_BYTES)
