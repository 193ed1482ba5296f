"""Drivers, submitters and machines that die at the wrong moment; disks that fill; logs that rot."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

from bpsd.errors import BackendUnavailable
from bpsd.models import PollRequest
from bpsd.models import WmsStates as S
from bpsd.processes import start_process
from bpsd.runs import RunRecord
from bpsd.testing.observer import shell_job
from bpsd_adapters import runlog
from bpsd_adapters.local import history as histories
from bpsd_adapters.local import processes
from bpsd_adapters.local.events import Begin, Ended
from bpsd_adapters.local.layout import RunFolder
from bpsd_adapters.local.ledger import Capacity, Ledger
from tests.figures import figure
from tests.integration.local_support import Local, claimed_job, events, eventually, opened, repeated_successes

DRIVER_KILLS = figure("LOCAL_DRIVER_KILLS", test=30, soak=500)
SUBMITTER_KILLS = figure("LOCAL_SUBMITTER_KILLS", test=10, soak=300)

pytestmark = pytest.mark.timeout(600)


def diamonds(folder: Path, count: int) -> list[dict[str, object]]:
    """Diamonds of jobs that take a moment each, and that note if they find themselves running twice."""
    jobs = []
    for i in range(count):
        jobs += [
            claimed_job(folder, f"top_{i}", f"sleep 0.0{i % 5}"),
            claimed_job(folder, f"left_{i}", "sleep 0.02", parents=[f"top_{i}"]),
            claimed_job(folder, f"right_{i}", "sleep 0.05", parents=[f"top_{i}"]),
            claimed_job(folder, f"end_{i}", "true", parents=[f"left_{i}", f"right_{i}"]),
        ]
    return jobs


# -- drivers -----------------------------------------------------------------------------------------------------------


async def test_drivers_killed_at_random_moments(tmp_path: Path) -> None:
    """Killed and restarted until it is through: nothing twice at once, nothing that succeeded once more, all done."""
    dice = random.Random(20)
    async with opened(tmp_path, cores=4) as local:
        left = DRIVER_KILLS
        while left:
            final = claimed_job(tmp_path, "final")
            wms_id, folder = await local.start(*diamonds(tmp_path, 8), final=final)
            token, attempt = folder.token, 1
            while left:
                await anyio.sleep(dice.uniform(0.0, 0.3))
                if (await anyio.to_thread.run_sync(histories.read_marks, folder.log)).end is not None:
                    break
                told = await local.kill_driver(folder)
                left -= 1
                if told.end is not None:
                    break
                run = await local.observer.until_over(wms_id, attempt=attempt)
                assert run.state is S.FAILED
                assert run.note.startswith(f"the driver (pid {told.driver.pid}) was killed; `bpsctl restart {wms_id}`")
                shown = local.states(wms_id)
                assert {shown[job.job.name] for job in told.open.values() if job.process.pid} <= {"RUNNING", "UNKNOWN"}
                assert [n for n, s in shown.items() if s == "FAILED"] == []
                attempt += 1
                await local.observer.restart(wms_id, token, attempt)
            run = await local.observer.until_over(wms_id, attempt=attempt)
            assert run.state is S.SUCCEEDED
            assert run.attempt == attempt
            assert set(local.states(wms_id).values()) == {"SUCCEEDED"}
            assert not (tmp_path / "double").exists(), (tmp_path / "double").read_text()
            # A final job that succeeded just before its driver was killed is last again in the next attempt.
            repeated = partial(repeated_successes, folder, but="final")
            assert await anyio.to_thread.run_sync(repeated) == []


STRAY = "(setsid env -i /bin/sleep 300 >/dev/null 2>&1 &)"
"""Leaves a process that nothing in it connects with its run: no environment, no session, no file."""


def processes_of(folder: RunFolder) -> list[int]:
    """The living processes of a run whose driver is gone."""
    return [process.pid for process in histories.left_over(histories.read(folder.log), folder)]


async def orphaned(local: Local, wms_id: str, count: int) -> RunRecord:
    """The run when it is shown to go on for the processes of it that live."""
    lives = f"{count} process{'es' if count > 1 else ''} of the run still live"
    run: RunRecord = await local.observer.until(wms_id, lambda run: lives in run.note)
    assert run.state is S.RUNNING
    assert f"`bpsctl cancel {wms_id}`" in run.note
    return run


async def test_what_survives_its_driver_keeps_the_run_alive_and_is_ended_before_the_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        script = f"echo x >> {tmp_path}/ran; {STRAY}; test -e {tmp_path}/second || exec sleep 300"
        wms_id, folder = await local.start(
            shell_job("long", script),
            shell_job("done", "true"),
            shell_job("after", "true", parents=["long"]),
        )
        await local.until_job(wms_id, "done", S.SUCCEEDED)
        await eventually(lambda: (tmp_path / "ran").exists(), "the job runs")
        told = await local.kill_driver(folder)
        (job,) = told.open.values()

        await orphaned(local, wms_id, 2)
        assert local.states(wms_id) == {"long": "RUNNING", "done": "SUCCEEDED", "after": "UNREADY"}
        left = await anyio.to_thread.run_sync(processes_of, folder)
        assert job.process.pid in left

        def counted() -> list[int]:
            book = Ledger(tmp_path / "ledger", Capacity(2, 1000), processes.GONE).read()
            return [claim.pid for owner in book.owners for claim in owner.claims]

        assert await anyio.to_thread.run_sync(counted) == [job.process.pid], "a survivor's core is counted"

        (tmp_path / "second").touch()
        await local.observer.restart(wms_id, folder.token, 2)
        run = await local.observer.until_over(wms_id, attempt=2)
        assert run.state is S.SUCCEEDED
        assert not any([await anyio.to_thread.run_sync(processes.of_pid, pid) != processes.GONE for pid in left])
        assert (tmp_path / "ran").read_text().split() == ["x", "x"]
        lost = [e for e in events(folder) if isinstance(e, Ended) and e.state == S.UNKNOWN]
        assert [(e.job.name, e.note) for e in lost] == [("long", "its driver was killed: nobody saw how it ended")]


async def test_a_run_is_over_when_the_last_survivor_has_ended(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        waits = f"while ! test -e {tmp_path}/go; do sleep 0.01; done"
        stray = f"(setsid env -i /bin/sh -c 'while ! test -e {tmp_path}/gone; do sleep 0.01; done' >/dev/null 2>&1 &)"
        wms_id, folder = await local.start(shell_job("long", f"{stray}; {waits}"))
        await local.until_job(wms_id, "long", S.RUNNING)
        await eventually(lambda: len(processes.descendants(keeper_of(folder))) >= 3, "the job left a process")
        await local.kill_driver(folder)
        await local.observer.until(wms_id, lambda run: "still live" in run.note)
        assert local.states(wms_id) == {"long": "RUNNING"}

        (tmp_path / "go").touch()
        await local.until_job(wms_id, "long", S.UNKNOWN)
        for _ in range(3):
            await local.observer.poll()
        assert local.observer.runs[wms_id].state is S.RUNNING, "the process that left the job's session lives"

        (tmp_path / "gone").touch()
        run = await local.observer.until_over(wms_id)
        assert run.state is S.FAILED
        assert run.note.endswith(f"was killed; `bpsctl restart {wms_id}` resumes the run")


def keeper_of(folder: RunFolder) -> processes.Process:
    begin = histories.read(folder.log).begin
    assert begin is not None
    return processes.Process(begin.keeper_pid, begin.keeper_start)


@pytest.mark.parametrize("keeper", ["lives", "killed"])
async def test_cancel_without_a_driver_ends_what_it_left(tmp_path: Path, keeper: str) -> None:
    async with opened(tmp_path) as local:
        stray = f"{STRAY}; " if keeper == "lives" else ""
        wms_id, folder = await local.start(
            shell_job("long", f"trap '' TERM; {stray}sleep 300 & sleep 300"),
            shell_job("b", "true", parents=["long"]),
        )
        await local.until_job(wms_id, "long", S.RUNNING)
        count = 4 if stray else 3
        await eventually(lambda: len(processes.descendants(keeper_of(folder))) == count + 1, "the job is complete")
        if keeper == "killed":
            keeper_process = await anyio.to_thread.run_sync(keeper_of, folder)
            await anyio.to_thread.run_sync(processes.send, keeper_process, signal.SIGKILL)
        told = await local.kill_driver(folder)
        await orphaned(local, wms_id, count)
        left = await anyio.to_thread.run_sync(processes_of, folder)

        agreed, message = await local.service.cancel(wms_id)
        assert (agreed, message) == (True, f"the driver of run {wms_id} was dead: what it left is being ended")
        run = await local.observer.until(wms_id, lambda run: run.state is S.DELETED)
        assert run.attempt == 1
        assert local.states(wms_id) == {"long": "DELETED", "b": "DELETED"}
        assert len(left) == count
        assert not any([await anyio.to_thread.run_sync(processes.of_pid, pid) != processes.GONE for pid in left])
        assert (await anyio.to_thread.run_sync(histories.read, folder.log)).driver != told.driver


async def test_what_a_killed_driver_left_is_ended_where_that_is_configured(tmp_path: Path) -> None:
    async with opened(tmp_path, leftover_processes="end") as local:
        wms_id, folder = await local.start(shell_job("long", f"{STRAY}; sleep 300"))
        await local.until_job(wms_id, "long", S.RUNNING)
        await eventually(lambda: len(processes.descendants(keeper_of(folder))) == 4, "the job is complete")
        left = await anyio.to_thread.run_sync(lambda: processes.descendants(keeper_of(folder)))
        await local.kill_driver(folder)

        run = await local.observer.until_over(wms_id)
        assert (run.state, run.note) == (S.FAILED, "its driver was killed, and what it left was ended")
        assert not any(
            [
                await anyio.to_thread.run_sync(processes.of_pid, pid) != processes.GONE
                for pid in [process.pid for process in left]
            ]
        )


@pytest.mark.parametrize("end", ["true", "exit 1"])
async def test_a_run_that_is_over_leaves_no_process(tmp_path: Path, end: str) -> None:
    async with opened(tmp_path, terminate_grace_s=0.2) as local:
        stray = f"(setsid env -i /bin/sh -c 'trap \"\" TERM; echo $$ > {tmp_path}/stray; sleep 300' >/dev/null 2>&1 &)"
        wait = f"while ! test -s {tmp_path}/stray; do sleep 0.01; done"
        run, folder = await local.run(shell_job("a", f"{stray}; {wait}; {end}"))

        assert run.state is (S.SUCCEEDED if end == "true" else S.FAILED)
        stray_pid = int((tmp_path / "stray").read_text())
        assert await anyio.to_thread.run_sync(processes.of_pid, stray_pid) == processes.GONE
        assert "processes that jobs had left running" in folder.driver_err.read_text()


async def test_a_driver_that_is_told_to_end_says_so(tmp_path: Path) -> None:
    """As at a shutdown of the machine: jobs are ended, nothing is lost, and a restart resumes the run."""
    async with opened(tmp_path) as local:
        waits = shell_job("a", f"test -e {tmp_path}/go || exec sleep 300")
        wms_id, folder = await local.start(waits, final=shell_job("f", "true"))
        await local.until_job(wms_id, "a", S.RUNNING)
        told = await anyio.to_thread.run_sync(histories.read, folder.log)
        await anyio.to_thread.run_sync(processes.send, told.driver, signal.SIGTERM)
        run = await local.observer.until_over(wms_id)
        assert (run.state, run.note) == (S.FAILED, "the driver was told to end (SIGTERM)")
        assert local.states(wms_id) == {"a": "DELETED", "f": "DELETED"}

        (tmp_path / "go").touch()
        await local.observer.restart(wms_id, folder.token, 2)
        assert (await local.observer.until_over(wms_id, attempt=2)).state is S.SUCCEEDED


async def test_a_driver_that_breaks_leaves_its_last_words(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        workflow = await local.observer.workflow({"bpsd": 1, "name": "w", "jobs": [shell_job("a", "true")]})
        prepared = await local.service.prepare({}, workflow)
        folder = RunFolder(Path(prepared.submit_path))
        await anyio.Path(folder.workflow).write_bytes(b"{")
        await local.service.submit(prepared)
        run = await local.observer.until_over(str(prepared.run_id))

        assert run.state is S.FAILED
        assert "ended with an error (msgspec.DecodeError: " in run.note


# -- submitters --------------------------------------------------------------------------------------------------------

SUBMITTER = """
import json, sys
import anyio, msgspec
from bpsd.testing.observer import open_service
from bpsd.workflow import WorkflowFile
from bpsd_adapters.local.service import LocalService
from pathlib import Path

async def main(settings, state, workflow):
    async with open_service(LocalService, settings, Path(state)) as observer:
        print("open", flush=True)
        prepared = await observer.service.prepare({}, workflow)
        await observer.service.submit(prepared)

anyio.run(main, json.loads(sys.argv[1]), sys.argv[2], msgspec.json.decode(sys.argv[3], type=WorkflowFile))
"""


async def test_a_submitter_killed_between_any_two_steps(tmp_path: Path) -> None:
    """Found means that it runs, absent that it does not and will not; submitted again, it runs once."""
    dice = random.Random(7)
    settings = {"cores": 2, "ledger": str(tmp_path / "ledger")}
    verdicts = set()
    async with opened(tmp_path) as local:
        for _ in range(SUBMITTER_KILLS):
            job = shell_job("a", f"echo x >> {tmp_path}/$BPSD_TOKEN")
            workflow = await local.observer.workflow({"bpsd": 1, "name": "w", "jobs": [job]})
            command = [sys.executable, "-c", SUBMITTER, json.dumps(settings), str(tmp_path / "state")]
            async with await start_process(
                [*command, msgspec.json.encode(workflow).decode()], stderr=subprocess.DEVNULL
            ) as submitter:
                assert submitter.stdout is not None
                await submitter.stdout.receive()
                await anyio.sleep(dice.uniform(0.0, 0.5))
                if submitter.returncode is None:
                    submitter.kill()
            answer = await local.service.find_by_token(workflow.token, 0.0)
            verdicts.add(answer.verdict)
            assert answer.verdict in ("found", "absent")

            prepared = await local.service.prepare({}, workflow)
            await local.service.submit(prepared)
            run = await local.observer.until_over(str(prepared.run_id))
            assert run.state is S.SUCCEEDED
            assert answer.wms_id in (None, prepared.run_id)
            assert (tmp_path / workflow.token).read_text() == "x\n"
            folder = RunFolder(Path(prepared.submit_path))
            begins = [e.attempt for e in await anyio.to_thread.run_sync(events, folder) if isinstance(e, Begin)]
            assert begins == [1]
    assert [path.name for path in (tmp_path / "state" / "runs").iterdir() if path.name.startswith(".")] == []


async def test_many_submit_the_same_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        workflow = await one.observer.workflow({"bpsd": 1, "name": "w", "jobs": [shell_job("a", "true")]})
        ids = []

        async def submit(local: Local) -> None:
            prepared = await local.service.prepare({}, workflow)
            await local.service.submit(prepared)
            ids.append(prepared.run_id)

        async with anyio.create_task_group() as group:
            for local in (one, two, one, two):
                group.start_soon(submit, local)
        assert len(ids) == 4
        assert len(set(ids)) == 1
        run = await one.observer.until_over(str(ids[0]))
        assert run.state is S.SUCCEEDED

        failing = await one.run(shell_job("b", "exit 1"))
        async with anyio.create_task_group() as group:
            for local in (one, two, one, two):
                group.start_soon(_restart, local, failing[0].wms_id, f"{failing[1].token}.2")
        await one.observer.restart(failing[0].wms_id, failing[1].token, 2)
        await one.observer.until_over(failing[0].wms_id, attempt=2)
        begins = [e.attempt for e in await anyio.to_thread.run_sync(events, failing[1]) if isinstance(e, Begin)]
        assert begins == [1, 2]


async def _restart(local: Local, wms_id: str, token: str) -> None:
    await local.service.restart(wms_id, attempt_token=token)


async def test_somebody_who_holds_a_log_and_begins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpsd_adapters.local.service.START_WAIT_S", 0.5)
    async with opened(tmp_path) as local:
        workflow = await local.observer.workflow({"bpsd": 1, "name": "w", "jobs": [shell_job("a", "true")]})
        prepared = await local.service.prepare({}, workflow)
        assert (await local.service.find_by_token(workflow.token, 0.0)).verdict == "absent"
        log = RunFolder(Path(prepared.submit_path)).log
        async with await start_process(["flock", "--no-fork", str(log), "sleep", "300"]) as holder:
            await eventually(lambda: runlog.is_held(log), "somebody holds the log")
            answer = await local.service.find_by_token(workflow.token, 0.0)
            assert answer.verdict == "cannot_tell"
            assert "begins nothing" in answer.reason
            with pytest.raises(BackendUnavailable, match="begins no attempt 1"):
                await local.service.submit(prepared)
            holder.kill()
        assert (await local.service.find_by_token(workflow.token, 0.0)).verdict == "absent"

        await local.service.submit(prepared)
        run = await local.observer.until_over(str(prepared.run_id))
        assert (await local.service.find_by_token(f"{workflow.token}.2", 0.0)).verdict == "absent"
        assert run.state is S.SUCCEEDED


async def test_a_next_attempt_that_is_just_beginning_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver before was killed, and somebody holds the log: that is not the driver before."""
    monkeypatch.setattr("bpsd_adapters.local.service.START_WAIT_S", 0.5)
    async with opened(tmp_path) as local:
        wms_id, folder = await local.start(shell_job("a", f"test -e {tmp_path}/go || exec sleep 300"))
        assert (await local.service.find_by_token(f"{folder.token}.2", 0.0)).verdict == "absent"
        await local.until_job(wms_id, "a", S.RUNNING)
        await local.kill_driver(folder)
        async with await start_process(["flock", "--no-fork", str(folder.log), "sleep", "300"]) as beginner:
            await eventually(lambda: runlog.is_held(folder.log), "somebody begins an attempt")
            assert (await local.service.find_by_token(f"{folder.token}.2", 0.0)).verdict == "cannot_tell"
            with pytest.raises(BackendUnavailable, match="begins nothing"):
                await local.service.cancel(wms_id)
            beginner.kill()
        (tmp_path / "go").touch()
        await local.observer.poll()
        await local.observer.restart(wms_id, folder.token, 2)
        assert (await local.observer.until_over(wms_id, attempt=2)).state is S.SUCCEEDED


# -- disks and logs ----------------------------------------------------------------------------------------------------


async def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    """The log may not grow: nothing is started unwritten; when it may again, the run goes on where it was."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    jobs = [shell_job(f"j{i}", f"echo {i} >> {tmp_path}/ran") for i in range(60)]
    async with opened(tmp_path) as local:
        workflow = await local.observer.workflow({"bpsd": 1, "name": "w", "jobs": jobs})
        prepared = await local.service.prepare({}, workflow)
        folder = RunFolder(Path(prepared.submit_path))
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
        try:
            await local.service.submit(prepared)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await eventually(lambda: b"the log cannot be written" in folder.driver_err.read_bytes(), "the driver complains")
        await local.observer.poll()
        run = local.observer.runs[str(prepared.run_id)]
        assert run.state is S.RUNNING
        told = await anyio.to_thread.run_sync(histories.read, folder.log)
        ran = (tmp_path / "ran").read_text().split()
        assert 0 < len(ran) < 60
        assert len(ran) <= len(told.starts.keys() | told.open.keys())

        resource.prlimit(told.driver.pid, resource.RLIMIT_FSIZE, before)
        run = await local.observer.until_over(run.wms_id)
        assert run.state is S.SUCCEEDED
        assert sorted(map(int, (tmp_path / "ran").read_text().split())) == list(range(60))


async def test_a_damaged_log_is_reported_set_aside_and_gone_on_with(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        run, folder = await local.run(
            *(shell_job(f"j{i}", f"echo {i} >> {tmp_path}/ran") for i in range(10)),
            shell_job("bad", f"test -e {tmp_path}/mended"),
        )
        assert run.state is S.FAILED
        whole = await anyio.Path(folder.log).read_bytes()
        payloads, ends, _, _ = runlog.parse(whole)
        victim = next(n for n, line in enumerate(payloads) if line.startswith(b'{"e":"ended"') and b'"j3"' in line)
        garbled = bytearray(whole)
        garbled[ends[victim] - 5] ^= 1
        await anyio.Path(folder.log).write_bytes(garbled)

        result = await local.service.poll(PollRequest())
        log = next(source for source in result.sources if source.name == "log")
        assert log.status == "partial"
        assert f"bytes from byte {ends[victim - 1]} are unreadable" in log.error

        (tmp_path / "mended").touch()
        await local.observer.restart(run.wms_id, folder.token, 2)
        run = await local.observer.until_over(run.wms_id, attempt=2)
        assert run.state is S.SUCCEEDED
        aside = folder.path / f"run.log.damaged-at-{ends[victim - 1]}"
        assert await anyio.Path(aside).read_bytes() == garbled
        assert b"was mended" in await anyio.Path(folder.driver_err).read_bytes()
        ran = sorted(map(int, (tmp_path / "ran").read_text().split()))
        assert ran == sorted([*range(10), 3])  # only the job whose end was lost ran again


async def test_nobody_can_tell_how_a_run_ended_whose_last_line_is_bad(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        wms_id, folder = await local.start(shell_job("a", "true"))
        await eventually(lambda: not runlog.is_held(folder.log), "the run is over")
        whole = bytearray(await anyio.Path(folder.log).read_bytes())
        whole[-5] ^= 1
        await anyio.Path(folder.log).write_bytes(whole)
        result = await local.service.poll(PollRequest())

        (seen, unknown) = result.observations
        assert (seen.state, unknown.state) == (S.RUNNING, S.UNKNOWN)
        assert unknown.note is not None
        assert f"how the run ended is not known; `bpsctl restart {wms_id}` mends the log" in unknown.note
        again = await local.service.poll(PollRequest(cursor=result.cursor))
        assert again.observations == []

        await local.service.restart(wms_id)
        assert (await local.observer.until_over(wms_id, attempt=2)).state is S.SUCCEEDED


async def test_what_a_killed_helper_left_is_removed(tmp_path: Path) -> None:
    runs = tmp_path / "state" / "runs"
    dead, living = runs / ".token0.4194305", runs / ".token1.1"  # beyond any pid, and init
    for half in (dead, living):
        (half / "out").mkdir(parents=True)
    async with opened(tmp_path):
        assert list(runs.iterdir()) == [living]
