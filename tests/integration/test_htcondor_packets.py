"""A real bpsd in a network namespace whose packets are dropped during every command: each is done once all the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bpsd.client.sync import Client
from bpsd.testing.observer import document, shell_job
from tests.figures import figure
from tests.integration.condorbed import CondorBed
from tests.integration.daemons import RunningDaemon, until

pytestmark = pytest.mark.timeout(900)

MOMENTS = figure("CONDOR_PACKET_MOMENTS", test=1, soak=10)
LONGEST_S = 0.8
SILENT_S = 8.0
PATIENCE_S = 240.0
HERE, THERE = "10.213.77.1", "10.213.77.2"
"""The ends of the cable between this namespace and the daemon's."""

SETTINGS = {
    "polling": {
        "min_interval_s": 0.5,
        "idle_interval_s": 0.5,
        "backoff_initial_s": 0.2,
        "backoff_max_s": 1.0,
        "deadline_s": 30.0,
        "stale_after_s": 60.0,
    },
    "commands": {"doubt_retry_initial_s": 0.5, "doubt_retry_max_s": 1.0, "cancel_verify_s": 2.0, "deadline_s": 60.0},
}


class Cable:
    """A pair of virtual network devices, one of them in a namespace of its own; pulled out, it drops every packet."""

    def __init__(self) -> None:
        self.namespace = f"bpsd{os.getpid()}"
        self.device = f"bpsd{os.getpid()}"

    def __enter__(self) -> Cable:
        ip("netns", "add", self.namespace)
        ip("link", "add", self.device, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip("address", "add", f"{HERE}/30", "dev", self.device)
        ip("link", "set", self.device, "up")
        ip("-n", self.namespace, "address", "add", f"{THERE}/30", "dev", "eth0")
        ip("-n", self.namespace, "link", "set", "eth0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        ip("link", "delete", self.device)
        ip("netns", "delete", self.namespace)

    def pull(self) -> None:
        ip("link", "set", self.device, "down")

    def plug(self) -> None:
        ip("link", "set", self.device, "up")


def ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True)


class NamespacedDaemon(RunningDaemon):
    """Its socket is a file, so clients need not be where it is."""

    def __init__(self, namespace: str, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.namespace = namespace

    def start(self, *, wait: bool = True) -> RunningDaemon:
        serve = [sys.executable, "-m", "bpsd.cli.bpsd", "serve", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *serve], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if wait:
            self.wait_ready()
        return self


class Site:
    """A daemon that sees the pool through the cable."""

    def __init__(self, cable: Cable, client: Client, pool: CondorBed, scratch: Path) -> None:
        self.cable = cable
        self.client = client
        self.pool = pool
        self.scratch = scratch

    def send(self, *jobs: Any) -> dict[str, Any]:
        return dict(self.client.submit_document(msgspec.json.encode(document(*jobs)), backend="far"))

    def done(self, command: str) -> dict[str, Any]:
        """The command, once it is through."""
        ended = dict(self.client.wait_command(command, timeout_s=PATIENCE_S))
        assert ended["state"] == "DONE", ended
        return ended

    def until_state(self, run: str, state: str) -> dict[str, Any]:
        return dict(
            until(lambda: (row := self.row(run))["state"] == state and row, f"{run} is {state}", PATIENCE_S),
        )

    def row(self, run: str) -> dict[str, Any]:
        return dict(self.client.report(run)["runs"][0])

    def in_pool(self, token: str) -> list[str]:
        """The attempt tokens of all runs of a token, in the queue or gone from it."""
        which = f'bps_token =?= "{token}" && JobUniverse == 7'
        asked = ("-constraint", which, "-af", "bps_attempt_token")
        return sorted((self.pool.run("condor_q", *asked) + self.pool.run("condor_history", *asked)).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pool: CondorBed) -> Iterator[Site]:
    with ExitStack() as stack:
        cable = stack.enter_context(Cable())
        relay = subprocess.Popen(
            ["socat", f"TCP-LISTEN:0,bind={HERE},fork,reuseaddr", f"TCP:127.0.0.1:{pool.ssh_port}"],
            stdin=subprocess.DEVNULL,
        )
        stack.callback(relay.wait)
        stack.callback(relay.kill)
        port = until(lambda: listening_port(relay.pid), "the relay listens")
        folder = pool.folder()
        stack.callback(pool.remove, [folder])
        ssh = pool.ssh(port=port)
        known_hosts = Path(ssh["known_hosts"])
        known_hosts.write_text(known_hosts.read_text().replace("[127.0.0.1]", f"[{HERE}]"))
        stack.callback(known_hosts.unlink)
        ssh |= {"host": HERE, "keepalive_s": 2.0, "connect_timeout_s": 5.0}
        backends = {"far": {"type": "htcondor", **pool.settings(ssh=ssh, command_deadline_s=6.0)}}
        daemon = NamespacedDaemon(cable.namespace, tmp_path_factory.mktemp("far"), backends, **SETTINGS)
        stack.enter_context(daemon)
        client = stack.enter_context(daemon.client())
        until(lambda: client.backends("far")["backends"][0]["state"] == "up", "the backend is up")
        yield Site(cable, client, pool, folder / "scratch")


def listening_port(pid: int) -> int | None:
    """The port that a process listens on, once it does."""
    said = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    for line in said.splitlines():
        if f"pid={pid}," in line:
            return int(line.split()[3].rpartition(":")[2])
    return None


@pytest.mark.parametrize("after_s", [LONGEST_S * (n + 0.3) / MOMENTS for n in range(MOMENTS)])
def test_packets_dropped_during_every_command(site: Site, after_s: float) -> None:
    """Submit, restart, cancel, ping and poll at once, all caught by it."""
    mended = site.scratch / f"mended{after_s}"
    failed = site.send(shell_job("bad_1", f"test -e {mended}"))["run"]
    long = site.send(shell_job("long_1", "sleep 900"))["run"]
    site.until_state(failed, "FAILED")
    site.until_state(long, "RUNNING")
    mended.touch()

    submitted = site.send(shell_job("a_1", "true"))
    restarted, cancelled = site.client.restart(failed), site.client.cancel(long)
    time.sleep(after_s)
    pulled_at = time.time()
    site.cable.pull()
    try:
        assert site.client.backend_ping("far")["answers"]["far"][0] != 0
        site.client.refresh("far", timeout_s=5.0)
        time.sleep(SILENT_S - 5.0)
        assert site.client.backends("far")["backends"][0]["last_good_at"] <= pulled_at
        states = {run: site.row(run)["state"] for run in (failed, long, submitted["run"])}
    finally:
        site.cable.plug()
    assert "UNKNOWN" not in states.values()
    for command in (submitted, restarted, cancelled):
        site.done(command["id"])
    assert until(lambda: site.client.backend_ping("far")["answers"]["far"][0] == 0, "a ping is answered", PATIENCE_S)
    site.client.refresh("far", timeout_s=PATIENCE_S)
    rows = {
        run: site.until_state(run, state)
        for run, state in ((submitted["run"], "SUCCEEDED"), (failed, "SUCCEEDED"), (long, "DELETED"))
    }
    tokens = {run: row["token"] for run, row in rows.items()}
    assert site.in_pool(tokens[submitted["run"]]) == [f"{tokens[submitted['run']]}.1"]
    assert site.in_pool(tokens[failed]) == [f"{tokens[failed]}.1", f"{tokens[failed]}.2"]
    assert site.in_pool(tokens[long]) == [f"{tokens[long]}.1"]
