"""A job of the document as something to execute: program, arguments, environment, folder.

In ``executable``, ``arguments`` and ``environment`` ``<ENV:NAME>`` stands for an environment variable of the run, in
``arguments`` also ``<FILE:name>`` for the path of a file of the workflow; where ``cmdvals`` are given, ``arguments``
is first filled in with `str.format` (as ctrl_bps's plugins do). Arguments are split before values are put in, so a
value with spaces stays one argument. A pre- or post-command is read by ``sh``: there a file's path is quoted and
``<ENV:NAME>`` becomes ``${NAME}``. Nothing here touches anything but to look programs up.
"""

from __future__ import annotations

__all__ = ["Command", "Commander", "job_variables", "run_variables"]

import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from bpsd.workflow import Executable, File, Job
from bpsd_adapters.cmdline import CommandError, words_of

_FILE = re.compile(r"<FILE:([^<>]+)>")
_ENV = re.compile(r"<ENV:([A-Za-z_][A-Za-z0-9_]*)>")
_PRIVATE = frozenset(
    {
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "MAINPID",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    }
)
"""What systemd tells a service about itself (systemd.exec(5)); a job is not that service."""

SHELL = "/bin/sh"


class Command(NamedTuple):
    """What to execute."""

    program: str
    argv: list[str]
    environment: dict[str, str]
    folder: str
    before: list[str] | None
    after: list[str] | None


class Commander:
    """What the jobs of one run have in common.

    Parameters
    ----------
    executables : `~collections.abc.Mapping` [`str`, `~bpsd.workflow.Executable`]
        Programs by their names in the document.
    files : `~collections.abc.Mapping` [`str`, `~bpsd.workflow.File`]
        Files by their names in the document.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        The run's own variables.
    base : `~collections.abc.Mapping` [`str`, `str`]
        The environment of the process that drives.
    folder : `str`
        Where jobs start unless they say otherwise.
    marks : `~collections.abc.Mapping` [`str`, `str`]
        Variables by which jobs of this run are known (`run_variables`).

    Raises
    ------
    CommandError
        If the run's own variables name others that are not there.
    """

    def __init__(
        self,
        executables: Mapping[str, Executable],
        files: Mapping[str, File],
        environment: Mapping[str, str],
        base: Mapping[str, str],
        folder: str,
        marks: Mapping[str, str],
    ) -> None:
        self._executables = executables
        self._files = files
        self._folder = folder
        self._found: dict[tuple[str, str, str], str | None] = {}
        kept = {k: v for k, v in base.items() if k not in _PRIVATE} | dict(marks)
        self._environment = self._extended(kept, environment)

    def command(self, job: Job, own: Mapping[str, str]) -> Command:
        """What to execute for a job.

        Parameters
        ----------
        job : `~bpsd.workflow.Job`
            The job.
        own : `~collections.abc.Mapping` [`str`, `str`]
            Variables of this attempt of it (`job_variables`).

        Raises
        ------
        CommandError
            If it cannot be executed as it is.
        """
        folder = self._working_folder(job)
        environment = {**self._environment, **own, "PWD": folder}
        if job.environment:
            environment = self._extended(environment, job.environment)
        program = self._program(job, environment, folder)
        argv = [program, *self.arguments(job, environment)]
        before, after = (
            None if line is None else [SHELL, "-c", self._shell_line(line, field)]
            for line, field in ((job.pre_cmdline, "pre_cmdline"), (job.post_cmdline, "post_cmdline"))
        )
        return Command(program, argv, environment, folder, before, after)

    def arguments(self, job: Job, environment: Mapping[str, str]) -> list[str]:
        """The arguments of a job, split and filled in."""
        words = words_of(job)
        if not any("<" in word for word in words):
            return words
        return [self._filled(word, "arguments", environment) for word in words]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _extended(self, base: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
        environment = dict(base)
        for name, value in more.items():
            environment[name] = _put_in(_ENV, value, _looked_up("environment", base)) if "<" in value else value
        return environment

    def _filled(self, text: str, field: str, environment: Mapping[str, str]) -> str:
        text = _put_in(_FILE, text, lambda name: self._file(name, field))
        return _put_in(_ENV, text, _looked_up(field, environment))

    def _shell_line(self, line: str, field: str) -> str:
        line = _put_in(_FILE, line, lambda name: shlex.quote(self._file(name, field)))
        return _put_in(_ENV, line, lambda name: f"${{{name}}}")

    def _file(self, name: str, field: str) -> str:
        file = self._files.get(name)
        if file is None:
            raise CommandError(field, f"<FILE:{name}> names no file of the workflow")
        return (file.src_uri or name).removeprefix("file://")

    def _working_folder(self, job: Job) -> str:
        if job.working_directory is None:
            return self._folder
        if not job.working_directory.startswith("/"):
            raise CommandError("working_directory", f"{job.working_directory!r} is not an absolute path")
        return job.working_directory

    def _program(self, job: Job, environment: Mapping[str, str], folder: str) -> str:
        if not job.executable:
            raise CommandError("executable", "the job has none")
        declared = self._executables.get(job.executable)
        name = job.executable if declared is None else declared.src_uri or declared.name
        if "<" in name:
            name = self._filled(name, "executable", environment)
        key = (name.removeprefix("file://"), environment.get("PATH", os.defpath), folder)
        if key not in self._found:
            self._found[key] = _find_program(*key)
        found = self._found[key]
        if found is None:
            if "/" in key[0] and Path(folder, key[0]).exists():
                raise CommandError("executable", f"permission denied: {Path(folder, key[0])} is not an executable file")
            where = f"in {folder}" if "/" in key[0] else f"in PATH ({key[1]})"
            raise CommandError(
                "executable", f"there is no program {key[0]} {'' if key[0][:1] == '/' else where}".rstrip()
            )
        return found


def run_variables(token: str, name: str, folder: str, attempt: int) -> dict[str, str]:
    """What every job of a run finds in its environment."""
    return {"BPSD_TOKEN": token, "BPSD_RUN": name, "BPSD_RUN_FOLDER": folder, "BPSD_RUN_ATTEMPT": str(attempt)}


def job_variables(job: Job, attempt: int, cores: int, memory_mb: int) -> dict[str, str]:
    """What an attempt of a job finds in its environment beside that."""
    return {
        "BPSD_JOB": job.name,
        "BPSD_LABEL": job.label,
        "BPSD_ATTEMPT": str(attempt),
        "BPSD_CPUS": str(cores),
        "BPSD_MEMORY_MB": str(memory_mb),
    }


def _put_in(pattern: re.Pattern[str], text: str, value_of: Callable[[str], str]) -> str:
    return pattern.sub(lambda found: value_of(found[1]), text)


def _looked_up(field: str, environment: Mapping[str, str]) -> Callable[[str], str]:
    def value_of(name: str) -> str:
        try:
            return environment[name]
        except KeyError:
            raise CommandError(field, f"<ENV:{name}> is not set where the job runs") from None

    return value_of


def _find_program(name: str, path: str, folder: str) -> str | None:
    """The file to execute: a path as it is (from the job's folder if relative), a name as PATH has it."""
    places = [Path(folder, name)] if "/" in name else [Path(folder, entry, name) for entry in path.split(os.pathsep)]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return str(place)
    return None
