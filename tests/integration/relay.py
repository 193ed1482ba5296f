"""A relay between a client and a server, to be cut, or to swallow everything, at a moment of the test's choice."""

from __future__ import annotations

__all__ = ["Relay"]

import contextlib
import socket
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import anyio
import anyio.abc


class Relay:
    """Listens on a loopback port of its own and passes on to another, until it is told otherwise."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self._deaf = False
        self._pairs: set[tuple[anyio.abc.SocketStream, anyio.abc.SocketStream]] = set()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self._stack.push_async_callback(listener.aclose)
        group = await self._stack.enter_async_context(anyio.create_task_group())
        self.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        group.start_soon(listener.serve, self._pair)
        self._stack.callback(group.cancel_scope.cancel)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.cut()
        await self._stack.__aexit__(exc_type, exc, tb)

    @property
    def server_side(self) -> list[int]:
        """The ports that the server sees its clients at."""
        return [server.extra(anyio.abc.SocketAttribute.local_port) for _, server in self._pairs]

    def cut(self) -> None:
        """Close every connection, at once."""
        for pair in list(self._pairs):
            for stream in pair:
                with contextlib.suppress(OSError):
                    stream.extra(anyio.abc.SocketAttribute.raw_socket).shutdown(socket.SHUT_RDWR)

    def swallow(self) -> None:
        """Pass nothing on any more, without a word: what lost packets look like from above."""
        self._deaf = True

    def heal(self) -> None:
        """Pass on what comes from now on. What was swallowed is lost, so the connections of that time end."""
        if self._deaf:
            self._deaf = False
            self.cut()

    @contextlib.asynccontextmanager
    async def _known(self, pair: tuple[anyio.abc.SocketStream, anyio.abc.SocketStream]) -> AsyncIterator[None]:
        self._pairs.add(pair)
        try:
            yield
        finally:
            self._pairs.discard(pair)

    async def _pair(self, client: anyio.abc.SocketStream) -> None:
        async with (
            client,
            await anyio.connect_tcp("127.0.0.1", self.target) as server,
            self._known((client, server)),
            anyio.create_task_group() as group,
        ):
            group.start_soon(self._pass_on, client, server)
            group.start_soon(self._pass_on, server, client)

    async def _pass_on(self, source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream) -> None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            async for data in source:
                if not self._deaf:
                    await sink.send(data)
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            await sink.send_eof()
