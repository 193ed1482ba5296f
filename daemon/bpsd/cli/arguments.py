"""The options of a verb, written down once and read by two parsers.

`Arguments.quick` takes the command lines of every day and gives up (`None`) at anything else: help, a mistake, an
unusual spelling. Then `bpsd.cli.parser` makes an `argparse` parser of the same definitions, which knows all the
manners. argparse alone costs a third of what ``python3 -c pass`` does, and ``bpsctl status`` stands in people's loops.
"""

from __future__ import annotations

__all__ = ["Argument", "Arguments", "BadValue", "Values"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


class BadValue(ValueError):
    """What the ``type`` of an argument raises: a sentence for people."""


class Values:
    """The values of a command line, as attributes."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the verb has no argument {name!r}")

    def __repr__(self) -> str:
        return f"<Values {self.__dict__}>"


class Argument:
    """One option or positional argument; the keywords are those of `argparse`'s ``add_argument``, so far as used.

    ``completes`` says what a shell may offer for the value: names of files (``file``), runs (``run``) or backends
    (``backend``).
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        help: str,
        metavar: str | None = None,
        action: str = "store",
        nargs: str | None = None,
        type: Callable[[str], Any] | None = None,
        choices: Sequence[str] | None = None,
        default: Any = None,
        completes: str = "",
    ) -> None:
        self.names = tuple(names)
        self.help, self.metavar, self.action, self.nargs = help, metavar, action, nargs
        self.type, self.choices, self.completes = type, choices, completes
        self.positional = not names[0].startswith("-")
        longest = max(names, key=len)
        self.dest = longest.lstrip("-").replace("-", "_")
        if default is None:
            default = False if action == "store_true" else [] if action in ("append", "extend") else None
        self.default = default

    def __repr__(self) -> str:
        return f"<Argument {'/'.join(self.names)}>"

    def convert(self, text: str) -> Any:
        """Make a value of a text; `ValueError` if it cannot be one."""
        value = self.type(text) if self.type is not None else text
        if self.choices is not None and value not in self.choices:
            raise BadValue(f"{text!r} is none of {', '.join(self.choices)}")
        return value


class Arguments:
    """All arguments of one verb, in groups, in the order of the help."""

    def __init__(self) -> None:
        self.groups: list[tuple[str, str, list[Argument]]] = [("", "", [])]

    def add(self, *names: str, **how: Any) -> None:
        """Define an argument in the group that was begun last."""
        self.groups[-1][2].append(Argument(names, **how))

    def begin_group(self, title: str, description: str = "") -> None:
        """Let what is added from now on stand under a title in the help."""
        self.groups.append((title, description, []))

    def all(self) -> list[Argument]:
        """Every argument."""
        return [argument for _, _, members in self.groups for argument in members]

    def quick(self, words: Sequence[str]) -> Values | None:
        """Parse a plain command line; `None` if it is not plain (not: if it is wrong)."""
        known = {name: argument for argument in self.all() for name in argument.names}
        values = {a.dest: [] if isinstance(a.default, list) else a.default for a in known.values()}
        places: list[str] = []
        rest = iter(words)
        try:
            for word in rest:
                if not word.startswith("-"):
                    places.append(word)
                    continue
                name, equals, text = word.partition("=")
                argument = known[name]
                if argument.action == "store_true":
                    if equals:
                        return None
                    values[argument.dest] = True
                    continue
                if not equals:
                    text = next(rest)
                    if text.startswith("-"):
                        return None
                elif not name.startswith("--"):
                    return None
                _store(values, argument, argument.convert(text))
            return Values(values) if self._place(values, places) else None
        except (KeyError, StopIteration, ValueError):
            return None

    def _place(self, values: dict[str, Any], places: list[str]) -> bool:
        """Give the positional arguments their words; `False` if there are too few or too many."""
        for argument in self.all():
            if not argument.positional:
                continue
            if argument.nargs in ("*", "+"):
                if argument.nargs == "+" and not places:
                    return False
                values[argument.dest] = [argument.convert(place) for place in places]
                places = []
            elif places:
                values[argument.dest] = argument.convert(places[0])
                places = places[1:]
            elif argument.nargs != "?":
                return False
        return not places


def _store(values: dict[str, Any], argument: Argument, value: Any) -> None:
    if argument.action == "append":
        values[argument.dest].append(value)
    elif argument.action == "extend":
        values[argument.dest].extend(value)
    else:
        values[argument.dest] = value
