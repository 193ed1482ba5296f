"""The real ``bps`` command over bpsd on a real HTCondor pool, over its adapter and over upstream's plugin."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.condorbed import CondorBed
from tests.integration.daemons import FAST, RunningDaemon, until
from tests.integration.lsstbed import ROOT
from tests.integration.test_bps_plugin_condor import condor_settings

pytestmark = pytest.mark.timeout(1800)

BPS = "/opt/bps/bin/bps"

SUBMIT_FILE = """
pipelineYaml: {folder}/pipe.yaml
project: dev
campaign: pool
operator: op
computeSite: anywhere
requestMemory: 256
payload:
  payloadName: night
  butlerConfig: {folder}/repo
  inCollection: input_chain
  output: u/op/night
  outputRun: "u/op/night/{{timestamp}}"
submitPath: "{folder}/submit/{{outputRun}}"
finalJob: {{whenRun: ALWAYS, requestCpus: 1, requestMemory: 64, command1: "echo at the end"}}
"""


class User:
    """Somebody on the submit host. The commands run as root there, as the daemon does here: it is the same user."""

    def __init__(self, pool: CondorBed, folder: Path, daemon: RunningDaemon) -> None:
        self.pool, self.folder, self.daemon = pool, folder, daemon
        for package in ("daemon", "adapters"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "tests" / "testbeds" / "lsst_mock_repo.py", folder)
        self.run("/opt/bps/bin/python", str(folder / "lsst_mock_repo.py"), str(folder / "butler"))
        (folder / "butler" / "night.yaml").write_text(SUBMIT_FILE.format(folder=folder / "butler"))
        self.run("chown", "-R", "op:op", str(folder))

    def run(self, *argv: str, good: bool = True) -> str:
        environment = (
            "HOME=/home/op",
            "PATH=/opt/bps/bin:/usr/bin:/bin",
            "CTRL_MPEXEC_DIR=/opt/bps",
            "DAF_BUTLER_DIR=/opt/bps",
            f"PYTHONPATH={self.folder}/daemon:{self.folder}/adapters",
            "BPS_WMS_SERVICE_CLASS=bpsd.lsst.BpsdService",
            f"BPSD_SOCKET={self.daemon.socket}",
        )
        done = self.pool.script("exec", "env", *environment, *argv)
        assert done.returncode == 0 or not good, f"{argv}: {done.stdout}{done.stderr}"
        return f"{done.stdout}exit {done.returncode}\n"

    def await_state(self, run: str, *states: str) -> str:
        def state() -> str | None:
            with self.daemon.client() as client:
                found: str = client.status(run)["state"]
            return found if found in states else None

        reached: str = until(state, f"{run} is {' or '.join(states)}", timeout_s=600.0)
        return reached


@pytest.fixture(params=["htcondor", "bps_plugin"])
def user(request: pytest.FixtureRequest, pool: CondorBed) -> Iterator[User]:
    """Over our own adapter, and over upstream's plugin."""
    folder = pool.folder()
    folder.chmod(0o777)
    (folder / "d").mkdir()
    settings = pool.settings() if request.param == "htcondor" else condor_settings(pool)
    patient = {"deadline_s": 60.0}
    with RunningDaemon(
        folder / "d",
        {"pool": {"type": request.param, **settings}},
        polling={**FAST["polling"], **patient},
        commands=patient,
    ) as daemon:
        yield User(pool, folder, daemon)
    pool.remove([folder])


def test_a_campaign_on_a_pool_fails_is_seen_and_is_restarted(user: User) -> None:
    raw = user.folder / "butler" / "repo" / "input_run" / "raw0" / "raw0_Cam1_Ab_input_run.json"
    raw.rename(raw.with_suffix(".hidden"))

    said = user.run(BPS, "submit", str(user.folder / "butler" / "night.yaml"))

    found = re.search(r"^Run Id: (\S+)$", said, re.MULTILINE)
    assert found, said
    run = found[1]
    (prepared,) = (user.folder / "butler" / "submit").rglob("bpsd.json")
    assert user.await_state(run, "SUCCEEDED", "FAILED") == "FAILED"
    table = user.run(BPS, "report", "--id", str(prepared.parent), "--return-exit-codes")
    assert re.search(r"^isr +(0 +){8}3 +1 +0 +4$", table, re.MULTILINE), table
    assert re.search(r"^isr +1 +1 +0 +None$", table, re.MULTILINE), table
    assert user.run(BPS, "status", "--id", run, good=False).endswith("exit 19\n")

    raw.with_suffix(".hidden").rename(raw)
    assert f"Run Id: {run}\n" in user.run(BPS, "restart", "--id", run)
    assert user.await_state(run, "SUCCEEDED", "FAILED") == "SUCCEEDED"
    assert user.run(BPS, "status", "--id", run).endswith("exit 0\n")
    assert len(list((user.folder / "butler" / "repo" / "u").rglob("sum_*.json"))) == 1

    # What upstream's own plugin sees of it (other tests' runs in this pool have jobs whose names it cannot take).
    plugin = "lsst.ctrl.bps.htcondor.HTCondorService"
    ours = 'bps_campaign == "pool" && JobUniverse == 7'
    theirs = user.run(BPS, "report", "--wms-service-class", plugin, "--hist", "1", "--pass-thru", ours)
    assert re.search(r"SUCCEEDED +100 .* op +dev +pool +anywhere +night ", theirs), theirs
