"""Shell patterns mean what `fnmatch` says, and cost what is linear in pattern and text."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bpsd import patterns
from bpsd.patterns import Glob
from tests.figures import figure

GLOBS = figure("GLOBS", test=2_000, soak=50_000)
"""Generated patterns that are compared with `fnmatch`."""

LETTERS = "abc-]![^*?\\.&~|\n"


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("*", "", True),
        ("", "", True),
        ("", "a", False),
        ("u/*/DRP", "u/jo/DRP", True),
        ("u/*/DRP", "u/DRP", False),
        ("ab*ba", "aba", False),
        ("*a*b*", "xaxbx", True),
        ("?", "\n", True),
        ("[a-c]", "b", True),
        ("[!a-c]", "b", False),
        ("[]]", "]", True),
        ("[!]]", "]", False),
        ("[a", "[a", True),
        ("DRP[0-9]*", "DRP7-x", True),
        ("A", "a", False),
    ],
)
def test_a_pattern_matches_what_a_shell_would_match(pattern: str, text: str, fits: bool) -> None:
    assert Glob(pattern).matches(text) is fits


@settings(max_examples=GLOBS)
@given(
    st.text(LETTERS, max_size=14) | st.text(max_size=8),
    st.lists(st.text(LETTERS, max_size=8) | st.text(max_size=5), min_size=1, max_size=8),
)
@example("[z-a]x", ["x", "zx"])
@example("[!z-a]", ["b"])
@example("[a-bb-a]", ["a", "b", "-"])
@example("[--b]", ["-", "a"])
@example("[a-]", ["-"])
@example("*?*[", ["ab["])
def test_glob_means_what_fnmatch_means(pattern: str, texts: list[str]) -> None:
    glob = Glob(pattern)
    for text in (*texts, pattern, pattern.replace("*", "").replace("?", "x")):
        assert glob.matches(text) is fnmatch.fnmatchcase(text, pattern), (pattern, text)


def lines_run(function: Callable[[], object]) -> int:
    """How many lines of `bpsd.patterns` are executed: what it costs, on every machine alike."""
    count = 0

    def trace(frame: object, event: str, arg: object) -> object:
        nonlocal count
        if frame.f_code.co_filename == patterns.__file__:  # type: ignore[attr-defined]
            count += event == "line"
            return trace
        return None

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("unit", ["[", "[!", "[]", "[a-", "*a", "*[ab]", "?*", "a", "[a-c]", "-]", "\u2603?"])
def test_the_cost_of_a_pattern_is_linear_in_its_length(unit: str) -> None:
    def cost(length: int) -> int:
        pattern = (unit * length)[:length]
        return lines_run(lambda: Glob(pattern).matches("a" * length))

    assert cost(4_000) <= 4.5 * cost(1_000) + 100


def test_a_pattern_of_two_hundred_thousand_brackets_compiles() -> None:
    assert Glob("[" * 200_000).matches("[") is False
