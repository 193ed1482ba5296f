"""What can be wrong with one job."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd import jobchecks
from bpsd.workflow import Job

NO_CODE = "is not an exit code (0 to 255; a signal is 128 + N, also written as -N)"


def _splits(text: str) -> bool:
    try:
        shlex.split(text)
    except ValueError:
        return False
    return True


@given(st.text(st.sampled_from("ab '\"\\\n#$"), max_size=20))
def test_quoting_is_judged_as_shlex_does(text: str) -> None:
    assert (jobchecks.quoting_problem(text) == "") == _splits(text)


def test_quoting_of_a_hostile_text_takes_no_time_to_speak_of() -> None:
    assert jobchecks.quoting_problem("a" * 500_000 + "'" * 500_001)
    assert jobchecks.quoting_problem('"' + "\\a" * 500_000) == 'the quote " at character 1 is not closed'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a 'b", "the quote ' at character 3 is not closed"),
        ('a "b\\"', 'the quote " at character 3 is not closed'),
        ("a\\", "ends in a backslash that quotes nothing"),
        ("<ENV:A B>", "<ENV:A B> does not name a variable"),
        ("<ENV:A> <ENV:>", "<ENV:> does not name a variable"),
        ("x" * (jobchecks.ARGUMENTS_MAX_CHARS + 1), "is 1048577 characters long; at most 1048576 are allowed"),
    ],
)
def test_arguments_that_cannot_be_used(text: str, problem: str) -> None:
    assert jobchecks.arguments_problem(text) == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{id} {{x}}", ""),
        (
            "{id",
            "cannot be filled in with cmdvals: expected '}' before end of string (a brace of its own is written twice)",
        ),
        ("{ie}", "{ie}: cmdvals has no 'ie'; it has a, id"),
        ("{}", "{}: only a plain name in braces is filled in (a brace of its own is written twice)"),
        ("{id:>99}", "{id}: only a plain name in braces is filled in (a brace of its own is written twice)"),
        ("{id.x}", "{id.x}: only a plain name in braces is filled in (a brace of its own is written twice)"),
    ],
)
def test_placeholders_of_cmdvals(text: str, problem: str) -> None:
    assert jobchecks.placeholder_problem(text, {"id": 5, "a": "b"}) == problem


def test_arguments_that_grow_too_long_are_refused_before_they_are_made() -> None:
    problem = jobchecks.placeholder_problem("{a}" * 100_000, {"a": "x" * 1_000_000})
    assert problem == "is longer than 1048576 characters once it is filled in with cmdvals"


@given(st.text(st.sampled_from("{}ab:!.0 "), max_size=10))
def test_what_is_let_through_can_be_filled_in(text: str) -> None:
    if not jobchecks.placeholder_problem(text, {"a": "x", "b": 1}):
        assert len(text.format(a="x", b=1)) <= len(text)


@pytest.mark.parametrize("text", ["", "a b", "'a b' \"c\" \\d", "<FILE:x> <ENV:HOME>/x", "it\\'s", "{x} $HOME `ls`"])
def test_arguments_that_can(text: str) -> None:
    assert jobchecks.arguments_problem(text) == ""


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "0dd4b1f2-8a3c_isr_12_903342",
        "it is fine",
        "µ-calib",
        "a.b",
        ".hidden",
        "-x",
        "a" * jobchecks.NAME_MAX_BYTES,
    ],
)
def test_names_that_can_be_used(name: str) -> None:
    assert jobchecks.name_problem(name) == ""


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "must not be empty"),
        ("a" * (jobchecks.NAME_MAX_BYTES + 1), "is longer than 200 bytes"),
        ("é" * 101, "is longer than 200 bytes"),
        (" a", "' a' begins or ends with a space"),
        ("a\n", "'a\\n' begins or ends with a space"),
        ("a\nb", "contains the control character U+000A"),
        ("a\x1b[2Jb", "contains the control character U+001B"),
        ("a\u2028b", "contains the control character U+2028"),
        ("a/b", "'a/b' contains a slash"),
        ("..", "'..' would name a folder ('.' or '..')"),
    ],
)
def test_names_that_cannot(name: str, problem: str) -> None:
    assert jobchecks.name_problem(name) == problem


def test_name_of_a_run_may_have_slashes_inside() -> None:
    assert jobchecks.name_problem("u/op/demo/20260101T000000Z", slashes=True) == ""
    assert jobchecks.name_problem("/u/op", slashes=True) == "'/u/op' begins with a slash"
    assert jobchecks.name_problem("u/../op", slashes=True) == "'u/../op' would name a folder ('.' or '..')"


@given(st.text(max_size=30))
def test_no_name_that_passes_leaves_its_folder_or_its_line(name: str) -> None:
    if not jobchecks.name_problem(name):
        assert "/" not in name
        assert name not in ("", ".", "..")
        assert len(name.splitlines()) == 1


def test_label_has_nothing_of_which_the_summary_is_made() -> None:
    assert jobchecks.label_problem("isr") == ""
    assert jobchecks.label_problem("a:1") == "'a:1' contains ':' or ';', of which the run summary is made"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("HOME", ""),
        ("BASH_FUNC_x%%", ""),
        ("", "a variable needs a name"),
        ("A=B", "'A=B' contains '='"),
        ("A\nB", "contains the control character U+000A"),
    ],
)
def test_names_of_variables(name: str, problem: str) -> None:
    assert jobchecks.env_name_problem(name) == problem


@pytest.mark.parametrize(
    ("fields", "problems"),
    [
        ({"request_memory": 0}, [("request_memory", "must be at least 1, but is 0")]),
        ({"request_cpus": -1, "request_disk": 0}, [("request_cpus", "must be at least 1, but is -1"),
                                                   ("request_disk", "must be at least 1, but is 0")]),
        ({"request_memory": 5, "request_memory_max": 4},
         [("request_memory_max", "is 4 MB, less than request_memory (5 MB)")]),
        ({"memory_multiplier": 0.5}, [("memory_multiplier", "must be at least 1, but is 0.5")]),
        ({"number_of_retries": -1}, [("number_of_retries", "must be at least 0, but is -1")]),
        ({"retry_unless_exit": [1, 256]}, [("retry_unless_exit", f"256 {NO_CODE}")]),
        ({"retry_unless_exit": -65}, [("retry_unless_exit", f"-65 {NO_CODE}")]),
        ({"abort_on_value": 300}, [("abort_on_value", f"300 {NO_CODE}")]),
        ({"abort_on_value": 9, "abort_return_value": -1},
         [("abort_return_value", "-1 is not an exit code (0 to 255)")]),
        ({"request_walltime": "1:2:3:4"},
         [("request_walltime", "'1:2:3:4' is not a number of minutes and not [[HH:]MM:]SS")]),
        ({"request_walltime": 0}, [("request_walltime", "a walltime of 0 leaves no time to run")]),
        ({"queue": ""}, [("queue", "must not be empty; leave it out")]),
        ({"queue": "a\nb"}, [("queue", "contains the control character U+000A")]),
        ({"accounting_group": "x" * 5000},
         [("accounting_group", "is 5000 characters long; at most 4096 are allowed")]),
        ({"pre_cmdline": " "}, [("pre_cmdline", "must not be empty; leave it out")]),
        ({"post_cmdline": "a\nb"}, [("post_cmdline", "contains the control character U+000A")]),
        ({"working_directory": "data"}, [("working_directory", "'data' is not an absolute path")]),
        ({"executable": ""}, [("executable", "must not be empty; leave it out")]),
    ],
)  # fmt: skip
def test_numbers_and_short_texts_that_cannot_be(fields: dict[str, Any], problems: list[tuple[str, str]]) -> None:
    assert jobchecks.scalar_problems(Job(name="j", **fields)) == problems


def test_numbers_and_short_texts_at_their_limits() -> None:
    job = Job(
        name="j",
        executable="/bin/true",
        request_memory=1,
        request_memory_max=1,
        memory_multiplier=1,
        request_cpus=1,
        request_disk=1,
        request_walltime="00:30",
        number_of_retries=0,
        retry_unless_exit=[0, 255, -64],
        abort_on_value=-9,
        abort_return_value=0,
        priority="JobPrio + 1",
        pre_cmdline="mkdir x\n",
        post_cmdline="x" * 5000,
    )

    assert jobchecks.scalar_problems(job) == []
    assert jobchecks.scalar_warnings(job) == []


def test_what_has_no_effect_is_said() -> None:
    job = Job(name="j", request_memory_max=5, memory_multiplier=2, abort_return_value=1)

    assert jobchecks.scalar_warnings(job) == [
        "request_memory_max has no effect without request_memory",
        "memory_multiplier has no effect without request_memory",
        "abort_return_value has no effect without abort_on_value",
    ]


def test_depth_of_free_mappings() -> None:
    def nested(depth: int) -> object:
        return 0 if not depth else {"x": [nested(depth - 2)]} if depth > 1 else [0]

    assert not jobchecks.is_nested_too_deep(nested(jobchecks.NEST_MAX))
    assert jobchecks.is_nested_too_deep(nested(jobchecks.NEST_MAX + 1))


def test_files_that_arguments_name() -> None:
    assert jobchecks.files_in("a <FILE:b> '<FILE:c d>' <FILE:> <ENV:E>") == ["b", "c d", ""]


@pytest.mark.parametrize("name", ["_bpsd_run", "BPSD_TOKEN", "BPSD_JOB", "A=B", ""])
def test_names_of_variables_that_are_not_for_jobs(name: str) -> None:
    assert jobchecks.env_name_problem(name)


def test_a_value_that_linux_cannot_pass_on_is_refused() -> None:
    most = jobchecks.ENV_MAX_BYTES - len("NAME=") - 1
    assert jobchecks.env_value_problem("NAME", "x" * most) == ""
    assert "put it into a file" in jobchecks.env_value_problem("NAME", "x" * (most + 1))
    assert "bytes" in jobchecks.env_value_problem("NAME", "\u2603" * (most // 3 + 1))
    assert jobchecks.env_name_problem("BPSD_SOCKET") == ""
