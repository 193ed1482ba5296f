"""A journal that is older than the history takes no commands: it does not know what was acknowledged since."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bpsd.client.failures import ClientError
from bpsd.journal import Position
from bpsd.journalcheck import COMMANDS_MARK, STARTS_MARK, reason_to_distrust
from tests.integration.daemons import PATIENCE_S, RunningDaemon, document, true_job

TOY = {"toy": {"type": "scripted"}}


def submit(daemon: RunningDaemon, name: str) -> str:
    with daemon.client() as client:
        command = client.submit_document(document(true_job("a_1"), name=name), backend="toy")
        assert client.wait_command(command["id"], timeout_s=PATIENCE_S)["state"] == "DONE"
        return str(command["run"])


def copy_journal(daemon: RunningDaemon, to: Path) -> None:
    """Copy the journal of a daemon that was stopped."""
    shutil.copy(daemon.state / "journal.db", to)


def put_back(daemon: RunningDaemon, copy: Path) -> None:
    """Do what a person does with a backup."""
    for name in ("journal.db-wal", "journal.db-shm"):
        (daemon.state / name).unlink(missing_ok=True)
    shutil.copy(copy, daemon.state / "journal.db")


def check_journal(daemon: RunningDaemon) -> tuple[int, str]:
    with daemon.client() as client:
        check = next(check for check in client.health()["checks"] if check["name"] == "journal")
    return check["status"], check["message"]


@pytest.mark.parametrize("more_commands", [True, False])
def test_an_older_journal_takes_no_commands_until_it_is_accepted(tmp_path: Path, more_commands: bool) -> None:
    """Also if nothing was commanded since: the daemon was started since, and may have named runs."""
    daemon = RunningDaemon(tmp_path, TOY)
    with daemon.start():
        submit(daemon, "before")
        assert daemon.stop() == 0
        copy_journal(daemon, tmp_path / "copy.db")
        daemon.start()
        late = submit(daemon, "late") if more_commands else None
        assert daemon.stop() == 0
        put_back(daemon, tmp_path / "copy.db")

        for _ in range(2):  # it stays so over a restart
            daemon.start()
            status, message = check_journal(daemon)
            assert status == 2
            assert "the journal is older than the history and takes no commands" in message
            with pytest.raises(ClientError, match="older than the history"):
                submit(daemon, "refused")
            with daemon.client() as client:
                if late is not None:
                    assert client.status(late)["id"] == late  # the history still shows it
            assert daemon.stop() == 0
        assert "journal_older" in [line["event"] for line in daemon.logged()]

        daemon.start()
        with daemon.client() as client:
            client.admin("accept")
        assert check_journal(daemon)[0] == 0
        submit(daemon, "after")
        daemon.kill()
        daemon.start()  # accepted is accepted, over a kill too
        assert check_journal(daemon)[0] == 0
        submit(daemon, "later")


def test_the_copy_of_today_is_older_too(tmp_path: Path) -> None:
    """Made by the daemon itself a moment ago, without a start in between, but with a command."""
    daemon = RunningDaemon(tmp_path, TOY)
    with daemon.start():
        submit(daemon, "before")
        with daemon.client() as client:
            client.admin("backup")
        submit(daemon, "late")
        daemon.kill()
        put_back(daemon, next((daemon.state / "copies").glob("journal*")))

        daemon.start()

        status, message = check_journal(daemon)
        assert status == 2
        assert "it holds 1 commands, and the history has seen 2" in message


def test_a_journal_that_goes_on_is_trusted(tmp_path: Path) -> None:
    daemon = RunningDaemon(tmp_path, TOY)
    with daemon.start():
        for number in range(3):
            submit(daemon, f"run{number}")
            daemon.kill()
            if number == 1:
                (daemon.state / "store.db").unlink()  # the history may go: it says nothing against the journal
            daemon.start()
            assert check_journal(daemon)[0] == 0


@pytest.mark.parametrize(
    ("position", "seen", "trusted"),
    [
        (Position(1, 0), {}, True),
        (Position(5, 7), {STARTS_MARK: 4, COMMANDS_MARK: 7}, True),
        (Position(5, 9), {STARTS_MARK: 2, COMMANDS_MARK: 7}, True),
        (Position(4, 7), {STARTS_MARK: 4, COMMANDS_MARK: 7}, False),
        (Position(9, 6), {STARTS_MARK: 4, COMMANDS_MARK: 7}, False),
        (Position(1, 0), {STARTS_MARK: 1, COMMANDS_MARK: 0}, False),
    ],
)
def test_what_is_older(position: Position, seen: dict[str, int], trusted: bool) -> None:
    assert (reason_to_distrust(position, seen) == "") is trusted
