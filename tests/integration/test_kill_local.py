"""Real jobs under kills: the daemon and the drivers die at random moments, and no job runs twice or beside itself."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from bpsd.client.sync import Client
from bpsd.testing.observer import shell_job
from tests.figures import figure
from tests.integration.daemons import RunningDaemon, document, until

DRIVER_KILLS = figure("DRIVER_KILLS", test=8, soak=120)
"""How often a driver, the daemon or both are killed under a running run."""

OVER = {"SUCCEEDED", "FAILED", "DELETED"}


def guarded(name: str, folder: Path, *parents: str) -> dict[str, Any]:
    """A job that notices another attempt of itself under way, and says what it did."""
    script = (
        f"mkdir {folder}/{name}.busy || echo {name} >> {folder}/twice; sleep 0.1; "
        f"rmdir {folder}/{name}.busy; echo {name} >> {folder}/ran"
    )
    return shell_job(name, script, parents=parents)


def drivers(daemon: RunningDaemon) -> list[int]:
    """The drivers of this daemon's runs, found by the folder that they were given."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"bpsd_adapters.local.driver" in line and os.fsencode(daemon.state) in line:
                found.append(int(entry.name))
    return found


def over(client: Client, run: str) -> str | None:
    state = str(client.status(run)["state"])
    return state if state in OVER else None


def test_kills_of_drivers_and_daemon_repeat_nothing_and_lose_nothing(state_dir: Path) -> None:
    chance = random.Random(20261122)
    work = state_dir / "work"
    work.mkdir()
    layers = [[f"j{layer}_{n}" for n in range(3)] for layer in range(5)]
    jobs = [guarded(name, work, *(layers[n - 1] if n else ())) for n, layer in enumerate(layers) for name in layer]
    local = {"type": "local", "ledger": str(state_dir / "ledger"), "cores": 3, "terminate_grace_s": 1.0}
    with RunningDaemon(state_dir, {"here": local}) as daemon:
        with daemon.client() as client:
            run = client.submit_document(document(*jobs))["run"]
        for _ in range(DRIVER_KILLS):
            time.sleep(chance.uniform(0.05, 0.4))
            victim = chance.choice(["driver", "daemon", "both"])
            if victim != "daemon":
                for pid in drivers(daemon):
                    os.kill(pid, signal.SIGKILL)
            if victim != "driver":
                daemon.kill()
                daemon.start()
            with daemon.client() as client:
                if victim != "daemon":
                    state = until(partial(over, client, run), "the killed driver is noticed")
                    if state == "SUCCEEDED":
                        break
                    assert state == "FAILED"
                    assert client.wait_command(client.restart(run)["id"], timeout_s=30)["state"] == "DONE"
        with daemon.client() as client:
            state = until(lambda: over(client, run), "the run ends")
            while state == "FAILED":
                client.wait_command(client.restart(run)["id"], timeout_s=30)
                state = until(lambda: over(client, run), "the run ends")
            assert state == "SUCCEEDED"
            counts = client.report(run)["runs"][0]["counts"]
    assert counts == {"SUCCEEDED": 15}
    assert not (work / "twice").exists(), "a job ran beside itself"
    ran = Counter((work / "ran").read_text().split())
    assert set(ran) == {name for layer in layers for name in layer}


def test_cancel_at_any_moment_leaves_no_process(state_dir: Path) -> None:
    chance = random.Random(7)
    local = {"type": "local", "ledger": str(state_dir / "ledger"), "terminate_grace_s": 0.5}
    mark = f"4{os.getpid()}.{chance.randrange(10**6)}"
    with RunningDaemon(state_dir, {"here": local}) as daemon, daemon.client() as client:
        for _ in range(4):
            job = shell_job("long_1", f"trap '' TERM; sleep {mark} & sleep {mark}")
            run = client.submit_document(document(job))["run"]
            time.sleep(chance.uniform(0.0, 0.5))
            command = client.wait_command(client.cancel(run)["id"], timeout_s=30)
            assert command["state"] == "DONE"
            assert over(client, run) == "DELETED"
            assert until(lambda: not running(mark), "all of its processes are gone")


def running(mark: str) -> list[str]:
    """Processes with ``mark`` in their command line."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if mark in line:
                lines.append(line)
    return lines


def test_a_run_does_not_notice_that_the_daemon_was_away(state_dir: Path) -> None:
    local = {"type": "local", "ledger": str(state_dir / "ledger")}
    with RunningDaemon(state_dir, {"here": local}) as daemon:
        with daemon.client() as client:
            run = client.submit_document(
                document(shell_job("a_1", "sleep 1"), shell_job("b_1", "true", parents=["a_1"]))
            )["run"]
            until(lambda: client.status(run)["state"] == "RUNNING", "it runs")
        daemon.kill()
        until(lambda: not drivers(daemon), "the run ends by itself")
        daemon.start()
        with daemon.client() as client:
            until(lambda: over(client, run) == "SUCCEEDED", "what happened meanwhile is seen")
