"""The process of a driver: ``python -P -m bpsd_adapters.local.driver FOLDER SETTINGS``.

It inherits the run's log, already held by whoever launched it, so from the first moment on *held* means that an
attempt begins or goes on. It goes into the background, under a keeper (`bpsd_adapters.local.processes.fork_kept`), and
its foreground ends when the beginning of the attempt is on the disk.
"""

from __future__ import annotations

__all__ = ["BEGUN", "FAILED", "REFUSED", "main"]

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec

from bpsd.models import WmsStates
from bpsd_adapters.local import history as histories
from bpsd_adapters.local import processes
from bpsd_adapters.local.engine import SIGNALS, Driver, DriverSettings
from bpsd_adapters.local.layout import RunFolder
from bpsd_adapters.local.scribe import ENDS_WITH_ERROR, complain
from bpsd_adapters.runlog import RunLog

BEGUN = 0
"""Exit code: the attempt began, now or before."""

FAILED = 1
"""Exit code: it could not begin; stderr says why. Trying again may help."""

REFUSED = 3
"""Exit code: it may not begin; stderr says why."""


def main(arguments: list[str]) -> int:
    """Begin the attempt and leave a process that drives it; with ``--check`` only show that a driver can start.

    Returns
    -------
    code : `int`
        `BEGUN`, `FAILED` or `REFUSED`.
    """
    if arguments == ["--check"]:
        return BEGUN
    folder = RunFolder(Path(arguments[0]))
    settings = msgspec.json.decode(arguments[1], type=DriverSettings)
    hearing, telling = os.pipe()
    if os.fork() == 0:
        os.close(hearing)
        _drive(folder, settings, telling)
    os.close(telling)
    os.close(settings.log_fd)
    with os.fdopen(hearing) as answer:
        code, _, text = answer.read().partition(" ")
    if not code:
        code, text = str(FAILED), f"it ended as it began; {folder.driver_err} may tell more"
    sys.stderr.write(text)
    return int(code)


def _drive(folder: RunFolder, settings: DriverSettings, telling: int) -> NoReturn:
    """The background process."""
    code = FAILED
    try:
        _leave_the_foreground(folder, settings.log_fd)
        keeper = processes.fork_kept((settings.log_fd, telling))
        os.setsid()  # a signal to the driver's session does not reach its keeper
        driver, code, text = _begin(folder, settings, keeper)
        _tell(telling, code, text)
        if driver is not None:
            driver.run()
    except BaseException:  # noqa: BLE001  # the last line of a process: what it cannot handle, it writes down
        complain(f"{ENDS_WITH_ERROR}\n{traceback.format_exc()}")
        code = FAILED
    os._exit(code)


def _begin(folder: RunFolder, settings: DriverSettings, keeper: processes.Process) -> tuple[Driver | None, int, str]:
    """Begin the attempt, if it is to begin: the driver, the exit code of the foreground, and its words."""
    log = RunLog(folder.log, settings.log_fd)
    if str(log.repair):
        complain(f"{folder.log} was mended: {log.repair}")
    history = histories.read(folder.log)
    end = history.end
    if settings.only_end and (end is not None or history.attempt != settings.attempt):
        return None, BEGUN, ""
    if not settings.only_end and history.attempt >= settings.attempt:
        return None, BEGUN, ""
    if end is not None and end.state == WmsStates.SUCCEEDED:
        return None, REFUSED, "the run has succeeded: there is nothing to restart"
    driver = Driver(folder, settings, log, history, keeper)
    try:
        driver.begin()
    except OSError as exc:
        return None, FAILED, f"the log cannot be written: {exc}"
    return driver, BEGUN, ""


def _leave_the_foreground(folder: RunFolder, log_fd: int) -> None:
    os.set_inheritable(log_fd, False)  # no job may hold the log: that would look as if the driver lived
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by some launchers, and then children leave no exit code
    nothing = os.open(os.devnull, os.O_RDWR)
    complaints = os.open(folder.driver_err, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    for fd, target in ((nothing, 0), (nothing, 1), (complaints, 2)):
        os.dup2(fd, target)
    os.close(nothing)
    os.close(complaints)
    os.chdir("/")


def _tell(telling: int, code: int, text: str) -> None:
    try:
        os.write(telling, f"{code} {text}".encode())
    except OSError:
        pass  # who launched us was killed meanwhile; the log tells the rest
    os.close(telling)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
