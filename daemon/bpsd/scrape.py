"""The places where Prometheus finds the figures: a file for node_exporter, and an HTTP endpoint on loopback.

Anybody on this host may ask the endpoint, so it takes little of each: one request in a connection, a short one, soon,
and only so many at once.
"""

from __future__ import annotations

__all__ = ["Endpoint", "Exposition"]

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import h11
from anyio.abc import SocketStream, TaskStatus
from prometheus_client import CONTENT_TYPE_LATEST

from bpsd.logs.events import LogEvent
from bpsd.monitor import Monitor
from bpsd.outlets import MetricsSettings, loopback_address

CONNECTIONS = 16
"""Scrapes at once; whoever comes besides is turned away."""

REQUEST_S = 5.0
"""How long one may take, from connecting to having read the page."""

REQUEST_BYTES = 8192
"""The longest request, headers included."""

OPEN_AGAIN_S = 10.0
"""Pause before an address that could not be had is tried again."""


class Exposition:
    """Keeps the file new and the endpoint open, whatever the disk and the network say to it."""

    def __init__(self, monitor: Monitor, settings: MetricsSettings, *, log: Any) -> None:
        self._monitor, self._settings, self._log = monitor, settings, log
        self._changed = anyio.Event()

    def use(self, settings: MetricsSettings) -> None:
        """Do what another configuration says from now on."""
        if settings != self._settings:
            self._settings = settings
            self._changed.set()

    async def run(self) -> None:
        """Do what the configuration says until cancelled."""
        while True:
            settings, self._changed = self._settings, anyio.Event()
            async with anyio.create_task_group() as group:
                if settings.textfile is not None:
                    group.start_soon(self._write, Path(settings.textfile), settings.interval_s)
                if settings.listen is not None:
                    group.start_soon(self._listen, settings.listen)
                await self._changed.wait()
                group.cancel_scope.cancel()

    async def _write(self, path: Path, interval_s: float) -> None:
        failed = False
        while True:
            try:
                await self._monitor.write(path)
                failed = False
            except OSError as exc:
                if not failed:  # once: the age of the file says the rest
                    self._log.error(LogEvent.METRICS_FAILED, what=str(path), error=str(exc))
                failed = True
            await anyio.sleep(interval_s)

    async def _listen(self, address: str) -> None:
        endpoint = Endpoint(self._monitor.page)
        failed = False
        while True:
            try:
                await endpoint.serve(*loopback_address(address))
            except OSError as exc:
                if not failed:
                    self._log.error(LogEvent.METRICS_FAILED, what=address, error=str(exc))
                failed = True
            await anyio.sleep(OPEN_AGAIN_S)


class Endpoint:
    """``GET /metrics`` over HTTP/1.1, a connection for each."""

    def __init__(self, page: Callable[[], Awaitable[bytes]]) -> None:
        self._page = page
        self._places = anyio.CapacityLimiter(CONNECTIONS)

    async def serve(self, host: str, port: int, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; tells the port when it is open.

        Raises
        ------
        OSError
            If the address cannot be had.
        """
        listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
        async with listener:
            task_status.started(listener.extra(anyio.abc.SocketAttribute.local_port))  # noqa: S610  # no query
            await listener.serve(self._meet)

    async def _meet(self, stream: SocketStream) -> None:
        async with stream:
            try:
                self._places.acquire_nowait()
            except anyio.WouldBlock:
                return
            try:
                with anyio.move_on_after(REQUEST_S):
                    await self._answer(stream)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, h11.RemoteProtocolError):
                pass  # it left, or does not speak HTTP
            finally:
                self._places.release()

    async def _answer(self, stream: SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES)
        try:
            request = await _request(connection, stream)
        except h11.RemoteProtocolError as exc:
            await _respond(connection, stream, exc.error_status_hint, b"this is no request\n")
            return
        if request is None:
            return
        path = request.target.partition(b"?")[0]
        if request.method not in (b"GET", b"HEAD"):
            await _respond(connection, stream, 405, b"only GET\n", (("Allow", "GET, HEAD"),))
        elif path == b"/metrics":
            await _respond(connection, stream, 200, await self._page())
        else:
            await _respond(connection, stream, 404, b"the figures are at /metrics\n")


async def _request(connection: h11.Connection, stream: SocketStream) -> h11.Request | None:
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        try:
            connection.receive_data(await stream.receive(REQUEST_BYTES))
        except anyio.EndOfStream:
            connection.receive_data(b"")


async def _respond(
    connection: h11.Connection,
    stream: SocketStream,
    status: int,
    body: bytes,
    headers: tuple[tuple[str, str], ...] = (),
) -> None:
    head = h11.Response(
        status_code=status,
        headers=[
            ("Content-Type", CONTENT_TYPE_LATEST if status == 200 else "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *headers,
        ],
    )
    parts = (connection.send(head), connection.send(h11.Data(data=body)), connection.send(h11.EndOfMessage()))
    await stream.send(b"".join(part for part in parts if part))
