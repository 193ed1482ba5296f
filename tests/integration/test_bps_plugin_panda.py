"""PanDAService against a real iDDS (`make soak`): its REST service, agents, PostgreSQL, an issuer of tokens (idds.sh).

Of PanDA itself there is the relay of commands alone (panda_relay.py): no job runs, so no run ends by itself. Where a
test needs an end it writes it into the database of the bed, and says so.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from bpsd.errors import Conflict, RunNotFound
from bpsd.models import WmsStates
from bpsd.testing.contract import Bed
from bpsd.testing.observer import Observer, document, shell_job
from bpsd_adapters.bps_plugin.service import BpsPluginService
from tests.figures import SOAK
from tests.integration.condorbed import bed_folder
from tests.integration.daemons import until
from tests.integration.lsstbed import present_beds
from tests.leftovers import SESSION_VARIABLE

pytestmark = pytest.mark.timeout(600)

TESTBEDS = Path(__file__).parents[1] / "testbeds"
RELAY = Path(__file__).parents[1] / "fixtures" / "panda_relay.py"
PORT = 28082
FINISHED, SUB_FINISHED, FAILED = 3, 4, 5
"""Values of iDDS's ``RequestStatus``."""


@dataclass
class IddsBed:
    """The bed: its environment as idds.sh prints it."""

    folder: Path

    @property
    def ours(self) -> dict[str, str]:
        without = {name: value for name, value in os.environ.items() if name != SESSION_VARIABLE}
        return {**without, "IDDS_BED": str(self.folder), "IDDS_VENV": f"{self.folder}-venv"}

    def script(self, mode: str) -> str:
        done = subprocess.run(
            [TESTBEDS / "idds.sh", mode], env=self.ours, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, f"the iDDS bed does not {mode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def environment(self) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", self.script("env")))

    def end(self, request: str, status: int) -> None:
        """Write the end of a request into the database: nothing that runs jobs is there to bring it about."""
        statement = f"UPDATE doma_idds.requests SET status={status}, locking=0 WHERE request_id={int(request)}"
        subprocess.run(
            ["psql", "-qAt", "-h", "127.0.0.1", "-p", "25432", "-U", "idds", "postgres", "-c", statement], check=True
        )


def listens() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


if SOAK:

    @pytest.fixture(scope="module")
    def idds() -> Iterator[IddsBed]:
        bed = IddsBed(bed_folder() / "idds")
        bed.script("start")
        relay = subprocess.Popen(
            [f"{bed.folder}-venv/bin/python", RELAY, str(PORT)],
            env={**bed.ours, **bed.environment()},
            stderr=subprocess.DEVNULL,
        )
        until(listens, "the relay listens")
        yield bed
        relay.terminate()
        relay.wait(30)
        bed.script("stop")

    @pytest.fixture
    def bed(idds: IddsBed, tmp_path: Path) -> Bed:
        middleware = present_beds()[0]
        variables = {n: v for n, v in idds.environment().items() if n.startswith(("PANDA", "OIDC"))}
        settings: dict[str, Any] = {
            "plugin": "lsst.ctrl.bps.panda.PanDAService",
            "python": str(middleware.folder / "bin" / "python"),
            "environment": {**variables, SESSION_VARIABLE: os.environ[SESSION_VARIABLE]},
            "settings": {"computeSite": "S", "computeCloud": "US", "fileDistributionEndPoint": f"{tmp_path}/files/"},
            "submit_root": str(tmp_path / "runs"),
            "settle_s": 60.0,  # iDDS takes up to a minute here to begin what it was told
        }
        return Bed(BpsPluginService, settings, tmp_path)

    TWO_JOBS = document(
        shell_job("first_1", "true", queue="Q", compute_site="S"),
        shell_job("second_1", "true", parents=["first_1"], queue="Q", compute_site="S"),
        run={"project": "dev", "campaign": "mock", "payload": "pay", "operator": "op"},
    )

    async def test_submitted_reported_and_cancelled(bed: Bed) -> None:
        async with bed.open() as observer:
            assert (await observer.service.ping())[0] == 0
            wms_id, workflow = await observer.submit(TWO_JOBS)
            run = await observer.until(wms_id, lambda run: run.state is WmsStates.RUNNING)
            assert (run.token, run.run_summary, run.project) == (workflow.token, "first:1;second:1", "dev")
            assert await observer.service.list_submitted_jobs() == [wms_id]
            with pytest.raises(Conflict, match="goes on"):
                await observer.service.restart(wms_id, attempt_token=f"{workflow.token}.2")
            agreed, message = await observer.service.cancel(wms_id)
            assert agreed, message
            # It stays Cancelling here: JEDI, which would end the tasks, is not there.
            assert (await observer.service.get_status(wms_id))[0] is WmsStates.RUNNING

    @pytest.mark.parametrize("wms_id", ["987654321", "1; DROP TABLE requests", "abc"])
    async def test_unknown_ids_are_refused(bed: Bed, wms_id: str) -> None:
        """The plugin itself agrees to cancel and to restart what is not there, and hands any text on."""
        async with bed.open() as observer:
            for ask in (observer.service.cancel, observer.service.restart, observer.service.get_status):
                with pytest.raises(RunNotFound):
                    await ask(wms_id)

    @pytest.mark.parametrize(("status", "state"), [(FAILED, WmsStates.FAILED), (SUB_FINISHED, WmsStates.FAILED)])
    async def test_an_end_is_seen_and_a_restart_is_the_next_attempt(
        bed: Bed, idds: IddsBed, status: int, state: WmsStates
    ) -> None:
        """The end is ours (see above); that the run is resumed is iDDS's own doing."""
        async with bed.open() as observer:
            wms_id, workflow = await observer.submit(TWO_JOBS)
            await observer.until(wms_id, lambda run: run.state is WmsStates.RUNNING)
            with anyio.fail_after(120.0):
                while observer.runs[wms_id].live:  # its agents may write what they had read before
                    await to_thread.run_sync(idds.end, wms_id, status)
                    await observer.poll()
            assert observer.runs[wms_id].state is state

            assert await resumed(observer, wms_id, workflow.token) in range(2, 5)

    async def resumed(observer: Observer, wms_id: str, token: str) -> int:
        """The attempt in which iDDS resumed the request: it may lose a command that it has accepted."""
        for attempt in range(2, 5):
            assert await observer.restart(wms_id, token, attempt) == wms_id
            with anyio.move_on_after(120.0):
                while observer.runs[wms_id].state is not WmsStates.RUNNING:
                    await observer.poll()
                    await anyio.sleep(1.0)
                assert observer.runs[wms_id].attempt == attempt
                return attempt
        raise AssertionError(f"iDDS never resumed request {wms_id}")
