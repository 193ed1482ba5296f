"""HTCondor's four ways of quoting, one inside the other: arguments, environment, submit macros, DAG variables. Pure."""

from __future__ import annotations

__all__ = ["arguments", "dag_value", "environment", "plain"]

from collections.abc import Mapping, Sequence


def _word(text: str) -> str:
    """One argument in the new syntax: single quotes around what has spaces or quotes; double quotes doubled."""
    doubled = text.replace('"', '""')
    if text and not any(c in " \t'" for c in text):
        return doubled
    quoted = doubled.replace("'", "''")
    return f"'{quoted}'"


def arguments(words: Sequence[str]) -> str:
    """A list of arguments as the value of ``arguments``."""
    return '"' + " ".join(map(_word, words)) + '"'


def environment(variables: Mapping[str, str]) -> str:
    """Variables as the value of ``environment``."""
    return '"' + " ".join(f"{name}={_word(value)}" for name, value in variables.items()) + '"'


def plain(text: str) -> str:
    """Text of a document in which ``$(...)`` means nothing: no macro is expanded in it.

    Raises
    ------
    ValueError
        If HTCondor has no way to say it: line ends, and ``$$(`` and ``$$[``, which the schedd replaces.
    """
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError("it has a line end, which HTCondor's submit files cannot carry")
    if "$$(" in text or "$$[" in text:
        raise ValueError("it has $$( or $$[, which HTCondor replaces and cannot be told not to")
    return text.replace("$(", "$(DOLLAR)(").replace("$ENV(", "$(DOLLAR)ENV(").replace("$INT(", "$(DOLLAR)INT(")


def dag_value(text: str) -> str:
    """A value of ``VARS`` in a DAG file."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
