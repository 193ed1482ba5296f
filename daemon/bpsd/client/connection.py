"""One connection to the daemon, blocking: lines in, lines out, requests matched with their answers.

It is opened when it is first needed and kept. What only reads is sent again by itself, once, when a kept connection
turns out to be broken (a daemon that was restarted in the meantime).
"""

from __future__ import annotations

__all__ = ["Connection"]

import json
import os
import socket
import time

from bpsd import __version__, wire
from bpsd.client import endpoint
from bpsd.client.failures import ClientError, ConnectionLost, OutOfTime, TimedOut, from_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

    Row = dict[str, Any]


class Connection:
    """A connection to the daemon; parameters as of `bpsd.client.sync.Client`."""

    def __init__(
        self,
        socket_path: str | None = None,
        *,
        timeout_s: float = endpoint.CALL_TIMEOUT_S,
        name: str | None = None,
    ) -> None:
        self.socket_path, self.chosen = endpoint.find_socket(socket_path, os.environ, os.getuid())
        self.timeout_s = timeout_s
        self.name = (name or f"python client {__version__}")[:900]
        self.hello: Row = {}
        """What the daemon said of itself; empty until we have met one, and from then on it is worth waiting for."""
        self.deadline: float | None = None
        """When all time is over (monotonic): nothing here waits longer. It raises `OutOfTime`."""
        self.waiting: Callable[[str], object] | None = None
        """Told the method of a request whose answer takes longer than `endpoint.WAITING_AFTER_S`."""
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._searched = 0
        self._id = 0
        self._goodbye = ""

    def __repr__(self) -> str:
        state = f"connected to bpsd {self.hello.get('version')}" if self._socket else "not connected"
        return f"<{type(self).__name__} {self.socket_path}, {state}>"

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> Row:
        """Connect, if that is not done, and return the daemon's ``hello``.

        Raises
        ------
        NoDaemon
            Nobody answers; the message says on which socket, and how to start a daemon.
        VersionMismatch
            It speaks another protocol.
        """
        if self._socket is not None:
            return self.hello
        patience_s = self.within(min(self.timeout_s, endpoint.HELLO_TIMEOUT_S), "connect")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(patience_s)
            connection.connect(self.socket_path)
        except OSError as error:
            connection.close()
            self.within(0.0, "connect")
            raise endpoint.no_daemon(self.socket_path, self.chosen, error) from error
        except BaseException:
            connection.close()
            raise
        self._socket, self._buffer, self._searched, self._goodbye = connection, bytearray(), 0, ""
        try:
            first = self._receive(time.monotonic() + patience_s)
            self.hello = endpoint.check_hello(first, self.socket_path)
        except TimedOut:
            self.close()
            self.within(0.0, "connect")
            raise
        except BaseException:
            self.close()
            raise
        return self.hello

    def within(self, seconds: float, what: str) -> float:
        """Return ``seconds``, or what is left until `deadline` if that is less.

        Raises
        ------
        OutOfTime
            The deadline has passed.
        """
        if self.deadline is None:
            return seconds
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise OutOfTime(f"the time is over; the daemon on {self.socket_path} has not answered ({what})")
        return min(seconds, left)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def clone(self) -> Self:
        """Another of the same kind for the same socket, not connected yet (but it has met the daemon if we have)."""
        twin = type(self)(self.socket_path, timeout_s=self.timeout_s, name=self.name)
        twin.chosen, twin.hello = self.chosen, self.hello
        twin.deadline, twin.waiting = self.deadline, self.waiting
        return twin

    def call(self, method: str, /, **params: Any) -> Row:
        """Send any request and return its result; parameters that are `None`, `False` or empty are left out."""
        return self.request(method, endpoint.given(**params), self.timeout_s)

    def receive(self, timeout_s: float | None) -> Row:
        """Wait for the next message of any kind (for subscriptions).

        Raises
        ------
        TimedOut
            None came.
        ConnectionLost
            The connection broke, or there is none.
        """
        return self._receive(None if timeout_s is None else time.monotonic() + timeout_s)

    def request(self, method: str, params: Row, timeout_s: float) -> Row:
        """Send a request as it is and return its result, within ``timeout_s``.

        Raises
        ------
        RemoteError
            The daemon refused it.
        ConnectionLost
            The connection broke and the method may not be repeated blindly.
        TimedOut
            No answer came in time.
        """
        if self._socket is not None and self._was_closed():
            self.close()
        fresh = self._socket is None
        self.connect()
        try:
            return self._exchange(method, params, timeout_s)
        except ConnectionLost:
            if fresh or method not in endpoint.REPEATABLE:
                raise
        self.connect()
        return self._exchange(method, params, timeout_s)

    def _was_closed(self) -> bool:
        """Return whether the daemon has ended the connection, as it does with idle ones; nothing is read."""
        assert self._socket is not None
        try:
            self._socket.settimeout(0)
            waiting = self._socket.recv(65536, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return not waiting or b'"method":"goodbye"' in waiting

    def _exchange(self, method: str, params: Row, timeout_s: float) -> Row:
        self._id += 1
        timeout_s = self.within(timeout_s, method)
        begun = time.monotonic()
        self._send(method, wire.encode_request(self._id, method, params), timeout_s)
        usual_s = endpoint.WAITING_AFTER_S + (params["timeout_s"] if method == "commands.wait" else 0.0)
        told = self.waiting is None or timeout_s <= usual_s
        while True:
            try:
                message = self._receive(begun + (timeout_s if told else usual_s))
            except TimedOut:
                if not told and self.waiting is not None:
                    told = True
                    self.waiting(method)
                    continue
                self.within(timeout_s, method)
                raise TimedOut(
                    f"{method}: no answer from {self.socket_path} within {timeout_s:g} s",
                    advice="the daemon may be busy: see `bpsctl health`",
                ) from None
            if "method" in message or message.get("id") not in (self._id, None):
                continue  # a notification, or the late answer to a request that timed out
            if "error" in message:
                raise from_response(message["error"])
            result: Row = message.get("result") or {}
            return result

    def _send(self, method: str, line: bytes, timeout_s: float) -> None:
        if len(line) > wire.MAX_MESSAGE_BYTES:
            raise endpoint.too_large(method, len(line))
        assert self._socket is not None
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(line)
        except TimeoutError as error:
            self.close()  # part of a request may be under way: nothing more can be said on this connection
            self.within(timeout_s, method)
            raise TimedOut(f"{method}: {self.socket_path} took no more bytes for {timeout_s:g} s") from error
        except OSError as error:
            raise self._lost(error) from error

    def _receive(self, deadline: float | None) -> Row:
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                line = self._buffer[:end]
                del self._buffer[: end + 1]
                self._searched = 0
                return self._parse(line)
            self._searched = len(self._buffer)
            if self._searched > wire.MAX_MESSAGE_BYTES:
                self.close()
                raise ClientError("the daemon sent a message over the limit", code="protocol_error")
            self._read(deadline)

    def _read(self, deadline: float | None) -> None:
        if self._socket is None:
            raise ConnectionLost(f"the connection to {self.socket_path} is closed")
        try:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            data = self._socket.recv(65536)
        except TimeoutError:
            raise TimedOut(
                f"nothing came from {self.socket_path} in time",
                advice="the daemon may be starting, or be stopped: "
                f"`{endpoint.systemctl(self.socket_path)} status bpsd` tells",
            ) from None
        except OSError as error:
            raise self._lost(error) from error
        if not data:
            raise self._lost(None)
        self._buffer += data

    def _parse(self, line: bytearray) -> Row:
        try:
            message = json.loads(line)
        except ValueError as error:
            self.close()
            raise ClientError(
                f"what came from {self.socket_path} is not JSON: {bytes(line[:60])!r}", code="protocol_error"
            ) from error
        if not isinstance(message, dict):
            self.close()
            raise ClientError(f"what came from {self.socket_path} is no JSON-RPC message", code="protocol_error")
        if message.get("method") == "goodbye":
            params = message.get("params") or {}
            self._goodbye = f"{params.get('message', '')} [{params.get('code', '')}]"
        return message

    def _lost(self, error: OSError | None) -> ConnectionLost:
        self.close()
        reason = self._goodbye or (error.strerror or str(error) if error else "the daemon closed it")
        return ConnectionLost(
            f"the connection to {self.socket_path} broke: {reason}",
            advice=f"`{endpoint.systemctl(self.socket_path)} status bpsd` and the daemon's log tell why; "
            "what it accepted is not lost",
        )
