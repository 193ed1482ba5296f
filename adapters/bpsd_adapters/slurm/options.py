"""What a job asks for, as options of ``sbatch``. Pure."""

from __future__ import annotations

__all__ = ["Defaults", "MemoryOption", "OptionError", "job_options", "memory_for", "options_of"]

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from bpsd.workflow import Job, walltime_seconds

OURS = frozenset(
    {
        "array",
        "chdir",
        "clusters",
        "comment",
        "dependency",
        "error",
        "export",
        "export-file",
        "help",
        "hold",
        "input",
        "job-name",
        "kill-on-invalid-dep",
        "output",
        "parsable",
        "quiet",
        "test-only",
        "usage",
        "version",
        "wait",
        "wrap",
    }
)
"""Options that bpsd itself needs, that do not submit, or that take a job where bpsd does not look for it."""

_SET_BY_BPSD = "bpsd sets it itself"
_REFUSED = {
    "clusters": "the backend is one cluster; make a backend for each",
    **dict.fromkeys(("help", "test-only", "usage", "version"), "with it sbatch submits nothing"),
}
"""Why an option is refused, if not because bpsd sets it."""

_UNSET = "\0unset"
"""What an option is set to by null (or false): nobody asks for it, whoever did before."""

_MAIL = {"always": "ALL", "complete": "END", "error": "FAIL", "never": "NONE"}
_OPTION = re.compile(r"[a-z][a-z0-9-]+", re.ASCII)


MemoryOption: TypeAlias = Literal["per_node", "per_cpu", "none"]
_MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
"""Options of which sbatch takes one: the last that is given displaces the others."""


class OptionError(ValueError):
    """A job asks for what cannot be asked for; ``field`` is to blame."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Defaults(NamedTuple):
    """What a backend's settings say for every job."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    options: Mapping[str, Any] = {}
    memory: MemoryOption = "per_node"
    """How memory is asked for: ``--mem``, ``--mem-per-cpu``, or not at all."""


def memory_for(job: Job, retries: int) -> int | None:
    """The memory in MB that a job asks for after so many retries: ``memory_multiplier`` lets it grow to its limit."""
    if job.request_memory is None or not retries or (job.memory_multiplier or 1.0) <= 1.0:
        return job.request_memory
    grown = math.ceil(job.request_memory * (job.memory_multiplier or 1.0) ** retries)
    return grown if job.request_memory_max is None else max(min(grown, job.request_memory_max), job.request_memory)


def options_of(job: Job, defaults: Defaults, retries: int = 0) -> tuple[str, ...]:
    """The options of ``sbatch`` for a job; jobs with the same ones may share an array.

    Raises
    ------
    OptionError
        If a field or an option cannot be honoured.
    """
    asked = (
        ("partition", defaults.partition),
        ("account", defaults.account),
        ("qos", defaults.qos),
        *_options("options", defaults.options),
        *_fields(job, retries, defaults.memory),
        *_options("profile", job.profile),
    )
    chosen: dict[str, str] = {}
    for name, value in asked:  # the last word counts
        if name in _MEMORY and value is not None:
            for other in _MEMORY:
                chosen.pop(other, None)
        if value is _UNSET:
            chosen.pop(name, None)
        elif value is not None:
            chosen[name] = value
    return tuple(f"--{name}={value}" if value else f"--{name}" for name, value in sorted(chosen.items()))


def _fields(job: Job, retries: int, kind: MemoryOption) -> Iterator[tuple[str, str | None]]:
    memory = memory_for(job, retries)
    if memory is not None and kind == "per_node":
        yield "mem", f"{memory}M"
    elif memory is not None and kind == "per_cpu":
        yield "mem-per-cpu", f"{math.ceil(memory / max(job.request_cpus or 1, 1))}M"
    yield "cpus-per-task", None if job.request_cpus is None else str(job.request_cpus)
    yield "tmp", None if job.request_disk is None else f"{job.request_disk}M"
    yield "partition", job.queue
    yield "account", job.accounting_group
    yield "licenses", job.concurrency_limit
    yield "mail-user", job.mail_to
    if job.request_walltime is not None:
        try:
            yield "time", str(math.ceil(walltime_seconds(job.request_walltime) / 60))
        except ValueError as exc:
            raise OptionError("request_walltime", str(exc)) from exc
    if job.when_to_mail is not None:
        mail = _MAIL.get(job.when_to_mail.lower())
        if mail is None:
            raise OptionError("when_to_mail", f"{job.when_to_mail!r} is none of {', '.join(_MAIL)}")
        yield "mail-type", mail
    if job.preemptible:
        yield "requeue", ""


def _options(field: str, given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in given.items():
        name = key.removeprefix("--").replace("_", "-")
        if not _OPTION.fullmatch(name):
            raise OptionError(field, f"{key!r} is no long option of sbatch")
        if name in OURS:
            raise OptionError(field, f"sbatch --{name} is not for jobs of bpsd: {_REFUSED.get(name, _SET_BY_BPSD)}")
        if value is True:
            yield name, ""
        else:
            yield name, _UNSET if value is None or value is False else str(value)


def job_options(folder: str, name: str, label: str, log: str) -> list[str]:
    """The options of ``sbatch`` that every job of a run has: ``log`` names the file for what Slurm says about it."""
    return [
        f"--job-name={name}",
        f"--chdir={folder}/work",
        f"--output={folder}/slurm/{log}.log",
        "--open-mode=append",
        f"--comment={label}",
    ]
