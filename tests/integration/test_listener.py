"""The listening socket: nobody else's is taken away, the right people can connect, nothing stale stays."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import CapturingLogger

from bpsd.errors import CannotStart
from bpsd.server import Listener, listener, open_listener

ROOT = Path(__file__).parents[2]


@pytest.fixture
def log() -> CapturingLogger:
    return CapturingLogger()


def events(log: CapturingLogger) -> list[str]:
    return [str(call.args[0]) for call in log.calls]


def opened(path: Path, log: Any, *, mode: int = 0o600) -> Listener:
    return open_listener(str(path), mode=mode, environ={}, log=log)


def refused(path: Path | str, **kwargs: Any) -> CannotStart:
    """The error of opening a listener where none can be."""
    with pytest.raises(CannotStart) as caught:
        open_listener(str(path), mode=0o600, environ=kwargs.pop("environ", {}), log=CapturingLogger())
    assert caught.value.advice
    return caught.value


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def stale_socket(path: Path) -> None:
    """What a daemon leaves that was killed."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


# -- bound by our own hand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o660])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_the_mode_is_as_asked_whatever_the_umask(
    socket_path: Path, log: CapturingLogger, mode: int, umask: int
) -> None:
    # The lock file is opened first: a umask that takes everything must not keep its owner from it.
    before = os.umask(umask)
    try:
        with opened(socket_path, log, mode=mode):
            actual = socket_path.lstat().st_mode
            assert os.umask(umask) == umask  # nobody else's files were concerned
    finally:
        os.umask(before)

    assert stat.S_ISSOCK(actual)
    assert stat.S_IMODE(actual) == mode


def test_the_mode_is_never_wider_than_asked(
    socket_path: Path, log: CapturingLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    chmod = Path.chmod

    def look_then_chmod(self: Path, mode: int) -> None:
        modes.append(stat.S_IMODE(self.lstat().st_mode))
        chmod(self, mode)

    monkeypatch.setattr(Path, "chmod", look_then_chmod)
    before = os.umask(0)
    try:
        opened(socket_path, log).close()
    finally:
        os.umask(before)

    assert modes == [0o600]


def test_missing_folders_are_made_for_us_alone(state_dir: Path, log: CapturingLogger) -> None:
    path = state_dir / "a" / "b" / "s"

    with opened(path, log):
        assert accepts(path)

    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)] == [0o700, 0o700]


def test_afterwards_the_name_is_free(socket_path: Path, log: CapturingLogger) -> None:
    with opened(socket_path, log) as first:
        assert repr(first) == f"<Listener {socket_path} listening>"
        assert first.is_reachable()

    assert not socket_path.exists()
    assert repr(first) == f"<Listener {socket_path} closed>"
    first.close()  # again does no harm
    with opened(socket_path, log):
        assert accepts(socket_path)
    assert events(log) == ["socket_opened", "socket_closed"] * 2


def test_a_stale_socket_makes_way(socket_path: Path, log: CapturingLogger) -> None:
    stale_socket(socket_path)

    with opened(socket_path, log):
        assert accepts(socket_path)

    assert "socket_stale_removed" in events(log)


def test_a_daemon_that_was_killed_leaves_no_obstacle(socket_path: Path, log: CapturingLogger) -> None:
    with serving_process(socket_path) as daemon:
        daemon.kill()
        daemon.wait(60)
        assert socket_path.is_socket()

        with opened(socket_path, log):
            assert accepts(socket_path)


def test_a_running_daemon_keeps_its_socket(socket_path: Path) -> None:
    with serving_process(socket_path) as daemon:
        error = refused(socket_path)

        assert accepts(socket_path)
        assert f"another daemon has the socket {socket_path} (process {daemon.pid})" in str(error)
        assert error.fields["pid"] == daemon.pid


def test_a_socket_of_somebody_without_lock_is_kept(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(socket_path))
        other.listen()

        error = refused(socket_path)

        assert f"(process {os.getpid()})" in str(error)
        assert accepts(socket_path)


def test_a_socket_whose_queue_is_full_is_somebody_s(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(socket_path))
        busy.listen(0)
        waiting.connect(str(socket_path))  # fills the queue

        assert "another daemon has the socket" in str(refused(socket_path))
        assert socket_path.is_socket()


def test_a_lock_without_socket_is_somebody_s(socket_path: Path, log: CapturingLogger) -> None:
    with opened(socket_path, log) as stopping:
        stopping.stop_listening()
        assert not socket_path.exists()

        assert "another daemon has the socket" in str(refused(socket_path))

    with opened(socket_path, log):
        assert accepts(socket_path)


def test_what_is_no_socket_is_left_alone(socket_path: Path) -> None:
    socket_path.write_text("precious")

    assert "no socket" in str(refused(socket_path))
    assert socket_path.read_text() == "precious"


def test_what_is_no_longer_ours_is_not_removed(socket_path: Path, log: CapturingLogger) -> None:
    with opened(socket_path, log) as ours:
        socket_path.unlink()
        assert not ours.is_reachable()
        socket_path.write_text("somebody else's")
        assert not ours.is_reachable()

    assert socket_path.read_text() == "somebody else's"
    assert "socket_taken_away" in events(log)


@pytest.mark.parametrize(("excess", "fits"), [(0, True), (1, False)])
def test_a_path_that_is_too_long_is_refused_with_advice(
    state_dir: Path, log: CapturingLogger, excess: int, fits: bool
) -> None:
    path = state_dir / ("x" * (107 - len(str(state_dir)) - 1 + excess))
    if fits:
        with opened(path, log):
            assert accepts(path)
    else:
        error = refused(path)
        assert "108 bytes long" in str(error)
        assert "BPSD_SOCKET" in error.advice
        assert not path.exists()


@pytest.mark.parametrize("path", ["relative", "", "\0abstract", "/tmp/a\0b"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    assert "not absolute" in str(refused(path))


def test_a_folder_of_somebody_else_is_refused(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = state_dir / "theirs"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)

    assert "who could replace the socket" in str(refused(folder / "s"))
    assert list(folder.iterdir()) == []


def test_a_folder_open_to_everybody_is_refused(state_dir: Path, log: CapturingLogger) -> None:
    folder = state_dir / "open"
    folder.mkdir()
    folder.chmod(0o777)
    assert "everybody may write" in str(refused(folder / "s"))

    folder.chmod(0o1777)  # as /tmp: nobody removes what is others'
    opened(folder / "s", log).close()


def test_a_folder_that_cannot_be_is_refused(state_dir: Path) -> None:
    (state_dir / "file").write_text("")

    assert "cannot be made or read" in str(refused(state_dir / "file" / "below" / "s"))
    assert "is not a directory (it should hold the socket)" in str(refused(state_dir / "file" / "s"))


def test_a_lock_file_that_is_a_link_is_not_followed(socket_path: Path) -> None:
    Path(f"{socket_path}.lock").symlink_to(socket_path.with_name("elsewhere"))

    assert "lock file cannot be opened" in str(refused(socket_path))
    assert not socket_path.with_name("elsewhere").exists()


# -- opened by systemd -----------------------------------------------------------------------------------------------

AS_SYSTEMD = """
import os, socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="bpsd.socket")
os.execv(sys.executable, [sys.executable, "-m", "tests.integration.socket_server", "/nowhere/else"])
"""


class serving_process:  # noqa: N801 - read like a function
    """A server in a process of its own, ready; ended at the end if it is not yet."""

    def __init__(self, path: Path, *, program: str | None = None) -> None:
        start = ["-m", "tests.integration.socket_server"] if program is None else ["-c", program]
        self._process = subprocess.Popen(
            [sys.executable, *start, str(path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> subprocess.Popen[str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("serving"), self._process.communicate()
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_socket_of_systemd_is_served_and_kept(socket_path: Path) -> None:
    with serving_process(socket_path, program=AS_SYSTEMD) as daemon:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(socket_path))
            assert b'"hello"' in client.recv(4096)

        daemon.send_signal(signal.SIGTERM)
        _, said = daemon.communicate(timeout=60)

    assert daemon.returncode == 0, said
    assert f'"path": "{socket_path}", "activated": true' in said
    assert socket_path.is_socket()  # systemd's to remove
    assert not Path(f"{socket_path}.lock").exists()


def test_who_waits_for_a_daemon_that_cannot_start_is_told_so(state_dir: Path) -> None:
    """Left in systemd's socket, each client would start it again, and again."""
    config, path = state_dir / "bpsd.yaml", state_dir / "s"
    config.write_text("mode: system\nbackends: {}\n")
    started = (
        AS_SYSTEMD.replace("tests.integration.socket_server", "bpsd.cli.bpsd")
        .replace('"/nowhere/else"', f'"serve", "--config", "{config}"')
        .replace("os.dup2", "print('listening', flush=True); sys.stdin.readline(); os.dup2")
    )
    daemon = subprocess.Popen(
        [sys.executable, "-c", started, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == "listening\n"
    with socket.socket(socket.AF_UNIX) as early:
        early.settimeout(60)
        early.connect(str(path))
        _, said = daemon.communicate("go\n", timeout=60)

        with early.makefile("rb") as lines:
            told = json.loads(lines.readline())
            assert lines.readline() == b""
    assert daemon.returncode == 2
    assert "line 2: backends: there is no backend" in said
    assert (told["method"], told["params"]["code"]) == ("goodbye", "stopping")
    assert told["params"]["message"].startswith(f"the daemon cannot start: the configuration {config} has 1 mistake")


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Pass a file descriptor as systemd does, but for its number; return the environment."""
    copies: list[int] = []

    def pass_on(fd: int, **extra: str) -> dict[str, str]:
        copies.append(os.dup(fd))
        monkeypatch.setattr(listener, "_FIRST_ACTIVATED_FD", copies[-1])
        return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", **extra}

    yield pass_on
    for fd in copies:
        try:
            os.close(fd)
        except OSError:  # it was taken, and closed
            pass


def test_the_environment_is_not_for_our_children(socket_path: Path, log: CapturingLogger, passed: Any) -> None:
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(socket_path))
        theirs.listen()
        environ = passed(theirs.fileno(), LISTEN_FDNAMES="bpsd.socket", HOME="/")

        with open_listener("/nowhere/else", mode=0o600, environ=environ, log=log) as ours:
            assert environ == {"HOME": "/"}
            assert (ours.activated, ours.path, ours.is_reachable()) == (True, str(socket_path), True)
            assert not ours.socket.get_inheritable()
            assert repr(ours) == f"<Listener {socket_path} activated>"

    assert socket_path.is_socket()


def test_a_lost_socket_of_systemd_is_reported(socket_path: Path, log: CapturingLogger, passed: Any) -> None:
    """Only systemd can open it again: clients who come to the socket unit would not reach another one."""
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(socket_path))
        theirs.listen()
        with open_listener("/nowhere/else", mode=0o600, environ=passed(theirs.fileno()), log=log) as ours:
            assert ours.restore() is None
            assert ours.fault == ""
            socket_path.unlink()

            assert ours.restore() is None
            assert f"clients cannot reach {socket_path}" in ours.fault
            assert "systemctl restart bpsd.socket" in ours.fault
            assert not socket_path.exists()


def test_a_lock_file_that_was_removed_is_locked_again(socket_path: Path, log: CapturingLogger) -> None:
    with opened(socket_path, log) as ours:
        Path(f"{socket_path}.lock").unlink()

        assert ours.restore() is None
        assert ours.fault == ""
        assert accepts(socket_path)
        assert "another daemon has the socket" in str(refused(socket_path))


def test_a_socket_whose_lock_another_daemon_has_is_not_bound_again(socket_path: Path, log: CapturingLogger) -> None:
    with opened(socket_path, log) as ours:
        Path(f"{socket_path}.lock").unlink()
        socket_path.unlink()
        with opened(socket_path, log):
            assert ours.restore() is None
            assert "another daemon has the socket" in ours.fault
        assert not socket_path.exists()

        old = ours.restore()
        assert old is not None
        old.close()
        assert ours.fault == ""
        assert accepts(socket_path)


def test_a_socket_for_another_process_is_not_taken(socket_path: Path, log: CapturingLogger) -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}

    with open_listener(str(socket_path), mode=0o600, environ=environ, log=log) as ours:
        assert not ours.activated
    assert environ == {}


def test_several_sockets_of_systemd_are_refused() -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}

    assert "systemd passed 2 sockets (a:b)" in str(refused("/x", environ=environ))


def test_what_systemd_passes_must_be_a_listening_stream(state_dir: Path, passed: Any) -> None:
    with (
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as datagrams,
        closing(socket.socket(socket.AF_UNIX)) as not_listening,
        closing(socket.socket(socket.AF_INET)) as internet,
        (state_dir / "file").open("w") as file,
    ):
        datagrams.bind(str(state_dir / "d"))
        internet.bind(("127.0.0.1", 0))
        internet.listen()
        for each in (datagrams, not_listening, internet):
            assert "is no listening Unix stream socket" in str(refused("/x", environ=passed(each.fileno())))
        assert "is no socket" in str(refused("/x", environ=passed(file.fileno())))
