"""A job of the document becomes a program, arguments, an environment and a folder; or a clear refusal."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.workflow import Executable, File, Job
from bpsd_adapters.cmdline import CommandError, split_arguments
from bpsd_adapters.local.commands import Commander, job_variables, run_variables

FILES = {"butler": File(name="butler", src_uri="file:///repo/butler.yaml"), "made": File(name="made")}
EXECUTABLES = {"pipetask": Executable(name="pipetask", src_uri="<ENV:TOOLS>/pipetask")}


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    for name in ("pipetask", "other"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "plain").write_text("no program")
    return tmp_path


def commander(tools: Path, **environment: str) -> Commander:
    base = {"PATH": f"{tools}:/bin", "TOOLS": str(tools), "NOTIFY_SOCKET": "/run/notify", "BPSD_TOKEN": "outer"}
    marks = run_variables("t0", "u/op/run", "/runs/t0", 1)
    return Commander(EXECUTABLES, FILES, environment, base, str(tools), marks)


def argv(tools: Path, **fields: object) -> list[str]:
    job = Job(name="j", executable="true", **fields)  # type: ignore[arg-type]
    return commander(tools, SPACE="a b").command(job, job_variables(job, 2, 1, 0)).argv[1:]


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("run -b x", ["run", "-b", "x"]),
        ("""-d "visit=1 AND band='r'" '' """, ["-d", "visit=1 AND band='r'", ""]),
        (r"a\ b $HOME `id` *", ["a b", "$HOME", "`id`", "*"]),
        ("--butler=<FILE:butler> <FILE:made>", ["--butler=/repo/butler.yaml", "made"]),
        ("<ENV:SPACE> x<ENV:SPACE>y", ["a b", "xa by"]),
        ("<ENV:BPSD_JOB>.<ENV:BPSD_ATTEMPT> <ENV:BPSD_RUN>", ["j.2", "u/op/run"]),
        ("awk {print}", ["awk", "{print}"]),
    ],
)
def test_arguments(tools: Path, text: str, words: list[str]) -> None:
    assert argv(tools, arguments=text) == words


def test_cmdvals_fill_in_arguments(tools: Path) -> None:
    assert argv(tools, arguments="-n {n} '{s}'", cmdvals={"n": 3, "s": "a b"}) == ["-n", "3", "a b"]


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
def test_the_quick_way_to_split_is_the_shells(text: str) -> None:
    try:
        expected = shlex.split(text)
    except ValueError:
        with pytest.raises(CommandError):
            split_arguments(text)
    else:
        assert split_arguments(text) == expected


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"arguments": "'open"}, "arguments", "no closing quotation"),
        ({"arguments": "<FILE:ghost>"}, "arguments", "<FILE:ghost> names no file of the workflow"),
        ({"arguments": "<ENV:GHOST>"}, "arguments", "<ENV:GHOST> is not set where the job runs"),
        ({"arguments": "{ghost}", "cmdvals": {"n": 1}}, "arguments", "cannot be filled in with cmdvals"),
        ({"environment": {"A": "<ENV:GHOST>"}}, "environment", "<ENV:GHOST> is not set"),
        ({"pre_cmdline": "cat <FILE:ghost>"}, "pre_cmdline", "<FILE:ghost> names no file"),
        ({"executable": None}, "executable", "the job has none"),
        ({"executable": "/no/such/program"}, "executable", "there is no program /no/such/program$"),
        ({"executable": "ghost"}, "executable", r"there is no program ghost in PATH \(.*:/bin\)"),
        ({"executable": "./plain"}, "executable", r"permission denied: /\S*/plain is not an executable file"),
        ({"executable": "./ghost"}, "executable", r"there is no program \./ghost in /"),
        ({"working_directory": "relative"}, "working_directory", "'relative' is not an absolute path"),
    ],
)
def test_what_cannot_be_executed(tools: Path, fields: dict[str, object], field: str, message: str) -> None:
    job = Job(**{"name": "j", "executable": "true"} | fields)  # type: ignore[arg-type]
    with pytest.raises(CommandError, match=message) as caught:
        commander(tools).command(job, {})
    assert caught.value.field == field


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_programs_by_name_path_and_declaration(tools: Path) -> None:
    def program(name: str, folder: str | None = None) -> str:
        return commander(tools).command(Job(name="j", executable=name, working_directory=folder), {}).program

    assert program("other") == f"{tools}/other"
    assert program("./other") == f"{tools}/other"
    assert program(f"file://{tools}/other") == f"{tools}/other"
    assert program("pipetask") == f"{tools}/pipetask"
    with pytest.raises(CommandError, match=r"there is no program \./other in /tmp"):
        program("./other", "/tmp")


def test_environments_are_laid_over_one_another(tools: Path) -> None:
    job = Job(
        name="j", label="isr", executable="true", environment={"PATH": "<ENV:RUN>:<ENV:PATH>", "BPSD_JOB": "mine"}
    )
    command = commander(tools, RUN="/r:<ENV:TOOLS>").command(job, job_variables(job, 3, 2, 512))
    environment = command.environment

    assert environment["PATH"] == f"/r:{tools}:{tools}:/bin"
    assert environment["PWD"] == command.folder == str(tools)
    assert "NOTIFY_SOCKET" not in environment
    assert environment["BPSD_TOKEN"] == "t0"
    assert (environment["BPSD_LABEL"], environment["BPSD_ATTEMPT"]) == ("isr", "3")
    assert (environment["BPSD_CPUS"], environment["BPSD_MEMORY_MB"]) == ("2", "512")
    assert (environment["BPSD_RUN"], environment["BPSD_RUN_FOLDER"]) == ("u/op/run", "/runs/t0")


def test_one_job_does_not_see_the_variables_of_another(tools: Path) -> None:
    two = commander(tools)
    two.command(Job(name="a", executable="true", environment={"A": "1"}), {"BPSD_JOB": "a"})

    assert "A" not in two.command(Job(name="b", executable="true"), {}).environment


def test_commands_around_a_job_are_the_shells(tools: Path) -> None:
    job = Job(name="j", executable="true", pre_cmdline="cat <FILE:made> <ENV:HOME>/x", post_cmdline="echo 'done'")
    quoted = Commander({}, {"made": File(name="made", src_uri="/a b")}, {}, {"PATH": "/bin"}, "/tmp", {})
    command = quoted.command(job, {})

    assert command.before == ["/bin/sh", "-c", "cat '/a b' ${HOME}/x"]
    assert command.after == ["/bin/sh", "-c", "echo 'done'"]


def test_without_a_path_the_systems_default_is_searched(tools: Path) -> None:
    bare = Commander({}, {}, {}, {}, "/", {}).command(Job(name="j", executable="true"), {})

    assert bare.program in [f"{entry}/true" for entry in os.defpath.split(":")]
