"""Two thousand jobs that do nothing: the local backend beside GNU make and Parsl, all with output to files."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from tests.integration.daemons import RunningDaemon

from benchmarks.measure import Line, daemon

JOBS = 2000
ROUNDS = 3
PARSL_DEADLINE_S = 600

PARSL = """
import sys, time, parsl
from parsl import bash_app
from parsl.config import Config
kind, folder, jobs = sys.argv[1], sys.argv[2], int(sys.argv[3])
if kind == "threads":
    from parsl.executors import ThreadPoolExecutor
    executor = ThreadPoolExecutor(max_threads=2)
else:
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider
    here = LocalProvider(init_blocks=1, max_blocks=1)
    executor = HighThroughputExecutor(address="127.0.0.1", max_workers_per_node=2, encrypted=False, provider=here)
parsl.load(Config(executors=[executor], run_dir=folder, usage_tracking=0, initialize_logging=False))

@bash_app
def job(stdout=None, stderr=None):
    return "true"

job(stdout=f"{folder}/warm.out", stderr=f"{folder}/warm.err").result()
began = time.perf_counter()
for done in [job(stdout=f"{folder}/{n}.out", stderr=f"{folder}/{n}.err") for n in range(jobs)]:
    done.result()
print("TOOK", time.perf_counter() - began)
parsl.dfk().cleanup()
"""


def local(folder: Path) -> list[Line]:
    """Alternate between the three."""
    folder.mkdir()
    parsl, version = install_parsl(folder)
    times: dict[str, list[float]] = {"local": [], "driver": [], "make": [], "threads": [], "htex": []}
    with daemon(folder / "daemon") as running:
        for number in range(ROUNDS):
            seen, driven = by_bpsd(running)
            times["local"].append(seen)
            times["driver"].append(driven)
            times["make"].append(by_make(folder / f"make{number}"))
            if parsl is not None:
                for kind in ("threads", "htex"):
                    took = by_parsl(parsl, kind, folder / f"{kind}{number}")
                    if took is not None:
                        times[kind].append(took)
    ours = statistics.median(times["local"])
    make = statistics.median(times["make"])
    lines = [
        Line(
            f"{JOBS:,} x `true` through the local backend, from submit until SUCCEEDED is seen",
            f"{ours:.1f} s ({ours / JOBS * 1e3:.2f} ms each)",
            f"`make -j2`: {make:.1f} s",
            ours / make,
            ours / make,
            2.0,
            "<= 2x make",
            f"from the run's start to its end: {statistics.median(times['driver']):.1f} s",
        )
    ]
    for kind, name in (("threads", "ThreadPoolExecutor"), ("htex", "HighThroughputExecutor, LocalProvider")):
        if not times[kind]:
            lines.append(Line(f"the same beside Parsl's {name}", f"{ours:.1f} s", version))
            continue
        theirs = statistics.median(times[kind])
        lines.append(
            Line(
                f"the same beside Parsl's {name}",
                f"{ours:.1f} s",
                f"{version}: {theirs:.1f} s",
                ours / theirs,
                ours / theirs,
                1.0,
                "faster",
            )
        )
    return lines


def by_bpsd(running: RunningDaemon) -> tuple[float, float]:
    """Submit and wait; seconds as the client sees them, and as the run has them."""
    jobs = [{"name": f"true_{number}", "label": "true", "executable": "true"} for number in range(JOBS)]
    document = msgspec.json.encode({"bpsd": 1, "name": "trues", "jobs": jobs})
    with running.client(timeout_s=300) as client:
        began = time.perf_counter()
        run = client.submit_document(document)["run"]
        while (status := client.status(run))["state"] not in ("SUCCEEDED", "FAILED", "DELETED"):
            time.sleep(0.02)
        took = time.perf_counter() - began
        assert status["state"] == "SUCCEEDED", status
        row = client.report(run)["runs"][0]
        assert row["counts"] == {"SUCCEEDED": JOBS}, row["counts"]
        return took, row["ended_at"] - (row["started_at"] or row["submitted_at"])


def by_make(folder: Path) -> float:
    """The same commands, as targets of a Makefile."""
    folder.mkdir()
    targets = " ".join(f"j{number}" for number in range(JOBS))
    (folder / "Makefile").write_text(f"all: {targets}\n{targets}:\n\t@true > $@.out 2> $@.err\n", encoding="ascii")
    began = time.perf_counter()
    subprocess.run(["make", "-s", "-j2"], cwd=folder, check=True)
    took = time.perf_counter() - began
    assert len(list(folder.glob("*.out"))) == JOBS
    return took


def install_parsl(folder: Path) -> tuple[Path | None, str]:
    """Parsl in an environment of its own; why not, if it cannot be had."""
    made = subprocess.run([sys.executable, "-m", "venv", folder / "venv"], capture_output=True, check=False)
    python = folder / "venv/bin/python"
    if made.returncode == 0:
        got = subprocess.run(
            [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "parsl"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PARSL_DEADLINE_S,
        )
        if got.returncode == 0:
            shown = subprocess.run([python, "-m", "pip", "show", "parsl"], capture_output=True, text=True, check=True)
            found = re.search(r"^Version: (.*)$", shown.stdout, re.MULTILINE)
            return python, f"parsl {found[1] if found else ''}"
    return None, "parsl could not be installed here"


def by_parsl(python: Path, kind: str, folder: Path) -> float | None:
    """The same commands as bash apps; without the time that Parsl takes to start."""
    folder.mkdir()
    script = folder / "run.py"
    script.write_text(PARSL, encoding="ascii")
    env = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(folder)}
    try:
        done = subprocess.run(
            [python, script, kind, folder, str(JOBS)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PARSL_DEADLINE_S,
            env=env,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        return None
    found = re.search(r"^TOOK (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    return float(found[1])
