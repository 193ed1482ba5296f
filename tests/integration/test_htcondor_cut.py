"""The connection dies during each command, in each manner: afterwards there is exactly one run in the pool."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from bpsd.errors import BackendUnavailable
from bpsd.models import WmsStates
from bpsd.testing.contract import Bed
from bpsd.testing.observer import Observer, document, shell_job
from bpsd_adapters.htcondor.service import HTCondorService
from tests.figures import figure
from tests.integration.condorbed import CondorBed
from tests.integration.relay import Relay
from tests.integration.together import Outcomes, Rows

MOMENTS = figure("CONDOR_CUT_MOMENTS", test=1, soak=6)
"""At how many moments of each command, in each manner, the connection is cut."""

pytestmark = pytest.mark.timeout(600 + 300 * MOMENTS)  # all rows are run before the first is looked at

LONGEST_S = 0.8
PATIENCE_S = 240.0
SILENT_S = 4.0
"""How long nothing is passed on. The connection is then given up for dead, as keep-alives would do in the end."""

MANNERS = ("closed", "killed", "silent")


@dataclass
class Cut:
    """A service behind a relay, and a pool to look at the truth in."""

    pool: CondorBed
    relay: Relay
    observer: Observer
    folder: Path
    manner: str
    after_s: float

    async def during(self, command: Callable[[], Awaitable[Any]]) -> None:
        """Give a command, and end the connection while it is under way; give it again until it is through."""

        async def once() -> bool:
            try:
                await command()
            except BackendUnavailable:
                return False
            return True

        async with anyio.create_task_group() as group:
            group.start_soon(self._end_connection)
            through = await once()
        with anyio.fail_after(PATIENCE_S):
            while not through:
                await anyio.sleep(0.5)
                through = await once()

    async def _end_connection(self) -> None:
        await anyio.sleep(self.after_s)
        if self.manner == "closed":
            self.relay.cut()
        elif self.manner == "killed":
            await anyio.to_thread.run_sync(self.pool.kill_sessions, self.relay.server_side)
        else:
            self.relay.swallow()
            await anyio.sleep(SILENT_S)
            self.relay.heal()

    async def in_pool(self, token: str) -> list[str]:
        """The attempt tokens of all runs of a token, in the queue or gone from it."""
        which = f'bps_token =?= "{token}" && JobUniverse == 7'
        found = []
        for tool in ("condor_q", "condor_history"):
            asked = [tool, "-constraint", which, "-af", "bps_attempt_token"]
            found += (await anyio.to_thread.run_sync(self.pool.run, *asked)).split()
        return sorted(found)

    async def over(self, wms_id: str) -> WmsStates:
        """How the run ends."""
        return (await self.observer.until_over(wms_id, timeout_s=PATIENCE_S)).state


@asynccontextmanager
async def opened(pool: CondorBed, manner: str, after_s: float) -> AsyncIterator[Cut]:
    folder = pool.folder()
    async with Relay(pool.ssh_port) as relay:
        ssh = pool.ssh(port=relay.port)
        try:
            settings = pool.settings(ssh=ssh, command_deadline_s=20.0)
            async with Bed(HTCondorService, settings, folder).open() as observer:
                yield Cut(pool, relay, observer, folder, manner, after_s)
        finally:
            pool.remove([folder])
            await anyio.Path(ssh["known_hosts"]).unlink()


async def submit(cut: Cut) -> None:
    workflow = await cut.observer.workflow(document(shell_job("a_1", "true")))
    prepared = await cut.observer.service.prepare({}, workflow)

    await cut.during(lambda: cut.observer.service.submit(prepared))

    assert prepared.run_id is not None
    assert await cut.over(prepared.run_id) is WmsStates.SUCCEEDED
    assert await cut.in_pool(workflow.token) == [f"{workflow.token}.1"]


async def prepare(cut: Cut) -> None:
    """The run's folder is whole or not there."""
    workflow = await cut.observer.workflow(document(*(shell_job(f"a_{n}", "true") for n in range(20))))
    await cut.during(lambda: cut.observer.service.prepare({}, workflow))

    prepared = await cut.observer.service.prepare({}, workflow)
    await cut.observer.service.submit(prepared)
    assert prepared.run_id is not None
    assert await cut.over(prepared.run_id) is WmsStates.SUCCEEDED
    assert await cut.in_pool(workflow.token) == [f"{workflow.token}.1"]


async def restart(cut: Cut) -> None:
    mended = cut.folder / "scratch" / "mended"
    wms_id, workflow = await cut.observer.submit(document(shell_job("bad_1", f"test -e {mended}")))
    assert await cut.over(wms_id) is WmsStates.FAILED
    mended.touch()
    new: list[str] = []

    async def command() -> None:
        again, _, _ = await cut.observer.service.restart(wms_id, attempt_token=f"{workflow.token}.2")
        new.append(str(again))

    await cut.during(command)

    assert await cut.over(new[0]) is WmsStates.SUCCEEDED
    assert cut.observer.runs[new[0]].attempt == 2
    assert await cut.in_pool(workflow.token) == [f"{workflow.token}.1", f"{workflow.token}.2"]


async def cancel(cut: Cut) -> None:
    """Given again, it is agreed to or the run is over."""
    wms_id, workflow = await cut.observer.submit(document(shell_job("long_1", "sleep 600")))
    await cut.during(lambda: cut.observer.service.cancel(wms_id))

    assert await cut.over(wms_id) is WmsStates.DELETED
    assert await cut.in_pool(workflow.token) == [f"{workflow.token}.1"]


async def ping(cut: Cut) -> None:
    """A ping that finds no connection says so, and the run knows nothing of it."""
    wms_id, workflow = await cut.observer.submit(document(shell_job("a_1", "true")))

    async def command() -> None:
        status, message = await cut.observer.service.ping()
        if status != 0:
            raise BackendUnavailable(message)

    await cut.during(command)

    assert await cut.over(wms_id) is WmsStates.SUCCEEDED
    assert await cut.in_pool(workflow.token) == [f"{workflow.token}.1"]


async def poll(cut: Cut) -> None:
    """Polls that are cut off change no run and call none absent."""
    go = cut.folder / "scratch" / "go"
    wms_id, workflow = await cut.observer.submit(
        document(shell_job("a_1", f"while ! test -e {go}; do sleep 0.2; done"))
    )
    await cut.observer.until(wms_id, lambda run: run.state is WmsStates.RUNNING, PATIENCE_S)

    async def command() -> None:
        for _ in range(5):
            result = await cut.observer.poll()
            assert result.absent == ()
            assert cut.observer.runs[wms_id].state is WmsStates.RUNNING

    await cut.during(command)

    go.touch()
    assert await cut.over(wms_id) is WmsStates.SUCCEEDED
    assert cut.observer.states(wms_id) == {"a_1": "SUCCEEDED"}
    assert await cut.in_pool(workflow.token) == [f"{workflow.token}.1"]


COMMANDS = (prepare, submit, restart, cancel, ping, poll)


def rows() -> Rows:
    """Each command cut in each manner at each moment."""
    rows = Rows()
    for command in COMMANDS:
        for manner in MANNERS:
            for moment in range(MOMENTS):
                after_s = LONGEST_S * (moment + 0.3) / MOMENTS
                rows.add(f"{command.__name__}-{manner}-{after_s:.2f}", row(command, manner, after_s))
    return rows


def row(command: Callable[[Cut], Awaitable[None]], manner: str, after_s: float) -> Callable[[Any], Awaitable[None]]:
    async def cut_off(pool: CondorBed) -> None:
        async with opened(pool, manner, after_s) as cut:
            await command(cut)

    return cut_off


ROWS = rows()


@pytest.fixture(scope="module")
def outcomes(pool: CondorBed) -> Outcomes:
    return ROWS.run(pool, at_once=24, pause_s=1.0)


@pytest.mark.parametrize("name", ROWS.names)
def test_cut_off(outcomes: Outcomes, name: str) -> None:
    outcomes.check(name)
