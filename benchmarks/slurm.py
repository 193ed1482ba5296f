"""What a run costs a Slurm controller: bpsd beside a script of ``sbatch --dependency`` and Parsl, in a real cluster.

Each takes the same layers of jobs that do nothing, one after the other, and nobody else asks slurmctld meanwhile.
``BPSD_BENCH_SLURM_JOBS=1000`` measures one size alone: 10,000 take a quarter of an hour or more.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.integration.daemons import RunningDaemon, document, until
from tests.integration.slurmbed import SlurmBed

from benchmarks.measure import Line
from bpsd.testing.observer import shell_job

SIZES = tuple(int(size) for size in os.environ.get("BPSD_BENCH_SLURM_JOBS", "1000,10000").split(","))
LAYERS = 5
POLL_S = 5.0
PATIENCE_PER_JOB_S = 0.3

SCRIPT = """
set -e
cd {folder}
while read -r name parents; do
  after=
  for p in $parents; do after=$after:$(cat ids/$p); done
  [ -n "$after" ] && after="-d afterok$after --kill-on-invalid-dep=yes"
  sbatch --parsable -J plain -o /dev/null --mem=50 $after job.sh >ids/$name
done <jobs
"""

PARSL = """
import sys, time, parsl
from pathlib import Path
from parsl import bash_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SimpleLauncher
from parsl.providers import SlurmProvider
packages, folder, lines = sys.argv[1], Path(sys.argv[2]), open(sys.argv[3]).read().splitlines()
modules = "parsl.executors.high_throughput"
pool = f"python3 -m {modules}.process_worker_pool"
blocks = SlurmProvider(partition="main", init_blocks=2, max_blocks=2, cores_per_node=8, walltime="01:00:00",
                       exclusive=False, launcher=SimpleLauncher(), worker_init=f"export PYTHONPATH={packages}")
executor = HighThroughputExecutor(address="127.0.0.1", max_workers_per_node=8, encrypted=False, provider=blocks,
                                  interchange_launch_cmd=["python3", "-m", f"{modules}.interchange"])
executor.launch_cmd = executor.launch_cmd.replace("process_worker_pool.py", pool)
parsl.load(Config(executors=[executor], run_dir=str(folder / "runs"), usage_tracking=0, initialize_logging=False))

@bash_app
def job(inputs=(), stdout=None):
    return "date +%s.%N"

began, futures = time.time(), {}
for line in lines:
    name, *parents = line.split()
    futures[name] = job(inputs=[futures[p] for p in parents], stdout=str(folder / f"{name}.out"))
submitted = time.time()
for future in futures.values():
    future.result()
known = time.time()
last = max(float((folder / f"{name}.out").read_text()) for name in futures)
print("TOOK", submitted - began, known - began, known - last)
parsl.dfk().cleanup()
"""


class Cost(NamedTuple):
    """What the operator's requests cost slurmctld, and how long things took, in seconds."""

    requests: int
    busy_s: float
    submitted_s: float
    ended_s: float
    late_s: float
    """From the end of the last job until it is known here."""

    def __str__(self) -> str:
        return f"{self.requests:,} requests, {self.busy_s * 1e3:,.0f} ms of slurmctld"


def controller(folder: Path) -> list[Line]:
    """The same layers of ``true`` by all, one after the other."""
    folder.mkdir()
    bed = SlurmBed()
    bed.start()
    try:
        parsl, version = install_parsl(bed)
        return [line for jobs in SIZES for line in beside(bed, folder / str(jobs), jobs, parsl, version)]
    finally:
        bed.stop()


def beside(bed: SlurmBed, folder: Path, jobs: int, parsl: Path | None, version: str) -> list[Line]:
    """Lines for so many jobs."""
    folder.mkdir()
    ours = told("bpsd", jobs, by_bpsd(bed, folder, jobs))
    plain = told("sbatch", jobs, by_script(bed, jobs))
    what = f"{jobs:,} x `true` in {LAYERS} layers with two parents each"
    lines = [
        Line(
            f"requests of slurmctld's for a Slurm run, {what}, a look every {POLL_S:.0f} s",
            str(ours),
            f"`sbatch -d afterok` for each, and squeue every {POLL_S:.0f} s: {plain}",
            ours.requests / plain.requests,
            ours.requests / plain.requests,
            0.5,
            "<= half",
        ),
        Line(
            "the same, from submit until it is known to be over",
            f"{ours.ended_s:.0f} s",
            f"`sbatch -d afterok`: {plain.ended_s:.0f} s, of these {plain.submitted_s:.0f} s submitting",
            ours.ended_s / plain.ended_s,
        ),
        Line(
            "the same, from the end of the last job until it is known", f"{ours.late_s:.1f} s", f"{plain.late_s:.1f} s"
        ),
    ]
    if parsl is None:
        return [*lines, Line(f"{what}, beside Parsl", str(ours), version)]
    pilots = told("parsl", jobs, by_parsl(bed, parsl, jobs))
    workers = f"{version}, two pilot jobs of 8 workers, so that Slurm sees no job of the run"
    return [
        *lines,
        Line(f"requests of slurmctld's, {what}, beside Parsl", str(ours), f"{workers}: {pilots}"),
        Line(
            "the same, from submit until it is known to be over; and late by",
            f"{ours.ended_s:.0f} s; {ours.late_s:.1f} s",
            f"{version}: {pilots.ended_s:.0f} s; {pilots.late_s:.1f} s",
            ours.ended_s / pilots.ended_s,
        ),
    ]


def told(who: str, jobs: int, cost: Cost) -> Cost:
    """Say how far it is: all of it takes long."""
    print(
        f"slurm: {jobs} by {who}: {cost}, {cost.ended_s:.0f} s, late {cost.late_s:.1f} s", file=sys.stderr, flush=True
    )
    return cost


def layered(jobs: int) -> list[tuple[str, list[str]]]:
    """Jobs with their parents, parents first."""
    width = jobs // LAYERS
    return [
        (f"l{layer}_{n}", [f"l{layer - 1}_{n}", f"l{layer - 1}_{(7 * n + 1) % width}"] if layer else [])
        for layer in range(LAYERS)
        for n in range(width)
    ]


def listed(jobs: int) -> str:
    """The same as lines: a job and its parents."""
    return "".join(f"{name} {' '.join(parents)}\n" for name, parents in layered(jobs))


def by_bpsd(bed: SlurmBed, folder: Path, count: int) -> Cost:
    """Through a daemon over SSH."""
    jobs = [shell_job(name, "true", parents=parents, request_memory=50) for name, parents in layered(count)]
    settings = bed.settings(poll_interval_s=POLL_S, idle_interval_s=2 * POLL_S)
    with RunningDaemon(folder, {"site": {"type": "slurm", **settings}}) as daemon, daemon.client() as client:
        until(lambda: client.backends("site")["backends"][0]["state"] == "up", "the backend is open")
        bed.do("exec", "sdiag", "--reset")
        began = time.monotonic()
        run = client.submit_document(document(*jobs))["run"]
        submitted = time.monotonic() - began
        until(lambda: client.status(run)["state"] == "SUCCEEDED", "the run is over", 60 + PATIENCE_PER_JOB_S * count)
        known, took = time.time(), time.monotonic() - began
        requests, busy = asked(bed)
        ends, after = [], None
        while True:
            page = client.jobs(run, pattern=f"l{LAYERS - 1}_*", after=after)
            ends += [float(row["ended_at"]) for row in page["jobs"]]
            after = page.get("next")
            if after is None:
                break
        last = max(ends)
    return Cost(requests, busy, submitted, took, known - last)


def by_script(bed: SlurmBed, count: int) -> Cost:
    """By a shell loop on the submit host, watched by squeue."""
    folder = Path(bed.share, "plain")
    bed.do("exec", "sh", "-c", f"rm -rf {folder}; install -d -o op {folder} {folder}/ids")
    (folder / "jobs").write_text(listed(count), encoding="ascii")
    (folder / "job.sh").write_text("#!/bin/sh\ntrue\n", encoding="ascii")
    bed.do("exec", "sdiag", "--reset")
    began, began_at = time.monotonic(), time.time()
    done = bed.script("exec-op", "bash", "-c", SCRIPT.format(folder=folder), timeout_s=60 + PATIENCE_PER_JOB_S * count)
    assert done.returncode == 0, done.stderr
    submitted = time.monotonic() - began
    while bed.run("squeue", "-h", "--me", "-n", "plain").strip():
        time.sleep(POLL_S)
    known, took = time.time(), time.monotonic() - began
    requests, busy = asked(bed)
    since = f"-Snow-{known - began_at + 60:.0f}seconds"
    said = bed.run("env", "SLURM_TIME_FORMAT=%s", "sacct", "-XnP", "--name=plain", since, "-oEnd")
    return Cost(requests, busy, submitted, took, known - max(float(end) for end in said.split() if end.isdecimal()))


def install_parsl(bed: SlurmBed) -> tuple[Path | None, str]:
    """Parsl in a folder that the nodes see; why not, if it cannot be had."""
    bed.do("exec", "sh", "-c", "command -v python3 || apt-get install -y -q --no-install-recommends python3")
    version = bed.run("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    target = bed.share / "parsl"
    kinds = [f"--platform={kind}" for kind in ("manylinux2014_x86_64", "manylinux_2_28_x86_64", "any")]
    abis = [f"--abi={abi}" for abi in (f"cp{version.replace('.', '')}", "abi3", "none")]
    command = [
        sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--upgrade", f"--target={target}",
        "--only-binary=:all:", f"--python-version={version}", *abis, *kinds, "parsl",
    ]  # fmt: skip
    got = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"parsl-(\S+)\.dist-info", "\n".join(path.name for path in target.glob("*")))
    if got.returncode or found is None:
        print(got.stderr, file=sys.stderr)
        return None, "parsl could not be installed here"
    return target, f"parsl {found[1]}"


def by_parsl(bed: SlurmBed, packages: Path, count: int) -> Cost:
    """By Parsl on the submit host, in pilot jobs."""
    folder = Path(bed.share, "pilots")
    bed.do("exec", "sh", "-c", f"rm -rf {folder}; install -d -o op {folder}")
    (folder / "jobs").write_text(listed(count), encoding="ascii")
    (folder / "run.py").write_text(PARSL, encoding="ascii")
    bed.do("exec", "sdiag", "--reset")
    command = f"cd {folder} && PYTHONPATH={packages} exec python3 run.py {packages} {folder} {folder}/jobs"
    done = bed.script("exec-op", "sh", "-c", command, timeout_s=120 + PATIENCE_PER_JOB_S * count)
    found = re.search(r"^TOOK (\S+) (\S+) (\S+)$", done.stdout, re.MULTILINE)
    assert found is not None, done.stderr[-3000:]
    requests, busy = asked(bed)
    return Cost(requests, busy, *map(float, found.groups()))


def asked(bed: SlurmBed) -> tuple[int, float]:
    """How many requests the operator's tools made, and the time that slurmctld spent on them."""
    text = bed.do("exec", "sdiag").partition("statistics by user")[2]
    found = re.search(r"^\s*op\s.*count:(\d+)\s.*total_time:(\d+)", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1]), int(found[2]) / 1e6
