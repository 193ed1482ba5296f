"""A transport for unit tests: answers to commands are a function, files are a dictionary."""

from __future__ import annotations

__all__ = ["ScriptedTransport", "answer"]

from collections.abc import Callable, Sequence
from typing import ClassVar

from bpsd_adapters.transports.base import MAX_OUTPUT_BYTES, CommandMissing, Completed, FileInfo, Transport


def answer(stdout: bytes | str = b"", returncode: int = 0, stderr: str = "") -> Completed:
    """What a command says; its ``argv`` is filled in."""
    data = stdout.encode() if isinstance(stdout, str) else stdout
    return Completed((), returncode, data, stderr.encode())


class ScriptedTransport(Transport):
    """Calls ``reply`` with every argument vector: it returns a `Completed`, `None` (no such program), or raises."""

    shares_files: ClassVar[bool] = True

    def __init__(self, reply: Callable[[Sequence[str], bytes], Completed | None]) -> None:
        self._reply = reply
        self.calls: list[tuple[str, ...]] = []
        self.files: dict[str, bytes] = {}

    @property
    def host(self) -> str:
        """A name for messages."""
        return "scripted"

    async def run(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        input: bytes = b"",
        cwd: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Completed:
        """See `Transport.run`."""
        self.calls.append(tuple(argv))
        said = self._reply(argv, input)
        if said is None:
            raise CommandMissing(f"{argv[0]} cannot be run on {self.host}")
        return said._replace(argv=tuple(argv))

    async def stat(self, path: str) -> FileInfo | None:
        """See `Transport.stat`."""
        if path in self.files:
            return FileInfo(len(self.files[path]), 0.0, False)
        inside = any(name.startswith(f"{path}/") for name in self.files)
        return FileInfo(0, 0.0, True) if inside else None

    async def read(self, path: str, offset: int, limit: int) -> bytes:
        """See `Transport.read`."""
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path][offset : offset + limit]

    async def write(self, path: str, data: bytes) -> None:
        """See `Transport.write`."""
        self.files[path] = data

    async def listdir(self, path: str) -> list[str]:
        """See `Transport.listdir`."""
        return sorted({name[len(path) + 1 :].split("/")[0] for name in self.files if name.startswith(f"{path}/")})
