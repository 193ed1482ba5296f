"""Pages that fit a message: an answer that is too long is no answer."""

from __future__ import annotations

__all__ = ["PAGE_BYTES", "fitting"]

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from bpsd import wire

PAGE_BYTES = wire.MAX_MESSAGE_BYTES - 128 * 1024
"""A page ends before its rows fill a message; the rest of the message is for what stands around them."""

T = TypeVar("T")


def fitting(rows: Iterable[T], limit: int) -> tuple[list[T], bool]:
    """The first ``limit`` rows, or as many as fit a message (at least one), and whether there are more."""
    page: list[T] = []
    size = 0
    for row in rows:
        if len(page) == limit:
            return page, True
        size += len(msgspec.json.encode(row)) + 1
        if page and size > PAGE_BYTES:
            return page, True
        page.append(row)
    return page, False
