"""Each way in which Slurm, or somebody in it, surprises us: provoked for real, and shown as what it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from bpsd.errors import Conflict, WorkflowInvalid
from bpsd.models import WmsStates
from bpsd.testing.contract import Bed
from bpsd.testing.observer import Observer, document, shell_job
from bpsd_adapters.slurm.scripts import NOT_CLAIMED
from bpsd_adapters.slurm.service import SlurmService
from tests.integration.slurmbed import VERSIONS, SlurmBed

pytestmark = pytest.mark.timeout(300)

REQUEUE_S = 130
"""Slurm starts a job that it requeued after two minutes (BeginTime)."""
PATIENCE_S = 60.0
NO_CGROUPS = 4
"""How the bed says that it cannot."""


@pytest.fixture(scope="module", params=VERSIONS)
def slurm(request: pytest.FixtureRequest) -> SlurmBed:
    """Each version that has its turn."""
    bed: SlurmBed = request.getfixturevalue(request.param)
    return bed


@pytest.fixture
def folder(slurm: SlurmBed) -> Iterator[Path]:
    folder = slurm.new_folder()
    yield folder
    slurm.run("scancel", "-u", "op")  # what a failed test left would keep the nodes from the next
    slurm.remove(folder)


@pytest.fixture
def bed(slurm: SlurmBed, folder: Path) -> Bed:
    return Bed(SlurmService, slurm.settings(), folder)


async def do(slurm: SlurmBed, mode: str, *arguments: str) -> str:
    return await anyio.to_thread.run_sync(lambda: slurm.do(mode, *arguments))


def row(observer: Observer, wms_id: str, job: str) -> Any:
    jobs = observer.jobs[wms_id]
    return next((jobs.row(n) for n in range(len(jobs)) if jobs.row(n).name == job), None)


async def until_job(observer: Observer, wms_id: str, job: str, state: str) -> Any:
    await observer.until(wms_id, lambda _: observer.states(wms_id).get(job) == state, PATIENCE_S)
    return row(observer, wms_id, job)


async def running(observer: Observer, **fields: Any) -> tuple[str, str]:
    """A run with one job that runs for long, and that job's id in Slurm."""
    wms_id, _ = await observer.submit(document(shell_job("long_1", "sleep 300", **fields)))
    job = await until_job(observer, wms_id, "long_1", "RUNNING")
    return wms_id, job.wms_id


async def source(observer: Observer, name: str, status: str) -> Any:
    """Poll until a source is in that state."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            result = await observer.poll()
            assert result.absent == ()
            found = next(s for s in result.sources if s.name == name)
            if found.status == status:
                return found
            await anyio.sleep(0.1)


async def until_sbatch_said(slurm: SlurmBed, wms_id: str, words: str) -> None:
    """Wait until sbatch has said that of the first chunk of a run."""
    path = f"/home/op/bpsd/{wms_id.removeprefix('bps-')}/chunks/1.err"
    with anyio.fail_after(PATIENCE_S):
        while words not in await do(slurm, "exec-op", "sh", "-c", f"cat {path} 2>&1 || true"):  # noqa: ASYNC110
            await anyio.sleep(0.2)


def waiting_job(folder: Path, name: str, **fields: Any) -> dict[str, Any]:
    return shell_job(name, f"while ! test -e {folder}/scratch/go; do sleep 0.1; done", **fields)


# -- slurmctld


async def test_slurmctld_stopped_and_started(slurm: SlurmBed, bed: Bed, folder: Path) -> None:
    """Nothing changes while it is away; what ended meanwhile is seen, and the run goes on."""
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(
            document(waiting_job(folder, "a_1"), shell_job("b_1", "true", parents=["a_1"]))
        )
        await until_job(observer, wms_id, "a_1", "RUNNING")
        await do(slurm, "ctld", "stop")
        try:
            status, message = await observer.service.ping()
            assert status == 1
            assert "DOWN" in message
            failed = await source(observer, "queue", "failed")
            assert "Unable to contact slurm controller" in failed.error
            assert "last answer" in failed.error
            (folder / "scratch" / "go").touch()
            assert observer.runs[wms_id].state is WmsStates.RUNNING
            assert observer.states(wms_id) == {"a_1": "RUNNING", "b_1": "UNREADY"}
        finally:
            await do(slurm, "ctld", "start")
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.SUCCEEDED


async def test_jobs_that_succeed_are_seen_and_followed_without_asking_slurm(
    slurm: SlurmBed, bed: Bed, folder: Path
) -> None:
    """By their exit records: a chain of jobs is through before the next look, and its end is known without Slurm."""
    began, go = folder / "scratch" / "began", folder / "scratch" / "go"
    bed.settings |= {"poll_interval_s": 200.0, "idle_interval_s": 400.0, "record_interval_s": 0.5}
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(
            document(
                shell_job("a_1", "true"),
                shell_job("b_1", "true", parents=["a_1"]),
                shell_job("c_1", f"touch {began}; while ! test -e {go}; do sleep 0.1; done", parents=["b_1"]),
            )
        )
        with anyio.fail_after(PATIENCE_S):
            while not began.exists():
                await observer.poll()
                await anyio.sleep(0.1)
        await do(slurm, "ctld", "stop")
        try:
            go.touch()
            run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        finally:
            await do(slurm, "ctld", "start")
        assert run.state is WmsStates.SUCCEEDED
        assert row(observer, wms_id, "c_1").exit_code == 0


async def test_a_submission_that_freezes_is_one_submission(slurm: SlurmBed, bed: Bed, folder: Path) -> None:
    """sbatch gives up, and slurmctld takes the job all the same when it thaws: it runs once."""
    trace = folder / "scratch" / "ran"
    async with bed.open() as observer:
        first, _ = await observer.submit(document(shell_job("a_1", "true")))
        await observer.until_over(first, timeout_s=PATIENCE_S)  # now the site's limits are known
        workflow = await observer.workflow(document(shell_job("a_1", f"echo a_1 >> {trace}")))
        prepared = await observer.service.prepare({}, workflow)
        await do(slurm, "ctld", "freeze")
        try:
            await observer.service.submit(prepared)
            wms_id = str(prepared.run_id)
            await until_sbatch_said(slurm, wms_id, "timed out")
        finally:
            await do(slurm, "ctld", "thaw")
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.SUCCEEDED
        assert trace.read_text() == "a_1\n"
        names = await do(slurm, "exec-op", "squeue", "-h", "--me", "-t", "all", "-o", "%j")
        assert len([name for name in names.split() if workflow.token in name]) == 1


# -- accounting


async def test_slurmdbd_gone_disturbs_nothing(slurm: SlurmBed, bed: Bed) -> None:
    async with bed.open() as observer:
        await do(slurm, "dbd", "stop")
        try:
            wms_id, _ = await observer.submit(document(shell_job("a_1", "true"), shell_job("b_1", "exit 3")))
            run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
            assert run.state is WmsStates.FAILED
            assert observer.states(wms_id) == {"a_1": "SUCCEEDED", "b_1": "FAILED"}
        finally:
            await do(slurm, "dbd", "start")


async def jobs_that_the_queue_forgot_are_found_in_accounting(slurm: SlurmBed, bed: Bed) -> None:
    """MinJobAge is 20 s: who was away for longer asks accounting, and the wrappers' records."""
    with_record, without = shell_job("a_1", "exit 3"), shell_job("b_1", "sleep 300")
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(document(with_record, without))
        ids = (await until_job(observer, wms_id, "b_1", "RUNNING")).wms_id
    await do(slurm, "exec-op", "scancel", ids)
    with anyio.fail_after(PATIENCE_S):
        while ids in await do(slurm, "exec-op", "squeue", "-h", "-r", "--me", "-t", "all", "-o", "%i"):  # noqa: ASYNC110
            await anyio.sleep(1.0)
    async with bed.open() as observer:
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.FAILED
        assert observer.states(wms_id) == {"a_1": "FAILED", "b_1": "DELETED"}
        assert row(observer, wms_id, "a_1").exit_code == 3


async def test_no_accounting_at_all(slurm: SlurmBed, bed: Bed, folder: Path) -> None:
    """The exit record is the last witness. A job that leaves none and is in no queue is UNKNOWN, and not run again."""
    async with bed.open() as observer:
        await do(slurm, "conf", "AccountingStorageType=accounting_storage/none", "MinJobAge=2")
        try:
            wms_id, _ = await observer.submit(
                document(
                    waiting_job(folder, "a_1"), shell_job("b_1", "sleep 300"), shell_job("c_1", "true", parents=["b_1"])
                )
            )
            await until_job(observer, wms_id, "a_1", "RUNNING")
            lost = (await until_job(observer, wms_id, "b_1", "RUNNING")).wms_id
        except BaseException:
            await do(slurm, "conf")
            raise
    (folder / "scratch" / "go").touch()
    await do(slurm, "exec-op", "scancel", lost)
    try:
        with anyio.fail_after(PATIENCE_S):
            while await do(slurm, "exec-op", "squeue", "-h", "--me", "-t", "all", "-n", f"{wms_id}-1.a,{wms_id}-2.b"):  # noqa: ASYNC110
                await anyio.sleep(0.5)
        async with bed.open() as observer:
            run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
            assert run.state is WmsStates.FAILED
            assert observer.states(wms_id) == {"a_1": "SUCCEEDED", "b_1": "UNKNOWN", "c_1": "PRUNED"}
            assert "nobody saw how it ended" in row(observer, wms_id, "b_1").note
    finally:
        await do(slurm, "conf")


# -- limits


async def test_max_job_count_reached(slurm: SlurmBed, bed: Bed) -> None:
    """Others fill the queue: sbatch waits, is ended, and tried again later; no job fails by that."""
    with slurm.conf("--clear", "MaxJobCount=20", "MinJobAge=2"):
        blocker = (
            await do(slurm, "exec-op", "sbatch", "--parsable", "--hold", "-J", "other", "-a", "0-18", "--wrap=true")
        ).strip()
        async with bed.open() as observer:
            jobs = [shell_job(f"a_{n}", "true") for n in range(4)]
            wms_id, _ = await observer.submit(document(*jobs))
            await until_sbatch_said(slurm, wms_id, "sleeping and retrying")
            await do(slurm, "exec-op", "scancel", blocker)
            run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
            assert run.state is WmsStates.SUCCEEDED
            assert set(observer.states(wms_id).values()) == {"SUCCEEDED"}


async def test_an_association_that_may_submit_little(slurm: SlurmBed, bed: Bed) -> None:
    change = ("exec", "sacctmgr", "-i", "modify", "user", "op", "set")
    await do(slurm, *change, "MaxSubmitJobs=5")
    try:
        async with bed.open() as observer:
            jobs = [shell_job(f"a_{n}", "true", label=f"l{n % 2}") for n in range(16)]
            wms_id, _ = await observer.submit(document(*jobs))
            run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
            assert run.state is WmsStates.SUCCEEDED
            assert len(observer.states(wms_id)) == 16
    finally:
        await do(slurm, *change, "MaxSubmitJobs=-1")


async def test_rate_limiting_is_met_with_patience(slurm: SlurmBed, bed: Bed) -> None:
    """Clients sleep silently: slow answers make looks rare, and the run ends well."""
    limits = "rl_enable,rl_bucket_size=4,rl_refill_rate=4,rl_refill_period=1"
    with slurm.conf(f"SlurmctldParameters={limits}"):
        async with bed.open() as observer:
            wms_id, _ = await observer.submit(
                document(shell_job("a_1", "true"), shell_job("b_1", "true", parents=["a_1"]))
            )
            run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
            assert run.state is WmsStates.SUCCEEDED


# -- jobs


async def a_job_whose_node_dies_is_requeued_as_its_next_attempt(slurm: SlurmBed, bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id, _ = await running(observer, profile={"nodelist": "n2", "requeue": True})
        before = row(observer, wms_id, "long_1")
        await do(slurm, "node", "n2", "kill")
        try:

            def requeued(_: Any) -> bool:
                job = row(observer, wms_id, "long_1")
                return bool(job.attempt > before.attempt and str(job.state) == "PENDING")

            await observer.until(wms_id, requeued, PATIENCE_S)
            await observer.service.cancel(wms_id)
            await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        finally:
            await do(slurm, "node", "n2", "start")


async def ways_in_which_jobs_end(slurm: SlurmBed, bed: Bed) -> None:
    """Cancelled by somebody before and after it began, a signal, a folder that is not there; each says so."""
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(
            document(
                shell_job("gone_1", "sleep 300"),
                shell_job("after_1", "true", parents=["gone_1"]),
                shell_job("segv_1", "kill -SEGV $$"),
                shell_job("nowhere_1", "true", working_directory="/not/there"),
                shell_job("unset_1", "true", environment={"A": "<ENV:NOT_SET_ANYWHERE>"}),
                shell_job("never_1", "true", profile={"begin": "now+300"}),
            )
        )
        never = await until_job(observer, wms_id, "never_1", "PENDING")
        await do(slurm, "exec-op", "scancel", never.wms_id)
        gone = await until_job(observer, wms_id, "gone_1", "RUNNING")
        await do(slurm, "exec-op", "scancel", gone.wms_id)
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.FAILED
        assert observer.states(wms_id) == {
            "gone_1": "DELETED",
            "after_1": "PRUNED",
            "segv_1": "FAILED",
            "nowhere_1": "FAILED",
            "unset_1": "FAILED",
            "never_1": "DELETED",
        }
        assert row(observer, wms_id, "gone_1").note == "cancelled in Slurm"
        assert row(observer, wms_id, "segv_1").exit_code == 139
        assert "/not/there" in row(observer, wms_id, "nowhere_1").note
        assert "environment" in row(observer, wms_id, "unset_1").note
        errors = await observer.service.read_output(wms_id, "unset_1", "stderr", 0, 1000)
        assert b"NOT_SET_ANYWHERE" in errors.data


async def a_job_that_is_out_of_time(slurm: SlurmBed, bed: Bed) -> None:
    """The shortest limit is a minute, so an administrator makes it end sooner. Slurm says 0:0 of it."""
    async with bed.open() as observer:
        wms_id, job_id = await running(observer, request_walltime=1)
        await do(slurm, "exec", "scontrol", "update", f"jobid={job_id}", "endtime=now+2")
        job = await observer.until(wms_id, lambda run: not run.live, PATIENCE_S)
        assert job.state is WmsStates.FAILED
        ended = row(observer, wms_id, "long_1")
        assert ended.wms_id == job_id
        assert "out of time" in ended.note


async def held_and_released_by_its_owner_in_slurm(slurm: SlurmBed, bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(document(shell_job("a_1", "true", profile={"begin": "now+300"})))
        job = await until_job(observer, wms_id, "a_1", "PENDING")
        await do(slurm, "exec-op", "scontrol", "hold", job.wms_id)
        held = await until_job(observer, wms_id, "a_1", "HELD")
        assert "JobHeldUser" in held.note
        await do(slurm, "exec", "scontrol", "update", f"jobid={job.wms_id}", "starttime=now")
        agreed, message = await observer.service.release(wms_id)
        assert agreed, message
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.SUCCEEDED


async def test_a_held_run_submits_nothing_and_holds_what_waits(bed: Bed, folder: Path) -> None:
    async with bed.open() as observer:
        jobs = [waiting_job(folder, f"a_{n}", request_cpus=16) for n in range(8)]
        wms_id, _ = await observer.submit(document(*jobs, final=shell_job("final_1", "true")))
        await until_job(observer, wms_id, "a_0", "RUNNING")
        agreed, message = await observer.service.hold(wms_id)
        assert agreed, message
        await observer.until(wms_id, lambda run: run.state is WmsStates.HELD, PATIENCE_S)
        (folder / "scratch" / "go").touch()

        def settled(_: Any) -> bool:
            return set(observer.states(wms_id).values()) == {"SUCCEEDED", "HELD", "UNREADY"}

        await observer.until(wms_id, settled, PATIENCE_S)
        agreed, message = await observer.service.release(wms_id)
        assert agreed, message
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.SUCCEEDED


async def held_by_others_requeued_and_suspended(slurm: SlurmBed, bed: Bed) -> None:
    """An administrator's hold, a requeue into a hold, and a suspension are shown as what they are, and pass."""
    async with bed.open() as observer:
        wms_id, job_id = await running(observer)
        first = row(observer, wms_id, "long_1").attempt
        await do(slurm, "exec", "scontrol", "suspend", job_id)
        await until_job(observer, wms_id, "long_1", "MISFIT")
        await do(slurm, "exec", "scontrol", "resume", job_id)
        await until_job(observer, wms_id, "long_1", "RUNNING")
        await do(slurm, "exec-op", "scontrol", "requeuehold", job_id)
        held = await until_job(observer, wms_id, "long_1", "HELD")
        assert "requeued in held state" in held.note or "JobHeldUser" in held.note
        assert held.attempt > first
        other, _ = await observer.submit(document(shell_job("a_1", "true", profile={"begin": "now+300"})))
        waits = await until_job(observer, other, "a_1", "PENDING")
        await do(slurm, "exec", "scontrol", "hold", waits.wms_id)
        assert "JobHeldAdmin" in (await until_job(observer, other, "a_1", "HELD")).note
        await do(slurm, "exec", "scontrol", "release", waits.wms_id)
        await until_job(observer, other, "a_1", "PENDING")
        for run in (wms_id, other):
            await observer.service.cancel(run)
        for run in (wms_id, other):
            assert (await observer.until_over(run, timeout_s=PATIENCE_S)).state is WmsStates.DELETED


async def what_never_ran_is_no_success(slurm: SlurmBed, bed: Bed) -> None:
    """The work folder is full, or the nodes do not see it: the wrapper runs nothing, and the job says why it failed."""
    faults = {"claim": "chmod 500 claim", "chunks": "rm chunks/1.jobs", "output": "chmod 500 slurm"}
    async with bed.open() as observer:
        runs = {}
        for name in faults:
            runs[name], _ = await observer.submit(
                document(shell_job(f"{name}_1", "true", profile={"begin": "now+300"}))
            )
        for name, fault in faults.items():
            job = await until_job(observer, runs[name], f"{name}_1", "PENDING")
            folder = f"/home/op/bpsd/{runs[name].removeprefix('bps-')}"
            await do(slurm, "exec-op", "sh", "-c", f"cd {folder} && {fault}")
            await do(slurm, "exec", "scontrol", "update", f"jobid={job.wms_id}", "starttime=now")
        for name, run in runs.items():
            over = await observer.until_over(run, timeout_s=2 * PATIENCE_S)
            assert over.state is WmsStates.FAILED, name
            assert observer.states(run) == {f"{name}_1": "FAILED"}
        assert "claim could not be made" in row(observer, runs["claim"], "claim_1").note
        assert "nodes share" in row(observer, runs["chunks"], "chunks_1").note
        assert "nodes share" in row(observer, runs["output"], "output_1").note


async def what_sbatch_refuses_waits_and_keeps_nobody_back(slurm: SlurmBed, bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(
            document(shell_job("big_1", "true", request_memory=10_000_000), shell_job("a_1", "true"))
        )
        held = await until_job(observer, wms_id, "big_1", "HELD")
        assert "sbatch refuses it" in held.note
        run = await observer.until(wms_id, lambda run: "not submitted" in run.note, PATIENCE_S)
        assert "1 job not submitted: sbatch refuses it" in run.note
        await until_job(observer, wms_id, "a_1", "SUCCEEDED")
        await observer.service.cancel(wms_id)
        assert (await observer.until_over(wms_id, timeout_s=PATIENCE_S)).state is WmsStates.DELETED


async def reasons_that_do_not_pass_are_pointed_out(slurm: SlurmBed, bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(
            document(shell_job("a_1", "true", queue="one", request_walltime=60, profile={"nodelist": "n2"}))
        )
        run = await observer.until(wms_id, lambda run: "PartitionTimeLimit" in run.note, PATIENCE_S)
        assert "1 job will not start" in run.note
        assert observer.states(wms_id) == {"a_1": "PENDING"}
        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)


async def test_somebody_with_more_right_takes_the_node(slurm: SlurmBed, bed: Bed) -> None:
    """Preempted and cancelled: FAILED, and why. Preempted and requeued, as its partition has it: the next attempt."""
    async with bed.open() as observer:
        on_n2 = {"nodelist": "n2"}
        wms_id, _ = await observer.submit(
            document(
                shell_job("main_1", "sleep 300", queue="main", profile=on_n2),
                shell_job("cheap_1", "sleep 300", queue="cheap", profile=on_n2, preemptible=True),
            )
        )
        await until_job(observer, wms_id, "main_1", "RUNNING")
        before = await until_job(observer, wms_id, "cheap_1", "RUNNING")
        await do(slurm, "exec-op", "sbatch", "-p", "urgent", "-w", "n2", "--exclusive", "-t", "1", "--wrap", "sleep 2")
        ended = await until_job(observer, wms_id, "main_1", "FAILED")
        assert ended.note == "preempted"
        again = await until_job(observer, wms_id, "cheap_1", "PENDING")
        assert again.attempt == before.attempt + 1
        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)


async def test_a_job_that_cannot_meet_its_deadline(slurm: SlurmBed, bed: Bed) -> None:
    """It waits for a node until it could not end in time any more."""
    async with bed.open() as observer:
        await do(slurm, "exec", "scontrol", "update", "nodename=n2", "state=drain", "reason=test")
        try:
            wms_id, _ = await observer.submit(
                document(
                    shell_job(
                        "late_1", "true", request_walltime=1, profile={"nodelist": "n2", "deadline": "now+65seconds"}
                    )
                )
            )
            await observer.until_over(wms_id, timeout_s=2 * PATIENCE_S)
            assert observer.states(wms_id) == {"late_1": "FAILED"}
            assert row(observer, wms_id, "late_1").note == "past its deadline"
        finally:
            await do(slurm, "exec", "scontrol", "update", "nodename=n2", "state=resume")


@pytest.mark.timeout(3 * REQUEUE_S + 3 * PATIENCE_S)
async def test_a_job_that_takes_more_memory_than_it_asked_for(slurm: SlurmBed, bed: Bed) -> None:
    """The kernel ends it, Slurm says so, and its retry gets more."""
    if (await anyio.to_thread.run_sync(slurm.script, "cgroup", "on")).returncode == NO_CGROUPS:
        pytest.skip("this machine has no cgroup v1 with the memory controller: Slurm cannot tell OUT_OF_MEMORY")
    try:
        async with bed.open() as observer:
            # slurmstepd starts in the same cgroup. Where the limit is too low for it, the kernel may end slurmstepd,
            # and Slurm requeues the job. That can still happen, so the test also waits for jobs that Slurm requeued.
            script = "head -c 300000000 /dev/zero | tail -c 300000000 >/dev/null"
            eats = shell_job("eats_1", f"{script} || exit 9", request_memory=100)
            grows = shell_job("grows_1", f"{script} || exit 9", request_memory=100, number_of_retries=1)
            wms_id, _ = await observer.submit(document(eats, grows | {"memory_multiplier": 8.0}))
            await observer.until_over(wms_id, timeout_s=2 * PATIENCE_S + 3 * REQUEUE_S)
            assert observer.states(wms_id) == {"eats_1": "FAILED", "grows_1": "SUCCEEDED"}
            assert row(observer, wms_id, "eats_1").note == "out of memory"
            assert (
                row(observer, wms_id, "grows_1").attempt >= 2
            )  # with less memory than the retry has it cannot succeed
    finally:
        await do(slurm, "cgroup", "off")


async def test_what_sbatch_would_refuse_is_said_before(bed: Bed) -> None:
    async with bed.open() as observer:
        workflow = await observer.workflow(document(shell_job("a_1", "true", queue="nope"), shell_job("b_1", "true")))
        with pytest.raises(WorkflowInvalid, match="invalid partition"):
            await observer.service.prepare({}, workflow)


async def a_job_that_lost_its_claim_does_not_run(slurm: SlurmBed, bed: Bed) -> None:
    """Somebody submits a chunk a second time: the second finds the claims of the first."""
    trace = bed.scratch / "ran"
    async with bed.open() as observer:
        script = f"echo a_1 >> {trace}; while ! test -e {bed.scratch}/go; do sleep 0.1; done"
        wms_id, workflow = await observer.submit(document(shell_job("a_1", script)))
        await until_job(observer, wms_id, "a_1", "RUNNING")
        run_folder = f"/home/op/bpsd/{workflow.token}"
        again = (f"{run_folder}/wrapper.sh", run_folder, "1")
        second = ("exec-op", "sbatch", "-W", "-a", "0", "-J", f"{wms_id}-1", "-o", "/dev/null", *again)
        assert (await anyio.to_thread.run_sync(slurm.script, *second)).returncode == NOT_CLAIMED
        (bed.scratch / "go").touch()
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.SUCCEEDED
        assert trace.read_text() == "a_1\n"


async def a_restart_is_refused_while_the_run_lives(slurm: SlurmBed, bed: Bed) -> None:
    async with bed.open() as observer:
        wms_id, _ = await running(observer)
        with pytest.raises(Conflict, match="runs"):
            await observer.service.restart(wms_id)
        began = time.monotonic()
        await observer.service.cancel(wms_id)
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.DELETED
        assert time.monotonic() - began < PATIENCE_S


async def test_stories_that_go_on_at_the_same_time(slurm: SlurmBed, folder: Path) -> None:
    """Each is another daemon's, in one cluster with a MinJobAge of 20 s: the longest of them takes half a minute."""
    stories = (
        a_job_whose_node_dies_is_requeued_as_its_next_attempt,
        jobs_that_the_queue_forgot_are_found_in_accounting,
        a_job_that_is_out_of_time,
        ways_in_which_jobs_end,
        held_and_released_by_its_owner_in_slurm,
        held_by_others_requeued_and_suspended,
        reasons_that_do_not_pass_are_pointed_out,
        what_never_ran_is_no_success,
        what_sbatch_refuses_waits_and_keeps_nobody_back,
        a_job_that_lost_its_claim_does_not_run,
        a_restart_is_refused_while_the_run_lives,
    )
    with slurm.conf("MinJobAge=20"):
        async with anyio.create_task_group() as group:
            for number, story in enumerate(stories):
                own = folder / str(number)
                own.mkdir(mode=0o777)
                # n2 dies in one of them
                bed = Bed(SlurmService, slurm.settings(options={"nodelist": "n1"}), own)
                for path in (own, bed.scratch):
                    path.chmod(0o1777)
                group.start_soon(story, slurm, bed)
