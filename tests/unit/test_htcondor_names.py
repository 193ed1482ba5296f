"""Names and settings that would end DAGMan are refused with their place in the document."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bpsd.testing.observer import document, shell_job
from bpsd.workflow import Workflow
from bpsd_adapters.htcondor.submission import SubmissionProblem, write_submission


def problems(*jobs: dict[str, Any], **more: Any) -> list[SubmissionProblem]:
    workflow = msgspec.convert(document(*jobs, **more), Workflow)
    return write_submission(workflow, "t" * 20, "/r/x", "").problems


@pytest.mark.parametrize("name", ["a+b", "a b", "PARENT", "child", "a$(x)", 'a"b', "a\\b"])
def test_a_job_name_that_dagman_does_not_accept_is_refused(name: str) -> None:
    found = problems(shell_job("ok_1", "true"), shell_job(name, "true", label="x"))

    assert [problem.where for problem in found] == [("jobs", 1, "name")]
    assert repr(name) in str(found[0])


@pytest.mark.parametrize("name", ["a_1", "ü-1", "a.b", "a%b", "Parent_1"])
def test_other_names_are_accepted(name: str) -> None:
    assert problems(shell_job(name, "true", label="x")) == []


def test_a_final_job_that_would_abort_the_dag_is_refused() -> None:
    found = problems(shell_job("a_1", "true"), final=shell_job("f_1", "true", abort_on_value=3))

    assert [problem.where for problem in found] == [("final", "abort_on_value")]


def test_a_quote_in_the_name_of_a_run_is_refused() -> None:
    with pytest.raises(SubmissionProblem) as caught:
        problems(shell_job("a_1", "true"), name='a"b')

    assert caught.value.where == ("name",)
