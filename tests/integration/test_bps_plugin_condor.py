"""Plugins on another host, over SSH: the submit host of a real pool; HTCondorService itself there (`make soak`)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio import to_thread

from bpsd.errors import BackendUnavailable, DeadlineExceeded
from bpsd.models import WmsStates
from bpsd.runs import RunRecord
from bpsd.testing.contract import AdapterContract, Bed, ExecutionContract
from bpsd.testing.observer import Observer, document, shell_job
from bpsd_adapters.bps_plugin.service import BpsPluginService
from tests.figures import SOAK
from tests.integration.condorbed import CondorBed
from tests.integration.daemons import until
from tests.integration.test_bps_plugin import WORLD

pytestmark = pytest.mark.timeout(600)


def condor_settings(pool: CondorBed) -> dict[str, Any]:
    """A backend whose plugin is HTCondorService, where ``htcondor.sh lsst`` has put it."""
    return {
        "plugin": "lsst.ctrl.bps.htcondor.HTCondorService",
        "python": "/opt/bps/bin/python",
        "ssh": pool.ssh(),
        "environment": {"CTRL_MPEXEC_DIR": "/opt/bps", "DAF_BUTLER_DIR": "/opt/bps"},
        "submit_root": "~/plugin-runs",
        "settle_s": 10.0,
    }


@pytest.fixture
def far(pool: CondorBed) -> Iterator[Bed]:
    """The small plugin that blocks, on another host, as another account."""
    folder = pool.folder()
    world = folder / "world"
    shutil.copytree(WORLD, world)
    wms = folder / "wms"
    wms.mkdir()
    wms.chmod(0o777)
    settings = {
        "plugin": "tinywms.BlockingService",
        "python": "/usr/bin/python3",
        "ssh": pool.ssh(),
        "environment": {"PYTHONPATH": str(world), "TINY_WMS": str(wms), "PYTHONDONTWRITEBYTECODE": "1"},
        "submit_root": "~/plugin-runs",
        "blocks": True,
    }
    yield Bed(BpsPluginService, settings, folder, patience_s=120.0)
    pool.remove([folder])


async def test_a_run_on_another_host_outlives_the_connection(far: Bed, pool: CondorBed) -> None:
    """Workers end with the connection, wherever they are; hosts do not."""
    gate = far.scratch / "gate"
    async with far.open() as observer:
        wms_id, workflow = await observer.submit(
            document(shell_job("waits_1", f"until test -e {gate}; do sleep 0.1; done; echo done"))
        )
        await observer.until(wms_id, lambda _: observer.states(wms_id) == {"waits_1": "RUNNING"})
        assert len(await to_thread.run_sync(pool.processes, "bpsd_worker.py")) == 2
        host_and_keeper = set(await to_thread.run_sync(pool.processes, "bpsd_host.py"))
        assert len(host_and_keeper) == 2

        await to_thread.run_sync(pool.cut_sessions)

        with pytest.raises(BackendUnavailable):
            await observer.poll()
        await to_thread.run_sync(until, lambda: not pool.processes("bpsd_worker.py"), "the workers are gone")
        assert set(await to_thread.run_sync(pool.processes, "bpsd_host.py")) == host_and_keeper
        gate.touch()
        run = await over_again(observer, wms_id)
        assert (run.state, run.token) == (WmsStates.SUCCEEDED, workflow.token)
        output = await observer.service.read_output(wms_id, "waits_1", "stdout", 0, 100)
        assert output.data == b"done\n"


async def over_again(observer: Observer, wms_id: str) -> RunRecord:
    """The run at its end; the transport makes the connection again after a pause."""
    deadline = time.monotonic() + 120.0
    while True:
        try:
            return await observer.until_over(wms_id, timeout_s=60.0)
        except BackendUnavailable:
            assert time.monotonic() < deadline
            await anyio.sleep(0.5)


async def test_a_call_to_another_host_is_ended_there_by_its_deadline(far: Bed, pool: CondorBed) -> None:
    far.settings |= {"plugin": "tinywms.TinyService", "blocks": None, "call_deadline_s": 5.0}
    (far.folder / "wms" / "fault.report").write_text("hang")
    async with far.open() as observer:
        with pytest.raises(DeadlineExceeded):
            await observer.service.report()
        await to_thread.run_sync(until, lambda: not pool.processes("bpsd_worker.py"), "the workers are gone")
        assert (await observer.service.ping())[0] == 0


@pytest.fixture
def bed(pool: CondorBed) -> Iterator[Bed]:
    folder = pool.folder()
    yield Bed(BpsPluginService, condor_settings(pool), folder, patience_s=240.0)
    pool.remove([folder])


async def test_upstreams_plugin_submits_to_its_pool(bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id, workflow = await observer.submit(document(shell_job("only_1", "true")))
        run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
        assert (run.state, run.token) == (WmsStates.SUCCEEDED, workflow.token)


if SOAK:

    class TestHTCondorService(AdapterContract):
        test_bad_workflows_are_refused_before_anything_runs = (
            ExecutionContract.test_bad_workflows_are_refused_before_anything_runs
        )

    async def test_a_run_fails_and_is_restarted_to_its_end(bed: Bed) -> None:
        """The final job of a run that failed has failed: ctrl_bps_htcondor has it so (final_post.sh)."""
        mended, trace = bed.scratch / "mended", bed.scratch / "trace"
        async with bed.open() as observer:
            wms_id, workflow = await observer.submit(
                document(
                    shell_job("good_1", f"echo good_1 >> {trace}"),
                    shell_job("bad_1", f"echo bad_1 >> {trace}; test -e {mended} || exit 3"),
                    shell_job("after_1", f"echo after_1 >> {trace}", parents=["good_1", "bad_1"]),
                    final=shell_job("final_1", f"echo final_1 >> {trace}"),
                )
            )
            run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert run.state is WmsStates.FAILED
            assert observer.states(wms_id) == {
                "good_1": "SUCCEEDED",
                "bad_1": "FAILED",
                "after_1": "PRUNED",
                "final_1": "FAILED",
            }
            assert run.as_row(observer.jobs[wms_id], full=True).exit_codes["bad"] == {"3": 1}

            mended.touch()
            new_id = await observer.restart(wms_id, workflow.token, 2)
            assert new_id != wms_id
            run = await observer.until_over(new_id, attempt=2, timeout_s=bed.patience_s)
            assert (run.state, run.token) == (WmsStates.SUCCEEDED, workflow.token)
            ran = trace.read_text().split()
            assert {name: ran.count(name) for name in set(ran)} == {
                "good_1": 1,
                "bad_1": 2,
                "after_1": 1,
                "final_1": 2,
            }
