"""What a method is to the server: a function, the right to call it, and what happens when its caller leaves."""

from __future__ import annotations

__all__ = ["Call", "Handler", "MethodSpec"]

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from bpsd.peers import Peer, Right

if TYPE_CHECKING:
    from bpsd.server.connection import Connection

Handler = Callable[["Call", Any], object]
"""Takes the call and its typed parameters. Returns the result (a struct of `bpsd.messages`, or JSON encoded before as
`msgspec.Raw`), which is answered at once, or an awaitable of it, which runs as a task."""


class MethodSpec(msgspec.Struct, frozen=True):
    """One method. ``finish``: a call that has begun goes on when its client leaves (but not when the daemon ends)."""

    handler: Handler
    right: Right
    finish: bool = False


class Call:
    """One request as its handler sees it: who asks, and over which connection."""

    __slots__ = ("_after", "connection", "peer")

    def __init__(self, peer: Peer, connection: Connection) -> None:
        self.peer = peer
        self.connection = connection
        self._after: list[Callable[[], object]] = []

    def after_reply(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called as soon as the answer is on its way; not if there is an error or nobody to tell."""
        self._after.append(callback)

    def replied(self) -> None:
        """Call what waits for the answer (for the server)."""
        for callback in self._after:
            callback()
