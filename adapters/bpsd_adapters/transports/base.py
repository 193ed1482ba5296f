"""The contract of a transport: run a program on the submit host, and read and write its files. Nothing else.

Errors tell apart what a person does next::

    BackendUnavailable
    ├── Unreachable         the host does not answer, or the connection broke
    ├── ShellFailed         the login shell of the account did not come to run anything
    ├── CommandMissing      the program is not on that host
    ├── CommandFailed       the program ran and said no (`Completed.check`)
    ├── OutputTooLarge      it said more than we take; it was ended
    └── DeadlineExceeded    it did not end in time; it was ended
    BackendAuthError
    ├── HostKeyRefused      the host is not the one that we know
    └── LoginRefused        the host does not let us in
"""

from __future__ import annotations

__all__ = [
    "MAX_OUTPUT_BYTES",
    "STDERR_CHARS",
    "Channel",
    "CommandFailed",
    "CommandMissing",
    "Completed",
    "FileInfo",
    "HostKeyRefused",
    "LoginRefused",
    "OutputTooLarge",
    "ShellFailed",
    "Transport",
    "Unreachable",
]

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import ClassVar, NamedTuple, Self

from bpsd.errors import BackendAuthError, BackendUnavailable, UnsupportedOperation

MAX_OUTPUT_BYTES = 64 * 1024 * 1024
"""The most that a command may print, unless its caller says otherwise."""

STDERR_CHARS = 600
"""How much of the end of what a program said on stderr goes into a message."""


class Unreachable(BackendUnavailable):
    """The submit host does not answer, or the connection to it broke."""


class HostKeyRefused(BackendAuthError):
    """The host's key is not the one that is known for it."""


class LoginRefused(BackendAuthError):
    """The host does not let us in."""


class ShellFailed(BackendUnavailable):
    """The login shell of the account did not come to run anything: nothing was done."""


class CommandMissing(BackendUnavailable):
    """The program is not there."""


class CommandFailed(BackendUnavailable):
    """The program ended with a return code other than 0; ``fields`` has it and the end of what it said."""


class OutputTooLarge(BackendUnavailable):
    """The program printed more than was allowed."""


class FileInfo(NamedTuple):
    """What is known of a file without reading it. ``mtime`` is in epoch seconds of its host."""

    size: int
    mtime: float
    is_dir: bool


class Completed(NamedTuple):
    """A program that ended."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def error_text(self) -> str:
        """The end of what it said on stderr (or else on stdout), in one line."""
        text = (self.stderr.strip() or self.stdout.strip()).decode(errors="replace")
        return " ".join(text.split())[-STDERR_CHARS:]

    def check(self, host: str) -> Self:
        """The same, if it ended well.

        Raises
        ------
        CommandFailed
            If it did not.
        """
        if self.returncode != 0:
            raise CommandFailed(
                f"{self.argv[0]} on {host} failed with {self.returncode}: {self.error_text or 'no word of why'}",
                returncode=self.returncode,
                stderr=self.error_text,
            )
        return self


class Channel(ABC):
    """A program that goes on running while it is talked with: what it reads, and what it prints."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Write to its standard input.

        Raises
        ------
        Unreachable
            If it reads no more.
        """

    @abstractmethod
    async def receive(self) -> bytes:
        """What it printed next; nothing (``b""``) when it prints no more."""

    @abstractmethod
    async def end(self) -> str:
        """End it and its children there; returns the end of what it said on stderr. Safe to repeat."""


class Transport(ABC):
    """A way to one host. An async context manager; many users may share one."""

    shares_files: ClassVar[bool]
    """Whether paths there are paths here."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None

    @property
    @abstractmethod
    def host(self) -> str:
        """The host's name, for people."""

    @abstractmethod
    async def run(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        input: bytes = b"",
        cwd: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Completed:
        """Run a program without a shell and wait for its end; whatever its return code, it is an answer.

        When this raises, or is cancelled, the program and its children are ended *there*. If this process is killed, or
        the connection breaks, its ``input`` just ends: what acts on it must see whether it is whole.

        Raises
        ------
        Unreachable, HostKeyRefused, LoginRefused, CommandMissing, OutputTooLarge, DeadlineExceeded
            See the module. After `Unreachable` and `DeadlineExceeded` it may have done its work all the same.
        """

    async def converse(self, argv: Sequence[str]) -> Channel:
        """Run a program without a shell, to talk with it until `Channel.end`.

        Raises
        ------
        Unreachable, HostKeyRefused, LoginRefused, CommandMissing
            See the module.
        UnsupportedOperation
            If this transport only runs programs to their end.
        """
        raise UnsupportedOperation(f"programs on {self.host} cannot be talked with")

    @abstractmethod
    async def stat(self, path: str) -> FileInfo | None:
        """What a path is; `None` if there is nothing."""

    @abstractmethod
    async def read(self, path: str, offset: int, limit: int) -> bytes:
        """At most ``limit`` bytes of a file from ``offset``.

        Raises
        ------
        FileNotFoundError
            If there is none.
        PermissionError
            If it is not for us.
        """

    @abstractmethod
    async def write(self, path: str, data: bytes) -> None:
        """Make or replace a small file as a whole: nobody ever sees half of it."""

    @abstractmethod
    async def listdir(self, path: str) -> list[str]:
        """The names in a folder, sorted; none if there is no such folder."""
