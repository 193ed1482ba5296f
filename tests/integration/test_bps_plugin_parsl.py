"""ParslService for real: upstream's plugin in the middleware's own Python, with Parsl's executor on this machine.

Each attempt starts Parsl anew (its processes, and the import of all of the middleware), which is what takes the time.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from bpsd.models import WmsStates
from bpsd.testing.contract import AdapterContract, Bed, ExecutionContract
from bpsd.testing.observer import Observer, document, shell_job
from bpsd_adapters.bps_plugin.service import BpsPluginService
from bpsd_adapters.local import processes
from tests.figures import SOAK, figure
from tests.integration.daemons import RunningDaemon, until
from tests.integration.lsstbed import Bps, LsstBed, Repository, present_beds
from tests.integration.test_bps_plugin import begin_of, living
from tests.leftovers import SESSION_VARIABLE

pytestmark = pytest.mark.timeout(600)


def parsl_settings(bed: LsstBed, folder: Path) -> dict[str, Any]:
    """A backend whose plugin is ParslService, with two cores of this machine."""
    site = {"class": "lsst.ctrl.bps.parsl.sites.Local", "cores": 2, "retries": 0}
    return {
        "plugin": "lsst.ctrl.bps.parsl.ParslService",
        "python": str(bed.folder / "bin" / "python"),
        "environment": {
            "PATH": f"{bed.folder / 'bin'}:/usr/bin:/bin",  # where Parsl finds its own programs
            SESSION_VARIABLE: os.environ[SESSION_VARIABLE],
        },
        "settings": {"computeSite": "local", "site": {"local": site}},
        "submit_root": str(folder / "runs"),
    }


RELEASES = figure("LSST_BEDS", test=1, soak=2)
"""Releases of the middleware whose plugin is run, the current one first."""


@pytest.fixture(params=range(RELEASES))
def release(request: pytest.FixtureRequest) -> LsstBed:
    beds = present_beds()
    number: int = request.param
    return beds[min(number, len(beds) - 1)]


@pytest.fixture
def bed(release: LsstBed, tmp_path: Path) -> Bed:
    return Bed(BpsPluginService, parsl_settings(release, tmp_path), tmp_path, patience_s=300.0)


async def test_a_run_fails_and_is_restarted_to_its_end(bed: Bed) -> None:
    """Report, list, output and cancel come from the host's log: ParslService itself has none of them."""
    mended, trace = bed.scratch / "mended", bed.scratch / "trace"

    def job(name: str, rest: str = "", *parents: str) -> dict[str, Any]:
        return shell_job(name, f"echo {name} >> {trace}; echo out of {name}{rest}", parents=parents)

    async with bed.open() as observer:
        wms_id, workflow = await observer.submit(
            document(
                job("isr_1"),
                job("isr_2", f"; test -e {mended} || exit 3"),
                job("coadd_1", "", "isr_1", "isr_2"),
                final=job("final_1"),
            )
        )
        assert wms_id in await observer.service.list_submitted_jobs()
        run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
        assert (run.state, run.token, run.attempt) == (WmsStates.FAILED, workflow.token, 1)
        assert observer.states(wms_id) == {
            "isr_1": "SUCCEEDED",
            "isr_2": "FAILED",
            "coadd_1": "PRUNED",
            "final_1": "SUCCEEDED",
        }
        assert run.as_row(observer.jobs[wms_id], full=True).exit_codes["isr"] == {"3": 1}
        output = await observer.service.read_output(wms_id, "isr_2", "stdout", 0, 4096)
        assert output.data == b"out of isr_2\n"

        mended.touch()
        again = await observer.restart(wms_id, workflow.token, 2)
        run = await observer.until_over(again, attempt=2, timeout_s=bed.patience_s)
        assert (run.state, run.attempt) == (WmsStates.SUCCEEDED, 2)
        assert set(observer.states(wms_id).values()) == {"SUCCEEDED"}
        ran = trace.read_text().split()
        assert {name: ran.count(name) for name in set(ran)} == {"isr_1": 1, "isr_2": 2, "coadd_1": 1, "final_1": 2}
        reports, _ = await observer.service.report(wms_id)
        assert reports[0].total_number_jobs == 4


async def processes_of_run(bed: Bed, token: str) -> tuple[int, dict[int, str]]:
    """The host of a run, and what descends from its keeper with the name that it shows."""
    begin = await anyio.to_thread.run_sync(begin_of, bed, token)
    keeper = processes.Process(*begin["keeper"])
    found = {p.pid: name_of(p.pid) for p in await anyio.to_thread.run_sync(processes.descendants, keeper)}
    del found[begin["pid"]]
    return begin["pid"], found


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def interchange_of(found: dict[int, str]) -> int:
    (pid,) = [pid for pid, name in found.items() if re.search(r"interchange\b(?!_)", name)]
    return pid


async def started_sleeper(bed: Bed, observer: Observer) -> tuple[str, str]:
    """A run whose one job sleeps, and for which Parsl has all of its processes."""
    wms_id, workflow = await observer.submit(document(shell_job("long_1", "exec sleep 31536000")))
    await observer.until(wms_id, lambda _: observer.states(wms_id) == {"long_1": "RUNNING"}, timeout_s=bed.patience_s)
    return wms_id, workflow.token


async def test_a_killed_interchange_is_a_failure_of_the_infrastructure(bed: Bed) -> None:
    """Parsl itself waits for ever (Parsl#3374)."""
    async with bed.open() as observer:
        wms_id, token = await started_sleeper(bed, observer)
        _, found = await processes_of_run(bed, token)
        interchange = interchange_of(found)
        os.kill(interchange, signal.SIGKILL)
        run = await observer.until_over(wms_id, timeout_s=bed.patience_s)

        assert run.state is WmsStates.FAILED
        assert re.fullmatch(
            rf"failure of the infrastructure: the interchange of executor \w+ \(pid {interchange}\) was ended by "
            "signal 9 while the run went on; a restart goes on from where it was",
            run.note,
        ), run.note
        assert observer.states(wms_id) == {"long_1": "FAILED"}
        assert await anyio.to_thread.run_sync(living, [*found]) == []


async def test_a_killed_host_leaves_a_run_that_goes_on_and_cancel_ends_it(bed: Bed) -> None:
    """Parsl's interchange rewrites its environment, and its workers have sessions of their own."""
    async with bed.open() as observer:
        wms_id, token = await started_sleeper(bed, observer)
        host, found = await processes_of_run(bed, token)
        os.kill(host, signal.SIGKILL)
        run = await observer.until(wms_id, lambda run: "of the run still live" in run.note, timeout_s=bed.patience_s)
        assert run.state is WmsStates.RUNNING

        agreed, _ = await observer.service.cancel(wms_id)
        assert agreed
        run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
        assert run.state is WmsStates.DELETED
        assert len(found) > 3
        assert await anyio.to_thread.run_sync(living, [*found]) == []


def test_the_real_command_over_the_daemon_over_the_plugin(release: LsstBed, state_dir: Path, tmp_path: Path) -> None:
    """``bps submit`` comes back at once; real quanta run in Parsl, one fails, and a restart succeeds."""
    bed = release
    repository = Repository(bed, tmp_path / "butler")
    settings = parsl_settings(bed, tmp_path)
    settings["settings"] = {"site": {"parsl": settings["settings"]["site"]["local"]}}
    settings["environment"] |= {"CTRL_MPEXEC_DIR": str(bed.folder), "DAF_BUTLER_DIR": str(bed.folder)}
    polling = {"deadline_s": 60.0, "min_interval_s": 1.0, "idle_interval_s": 1.0}
    commands = {"deadline_s": 300.0}
    backends = {"parsl": {"type": "bps_plugin", **settings}}
    with RunningDaemon(state_dir, backends, polling=polling, commands=commands) as daemon:
        bps = Bps(bed, daemon.socket)
        repository.hide_raw()

        run, folder = bps.submit(repository.config("night", 2, computeSite="parsl"))

        assert state_of(daemon, run) == "FAILED"
        detailed = bps("report", "--id", folder, "--return-exit-codes").stdout
        assert re.search(r"^isr +1 +1 +0 +None$", detailed, re.MULTILINE), detailed
        repository.show_raw()
        bps("restart", "--id", folder)
        assert state_of(daemon, run) == "SUCCEEDED"
        outputs = repository.outputs("u/op/night")
        assert outputs | {"post": 2, "cal": 2, "sum": 1} == outputs

        long, folder = bps.submit(
            repository.command_config("sleeper", "/bin/sleep 600", computeSite="parsl"), "submitcmd"
        )
        bps("cancel", "--id", folder)
        assert state_of(daemon, long) == "DELETED"


def state_of(daemon: RunningDaemon, run: str) -> str:
    """The state in which a run ends, of the attempt that goes on."""

    def over() -> str | None:
        with daemon.client() as client:
            state: str = client.status(run)["state"]
        return state if state in ("SUCCEEDED", "FAILED", "DELETED") else None

    found: str = until(over, f"run {run} is over", timeout_s=300.0)
    return found


if SOAK:

    class TestParsl(AdapterContract):
        """The contract of every adapter, as far as ctrl_bps_parsl knows what jobs may ask for."""

        test_order_and_output = ExecutionContract.test_order_and_output
        test_failure_prunes_and_restart_goes_on_from_there = (
            ExecutionContract.test_failure_prunes_and_restart_goes_on_from_there
        )
        test_bad_workflows_are_refused_before_anything_runs = (
            ExecutionContract.test_bad_workflows_are_refused_before_anything_runs
        )
