"""What a log says of a run: a fold, so the same lines always give the same history."""

from __future__ import annotations

__all__ = ["History", "OpenJob", "fold", "left_over", "may_have_run", "read", "read_marks"]

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from bpsd.models import WmsStates
from bpsd_adapters import runlog
from bpsd_adapters.local import processes
from bpsd_adapters.local.events import Begin, End, Ended, Event, Held, Intent, JobRef, Started, States, decode
from bpsd_adapters.local.layout import RunFolder
from bpsd_adapters.local.processes import GONE, Process, Trace


@dataclass(frozen=True, slots=True)
class OpenJob:
    """An attempt of a job whose end the log does not have. ``process`` is `GONE` if only the intent was written."""

    job: JobRef
    process: Process
    boot: str


@dataclass(slots=True)
class History:
    """What happened so far."""

    attempt: int = 0
    """The run's last attempt; 0 if none has begun."""

    begin: Begin | None = None
    end: End | None = None
    """How the last attempt ended, if it did."""

    held: bool = False
    starts: dict[int, int] = field(default_factory=dict)
    """The number of the last attempt of each job that was ever started."""

    succeeded: set[int] = field(default_factory=set)
    open: dict[int, OpenJob] = field(default_factory=dict)
    """What was started, or about to be, and not seen to end."""

    @property
    def driver(self) -> Process:
        """Who wrote the last attempt."""
        return GONE if self.begin is None else Process(self.begin.pid, self.begin.start)


def fold(events: Iterable[Event], history: History | None = None) -> History:
    """Add events to a history."""
    told = history or History()
    for event in events:
        if isinstance(event, Started):
            boot = "" if told.begin is None else told.begin.boot
            _note(told, event.job)
            told.open[event.job.node] = OpenJob(event.job, Process(event.pid, event.start), boot)
        elif isinstance(event, Ended):
            _note(told, event.job)
            told.open.pop(event.job.node, None)
            if event.state == WmsStates.SUCCEEDED:
                told.succeeded.add(event.job.node)
        elif isinstance(event, Intent):
            for job in event.jobs:
                told.open[job.node] = OpenJob(job, GONE, "" if told.begin is None else told.begin.boot)
        elif isinstance(event, States):
            told.succeeded.update(j.node for j in event.jobs if j.state == WmsStates.SUCCEEDED)
        elif isinstance(event, Begin):
            told.attempt, told.begin, told.end, told.held = event.attempt, event, None, False
        elif isinstance(event, End):
            told.end = event
            told.open.clear()  # it is written when nothing runs: what was intended was not started
        elif isinstance(event, Held):
            told.held = event.held
    return told


def _note(told: History, job: JobRef) -> None:
    told.starts[job.node] = max(told.starts.get(job.node, 0), job.attempt)


def may_have_run(job: OpenJob, folder: RunFolder, boot: str) -> bool:
    """Whether an attempt without an end was started: not if there was but an intent, and no trace of a process.

    Before a program is loaded its output files are made, and they outlive all but the machine.
    """
    if job.process != GONE or job.boot != boot:
        return True
    return folder.output(job.job.name, job.job.attempt, "out").exists()


def left_over(told: History, folder: RunFolder) -> list[Process]:
    """The processes that are left of a run whose driver is gone. None are left of another boot of the machine."""
    begin = told.begin
    if begin is None or begin.boot != processes.boot_id():
        return []
    return processes.left_over(
        Trace(
            keeper=Process(begin.keeper_pid, begin.keeper_start),
            leaders=tuple(job.process for job in told.open.values() if job.boot == begin.boot),
            control_group=begin.control_group,
            outputs=str(folder.out),
        )
    )


def read(path: Path) -> History:
    """The history of the run that this is the log of; empty if there is no log.

    Raises
    ------
    OSError
        If the log cannot be read.
    """
    return fold(runlog.events(path, decode))


def read_marks(path: Path) -> History:
    """As `read`, but only when attempts began and ended, which takes a tenth of the time."""
    return fold(e for e in runlog.events(path, _decode_mark) if e is not None)


_MARKS = (b'{"e":"begin"', b'{"e":"end"')


def _decode_mark(payload: bytes) -> Event | None:
    return decode(payload) if payload.startswith(_MARKS) else None
