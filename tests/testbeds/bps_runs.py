# ruff: noqa: INP001  # a program for another Python
"""Runs of the real ctrl_bps, inside the pool's bed: submitted through its plugin, and reported by it as JSON.

    bps_runs.py submit FOLDER NAME...     build and submit one workflow for each name of `KINDS`; prints name to id
    bps_runs.py report ID...              prints what `HTCondorService.report` says of each id
    bps_runs.py watch USERS SECONDS       asks for the summary so often, evenly over that time

It knows nothing of bpsd: what it prints is upstream's word.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

from lsst.ctrl.bps import BPS_DEFAULTS, BpsConfig, GenericWorkflow, GenericWorkflowExec, GenericWorkflowJob
from lsst.ctrl.bps.bps_reports import compile_job_summary
from lsst.ctrl.bps.htcondor import HTCondorService

SERVICE = "lsst.ctrl.bps.htcondor.HTCondorService"

KINDS = {
    "diamond": {"a_1": ("true", ()), "b_1": ("true", ("a_1",)), "b_2": ("true", ("a_1",)), "c_1": ("true", ("b_1",))},
    "broken": {"a_1": ("true", ()), "b_1": ("exit 7", ("a_1",)), "c_1": ("true", ("b_1",)), "b_2": ("true", ())},
    "long": {"a_1": ("true", ()), "b_1": ("sleep 900", ("a_1",)), "c_1": ("true", ("b_1",))},
    "crashed": {"a_1": ("true", ()), "b_1": ("kill -SEGV $$", ()), "c_1": ("true", ("b_1",))},
}
"""Name to job to (line of shell, parents)."""


def config_of(name: str, folder: Path) -> BpsConfig:
    """What ``bps submit`` would have read and made by itself."""
    values = {
        "uniqProcName": name,
        "submitPath": str(folder),
        "computeSite": "here",
        "site": {"here": {}},
        "memoryLimit": 1000,
        "project": "dev",
        "campaign": "proof",
        "operator": "op",
        "payloadName": "pay",
    }
    return BpsConfig(values, defaults=BPS_DEFAULTS, wms_service_class_fqn=SERVICE)


def workflow_of(name: str, kind: str) -> GenericWorkflow:
    """A workflow of shell lines."""
    workflow = GenericWorkflow(name)
    parents: dict[str, tuple[str, ...]] = {}
    for job_name, (line, above) in KINDS[kind].items():
        job = GenericWorkflowJob(job_name, label=job_name.split("_")[0])
        job.executable = GenericWorkflowExec(name="sh", src_uri="/bin/sh", transfer_executable=False)
        job.arguments = f"-c '{line}'"
        job.compute_site = "here"
        job.request_memory = 16
        job.request_cpus = 1
        job.quanta_counts.update({job.label: 1})
        workflow.add_job(job)
        parents[job_name] = above
    for job_name, above in parents.items():
        if above:
            workflow.add_job_relationships(list(above), [job_name])
    summary = ";".join(f"{label}:{count}" for label, count in workflow.job_counts.items())
    workflow.run_attrs.update(
        {
            "bps_isjob": "True",
            "bps_project": "dev",
            "bps_campaign": "proof",
            "bps_run": name,
            "bps_operator": "op",
            "bps_payload": "pay",
            "bps_runsite": "here",
            "bps_job_summary": summary,
        }
    )
    return workflow


def submit(folder: Path, kinds: list[str]) -> dict[str, str]:
    """Name to id."""
    ids = {}
    for kind in kinds:
        place = folder / f"theirs-{kind}-{time.time_ns()}"
        place.mkdir(parents=True)
        service = HTCondorService(config_of(place.name, place))
        prepared = service.prepare(config_of(place.name, place), workflow_of(place.name, kind), str(place))
        service.submit(prepared)
        ids[kind] = prepared.run_id
    return ids


def plain(value: object) -> object:
    """As JSON has it; states by their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {getattr(key, "name", str(key)): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, str | bool):
        return value
    return getattr(value, "name", value if isinstance(value, int | float) else str(value))


def report(ids: list[str]) -> dict[str, object]:
    """Id to report."""
    service = HTCondorService(BpsConfig({}, wms_service_class_fqn=SERVICE))
    said: dict[str, object] = {}
    for wms_id in ids:
        runs, message = service.report(wms_workflow_id=wms_id, hist=2)
        for run in runs:
            compile_job_summary(run)  # as `bps report` does
        said[wms_id] = {"runs": plain(runs), "message": message}
    return said


def watch(users: int, seconds: float) -> None:
    """What so many people ask of the pool who look once in that time."""
    service = HTCondorService(BpsConfig({}, wms_service_class_fqn=SERVICE))
    began = time.monotonic()
    for number in range(users):
        service.report()
        time.sleep(max(0.0, began + (number + 1) * seconds / users - time.monotonic()))


if __name__ == "__main__":
    if sys.argv[1] == "submit":
        print(json.dumps(submit(Path(sys.argv[2]), sys.argv[3:])))
    elif sys.argv[1] == "watch":
        watch(int(sys.argv[2]), float(sys.argv[3]))
    else:
        print(json.dumps(report(sys.argv[2:])))
