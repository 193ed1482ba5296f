"""Following runs: nothing is missed, whatever happens to the daemon in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpsd.client import Client, NoDaemon, RemoteError
from bpsd.client.sync_watch import Watch
from tests.integration.fake_daemon import FakeDaemon, Hangup, run_row

RUN = "rbcdfghjk"


@pytest.fixture
def daemon(socket_path: Path) -> Iterator[FakeDaemon]:
    """A daemon with one run."""
    fake = FakeDaemon(socket_path)
    fake.rows = {RUN: run_row(RUN)}
    with fake.running():
        yield fake


@pytest.fixture
def watch(daemon: FakeDaemon) -> Iterator[Watch]:
    """A watch of everything, its first snapshot taken."""
    with Client(str(daemon.path)).watch() as watching:
        first = next(watching)
        assert (first["kind"], first["seq"], [row["id"] for row in first["runs"]]) == ("snapshot", 7, [RUN])
        yield watching


def kinds(watch: Watch, count: int) -> list[str]:
    return [read(watch)["kind"] for _ in range(count)]


def read(watch: Watch) -> dict[str, Any]:
    item = watch.read(20)
    assert item is not None, "nothing came"
    return item


def test_events_in_order(daemon: FakeDaemon, watch: Watch) -> None:
    daemon.push("run.state", RUN, state="HELD", before="RUNNING")
    daemon.push("backend.state", state="down")

    first, second = read(watch), read(watch)

    assert (first["kind"], first["data"]["state"], first["seq"]) == ("run.state", "HELD", 8)
    assert (second["kind"], second["seq"]) == ("backend.state", 9)
    assert watch.seq == 9


def test_silence(watch: Watch) -> None:
    assert watch.read(0.05) is None
    assert watch.read(0) is None


def test_a_crash_is_told_and_nothing_is_missed(daemon: FakeDaemon, watch: Watch) -> None:
    daemon.push("run.progress", RUN)
    assert read(watch)["kind"] == "run.progress"
    daemon.stop()
    lost = read(watch)
    assert lost["kind"] == "client.lost"
    assert "broke" in lost["data"]["error"]
    assert repr(watch) == "<Watch of all runs, daemon away>"

    daemon.push("run.state", RUN, state="HELD", before="RUNNING")  # nobody listens
    daemon.start()

    back, missed = read(watch), read(watch)
    assert back["kind"] == "client.back"
    assert back["data"]["away_s"] > 0
    assert (missed["kind"], missed["data"]["state"]) == ("run.state", "HELD")
    assert [params.since for params in daemon.asked("watch")] == [None, 8]


def test_a_daemon_that_has_forgotten_gives_a_snapshot(daemon: FakeDaemon, watch: Watch) -> None:
    daemon.stop()
    daemon.resumes = False
    daemon.rows[RUN].state = "FAILED"
    daemon.start()

    assert kinds(watch, 2) == ["client.lost", "client.back"]
    item = read(watch)
    assert (item["kind"], item["runs"][0]["state"]) == ("snapshot", "FAILED")


@pytest.mark.parametrize(("resumes", "kind"), [(True, "run.progress"), (False, "snapshot")])
def test_events_that_the_daemon_dropped_are_asked_for_again(
    daemon: FakeDaemon, watch: Watch, *, resumes: bool, kind: str
) -> None:
    daemon.resumes = resumes
    daemon.push("run.progress", RUN, lost=3)

    assert read(watch)["kind"] == kind
    assert [params.since for params in daemon.asked("watch")] == [None, 7]
    daemon.push("run.state", RUN, state="HELD", before="RUNNING")
    assert read(watch)["kind"] == "run.state"


def test_patience_ends(daemon: FakeDaemon) -> None:
    with Client(str(daemon.path)).watch(patience_s=0.2) as watch:
        next(watch)
        daemon.stop()

        assert next(watch)["kind"] == "client.lost"
        with pytest.raises(NoDaemon):
            next(watch)


def test_a_run_that_is_gone_after_the_crash(daemon: FakeDaemon) -> None:
    """The store was lost, say: the watch cannot go on, and says so."""
    with Client(str(daemon.path)).watch([RUN]) as watch:
        next(watch)
        daemon.stop()
        daemon.rows = {}
        daemon.start()

        assert read(watch)["kind"] == "client.lost"
        with pytest.raises(RemoteError, match="no run is called rbcdfghjk"):
            read(watch)


def test_it_begins_where_it_is_told(daemon: FakeDaemon) -> None:
    daemon.push("run.progress", RUN)
    daemon.push("run.progress", RUN)

    with Client(str(daemon.path)).watch([RUN], since=8) as watch:
        assert repr(watch) == f"<Watch of {RUN}, at 8>"
        assert read(watch)["seq"] == 9


def test_no_daemon(socket_path: Path) -> None:
    with pytest.raises(NoDaemon):
        Client(str(socket_path)).watch()


def test_a_crash_before_the_answer_to_the_watch(daemon: FakeDaemon) -> None:
    """The daemon took the subscription and died before it could say so."""

    def die(params: Any) -> Any:
        del daemon.answers["watch"]
        raise Hangup

    daemon.answers["watch"] = die
    with Client(str(daemon.path)) as client, client.watch() as watch:
        assert kinds(watch, 3) == ["client.lost", "client.back", "snapshot"]


def test_a_daemon_that_was_met_is_waited_for(daemon: FakeDaemon) -> None:
    with Client(str(daemon.path)) as client:
        daemon.stop()
        with client.watch() as watch:
            daemon.start()
            assert kinds(watch, 3) == ["client.lost", "client.back", "snapshot"]
