"""Rights in mode system, by roles, with a daemon of this host and somebody else who connects to it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpsd.client.failures import ClientError, RemoteError
from tests.integration.daemons import FAST, RunningDaemon, document, true_job, until

SOMEBODY = 65533
"""A user of no name; that we may be anybody is why this needs root, as the beds do."""

BACKENDS: dict[str, Any] = {"a": {"type": "scripted"}, "b": {"type": "scripted"}}


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Be somebody else for a moment: the kernel notes who connects as the effective user."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def daemon(folder: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(folder, BACKENDS, mode="system") as daemon:
        yield daemon


def reload(daemon: RunningDaemon, **settings: Any) -> None:
    """Give the daemon another configuration, and wait until it has it."""
    taken = len([entry for entry in daemon.logged() if entry["event"] == "config_reloaded"])
    daemon.configure({**FAST, "mode": "system", "backends": BACKENDS, **settings})
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    until(
        lambda: len([entry for entry in daemon.logged() if entry["event"] == "config_reloaded"]) > taken,
        "the configuration is taken",
    )


def refused(code: str, call: Any, *args: Any, **more: Any) -> str:
    with pytest.raises(RemoteError) as caught:
        call(*args, **more)
    assert caught.value.code == code
    return str(caught.value)


def test_rights_follow_the_configuration_also_for_who_is_connected(daemon: RunningDaemon) -> None:
    with daemon.client() as root, as_user(SOMEBODY):
        somebody = daemon.client()
        somebody.ping()
    with root, somebody:
        roots = root.submit_document(document(true_job("x")), backend="a")["run"]
        assert [run["id"] for run in somebody.report()["runs"]] == [roots]  # everybody reads
        refused("permission_denied", somebody.submit_document, document(true_job("x")), backend="a")
        refused("permission_denied", somebody.cancel, roots)
        words = refused("permission_denied", somebody.admin, "check")
        assert "in rights.admin" in words

        submitters = {"users": [str(SOMEBODY)]}
        reload(daemon, backends={**BACKENDS, "a": {"type": "scripted", "submitters": submitters}})
        own = somebody.submit_document(document(true_job("x")), backend="a")["run"]
        words = refused("permission_denied", somebody.submit_document, document(true_job("x")), backend="b")
        assert "backends.b.submitters" in words
        somebody.cancel(own)
        refused("permission_denied", somebody.cancel, roots)

        reload(daemon, rights={"operator": {"users": [str(SOMEBODY)], "groups": ["no-such-group-here"]}})
        somebody.cancel(roots)
        (unknown,) = [entry for entry in daemon.logged() if entry["event"] == "names_unknown"]
        assert unknown["names"] == ["group no-such-group-here"]
        (people,) = [check for check in root.health()["checks"] if check["name"] == "people"]
        assert (people["status"], "group no-such-group-here" in people["message"]) == (1, True)

        reload(daemon, rights={"others": []})
        with as_user(SOMEBODY), pytest.raises(ClientError, match="not for user"), daemon.client() as nobody:
            nobody.ping()
        denied = [entry for entry in daemon.logged() if entry["event"] == "request_denied"]
        assert {entry["uid"] for entry in denied} == {SOMEBODY}


def test_runs_of_an_account_are_whose_the_configuration_says(daemon: RunningDaemon) -> None:
    daemon.wms("a").add("found", attributes={"owner": "svc"})
    with daemon.client() as root, as_user(SOMEBODY):
        somebody = daemon.client()
        somebody.ping()
    with root, somebody:
        (run,) = until(lambda: root.report()["runs"], "the run is found")
        refused("permission_denied", somebody.cancel, run["id"])

        reload(daemon, backends={**BACKENDS, "a": {"type": "scripted", "accounts": {"svc": str(SOMEBODY)}}})

        somebody.cancel(run["id"])


def test_idle_connections_of_others_lock_nobody_out(folder: Path) -> None:
    """Two users take every connection that they may have; root comes in, sees who it was, and so does an admin."""
    admin, limits = 65531, {"clients": 8, "clients_per_user": 4, "clients_reserved": 4}
    rights = {"admin": {"users": [str(admin)]}}
    with RunningDaemon(folder, BACKENDS, mode="system", limits=limits, rights=rights) as daemon, ExitStack() as stack:
        for uid in (65532, SOMEBODY):
            for _ in range(4):
                with as_user(uid):
                    stack.enter_context(daemon.client()).ping()
            with as_user(uid), pytest.raises(ClientError, match="limits"), daemon.client() as one_more:
                one_more.ping()
        with daemon.client() as root:
            health = root.health()
            (check,) = [check for check in health["checks"] if check["name"] == "clients"]
            assert (check["status"], health["status"]) == (2, 2)
            assert "#65532 4, #65533 4" in check["message"].replace("#65533 4, #65532 4", "#65532 4, #65533 4")
        with as_user(admin), daemon.client() as somebody:
            somebody.ping()


def test_unfinished_uploads_end_with_their_connection(folder: Path) -> None:
    backends = {**BACKENDS, "a": {"type": "scripted", "submitters": {"users": ["*"]}}}
    with RunningDaemon(folder, backends, mode="system", rights={"others": ["read"]}) as daemon:
        with as_user(SOMEBODY), daemon.client() as somebody:
            for number in range(16):
                somebody.blob_put(f"{number:064x}", 100, 0, "QQ==")
            refused("limit_exceeded", somebody.blob_put, "f" * 64, 100, 0, "QQ==")
            spool = daemon.state / "spool" / str(SOMEBODY)
        until(lambda: not [*spool.iterdir()], "the uploads are gone")
        with as_user(SOMEBODY), daemon.client() as somebody:
            somebody.submit_document(document(true_job("x")), backend="a")
