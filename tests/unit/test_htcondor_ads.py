"""What ads say of a run, the ids people write, and how text is quoted for HTCondor."""

from __future__ import annotations

import shlex
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.models import WmsStates
from bpsd.workflow import Executable, Group, Job, Workflow
from bpsd_adapters.htcondor import quoting
from bpsd_adapters.htcondor.classads import counts, literal, parse_ads, parse_columns, run_note, run_state
from bpsd_adapters.htcondor.observe import Ids, dag_file, observe_run
from bpsd_adapters.htcondor.submission import write_submission

MINE: dict[str, Any] = {"src_uri": "file:///opt/mine.sh", "transfer_executable": True}

AD: dict[str, Any] = {
    "ClusterId": 12,
    "ProcId": 0,
    "GlobalJobId": "sched#12.0#1795377024",
    "JobStatus": 2,
    "Iwd": "/home/op/runs/x",
    "UserLog": "run.dag.dagman.log",
    "QDate": 100,
    "EnteredCurrentStatus": 110,
    "bps_token": "abc",
    "bps_attempt_token": "abc.2",
    "DAG_NodesTotal": 5,
    "DAG_NodesDone": 2,
    "DAG_NodesFailed": 0,
    "DAG_JobsRunning": 1,
}


@pytest.mark.parametrize("text", [b"", b"\n", b"[\n]\n", b"[\n]\n\n"])
def test_no_ads_in_all_its_forms(text: bytes) -> None:
    assert parse_ads(text) == []


@pytest.mark.parametrize("text", [b"[\n{", b"-- Failed to fetch ads", b'[{"a":1}]\nWARNING', b"{}"])
def test_half_an_answer_is_none(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a list of ads"):
        parse_ads(text)


def test_columns_are_values_of_ads() -> None:
    line = b'12\ttrue\tundefined\t-3\t1.5\t"a \\"b\\"\\\\ \\n\\011\t"\n'

    assert parse_columns(line.replace(b'\t"\n', b'"\n'), ["a", "b", "c", "d", "e", "f"]) == [
        {"a": 12, "b": True, "d": -3, "e": 1.5, "f": 'a "b"\\ \n\t'}
    ]
    assert parse_columns(b"", ["a"]) == []
    for bad in (b"1\t2\n", b"half\n", b"Error: something\n"):
        with pytest.raises(ValueError, match="not"):
            parse_columns(bad, ["a"])


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, WmsStates.RUNNING),
        ({"JobStatus": 1}, WmsStates.PENDING),
        ({"JobStatus": 5}, WmsStates.HELD),
        ({"JobStatus": 3}, WmsStates.DELETED),
        ({"JobStatus": 4, "ExitCode": 0, "DAG_Status": 0}, WmsStates.SUCCEEDED),
        ({"JobStatus": 4, "ExitCode": 1, "DAG_Status": 2}, WmsStates.FAILED),
        ({"JobStatus": 4, "ExitBySignal": True, "ExitSignal": 9}, WmsStates.FAILED),
        ({"JobStatus": 4, "ExitCode": 0, "DAG_Status": 0, "DAG_NodesFailed": 1}, WmsStates.FAILED),
        ({"JobStatus": 99}, WmsStates.MISFIT),
    ],
)
def test_states_of_runs(changes: dict[str, Any], state: WmsStates) -> None:
    assert run_state({**AD, **changes}) is state


def test_a_hold_says_why() -> None:
    assert run_note({**AD, "JobStatus": 5, "HoldReason": "by hand", "HoldReasonCode": 1}) == "held: by hand (code 1.0)"


def test_counts_add_up() -> None:
    seen = counts(AD)

    assert seen is not None
    assert sum(seen.values()) == 5
    assert (seen[WmsStates.SUCCEEDED], seen[WmsStates.RUNNING], seen[WmsStates.PENDING]) == (2, 1, 2)


def test_what_is_on_its_way_out_of_the_queue_is_not_over() -> None:
    seen = observe_run({**AD, "JobStatus": 3}, "12.0", "queue")

    assert seen.state is None
    assert seen.note == "is being removed"


def test_a_run_that_its_final_job_calls_good_failed_if_a_job_did() -> None:
    ad = {**AD, "JobStatus": 4, "ExitCode": 0, "DAG_Status": 0}

    assert observe_run(ad, "12.0", "history").state is WmsStates.SUCCEEDED
    assert observe_run(ad, "12.0", "history", job_failed=True).state is WmsStates.FAILED
    assert observe_run(ad, "12.0", "history").attempt == 2


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("12", Ids(None, 12)),
        (" 12.0 ", Ids(None, 12)),
        ("sched#12.0#1795377024", Ids("sched", 12)),
        ("sched#12.0", Ids("sched", 12)),
        ("12.7", None),
        ("1e3", None),
        ("inf", None),
        ("", None),
        ("/home/op/runs/x", None),
    ],
)
def test_ids(text: str, ids: Ids | None) -> None:
    assert Ids.parse(text) == ids


def test_where_the_dag_is() -> None:
    assert dag_file(AD) == "/home/op/runs/x/run.dag"
    assert dag_file({**AD, "UserLog": "/other/y.dag.dagman.log"}) == "/other/y.dag"
    assert dag_file({}) is None


def _unquoted(text: str) -> list[str]:
    """HTCondor's own rules for arguments (condor_submit, "new" syntax), read back."""
    assert text[0] == text[-1] == '"'
    text = text[1:-1].replace('""', '"')
    words: list[str] = []
    word, quoted, started, at = "", False, False, 0
    while at < len(text):
        char = text[at]
        if char == "'" and quoted and text[at + 1 : at + 2] == "'":
            word, at = word + "'", at + 1
        elif char == "'":
            quoted, started = not quoted, True
        elif char in " \t" and not quoted:
            words += [word] if started or word else []
            word, started = "", False
        else:
            word += char
        at += 1
    return words + ([word] if started or word else [])


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), max_size=20), max_size=5)
)
def test_arguments_come_back_as_they_were(words: list[str]) -> None:
    assert _unquoted(quoting.arguments(words)) == words


def test_macros_mean_nothing() -> None:
    assert quoting.plain("a $(Cluster) $HOME") == "a $(DOLLAR)(Cluster) $HOME"
    for bad in ("a\nb", "$$(x)", "$$[x]"):
        with pytest.raises(ValueError, match="it has"):
            quoting.plain(bad)


def test_literals() -> None:
    assert literal('a "b" \\') == '"a \\"b\\" \\\\"'


def written(*jobs: Job, **fields: Any) -> dict[str, str]:
    workflow = msgspec.convert({"name": "u/op/x", "jobs": []}, Workflow)
    workflow = msgspec.structs.replace(workflow, jobs=list(jobs), **fields)
    return write_submission(workflow, "tok", "/runs/x", "isr:2").files


def job(name: str, **fields: Any) -> Job:
    return Job(name=name, label=name.split("_", maxsplit=1)[0], executable="/bin/echo", **fields)


def test_jobs_that_differ_in_arguments_alone_share_a_submit_file() -> None:
    files = written(*(job(f"isr_{n}", arguments=str(n)) for n in range(100)), job("coadd_1", request_memory=2048))

    assert sorted(name.split(".")[0] for name in files) == ["jobs/coadd/coadd", "jobs/isr/isr", "run"]


def test_the_attributes_are_those_of_bps() -> None:
    files = written(job("isr_1"))

    assert 'SET_JOB_ATTR bps_isjob="True"' in files["run.dag"]
    assert 'SET_JOB_ATTR bps_token="tok"' in files["run.dag"]
    assert 'SET_JOB_ATTR bps_job_summary="isr:2"' in files["run.dag"]
    (sub,) = (text for name, text in files.items() if name.endswith(".sub"))
    assert 'My.bps_job_label = "$(bpsd_label)"' in sub


def test_memory_grows_as_bps_lets_it() -> None:
    files = written(
        job("isr_1", request_memory=1000, request_memory_max=4000, memory_multiplier=2.0, number_of_retries=3)
    )

    (sub,) = (text for name, text in files.items() if name.endswith(".sub"))
    assert "min({int(1000 * pow(2.0, NumJobStarts)), 4000})" in sub
    assert "periodic_release = JobStatus == 5 && NumJobStarts <= JobMaxRetries" in sub
    assert "max_retries = 3" in sub


def test_every_job_that_cannot_be_said_is_a_mistake_with_its_place() -> None:
    workflow = Workflow(
        name="w",
        jobs=[
            job("isr_1", request_memory=1000, memory_multiplier=2.0),
            job("isr_2", arguments=shlex.quote("a\nb")),
            job("isr_3"),
        ],
    )
    problems = write_submission(workflow, "t" * 20, "/f", "isr:3").problems

    assert [problem.where for problem in problems] == [("jobs", 0, "memory_multiplier"), ("jobs", 1, "arguments")]
    assert "request_memory_max" in str(problems[0])


def test_groups_become_gates_or_sub_dags() -> None:
    files = written(
        job("in_1", group="g"),
        job("in_2", group="g", parents=["in_1"]),
        job("next_1", parents=["g"]),
        groups=[Group(name="g", blocking=True)],
    )
    assert "PARENT in_1 in_2 CHILD wms_group_g" in files["run.dag"]
    assert "PARENT wms_group_g CHILD next_1" in files["run.dag"]

    files = written(job("in_1", group="g"), job("next_1", parents=["g"]), groups=[Group(name="g", blocking=False)])
    assert "SUBDAG EXTERNAL wms_group_g subdags/wms_group_g/g.dag" in files["run.dag"]
    assert "JOB in_1 " in files["subdags/wms_group_g/g.dag"]
    assert "PARENT wms_group_g CHILD next_1" in files["run.dag"]


def test_a_name_is_looked_up_in_the_path_and_a_folder_is_gone_to() -> None:
    def lines(**fields: Any) -> tuple[str, str]:
        files = written(Job(name="a_1", label="a", **fields), executables=[Executable(name="mine", **MINE)])
        (sub,) = (text for name, text in files.items() if name.endswith(".sub"))
        (values,) = (line for line in files["run.dag"].splitlines() if line.startswith("VARS"))
        return sub, values

    sub, values = lines(executable="echo", arguments="x")
    assert "executable = /usr/bin/env\n" in sub
    assert 'bpsd_arguments="\\"echo x\\""' in values
    sub, values = lines(executable="echo", working_directory="/data/a b")
    assert "executable = /bin/sh\n" in sub
    assert "sh '/data/a b' echo" in values
    sub, values = lines(executable="mine", working_directory="/data")
    assert "transfer_input_files = /opt/mine.sh\n" in sub
    assert "transfer_executable = False\n" in sub
    assert "sh /data mine.sh" in values
    sub, _ = lines(executable="mine", queue="long", compute_cloud="c")
    assert "executable = /opt/mine.sh\n" in sub
    assert "transfer_executable = True\n" in sub
    assert 'My.bps_queue = "long"\n' in sub
    assert 'My.bps_compute_cloud = "c"\n' in sub


def test_throttles_and_retries() -> None:
    files = written(
        job("isr_1", category="io", priority=7, abort_on_value=9, abort_return_value=1), category_limits={"io": 3}
    )

    assert "CATEGORY isr_1 io" in files["run.dag"]
    assert "MAXJOBS io 3" in files["run.dag"]
    assert "PRIORITY isr_1 7" in files["run.dag"]
    assert "ABORT-DAG-ON isr_1 9 RETURN 1" in files["run.dag"]
