"""A daemon whose socket file is removed or replaced binds it again; nobody else's socket is taken away for that."""

from __future__ import annotations

import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bpsd.server.service import SOCKET_CHECK_S
from tests.integration.daemons import RunningDaemon, until

NOTICED_WITHIN_S = 30.0


@pytest.fixture
def daemon(tmp_path: Path) -> RunningDaemon:
    daemon = RunningDaemon(tmp_path, {"b": {"type": "scripted"}})
    daemon.socket = tmp_path / "run" / "bpsd" / "s"
    daemon.configure({"socket": str(daemon.socket), "backends": {"b": {"type": "scripted"}}})
    return daemon


def reachable(daemon: RunningDaemon) -> bool:
    assert daemon.process is not None
    try:
        with daemon.client(timeout_s=5) as client:
            return bool(client.version()["pid"] == daemon.process.pid)
    except Exception:  # noqa: BLE001  # not yet, in whatever way
        return False


def remove(path: Path) -> None:
    path.unlink()


def replace_by_file(path: Path) -> None:
    path.unlink()
    path.write_text("precious")


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def replace_by_dead_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def remove_folder(path: Path) -> None:
    """Remove the folder with the lock file, as systemd-tmpfiles does."""
    shutil.rmtree(path.parent)


def remake_folder(path: Path) -> None:
    """Remove the folder, and make it again."""
    shutil.rmtree(path.parent.parent)
    path.parent.mkdir(parents=True)


@pytest.mark.parametrize(
    "lose", [remove, replace_by_file, replace_by_link, replace_by_dead_socket, remove_folder, remake_folder]
)
def test_a_lost_socket_is_bound_again(daemon: RunningDaemon, lose: Callable[[Path], None]) -> None:
    assert SOCKET_CHECK_S < NOTICED_WITHIN_S
    with daemon.start(), daemon.client() as connected:
        before = stat.S_IMODE(daemon.socket.parent.stat().st_mode)
        lose(daemon.socket)
        assert not reachable(daemon)

        until(lambda: reachable(daemon), "the daemon can be reached again")

        assert connected.version()["pid"] == daemon.process.pid  # type: ignore[union-attr]
        assert stat.S_IMODE(daemon.socket.lstat().st_mode) == 0o600
        if lose is remove_folder:
            assert stat.S_IMODE(daemon.socket.parent.stat().st_mode) == before
        if lose is replace_by_file:
            assert Path(f"{daemon.socket}.aside-1").read_text() == "precious"
        with daemon.client() as client:
            health = client.health()
            assert [check["status"] for check in health["checks"] if check["name"] == "socket"] == [0]
        second = subprocess.run(  # the lock is there too
            [sys.executable, "-m", "bpsd.cli.bpsd", "serve", "--config", str(other_state(daemon))],
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert second.returncode != 0
        assert f"another daemon has the socket {daemon.socket}" in second.stderr
        assert daemon.stop() == 0
        assert not daemon.socket.exists()


def other_state(daemon: RunningDaemon) -> Path:
    """Return the configuration of a daemon that wants the same socket."""
    path = daemon.folder / "other.yaml"
    path.write_text(
        f"socket: {daemon.socket}\nstate_dir: {daemon.folder / 'other'}\nbackends: {{b: {{type: scripted}}}}\n"
    )
    return path


def test_a_socket_that_answers_is_left_to_its_owner(daemon: RunningDaemon) -> None:
    """It is reported; once its owner has left, the daemon binds its own again."""
    with daemon.start(), daemon.client() as connected:
        daemon.socket.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(daemon.socket))
            other.listen()
            inode = daemon.socket.lstat().st_ino

            def reported() -> str:
                health = connected.health()
                check = next(check for check in health["checks"] if check["name"] == "socket")
                return check["message"] if check["status"] == 2 else ""

            assert f"another daemon has the socket {daemon.socket}" in until(reported, "health reports it")
            time.sleep(SOCKET_CHECK_S * 1.5)
            assert daemon.socket.lstat().st_ino == inode
        until(lambda: reachable(daemon), "the daemon can be reached again")
        assert not reported()
        events = [line["event"] for line in daemon.logged()]
        assert events.count("socket_unreachable") == 1  # not at every look
        assert "socket_bound_again" in events
