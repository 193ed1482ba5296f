"""Long work goes on in slices, one in each turn of the loop, however many want one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd import slices
from bpsd.errors import nearest


@pytest.fixture
def each_step_is_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_S", -1.0)


@pytest.mark.usefixtures("each_step_is_a_slice")
async def test_one_slice_of_all_long_work_in_each_turn_of_the_loop() -> None:
    """Twenty tasks do not make a turn of the loop twenty times as long."""
    done = turn = 0
    most = 0

    async def work() -> None:
        nonlocal done
        pause = slices.Pause()
        for _ in range(10):
            await pause.if_due()
            done += 1

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(work)
        while done < 200:
            before = done
            await asyncio.sleep(0)
            most = max(most, done - before)
            turn += 1

    assert most == 1
    assert turn >= 200


@pytest.mark.usefixtures("each_step_is_a_slice")
async def test_all_long_work_goes_on_in_turns_and_what_is_cancelled_holds_nobody_up() -> None:
    told: list[str] = []

    async def work(name: str) -> None:
        def steps() -> Iterator[None]:
            for _ in range(3):
                told.append(name)
                yield

        await slices.in_turns(steps())

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as given_up:
            async with anyio.create_task_group() as inner:
                inner.start_soon(work, "gone")
                await asyncio.sleep(0)
                given_up.cancel()
        for name in "abc":
            group.start_soon(work, name)

    assert told == ["gone", *"abcabcabc"]


@given(st.text("ab1.", max_size=6), st.lists(st.text("ab1.", max_size=6), max_size=12))
async def test_nearest_in_slices_is_nearest(word: str, known: list[str]) -> None:
    assert await slices.nearest_of(word, known) == nearest(word, known)


async def test_a_word_that_is_no_slip_of_the_hand_is_compared_with_nothing() -> None:
    known = iter(["x" * 5_000])

    assert await slices.nearest_of("x" * 5_000, known) == []
    assert nearest("x" * 5_000, known) == []
    assert list(known) != []
