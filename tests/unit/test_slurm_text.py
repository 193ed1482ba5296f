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
from bpsd_adapters.slurm.answers import Outcome, Submission, parse_called_off, read_submission, read_submissions
from bpsd_adapters.slurm.commands import RunFacts, entry
from bpsd_adapters.slurm.options import Defaults, MemoryOption, OptionError, memory_for, options_of
from bpsd_adapters.slurm.pacing import Window, next_look
from bpsd_adapters.slurm.parsing import parse_exits
from bpsd_adapters.slurm.scripts import (
    CALL_OFF,
    CANCEL,
    COLLECT,
    CONTROL,
    DISCARD,
    MAKE_RUN,
    NOT_CLAIMED,
    SUBMIT,
    SUBMIT_ALL,
    VOID,
    WRAPPER,
    clean,
)

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


@pytest.mark.parametrize(
    ("memory", "options", "profile", "expected"),
    [
        ("per_node", {}, {}, ["--mem=1000M"]),
        ("per_cpu", {}, {}, ["--mem-per-cpu=334M"]),
        ("none", {}, {}, []),
        ("none", {"mem": "4G"}, {}, ["--mem=4G"]),
        ("per_node", {}, {"mem": None}, []),
        ("per_node", {}, {"mem": False}, []),
        ("per_node", {"mem-per-cpu": "1G"}, {}, ["--mem=1000M"]),
        ("per_node", {}, {"mem_per_cpu": "2G"}, ["--mem-per-cpu=2G"]),
        ("per_cpu", {}, {"mem-per-gpu": "2G"}, ["--mem-per-gpu=2G"]),
        ("per_node", {"exclusive": True}, {"exclusive": None}, ["--mem=1000M"]),
    ],
)
def test_memory_is_asked_for_as_the_site_wants_it(
    memory: MemoryOption, options: dict[str, Any], profile: dict[str, Any], expected: list[str]
) -> None:
    wanted = job(request_memory=1000, request_cpus=3, profile=profile)
    asked = options_of(wanted, Defaults(options=options, memory=memory))
    assert [option for option in asked if not option.startswith("--cpus")] == expected


@pytest.mark.parametrize(
    "key",
    [
        "array",
        "clusters",
        "help",
        "usage",
        "version",
        "test-only",
        "export-file",
        "job_name",
        "--output",
        "n",
        "Bad",
        "dependency",
        "x y",
    ],
)
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
    program = body.replace("exec /bin/true", "show") + '\nshow() { printf "%s\\0" "$ODD" "$@"; }\n_bpsd_env\n_bpsd_job'
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
    with pytest.raises(CommandError, match="not a name of a variable"):
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

    assert {read(part).outcome for part in parts} == {Outcome.NOT_WRITTEN}, "of a part nothing is submitted"
    assert read(first) == (Outcome.SUBMITTED, 42, "")
    assert parse_called_off(off.stdout) == {1: ("id", 42), 2: ("off", None)}
    assert (read(second).outcome, read(late).outcome) == (Outcome.DOUBT, Outcome.DOUBT)
    assert (tmp_path / "calls").read_text() == "called\n"


def read(done: subprocess.CompletedProcess[str]) -> Submission:
    return read_submission(done.stdout, done.stderr)


def tools_in(folder: Path, **scripts: str) -> str:
    """A PATH on which these tools come first; ``chunks`` is there too."""
    (folder / "tools").mkdir()
    (folder / "chunks").mkdir()
    for name, script in scripts.items():
        (folder / "tools" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "tools" / name).chmod(0o755)
    return f"{folder / 'tools'}:/usr/bin:/bin"


@pytest.mark.parametrize(
    ("sbatch", "outcome", "job_id", "called_off"),
    [
        ("echo '*** Welcome ***'; echo; echo 42", Outcome.SUBMITTED, 42, ("id", 42)),
        ("echo '17 nodes are down'; echo ' 42;bed '; echo bye", Outcome.SUBMITTED, 42, ("id", 42)),
        ("echo Usage: sbatch; echo more", Outcome.DOUBT, 0, ("tried", None)),
        ("true", Outcome.DOUBT, 0, ("tried", None)),
        ("echo 42; exit 3", Outcome.DOUBT, 0, ("tried", None)),
        ("echo 42; exit 255", Outcome.DOUBT, 0, ("tried", None)),
        ("echo sbatch: error: Invalid --time specification >&2; exit 255", Outcome.REFUSED, 0, ("tried", None)),
        ("kill -9 $$", Outcome.DOUBT, 0, ("tried", None)),
        ("exit 1", Outcome.DOUBT, 0, ("tried", None)),
    ],
)
def test_an_answer_of_any_form_is_read_and_never_breaks(
    tmp_path: Path, sbatch: str, outcome: Outcome, job_id: int, called_off: tuple[str, int | None]
) -> None:
    """Also by the next process, which finds the files of one that was killed right after sbatch."""
    path = tools_in(tmp_path, sbatch=sbatch)
    done = read(sh(SUBMIT, tmp_path, 1, 4, "--parsable", input="jobs", path=path))
    assert (done.outcome, done.job_id) == (outcome, job_id)
    assert parse_called_off(sh(CALL_OFF, tmp_path, 1).stdout) == {1: called_off}


@pytest.mark.parametrize("kept", ["*** Welcome ***\n42\n", "Usage: sbatch\n", "", "\n\n", "42\nbye\n"])
def test_the_id_file_of_an_older_version_is_read_or_left_in_doubt(tmp_path: Path, kept: str) -> None:
    (tmp_path / "chunks" / "1.try").mkdir(parents=True)
    (tmp_path / "chunks" / "1.id").write_text(kept)
    said = parse_called_off(sh(CALL_OFF, tmp_path, 1).stdout)
    assert said == {1: ("id", 42) if "42" in kept else ("tried", None)}


def test_of_a_garbled_answer_nothing_is_taken() -> None:
    assert parse_called_off("1 id\nid 7\n\n2 id x\nWelcome\n3 id 7;x\n4 off now\n5 off\n") == {5: ("off", None)}
    for stdout in ("", "ended", "ended x\n42\n", "42\n", "tried\n42\n"):
        assert read_submission(stdout, "").outcome is Outcome.DOUBT


@pytest.mark.parametrize(("end", "outcome"), [("kill -9 $$", Outcome.DOUBT), ("exit 255", Outcome.REFUSED)])
def test_jobs_handed_over_stop_at_the_first_that_is_not_submitted(tmp_path: Path, end: str, outcome: Outcome) -> None:
    path = tools_in(tmp_path, sbatch=f'case "$*" in *bad*) {end} ;; esac; echo banner; echo $$')
    lines = "1 0 '' --parsable\n2 1 1 --bad\n3 2 1 --parsable\n"
    done = sh(SUBMIT_ALL, tmp_path, input=lines, path=path)
    found, why = read_submissions(done.stdout, done.stderr)
    assert list(found) == [1]
    assert why is not None
    assert why.outcome is outcome
    sh(DISCARD, tmp_path, input="2\n")
    (tmp_path / "tools" / "sbatch").write_text("#!/bin/sh\necho 7\n")
    done = sh(SUBMIT_ALL, tmp_path, input=lines, path=path)
    assert read_submissions(done.stdout, done.stderr) == ({1: found[1], 2: 7, 3: 7}, None)


def test_only_the_files_of_the_chunks_that_are_named_go(tmp_path: Path) -> None:
    path = tools_in(tmp_path, sbatch="echo 42")
    for chunk in (1, 12):
        sh(SUBMIT, tmp_path, chunk, 4, "--parsable", input="jobs", path=path)
    (tmp_path / "chunks" / "all.jobs").write_text("x")
    sh(DISCARD, tmp_path, input="1\n../12\n*\nall\n\n")
    assert sorted(p.name for p in (tmp_path / "chunks").iterdir()) == [
        "12.err", "12.id", "12.jobs", "12.said", "12.try", "all.jobs",
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "exits").iterdir()] == ["12"]


def test_an_order_reaches_only_what_the_queue_shows_under_its_name(tmp_path: Path) -> None:
    """Ids are given again: one that bears another name now is another job."""
    calls = tmp_path / "calls"
    tool = f'echo "$0 $*" | sed "s|.*/||" >>{calls}'
    path = tools_in(
        tmp_path, squeue="echo '7|bps-a-1.x'; echo '7|bps-a-1.x'; echo '8|mine'", scancel=tool, scontrol=tool
    )
    sh(CANCEL, input="7|bps-a-1.x\n8|bps-a-2\n9|bps-a-3\n", path=path)
    sh(CONTROL, "hold", input="7_3|bps-a-1.x\n7_4|bps-a-1.x\n8_0|bps-a-2\n", path=path)
    sh(CANCEL, input="8|bps-a-2\n", path=path)
    sh(CANCEL, input="", path=path)
    assert calls.read_text().splitlines() == ["scancel 7", "scontrol hold 7_3,7_4"]
    (tmp_path / "tools" / "squeue").write_text("#!/bin/sh\necho down >&2; exit 1\n")
    assert sh(CANCEL, input="7|bps-a-1.x\n", path=path).returncode == 1


def test_variables_that_change_what_tools_do_are_unset_and_those_of_the_site_stay() -> None:
    given = {
        "PATH": "/usr/bin:/bin",
        "SBATCH_WAIT": "1",
        "SBATCH_ARRAY_INX": "0-9",
        "SQUEUE_FORMAT": "%i",
        "SACCT_FORMAT": "JobID",
        "SLURM_CLUSTERS": "other",
        "SLURM_EXIT_ERROR": "7",
        "SLURM_CONF": "/etc/x",
        "SLURM_TIME_FORMAT": "relative",
        "SBATCH_ACCOUNT": "lsst",
        "SBATCH_COMMENT": "a\nSLURM_FAKE=1",
        "OTHER": "1",
    }
    script = clean(["SLURM_TIME_FORMAT"]) + "exec env"
    done = subprocess.run(["sh", "-c", script], env=given, capture_output=True, text=True, check=True, timeout=60)
    left = {line.partition("=")[0] for line in done.stdout.splitlines()} - {"PWD", "_", "SHLVL", "OLDPWD"}
    assert left == {"PATH", "SLURM_CONF", "SLURM_TIME_FORMAT", "SBATCH_ACCOUNT", "OTHER"}


def test_a_wrapper_that_came_in_part_is_not_put_in_place(tmp_path: Path) -> None:
    assert sh(MAKE_RUN, tmp_path / "run", len(WRAPPER), input=WRAPPER[:500]).returncode != 0
    assert not (tmp_path / "run" / "wrapper.sh").exists()
    assert sh(MAKE_RUN, tmp_path / "run", len(WRAPPER), input=WRAPPER).returncode == 0
    assert (tmp_path / "run" / "wrapper.sh").read_text() == WRAPPER


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
