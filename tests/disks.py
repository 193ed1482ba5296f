"""A disk that gets full and free again, at the test's word."""

from __future__ import annotations

__all__ = ["DISKS", "Disk", "small_disk"]

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

TMPFS_BYTES = 4 * 1024 * 1024


class Disk:
    """A folder and two switches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Leave no room for anything."""
        raise NotImplementedError

    def free(self) -> None:
        """Give the room back."""
        raise NotImplementedError


class _Tmpfs(Disk):
    """A file system of its own, filled with one big file."""

    def fill(self) -> None:
        with (self.folder / "ballast").open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            for size in (65536, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        ballast.write(b"\0" * size)

    def free(self) -> None:
        (self.folder / "ballast").unlink()


class _FileSize(Disk):
    """No file of this process may grow (setrlimit(2); Python ignores the signal that comes with it)."""

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def free(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def _mount(folder: Path) -> bool:
    if os.geteuid() != 0:
        return False
    order = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES},mode=700", "tmpfs", str(folder)]
    return subprocess.run(order, capture_output=True, check=False).returncode == 0


def _can_mount() -> bool:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        if not _mount(Path(folder)):
            return False
        subprocess.run(["umount", folder], check=True)
        return True


DISKS = ("file_size", "tmpfs") if _can_mount() else ("file_size",)
"""What `small_disk` can make here: a file system of its own only for who may mount one."""


@contextlib.contextmanager
def small_disk(kind: str, folder: Path) -> Iterator[Disk]:
    """A disk of one of `DISKS` in an existing folder; free again at the end."""
    if kind == "file_size":
        disk: Disk = _FileSize(folder)
        try:
            yield disk
        finally:
            disk.free()
        return
    assert _mount(folder)
    try:
        yield _Tmpfs(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a process that a failed test left may be in it
