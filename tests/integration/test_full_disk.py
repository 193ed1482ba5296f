"""A full disk delays commands and fails none; when there is space again, all goes on without a restart."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpsd.client.sync import Client
from bpsd.logs.sink import LogSink
from tests.disks import DISKS, Disk, small_disk
from tests.integration.daemons import PATIENCE_S, RunningDaemon, document, true_job, until

needs_mount = pytest.mark.skipif("tmpfs" not in DISKS, reason="mounting a file system of its own needs root")


@contextlib.contextmanager
def daemon_on(folder: Path, what: str) -> Iterator[tuple[RunningDaemon, Disk]]:
    """A daemon with a local backend, of which the run folders, or its state, are on a small disk."""
    small = folder / "small"
    small.mkdir()
    settings = {"cores": 2, "memory_mb": 1000, "ledger": str(folder / "ledger")}
    if what == "runs":
        settings["run_dir"] = str(small)
    with small_disk("tmpfs", small) as disk:
        metrics = {"textfile": str(small / "bpsd.prom"), "interval_s": 1.0}
        daemon = RunningDaemon(folder, {"here": {"type": "local", **settings}}, metrics=metrics)
        if what == "state":
            daemon.state.symlink_to(small)
        with daemon.start():
            yield daemon, disk


def checks(client: Client) -> dict[str, dict[str, Any]]:
    """What health says, by check."""
    return {check["name"]: check for check in client.health()["checks"]}


def accepted(client: Client, **job: Any) -> dict[str, Any]:
    return client.submit_document(document({**true_job("a_1"), **job}), backend="here", token="t" * 20)


@needs_mount
def test_a_submission_waits_for_space_in_the_run_folder(tmp_path: Path) -> None:
    with daemon_on(tmp_path, "runs") as (daemon, disk), daemon.client() as client:
        disk.fill()
        command = accepted(client)

        def waits() -> dict[str, Any] | None:
            now = client.wait_command(command["id"], timeout_s=0)
            assert now["state"] in ("ACCEPTED", "RUNNING"), now
            return now if "is full" in now["note"] else None

        now = until(waits, "the command says that it waits")
        assert f"the file system {disk.folder} is full" in now["note"]
        said = checks(client)
        disk_check = said[f"disk.{disk.folder}"]
        assert disk_check["status"] == 2
        assert f"the file system {disk.folder} is full (the runs of backend here" in disk_check["message"]

        disk.free()

        done = client.wait_command(command["id"], timeout_s=PATIENCE_S)
        assert done["state"] == "DONE", done
        assert accepted(client)["id"] == command["id"]  # the token is that of the run
        until(lambda: client.status(done["run"])["state"] == "SUCCEEDED", "the run succeeds")
        assert checks(client)["disk.commands"]["status"] == 0
        until(lambda: (disk.folder / "bpsd.prom").exists(), "the figures are written again")


@needs_mount
def test_a_cancel_waits_for_space_in_the_run_folder(tmp_path: Path) -> None:
    with daemon_on(tmp_path, "runs") as (daemon, disk), daemon.client() as client:
        submitted = accepted(client, executable="/bin/sleep", arguments="300")
        run = client.wait_command(submitted["id"], timeout_s=PATIENCE_S)["run"]
        until(lambda: client.status(run)["state"] == "RUNNING", "the run goes on")
        disk.fill()
        cancel = client.cancel(run)

        time.sleep(2)  # several tries
        now = client.wait_command(cancel["id"], timeout_s=0)
        assert now["state"] in ("ACCEPTED", "RUNNING", "DONE"), now
        disk.free()

        assert client.wait_command(cancel["id"], timeout_s=PATIENCE_S)["state"] == "DONE"
        assert client.status(run)["state"] == "DELETED"


@needs_mount
def test_everything_goes_on_when_the_state_folder_has_space_again(tmp_path: Path) -> None:
    with daemon_on(tmp_path, "state") as (daemon, disk), daemon.client() as client:
        submitted = accepted(client, executable="/bin/sleep", arguments="3")
        run = client.wait_command(submitted["id"], timeout_s=PATIENCE_S)["run"]
        disk.fill()

        with pytest.raises(Exception, match=r"(?i)full|no space"):  # not accepted: its token is free
            client.submit_document(document(true_job("b_1"), name="x" * 5000), backend="here", token="u" * 20)
        assert checks(client)["disk"]["status"] == 2
        assert str(disk.folder) in checks(client)["disk"]["message"]

        disk.free()

        again = client.submit_document(document(true_job("b_1")), backend="here", token="u" * 20)
        assert client.wait_command(again["id"], timeout_s=PATIENCE_S)["state"] == "DONE"

        def succeeded() -> bool:
            return all(client.status(each)["state"] == "SUCCEEDED" for each in (run, again["run"]))

        until(succeeded, "both runs succeed")
        assert "Traceback" not in daemon.log.read_text()


@pytest.mark.parametrize("kind", DISKS)
def test_log_lines_wait_for_space(tmp_path: Path, kind: str) -> None:
    with small_disk(kind, tmp_path) as disk:
        fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        sink = LogSink(fd, describe_loss=lambda count: f"{count} lost")
        disk.fill()
        lines = [f"{number} " + "x" * 5000 for number in range(20)]
        for line in lines:
            sink.write(line + "\n")

        disk.free()
        until(lambda: (tmp_path / "log").read_text().splitlines() == lines, "all lines are there, whole")
        sink.close()
        os.close(fd)
        assert sink.dropped == 0
