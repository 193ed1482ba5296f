"""What keeps a core busy for seconds is done beside the daemon, with the same answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from bpsd.errors import BackendUnavailable
from bpsd.testing.observer import document, shell_job
from bpsd.workflow import RunAttributes, WorkflowFile
from bpsd_adapters import helper
from bpsd_adapters.slurm.options import Defaults
from bpsd_adapters.slurm.prepare import Findings, Order, look_at


async def order_of(folder: Path, *jobs: dict[str, Any]) -> Order:
    path = folder / "w.json"
    await anyio.Path(path).write_bytes(msgspec.json.encode(document(*jobs)))
    workflow = WorkflowFile(
        path=str(path),
        name="run",
        token="t" * 20,
        run=RunAttributes(),
        job_count=len(jobs),
        run_summary="",
        size_bytes=1,
    )
    return Order(workflow=workflow, folder="/w", defaults=Defaults(options={"constraint": "any"}), hands_off=False)


async def test_a_helper_answers_as_a_thread_does(tmp_path: Path) -> None:
    jobs = [shell_job("a_1", "true", request_memory=5), shell_job("b_1", "true", working_directory="not/absolute")]
    order = await order_of(tmp_path, *jobs)
    answers = [
        await helper.ask_if_large(look_at, order, Findings, job_count=count, about="looking")
        for count in (helper.SMALL_JOBS, helper.SMALL_JOBS + 1)
    ]
    assert answers[0] == answers[1]
    assert [problem.key for problem in answers[0].problems] == ["jobs[1].working_directory"]
    assert answers[0].options == [
        (("--constraint=any", "--mem=5M"), ("jobs", 0)),
        (("--constraint=any",), ("jobs", 1)),
    ]


async def test_a_helper_that_breaks_says_why(tmp_path: Path) -> None:
    order = await order_of(tmp_path, shell_job("a_1", "true"))
    await anyio.Path(order.workflow.path).write_bytes(b"{")
    with pytest.raises(BackendUnavailable, match=r"(?s)looking came to no answer \(exit code 1\).*truncated") as failed:
        await helper.ask(look_at, order, Findings, about="looking")
    assert "memory and disk" in failed.value.advice
