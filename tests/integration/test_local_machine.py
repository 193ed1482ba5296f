"""Several runs on one machine: they share its cores, take turns, and wake one another."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from bpsd.models import WmsStates as S
from bpsd.testing.observer import shell_job
from bpsd_adapters.local import processes
from bpsd_adapters.local.ledger import Capacity, Ledger
from tests.integration.local_support import eventually, opened


def counted(trace: Path, name: str, script: str = "sleep 0.03") -> dict[str, object]:
    """A job that writes when it begins and ends."""
    return shell_job(name, f"echo + >> {trace}; {script}; echo - >> {trace}")


def most_at_once(trace: Path) -> int:
    running = most = 0
    for mark in trace.read_text().split():
        running += 1 if mark == "+" else -1
        most = max(most, running)
    return most


async def test_two_runs_do_not_oversubscribe(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    async with opened(tmp_path, cores=3) as one, opened(tmp_path, cores=3) as two:
        ids = [await local.start(*(counted(trace, f"j{i}") for i in range(30))) for local in (one, two)]
        for wms_id, _ in ids:
            assert (await one.observer.until_over(wms_id)).state is S.SUCCEEDED
    assert most_at_once(trace) == 3


async def test_memory_is_shared_too(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    jobs = [counted(trace, f"j{i}") | {"request_memory": 400} for i in range(6)]
    async with opened(tmp_path, cores=8, memory_mb=1000) as local:
        ids = [(await local.start(*jobs))[0] for _ in range(2)]
        for wms_id in ids:
            assert (await local.observer.until_over(wms_id)).state is S.SUCCEEDED
    assert most_at_once(trace) == 2


async def test_a_second_run_gets_its_turn_while_the_first_has_plenty(tmp_path: Path) -> None:
    """It is done long before the first: each core that comes free goes to who has waited longer."""
    async with opened(tmp_path, cores=1) as local:

        def jobs(letter: str, count: int) -> list[dict[str, object]]:
            return [shell_job(f"{letter}{i}", f"echo {letter} >> {tmp_path}/order; sleep 0.02") for i in range(count)]

        long, _ = await local.start(*jobs("a", 60))
        await local.until_job(long, "a0", S.SUCCEEDED)
        short, _ = await local.start(*jobs("b", 10))
        await local.observer.until_over(short)
        order = (tmp_path / "order").read_text().split()
        await local.observer.until_over(long)
    first, last = order.index("b"), len(order) - 1 - order[::-1].index("b")
    assert order[first : last + 1].count("a") <= 12, order


async def test_who_waits_goes_on_when_another_run_is_over(tmp_path: Path) -> None:
    async with opened(tmp_path, cores=1) as local:
        go = tmp_path / "go"
        holder, _ = await local.start(shell_job("holds", f"while ! test -e {go}; do sleep 0.01; done"))
        await local.until_job(holder, "holds", S.RUNNING)
        waiting, _ = await local.start(shell_job("waits", "true"))
        await local.observer.poll()
        assert local.states(waiting) == {"waits": "READY"}
        await anyio.Path(go).touch()
        assert (await local.observer.until_over(waiting)).state is S.SUCCEEDED
        assert (await local.observer.until_over(holder)).state is S.SUCCEEDED


async def test_a_ledger_lost_during_a_run_gives_no_core_twice(tmp_path: Path) -> None:
    """Whether it is removed or damaged: the driver that lives enters its job again before another gets anything."""
    go, ledger = tmp_path / "go", anyio.Path(tmp_path / "ledger")
    async with opened(tmp_path, cores=1) as local:
        holder, _ = await local.start(shell_job("holds", f"while ! test -e {go}; do sleep 0.01; done"))
        await local.until_job(holder, "holds", S.RUNNING)
        waiting = []
        for damage in (ledger.unlink, lambda: ledger.write_bytes(b"nonsense")):
            await damage()
            waiting.append((await local.start(shell_job("waits", f"test -e {go}")))[0])
            await local.observer.until(waiting[-1], lambda run: run.state is S.RUNNING)
        await local.observer.poll()
        assert [local.states(run) for run in waiting] == [{"waits": "READY"}] * 2
        await anyio.Path(go).touch()
        for run in (holder, *waiting):
            assert (await local.observer.until_over(run)).state is S.SUCCEEDED


@pytest.mark.blocking_allowed  # it uses the ledger itself
async def test_a_driver_enters_its_jobs_again_by_itself_when_the_ledger_was_replaced(tmp_path: Path) -> None:
    """By a file that looks whole, as from a copy: nothing else would tell it."""
    ledger, copy = tmp_path / "ledger", tmp_path / "copy"
    me = processes.of_pid(os.getpid())
    Ledger(copy, Capacity(1, 0), me).settle([])
    async with opened(tmp_path, cores=1) as local:
        run, _ = await local.start(shell_job("long", "sleep 60"))
        await local.until_job(run, "long", S.RUNNING)
        await eventually(lambda: Ledger(ledger, Capacity(1, 0), me).read().owners, "the job in the ledger")
        copy.replace(ledger)
        await eventually(lambda: Ledger(ledger, Capacity(1, 0), me).read().owners, "the job in the new ledger")
        assert (await local.service.cancel(run))[0]
        await local.observer.until_over(run)


async def test_a_ledger_that_cannot_be_used_is_a_source_in_trouble_and_no_run_looks_old(tmp_path: Path) -> None:
    async with opened(tmp_path, cores=1) as local:
        run, _ = await local.start(shell_job("long", "sleep 60"))
        await local.until_job(run, "long", S.RUNNING)
        assert {source.status for source in (await local.observer.poll()).sources} == {"ok"}
        await anyio.Path(tmp_path / "ledger").unlink()
        await anyio.Path(tmp_path / "ledger").mkdir()

        result = await local.observer.poll()

        assert {source.name: source.status for source in result.sources} == {
            "ledger": "partial", "processes": "ok", "log": "ok",
        }  # fmt: skip
        assert "directory" in result.sources[0].error
        assert [seen.wms_id for seen in result.observations] == [run]
        assert (await local.service.ping())[0] == 1
        await anyio.Path(tmp_path / "ledger").rmdir()
        assert (await local.service.cancel(run))[0]
        await local.observer.until_over(run)
