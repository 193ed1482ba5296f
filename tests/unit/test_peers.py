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
from bpsd.peers import (
    ALL_RIGHTS,
    Members,
    Peer,
    Policy,
    UserNames,
    claimed_command_line,
    may_command,
    may_submit,
    peer_of,
    rights_of,
)

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


ROLES = Policy(
    owner_uid=5,
    viewers=Members(uids=frozenset({10})),
    operators=Members(gids=frozenset({200})),
    admins=Members(uids=frozenset({30})),
    submitters={"a": Members(uids=frozenset({40})), "b": Members(everybody=True)},
    accounts={("a", "svc"): 10},
)


def member(uid: int, *groups: int) -> Peer:
    return Peer(pid=1, uid=uid, gid=uid, groups=(uid, *groups), user="")


@pytest.mark.parametrize(
    ("who", "rights"),
    [
        (member(5), ALL_RIGHTS),
        (member(0), ALL_RIGHTS),
        (member(30), ALL_RIGHTS),
        (member(10), {"none", "read", "submit"}),  # b is open to everybody who is let in
        (member(11, 200), {"none", "read", "output", "command", "submit"}),
        (member(40), {"none", "read", "submit"}),
        (member(99), set()),  # a backend that is open to everybody lets nobody in who is not let in otherwise
    ],
)
def test_roles_give_rights(who: Peer, rights: set[peers.Right]) -> None:
    assert rights_of(who, ROLES) == rights


def test_submitting_is_allowed_per_backend() -> None:
    assert {
        (uid, b) for uid in (5, 0, 30, 10, 40, 99) for b in ("a", "b", "c") if may_submit(member(uid), ROLES, b)
    } == {
        *((uid, b) for uid in (5, 0, 30) for b in ("a", "b", "c")),
        (40, "a"),
        (40, "b"),
        (10, "b"),
    }
    assert may_submit(member(99), Policy(5, frozenset({"read", "submit"})), "any")
    assert not may_submit(member(99), Policy(5, frozenset({"read", "command"})), "any")


def test_people_command_their_own_runs_and_operators_all() -> None:
    def may(who: Peer, uid: int | None, account: str | None = None) -> bool:
        return may_command(who, ROLES, uid=uid, backend="a", account=account)

    assert may(member(40), 40)
    assert not may(member(40), 10)
    assert may(member(11, 200), 10)
    assert may(member(10), None, "svc")  # the configuration gives that account's runs to user 10
    assert not may(member(10), 40, "svc")  # what we know to be somebody's is nobody else's
    assert not may(member(40), None, "svc")
    assert not may(member(40), None, None)
    assert not may(member(99), 99)  # not even let in


@given(uid=uids, gid=uids)
def test_whoever_may_submit_or_command_is_let_in(uid: int, gid: int) -> None:
    who = member(uid, gid)
    rights = rights_of(who, ROLES)

    assert not rights or {"none", "read"} <= rights
    assert may_submit(who, ROLES, "a") <= ("submit" in rights)
    assert may_command(who, ROLES, uid=uid, backend="a", account=None) == bool(rights)


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
