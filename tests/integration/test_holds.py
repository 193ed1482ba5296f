"""Holds across runs and backends, and their release by label and reason, with a real daemon over scripted WMSs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpsd.client.failures import RemoteError
from bpsd.client.sync import Client
from bpsd.testing.wms import ScriptedJob, ScriptedWms, add_run
from tests.integration.daemons import RunningDaemon, until

MEMORY = "held: memory usage {} MB exceeded request (code 34.0)"


@pytest.fixture
def daemon(state_dir: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(state_dir, {"toy": {"type": "scripted"}, "other": {"type": "scripted"}}) as running:
        yield running


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Client]:
    with daemon.client() as connected:
        yield connected


def jobs() -> list[ScriptedJob]:
    """Two jobs held for memory, of two labels, and one for a quota."""
    return [
        ScriptedJob(name="a_1", label="isr", state="HELD", note=MEMORY.format(2105)),
        ScriptedJob(name="b_1", label="coadd", state="HELD", note=MEMORY.format(9000.5)),
        ScriptedJob(name="b_2", label="coadd", state="HELD", note="held: disk quota (code 13.122)"),
        ScriptedJob(name="c_1", label="final", state="RUNNING"),
    ]


def groups(client: Client, **conditions: Any) -> dict[str, dict[str, Any]]:
    return {group["reason"]: group for group in client.holds(**conditions)["groups"]}


def states(wms: ScriptedWms) -> list[str]:
    return [job.state for job in wms.read().runs["1"].jobs]


def add(wms: ScriptedWms, owner: str) -> None:
    with wms.edit() as file:
        run = add_run(file, f"run of {owner}", attributes={"owner": owner})
        run.jobs = jobs()


def only_run(client: Client, backend: str) -> str:
    return str(client.list_runs(backend=[backend])["runs"][0]["id"])


def release(client: Client, run: str, **what: str) -> dict[str, Any]:
    return client.wait_command(client.release(run, **what)["id"], timeout_s=60)


def test_holds_of_all_backends_are_grouped_and_released(daemon: RunningDaemon, client: Client) -> None:
    toy, other = daemon.wms("toy"), daemon.wms("other")
    add(toy, "alice")
    add(other, "bob")
    until(lambda: client.holds()["held"] == 6, "the holds of both are seen")

    memory, quota = client.holds()["groups"]
    toys = only_run(client, "toy")
    assert (memory["reason"], memory["held"]) == ("memory usage N MB exceeded request (code 34.0)", 4)
    assert (memory["labels"], sorted(memory["backends"])) == ({"isr": 2, "coadd": 2}, ["other", "toy"])
    assert (quota["held"], quota["run_count"], quota["example"]) == (2, 2, "held: disk quota (code 13.122)")
    assert groups(client, user="alice")[memory["reason"]]["runs"] == {toys: 2}
    assert client.holds(label="isr")["held"] == 2
    assert [group["group"] for group in client.holds(group=quota["group"])["groups"]] == [quota["group"]]

    dry = client.release(toys, group=memory["group"], dry_run=True)
    assert dry["note"] == "dry run: nothing was done; it would be 2 of its jobs"
    assert states(toy) == ["HELD", "HELD", "HELD", "RUNNING"]
    assert release(client, toys, group=memory["group"], label="isr")["state"] == "DONE"
    assert states(toy) == ["RUNNING", "HELD", "HELD", "RUNNING"]
    until(lambda: client.holds(toys)["held"] == 2, "the release is seen")
    assert release(client, toys, label="coadd")["state"] == "DONE"
    assert states(toy) == ["RUNNING"] * 4
    assert states(other) == ["HELD", "HELD", "HELD", "RUNNING"]


def test_a_run_that_is_held_is_a_hold_and_is_released_by_its_reason(daemon: RunningDaemon, client: Client) -> None:
    toy = daemon.wms("toy")
    toy.add("kept", jobs=2, state="HELD", note="held: via condor_hold (by user op) (code 1.0)")
    until(lambda: client.holds()["held"] == 1, "the hold is seen")
    (group,) = client.holds()["groups"]
    assert (group["labels"], group["run_count"]) == ({}, 1)

    assert release(client, only_run(client, "toy"), group=group["group"])["state"] == "DONE"
    assert toy.read().runs["1"].state == "RUNNING"


def test_a_hold_by_label_holds_the_waiting_jobs_of_that_label(daemon: RunningDaemon, client: Client) -> None:
    toy = daemon.wms("toy")
    with toy.edit() as file:
        run = add_run(file, "waits")
        run.jobs = [
            ScriptedJob(name="a_1", label="isr", state="PENDING"),
            ScriptedJob(name="a_2", label="isr", state="RUNNING"),
            ScriptedJob(name="b_1", label="coadd", state="PENDING"),
        ]
    until(lambda: client.list_runs()["runs"], "the run is seen")
    run_id = only_run(client, "toy")
    until(lambda: len(client.jobs(run_id)["jobs"]) == 3, "its jobs are seen")

    dry = client.hold(run_id, label="isr", dry_run=True)
    assert dry["note"] == "dry run: nothing was done; it would be 1 of its jobs"
    assert client.wait_command(client.hold(run_id, label="isr")["id"], timeout_s=60)["state"] == "DONE"
    assert states(toy) == ["HELD", "RUNNING", "PENDING"]
    with pytest.raises(RemoteError, match=r"no job of run .* waits with label final"):
        client.hold(run_id, label="final")


def test_releases_that_make_no_sense(daemon: RunningDaemon, client: Client) -> None:
    add(daemon.wms("toy"), "alice")
    until(lambda: client.holds()["held"] == 3, "the holds are seen")
    run = only_run(client, "toy")

    with pytest.raises(RemoteError, match=r"nothing of run .* is held in group hffffffff with label isr") as nothing:
        client.release(run, group="hffffffff", label="isr")
    with pytest.raises(RemoteError, match="is about whole runs") as other_verb:
        client.command("cancel", run, label="isr")

    assert (nothing.value.code, other_verb.value.code) == ("conflict", "invalid_params")
    assert states(daemon.wms("toy")) == ["HELD", "HELD", "HELD", "RUNNING"]
