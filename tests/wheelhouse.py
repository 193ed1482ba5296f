"""``make wheelhouse``: a folder from which pip installs bpsd where there is no package index.

Beside the wheels stands ``requirements.txt``: every file by its SHA-256. Nothing in the folder says where a file came
from.
"""

from __future__ import annotations

__all__ = ["build_wheelhouse"]

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import bpsd
from tests.wheels import build_wheel

ROOT = Path(__file__).parents[1]

NOT_INCLUDED = ("dev", "lsst", "parsl")
"""Extras that are left out: those of developers, and those for an environment that LSST's packages are already in."""

COMMENT = """\
# bpsd {version} and all that it needs, for Python {python} on this kind of machine. In a new virtual environment:
#   pip install --no-index --find-links FOLDER --require-hashes -r FOLDER/requirements.txt
"""


def build_wheelhouse(folder: Path) -> Path:
    """Replace a folder by the wheels of this tree and its dependencies; return the list of requirements in it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    wheel = build_wheel(folder)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "wheel", "-qq", *pinned, "--wheel-dir", str(folder), f"{wheel}{_extras()}"], check=True)
    lines = sorted(_requirement(path) for path in folder.glob("*.whl"))
    listed = folder / "requirements.txt"
    python = ".".join(map(str, sys.version_info[:2]))
    listed.write_text(COMMENT.format(version=bpsd.__version__, python=python) + "".join(lines), encoding="utf-8")
    return listed


def _extras() -> str:
    """Return the extras of a daemon as a requirement names them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = sorted({*project["optional-dependencies"]} - {*NOT_INCLUDED})
    return f"[{','.join(names)}]" if names else ""


def _requirement(wheel: Path) -> str:
    name, version = wheel.name.split("-")[:2]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"{re.sub('[-_.]+', '-', name).lower()}=={version} --hash=sha256:{digest}\n"


def main() -> None:
    """Build it in the folder that is named."""
    listed = build_wheelhouse(Path(sys.argv[1]).absolute())
    folder = listed.parent
    print(f"{len(list(folder.glob('*.whl')))} wheels in {folder}. On a machine of this kind, in a virtual environment:")
    print(f"  pip install --no-index --find-links {folder.name} --require-hashes -r {folder.name}/{listed.name}")


if __name__ == "__main__":
    main()
