"""The Unix socket: who is let in, what each client may take, and how requests reach their handlers.

::

    listener    the listening socket: lock, probe, bind with the right mode, or systemd's
    service     SocketServer: accepts, refuses, checks time limits, stops in order
    connection  Connection: one client; bytes to requests, answers to bytes, flow control both ways
    methods     MethodSpec and Call: what the layer above gives and gets
    looptime    how long a request holds the event loop
    figures     what is counted

A request goes `Connection.buffer_updated` -> `bpsd.protocol` -> right -> typed parameters -> handler -> answer, in one
callback of the event loop if the handler does not wait. `bpsd.protocol` has no socket, `Connection` no rules of the
protocol, and neither knows what a method does.
"""

from __future__ import annotations

__all__ = [
    "Call",
    "ClientsUse",
    "Connection",
    "Listener",
    "MethodSpec",
    "SocketFigures",
    "SocketServer",
    "open_listener",
    "turn_away",
]

from bpsd.server.connection import Connection
from bpsd.server.figures import ClientsUse, SocketFigures
from bpsd.server.listener import Listener, open_listener, turn_away
from bpsd.server.methods import Call, MethodSpec
from bpsd.server.service import SocketServer
