"""A pool whose daemons are frozen or gone, or whose memory is: a real bpsd beside it says what it knows, since when."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bpsd.client.failures import RemoteError
from bpsd.client.sync import Client
from bpsd.testing.observer import document, shell_job
from tests.integration.condorbed import FIRST_SCHEDD, SECOND_SCHEDD, CondorBed
from tests.integration.daemons import FAST, RunningDaemon, until

pytestmark = pytest.mark.timeout(600)
PATIENCE_S = 180.0
SETTINGS = {
    "polling": {
        "min_interval_s": 0.5,
        "idle_interval_s": 0.5,
        "backoff_initial_s": 0.2,
        "backoff_max_s": 1.0,
        "deadline_s": 60.0,
        "stale_after_s": 5.0,
    },
    "commands": {"doubt_retry_initial_s": 0.5, "doubt_retry_max_s": 1.0, "cancel_verify_s": 2.0, "deadline_s": 60.0},
}


class Site:
    """A daemon and its two pools; violence is done to ``twin`` only."""

    def __init__(self, daemon: RunningDaemon, client: Client, twin: CondorBed, pool: CondorBed) -> None:
        self.daemon = daemon
        self.client = client
        self.twin = twin
        self.pool = pool

    def submit(self, *jobs: Any, backend: str = "twin") -> str:
        data = msgspec.json.encode(document(*jobs))
        command = self.client.wait_command(self.client.submit_document(data, backend=backend)["id"], timeout_s=90)
        assert command["state"] == "DONE", command
        return str(command["run"])

    def row(self, run: str) -> dict[str, Any]:
        return dict(self.client.report(run)["runs"][0])

    def backend(self, name: str = "twin") -> dict[str, Any]:
        return dict(self.client.backends(name)["backends"][0])

    def ping(self) -> tuple[int, str]:
        status, message, _ = self.client.backend_ping("twin")["answers"]["twin"]
        return status, message

    def sources(self, name: str = "twin") -> dict[str, str]:
        return {source["name"]: source["status"] for source in self.backend(name)["sources"]}

    def until_state(self, run: str, state: str) -> dict[str, Any]:
        return dict(
            until(
                lambda: (row := self.row(run))["state"] == state and row,
                f"{run} is {state}, not {self.row(run)}",
                PATIENCE_S,
            )
        )

    def waiting(self, backend: str = "twin") -> tuple[str, Path]:
        """A run with one job that runs until a file is there."""
        folder = self.twin.folder()
        go = folder / "scratch" / "go"
        run = self.submit(shell_job("wait_1", f"while ! test -e {go}; do sleep 0.2; done"), backend=backend)
        self.until_state(run, "RUNNING")
        until(lambda: self.row(run)["counts"].get("RUNNING") == 1, "its job runs", PATIENCE_S)
        return run, go


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pool: CondorBed, twin: CondorBed) -> Iterator[Site]:
    """The first two backends are one pool: ``second`` submits to its second schedd."""
    backends = {
        "twin": {"type": "htcondor", **twin.settings(command_deadline_s=5.0, schedds=[SECOND_SCHEDD])},
        "second": {"type": "htcondor", **twin.settings(command_deadline_s=5.0, schedd=SECOND_SCHEDD)},
        "pool": {"type": "htcondor", **pool.settings()},
    }
    with (
        RunningDaemon(tmp_path_factory.mktemp("site"), backends, **SETTINGS) as daemon,
        daemon.client() as client,
    ):
        for name in backends:
            until(partial(is_up, client, name), f"{name} is up")
        site = Site(daemon, client, twin, pool)
        yield site
        site.client.close()  # a test that starts the daemon again replaces it


def is_up(client: Client, backend: str) -> bool:
    return bool(client.backends(backend)["backends"][0]["state"] == "up")


@contextmanager
def without(twin: CondorBed, *daemons: str) -> Iterator[None]:
    """The pool's master stops these daemons, and starts them again."""
    for daemon in daemons:
        twin.as_root("condor_off", "-fast", "-daemon", daemon)
    try:
        yield
    finally:
        for daemon in daemons:
            twin.as_root("condor_on", "-daemon", daemon)
        twin.script("start")  # waits until all of it answers


def make_jobs(bed: CondorBed, count: int, *schedd: str) -> int:
    """Use up so many cluster ids of a schedd (``-name``, NAME); returns the last one."""
    each = "executable = /bin/{}\nhold = true\nqueue\n"  # another executable begins another cluster
    text = "".join(each.format(("true", "false")[n % 2]) for n in range(count))
    make = (
        'printf %s "$1" >ids.sub; shift; condor_submit -terse "$@" ids.sub'
        ' && condor_rm "$@" -constraint HoldReasonCode==15'
    )
    said = bed.run("sh", "-c", make, "sh", text, *schedd)
    return max(int(line.partition(".")[0]) for line in said.splitlines() if line[0].isdecimal())


def test_the_same_id_in_two_pools_of_the_same_names(site: Site) -> None:
    """Two runs, each of its own backend; a name that both have is not guessed at."""
    ids = {bed: make_jobs(bed, 1) for bed in (site.pool, site.twin)}
    low, high = sorted(ids, key=lambda bed: ids[bed])
    if ids[high] > ids[low]:
        make_jobs(low, ids[high] - ids[low])
    runs = {backend: site.submit(shell_job("a_1", "true"), backend=backend) for backend in ("pool", "twin")}
    rows = {backend: site.until_state(run, "SUCCEEDED") for backend, run in runs.items()}

    assert rows["pool"]["wms_id"] == rows["twin"]["wms_id"]
    assert rows["pool"]["global_wms_id"].split("#")[:2] == rows["twin"]["global_wms_id"].split("#")[:2]
    wms_id = rows["pool"]["wms_id"]
    with pytest.raises(RemoteError) as caught:
        site.client.status(wms_id)
    assert caught.value.code == "run_ambiguous"
    assert {candidate["id"] for candidate in caught.value.fields["candidates"]} == set(runs.values())
    assert {name: site.client.status(wms_id, backend=name)["id"] for name in runs} == runs


def test_one_of_two_schedds_is_frozen(site: Site) -> None:
    """The other one's runs go on; the frozen one's stay what they were, and say since when."""
    mine, go = site.waiting("twin")
    other, other_go = site.waiting("second")
    same = site.row(other)["global_wms_id"]

    def seen_from_twin() -> list[dict[str, Any]]:
        rows = site.client.report(backend=["twin"])["runs"]
        return [row for row in rows if row["global_wms_id"] == same and row["state"] == "RUNNING"]

    (in_twin,) = until(seen_from_twin, "the other backend sees it too", PATIENCE_S)
    site.twin.signal("-local-name schedd2", "STOP")
    try:
        until(lambda: site.sources().get(f"queue of {SECOND_SCHEDD}") == "failed", "the queue is not read", PATIENCE_S)
        frozen_at = site.row(other)["observed_at"]
        go.touch()
        other_go.touch()
        assert site.until_state(mine, "SUCCEEDED")["source"] == "history"
        assert site.sources()["queue"] == "ok"
        # A poll that waits for the frozen schedd takes longer than `stale_after_s` here; between those it does not.
        silent = f"queue of {SECOND_SCHEDD}: "

        def its_run_is_stale() -> bool:
            twin, status = site.backend(), site.client.status(in_twin["id"])
            return not twin["stale"] and status["stale"] and silent in status["error"]

        until(its_run_is_stale, "the run is stale and its backend is not", PATIENCE_S)
        until(lambda: silent in site.client.health()["message"], "health names the schedd", PATIENCE_S)
        assert site.backend()["state"] == "up"
        assert site.row(in_twin["id"])["observed_at"] < site.backend()["stale_before"]
        until(lambda: site.backend("second")["stale"], "the backend of the frozen schedd is stale", PATIENCE_S)
        row = site.row(other)
        assert (row["state"], row["source"]) == ("RUNNING", "queue")
        assert row["observed_at"] <= frozen_at + 5
        until(lambda: site.client.status(other)["error"], "its status says why", PATIENCE_S)  # a poll came to its end
        assert site.client.status(other)["stale"]
    finally:
        site.twin.signal("-local-name schedd2", "CONT")
    assert site.until_state(other, "SUCCEEDED")["observed_at"] > frozen_at
    assert not site.client.status(site.until_state(in_twin["id"], "SUCCEEDED")["id"])["stale"]


def test_the_schedd_is_gone(site: Site) -> None:
    """A queue that nobody answers for is not an empty queue."""
    run, go = site.waiting()
    with without(site.twin, "schedd"):
        until(lambda: site.sources().get("queue") == "failed", "the queue is not read", PATIENCE_S)
        seen_at = site.row(run)["observed_at"]
        polls = site.backend()["polls"]
        until(lambda: site.backend()["polls"] >= polls + 3, "it is asked again and again", PATIENCE_S)
        row = site.row(run)
        assert (row["state"], row["source"]) == ("RUNNING", "queue")
        assert row["observed_at"] <= seen_at + 5
        error = next(s["error"] for s in site.backend()["sources"] if s["name"] == "queue")
        assert "schedd" in error
        assert site.ping()[0] != 0
    go.touch()
    row = site.until_state(run, "SUCCEEDED")
    assert row["observed_at"] > seen_at


def test_the_collector_is_gone(site: Site) -> None:
    """The submit host's own schedd is found without it; a ping says what is wrong."""
    run, go = site.waiting()
    with without(site.twin, "collector"):
        status, message = until(lambda: (answer := site.ping())[0] and answer, "the ping says that it is not well")
        assert (status, message.partition(":")[0]) == (1, "collector")
        go.touch()
        assert site.until_state(run, "SUCCEEDED")["source"] == "history"
        assert site.sources()["queue"] == "ok"
        assert site.sources()[f"queue of {SECOND_SCHEDD}"] == "failed"


def test_history_is_rotated_away(site: Site) -> None:
    """What was seen to end stays ended; what ended unseen is UNKNOWN, and says what it was and when."""
    seen = site.submit(shell_job("a_1", "true"))
    ended = site.until_state(seen, "SUCCEEDED")
    run, go = site.waiting()
    site.daemon.kill()
    go.touch()
    until(
        lambda: len(site.twin.run("condor_q", "-allusers", "-af", "ClusterId").split()) == 0,
        "the queue is empty",
        PATIENCE_S,
    )
    before = time.time()
    site.twin.as_root("sh", "-c", ": > $(condor_config_val HISTORY)")
    site.daemon.start()

    with site.daemon.client() as site.client:
        row = site.until_state(run, "UNKNOWN")
        assert row["last_known"] == "RUNNING"
        assert row["last_known_at"] <= before
        assert "history" in row["note"]
        row = site.row(seen)
        assert (row["state"], row["source"], row["ended_at"]) == ("SUCCEEDED", "history", ended["ended_at"])


def run_of_others(bed: CondorBed, name: str, schedd: str = FIRST_SCHEDD) -> str:
    """Submit a DAG of one long job without bpsd, as ``bps submit`` does; returns its global id."""
    script = """
set -e
mkdir -p "$HOME/others/$1"; cd "$HOME/others/$1"
printf 'executable = /bin/sleep\\narguments = 600\\nlog = a.log\\nqueue\\n' >a.sub
echo 'JOB a a.sub' >run.dag
condor_submit_dag -f -no_submit run.dag >/dev/null
cluster=$(condor_submit -terse -name "$2" -append 'My.bps_isjob = "True"' -append "My.bps_run = \\"$1\\"" \\
    run.dag.condor.sub)
condor_q -name "$2" -af GlobalJobId -constraint "ClusterId == ${cluster%%.*}" | head -n 1
"""
    return bed.run("sh", "-c", script, "sh", name, schedd).strip()


def find(site: Site, global_wms_id: str, backend: str = "twin") -> dict[str, Any] | None:
    """Return the row of a run of a backend that runs now, by its global id."""
    rows = site.client.report()["runs"]
    found = [row for row in rows if row["global_wms_id"] == global_wms_id and row["state"] == "RUNNING"]
    return next((row for row in found if row["backend"] == backend), None)


def begin_again(bed: CondorBed) -> None:
    """Empty the pool's queues and histories: its schedds count from 1 again."""
    for mode in ("stop", "wipe", "start"):
        done = bed.script(mode)
        assert done.returncode == 0, f"{mode}: {done.stdout}{done.stderr}"


def test_the_schedd_counts_from_1_again(site: Site) -> None:
    """The id of a lost run goes to another person's run: two runs, and no order for the one reaches the other."""
    begin_again(site.twin)
    old_global = run_of_others(site.twin, "old")
    old = until(lambda: find(site, old_global), "the first run is seen", PATIENCE_S)
    begin_again(site.twin)
    cluster = int(old["wms_id"].partition(".")[0])
    if cluster > 1:
        make_jobs(site.twin, cluster - 1)

    new_global = run_of_others(site.twin, "new")
    new = until(lambda: find(site, new_global), "the other run is seen", PATIENCE_S)

    assert new["wms_id"] == old["wms_id"]
    assert new["id"] != old["id"]
    assert new["name"] == "new"
    lost = site.until_state(old["id"], "UNKNOWN")
    assert (lost["last_known"], lost["name"], lost["global_wms_id"]) == ("RUNNING", "old", old_global)
    assert site.client.status(new["wms_id"], backend="twin")["id"] == new["id"]
    for verb in ("cancel", "hold", "release", "restart"):
        command = site.client.wait_command(getattr(site.client, verb)(old["id"])["id"], timeout_s=90)
        assert command["state"] == "FAILED", command
    queue = site.twin.run("condor_q", "-allusers", "-af", "GlobalJobId", "JobStatus").split("\n")
    assert [line.split()[1] for line in queue if line.startswith(f"{new_global} ")] == ["2"]
    assert site.row(new["id"])["state"] == "RUNNING"
    command = site.client.wait_command(site.client.cancel(new["id"])["id"], timeout_s=90)
    assert command["state"] == "DONE", command


def test_another_schedd_in_the_configuration(site: Site) -> None:
    """After ``schedd:`` changed, the run of the old schedd is not the run with its id on the new one."""
    begin_again(site.twin)
    old_global = run_of_others(site.twin, "first")
    old = until(lambda: find(site, old_global), "the first run is seen", PATIENCE_S)
    number = int(old["wms_id"].partition(".")[0])
    if number > 1:
        make_jobs(site.twin, number - 1, "-name", SECOND_SCHEDD)
    new_global = run_of_others(site.twin, "second", SECOND_SCHEDD)
    assert new_global.split("#")[:2] == [SECOND_SCHEDD, old["wms_id"]]
    settings = {"type": "htcondor", **site.twin.settings(command_deadline_s=5.0, schedd=SECOND_SCHEDD)}

    site.daemon.configure({**FAST, **SETTINGS, "backends": {"twin": settings}})
    assert site.daemon.process is not None
    site.daemon.process.send_signal(signal.SIGHUP)
    new = until(lambda: find(site, new_global, "twin"), "the run of the other schedd is seen", PATIENCE_S)

    assert (new["wms_id"], new["name"]) == (old["wms_id"], "second")
    assert new["id"] != old["id"]
    assert site.until_state(old["id"], "UNKNOWN")["last_known"] == "RUNNING"
    site.client.cancel(old["id"])

    def left() -> list[str]:
        return site.twin.run("condor_q", "-allusers", "-af", "GlobalJobId").split()

    until(lambda: old_global not in left(), "the cancel reached the schedd of the old run", PATIENCE_S)
    there = site.twin.run("condor_q", "-name", SECOND_SCHEDD, "-allusers", "-af", "GlobalJobId", "JobStatus")
    assert f"{new_global} 2" in there.splitlines()
    assert site.row(new["id"])["state"] == "RUNNING"
