"""What the daemon and an agent say to each other: JSON lines on a socket, requests in any order.

An *agent* is a process of the user whose runs it looks after: all that is done with these runs and their files is done
by it, as that user. So whatever a user puts there in place of a file, nobody else's rights follow it; what an agent
says is checked as what any stranger says.
"""

from __future__ import annotations

__all__ = [
    "CALLS",
    "CHUNK_BYTES",
    "MAX_LINE_BYTES",
    "AgentSettings",
    "Ask",
    "Chunk",
    "Named",
    "OutputOrder",
    "Prepared",
    "Restart",
    "Tell",
    "TokenOrder",
    "Trouble",
    "error_of",
    "trouble_of",
]

from collections.abc import Mapping
from typing import Any

import msgspec

from bpsd.errors import (
    BackendUnavailable,
    BpsdError,
    Conflict,
    JobNotFound,
    PermissionDenied,
    Problem,
    RunNotFound,
    StorageError,
    UnsupportedOperation,
    WorkflowInvalid,
)
from bpsd.interface import OutputPiece
from bpsd.models import PollRequest, PollResult, TokenAnswer, made_ready
from bpsd.workflow import WorkflowFile

MAX_LINE_BYTES = 8 * 1024 * 1024
"""The longest line that either side takes; who sends more is cut off."""

CHUNK_BYTES = 512 * 1024
"""A document goes over in pieces of this size."""


class AgentSettings(msgspec.Struct, kw_only=True, frozen=True):
    """What an agent is told on its command line: the backend, its folder's name, and its settings as in the file."""

    backend: str
    folder: str
    config: dict[str, Any]


class Chunk(msgspec.Struct, frozen=True):
    """A piece of a workflow's document."""

    token: str
    offset: int
    data: bytes


class Prepared(msgspec.Struct, frozen=True):
    """A run that was prepared."""

    name: str
    token: str
    path: str
    wms_id: str


class Named(msgspec.Struct, frozen=True):
    """A run."""

    wms_id: str


class Restart(msgspec.Struct, frozen=True):
    """A run to restart."""

    wms_id: str
    attempt_token: str | None


class TokenOrder(msgspec.Struct, frozen=True):
    """A token to look for."""

    token: str
    since: float


class OutputOrder(msgspec.Struct, frozen=True):
    """A piece of output to read."""

    wms_id: str
    job: str
    stream: str
    offset: int
    limit: int


CALLS: Mapping[str, tuple[type[Any], Any]] = {
    "receive": (Chunk, None),
    "check": (WorkflowFile, None),
    "prepare": (WorkflowFile, Prepared),
    "submit": (Prepared, str),
    "restart": (Restart, tuple[str | None, str | None, str]),
    "cancel": (Named, tuple[bool, str]),
    "hold": (Named, tuple[bool, str]),
    "release": (Named, tuple[bool, str]),
    "expect": (Named, None),
    "find": (TokenOrder, TokenAnswer),
    "read": (OutputOrder, OutputPiece),
    "poll": (PollRequest, PollResult),
}
"""What can be asked of an agent, with the types of what goes there and what comes back."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error on its way: see `error_of`."""

    code: str
    message: str
    advice: str = ""
    source: str = ""
    total: int = 0
    problems: list[tuple[tuple[str | int, ...], str]] = []


class Ask(msgspec.Struct, frozen=True):
    """A request to an agent."""

    id: int
    call: str
    args: msgspec.Raw


class Tell(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent says: ``hello`` (first of all), ``wake`` (something happened), or the answer to request ``id``."""

    id: int | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: Trouble | None = None
    hello: bool = False
    wake: str = ""


made_ready(AgentSettings, Ask, Tell, *(args for args, _ in CALLS.values()), Prepared, OutputPiece)

_ERRORS: Mapping[str, type[BpsdError]] = {
    kind.code: kind
    for kind in (
        BackendUnavailable,
        Conflict,
        JobNotFound,
        PermissionDenied,
        RunNotFound,
        StorageError,
        UnsupportedOperation,
    )
}


def trouble_of(error: BpsdError) -> Trouble:
    """An error as it goes over."""
    if isinstance(error, WorkflowInvalid):
        return Trouble(
            code=error.code,
            message=error.message,
            source=error.source,
            total=error.total,
            problems=[(p.where, p.message) for p in error.problems],
        )
    return Trouble(code=error.code, message=error.message, advice=error.advice)


def error_of(trouble: Trouble) -> BpsdError:
    """An error as it came; one of no kind that is known means that nobody knows what was done."""
    if trouble.code == WorkflowInvalid.code:
        problems = [Problem(where, message) for where, message in trouble.problems]
        return WorkflowInvalid(trouble.source, problems, total=trouble.total)
    return _ERRORS.get(trouble.code, BackendUnavailable)(trouble.message, advice=trouble.advice)
