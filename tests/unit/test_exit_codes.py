"""Exit codes and signals: one number and one spelling for each, whoever saw it."""

from __future__ import annotations

import pytest

from bpsd import wire
from bpsd.jobtable import JobTable
from bpsd.models import JobObservation, WmsStates
from bpsd.workflow import Job, Workflow
from bpsd_adapters.htcondor.submission import write_submission


@pytest.mark.parametrize(
    ("code", "number", "words"),
    [
        (0, 0, "exit code 0"),
        (1, 1, "exit code 1"),
        (127, 127, "exit code 127"),
        (128, 128, "exit code 128"),
        (139, 139, "signal 11 (SIGSEGV)"),
        (-11, 139, "signal 11 (SIGSEGV)"),
        (-9, 137, "signal 9 (SIGKILL)"),
        (-64, 192, "signal 64 (SIGRTMAX)"),
        (-40, 168, "exit code 168"),
        (255, 255, "exit code 255"),
        (-1001, -1001, "exit code -1001"),
    ],
)
def test_a_signal_in_either_convention_is_one_number_with_one_spelling(code: int, number: int, words: str) -> None:
    assert wire.normal_exit_code(code) == number
    assert wire.ending(code) == wire.ending(number) == words


def test_a_job_without_an_exit_code_says_so() -> None:
    assert wire.ending(None) == "no exit code"


@pytest.mark.parametrize(
    ("state", "note", "shown"),
    [
        (WmsStates.FAILED, "", "signal 9 (SIGKILL)"),
        (WmsStates.FAILED, "out of memory", "out of memory"),
        (WmsStates.DELETED, "", ""),
    ],
)
def test_a_signal_is_the_note_of_a_failed_job_that_has_none(state: WmsStates, note: str, shown: str) -> None:
    table = JobTable()
    table.apply(1, [JobObservation(name="a", label="l", state=state, exit_code=-9, note=note)])

    assert (table.row(0).exit_code, table.row(0).note) == (137, shown)


def _files(job: Job) -> str:
    workflow = Workflow(name="w", jobs=[job])
    return "\n".join(write_submission(workflow, "t" * 20, "/runs/w", "l:1").files.values())


@pytest.mark.parametrize("code", [-11, 139])
def test_htcondor_gets_the_same_files_for_either_spelling_of_a_signal(code: int) -> None:
    job = Job(name="a", label="l", executable="/bin/true", retry_unless_exit=[3, code], abort_on_value=code)
    text = _files(job)

    assert "ABORT-DAG-ON a 139" in text
    assert "retry_until = member(ExitBySignal =?= true ? 128 + ExitSignal : ExitCode, {3,139})" in text
    assert "SCRIPT POST a scripts/a.post.sh $RETURN" in text


def test_htcondor_needs_no_post_script_for_a_plain_exit_code() -> None:
    text = _files(Job(name="a", label="l", executable="/bin/true", retry_unless_exit=3, abort_on_value=4))

    assert "SCRIPT POST" not in text
    assert "retry_until = 3" in text


def test_the_causes_of_a_label_are_notes_and_the_exit_codes_of_the_jobs_without_one() -> None:
    table = JobTable()
    failed = [(143, "walltime of 2 s exceeded"), (143, ""), (3, ""), (None, "cannot start: permission denied: /x")]
    table.apply(
        1,
        [
            JobObservation(name=f"j{n}", label="isr", state=WmsStates.FAILED, exit_code=code, note=note)
            for n, (code, note) in enumerate(failed)
        ],
    )

    assert table.causes() == {
        "isr": {"walltime of 2 s exceeded": 1, "143": 1, "3": 1, "cannot start: permission denied: /x": 1}
    }
