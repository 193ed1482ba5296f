"""What goes to Slurm: options, entries of chunks that a real shell reads, and when to ask next."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.workflow import File, Job
from bpsd_adapters.cmdline import CommandError
from bpsd_adapters.slurm.chunks import Plan
from bpsd_adapters.slurm.cluster import Cluster, Outcome
from bpsd_adapters.slurm.commands import RunFacts, entry
from bpsd_adapters.slurm.options import Defaults, OptionError, memory_for, options_of
from bpsd_adapters.slurm.pacing import Window, next_look
from bpsd_adapters.slurm.parsing import parse_exits
from bpsd_adapters.slurm.scripts import (
    CALL_OFF,
    COLLECT,
    MAKE_RUN,
    NOT_CLAIMED,
    NOT_WRITTEN,
    SUBMIT,
    SUBMIT_ALL,
    VOID,
    WRAPPER,
)
from bpsd_adapters.slurm.settings import SlurmConfig
from bpsd_adapters.transports.scripted import ScriptedTransport, answer

FACTS = RunFacts("t" * 20, "run", "/run", 1, {}, {"f": File(name="f", src_uri="/data/a b")}, {"ALL": "1"})
TEXT = st.text(st.characters(exclude_characters="\0", categories=("L", "N", "P", "S", "Z", "Cc")), max_size=30)


def job(**fields: Any) -> Job:
    return Job(name=fields.pop("name", "a_1"), label="a", **{"executable": "/bin/true", **fields})


def run_in(folder: Path, lines: str, index: int, **environment: str) -> subprocess.CompletedProcess[str]:
    """Let the wrapper run an entry as Slurm would."""
    for name in ("chunks", "claim", "exits/1", "out", "slurm", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "chunks" / "1.jobs").write_text(lines)
    (folder / "wrapper.sh").write_text(WRAPPER)
    variables = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(index), **environment}
    return subprocess.run(
        ["sh", folder / "wrapper.sh", folder, "1"],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_fields_become_options() -> None:
    asked = options_of(
        job(
            request_memory=100,
            request_cpus=2,
            request_walltime="1:30",
            queue="big",
            accounting_group="lsst",
            profile={"constraint": "haswell", "exclusive": True, "--gres": "gpu:1", "reservation": None},
            when_to_mail="error",
            mail_to="me@example.org",
        ),
        Defaults(partition="small", qos="normal", options={"constraint": "any"}),
    )

    assert asked == (
        "--account=lsst",
        "--constraint=haswell",
        "--cpus-per-task=2",
        "--exclusive",
        "--gres=gpu:1",
        "--mail-type=FAIL",
        "--mail-user=me@example.org",
        "--mem=100M",
        "--partition=big",
        "--qos=normal",
        "--time=2",
    )


@pytest.mark.parametrize("key", ["array", "job_name", "--output", "n", "Bad", "dependency", "x y"])
def test_options_that_bpsd_needs_or_that_are_none_are_refused(key: str) -> None:
    with pytest.raises(OptionError):
        options_of(job(profile={key: "1"}), Defaults())


@given(st.integers(1, 10**6), st.floats(1.0, 4.0), st.none() | st.integers(1, 10**7), st.integers(0, 5))
def test_memory_grows_up_to_its_limit(memory: int, factor: float, limit: int | None, retries: int) -> None:
    wanted = job(request_memory=memory, memory_multiplier=factor, request_memory_max=limit)

    asked = [memory_for(wanted, n) or 0 for n in range(retries + 1)]

    assert asked[0] == memory
    assert asked == sorted(asked)
    assert limit is None or asked[-1] <= max(limit, memory)


@given(st.lists(TEXT.filter(lambda t: "<" not in t), max_size=3), TEXT.filter(lambda t: "<" not in t))
def test_a_shell_reads_nothing_in_what_is_literal(words: list[str], value: str) -> None:
    """Arguments and variables of any characters, newlines too, arrive as they were."""
    one = job(name="odd", arguments=shlex.join(words), environment={"ODD": value})
    text = entry(FACTS, one, 0, 1, 5, None)
    assert all(line.startswith((" ", "@")) for line in text.split("\n")[:-1])
    body = "\n".join(line[1:] for line in text.split("\n")[1:-1])
    program = body.replace("exec /bin/true", "show") + '\nshow() { printf "%s\\0" "$ODD" "$@"; }\nbpsd_env\nbpsd_job'
    done = subprocess.run(["bash", "-c", program], capture_output=True, check=True, timeout=60)

    assert done.stdout.decode().split("\0")[:-1] == [value, *words]


def test_the_wrapper_runs_a_job_once_and_says_how_it_ended(tmp_path: Path) -> None:
    script = "-c 'echo $ONE; echo no >&2; exit 5'"
    one = job(executable="/bin/sh", arguments=script, environment={"ONE": "<ENV:HOME>/x"}, post_cmdline="echo post")
    text = entry(FACTS._replace(folder=str(tmp_path)), one, 3, 2, 0, None)

    done = run_in(tmp_path, text, 0, HOME="/h")
    assert done.returncode == 5, done.stderr
    assert (tmp_path / "out/a_1.2.out").read_text() == "/h/x\npost\n"
    assert (tmp_path / "out/a_1.2.err").read_text() == "no\n"
    node, attempt, job_id, restarts, code, *_ = (tmp_path / "exits/1/0").read_text().split(" ")
    assert (node, attempt, job_id, restarts, code) == ("3", "2", "7", "0", "5")

    other = run_in(tmp_path, text, 0, HOME="/h", SLURM_JOB_ID="8")
    assert other.returncode == NOT_CLAIMED, "only what ran may be COMPLETED"
    assert "7 has the claim" in other.stderr
    again = run_in(tmp_path, text, 0, HOME="/h", SLURM_RESTART_COUNT="1")
    assert again.returncode == 5
    assert (tmp_path / "out/a_1.2.out").read_text() == "/h/x\npost\n" * 2
    assert " 7 1 5 " in (tmp_path / "exits/1/0").read_text()


def test_what_succeeded_is_not_run_again_by_a_requeue(tmp_path: Path) -> None:
    text = entry(FACTS._replace(folder=str(tmp_path)), job(executable="/bin/echo", arguments="x"), 0, 1, 0, None)
    for restart in ("0", "1"):
        assert run_in(tmp_path, text, 0, SLURM_RESTART_COUNT=restart).returncode == 0
    assert (tmp_path / "out/a_1.1.out").read_text() == "x\n"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"environment": {"A": "<ENV:NOT_THERE>"}}, "its environment cannot be made"),
        ({"working_directory": "/not/there"}, "there is no folder /not/there"),
        ({"pre_cmdline": "false"}, "pre_cmdline failed"),
    ],
)
def test_what_keeps_a_job_from_running_is_said(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    text = entry(FACTS._replace(folder=str(tmp_path)), job(**fields), 0, 1, 0, None)
    assert run_in(tmp_path, text, 0).returncode == 1
    written = (tmp_path / "exits/1/0").read_text()
    assert said in written
    assert written.split(" ")[4] == "-"


def test_files_of_the_workflow_are_put_in() -> None:
    one = job(arguments="<FILE:f>", pre_cmdline="cat <FILE:f> ${X} <ENV:Y>")
    text = entry(FACTS, one, 0, 1, 0, None)

    assert "exec /bin/true '/data/a b'" in text
    assert "${Y}" in text
    with pytest.raises(CommandError, match="names no file"):
        entry(FACTS, job(arguments="<FILE:g>"), 0, 1, 0, None)
    with pytest.raises(CommandError, match="no name of a variable"):
        entry(FACTS, job(environment={"A B": "1"}), 0, 1, 0, None)


def sh(
    script: str, *arguments: object, input: str = "", path: str = "/usr/bin:/bin"
) -> subprocess.CompletedProcess[str]:
    argv = ["sh", "-c", script, "sh", *map(str, arguments)]
    return subprocess.run(
        argv, input=input, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_chunk_is_submitted_once_or_called_off(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text("#!/bin/sh\necho called >>" + str(tmp_path / "calls") + "\necho '42;bed'\n")
    (tools / "sbatch").chmod(0o755)
    (tmp_path / "chunks").mkdir()
    path = f"{tools}:/usr/bin:/bin"

    parts = [sh(SUBMIT, tmp_path, 1, 4, "--parsable", input="jobs"[:size], path=path) for size in range(4)]
    first = sh(SUBMIT, tmp_path, 1, 4, "--parsable", input="jobs", path=path)
    second = sh(SUBMIT, tmp_path, 1, 4, "--parsable", input="jobs", path=path)
    off = sh(CALL_OFF, tmp_path, 1, 2)
    late = sh(SUBMIT, tmp_path, 2, 4, "--parsable", input="jobs", path=path)

    assert {part.returncode for part in parts} == {NOT_WRITTEN}, "of a part nothing is submitted"
    assert (first.returncode, first.stdout) == (0, "42;bed\n")
    assert off.stdout.splitlines() == ["1 id 42;bed", "2 off"]
    assert (second.returncode, late.returncode) == (73, 73)
    assert (tmp_path / "calls").read_text() == "called\n"


def test_a_wrapper_that_came_in_part_is_not_put_in_place(tmp_path: Path) -> None:
    assert sh(MAKE_RUN, tmp_path / "run", len(WRAPPER), input=WRAPPER[:500]).returncode != 0
    assert not (tmp_path / "run" / "wrapper.sh").exists()
    assert sh(MAKE_RUN, tmp_path / "run", len(WRAPPER), input=WRAPPER).returncode == 0
    assert (tmp_path / "run" / "wrapper.sh").read_text() == WRAPPER


@pytest.mark.parametrize(("end", "tried"), [("kill -9 $$", True), ("exit 1", False)])
async def test_an_sbatch_that_was_killed_said_nothing_of_what_slurm_has(tmp_path: Path, end: str, tried: bool) -> None:
    (tmp_path / "chunks").mkdir()
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{end}\n")
    (tmp_path / "sbatch").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"

    one = sh(SUBMIT, tmp_path, 1, 4, "--parsable", input="jobs", path=path)
    whole = sh(SUBMIT_ALL, tmp_path, input="2 0 '' --parsable\n", path=path)

    cluster = Cluster(ScriptedTransport(lambda _, __: answer("", one.returncode)), SlurmConfig(work_dir="/w"))
    done = await cluster.submit("/w/run", Plan(1, "bps-x-1", "a", 1, (), b""))
    assert done.outcome is (Outcome.DOUBT if tried else Outcome.REFUSED)
    assert whole.returncode == 1
    assert (tmp_path / "chunks/2.try").exists() is tried


def test_a_claim_that_was_taken_back_keeps_the_job_from_running(tmp_path: Path) -> None:
    text = entry(FACTS._replace(folder=str(tmp_path)), job(), 0, 1, 0, None)
    other = entry(FACTS._replace(folder=str(tmp_path)), job(), 1, 1, 1, None)
    run_in(tmp_path, text + other, 1)

    taken = sh(VOID, tmp_path, input="0.1\n1.1\n")
    done = run_in(tmp_path, text + other, 0, SLURM_JOB_ID="9")

    assert taken.stdout.splitlines() == ["0.1 void", "1.1 7"]
    assert "void has the claim" in done.stderr
    assert done.returncode == NOT_CLAIMED
    assert not (tmp_path / "exits/1/0").exists()


def test_records_are_collected_however_many_there_are(tmp_path: Path) -> None:
    """More than a command line may hold; those that are not there are no error."""
    folder = tmp_path / "t" / "exits" / "all"
    folder.mkdir(parents=True)
    paths = [f"t/exits/all/{number}" for number in range(60_000)]
    for number in (0, 59_999):
        (folder / str(number)).write_text(f"{number} 1 7 0 0 1 2 n1 .\n")

    done = sh(COLLECT, tmp_path, input="\n".join(paths))

    assert done.stdout.endswith("@end\n")
    assert {path: record.node for path, record in parse_exits(done.stdout).items()} == {paths[0]: 0, paths[-1]: 59_999}


@given(
    interval=st.floats(0.1, 60),
    idle=st.floats(60, 300),
    before=st.floats(0, 300),
    cost=st.floats(0, 60),
    changed=st.booleans(),
    failures=st.integers(0, 50),
    age=st.none() | st.integers(0, 600),
)
def test_the_site_is_spared(
    interval: float, idle: float, before: float, cost: float, changed: bool, failures: int, age: int | None
) -> None:
    """A slow answer, as under rate limiting, makes the next look later; nothing makes it sooner than the interval."""
    delay = next_look(
        interval, idle, before_s=before, cost_s=cost, changed=changed, failures=failures, min_job_age_s=age
    )

    assert delay >= interval * 0.999
    if not failures:
        assert delay >= 20 * cost
        assert delay <= max(idle, 20 * cost)
        if age:
            assert delay <= max(age / 3, interval, 20 * cost) * 1.001


@given(st.lists(st.integers(0, 2000) | st.none(), max_size=30))
def test_a_window_shrinks_and_grows_and_never_closes(events: list[int | None]) -> None:
    window = Window(1000)
    window.limit(array_size=1001, job_count=5000, association=None)
    assert window.now == 500
    for in_queue in events:
        before = window.now
        if in_queue is None:
            window.taken()
            assert before <= window.now <= 500
        else:
            window.refused(in_queue)
            assert 1 <= window.now <= before
            assert window.now == 1 or window.now <= max(in_queue, 1)
