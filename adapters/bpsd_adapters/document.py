"""The canonical document as a driver reads it: jobs stay bytes until they are wanted.

As objects 100,000 jobs take 130 MB and as bytes 50, in a mapped file that the kernel may drop and read again.
"""

from __future__ import annotations

__all__ = ["Document", "JobName"]

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bpsd.workflow import Executable, File, Group, Job
from bpsd_adapters.files import open_regular


class _Workflow(msgspec.Struct, kw_only=True):
    """`bpsd.workflow.Workflow`, as far as a driver wants it."""

    name: str
    environment: dict[str, str] = {}
    category_limits: dict[str, int] = {}
    executables: list[Executable] = []
    files: list[File] = []
    groups: list[Group] = []
    jobs: list[msgspec.Raw] = []
    final: msgspec.Raw = msgspec.Raw()


class JobName(msgspec.Struct, kw_only=True):
    """What a log line calls a job."""

    name: str
    label: str = ""


_decode_workflow = msgspec.json.Decoder(_Workflow).decode
_decode_job = msgspec.json.Decoder(Job).decode
_decode_name = msgspec.json.Decoder(JobName).decode


class Document:
    """A workflow on the disk.

    Parameters
    ----------
    path : `~pathlib.Path`
        Canonical JSON of a `~bpsd.workflow.Workflow`.

    Raises
    ------
    OSError
        If it cannot be read.
    msgspec.MsgspecError
        If it is not such a document.
    """

    def __init__(self, path: Path) -> None:
        with os.fdopen(open_regular(path), "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._workflow = _decode_workflow(data)
        self._jobs = self._workflow.jobs
        self.has_final = bytes(self._workflow.final) not in (b"", b"null")
        """Whether the last job is the final one."""

        if self.has_final:
            self._jobs.append(self._workflow.final)

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def name(self) -> str:
        """The name of the run."""
        return self._workflow.name

    @property
    def environment(self) -> dict[str, str]:
        """Variables of all jobs."""
        return self._workflow.environment

    @property
    def category_limits(self) -> dict[str, int]:
        """How many jobs of a category may run at once."""
        return self._workflow.category_limits

    @property
    def groups(self) -> list[Group]:
        """Jobs that are ordered as one."""
        return self._workflow.groups

    @property
    def executables(self) -> dict[str, Executable]:
        """Programs by name."""
        return {e.name: e for e in self._workflow.executables}

    @property
    def files(self) -> dict[str, File]:
        """Files by name."""
        return {f.name: f for f in self._workflow.files}

    def job(self, node: int) -> Job:
        """A job by its number; the final one has the last."""
        return _decode_job(self._jobs[node])

    def job_name(self, node: int) -> JobName:
        """The name and label of a job."""
        return _decode_name(self._jobs[node])

    def jobs(self) -> Iterator[Job]:
        """All jobs but the final one, one at a time."""
        return (_decode_job(raw) for raw in self._jobs[: len(self) - self.has_final])

    def final(self) -> Job | None:
        """The final job."""
        return self.job(len(self) - 1) if self.has_final else None
