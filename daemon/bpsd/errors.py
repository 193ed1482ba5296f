"""All errors that bpsd raises on purpose, by what their reader does next.

::

    BpsdError
    ├── BackendUnavailable        the WMS could not be asked: try again, nothing is known to have changed
    │   └── DeadlineExceeded      it did not answer in time
    ├── BackendAuthError          the WMS refused us: renew the credentials; says nothing about any run
    ├── NotFound
    │   ├── RunNotFound           no run of that name (carries the nearest)
    │   ├── JobNotFound
    │   ├── UnknownBackend        no backend of that name (carries those there are)
    │   ├── BlobNotFound
    │   └── CommandNotFound
    ├── RunAmbiguous              several runs answer to that name (carries them)
    ├── PermissionDenied
    ├── UnsupportedOperation      this backend cannot do that
    ├── DocumentInvalid           a document has mistakes (carries all of them, with their places)
    │   ├── WorkflowInvalid
    │   └── ConfigInvalid
    ├── Conflict                  not in this state: cancel of what is over, restart of what runs
    ├── LimitExceeded             a limit of the daemon, named
    ├── ProtocolError             the peer's bytes or words are off
    │   ├── ParseError            not JSON, not UTF-8
    │   ├── InvalidRequest        JSON, but no request of JSON-RPC 2.0 as this daemon takes it
    │   ├── UnknownMethod         no method of that name (carries the nearest)
    │   ├── InvalidParams         a parameter that is missing, unknown or of the wrong type or value
    │   └── MessageTooLarge       longer than `bpsd.wire.MAX_MESSAGE_BYTES`
    ├── StorageError              our own disk or database
    │   └── ReadOnly              a restored journal waits for `bpsctl admin accept`
    ├── CannotStart               the daemon's surroundings are wrong
    └── Stopping                  the daemon is about to end

Every error carries a ``code`` (a key of `bpsd.wire.ERRORS`, for scripts), a sentence that names the act and its object,
and ``advice``: what the reader can do now. ``fields`` are for machines and appear in the JSON-RPC ``error.data``.
"""

from __future__ import annotations

__all__ = [
    "MAX_NEAREST_CHARS",
    "NEAREST_CUTOFF",
    "BackendAuthError",
    "BackendUnavailable",
    "BlobNotFound",
    "BpsdError",
    "CannotStart",
    "CommandNotFound",
    "ConfigInvalid",
    "Conflict",
    "DeadlineExceeded",
    "DocumentInvalid",
    "InvalidParams",
    "InvalidRequest",
    "JobNotFound",
    "LimitExceeded",
    "MessageTooLarge",
    "NotFound",
    "ParseError",
    "PermissionDenied",
    "Problem",
    "ProtocolError",
    "ReadOnly",
    "RunAmbiguous",
    "RunNotFound",
    "Stopping",
    "StorageError",
    "UnknownBackend",
    "UnknownMethod",
    "UnsupportedOperation",
    "WorkflowInvalid",
    "nearest",
    "no_run",
    "refusal_text",
]

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bpsd import diskfull, wire

MAX_NEAREST_CHARS = 100
"""A longer word is compared with nothing: it is no slip of the hand, and comparing costs its square."""

NEAREST_CUTOFF = 0.6
"""How much two words must have in common (`difflib.SequenceMatcher.ratio`)."""


TOLD_IN_A_LINE = 3
"""Mistakes that `refusal_text` names; it counts the others."""


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the ``count`` entries of ``known`` that look most like ``word``, best first (perhaps none).

    Each comparison costs about 20 us: the names of runs and jobs are compared with `bpsd.slices.nearest_of`.
    """
    if len(word) > MAX_NEAREST_CHARS:
        return []
    return difflib.get_close_matches(word, list(known), n=count, cutoff=NEAREST_CUTOFF)


class BpsdError(Exception):
    """Root of all errors of bpsd.

    Parameters
    ----------
    message : `str`
        One sentence: what was being done, to what, and what went wrong.
    advice : `str`, optional
        What the reader can do now.
    **fields
        Facts for machines, JSON-serialisable.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, advice: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.message} ({self.advice})" if self.advice else self.message

    @property
    def number(self) -> int:
        """The JSON-RPC error number."""
        return wire.ERRORS[self.code]

    def data(self) -> dict[str, Any]:
        """The JSON-RPC ``error.data``: code, advice and fields."""
        data: dict[str, Any] = {"code": self.code, **self.fields}
        if self.advice:
            data["advice"] = self.advice
        return data


class BackendUnavailable(BpsdError):
    """The WMS could not be asked; nothing is known to have changed. Trying again may help."""

    code = "backend_unavailable"


class DeadlineExceeded(BackendUnavailable):
    """The WMS did not answer within the deadline."""

    code = "deadline_exceeded"


class BackendAuthError(BpsdError):
    """The WMS refused our credentials. It says nothing about any run."""

    code = "backend_auth"


class NotFound(BpsdError):
    """Something that a request names does not exist."""


class RunNotFound(NotFound):
    """No run of that name."""

    code = "run_not_found"


def no_run(backend: str, wms_id: str, why: str = "") -> RunNotFound:
    """Return the error of a backend that was asked for a run that it does not have.

    Parameters
    ----------
    backend : `str`
        Name of the backend.
    wms_id : `str`
        The id that it was asked for; empty if the run has none.
    why : `str`, optional
        Where it looked, or what the WMS answered.
    """
    if not wms_id:
        return RunNotFound(
            f"backend {backend} was asked for a run without an id",
            advice="the run is not in the WMS: it was not submitted yet, or its submission failed; "
            "`bpsctl report RUN` shows which",
        )
    return RunNotFound(
        f"backend {backend} has no run {wms_id}{f': {why}' if why else ''}",
        advice="`bpsctl list` shows the runs there are",
    )


class JobNotFound(NotFound):
    """The run has no job of that name."""

    code = "job_not_found"


class UnknownBackend(NotFound):
    """No backend of that name is configured."""

    code = "unknown_backend"


class BlobNotFound(NotFound):
    """The spool does not hold what a request names."""

    code = "blob_not_found"


class CommandNotFound(NotFound):
    """The journal holds no command of that id."""

    code = "command_not_found"


class RunAmbiguous(BpsdError):
    """Several runs answer to that name; ``fields["candidates"]`` lists them."""

    code = "run_ambiguous"


class PermissionDenied(BpsdError):
    """The peer may not do that."""

    code = "permission_denied"


class UnsupportedOperation(BpsdError):
    """The backend cannot do that, by its nature or its configuration."""

    code = "unsupported"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a document.

    ``where`` is the path of keys and indices to it, as in ``("jobs", 3, "parents", 0)``; ``line`` and ``column`` count
    from 1 and are 0 where the document's text is not at hand.
    """

    where: tuple[str | int, ...]
    message: str
    line: int = 0
    column: int = 0

    @property
    def key(self) -> str:
        """The path as people write it: ``jobs[3].parents[0]``."""
        text = ""
        for part in self.where:
            text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
        return text

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.key}: {self.message}" if self.where else f"{place}{self.message}"


class DocumentInvalid(BpsdError):
    """A document has mistakes; ``problems`` holds every one that was found.

    Parameters
    ----------
    source : `str`
        The document's name: a file name, or what stands for it.
    problems : `~collections.abc.Sequence` [`Problem`]
        In the order of the document.
    total : `int`, optional
        How many there are in all, where ``problems`` was cut short.
    """

    noun: ClassVar[str] = "document"

    def __init__(self, source: str, problems: Sequence[Problem], *, total: int | None = None) -> None:
        self.source = source
        self.problems = tuple(problems)
        self.total = len(self.problems) if total is None else total
        plural = "mistake" if self.total == 1 else "mistakes"
        super().__init__(
            f"the {self.noun} {source} has {self.total} {plural}",
            advice="nothing was changed; mend the places listed and try again",
            source=source,
            total=self.total,
            problems=[{"key": p.key, "message": p.message, "line": p.line, "column": p.column} for p in self.problems],
        )

    def __str__(self) -> str:
        lines = [self.message + ":", *(f"  {self.source}: {p}" for p in self.problems)]
        if self.total > len(self.problems):
            lines.append(f"  ... and {self.total - len(self.problems)} more")
        return "\n".join(lines)


def refusal_text(error: Mapping[str, Any]) -> str:
    """A refusal as a command keeps it, in one line with the first of its mistakes."""
    problems = error.get("problems") or ()
    told = [f"{p['key']}: {p['message']}" if p.get("key") else str(p["message"]) for p in problems[:TOLD_IN_A_LINE]]
    more = int(error.get("total") or 0) - len(told)
    if told and more > 0:
        told.append(f"and {more} more")
    return f"{error.get('message', '')}" + (f": {'; '.join(told)}" if told else "")


class WorkflowInvalid(DocumentInvalid):
    """The workflow cannot be run as it is."""

    code = "workflow_invalid"
    noun = "workflow"


class ConfigInvalid(DocumentInvalid):
    """The configuration has mistakes."""

    code = "config_invalid"
    noun = "configuration"


class Conflict(BpsdError):
    """The run or the command is not in a state that allows this."""

    code = "conflict"


class LimitExceeded(BpsdError):
    """A limit of the daemon was reached; the message names it and its value."""

    code = "limit_exceeded"


class ProtocolError(BpsdError):
    """The other side of a connection broke the protocol."""

    code = "protocol_error"


class ParseError(ProtocolError):
    """A line is not JSON in UTF-8."""

    code = "parse_error"


class InvalidRequest(ProtocolError):
    """A line is JSON, but no request of JSON-RPC 2.0 as this daemon takes it."""

    code = "invalid_request"


class UnknownMethod(ProtocolError):
    """No method of that name; ``fields["nearest"]`` lists those that look like it."""

    code = "unknown_method"


class InvalidParams(ProtocolError):
    """A parameter is missing, unknown, or of a wrong type or value; the message says which and what was expected."""

    code = "invalid_params"


class MessageTooLarge(ProtocolError):
    """A message is longer than either side takes."""

    code = "message_too_large"


class StorageError(BpsdError):
    """Our own disk or database failed; what was asked for was not done."""

    code = "storage"

    @classmethod
    def of(cls, doing: str, error: OSError, path: Path | str) -> StorageError:
        """Return the error of an act that an operating system error ended. It may block.

        Parameters
        ----------
        doing : `str`
            The act and its object, as in ``preparing run x``.
        error : `OSError`
            The error.
        path : `~pathlib.Path` or `str`
            What was written, if the error does not name it.
        """
        reason, advice = diskfull.describe(error, path)
        return cls(f"{doing} failed: {reason}", advice=f"{advice}; then it goes on by itself")


class ReadOnly(StorageError):
    """The journal was restored from a copy and waits for a person (`bpsctl admin accept`)."""

    code = "read_only"


class CannotStart(BpsdError):
    """The daemon cannot start where it is: lock, socket, folder, file system."""

    code = "cannot_start"


class Stopping(BpsdError):
    """The daemon is about to end and takes no more commands."""

    code = "stopping"
