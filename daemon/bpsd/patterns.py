"""Shell patterns (``*``, ``?``, ``[seq]``, ``[!seq]``) in time linear in the text, whatever the pattern.

`fnmatch` means the same, but makes a regular expression of the pattern, in time that grows with the square of the
brackets in it, and a regular expression may go back over the text again and again. Patterns come from users, so here
each character of the text is looked at once: the set of all places in the pattern that the text so far may have led to
is one integer (a bit for each place), and a character of the text moves all of them at once.
"""

from __future__ import annotations

__all__ = ["Glob"]

from bisect import bisect_right

_Ranges = list[tuple[int, int]]  # of code points, both ends included


class Glob:
    """A compiled shell pattern; upper and lower case differ.

    Parameters
    ----------
    pattern : `str`
        What a shell would take, without the special role of ``/`` and of a leading dot.

    Examples
    --------
    >>> Glob("u/*/DRP[0-9]").matches("u/jo/DRP7")
    True
    """

    __slots__ = ("_bounds", "_end", "_literal", "_masks", "_start", "_stays", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        # Without ? and [ the pattern is text between stars, which str searches faster than anything written here.
        self._literal = pattern.split("*") if "?" not in pattern and "[" not in pattern else None
        if self._literal is None:
            self._compile(pattern)

    def __repr__(self) -> str:
        return f"Glob({self.pattern!r})"

    def matches(self, text: str) -> bool:
        """Whether the whole text is what the pattern describes."""
        return self._walk(text) if self._literal is None else _between_stars(self._literal, text)

    def _compile(self, pattern: str) -> None:
        """Make the table of code points: between two ``bounds`` every character moves the same places on."""
        items, stays = _parse(pattern)
        flips: dict[int, int] = {}
        always = 0
        for place, (negated, ranges) in enumerate(items, 1):
            bit = 1 << place
            if negated:
                always |= bit
            for first, last in _merged(ranges):
                flips[first] = flips.get(first, 0) ^ bit
                flips[last + 1] = flips.get(last + 1, 0) ^ bit
        self._bounds = sorted(flips)
        self._masks = [always]
        for bound in self._bounds:
            self._masks.append(self._masks[-1] ^ flips[bound])
        self._stays = stays  # the places at which a star stands: it takes a character and stays
        self._start, self._end = 1, 1 << len(items)

    def _walk(self, text: str) -> bool:
        bounds, masks, stays = self._bounds, self._masks, self._stays
        places = self._start
        for char in text:
            places = ((places << 1) & masks[bisect_right(bounds, ord(char))]) | (places & stays)
            if not places:
                return False
        return bool(places & self._end)


def _between_stars(parts: list[str], text: str) -> bool:
    """Whether ``text`` is these parts in their order, with anything in between."""
    if len(parts) == 1:
        return text == parts[0]
    first, *inner, last = parts
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in inner:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _parse(pattern: str) -> tuple[list[tuple[bool, _Ranges]], int]:
    """The characters that each place of the pattern takes, as (all but these, ranges), and the places of the stars."""
    items: list[tuple[bool, _Ranges]] = []
    stays = 0
    at = 0
    last_close = pattern.rfind("]")
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            stays |= 1 << len(items)
        elif char == "?":
            items.append((True, []))
        elif char == "[" and (close := _closing(pattern, at, last_close)):
            inside = pattern[at:close]
            negated = inside.startswith("!")
            items.append((negated, _ranges(inside[negated:])))
            at = close + 1
        else:
            items.append((False, [(ord(char), ord(char))]))
    return items, stays


def _closing(pattern: str, at: int, last_close: int) -> int:
    """Where the bracket ends whose inside begins at ``at``; 0: it is not closed and stands for itself.

    A bracket right at the beginning of the inside belongs to it.
    """
    at += pattern.startswith("!", at)
    at += pattern.startswith("]", at)
    return pattern.find("]", at) if at <= last_close else 0


def _ranges(inside: str) -> _Ranges:
    """The characters between brackets: each itself, ``a-z`` all from a to z (none if z comes first)."""
    ranges: _Ranges = []
    at = 0
    while at < len(inside):
        if inside.startswith("-", at + 1) and at + 2 < len(inside):
            ranges.append((ord(inside[at]), ord(inside[at + 2])))
            at += 3
        else:
            ranges.append((ord(inside[at]), ord(inside[at])))
            at += 1
    return ranges


def _merged(ranges: _Ranges) -> _Ranges:
    """The same characters in ranges that do not overlap."""
    merged: _Ranges = []
    for first, last in sorted(pair for pair in ranges if pair[0] <= pair[1]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged
