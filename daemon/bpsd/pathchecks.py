"""Look at files, folders and programs that settings name, without changing anything.

Each function returns what is wrong, in words for a person, or an empty text. All of them block: call them in a thread.
`WmsService.check_settings` of an adapter is made of them, and the checks of the daemon's own settings are too.
"""

from __future__ import annotations

__all__ = ["cannot_read", "cannot_run", "cannot_write_in", "expanded", "nearest_folder"]

import os
import shutil
import stat
from pathlib import Path


def expanded(path: str) -> str:
    """Return the path with ``~`` replaced by a home directory; unchanged if that is not known."""
    return os.path.expanduser(path)  # noqa: PTH111  # Path.expanduser raises for a user without an entry


def cannot_read(path: str) -> str:
    """Return why a regular file cannot be read. ``/dev/null`` is the usual name of an empty one."""
    if odd := _not_a_path(path):
        return odd
    try:
        status = os.stat(path)  # noqa: PTH116  # the path stays a text
    except OSError as exc:
        return f"cannot read {path}: {exc.strerror}"
    if not stat.S_ISREG(status.st_mode) and path != os.devnull:
        return f"cannot read {path}: it is not a regular file"
    return "" if os.access(path, os.R_OK) else f"cannot read {path}: permission denied; check the file's mode"


def cannot_run(program: str, search: str | None = None) -> str:
    """Return why a program cannot be run: a path, or a name to look for in ``search`` (default: ``$PATH``)."""
    if odd := _not_a_path(program):
        return odd
    if "/" not in program:
        found = shutil.which(program, path=search)
        return "" if found else f"cannot find the program {program} in {search or os.environ.get('PATH', os.defpath)}"
    try:
        status = os.stat(program)  # noqa: PTH116  # as above
    except OSError as exc:
        return f"cannot run {program}: {exc.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"cannot run {program}: it is not a file"
    return "" if os.access(program, os.X_OK) else f"cannot run {program}: it is not executable; use chmod +x"


def cannot_write_in(folder: str, *, may_be_made: bool = True) -> str:
    """Return why no file can be made in a folder; one that is missing may be made, if its parent can be written."""
    if odd := _not_a_path(folder):
        return odd
    try:
        nearest = nearest_folder(folder)
        is_folder = stat.S_ISDIR(os.stat(nearest).st_mode)  # noqa: PTH116  # as above
    except OSError as exc:
        return f"cannot use the folder {folder}: {exc.strerror}"
    missing = nearest != os.path.normpath(folder)
    if missing and not may_be_made:
        return f"cannot write in the folder {folder}: it does not exist; make it"
    if not is_folder:
        return f"cannot use the folder {folder}: {nearest} is not a directory"
    if os.access(nearest, os.W_OK | os.X_OK):
        return ""
    if missing:
        return f"cannot make the folder {folder}: {nearest} is not writable for user {os.getuid()}"
    return f"cannot write in the folder {folder}: user {os.getuid()} has no permission, or it is read-only"


def nearest_folder(folder: str) -> str:
    """Return the folder itself if it exists, else the nearest one above it that does."""
    path = Path(os.path.normpath(folder))
    for each in (path, *path.parents):
        try:
            each.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return str(each)
    return "/"


def _not_a_path(text: str) -> str:
    """Return that a text is not a path; it is not shown, since it may be a key that somebody pasted."""
    if not text or len(os.fsencode(text)) > 4096 or not text.isprintable():
        return f"is not a path ({len(text)} characters)"
    return ""
