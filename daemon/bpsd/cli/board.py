"""What ``bpsctl watch`` shows on a terminal: which runs, in which order, and what fits; and its keys."""

from __future__ import annotations

__all__ = ["KEEP_S", "Keys", "ordered", "screen"]

import sys

from bpsd import wire
from bpsd.cli import reports
from bpsd.cli.render import clip, plural

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any, Self

    Row = dict[str, Any]

KEEP_S = 1800.0
"""Seconds for which a run that failed stays on the screen, unless a person clears it."""

_FIRST = ("FAILED", "HELD", "UNKNOWN", "MISFIT", "DELETED")
"""States that need a person, the most urgent first; all others follow, the newest first."""

HELP = "q quits   c clears the runs that are over   space shows the next page"


def ordered(rows: Sequence[Row], cleared: set[tuple[str, int]], *, all_ends: bool) -> list[Row]:
    """Return the rows to show: failed and held runs first, without those that are over and uninteresting or cleared.

    Parameters
    ----------
    rows : sequence of `dict`
        Rows of a report, the newest first.
    cleared : `set` [`tuple` [`str`, `int`]]
        Ids and attempts of runs that a person has cleared away.
    all_ends : `bool`
        Show also runs that ended well (those that a person named).
    """
    shown = [
        row
        for row in rows
        if row["state"] not in wire.TERMINAL_STATES
        or ((all_ends or row["state"] == "FAILED") and (row["id"], row.get("attempt", 1)) not in cleared)
    ]
    rank = {state: number for number, state in enumerate(_FIRST)}
    return sorted(shown, key=lambda row: rank.get(row["state"], len(rank)))


def screen(
    answer: Row,
    rows: Sequence[Row],
    away: str,
    size: tuple[int, int],
    *,
    page: int = 0,
    keys: bool = False,
    paint: Callable[[str, str], str] | None = None,
) -> list[str]:
    """Return the lines that fit a terminal of ``size`` (columns, lines): a page of runs, and what is not shown.

    Parameters
    ----------
    answer : `dict`
        A `~bpsd.messages.ReportResult`, for its ``time``, ``backends`` and ``next``.
    rows : sequence of `dict`
        The runs, in the order in which they are shown.
    away : `str`
        Why the daemon does not answer.
    size : `tuple` [`int`, `int`]
        Columns and lines of the terminal.
    page : `int`, optional
        Which page, counted from 0; after the last comes the first.
    keys : `bool`, optional
        Whether keys are heard.
    paint : callable, optional
        As of `bpsd.cli.render.table`.
    """
    width, height = size
    notes = [clip(line, width) for line in reports.backend_lines(answer["backends"], answer["time"])]
    notes += [clip(f"no daemon: {away}", width)] if away else []
    notes += [clip(HELP, width)] if keys else []
    if answer.get("next"):
        notes.insert(0, clip("older runs are not shown: `bpsctl report` has all", width))
    if not rows:
        notes.insert(0, "nothing runs, and nothing has failed lately")
    room = most = height - len(notes) - 4  # header, rule, the line that counts the rest, an empty one
    while True:
        shown, rest = _paged(rows, page, max(1, room))
        lines = reports.summary_lines(shown, answer["time"], answer["backends"], width=width, paint=paint)
        about_columns = len(lines) - len(shown) - 2
        if room + about_columns <= most or room <= 1:
            break
        room -= 1
    count = [clip(f"{plural(len(rest), 'more run')}: {_by_state(rest)}", width)] if rest else []
    return [*lines, "", *count, *notes][:height]


def _paged(rows: Sequence[Row], page: int, room: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """The rows of a page, and all others."""
    start = page % max(1, -(-len(rows) // room)) * room
    return rows[start : start + room], [*rows[:start], *rows[start + room :]]


def _by_state(rows: Sequence[Row]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    return ", ".join(f"{number} {state}" for state, number in counts.items())


class Keys:
    """The keys that a person presses, one by one, as long as the block lasts; none where there is no keyboard."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        if sys.stdin is not None and sys.stdin.isatty():
            import termios
            import tty

            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    @property
    def heard(self) -> bool:
        """Whether there is a keyboard."""
        return self._before is not None

    def pressed(self) -> str:
        """Return the keys pressed since the last call."""
        import os
        import select

        if self._before is None or not select.select([sys.stdin], [], [], 0.0)[0]:
            return ""
        return os.read(sys.stdin.fileno(), 64).decode("utf-8", "replace")
