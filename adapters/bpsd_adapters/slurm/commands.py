"""A job as the entry of a chunk's file: shell that the wrapper on the node reads. Pure.

What no shell may read is quoted; ``<ENV:NAME>`` becomes ``${NAME?}``, so that the node's own variables count, and a
missing one is an error of the job.
"""

from __future__ import annotations

__all__ = ["RunFacts", "entry", "program_of"]

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bpsd.workflow import Executable, File, Job
from bpsd_adapters.cmdline import CommandError, words_of
from bpsd_adapters.files import safe_name

_FILE = re.compile(r"<FILE:([^<>]+)>")
_ENV = re.compile(r"<ENV:([A-Za-z_][A-Za-z0-9_]*)>")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_OF_SHELLS = re.compile(
    r"_|BASH.*|COMP_.*|DIRSTACK|E?UID|EPOCH(SECONDS|REALTIME)|FUNCNAME|GROUPS|HISTCMD|IFS|LINENO|OLDPWD|OPT(IND|ARG|ERR)|"
    r"PPID|PS[0-4]|PWD|S?RANDOM|SECONDS|SHELLOPTS",
    re.ASCII,
)
"""Variables that a shell cannot set, or that mean something to it: the job gets them from ``env``, past the shell."""


class RunFacts(NamedTuple):
    """What the jobs of a run have in common. ``folder`` is the run's on the submit host."""

    token: str
    name: str
    folder: str
    attempt: int
    executables: Mapping[str, Executable]
    files: Mapping[str, File]
    environment: Mapping[str, str]
    umask: str = ""
    """The umask of the jobs, as octal digits; empty: that of the account."""


def entry(run: RunFacts, job: Job, node: int, attempt: int, index: int, memory_mb: int | None) -> str:
    """The lines of a job in a chunk's file: ``@INDEX`` and then shell, each line behind a blank.

    Raises
    ------
    `~bpsd_adapters.cmdline.CommandError`
        If it cannot be executed as it is.
    """
    text = "\n".join(_lines(run, job, node, attempt, memory_mb))
    return f"@{index}\n" + "".join(f" {line}\n" for line in text.split("\n"))


def program_of(run: RunFacts, job: Job) -> str:
    """The program of a job, as a path or a name; ``<ENV:...>`` and the like stay."""
    if not job.executable:
        raise CommandError("executable", "the job has none")
    declared = run.executables.get(job.executable)
    name = job.executable if declared is None else declared.src_uri or declared.name
    return name.removeprefix("file://")


def _lines(run: RunFacts, job: Job, node: int, attempt: int, memory_mb: int | None) -> Iterator[str]:
    folder = job.working_directory or f"{run.folder}/work"
    if not folder.startswith("/"):
        raise CommandError("working_directory", f"{folder!r} is not an absolute path")
    yield f"_bpsd_node={node} _bpsd_attempt={attempt} _bpsd_umask={run.umask}"
    yield f"_bpsd_base={shlex.quote(f'{safe_name(job.name)}.{attempt}')}"
    yield f"_bpsd_folder={shlex.quote(folder)}"
    yield f"_bpsd_pre={_shell_line(run, job.pre_cmdline, 'pre_cmdline')}"
    yield f"_bpsd_post={_shell_line(run, job.post_cmdline, 'post_cmdline')}"
    marks = {
        "BPSD_TOKEN": run.token,
        "BPSD_RUN": run.name,
        "BPSD_RUN_FOLDER": run.folder,
        "BPSD_RUN_ATTEMPT": str(run.attempt),
        "BPSD_JOB": job.name,
        "BPSD_LABEL": job.label,
        "BPSD_ATTEMPT": str(attempt),
        "BPSD_CPUS": str(job.request_cpus or 1),
        "BPSD_MEMORY_MB": str(memory_mb or 0),
    }
    variables = {**run.environment, **job.environment}
    yield "_bpsd_env() {"
    for name, value in marks.items():
        yield f"export {name}={shlex.quote(value)}"
    for values in (run.environment, job.environment):
        for name, value in values.items():
            if not _NAME.fullmatch(name):
                raise CommandError("environment", f"{name!r} is not a name of a variable")
            if not _OF_SHELLS.fullmatch(name):
                yield f"export {name}={_expanded(value)}"
    yield "}"
    past_shell = [f"{name}={_expanded(value)}" for name, value in variables.items() if _OF_SHELLS.fullmatch(name)]
    before = " ".join(["exec", *(["/usr/bin/env", *past_shell] if past_shell else [])])
    yield f'_bpsd_step() {{ {before} "$@"; }}'
    yield "_bpsd_job() {"
    words = [program_of(run, job), *words_of(job)]
    yield f"{before} " + " ".join(_expanded(_with_files(run, word, "arguments")) for word in words)
    yield "}"


def _with_files(run: RunFacts, text: str, field: str) -> str:
    return _FILE.sub(lambda found: _file(run, found[1], field), text) if "<" in text else text


def _file(run: RunFacts, name: str, field: str) -> str:
    file = run.files.get(name)
    if file is None:
        raise CommandError(field, f"<FILE:{name}> names no file of the workflow")
    return (file.src_uri or name).removeprefix("file://")


def _expanded(text: str) -> str:
    """A word for the shell: literal, but for variables of the node."""
    parts = _ENV.split(text)  # literal, name, literal, name, ..., literal
    quoted = [
        f'"${{{part}?<ENV:{part}> is not set where the job runs}}"' if number % 2 else shlex.quote(part) if part else ""
        for number, part in enumerate(parts)
    ]
    return "".join(quoted) or "''"


def _shell_line(run: RunFacts, line: str | None, field: str) -> str:
    if line is None:
        return ""
    line = _FILE.sub(lambda found: shlex.quote(_file(run, found[1], field)), line)
    return shlex.quote(_ENV.sub(lambda found: f"${{{found[1]}}}", line))
