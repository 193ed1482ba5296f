"""From a document to the tar archive of a run's folder: in a thread, or in a helper process if it has many jobs."""

from __future__ import annotations

__all__ = ["Answer", "Order", "pack", "prepare", "work"]

import io
import tarfile
from pathlib import Path

import msgspec

from bpsd.errors import Problem, WorkflowInvalid
from bpsd.models import made_ready
from bpsd.workflow import Workflow, WorkflowFile
from bpsd_adapters.helper import ask_if_large, serve
from bpsd_adapters.htcondor.submission import DAG_FILE, Submission, SubmissionProblem, write_submission


class Order(msgspec.Struct, kw_only=True, frozen=True):
    """What to prepare: ``folder`` is the run's on the submit host, ``archive`` the file to make here."""

    workflow: WorkflowFile
    folder: str
    archive: str


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """What came of it: an archive, and programs that must be there (each with a job that names it); or a problem."""

    executables: dict[str, str] = {}
    where: tuple[str | int, ...] = ()
    problem: str = ""


made_ready(Answer, Workflow)


def work(order: Order) -> Answer:
    """Read the document and write the archive."""
    file = order.workflow
    workflow = msgspec.json.decode(Path(file.path).read_bytes(), type=Workflow)
    try:
        submission = write_submission(workflow, file.token, order.folder, file.run_summary)
    except SubmissionProblem as exc:
        return Answer(where=exc.where, problem=str(exc))
    pack(submission, Path(order.archive))
    return Answer(executables=submission.executables)


def pack(submission: Submission, path: Path) -> None:
    """The files as a tar archive, the DAG as the last: with it all have come. Folders come with them."""
    with tarfile.open(path, mode="w") as archive:
        for name, text in sorted(submission.files.items(), key=lambda file: file[0] == DAG_FILE):
            data = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755 if name in submission.programs else 0o644
            archive.addfile(entry, io.BytesIO(data))


async def prepare(workflow: WorkflowFile, folder: str, archive: Path) -> dict[str, str]:
    """Make the archive; returns the programs that must be there.

    Raises
    ------
    WorkflowInvalid
        If something cannot be said to HTCondor.
    BackendUnavailable
        If the helper came to no answer.
    """
    order = Order(workflow=workflow, folder=folder, archive=str(archive))
    about = f"preparing run {workflow.name}"
    answer = await ask_if_large(work, order, Answer, job_count=workflow.job_count, about=about)
    if answer.problem:
        raise WorkflowInvalid(workflow.name, [Problem(answer.where, answer.problem)])
    return answer.executables


if __name__ == "__main__":
    serve(Order, work)
