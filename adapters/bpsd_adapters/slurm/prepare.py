"""Looking at every job of a workflow before Slurm hears of it. Pure but for reading the document; run in a thread."""

from __future__ import annotations

__all__ = ["PROBLEMS_MAX", "Findings", "look_at"]

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bpsd.errors import Problem
from bpsd.workflow import Job, WorkflowFile
from bpsd_adapters.cmdline import CommandError
from bpsd_adapters.dag import Dag, priority_number
from bpsd_adapters.document import Document
from bpsd_adapters.slurm.commands import RunFacts, entry, program_of
from bpsd_adapters.slurm.options import Defaults, OptionError, options_of

PROBLEMS_MAX = 200
"""How many problems are told."""


@dataclass(slots=True)
class Findings:
    """What was found: mistakes, the programs that jobs name and the options that they need, each with where first."""

    problems: list[Problem] = field(default_factory=list)
    total: int = 0
    programs: dict[str, tuple[str | int, ...]] = field(default_factory=dict)
    options: dict[tuple[str, ...], tuple[str | int, ...]] = field(default_factory=dict)


def look_at(workflow: WorkflowFile, folder: str, defaults: Defaults, *, hands_off: bool) -> Findings:
    """Look at every job.

    Parameters
    ----------
    workflow : `~bpsd.workflow.WorkflowFile`
        The document.
    folder : `str`
        The run's folder on the submit host.
    defaults : `Defaults`
        What every job gets.
    hands_off : `bool`
        Whether Slurm is to keep the order of the jobs.

    Raises
    ------
    OSError, msgspec.MsgspecError
        If the document cannot be read.
    """
    document = Document(Path(workflow.path))
    found = Findings()
    facts = RunFacts(
        workflow.token, workflow.name, folder, 1, document.executables, document.files, document.environment
    )
    final = document.final()
    places = [(("jobs", number), job) for number, job in enumerate(document.jobs())]
    for where, job in [*places, *([] if final is None else [(("final",), final)])]:
        for key, message in _problems(job, facts, defaults, found, where, hands_off=hands_off):
            _add(found, Problem((*where, key), f"{message} (job {job.name})"))
    if hands_off and document.groups:
        _add(found, Problem(("groups",), "Slurm keeps no groups: they are not for a backend with hands_off"))
    try:
        Dag((job for _, job in places), groups=document.groups, category_limits=document.category_limits)
    except ValueError as exc:
        _add(found, Problem((), str(exc)))
    return found


def _add(found: Findings, problem: Problem) -> None:
    found.total += 1
    if len(found.problems) < PROBLEMS_MAX:
        found.problems.append(problem)


def _problems(
    job: Job, facts: RunFacts, defaults: Defaults, found: Findings, where: tuple[str | int, ...], *, hands_off: bool
) -> Iterator[tuple[str, str]]:
    try:
        priority_number(job.priority)
    except ValueError:
        yield "priority", f"{job.priority!r} is not a whole number"
    if job.kind == "noop":
        return
    try:
        found.options.setdefault(options_of(job, defaults), where)
    except OptionError as exc:
        yield exc.field, str(exc)
    try:
        entry(facts, job, 0, 1, 0, None)
        program = program_of(facts, job)
        if "<" not in program:
            found.programs.setdefault(program, where)
    except CommandError as exc:
        yield exc.field, str(exc)
    if hands_off and where != ("final",):
        for key in ("number_of_retries", "abort_on_value", "category"):
            if getattr(job, key) not in (None, 0):
                yield key, "not with hands_off: Slurm keeps the order, and bpsd does not come in between"
