"""A real HTCondor pool: what `bps report`, `condor_q` and `bpsctl report` cost those who ask, and the schedd.

Measured in the bed of the tests, by root alone; elsewhere there is nothing to measure.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
from tests.integration.condorbed import CondorBed
from tests.integration.daemons import RunningDaemon, until

from benchmarks.measure import Line, cpu_s
from bpsd.testing.contract import Bed
from bpsd.testing.observer import document, shell_job
from bpsd_adapters.htcondor.service import HTCondorService

RUNS = 20
QUEUED = 50_000
ROUNDS = 7
USERS = 100
WINDOW_S = 20.0
"""How long the schedd is watched; every user asks once in that time."""

PATIENCE_S = 300.0
POLLS = 20
PAUSE_S = 1.0
BUDGET_S = 0.2
BUDGET_BYTES = 100_000 + 1_000 * RUNS
SCRIPT = Path(__file__).parents[1] / "tests/testbeds/bps_runs.py"
BPS = "from lsst.ctrl.bps.cli.bps import main; main()"
UPSTREAM = ("env", "PYTHONPATH=/opt/lsst", "PYTHONPYCACHEPREFIX=/home/op/.cache/python", "COLUMNS=200",
            "BPS_WMS_SERVICE_CLASS=lsst.ctrl.bps.htcondor.HTCondorService", "python3")  # fmt: skip


class Load(NamedTuple):
    """What a schedd bore in some time: commands, bytes that it wrote, seconds of its CPU."""

    queries: int
    bytes: int
    cpu_s: float
    took_s: float

    def per_minute(self) -> str:
        """For the table."""
        share = 60 / self.took_s
        return (
            f"{self.queries * share:.0f} queries/min, {self.bytes * share / 1e3:,.0f} kB/min, "
            f"{self.cpu_s * share * 1e3:.0f} ms CPU/min"
        )


class Schedd:
    """The schedd of a bed, and how to see what it does: its log names each command, `/proc` what it wrote."""

    def __init__(self, bed: CondorBed) -> None:
        self._bed = bed
        bed.as_root("sh", "-c", "echo SCHEDD_DEBUG = D_COMMAND >/etc/condor/config.d/70-count; condor_reconfig -schedd")
        found = bed.as_root("sh", "-c", "pgrep -f 'condor_schedd$' || pgrep -o condor_schedd").split()[0]
        self.pid = outside(int(bed.script("init-pid").stdout), int(found))
        self._log = bed.root / "var/log/condor/SchedLog"

    def now(self) -> Load:
        """Since it began, but for the CPU."""
        text = self._log.read_text(errors="replace")
        queries = sum("QUERY_JOB_ADS" in line or "QMGMT_READ" in line for line in text.splitlines())
        io = dict(line.split(": ") for line in Path(f"/proc/{self.pid}/io").read_text().splitlines())
        return Load(queries, int(io["wchar"]), cpu_s(self.pid), time.monotonic())

    def during(self, work: Callable[[], None]) -> Load:
        """What it bore while something was done."""
        began = self.now()
        work()
        ended = self.now()
        return Load(
            ended.queries - began.queries,
            ended.bytes - began.bytes,
            ended.cpu_s - began.cpu_s,
            ended.took_s - began.took_s,
        )


def outside(init: int, inside: int) -> int:
    """The process id, here, of one in the bed's namespace."""
    namespace = Path(f"/proc/{init}/ns/pid").readlink()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if (folder / "ns/pid").readlink() == namespace and f"\t{inside}\n" in (folder / "status").read_text():
                    return int(folder.name)
            except OSError:
                continue  # it has ended
    raise LookupError(inside)


@contextmanager
def site(folder: Path) -> Iterator[tuple[CondorBed, RunningDaemon]]:
    """The pool, and a daemon beside it with the settings that everybody has."""
    bed = CondorBed()
    folder.mkdir()
    with ExitStack() as stack:
        bed.start()
        stack.callback(bed.stop)
        backends = {"usdf": {"type": "htcondor", **bed.settings()}}
        running = RunningDaemon(folder, backends)
        running.configure({"backends": backends, "logs": {"level": "warning"}})
        stack.enter_context(running)
        with running.client() as client:
            until(lambda: client.backends("usdf")["backends"][0]["state"] == "up", "the pool is seen")
            text = msgspec.json.encode(document(*(shell_job(f"long_{n}", "sleep 1800") for n in range(3))))
            for _ in range(RUNS):
                client.wait_command(client.submit_document(text, backend="usdf")["id"], timeout_s=PATIENCE_S)
        yield bed, running


def htcondor(folder: Path) -> list[Line]:
    """Answers, and polls beside a full queue; nothing where there is no bed."""
    if not built():
        return []
    with site(folder) as (bed, running):
        return [*answers(bed, running), *beside_a_queue(bed, running)]


def load(folder: Path) -> list[Line]:
    """What the schedd bears; nothing where there is no bed."""
    if not built():
        return []
    with site(folder) as (bed, running):
        shutil.copy(SCRIPT, bed.root / "tmp" / SCRIPT.name)
        return loads(bed, running, Schedd(bed))


def built() -> bool:
    """Whether there is a bed, and we may start it."""
    there = os.geteuid() == 0 and (CondorBed().root / ".htcbed-built").exists()
    if not there:
        print("no HTCondor bed here: `make beds` as root builds it", file=sys.stderr)
    return there


def process_s(argv: list[str]) -> float:
    """How long a process takes."""
    began = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return time.perf_counter() - began


def enter(bed: CondorBed) -> list[str]:
    """What goes before a command that runs in the bed as its operator, without a shell."""
    init = bed.script("init-pid").stdout.strip()
    who = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "env", "-i", "HOME=/home/op", "USER=op"]
    return ["nsenter", "-t", init, "-m", "-p", "-u", "-r", "-w", "--", *who, "PATH=/usr/bin:/bin", "LOGNAME=op"]


def bpsctl(running: RunningDaemon) -> list[str]:
    """``bpsctl report`` as a process."""
    return [sys.executable, "-m", "bpsd.cli.bpsctl", "--socket", str(running.socket), "report"]


def answers(bed: CondorBed, running: RunningDaemon) -> list[Line]:
    """How long a person waits for the runs of the pool, by each command in turn."""
    ways = {
        "bpsctl report": bpsctl(running),
        "condor_q": [*enter(bed), "condor_q"],
        "bps report": [*enter(bed), *UPSTREAM, "-c", BPS, "report"],
    }
    process_s(ways["bps report"])  # compiles it
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, argv in ways.items():
            taken[name].append(process_s(argv))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    ours = medians.pop("bpsctl report")
    return [
        Line(
            f"HTCondor, {RUNS} live runs: `bpsctl report` as a process",
            f"median {ours * 1e3:.0f} ms",
            f"`{name}`: {theirs * 1e3:.0f} ms",
            ours / theirs,
        )
        for name, theirs in medians.items()
    ]


def loads(bed: CondorBed, running: RunningDaemon, schedd: Schedd) -> list[Line]:
    """What the schedd bears while people watch, each asking once in the window, without bpsd and with it."""
    running.stop()
    idle = schedd.during(lambda: time.sleep(WINDOW_S))

    def ask_by_condor_q(users: int) -> None:
        spread(users, lambda: process_s([*enter(bed), "condor_q"]))

    def ask_by_bps(users: int) -> None:
        # Its own queries, without the 2 s of imports of each: this machine could not start so many.
        process_s([*enter(bed), *UPSTREAM, f"/tmp/{SCRIPT.name}", "watch", str(users), str(WINDOW_S)])

    def ask_bpsd(users: int) -> None:
        spread(users, lambda: process_s(bpsctl(running)))

    seen: dict[str, Load] = {}
    for users in (1, USERS):
        seen[f"{users} by condor_q"] = schedd.during(partial(ask_by_condor_q, users))
        seen[f"{users} by bps report"] = schedd.during(partial(ask_by_bps, users))
    running.start()
    with running.client() as client:
        client.refresh("usdf", timeout_s=60)
    for users in (1, USERS):
        seen[f"{users} by bpsctl"] = schedd.during(partial(ask_bpsd, users))
    lines = [Line("load on the schedd while nobody watches, without bpsd", idle.per_minute())]
    for users in (1, USERS):
        ours = seen[f"{users} by bpsctl"]
        for other in ("condor_q", "bps report"):
            theirs = seen[f"{users} by {other}"]
            lines.append(
                Line(
                    f"load on the schedd with {users} watching, each asking every {WINDOW_S:.0f} s",
                    ours.per_minute(),
                    f"by `{other}`, without bpsd: {theirs.per_minute()}",
                    ours.queries / ours.took_s / max(1, theirs.queries) * theirs.took_s,
                )
            )
    return lines


def spread(users: int, ask: Callable[[], object]) -> None:
    """Let so many users ask, evenly over the window, and wait until it is over."""
    began = time.monotonic()
    threads = []
    for n in range(users):
        time.sleep(max(0.0, began + n * WINDOW_S / users - time.monotonic()))
        threads.append(threading.Thread(target=ask))
        threads[-1].start()
    for thread in threads:
        thread.join()
    time.sleep(max(0.0, began + WINDOW_S - time.monotonic()))


async def polls(bed: CondorBed, folder: Path) -> list[tuple[float, int]]:
    """Seconds and bytes of each poll, once the runs are known."""
    taken = []
    async with Bed(HTCondorService, bed.settings(), folder).open() as observer:
        await observer.poll()
        for _ in range(POLLS):
            began = time.perf_counter()
            result = await observer.poll()
            taken.append((time.perf_counter() - began, sum(source.cost_bytes for source in result.sources)))
            assert all(source.status == "ok" for source in result.sources), result.sources
            await anyio.sleep(PAUSE_S)
    return taken


def beside_a_queue(bed: CondorBed, running: RunningDaemon) -> list[Line]:
    """What a poll costs when the queue is full of other people's jobs."""
    text = f"executable = /bin/true\nhold = true\nqueue {QUEUED}\n"
    bed.run("sh", "-c", 'printf %s "$1" >many.sub && condor_submit -terse many.sub', "sh", text)
    running.stop()  # what is measured is not to wait for its polls
    taken = anyio.run(polls, bed, running.folder)
    running.start()
    costs, sizes = [cost for cost, _ in taken], [size for _, size in taken]
    took = process_s([*enter(bed), "condor_q"])
    report = process_s([*enter(bed), *UPSTREAM, "-c", BPS, "report"])
    cost, size = statistics.median(costs), max(sizes)
    name = f"a poll of {RUNS} live runs beside {QUEUED:,} queued jobs"
    return [
        Line(
            f"{name}, over SSH",
            f"median {cost * 1e3:.0f} ms, most {max(costs) * 1e3:.0f} ms",
            f"`condor_q`: {took:.2f} s, `bps report`: {report:.2f} s",
            cost / took,
            cost,
            BUDGET_S,
            f"<= {BUDGET_S} s",
        ),
        Line(
            f"{name}, bytes",
            f"most {size / 1e3:.1f} kB",
            figure=size,
            target=BUDGET_BYTES,
            target_text="<= 100 kB + 1 kB per live run",
        ),
    ]
