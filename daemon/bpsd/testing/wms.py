"""A WMS that is one JSON file: tests write what it has and how it misbehaves, `bpsd.testing.scripted` reads it.

The file is the WMS: it survives the daemon, so a test can kill the daemon and look into it afterwards. Every change is
made under a lock and gives the run a new version, which is the cursor of the adapter.
"""

from __future__ import annotations

__all__ = ["Fault", "ScriptedJob", "ScriptedRun", "ScriptedWms", "WmsFile", "add_run", "touch"]

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from bpsd.models import made_ready


class ScriptedJob(msgspec.Struct, kw_only=True):
    """A job of a scripted run; ``state`` is a name of `~bpsd.models.WmsStates`."""

    name: str
    label: str
    state: str = "READY"
    attempt: int | None = 1
    exit_code: int | None = None
    note: str = ""
    log: str = ""


class ScriptedRun(msgspec.Struct, kw_only=True):
    """A run in the scripted WMS. ``tokens`` are those of all attempts; ``hidden`` runs are in no source any more."""

    wms_id: str
    name: str
    state: str = "RUNNING"
    attempt: int | None = 1
    tokens: list[str] = []
    version: int = 0
    hidden: bool = False
    attributes: dict[str, Any] = {}
    run_summary: str | None = None
    submit_time: float = 0.0
    end_time: float | None = None
    note: str | None = None
    jobs: list[ScriptedJob] = []


class Fault(msgspec.Struct, kw_only=True):
    """What goes wrong with the next ``times`` calls (-1: all).

    ``error`` fails before anything happens, ``lost`` after it has happened; ``hang`` never answers; ``auth`` refuses;
    ``empty`` answers nothing and says that it was complete *except* in the source's status; ``partial`` answers every
    second run; ``crash`` fails in the adapter's background; ``bug`` raises what no adapter should; ``refuse`` says no
    for good.
    """

    kind: Literal["error", "lost", "hang", "auth", "empty", "partial", "crash", "bug", "refuse", "slow"]
    times: int = -1
    seconds: float = 0.0


class WmsFile(msgspec.Struct, kw_only=True):
    """The whole file."""

    version: int = 0
    next_id: int = 1
    runs: dict[str, ScriptedRun] = {}
    faults: dict[str, Fault] = {}
    calls: dict[str, int] = {}
    token_asks_tell: bool = True


made_ready(WmsFile)


class ScriptedWms:
    """The file seen by a test, and by the adapter: short, synchronous, atomic changes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"<ScriptedWms {self.path}>"

    def read(self) -> WmsFile:
        """The file as it is; an empty WMS if there is none yet."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=WmsFile)
        except FileNotFoundError:
            return WmsFile()

    @contextmanager
    def edit(self) -> Iterator[WmsFile]:
        """Change the file under its lock."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f"{self.path.name}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            wms = self.read()
            yield wms
            temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_bytes(msgspec.json.encode(wms))
            temporary.replace(self.path)

    def add(self, name: str, *, jobs: int = 0, **fields: Any) -> ScriptedRun:
        """A run that somebody else submitted, with ``jobs`` running jobs of two labels."""
        with self.edit() as wms:
            return add_run(wms, name, jobs=jobs, **fields)

    def change(self, wms_id: str, *, jobs: str | None = None, **fields: Any) -> None:
        """Set fields of a run; ``jobs`` is a state for all of its jobs."""
        with self.edit() as wms:
            run = wms.runs[wms_id]
            for name, value in fields.items():
                setattr(run, name, value)
            if jobs is not None:
                for job in run.jobs:
                    job.state = jobs
            touch(wms, run)

    def fault(self, call: str, kind: str | None, *, times: int = -1, seconds: float = 0.0) -> None:
        """Let a call (``poll``, ``submit``, ...) go wrong; `None` mends it."""
        with self.edit() as wms:
            if kind is None:
                wms.faults.pop(call, None)
            else:
                wms.faults[call] = msgspec.convert({"kind": kind, "times": times, "seconds": seconds}, Fault)


def add_run(wms: WmsFile, name: str, *, jobs: int = 0, **fields: Any) -> ScriptedRun:
    """Put a run into the file."""
    run = ScriptedRun(wms_id=str(wms.next_id), name=name, submit_time=time.time(), **fields)
    wms.next_id += 1
    run.jobs = run.jobs or [
        ScriptedJob(name=f"job_{number}", label="even" if number % 2 == 0 else "odd", state="RUNNING")
        for number in range(jobs)
    ]
    wms.runs[run.wms_id] = run
    touch(wms, run)
    return run


def touch(wms: WmsFile, run: ScriptedRun) -> None:
    """Give a run the next version."""
    wms.version += 1
    run.version = wms.version
