"""The helper process of ``prepare``, see `bpsd_adapters.helper`.

It looks at every job (100,000 take some seconds, which is why this is not done in the daemon), and makes the run's
folder: all of it, under another name, then renamed. So a folder with the token as its name is whole, and the same
order given twice, even at once, finds the same run.
"""

from __future__ import annotations

__all__ = ["Answer", "Found", "Order", "find_problems", "make_folder", "work"]

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from bpsd.diskfull import describe
from bpsd.workflow import Job, WorkflowFile, walltime_seconds
from bpsd_adapters.cmdline import CommandError
from bpsd_adapters.dag import Dag, priority_number
from bpsd_adapters.document import Document
from bpsd_adapters.files import sync_folder
from bpsd_adapters.helper import serve
from bpsd_adapters.local.commands import Commander, job_variables, run_variables
from bpsd_adapters.local.layout import Meta, RunFolder, StateFolder
from bpsd_adapters.local.ledger import Capacity

PROBLEMS_MAX = 200
"""How many problems are told; the rest are counted."""


class Found(msgspec.Struct, array_like=True, frozen=True):
    """A problem and where in the document it is."""

    where: tuple[str | int, ...]
    message: str


class Order(msgspec.Struct, kw_only=True, frozen=True):
    """What to prepare, and where; ``only_check``: look at every job and make nothing."""

    workflow: WorkflowFile
    state: str
    runs: str | None
    cores: int
    memory_mb: int
    only_check: bool = False


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """What came of it: a run, or problems (``total`` of them), or an error of the machine."""

    wms_id: str = ""
    path: str = ""
    problems: tuple[Found, ...] = ()
    total: int = 0
    error: str = ""
    advice: str = ""


def find_problems(
    document: Document, capacity: Capacity, environment: Mapping[str, str], folder: RunFolder
) -> Iterator[Found]:
    """What would keep jobs from running here, job by job. ``folder`` is where the run will be."""
    marks = run_variables(folder.token, document.name, str(folder.path), 1)
    known = document.executables, document.files
    commander = Commander(*known, {}, environment, str(folder.work), marks)
    try:
        commander = Commander(*known, document.environment, environment, str(folder.work), marks)
    except CommandError as exc:
        yield Found(("environment",), str(exc))
    folders: dict[str, bool] = {}
    for number, job in enumerate(document.jobs()):
        for field, message in _job_problems(job, commander, capacity, folders):
            yield Found(("jobs", number, field), message)
    final = document.final()
    if final is not None:
        for field, message in _job_problems(final, commander, capacity, folders):
            yield Found(("final", field), message)


def _job_problems(
    job: Job, commander: Commander, capacity: Capacity, folders: dict[str, bool]
) -> Iterator[tuple[str, str]]:
    if (job.request_cpus or 1) > capacity.cores:
        yield "request_cpus", f"{job.name} asks for {job.request_cpus} cores, this backend has {capacity.cores}"
    if (job.request_memory or 0) > capacity.memory_mb:
        yield (
            "request_memory",
            f"{job.name} asks for {job.request_memory} MB of memory, this backend has {capacity.memory_mb} MB",
        )
    try:
        priority_number(job.priority)
    except ValueError:
        yield "priority", f"{job.priority!r} is not a whole number, and there is no other priority here"
    try:
        walltime_seconds(1 if job.request_walltime is None else job.request_walltime)
    except ValueError as exc:
        yield "request_walltime", str(exc)
    if job.kind == "noop":
        return
    folder = job.working_directory
    if folder is not None and folder.startswith("/"):
        if folder not in folders:
            folders[folder] = Path(folder).is_dir()
        if not folders[folder]:
            yield "working_directory", f"there is no folder {folder} (job {job.name})"
            return  # nor would a program be found from there
    try:
        commander.command(job, job_variables(job, 1, 0, 0))
    except CommandError as exc:
        yield exc.field, f"{exc} (job {job.name})"


def make_folder(order: Order, state: StateFolder) -> Meta:
    """Make the folder of a run and give it a number, unless it has been made before.

    Raises
    ------
    OSError
        If it cannot be made; then there is none.
    """
    workflow = order.workflow
    folder = state.run(workflow.token)
    half = state.half_made(workflow.token)
    try:
        if not folder.path.exists():
            for path in (half.path, half.out, half.work):
                path.mkdir(mode=0o700)
            _copy(Path(workflow.path), half.workflow)
        with state.locked():
            if not folder.path.exists():
                meta = Meta(
                    wms_id=str(state.next_number()),
                    token=workflow.token,
                    name=workflow.name,
                    run=workflow.run,
                    job_count=workflow.job_count,
                    run_summary=workflow.run_summary,
                    created=time.time(),
                    umask=workflow.umask,
                )
                half.write_meta(meta)
                half.path.rename(folder.path)
                sync_folder(state.runs)
            meta = folder.meta()
            state.give_number(folder, meta.wms_id)
            return meta
    finally:
        if half.path.exists():
            shutil.rmtree(half.path)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1024 * 1024)
        writer.flush()
        os.fsync(writer.fileno())


def work(order: Order) -> Answer:
    """Look at every job, and make the folder if there is nothing against it."""
    try:
        return _prepare(order)
    except OSError as exc:
        reason, advice = describe(exc, order.runs or order.state)
        return Answer(error=reason, advice=f"{advice}; then it goes on by itself")


def _prepare(order: Order) -> Answer:
    state = StateFolder(Path(order.state), None if order.runs is None else Path(order.runs))
    folder = state.run(order.workflow.token)
    if order.only_check or not folder.path.exists():
        try:
            document = Document(Path(order.workflow.path))
        except msgspec.MsgspecError as exc:
            return Answer(problems=(Found((), str(exc)),), total=1)
        problems, total = [], 0
        capacity = Capacity(order.cores, order.memory_mb)
        for problem in find_problems(document, capacity, os.environ, folder):
            total += 1
            if total <= PROBLEMS_MAX:
                problems.append(problem)
        if total:
            return Answer(problems=tuple(problems), total=total)
        try:
            Dag(document.jobs(), groups=document.groups, category_limits=document.category_limits)
        except ValueError as exc:
            return Answer(problems=(Found((), str(exc)),), total=1)
    if order.only_check:
        return Answer()
    meta = make_folder(order, state)
    return Answer(wms_id=meta.wms_id, path=str(folder.path))


if __name__ == "__main__":
    serve(Order, work)
