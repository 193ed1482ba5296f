"""Errors that say that a disk takes no more data now: they are about the disk, and trying again later helps."""

from __future__ import annotations

__all__ = ["FULL_ERRNOS", "describe", "is_full", "mentions_full", "mount_point"]

import errno
import os
import re
from pathlib import Path

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""No space, no quota, a limit on the size of files, a file system that went read-only."""

_REASONS = {
    errno.ENOSPC: ("the file system {mount} is full", "free some space there"),
    errno.EDQUOT: ("the disk quota on the file system {mount} is used up", "free some space there, or raise the quota"),
    errno.EFBIG: ("the limit on the size of files is reached on {mount}", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the file system {mount} is read-only", "look for disk errors in the kernel log, and mount it again"),
}
_OTHER_ADVICE = "make sure that the folder is there and that bpsd may write to it"
_WORDS = re.compile(
    r"no space left on device|disk quota exceeded|read-only file system|file too large|database or disk is full",
    re.IGNORECASE,
)


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk takes no more data now."""
    return isinstance(error, OSError) and error.errno in FULL_ERRNOS


def mentions_full(text: str) -> bool:
    """Return whether the words of another program (a tool, a plugin) say that."""
    return _WORDS.search(text) is not None


def mount_point(path: Path | str) -> str:
    """Return the mount point of the file system that holds a path, existing or not. It may block."""
    folder = Path(os.fsdecode(path)).resolve()
    while not folder.is_mount():  # "/" is one
        folder = folder.parent
    return str(folder)


def describe(error: OSError, path: Path | str) -> tuple[str, str]:
    """Return what went wrong and what to do about it.

    Parameters
    ----------
    error : `OSError`
        From a call that writes.
    path : `~pathlib.Path` or `str`
        What was written, if the error does not name it.
    """
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(path)
    said = f"{error.strerror or error}: {place}"
    if error.errno not in _REASONS:
        return said, _OTHER_ADVICE
    reason, advice = _REASONS[error.errno]
    return f"{reason.format(mount=mount_point(place))} ({said})", advice
