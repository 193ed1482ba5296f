"""Whether the kernel ended processes of our control group for want of memory, of either version of control groups."""

from __future__ import annotations

__all__ = ["OomCounter"]

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


class OomCounter:
    """The kernel's count of processes that it ended for memory in the control group of this process.

    Parameters
    ----------
    root : `~pathlib.Path`, optional
        Where the control groups are mounted.
    own : `~pathlib.Path`, optional
        What names ours (``/proc/PID/cgroup``, cgroups(7)).
    """

    def __init__(self, root: Path = CGROUPS, own: Path = OWN) -> None:
        self._file = _counting_file(root, own)

    def __repr__(self) -> str:
        return f"<OomCounter {self._file}>"

    def count(self) -> int:
        """Return the count; 0 if the kernel keeps none for us."""
        if self._file is None:
            return 0
        try:
            words = self._file.read_text("ascii").split()
            return int(words[words.index("oom_kill") + 1])
        except (OSError, ValueError, IndexError):
            return 0


def _counting_file(root: Path, own: Path) -> Path | None:
    try:
        lines = [line.split(":", 2) for line in own.read_text("utf-8").splitlines()]
    except OSError:
        return None
    groups = {controllers: path.lstrip("/") for _, controllers, path in lines}
    version_1 = next((path for names, path in groups.items() if "memory" in names.split(",")), None)
    files = [] if version_1 is None else [root / "memory" / version_1 / "memory.oom_control"]
    if "" in groups:
        files.append(root / groups[""] / "memory.events")
    return next((file for file in files if file.exists()), None)
