"""Runs stay in order without sorting, and a scan shows all of them as they were when it began."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.runorder import RunOrder

STEPS = st.lists(
    st.tuples(st.sampled_from(["place", "remove", "step"]), st.integers(0, 9), st.floats(0, 5)), max_size=60
)


def test_the_newest_come_first_and_equal_ones_by_their_ids() -> None:
    order = RunOrder()
    order.load([("b", 1.0), ("a", 1.0), ("c", 2.0)])
    order.place("d", 1.5)
    order.place("a", 3.0)
    order.place("n", float("nan"))

    assert [*order.run_ids()] == ["a", "c", "d", "b", "n"]
    assert [*order.run_ids("c")] == ["d", "b", "n"]

    assert order.sorted(["n", "x", "b", "a"]) == ["a", "b", "n"]

    order.remove("c")

    assert [*order.run_ids()] == ["a", "d", "b", "n"]
    assert len(order) == 4


@given(st.dictionaries(st.integers(0, 9).map(str), st.floats(0, 5)), STEPS)
def test_a_scan_shows_what_was_when_it_began_whatever_happens_meanwhile(
    first: dict[str, float], steps: list[tuple[str, int, float]]
) -> None:
    order = RunOrder()
    order.load(first.items())
    state = dict(first)
    expected = [(run, first[run]) for run in sorted(first, key=lambda run: (-first[run], run))]
    seen = []

    with order.scan(lambda run: (run, state[run])) as scan:
        going = iter(scan)
        for act, number, since in steps:
            run = str(number)
            if act == "step":
                seen += [taken for taken in [next(going, None)] if taken is not None]
                continue
            order.about_to_change(run)
            if act == "place":
                state[run] = since
                order.place(run, since)
            elif run in state:
                del state[run]
                order.remove(run)
        seen += going

    assert seen == expected
    assert [*order.run_ids()] == sorted(state, key=lambda run: (-state[run], run))


def test_a_scan_takes_each_run_once_and_none_when_it_is_over() -> None:
    order = RunOrder()
    order.load([("a", 3.0), ("b", 2.0), ("c", 1.0)])
    taken: list[str] = []

    with order.scan(taken.append) as scan:
        going = iter(scan)
        next(going)
        for run in ("a", "c", "c", "b", "new"):
            order.about_to_change(run)
        for _ in going:
            order.about_to_change("a")
    order.about_to_change("a")

    assert sorted(taken) == ["a", "b", "c"]


def test_a_page_after_a_run_that_is_gone_is_an_error_of_the_caller() -> None:
    with pytest.raises(KeyError):
        RunOrder().run_ids("gone")
