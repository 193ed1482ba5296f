"""The harness itself: a check that never fires would prove nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import anyio
import pytest
from blockbuster import BlockingError

import bpsd
from tests.figures import figure
from tests.leftovers import SESSION_VARIABLE, end_leftovers, find_leftovers
from tests.soak_table import Row, soak_table, told_before
from tests.wheels import previous_commit


def _as_if_in_bpsd(source: str) -> None:
    """Run a line of code whose file lies in the daemon's package, as far as anybody can tell."""
    exec(compile(source, str(Path(bpsd.__file__).parent / "pretended.py"), "exec"))


@pytest.mark.parametrize(
    "source",
    [
        "import time; time.sleep(0)",
        "open('/dev/null').close()",
        "import pathlib; pathlib.Path('/dev/null').read_text()",
        "import contextlib, sqlite3 as s\nwith contextlib.closing(s.connect(':memory:')) as db: db.execute('select 1')",
        "import fcntl; fcntl.flock(0, fcntl.LOCK_EX)",
        "import os; os.fsync(0)",
    ],
)
async def test_blocking_call_from_our_code_is_caught_in_the_loop(source: str) -> None:
    with pytest.raises(BlockingError):
        _as_if_in_bpsd(source)


async def test_what_does_not_stop_the_loop_is_let_through() -> None:
    _as_if_in_bpsd("import sys; sys.stderr.write('a log line\\n')")
    await anyio.to_thread.run_sync(_as_if_in_bpsd, "open('/dev/null').close()")
    time.sleep(0)  # noqa: ASYNC251 - a test may block its own loop


def test_process_that_left_its_session_is_found_with_its_test_and_ended() -> None:
    session = uuid.uuid4().hex
    child = subprocess.Popen(
        ["env", f"{SESSION_VARIABLE}={session}", sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()

    (found,) = find_leftovers(session)

    assert found.pid == child.pid
    assert "test_process_that_left_its_session" in found.test
    assert "input()" in str(found)
    assert end_leftovers(session, patience_s=0) == [found]
    assert child.wait() == -9
    assert find_leftovers(session) == []
    child.stdin.close()
    child.stdout.close()


def test_figure_is_set_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.figures.FIGURES", {})
    monkeypatch.setenv("BPSD_HARNESS", "7")

    assert figure("HARNESS", test=1, soak=2) == 7


def test_a_part_of_a_soak_renews_its_own_rows_alone() -> None:
    old = Row("tests/x.py", "`KILLS` 500 (30)", "9 passed", "1.5 min", "2026-11-26 05:00 UTC", "abc", "3.11.7")
    other = Row("tests/y.py", "-", "1 failed, 2 passed", "3 s", "2026-11-26 05:00 UTC", "abc+", "3.11.7")

    page = soak_table([other, old], "a machine", 500)

    assert "| tests/x.py | `KILLS` 500 (30) | 9 passed | 1.5 min | 2026-11-26 05:00 UTC | abc | 3.11.7 |" in page
    assert "Not passed: tests/y.py\n" in page
    assert told_before(page) == [old, other]


def test_a_soak_keeps_its_page(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "tests" / f"test_{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / "tests" / f"test_{name}.py").write_text("def test_a(): pass\ndef test_b(): raise ValueError\n")
    page = tmp_path / "soak.md"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "BPSD_SOAK_TABLE": str(page)}

    for chosen in (["tests"], ["tests/test_one.py", "-k", "test_a"]):
        argv = [sys.executable, "-m", "pytest", "-p", "tests.soak_table", "-p", "no:cacheprovider", *chosen]
        subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, check=False)

    results = {row.file: row.result for row in told_before(page.read_text())}
    assert results == {"tests/test_one.py": "1 passed", "tests/test_two.py": "1 passed, 1 failed"}


def test_socket_path_fits_a_unix_socket(socket_path: Path) -> None:
    assert len(bytes(socket_path)) < 60
    assert list(socket_path.parent.iterdir()) == []


def test_the_commit_before_is_found_where_there_is_one(tmp_path: Path) -> None:
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C")
    whole, shallow = tmp_path / "whole", tmp_path / "shallow"
    subprocess.run(["git", "init", "-q", str(whole)], check=True)
    assert previous_commit(whole) is None
    for message in ("first", "second"):
        subprocess.run([*git, str(whole), "commit", "-q", "--allow-empty", "-m", message], check=True)
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{whole}", str(shallow)], check=True)

    first = subprocess.run([*git, str(whole), "rev-parse", "HEAD~1"], check=True, capture_output=True, text=True)
    assert previous_commit(whole) == first.stdout.strip()
    assert previous_commit(shallow) is None
    assert previous_commit(tmp_path) is None
