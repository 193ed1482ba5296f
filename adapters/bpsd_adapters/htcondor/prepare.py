"""From a document to the tar archive of a run's folder: in a thread, or in a helper process if it has many jobs.

``python -P -m bpsd_adapters.htcondor.prepare`` takes an `Order` on stdin and prints an `Answer`. Decoding and writing
100,000 jobs takes seconds in which no other thread of Python runs: not in the daemon.
"""

from __future__ import annotations

__all__ = ["Answer", "Order", "main", "prepare", "work"]

import io
import os
import sys
import tarfile
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from bpsd.errors import BackendUnavailable, Problem, WorkflowInvalid
from bpsd.models import made_ready
from bpsd.workflow import Workflow, WorkflowFile
from bpsd_adapters.htcondor.submission import Submission, SubmissionProblem, write_submission

SMALL_JOBS = 1000
"""Documents up to so many jobs are prepared in a thread: starting Python would take longer than the work."""

_LAST_WORDS_CHARS = 600


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
    _pack(submission, Path(order.archive))
    return Answer(executables=submission.executables)


def _pack(submission: Submission, path: Path) -> None:
    """The files as a tar archive; folders come with them."""
    with tarfile.open(path, mode="w") as archive:
        for name, text in submission.files.items():
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
    small = workflow.job_count <= SMALL_JOBS
    answer = await (anyio.to_thread.run_sync(work, order) if small else _in_helper(order))
    if answer.problem:
        raise WorkflowInvalid(workflow.name, [Problem(answer.where, answer.problem)])
    return answer.executables


async def _in_helper(order: Order) -> Answer:
    command = [sys.executable, "-P", "-m", "bpsd_adapters.htcondor.prepare"]
    done = await anyio.run_process(command, input=msgspec.json.encode(order), check=False)
    try:
        return msgspec.json.decode(done.stdout, type=Answer)
    except msgspec.MsgspecError as exc:
        words = done.stderr.decode(errors="replace").strip()[-_LAST_WORDS_CHARS:]
        raise BackendUnavailable(
            f"preparing run {order.workflow.name} came to no answer (exit code {done.returncode}): {words}",
            advice="is there memory and disk enough for the document?",
        ) from exc


def main() -> None:
    """Be the helper."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    os.write(1, msgspec.json.encode(work(order)))


if __name__ == "__main__":
    main()
