"""PanDAService against a real iDDS (`make soak`): its REST service, agents, PostgreSQL, an issuer of tokens (idds.sh).

Of PanDA itself there is what these ask it for (panda_relay.py): the relay of commands, and tasks whose jobs run in name
only. How a request ends is iDDS's own verdict on them.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bpsd.errors import Conflict, RunNotFound
from bpsd.models import WmsStates
from bpsd.runs import RunRecord
from bpsd.testing.contract import Bed
from bpsd.testing.observer import Observer, document, shell_job
from bpsd_adapters.bps_plugin.service import BpsPluginService
from tests.figures import SOAK
from tests.integration.condorbed import bed_folder
from tests.integration.daemons import until
from tests.integration.lsstbed import present_beds
from tests.leftovers import SESSION_VARIABLE

pytestmark = pytest.mark.timeout(1200)

TESTBEDS = Path(__file__).parents[1] / "testbeds"
RELAY = Path(__file__).parents[1] / "fixtures" / "panda_relay.py"
PORT = 28082
PATIENCE_S = 400.0
"""Where iDDS loses one of its own events, its clerk looks at a request again after 300 s (``idds.sh``)."""
FIRST_TASK = 1_700_000_000
"""Tasks are numbered by when the relay was started: the database of the bed knows those of earlier sessions."""


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


def listens() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


if SOAK:

    @pytest.fixture(scope="module")
    def idds() -> Iterator[IddsBed]:
        bed = IddsBed(bed_folder() / "idds")
        bed.script("start")
        relay = subprocess.Popen(
            [f"{bed.folder}-venv/bin/python", RELAY, str(PORT), str(int(time.time()) - FIRST_TASK)],
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

    def workflow(*jobs: str) -> dict[str, Any]:
        """A workflow of jobs that wait for nobody, each of a label of its own but for the number."""
        return document(
            *(shell_job(name, "true", queue="Q", compute_site="S") for name in jobs),
            run={"project": "dev", "campaign": "mock", "payload": "pay", "operator": "op"},
        )

    async def test_submitted_reported_and_cancelled(bed: Bed) -> None:
        async with bed.open() as observer:
            assert (await observer.service.ping())[0] == 0
            wms_id, document_file = await observer.submit(workflow("long_1", "other_1"))
            run = await observer.until(wms_id, lambda run: run.state is WmsStates.RUNNING)
            assert (run.token, run.run_summary, run.project) == (document_file.token, "long:1;other:1", "dev")
            assert await observer.service.list_submitted_jobs() == [wms_id]
            with pytest.raises(Conflict, match="goes on"):
                await observer.service.restart(wms_id, attempt_token=f"{document_file.token}.2")
            assert await cancelled(observer, wms_id) is WmsStates.DELETED

    async def cancelled(observer: Observer, wms_id: str) -> WmsStates | None:
        """The end of a run that is cancelled, as the daemon does it: iDDS may lose a command that it has accepted."""
        for _ in range(3):
            agreed, message = await observer.service.cancel(wms_id)
            assert agreed, message
            with contextlib.suppress(AssertionError):
                return (await observer.until_over(wms_id)).state
        raise AssertionError(f"iDDS never ended request {wms_id}")

    @pytest.mark.parametrize("wms_id", ["987654321", "1; DROP TABLE requests", "abc"])
    async def test_unknown_ids_are_refused(bed: Bed, wms_id: str) -> None:
        """The plugin itself agrees to cancel and to restart what is not there, and hands any text on."""
        async with bed.open() as observer:
            for ask in (observer.service.cancel, observer.service.restart, observer.service.get_status):
                with pytest.raises(RunNotFound):
                    await ask(wms_id)

    async def test_a_run_that_succeeds(bed: Bed) -> None:
        async with bed.open() as observer:
            wms_id, _ = await observer.submit(workflow("first_1", "first_2", "second_1"))
            run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
            assert run.state is WmsStates.SUCCEEDED
            assert counts(run) == {WmsStates.SUCCEEDED: 3}

    @pytest.mark.parametrize(
        ("jobs", "expected"),
        [
            (("bad_1", "bad_2"), {WmsStates.FAILED: 2}),
            (("mixed_1", "mixed_bad_2", "fine_1"), {WmsStates.FAILED: 1, WmsStates.SUCCEEDED: 2}),  # SubFinished
        ],
    )
    async def test_a_run_that_fails_is_restarted_to_its_end(
        bed: Bed, jobs: tuple[str, ...], expected: dict[WmsStates, int]
    ) -> None:
        """What iDDS calls SubFinished has failed; a restart under the same id is the next attempt.

        It tells no exit codes here: it keeps them without the id of their task, by which the plugin asks for them.
        """
        async with bed.open() as observer:
            wms_id, document_file = await observer.submit(workflow(*jobs))
            run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
            assert run.state is WmsStates.FAILED
            assert counts(run) == expected

            again = await restarted(observer, wms_id, document_file.token)
            run = await observer.until_over(wms_id, attempt=again, timeout_s=PATIENCE_S)
            assert run.state is WmsStates.SUCCEEDED
            assert counts(run) == {WmsStates.SUCCEEDED: len(jobs)}

    def counts(run: RunRecord) -> dict[WmsStates, int]:
        return {state: count for state, count in (run.job_state_counts or {}).items() if count}

    async def restarted(observer: Observer, wms_id: str, token: str) -> int:
        """The attempt in which iDDS resumed the request: it may lose a command that it has accepted."""
        for attempt in range(2, 5):
            assert await observer.restart(wms_id, token, attempt) == wms_id
            with contextlib.suppress(AssertionError):
                await observer.until(wms_id, lambda run: run.state is WmsStates.RUNNING, timeout_s=90.0)
                assert observer.runs[wms_id].attempt == attempt
                return attempt
        raise AssertionError(f"iDDS never resumed request {wms_id}")
