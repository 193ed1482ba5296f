"""DAGMan's own errors, out of its output (``*.dagman.out``). Pure."""

from __future__ import annotations

__all__ = ["dagman_errors"]

import re

LINES_MAX = 3
"""Maximum number of error lines that are reported."""

_STARTED = re.compile(r"^\S+ \S+ \*\* (?:\S*/)?condor_(?:scheduniv_exec\S*|dagman)\b.* STARTING UP$", re.IGNORECASE)
_ERROR = re.compile(r"^\S+ \S+ (?P<text>(?:ERROR|Error|Warning|FATAL|ASSERT)\b.*)$")
_FATAL_WARNING = "ERROR: Warning is fatal error because of DAGMAN_USE_STRICT setting"
_IGNORED = (
    "ERROR: the following job(s) failed:",
    "ERROR: the following Node(s) failed:",
    "ERROR: submit attempt failed",
)


def dagman_errors(text: str) -> str:
    """Return the errors of the last DAGMan that wrote ``text``, as one line; empty if there are none.

    A warning counts if DAGMan says that it took it for an error.
    """
    found: dict[str, None] = {}
    warning = ""
    for line in text.splitlines():
        if _STARTED.match(line):
            found, warning = {}, ""
            continue
        match = _ERROR.match(line)
        if match is None:
            continue
        said = match["text"].strip()
        if said == _FATAL_WARNING:
            found[f"ERROR: {warning or said}"] = None
        elif said.startswith("Warning"):
            warning = said
        elif not said.startswith(_IGNORED):
            found[said] = None
    return "; ".join(list(found)[-LINES_MAX:])
