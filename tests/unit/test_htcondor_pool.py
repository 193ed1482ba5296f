"""Questions to a pool whose tools are scripted: which are asked, and what is made of the answers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bpsd.errors import RunNotFound
from bpsd.workflow import Job, Workflow
from bpsd_adapters.htcondor import scripts
from bpsd_adapters.htcondor.finder import Finder, all_of_them, named_jobs
from bpsd_adapters.htcondor.observe import Ids
from bpsd_adapters.htcondor.pool import LEFT_BEHIND_MOST, Pool
from bpsd_adapters.htcondor.prepare import pack
from bpsd_adapters.htcondor.runfiles import FEW_FILES, sizes_of
from bpsd_adapters.htcondor.submission import write_submission
from bpsd_adapters.transports.base import Completed
from bpsd_adapters.transports.scripted import ScriptedTransport, answer

RUN: dict[str, Any] = {
    "ClusterId": 12,
    "ProcId": 0,
    "GlobalJobId": "here#12.0#100",
    "JobStatus": 2,
    "bps_token": "tok",
    "Iwd": "/r",
}

Reply = Callable[[Sequence[str], bytes], Completed | None]


def ads(*found: dict[str, Any]) -> Completed:
    return answer(msgspec.json.encode(found) if found else b"")


def finder(reply: Reply, schedds: Sequence[str | None] = (None,)) -> tuple[Finder, ScriptedTransport]:
    transport = ScriptedTransport(reply)
    return Finder(Pool(transport, 30.0), "usdf", schedds), transport


def schedd_of(argv: Sequence[str]) -> str | None:
    return argv[argv.index("-name") + 1] if "-name" in argv else None


async def test_sizes_of_many_files_are_one_question() -> None:
    transport = ScriptedTransport(lambda _argv, _: answer(b"12 /r/a b\n.log\x007 /r/c\x00", returncode=1))
    paths = ["/r/a b\n.log", "/r/c", *(f"/gone/{n}" for n in range(FEW_FILES))]

    assert await sizes_of(transport, paths, 30.0) == {"/r/a b\n.log": 12, "/r/c": 7}
    assert await sizes_of(transport, paths[:FEW_FILES], 30.0) == {}
    assert len(transport.calls) == 1


async def test_a_global_id_is_never_taken_for_the_same_number_elsewhere() -> None:
    find, transport = finder(lambda argv, _: ads(RUN) if argv[0] == "condor_q" and schedd_of(argv) is None else ads())

    found = await find.run("here#12.0#100")
    assert (found.ids, found.source, found.wms_id) == (Ids(None, 12), "queue", "12.0")
    assert (await find.run("here#12.0")).ids == Ids(None, 12)
    for other in ("there#12.0#100", "here#12.0#101"):
        with pytest.raises(RunNotFound, match="backend usdf has no run"):
            await find.run(other)
    assert {schedd_of(call) for call in transport.calls} == {None, "here", "there"}


async def test_a_schedd_that_the_pool_does_not_have_has_no_run() -> None:
    def reply(argv: Sequence[str], _: bytes) -> Completed:
        return ads() if schedd_of(argv) is None else answer(b"", 1, "Collector has no record of schedd")

    find, _ = finder(reply)
    with pytest.raises(RunNotFound):
        await find.run("typo@nowhere#1.0#5")


async def test_no_token_is_absent_while_one_schedd_is_silent() -> None:
    def reply(argv: Sequence[str], _: bytes) -> Completed:
        return ads() if schedd_of(argv) is None else answer(b"", 1, "SECMAN:2007:Failed to end")

    find, _ = finder(reply, (None, "other"))
    told = await find.by_token("tok", lambda: 0.0)
    assert (told.verdict, "SECMAN" in told.reason) == ("cannot_tell", True)
    find, _ = finder(lambda _argv, _: ads())
    assert (await find.by_token("tok", lambda: 0.0)).verdict == "absent"
    assert "proof only in 5 s" in (await find.by_token("tok", lambda: 5.0)).reason


async def test_jobs_left_behind_are_counted_by_their_run() -> None:
    jobs: list[dict[str, Any]] = [
        {"DAGManJobId": 12},
        {"DAGManJobId": 12},
        {"DAGManJobId": 99, "bps_token": "tok"},
        {"DAGManJobId": 13},
    ]
    pool = Pool(ScriptedTransport(lambda _argv, _: ads(*jobs)), 30.0)
    runs: list[dict[str, Any]] = [RUN, {"ClusterId": 13}, {"ClusterId": 14}]

    assert await pool.left_behind(None, runs) == {12: 3, 13: 1, 14: 0}

    pool = Pool(ScriptedTransport(lambda _argv, _: ads(*([{"DAGManJobId": 12}] * LEFT_BEHIND_MOST))), 30.0)
    assert (await pool.left_behind(None, runs))[14] == 1  # of so many, nobody knows whose the others are


def test_constraints() -> None:
    assert all_of_them("a || b", "", "c") == "(a || b) && (c)"
    assert all_of_them("") == "True"
    assert named_jobs([]) == []
    assert named_jobs(['a"b', "c"]) == ['member(bps_job_name ?: DAGNodeName, {"a\\"b","c"})']
    assert [text.count(",") for text in named_jobs([f"j{n}" for n in range(1001)])] == [500, 500, 1]


@pytest.mark.parametrize(
    ("end", "codes"),
    [
        ("kill -9 $$", [137, scripts.IN_DOUBT]),
        ("exit 3", [3, scripts.IN_DOUBT]),
        ("echo 'ERROR: no such file' >&2; exit 1", [1, 1]),
        ("echo 'ERROR: Failed to commit job submission into the queue.' >&2; exit 1", [1, scripts.IN_DOUBT]),
        ("printf 'ERROR: Failed to commit job submission\nERROR: no project\n' >&2; exit 1", [1, 1]),
        ("exit 127", [127, 127]),
    ],
)
def test_a_condor_submit_that_fails_leaves_a_doubt_unless_it_says_why(
    tmp_path: Path, end: str, codes: list[int]
) -> None:
    (tmp_path / "run.dag.condor.sub").touch()
    (tmp_path / "condor_submit").write_text(f"#!/bin/sh\n{end}\n")
    (tmp_path / "condor_submit").chmod(0o755)
    argv = ["sh", "-c", scripts.SUBMIT, "sh", str(tmp_path), "tok.1", "run.dag", "once", "run"]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    done = [subprocess.run(argv, env=env, capture_output=True, check=False, timeout=60) for _ in range(2)]

    assert [each.returncode for each in done] == codes
    assert b"ERROR" not in end.encode() or b"ERROR" in done[0].stderr


@pytest.mark.parametrize("block", [512, 32 * 1024])
def test_files_of_a_run_that_came_in_part_are_no_run(tmp_path: Path, block: int) -> None:
    """The daemon is killed while it sends them: to tar an archive that breaks off between two files is a whole one."""
    jobs = [Job(name=f"a_{n}", label="a", executable="/bin/true") for n in range(4 if block == 512 else 400)]
    submission = write_submission(Workflow(name="run", jobs=jobs), "tok", "/runs/x", "a:4")
    pack(submission, tmp_path / "run.tar")
    data, root = (tmp_path / "run.tar").read_bytes(), tmp_path / "runs"

    def unpack(size: int) -> bool:
        argv = ["sh", "-c", scripts.UNPACK, "sh", str(root), "run"]
        return subprocess.run(argv, input=data[:size], capture_output=True, check=False, timeout=60).returncode == 0

    for size in (*range(0, len(data), block), len(data)):
        if unpack(size):
            break
        assert not (root / "run").exists()

    names = {str(path.relative_to(root / "run")) for path in (root / "run").rglob("*") if path.is_file()}
    assert names == set(submission.files)
