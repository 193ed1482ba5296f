"""What systemd hears."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpsd.sdnotify import SystemdNotifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, state_dir: Path) -> Iterator[tuple[str, socket.socket]]:
    """The value of NOTIFY_SOCKET, and the socket that it names."""
    name = str(state_dir / "notify") if request.param == "path" else f"@bpsd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0"))
        receiver.settimeout(10)
        yield name, receiver


def test_systemd_hears_each_state(systemd: tuple[str, socket.socket]) -> None:
    name, receiver = systemd
    notifier = SystemdNotifier({"NOTIFY_SOCKET": name})

    assert notifier.ready("listening on\n/run/x")
    assert receiver.recv(4096) == b"READY=1\nSTATUS=listening on /run/x"
    assert notifier.ready()
    assert receiver.recv(4096) == b"READY=1"
    assert notifier.stopping("waiting for 2 requests")
    assert receiver.recv(4096) == b"STOPPING=1\nSTATUS=waiting for 2 requests"
    assert notifier.status("lone \ud800 surrogate")
    assert receiver.recv(4096) == b"STATUS=lone \\ud800 surrogate"
    assert notifier.watchdog()
    assert receiver.recv(4096) == b"WATCHDOG=1"


def test_a_reload_comes_with_its_time(systemd: tuple[str, socket.socket]) -> None:
    name, receiver = systemd
    before = time.monotonic_ns() // 1000

    assert SystemdNotifier({"NOTIFY_SOCKET": name}).reloading()

    first, second = receiver.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1234"])
def test_without_systemd_nothing_happens(name: str) -> None:
    notifier = SystemdNotifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"})

    assert not notifier.ready()
    assert not notifier.status("x")
    assert notifier.watchdog_s is None
    assert not SystemdNotifier({}).ready()


def test_an_empty_status_is_not_sent(systemd: tuple[str, socket.socket]) -> None:
    assert not SystemdNotifier({"NOTIFY_SOCKET": systemd[0]}).status("")


def test_a_socket_that_is_gone_is_no_error(state_dir: Path) -> None:
    assert not SystemdNotifier({"NOTIFY_SOCKET": str(state_dir / "gone")}).ready()


def test_a_systemd_that_does_not_read_is_not_waited_for(systemd: tuple[str, socket.socket]) -> None:
    notifier = SystemdNotifier({"NOTIFY_SOCKET": systemd[0]})

    told = [notifier.watchdog() for _ in range(10_000)]

    assert told[0]
    assert not told[-1]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}, 30.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_for_the_process_it_names(environ: dict[str, str], expected: float | None) -> None:
    assert SystemdNotifier({"NOTIFY_SOCKET": "/run/x", **environ}, pid=77).watchdog_s == expected


def test_children_do_not_inherit_it() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}

    SystemdNotifier(environ)

    assert environ == {"HOME": "/"}
