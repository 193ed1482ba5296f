"""Real jobs under kills: the daemon and the drivers die at random moments, and no job runs twice or beside itself."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bpsd import wire
from bpsd.client.failures import RemoteError
from bpsd.client.sync import Client
from bpsd.testing.observer import shell_job
from tests.figures import figure
from tests.integration.daemons import RunningDaemon, document, until

DRIVER_KILLS = figure("DRIVER_KILLS", test=30, soak=500)
"""How often a driver, the daemon or both are killed while a run goes on, is submitted, cancelled or restarted."""

OVER = {"SUCCEEDED", "FAILED", "DELETED"}


def guarded(name: str, folder: Path, *parents: str) -> dict[str, Any]:
    """A job that notices another attempt of itself under way, and says what it did."""
    script = (
        f"exec 9>>{folder}/{name}.lock; flock -n 9 || echo {name} >> {folder}/twice; sleep 0.1; "
        f"echo {name} >> {folder}/ran"
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


class Campaign:
    """Run after run of guarded jobs; remembers what was seen to succeed, to see that it is not done again."""

    def __init__(self, daemon: RunningDaemon, folder: Path, chance: random.Random) -> None:
        self.daemon, self.folder, self.chance = daemon, folder, chance
        self.layers = [[f"j{layer}_{n}" for n in range(3)] for layer in range(4)]
        self.finished = 0
        self.token = ""
        self.succeeded: Counter[str] = Counter()

    @property
    def work(self) -> Path:
        return self.folder / f"work{self.finished}"

    def ran(self) -> Counter[str]:
        """How often each job of the run ran to its end."""
        log = self.work / "ran"
        return Counter(log.read_text().split() if log.exists() else ())

    def go_on(self, *, cancels: float = 0.2) -> None:
        """Bring the run a step further: submit, restart, cancel (with that chance) and restart, or begin the next."""
        with self.daemon.client() as client:
            if not self.token:
                self.work.mkdir()
                self.token = wire.new_token()
                jobs = [
                    guarded(name, self.work, *(self.layers[n - 1] if n else ()))
                    for n, layer in enumerate(self.layers)
                    for name in layer
                ]
                client.submit_document(document(*jobs), token=self.token)
                return
            state = over(client, self.token)
            if state is None and self.chance.random() < cancels:
                client.cancel(self.token)
            elif state == "DELETED" and not client.status(self.token)["wms_id"]:
                assert not self.ran(), "cancelled before it was submitted, and ran"
                self.begin_anew()
            elif state in ("FAILED", "DELETED"):
                self.remember(client)
                client.restart(self.token)
            elif state == "SUCCEEDED":
                self.check(client)

    def remember(self, client: Client) -> None:
        """What is shown as done must not be done again."""
        done = {row["name"] for row in client.jobs(self.token, state=["SUCCEEDED"])["jobs"]}
        ran = self.ran()
        assert all(ran[name] == count for name, count in self.succeeded.items()), "what had succeeded ran again"
        self.succeeded = Counter({name: ran[name] for name in done})
        assert all(self.succeeded.values()), "shown as succeeded, and never ran to its end"

    def check(self, client: Client) -> None:
        """A run that has succeeded has done everything, and no job beside itself."""
        assert client.report(self.token)["runs"][0]["counts"] == {"SUCCEEDED": 12}
        assert not (self.work / "twice").exists(), "a job ran beside itself"
        assert set(self.ran()) == {name for layer in self.layers for name in layer}
        self.remember(client)
        self.begin_anew()

    def begin_anew(self) -> None:
        """The next run, in a folder of its own."""
        self.finished += 1
        self.token, self.succeeded = "", Counter()


def test_kills_of_drivers_and_daemon_repeat_nothing_and_lose_nothing(state_dir: Path) -> None:
    chance = random.Random(20261122)
    local = {"type": "local", "ledger": str(state_dir / "ledger"), "cores": 3, "terminate_grace_s": 0.5}
    with RunningDaemon(state_dir, {"here": local}) as daemon:
        campaign = Campaign(daemon, state_dir, chance)
        for _ in range(DRIVER_KILLS):
            with contextlib.suppress(RemoteError):  # a verb that makes no sense in this moment is refused
                campaign.go_on()
            time.sleep(chance.uniform(0.0, 0.4))
            victim = chance.choice(["driver", "daemon", "both"])
            if victim != "daemon":
                for pid in drivers(daemon):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if victim != "driver":
                daemon.kill()
                daemon.start()
        before = campaign.finished

        def ends() -> bool:
            with contextlib.suppress(RemoteError):
                campaign.go_on(cancels=0.0)
            return campaign.finished > before

        until(ends, "the last run ends well when nothing is killed any more")


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
