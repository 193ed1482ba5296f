"""The host of one run whose plugin blocks until the end (Parsl): a process that is nobody's child.

Sent beside ``worker.py`` as ``bpsd_host.py``: standard library (Python 3.10 or newer), and the plugin's own packages in
the host process. The first half is for the control worker: `begin`, `look` and `cancel`; the second is the process.

A host holds a lock on ``run.log`` for as long as it lives, so *held* means *alive*. Its parent is a keeper
(``bpsd_processes.py``), from which every process of the run descends: what a killed host left is found that way. The
log is that of `bpsd_adapters.runlog`: each line has a CRC and a length before its JSON. Events are

- ``{"e": "begin", "n": 1, "t": time, "pid": ..., "start": ..., "keeper": [pid, start], "boot": ...}``: an attempt
  began;
- ``{"e": "jobs", "t": time, "jobs": [[name, label, state, exit code, note], ...]}``: what changed;
- ``{"e": "end", "n": 1, "t": time, "state": ..., "note": ...}``: it is over.

How jobs are doing is read off the plugin's own workflow, see ``jobs.py``.
"""

from __future__ import annotations

__all__ = ["begin", "cancel", "look", "main"]

import base64
import contextlib
import errno
import fcntl
import importlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

LOG = "run.log"
BEGIN_WAIT_S = 5.0
"""How long to wait for the lock of a host that is just ending."""

SERVICES_EVERY_S = 0.5
"""How often a host looks whether the processes that the plugin needs live."""

SUCCEEDED, DELETED, FAILED = 0, 16, 19
"""The values of ``WmsStates`` in which a run ends."""

LOG_MAX_BYTES = 1024 * 1024 * 1024
END_GRACE_S = 2.0
"""From SIGTERM to SIGKILL for what a run leaves: its interchange and its workers end in good order."""

SHUTDOWN_S = 10.0
"""How long the plugin may take to end what it started."""


def _processes() -> Any:
    """Our module about processes, which is sent next to this file."""
    return importlib.import_module("bpsd_processes")


def _jobs() -> Any:
    """Our module about the plugin's own objects (``jobs.py``), which is sent next to this file."""
    return importlib.import_module("bpsd_jobs")


# -- the log -----------------------------------------------------------------------------------------------------------


def _append(fd: int, *events: dict[str, Any]) -> None:
    """Append lines that are on the disk when this returns."""
    data = b""
    for event in events:
        payload = json.dumps(event, separators=(",", ":")).encode()
        data += b"%08x %06x %b\n" % (zlib.crc32(payload), len(payload), payload)
    while data:
        data = data[os.write(fd, data) :]
    os.fdatasync(fd)


def _lock(path: Path, patience_s: float) -> int | None:
    """Open a log for writing and hold it; `None` if another holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                return None
            time.sleep(0.02)
        else:
            _cut_torn_tail(fd)
            return fd


def _cut_torn_tail(fd: int) -> None:
    """What a killed writer left of its last line would spoil the next one."""
    size = os.fstat(fd).st_size
    tail = os.pread(fd, 1024 * 1024, max(0, size - 1024 * 1024))
    end = tail.rfind(b"\n") + 1
    if end < len(tail):
        os.ftruncate(fd, size - (len(tail) - end))


def _open(path: Path) -> int:
    """Open a log for reading; never waits for a FIFO that a job put in its place."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def _read(path: Path) -> bytes:
    with os.fdopen(_open(path), "rb") as file:
        return file.read(LOG_MAX_BYTES)


def _is_held(path: Path) -> bool:
    try:
        fd = _open(path)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _last(path: Path) -> tuple[dict[str, Any], bool]:
    """How the last attempt that a log tells of began (``n`` is 0 if none did), and whether it is over."""
    begin: dict[str, Any] = {"n": 0}
    over = True
    with contextlib.suppress(FileNotFoundError):
        for line in _read(path).splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line[16:])
                if event["e"] == "begin":
                    begin, over = event, False
                over = over or event["e"] == "end"
    return begin, over


def _host_of(begin: dict[str, Any]) -> Any:
    """The process that hosts an attempt; `bpsd_processes.GONE` if the machine was booted since."""
    processes = _processes()
    if "start" not in begin:  # written by an earlier release
        return processes.of_pid(begin.get("pid", 0))
    return processes.Process(begin["pid"], begin["start"]) if begin["boot"] == processes.boot_id() else processes.GONE


def _left_over(begin: dict[str, Any]) -> list[Any]:
    """The processes of an attempt whose host is gone."""
    host = _host_of(begin)
    if not host.pid or "keeper" not in begin:
        return []
    processes = _processes()
    found: list[Any] = processes.left_over(processes.Trace(processes.Process(*begin["keeper"]), (host,)))
    return found


def _succeeded(path: Path) -> frozenset[str]:
    """The jobs that a log knows to have succeeded, in whatever attempt."""
    names: set[str] = set()
    with contextlib.suppress(FileNotFoundError):
        for line in _read(path).splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line[16:])
                if event["e"] == "jobs":
                    names.update(job[0] for job in event["jobs"] if job[2] == SUCCEEDED)
    return frozenset(names)


# -- for the control worker --------------------------------------------------------------------------------------------


def begin(folder: Path, number: int, order: dict[str, Any]) -> None:
    """Start the host of an attempt; when this returns, the attempt has begun and goes on without us.

    Raises
    ------
    OSError
        If it could not be started.
    TimeoutError
        If another attempt goes on.
    """
    fd = _lock(folder / LOG, BEGIN_WAIT_S)
    if fd is None:
        raise TimeoutError(f"an attempt of the run in {folder} goes on")
    try:
        _end_left_over(folder)  # what a killed host left must not run next to the next one
        half = folder / ".host.json.half"
        half.write_text(json.dumps(order))
        half.replace(folder / "host.json")
        with (folder / "host.err").open("ab") as errors:
            subprocess.Popen(
                [sys.executable, "-X", "utf8", __file__, str(folder), str(number), str(fd)],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=folder,
                start_new_session=True,
                pass_fds=[fd],
            )
        deadline = time.monotonic() + BEGIN_WAIT_S
        while _last(folder / LOG)[0]["n"] < number and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.close(fd)
    if _last(folder / LOG)[0]["n"] < number and not _is_held(folder / LOG):
        raise OSError(f"the host did not begin; {folder / 'host.err'} may tell why")


def look(wanted: dict[str, int], max_bytes: int, end_left: bool = False) -> dict[str, Any]:
    """What was appended to logs: by folder, from an offset; and whether its host lives (looked at before reading).

    ``left`` is the number of processes of a run whose host is gone and has not said how it ended; with ``end_left``
    they are ended.
    """
    found, room = {}, max_bytes
    for folder, offset in wanted.items():
        path = Path(folder, LOG)
        held = _is_held(path)
        if not held and any(Path(folder).glob("cancel.*")):
            with contextlib.suppress(OSError):  # what does not die is looked for again
                _finish_cancel(Path(folder))
        begin, over = ({"n": 0}, True) if held else _last(path)
        left = 0 if over else len(_left_over(begin))
        if left and end_left:
            with contextlib.suppress(OSError):
                _finish(Path(folder), FAILED, "its host process was killed, and what it left was ended")
                left = 0
        data, size = b"", max(room, 64 * 1024)
        with contextlib.suppress(FileNotFoundError), os.fdopen(_open(path), "rb") as file:
            file.seek(offset)
            data = file.read(size)
        room -= len(data)
        found[folder] = {
            "left": left,
            "held": held or len(data) == size,  # what is not read yet may be its last word
            "data": base64.b64encode(data).decode(),
            "there": Path(folder).is_dir(),
        }
        if room <= 0:
            break
    return found


def cancel(folder: Path, grace_s: float) -> str:
    """Ask the host to end its run; after ``grace_s`` of asking, or if it is dead, end it here."""
    log = folder / LOG
    begin, over = _last(log)
    if over and not _is_held(log):
        return "it is over"
    request = folder / f"cancel.{begin['n']}"
    if _is_held(log) and not over:
        if not request.exists():
            request.touch()
            _signal(_host_of(begin), signal.SIGTERM)
            return "its host was asked to end it"
        if _age_s(request) < grace_s:
            return "its host is ending it"
        _signal(_host_of(begin), signal.SIGKILL)
    if not _finish(folder, DELETED, "its host was gone"):
        return "its host does not let go of the log"
    return "what its host left was ended"


def _finish(folder: Path, state: int, note: str) -> bool:
    """End what a dead host left, and write the end of its attempt; false if somebody has the log."""
    fd = _lock(folder / LOG, BEGIN_WAIT_S)
    if fd is None:
        return False
    try:
        _end_left_over(folder)
        begin, over = _last(folder / LOG)
        if not over:
            _append(fd, {"e": "end", "n": begin["n"], "t": time.time(), "state": state, "note": note})
    finally:
        os.close(fd)
    return True


def _finish_cancel(folder: Path) -> None:
    """A host that was to end its run and died before it had: its part is done here."""
    begin, over = _last(folder / LOG)
    if not over and (folder / f"cancel.{begin['n']}").exists():
        cancel(folder, 0.0)


def _age_s(request: Path) -> float:
    """How long ago a host was asked; a clock that was set back since makes that long."""
    age = time.time() - request.stat().st_mtime
    return age if age >= 0 else float("inf")


def _signal(process: Any, number: int) -> None:
    with contextlib.suppress(PermissionError):
        _processes().send(process, number)


def _end_left_over(folder: Path) -> None:
    """End what is left of the last attempt of a run, whose host is gone.

    Raises
    ------
    TimeoutError
        If it does not die.
    """
    begin, _ = _last(folder / LOG)
    left = _processes().end_all(lambda: _left_over(begin), END_GRACE_S)
    if left:
        raise TimeoutError(f"processes of the run in {folder} do not die: {[process.pid for process in left]}")


# -- the process -------------------------------------------------------------------------------------------------------


class _Cancelled(BaseException):
    """Somebody wants the end of this run."""


class _Broken(BaseException):
    """A process without which the run goes no further has died."""


def _note_outputs(folder: Path, jobs: Iterable[tuple[str, Any]]) -> None:
    """Write down where the output of each job goes."""
    paths = {name: [getattr(job, "stdout", None), getattr(job, "stderr", None)] for name, job in jobs}
    half = folder / ".outputs.json.half"
    half.write_text(json.dumps(paths))
    half.replace(folder / "outputs.json")


class _Host:
    """One attempt of one run."""

    def __init__(self, folder: Path, number: int, fd: int, keeper: Any) -> None:
        self.folder, self.number, self.fd, self.keeper = folder, number, fd, keeper
        self.broken = ""
        self.began = time.time()
        self.watch: Any = None
        self.workflow: Any = None
        self._observing = threading.Lock()
        self._earlier = _succeeded(folder / LOG)

    def run(self) -> None:
        """Run the plugin to its end and write down how it came out."""
        processes = _processes()
        me = processes.of_pid(os.getpid())
        begin = {"e": "begin", "n": self.number, "t": self.began, "pid": me.pid, "start": me.start}
        _append(self.fd, {**begin, "keeper": list(self.keeper), "boot": processes.boot_id()})
        state, note = FAILED, ""
        try:
            signal.signal(signal.SIGTERM, self._interrupt)
            self._drive()
            state, note = self._verdict()
        except _Cancelled:
            state, note = DELETED, "cancelled"
        except _Broken:
            note = f"failure of the infrastructure: {self.broken}; a restart goes on from where it was"
        except BaseException as exc:  # noqa: BLE001  # a plugin may raise anything: it is how the run came out
            traceback.print_exc()
            note = f"{type(exc).__name__}: {exc}"[:500]
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._observe()
        if self.watch is not None:
            self.watch.stop()
        if state == DELETED:
            self._end_all()
        if self.watch is not None:
            self.watch.look(DELETED if state == DELETED else FAILED, self.broken)
        if state != DELETED:
            self._end_all()
        _append(self.fd, {"e": "end", "n": self.number, "t": time.time(), "state": state, "note": note})

    def _drive(self) -> None:
        sys.path.insert(0, str(Path(__file__).parent))
        plugins = importlib.import_module("bpsd_plugin")
        order = json.loads((self.folder / "host.json").read_bytes())
        plugin = plugins.Plugin(order["plugin"], order["settings"])
        self._notice_workflows(plugin.bps.BaseWmsWorkflow)
        threading.Thread(target=self._watch_when_ready, daemon=True, name="ready").start()
        if self.number == 1:
            service, workflow = plugin.prepare(self.folder, self.folder.name)
            service.submit(workflow)
        else:
            plugin.service.restart(str(self.folder))

    def _notice_workflows(self, base: Any) -> None:
        """Have the plugin's workflow from the moment it is made: ``restart`` shows it to nobody."""
        original = base.__init__

        def noticing(workflow: Any, *arguments: Any, **keywords: Any) -> None:
            original(workflow, *arguments, **keywords)
            self.workflow = workflow

        base.__init__ = noticing

    def _interrupt(self, _number: int, _frame: Any) -> None:
        raise _Broken if self.broken else _Cancelled

    def _watch_when_ready(self) -> None:
        while self.watch is None:
            self._observe()
            time.sleep(0.05)
        while not self.broken:
            time.sleep(SERVICES_EVERY_S)
            self.broken = _jobs().dead_service(self.workflow)
        os.kill(os.getpid(), signal.SIGTERM)  # the plugin waits in the main thread, for what will not come

    def _observe(self) -> None:
        """Begin to look at the jobs, once the workflow shows them."""
        with self._observing:
            if self.watch is None and self.workflow is not None:
                watch = _jobs().watch_of(partial(_append, self.fd), self.workflow, self.began, self._earlier)
                if watch is not None:
                    _note_outputs(self.folder, watch.jobs.items())
                    watch.start()
                    self.watch = watch

    def _verdict(self) -> tuple[int, str]:
        """How the run came out, now that the plugin came back."""
        self._observe()
        if self.watch is None:
            return SUCCEEDED, "the plugin came back without an error; it tells nothing of jobs"
        self.watch.look()
        ended = [state for state, _, _ in self.watch.seen.values()]
        bad = sum(state != SUCCEEDED for state in ended)
        return (FAILED, f"{bad} of {len(ended)} jobs did not succeed") if bad else (SUCCEEDED, "")

    def _end_all(self) -> None:
        """Let the plugin end what it started, then end what is left of it on this host."""
        shutdown = getattr(self.workflow, "shutdown", None)
        if shutdown is not None and getattr(self.workflow, "dfk", None) is not None:
            closing = threading.Thread(target=_quietly, args=(shutdown,), daemon=True)
            closing.start()
            closing.join(SHUTDOWN_S)
        processes = _processes()
        me = processes.of_pid(os.getpid())
        processes.end_all(lambda: [p for p in processes.descendants(self.keeper) if p != me], END_GRACE_S)


def _quietly(call: Any) -> None:
    try:
        call()
    except Exception:  # noqa: BLE001  # what it did not end is ended next
        traceback.print_exc()


def main(arguments: list[str]) -> None:
    """Host an attempt: folder, number, and the descriptor of the log, which whoever launched us holds."""
    folder, number, fd = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    os.set_inheritable(fd, False)  # no child may hold the log: that would look as if we lived
    keeper = _processes().fork_kept([fd])
    os.setsid()  # a signal to the host's session does not reach its keeper
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _Host(folder, number, fd, keeper).run()
    sys.stdout.flush()
    os._exit(0)  # no thread of a plugin keeps us


if __name__ == "__main__":
    main(sys.argv[1:])
