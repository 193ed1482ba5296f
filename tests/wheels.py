"""Wheels of bpsd: of this tree, and of the commit before it."""

from __future__ import annotations

__all__ = ["build_wheel", "previous_commit", "previous_wheel"]

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build_wheel(folder: Path, source: Path = ROOT) -> Path:
    """Build the wheel of a source tree into a folder."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def previous_commit(root: Path) -> str | None:
    """The commit before the one that is checked out; `None` where there is no history (a shallow clone, an archive)."""
    ask = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD~1"]
    asked = subprocess.run(ask, capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None


def previous_wheel(folder: Path) -> Path:
    """Build the wheel of the commit before this one; without history, that of this tree."""
    commit = previous_commit(ROOT)
    if commit is None:
        return build_wheel(folder)
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True).stdout
    source = folder / "source"
    source.mkdir()
    subprocess.run(["tar", "x"], cwd=source, input=archive, check=True)
    return build_wheel(folder, source)
