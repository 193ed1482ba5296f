"""The unit tests and the demo on every other Python that `tests/testbeds/pythons` found."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pythons import OTHER_PYTHONS

ROOT = Path(__file__).parents[2]
PATIENCE_S = 3000
"""Limit of one run: far more than it takes on a machine that does nothing else (two minutes)."""

pytestmark = pytest.mark.timeout(PATIENCE_S + 60)


class Runs:
    """One program on every other Python, all started at once; each writes to a file of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.logs = {version: folder / f"{version}.log" for version in OTHER_PYTHONS}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for version, python in OTHER_PYTHONS.items():
            with self.logs[version].open("wb") as log:
                self.processes[version] = subprocess.Popen(
                    [python, *(argument.replace("FOLDER", str(folder / version)) for argument in arguments)],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},  # a run that hangs shows where
                )

    def said(self, version: str) -> str:
        """Wait for the run on a Python; return what it printed."""
        process = self.processes[version]
        code = process.wait(PATIENCE_S)
        said = self.logs[version].read_text(encoding="utf-8", errors="replace")
        assert code == 0, said[-6000:]
        return said

    def end(self) -> None:
        """End what still runs."""
        for process in self.processes.values():
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def unit_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(tmp_path_factory.mktemp("unit"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit")
    yield runs
    runs.end()


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(tmp_path_factory.mktemp("demo"), "config/examples/demo/demo.py", "FOLDER")
    yield runs
    runs.end()


@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_unit_tests_pass(unit_tests: Runs, version: str) -> None:
    assert " passed in " in unit_tests.said(version).splitlines()[-1]


@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_demo_passes(demos: Runs, version: str) -> None:
    assert "SUCCEEDED" in demos.said(version)


def test_another_python_was_found() -> None:
    assert OTHER_PYTHONS, "there is none: run tests/testbeds/setup"
