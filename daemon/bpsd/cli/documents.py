"""Reading the files that a person names: the daemon never opens them, it gets their content."""

from __future__ import annotations

__all__ = ["read_document"]

import sys

from bpsd.client.failures import ClientError


def read_document(name: str) -> tuple[bytes, str]:
    """The content of a file (``-``: standard input), and its name for messages.

    Raises
    ------
    ClientError
        It cannot be read, or there is nothing in it.
    """
    source = "<stdin>" if name == "-" else name
    try:
        if name == "-":
            data = sys.stdin.buffer.read()
        else:
            with open(name, "rb") as file:  # noqa: PTH123  # pathlib is slow to import
                data = file.read()
    except OSError as error:
        raise ClientError(
            f"reading the workflow {source}: {error.strerror or error}",
            code="workflow_invalid",
            advice="nothing was sent",
        ) from error
    if not data.strip():
        raise ClientError(f"the workflow {source} is empty", code="workflow_invalid", advice="nothing was sent")
    return data, source
