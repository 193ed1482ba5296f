"""Files that adapters keep: names for jobs, writing so that it is on the disk, and opening what others may replace."""

from __future__ import annotations

__all__ = [
    "DOCUMENT_MAX_BYTES",
    "open_regular",
    "read_limited",
    "read_tail",
    "safe_name",
    "sync_folder",
    "try_folder",
    "write_durably",
]

import errno
import hashlib
import os
import re
import stat
import tempfile
import threading
from pathlib import Path

DOCUMENT_MAX_BYTES = 2 * 1024 * 1024 * 1024
"""The largest workflow document of a run that is read again."""

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-")
_NAME_MAX_BYTES = 200
_AS_IT_IS = re.compile(rf"[A-Za-z0-9_+-][A-Za-z0-9_.+-]{{0,{_NAME_MAX_BYTES - 1}}}")
_HASH_DIGITS = 32


def safe_name(name: str) -> str:
    """A job's name as a file name: no two names have the same, and it says what it can.

    What is not a plain character becomes ``%XX``; a name too long for a file system ends in ``~`` and a hash.
    """
    if _AS_IT_IS.fullmatch(name):
        return name
    raw = name.encode("utf-8", "surrogatepass")
    text = "".join(chr(c) if c in _PLAIN else f"%{c:02X}" for c in raw)
    if text.startswith("."):
        text = "%2E" + text[1:]
    if len(text) <= _NAME_MAX_BYTES:
        return text
    return text[: _NAME_MAX_BYTES - _HASH_DIGITS - 1] + "~" + hashlib.sha256(raw).hexdigest()[:_HASH_DIGITS]


def write_durably(path: Path, data: bytes) -> None:
    """Make or replace a file; it is on the disk, whole, when this returns.

    Raises
    ------
    OSError
        If it could not be written; then nothing changed.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")  # commands write at the same time
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def try_folder(folder: Path) -> None:
    """Write a file in a folder, and remove it.

    Raises
    ------
    OSError
        If the folder takes no data; it names the folder.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe.") as probe:
            probe.write(b"bpsd")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, str(folder)) from exc


def open_regular(path: Path | str, flags: int = os.O_RDONLY, *, follow: bool = False, mode: int = 0o600) -> int:
    """Open a file that somebody may have replaced with another thing: a FIFO, a device, a link.

    It never waits for the other end of a FIFO, and accepts regular files only.

    Parameters
    ----------
    path : `~pathlib.Path` or `str`
        The file.
    flags : `int`, optional
        As of `os.open`.
    follow : `bool`, optional
        Whether the file may be a symbolic link.
    mode : `int`, optional
        Permissions of a file that is made.

    Raises
    ------
    OSError
        If it cannot be opened, or is not a regular file.
    """
    extra = os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags | extra, mode)
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind):
        return fd
    os.close(fd)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def read_limited(path: Path | str, max_bytes: int, *, follow: bool = False) -> bytes:
    """Read a whole file.

    Raises
    ------
    OSError
        If it cannot be opened, is not a regular file, or is larger than ``max_bytes``.
    """
    with os.fdopen(open_regular(path, follow=follow), "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", os.fspath(path))
    return data


def read_tail(path: Path | str, max_bytes: int) -> bytes:
    """Read the end of a file, however large it is.

    Raises
    ------
    OSError
        If it cannot be opened, or is not a regular file.
    """
    fd = open_regular(path)
    try:
        return os.pread(fd, max_bytes, max(os.fstat(fd).st_size - max_bytes, 0))
    finally:
        os.close(fd)
