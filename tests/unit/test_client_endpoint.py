"""Which socket, and what the first words on it mean."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import bpsd
from bpsd import wire
from bpsd.client import endpoint
from bpsd.client.failures import ClientError, ConnectionLost, NoDaemon, RemoteError, VersionMismatch, from_response

UID = os.getuid()


def test_default_socket_is_in_the_runtime_folder() -> None:
    assert wire.default_socket({"XDG_RUNTIME_DIR": "/run/user/7"}, 7) == "/run/user/7/bpsd/bpsd.sock"


def test_default_socket_without_a_login_session() -> None:
    nobody = 4_000_000_000  # a uid that has no folder in /run/user

    assert wire.default_socket({"HOME": "/home/a"}, nobody) == "/home/a/.local/state/bpsd/bpsd.sock"
    assert wire.default_socket({"HOME": "/home/a", "XDG_STATE_HOME": "/st"}, nobody) == "/st/bpsd/bpsd.sock"


def test_what_is_said_wins_over_the_environment(state_dir: Path) -> None:
    environ = {"BPSD_SOCKET": "/from/environ", "XDG_RUNTIME_DIR": str(state_dir)}

    assert endpoint.find_socket("/said", environ, UID) == ("/said", "as told")
    assert endpoint.find_socket(None, environ, UID) == ("/from/environ", "from BPSD_SOCKET")
    del environ["BPSD_SOCKET"]
    assert endpoint.find_socket(None, environ, UID) == (f"{state_dir}/bpsd/bpsd.sock", "the default")


def test_the_system_daemon_is_found_where_there_is_no_own(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = state_dir / "system.sock"
    system.touch()
    monkeypatch.setattr(wire, "SYSTEM_SOCKET", str(system))
    own = state_dir / "bpsd" / "bpsd.sock"

    path, why = endpoint.find_socket(None, {"XDG_RUNTIME_DIR": str(state_dir)}, UID)
    assert (path, why) == (str(system), f"the system's, as there is no {own}")
    system.unlink()  # it is closed while the daemon cannot start, and that is what is to be told
    assert endpoint.find_socket(None, {"XDG_RUNTIME_DIR": str(state_dir)}, UID)[0] == str(system)

    own.parent.mkdir()
    own.touch()
    assert endpoint.find_socket(None, {"XDG_RUNTIME_DIR": str(state_dir)}, UID)[0] == str(own)


@pytest.mark.parametrize(
    ("error", "reason", "advice"),
    [
        (FileNotFoundError(2, "x"), "no such socket", "bpsd serve"),
        (ConnectionRefusedError(), "nobody listens there", "systemctl --user start bpsd"),
        (PermissionError(), "permission denied", "another user's"),
        (BlockingIOError(), "does not accept connections", "its log"),
        (OSError(errno.ENAMETOOLONG, "AF_UNIX path too long"), "AF_UNIX path too long", "--socket"),
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long", "--socket"),
    ],
)
def test_nobody_answers(error: OSError, reason: str, advice: str) -> None:
    said = endpoint.no_daemon("/x/s", "from BPSD_SOCKET", error)

    assert said.message.startswith("no daemon answers on /x/s (from BPSD_SOCKET): ")
    assert reason in said.message
    assert advice in said.advice
    assert (said.code, said.fields["socket"]) == ("no_daemon", "/x/s")


def test_the_system_daemon_is_started_otherwise() -> None:
    advice = endpoint.no_daemon(wire.SYSTEM_SOCKET, "x", FileNotFoundError()).advice

    assert "`systemctl restart bpsd.socket bpsd.service`" in advice
    assert "bpsd serve" not in advice
    with pytest.raises(VersionMismatch) as older:
        endpoint.check_hello(hello(protocol=wire.PROTOCOL_VERSION - 1), wire.SYSTEM_SOCKET)
    assert "`systemctl restart bpsd`" in older.value.advice


def hello(**params: Any) -> dict[str, Any]:
    known = {"name": "bpsd", "version": "9.9", "protocol": wire.PROTOCOL_VERSION, "pid": 1, "mode": "user"}
    return {"jsonrpc": "2.0", "method": "hello", "params": known | params}


def test_hello() -> None:
    assert endpoint.check_hello(hello(), "/s")["version"] == "9.9"


def test_other_protocols_are_told_to_a_person() -> None:
    with pytest.raises(VersionMismatch) as newer:
        endpoint.check_hello(hello(protocol=wire.PROTOCOL_VERSION + 1), "/s")
    with pytest.raises(VersionMismatch) as older:
        endpoint.check_hello(hello(protocol=wire.PROTOCOL_VERSION - 1), "/s")

    assert newer.value.message == (
        f"the daemon on /s speaks protocol {wire.PROTOCOL_VERSION + 1} (bpsd 9.9), "
        f"this client protocol {wire.PROTOCOL_VERSION} (bpsd {bpsd.__version__})"
    )
    assert newer.value.advice == "use the client of the daemon's version: bpsd 9.9"
    assert "restart the daemon" in older.value.advice


@pytest.mark.parametrize("message", [None, [], {}, {"method": "hello"}, {"method": "hello", "params": {"name": "x"}}])
def test_others_are_not_taken_for_bpsd(message: Any) -> None:
    with pytest.raises(ClientError, match="is not bpsd") as caught:
        endpoint.check_hello(message, "/s")

    assert caught.value.code == "protocol_error"


def test_a_daemon_that_hangs_up_says_why() -> None:
    with pytest.raises(RemoteError, match="200 clients are connected") as caught:
        endpoint.check_hello(
            {"method": "goodbye", "params": {"code": "limit_exceeded", "message": "200 clients are connected"}}, "/s"
        )

    assert caught.value.code == "limit_exceeded"


def test_what_says_nothing_is_not_sent() -> None:
    assert endpoint.given(a=None, b=False, c=[], d=0, e="", f=[1], g=True) == {"d": 0, "e": "", "f": [1], "g": True}


def test_one_name_is_not_its_letters() -> None:
    assert endpoint.names("here") == ["here"]
    assert endpoint.names(("a", "b")) == ["a", "b"]


def test_errors_of_responses() -> None:
    error = from_response(
        {"code": -32003, "message": "no run", "data": {"code": "run_not_found", "advice": "look", "nearest": ["r1"]}}
    )

    assert isinstance(error, RemoteError)
    assert (error.code, error.message, error.advice, error.fields) == (
        "run_not_found",
        "no run",
        "look",
        {"nearest": ["r1"]},
    )
    assert str(error) == "no run (look)"
    assert from_response({"code": -32700, "message": "m"}).code == "rpc-32700"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ConnectionLost("x"), True),
        (NoDaemon("x"), True),
        (RemoteError("x", code="stopping"), True),
        (RemoteError("x", code="conflict"), False),
        (VersionMismatch("x"), False),
    ],
)
def test_what_may_come_back(error: ClientError, lost: bool) -> None:
    assert endpoint.is_lost(error) is lost


def test_who_is_not_let_in_is_told_of_other_sockets() -> None:
    said = {"method": "goodbye", "params": {"code": "permission_denied", "message": "this daemon is not for user 7"}}

    with pytest.raises(RemoteError, match="not for user 7") as caught:
        endpoint.check_hello(said, "/s")

    assert caught.value.advice == endpoint.NOT_YOURS


def test_a_path_that_no_socket_can_have_is_not_blamed_on_the_daemon() -> None:
    error = endpoint.no_daemon("/s", "as told", OSError("AF_UNIX path too long"))

    assert str(error) == (
        "no daemon answers on /s (as told): AF_UNIX path too long "
        "(a socket's path has at most 107 bytes; --socket or BPSD_SOCKET names another socket)"
    )
