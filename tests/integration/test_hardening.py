"""What a daemon must bear: floods, a clock that is set, being stopped and continued, thousands of clients, upgrades."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bpsd import wire
from bpsd.client.failures import ClientError
from bpsd.client.sync import Client
from tests.disks import DISKS, small_disk
from tests.figures import figure
from tests.integration.bpsctl import bpsctl
from tests.integration.daemons import RunningDaemon, document, true_job, until
from tests.wheels import previous_wheel

ROOT = Path(__file__).parents[2]
REQUESTS = figure("REQUESTS", test=50_000, soak=1_000_000)
"""Requests of every kind to a whole daemon, whose memory stays as it is."""
DESCRIPTORS = figure("DESCRIPTORS", test=2_500, soak=10_000)
"""Clients that are connected at once."""
TOY = {"toy": {"type": "scripted"}}
PATIENCE_S = 60.0
MIB = 1024 * 1024


class Raw:
    """A connection byte for byte."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))  # blocking: it waits while the backlog is full
        self.socket.settimeout(PATIENCE_S)
        self.lines = self.socket.makefile("rb")

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self.socket.close()

    def hear(self) -> dict[str, Any]:
        """The next message."""
        line = self.lines.readline()
        assert line, "the connection has ended"
        return dict(json.loads(line))


def submit(daemon: RunningDaemon, name: str) -> str:
    """A run on the scripted backend."""
    with daemon.client() as client:
        command = client.wait_command(
            client.submit_document(document(true_job("a_1"), name=name), backend="toy")["id"], timeout_s=PATIENCE_S
        )
    assert command["state"] == "DONE", command
    return str(command["run"])


def state_of(daemon: RunningDaemon, run: str) -> str:
    with daemon.client() as client:
        return str(client.status(run)["state"])


def _is(daemon: RunningDaemon, run: str, state: str) -> bool:
    return state_of(daemon, run) == state


def _polls_on(client: Client, polls: int) -> bool:
    return bool(client.backends("toy")["backends"][0]["polls"] > polls + 2)


# -- floods ----------------------------------------------------------------------------------------------------------


def test_a_flood_of_refused_clients_is_counted_and_not_all_told(state_dir: Path) -> None:
    with (
        RunningDaemon(state_dir, TOY, limits={"clients_per_user": 3, "clients_reserved": 0}) as daemon,
        daemon.client() as client,
    ):
        client.ping()
        with ExitStack() as crowd:
            for _ in range(2):
                crowd.enter_context(Raw(daemon.socket)).hear()
            began = time.monotonic()
            for _ in range(500):
                with Raw(daemon.socket) as refused:
                    assert refused.hear()["params"]["code"] == "limit_exceeded"
            windows = 1 + (time.monotonic() - began) // 10
            figures = client.health()["figures"]
        told = [line for line in daemon.logged() if line["event"] == "client_refused"]

        assert figures["clients_refused"] >= 500
        assert 0 < len(told) <= 5 * (windows + 1)


def requests(count: int, run: str) -> Iterator[bytes]:
    """Requests of every kind, good and bad."""
    rng = random.Random(5)
    kinds: list[tuple[str, dict[str, Any]]] = [
        *(("ping", {}), ("version", {}), ("backends", {}), ("health", {})),
        *(("list", {}), ("report", {}), ("report", {"run": run}), ("status", {"run": run})),
        *(("jobs", {"run": run}), ("status", {"run": "nobody"}), ("events", {"run": run, "limit": 5})),
        *(
            ("commands", {"limit": 5}),
            ("nonsense", {}),
            ("status", {"rum": run}),
            ("watch", {}),
            ("unwatch", {"watch": 0}),
        ),
        *(("mute", {"run": run}), ("blob.put", {"sha256": "0" * 64, "offset": 9, "size": 10, "data": "QQ=="})),
    ]
    for number in range(count):
        if number % 97 == 0:
            yield rng.choice([b"{}\n", b"[1]\n", b"\xff\xfe\n", b'{"jsonrpc":"2.0","id":{},"method":"ping"}\n'])
        else:
            method, params = rng.choice(kinds)
            yield wire.encode_request(number, method, params)


@pytest.mark.timeout(14_400)
def test_requests_by_the_ten_thousand_leave_the_memory_as_it_was(state_dir: Path) -> None:
    batch = 500
    with RunningDaemon(state_dir, TOY) as daemon:
        run = submit(daemon, "u/her/run")
        memory: list[float] = []
        many = requests(REQUESTS, run)
        asked = 0
        while asked < REQUESTS:
            with Raw(daemon.socket) as client:
                client.hear()
                for _ in range(10):  # then the next connection: what belongs to one goes with it
                    some = [line for _, line in zip(range(batch), many, strict=False)]
                    client.socket.sendall(b"".join(some))
                    heard = 0
                    while heard < len(some):
                        heard += "id" in client.hear()
                    asked += len(some)
            with daemon.client() as client_:
                memory.append(client_.health()["figures"]["memory_bytes"])
        warm = memory[len(memory) // 3]

        assert memory[-1] - warm < 6 * MIB, [round(each / MIB, 1) for each in memory]
        with daemon.client() as client_:
            assert client_.health()["figures"]["requests_in_flight"] == 1
        assert [line for line in daemon.logged() if line["event"] in ("request_broke", "close_callback_broke")] == []


@contextmanager
def file_limit(soft: int) -> Iterator[None]:
    """Another soft limit on the file descriptors of this process, and of what it starts."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_thousands_of_clients_and_their_descriptors(state_dir: Path) -> None:
    limits = {"clients": DESCRIPTORS + 100, "clients_per_user": DESCRIPTORS + 100}
    daemon = RunningDaemon(state_dir, TOY, limits=limits)
    with daemon:
        assert daemon.process is not None
        daemon.stop()
        with file_limit(256):  # as systemd and many shells have it, or less
            daemon.start()
        with file_limit(resource.getrlimit(resource.RLIMIT_NOFILE)[1]), ExitStack() as stack:
            crowd = [stack.enter_context(Raw(daemon.socket)) for _ in range(DESCRIPTORS)]
            for client in crowd:
                assert client.hear()["method"] == "hello"
            for client in crowd:
                client.socket.sendall(wire.encode_request(1, "ping", {}))
            for client in crowd:
                assert "result" in client.hear()
            figures = json.loads(bpsctl(daemon.socket, "health", "--json").out)["figures"]
            assert figures["clients"] >= DESCRIPTORS
            assert figures["open_files"] >= DESCRIPTORS
        with daemon.client() as one:
            until(lambda: one.health()["figures"]["open_files"] < 100, "they are given back")
        assert [line["event"] for line in daemon.logged() if line["level"] in ("error", "critical")] == []


# -- time ------------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_forward_and_back_changes_nothing(state_dir: Path) -> None:
    offset = state_dir / "offset"
    offset.write_text("0")
    daemon = RunningDaemon(state_dir, TOY)
    daemon.program = (str(Path(__file__).with_name("clocked_daemon.py")), str(offset))
    with daemon, daemon.client() as client:
        live = submit(daemon, "u/her/live")
        over = submit(daemon, "u/her/over")
        wms = daemon.wms("toy")
        wms.change("1", state="RUNNING")
        wms.change("2", state="SUCCEEDED")
        until(lambda: state_of(daemon, live) == "RUNNING" and state_of(daemon, over) == "SUCCEEDED", "both are seen")
        before = [event["kind"] for event in client.events(live)["events"]]
        day_s = 86_400
        for number, jump in enumerate((400 * day_s, -400 * day_s, 3 * day_s, 0), 3):
            beside = state_dir / "offset.new"
            beside.write_text(str(jump))
            beside.replace(offset)
            polls = client.backends("toy")["backends"][0]["polls"]
            until(partial(_polls_on, client, polls), "it polls on")
            row = client.backends("toy")["backends"][0]
            assert (row["state"], row["stale"]) == ("up", False)
            assert bpsctl(daemon.socket, "health").code == 0
            new = submit(daemon, f"u/her/run{number}")  # neither expired nor waiting
            wms.change(str(number), state="RUNNING")
            until(partial(_is, daemon, new, "RUNNING"), "a new run is seen")
            assert (state_of(daemon, live), state_of(daemon, over)) == ("RUNNING", "SUCCEEDED")
        assert [event["kind"] for event in client.events(live)["events"]] == before
        wms.change("1", state="SUCCEEDED")
        until(lambda: state_of(daemon, live) == "SUCCEEDED", "the run ends")


def test_stopped_and_continued_nobody_is_let_go_and_nothing_lost(state_dir: Path) -> None:
    limits = {"greet_timeout_s": 3.0, "read_timeout_s": 3.0, "write_timeout_s": 3.0, "idle_timeout_s": 3.0}
    with RunningDaemon(state_dir, TOY, limits=limits) as daemon, ExitStack() as stack:
        run = submit(daemon, "u/her/run")
        watcher, half = (stack.enter_context(Raw(daemon.socket)) for _ in range(2))
        watcher.hear()
        watcher.socket.sendall(wire.encode_request(1, "watch", {}))
        assert "result" in watcher.hear()
        half.hear()
        ping = wire.encode_request(7, "ping", {})
        assert daemon.process is not None
        half.socket.sendall(ping[:10])
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 1.5, "its half a message was noticed")
        os.kill(daemon.process.pid, signal.SIGSTOP)
        until(lambda: _process_state(daemon) == "T", "it is stopped")
        early = stack.enter_context(Raw(daemon.socket))  # it comes while nobody is there
        early.socket.sendall(ping)
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 4.0, "longer than all limits")
        os.kill(daemon.process.pid, signal.SIGCONT)

        assert early.hear()["method"] == "hello"
        assert early.hear()["id"] == 7
        half.socket.sendall(ping[10:])
        assert half.hear()["id"] == 7
        daemon.wms("toy").change("1", state="RUNNING")
        events = iter(watcher.hear, None)
        assert any(event["params"]["event"]["kind"] == "run.state" for event in events if event["method"] == "event")
        until(lambda: state_of(daemon, run) == "RUNNING", "it polls on")
        dropped = [line for line in daemon.logged() if line["event"] == "client_dropped"]
        assert [line["reason"] for line in dropped if not line["reason"].startswith("nothing was asked")] == []


def _process_state(daemon: RunningDaemon) -> str:
    assert daemon.process is not None
    return Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()[0]


# -- upgrade ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """The wheel of the commit before this one, unpacked."""
    with zipfile.ZipFile(previous_wheel(tmp_path)) as archive:
        archive.extractall(tmp_path / "previous")
    return tmp_path / "previous"


def test_an_upgrade_with_runs_under_way(state_dir: Path, previous: Path) -> None:
    done, gate = state_dir / "done", state_dir / "gate"
    script = f'echo "$0" >> {done}; while [ ! -e {gate} ]; do sleep 0.1; done'
    flow = document(
        true_job("a_1", executable="/bin/sh", arguments=f"-c '{script}' first"),
        true_job("b_1", executable="/bin/sh", arguments=f"-c '{script}' second", parents=("a_1",)),
        name="u/her/local",
    )
    daemon = RunningDaemon(state_dir, {**TOY, "here": {"type": "local", "cores": 1}})
    daemon.environment = {**os.environ, "PYTHONPATH": str(previous)}
    with daemon:
        where = subprocess.run(
            [sys.executable, "-c", "import bpsd, bpsd_adapters as a; print(bpsd.__file__, *a.__path__)"],
            env=daemon.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert all(path.startswith(str(previous)) for path in where.stdout.split())
        found = submit(daemon, "u/her/scripted")
        with daemon.client() as client:
            run = client.wait_command(client.submit_document(flow, backend="here")["id"])["run"]
        until(lambda: done.exists() and done.read_text() == "first\n", "the first job runs")
        assert daemon.stop() == 0
        assert _processes_of(previous), "nothing of the run goes on with the code that began it"
        daemon.environment = None
        daemon.start()

        assert state_of(daemon, found) != "UNKNOWN"
        until(lambda: state_of(daemon, run) == "RUNNING", "the run is under way")
        gate.touch()
        until(lambda: state_of(daemon, run) == "SUCCEEDED", "it ends well")
        assert done.read_text() == "first\nsecond\n"
        with daemon.client() as client:
            assert {row["state"] for row in client.commands()["commands"]} == {"DONE"}
            assert client.admin("check")["problems"] == []


FILE_SYSTEMS = [kind for kind in DISKS if kind != "file_size"]
"""A limit on files would keep a daemon also from its log, which is a file here."""


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "used"])
def test_a_daemon_that_starts_on_a_full_disk_serves_or_says_why_and_loses_nothing(
    state_dir: Path, kind: str, fresh: bool
) -> None:
    (state_dir / "state").mkdir()
    with small_disk(kind, state_dir / "state") as disk, RunningDaemon(state_dir, TOY) as daemon:
        run = None if fresh else submit(daemon, "kept")
        daemon.kill()
        if fresh:
            for left in (state_dir / "state").iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        disk.fill()
        daemon.start(wait=False)
        process = daemon.process
        assert process is not None

        what = until(lambda: "serves" if answers(daemon) else process.poll(), "it answers or ends")

        said = daemon.log.read_text()
        assert "\nTraceback" not in said  # it did not crash
        if what == "serves":
            assert run is not None
            assert bpsctl(daemon.socket, "status", run).out.startswith(("READY", "PENDING"))
            daemon.kill()
        else:
            assert what == 1
            assert "No space left on device" in said or "disk is full" in said
            assert "free some space there" in said
        disk.free()
        daemon.start()
        assert run is None or bpsctl(daemon.socket, "status", run).out.startswith(("READY", "PENDING"))
        submit(daemon, "another")


def answers(daemon: RunningDaemon) -> bool:
    """Whether a request is answered."""
    try:
        with daemon.client() as client:
            client.ping()
    except ClientError:
        return False
    return True


def _processes_of(code: Path) -> list[int]:
    """What runs with the code in that folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and f"PYTHONPATH={code}".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:  # it has ended meanwhile
            pass
    return found
