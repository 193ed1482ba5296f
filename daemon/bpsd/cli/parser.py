"""All the manners of a command line, by `argparse`: help, mistakes, and what shell completion is made of."""

from __future__ import annotations

__all__ = ["PREAMBLES", "Parser", "full_parser", "parse"]

import argparse
import os

from bpsd.cli import verbs
from bpsd.cli.arguments import Arguments, BadValue, Values
from bpsd.cli.options import UsageError, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from bpsd.cli.arguments import Argument

_RUNS = "bpsctl list -q --limit 200"
_BACKENDS = "bpsctl backends -q"
_COMPLETE = {
    "file": {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"},
    "run": {"bash": "_bpsctl_runs", "zsh": "_bpsctl_runs", "tcsh": f"`{_RUNS}`"},
    "backend": {"bash": "_bpsctl_backends", "zsh": "_bpsctl_backends", "tcsh": f"`{_BACKENDS}`"},
}
"""What of a script offers values, by shell; shtab itself loads for ``bpsctl completion`` alone."""

PREAMBLES = {
    "bash": f"""_bpsctl_runs() {{ compgen -W "$({_RUNS} 2>/dev/null)" -- "$1"; }}
_bpsctl_backends() {{ compgen -W "$({_BACKENDS} 2>/dev/null)" -- "$1"; }}
""",
    "zsh": f"""_bpsctl_runs() {{ compadd -- $({_RUNS} 2>/dev/null) }}
_bpsctl_backends() {{ compadd -- $({_BACKENDS} 2>/dev/null) }}
""",
}
"""The functions that `_COMPLETE` names: they ask the daemon, and offer nothing where none answers."""


class _Formatter(argparse.HelpFormatter):
    """Of the terminal's width, and with tables below the options as they were written."""

    def __init__(self, prog: str) -> None:
        # Left alone, argparse imports shutil (and with it three compression libraries) to learn the width.
        try:
            width = int(os.environ.get("COLUMNS", "")) or 100
        except ValueError:
            width = 100
        super().__init__(prog, max_help_position=30, width=min(width, 120) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """A parser of our arguments that raises `UsageError` with what was probably meant."""

    def __init__(self, verb: str, **keywords: Any) -> None:
        summary = verbs.summary_of(verb) if verb else "speak with bpsd"
        self.verb = verb
        keywords.setdefault("prog", f"bpsctl {verb}".rstrip())
        super().__init__(
            description=f"{summary[:1].upper()}{summary[1:]}.",
            formatter_class=_Formatter,
            allow_abbrev=False,  # an abbreviation that works today would break when an option is added
            **keywords,
        )

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` instead of ending the process."""
        self.refuse(message, f"`{self.prog} --help` lists what there is")

    def refuse_rest(self, words: Sequence[str]) -> NoReturn:
        """Raise `UsageError` for words that no argument takes."""
        word = words[0]
        help_ = f"`{self.prog} --help` lists what there is"
        if word.startswith("-"):
            advice = nearest(word.partition("=")[0], self._option_string_actions) or help_
            self.refuse(f"{word}: no such option", advice)
        self.refuse(f"{word or repr(word)}: one word too many", help_)

    def refuse(self, message: str, advice: str) -> NoReturn:
        """Raise `UsageError` in the name of the verb."""
        raise UsageError(f"{self.verb}: {message}" if self.verb else message, advice)

    def take(self, arguments: Arguments) -> None:
        """Define the arguments of a verb."""
        for title, description, members in arguments.groups:
            group = self.add_argument_group(title, description or None) if title else self
            for argument in members:
                action = group.add_argument(*argument.names, **_keywords(argument))
                if argument.completes:
                    action.complete = _COMPLETE[argument.completes]  # type: ignore[attr-defined]  # shtab looks for it


def _keywords(argument: Argument) -> dict[str, Any]:
    keywords: dict[str, Any] = {"help": argument.help.replace("%", "%%"), "action": argument.action}
    if argument.action == "store_true":
        return keywords
    keywords["default"] = [*argument.default] if isinstance(argument.default, list) else argument.default
    keywords["type"] = _converter(argument)
    if argument.metavar:
        keywords["metavar"] = argument.metavar
    if argument.nargs:
        keywords["nargs"] = argument.nargs
    if argument.choices:
        keywords["choices"] = argument.choices
    return keywords


def _converter(argument: Argument) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return argument.type(text) if argument.type is not None else text
        except BadValue as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def parse(verb: str, arguments: Arguments, words: Sequence[str], epilog: str | None) -> Values | None:
    """Parse a command line in full; `None` if it asked for help, which is then printed.

    Raises
    ------
    UsageError
        It makes no sense.
    """
    parser = Parser(verb, epilog=epilog)
    parser.take(arguments)
    try:
        values, rest = parser.parse_known_intermixed_args([*words])
    except SystemExit:
        return None
    if rest:
        parser.refuse_rest(rest)
    return Values(vars(values))


def full_parser(arguments_of: Callable[[str], Arguments]) -> argparse.ArgumentParser:
    """One parser of all verbs, for shell completion."""
    root = Parser("")
    root.prog = "bpsctl"
    below: dict[str, Any] = {"": root.add_subparsers(dest="verb", metavar="VERB")}
    for verb in verbs.names():
        parent, _, name = verb.rpartition(" ")
        if parent not in below:
            below[parent] = below[""].choices[parent].add_subparsers(metavar="VERB")
        parser = below[parent].add_parser(name, help=verbs.summary_of(verb), verb=verb)
        has_children = any(other.startswith(f"{verb} ") for other in verbs.names())
        arguments = arguments_of(verb)
        if has_children:  # "commands ID" and "commands resolve": for completion the second word is the verb below
            for _, _, members in arguments.groups:
                members[:] = [argument for argument in members if not argument.positional]
        parser.take(arguments)
    return root
