"""Tables, ages and times as plain text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bpsd.cli.render import age, clean, clip, clip_middle, columns_of, duration, long_age, plural, table

TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)


def test_table() -> None:
    lines = table(
        ("X", "STATE", "%S", "RUN"),
        [("F", "RUNNING", 7, "u/alice/one"), (None, "SUCCEEDED", 100, "two")],
        right=("%S",),
    )

    assert lines == [
        "X STATE      %S RUN",
        "- --------- --- -----------",
        "F RUNNING     7 u/alice/one",
        "  SUCCEEDED 100 two",
    ]


def test_table_without_rows_is_its_header() -> None:
    assert table(("ID", "STATE"), []) == ["ID STATE", "-- -----"]


def test_columns_that_say_nothing_may_be_left_out() -> None:
    lines = table(("A", "B", "C"), [("1", "", None), ("2", "", "")], optional=("A", "B"))

    assert lines == ["A C", "- -", "1", "2"]


def test_rule_below_totals() -> None:
    lines = table((" ", "N"), [("TOTAL", 3), ("isr", 1), ("coadd", 2)], right=("N",), rule_after_first=True)

    assert lines == ["      N", "----- -", "TOTAL 3", "----- -", "isr   1", "coadd 2"]


def test_wide_characters_and_accents_keep_columns_aligned() -> None:
    lines = table(("RUN", "S"), [("銀河", "a"), ("e\u0301te", "b"), ("plain", "c")])

    assert lines == ["RUN   S", "----- -", "銀河  a", "e\u0301te   b", "plain c"]


def test_only_what_may_be_shortened_is() -> None:
    rows = [("rbcdfghjk", "a very long name of a payload", "another long name of a run")]

    lines = table(("ID", "PAYLOAD", "RUN"), rows, shrink=("PAYLOAD", "RUN"), width=50)

    assert lines[2] == "rbcdfghjk a very lo…a payload another lo… of a run"
    assert max(map(len, lines)) == 50


def test_colour_does_not_shift_columns() -> None:
    plain = table(("STATE", "RUN"), [("FAILED", "a"), ("SUCCEEDED", "b")])
    painted = table(
        ("STATE", "RUN"), [("FAILED", "a"), ("SUCCEEDED", "b")], paint=lambda _, cell: "31" if cell == "FAILED" else ""
    )

    assert painted[2] == "\x1b[31mFAILED   \x1b[0m a"
    assert [line.replace("\x1b[31m", "").replace("\x1b[0m", "") for line in painted] == plain


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=8), st.integers(40, 120))
def test_table_fits_and_never_breaks_a_line(rows: list[tuple[str, str, str]], width: int) -> None:
    lines = table(("A", "B", "C"), rows, shrink=("A", "B", "C"), width=width)

    assert len(lines) == len(rows) + 2
    assert all(line.isprintable() for line in lines)
    assert all(columns_of(line) <= width for line in lines)


@given(TEXTS, st.integers(0, 40))
def test_clip(text: str, columns: int) -> None:
    text = clean(text)

    for shorten in (clip, clip_middle):
        short = shorten(text, columns)

        assert columns_of(short) <= columns
        assert short == text or "…"[:columns] in short


def test_the_middle_of_a_name_is_cut_out_and_the_end_of_a_sentence() -> None:
    rows = [("u/carl/DRP/20261128T120000Z_isr", "the walltime of 60 s was exceeded by the job isr_1")]

    assert table(("RUN", "NOTE"), rows, shrink=("RUN", "NOTE"), width=40)[2] == (
        "u/carl/DR…0000Z_isr the walltime of 60 …"
    )
    assert clip_middle("u/carl/20261128_isr", 11) == "u/car…8_isr"


ROWS = [("r1", "alice", "dev", "u/alice/one"), ("r2", "alice", "prod", "u/alice/two")]
HEADER = ("ID", "OPERATOR", "PROJECT", "RUN")


def test_columns_that_are_the_same_in_all_rows_go_first_and_are_told() -> None:
    lines = table(HEADER, ROWS, drop=("PROJECT", "OPERATOR"), shrink=("RUN",), width=24)

    assert lines[0] == "ID PROJECT RUN"
    assert lines[-1] == "in all rows: OPERATOR a…"
    assert table(HEADER, ROWS, drop=("PROJECT", "OPERATOR"), width=80) == table(HEADER, ROWS)


def test_other_columns_go_when_shortening_is_not_enough_and_are_told() -> None:
    lines = table(HEADER, ROWS, drop=("PROJECT", "OPERATOR"), shrink=("RUN",), width=14)

    assert lines[0] == "ID RUN"
    assert lines[2:4] == ["r1 u/alice/one", "r2 u/alice/two"]
    assert [line.partition(":")[0] for line in lines[4:]] == ["in all rows", "no room for"]


def test_piped_output_keeps_every_column() -> None:
    assert table(HEADER, ROWS, drop=HEADER, shrink=HEADER)[0].split() == [*HEADER]


def test_commands_to_the_terminal_are_shown_not_obeyed() -> None:
    assert clean("a\x1b[2Jb\tc\nd\x9b") == "a\\x1b[2Jb c d\\x9b"


@given(TEXTS)
def test_clean_is_one_printable_line(text: str) -> None:
    assert clean(text).isprintable()


def test_ages() -> None:
    seconds = (0, 1.9, 99, 100, 7199, 7200, 2 * 86400 - 1, 2 * 86400, 12 * 86400)

    assert [age(s) for s in seconds] == ["0s", "1s", "99s", "1m", "119m", "2h", "47h", "2d", "12d"]
    assert [long_age(s) for s in seconds] == [
        "0 s", "1 s", "99 s", "1 min", "119 min", "2 h", "47 h", "2 d", "12 d",
    ]  # fmt: skip
    assert age(None) == ""
    assert age(-5) == "0s"  # clocks of two machines


def test_durations() -> None:
    seconds = (-1, 0.0123, 1.44, 12.9, 185, 7385)

    assert [duration(s) for s in seconds] == ["0 ms", "12 ms", "1.4 s", "12 s", "3:05", "2:03:05"]


def test_plural() -> None:
    assert (plural(1, "run"), plural(2, "run"), plural(0, "run")) == ("1 run", "2 runs", "0 runs")
