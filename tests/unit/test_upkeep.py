"""The watchdog hears of the daemon only while its loop turns and its backends keep their own deadlines."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
import structlog

from bpsd import upkeep
from bpsd.sdnotify import SystemdNotifier
from bpsd.upkeep import LoopMeter


@pytest.fixture
def systemd(socket_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(socket_path))
        listening.setblocking(False)
        yield listening


def heard(systemd: socket.socket) -> list[bytes]:
    messages = []
    while True:
        try:
            messages.append(systemd.recv(4096))
        except BlockingIOError:
            return messages


async def test_the_watchdog_is_fed_unless_a_backend_is_stuck(
    systemd: socket.socket, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "TICK_S", 0.01)
    notifier = SystemdNotifier({"NOTIFY_SOCKET": str(socket_path), "WATCHDOG_USEC": "40000"})
    stuck: list[str] = []
    lags: list[float] = []
    with structlog.testing.capture_logs() as logs:
        meter = LoopMeter(notifier, lags.append, lambda: stuck, structlog.get_logger())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meter.run)
            with anyio.fail_after(30):
                while b"WATCHDOG=1" not in heard(systemd):  # noqa: ASYNC110 - a datagram of another's
                    await anyio.sleep(0.01)
                stuck.append("usdf")
                while not logs:  # noqa: ASYNC110 - a log has no event to wait for
                    await anyio.sleep(0.01)
                heard(systemd)
                said = len(logs)
                while len(logs) < said + 3:  # noqa: ASYNC110 - as above
                    await anyio.sleep(0.01)
                assert heard(systemd) == []
                stuck.clear()
                while b"WATCHDOG=1" not in heard(systemd):  # noqa: ASYNC110 - as above
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()

    assert {(entry["event"], *entry["stuck"]) for entry in logs} == {("watchdog_not_fed", "usdf")}
    assert lags
