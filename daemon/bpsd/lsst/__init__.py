"""The side of bpsd that speaks LSST's language: `BpsdService` makes the ``bps`` command use a bpsd daemon.

A leaf: nothing of bpsd imports it, and only it and the plugin worker import ``lsst``. The class is imported when it is
asked for, so that `bpsd.lsst.convert` can be used without it.
"""

from __future__ import annotations

__all__ = ["BpsdService"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.lsst.service import BpsdService


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bpsd.lsst import service

    return getattr(service, name)
