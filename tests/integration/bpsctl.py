"""Running ``bpsctl`` as people and scripts do: as a process, with a terminal or without."""

from __future__ import annotations

__all__ = ["Done", "bpsctl", "on_a_terminal", "start"]

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import bpsd

SOURCE = str(Path(bpsd.__file__).parents[1])
PATIENCE_S = 30.0


class Done(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str


def _environment(socket: Path | str, extra: Mapping[str, str] | None) -> dict[str, str]:
    path = os.pathsep.join([SOURCE, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **os.environ,
        "BPSD_SOCKET": str(socket),
        "PYTHONPATH": path,
        "COLUMNS": "100",
        "PYTHONWARNINGS": "error",
        **(extra or {}),
    }


def start(socket: Path | str, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Begin; the caller ends it."""
    return subprocess.Popen(
        [sys.executable, "-m", "bpsd.cli.bpsctl", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(socket, env),
    )


def bpsctl(socket: Path | str, *words: str, env: Mapping[str, str] | None = None, stdin: str = "") -> Done:
    """Run to the end."""
    process = start(socket, *words, env=env)
    with process:
        out, err = process.communicate(stdin, timeout=PATIENCE_S)
    return Done(process.returncode, out, err)


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.seen = ""
        self._master = master

    def until(self, text: str) -> str:
        """Read until a text was shown; return all that was shown so far."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} was not shown, but {self.seen[-2000:]!r}"
            if not self._read(0.2):
                assert self.process.poll() is None, f"it ended without showing {text!r}: {self.seen[-2000:]!r}"
        return self.seen

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.seen[-2000:]!r}"
            self._read(0.1)
        while self._read(0.05):
            pass
        return self.process.returncode

    def _read(self, patience_s: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], patience_s)
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says EIO once the last process has closed its end
            return False
        self.seen += data.decode("utf-8", "replace")
        return bool(data)


@contextmanager
def on_a_terminal(
    socket: Path | str, *words: str, env: Mapping[str, str] | None = None, size: tuple[int, int] = (120, 30)
) -> Iterator[Terminal]:
    """Run on a terminal of so many columns and lines; what still runs at the end of the block is ended."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, size[::-1])
    environ = _environment(socket, {"TERM": "xterm-256color", **(env or {})})
    process = subprocess.Popen(
        [sys.executable, "-m", "bpsd.cli.bpsctl", *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environ,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(master)
