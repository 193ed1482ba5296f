"""Users take slots in turn, whatever each of them asks for."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpsd.fair import FairSlots


class Crowd:
    """Tasks that each want a slot; they are named by their user and a number, and end when they are let go."""

    def __init__(self, slots: FairSlots, group: anyio.abc.TaskGroup) -> None:
        self.slots, self._group = slots, group
        self.served: list[str] = []
        self.scopes: dict[str, anyio.CancelScope] = {}
        self._go: dict[str, anyio.Event] = {}

    async def want(self, *names: str) -> None:
        for name in names:
            self._go[name] = anyio.Event()
            self._group.start_soon(self._one, name)
            await anyio.wait_all_tasks_blocked()

    async def _one(self, name: str) -> None:
        with anyio.CancelScope() as self.scopes[name]:
            async with self.slots.slot(name[0], name):
                self.served.append(name)
                await self._go[name].wait()

    async def let_go(self, *names: str) -> None:
        for name in names:
            self._go[name].set()
            await anyio.wait_all_tasks_blocked()

    async def let_all_go(self) -> list[str]:
        done: set[str] = set()
        while left := [name for name in self.served if name not in done]:
            done.add(left[0])
            await self.let_go(left[0])
        return self.served


async def test_users_are_served_in_turn_and_each_in_order() -> None:
    async with anyio.create_task_group() as group:
        crowd = Crowd(FairSlots(2), group)
        await crowd.want("a1", "a2", "a3", "a4", "a5", "b1", "c1", "b2")

        assert crowd.served == ["a1", "a2"]
        assert repr(crowd.slots) == "<FairSlots 2 of 2 held, 6 wait>"
        places = {name: crowd.slots.place(name) for name in ("a3", "b1", "c1", "a4", "b2", "a5", "a1", "x")}
        assert places == {
            "a3": (1, 6),
            "b1": (2, 6),
            "c1": (3, 6),
            "a4": (4, 6),
            "b2": (5, 6),
            "a5": (6, 6),
            "a1": None,
            "x": None,
        }
        assert await crowd.let_all_go() == ["a1", "a2", "a3", "b1", "c1", "a4", "b2", "a5"]
    assert crowd.slots.waiting == 0


@settings(max_examples=25)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=20), st.integers(1, 3))
def test_places_are_the_order_of_service(users: list[str], limit: int) -> None:
    async def run() -> None:
        async with anyio.create_task_group() as group:
            crowd = Crowd(FairSlots(limit), group)
            names = [f"{user}{number}" for number, user in enumerate(users)]
            await crowd.want(*names)
            places = {name: crowd.slots.place(name) for name in names}
            order = await crowd.let_all_go()
            assert [places[name] for name in order[:limit]] == [None] * min(limit, len(names))
            waiting = len(names) - limit
            assert [places[name] for name in order[limit:]] == [(n + 1, waiting) for n in range(max(0, waiting))]

    anyio.run(run)


async def test_who_gives_up_leaves_no_hole() -> None:
    async with anyio.create_task_group() as group:
        crowd = Crowd(FairSlots(1), group)
        await crowd.want("a1", "b1", "c1", "d1")
        crowd.scopes["b1"].cancel()
        await anyio.wait_all_tasks_blocked()
        assert crowd.slots.place("c1") == (1, 2)
        await crowd.let_go("a1")
        assert crowd.served == ["a1", "c1"]
        crowd.scopes["c1"].cancel()  # while it holds a slot
        await anyio.wait_all_tasks_blocked()
        assert await crowd.let_all_go() == ["a1", "c1", "d1"]


async def test_who_is_cancelled_as_the_slot_is_granted_hands_it_on() -> None:
    async with anyio.create_task_group() as group:
        crowd = Crowd(FairSlots(1), group)
        await crowd.want("a1", "b1", "c1")
        crowd._go["a1"].set()
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        crowd.scopes["b1"].cancel()
        await anyio.wait_all_tasks_blocked()
        assert crowd.served[-1] == "c1"
        await crowd.let_all_go()


@pytest.mark.parametrize("limit", [1, 3])
async def test_the_number_of_slots_can_change(limit: int) -> None:
    async with anyio.create_task_group() as group:
        crowd = Crowd(FairSlots(2), group)
        await crowd.want("a1", "a2", "a3", "a4")
        crowd.slots.resize(limit)
        await anyio.wait_all_tasks_blocked()
        assert len(crowd.served) == max(2, limit)
        await crowd.let_go("a1")
        assert len(crowd.served) == {1: 2, 3: 4}[limit]
        await crowd.let_all_go()
