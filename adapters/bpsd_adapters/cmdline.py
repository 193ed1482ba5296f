"""The command line of a job, as every adapter reads it: filled in with ``cmdvals``, then split, with no shell."""

from __future__ import annotations

__all__ = ["CommandError", "split_arguments", "words_of"]

import re
import shlex

from bpsd.workflow import Job

_SIMPLE = re.compile(r"[\t\n\r !#-&(-\[\]-~]*")
"""Printable ASCII and white space without quotes and backslash: `str.split` does what `shlex.split` does."""


class CommandError(ValueError):
    """The job cannot be executed; ``field`` is the key of the document that is to blame."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def split_arguments(text: str) -> list[str]:
    """The arguments of a command line, by the shell's rules of quoting and no others.

    Raises
    ------
    CommandError
        If a quotation is not closed.
    """
    if _SIMPLE.fullmatch(text):
        return text.split()
    try:
        return shlex.split(text)
    except ValueError as exc:
        raise CommandError("arguments", f"{exc}".lower()) from exc


def words_of(job: Job) -> list[str]:
    """The arguments of a job: filled in as ctrl_bps's plugins do, then split; ``<FILE:...>`` and the like stay.

    Raises
    ------
    CommandError
        If they cannot be filled in, or a quotation is not closed.
    """
    text = job.arguments
    if job.cmdvals:
        try:
            text = text.format(**job.cmdvals)
        except (KeyError, IndexError, ValueError, AttributeError) as exc:
            raise CommandError("arguments", f"cannot be filled in with cmdvals: {exc!r}") from exc
    return split_arguments(text)
