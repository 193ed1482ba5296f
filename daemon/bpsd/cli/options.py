"""Options that several verbs share, each defined once."""

from __future__ import annotations

__all__ = [
    "DEFAULT_LIMIT",
    "UsageError",
    "add_common",
    "add_filters",
    "add_json",
    "add_one_backend",
    "add_run",
    "add_runs",
    "add_wide",
    "command_states",
    "count",
    "days",
    "filters_of",
    "moment",
    "moved_behind",
    "nearest",
    "none_of_them",
    "run_name",
    "seconds",
    "states",
]

import os

from bpsd import wire
from bpsd.cli.arguments import BadValue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from bpsd.cli.arguments import Arguments, Values

DEFAULT_LIMIT = 1000
"""Rows that a list shows unless told otherwise."""


class UsageError(Exception):
    """A command line that makes no sense: what is wrong, and what was probably meant."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.exit_code = wire.EXIT_CODES["usage"]


def nearest(word: str, known: Iterable[str]) -> str:
    """The sentence "did you mean ...?", or nothing."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {found[0]}?" if found else ""


# -- what is given before or after any verb ---------------------------------------------------------------------------


def add_common(to: Arguments) -> None:
    """Add what every verb takes."""
    to.begin_group("common options")
    to.add("--socket", metavar="PATH", help="the daemon's socket (default: $BPSD_SOCKET, or its own)", completes="file")
    to.add("--timeout", metavar="TIME", type=seconds, help="wait at most this long for everything; then exit with 3")
    to.add("-v", "--verbose", action="store_true", help="say more: error codes, ids, figures")
    to.add("--no-color", action="store_true", help="no colours (also: NO_COLOR in the environment)")


_WITH_VALUE = ("--socket", "--timeout")


def moved_behind(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the options before the verb, and the verb with the rest."""
    at = 0
    while at < len(argv) and argv[at].startswith("-") and argv[at] != "--":
        at += 2 if argv[at] in _WITH_VALUE else 1
    return [*argv[:at]], [*argv[at:]]


# -- types ------------------------------------------------------------------------------------------------------------


def _words(text: str, known: Sequence[str], noun: str) -> list[str]:
    words = [word.strip().upper().replace("-", "_") for word in text.split(",") if word.strip()]
    for word in words:
        if word not in known:
            hint = nearest(word, known) or f"there are {', '.join(known)}"
            raise BadValue(f"{word} is no state of a {noun}; {hint}")
    return words


def states(text: str) -> list[str]:
    """States of runs and jobs, separated by commas."""
    return _words(text, tuple(wire.STATES), "run or job")


def command_states(text: str) -> list[str]:
    """States of commands, separated by commas."""
    return _words(text, wire.COMMAND_STATES, "command")


def seconds(text: str) -> float:
    """A time: ``90``, ``90s``, ``15m``, ``2h`` or ``1d``."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    try:
        value = float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e9:
        raise BadValue(f"{text!r} is no time; write seconds, or 15m, 2h, 1d")
    return value


_MOMENTS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d")


def moment(text: str) -> float:
    """A moment, in epoch seconds: so long ago (``90s``, ``2h``), or local time (``03:00``, ``2026-07-01 03:00``)."""
    import time

    try:
        return time.time() - seconds(text)
    except BadValue:
        pass
    for words in (text, time.strftime("%Y-%m-%d ") + text):  # an hour alone is one of today
        for form in _MOMENTS:
            try:
                return time.mktime(time.strptime(words, form))
            except (ValueError, OverflowError):
                continue
    raise BadValue(f"{text!r} is no moment; write 2h (ago), 03:00 or '2026-07-01 03:00'")


def days(text: str) -> float:
    """A number of days."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e6:
        raise BadValue(f"{text!r} is no number of days")
    return value


def count(text: str) -> int:
    """A number of things, 0 or more."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadValue(f"{text!r} is no number of things")
    return int(text)


def run_name(text: str) -> str:
    """A run, by any of its names; a folder here is made a full path, as the daemon is somewhere else."""
    if not text.strip():
        raise BadValue("the name of a run is empty")
    if text.startswith(("./", "../")) or text in (".", "..") or ("/" in text and os.path.isdir(text)):  # noqa: PTH112  # see bpsd.wire
        return os.path.abspath(text)  # noqa: PTH100  # pathlib has no normpath, and is slow to import
    return text


# -- groups of options ------------------------------------------------------------------------------------------------

_RUN_HELP = "a run: our id, the WMS id, the global id, the token or the submit directory"


def add_run(to: Arguments) -> None:
    """Add the one run that a verb is about."""
    to.add("run", metavar="RUN", type=run_name, help=_RUN_HELP, completes="run")


def add_runs(to: Arguments, *, least: int = 1) -> None:
    """Add the runs that a verb is about."""
    to.add("runs", metavar="RUN", type=run_name, nargs="+" if least else "*", help=_RUN_HELP, completes="run")


def add_wide(to: Arguments) -> None:
    """Add ``--wide``."""
    to.add("--wide", action="store_true", help="shorten and leave out nothing, however narrow the terminal is")


def add_json(to: Arguments) -> None:
    """Add ``--json``."""
    to.add("--json", action="store_true", help="print JSON (see docs/bpsctl.md)")


def add_one_backend(to: Arguments, help: str = "the backend, where a name alone is ambiguous") -> None:
    """Add the one backend that a verb is about."""
    to.add("-b", "--backend", metavar="NAME", help=help, completes="backend")


def add_filters(to: Arguments, *, limit: int = DEFAULT_LIMIT) -> None:
    """Add the conditions on runs."""
    to.begin_group("which runs", "All conditions must hold; several values of one are alternatives.")
    to.add("-b", "--backend", metavar="NAME", action="append", help="runs of this backend", completes="backend")
    to.add("-u", "--user", metavar="NAME", action="append", help="runs of this owner or operator")
    to.add(
        "-s",
        "--state",
        metavar="STATE",
        type=states,
        action="extend",
        help="runs in this state (A,B: either)",
    )
    to.add("--label", metavar="LABEL", help="runs with this label, or with jobs of this label")
    to.add("--hist", metavar="DAYS", type=days, help="with runs that ended in the last so many days")
    to.add("--pattern", metavar="GLOB", help="shell pattern over run, payload, campaign and project")
    to.add("--active", action="store_true", help="only what is not over")
    to.add("--mine", action="store_true", help="only my runs")
    to.add("--limit", metavar="N", type=count, default=limit, help=f"at most so many (default {limit}; 0: all)")


def none_of_them(args: Values) -> str:
    """What to say where no run is shown: an empty table looks like good news, also where a condition is mistyped."""
    if filters_of(args):
        return "bpsctl: no run fulfils the conditions"
    return "bpsctl: there are no runs; `bpsctl submit FILE` makes one, --hist DAYS shows what ended earlier"


def filters_of(args: Values) -> dict[str, Any]:
    """The conditions as parameters of ``list`` and ``report``."""
    names = ("backend", "user", "state", "label", "hist", "pattern", "active", "mine")
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None and value is not False and value != []}
