"""Processes of ours that are stopped and continued (SIGSTOP, a debugger, a frozen group, a suspended machine)."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from bpsd.testing.observer import shell_job
from bpsd_adapters.local import history as histories
from bpsd_adapters.local import processes
from bpsd_adapters.local.events import Begin
from bpsd_adapters.local.layout import RunFolder
from tests.figures import figure
from tests.integration.daemons import RunningDaemon, document, until
from tests.integration.local_support import events
from tests.integration.test_bps_plugin import tiny_settings

STOPS = figure("STOPS", test=400, soak=20_000)

pytestmark = pytest.mark.timeout(900)


def ours(daemon: RunningDaemon) -> list[int]:
    """The processes of this daemon: itself, its workers, and the drivers and hosts of its runs with their keepers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if b"bpsd" in line and b"python" in line and os.fsencode(daemon.folder) in line:
                    found.append(int(entry.name))
    return found


class Storm(threading.Thread):
    """Stops and continues processes of a daemon at random."""

    def __init__(self, daemon: RunningDaemon) -> None:
        super().__init__(daemon=True)
        self.bpsd, self.chance, self.stopped = daemon, random.Random(7), 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set() and (victims := ours(self.bpsd)):
            for pid in self.chance.sample(victims, min(len(victims), 3)):
                self.stop_and_continue(pid)

    def stop_and_continue(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                self.over.wait(self.chance.choice([0.0, 0.001, 0.02, 0.1]))
            finally:
                os.kill(pid, signal.SIGCONT)
            self.stopped += 1


def test_runs_go_on_while_all_processes_are_stopped_and_continued(state_dir: Path, tmp_path: Path) -> None:
    backends = {
        "here": {"type": "local", "cores": 2, "ledger": str(state_dir / "ledger")},
        "plugin": {"type": "bps_plugin", **tiny_settings(state_dir, "BlockingService", blocks=True)},
    }
    with RunningDaemon(state_dir, backends) as daemon, daemon.client() as client:
        storm = Storm(daemon)
        storm.start()
        try:
            runs: list[str] = []
            while storm.stopped < STOPS:
                if not runs or all(client.status(run)["state"] == "SUCCEEDED" for run in runs):
                    jobs = [shell_job(f"a_{n}", f"sleep 0.{n % 3}", request_walltime="01:00:00") for n in range(12)]
                    runs = [client.submit_document(document(*jobs), backend=name)["run"] for name in ("here", "plugin")]
                time.sleep(0.2)
                states = [client.status(run)["state"] for run in runs]
                assert not {"FAILED", "DELETED", "UNKNOWN"} & set(states), client.report(runs[states.index("FAILED")])
        finally:
            storm.over.set()
            storm.join()
        until(lambda: all(client.status(run)["state"] == "SUCCEEDED" for run in runs), "the last runs end well")
        assert storm.stopped >= STOPS


def test_a_driver_that_waits_survives_hundreds_of_stops(tmp_path: Path, state_dir: Path) -> None:
    """A wait with a time limit that is interrupted just when it is over, again and again."""
    backends = {"here": {"type": "local", "cores": 1, "ledger": str(state_dir / "ledger")}}
    with RunningDaemon(state_dir, backends) as daemon, daemon.client() as client:
        waits = f"while ! test -e {tmp_path}/go; do sleep 0.05; done"
        # The second waits for room, so the driver looks at the ledger every second.
        jobs = shell_job("a_1", waits, request_walltime="01:00:00"), shell_job("a_2", "true")
        run = client.submit_document(document(*jobs))["run"]
        until(lambda: client.status(run)["state"] == "RUNNING", "it runs")
        folder = RunFolder(Path(client.report(run)["runs"][0]["path"]))
        driver = histories.read(folder.log).driver
        chance = random.Random(3)
        deadline = time.monotonic() + 30
        for _ in range(STOPS):
            if time.monotonic() > deadline:
                break
            processes.send(driver, signal.SIGSTOP)
            time.sleep(chance.uniform(0, 0.01) if chance.random() < 0.95 else 1.05)
            processes.send(driver, signal.SIGCONT)
            time.sleep(chance.uniform(0, 0.01))
            assert processes.is_alive(driver), folder.driver_err.read_text()
        (tmp_path / "go").touch()
        until(lambda: client.status(run)["state"] == "SUCCEEDED", "the run ends well")
        assert sum(isinstance(event, Begin) for event in events(folder)) == 1
