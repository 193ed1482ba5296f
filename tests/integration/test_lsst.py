"""The real ``bps`` command over bpsd: a real Butler repository, real quanta, a run that fails and is restarted."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.figures import figure
from tests.integration.daemons import RunningDaemon, until
from tests.integration.lsstbed import Bps, LsstBed, Repository, present_beds

CAMPAIGNS = figure("LSST_CAMPAIGNS", test=1, soak=2)
"""Campaigns at the same time."""

BEDS = figure("LSST_BEDS", test=1, soak=2)
"""Releases of the middleware in which a campaign is run, the current one first."""

DETECTORS = figure("LSST_DETECTORS", test=2, soak=4)
"""Detectors of a campaign: for each a job of two tasks, and one job for all."""

COLUMNS = (
    *("UNKNOWN", "MISFIT", "UNREADY", "READY", "PENDING", "RUNNING"),
    *("DELETED", "HELD", "SUCCEEDED", "FAILED", "PRUNED", "EXPECTED"),
)

pytestmark = pytest.mark.timeout(900)

SUCCEEDED, DELETED, FAILED = 0, 16, 19
"""Exit codes of ``bps status``."""


@pytest.fixture(scope="module", params=range(BEDS))
def bed(request: pytest.FixtureRequest) -> LsstBed:
    beds = present_beds()
    number: int = request.param
    return beds[min(number, len(beds) - 1)]


@pytest.fixture
def repository(bed: LsstBed, tmp_path: Path) -> Repository:
    return Repository(bed, tmp_path / "butler")


@pytest.fixture
def daemon(state_dir: Path) -> Iterator[RunningDaemon]:
    with stopped_daemon(state_dir) as running:
        yield running


def stopped_daemon(folder: Path) -> RunningDaemon:
    local = {"type": "local", "cores": 2, "ledger": str(folder / "ledger"), "terminate_grace_s": 1.0}
    return RunningDaemon(folder, {"here": local}, commands={"deadline_s": 60.0})


def await_state(daemon: RunningDaemon, run: str, *states: str) -> str:
    def state() -> str | None:
        with daemon.client() as client:
            found: str = client.status(run)["state"]
        return found if found in states else None

    reached: str = until(state, f"{run} is {' or '.join(states)}", timeout_s=300.0)
    return reached


def row_of(table: str, label: str) -> list[int]:
    """The numbers of a line of ``bps report --id``."""
    (line,) = re.findall(rf"^{label} +([\d ]+)$", table, re.MULTILINE)
    return [int(number) for number in line.split()]


def test_campaigns_fail_are_seen_and_are_restarted(daemon: RunningDaemon, repository: Repository) -> None:
    bps = Bps(repository.bed, daemon.socket)
    names = [f"night{number}" for number in range(CAMPAIGNS)]
    submitted: dict[str, tuple[str, Path]] = {}
    repository.hide_raw()

    def submit(name: str) -> None:
        submitted[name] = bps.submit(repository.config(name, DETECTORS))

    threads = [threading.Thread(target=submit, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(submitted) == names, "a submission failed: see above"
    runs = {name: run for name, (run, _) in submitted.items()}
    assert {await_state(daemon, run, "SUCCEEDED", "FAILED") for run in runs.values()} == {"FAILED"}

    # What failed is seen, by any name of the run, and with the exit codes of bps.
    run, folder = submitted[names[0]]
    detailed = bps("report", "--id", folder, "--return-exit-codes").stdout
    table = {label: dict(zip(COLUMNS, row_of(detailed, label), strict=True)) for label in ("TOTAL", "isr", "coadd")}
    good, total = 2 * DETECTORS, 2 * DETECTORS + 3
    assert table["TOTAL"] | {"SUCCEEDED": good, "FAILED": 1, "PRUNED": 2, "EXPECTED": total} == table["TOTAL"]
    assert table["isr"] | {"SUCCEEDED": DETECTORS - 1, "FAILED": 1, "EXPECTED": DETECTORS} == table["isr"]
    assert table["coadd"]["PRUNED"] == 1
    assert re.search(r"^isr +1 +1 +0 +None$", detailed, re.MULTILINE), detailed  # one error of the payload: code 1
    assert re.search(r"^calib +0 +None +0 +None$", detailed, re.MULTILINE), detailed
    assert "WARNING" not in detailed
    assert bps("status", "--id", run, check=False).returncode == FAILED
    brief = bps("report", "--hist", "1").stdout
    percent = int(good / total * 100)
    site = "" if bps.bed.name == "lsst-3.11" else "anywhere +"  # the last release for Python 3.11 has no such column
    line = rf"^ +FAILED +{percent} +{run} +op +dev +mock +{site}{names[0]} "
    assert re.search(line, brief, re.MULTILINE), brief

    # It is restarted where it failed, and keeps its id.
    repository.show_raw()
    for name, (this, path) in submitted.items():
        restarted = bps("restart", "--id", path).stdout
        assert f"Run Id: {this}\nRun Name: u_op_{name}_" in restarted
    assert {await_state(daemon, each, "SUCCEEDED", "FAILED") for each in runs.values()} == {"SUCCEEDED"}
    assert bps("status", "--id", folder, check=False).returncode == SUCCEEDED
    for name in names:
        outputs = repository.outputs(f"u/op/{name}")
        assert outputs | {"post": DETECTORS, "cal": DETECTORS, "sum": 1, "isr_metadata": DETECTORS} == outputs
    assert run not in bps("report").stdout, "without --hist only runs that are not over are shown"


def test_one_command_is_prepared_without_a_daemon_and_cancelled(
    state_dir: Path, repository: Repository, tmp_path: Path
) -> None:
    daemon = stopped_daemon(state_dir)
    bps = Bps(repository.bed, daemon.socket)
    config = repository.command_config("sleeper", "/bin/sleep 600", wmsServiceClass="bpsd.lsst.BpsdService")

    # A submit file may name the class, whatever the environment names.
    Bps(repository.bed, daemon.socket, {"BPS_WMS_SERVICE_CLASS": "of.Nobody"})("submitcmd", "--dry-run", config)

    (prepared,) = (repository.folder / "submit").rglob("bpsd.json")
    assert prepared.stat().st_mode & 0o777 == 0o600
    refused = bps("submitcmd", config, check=False)
    assert refused.returncode == 1
    assert f"Error: no daemon answers on {daemon.socket}" in refused.stderr
    assert "Traceback" not in refused.stderr
    with daemon.start():
        with daemon.client() as client:
            client.refresh()
        assert bps("ping").returncode == 0
        done = bps.bed.run("python", "-c", SUBMIT_FOLDER_TWICE, prepared.parent, BPSD_SOCKET=str(daemon.socket))
        first, second = done.stdout.split()
        assert first == second, "the same directory is the same run"
        await_state(daemon, first, "RUNNING")
        assert bps("cancel", "--id", prepared.parent).stdout == f"Successfully canceled job with id '{first}'\n"
        await_state(daemon, first, "DELETED")
        assert bps("status", "--id", first, check=False).returncode == DELETED
        assert "No job matches" in bps("cancel", "--id", first).stdout
        assert "No records found" in bps("report", "--id", "nobody").stdout


SUBMIT_FOLDER_TWICE = """
import sys
from bpsd.lsst.service import BpsdService, BpsdWorkflow
for _ in range(2):
    workflow = BpsdWorkflow.from_folder(sys.argv[1])
    BpsdService(workflow.config).submit(workflow, config=workflow.config)
    print(workflow.run_id)
"""
