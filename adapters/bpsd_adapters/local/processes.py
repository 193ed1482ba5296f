"""Processes by what the kernel says of them: a pid alone proves nothing, since pids are used again.

A process is its pid *and* its start time (``/proc/PID/stat`` field 22, proc(5)) within one boot of the machine; signals
go through a pidfd opened before the start time was looked at, so that they cannot meet another process.

The processes of a run are known by descent, never by what they say of themselves: a process may rewrite its environment
and its name. Each driver has a *keeper*, its parent, which adopts every orphan below it (PR_SET_CHILD_SUBREAPER) and
lives as long as one of them does: what a killed driver left is what descends from its keeper. Where the keeper was
killed too, the session that each job began, the control group of the run and the files it writes its output to tell.

Standard library only, Python 3.10 or newer: the host of a plugin (`bpsd_adapters.bps_plugin.host`) gets a copy.
"""

from __future__ import annotations

__all__ = [
    "GONE",
    "Process",
    "Trace",
    "boot_id",
    "control_group",
    "descendants",
    "end_all",
    "fork_kept",
    "group_is_alive",
    "is_alive",
    "left_over",
    "of_child",
    "of_pid",
    "send",
]

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

UNKILLABLE_AFTER_S = 5.0
"""How long after SIGKILL a process may still be there before it is given up (it waits for a dead disk, say)."""

_SCAN_EVERY_S = 0.05
_STATE, _PARENT, _GROUP, _SESSION, _THREADS, _START = 0, 1, 2, 3, 17, 19
"""Places in ``/proc/PID/stat`` behind the name: fields 3 to 6, 20 and 22."""

_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36
_KEEPER_NAME = b"bpsd-keeper"
_CONTROL_GROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")
"""Where the hierarchy that systemd manages may be mounted."""


class Process(NamedTuple):
    """One process of this boot of the machine; ``start`` in clock ticks since the boot."""

    pid: int
    start: int


GONE = Process(0, 0)


def boot_id() -> str:
    """What tells this boot of the machine from all others."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def _stat(pid: int, *, zombies: bool = False) -> list[bytes]:
    """The fields of ``/proc/PID/stat`` from the third on; none of a process that is gone, or a zombie not asked for."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, 1024)
        finally:
            os.close(fd)
    except OSError:
        return []
    fields = data[data.rfind(b")") + 2 :].split()
    return fields if fields and (zombies or _is_living(fields)) else []


def _is_living(fields: list[bytes]) -> bool:
    """Whether a process lives: one whose first thread has ended looks like a zombie while others of it run."""
    return fields[_STATE] not in (b"Z", b"X") or int(fields[_THREADS]) > 1


def of_pid(pid: int) -> Process:
    """The living process that has this pid now, or `GONE`."""
    fields = _stat(pid)
    return Process(pid, int(fields[_START])) if fields else GONE


def of_child(pid: int) -> Process:
    """A child of ours that was not reaped yet, whether it lives or not."""
    return Process(pid, int(_stat(pid, zombies=True)[_START]))


def is_alive(process: Process) -> bool:
    """Whether it is still there."""
    return process.pid > 0 and of_pid(process.pid) == process


def send(process: Process, number: int) -> bool:
    """Send a signal to this process and no other; whether it was there to get it.

    Raises
    ------
    PermissionError
        If it belongs to somebody else now.
    """
    if process.pid <= 0:
        return False
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # a kernel or a build of Python without it (a plugin's): the best there is
        return _send_by_pid(process, number)
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def _send_by_pid(process: Process, number: int) -> bool:
    if not is_alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def _pids() -> Iterator[int]:
    for name in os.listdir("/proc"):  # noqa: PTH208  # 4 times faster than Path.iterdir, and it is asked often
        if name.isdecimal():
            yield int(name)


def group_is_alive(leader: int) -> bool:
    """Whether a process group has a living member (its leader may be a zombie)."""
    wanted = str(leader).encode()
    return any(fields[_GROUP] == wanted for fields in map(_stat, _pids()) if fields)


class _Entry(NamedTuple):
    """What the kernel says of a process."""

    parent: int
    group: int
    session: int
    start: int
    living: bool


class Trace(NamedTuple):
    """How the processes of an attempt of a run are found when its driver is gone."""

    keeper: Process = GONE
    """The keeper of its driver, see `fork_kept`."""

    leaders: tuple[Process, ...] = ()
    """The processes that began a session for jobs of it, whether they live or not."""

    control_group: str = ""
    """The control group that it had for itself, see `control_group`."""

    outputs: str = ""
    """The folder in which nothing but its jobs writes."""


def _table() -> dict[int, _Entry]:
    """The processes of this machine, with those that are ending: their children are not orphans yet."""
    found = {}
    for pid in _pids():
        fields = _stat(pid, zombies=True)
        if fields:
            parent, group, session, start = (int(fields[n]) for n in (_PARENT, _GROUP, _SESSION, _START))
            found[pid] = _Entry(parent, group, session, start, _is_living(fields))
    return found


def descendants(root: Process) -> list[Process]:
    """The living processes that descend from one that lives, without itself."""
    table = _table()
    if root.pid not in table or table[root.pid].start != root.start:
        return []
    return [Process(pid, table[pid].start) for pid in _below({root.pid}, table) - {root.pid} if table[pid].living]


def _below(roots: Collection[int], table: Mapping[int, _Entry]) -> set[int]:
    """These processes and all that descend from them."""
    children: dict[int, list[int]] = {}
    for pid, entry in table.items():
        children.setdefault(entry.parent, []).append(pid)
    found, left = set(roots), list(roots)
    while left:
        new = [pid for pid in children.get(left.pop(), ()) if pid not in found]
        found.update(new)
        left += new
    return found


def left_over(trace: Trace) -> list[Process]:
    """The living processes of an attempt of a run whose driver is gone; this process and its ancestors are none."""
    return _left_over(trace) or _left_over(trace)  # a process that was just forked may have been missed


def _left_over(trace: Trace) -> list[Process]:
    table = _table()
    kept = trace.keeper.pid in table and table[trace.keeper.pid].start == trace.keeper.start  # also as it ends
    roots = {trace.keeper.pid} if kept else set()
    roots |= {pid for pid, entry in table.items() if any(_began_by(leader, entry, table) for leader in trace.leaders)}
    if trace.control_group:
        roots |= _members(trace.control_group) & table.keys()
    if trace.outputs:
        roots |= {pid for pid in table if _writes_below(trace.outputs, pid)}
    spared = _ancestors(os.getpid(), table) | {trace.keeper.pid}
    own = os.getuid()
    return [
        Process(pid, table[pid].start)
        for pid in _below(roots, table) - spared
        if table[pid].living and (own == 0 or _owner(pid) == own)  # nobody else may signal a set-uid program
    ]


def _began_by(leader: Process, entry: _Entry, table: Mapping[int, _Entry]) -> bool:
    """Whether a process is in the session or the group that a process began, which may be gone."""
    if leader.pid == 0 or leader.pid not in (entry.session, entry.group) or entry.start < leader.start:
        return False
    there = table.get(leader.pid)  # the number is free for another process once no member is left
    return there is None or there.start == leader.start


def _ancestors(pid: int, table: Mapping[int, _Entry]) -> set[int]:
    found: set[int] = set()
    while pid and pid not in found:
        found.add(pid)
        pid = table[pid].parent if pid in table else 0
    return found


def _owner(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116  # as in _pids
    except OSError:
        return -1


def _writes_below(folder: str, pid: int) -> bool:
    try:
        return any(os.readlink(f"/proc/{pid}/fd/{fd}").startswith(folder + "/") for fd in (1, 2))  # noqa: PTH115
    except OSError:
        return False


def control_group(prefixes: tuple[str, ...]) -> str:
    """The control group of this process if it has a name that begins so; empty if it has not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if (number == "0" or controllers == "name=systemd") and path.rpartition("/")[2].startswith(prefixes):
                return path
    return ""


def _members(group: str) -> set[int]:
    """The processes in a control group, and in those below it."""
    for root in _CONTROL_GROUPS:
        found = [Path(root + group), *Path(root + group).rglob("*/")]
        with contextlib.suppress(OSError):
            return {int(pid) for folder in found for pid in (folder / "cgroup.procs").read_text().split()}
    return set()


def end_all(find: Callable[[], list[Process]], grace_s: float) -> list[Process]:
    """End processes: TERM, and KILL for those that are there after the grace. Returns those that do not die.

    Parameters
    ----------
    find : callable
        Finds those that are still there; asked until there are none.
    grace_s : `float`
        From TERM to KILL.
    """
    asked: set[Process] = set()
    kill_at = time.monotonic() + grace_s
    give_up_at = kill_at + UNKILLABLE_AFTER_S
    while left := find() or find():  # a process may have been forked while we looked
        now = time.monotonic()
        if now > give_up_at:
            break
        for process in left:
            if now >= kill_at:
                _send_quietly(process, (signal.SIGKILL,))
            elif process not in asked:
                _send_quietly(process, (signal.SIGTERM, signal.SIGCONT))  # a stopped process hears nothing else
                asked.add(process)
        time.sleep(_SCAN_EVERY_S)
    return left


def _send_quietly(process: Process, numbers: Iterable[int]) -> None:
    with contextlib.suppress(PermissionError):  # a set-uid program: it is waited for
        for number in numbers:
            send(process, number)


# -- the keeper --------------------------------------------------------------------------------------------------------


def fork_kept(fds: Iterable[int] = ()) -> Process:
    """Fork. The parent becomes the keeper of the child and never returns; the child goes on, and is told its keeper.

    The keeper adopts what is orphaned below it and ends with the last of its children. It does nothing else: no
    signal but SIGKILL ends it, and it takes little memory of its own.

    Parameters
    ----------
    fds : `~collections.abc.Iterable` [`int`]
        What the keeper must not hold open.
    """
    keeper = of_pid(os.getpid())
    adopts = _adopt_orphans()
    if os.fork() == 0:
        return keeper if adopts else GONE
    for fd in fds:
        os.close(fd)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError, ValueError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, _KEEPER_NAME, 0, 0, 0)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            os._exit(0)


def _adopt_orphans() -> bool:
    """Have orphans among our descendants become our children (prctl(2)); false where that cannot be asked for."""
    try:
        done: int = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError, ValueError):
        return False
    return done == 0 and sys.platform == "linux"
