"""How programs speak to the daemon: `Client` (blocking, standard library alone) and `AsyncClient` (anyio, typed).

::

    from bpsd.client import Client

    with Client() as bpsd:
        row = bpsd.submit_document(open("flow.yaml", "rb").read(), source="flow.yaml")
        bpsd.wait([row["run"]])

The names are imported when they are asked for: `Client` must not pay for what only `AsyncClient` needs.
"""

from __future__ import annotations

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "ConnectionLost",
    "NoDaemon",
    "RemoteError",
    "TimedOut",
    "VersionMismatch",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.client.aio import AsyncClient
    from bpsd.client.failures import ClientError, ConnectionLost, NoDaemon, RemoteError, TimedOut, VersionMismatch
    from bpsd.client.sync import Client

_MODULES = {"AsyncClient": "aio", "Client": "sync"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'failures')}"), name)
