"""What polls of the local backend bring: bounded, complete, in order, also to a daemon that lost its memory."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest
import structlog

from bpsd.errors import BackendUnavailable, StorageError
from bpsd.interface import ServiceContext
from bpsd.models import PollRequest, PollResult
from bpsd.models import WmsStates as S
from bpsd.testing.observer import Observer, shell_job
from bpsd_adapters import runlog
from bpsd_adapters.local.follow import WATCHED_MAX, BackendCursor
from bpsd_adapters.local.observe import Phase, RunCursor
from bpsd_adapters.local.service import JOBS_PER_POLL, LocalConfig, LocalService
from tests.integration.local_support import eventually, opened


async def test_a_daemon_without_memory_finds_all_runs(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        good, _ = await local.run(shell_job("a", "true"), name="good")
        bad, _ = await local.run(shell_job("a", "exit 3"), name="bad")
        waits = shell_job("a", f"while ! test -e {tmp_path}/go; do sleep 0.01; done")
        live, _ = await local.start(waits, name="live")
        await local.until_job(live, "a", S.RUNNING)

    async with opened(tmp_path) as local:
        result = await local.observer.poll()
        runs = local.observer.runs
        assert {r.run: r.state for r in runs.values()} == {"good": S.SUCCEEDED, "bad": S.FAILED, "live": S.RUNNING}
        assert [runs[n].token for n in (good.wms_id, bad.wms_id)] == [good.token, bad.token]
        assert local.job(bad.wms_id, "a").exit_code == 3
        assert result.cursor is not None
        assert set(BackendCursor.parsed(result.cursor).watch) == {live}

        again = await local.service.poll(PollRequest(cursor=result.cursor, known=(local.look(live),)))
        assert {seen.wms_id for seen in again.observations} == {live}, "what is over is not told again"
        (tmp_path / "go").touch()
        assert (await local.observer.until_over(live)).state is S.SUCCEEDED


async def test_deltas_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        wms_id, _ = await local.start(
            shell_job("a", "true"),
            shell_job("b", f"while ! test -e {tmp_path}/go; do sleep 0.01; done", parents=["a"]),
            shell_job("c", "true"),
        )
        await local.until_job(wms_id, "b", S.RUNNING)
        await local.until_job(wms_id, "c", S.SUCCEEDED)
        assert (await local.observer.poll()).observations == []
        (tmp_path / "go").touch()
        seen: list[str] = []
        while local.observer.runs[wms_id].live:
            result = await local.observer.poll()
            seen += [job.name for run in result.observations for job in run.jobs]
        assert set(seen) == {"b"}


async def test_polls_are_bounded_and_the_loop_has_its_turn(tmp_path: Path) -> None:
    count = 2 * JOBS_PER_POLL
    pruned = [shell_job(f"n{i}", "true", label=f"l{i % 7}", parents=["bad"]) for i in range(count)]
    async with opened(tmp_path) as local:
        wms_id, folder = await local.start(shell_job("bad", "exit 1"), *pruned)
        await eventually(lambda: not runlog.is_held(folder.log), "the run is over")
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        results: list[PollResult] = []
        async with anyio.create_task_group() as group:
            group.start_soon(count_turns)
            cursor = None
            while not results or results[-1].more:
                known = [
                    msgspec.structs.replace(local.look(wms_id), cursor=r.run_cursors[wms_id]) for r in results[-1:]
                ]
                results.append(await local.service.poll(PollRequest(cursor=cursor, known=tuple(known))))
                cursor = results[-1].cursor
            group.cancel_scope.cancel()

        sizes = [sum(len(seen.jobs) for seen in result.observations) for result in results]
        assert sum(sizes) >= count
        assert len(sizes) >= 2
        assert max(sizes) < 1.2 * JOBS_PER_POLL
        assert turns > 10 * len(results)
        assert [seen.state for result in results for seen in result.observations][-1] is S.FAILED
        last = {job.name: job.state for result in results for seen in result.observations for job in seen.jobs}
        assert Counter(last.values()) == {S.FAILED: 1, S.PRUNED: count}


async def test_a_poll_whose_deadline_is_near_ends_with_what_it_has(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        for _ in range(3):
            await local.run(shell_job("a", "true"))
        cursor, seen = None, []
        for _ in range(20):
            result = await local.service.poll(PollRequest(cursor=cursor, deadline_s=0.0))
            cursor = result.cursor
            seen += [run.wms_id for run in result.observations]
            if not result.more:
                break
        assert sorted(set(seen)) == ["1", "2", "3"]


async def test_absent_only_if_the_folder_is_gone(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        run, folder = await local.run(shell_job("a", "true"))
        known = msgspec.structs.replace(local.look(run.wms_id), token=folder.token)
        await anyio.Path(tmp_path / "state" / "ids" / run.wms_id).unlink()
        assert (await local.service.poll(PollRequest(known=(known,)))).absent == ()

        await anyio.to_thread.run_sync(shutil.rmtree, folder.path)
        for one in (known, local.look(run.wms_id)):
            result = await local.service.poll(PollRequest(known=(one,)))
            assert result.absent == (run.wms_id,)
            assert {source.status for source in result.sources} == {"ok"}
        assert (await local.service.find_by_token(folder.token, 0.0)).verdict == "absent"


async def test_what_cannot_be_read_is_not_absent(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        run, folder = await local.run(shell_job("a", "true"))
        await anyio.Path(folder.log).unlink()
        await anyio.Path(folder.log).mkdir()
        result = await local.service.poll(PollRequest(known=(local.look(run.wms_id),)))

        assert result.absent == ()
        assert result.sources[-1].status == "partial"
        assert "Is a directory" in result.sources[-1].error


@pytest.mark.blocking_allowed  # a job may put anything in the place of its run's files
@pytest.mark.parametrize("kind", ["fifo", "device", "garbage", "error"])
async def test_a_run_whose_log_cannot_be_read_is_set_aside_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nothing waits for a FIFO or reads a device; the error is in the run's note, and the run comes back."""
    monkeypatch.setattr("bpsd_adapters.quarantine.FIRST_PAUSE_S", 0.2)
    monkeypatch.setattr("bpsd_adapters.quarantine.LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr("bpsd_adapters.runlog.GARBAGE_MAX_BYTES", 8 * 1024 * 1024)
    async with opened(tmp_path) as local:
        sick, folder = await local.start(shell_job("a", f"while ! test -e {tmp_path}/go; do sleep 0.01; done"))
        well, _ = await local.start(shell_job("b", f"while ! test -e {tmp_path}/go; do sleep 0.01; done"))
        for run in (sick, well):
            await local.observer.until(run, lambda seen: seen.state is S.RUNNING)
        aside = folder.log.rename(folder.path / "aside")
        with monkeypatch.context() as patch:
            if kind == "fifo":
                os.mkfifo(folder.log)
            elif kind == "device":
                folder.log.symlink_to("/dev/zero")
            elif kind == "garbage":
                folder.log.touch()
                os.truncate(folder.log, 10 * 1024**3)
            else:
                aside.rename(folder.log)
                reads = runlog.read_from

                def breaks(path: Path, *arguments: Any) -> Any:
                    if path == folder.log:
                        raise KeyError("what nobody foresaw")
                    return reads(path, *arguments)

                patch.setattr(runlog, "read_from", breaks)
            await local.observer.until(sick, lambda run: bool(run.note))
            result = await local.observer.poll()
            assert "while reading its log" in str(local.observer.runs[sick].note)
            assert local.observer.runs[sick].state is S.RUNNING
            assert result.sources[-1].status == "partial"
            assert well in {seen.wms_id for seen in result.observations}
        if kind != "error":
            folder.log.unlink()
            aside.rename(folder.log)
        (tmp_path / "go").touch()
        for run in (sick, well):
            assert (await local.observer.until_over(run)).state is S.SUCCEEDED
        assert not local.observer.runs[sick].note


@pytest.mark.blocking_allowed
async def test_output_that_is_no_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        run, folder = await local.run(shell_job("a", "true"))
        out = folder.output("a", 1, "out")
        for put in (os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), Path.mkdir):
            out.unlink()
            put(out)
            with pytest.raises(StorageError, match="cannot read the output"):
                await local.service.read_output(run.wms_id, "a", "stdout", 0, 100)
            if out.is_dir():
                break


async def test_no_more_runs_go_on_than_the_backend_drives(tmp_path: Path) -> None:
    async with opened(tmp_path, runs_at_once=1) as local:
        first, _ = await local.start(shell_job("a", "sleep 60"))
        with pytest.raises(BackendUnavailable, match="1 runs go on"):
            await local.start(shell_job("b", "true"))
        assert (await local.service.cancel(first))[0]
        await local.observer.until_over(first)


async def test_a_garbled_cursor_is_the_beginning(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        run, _ = await local.run(shell_job("a", "true"))
        result = await local.service.poll(PollRequest(cursor="{nonsense"))
        assert [seen.wms_id for seen in result.observations] == [run.wms_id]


async def test_runs_that_never_began_are_not_told_of(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        workflow = await local.observer.workflow({"bpsd": 1, "name": "w", "jobs": [shell_job("a", "true")]})
        prepared = await local.service.prepare({}, workflow)
        result = await local.service.poll(PollRequest())
        assert result.observations == []

        await local.service.submit(prepared)
        local.observer.cursor = result.cursor
        assert (await local.observer.until_over(str(prepared.run_id))).state is S.SUCCEEDED


async def test_a_log_that_grows_wakes_the_poller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpsd_adapters.local.service.GROWN_EVERY_S", 0.05)
    woken = anyio.Event()

    def wake(reason: str) -> None:
        if reason == "a log has grown, or come to its end":
            woken.set()

    (tmp_path / "contract").mkdir()
    async with anyio.create_task_group() as group:
        context = ServiceContext(
            backend="here",
            state_dir=tmp_path,
            log=structlog.get_logger(),
            clock=time.time,
            wake=wake,
            task_group=group,
        )
        async with LocalService(LocalConfig(cores=1, ledger=str(tmp_path / "ledger")), context) as service:
            observer = Observer(service, tmp_path / "contract")
            job = shell_job("a", f"while ! test -e {tmp_path}/go; do sleep 0.01; done")
            wms_id, _ = await observer.submit({"bpsd": 1, "name": "w", "jobs": [job]})
            await observer.until(wms_id, lambda _: observer.states(wms_id) == {"a": "RUNNING"})
            await anyio.sleep(0.2)  # so that it has looked at the log as it is now
            woken = anyio.Event()
            (tmp_path / "go").touch()
            with anyio.fail_after(60):
                await woken.wait()
            await observer.until_over(wms_id)
        group.cancel_scope.cancel()


async def test_the_watch_list_does_not_grow_without_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as local:
        state = tmp_path / "state"
        many: dict[str, Any] = {}
        for number in range(1, WATCHED_MAX + 10):
            (state / "runs" / str(number)).mkdir()
            (state / "ids" / str(number)).symlink_to(state / "runs" / str(number))
            many[str(number)] = RunCursor(phase=Phase.DEAD)
        result = await local.service.poll(PollRequest(cursor=BackendCursor(WATCHED_MAX + 9, many).text()))

        kept = BackendCursor.parsed(result.cursor).watch
        assert len(kept) == WATCHED_MAX
        assert min(map(int, kept)) == 10
