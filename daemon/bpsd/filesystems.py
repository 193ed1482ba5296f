"""Which file system a path lies on, and whether that is shared over a network.

SQLite's write-ahead log shares memory between connections, and its locks are those of the file system: over a network
neither can be relied on (https://www.sqlite.org/wal.html, https://www.sqlite.org/howtocorrupt.html).
"""

from __future__ import annotations

__all__ = ["MOUNTINFO", "NETWORK_TYPES", "Space", "file_system", "network_mount", "spaces"]

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bpsd.diskfull import mount_point

MOUNTINFO = Path("/proc/self/mountinfo")

NETWORK_TYPES = frozenset(
    {
        "9p",
        "acfs",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "davfs",
        "fuse.beegfs",
        "fuse.ceph",
        "fuse.ceph-fuse",
        "fuse.cvmfs2",
        "fuse.davfs2",
        "fuse.glusterfs",
        "fuse.juicefs",
        "fuse.moosefs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "orangefs",
        "panfs",
        "pvfs2",
        "quobyte",
        "smb2",
        "smb3",
        "smbfs",
        "wekafs",
    }
)
"""File system types (as the kernel names them) whose files other hosts may hold open too."""


def _unescaped(field: str) -> str:
    r"""A field of mountinfo with its octal escapes (``\040`` for a space) undone (proc_pid_mountinfo(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def file_system(path: Path, mountinfo: str) -> tuple[str, str]:
    """The mount point that holds ``path`` and its type.

    Parameters
    ----------
    path : `~pathlib.Path`
        Absolute, without symbolic links.
    mountinfo : `str`
        The text of ``/proc/self/mountinfo``.

    Returns
    -------
    mount_point, type : `str`
        Two empty strings if no line covers the path.
    """
    best, kind = "", ""
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = _unescaped(fields[4])
        # Later lines lie over earlier ones on the same point: hence "not shorter" and not "longer".
        if len(point) >= len(best) and path.is_relative_to(point):
            best, kind = point, after.split(" ")[0]
    return best, kind


def network_mount(folder: Path) -> tuple[str, str] | None:
    """The mount point and type of the network file system that an existing folder lies on; `None` if it is local.

    It blocks: call it in a thread.
    """
    try:
        mountinfo = MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None  # nothing to ask (not Linux): like any other program we trust the path
    point, kind = file_system(folder.resolve(), mountinfo)
    return (point, kind) if kind in NETWORK_TYPES else None


@dataclass(slots=True)
class Space:
    """The space on one file system; ``uses`` says what the daemon keeps there."""

    mount: str
    free_bytes: int
    free_files: bool
    uses: list[str] = field(default_factory=list)


def spaces(folders: Mapping[str, Path]) -> list[Space]:
    """Return the space on each file system that holds one of the folders, in their order.

    A folder that does not exist yet counts for the nearest parent that does. It blocks: call it in a thread.
    """
    found: dict[str, Space] = {}
    for use, folder in folders.items():
        mount = mount_point(folder)
        if mount not in found:
            status = os.statvfs(mount)
            free_files = not status.f_files or status.f_favail > 0  # some file systems do not count files
            found[mount] = Space(mount, status.f_bavail * status.f_frsize, free_files)
        found[mount].uses.append(use)
    return list(found.values())
