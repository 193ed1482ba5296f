"""The local backend with real drivers and real jobs: opened as a daemon opens it, and ways to be cruel to it."""

from __future__ import annotations

__all__ = ["Local", "claimed_job", "events", "eventually", "opened", "repeated_successes"]

import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from bpsd.models import KnownRun, WmsStates
from bpsd.runs import RunRecord
from bpsd.testing.observer import Observer, document, open_service, shell_job
from bpsd_adapters import runlog
from bpsd_adapters.local import history as histories
from bpsd_adapters.local import processes
from bpsd_adapters.local.events import Ended, Event, Intent, decode
from bpsd_adapters.local.history import History
from bpsd_adapters.local.layout import RunFolder
from bpsd_adapters.local.service import LocalService

PATIENCE_S = 60.0


async def eventually(holds: Callable[[], Any], what: str) -> Any:
    """Wait until something holds (it is looked at in a thread); returns what it was that did."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := await anyio.to_thread.run_sync(holds)):
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}"
        await anyio.sleep(0.01)
    return found


def claimed_job(folder: Path, name: str, script: str = "true", **fields: Any) -> dict[str, Any]:
    """A job that notes when it finds itself running twice at once.

    The claim is a lock that all its processes hold, so it is gone with the last of them, however they end.
    """
    (folder / "claims").mkdir(exist_ok=True)
    lock, double = folder / "claims" / name, folder / "double"
    quoted = script.replace("'", "'\\''")
    inner = f"flock -n -E 99 {lock} sh -c '{quoted}'; code=$?; test $code -ne 99 || echo {name} >> {double}; exit $code"
    return shell_job(name, inner, **fields)


class Local:
    """A local backend and what its polls showed."""

    def __init__(self, observer: Observer, folder: Path) -> None:
        self.observer = observer
        self.folder = folder
        self.service: LocalService = observer.service  # type: ignore[assignment]

    async def start(self, *jobs: Mapping[str, Any], **fields: Any) -> tuple[str, RunFolder]:
        """Submit these jobs; returns the run's number and folder."""
        wms_id, workflow = await self.observer.submit(document(*jobs, **fields))
        return wms_id, RunFolder(self.folder / "state" / "runs" / workflow.token)

    async def run(self, *jobs: Mapping[str, Any], **fields: Any) -> tuple[RunRecord, RunFolder]:
        """Submit these jobs and wait for the end of the run."""
        wms_id, folder = await self.start(*jobs, **fields)
        return await self.observer.until_over(wms_id, timeout_s=PATIENCE_S), folder

    def states(self, wms_id: str) -> dict[str, str]:
        """Job to state."""
        return self.observer.states(wms_id)

    def job(self, wms_id: str, name: str) -> Any:
        """The row of a job."""
        jobs = self.observer.jobs[wms_id]
        return next(row for n in range(len(jobs)) if (row := jobs.row(n)).name == name)

    async def until_job(self, wms_id: str, name: str, state: WmsStates) -> None:
        """Poll until a job is in a state."""
        await self.observer.until(wms_id, lambda _: self.states(wms_id).get(name) == state.name, timeout_s=PATIENCE_S)

    def look(self, wms_id: str) -> KnownRun:
        """The run as a daemon that lost its memory would name it."""
        return KnownRun(run_id=wms_id, wms_id=wms_id)

    async def kill_driver(self, folder: RunFolder) -> History:
        """SIGKILL the driver of a run; returns what its log says then."""
        told = await anyio.to_thread.run_sync(histories.read, folder.log)
        await anyio.to_thread.run_sync(processes.send, told.driver, signal.SIGKILL)
        await eventually(lambda: not runlog.is_held(folder.log), "the killed driver is gone")
        return await anyio.to_thread.run_sync(histories.read, folder.log)


@asynccontextmanager
async def opened(folder: Path, **settings: Any) -> AsyncIterator[Local]:
    """A local backend with two cores and a ledger of its own."""
    settings = {"cores": 2, "ledger": str(folder / "ledger"), "terminate_grace_s": 1.0} | settings
    async with open_service(LocalService, settings, folder / "state") as observer:
        yield Local(observer, folder)


def events(folder: RunFolder) -> list[Event]:
    """The whole log of a run."""
    return list(runlog.events(folder.log, decode))


def repeated_successes(folder: RunFolder, *, but: str = "") -> list[str]:
    """The jobs that were to be started again after the log had said that they succeeded."""
    done: set[str] = set()
    again: list[str] = []
    for event in events(folder):
        if isinstance(event, Intent):
            again += [job.name for job in event.jobs if job.name in done and job.name != but]
        elif isinstance(event, Ended) and event.state == WmsStates.SUCCEEDED:
            done.add(event.job.name)
    return again
