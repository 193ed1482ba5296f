"""Pages that fit a message: an answer that is too long is no answer."""

from __future__ import annotations

__all__ = ["PAGE_BYTES", "Page", "fitting", "holding", "position"]

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from bpsd import wire
from bpsd.bounds import MAX_EXACT
from bpsd.errors import InvalidParams
from bpsd.slices import Pause

PAGE_BYTES = wire.MAX_MESSAGE_BYTES - 128 * 1024
"""A page ends before its rows fill a message; the rest of the message is for what stands around them."""

T = TypeVar("T")


class Page:
    """Encoded rows: ``limit`` at most, and no more than fit a message (but one).

    ``full``: a row had no place any more.
    """

    __slots__ = ("_limit", "_size", "full", "rows")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self.rows: list[bytes] = []
        self.full = False

    def add(self, row: bytes) -> bool:
        """Add a row; `False` if it has no place."""
        size = self._size + len(row) + 1
        if self.full or (self.rows and (len(self.rows) >= self._limit or size > PAGE_BYTES)):
            self.full = True
            return False
        self._size = size
        self.rows.append(row)
        return True


async def fitting(rows: Iterable[T], limit: int) -> tuple[Page, T | None]:
    """Make a page of the first rows, in slices; also returns the last row that is in it."""
    page, last, pause = Page(limit), None, Pause()
    for row in rows:
        if not page.add(msgspec.json.encode(row)):
            break
        last = row
        await pause.if_due()
    return page, last


def holding(answer: msgspec.Struct, name: str, rows: list[bytes]) -> msgspec.Raw:
    """An answer whose list ``name`` is empty, with these rows in it, which are encoded already: each is copied once."""
    before, empty, behind = msgspec.json.encode(answer).partition(b'"%s":[]' % name.encode())
    if not rows:
        return msgspec.Raw(before + empty + behind)
    rows[0] = before + empty[:-1] + rows[0]
    rows[-1] += b"]" + behind
    return msgspec.Raw(b",".join(rows))


def position(method: str, after: str | None) -> int | None:
    """The number in the ``next`` of the page before, where pages are counted.

    Raises
    ------
    InvalidParams
        If it is something else.
    """
    if after is None:
        return None
    if not (after.isascii() and after.isdigit() and int(after) <= MAX_EXACT):
        raise InvalidParams(f"{method}: after is {after!r}, expected the next of the page before")
    return int(after)
