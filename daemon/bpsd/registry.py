"""Which kinds of backend there are: the entry points of the group ``bpsd.adapters``, loaded when one needs them."""

from __future__ import annotations

__all__ = ["GROUP", "adapter", "adapter_config", "known_adapters"]

from functools import cache
from importlib import metadata

import msgspec

from bpsd.errors import CannotStart, nearest
from bpsd.interface import WmsService

GROUP = "bpsd.adapters"


def known_adapters() -> list[str]:
    """The kinds of backend that are installed, by name."""
    return sorted(point.name for point in metadata.entry_points(group=GROUP))


@cache
def adapter(kind: str) -> type[WmsService]:
    """The adapter of a kind of backend. It reads files the first time; then it may be called in the event loop.

    Raises
    ------
    CannotStart
        If there is no such adapter, it cannot be imported, or it is none.
    """
    points = {point.name: point for point in metadata.entry_points(group=GROUP)}
    point = points.get(kind)
    if point is None:
        near = nearest(kind, points)
        raise CannotStart(
            f"there is no adapter for backends of type {kind}",
            advice=f"did you mean {near[0]}?" if near else f"installed are: {', '.join(sorted(points))}",
        )
    try:
        loaded = point.load()
    except Exception as exc:  # whatever a third party's module does when it is imported
        raise CannotStart(
            f"the adapter for backends of type {kind} ({point.value}) cannot be loaded: {exc!r}",
            advice="is what it needs installed in this environment?",
        ) from exc
    if not (isinstance(loaded, type) and issubclass(loaded, WmsService)):
        raise CannotStart(f"{point.value}, installed as the adapter {kind}, is no WmsService")
    return loaded


def adapter_config(kind: str) -> type[msgspec.Struct]:
    """The settings of a kind of backend."""
    return adapter(kind).Config
