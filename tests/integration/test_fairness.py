"""Users take turns on a backend: nobody's submissions delay another's, and nobody's commands are without a limit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bpsd.client.sync import Client
from tests.integration.daemons import RunningDaemon, document, true_job, until
from tests.integration.test_rights import as_user, refused

ANN, BOB = 65531, 65532
BACKENDS: dict[str, Any] = {"a": {"type": "scripted", "submitters": {"users": ["*"]}}}
SLOTS = 4


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def people(folder: Path) -> Iterator[tuple[RunningDaemon, Client, Client]]:
    """A daemon of this host, and two users who are connected to it."""
    commands = {"at_once_per_backend": SLOTS, "submissions_per_user": 45, "runs_per_user": 60}
    with RunningDaemon(folder, BACKENDS, mode="system", commands=commands) as daemon, ExitStack() as stack:
        clients = []
        for uid in (ANN, BOB):
            with as_user(uid):
                clients.append(stack.enter_context(daemon.client()))
                clients[-1].ping()
        yield daemon, clients[0], clients[1]


def submit(client: Client, number: int) -> dict[str, Any]:
    return client.submit_document(document(true_job(f"j{number}"), name=f"run{number}"), backend="a")


def done(client: Client, command: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        row: dict[str, Any] = client.commands(id=command)["commands"][0]
        return row if row["state"] == "DONE" else None

    row: dict[str, Any] = until(over, f"{command} is done")
    return row


def test_a_queue_of_one_user_does_not_delay_another(people: tuple[RunningDaemon, Client, Client]) -> None:
    daemon, ann, bob = people
    daemon.wms("a").fault("submit", "slow", times=SLOTS - 1, seconds=15.0)  # while the queue grows
    queued = [submit(ann, number)["id"] for number in range(40)]
    asked = submit(bob, 1)["id"]
    mine = done(bob, asked)

    rows = [ann.commands(id=command)["commands"][0] for command in queued]
    ahead = [row for row in rows if row["started_at"] and mine["accepted_at"] < row["started_at"] < mine["started_at"]]
    assert len(ahead) <= SLOTS
    for command in queued:
        done(ann, command)
    assert len(daemon.wms("a").read().runs) == 41


def test_a_command_that_waits_says_where_it_stands(people: tuple[RunningDaemon, Client, Client]) -> None:
    daemon, ann, bob = people
    daemon.wms("a").fault("submit", "hang")
    queued = [submit(ann, number) for number in range(7)]
    own = submit(bob, 1)
    rows = {row["id"]: row for row in bob.commands(state=["ACCEPTED"])["commands"]}
    places = {row["position"]: row["note"] for row in rows.values()}

    assert places == {
        1: "1st of 5 waiting on backend a",
        2: "2nd of 5 waiting on backend a",
        3: "3rd of 5 waiting on backend a",
        4: "4th of 5 waiting on backend a",
        5: "5th of 5 waiting on backend a",
    }
    assert rows[own["id"]]["position"] == 2  # after one of hers, before the rest
    assert {row["waiting"] for row in rows.values()} == {5}
    running = bob.commands(state=["RUNNING"])["commands"]
    assert [(row["position"], row["waiting"]) for row in running] == [(None, None)] * (SLOTS - 1)
    assert {row["id"] for row in running} < {row["id"] for row in queued}


def test_quick_commands_do_not_wait_behind_submissions(people: tuple[RunningDaemon, Client, Client]) -> None:
    daemon, ann, bob = people
    first, own = submit(bob, 1), submit(ann, 0)
    done(bob, first["id"])
    done(ann, own["id"])
    daemon.wms("a").fault("submit", "hang")
    queued = [submit(ann, number) for number in range(1, 9)]

    done(bob, bob.cancel(first["run"])["id"])
    done(ann, ann.cancel(own["run"])["id"])  # nor behind one's own
    cancelled = ann.cancel(queued[-1]["run"])["id"]
    done(ann, cancelled)

    assert ann.commands(id=queued[-1]["id"])["commands"][0]["state"] == "SUPERSEDED"
    assert [row["state"] for row in ann.commands(state=["RUNNING"])["commands"]] == ["RUNNING"] * (SLOTS - 1)


def test_a_command_that_waits_for_its_turn_expires(people: tuple[RunningDaemon, Client, Client]) -> None:
    daemon, ann, bob = people
    daemon.wms("a").fault("submit", "hang")
    for number in range(SLOTS):
        submit(ann, number)
    data = document(true_job("x"))
    command = bob.submit_document(data, backend="a", expires_s=1.0)["id"]
    row = until(
        lambda: (row := bob.commands(id=command)["commands"][0])["state"] == "EXPIRED" and row, "its time is over"
    )
    assert (row["position"], row["started_at"]) == (None, None)


def test_submissions_and_active_runs_of_a_user_have_limits(people: tuple[RunningDaemon, Client, Client]) -> None:
    daemon, ann, bob = people
    for number in range(30):
        done(ann, submit(ann, number)["id"])
    daemon.wms("a").fault("submit", "hang")
    for number in range(30):
        submit(ann, number)
    words = refused("limit_exceeded", submit, ann, 60)
    assert "has 60 active runs, as many as commands.runs_per_user allows" in words

    for number in range(45):
        submit(bob, number)
    words = refused("limit_exceeded", submit, bob, 45)
    assert "45 unfinished submissions of user #65532, as many as commands.submissions_per_user allows" in words
    some = bob.list_runs(mine=True)["runs"][0]["id"]
    assert bob.cancel(some)["verb"] == "cancel"  # the limit is of submissions
