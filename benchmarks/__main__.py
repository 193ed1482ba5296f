"""Measure everything, print the table, and write it to ``docs/benchmarks.md``.

``python -m benchmarks [PART...]`` measures some parts and prints them only.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks import busy, growth, jobs, lsst, million, pool, reads, slurm, synthetic, watchers
from benchmarks.measure import Line
from bpsd import __version__

PARTS: dict[str, Callable[[Path], list[Line]]] = {
    "status": reads.status,
    "report": reads.report,
    "bpsctl": reads.bpsctl,
    "polls": busy.under_polls,
    "big-poll": busy.under_big_poll,
    "submit": busy.under_submit,
    "crowd": busy.crowd,
    "watchers": watchers.watchers,
    "jobs": jobs.local,
    "slurm": slurm.controller,
    "idle": reads.idle,
    "growth": growth.growth,
    "million": million.million,
    "bps": lsst.bps_reports,
    "htcondor": pool.htcondor,
    "htcondor-load": pool.load,
}

TABLE = Path(__file__).resolve().parent.parent / "docs/benchmarks.md"

HEADER = """# Benchmarks

`make bench` measures all of this in one run and writes this page; ratios are of what ran side by side, in turns.

{date}, bpsd {version}, Python {python}, SQLite {sqlite}, msgspec {msgspec}, {make}, Linux {linux}, {cores} cores
({cpu}), load before and after {before:.1f} and {after:.1f}.{shared}

Latencies under load are counted from when a request was due (one every 5 ms), so that a standstill counts for all the
requests that it delays; beside them stand those of the same daemon with nothing to do. Time in the daemon is CPU time
of its process. The synthetic WMS behind some lines costs nothing and speaks in small steps: what is measured is the
daemon. Memory is the resident memory of the daemon's process.

| what | bpsd | beside it | ratio | target | met |
| --- | --- | --- | --- | --- | --- |
"""

SHARED = " Other work shared the machine: single figures are high, ratios tell."


def main(wanted: list[str]) -> int:
    """Measure; returns 1 if a target is missed."""
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    before = os.getloadavg()[0]
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as name:
        folder = Path(name)
        with synthetic.installed(folder):
            for part in wanted or PARTS:
                print(f"{part} ...", file=sys.stderr, flush=True)
                measured = PARTS[part](folder / part)
                print("\n".join(map(row, measured)), flush=True)
                lines += measured
    if not wanted:
        TABLE.write_text(header(before) + "".join(f"{row(line)}\n" for line in lines), encoding="utf-8")
        print(f"written: {TABLE}", file=sys.stderr)
    return int(any(line.met is False for line in lines))


def row(line: Line) -> str:
    """A line of the table."""
    ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
    met = {True: "yes", False: "**no**", None: ""}[line.met]
    ours = f"{line.ours}; {line.note}" if line.note else line.ours
    return f"| {line.name} | {ours} | {line.baseline} | {ratio} | {line.target_text} | {met} |"


def header(before: float) -> str:
    """What stands above the table."""
    make = subprocess.run(["make", "--version"], capture_output=True, text=True, check=False).stdout
    return HEADER.format(
        date=time.strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
        msgspec=msgspec.__version__,
        make=make.partition("\n")[0],
        linux=platform.release(),
        cores=len(os.sched_getaffinity(0)),
        cpu=processor(),
        before=before,
        after=os.getloadavg()[0],
        shared=SHARED if before > 0.5 else "",
    )


def processor() -> str:
    """Its name (`/proc/cpuinfo`)."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
