"""Find the processes that a test session started and did not end.

What a test starts inherits a variable with the session's own value, also through daemons that leave their session and
process group; ``/proc/PID/environ`` shows it. The variable ``PYTEST_CURRENT_TEST`` beside it tells which test it was.
"""

from __future__ import annotations

__all__ = ["SESSION_VARIABLE", "Leftover", "end_leftovers", "find_leftovers"]

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

SESSION_VARIABLE = "BPSD_TEST_SESSION"


@dataclass(frozen=True, slots=True)
class Leftover:
    """A process that is still there: which, what it runs, and the test that started it."""

    pid: int
    command: str
    test: str

    def __str__(self) -> str:
        return f"  {self.pid}: {self.command} (started in {self.test})"


def _read(pid: int, name: str) -> list[str]:
    """The parts of one of the files of a process that are parted by zero bytes; none if the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def find_leftovers(session: str) -> list[Leftover]:
    """The living processes of a session, but for the one that asks."""
    found: list[Leftover] = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
        environment = _read(pid, "environ")  # empty for a zombie: it has ended, and its parent answers for it
        if pid == os.getpid() or f"{SESSION_VARIABLE}={session}" not in environment:
            continue
        tests = [entry.partition("=")[2] for entry in environment if entry.startswith("PYTEST_CURRENT_TEST=")]
        found.append(Leftover(pid, " ".join(_read(pid, "cmdline")).strip(), tests[0] if tests else "no test"))
    return found


def end_leftovers(session: str, patience_s: float) -> list[Leftover]:
    """Give the processes of a session a moment to end, then end and return those that did not."""
    deadline = time.monotonic() + patience_s
    while (leftovers := find_leftovers(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for leftover in leftovers:
        try:
            handle = os.pidfd_open(leftover.pid)
        except ProcessLookupError:
            continue
        # The handle keeps the number from meaning another process between the look and the signal.
        if f"{SESSION_VARIABLE}={session}" in _read(leftover.pid, "environ"):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
    return leftovers
