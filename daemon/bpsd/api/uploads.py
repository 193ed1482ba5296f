"""Which connection owns which document of the spool, until it is submitted."""

from __future__ import annotations

__all__ = ["Uploads"]

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import anyio

from bpsd.api.deps import Deps
from bpsd.server import Call, Connection


class Uploads:
    """Documents go with the last connection that brought or used them, unless a command needs them."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._owners: set[Connection] = set()

    def own(self, call: Call, sha256: str) -> None:
        """Make the connection an owner of a document; call it before anything waits, while the client is there."""
        connection = call.connection
        if connection not in self._owners:
            self._owners.add(connection)
            connection.on_close(lambda: self._closed(connection))
        self._deps.spool.own(connection, sha256, call.peer.uid)

    @asynccontextmanager
    async def in_use(self, call: Call, sha256: str) -> AsyncIterator[None]:
        """Keep a document while a request works on it that goes on when its client leaves."""
        user = object()
        self._deps.spool.own(user, sha256, call.peer.uid)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self._release(user)

    def _closed(self, connection: Connection) -> Awaitable[None] | None:
        self._owners.discard(connection)
        if connection.stopping:  # the client may go on with the next daemon
            self._deps.spool.forget(connection)
            return None
        return self._release(connection)

    async def _release(self, owner: object) -> None:
        await self._deps.spool.release(owner, self._deps.engine.pinned_blobs)
