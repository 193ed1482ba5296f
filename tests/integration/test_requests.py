"""Whatever a request contains: it is answered, the daemon makes no error, and others are answered meanwhile."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpsd import wire
from bpsd.client.failures import ClientError
from bpsd.client.sync import Client
from bpsd.testing.wms import add_run
from tests.figures import SOAK, figure, measured
from tests.fixtures.edges import edges_of, fields_of, line_of, single_requests
from tests.integration.daemons import RunningDaemon, document, true_job, until

HOSTILE_REQUESTS = figure("HOSTILE_REQUESTS", test=300, soak=100_000)
"""Generated requests over all methods and edge values, while users submit, cancel and watch."""
HOSTILE_USERS = figure("HOSTILE_USERS", test=3, soak=20)
"""Clients that submit, cancel and watch meanwhile."""
HOSTILE_RUNS = figure("HOSTILE_RUNS", test=200, soak=2_000)
"""Runs that are known."""

TOY = {"toy": {"type": "scripted"}}
USER_PAUSE_S = 5.0
"""Between two submits of one user: 20 users who never pause are a test of how many processes this machine starts."""
PATIENCE_S = 120.0
P99_S = 0.02
"""What another client may wait at most, 99 times of 100 (asserted in a soak: a test proves nothing by time)."""
MIB = 1024 * 1024


class Hostile:
    """A connection that sends bytes, whatever they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connect()

    def connect(self) -> None:
        """Begin anew."""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(self.path))
        self.lines = self.socket.makefile("rb")
        assert b'"hello"' in self.lines.readline()

    def close(self) -> None:
        """End it."""
        self.lines.close()
        self.socket.close()

    def ask(self, line: bytes, meanwhile: Callable[[], object] = lambda: None) -> dict[str, Any]:
        """The answer to a line; notifications are passed over."""
        self.socket.sendall(line)
        meanwhile()
        while True:
            answer: dict[str, Any] = json.loads(self.lines.readline())
            if "method" not in answer:
                return answer


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with RunningDaemon(tmp_path_factory.mktemp("d"), TOY) as running:
        fill(running, 50)
        yield running


def fill(daemon: RunningDaemon, runs: int) -> None:
    """Have runs that requests can be about."""
    with daemon.wms("toy").edit() as wms:
        for number in range(runs):
            add_run(wms, f"u/jo/run{number}", jobs=3)
    with daemon.client() as client:
        until(lambda: client.backends("toy")["backends"][0]["runs_hot"] >= runs, "the runs are seen")


@pytest.fixture
def hostile(daemon: RunningDaemon) -> Iterator[Hostile]:
    connection = Hostile(daemon.socket)
    yield connection
    connection.close()


def check(answer: dict[str, Any], what: object) -> None:
    """An answer, and not that the daemon made a mistake."""
    assert ("result" in answer) != ("error" in answer), what
    if "error" in answer:
        assert answer["error"]["data"]["code"] != "internal_error", (what, answer["error"])


@pytest.mark.parametrize("method", wire.METHODS)
def test_every_field_at_each_of_its_edges(daemon: RunningDaemon, hostile: Hostile, method: str) -> None:
    with daemon.client() as other:
        before = other.health()["figures"]["internal_errors"]
        for number, params in enumerate(single_requests(method)):
            answer = hostile.ask(line_of(number, method, params), other.ping)
            check(answer, (method, {name[:50]: value[:100] for name, value in params.items()}))
        assert other.health()["figures"]["internal_errors"] == before


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    """A method, with some of its fields at their edges."""
    method = draw(st.sampled_from(wire.METHODS))
    fields = fields_of(method)
    names = draw(st.sets(st.sampled_from(sorted(fields)), max_size=4)) if fields else set()
    return method, {name: draw(st.sampled_from(edges_of(method, name))) for name in sorted(names)}


@settings(max_examples=figure("HOSTILE_EXAMPLES", test=200, soak=5_000))
@given(asked=requests())
def test_several_fields_at_their_edges(daemon: RunningDaemon, asked: tuple[str, dict[str, str]]) -> None:
    method, params = asked
    with contextlib.closing(Hostile(daemon.socket)) as hostile, daemon.client() as other:
        answer = hostile.ask(line_of(1, method, params), other.ping)
        check(answer, (method, params))


def test_four_thousand_and_two_hundred_thousand_brackets(daemon: RunningDaemon, hostile: Hostile) -> None:
    with daemon.client() as other:
        for method in ("list", "report", "holds"):
            for count in (1_000, 4_000, 200_000):
                answer = hostile.ask(line_of(1, method, {"pattern": json.dumps("[" * count)}), other.ping)
                assert ("error" in answer) is (count > 1_024)
    assert daemon.process is not None
    assert daemon.process.poll() is None


# -- the soak --------------------------------------------------------------------------------------------------------


class Crowd:
    """Threads that go on until they are told to stop; the first error of any is the crowd's."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def start(self, act: Callable[[], object]) -> None:
        """Do something again and again."""

        def run() -> None:
            try:
                while not self.over.is_set():
                    act()
            except BaseException as error:  # noqa: BLE001 - it is raised where the crowd ends
                self.errors.append(error)
                self.over.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)

    def end(self) -> None:
        """Stop all, and raise what went wrong."""
        self.over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        if self.errors:
            raise self.errors[0]


def user(daemon: RunningDaemon, number: int, over: threading.Event) -> Callable[[], None]:
    """Somebody who submits, watches and cancels, once for each call."""

    def act() -> None:
        with daemon.client() as client:
            work = document(true_job("a_1"), name=f"user{number}")
            run = client.wait_command(client.submit_document(work, backend="here")["id"], timeout_s=PATIENCE_S)["run"]
            with client.watch([run]) as watch:
                assert watch.read(PATIENCE_S) is not None
            with contextlib.suppress(ClientError):  # it may be over already
                client.cancel(run)
        over.wait(USER_PAUSE_S)

    return act


def generated(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A method with up to three fields at an edge."""
    method = rng.choice(wire.METHODS)
    fields = fields_of(method)
    names = rng.sample(sorted(fields), min(len(fields), rng.randint(0, 3)))
    return method, {name: rng.choice(edges_of(method, name)) for name in names}


@pytest.mark.timeout(14_400)
def test_hostile_clients_and_another(tmp_path: Path) -> None:
    """No error of the daemon's, memory stays as it is, and a client that asks for a status is answered."""
    waits: list[float] = []
    memory: list[float] = []
    # The users' runs are real ones: the scripted backend keeps all of its runs in one file, which each order rewrites.
    backends = {**TOY, "here": {"type": "local", "ledger": str(tmp_path / "ledger"), "terminate_grace_s": 0.5}}
    with RunningDaemon(tmp_path, backends) as daemon, daemon.client() as other:  # nobody else uses this client
        fill(daemon, HOSTILE_RUNS)
        run = other.list_runs(limit=1)["runs"][0]["id"]
        crowd = Crowd()
        for number in range(HOSTILE_USERS):
            crowd.start(user(daemon, number, crowd.over))
        crowd.start(asks_for_status(other, run, waits))
        try:
            ask_all(daemon, crowd, memory)
        finally:
            crowd.end()
        figures = other.health()["figures"]
    waits.sort()
    p99 = waits[int(len(waits) * 0.99)]
    half = memory[len(memory) // 2 :]
    measured("HOSTILE_P99_MS", f"{1000 * p99:.1f}")
    measured("HOSTILE_MEDIAN_MS", f"{1000 * statistics.median(waits):.1f}")
    measured("HOSTILE_GROWTH_MIB", f"{(half[-1] - half[0]) / MIB:.1f}")
    assert figures["internal_errors"] == 0
    assert [line for line in daemon.logged() if line["event"] == "request_broke"] == []
    assert half[-1] - half[0] < 64 * MIB
    if SOAK:
        assert p99 < P99_S


def asks_for_status(client: Client, run: str, waits: list[float]) -> Callable[[], None]:
    """Somebody who wants to know how a run is, and notes how long the answer takes."""

    def act() -> None:
        began = time.perf_counter()
        client.status(run)
        waits.append(time.perf_counter() - began)
        time.sleep(0.01)

    return act


def ask_all(daemon: RunningDaemon, crowd: Crowd, memory: list[float]) -> None:
    """Send the generated requests, and look at the daemon's memory now and then."""
    rng = random.Random(10)
    hostile = [Hostile(daemon.socket) for _ in range(4)]
    with daemon.client() as looker:
        for number in range(HOSTILE_REQUESTS):
            assert not crowd.over.is_set(), crowd.errors
            connection = hostile[number % len(hostile)]
            if number % 1_000 >= 1_000 - len(hostile):  # its watches end with it
                connection.close()
                connection.connect()
            method, params = generated(rng)
            check(connection.ask(line_of(number, method, params)), (method, params))
            if number % max(1, HOSTILE_REQUESTS // 20) == 0:
                memory.append(looker.health()["figures"]["memory_bytes"])
        memory.append(looker.health()["figures"]["memory_bytes"])
    for connection in hostile:
        connection.close()
