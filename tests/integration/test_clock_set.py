"""The clock of a machine is set in the middle of everything, for the daemon, its drivers, hosts and workers alike."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpsd.client.sync import Client
from bpsd.testing.observer import shell_job
from tests.integration.daemons import RunningDaemon, document, until
from tests.integration.test_bps_plugin import tiny_settings

HOUR_S, YEAR_S = 3600.0, 366 * 86_400.0

SITE = """
import os, time
true_time, offset = time.time, os.environ["TEST_CLOCK_OFFSET"]
def shifted():
    with open(offset) as file:
        return true_time() + float(file.read() or 0)
time.time = shifted
"""
"""Sets the clock of every Python that finds it, by what a file says."""


class Clock:
    """The clock of all processes of a daemon."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.offset = folder, folder / "offset"
        (folder / "sitecustomize.py").write_text(SITE)
        self.set(0.0)

    @property
    def variables(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder), "TEST_CLOCK_OFFSET": str(self.offset)}

    def set(self, offset_s: float) -> None:
        half = self.folder / "half"
        half.write_text(str(offset_s))
        half.replace(self.offset)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
def daemon(state_dir: Path, clock: Clock) -> Iterator[RunningDaemon]:
    plugin = tiny_settings(state_dir, "BlockingService", blocks=True)
    plugin["environment"] |= {
        "PYTHONPATH": f"{clock.folder}:{plugin['environment']['PYTHONPATH']}",
        "TEST_CLOCK_OFFSET": str(clock.offset),
    }
    backends: dict[str, Any] = {
        "here": {"type": "local", "cores": 2, "ledger": str(state_dir / "ledger"), "terminate_grace_s": 0.5},
        "plugin": {"type": "bps_plugin", **plugin},
        "toy": {"type": "scripted"},
    }
    running = RunningDaemon(state_dir, backends)
    running.environment = {**os.environ, **clock.variables}
    with running:
        yield running


def state_of(client: Client, run: str) -> str:
    state: str = client.status(run)["state"]
    return state


JUMPS = [-5.0, 5.0, -HOUR_S, HOUR_S, -YEAR_S, YEAR_S]


@pytest.mark.parametrize("jump_s", JUMPS)
def test_a_hold_and_all_jobs_are_shown_as_they_are(
    daemon: RunningDaemon, clock: Clock, tmp_path: Path, jump_s: float
) -> None:
    """Set back, a hold was shown as no hold, and an end was lost: the run ended SUCCEEDED with a job RUNNING."""
    with daemon.client() as client:
        gates = [tmp_path / f"gate{n}" for n in range(3)]
        jobs = [
            shell_job("a_1", f"until test -e {gates[0]}; do sleep 0.05; done"),
            shell_job("a_2", f"until test -e {gates[1]}; do sleep 0.05; done", parents=["a_1"]),
            shell_job("a_3", f"until test -e {gates[2]}; do sleep 0.05; done", parents=["a_2"]),
        ]
        run = client.submit_document(document(*jobs), backend="here")["run"]

        def jobs_are(*states: str) -> bool:
            return [row["state"] for row in client.jobs(run)["jobs"]] == list(states)

        until(lambda: jobs_are("RUNNING", "UNREADY", "UNREADY"), "the first runs")
        clock.set(jump_s)
        client.wait_command(client.hold(run)["id"], timeout_s=60)
        until(lambda: state_of(client, run) == "HELD", "the hold is seen")
        gates[0].touch()
        until(lambda: jobs_are("SUCCEEDED", "READY", "UNREADY"), "its end is seen")
        assert state_of(client, run) == "HELD"
        clock.set(2 * jump_s)
        client.wait_command(client.release(run)["id"], timeout_s=60)
        until(lambda: state_of(client, run) == "RUNNING", "the release is seen")
        until(lambda: jobs_are("SUCCEEDED", "RUNNING", "UNREADY"), "the second runs")
        clock.set(0.0)
        gates[1].touch()
        until(lambda: jobs_are("SUCCEEDED", "SUCCEEDED", "RUNNING"), "the third runs")
        gates[2].touch()
        until(lambda: state_of(client, run) == "SUCCEEDED", "the run ends")
        assert jobs_are("SUCCEEDED", "SUCCEEDED", "SUCCEEDED")


@pytest.mark.parametrize("jump_s", [-HOUR_S, YEAR_S])
def test_a_hosted_run_is_shown_and_cancelled_as_it_is(
    daemon: RunningDaemon, clock: Clock, tmp_path: Path, jump_s: float
) -> None:
    with daemon.client() as client:
        gate = tmp_path / "gate"
        jobs = [
            shell_job("a_1", f"until test -e {gate}; do sleep 0.05; done"),
            shell_job("a_2", "exec sleep 300", parents=["a_1"]),
        ]
        run = client.submit_document(document(*jobs), backend="plugin")["run"]
        until(lambda: state_of(client, run) == "RUNNING", "it runs")
        clock.set(jump_s)
        gate.touch()
        until(lambda: client.jobs(run, state=["SUCCEEDED"])["jobs"], "the end of the first is seen")
        assert state_of(client, run) == "RUNNING"
        clock.set(-jump_s)
        client.wait_command(client.cancel(run)["id"], timeout_s=60)
        assert state_of(client, run) == "DELETED"


def test_commands_expire_by_the_time_that_passes_and_cancels_never(daemon: RunningDaemon, clock: Clock) -> None:
    """In the queue of a backend that does not answer; also over a restart of the daemon."""
    with daemon.client() as client:
        wms = daemon.wms("toy")
        run = client.submit_document(document(shell_job("a_1", "true")), backend="toy")["run"]
        until(lambda: client.status(run)["wms_id"], "it is submitted")
        wms.change("1", state="RUNNING")
        until(lambda: state_of(client, run) == "RUNNING", "it is seen")
        wms.fault("prepare", "error")
        wms.fault("cancel", "error")
        waits = client.submit_document(document(shell_job("b_1", "true")), backend="toy", expires_s=HOUR_S)
        short = client.submit_document(document(shell_job("c_1", "true")), backend="toy", expires_s=1.0)
        cancel = client.cancel(run, expires_s=0.1)

        def state(command: Any) -> str:
            return str(client.commands(id=command["id"])["commands"][0]["state"])

        until(lambda: state(short) == "EXPIRED", "what had a second has expired")
        for jump_s in JUMPS:
            clock.set(jump_s)
            time.sleep(0.5)
            assert state(waits) in ("ACCEPTED", "RUNNING")
            assert state(cancel) in ("ACCEPTED", "RUNNING")
        clock.set(YEAR_S)
        daemon.kill()
        daemon.start()
    with daemon.client() as client:
        time.sleep(1.0)
        assert state(waits) in ("ACCEPTED", "RUNNING", "IN_DOUBT")
        assert state(cancel) in ("ACCEPTED", "RUNNING", "IN_DOUBT")
        wms.fault("prepare", None)
        wms.fault("cancel", None)
        until(lambda: state(waits) == "DONE", "it is submitted at last")
        until(lambda: state(cancel) == "DONE", "it is cancelled at last")
