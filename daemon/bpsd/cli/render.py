"""How things look as plain text: tables, ages, times. Pure functions; nothing here knows a terminal."""

from __future__ import annotations

__all__ = [
    "ELLIPSIS",
    "MIN_COLUMN",
    "age",
    "clean",
    "clip",
    "clip_middle",
    "clock",
    "columns_of",
    "duration",
    "joined",
    "long_age",
    "plural",
    "table",
]

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SENTENCES = ("NOTE", "ERROR", "REASON")
"""Columns of which the beginning says most; of all others, names, also the end does."""

MIN_COLUMN = 8
"""Characters that a shortened column keeps at least."""


def clean(text: object) -> str:
    """One printable line of whatever came from outside.

    A job's host or a user's payload may hold escape sequences; they must not reach a terminal as such.
    """
    line = str(text)
    if line.isascii() and line.isprintable():
        return line
    return "".join(c if c.isprintable() else (" " if c in "\t\n\r" else f"\\x{ord(c):02x}") for c in line)


def joined(text: object) -> str:
    """A text of several lines (a sentence and a list of mistakes) as one line."""
    head, *rest = [clean(line.strip()) for line in str(text).splitlines() if line.strip()] or [""]
    return f"{head} {'; '.join(rest)}" if rest else head


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


ELLIPSIS = "…"
"""Stands for what a shortened text lacks; `bpsd.cli.session` writes ``~`` where the terminal has no such character."""


def clip(text: str, columns: int) -> str:
    """Shorten a text to so many columns: its end is cut off."""
    if columns_of(text) <= columns:
        return text
    return _beginning(text, columns - 1) + ELLIPSIS if columns > 0 else ""


def clip_middle(text: str, columns: int) -> str:
    """Shorten a name to so many columns: its middle is cut out, since names often differ at their ends."""
    if columns_of(text) <= columns:
        return text
    end = _beginning(text[::-1], (columns - 1) // 2)[::-1]
    return _beginning(text, columns - 1 - columns_of(end)) + ELLIPSIS + end if columns > 0 else ""


def _beginning(text: str, columns: int) -> str:
    """As many characters as fit."""
    kept = 0
    for c in text:
        columns -= columns_of(c)
        if columns < 0:
            break
        kept += 1
    return text[:kept]


def _pad(text: str, columns: int, *, right: bool) -> str:
    space = " " * (columns - columns_of(text))
    return space + text if right else text + space


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[str] = (),
    shrink: Sequence[str] = (),
    drop: Sequence[str] = (),
    optional: Sequence[str] = (),
    width: int | None = None,
    paint: Callable[[str, str], str] | None = None,
    rule_after_first: bool = False,
) -> list[str]:
    """Lay out a table: header, a rule, rows, and below them which columns had no room.

    A table that is wider than ``width`` loses columns that are empty or the same in all rows, then its names and
    sentences are shortened, then it loses other columns.

    Parameters
    ----------
    header : sequence of `str`
        Names of the columns.
    rows : iterable of sequences
        Cells; `None` is empty.
    right, shrink : sequence of `str`
        Columns to align right, and columns to shorten where the table is wider than ``width``.
    drop : sequence of `str`
        Columns that may be left out where the table is wider than ``width``, the least important first.
    optional : sequence of `str`
        Columns to leave out where all their cells are empty.
    width : `int`, optional
        Columns of the terminal; by default any.
    paint : callable, optional
        Given column and cell, the SGR code of its colour, or an empty text.
    rule_after_first : `bool`, optional
        Another rule below the first row (totals).
    """
    cells = [["" if cell is None else clean(cell) for cell in row] for row in rows]
    kept = [at for at, name in enumerate(header) if name not in optional or any(row[at] for row in cells)]
    header, cells = [header[at] for at in kept], [[row[at] for at in kept] for row in cells]
    widths = [max(columns_of(line[at]) for line in [header, *cells]) for at in range(len(header))]
    missing: list[str] = []
    if width is not None:
        kept, widths, missing = _fitted(header, cells, widths, shrink, drop, width)
        header, cells = [header[at] for at in kept], [[row[at] for at in kept] for row in cells]

    def line(texts: Sequence[str], colour: Callable[[str, str], str] | None) -> str:
        parts = []
        for name, text, columns in zip(header, texts, widths, strict=True):
            short = clip(text, columns) if name in SENTENCES else clip_middle(text, columns)
            padded = _pad(short, columns, right=name in right)
            code = colour(name, text) if colour else ""
            parts.append(f"\x1b[{code}m{padded}\x1b[0m" if code else padded)
        return " ".join(parts).rstrip()

    rule = " ".join("-" * columns for columns in widths)
    lines = [line(header, None), rule, *(line(row, paint) for row in cells)]
    if rule_after_first and len(cells) > 1:
        lines.insert(3, rule)
    return [*lines, *(clip(text, width or 0) for text in missing)]


def _fitted(
    header: Sequence[str],
    cells: Sequence[Sequence[str]],
    widths: Sequence[int],
    shrink: Sequence[str],
    drop: Sequence[str],
    width: int,
) -> tuple[list[int], list[int], list[str]]:
    """Return which columns stay, how wide each is, and what is to be said of the others."""
    kept, same, rest = [*range(len(header))], [], []

    def over(widths: Sequence[int]) -> bool:
        return sum(widths) + len(widths) - 1 > width

    def fitted() -> list[int]:
        return _shrunk([header[at] for at in kept], [widths[at] for at in kept], shrink, width)

    order = [header.index(name) for name in drop if name in header]
    for at in order:
        values = {row[at] for row in cells}
        if over([widths[n] for n in kept]) and len(values) == 1:
            kept.remove(at)
            if values != {""}:
                same.append(f"{header[at]} {cells[0][at]}")
    for at in order:
        if at in kept and over(fitted()):
            kept.remove(at)
            rest.append(header[at])
    missing = [f"in all rows: {', '.join(same)}"] if same else []
    return kept, fitted(), [*missing, *([f"no room for: {', '.join(rest)}; --wide shows all"] if rest else [])]


def _shrunk(header: Sequence[str], widths: Sequence[int], shrink: Sequence[str], width: int) -> list[int]:
    """Take columns away from the widest of those that may be shortened, until the table fits or nothing can give."""
    widths = [*widths]
    while (over := sum(widths) + len(widths) - 1 - width) > 0:
        able = [at for at, name in enumerate(header) if name in shrink and widths[at] > max(MIN_COLUMN, len(name))]
        if not able:
            break
        at = max(able, key=lambda n: widths[n])
        rest = max((widths[n] for n in able if n != at), default=0)
        least = max(MIN_COLUMN, len(header[at]))
        widths[at] = max(least, min(widths[at] - 1, max(rest, widths[at] - over)))
    return widths


_UNITS = ((86400.0, "d", "d"), (3600.0, "h", "h"), (60.0, "m", "min"))


def age(seconds: float | None) -> str:
    """An age for a column: ``3s``, ``12m``, ``5h``, ``2d``; empty if it is not known."""
    return "" if seconds is None else _age(seconds, 1, "")


def long_age(seconds: float) -> str:
    """An age for a sentence: ``3 s``, ``12 min``, ``5 h``, ``2 d``."""
    return _age(seconds, 2, " ")


def _age(seconds: float, form: int, gap: str) -> str:
    for unit in _UNITS:
        if seconds >= 2 * unit[0] or (unit[0] == 60.0 and seconds >= 100.0):
            return f"{int(seconds // unit[0])}{gap}{unit[form]}"
    return f"{max(0, int(seconds))}{gap}s"


def duration(seconds: float) -> str:
    """How long something took: ``40 ms``, ``1.4 s``, ``12 s``, ``3:05``, ``2:03:05``."""
    if seconds < 1:
        return f"{max(seconds, 0.0) * 1e3:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{int(seconds)} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def clock(epoch: float | None) -> str:
    """A moment in local time, ``2026-07-01 12:00:03``; empty if it is not known."""
    return "" if epoch is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def plural(number: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
