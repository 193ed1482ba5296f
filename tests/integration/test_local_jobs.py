"""What a job of a local run can count on, with real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from bpsd.errors import Conflict, JobNotFound, RunNotFound, UnsupportedOperation, WorkflowInvalid
from bpsd.models import WmsStates as S
from bpsd.testing.observer import shell_job
from bpsd_adapters.local import processes
from tests.integration.local_support import eventually, opened


async def living(pids: list[int]) -> list[processes.Process]:
    """Who of these is still there."""
    found = await anyio.to_thread.run_sync(lambda: [processes.of_pid(pid) for pid in pids])
    return [process for process in found if process != processes.GONE]


# -- what it gets ------------------------------------------------------------------------------------------------------


async def test_surroundings(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        script = (
            'echo "$0|$PWD|$(pwd)|$BPSD_JOB|$BPSD_ATTEMPT|$BPSD_RUN|$BPSD_CPUS|$BPSD_MEMORY_MB|$RUN|$JOB"; '
            "readlink /proc/self/fd/0; ls /proc/self/fd | tr '\\n' ' '; echo; "
            "grep -E '^Sig(Blk|Ign)' /proc/self/status; ps -o sid= -p $$ | tr -d ' '; echo $$"
        )
        run, folder = await local.run(
            shell_job("isr_1", script, request_cpus=2, request_memory=300, environment={"JOB": "<ENV:RUN>-j"}),
            name="u/op/run",
            environment={"RUN": "r"},
        )

        assert run.state is S.SUCCEEDED
        lines = (folder.out / "isr_1.1.out").read_text().splitlines()
        assert lines[0] == f"/bin/sh|{folder.work}|{folder.work}|isr_1|1|u/op/run|2|300|r|r-j"
        assert lines[1] == "/dev/null"
        assert lines[2].split() == ["0", "1", "2", "3"]  # 3 is that of ls: nothing of the driver's is open
        # Numbers 32 and 33 are the C library's own and never reach a program.
        assert [int(line.split()[1], 16) & 0x7FFFFFFF for line in lines[3:5]] == [0, 0]
        assert lines[5] == lines[6]  # a session of its own
        assert (folder.out / "isr_1.1.err").read_bytes() == b""


async def test_working_folder_and_programs_in_it(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        program = tmp_path / "here"
        program.write_text("#!/bin/sh\npwd > there\n")
        program.chmod(0o755)
        run, _ = await local.run(
            {"name": "a", "executable": "./here", "working_directory": str(tmp_path)},
        )

        assert run.state is S.SUCCEEDED
        assert (tmp_path / "there").read_text() == f"{tmp_path}\n"


async def test_exit_codes_and_signals(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        run, _ = await local.run(shell_job("a", "exit 7"), shell_job("b", "kill -9 $$"), shell_job("c", "exit 255"))

        assert {name: local.job(run.wms_id, name).exit_code for name in "abc"} == {"a": 7, "b": 137, "c": 255}
        assert run.note == "3 of 3 jobs failed: a (exit code 7), b (signal 9 (SIGKILL)), c (exit code 255)"


async def test_memory_grows_with_every_retry_up_to_its_limit(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        await local.run(
            shell_job(
                "a",
                f"echo $BPSD_MEMORY_MB >> {tmp_path}/asked; exit 1",
                request_memory=100,
                memory_multiplier=2.0,
                request_memory_max=350,
                number_of_retries=3,
            ),
            shell_job(
                "b",
                f"echo $BPSD_MEMORY_MB >> {tmp_path}/machine; exit 1",
                request_memory=400,
                memory_multiplier=3.0,
                number_of_retries=2,
            ),
        )

        assert (tmp_path / "asked").read_text().split() == ["100", "200", "350", "350"]
        assert (tmp_path / "machine").read_text().split() == ["400", "1000", "1000"]


async def test_the_most_urgent_goes_first(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        jobs = [shell_job(f"p{p}", f"echo {p} >> {tmp_path}/order", priority=p, request_cpus=2) for p in (1, 3, 2)]
        run, _ = await local.run(*jobs)

        assert run.state is S.SUCCEEDED
        assert (tmp_path / "order").read_text().split() == ["3", "2", "1"]


async def test_a_category_has_its_limit(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        script = f"mkdir {tmp_path}/only || exit 1; sleep 0.05; rmdir {tmp_path}/only"
        run, _ = await local.run(
            *(shell_job(f"db{i}", script, category="db") for i in range(4)), category_limits={"db": 1}
        )

        assert run.state is S.SUCCEEDED


# -- time and the shell around it --------------------------------------------------------------------------------------


async def test_walltime(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        run, folder = await local.run(
            shell_job("polite", "trap 'echo stopped; exit 0' TERM; sleep 300 & wait", request_walltime="1"),
            shell_job("stubborn", "trap '' TERM; while :; do sleep 0.1; done", request_walltime="00:01"),
        )

        assert local.states(run.wms_id) == {"polite": "FAILED", "stubborn": "FAILED"}
        polite, stubborn = (local.job(run.wms_id, name) for name in ("polite", "stubborn"))
        assert polite.note == stubborn.note == "walltime of 1 s exceeded"
        assert (polite.exit_code, stubborn.exit_code) == (0, 137)
        assert (folder.out / "polite.1.out").read_text() == "stopped\n"


async def test_pre_and_post_commands(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:

        def job(name: str, script: str, pre: str, post: str, **fields: Any) -> dict[str, Any]:
            note = f">> {tmp_path}/{name}"
            return shell_job(
                name,
                f"echo job {note}; {script}",
                pre_cmdline=f"echo pre {note}; {pre}",
                post_cmdline=f"echo post {note}; {post}",
                **fields,
            )

        run, _ = await local.run(
            job("good", "echo said", "true", "true"),
            job("bad", "exit 5", "true", "true"),
            job("early", "true", "exit 3", "true"),
            job("late", "true", "true", "exit 4"),
            job("slow", "sleep 300", "true", "true", request_walltime="1"),
        )

        def ran(name: str) -> str:
            return " ".join((tmp_path / name).read_text().split())

        rows = {name: local.job(run.wms_id, name) for name in ("good", "bad", "early", "late", "slow")}
        assert {n: r.state for n, r in rows.items()} == {
            "good": "SUCCEEDED",
            "bad": "FAILED",
            "early": "FAILED",
            "late": "SUCCEEDED",
            "slow": "FAILED",
        }
        assert [ran(n) for n in rows] == ["pre job post", "pre job post", "pre", "pre job post", "pre job post"]
        assert (rows["bad"].exit_code, rows["early"].exit_code) == (5, None)
        assert rows["early"].note == "pre_cmdline ended with exit code 3"
        assert rows["late"].note == "post_cmdline ended with exit code 4"
        assert rows["slow"].note == "walltime of 1 s exceeded"


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_what_a_job_leaves_running_is_ended(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        run, _ = await local.run(shell_job("a", f"sleep 300 & echo $! > {tmp_path}/pid"))

        assert run.state is S.SUCCEEDED
        assert await living([int((tmp_path / "pid").read_text())]) == []


async def test_cancel_ends_everything_that_came_of_a_run(tmp_path: Path) -> None:
    """Grandchildren, who ignores SIGTERM, and who left the session and the environment."""
    async with opened(tmp_path, memory_mb=1000) as local:
        script = (
            f"(trap '' TERM; echo $(exec sh -c 'echo $PPID') >> {tmp_path}/pids; while :; do sleep 0.1; done) & "
            f"setsid sh -c 'echo $$ >> {tmp_path}/pids; exec sleep 300' & "
            f"setsid env -i sh -c 'echo $$ >> {tmp_path}/pids; exec sleep 300' & "
            "trap 'echo asked; exit 0' TERM; wait"
        )
        wms_id, folder = await local.start(
            shell_job("a", script), shell_job("b", "true", parents=["a"]), final=shell_job("f", "true")
        )

        def pids() -> list[int]:
            path = tmp_path / "pids"
            return [int(line) for line in path.read_text().split()] if path.exists() else []

        await eventually(lambda: len(pids()) == 3, "the job has started all")
        agreed, message = await local.service.cancel(wms_id)
        assert agreed, message
        run = await local.observer.until_over(wms_id)

        assert run.state is S.DELETED
        assert run.note == "cancelled"
        assert local.states(wms_id) == {"a": "SUCCEEDED", "b": "DELETED", "f": "DELETED"}
        assert (folder.out / "a.1.out").read_text() == "asked\n"
        assert await living(pids()) == []
        assert await local.service.cancel(wms_id) == (True, f"run {wms_id} is over: DELETED")


async def test_abort_ends_what_runs_and_the_final_job_is_still_last(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        run, _ = await local.run(
            shell_job("long", f"echo long >> {tmp_path}/trace; exec sleep 300"),
            shell_job(
                "abort",
                f"while ! test -e {tmp_path}/trace; do sleep 0.01; done; exit 9",
                abort_on_value=9,
                abort_return_value=4,
            ),
            shell_job("late", "true", parents=["long"]),
            final=shell_job("final", f"echo final >> {tmp_path}/trace"),
        )

        assert run.state is S.FAILED
        assert local.states(run.wms_id) == {
            "long": "DELETED",
            "abort": "FAILED",
            "late": "DELETED",
            "final": "SUCCEEDED",
        }
        why = "abort ended with its abort_on_value (exit code 9): the run returns 4; 1 of 4 jobs failed"
        assert run.note.startswith(why)
        assert (tmp_path / "trace").read_text().split() == ["long", "final"]


async def test_hold_and_release(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        wms_id, _ = await local.start(
            shell_job("a", f"while ! test -e {tmp_path}/go; do sleep 0.01; done"), shell_job("b", "true", parents=["a"])
        )
        await local.until_job(wms_id, "a", S.RUNNING)
        assert await local.service.hold(wms_id) == (True, f"run {wms_id} starts no more jobs")
        await local.observer.until(wms_id, lambda run: run.state is S.HELD)
        (tmp_path / "go").touch()
        await local.until_job(wms_id, "a", S.SUCCEEDED)
        assert local.states(wms_id) == {"a": "SUCCEEDED", "b": "READY"}

        assert await local.service.release(wms_id) == (True, f"run {wms_id} goes on")
        run = await local.observer.until_over(wms_id)
        assert run.state is S.SUCCEEDED
        assert await local.service.hold(wms_id) == (False, f"run {wms_id} is not running")
        with pytest.raises(UnsupportedOperation, match="whole runs"):
            await local.service.hold(wms_id, ("a",))


# -- refusals ----------------------------------------------------------------------------------------------------------


async def test_all_that_is_wrong_is_found_before_anything_runs(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        with pytest.raises(WorkflowInvalid) as caught:
            await local.start(
                {"name": "a", "executable": "/no/such/program"},
                {"name": "b", "executable": "true", "working_directory": "/no/such/folder"},
                {"name": "c", "executable": "true", "request_cpus": 3, "request_memory": 2000},
                {"name": "d", "executable": "no-such-program"},
                {"name": "e", "executable": "true", "environment": {"X": "<ENV:NOT_THERE>"}},
                {"name": "f", "executable": "true", "priority": "DAG_PRIO"},
                final={"name": "g", "executable": "/no/such/final"},
            )

        assert [(p.key, p.message.split(" (")[0]) for p in caught.value.problems] == [
            ("jobs[0].executable", "there is no program /no/such/program"),
            ("jobs[1].working_directory", "there is no folder /no/such/folder"),
            ("jobs[2].request_cpus", "c asks for 3 cores, this backend has 2"),
            ("jobs[2].request_memory", "c asks for 2000 MB of memory, this backend has 1000 MB"),
            ("jobs[3].executable", "there is no program no-such-program in PATH"),
            ("jobs[4].environment", "<ENV:NOT_THERE> is not set where the job runs"),
            ("jobs[5].priority", "'DAG_PRIO' is not a whole number, and there is no other priority here"),
            ("final.executable", "there is no program /no/such/final"),
        ]
        assert list((tmp_path / "state" / "runs").iterdir()) == []


async def test_a_program_that_went_away_fails_its_job(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        program = tmp_path / "program"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        run, _ = await local.run(
            shell_job("a", f"rm {program}"),
            {"name": "b", "executable": str(program), "parents": ["a"], "number_of_retries": 1},
        )

        assert run.state is S.FAILED
        row = local.job(run.wms_id, "b")
        assert row.note == f"cannot start: there is no program {program}"
        assert row.attempt == 2


async def test_a_restart_of_what_runs_or_succeeded_is_a_conflict(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        wms_id, _ = await local.start(shell_job("a", "sleep 300"))
        with pytest.raises(Conflict, match=rf"run {wms_id} runs \(attempt 1\)"):
            await local.service.restart(wms_id)
        await local.service.cancel(wms_id)
        await local.observer.until_over(wms_id)

        run, _ = await local.run(shell_job("a", "true"))
        with pytest.raises(Conflict, match="has succeeded"):
            await local.service.restart(run.wms_id)
        for ask in (local.service.restart, local.service.cancel, local.service.hold):
            with pytest.raises(RunNotFound, match="no run 99"):
                await ask("99")


async def test_output_in_pieces(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        run, folder = await local.run(
            shell_job("a", "printf 0123456789"), shell_job("never", "true", parents=["bad"]), shell_job("bad", "exit 1")
        )
        read = local.service.read_output

        piece = await read(run.wms_id, "a", "stdout", 2, 3)
        assert (piece.data, piece.offset, piece.size, piece.path) == (b"234", 2, 10, str(folder.out / "a.1.out"))
        assert (await read(run.wms_id, "a", "stdout", -4, 100)).data == b"6789"
        assert (await read(run.wms_id, "a", "stdout", 100, 100)).data == b""
        assert (await read(run.wms_id, "never", "stderr", 0, 100)).size == 0
        with pytest.raises(JobNotFound, match=f"run {run.wms_id} has no job ghost"):
            await read(run.wms_id, "ghost", "stdout", 0, 100)


async def test_ids(tmp_path: Path) -> None:
    async with opened(tmp_path, memory_mb=1000) as local:
        assert local.service.resolve_id("12") == ("12",)
        assert local.service.resolve_id("12.0") == ("12.0", "12")
        assert local.service.resolve_id("v1.0") == ("v1.0",)


async def test_ping_tells_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "ledger").symlink_to(tmp_path / "elsewhere")
    async with opened(tmp_path) as local:
        status, message = await local.service.ping()
        assert status == 1
        assert "symbolic link" in message
        await anyio.Path(tmp_path / "ledger").unlink()
        assert (await local.service.ping())[0] == 0
