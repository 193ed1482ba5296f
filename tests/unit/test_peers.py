"""Who connects, and what they may do."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd import peers
from bpsd.peers import ALL_RIGHTS, Peer, Policy, UserNames, claimed_command_line, peer_of, rights_of

uids = st.integers(min_value=0, max_value=2**32 - 2)


def peer(uid: int) -> Peer:
    return Peer(pid=1, uid=uid, gid=uid, groups=(uid,), user="")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        yield ours, theirs


@given(uid=uids, owner=uids)
def test_a_users_daemon_lets_in_that_user_and_root(uid: int, owner: int) -> None:
    assert rights_of(peer(uid), Policy(owner_uid=owner)) == (ALL_RIGHTS if uid in (owner, 0) else frozenset())


@given(uid=uids, owner=uids, others=st.frozensets(st.sampled_from(sorted(ALL_RIGHTS)), min_size=1))
def test_others_have_what_the_policy_gives_them(uid: int, owner: int, others: frozenset[peers.Right]) -> None:
    rights = rights_of(peer(uid), Policy(owner_uid=owner, others=others))

    assert rights == (ALL_RIGHTS if uid in (owner, 0) else others | {"none"})


def test_the_kernel_names_the_peer(pair: tuple[socket.socket, socket.socket]) -> None:
    seen = peer_of(pair[0], "me")

    assert (seen.pid, seen.uid, seen.gid, seen.user) == (os.getpid(), os.getuid(), os.getgid(), "me")
    assert set(seen.groups) == {os.getgid(), *os.getgroups()}


def test_without_its_groups_a_peer_has_its_first(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_SO_PEERGROUPS", 9999)  # no such option, as on an old kernel

    assert peer_of(pair[0]).groups == (os.getgid(),)


async def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = UserNames()
    assert names.known(os.getuid()) is None

    assert await names.look_up(os.getuid()) == pwd.getpwuid(os.getuid()).pw_name

    monkeypatch.setattr(pwd, "getpwuid", None)
    assert await names.look_up(os.getuid()) == names.known(os.getuid())


async def test_a_user_without_a_name_is_a_number() -> None:
    names = UserNames()

    assert await names.look_up(3_999_999_999) == "#3999999999"
    assert names.known(3_999_999_999) == "#3999999999"


async def test_a_name_server_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(peers, "_name_of", lambda _: release.wait(60) and "late")
    names = UserNames(timeout_s=0.01)

    assert await names.look_up(5) == "#5"

    assert names.known(5) is None  # asked for again the next time
    release.set()


async def test_names_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_NAMES_KEPT", 3)
    monkeypatch.setattr(peers, "_name_of", str)
    names = UserNames()

    for uid in range(10):
        assert await names.look_up(uid) == str(uid)

    assert sum(names.known(uid) is not None for uid in range(10)) <= 3


async def test_a_command_line_is_the_process_s_own_words() -> None:
    program = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(  # noqa: ASYNC220 - the test owns it, and nothing else runs in this loop
        [sys.executable, "-c", program, "two words", "bell\a\x1b[2J", "x" * 10_000],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has been executed, and the command line is its own

        text = await claimed_command_line(process.pid)

        process.communicate()
    assert text.startswith(sys.executable)
    assert " 'two words' " in text
    assert "bell\\x07\\x1b[2J" in text
    assert len(text) < 6000


async def test_a_process_that_is_gone_says_nothing() -> None:
    # No pid is above 2**22 on Linux (PID_MAX_LIMIT).
    assert await claimed_command_line(2**22 + 1) == ""


async def test_a_command_line_that_cannot_be_read_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(peers, "_read_command_line", lambda _: release.wait(60) and "late")

    assert await claimed_command_line(1, timeout_s=0.01) == ""

    release.set()
