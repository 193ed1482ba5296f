"""The helper process that keeps large workflows out of the daemon's loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from bpsd.workflow import Workflow
from tests.figures import figure

WORKFLOW_JOBS = figure("WORKFLOW_JOBS", test=10_000, soak=100_000)
"""Jobs of the large workflow (51 MB for 100,000)."""

LABELS = ("isr", "calibrate", "warp", "coadd")


def run_worker(**order: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "bpsd.validate_worker"],
        input=msgspec.json.encode(order) + b"\n",
        capture_output=True,
        check=True,
        timeout=100,
    )
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1
    return msgspec.json.decode(done.stdout)


def large_workflow(count: int) -> dict[str, Any]:
    """``count`` jobs in four ranks, each the parent of one in the next, with what LSST's pipelines say of a job."""
    rank = count // len(LABELS)

    def name(index: int) -> str:
        return f"0dd4b1f2-8a3c-4e0b-9d59-{index:012d}_{LABELS[index // rank]}_{index % 189}_{index}"

    jobs = [
        {
            "name": name(index),
            "label": LABELS[index // rank],
            "executable": "pipetask",
            "arguments": f"--long-log run-qbb <FILE:butlerConfig> <FILE:graph> --qgraph-node-id '{index}'",
            "parents": [] if index < rank else [name(index - rank)],
            "request_memory": 2048,
            "memory_multiplier": 2.0,
            "number_of_retries": 5,
            "inputs": ["butlerConfig", "graph"],
            "tags": {"visit": index, "detector": index % 189},
            "quanta_counts": {LABELS[index // rank]: 1},
            "environment": {"OMP_NUM_THREADS": "1"},
        }
        for index in range(rank * len(LABELS))
    ]
    return {
        "name": "u/op/large",
        "executables": [{"name": "pipetask", "src_uri": "/bin/true"}],
        "files": [{"name": "butlerConfig"}, {"name": "graph"}],
        "jobs": jobs,
        "final": {"name": "finalJob", "label": "finalJob", "executable": "pipetask"},
    }


def test_large_workflow_comes_back_canonical_and_whole(tmp_path: Path) -> None:
    document = large_workflow(WORKFLOW_JOBS)
    source, output = tmp_path / "large.json", tmp_path / "canonical.json"
    source.write_bytes(msgspec.json.encode(document))

    answer = run_worker(input=str(source), source="large.json", output=str(output), token="t" * 20)

    each = WORKFLOW_JOBS // len(LABELS)
    assert answer["ok"], answer
    assert answer["job_count"] == each * len(LABELS) + 1
    assert answer["run_summary"] == ";".join(f"{label}:{each}" for label in LABELS) + ";finalJob:1"
    workflow = msgspec.json.decode(output.read_bytes(), type=Workflow)
    assert len(workflow.jobs) == each * len(LABELS)
    assert msgspec.to_builtins(workflow.jobs[-1])["parents"] == document["jobs"][-1]["parents"]


def test_two_mistakes_in_a_large_workflow_are_found_and_located(tmp_path: Path) -> None:
    document = large_workflow(WORKFLOW_JOBS)
    near_the_end = len(document["jobs"]) - 2
    document["jobs"][3]["reqest_memory"] = 5
    document["jobs"][near_the_end]["parents"] = [document["jobs"][7]["name"][:-1] + "x"]
    source = tmp_path / "large.json"
    source.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))

    answer = run_worker(input=str(source), source="large.json", output=str(tmp_path / "canonical.json"))

    assert (answer["ok"], answer["code"], answer["total"]) == (False, "workflow_invalid", 2)
    typo, unknown = answer["problems"]
    lines = source.read_bytes().splitlines()
    assert typo["key"] == "jobs[3].reqest_memory"
    assert b'"reqest_memory": 5' in lines[typo["line"] - 1]
    assert unknown["key"] == f"jobs[{near_the_end}].parents[0]"
    assert lines[unknown["line"] - 1].strip() == f'"{document["jobs"][7]["name"][:-1]}x"'.encode()
    assert unknown["message"].endswith(f"did you mean {document['jobs'][7]['name']!r}?")
    assert list(tmp_path.iterdir()) == [source]


def test_worker_loads_little() -> None:
    """It starts for every large document: nothing of the daemon's machinery, and YAML only for YAML."""
    program = "import sys; import bpsd.validate_worker; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert {"anyio", "yaml", "structlog", "asyncssh", "asyncio", "sqlite3"}.isdisjoint(loaded)
