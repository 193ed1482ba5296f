"""Each way in which a pool, or somebody in it, surprises us: provoked for real, and shown as what it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from bpsd.errors import BackendUnavailable, Conflict
from bpsd.models import PollRequest, WmsStates
from bpsd.testing.contract import Bed
from bpsd.testing.observer import Observer, document, shell_job
from bpsd_adapters.htcondor.service import HTCondorService
from tests.integration.condorbed import CondorBed

pytestmark = pytest.mark.timeout(300)
PATIENCE_S = 90.0


@pytest.fixture
def folder(pool: CondorBed) -> Iterator[Path]:
    folder = pool.folder()
    yield folder
    pool.remove([folder])


@pytest.fixture
def bed(pool: CondorBed, folder: Path) -> Bed:
    return Bed(HTCondorService, pool.settings(), folder)


async def in_bed(pool: CondorBed, *argv: str) -> str:
    return await anyio.to_thread.run_sync(lambda: pool.run(*argv))


def cluster(wms_id: str) -> str:
    return wms_id.partition(".")[0]


async def running(observer: Observer, **fields: Any) -> str:
    """A run with one job that runs for long."""
    wms_id, _ = await observer.submit(document(shell_job("long_1", "sleep 300", **fields)))
    await until_job(observer, wms_id, "long_1", "RUNNING")
    return wms_id


async def until_job(observer: Observer, wms_id: str, job: str, state: str) -> Any:
    def there(_: Any) -> bool:
        return observer.states(wms_id).get(job) == state

    await observer.until(wms_id, there, PATIENCE_S)
    jobs = observer.jobs[wms_id]
    return next(jobs.row(n) for n in range(len(jobs)) if jobs.row(n).name == job)


async def child_of(pool: CondorBed, wms_id: str) -> str:
    return (
        await in_bed(pool, "condor_q", "-constraint", f"DAGManJobId=={cluster(wms_id)}", "-af", "ClusterId")
    ).strip()


async def test_a_held_job_and_its_release(pool: CondorBed, bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id = await running(observer)
        child = await child_of(pool, wms_id)

        await in_bed(pool, "condor_hold", "-reason", "the disk is full", child)
        held = await until_job(observer, wms_id, "long_1", "HELD")
        assert "the disk is full" in held.note

        agreed, message = await observer.service.release(wms_id)
        assert agreed, message
        again = await until_job(observer, wms_id, "long_1", "RUNNING")
        assert again.attempt == held.attempt + 1
        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)


async def test_a_job_submitted_on_hold(pool: CondorBed, bed: Bed) -> None:
    """Neither log of DAGMan tells of it."""
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(document(shell_job("kept_1", "true", profile={"hold": "True"})))
        held = await until_job(observer, wms_id, "kept_1", "HELD")
        assert "code 15" in held.note

        await observer.service.release(wms_id)
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.SUCCEEDED


async def test_a_job_that_policy_removes(pool: CondorBed, bed: Bed) -> None:
    async with bed.open() as observer:
        policy = {"periodic_remove": "JobStatus == 2 && time() - EnteredCurrentStatus > 1"}
        wms_id, _ = await observer.submit(document(shell_job("long_1", "sleep 300", profile=policy)))
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.FAILED
        assert observer.states(wms_id) == {"long_1": "DELETED"}
        assert "PeriodicRemove" in observer.jobs[wms_id].row(0).note


async def test_a_run_whose_files_are_not_for_us(pool: CondorBed, bed: Bed) -> None:
    """The pool itself is asked for the jobs, and the row says so."""
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(document(shell_job("a_1", "true"), shell_job("b_1", "exit 3")))
        with anyio.fail_after(PATIENCE_S):
            while await in_bed(pool, "condor_q", cluster(wms_id), "-af", "ClusterId"):  # noqa: ASYNC110  # no event
                await anyio.sleep(0.5)
        run_folder = (await in_bed(pool, "condor_history", cluster(wms_id), "-limit", "1", "-af", "Iwd")).strip()
        await in_bed(pool, "rm", "-rf", run_folder)

        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)

        assert run.state is WmsStates.FAILED
        assert observer.states(wms_id) == {"a_1": "SUCCEEDED", "b_1": "FAILED"}
        rows = [observer.jobs[wms_id].row(n) for n in range(2)]
        assert {row.name: row.exit_code for row in rows} == {"a_1": 0, "b_1": 3}


async def test_a_pre_command_that_fails(bed: Bed) -> None:
    """No log tells of a job that was never submitted; DAGMan's own summary does."""
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(
            document(shell_job("a_1", "true", pre_cmdline="exit 4"), shell_job("b_1", "true", parents=["a_1"]))
        )
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.FAILED
        assert observer.states(wms_id) == {"a_1": "FAILED", "b_1": "PRUNED"}


async def test_a_held_run_says_why(pool: CondorBed, bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id = await running(observer)

        await in_bed(pool, "condor_hold", "-reason", "quota", f"{cluster(wms_id)}.0")
        run = await observer.until(wms_id, lambda run: run.state is WmsStates.HELD, PATIENCE_S)
        assert "quota" in run.note

        agreed, message = await observer.service.release(wms_id)
        assert agreed, message
        await observer.until(wms_id, lambda run: run.state is WmsStates.RUNNING, PATIENCE_S)
        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)


async def test_a_run_removed_by_hand(pool: CondorBed, bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id = await running(observer)

        await in_bed(pool, "condor_rm", "-reason", "not needed", cluster(wms_id))
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)

        assert (run.state, run.source) == (WmsStates.DELETED, "history")
        assert "removed" in run.note
        assert observer.states(wms_id) == {"long_1": "DELETED"}


async def test_a_job_removed_by_hand(pool: CondorBed, bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id = await running(observer)

        await in_bed(pool, "condor_rm", await child_of(pool, wms_id))
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)

        assert run.state is WmsStates.FAILED
        assert observer.states(wms_id) == {"long_1": "DELETED"}


async def test_a_killed_dagman_goes_on(pool: CondorBed, bed: Bed, folder: Path) -> None:
    async with bed.open() as observer:
        go = folder / "scratch" / "go"
        wms_id, _ = await observer.submit(document(shell_job("wait_1", f"while ! test -e {go}; do sleep 0.2; done")))
        await until_job(observer, wms_id, "wait_1", "RUNNING")

        await anyio.to_thread.run_sync(pool.signal, "-Lockfile run.dag.lock", "KILL")
        go.touch()
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)

        assert run.state is WmsStates.SUCCEEDED
        assert observer.states(wms_id) == {"wait_1": "SUCCEEDED"}


async def test_an_evicted_job_runs_again(pool: CondorBed, bed: Bed, folder: Path) -> None:
    async with bed.open() as observer:
        wms_id = await running(observer)
        before = await until_job(observer, wms_id, "long_1", "RUNNING")

        await in_bed(pool, "condor_vacate_job", "-fast", await child_of(pool, wms_id))

        def again(_: Any) -> bool:
            row = observer.jobs[wms_id].row(0)
            return row.attempt > before.attempt and str(row.state) == "RUNNING"

        await observer.until(wms_id, again, PATIENCE_S)
        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)


async def test_a_run_restarted_by_hand_is_its_next_attempt(pool: CondorBed, bed: Bed, folder: Path) -> None:
    async with bed.open() as observer:
        mended = folder / "scratch" / "mended"
        wms_id, workflow = await observer.submit(
            document(shell_job("good_1", "true"), shell_job("bad_1", f"test -e {mended}"))
        )
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.FAILED
        assert run.path is not None
        with pytest.raises(BackendUnavailable):
            await observer.service.restart(wms_id, attempt_token="no such/folder.2")

        mended.touch()
        said = await in_bed(pool, "sh", "-c", f"cd '{run.path}' && condor_submit_dag run.dag")
        new = said.partition("submitted to cluster ")[2].partition(".")[0] + ".0"
        again = await observer.until_over(new, timeout_s=PATIENCE_S)

        assert again.state is WmsStates.SUCCEEDED
        assert again.token == workflow.token
        assert observer.states(new) == {"good_1": "SUCCEEDED", "bad_1": "SUCCEEDED"}
        assert observer.runs[wms_id].state is WmsStates.FAILED


async def test_a_restart_is_refused_while_the_run_lives(bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id = await running(observer)

        with pytest.raises(Conflict, match="in the queue"):
            await observer.service.restart(wms_id)

        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)


async def test_a_deleted_folder_leaves_the_run_as_it_is(pool: CondorBed, bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id = await running(observer)
        run = observer.runs[wms_id]

        await in_bed(pool, "rm", "-rf", str(run.path))
        for _ in range(3):
            result = await observer.poll()
            assert result.absent == ()
        assert observer.runs[wms_id].live
        assert "cannot be read" in (observer.runs[wms_id].info or "")
        assert observer.states(wms_id) == {"long_1": "RUNNING"}

        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert observer.runs[wms_id].state is WmsStates.DELETED


async def test_a_frozen_schedd_changes_nothing(pool: CondorBed, folder: Path) -> None:
    async with Bed(HTCondorService, pool.settings(command_deadline_s=5.0), folder).open() as observer:
        wms_id = await running(observer)
        await anyio.to_thread.run_sync(pool.signal, "condor_schedd", "STOP")
        try:
            began = time.monotonic()
            result = await observer.poll()
            assert time.monotonic() - began < 60
            assert [(s.name, s.status) for s in result.sources] == [("queue", "failed"), ("history", "ok")]
            assert result.absent == ()
            assert observer.runs[wms_id].state is WmsStates.RUNNING
            status, message = await observer.service.ping()
            assert status != 0, message
        finally:
            await anyio.to_thread.run_sync(pool.signal, "condor_schedd", "CONT")
        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)


async def test_runs_of_a_second_schedd_are_seen(pool: CondorBed, folder: Path) -> None:
    second = "schedd2@htcbed.localdomain"
    async with (
        Bed(HTCondorService, pool.settings(schedd=second), folder / "two").open() as there,
        Bed(HTCondorService, pool.settings(schedds=[second]), folder / "one").open() as here,
    ):
        wms_id, workflow = await there.submit(document(shell_job("a_1", "true")))
        await there.until_over(wms_id, timeout_s=PATIENCE_S)
        await here.poll()
        found = [run for run in here.runs.values() if run.token == workflow.token]

    assert [run.state for run in found] == [WmsStates.SUCCEEDED]
    assert found[0].wms_id.startswith(f"{second}#")


async def test_a_run_that_history_forgot_is_said_to_be_absent(pool: CondorBed, bed: Bed) -> None:
    async with bed.open() as observer:
        from bpsd.models import KnownRun

        gone = KnownRun(run_id="r", wms_id="999999.0", token="x" * 20, state=WmsStates.RUNNING)

        result = await observer.service.poll(PollRequest(known=(gone,)))

        assert result.absent == ("999999.0",)
        assert {source.status for source in result.sources} == {"ok"}


@pytest.mark.parametrize("after_s", [0.05, 0.2, 0.4, 0.8])
async def test_a_submission_cut_off_is_one_run(pool: CondorBed, folder: Path, after_s: float) -> None:
    """The connection dies at any moment of a submission: afterwards there is exactly one run."""
    async with Bed(HTCondorService, pool.settings(), folder).open() as observer:
        workflow = await observer.workflow(document(shell_job("a_1", "true")))
        prepared = await observer.service.prepare({}, workflow)

        async def cut() -> None:
            await anyio.sleep(after_s)
            await anyio.to_thread.run_sync(pool.cut_sessions)

        async with anyio.create_task_group() as group:
            group.start_soon(cut)
            try:
                await observer.service.submit(prepared)
            except BackendUnavailable:
                prepared.run_id = None
        with anyio.fail_after(PATIENCE_S):
            while prepared.run_id is None:
                try:
                    await observer.service.submit(prepared)
                except BackendUnavailable:
                    await anyio.sleep(0.5)
        await observer.until_over(prepared.run_id, timeout_s=PATIENCE_S)
        everywhere = f'bps_token =?= "{workflow.token}" && JobUniverse == 7'
        queue = await in_bed(pool, "condor_q", "-constraint", everywhere, "-af", "ClusterId")
        history = await in_bed(pool, "condor_history", "-constraint", everywhere, "-af", "ClusterId")
        assert (queue + history).split() == [cluster(prepared.run_id)]


@pytest.mark.parametrize("after_s", [0.05, 0.3])
async def test_a_restart_cut_off_is_one_attempt(pool: CondorBed, bed: Bed, folder: Path, after_s: float) -> None:
    mended = folder / "scratch" / "mended"
    async with bed.open() as observer:
        wms_id, workflow = await observer.submit(document(shell_job("bad_1", f"test -e {mended}")))
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        mended.touch()
        new: list[str] = []

        async def cut() -> None:
            await anyio.sleep(after_s)
            await anyio.to_thread.run_sync(pool.cut_sessions)

        async def restart() -> None:
            while not new:
                try:
                    new_id, _, _ = await observer.service.restart(wms_id, attempt_token=f"{workflow.token}.2")
                    new.append(str(new_id))
                except BackendUnavailable:
                    await anyio.sleep(0.5)

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(cut)
                group.start_soon(restart)
        run = await observer.until_over(new[0], timeout_s=PATIENCE_S)

        assert (run.state, run.attempt) == (WmsStates.SUCCEEDED, 2)
        everywhere = f'bps_token =?= "{workflow.token}" && JobUniverse == 7'
        history = await in_bed(pool, "condor_history", "-constraint", everywhere, "-af", "ClusterId")
        assert sorted(history.split()) == sorted([cluster(wms_id), cluster(new[0])])
