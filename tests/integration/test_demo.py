"""`make demo`, as a person sees it: the whole tour, and what is left when it is broken off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.leftovers import SESSION_VARIABLE, end_leftovers

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "config" / "examples" / "demo" / "demo.py"


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> str:
    """A mark of its own for what the demo starts, so that it can be told from what other tests did."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(SESSION_VARIABLE, mark)
    return mark


def _start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, DEMO, folder],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.timeout(300)
def test_tour_ends_well_and_leaves_its_folder_alone(state_dir: Path, session: str) -> None:
    # So deep that a Unix socket has no room in it, as a checkout may be.
    folder = state_dir / ("d" * 100) / "run"
    with _start(folder) as demo:
        assert demo.stdout is not None
        told = demo.stdout.read()

    assert demo.returncode == 0, told
    assert end_leftovers(session, patience_s=5) == []
    assert told.index("$ kill -9 ") < told.index("no daemon answers") < told.index("v5_d2.pgm: the header promises")
    assert told.index("FAILED") < told.index("bpsctl restart") < told.rindex("SUCCEEDED")
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["complete"]
    assert list(state_dir.iterdir()) == [folder.parent]


@pytest.mark.timeout(300)
def test_tour_that_is_broken_off_leaves_nothing_running(state_dir: Path, session: str) -> None:
    with _start(state_dir / "run") as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("$ bpsctl wait"):
                os.killpg(demo.pid, signal.SIGINT)  # as Ctrl-C on a terminal does
                break
        rest = demo.stdout.read()

    assert demo.returncode == 130, rest
    assert end_leftovers(session, patience_s=5) == [], rest


def test_folder_of_somebody_else_is_not_touched(state_dir: Path) -> None:
    (state_dir / "mine").mkdir()
    (state_dir / "mine" / "thesis.tex").touch()

    with _start(state_dir / "mine") as demo:
        assert demo.stdout is not None
        told = demo.stdout.read()

    assert demo.returncode == 1
    assert "was not made by the demo" in told
    assert [path.name for path in (state_dir / "mine").iterdir()] == ["thesis.tex"]
