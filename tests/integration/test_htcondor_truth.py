"""Each way in which a pool, or somebody in it, surprises us: provoked for real, and shown as what it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from bpsd.errors import BackendUnavailable, Conflict
from bpsd.models import KnownRun, PollRequest, WmsStates
from bpsd.testing.contract import Bed
from bpsd.testing.observer import Observer, document, shell_job
from bpsd_adapters.htcondor.service import HTCondorService
from tests.integration.condorbed import SECOND_SCHEDD, CondorBed
from tests.integration.together import Outcomes, Rows

pytestmark = pytest.mark.timeout(600)
PATIENCE_S = 180.0
ROWS = Rows()


@asynccontextmanager
async def watching(pool: CondorBed, **settings: Any) -> AsyncIterator[tuple[Observer, Path]]:
    """A service over SSH, and a folder that jobs may write to."""
    folder = pool.folder()
    try:
        async with Bed(HTCondorService, pool.settings(**settings), folder).open() as observer:
            yield observer, folder / "scratch"
    finally:
        pool.remove([folder])


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


async def kill_dagman(pool: CondorBed, folder: str) -> None:
    """SIGKILL for the DAGMan that runs in a folder."""
    found = 'for p in $(pgrep condor_dagman); do test "$(readlink /proc/$p/cwd)" = "$1" && kill -KILL $p; done; true'
    await anyio.to_thread.run_sync(pool.as_root, "sh", "-c", found, "sh", folder)


async def child_of(pool: CondorBed, wms_id: str) -> str:
    return (
        await in_bed(pool, "condor_q", "-constraint", f"DAGManJobId=={cluster(wms_id)}", "-af", "ClusterId")
    ).strip()


@ROWS.row
async def a_held_job_and_its_release(pool: CondorBed) -> None:
    async with watching(pool) as (observer, _):
        wms_id = await running(observer)
        child = await child_of(pool, wms_id)

        await in_bed(pool, "condor_hold", "-reason", "the disk is full", child)
        held = await until_job(observer, wms_id, "long_1", "HELD")
        assert "the disk is full" in held.note

        agreed, message = await observer.service.release(wms_id)
        assert agreed, message
        again = await until_job(observer, wms_id, "long_1", "RUNNING")
        assert again.attempt == 2  # as NumJobStarts has it, whether or not the hold was an eviction too
        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)


@ROWS.row
async def a_job_submitted_on_hold(pool: CondorBed) -> None:
    """Neither log of DAGMan tells of it."""
    async with watching(pool) as (observer, _):
        wms_id, _ = await observer.submit(document(shell_job("kept_1", "true", profile={"hold": "True"})))
        held = await until_job(observer, wms_id, "kept_1", "HELD")
        assert "code 15" in held.note

        await observer.service.release(wms_id)
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.SUCCEEDED


@ROWS.row
async def a_job_that_policy_removes(pool: CondorBed) -> None:
    async with watching(pool) as (observer, _):
        policy = {"periodic_remove": "JobStatus == 2 && time() - EnteredCurrentStatus > 1"}
        wms_id, _ = await observer.submit(document(shell_job("long_1", "sleep 300", profile=policy)))
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.FAILED
        assert observer.states(wms_id) == {"long_1": "FAILED"}
        assert "PeriodicRemove" in observer.jobs[wms_id].row(0).note


@ROWS.row
async def a_run_whose_files_are_not_for_us(pool: CondorBed) -> None:
    """The pool itself is asked for the jobs, and the row says so."""
    async with watching(pool) as (observer, _):
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


@ROWS.row
async def a_pre_command_that_fails(pool: CondorBed) -> None:
    """No event log tells of a job that was never submitted; DAGMan's own does, at once, and its summary says why."""
    async with watching(pool) as (observer, scratch):
        go = scratch / "go"
        wms_id, _ = await observer.submit(
            document(
                shell_job("a_1", "true", pre_cmdline="exit 4"),
                shell_job("b_1", "true", parents=["a_1"]),
                shell_job("c_1", f"while ! test -e {go}; do sleep 0.2; done"),
            )
        )
        await until_job(observer, wms_id, "c_1", "RUNNING")
        failed = await until_job(observer, wms_id, "a_1", "FAILED")
        assert observer.runs[wms_id].state is WmsStates.RUNNING
        assert failed.note == "its pre-command failed"
        go.touch()
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.FAILED
        assert observer.states(wms_id) == {"a_1": "FAILED", "b_1": "PRUNED", "c_1": "SUCCEEDED"}
        assert "status 4" in (await until_job(observer, wms_id, "a_1", "FAILED")).note


@ROWS.row
async def a_job_that_the_schedd_does_not_take(pool: CondorBed) -> None:
    """Its submission is refused; that this was the end of it, DAGMan's summary says."""
    async with watching(pool) as (observer, scratch):
        go, bad = scratch / "go", {"request_gpus": "one two"}
        wms_id, _ = await observer.submit(
            document(
                shell_job("a_1", "true", profile=bad),
                shell_job("b_1", f"while ! test -e {go}; do sleep 0.2; done"),
            )
        )
        refused = await until_job(observer, wms_id, "a_1", "READY")
        assert "did not take it" in refused.note
        go.touch()
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.FAILED
        failed = await until_job(observer, wms_id, "a_1", "FAILED")
        assert "submit failed" in failed.note


@ROWS.row
async def memory_grows_after_a_hold_for_memory(pool: CondorBed) -> None:
    """The job ends as one that was killed for its memory would; it is held, released by policy and asks for more."""
    async with watching(pool) as (observer, scratch):
        policy: dict[str, Any] = {
            "request_memory": 100,
            "request_memory_max": 500,
            "memory_multiplier": 2.0,
            "number_of_retries": 3,
        }
        once = f"test -e {scratch}/tried || {{ : >{scratch}/tried; exit 137; }}"
        wms_id, _ = await observer.submit(document(shell_job("grown_1", once, **policy)))

        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)

        assert run.state is WmsStates.SUCCEEDED
        assert (observer.jobs[wms_id].row(0).attempt or 0) > 1
        which = f"DAGManJobId == {cluster(wms_id)}"
        given = await in_bed(pool, "condor_history", "-constraint", which, "-af", "MemoryProvisioned", "NumJobStarts")
        memory, starts = map(int, given.split())
        assert (memory >= 200, starts) == (True, 2)  # a slot of the first start had 128


@ROWS.row
async def a_job_that_a_rule_removes_has_failed_for_the_reason_of_its_hold(pool: CondorBed) -> None:
    """It has as much memory as it may have and is killed once more: it has failed, nobody deleted it (DM-51868)."""
    async with watching(pool) as (observer, _):
        policy: dict[str, Any] = {
            "request_memory": 16,
            "request_memory_max": 32,
            "memory_multiplier": 2.0,
            "number_of_retries": 1,
        }
        wms_id, _ = await observer.submit(document(shell_job("big_1", "kill -9 $$", **policy)))

        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)

        job = observer.jobs[wms_id].row(0)
        assert (run.state, job.state, job.exit_code) == (WmsStates.FAILED, "FAILED", 137)
        assert "signal 9" in job.note
        assert "memory limit" in job.note
        assert "big_1" in run.note
        assert "signal 9" in run.note
        assert observer.jobs[wms_id].exit_codes() == {"big": {137: 1}}


async def by_hand(pool: CondorBed, folder: Path, **files: str) -> str:
    """Submit a DAG that somebody wrote by hand, with its files by name (``_`` for the dot); returns the run's id."""
    for name, text in files.items():
        file = folder / name.replace("_", ".")
        file.write_text(text)
        file.chmod(0o666)
    sign = 'My.bps_isjob = "True"'
    said = await in_bed(pool, "sh", "-c", f"cd {folder} && condor_submit_dag -append '{sign}' run.dag")
    return said.partition("submitted to cluster ")[2].partition(".")[0] + ".0"


SUB = "executable = /bin/sh\narguments = \"-c '$(what)'\"\nqueue\n"


@ROWS.row
async def an_error_of_dagman_is_in_the_note(pool: CondorBed) -> None:
    async with watching(pool) as (observer, scratch):
        dag = 'JOB a a.sub\nFINAL f a.sub\nVARS a what="true"\nVARS f what="true"\nABORT-DAG-ON f 3 RETURN 1\n'
        wms_id = await by_hand(pool, scratch, run_dag=dag, a_sub=SUB)

        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)

        assert run.state is WmsStates.FAILED
        assert "cannot have ABORT-DAG-ON" in run.note


@ROWS.row
async def the_post_script_of_the_dag_does_not_make_the_final_job_fail(pool: CondorBed) -> None:
    async with watching(pool) as (observer, scratch):
        script = scratch / "post.sh"
        script.write_text("#!/bin/sh\nexit $1\n")
        script.chmod(0o755)
        dag = 'JOB a a.sub\nFINAL f a.sub\nVARS a what="exit 4"\nVARS f what="true"\n'
        wms_id = await by_hand(pool, scratch, run_dag=f"{dag}SCRIPT POST f {script} $DAG_STATUS\n", a_sub=SUB)

        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)

        assert run.state is WmsStates.FAILED
        assert observer.states(wms_id) == {"a": "FAILED", "f": "SUCCEEDED"}
        assert "failed: a (exit code 4)" in run.note


@ROWS.row
async def a_dag_that_a_job_of_the_run_writes_is_read_when_it_begins(pool: CondorBed) -> None:
    async with watching(pool) as (observer, scratch):
        inner = scratch / "inner.dag"
        make = f"cp {scratch}/real.dag {inner}"
        dag = f'JOB make a.sub\nVARS make what="{make}"\nSUBDAG EXTERNAL wms_lazy_payload inner.dag\n'
        dag += "PARENT make CHILD wms_lazy_payload\n"
        real = 'JOB x a.sub\nVARS x what="true"\nJOB y a.sub\nVARS y what="true"\nPARENT x CHILD y\n'
        wms_id = await by_hand(
            pool, scratch, run_dag=dag, real_dag=real, inner_dag="JOB placeholder a.sub\n", a_sub=SUB
        )

        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)

        assert run.state is WmsStates.SUCCEEDED
        assert observer.states(wms_id) == {"make": "SUCCEEDED", "x": "SUCCEEDED", "y": "SUCCEEDED"}


@ROWS.row
async def a_job_that_lingered_in_the_queue_hides_no_run_of_the_history(pool: CondorBed) -> None:
    async with watching(pool) as (observer, scratch):
        (scratch / "linger.sub").write_text("executable = /bin/true\nleave_in_queue = True\nqueue\n")
        said = await in_bed(pool, "sh", "-c", f"cd {scratch} && condor_submit -terse linger.sub")
        lingering = said.partition(".")[0]

        async def asked(*attributes: str) -> str:
            return (await in_bed(pool, "condor_q", lingering, "-af", *attributes)).strip()

        with anyio.fail_after(PATIENCE_S):
            while await asked("JobStatus") != "4":  # noqa: ASYNC110  # no event
                await anyio.sleep(0.5)
        since = int(await asked("EnteredCurrentStatus")) + 1
        await anyio.sleep(2.0)
        wms_id, _ = await observer.submit(document(shell_job("a_1", "true")))
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        await in_bed(pool, "condor_qedit", lingering, "LeaveJobInQueue", "False")
        with anyio.fail_after(PATIENCE_S):
            while await asked("ClusterId"):  # noqa: ASYNC110  # no event
                await anyio.sleep(0.5)

        assert isinstance(observer.service, HTCondorService)
        ended = await observer.service._pool.ended(None, since)

        assert int(cluster(wms_id)) in [ad["ClusterId"] for ad in ended.ads]


@ROWS.row
async def a_run_in_another_folder_than_its_dag_is_restarted_where_it_was(pool: CondorBed) -> None:
    async with watching(pool) as (observer, scratch):
        inside, mended = scratch / "inside", scratch / "mended"
        inside.mkdir()
        inside.chmod(0o1777)
        (inside / "run.dag").write_text(f'JOB a a.sub\nVARS a what="test -e {mended}"\n')
        (inside / "a.sub").write_text(SUB)
        sign = 'My.bps_isjob = "True"'
        line = f"cd {scratch} && condor_submit_dag -usedagdir -append '{sign}' inside/run.dag"
        said = await in_bed(pool, "sh", "-c", line)
        wms_id = said.partition("submitted to cluster ")[2].partition(".")[0] + ".0"
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.FAILED

        mended.touch()
        new, _, _ = await observer.service.restart(wms_id)
        assert new is not None
        again = await observer.until_over(new, timeout_s=PATIENCE_S)

        assert again.state is WmsStates.SUCCEEDED
        assert observer.states(new) == {"a": "SUCCEEDED"}


@ROWS.row
async def a_held_run_says_why(pool: CondorBed) -> None:
    async with watching(pool) as (observer, _):
        wms_id = await running(observer)

        await in_bed(pool, "condor_hold", "-reason", "quota", f"{cluster(wms_id)}.0")
        run = await observer.until(wms_id, lambda run: run.state is WmsStates.HELD, PATIENCE_S)
        assert "quota" in run.note

        agreed, message = await observer.service.release(wms_id)
        assert agreed, message
        await observer.until(wms_id, lambda run: run.state is WmsStates.RUNNING, PATIENCE_S)
        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)


@ROWS.row
async def a_run_removed_by_hand(pool: CondorBed) -> None:
    async with watching(pool) as (observer, _):
        wms_id = await running(observer)

        await in_bed(pool, "condor_rm", "-reason", "not needed", cluster(wms_id))
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)

        assert (run.state, run.source) == (WmsStates.DELETED, "history")
        assert "removed" in run.note
        assert observer.states(wms_id) == {"long_1": "DELETED"}


@ROWS.row
async def a_job_removed_by_hand(pool: CondorBed) -> None:
    async with watching(pool) as (observer, _):
        wms_id = await running(observer)

        await in_bed(pool, "condor_rm", await child_of(pool, wms_id))
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)

        assert run.state is WmsStates.FAILED
        assert observer.states(wms_id) == {"long_1": "DELETED"}


@ROWS.row
async def a_killed_dagman_goes_on(pool: CondorBed) -> None:
    async with watching(pool) as (observer, scratch):
        go = scratch / "go"
        wms_id, _ = await observer.submit(document(shell_job("wait_1", f"while ! test -e {go}; do sleep 0.2; done")))
        await until_job(observer, wms_id, "wait_1", "RUNNING")

        await kill_dagman(pool, str(observer.runs[wms_id].path))
        go.touch()
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)

        assert run.state is WmsStates.SUCCEEDED
        assert observer.states(wms_id) == {"wait_1": "SUCCEEDED"}


@ROWS.row
async def an_evicted_job_runs_again(pool: CondorBed) -> None:
    async with watching(pool) as (observer, _):
        wms_id = await running(observer)
        before = await until_job(observer, wms_id, "long_1", "RUNNING")

        await in_bed(pool, "condor_vacate_job", "-fast", await child_of(pool, wms_id))

        def again(_: Any) -> bool:
            row = observer.jobs[wms_id].row(0)
            return row.attempt > before.attempt and str(row.state) == "RUNNING"

        await observer.until(wms_id, again, PATIENCE_S)
        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)


@ROWS.row
async def a_run_restarted_by_hand_is_its_next_attempt(pool: CondorBed) -> None:
    async with watching(pool) as (observer, scratch):
        mended = scratch / "mended"
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


@ROWS.row
async def a_restart_is_refused_while_the_run_lives(pool: CondorBed) -> None:
    async with watching(pool) as (observer, _):
        wms_id = await running(observer)

        with pytest.raises(Conflict, match="in the queue"):
            await observer.service.restart(wms_id)

        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)


@ROWS.row
async def a_deleted_folder_leaves_the_run_as_it_is(pool: CondorBed) -> None:
    async with watching(pool) as (observer, _):
        wms_id = await running(observer)
        run = observer.runs[wms_id]

        # DAGMan may write a file while its folder is being emptied.
        await in_bed(pool, "sh", "-c", f"until rm -rf {run.path}; do sleep 0.1; done")
        for _ in range(3):
            result = await observer.poll()
            assert result.absent == ()
        assert observer.runs[wms_id].live
        assert "cannot be read" in (observer.runs[wms_id].info or "")
        assert observer.states(wms_id) == {"long_1": "RUNNING"}

        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert observer.runs[wms_id].state is WmsStates.DELETED


@ROWS.row
async def runs_of_a_second_schedd_are_seen(pool: CondorBed) -> None:
    second = SECOND_SCHEDD
    async with watching(pool, schedd=second) as (there, _), watching(pool, schedds=[second]) as (here, _):
        wms_id, workflow = await there.submit(document(shell_job("a_1", "true")))
        await there.until_over(wms_id, timeout_s=PATIENCE_S)
        await here.poll()
        found = [run for run in here.runs.values() if run.token == workflow.token]

    assert [run.state for run in found] == [WmsStates.SUCCEEDED]
    assert found[0].wms_id.startswith(f"{second}#")


@ROWS.row
async def a_run_that_history_forgot_is_said_to_be_absent(pool: CondorBed) -> None:
    async with watching(pool) as (observer, _):
        gone = KnownRun(run_id="r", wms_id="999999.0", token="x" * 20, state=WmsStates.RUNNING)

        result = await observer.service.poll(PollRequest(known=(gone,)))

        assert result.absent == ("999999.0",)
        assert {source.status for source in result.sources} == {"ok"}


@pytest.fixture(scope="module")
def outcomes(pool: CondorBed) -> Outcomes:
    return ROWS.run(pool, at_once=24, pause_s=0.5)


@pytest.mark.parametrize("name", ROWS.names)
def test_the_truth(outcomes: Outcomes, name: str) -> None:
    outcomes.check(name)
