"""The screen of ``bpsctl watch``."""

from __future__ import annotations

from typing import Any

import pytest

from bpsd.cli import board

NOW = 1_780_000_000.0


def run(number: int, state: str = "RUNNING", **fields: Any) -> dict[str, Any]:
    return {
        "id": f"rbcdfg{number:03}",
        "backend": "here",
        "wms_id": f"{number}.0",
        "name": f"u/carl/DRP/run_{number}_with_a_name_that_is_too_long_for_a_narrow_terminal_isr",
        "state": state,
        "flag": " ",
        "percent": 40,
        "operator": "carl",
        "observed_at": NOW - 3,
        "source": "log",
    } | fields


def answer(rows: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"runs": rows, "backends": {"here": {"state": "up"}}, "time": NOW} | fields


def drawn(rows: list[dict[str, Any]], size: tuple[int, int] = (80, 24), **how: Any) -> list[str]:
    return board.screen(answer(rows), board.ordered(rows, set(), all_ends=False), "", size, **how)


def test_failed_and_held_runs_stand_first() -> None:
    rows = [run(1), run(2, "HELD"), run(3, "PENDING"), run(4, "FAILED"), run(5, "SUCCEEDED")]

    assert [row["state"] for row in board.ordered(rows, set(), all_ends=False)] == [
        "FAILED", "HELD", "RUNNING", "PENDING",
    ]  # fmt: skip


def test_a_named_run_is_shown_however_it_ended() -> None:
    assert [row["id"] for row in board.ordered([run(1, "SUCCEEDED")], set(), all_ends=True)] == ["rbcdfg001"]


def test_what_is_cleared_is_gone_until_its_next_attempt() -> None:
    cleared = {("rbcdfg001", 1), ("rbcdfg002", 1)}

    assert board.ordered([run(1, "FAILED")], cleared, all_ends=False) == []
    assert len(board.ordered([run(1, "FAILED", attempt=2)], cleared, all_ends=False)) == 1
    assert len(board.ordered([run(2)], cleared, all_ends=False)) == 1  # it runs


@pytest.mark.parametrize("size", [(80, 24), (200, 50), (80, 8)])
@pytest.mark.parametrize("count", [0, 1, 39, 500])
def test_a_screen_fits_and_counts_the_rest(size: tuple[int, int], count: int) -> None:
    rows = [run(n, "FAILED" if n == count - 1 else "RUNNING") for n in range(count)]
    lines = drawn(rows, size, keys=True)
    shown = [line for line in lines if "rbcdfg" in line]

    assert len(lines) <= size[1]
    assert all(len(line) <= size[0] for line in lines)
    assert lines[-1] == board.HELP
    if count > len(shown):
        assert f"{count - len(shown)} more runs: {count - len(shown)} RUNNING" in lines
    if shown:
        assert " FAILED " in shown[0]


def test_pages_reach_every_run_and_begin_again() -> None:
    rows = [run(n) for n in range(39)]
    first, second, third, again = (
        {line.split()[2] for line in drawn(rows, page=page) if "rbcdfg" in line} for page in range(4)
    )

    assert first | second | third == {row["id"] for row in rows}
    assert not first & second
    assert again == first
