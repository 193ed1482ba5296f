"""Files of a host by shell commands: where startup files of the account that print something break SFTP."""

from __future__ import annotations

__all__ = ["ShellFiles"]

import uuid
from collections.abc import Awaitable, Callable

from bpsd_adapters.transports.base import Completed, FileInfo

_ABSENT, _DENIED = 44, 45

_STAT = r"""
[ -e "$1" ] || exit 44
exec stat -L -c '%s %Y %f' -- "$1"
"""
_READ = r"""
[ -e "$1" ] || exit 44
[ -r "$1" ] || exit 45
tail -c +"$2" -- "$1" | head -c "$3"
"""
_WRITE = r"""
cat >"$1" && [ "$(wc -c <"$1")" -eq "$3" ] && exec mv -f -- "$1" "$2"
rm -f -- "$1"; exit 1
"""
_LIST = r"""
cd "$1" 2>/dev/null || exit 0
exec find . -mindepth 1 -maxdepth 1 -printf '%f\0'
"""
_FOLDER = 0o040000
_KIND = 0o170000


class ShellFiles:
    """Reads and writes files of a host.

    Parameters
    ----------
    run : `~collections.abc.Callable`
        Runs a shell script there with these arguments and this input.
    host : `str`
        The host's name, for errors.
    """

    def __init__(self, run: Callable[[str, tuple[str, ...], bytes], Awaitable[Completed]], host: str) -> None:
        self._run = run
        self._host = host

    async def stat(self, path: str) -> FileInfo | None:
        """See `Transport.stat`."""
        done = await self._run(_STAT, (path,), b"")
        if done.returncode == _ABSENT:
            return None
        size, mtime, mode = self._checked(done, path).stdout.split()
        return FileInfo(int(size), float(mtime), int(mode, 16) & _KIND == _FOLDER)

    async def read(self, path: str, offset: int, limit: int) -> bytes:
        """See `Transport.read`."""
        done = await self._run(_READ, (path, f"{offset + 1}", f"{limit}"), b"")
        return self._checked(done, path).stdout

    async def write(self, path: str, data: bytes) -> None:
        """See `Transport.write`."""
        half = f"{path}.{uuid.uuid4().hex[:8]}.part"
        self._checked(await self._run(_WRITE, (half, path, f"{len(data)}"), data), path)

    async def listdir(self, path: str) -> list[str]:
        """See `Transport.listdir`."""
        done = self._checked(await self._run(_LIST, (path,), b""), path)
        return sorted(name.decode(errors="surrogateescape") for name in done.stdout.split(b"\0") if name)

    def _checked(self, done: Completed, path: str) -> Completed:
        if done.returncode == _ABSENT:
            raise FileNotFoundError(f"{path} is not on {self._host}")
        if done.returncode == _DENIED:
            raise PermissionError(f"{path} on {self._host} cannot be read")
        if done.returncode:
            raise OSError(f"{path} on {self._host}: {done.error_text or 'no word of why'}")
        return done
