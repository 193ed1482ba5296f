"""Several runs on one machine: they share its cores, take turns, and wake one another."""

from __future__ import annotations

from pathlib import Path

import anyio

from bpsd.models import WmsStates as S
from bpsd.testing.observer import shell_job
from tests.integration.local_support import opened


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
