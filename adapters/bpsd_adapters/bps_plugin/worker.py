"""The control worker: a ``BaseWmsService`` plugin in a process of its own, asked over JSON lines.

This file is *sent* to the interpreter that the backend's settings name, on another host perhaps: it needs the standard
library (Python 3.10 or newer), and next to it the files that `bpsd_adapters.bps_plugin.link.Deployment` sends. What the
plugin prints, its logging and what its children write become log lines; it finds nothing on its standard input;
`sys.exit` is an error like any other. The process ends when its reader is gone.

Lines to the worker are ``{"id": 1, "call": "report", "args": {...}}``, lines from it ``{"id": 1, "ok": ...}``,
``{"id": 1, "error": {"kind": ..., "text": ..., "trace": ...}}`` or ``{"log": "stderr", "text": ...}``.

Each run that we submit has a folder ``ROOT/TOKEN``: the workflow document, whatever the plugin writes (it is its submit
path), and ``bpsd.json``, the *entry*: which attempts were begun and which of them the WMS took, under which id. It is
written before and after the plugin is asked, under a lock, so that nothing is submitted twice.
"""

from __future__ import annotations

__all__ = ["Entry", "Refused", "Worker", "describe", "error_of", "load_document", "locked", "main", "take_streams"]

import contextlib
import fcntl
import importlib
import json
import logging
import os
import platform
import shutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

MISSING_MAX = 100
"""How many programs that are not there are told."""

TEXT_CHARS = 8000
"""The most that is sent of a text that somebody else wrote."""

LINE_CHARS = 2000
"""The most that is sent of one line that the plugin printed."""

LOCK_PATIENCE_S = 2.0
"""How long to wait for somebody who has the lock of a run."""

RUN_ATTRIBUTES = ("project", "campaign", "payload", "operator")


class Refused(Exception):
    """We say no: ``kind`` tells the daemon which of its errors that is."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def error_of(exc: BaseException) -> dict[str, Any]:
    """An exception as a reply."""
    kind = exc.kind if isinstance(exc, Refused) else type(exc).__name__
    text = f"sys.exit({exc.code!r})" if isinstance(exc, SystemExit) else str(exc)
    trace = "" if isinstance(exc, Refused) else "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    told = {"kind": kind, "text": text[:TEXT_CHARS], "trace": trace[-TEXT_CHARS:]}
    return {name: value.encode(errors="backslashreplace").decode() for name, value in told.items()}


def load_document(folder: Path) -> dict[str, Any]:
    """The workflow document of a run."""
    document: dict[str, Any] = json.loads((folder / "workflow.json").read_bytes())
    return document


# -- what we know of our runs ------------------------------------------------------------------------------------------


class Entry:
    """What is known of a run that we submitted, in its folder.

    ``data`` has the token, ``run`` (the columns of a report), ``attempts`` (by number: ``state`` is ``begun``, ``done``
    or ``failed``; ``wms_id``; ``time`` in epoch seconds of this host) and whether it was ``cancelled``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.data: dict[str, Any] = json.loads((folder / "bpsd.json").read_bytes())
        except FileNotFoundError:
            self.data = {"token": folder.name, "path": str(folder), "run": {}, "attempts": {}, "cancelled": False}

    def attempt(self, number: int) -> dict[str, Any]:
        """One attempt; empty if it was never begun."""
        found: dict[str, Any] = self.data["attempts"].get(str(number), {})
        return found

    def note(self, number: int, state: str, wms_id: str | None = None) -> None:
        """Write down what became of an attempt, on the disk before this returns."""
        self.data["attempts"][str(number)] = {"state": state, "wms_id": wms_id, "time": time.time()}
        self.write()

    def write(self) -> None:
        """Replace the file as a whole."""
        half = self.folder / ".bpsd.json.half"
        with half.open("wb") as file:
            file.write(json.dumps(self.data).encode())
            file.flush()
            os.fsync(file.fileno())
        half.replace(self.folder / "bpsd.json")
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one who submits, restarts or looks a run up.

    Raises
    ------
    Refused
        If somebody else is at it.
    """
    fd = os.open(folder / "bpsd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Refused("Busy", f"another process is submitting or restarting the run in {folder}") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def describe(document: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The columns of a report, for the entry."""
    run = document.get("run", {})
    return {
        **{name: run.get(name) for name in (*RUN_ATTRIBUTES, "site", "label")},
        "run": document["name"],
        "run_summary": facts.get("run_summary"),
        "total_number_jobs": facts.get("job_count"),
    }


# -- calls -------------------------------------------------------------------------------------------------------------


class Worker:
    """What the daemon may ask.

    Parameters
    ----------
    root : `~pathlib.Path`
        Under which each run has its folder.
    order : `dict`
        The plugin's name and its settings. It is imported when it is wanted: that takes seconds, and a run log can be
        read without it.
    hosts : `~types.ModuleType`
        Our module that starts and watches hosts (``host.py``).
    """

    def __init__(self, root: Path, order: dict[str, Any], hosts: Any) -> None:
        self.root, self.order, self.hosts = root, order, hosts
        self._plugin: Any = None

    @property
    def plugin(self) -> Any:
        """The plugin (``plugin.py``), imported."""
        if self._plugin is None:
            plugins = importlib.import_module("bpsd_plugin")
            self._plugin = plugins.Plugin(self.order["plugin"], self.order["settings"])
        return self._plugin

    def calls(self) -> dict[str, Callable[..., Any]]:
        """The questions by name."""
        return {
            "import": self.import_plugin,
            "plugin": self.ask_plugin,
            "prepare": self.prepare,
            "forget": self.forget,
            "submit": self.submit,
            "restart": self.restart,
            "find": self.find,
            "settle": self.settle,
            "entries": self.entries,
            "note_cancel": self.note_cancel,
            "host_begin": self.host_begin,
            "host_looks": self.hosts.look,
            "host_cancel": self.host_cancel,
        }

    def import_plugin(self) -> Any:
        """Have the plugin at hand; what it is."""
        return {"release": str(getattr(self.plugin.bps, "__version__", "")), "implements": self.plugin.implements}

    def ask_plugin(self, method: str, arguments: dict[str, Any]) -> Any:
        """One of upstream's methods, as it is; what ``NotImplementedError`` means is the daemon's to know."""
        os.chdir(self.root)  # the folder of the run that was prepared last may have been removed
        return self.plugin.ask(method, arguments)

    def prepare(self, token: str, check_executables: bool) -> Any:
        """Let the plugin make its files."""
        if check_executables:
            _check_executables(load_document(self.root / token))
        _, prepared = self.plugin.prepare(self.root / token, token)
        return {"name": prepared.name, "path": str(prepared.submit_path)}

    def forget(self, token: str) -> Any:
        """Remove a run's folder that was only made to see what the plugin says, unless the run was begun."""
        folder = self.root / token
        if folder.is_dir():
            with locked(folder):
                if Entry(folder).attempt(1).get("state") is None:
                    if self._plugin is not None:
                        self._plugin.forget(token)
                    os.chdir(self.root)
                    shutil.rmtree(folder, ignore_errors=True)

    def submit(self, token: str, facts: dict[str, Any]) -> Any:
        """Hand a run to the WMS, once; the id that it has there."""
        folder = self.root / token
        with locked(folder):
            entry = Entry(folder)
            done = _done_before(entry, 1)
            if done is not None:
                return done
            service, prepared = self.plugin.prepare(folder, token)
            entry.data["run"] = describe(load_document(folder), facts)
            with _asked(entry, 1):
                service.submit(prepared)
            wms_id = str(prepared.run_id if prepared.run_id is not None else folder)
            entry.note(1, "done", wms_id)
            return wms_id

    def restart(self, wms_id: str, token: str, number: int) -> Any:
        """The next attempt of a run, once; its id now, its name, and the plugin's message."""
        folder = self.root / token
        folder.mkdir(parents=True, exist_ok=True)  # a run of somebody else's has none yet
        with locked(folder):
            entry = Entry(folder)
            done = _done_before(entry, number)
            if done is not None:
                return [done, entry.data["run"].get("run"), ""]
            os.chdir(self.root)
            plugin = self.plugin
            with _asked(entry, number):
                new_id, name, message = plugin.restart(wms_id)
            entry.note(number, "failed" if new_id is None else "done", new_id)
            return [new_id, name, message]

    def find(self, token: str, number: int) -> Any:
        """What is known of an attempt: its state (``none`` if it was never begun), its id, and the folder."""
        folder = self.root / token
        if not folder.is_dir():
            return {"state": "none"}
        with locked(folder):
            attempt = Entry(folder).attempt(number)
        return {"state": "none", **attempt, "path": str(folder)}

    def settle(self, token: str, number: int, wms_id: str | None) -> Any:
        """Write down what the daemon found out of an attempt whose end was not known: the WMS has it, or never did."""
        folder = self.root / token
        with locked(folder):
            entry = Entry(folder)
            if entry.attempt(number).get("state") == "begun":
                entry.note(number, "failed" if wms_id is None else "done", wms_id)

    def entries(self, since: float) -> Any:
        """Every entry whose file is not older than ``since``, the newest file's time, and the time on this host."""
        newest, found = since, []
        if not (self.root / ".bpsd").is_dir():  # not an empty folder: one that is not mounted
            raise FileNotFoundError(f"{self.root} is not there, or not what it was: is its file system mounted?")
        for folder in os.scandir(self.root):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path = Path(folder.path)
                changed = (path / "bpsd.json").stat().st_mtime
                if changed >= since:
                    newest = max(newest, changed)
                    found.append(Entry(path).data)
        return {"now": time.time(), "newest": newest, "entries": found}

    def note_cancel(self, token: str) -> Any:
        """Remember that we asked for the end of a run: some WMS call that a failure."""
        with locked(self.root / token):
            entry = Entry(self.root / token)
            if not entry.data["cancelled"]:
                entry.data["cancelled"] = True
                entry.write()

    def host_begin(self, token: str, number: int, facts: dict[str, Any]) -> Any:
        """Begin an attempt of a run whose plugin blocks, in a host process; its id, which is its folder."""
        folder = self.root / token
        if not folder.is_dir():
            raise Refused("RunNotFound", f"there is no folder {folder}")
        with locked(folder):
            entry = Entry(folder)
            done = _done_before(entry, number)
            if done is not None:
                return done
            if facts:
                entry.data["run"] = describe(load_document(folder), facts)
            entry.data["cancelled"] = False
            entry.note(number, "begun")
            self.hosts.begin(folder, number, self.order)
            entry.note(number, "done", str(folder))
            return str(folder)

    def host_cancel(self, token: str, grace_s: float) -> Any:
        """Let a host end its run, or do it in its place; what there is to say of it."""
        folder = self.root / token
        if not Entry(folder).data["attempts"]:
            raise Refused("RunNotFound", f"no run was begun in {folder}")
        return self.hosts.cancel(folder, grace_s)


@contextlib.contextmanager
def _asked(entry: Entry, number: int) -> Iterator[None]:
    """Write down that an attempt is begun while the plugin is asked for it.

    So it stays after an error, for nobody knows whether the WMS has it, but if the plugin cannot do that at all.
    """
    entry.note(number, "begun")
    try:
        yield
    except NotImplementedError:
        entry.note(number, "failed")
        raise


def _check_executables(document: dict[str, Any]) -> None:
    """Look for the programs that jobs name by their paths.

    Raises
    ------
    Refused
        With those that are not there, one a line.
    """
    missing = []
    declared = {e["name"]: e for e in document.get("executables", ())}
    for job in [*document["jobs"], *([document["final"]] if document.get("final") else [])]:
        name = job.get("executable") or ""
        entry = declared.get(name, {})
        path = (entry.get("src_uri") or name).removeprefix("file://")
        if path.startswith("/") and "<" not in path and not os.access(path, os.X_OK):
            missing.append(f"job {job['name']}: there is no program {path} on {socket.gethostname()}")
    if missing:
        raise Refused("WorkflowInvalid", "\n".join(missing[:MISSING_MAX]))


def _done_before(entry: Entry, number: int) -> str | None:
    """The id under which an attempt was taken already.

    Raises
    ------
    Refused
        If it was begun and nobody wrote down what became of it.
    """
    attempt = entry.attempt(number)
    if attempt.get("state") == "begun":
        raise Refused("InDoubt", f"attempt {number} in {entry.folder} was begun before, and its end is not known")
    wms_id = attempt.get("wms_id") if attempt.get("state") == "done" else None
    return None if wms_id is None else str(wms_id)


# -- the process -------------------------------------------------------------------------------------------------------


class _Speaker:
    """The way to the daemon: whole lines, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def say(self, message: dict[str, Any]) -> None:
        """Send a line; if nobody listens any more, that is the end of this process."""
        try:
            line = json.dumps(message, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        except (ValueError, TypeError, RecursionError) as exc:  # an answer that JSON does not have is an error at once
            reason = f"the answer cannot be sent: {type(exc).__name__}: {exc}"
            error = error_of(Refused("UndecodableAnswer", reason.encode(errors="backslashreplace").decode()))
            line = json.dumps({"id": message.get("id"), "error": error}).encode() + b"\n"
        try:
            with self._lock:
                self._stream.write(line)
                self._stream.flush()
        except OSError:
            os._exit(0)


def take_streams(tell: Callable[[str, str], None]) -> BinaryIO:
    """Put standard input aside for the protocol; what is written to output and error from now on is told.

    Parameters
    ----------
    tell : callable
        Takes the name of a stream and a line of it.

    Returns
    -------
    hearing : file object
        What was standard input.
    """
    hearing = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        reading, writing = os.pipe()
        os.dup2(writing, fd)
        os.close(writing)
        threading.Thread(target=_tell_lines, args=(reading, name, tell), daemon=True, name=name).start()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # a descriptor, for the life of the process
    return hearing


def _tell_lines(fd: int, name: str, tell: Callable[[str, str], None]) -> None:
    with os.fdopen(fd, "rb") as stream:
        while line := stream.readline(LINE_CHARS):
            text = line.decode(errors="replace").rstrip()
            if text:
                tell(name, text)


def _begun(order: dict[str, Any]) -> tuple[Worker, dict[str, Any]]:
    sys.path.insert(0, str(Path(__file__).parent))
    hosts = importlib.import_module("bpsd_host")
    root = Path(order["root"])
    root.mkdir(parents=True, exist_ok=True)
    plugin = {"plugin": order["plugin"], "settings": order["settings"]}
    facts = {"python": platform.python_version(), "host": socket.gethostname(), "pid": os.getpid()}
    return Worker(root, plugin, hosts), facts


def _listen(hearing: BinaryIO, requests: SimpleQueue[dict[str, Any]]) -> None:
    """Hand requests on; when the daemon is gone, so are we, whatever the plugin is doing."""
    while (line := hearing.readline()).endswith(b"\n"):  # one that breaks off is no request
        requests.put(json.loads(line))
    os._exit(0)


def _answer(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"ok": call()}
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # noqa: BLE001  # a plugin may raise anything, SystemExit too: it is its answer
        return {"error": error_of(exc)}


def main() -> None:
    """Take the first line as what to work with, then answer questions, one by one, until nobody asks any more."""
    speaker = _Speaker(os.fdopen(os.dup(1), "wb"))
    hearing = take_streams(lambda name, text: speaker.say({"log": name, "text": text}))
    logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s: %(message)s")

    requests: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(hearing, requests), daemon=True, name="listen").start()
    first = requests.get()
    worker, facts = _begun(first["args"])
    speaker.say({"id": first["id"], "ok": facts})
    calls = worker.calls()
    while True:
        request = requests.get()
        call = calls.get(request["call"])
        if call is None:
            answer = {"error": error_of(Refused("UnknownCall", f"this worker has no call {request['call']}"))}
        else:
            answer = _answer(lambda: call(**request["args"]))  # noqa: B023  # called before the next request
        speaker.say({"id": request["id"], **answer})


if __name__ == "__main__":
    main()
