"""Looking at every job of a workflow before Slurm hears of it: in a thread, or in a helper if it has many jobs."""

from __future__ import annotations

__all__ = ["PROBLEMS_MAX", "Findings", "Order", "look_at"]

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

from bpsd.errors import Problem
from bpsd.models import made_ready
from bpsd.workflow import Job, WorkflowFile
from bpsd_adapters.cmdline import CommandError
from bpsd_adapters.dag import Dag, priority_number
from bpsd_adapters.document import Document
from bpsd_adapters.helper import serve
from bpsd_adapters.slurm.commands import RunFacts, entry, program_of
from bpsd_adapters.slurm.options import Defaults, OptionError, options_of

PROBLEMS_MAX = 200
"""How many problems are told."""


Where: TypeAlias = tuple[str | int, ...]
"""The path of keys and indices to something in the document."""


class Order(msgspec.Struct, kw_only=True, frozen=True):
    """What to look at: ``folder`` is the run's on the submit host, ``hands_off`` whether Slurm is to keep the order."""

    workflow: WorkflowFile
    folder: str
    defaults: Defaults
    hands_off: bool


class Findings(msgspec.Struct, kw_only=True):
    """What was found: mistakes, the programs that jobs name and the options that they need, each with where first."""

    problems: list[Problem] = []
    total: int = 0
    programs: dict[str, Where] = {}
    options: list[tuple[tuple[str, ...], Where]] = []

    def add(self, where: Where, message: str) -> None:
        """There is another problem."""
        self.total += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(where, message))


made_ready(Findings)


def look_at(order: Order) -> Findings:
    """Look at every job.

    Raises
    ------
    OSError, msgspec.MsgspecError
        If the document cannot be read.
    """
    workflow, hands_off = order.workflow, order.hands_off
    document = Document(Path(workflow.path))
    found = Findings()
    facts = RunFacts(
        workflow.token, workflow.name, order.folder, 1, document.executables, document.files, document.environment
    )
    final = document.final()
    places = [(("jobs", number), job) for number, job in enumerate(document.jobs())]
    options: dict[tuple[str, ...], Where] = {}
    for where, job in [*places, *([] if final is None else [(("final",), final)])]:
        try:
            if job.kind != "noop":
                options.setdefault(options_of(job, order.defaults), where)
        except OptionError as exc:
            found.add((*where, exc.field), f"{exc} (job {job.name})")
        for key, message in _problems(job, facts, found, where, hands_off=hands_off):
            found.add((*where, key), f"{message} (job {job.name})")
    found.options = list(options.items())
    if hands_off and document.groups:
        found.add(("groups",), "Slurm keeps no groups: they are not for a backend with hands_off")
    try:
        Dag((job for _, job in places), groups=document.groups, category_limits=document.category_limits)
    except ValueError as exc:
        found.add((), str(exc))
    return found


def _problems(
    job: Job, facts: RunFacts, found: Findings, where: Where, *, hands_off: bool
) -> Iterator[tuple[str, str]]:
    try:
        priority_number(job.priority)
    except ValueError:
        yield "priority", f"{job.priority!r} is not a whole number"
    if job.kind == "noop":
        return
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


if __name__ == "__main__":
    serve(Order, look_at)
