"""Users of one machine cannot hurt one another: the system's daemon on a real systemd, with real users and logind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.systemdbed import PROGRAMS, SystemdBed
from tests.integration.test_systemd import HERE, SITE, answer, bed, serving, until_state

__all__ = ["bed", "serving"]

pytestmark = pytest.mark.timeout(300)

BOB = "bob"
TRACE = f"/home/{BOB}/trace"
GO = f"/home/{BOB}/go"
LIMITED = {**SITE, "backends": {**SITE["backends"], "here": {**HERE, "cores": 2, "memory_mb": 600}}}  # type: ignore[dict-item]  # a mapping


@pytest.fixture
def users(serving: SystemdBed) -> SystemdBed:
    """The daemon with a backend of two cores, and nothing left of earlier runs."""
    serving.run("rm", "-rf", TRACE, GO)
    serving.configure(LIMITED)
    serving.run("systemctl", "restart", "bpsd.service")
    return serving


def waiting_job(cores: int = 2) -> str:
    script = f"echo + >> {TRACE}; while [ ! -e {GO} ]; do sleep 0.1; done; echo - >> {TRACE}"
    job = {"name": "j0", "label": "x", "executable": "/bin/sh", "arguments": f"-c '{script}'", "request_cpus": cores}
    return json.dumps({"name": "u/waits", "jobs": [job]})


def submit(bed: SystemdBed, user: str, document: str) -> str:
    return str(bed.bpsctl(user, "submit", "--backend", "here", "-", input=document)["run"])


def uid_of(bed: SystemdBed, user: str) -> str:
    return bed.run("id", "-u", user).strip()


def job_state(bed: SystemdBed, run: str) -> str:
    (job,) = bed.bpsctl("bob", "jobs", run)["jobs"]
    return str(job["state"])


def test_a_logout_during_a_run_gives_no_core_twice(users: SystemdBed) -> None:
    """At a user's last logout, logind removes all that the user has in /dev/shm (RemoveIPC)."""
    first = submit(users, "bob", waiting_job())
    users.until("the first job", lambda: job_state(users, first) == "RUNNING")
    second = submit(users, "bob", waiting_job())
    until_state(users, second, "RUNNING")

    users.run("runuser", "-u", "bob", "--", "touch", "/dev/shm/of-bob")
    users.run("su", "-", "bob", "-c", "true")
    users.until("RemoveIPC", lambda: users.try_("test", "-e", "/dev/shm/of-bob").returncode != 0)
    third = submit(users, "bob", waiting_job())
    until_state(users, third, "RUNNING")

    assert [job_state(users, run) for run in (first, second, third)] == ["RUNNING", "READY", "READY"]
    users.run("runuser", "-u", "bob", "--", "touch", GO)
    for run in (first, second, third):
        until_state(users, run, "SUCCEEDED")
    assert users.run("cat", TRACE).split() == ["+", "-"] * 3


def test_nobody_can_take_or_block_another_users_ledger(users: SystemdBed) -> None:
    bob = uid_of(users, "bob")
    users.run("runuser", "-u", "alice", "--", "sh", "-c", f"echo x > /dev/shm/bpsd-ledger-{bob}")
    try:
        run = submit(users, "bob", waiting_job())
        users.until("the job", lambda: job_state(users, run) == "RUNNING")
        (ledger,) = users.run("find", f"/var/lib/bpsd-runs/{bob}/ledger", "-type", "f").split()
        for command in (f"echo x > {ledger}", f"rm -f {ledger}", f"touch /var/lib/bpsd-runs/{bob}/ledger/x"):
            assert users.as_user("alice", "sh", "-c", command).returncode != 0

        # Where bob's own ledger cannot be used, it is said, with whose it is.
        users.run("runuser", "-u", "bob", "--", "sh", "-c", f"rm {ledger}; mkdir {ledger}")

        def trouble() -> list[dict[str, Any]]:
            (row,) = (each for each in users.bpsctl("bob", "backends")["backends"] if each["name"] == "here")
            return [source for source in row["sources"] if source["status"] != "ok"]

        (source,) = users.until("the trouble", trouble)
        assert (source["user"], "ledger" in source["error"]) == ("bob", True)
        told = users.as_user("olga", f"{PROGRAMS}/bpsctl", "health")
        assert (told.returncode, "ledger" in told.stdout) == (1, True)
        users.run("rmdir", ledger)
        users.until("all is well", lambda: not trouble())
        users.run("runuser", "-u", "bob", "--", "touch", GO)
        until_state(users, run, "SUCCEEDED")
    finally:
        users.run("rm", "-f", f"/dev/shm/bpsd-ledger-{bob}")


def test_a_stopped_agent_delays_only_its_owner(users: SystemdBed) -> None:
    bobs = submit(users, "bob", waiting_job())
    users.until("bob's job", lambda: job_state(users, bobs) == "RUNNING")
    (unit,) = (
        word
        for word in users.run(
            "systemctl", "list-units", "--plain", "--no-legend", f"bpsd-agent-{uid_of(users, 'bob')}-*"
        ).split()
        if word.endswith(".service")
    )
    pid = users.properties(unit, "MainPID")["MainPID"]
    assert users.as_user("bob", "sh", "-c", f"kill -STOP {pid}").returncode == 0
    try:
        document = json.dumps(
            {"name": "u/a", "jobs": [{"name": "j0", "label": "x", "executable": "/bin/true", "request_cpus": 1}]}
        )
        for _ in range(2):
            until_state(users, submit(users, "alice", document), "SUCCEEDED")

        def row() -> dict[str, Any]:
            (found,) = (each for each in users.bpsctl("alice", "backends")["backends"] if each["name"] == "here")
            return dict(found)

        def bad() -> list[dict[str, Any]]:
            return [source for source in row()["sources"] if source["status"] != "ok"]

        (source,) = users.until("who is in trouble", bad)
        assert (source["user"], source["name"]) == ("bob", "log")
        assert row()["state"] == "up"
        assert row()["poll_cost_s"] < 2.0  # what everybody's interval is made of
        assert "bob" in users.as_user("olga", f"{PROGRAMS}/bpsctl", "backends", "-v").stdout
    finally:
        users.run("sh", "-c", f"kill -CONT {pid}")
        users.run("runuser", "-u", "bob", "--", "touch", GO)
    until_state(users, bobs, "SUCCEEDED")


def test_units_and_their_slice_have_the_limits_of_the_backend(users: SystemdBed) -> None:
    run = submit(users, "bob", waiting_job())
    users.until("the job", lambda: job_state(users, run) == "RUNNING")
    units = users.run("systemctl", "list-units", "--plain", "--no-legend", f"bpsd-run-{uid_of(users, 'bob')}-*").split()
    (unit,) = (word for word in units if word.endswith(".service"))
    names = ("CPUQuotaPerSecUSec", "MemoryMax", "TasksMax")

    assert users.properties(unit, *names) == {
        "CPUQuotaPerSecUSec": "2s",
        "MemoryMax": str((600 + 128) * 2**20),
        "TasksMax": "3072",
    }
    assert users.properties("bpsd.slice", *names) == {
        "CPUQuotaPerSecUSec": "2s",
        "MemoryMax": str((600 + 1024) * 2**20),
        "TasksMax": "3072",
    }
    users.run("runuser", "-u", "bob", "--", "touch", GO)
    assert answer(users, "olga", "--id", run)["owner"] == "bob"
    until_state(users, run, "SUCCEEDED")
