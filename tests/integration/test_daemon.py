"""A real daemon over a scripted WMS: commands done once, truth under faults, backends that do not hurt each other."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bpsd import wire
from bpsd.cli import tails
from bpsd.client.failures import ClientError, RemoteError
from bpsd.client.sync import Client
from bpsd.testing.wms import ScriptedWms, add_run, touch
from tests.integration.daemons import FAST, PATIENCE_S, RunningDaemon, document, true_job, until

TWO = document(true_job("a_1"), true_job("b_1", parents=("a_1",)))


@pytest.fixture
def daemon(state_dir: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(state_dir, {"toy": {"type": "scripted"}, "other": {"type": "scripted"}}) as running:
        yield running


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Client]:
    with daemon.client() as connected:
        yield connected


def submit(client: Client, data: bytes = TWO, backend: str = "toy", **options: Any) -> dict[str, Any]:
    command = client.wait_command(client.submit_document(data, backend=backend, **options)["id"], timeout_s=90)
    assert command["state"] == "DONE", command
    return command


def state_of(client: Client, run: str) -> str:
    return str(client.status(run)["state"])


def test_a_run_from_submit_to_the_end(daemon: RunningDaemon, client: Client) -> None:
    command = submit(client)
    run, wms = command["run"], daemon.wms("toy")
    assert command["result"]["wms_id"] == "1"

    wms.change("1", state="RUNNING", jobs="RUNNING")
    until(lambda: state_of(client, run) == "RUNNING", "RUNNING is seen")
    row = client.report(run)["runs"][0]
    assert row["labels"] == {"a": {"RUNNING": 1}, "b": {"RUNNING": 1}}
    assert row["expected"] == {"a": 1, "b": 1}
    wms.change("1", state="SUCCEEDED", jobs="SUCCEEDED", end_time=time.time())
    until(lambda: state_of(client, run) == "SUCCEEDED", "SUCCEEDED is seen")
    status = client.status(run)
    assert (status["code"], status["percent"], status["source"]) == (0, 100, "history")
    kinds = [event["kind"] for event in client.events(run)["events"]]
    assert kinds[0] == "run.seen"
    assert kinds.count("run.state") >= 3


def test_every_name_of_a_run_leads_to_it(daemon: RunningDaemon, client: Client) -> None:
    command = submit(client)
    names = [
        command["run"],
        "1",
        "1.0",
        command["token"],
        f"/scripted/{command['token']}",
        f"/scripted/{command['token']}/",
    ]
    until(lambda: client.report(command["run"])["runs"][0]["source"] != "journal", "the run is seen")

    assert {client.status(name)["id"] for name in names} == {command["run"]}


def test_a_name_that_two_backends_share_is_not_guessed(daemon: RunningDaemon, client: Client) -> None:
    first, second = submit(client), submit(client, backend="other")
    with pytest.raises(RemoteError) as caught:
        client.status("1")

    assert caught.value.code == "run_ambiguous"
    assert {c["id"] for c in caught.value.fields["candidates"]} == {first["run"], second["run"]}
    assert client.status("1", backend="other")["id"] == second["run"]


def test_an_unknown_run_is_answered_with_the_nearest(daemon: RunningDaemon, client: Client) -> None:
    run = submit(client)["run"]
    wrong = run[:-1] + ("2" if run[-1] != "2" else "3")

    with pytest.raises(RemoteError) as caught:
        client.status(wrong)

    assert caught.value.code == "run_not_found"
    assert run in caught.value.fields["nearest"]


def test_a_name_or_its_beginning_is_no_id_but_leads_to_the_ids(daemon: RunningDaemon, client: Client) -> None:
    runs = {submit(client)["run"] for _ in range(2)}
    until(lambda: {row["state"] for row in client.report()["runs"]} == {"PENDING"}, "they are seen")

    def refused(text: str, verb: str) -> dict[str, Any]:
        with pytest.raises(RemoteError) as caught:
            client.status(text) if verb == "status" else client.command(verb, text)
        assert caught.value.code == "run_not_found"
        assert all(run in caught.value.advice for run in runs)
        return caught.value.fields

    until(lambda: {*refused("test", "status")["nearest"]} == runs, "the store knows them by their name")
    for text, verb in (("test", "cancel"), ("te", "cancel"), ("t", "hold"), ("te", "status")):
        assert {*refused(text, verb)["nearest"]} == runs
    assert daemon.wms("toy").read().calls.get("cancel") is None


@pytest.mark.parametrize("backend", ["to", None])
def test_an_unknown_or_missing_backend_is_answered_with_the_known_ones(
    daemon: RunningDaemon, client: Client, backend: str | None
) -> None:
    with pytest.raises(RemoteError) as caught:
        client.submit_document(TWO, backend=backend)

    assert caught.value.code == "unknown_backend"
    assert caught.value.fields["known"] == ["toy", "other"]


@pytest.mark.parametrize("ask", ["events", "commands", "report", "list_runs", "watch"])
def test_an_unknown_backend_has_no_empty_answer(daemon: RunningDaemon, client: Client, ask: str) -> None:
    submit(client)
    backend: Any = "tyo" if ask in ("events", "commands") else ["tyo"]
    with pytest.raises(RemoteError, match="no backend is called tyo"):
        getattr(client, ask)(backend=backend)


def test_the_same_token_is_the_same_run(daemon: RunningDaemon, client: Client) -> None:
    token = wire.new_token()
    first = submit(client, token=token)

    again = client.submit_document(TWO, token=token, backend="toy")

    assert (again["id"], again["run"], again["created"]) == (first["id"], first["run"], False)
    assert len(daemon.wms("toy").read().runs) == 1
    with pytest.raises(RemoteError, match="another workflow"):
        client.submit_document(document(true_job("else_1")), token=token, backend="toy")


def test_every_mistake_of_a_workflow_is_told_and_nothing_is_submitted(daemon: RunningDaemon, client: Client) -> None:
    bad = document(true_job("a_1", exectuable="x"), true_job("b_1", parents=("a_2",), preemptible=True), nmae="x")
    with pytest.raises(RemoteError) as caught:
        client.submit_document(bad, backend="toy", source="bad.json")
    keys = {problem["key"] for problem in caught.value.fields["problems"]}
    assert {"nmae", "jobs[0].exectuable"} <= keys
    with pytest.raises(RemoteError) as caught:
        client.submit_document(document(true_job("b_1", parents=("a_2",), preemptible=True)), backend="toy")
    problems = {problem["key"]: problem for problem in caught.value.fields["problems"]}
    assert "nothing is ever preempted" in problems["jobs[0].preemptible"]["message"]
    assert "jobs[0].parents[0]" in problems
    assert problems["jobs[0].preemptible"]["line"] == 1
    assert client.commands()["commands"] == []
    assert daemon.wms("toy").read().runs == {}


def test_what_the_backend_finds_wrong_fails_the_command(daemon: RunningDaemon, client: Client) -> None:
    bad = b"name: test\njobs:\n- {name: a_1, label: a, executable: missing}\n"
    command = client.wait_command(client.submit_document(bad, backend="toy", source="bad.yaml")["id"], timeout_s=90)

    assert command["state"] == "FAILED"
    assert command["error"]["code"] == "workflow_invalid"
    assert command["error"]["source"] == "bad.yaml"
    assert [(p["line"], p["column"], p["key"]) for p in command["error"]["problems"]] == [(3, 37, "jobs[0].executable")]
    assert daemon.wms("toy").read().runs == {}
    assert client.report()["runs"] == []  # what was refused is no run
    for ask in (client.status, lambda run: client.report(run), client.jobs, lambda run: list(client.watch(runs=[run]))):
        with pytest.raises(RemoteError) as caught:
            ask(command["run"])
        assert caught.value.code == "run_not_found"
        assert "its submission was refused: the workflow bad.yaml has 1 mistake: jobs[0].executable: " in str(
            caught.value
        )
        assert caught.value.fields["problems"] == command["error"]["problems"]
    assert [row["id"] for row in client.commands(run=command["run"])["commands"]] == [command["id"]]


def test_validate_gives_the_answer_of_a_submission(daemon: RunningDaemon, client: Client) -> None:
    bad = b"name: test\njobs:\n- {name: a_1, label: a, executable: missing}\n"
    told = client.validate_document(bad, source="bad.yaml", backend="toy")
    command = client.wait_command(client.submit_document(bad, backend="toy", source="bad.yaml")["id"], timeout_s=90)
    assert (told["ok"], told["problems"]) == (False, command["error"]["problems"])

    daemon.wms("toy").fault("run_submission_checks", "error", times=1)
    told = client.validate_document(TWO, source="two.yaml", backend="toy")
    assert told["ok"]
    assert told["warnings"] == [
        "backend toy could not check this now; it does so when you submit: the scripted WMS does not answer"
    ]

    daemon.wms("toy").fault("check_workflow", "refuse", times=1)
    daemon.wms("toy").fault("prepare", "refuse", times=1)
    told = client.validate_document(TWO, source="two.yaml", backend="toy")
    command = client.wait_command(client.submit_document(TWO, backend="toy")["id"], timeout_s=90)
    assert [problem["message"] for problem in told["problems"]] == ["the scripted WMS says no"]
    assert command["error"]["message"] == "the scripted WMS says no"


def test_who_watches_a_run_that_is_refused_is_told(daemon: RunningDaemon, client: Client) -> None:
    daemon.wms("toy").fault("prepare", "slow", seconds=1.0, times=1)
    bad = b"name: test\njobs:\n- {name: a_1, label: a, executable: missing}\n"
    with daemon.client() as other:
        daemon.wms("toy").fault("run_submission_checks", "slow", seconds=2.0, times=1)
        command = client.submit_document(bad, backend="toy")
        with closing(other.watch(runs=[command["run"]])) as watch:
            told = next(item for item in watch if item["kind"] == "run.state" and item["data"]["state"] == "FAILED")
        assert told["data"]["row"]["note"].startswith("not submitted: the workflow ")
        assert told["data"]["refused"]


def test_a_refused_submission_stays_refused_after_a_restart(daemon: RunningDaemon, client: Client) -> None:
    bad = b"name: test\njobs:\n- {name: a_1, label: a, executable: missing}\n"
    command = client.wait_command(client.submit_document(bad, backend="toy")["id"], timeout_s=90)
    daemon.stop()
    daemon.start()
    with daemon.client() as again, pytest.raises(RemoteError, match="its submission was refused"):
        again.status(command["run"])
    with daemon.client() as again:
        assert again.report(hist=10)["runs"] == []


def test_commands_that_make_no_sense_are_refused(daemon: RunningDaemon, client: Client) -> None:
    run = submit(client)["run"]
    with pytest.raises(RemoteError, match="only a run that is over can be restarted"):
        client.restart(run)
    daemon.wms("toy").change("1", state="SUCCEEDED", jobs="SUCCEEDED")
    until(lambda: state_of(client, run) == "SUCCEEDED", "SUCCEEDED is seen")
    for verb in ("cancel", "restart", "hold", "release"):
        with pytest.raises(RemoteError) as caught:
            client.command(verb, run)
        assert caught.value.code == "conflict"
        assert "SUCCEEDED" in str(caught.value)


def test_a_dry_run_does_nothing(daemon: RunningDaemon, client: Client) -> None:
    run = submit(client)["run"]

    row = client.cancel(run, dry_run=True)

    assert "dry run" in row["note"]
    assert [command["verb"] for command in client.commands()["commands"]] == ["submit"]
    assert daemon.wms("toy").read().calls.get("cancel") is None


@pytest.mark.parametrize("fault", ["lost", "error", "hang"])
def test_a_submission_that_was_cut_off_is_made_once(daemon: RunningDaemon, client: Client, fault: str) -> None:
    daemon.wms("toy").fault("submit", fault, times=1)

    command = client.submit_document(TWO, backend="toy")
    done = until(
        lambda: (row := client.wait_command(command["id"], timeout_s=1))["state"] == "DONE" and row, "it is DONE"
    )

    wms = daemon.wms("toy").read()
    assert len(wms.runs) == 1
    assert done["result"]["wms_id"] == "1"
    assert wms.calls["submit"] == (1 if fault == "lost" else 2)
    assert wms.calls["find_by_token"] >= 1


def test_a_doubt_that_the_wms_cannot_clear_up_waits_for_a_person(daemon: RunningDaemon, client: Client) -> None:
    wms = daemon.wms("toy")
    with wms.edit() as content:
        content.token_asks_tell = False
    wms.fault("submit", "lost", times=1)
    command = client.submit_document(TWO, backend="toy")["id"]
    until(lambda: client.commands_wait(command, timeout_s=0)["state"] == "IN_DOUBT", "IN_DOUBT")
    run = client.commands_wait(command, timeout_s=0)["run"]
    time.sleep(0.5)  # some rounds of looking it up
    assert wms.read().calls["submit"] == 1
    assert client.health()["status"] == 1

    row = client.commands_resolve(command, "done", wms_id="1", note="seen by hand")

    assert row["state"] == "DONE"
    assert "seen by hand" in row["note"]
    until(lambda: state_of(client, run) == "PENDING", "the run is followed")
    with pytest.raises(RemoteError, match="not IN_DOUBT"):
        client.commands_resolve(command, "again")


@pytest.mark.parametrize("outcome", ["done", "failed", "again"])
def test_a_persons_word_wins_over_a_look_up_in_flight(daemon: RunningDaemon, client: Client, outcome: str) -> None:
    wms = daemon.wms("toy")
    # Where the run is to be failed it never reached the WMS: a poll would find it there, and be right.
    wms.fault("submit", "error" if outcome == "failed" else "lost", times=1)
    wms.fault("find_by_token", "hang")
    command = client.submit_document(TWO, backend="toy")["id"]
    until(lambda: wms.read().calls.get("find_by_token"), "it is being looked up")
    assert client.commands_wait(command, timeout_s=0)["state"] == "IN_DOUBT"

    row = client.commands_resolve(command, outcome, wms_id="1" if outcome == "done" else None)

    assert row["state"] == {"done": "DONE", "failed": "FAILED", "again": "ACCEPTED"}[outcome]
    after = client.wait_command(command, timeout_s=90)
    assert after["state"] == ("FAILED" if outcome == "failed" else "DONE")
    assert wms.read().calls["submit"] == (2 if outcome == "again" else 1)
    until(lambda: client.health()["figures"]["commands_open"] == 0, "nobody looks any more")
    assert client.commands(id=command)["commands"][0]["state"] == after["state"]
    if outcome == "failed":
        status = client.status(after["run"])
        assert (status["state"], status["note"].partition(":")[0]) == ("FAILED", "not submitted")
    submit(client)  # the daemon is there, and so is its engine


def test_cancel_is_verified_and_repeated_until_it_is_true(daemon: RunningDaemon, client: Client) -> None:
    run = submit(client)["run"]
    wms = daemon.wms("toy")
    wms.fault("cancel", "error", times=2)

    command = client.wait_command(client.cancel(run)["id"], timeout_s=90)

    assert (command["state"], command["result"]["state"]) == ("DONE", "DELETED")
    assert state_of(client, run) == "DELETED"
    assert wms.read().calls["cancel"] == 3


def test_a_cancel_overtakes_a_submission_that_has_not_begun(daemon: RunningDaemon, client: Client) -> None:
    daemon.wms("toy").fault("ping", "error")
    daemon.wms("toy").fault("prepare", "error")
    command = client.submit_document(TWO, backend="toy")
    until(lambda: client.commands_wait(command["id"], timeout_s=0)["note"], "it waits")

    cancel = client.wait_command(client.cancel(command["run"])["id"], timeout_s=90)

    assert cancel["state"] == "DONE"
    assert client.commands_wait(command["id"])["state"] == "SUPERSEDED"
    assert state_of(client, command["run"]) == "DELETED"
    assert daemon.wms("toy").read().runs == {}


def test_an_expired_command_was_never_tried(daemon: RunningDaemon, client: Client) -> None:
    daemon.wms("toy").fault("prepare", "error")

    command = client.submit_document(TWO, backend="toy", expires_s=0.3)
    row = client.wait_command(command["id"], timeout_s=90)

    assert row["state"] == "EXPIRED"
    assert state_of(client, command["run"]) == "DELETED"
    assert daemon.wms("toy").read().runs == {}


def test_restart_is_the_next_attempt_of_the_same_run(daemon: RunningDaemon, client: Client) -> None:
    run, wms = submit(client)["run"], daemon.wms("toy")
    wms.change("1", state="FAILED", jobs="FAILED")
    until(lambda: state_of(client, run) == "FAILED", "FAILED is seen")
    wms.fault("restart", "lost", times=1)

    command = client.wait_command(client.restart(run)["id"], timeout_s=90)

    assert (command["state"], command["attempt"]) == ("DONE", 2)
    wms.change("1", state="SUCCEEDED", jobs="SUCCEEDED")
    until(lambda: state_of(client, run) == "SUCCEEDED", "SUCCEEDED is seen")
    row = client.report(run)["runs"][0]
    assert [(a["attempt"], a["state"]) for a in row["attempts"]] == [(1, "FAILED"), (2, "SUCCEEDED")]
    assert wms.read().runs["1"].attempt == 2


# -- truth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["error", "hang", "auth", "empty", "bug"])
def test_a_poll_that_fails_changes_no_run_and_says_so(daemon: RunningDaemon, client: Client, fault: str) -> None:
    wms = daemon.wms("toy")
    wms.add("theirs", jobs=3)
    until(lambda: client.list_runs()["runs"], "the run is seen")
    wms.fault("poll", fault, seconds=600)
    wms.change("1", state="FAILED")

    def told() -> bool:
        backend = client.backends("toy")["backends"][0]
        return backend["state"] in ("down", "auth") or any(s["status"] == "partial" for s in backend["sources"])

    until(told, "the backend is shown as sick")
    until(lambda: client.backends("toy")["backends"][0]["stale"] or fault == "empty", "and as stale")
    status = client.status("1")
    assert (status["state"], status["id"][0]) == ("RUNNING", "r")
    if fault != "empty":
        assert status["stale"]
        assert status["error"]
    wms.fault("poll", None)
    until(lambda: state_of(client, "1") == "FAILED", "the truth is seen when it can be")


def test_a_run_that_all_sources_deny_is_unknown_and_remembers(daemon: RunningDaemon, client: Client) -> None:
    wms = daemon.wms("toy")
    wms.add("theirs", jobs=1)
    wms.add("over", state="SUCCEEDED", end_time=time.time())
    until(lambda: len(client.list_runs()["runs"]) == 2, "both are seen")
    with wms.edit() as content:
        for run in content.runs.values():
            run.hidden = True

    until(lambda: state_of(client, "1") == "UNKNOWN", "it is lost")

    status = client.status("1")
    assert (status["last_known"], status["note"]) == ("RUNNING", "not in queue, history")
    assert state_of(client, "2") == "SUCCEEDED"


def test_a_partial_answer_loses_nothing(daemon: RunningDaemon, client: Client) -> None:
    wms = daemon.wms("toy")
    for number in range(6):
        wms.add(f"run {number}", jobs=1)
    until(lambda: len(client.list_runs()["runs"]) == 6, "all are seen")
    wms.fault("poll", "partial", times=5)
    for number in range(1, 7):
        wms.change(str(number), state="HELD")

    until(lambda: {r["state"] for r in client.list_runs()["runs"]} == {"HELD"}, "all are seen in the end")


def test_an_adapter_that_dies_takes_nobody_with_it(daemon: RunningDaemon, client: Client) -> None:
    daemon.wms("toy").fault("poll", "crash", times=1)

    until(
        lambda: any(e["data"].get("state") == "stopped" for e in client.events(backend="toy", limit=500)["events"]),
        "the backend was stopped",
    )

    until(lambda: client.backends("toy")["backends"][0]["state"] == "up", "and opened again")
    assert client.backends("other")["backends"][0]["state"] == "up"


def test_a_backend_that_hangs_delays_no_other(daemon: RunningDaemon, client: Client) -> None:
    daemon.wms("toy").fault("poll", "hang", seconds=600)
    daemon.wms("toy").fault("submit", "hang", seconds=600)
    client.submit_document(TWO, backend="toy")
    polls = client.backends("other")["backends"][0]["polls"]

    command = submit(client, backend="other")

    assert command["state"] == "DONE"
    until(lambda: client.backends("other")["backends"][0]["polls"] > polls + 3, "the other is polled as before")


# -- the daemon's life -----------------------------------------------------------------------------------------------


def test_what_was_known_is_known_after_a_restart(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        run = submit(client)["run"]
        daemon.wms("toy").change("1", state="RUNNING", jobs="RUNNING")
        until(lambda: state_of(client, run) == "RUNNING", "RUNNING is seen")
        before, seq = client.report(run)["runs"][0], client.list_runs()["seq"]
    wms = daemon.wms("toy")
    assert daemon.stop() == 0
    wms.fault("poll", "error")
    daemon.start()

    with daemon.client() as client:
        after = client.report(run)["runs"][0]
        assert {k: v for k, v in after.items() if k != "observed_at"} == {
            k: v for k, v in before.items() if k != "observed_at"
        }
        assert client.list_runs()["seq"] > seq


def test_a_run_that_is_over_keeps_its_counts_and_its_jobs_over_a_restart(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        run, wms = submit(client)["run"], daemon.wms("toy")
        with wms.edit() as content:
            first, second = content.runs["1"].jobs
            first.state, second.state, second.exit_code = "SUCCEEDED", "FAILED", 3
        wms.change("1", state="FAILED", end_time=time.time())
        until(lambda: state_of(client, run) == "FAILED", "FAILED is seen")
        before, jobs = client.report(run)["runs"][0], client.jobs(run)["jobs"]
        assert before["exit_codes"] == {"a": {}, "b": {"3": 1}}
    daemon.stop()
    daemon.start()

    with daemon.client() as client:
        assert client.report()["runs"][0]["counts"] == before["counts"]
        assert client.status(run)["percent"] == 50
        after = client.report(run)["runs"][0]
        assert {k: after[k] for k in ("labels", "exit_codes", "counts", "percent")} == {
            k: before[k] for k in ("labels", "exit_codes", "counts", "percent")
        }
        assert client.jobs(run)["jobs"] == jobs
        client.wait_command(client.restart(run)["id"], timeout_s=90)
        with wms.edit() as content:  # only the job that is done again is told of
            content.runs["1"].jobs = [content.runs["1"].jobs[1]]
        wms.change("1", state="SUCCEEDED", jobs="SUCCEEDED")
        until(lambda: state_of(client, run) == "SUCCEEDED", "SUCCEEDED is seen")
        assert client.report(run)["runs"][0]["counts"] == {"SUCCEEDED": 2}


def test_the_store_may_be_lost(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        run = submit(client)["run"]
        daemon.wms("toy").change("1", state="FAILED", jobs="FAILED")
        until(lambda: state_of(client, run) == "FAILED", "FAILED is seen")
    daemon.kill()
    for path in daemon.state.glob("store.db*"):
        path.unlink()
    daemon.start()

    with daemon.client() as client:
        until(lambda: client.list_runs()["runs"], "the run is seen again")
        until(lambda: state_of(client, run) == "FAILED", "under its id, in its state")


def test_a_damaged_journal_is_set_aside_and_takes_no_commands(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        run = submit(client)["run"]
    daemon.stop()
    journal = daemon.state / "journal.db"
    journal.write_bytes(b"\xff" * 4096 + journal.read_bytes()[4096:])
    daemon.start()

    with daemon.client() as client:
        until(lambda: client.list_runs()["runs"], "what runs is shown")
        with pytest.raises(RemoteError) as caught:
            client.submit_document(TWO, backend="toy")
        assert caught.value.code == "read_only"
        assert "admin accept" in caught.value.advice
        assert client.health()["status"] == 2
        assert [r["id"] for r in client.list_runs()["runs"]] == [run]
        assert client.admin("check")["problems"] == []
        client.admin("accept")
        submit(client)
        assert len(client.admin("backup")["done"]) == 2


def test_a_second_daemon_is_refused(daemon: RunningDaemon, tmp_path: Path) -> None:
    other = RunningDaemon(tmp_path, {"toy": {"type": "scripted"}})
    for settings, said in (
        ({"state_dir": str(daemon.state), "socket": str(tmp_path / "s")}, "uses the state folder"),
        ({"state_dir": str(tmp_path / "state"), "socket": str(daemon.socket)}, str(daemon.socket)),
    ):
        other.configure({**settings, "backends": {"toy": {"type": "scripted"}}})
        other.start(wait=False)
        assert other.process is not None
        assert other.process.wait(20) == 1
        assert said in other.log.read_text()
    with daemon.client() as client:
        client.ping()


def test_reload_takes_a_good_configuration_and_refuses_a_bad_one(daemon: RunningDaemon, client: Client) -> None:
    assert daemon.process is not None
    daemon.configure({**FAST, "backends": {"toy": {"type": "scripted"}, "third": {"type": "scripted"}}})
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: [b["name"] for b in client.backends()["backends"]] == ["toy", "third"], "the new backends are there")

    daemon.config.write_text("backends: {toy: {type: scrpted}}\npoling: {}\n")
    daemon.process.send_signal(signal.SIGHUP)

    refused = until(lambda: [e for e in daemon.logged() if e["event"] == "config_refused"], "it is refused")
    assert "polling" in refused[0]["error"]
    assert "scripted" in refused[0]["error"]
    assert [b["name"] for b in client.backends()["backends"]] == ["toy", "third"]


def test_a_stop_waits_for_answers_and_not_for_a_stuck_wms(daemon: RunningDaemon) -> None:
    daemon.wms("toy").fault("submit", "hang", seconds=600)
    with daemon.client() as client:
        command = client.submit_document(TWO, backend="toy")["id"]
        until(lambda: client.commands_wait(command, timeout_s=0)["state"] == "RUNNING", "it is RUNNING")
        assert daemon.stop() == 0
    daemon.start()
    with daemon.client() as client:
        ScriptedWms(daemon.wms("toy").path).fault("submit", None)
        row = until(lambda: (r := client.commands_wait(command, timeout_s=1))["state"] == "DONE" and r, "it is DONE")
    assert len(daemon.wms("toy").read().runs) == 1
    assert row["id"] == command


# -- many ------------------------------------------------------------------------------------------------------------


def test_pages_and_filters(daemon: RunningDaemon, client: Client) -> None:
    with daemon.wms("toy").edit() as content:
        for number in range(2500):
            add_run(
                content,
                f"run_{number:04}",
                state="RUNNING" if number % 5 else "HELD",
                attributes={"campaign": f"c{number % 3}", "owner": "op" if number % 2 else "root"},
            )
    until(lambda: client.backends("toy")["backends"][0]["runs_hot"] == 2500, "all are seen")

    def ids(ask: Callable[..., dict[str, Any]], **filters: Any) -> list[str]:
        return [row["id"] for page in client.pages(ask, "runs", None, **filters) for row in page["runs"]]

    assert len(set(ids(client.report))) == len(ids(client.list_runs)) == 2500
    assert len(ids(client.report, state=["HELD"])) == 500
    assert len(ids(client.list_runs, pattern="run_00*")) == 100
    assert len(ids(client.list_runs, user=["op"], state=["HELD"])) == 250
    assert client.list_runs(backend=["other"])["runs"] == []


def test_watchers_see_every_change_and_may_come_back(daemon: RunningDaemon, client: Client) -> None:
    wms = daemon.wms("toy")
    wms.add("theirs", jobs=2)
    until(lambda: client.list_runs()["runs"], "the run is seen")
    since = client.list_runs()["seq"]
    wms.change("1", state="HELD")
    until(lambda: state_of(client, "1") == "HELD", "HELD is seen")

    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(daemon.socket))
        lines = raw.makefile("rwb")
        lines.readline()
        lines.write(wire.encode_request(1, "watch", {"since": since, "jobs": True}))
        lines.flush()
        answer = json.loads(lines.readline())["result"]
        assert answer["resumed"]
        wms.change("1", state="RUNNING", jobs="SUCCEEDED")
        seen: list[dict[str, Any]] = []
        while not any(e["kind"] == "job.state" for e in seen):
            seen.append(json.loads(lines.readline())["params"]["event"])
    states = [(e["data"]["before"], e["data"]["state"]) for e in seen if e["kind"] == "run.state"]
    assert states == [("RUNNING", "HELD"), ("HELD", "RUNNING")]
    assert [e["seq"] for e in seen] == sorted(e["seq"] for e in seen)
    jobs = next(e["data"]["jobs"] for e in seen if e["kind"] == "job.state")
    assert {job["state"] for job in jobs} == {"SUCCEEDED"}


def test_two_hundred_clients_submit_at_once(daemon: RunningDaemon) -> None:
    done: list[str] = []
    failed: list[BaseException] = []

    def one() -> None:
        try:
            with daemon.client(timeout_s=120) as mine:
                done.append(submit(mine)["run"])
        except (ClientError, AssertionError, OSError) as exc:
            failed.append(exc)

    threads = [threading.Thread(target=one) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert len(set(done)) == 200
    assert len(daemon.wms("toy").read().runs) == 200


def test_databases_and_socket_are_private(daemon: RunningDaemon) -> None:
    assert daemon.socket.stat().st_mode & 0o777 == 0o600
    assert daemon.state.stat().st_mode & 0o777 == 0o700
    for path in daemon.state.glob("*.db*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert os.getuid() == daemon.state.stat().st_uid


def test_a_watcher_that_reads_too_slowly_is_told_what_it_missed(state_dir: Path) -> None:
    limits = {**FAST["limits"], "write_buffer_bytes": wire.MAX_MESSAGE_BYTES}
    with (
        RunningDaemon(state_dir, {"toy": {"type": "scripted"}, "other": {"type": "scripted"}}, limits=limits) as daemon,
        daemon.client() as client,
        socket.socket(socket.AF_UNIX) as raw,
    ):
        wms = daemon.wms("toy")
        with wms.edit() as content:
            for number in range(400):
                add_run(content, f"run {number}", jobs=1, note="n" * 3000)
        until(lambda: client.backends("toy")["backends"][0]["runs_hot"] == 400, "all are seen")
        raw.settimeout(PATIENCE_S)
        raw.connect(str(daemon.socket))
        raw.sendall(wire.encode_request(1, "watch", {"backend": ["other"]}) + wire.encode_request(2, "watch", {}))
        for _ in range(2):  # about 1.3 MB of rows each time: more than may wait for one client and the kernel holds
            before = client.list_runs(limit=1)["seq"]
            with wms.edit() as content:
                for run in content.runs.values():
                    run.note = f"{content.version} " + "n" * 3000
                    touch(content, run)
            until(lambda seq=before: client.list_runs(limit=1)["seq"] >= seq + 400, "the changes are seen")  # type: ignore[misc]
        told: list[int] = []
        with raw.makefile("rb") as lines:
            while not any(told):
                message = json.loads(lines.readline())
                if message.get("method") == "event":
                    told.append(message["params"]["lost"])


def test_a_snapshot_fits_a_message_whatever_the_runs_say_of_themselves(daemon: RunningDaemon, client: Client) -> None:
    """A pipeline of a hundred labels has a summary of 4 kB, and 500 of them are no message."""
    with daemon.wms("toy").edit() as wms:
        for number in range(400):
            add_run(wms, f"u/her/run{number}", run_summary=";".join(f"label_{n:030}:{n}" for n in range(90)))
    until(lambda: client.backends("toy")["backends"][0]["runs_live"] == 400, "all are seen")

    with client.watch() as watch:
        item = watch.read(30)
        assert item is not None
        assert item["kind"] == "snapshot"
        assert 0 < len(item["runs"]) <= 400
        daemon.wms("toy").change("400", state="SUCCEEDED")
        told = until(lambda: (event := watch.read(30)) and event["kind"] == "run.state" and event, "the end is told")
    assert told["data"]["state"] == "SUCCEEDED"


def test_a_log_that_is_no_text_comes_whole_all_the_same(daemon: RunningDaemon, client: Client) -> None:
    """A control character takes six bytes of JSON: what was asked for may not fit a message."""
    run = submit(client)["run"]
    log = "\0" * 300_000 + "é" * 10_001 + "the end\n"
    with daemon.wms("toy").edit() as wms:
        wms.runs["1"].jobs[0].log = log

    piece = client.logs(run, "a_1", offset=0, limit=262_144)
    texts = [piece["text"]]
    while piece["next"] < piece["size"]:
        piece = client.logs(run, "a_1", offset=piece["next"], limit=262_144)
        texts.append(piece["text"])

    assert "".join(texts) == log
    assert tails.tail(client, run, "a_1", 1, "stderr")["text"].endswith("the end\n")


def test_a_watch_of_mine_tells_of_no_other_runs(daemon: RunningDaemon, client: Client) -> None:
    wms = daemon.wms("toy")
    with wms.edit() as content:
        theirs = add_run(content, "u/her/run", attributes={"owner": "somebody-else"}).wms_id
    until(lambda: len(client.report()["runs"]) == 1, "it is seen")
    mine = submit(client)
    until(lambda: state_of(client, mine["run"]) == "PENDING", "mine is seen")

    with client.watch(mine=True) as watch:
        snapshot = watch.read(30)
        assert snapshot is not None
        assert [row["id"] for row in snapshot["runs"]] == [mine["run"]]
        wms.change(theirs, state="SUCCEEDED")
        until(lambda: client.status(theirs)["state"] == "SUCCEEDED", "the end of theirs is seen")
        wms.change(mine["result"]["wms_id"], state="RUNNING")
        events = [until(lambda: watch.read(30), "something happens")]
        while events[-1]["kind"] != "run.state":
            events.append(until(lambda: watch.read(30), "something happens"))
    assert {event["run"] for event in events} == {mine["run"]}
