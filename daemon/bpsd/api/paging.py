"""Pages that fit a message: an answer that is too long is no answer."""

from __future__ import annotations

__all__ = ["PAGE_BYTES", "fitting", "holding"]

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


def holding(answer: msgspec.Struct, name: str, rows: list[bytes]) -> msgspec.Raw:
    """An answer whose list ``name`` is empty, with these rows in it, which are encoded already: each is copied once."""
    before, empty, behind = msgspec.json.encode(answer).partition(b'"%s":[]' % name.encode())
    if not rows:
        return msgspec.Raw(before + empty + behind)
    rows[0] = before + empty[:-1] + rows[0]
    rows[-1] += b"]" + behind
    return msgspec.Raw(b",".join(rows))
