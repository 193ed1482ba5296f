"""From a document to the tar archive of a run's folder: in a thread, or in a helper process if it has many jobs."""

from __future__ import annotations

__all__ = ["PROBLEMS_MAX", "Answer", "Found", "Order", "pack", "prepare", "work"]

import io
import tarfile
from pathlib import Path

import msgspec

from bpsd.models import made_ready
from bpsd.workflow import Workflow, WorkflowFile
from bpsd_adapters.helper import ask_if_large, serve
from bpsd_adapters.htcondor.submission import DAG_FILE, Submission, SubmissionProblem, write_submission

PROBLEMS_MAX = 200
"""How many problems are told; the rest are counted."""


class Order(msgspec.Struct, kw_only=True, frozen=True):
    """What to prepare: ``folder`` is the run's on the submit host, ``archive`` the file to make here (empty: none)."""

    workflow: WorkflowFile
    folder: str
    archive: str


class Found(msgspec.Struct, array_like=True, frozen=True):
    """A problem and where in the document it is."""

    where: tuple[str | int, ...]
    message: str


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """What came of it: programs that must be there (each with a job that names it), and problems or an archive."""

    executables: dict[str, str] = {}
    problems: tuple[Found, ...] = ()
    total: int = 0


made_ready(Answer, Workflow)


def work(order: Order) -> Answer:
    """Read the document and write the archive, unless something cannot be said to HTCondor."""
    file = order.workflow
    workflow = msgspec.json.decode(Path(file.path).read_bytes(), type=Workflow)
    try:
        submission = write_submission(workflow, file.token, order.folder, file.run_summary)
    except SubmissionProblem as exc:  # of the workflow as a whole
        return Answer(problems=(Found(exc.where, str(exc)),), total=1)
    found = submission.problems
    if order.archive and not found:
        pack(submission, Path(order.archive))
    problems = tuple(Found(problem.where, str(problem)) for problem in found[:PROBLEMS_MAX])
    return Answer(executables=submission.executables, problems=problems, total=len(found))


def pack(submission: Submission, path: Path) -> None:
    """The files as a tar archive, the DAG as the last: with it all have come. Folders come with them."""
    with tarfile.open(path, mode="w") as archive:
        for name, text in sorted(submission.files.items(), key=lambda file: file[0] == DAG_FILE):
            data = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755 if name in submission.programs else 0o644
            archive.addfile(entry, io.BytesIO(data))


async def prepare(workflow: WorkflowFile, folder: str, archive: Path | None) -> Answer:
    """Make the archive (none: only look whether it can be made).

    Raises
    ------
    BackendUnavailable
        If the helper came to no answer.
    """
    order = Order(workflow=workflow, folder=folder, archive="" if archive is None else str(archive))
    about = f"preparing run {workflow.name}"
    return await ask_if_large(work, order, Answer, job_count=workflow.job_count, about=about)


if __name__ == "__main__":
    serve(Order, work)
