"""``--timeout`` binds on every verb, whatever does not answer, and a wait says what it waits for."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpsd.cli import bpsctl as cli
from bpsd.cli import verbs
from bpsd.cli.session import Session
from bpsd.client.failures import ClientError
from tests.integration.bpsctl import bpsctl, start
from tests.integration.fake_daemon import FakeDaemon, Hangup, command_row, run_row

RUN = "rbcdfghjk"
PATIENCE_S = 30.0

WORDS = {
    "report": [],
    "status": [RUN],
    "list": [],
    "jobs": [RUN],
    "holds": [],
    "logs": [RUN, "isr_1"],
    "watch": [],
    "wait": [RUN],
    "events": ["--follow"],
    "commands": ["c1"],
    "submit": ["wf.yaml", "--wait"],
    "validate": ["wf.yaml"],
    "cancel": [RUN],
    "restart": [RUN],
    "hold": ["--active", "--yes"],
    "release": ["--active", "--yes"],
    "mute": [RUN],
    "unmute": [RUN],
    "commands resolve": ["c1", "done"],
    "ping": [],
    "backends": [],
    "refresh": [],
    "health": [],
    "admin": ["check"],
    "version": [],
}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "bpsd.sock")
    daemon.rows = {RUN: run_row(RUN)}
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def document(tmp_path: Path) -> str:
    path = tmp_path / "wf.yaml"
    path.write_text("name: x\njobs: []\n")
    return str(path)


def words(verb: str, document: str) -> list[str]:
    return [*verb.split(), *(document if word == "wf.yaml" else word for word in WORDS[verb])]


def test_the_table_has_every_verb_that_asks_the_daemon() -> None:
    assert {*WORDS} == {*verbs.names()} - {"completion"}


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[Path]:
    """A daemon that was stopped (SIGSTOP): the kernel still accepts connections for it, and nothing is ever said."""
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(64)
        yield path


@pytest.mark.parametrize("verb", WORDS)
def test_a_stopped_daemon_is_waited_for_until_the_time_is_over(verb: str, mute: Path, document: str) -> None:
    done = bpsctl(mute, *words(verb, document), "--timeout", "0.3")

    assert done.code == 3, done
    assert "the time is over" in done.err + done.out


@pytest.mark.parametrize("verb", WORDS)
def test_a_daemon_that_stops_in_the_midst_is_waited_for_until_the_time_is_over(
    verb: str, daemon: FakeDaemon, document: str
) -> None:
    release = threading.Event()
    answers = {"holds", "list", "ping"} if verb in ("hold", "release", "refresh") else set()

    def never(params: Any) -> Any:
        release.wait(PATIENCE_S)
        raise Hangup

    for method in {"report", "status", "list", "jobs", "holds", "logs", "watch", "events", "commands", "blob.put",
                   "cancel", "restart", "hold", "release", "mute", "unmute", "commands.resolve", "ping", "backends",
                   "refresh", "health", "admin", "version"} - answers:  # fmt: skip
        daemon.answers[method] = never
    try:
        done = bpsctl(daemon.path, *words(verb, document), "--timeout", "0.5")
    finally:
        release.set()

    if verb == "release":  # nothing is on hold, so nothing is waited for
        assert done.code == 0
        return
    assert done.code == 3, done
    assert "the time is over" in done.err + done.out


def never_over(daemon: FakeDaemon, verb: str, state: str, note: str = "") -> None:
    row = command_row(verb, state, run=RUN, note=note, result={}, args={})

    def still(params: Any) -> Any:
        threading.Event().wait(min(params.timeout_s, 5.0))
        return row

    daemon.answers[verb] = lambda _: row
    daemon.answers["commands.wait"] = still


def test_a_submit_that_no_backend_carries_out_ends_with_the_time_and_names_the_run(
    daemon: FakeDaemon, document: str
) -> None:
    never_over(daemon, "submit", "RUNNING", "the ledger of this machine cannot be opened")
    done = bpsctl(daemon.path, "submit", document, "--wait", "--timeout", "1s")

    assert done.code == 3
    assert f"Run Id: {RUN}" in done.out
    assert "the time is over; the submit under way: the ledger of this machine cannot be opened" in done.err
    assert f"run {RUN} goes on" in done.err


@pytest.mark.parametrize("verb", ["cancel", "restart", "hold", "release"])
def test_a_command_that_no_backend_carries_out_ends_with_the_time(verb: str, daemon: FakeDaemon) -> None:
    never_over(daemon, verb, "ACCEPTED")
    done = bpsctl(daemon.path, verb, RUN, "--timeout", "1s")

    assert done.code == 3
    assert done.out == f"{RUN}: waits\n"
    assert "the daemon goes on" in done.err


def test_a_wait_of_some_seconds_says_what_is_waited_for(daemon: FakeDaemon) -> None:
    never_over(daemon, "cancel", "ACCEPTED")
    process = start(daemon.path, "cancel", RUN)
    assert process.stderr is not None

    assert process.stderr.readline() == f"{RUN}: waiting for the daemon to begin the cancel on backend here\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "the daemon goes on with it: `bpsctl commands c1` tells how far it is" in err


def test_a_slow_answer_says_what_is_waited_for(daemon: FakeDaemon) -> None:
    release = threading.Event()
    slow = daemon._backends  # what it answers otherwise

    def late(params: Any) -> Any:
        release.wait(PATIENCE_S)
        return slow(params)

    daemon.answers["backends"] = late
    process = start(daemon.path, "backends")
    assert process.stderr is not None
    line = process.stderr.readline()
    release.set()
    process.communicate(timeout=PATIENCE_S)

    assert line == "bpsctl: backends: waiting for the daemon to answer\n"
    assert process.returncode == 0


def test_the_time_binds_while_standard_input_says_nothing(daemon: FakeDaemon) -> None:
    read, write = os.pipe()
    try:
        process = start(daemon.path, "submit", "-", "--timeout", "0.2")
        try:
            assert process.wait(PATIENCE_S) == 3
        finally:
            process.communicate()
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("verb", ["status", "cancel", "submit", "refresh", "watch"])
def test_ctrl_c_ends_it_promptly(verb: str, daemon: FakeDaemon, document: str) -> None:
    release = threading.Event()

    def never(params: Any) -> Any:
        asked.set()
        release.wait(PATIENCE_S)
        raise Hangup

    asked = threading.Event()
    for method in ("status", "cancel", "blob.put", "refresh", "watch"):
        daemon.answers[method] = never
    process = start(daemon.path, *words(verb, document))
    try:
        assert asked.wait(PATIENCE_S)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S / 2)
    finally:
        release.set()

    assert process.returncode == 130
    assert err.startswith("\nbpsctl: ")


def test_the_time_ends_once(monkeypatch: pytest.MonkeyPatch, mute: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The alarm rings while the error of the connection is reported, which noticed the same moment itself."""
    report = cli.report_error

    def late(session: Session, error: ClientError) -> int:
        signal.raise_signal(signal.SIGALRM)
        return report(session, error)

    monkeypatch.setattr(cli, "report_error", late)
    before = signal.getsignal(signal.SIGALRM)
    try:
        assert cli.main(["list", "--socket", str(mute), "--timeout", "0.1"]) == 3
    finally:
        signal.signal(signal.SIGALRM, before)

    said = capsys.readouterr()
    assert "the time is over" in said.err + said.out
