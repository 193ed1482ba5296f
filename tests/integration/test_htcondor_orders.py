"""What people ask and order: runs by every kind of id on every schedd, upstream's options, parts of runs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
import pytest

from bpsd.errors import Conflict, RunNotFound
from bpsd.models import WmsStates
from bpsd.testing.contract import Bed
from bpsd.testing.observer import Observer, document, shell_job
from bpsd_adapters.htcondor.service import HTCondorService
from tests.integration.condorbed import SECOND_SCHEDD, CondorBed
from tests.integration.daemons import RunningDaemon, until
from tests.integration.together import Outcomes, Rows

pytestmark = pytest.mark.timeout(600)
PATIENCE_S = 180.0
ROWS = Rows()


_STOP_DAGMAN = """
for pid in $(pgrep -x condor_dagman); do
    if [ "$(readlink /proc/$pid/cwd)" = "$1" ]; then kill -STOP "$pid"; fi
done
"""


@asynccontextmanager
async def watching(pool: CondorBed, **settings: Any) -> AsyncIterator[Observer]:
    """A service over SSH."""
    folder = pool.folder()
    try:
        async with Bed(HTCondorService, pool.settings(**settings), folder).open() as observer:
            yield observer
    finally:
        pool.remove([folder])


async def in_bed(pool: CondorBed, *argv: str) -> str:
    return (await anyio.to_thread.run_sync(lambda: pool.run(*argv))).strip()


async def until_states(observer: Observer, wms_id: str, **states: str) -> None:
    await observer.until(wms_id, lambda _: states.items() <= observer.states(wms_id).items(), PATIENCE_S)


@ROWS.row
async def ids_of_every_form(pool: CondorBed) -> None:
    """A run of the second schedd, seen from the first: by global id and folder, by local id only if all are asked."""
    other = watching(pool, schedd=SECOND_SCHEDD)
    async with other as there, watching(pool) as stranger, watching(pool, schedds=[SECOND_SCHEDD]) as here:
        wms_id, _ = await there.submit(document(shell_job("a_1", "sleep 300")))
        await until_states(there, wms_id, a_1="RUNNING")
        (report,), _ = await there.service.report(wms_id)
        global_id, path = report.global_wms_id, report.path
        assert global_id is not None
        assert path is not None
        assert global_id.startswith(f"{SECOND_SCHEDD}#{wms_id}#")

        for name in (global_id, global_id.rpartition("#")[0], path, f"{path}/"):
            (seen,), _ = await here.service.report(name)
            assert (seen.wms_id, seen.path, seen.state) == (global_id, path, WmsStates.RUNNING)
            assert [job.state for job in seen.jobs or ()] == [WmsStates.RUNNING]
        assert (await stranger.service.report(global_id))[0][0].path == path
        assert await stranger.service.get_status(global_id) == (WmsStates.RUNNING, "")
        assert global_id in [run.global_wms_id for run in (await stranger.service.report(is_global=True))[0]]
        assert global_id not in [run.global_wms_id for run in (await stranger.service.report())[0]]
        everywhere, message = await stranger.service.report(wms_id, is_global=True)
        assert [run.global_wms_id for run in everywhere] == [global_id] or global_id in message
        for nobody in ("nobody@here#1.0#2", global_id.replace("#", "#9", 1), "/nowhere", "12.7"):
            assert (await here.service.report(nobody))[0] == []
            with pytest.raises(RunNotFound):
                await here.service.cancel(nobody)

        assert await here.service.list_submitted_jobs(path) == [global_id]
        assert global_id in await stranger.service.list_submitted_jobs(is_global=True)
        agreed, message = await stranger.service.cancel(global_id)
        assert agreed, message
        assert (await there.until_over(wms_id, timeout_s=PATIENCE_S)).state is WmsStates.DELETED


_REQUIREMENT = """
cat >/etc/condor/config.d/90-requirement <<'END'
SUBMIT_REQUIREMENT_NAMES = Project
SUBMIT_REQUIREMENT_Project = bps_project =!= "forbidden"
SUBMIT_REQUIREMENT_Project_REASON = strcat("project ", bps_project, " has no allocation")
END
condor_reconfig
"""
_NO_REQUIREMENT = "rm -f /etc/condor/config.d/90-requirement; condor_reconfig"
_PROBE = """
printf 'executable = /bin/true\\nhold = true\\nMy.bps_project = "forbidden"\\nqueue\\n' >probe.sub
submits() { condor_submit probe.sub >/dev/null 2>&1; }
$1 submits; do sleep 0.2; done
condor_rm -constraint 'bps_project =?= "forbidden" && JobUniverse == 5' || true
"""


async def requires_a_project(pool: CondorBed, script: str, until: str) -> None:
    """Configure the schedd, and wait until it has read that."""
    await anyio.to_thread.run_sync(lambda: pool.as_root("sh", "-c", script))
    await in_bed(pool, "sh", "-c", _PROBE.replace("$1", until), "sh")


@ROWS.row
async def what_the_schedd_refuses_is_refused_at_once(pool: CondorBed) -> None:
    """A refusal is no doubt, and leaves nothing: the same submission passes when the schedd allows it."""
    async with watching(pool) as observer:
        workflow = await observer.workflow(document(shell_job("a_1", "true"), run={"project": "forbidden"}))
        prepared = await observer.service.prepare({}, workflow)
        try:
            await requires_a_project(pool, _REQUIREMENT, "while")
            with pytest.raises(Conflict, match="refused the run: project forbidden has no allocation"):
                await observer.service.submit(prepared)
            assert prepared.run_id is None
        finally:
            await requires_a_project(pool, _NO_REQUIREMENT, "until")
        await observer.service.submit(prepared)
        run = await observer.until_over(str(prepared.run_id), timeout_s=PATIENCE_S)
        assert run.state is WmsStates.SUCCEEDED


@ROWS.row
async def upstreams_options(pool: CondorBed) -> None:
    """``user``, ``pass_thru``, ``require_bps`` and ``hist``; jobs whose DAGMan is gone are listed."""
    async with watching(pool) as observer:
        wms_id, _ = await observer.submit(
            document(shell_job("a_1", "sleep 300"), name="options", run={"operator": "ann"})
        )
        await until_states(observer, wms_id, a_1="RUNNING")
        service = observer.service
        bare = await in_bed(pool, "sh", "-c", "echo 'executable = /bin/sleep\narguments = 300\nhold = True\n"
                                              "universe = vanilla\nqueue' | condor_submit -terse -")  # fmt: skip
        loose = f"{bare.partition('.')[0]}.0"

        assert wms_id in await service.list_submitted_jobs(user="op")
        assert await service.list_submitted_jobs(user="nobody") == []
        assert loose not in await service.list_submitted_jobs(user="op")
        assert loose in await service.list_submitted_jobs(user="op", require_bps=False)
        only = f"ClusterId == {wms_id.partition('.')[0]}"
        assert await service.list_submitted_jobs(pass_thru=only) == [wms_id]
        assert await service.list_submitted_jobs(pass_thru=f"-forcex {only}") == [wms_id]
        assert await service.list_submitted_jobs(loose) == []
        assert await service.list_submitted_jobs(loose, require_bps=False) == [loose]
        assert [run.wms_id for run in (await service.report(pass_thru=only))[0]] == [wms_id]
        assert wms_id in [run.wms_id for run in (await service.report(user="ann"))[0]]
        assert (await service.report(user="nobody"))[0] == []
        assert await service.cancel(wms_id, pass_thru='bps_run == "something  else"') == (
            False,
            f'run {wms_id} does not fulfil bps_run == "something  else"',
        )

        assert (await service.cancel(wms_id, pass_thru=f"{only} -forcex"))[0]
        await in_bed(pool, "condor_rm", loose)
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.DELETED
        assert wms_id not in [run.wms_id for run in (await service.report())[0]]
        assert wms_id in [run.wms_id for run in (await service.report(hist=1))[0]]


@ROWS.row
async def a_run_is_not_over_while_its_jobs_are_there(pool: CondorBed) -> None:
    """DAGMan is removed so that its jobs stay (as when the schedd cannot): the run says so, and cancel removes them."""
    async with watching(pool) as observer:
        wms_id, _ = await observer.submit(document(shell_job("a_1", "sleep 300")))
        await until_states(observer, wms_id, a_1="RUNNING")
        cluster = wms_id.partition(".")[0]
        await in_bed(pool, "condor_qedit", f"{cluster}.0", "OtherJobRemoveRequirements", "False")

        await in_bed(pool, "sh", "-c", _STOP_DAGMAN, "sh", observer.runs[wms_id].path or "")
        await in_bed(pool, "sh", "-c", f"condor_rm {cluster}; condor_rm -forcex {cluster}")
        run = await observer.until(wms_id, lambda run: "still in the queue" in run.note or not run.live, PATIENCE_S)
        assert run.live, run
        assert await observer.service.list_submitted_jobs(f"{cluster}.0") != []

        agreed, message = await observer.service.cancel(wms_id)
        assert agreed, message
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.DELETED
        assert observer.states(wms_id) == {"a_1": "DELETED"}
        assert await in_bed(pool, "condor_q", "-constraint", f"DAGManJobId == {cluster}", "-af", "ClusterId") == ""


@ROWS.row
async def some_jobs_are_released_and_others_not(pool: CondorBed) -> None:
    """Groups too: their jobs are in a DAG below."""
    group = {"name": "g", "parents": ["a_1"]}
    jobs = [
        shell_job("a_1", "true"),
        *(shell_job(f"b_{n}", "true", group="g", parents=["a_1"], profile={"hold": "True"}) for n in (1, 2)),
    ]
    async with watching(pool) as observer:
        wms_id, _ = await observer.submit(document(*jobs, groups=[group]))
        await until_states(observer, wms_id, a_1="SUCCEEDED", b_1="HELD", b_2="HELD")

        agreed, message = await observer.service.release(wms_id, ("b_2",))
        assert agreed, message
        await until_states(observer, wms_id, b_1="HELD", b_2="SUCCEEDED")
        agreed, message = await observer.service.release(wms_id)
        assert agreed, message
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.SUCCEEDED


@ROWS.row
async def programs_by_name_and_folders_to_start_in(pool: CondorBed) -> None:
    """And many jobs: those documents are prepared in a helper process."""
    folder = await in_bed(pool, "mktemp", "-d")
    mine = {"name": "mine", "src_uri": f"{folder}/mine.sh", "transfer_executable": True}
    write = 'printf "%s\\n" "$2" "$3" "$4" >"$1"; chmod 755 "$1"'
    await in_bed(pool, "sh", "-c", write, "sh", str(mine["src_uri"]), "#!/bin/sh", "pwd", 'echo "$@"')
    jobs: list[dict[str, Any]] = [
        {"name": "a_1", "label": "a", "executable": "pwd", "working_directory": folder},
        {"name": "b_1", "label": "b", "executable": "mine", "working_directory": folder, "arguments": "'x  y'"},
        {"name": "c_1", "label": "c", "executable": "printf", "arguments": "'%s.' '' z"},
        {"name": "d_1", "label": "d", "kind": "noop", "parents": ["a_1", "b_1", "c_1"]},
    ]
    many: list[dict[str, Any]] = [
        {"name": f"n_{n}", "label": "n", "kind": "noop", "parents": ["d_1"]} for n in range(1000)
    ]
    async with watching(pool) as observer:
        wms_id, _ = await observer.submit(document(*jobs, *many, executables=[mine]))
        run = await observer.until_over(wms_id, timeout_s=PATIENCE_S)
        assert run.state is WmsStates.SUCCEEDED
        said = [(await observer.service.read_output(wms_id, f"{name}_1", "stdout", 0, 1000)).data for name in "abc"]
        assert said == [f"{folder}\n".encode(), f"{folder}\nx  y\n".encode(), b".z."]


@ROWS.row
async def a_run_of_another_schedd_is_found_by_token_and_restarted_there(pool: CondorBed) -> None:
    settings = {"schedd": SECOND_SCHEDD}
    async with watching(pool, **settings) as there, watching(pool, schedds=[SECOND_SCHEDD]) as here:
        wms_id, workflow = await there.submit(document(shell_job("a_1", "exit 3")))
        await there.until_over(wms_id, timeout_s=PATIENCE_S)
        found = await here.service.find_by_token(workflow.token, time.time())
        assert found.verdict == "found"
        assert found.wms_id is not None
        assert found.wms_id.startswith(f"{SECOND_SCHEDD}#{wms_id}")

        new_id, _, message = await here.service.restart(found.wms_id, attempt_token=f"{workflow.token}.2")
        assert new_id is not None, message
        assert new_id.startswith(f"{SECOND_SCHEDD}#")
        again, _, _ = await here.service.restart(found.wms_id, attempt_token=f"{workflow.token}.2")
        assert again == new_id
        assert (await here.service.find_by_token(f"{workflow.token}.2", time.time())).wms_id == new_id
        reports, message = await there.service.report(wms_id, hist=1)
        assert reports[0].global_wms_id == new_id
        assert "was restarted as" in message
        await there.until_over(new_id.split("#")[1], timeout_s=PATIENCE_S)
        await in_bed(pool, "rm", "-rf", reports[0].path or "")
        with pytest.raises(Conflict, match=f"the folder {reports[0].path} of run .* is not on") as refused:
            await here.service.restart(new_id, attempt_token=f"{workflow.token}.3")
        assert refused.value.advice


@pytest.fixture(scope="module")
def outcomes(pool: CondorBed) -> Outcomes:
    return ROWS.run(pool, at_once=8, pause_s=0.5)


@pytest.mark.parametrize("name", ROWS.names)
def test_orders(outcomes: Outcomes, name: str) -> None:
    outcomes.check(name)


def test_holds_are_grouped_and_released_by_label_and_reason(pool: CondorBed, state_dir: Path) -> None:
    """Through a daemon: two runs of two labels on hold from their birth, and one job that a person holds."""
    polling = {"min_interval_s": 0.5, "idle_interval_s": 0.5, "deadline_s": 60.0, "stale_after_s": 60.0}
    settings = {"type": "htcondor", **pool.settings()}
    jobs = [
        *(shell_job(f"{name}_1", "true", profile={"hold": "True"}) for name in ("a", "b")),
        shell_job("c_1", "sleep 300"),
    ]
    with RunningDaemon(state_dir, {"usdf": settings}, polling=polling) as daemon, daemon.client() as client:
        until(lambda: client.backends()["backends"][0]["state"] == "up", "the pool is read")
        runs = [
            client.wait_command(client.submit_document(msgspec.json.encode(document(*jobs)))["id"], timeout_s=90)["run"]
            for _ in range(2)
        ]
        until(lambda: client.holds(runs)["held"] == 4, "four jobs are on hold")
        (born,) = client.holds(runs)["groups"]
        assert (born["labels"], born["run_count"]) == ({"a": 2, "b": 2}, 2)
        assert "(code 15.0)" in born["reason"]

        cluster = client.status(runs[0])["wms_id"].partition(".")[0]
        until(lambda: client.jobs(runs[0], label="c")["jobs"][0]["state"] == "RUNNING", "c_1 runs")
        chosen = f'DAGManJobId == {cluster} && bps_job_name == "c_1"'
        pool.run("condor_hold", "-reason", "the disk /data/x is 97 % full", "-constraint", chosen)
        until(lambda: len(client.holds(runs)["groups"]) == 2, "there are two reasons")
        disk = next(group for group in client.holds(runs)["groups"] if group["group"] != born["group"])
        assert disk["reason"] == "the disk PATH is N % full (by user op) (code 1.0)"

        for run in runs:
            client.wait_command(client.release(run, group=born["group"], label="a")["id"], timeout_s=60)
        until(lambda: client.holds(runs)["held"] == 3, "a_1 of both is released")
        client.wait_command(client.release(runs[0], group=disk["group"])["id"], timeout_s=60)
        until(lambda: client.jobs(runs[0], label="c")["jobs"][0]["state"] == "RUNNING", "c_1 runs again")
        assert client.holds(runs)["groups"][0]["labels"] == {"b": 2}
        for run in runs:
            assert client.wait_command(client.cancel(run)["id"], timeout_s=90)["state"] == "DONE"
        assert client.holds(runs)["groups"] == []
