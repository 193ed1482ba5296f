"""What a wait waits for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd import wire
from bpsd.client.goals import DONE, Goal, reached

STATES = st.sampled_from(sorted(wire.STATES))


def changed(run: str, state: str) -> dict[str, Any]:
    return {"kind": "run.state", "run": run, "data": {"state": state}}


@pytest.mark.parametrize(
    ("state", "until", "verdict"),
    [
        ("SUCCEEDED", [DONE], True),
        ("FAILED", [DONE], False),
        ("DELETED", [DONE], False),
        ("RUNNING", [DONE], None),
        ("UNKNOWN", [DONE], None),
        ("RUNNING", ["PENDING"], True),  # passed
        ("SUCCEEDED", ["RUNNING"], True),
        ("FAILED", ["RUNNING"], False),
        ("FAILED", ["FAILED"], True),
        ("SUCCEEDED", ["FAILED"], False),
        ("HELD", ["RUNNING"], None),
        ("HELD", ["HELD", DONE], True),
    ],
)
def test_reached(state: str, until: list[str], verdict: bool | None) -> None:
    assert reached(state, until) is verdict


@given(STATES, st.lists(st.sampled_from([*wire.STATES, DONE]), min_size=1))
def test_only_what_is_over_is_given_up(state: str, until: list[str]) -> None:
    if reached(state, until) is False:
        assert state in wire.TERMINAL_STATES
    if reached(state, until) is None:
        assert state not in wire.TERMINAL_STATES


def test_all() -> None:
    goal = Goal(["a", "b"], [DONE])
    goal.see({"kind": "snapshot", "runs": [{"id": "a", "state": "RUNNING"}, {"id": "b", "state": "FAILED"}]})
    assert not goal.is_over()
    assert goal.unmet() == "not done in time: a RUNNING"

    goal.see(changed("a", "SUCCEEDED"))

    assert goal.is_over()
    assert not goal.met
    assert goal.states == {"a": "SUCCEEDED", "b": "FAILED"}


def test_any() -> None:
    goal = Goal(["a", "b"], [DONE], any_of=True)
    goal.see(changed("a", "FAILED"))
    assert not goal.is_over()

    goal.see(changed("b", "SUCCEEDED"))

    assert goal.is_over()
    assert goal.met


def test_any_of_none() -> None:
    goal = Goal(["a", "b"], [DONE], any_of=True)
    goal.see(changed("a", "FAILED"))
    goal.see(changed("b", "DELETED"))

    assert goal.is_over()
    assert not goal.met


def test_a_restart_while_others_are_waited_for_counts_anew() -> None:
    goal = Goal(["a", "b"], [DONE])
    goal.see(changed("a", "FAILED"))
    goal.see(changed("a", "RUNNING"))
    goal.see(changed("b", "SUCCEEDED"))

    assert not goal.is_over()
    goal.see(changed("a", "SUCCEEDED"))
    assert goal.met


def test_a_state_that_was_reached_stays_reached() -> None:
    goal = Goal(["a", "b"], ["HELD"])
    goal.see(changed("a", "HELD"))
    goal.see(changed("a", "RUNNING"))
    goal.see(changed("b", "HELD"))

    assert goal.met


def test_a_limited_snapshot_leaves_runs_to_ask_for() -> None:
    goal = Goal(["a", "b", "c"], [DONE])
    goal.see_row({"id": "c", "state": "SUCCEEDED"})

    missing = goal.see({"kind": "snapshot", "runs": [{"id": "a", "state": "RUNNING"}]})

    assert missing == ["b"]


def test_others_are_nothing_to_it() -> None:
    goal = Goal(["a"], [DONE])

    assert goal.see(changed("z", "SUCCEEDED")) == []
    assert goal.see({"kind": "run.progress", "run": "a", "data": {}}) == []
    assert not goal.is_over()
    assert repr(goal) == "<Goal all of 1 done: {'a': 'UNKNOWN'}>"


def test_more_runs_than_a_request_may_name_are_watched_with_all_others() -> None:
    few, many = ([f"r{n:08}" for n in range(count)] for count in (wire.MAX_RUNS_NAMED, wire.MAX_RUNS_NAMED + 1))

    assert Goal(few, (DONE,)).to_watch() == few
    assert Goal(many, (DONE,)).to_watch() == []
