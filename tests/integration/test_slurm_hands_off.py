"""A run that is handed to Slurm whole: Slurm keeps the order, and the daemon need not live."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from bpsd.errors import WorkflowInvalid
from bpsd.models import WmsStates
from bpsd.testing.contract import Bed
from bpsd.testing.observer import document, shell_job
from bpsd_adapters.slurm.service import SlurmService
from tests.integration.slurmbed import VERSIONS, SlurmBed

pytestmark = pytest.mark.timeout(300)
PATIENCE_S = 60.0


@pytest.fixture(scope="module", params=VERSIONS)
def slurm(request: pytest.FixtureRequest) -> SlurmBed:
    """Each version that has its turn."""
    bed: SlurmBed = request.getfixturevalue(request.param)
    return bed


@pytest.fixture
def folder(slurm: SlurmBed) -> Iterator[Path]:
    folder = slurm.new_folder()
    yield folder
    slurm.run("scancel", "-u", "op")
    slurm.remove(folder)


@pytest.fixture
def bed(slurm: SlurmBed, folder: Path) -> Bed:
    return Bed(SlurmService, slurm.settings(hands_off=True), folder)


async def test_order_failures_and_restart_are_slurms(bed: Bed) -> None:
    mended, trace = bed.scratch / "mended", bed.scratch / "ran"

    def job(name: str, *parents: str, script: str = "true") -> dict[str, object]:
        return shell_job(name, f"echo {name} >> {trace}; {script}", parents=parents)

    async with bed.open() as observer:
        wms_id, workflow = await observer.submit(
            document(
                job("a_1"),
                job("bad_1", script=f"test -e {mended}"),
                job("c_1", "a_1"),
                {"name": "sync", "label": "sync", "kind": "noop", "parents": ["c_1", "bad_1"]},
                job("d_1", "sync"),
                job("e_1", "d_1"),
                final=job("final_1"),
            )
        )
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.FAILED
        assert observer.states(wms_id) == {
            "a_1": "SUCCEEDED",
            "bad_1": "FAILED",
            "c_1": "SUCCEEDED",
            "d_1": "PRUNED",
            "e_1": "PRUNED",
            "final_1": "SUCCEEDED",
        }
        mended.touch()
        await observer.restart(wms_id, workflow.token, 2)
        run = await observer.until_over(wms_id, attempt=2, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.SUCCEEDED
        ran = trace.read_text().split()
        assert {name: ran.count(name) for name in ("a_1", "bad_1", "c_1", "d_1", "e_1")} == {
            "a_1": 1,
            "bad_1": 2,
            "c_1": 1,
            "d_1": 1,
            "e_1": 1,
        }


async def test_it_goes_on_without_a_daemon(slurm: SlurmBed, bed: Bed, folder: Path) -> None:
    jobs = [shell_job("j_0", "true")]
    jobs += [shell_job(f"j_{n}", "true", parents=[f"j_{n - 1}"]) for n in range(1, 4)]
    jobs.append(shell_job("last_1", f"touch {folder}/scratch/last", parents=["j_3"]))
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(document(*jobs))

        def handed_over(_: object) -> bool:
            table = observer.jobs[wms_id]
            return all(table.row(n).wms_id for n in range(len(table))) and len(table) == 5

        await observer.until(wms_id, handed_over, PATIENCE_S)
    with anyio.fail_after(PATIENCE_S):
        while not (folder / "scratch" / "last").exists():  # noqa: ASYNC110  # no event from there
            await anyio.sleep(0.2)
    async with bed.open() as observer:
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.SUCCEEDED


async def test_a_cancel_ends_what_waits(bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(
            document(shell_job("a_1", "sleep 300"), shell_job("b_1", "true", parents=["a_1"]))
        )
        await observer.until(wms_id, lambda _: observer.states(wms_id).get("a_1") == "RUNNING", PATIENCE_S)
        await observer.service.cancel(wms_id)
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.DELETED
        assert set(observer.states(wms_id).values()) == {"DELETED"}


async def test_what_slurm_cannot_keep_is_refused(bed: Bed) -> None:
    async with bed.open() as observer:
        workflow = await observer.workflow(document(shell_job("a_1", "true", number_of_retries=2)))
        with pytest.raises(WorkflowInvalid, match="not with hands_off"):
            await observer.service.prepare({}, workflow)
