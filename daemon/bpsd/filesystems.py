"""Which file system a path lies on, and whether a database may live there.

SQLite's write-ahead log shares memory between connections, and its locks are those of the file system: over a network
neither can be relied on (https://www.sqlite.org/wal.html, https://www.sqlite.org/howtocorrupt.html).
"""

from __future__ import annotations

__all__ = ["MOUNTINFO", "NETWORK_TYPES", "file_system", "is_network", "require_local"]

import re
from pathlib import Path

from bpsd.errors import CannotStart

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


def is_network(kind: str) -> bool:
    """Whether a type of file system is shared over a network."""
    return kind in NETWORK_TYPES


def require_local(folder: Path, *, what: str, mountinfo: Path = MOUNTINFO) -> None:
    """Make sure that an existing folder may hold a database. It blocks: call it in a thread.

    Raises
    ------
    CannotStart
        If it lies on a network file system.
    """
    try:
        text = mountinfo.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return  # no such system to ask (not Linux): as good as any other program, we trust the path
    point, kind = file_system(folder.resolve(), text)
    if is_network(kind):
        raise CannotStart(
            f"{what} would lie in {folder}, on the network file system {point} ({kind}),"
            " where databases are damaged by locks that do not hold",
            advice="set state_dir to a folder on a local disk, or state_on_network: true to run there without a"
            " write-ahead log, slower and on one host at a time",
            path=str(folder),
            mount_point=point,
            file_system=kind,
        )
