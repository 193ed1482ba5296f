"""Running a program through whatever login shell an account has, and whatever its startup files do. Pure.

The login shell (bash, dash, ksh, zsh, csh, tcsh, fish) reads one short line of plain characters without line ends. It
replaces itself with ``/bin/sh``, which reads the script from standard input: nothing of the script is quoted for the
login shell, and aliases, functions and the working folder that startup files set mean nothing to it. The script is run
only if it came whole: startup files may read standard input, and connections break. Its first act is to print a mark,
so that what startup files printed is told from what the program prints.
"""

from __future__ import annotations

__all__ = ["BAD_SHELL", "LoginScript", "after_mark", "login_script"]

import shlex
import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple

BAD_SHELL = 125
"""Exit code of the line: the script did not come whole."""

_BEGIN, _END = "#bpsd begin", "#bpsd end"


class LoginScript(NamedTuple):
    """What to ask of the login shell, and what to send it."""

    line: str
    """The command line."""

    script: bytes
    """The beginning of standard input; the program's own input follows."""

    mark: bytes
    """The line after which the program's own output begins, on stdout and on stderr."""


def login_script(
    argv: Sequence[str], *, environment: Mapping[str, str], path: Sequence[str], cwd: str | None, deadline_s: int | None
) -> LoginScript:
    """Return how to run a program.

    Parameters
    ----------
    argv : `~collections.abc.Sequence` [`str`]
        The program and its arguments.
    environment : `~collections.abc.Mapping`
        Variables to set.
    path : `~collections.abc.Sequence` [`str`]
        Folders in which programs are looked for before the ``PATH`` there.
    cwd : `str` or `None`
        The working folder; the home if `None`, whatever startup files did.
    deadline_s : `int` or `None`
        After how many seconds the host ends the program.
    """
    mark = f"bpsd-{uuid.uuid4().hex}"
    words = ["env"] if deadline_s is None else ["timeout", "-k", "2", f"{deadline_s}", "env"]
    words += [f"{name}={value}" for name, value in sorted(environment.items())]
    lines = [_BEGIN, 'cd "${HOME:-/}" 2>/dev/null || cd /', f"printf '%s\\n' {mark}", f"printf '%s\\n' {mark} >&2"]
    if cwd is not None:
        lines.append(f"cd {shlex.quote(cwd)} || exit 1")
    if path:
        folders = ":".join(shlex.quote(folder) for folder in path)
        lines.append(f"PATH={folders}:$PATH; export PATH")
    lines += ["exec " + " ".join(shlex.quote(word) for word in (*words, *argv)), _END]
    script = "\n".join(lines).encode("utf-8", "surrogateescape")
    # Nothing that any shell changes inside of single quotes: no line end, backslash, exclamation mark or single quote.
    loader = (
        f"s=$(dd bs={len(script)} count=1 iflag=fullblock 2>/dev/null); "
        f'case $s in "{_BEGIN}"*"{_END}") eval "$s" ;; esac; '
        f'echo "bpsd: the startup files of this account read the input of commands" >&2; exit {BAD_SHELL}'
    )
    return LoginScript(f"exec /bin/sh -c '{loader}'", script, f"{mark}\n".encode())


def after_mark(data: bytes, mark: bytes) -> bytes | None:
    """Return what follows the mark; `None` if it was not printed."""
    _, found, rest = data.partition(mark)
    return rest if found else None
