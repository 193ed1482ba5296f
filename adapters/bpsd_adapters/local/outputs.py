"""What jobs printed, for people to read."""

from __future__ import annotations

__all__ = ["last_output", "read_piece"]

import os
from pathlib import Path

import msgspec

from bpsd.errors import StorageError
from bpsd.interface import OutputPiece
from bpsd_adapters.files import DOCUMENT_MAX_BYTES, open_regular, read_limited, safe_name
from bpsd_adapters.local.layout import RunFolder

READ_MAX_BYTES = 1024 * 1024
"""How much is read at once, whatever is asked for."""


def last_output(folder: RunFolder, job: str, stream: str) -> Path | None:
    """The file of the last attempt of a job (of the first, if none began); `None` if the run has no such job.

    Parameters
    ----------
    folder : `RunFolder`
        The run.
    job : `str`
        The name of the job.
    stream : `str`
        ``out`` or ``err``.
    """
    start, end = safe_name(job) + ".", "." + stream
    attempts = []
    with os.scandir(folder.out) as entries:
        for entry in entries:
            middle = entry.name[len(start) : -len(end)]
            if entry.name.startswith(start) and entry.name.endswith(end) and middle.isdecimal():
                attempts.append(int(middle))
    if not attempts and not _has_job(folder, job):
        return None
    return folder.output(job, max(attempts, default=1), stream)


def _has_job(folder: RunFolder, job: str) -> bool:
    """Whether the document names such a job: looked for in its text, since decoding 50 MB takes a second."""
    return b'"name":' + msgspec.json.encode(job) in read_limited(folder.workflow, DOCUMENT_MAX_BYTES)


def read_piece(path: Path, offset: int, limit: int) -> OutputPiece:
    """A piece of a file; a negative offset counts from its end. A file that is not there is empty.

    Raises
    ------
    StorageError
        If it cannot be read: the job, or its user, put another thing there.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = max(size + offset, 0) if offset < 0 else min(offset, size)
            file.seek(start)
            data = file.read(max(0, min(limit, READ_MAX_BYTES)))
    except FileNotFoundError:
        return OutputPiece(data=b"", offset=0, size=0, path=str(path))
    except OSError as exc:
        raise StorageError(
            f"cannot read the output {path}: {exc.strerror}",
            advice="see what stands there in place of the job's output",
        ) from exc
    return OutputPiece(data=data, offset=start, size=max(size, start + len(data)), path=str(path))
