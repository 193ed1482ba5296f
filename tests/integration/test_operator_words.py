"""What an operator reads when something is wrong: ``bpsctl`` as a process before a real daemon."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.bpsctl import PATIENCE_S, SOURCE, bpsctl
from tests.integration.daemons import FAST, RunningDaemon, true_job, until


@pytest.fixture
def daemon(state_dir: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(state_dir, {"toy": {"type": "scripted"}, "other": {"type": "scripted"}}) as running:
        yield running


def workflow(folder: Path, **fields: Any) -> str:
    """A file with a workflow of one job."""
    path = folder / "flow.json"
    path.write_text(json.dumps({"bpsd": 1, "name": "test", "jobs": [true_job("a_1", **fields)]}))
    return str(path)


def submit(daemon: RunningDaemon, backend: str = "toy") -> str:
    done = bpsctl(daemon.socket, "submit", "-q", "-b", backend, workflow(daemon.folder))
    assert done.code == 0, done.err
    return done.out.strip()


def test_an_order_for_an_id_of_two_backends_names_both(daemon: RunningDaemon) -> None:
    runs = [submit(daemon), submit(daemon, "other")]

    done = bpsctl(daemon.socket, "cancel", "1")

    assert done.code == 1
    assert done.err.splitlines() == [
        "bpsctl: cancel 1: 2 runs are called 1",
        "  name the backend (--backend), or use one of the ids that begin with r",
        f"  {runs[0]}  toy  1  test",
        f"  {runs[1]}  other  1  test",
    ]


def test_a_cancel_of_what_nobody_knows_says_so(daemon: RunningDaemon) -> None:
    run = submit(daemon)
    with daemon.wms("toy").edit() as wms:
        wms.runs.clear()
    until(lambda: bpsctl(daemon.socket, "status", run).out.startswith("UNKNOWN"), "the run is gone")

    done = bpsctl(daemon.socket, "cancel", run)

    assert done.code == 1
    assert done.out.startswith(f"{run}: not cancelled: backend toy does not know run {run} any more: ")


def test_a_run_that_was_never_submitted_has_no_logs(daemon: RunningDaemon) -> None:
    done = bpsctl(daemon.socket, "submit", "-b", "toy", workflow(daemon.folder, executable="missing"))
    assert done.code == 1
    run = done.err.partition("run ")[2].partition(":")[0]

    done = bpsctl(daemon.socket, "logs", run, "a_1")

    assert done.code == 1
    assert f"run {run} does not exist: its submission was refused: the workflow " in done.err
    assert "the executable missing is not there" in done.err


def test_a_submission_tells_what_is_only_approximated(state_dir: Path) -> None:
    ledger = str(state_dir / "ledger")
    with RunningDaemon(state_dir, {"here": {"type": "local", "ledger": ledger}}) as daemon:
        done = bpsctl(daemon.socket, "submit", "--wait", workflow(state_dir, queue="long"))

    assert done.code == 0
    assert "flow.json: warning: queue of 1 job is approximated by backend here: " in done.err


IMPATIENT = """
import sys
from bpsd.cli.bpsctl import main
from bpsd.client import endpoint
endpoint.RETURN_WITHIN_S = 0.2
sys.exit(main(sys.argv[1:]))
"""


def test_a_daemon_that_goes_away_leaves_the_name_of_the_run(daemon: RunningDaemon) -> None:
    daemon.wms("toy").fault("submit", "hang")
    words = ("--socket", str(daemon.socket), "submit", "-b", "toy", workflow(daemon.folder))
    with subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, *words], stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": SOURCE}
    ) as process:
        with daemon.client() as client:
            run = until(lambda: client.commands()["commands"], "the submission is accepted")[0]["run"]
        daemon.kill()
        _, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 4
    assert err.splitlines()[-1] == (
        f"bpsctl: no longer waiting; run {run} goes on: `bpsctl status {run}` tells, `bpsctl cancel` ends it"
    )


def test_a_live_run_of_a_backend_that_was_taken_out_is_marked(daemon: RunningDaemon) -> None:
    run = submit(daemon)
    daemon.configure({**FAST, "backends": {"other": {"type": "scripted"}}})
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "toy" not in bpsctl(daemon.socket, "backends").out, "the backend is gone")

    report, status = bpsctl(daemon.socket, "report"), bpsctl(daemon.socket, "status", run)

    assert "backend toy: not configured any more" in report.out.splitlines()
    assert report.out.splitlines()[2].split()[-2].endswith("s*")
    assert status.out.splitlines()[-1] == (
        "  the backend does not answer, so this may have changed: it is not configured any more"
    )


def test_a_run_whose_folder_comes_back_is_seen_again(state_dir: Path) -> None:
    backend = {"type": "local", "ledger": str(state_dir / "ledger")}
    with RunningDaemon(state_dir, {"here": backend}) as daemon, daemon.client() as client:
        done = bpsctl(daemon.socket, "submit", "-q", workflow(state_dir, executable="sleep", arguments="60"))
        run = done.out.strip()
        until(lambda: client.status(run)["state"] == "RUNNING", "it runs")
        path = Path(client.report(run)["runs"][0]["path"])
        path.rename(state_dir / "away")
        until(lambda: client.status(run)["state"] == "UNKNOWN", "it is missed")
        (state_dir / "away").rename(path)

        until(lambda: client.status(run)["state"] == "RUNNING", "it is seen again")

        assert bpsctl(daemon.socket, "cancel", run).code == 0
