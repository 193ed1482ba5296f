"""What can be wrong with one job, seen alone: pure functions from values to sentences.

Each returns what is wrong, or nothing. The whole of a workflow is the matter of `bpsd.validation`.
"""

from __future__ import annotations

__all__ = [
    "ARGUMENTS_MAX_CHARS",
    "ENV_MAX_BYTES",
    "NAME_MAX_BYTES",
    "NEST_MAX",
    "TEXT_MAX_CHARS",
    "arguments_problem",
    "env_name_problem",
    "env_value_problem",
    "files_in",
    "is_nested_too_deep",
    "label_problem",
    "name_problem",
    "placeholder_problem",
    "quoting_problem",
    "scalar_problems",
    "scalar_warnings",
    "text_problem",
]

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from bpsd import wire
from bpsd.workflow import RESERVED_PREFIX, RESERVED_VARIABLES, Job, walltime_seconds

NAME_MAX_BYTES = 200
"""The longest name of a job, group or label: with a suffix it still is a file name (at most 255 bytes)."""

TEXT_MAX_CHARS = 4096
"""The longest text of any other field but the command lines."""

ARGUMENTS_MAX_CHARS = 1024 * 1024
"""The longest command line; Linux takes about 2 MB of arguments and environment together."""

ENV_MAX_BYTES = 128 * 1024
"""The longest ``NAME=VALUE`` of the environment, with the NUL at its end (MAX_ARG_STRLEN of Linux)."""

NEST_MAX = 32
"""How deep the values of ``tags``, ``attrs``, ``profile`` and ``cmdvals`` may be nested."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
"""What names look like in practice; these need no closer look."""
_QUOTED = re.compile(
    r"""(?: [^'"\\]++ | \\. | '[^']*+' | "(?: [^"\\]++ | \\. )*+" )*+""",
    re.VERBOSE | re.DOTALL,
)
_FILE = re.compile(r"<FILE:([^<>]*)>")
_ENV = re.compile(r"<ENV:([^<>]*)>")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

_COUNTS_FROM_ONE = ("request_memory", "request_memory_max", "request_cpus", "request_disk")
_EXIT_CODE_MAX = 255
_SHORT_TEXTS = (
    "executable",
    "compute_site",
    "compute_cloud",
    "accounting_group",
    "accounting_user",
    "mail_to",
    "when_to_mail",
    "priority",
    "category",
    "concurrency_limit",
    "queue",
    "working_directory",
)
_ONE_LINERS = (
    *((name, TEXT_MAX_CHARS) for name in _SHORT_TEXTS),
    ("pre_cmdline", ARGUMENTS_MAX_CHARS),
    ("post_cmdline", ARGUMENTS_MAX_CHARS),
)
"""Texts that stand on one line of a submit file, and how long they may be."""


def text_problem(text: str, limit: int = TEXT_MAX_CHARS) -> str:
    """Why a text cannot stand on a line of its own in a log, a table or a submit file."""
    if len(text) > limit:
        return f"is {len(text)} characters long; at most {limit} are allowed"
    if not text.isprintable() and (found := _CONTROL.search(text)):
        return f"contains the control character U+{ord(found[0]):04X}"
    return ""


def name_problem(name: str, *, slashes: bool = False) -> str:
    """Why a text cannot name anything; ``slashes`` allows them inside, as in the name of a run (``u/op/demo``)."""
    if len(name) <= NAME_MAX_BYTES and _PLAIN_NAME.fullmatch(name):
        return ""
    if not name:
        return "must not be empty"
    if len(name.encode("utf-8", "replace")) > NAME_MAX_BYTES:
        return f"is longer than {NAME_MAX_BYTES} bytes"
    if name != name.strip():
        return f"{name!r} begins or ends with a space"
    if "/" in name and (not slashes or name[0] == "/"):
        return f"{name!r} {'begins with' if slashes else 'contains'} a slash"
    if any(part in (".", "..") for part in name.split("/")):
        return f"{name!r} would name a folder ('.' or '..')"
    return text_problem(name)


def label_problem(label: str) -> str:
    """Why a text cannot be a label."""
    if ":" in label or ";" in label:
        return f"{label!r} contains ':' or ';', of which the run summary is made"
    return name_problem(label)


def env_name_problem(name: str) -> str:
    """Why a text cannot name a variable of the environment."""
    if not name:
        return "a variable needs a name"
    if "=" in name:
        return f"{name!r} contains '='"
    if name.startswith(RESERVED_PREFIX):
        return f"{name!r} begins with {RESERVED_PREFIX}, which is reserved for the scripts that run jobs"
    if name in RESERVED_VARIABLES:
        return f"{name!r} is set by bpsd for every job"
    return text_problem(name)


def env_value_problem(name: str, value: str) -> str:
    """Why a variable of the environment cannot have a value."""
    if "\0" in value:
        return "contains a NUL character"
    size = len(name.encode("utf-8", "surrogatepass")) + len(value.encode("utf-8", "surrogatepass")) + 2
    if size > ENV_MAX_BYTES:
        return f"has {size} bytes with its name; Linux takes at most {ENV_MAX_BYTES}; put it into a file"
    return ""


def quoting_problem(text: str) -> str:
    """Why a command line cannot be split as a shell would: what `shlex.split` refuses, at a tenth of its time."""
    found = _QUOTED.match(text)
    end = found.end() if found else 0
    if end == len(text):
        return ""
    if text[end] == "\\":
        return "ends in a backslash that quotes nothing"
    return f"the quote {text[end]} at character {end + 1} is not closed"


def files_in(arguments: str) -> list[str]:
    """The names of the files that ``<FILE:name>`` stands for."""
    return _FILE.findall(arguments)


def placeholder_problem(arguments: str, cmdvals: Mapping[str, Any]) -> str:
    """Why the arguments cannot be filled in with ``cmdvals``, by `str.format` as ctrl_bps's plugins do it.

    Widths and attributes are refused: ``{x:>1000000000}`` is 19 characters to write and a gigabyte to read.
    """
    try:
        parts = list(Formatter().parse(arguments))
    except ValueError as exc:
        return f"cannot be filled in with cmdvals: {exc} (a brace of its own is written twice)"
    size = len(arguments)
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if form or conversion or not name.isidentifier():
            return f"{{{name}}}: only a plain name in braces is filled in (a brace of its own is written twice)"
        if name not in cmdvals:
            return f"{{{name}}}: cmdvals has no {name!r}; it has {', '.join(sorted(cmdvals))}"
        size += len(str(cmdvals[name]))
        if size > ARGUMENTS_MAX_CHARS:
            return f"is longer than {ARGUMENTS_MAX_CHARS} characters once it is filled in with cmdvals"
    return ""


def arguments_problem(arguments: str) -> str:
    """Why the arguments of a job cannot be used."""
    if len(arguments) > ARGUMENTS_MAX_CHARS:
        return f"is {len(arguments)} characters long; at most {ARGUMENTS_MAX_CHARS} are allowed"
    if "<ENV:" in arguments:
        for name in _ENV.findall(arguments):
            if not _VARIABLE.fullmatch(name):
                return f"<ENV:{name}> does not name a variable"
    if "'" in arguments or '"' in arguments or "\\" in arguments:
        return quoting_problem(arguments)
    return ""


def is_nested_too_deep(value: Any) -> bool:
    """Whether a plain value is nested deeper than `NEST_MAX`."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(NEST_MAX):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return bool(level)


def scalar_problems(job: Job) -> list[tuple[str, str]]:
    """What is wrong with the numbers and short texts of a payload job, as (field, sentence)."""
    found: list[tuple[str, str]] = []
    for name in _COUNTS_FROM_ONE:
        value = getattr(job, name)
        if value is not None and value < 1:
            found.append((name, f"must be at least 1, but is {value}"))
    for name, limit in _ONE_LINERS:
        value = getattr(job, name)
        if isinstance(value, str):
            why = text_problem(value.strip(), limit) if value.strip() else "must not be empty; leave it out"
            if why:
                found.append((name, why))
    folder = job.working_directory
    if folder is not None and folder.strip() and not folder.startswith(("/", "<ENV:")):
        found.append(("working_directory", f"{folder!r} is not an absolute path"))
    return found + _memory_problems(job) + _retry_problems(job) + _walltime_problems(job)


def _memory_problems(job: Job) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    most, least, growth = job.request_memory_max, job.request_memory, job.memory_multiplier
    if most is not None and least is not None and 1 <= most < least:
        found.append(("request_memory_max", f"is {most} MB, less than request_memory ({least} MB)"))
    if growth is not None and growth < 1:
        found.append(("memory_multiplier", f"must be at least 1, but is {growth}"))
    return found


def _retry_problems(job: Job) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if job.number_of_retries is not None and job.number_of_retries < 0:
        found.append(("number_of_retries", f"must be at least 0, but is {job.number_of_retries}"))
    codes = job.retry_unless_exit
    judged = [("retry_unless_exit", code) for code in (codes if isinstance(codes, list) else [codes])]
    found += [
        (name, f"{code} is not an exit code (0 to {_EXIT_CODE_MAX}; a signal is 128 + N, also written as -N)")
        for name, code in [*judged, ("abort_on_value", job.abort_on_value)]
        if code is not None and not -wire.MAX_SIGNAL <= code <= _EXIT_CODE_MAX
    ]
    value = job.abort_return_value
    if value is not None and not 0 <= value <= _EXIT_CODE_MAX:
        found.append(("abort_return_value", f"{value} is not an exit code (0 to {_EXIT_CODE_MAX})"))
    return found


def _walltime_problems(job: Job) -> list[tuple[str, str]]:
    if job.request_walltime is None:
        return []
    try:
        walltime_seconds(job.request_walltime)
    except ValueError as exc:
        return [("request_walltime", str(exc))]
    return []


def scalar_warnings(job: Job) -> list[str]:
    """What in a job has no effect, though nothing is wrong with it."""
    found = []
    if job.request_memory is None:
        found += [
            f"{name} has no effect without request_memory"
            for name in ("request_memory_max", "memory_multiplier")
            if getattr(job, name) is not None
        ]
    if job.abort_return_value is not None and job.abort_on_value is None:
        found.append("abort_return_value has no effect without abort_on_value")
    return found
