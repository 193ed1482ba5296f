"""No watcher misses an end and no number is used twice, over stops, kills and damaged stores."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpsd import wire
from bpsd.client.sync import Client
from tests.integration.daemons import RunningDaemon, until

WAYS = ("stop", "kill", "kill and damage the store", "kill and remove the store")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(tmp_path, {"toy": {"type": "scripted"}}) as running:
        yield running


def go_away(daemon: RunningDaemon, way: str) -> None:
    if way == "stop":
        assert daemon.process is not None
        daemon.process.terminate()
        daemon.process.wait(60)
    else:
        daemon.kill()
    if "damage" in way:
        (daemon.state / "store.db").write_bytes(b"\0" * 8192)
    if "remove" in way:
        for file in daemon.state.glob("store.db*"):
            file.unlink()


class Raw:
    """A connection that watches, as any program may."""

    def __init__(self, daemon: RunningDaemon, **params: Any) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(daemon.socket))
        self._lines = self._socket.makefile("rwb")
        self._lines.readline()
        self._lines.write(wire.encode_request(1, "watch", params))
        self._lines.flush()
        self.answer: dict[str, Any] = json.loads(self._lines.readline())["result"]

    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._lines.readline())["params"]["event"]
        return found

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def until_event(raw: Raw, kind: str) -> list[dict[str, Any]]:
    """Read until an event of a kind; returns all that came."""
    seen = [raw.event()]
    while seen[-1]["kind"] != kind:
        seen.append(raw.event())
    return seen


def state_is(client: Client, wms_id: str, state: str) -> bool:
    return any(row["wms_id"] == wms_id and row["state"] == state for row in client.report()["runs"])


@pytest.mark.parametrize("way", WAYS)
def test_an_end_during_the_absence_is_in_the_snapshot(daemon: RunningDaemon, way: str) -> None:
    wms = daemon.wms("toy")
    for name in ("ends", "goes on"):
        wms.add(name, jobs=2)
    with daemon.client() as client:
        until(lambda: len(client.list_runs()["runs"]) == 2, "the runs are seen")
    raw = Raw(daemon)
    since = raw.answer["seq"]
    wms.change("1", jobs="SUCCEEDED", state="HELD")
    numbers = [event["seq"] for event in until_event(raw, "run.state")]
    raw.close()
    go_away(daemon, way)
    wms.change("1", state="SUCCEEDED")
    daemon.start()
    with daemon.client() as client:
        until(lambda: state_is(client, "1", "SUCCEEDED"), "the end is seen")
        until(lambda: state_is(client, "2", "RUNNING"), "the other run is seen")

    for number in (since, numbers[-1]):
        back = Raw(daemon, since=number)
        assert not back.answer["resumed"]
        assert back.answer["seq"] > numbers[-1]
        assert back.answer["complete"]
        rows = {row["wms_id"]: row["state"] for row in back.answer["snapshot"]}
        assert rows == {"1": "SUCCEEDED", "2": "RUNNING"}
        back.close()


def test_the_jobs_of_a_gap_are_replayed_once_each_with_a_number_of_its_own(daemon: RunningDaemon) -> None:
    wms = daemon.wms("toy")
    wms.add("theirs", jobs=3)
    with daemon.client() as client:
        until(lambda: client.list_runs()["runs"], "the run is seen")
        raw = Raw(daemon, jobs=True)
        since = raw.answer["seq"]
        wms.change("1", jobs="SUCCEEDED", state="HELD")
        live = until_event(raw, "job.state")
        raw.close()

        back = Raw(daemon, since=since, jobs=True)

        assert back.answer["resumed"]
        again = until_event(back, "job.state")
        back.close()
    assert again == live
    numbers = [event["seq"] for event in live]
    assert numbers == sorted(set(numbers))
    assert [len(event["data"]["jobs"]) for event in live if event["kind"] == "job.state"] == [3]


@pytest.mark.parametrize("way", WAYS)
def test_a_wait_and_a_watch_hear_of_an_end_during_the_absence(daemon: RunningDaemon, way: str) -> None:
    wms = daemon.wms("toy")
    wms.add("theirs", jobs=1)
    with daemon.client() as client:
        until(lambda: client.list_runs()["runs"], "the run is seen")
        run = client.list_runs()["runs"][0]["id"]
    states: dict[str, str] = {}
    heard: list[str] = []
    watching = threading.Event()

    def wait() -> None:
        with daemon.client() as mine:
            states.update(mine.wait([run], timeout_s=90))

    def watch() -> None:
        with daemon.client() as mine, mine.watch() as items:
            while True:
                item = items.read(90)
                assert item is not None, "nothing came"
                watching.set()
                rows = [row["state"] for row in item.get("runs", ()) if row["id"] == run]
                if item["kind"] == "run.state" and item["run"] == run:
                    rows.append(item["data"]["state"])
                heard.extend(rows)
                if "SUCCEEDED" in rows:
                    return

    threads = [threading.Thread(target=each) for each in (wait, watch)]
    for thread in threads:
        thread.start()
    assert watching.wait(60)
    go_away(daemon, way)
    wms.change("1", state="SUCCEEDED")
    daemon.start()
    for thread in threads:
        thread.join(120)

    assert states == {run: "SUCCEEDED"}
    assert heard[-1] == "SUCCEEDED"
