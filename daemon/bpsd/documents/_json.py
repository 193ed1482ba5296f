"""JSON: what `msgspec` does not notice, the tree of a document with mistakes, and the places of its parts."""

from __future__ import annotations

__all__ = ["find", "has_oddities", "read"]

import json
import re
from typing import Any

from bpsd.documents._tree import INT_MAX, INT_MIN, Path, Places, Trie, Unreadable, mapping, read_int

_SPACE = re.compile(r"[ \t\n\r]*")
_ODD_DIGITS = 19
"""As many digits or more may be an integer beyond 64 bits."""


def has_oddities(text: str) -> bool:
    """Whether the text, which is valid JSON, has what a typed decoder lets pass.

    These are repeated keys, integers beyond 64 bits and NUL characters. It is one pass of the standard library's
    scanner that keeps nothing, so it takes little time and no memory.
    """
    if "\\u0000" in text:
        return True
    odd = False

    def look_at_pairs(pairs: list[tuple[str, Any]]) -> None:
        nonlocal odd
        if len(dict(pairs)) != len(pairs):
            odd = True

    def look_at_int(digits: str) -> None:
        nonlocal odd
        if len(digits) >= _ODD_DIGITS and not INT_MIN <= read_int(digits) <= INT_MAX:
            odd = True

    json.loads(text, object_pairs_hook=look_at_pairs, parse_int=look_at_int)
    return odd


def read(text: str) -> Any:
    """The text as a tree.

    Raises
    ------
    Unreadable
        If the text is not JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=mapping, parse_int=read_int)
    except json.JSONDecodeError as exc:
        message = exc.msg[0].lower() + exc.msg[1:]
        raise Unreadable(f"this is not JSON: {message}", min(exc.pos, len(text))) from exc
    except RecursionError as exc:
        raise Unreadable("lists and mappings are nested too deep", 0) from exc


_decoder: Any = json.JSONDecoder(object_pairs_hook=len, parse_int=len, parse_float=len)
_skip = _decoder.scan_once
"""From a text and an index to what stands there (nothing but texts is kept) and the index after it, at C's speed."""


def find(text: str, wanted: Trie) -> Places:
    """The places of the wanted parts of a text that is valid JSON."""
    places: Places = {}
    _find(text, _space(text, 0), wanted, (), places)
    return places


def _space(text: str, index: int) -> int:
    found = _SPACE.match(text, index)
    return found.end() if found else index


def _find(text: str, start: int, wanted: Trie, path: Path, places: Places) -> int:
    """Note the places of ``wanted`` below the value at ``start``; returns the index after that value."""
    if text[start] not in "{[" or not wanted:
        return int(_skip(text, start)[1])
    named = text[start] == "{"
    index = _space(text, start + 1)
    position = 0
    while text[index] not in "}]":
        part: str | int = position
        key_at = index
        if named:
            part, index = _skip(text, index)
            index = _space(text, _space(text, index) + 1)  # over the colon
        below = wanted.get(part)
        if below is None:
            index = int(_skip(text, index)[1])
        else:
            places.setdefault((*path, part), []).append((key_at, index))
            index = _find(text, index, below, (*path, part), places)
        index = _space(text, index)
        if text[index] == ",":
            index = _space(text, index + 1)
        position += 1
    return index + 1
