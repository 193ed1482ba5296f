"""The same runs, said by upstream's plugin (the current release) and by our adapter: field by field."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from bpsd.models import WmsRunReport, WmsStates
from bpsd.testing.contract import Bed
from bpsd.testing.observer import Observer, document, shell_job
from bpsd_adapters.htcondor.service import HTCondorService
from tests.integration.condorbed import CondorBed

pytestmark = pytest.mark.timeout(600)
PATIENCE_S = 180.0
SCRIPT = Path(__file__).parents[1] / "testbeds" / "bps_runs.py"
BPS = "from lsst.ctrl.bps.cli.bps import main; main()"
KINDS = ("diamond", "broken", "long", "crashed")

FIELDS = (
    "wms_id", "global_wms_id", "path", "run", "project", "campaign", "payload", "operator", "site", "run_summary",
    "state", "total_number_jobs", "job_state_counts", "job_summary", "exit_code_summary", "jobs",
)  # fmt: skip
"""All that upstream fills in, but ``specific_info``, which is free text, and ``label``: that of a job, by accident."""


class Said:
    """What each side says of each run."""

    def __init__(self, theirs: dict[str, dict[str, Any]], ours: dict[str, dict[str, Any]], cli: str) -> None:
        self.theirs = theirs
        self.ours = ours
        self.cli = cli


def upstream(pool: CondorBed, *argv: str) -> str:
    """Run something with the LSST middleware, as the operator."""
    variables = [
        "PYTHONPATH=/opt/lsst",
        "PYTHONPYCACHEPREFIX=/home/op/.cache/python",
        "BPS_WMS_SERVICE_CLASS=lsst.ctrl.bps.htcondor.HTCondorService",
        "COLUMNS=500",
    ]
    return pool.run("env", *variables, "python3", *argv)


def last_line(text: str) -> Any:
    return json.loads(text.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def said(pool: CondorBed) -> Iterator[Said]:
    """Three runs of upstream and five of ours, each in its last state or in one that lasts."""
    folder = pool.folder()
    script = folder / SCRIPT.name
    shutil.copy(SCRIPT, script)
    theirs_ids: dict[str, str] = last_line(upstream(pool, str(script), "submit", str(folder / "scratch"), *KINDS))
    ids = {"theirs custom": submit_custom(pool, folder / "scratch")}
    ids |= {f"theirs {kind}": wms_id for kind, wms_id in theirs_ids.items()}

    async def ours() -> dict[str, dict[str, Any]]:
        async with Bed(HTCondorService, pool.settings(), folder).open() as observer:
            for kind, workflow in WORKFLOWS.items():
                ids[f"ours {kind}"], _ = await observer.submit(workflow)
            await settle(observer, pool, ids)
            reports = {}
            for name, wms_id in ids.items():
                found, message = await observer.service.report(wms_workflow_id=wms_id, hist=2)
                assert len(found) == 1, (name, message)
                reports[name] = plain(found[0])
            return reports

    try:
        mine = anyio.run(ours)
        answers = last_line(upstream(pool, str(script), "report", *ids.values()))
        theirs = {}
        for name, wms_id in ids.items():
            assert len(answers[wms_id]["runs"]) == 1, (name, answers[wms_id])
            theirs[name] = answers[wms_id]["runs"][0]
        yield Said(theirs, mine, upstream(pool, "-c", BPS, "report", "--hist", "1"))
    finally:
        for wms_id in ids.values():
            pool.script("exec-op", "condor_rm", wms_id.partition(".")[0])
        pool.remove([folder])


RUN = {"project": "dev", "campaign": "proof", "payload": "pay", "operator": "op", "site": "here"}
WORKFLOWS: Mapping[str, dict[str, Any]] = {
    "diamond": document(
        shell_job("a_1", "true", quanta_counts={"a": 2}),
        shell_job("b_1", "true", parents=["a_1"]),
        shell_job("b_2", "true", parents=["a_1"]),
        shell_job("c_1", "true", parents=["b_1", "b_2"]),
        final=shell_job("final_1", "true"),
        name="ours-diamond",
        run=RUN,
    ),
    "broken": document(
        shell_job("a_1", "true"),
        shell_job("b_1", "exit 7", parents=["a_1"]),
        shell_job("c_1", "true", parents=["b_1"]),
        shell_job("b_2", "true"),
        name="ours-broken",
        run=RUN,
    ),
    "long": document(
        shell_job("a_1", "true"),
        shell_job("b_1", "sleep 900", parents=["a_1"]),
        shell_job("c_1", "true", parents=["b_1"]),
        name="ours-long",
        run=RUN,
    ),
    "held": document(shell_job("a_1", "true"), shell_job("b_1", "sleep 900"), name="ours-held", run=RUN),
    "removed": document(shell_job("a_1", "sleep 900"), name="ours-removed", run=RUN),
    "crashed": document(shell_job("a_1", "true"), shell_job("b_1", "kill -SEGV $$"), name="ours-crashed", run=RUN),
    "memory": document(
        shell_job("a_1", "true"),
        shell_job(
            "b_1",
            "kill -KILL $$",
            request_memory=16,
            request_memory_max=32,
            memory_multiplier=2.0,
            number_of_retries=1,
        ),
        name="ours-memory",
        run=RUN,
    ),
}


async def settle(observer: Observer, pool: CondorBed, ids: Mapping[str, str]) -> None:
    """Bring every run to where it stays."""

    async def job_is(name: str, job: str, state: str) -> None:
        await observer.until(ids[name], lambda _: observer.states(ids[name]).get(job) == state, PATIENCE_S)

    async def in_bed(*argv: str) -> str:
        return await anyio.to_thread.run_sync(lambda: pool.run(*argv))

    lasting = ("ours held", "ours long", "theirs long")
    for name in lasting:
        await job_is(name, "b_1", "RUNNING")
    await job_is("theirs crashed", "b_1", "HELD")  # upstream holds every job that a signal ended
    await job_is("ours held", "a_1", "SUCCEEDED")
    cluster = ids["ours held"].partition(".")[0]
    await in_bed("condor_hold", "-reason", "no room", "-constraint", f"DAGManJobId == {cluster}")
    await job_is("ours held", "b_1", "HELD")
    await job_is("ours removed", "a_1", "RUNNING")
    await observer.service.cancel(ids["ours removed"])
    for name in ids.keys() - {*lasting, "theirs crashed"}:
        await observer.until_over(ids[name], timeout_s=PATIENCE_S)


def plain(report: WmsRunReport) -> dict[str, Any]:
    """As the script writes them: states by their names."""

    def named(counts: Mapping[WmsStates, int] | None) -> dict[str, int] | None:
        return None if counts is None else {state.name: count for state, count in counts.items()}

    values: dict[str, Any] = {field: getattr(report, field) for field in FIELDS}
    assert report.state is not None
    values["state"] = report.state.name
    values["job_state_counts"] = named(report.job_state_counts)
    values["job_summary"] = {label: named(counts) for label, counts in (report.job_summary or {}).items()}
    jobs = [{**msgspec.to_builtins(job), "state": job.state.name} for job in report.jobs or ()]
    return {**values, "jobs": jobs}


CUSTOM = """
project: dev
campaign: proof
operator: op
payload: {payloadName: pay}
payloadName: pay
computeSite: here
site: {here: {}}
submitPath: SCRATCH/custom
wmsServiceClass: lsst.ctrl.bps.htcondor.HTCondorService
customJob: {executable: SCRATCH/hello.sh, arguments: "", requestMemory: 16, requestCpus: 1}
"""


def submit_custom(pool: CondorBed, scratch: Path) -> str:
    """``bps submitcmd``; returns the run's id."""
    (scratch / "custom.yaml").write_text(CUSTOM.replace("SCRATCH", str(scratch)))
    (scratch / "hello.sh").write_text("#!/bin/sh\necho hello\n")
    (scratch / "hello.sh").chmod(0o755)
    said = upstream(pool, "-c", BPS, "submitcmd", str(scratch / "custom.yaml"))
    return next(line.partition(":")[2].strip() for line in said.splitlines() if line.startswith("Run Id:"))


def comparable(report: Mapping[str, Any], field: str) -> Any:
    """A field without what says nothing: the order of jobs and labels, and labels without an exit code."""
    value = report[field]
    if field == "jobs":
        ids = {"-1": ""}  # upstream's for a job that was never submitted
        return sorted((job["name"], job["label"], job["state"], ids.get(*[job["wms_id"]] * 2)) for job in value or ())
    if field == "exit_code_summary":
        return {label: codes for label, codes in (value or {}).items() if codes}
    if field == "run_summary":
        return sorted((value or "").split(";"))
    return value


NAMES = ("theirs custom", *(f"theirs {kind}" for kind in KINDS), *(f"ours {kind}" for kind in WORKFLOWS))


_SIGNALS = "a signal is 128 + N on every backend; upstream gives N, which an exit code N looks like too"

DIFFERENT: Mapping[tuple[str, str], tuple[Any, Any, str]] = {
    ("ours crashed", "exit_code_summary"): ({"b": [139]}, {"b": [11]}, _SIGNALS),
    ("ours memory", "exit_code_summary"): ({"b": [137]}, {"b": [9]}, _SIGNALS),
    ("theirs crashed", "exit_code_summary"): (
        {"b": [139]},
        {"b": ["11"]},
        f"{_SIGNALS}; upstream gives that of a hold as text",
    ),
}
"""Run and field to what we say, what upstream says, and why that differs."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", FIELDS)
def test_both_say_the_same(said: Said, name: str, field: str) -> None:
    """Or each says what the list of differences has."""
    ours, theirs = comparable(said.ours[name], field), comparable(said.theirs[name], field)
    if (name, field) in DIFFERENT:
        assert (ours, theirs) == DIFFERENT[name, field][:2]
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", NAMES)
def test_the_bps_command_shows_the_same_row(said: Said, name: str) -> None:
    ours = said.ours[name]
    row = next(line.split() for line in said.cli.splitlines() if ours["wms_id"] in line.split())
    counts = ours["job_state_counts"]
    flags = [state[0] for state in ("HELD", "DELETED", "FAILED") if ours["state"] == "RUNNING" and counts[state]]
    succeeded = int(counts["SUCCEEDED"] / ours["total_number_jobs"] * 100)
    fields = ("wms_id", "operator", "project", "campaign", "site", "payload", "run")
    assert row == [*flags[:1], ours["state"], str(succeeded), *(ours[field] for field in fields)]
