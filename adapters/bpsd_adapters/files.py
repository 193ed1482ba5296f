"""Files that adapters keep: names for jobs, and writing so that it is on the disk."""

from __future__ import annotations

__all__ = ["safe_name", "sync_folder", "write_durably"]

import hashlib
import os
import re
import threading
from pathlib import Path

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
