"""A flood of lines about one thing is told in part, and how much was left out is told too."""

from __future__ import annotations

from bpsd.logs.throttle import BURST, MAX_KEYS, WINDOW_S, Throttle


def test_some_lines_then_none_then_how_many_were_left_out() -> None:
    now = 100.0
    throttle = Throttle(clock=lambda: now)

    assert [throttle.admit("a") for _ in range(BURST + 3)] == [0] * BURST + [None] * 3
    assert throttle.admit("b") == 0  # another thing
    now += WINDOW_S
    assert throttle.admit("a") == 3
    assert throttle.admit("a") == 0
    now += WINDOW_S
    assert throttle.admit("a") == 0


def test_what_is_remembered_is_bounded() -> None:
    throttle = Throttle(clock=lambda: 0.0)
    for number in range(10 * MAX_KEYS):
        assert throttle.admit(number) == 0

    assert len(throttle._told) == MAX_KEYS
