"""Signals during the start of the daemon: each is acted on, at whatever moment it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.daemons import PATIENCE_S, RunningDaemon, until

TAKEN = """
import os, signal, sys, time
from bpsd import signals
install = signals.Signals.install
def installed(self):
    install(self)
    os.write(int(sys.argv.pop()), b"x")
signals.Signals.install = installed
from bpsd.cli.bpsd import main
sys.exit(main())
"""
"""``bpsd`` that tells, over a pipe, when it has taken its signals."""

MOMENTS_S = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8)


class Starting:
    """A daemon that is just starting."""

    def __init__(self, folder: Path) -> None:
        import os

        self.daemon = RunningDaemon(folder, {"toy": {"type": "scripted"}})
        reader, writer = os.pipe()
        with self.daemon.log.open("ab") as log:
            self.process = self.daemon.process = subprocess.Popen(
                [sys.executable, "-c", TAKEN, "serve", "--config", str(self.daemon.config), str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writer,),
            )
        os.close(writer)
        assert os.read(reader, 1) == b"x"
        os.close(reader)


@pytest.mark.parametrize("moment_s", MOMENTS_S)
def test_sighup_during_the_start_is_a_reload_after_it(moment_s: float, tmp_path: Path) -> None:
    starting = Starting(tmp_path)
    with starting.daemon as daemon:
        time.sleep(moment_s)
        starting.process.send_signal(signal.SIGHUP)
        daemon.wait_ready()
        until(lambda: [entry for entry in daemon.logged() if entry["event"] == "config_reloaded"], "it has reloaded")
        assert daemon.stop() == 0


@pytest.mark.parametrize("moment_s", MOMENTS_S)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_start_can_be_ended_in_good_order(moment_s: float, number: signal.Signals, tmp_path: Path) -> None:
    starting = Starting(tmp_path)
    with starting.daemon:
        time.sleep(moment_s)
        starting.process.send_signal(number)
        assert starting.process.wait(PATIENCE_S) == 0
        assert "Traceback" not in starting.daemon.log.read_text()
    assert not starting.daemon.socket.exists()


def test_the_signals_are_taken_before_the_long_imports() -> None:
    """What runs before is Python's own start, and the modules of a few lines."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, bpsd.cli.bpsd; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"anyio", "asyncio", "msgspec", "structlog", "bpsd.config", "bpsd.supervisor"} & set(loaded)


def test_a_signal_while_it_ends_changes_nothing(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, {"toy": {"type": "scripted"}}) as daemon:
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        while daemon.process.poll() is None:
            daemon.process.send_signal(signal.SIGHUP)
            time.sleep(0.001)
        assert daemon.process.returncode == 0
