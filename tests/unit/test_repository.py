"""What is committed: nothing of somebody's machine, and nothing that was not agreed."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "adapters",
    "benchmarks",
    "config",
    "constraints.txt",
    "daemon",
    "docs",
    "pyproject.toml",
    "systemd",
    "tests",
}

FORBIDDEN = {
    "a package registry's address": rb"https?://[^\s\"')]*(pypi|pythonhosted|anaconda|conda-forge|/simple\b)",
    "an option of pip that names one": rb"--(extra-)?index-url|--find-links[ =]+\S*//|--trusted-host",
    "a path of a developer's machine": rb"(?<![\w.$}/-])/(root|home/(?!op\b|you\b|[a-z]\b)\w+|Users/\w+|work|mnt/c)/",
    "an end by name: signals go to processes that we started, by their id": rb"\b(pkill|killall)\b",
    "a conflict that was left": rb"(?m)^(<<<<<<<|>>>>>>>) ",
}
MAX_FILE_BYTES = 512 * 1024


def _committed() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_committed_file_holds(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    myself = Path(__file__).relative_to(ROOT).as_posix()

    found = [
        f"{name}: {match.group().decode(errors='replace')}"
        for name in _committed()
        if name != myself and (match := pattern.search((ROOT / name).read_bytes()))
    ]

    assert found == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a package registry's address", b"see https://pypi.org/project/x"),
        ("an option of pip that names one", b"pip install --index-url x"),
        ("an option of pip that names one", b"pip install --find-links https://x.org/wheels bpsd"),
        ("a path of a developer's machine", b"cd /home/somebody/src"),
        ("an end by name: signals go to processes that we started, by their id", b"pkill -f bpsd"),
        ("a conflict that was left", b"a\n<<<<<<< HEAD\n"),
    ],
)
def test_patterns_find_what_they_are_for(what: str, text: bytes) -> None:
    assert re.search(FORBIDDEN[what], text)


def test_top_level_holds_what_was_agreed() -> None:
    assert {name.partition("/")[0] for name in _committed()} - TOP_LEVEL == set()


def test_no_committed_file_is_big() -> None:
    assert [name for name in _committed() if (ROOT / name).stat().st_size > MAX_FILE_BYTES] == []


def test_constraints_pin_every_dependency_plainly() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]

    def key(requirement: str) -> str:
        return re.split(r"[<>=!~ \[]", requirement)[0].lower().replace("_", "-")

    assert {key(each) for each in wanted} - {key(pin) for pin in pins} == set()


@pytest.mark.parametrize("folder", ["unit", "integration"])
def test_every_test_folder_is_a_package(folder: str) -> None:
    """Else mypy stops at two test files of the same name."""
    tests = ROOT / "tests" / folder

    assert [
        path for path in {tests, *(f.parent for f in tests.rglob("*.py"))} if not (path / "__init__.py").exists()
    ] == []
