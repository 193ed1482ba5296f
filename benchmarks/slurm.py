"""What a run costs a Slurm controller: bpsd beside a plain script of ``sbatch --dependency``, in a real cluster."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path
from typing import NamedTuple

from tests.integration.daemons import RunningDaemon, document, until
from tests.integration.slurmbed import SlurmBed

from benchmarks.measure import Line
from bpsd.testing.observer import shell_job

JOBS = 1000
LAYERS = 5
POLL_S = 5.0
PATIENCE_S = 170.0

SCRIPT = """
set -e
cd {folder}
while read -r name parents; do
  after=
  for p in $parents; do after=$after:$(cat ids/$p); done
  [ -n "$after" ] && after="-d afterok$after --kill-on-invalid-dep=yes"
  sbatch --parsable -J {run} -o /dev/null --mem=50 $after job.sh >ids/$name
done <jobs
"""


class Cost(NamedTuple):
    """What the operator's requests cost slurmctld, and how long things took."""

    requests: int
    busy_s: float
    submitted_s: float
    ended_s: float


def controller(folder: Path) -> list[Line]:
    """The same layers of ``true`` by both, one after the other."""
    folder.mkdir()
    bed = SlurmBed()
    bed.start()
    try:
        ours, late = by_bpsd(bed, folder)
        plain = by_script(bed)
    finally:
        bed.stop()
    what = f"{JOBS:,} x `true` in {LAYERS} layers with two parents each"
    return [
        Line(
            f"requests of slurmctld's for a Slurm run, {what}, a look every {POLL_S:.0f} s",
            f"{ours.requests} requests, {ours.busy_s * 1e3:.0f} ms of slurmctld",
            f"`sbatch -d afterok` for each, and squeue every {POLL_S:.0f} s: {plain.requests} requests, "
            f"{plain.busy_s * 1e3:.0f} ms",
            ours.requests / plain.requests,
            ours.requests / plain.requests,
            0.5,
            "<= half",
        ),
        Line(
            "the same, from submit until it is over",
            f"{ours.ended_s:.0f} s",
            f"{plain.ended_s:.0f} s, of these {plain.submitted_s:.0f} s submitting",
            ours.ended_s / plain.ended_s,
        ),
        Line("from the end of the last job until the report knows it", f"{late:.1f} s", f"a look every {POLL_S:.0f} s"),
    ]


def layered() -> list[tuple[str, list[str]]]:
    """Jobs with their parents, parents first."""
    width = JOBS // LAYERS
    return [
        (f"l{layer}_{n}", [f"l{layer - 1}_{n}", f"l{layer - 1}_{(7 * n + 1) % width}"] if layer else [])
        for layer in range(LAYERS)
        for n in range(width)
    ]


def by_bpsd(bed: SlurmBed, folder: Path) -> tuple[Cost, float]:
    """Through a daemon over SSH; and how late its report was."""
    jobs = [shell_job(name, "true", parents=parents, request_memory=50) for name, parents in layered()]
    settings = bed.settings(poll_interval_s=POLL_S, idle_interval_s=2 * POLL_S)
    with RunningDaemon(folder, {"site": {"type": "slurm", **settings}}) as daemon, daemon.client() as client:
        until(lambda: client.backends("site")["backends"][0]["state"] == "up", "the backend is open")
        bed.do("exec", "sdiag", "--reset")
        began = time.monotonic()
        run = client.submit_document(document(*jobs))["run"]
        until(lambda: client.status(run)["state"] == "SUCCEEDED", "the run is over", PATIENCE_S)
        known, took = time.time(), time.monotonic() - began
        requests, busy = asked(bed)
        last = max(float(row["ended_at"]) for row in client.jobs(run)["jobs"])
    return Cost(requests, busy, 0.0, took), known - last


def by_script(bed: SlurmBed) -> Cost:
    """By a shell loop on the submit host, watched by squeue."""
    folder = "/home/op/plain"
    lines = "".join(f"{name} {' '.join(parents)}\n" for name, parents in layered())
    prepare = (
        f"rm -rf {folder}; mkdir -p {folder}/ids; printf '#!/bin/sh\\ntrue\\n' >{folder}/job.sh; cat >{folder}/jobs"
    )
    bed.run("sh", "-c", f"printf %s {shlex.quote(lines)} | sh -c {shlex.quote(prepare)}")
    bed.do("exec", "sdiag", "--reset")
    began = time.monotonic()
    bed.run("bash", "-c", SCRIPT.format(folder=folder, run="plain"))
    submitted = time.monotonic() - began
    while bed.run("squeue", "-h", "--me", "-n", "plain").strip():
        time.sleep(POLL_S)
    took = time.monotonic() - began
    requests, busy = asked(bed)
    return Cost(requests, busy, submitted, took)


def asked(bed: SlurmBed) -> tuple[int, float]:
    """How many requests the operator's tools made, and the time that slurmctld spent on them."""
    told = bed.do("exec", "sdiag").partition("statistics by user")[2]
    found = re.search(r"^\s*op\s.*count:(\d+)\s.*total_time:(\d+)", told, re.MULTILINE)
    assert found is not None, told
    return int(found[1]), int(found[2]) / 1e6
