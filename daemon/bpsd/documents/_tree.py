"""What the JSON and the YAML reader have in common: a document as plain values, and the places of its parts.

Both readers make the same tree of ``dict``, ``list``, ``str``, ``int``, ``float``, ``bool`` and `None`. A mapping in
which a key is repeated becomes a `Repeated`, so that whoever walks over the tree meets the mistake at its place.
"""

from __future__ import annotations

__all__ = [
    "DEPTH_MAX",
    "INT_MAX",
    "INT_MIN",
    "Path",
    "Places",
    "Repeated",
    "Trie",
    "Unreadable",
    "mapping",
    "read_int",
    "trie_of",
]

from collections.abc import Iterable
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the top of a document to one of its parts."""

Places: TypeAlias = dict[Path, list[tuple[int, int]]]
"""Where a part stands: (index of its key, index of its value) in the text, once for each time that it is given."""

Trie: TypeAlias = dict[str | int, Any]
"""Wanted paths as nested dictionaries."""

DEPTH_MAX = 64
"""How deep mappings and lists may be nested."""

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
"""Integers beyond 64 bits are refused: many readers of JSON would silently round them."""

_INT_DIGITS_MAX = 19


class Unreadable(Exception):
    """The text cannot be read any further; ``index`` is the place in the text."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.message = message
        self.index = index


class Repeated(dict[str, Any]):
    """A mapping in which ``keys_given_again`` stood more than once; the last value is the one it holds."""

    keys_given_again: tuple[str, ...] = ()


def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a ``dict``, or as a `Repeated` where a key is repeated."""
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    seen: set[str] = set()
    again: dict[str, None] = {}
    for key, _ in pairs:
        if key in seen:
            again[key] = None
        seen.add(key)
    repeated = Repeated(made)
    repeated.keys_given_again = tuple(again)
    return repeated


def read_int(digits: str, base: int = 10) -> int:
    """The integer, or ``INT_MAX + 1`` where it is too long to be in range (`int` is quadratic in its digits)."""
    return int(digits, base) if len(digits) <= _INT_DIGITS_MAX + 2 else INT_MAX + 1


def trie_of(paths: Iterable[Path]) -> Trie:
    """The paths as nested dictionaries."""
    root: Trie = {}
    for path in paths:
        node = root
        for part in path:
            node = node.setdefault(part, {})
    return root
