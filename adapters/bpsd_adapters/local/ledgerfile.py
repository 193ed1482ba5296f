"""The file of the ledger: where it is, how it is opened, and which drivers should be in it.

There is one for each user on each machine, whatever daemons the user has. It lies in a folder that only the user can
write to, so nobody else can make it first, and where no logout removes it (systemd-logind's RemoveIPC cleans /dev/shm).
Its name has the boot id and the process name space: process ids mean something only within these, and a home folder may
be shared by many machines.
"""

from __future__ import annotations

__all__ = ["RUNS_FOLDER", "default_path", "earlier_path", "ledger_in", "living_drivers", "open_earlier", "open_own"]

import os
import stat
import time
from pathlib import Path

import msgspec

from bpsd_adapters.local import processes
from bpsd_adapters.local.processes import GONE, Process

RUNS_FOLDER = Path("/var/lib/bpsd-runs")
"""Where systemd makes a folder for each user who runs jobs through a system's daemon."""

EARLIER_FOLDER = Path("/dev/shm")  # noqa: S108  # only read there, with open_earlier, which trusts nothing
"""Where earlier versions kept the ledger; drivers that began before an upgrade still use it."""

KEEP_S = 30 * 86400.0
"""Ledgers of earlier boots, and of machines that share the home folder, are removed when unchanged for this long."""

DRIVER_MODULE = b"bpsd_adapters.local.driver"
_COMMAND_MAX_BYTES = 64 * 1024


class _Settings(msgspec.Struct):
    """What is looked for in the settings on a driver's command line."""

    ledger: str


def ledger_in(folder: Path) -> Path:
    """Return the path of this boot's ledger in a state folder of the user."""
    space = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116  # Path.stat is the same with a detour
    return folder / "ledger" / f"{processes.boot_id()}-{space}"


def default_path(state_dir: Path) -> Path:
    """Return where this user's ledger is, for every daemon, agent and driver of the user on this machine.

    It is in the folder that a system's daemon has for the user's runs, if there is one; a system service keeps it in
    its state folder; else it is in the user's home. ``state_dir`` is for a user without a home.
    """
    runs = RUNS_FOLDER / str(os.getuid())
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    service = [Path(given)] if given.startswith("/var/lib/") else []
    for folder in (runs, *service):
        if _is_private(folder):
            return ledger_in(folder)
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  # Path.home raises for a user without an entry
    return ledger_in(home / ".local/state/bpsd" if _is_own_folder(home) else state_dir)


def earlier_path() -> Path:
    """Return where earlier versions kept this user's ledger."""
    return EARLIER_FOLDER / f"bpsd-ledger-{os.getuid()}"


def _is_own_folder(folder: Path) -> bool:
    try:
        status = folder.stat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _is_private(folder: Path) -> bool:
    try:
        status = folder.stat(follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def open_own(path: Path, *, private_folder: bool) -> int:
    """Open the ledger, made if it is not there; it must be a file of this user's alone.

    Raises
    ------
    OSError
        If that is not so, or it cannot be opened; the message says what to do.
    """
    if private_folder and not path.parent.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if private_folder and not _is_private(path.parent):
        raise PermissionError(
            f"cannot use the ledger {path}: its folder must be a directory of user {os.getuid()} that nobody else can "
            "write to; remove or repair it, or name another file with the setting 'ledger'"
        )
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        fd = os.open(path, flags | os.O_CREAT, 0o600)
        if private_folder:
            _remove_old(path)
    if _is_own(fd):
        return fd
    status = os.fstat(fd)
    os.close(fd)
    raise PermissionError(
        f"cannot use the ledger {path}: it is not a file of user {os.getuid()} alone (owner {status.st_uid}, "
        f"{status.st_nlink} links); remove it, or name another file with the setting 'ledger'"
    )


def open_earlier(path: Path) -> int:
    """Open the ledger of an earlier version; -1 if there is none, or it is not this user's (then no driver uses it)."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return -1
    if _is_own(fd):
        return fd
    os.close(fd)
    return -1


def _is_own(fd: int) -> bool:
    status = os.fstat(fd)
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and status.st_nlink <= 1


def _remove_old(path: Path) -> None:
    """Remove what earlier boots left; a ledger in use is written often, and is made again if it is removed."""
    for other in path.parent.iterdir():
        try:
            if other != path and time.time() - other.stat(follow_symlinks=False).st_mtime > KEEP_S:
                other.unlink()
        except OSError:
            continue


def living_drivers(path: Path) -> tuple[Process, ...]:
    """Return the living drivers of this user that use a ledger, by their command lines, without this process."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        process = processes.of_pid(
            int(entry.name)
        )  # before the evidence: the start time tells if the pid changes hands
        if process != GONE and _drives_with(process.pid, os.fspath(path)):
            found.append(process)
    return tuple(found)


def _drives_with(pid: int, path: str) -> bool:
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.getuid():  # noqa: PTH116  # asked for every process of the machine
            return False
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123  # as above
            words = file.read(_COMMAND_MAX_BYTES).split(b"\0")
        if DRIVER_MODULE not in words:
            return False
        at = words.index(DRIVER_MODULE)
        if msgspec.json.decode(words[at + 2], type=_Settings).ledger != path:
            return False
        # One that is just starting is not ready for SIGUSR1, and has no jobs; then its stderr leads there.
        return os.fsencode(os.readlink(f"/proc/{pid}/fd/2")).startswith(words[at + 1] + b"/driver.err")  # noqa: PTH115
    except (OSError, ValueError, IndexError):
        return False
