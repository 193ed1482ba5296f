"""Reading the files that a person names: the daemon never opens them, it gets their content."""

from __future__ import annotations

__all__ = ["read_document"]

import os
import stat
import sys

from bpsd.client.failures import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO


DOCUMENT_BYTES = 1 << 30
"""The longest workflow that is read. The daemon has a limit of its own (``limits.workflow_bytes``)."""


def read_document(name: str) -> tuple[bytes, str]:
    """The content of a file (``-``: standard input), and its name for messages.

    Raises
    ------
    ClientError
        It cannot be read, it is a device, it is too long, or there is nothing in it.
    """
    source = "<stdin>" if name == "-" else name
    try:
        if name == "-":
            data = _bounded(sys.stdin.buffer, source)
        else:
            with open(name, "rb") as file:  # noqa: PTH123  # pathlib is slow to import
                data = _bounded(file, source)
    except OSError as error:
        raise ClientError(
            f"reading the workflow {source}: {error.strerror or error}",
            code="workflow_invalid",
            advice="nothing was sent",
        ) from error
    if not data.strip():
        raise ClientError(f"the workflow {source} is empty", code="workflow_invalid", advice="nothing was sent")
    return data, source


def _bounded(file: BinaryIO, source: str) -> bytes:
    """All of a file or a pipe; a device, as ``/dev/zero``, may have no end."""
    facts = os.fstat(file.fileno())
    endless = stat.S_ISCHR(facts.st_mode) and not file.isatty() and facts.st_rdev != os.makedev(1, 3)  # /dev/null
    if endless or stat.S_ISBLK(facts.st_mode):
        raise ClientError(
            f"reading the workflow {source}: it is a device, not a file",
            code="workflow_invalid",
            advice="nothing was sent; name a file, or - for standard input",
        )
    data = file.read(DOCUMENT_BYTES + 1)
    if len(data) > DOCUMENT_BYTES:
        raise ClientError(
            f"reading the workflow {source}: it is longer than {DOCUMENT_BYTES} bytes",
            code="limit_exceeded",
            advice="nothing was sent; split the workflow",
        )
    return data
