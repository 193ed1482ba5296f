"""Who is on the other end of a socket, by the kernel's word, and what they may do.

Nobody logs in: the kernel says which process connected and as whom (``SO_PEERCRED``, unix(7)), and `rights_of` decides
from that and the daemon's `Policy` alone. Whatever else a client says of itself is its own words, for people to read.
"""

from __future__ import annotations

__all__ = [
    "ALL_RIGHTS",
    "Members",
    "Peer",
    "Policy",
    "Right",
    "UserNames",
    "claimed_command_line",
    "may_command",
    "may_submit",
    "owner_of",
    "peer_of",
    "rights_of",
]

import pwd
import shlex
import socket
import struct
from typing import Literal

import anyio
import anyio.to_thread
import msgspec

Right = Literal["none", "read", "output", "audit", "submit", "command", "admin"]
"""What a method asks of its caller; ``none``: to be let in is enough. ``read`` is the status of all runs."""

ALL_RIGHTS: frozenset[Right] = frozenset({"none", "read", "output", "audit", "submit", "command", "admin"})

_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid
_SO_PEERGROUPS = 59  # asm-generic/socket.h since Linux 4.13; the socket module does not name it
_MAX_OPTION_BYTES = 1024  # the most that socket.getsockopt asks for: 256 groups
_COMMAND_LINE_BYTES = 4096
_NAMES_KEPT = 4096


class Peer(msgspec.Struct, frozen=True):
    """The process that connected, as it was then.

    ``pid`` is 0 if it lives in a pid namespace that is not ours; ``groups`` are all its groups, ``gid`` among them.
    """

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    user: str


class Members(msgspec.Struct, frozen=True):
    """People by the kernel's numbers: users, and members of groups."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    everybody: bool = False

    def has(self, peer: Peer) -> bool:
        """Whether a peer is one of them."""
        return self.everybody or peer.uid in self.uids or not self.gids.isdisjoint((peer.gid, *peer.groups))


_NOBODY = Members()


class Policy(msgspec.Struct, frozen=True):
    """Who may do what: the owner, root and admins everything, others what ``others`` says (nothing: not let in).

    Viewers read the status of all runs; readers also their output; auditors also what others' commands were asked with;
    operators read output and command all runs; who is named in ``submitters`` (by backend) reads, and submits there.
    ``accounts`` maps (backend, WMS account) to the user whose the runs of that account are.
    """

    owner_uid: int
    others: frozenset[Right] = frozenset()
    viewers: Members = _NOBODY
    readers: Members = _NOBODY
    auditors: Members = _NOBODY
    operators: Members = _NOBODY
    admins: Members = _NOBODY
    submitters: dict[str, Members] = {}
    accounts: dict[tuple[str, str], int] = {}


def rights_of(peer: Peer, policy: Policy) -> frozenset[Right]:
    """Decide what a peer may do at all; an empty answer means that it may not even connect."""
    if peer.uid in (policy.owner_uid, 0) or policy.admins.has(peer):
        return ALL_RIGHTS
    rights: set[Right] = set(policy.others)
    if policy.viewers.has(peer):
        rights.add("read")
    if policy.readers.has(peer):
        rights |= {"read", "output"}
    if policy.auditors.has(peer):
        rights |= {"read", "audit"}
    if policy.operators.has(peer):
        rights |= {"read", "output", "command"}
    if any(members.has(peer) for members in policy.submitters.values()):
        # Where others are not let in, "everybody" is nobody: who is meant by it are those who are let in otherwise.
        named = any(msgspec.structs.replace(m, everybody=False).has(peer) for m in policy.submitters.values())
        rights |= {"read", "submit"} if rights or named else set()
    return frozenset(rights | {"none"}) if rights else frozenset()


def may_submit(peer: Peer, policy: Policy, backend: str) -> bool:
    """Whether a peer may submit to a backend."""
    rights = rights_of(peer, policy)
    everywhere = "admin" in rights or "submit" in policy.others
    return everywhere or ("submit" in rights and policy.submitters.get(backend, _NOBODY).has(peer))


def may_command(peer: Peer, policy: Policy, *, uid: int | None, backend: str, account: str | None) -> bool:
    """Whether a peer may cancel, restart, hold or release a run.

    Parameters
    ----------
    peer : `Peer`
        Who asks.
    policy : `Policy`
        What holds.
    uid : `int` or `None`
        Who submitted the run, if it was submitted by this daemon: it is theirs then.
    backend, account : `str`
        Else it is theirs to whom the configuration gives this account of the WMS.
    """
    rights = rights_of(peer, policy)
    return "command" in rights or ("read" in rights and owner_of(policy, uid, backend, account) == peer.uid)


def owner_of(policy: Policy, uid: int | None, backend: str, account: str | None) -> int | None:
    """Return the user who owns a run: who submitted it, else who has its account of the WMS; `None`: not known."""
    return uid if uid is not None else policy.accounts.get((backend, account or ""))


def peer_of(connection: socket.socket, user: str = "") -> Peer:
    """Ask the kernel who is on the other end.

    Parameters
    ----------
    connection : `socket.socket`
        A connected Unix socket.
    user : `str`, optional
        The peer's name if it is known: looking it up may take long, see `UserNames`.

    Raises
    ------
    OSError
        Raised if the kernel does not say; the connection is of no use then.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid=pid, uid=uid, gid=gid, groups=_groups_of(connection, gid), user=user)


def _groups_of(connection: socket.socket, gid: int) -> tuple[int, ...]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_OPTION_BYTES)
    except OSError:  # an old kernel, or more groups than Python asks for: the first one is what is certain
        return (gid,)
    return tuple(sorted({gid, *struct.unpack(f"{len(raw) // 4}I", raw)}))


class UserNames:
    """Names of users, each looked up once.

    The lookup may ask a server (LDAP, SSSD) that does not answer: it runs in a thread, of which there are few, and is
    given up after a time. A user without a name is ``#UID``, as sudo(8) writes it.

    Parameters
    ----------
    timeout_s : `float`, optional
        How long to wait for a name. One that did not come in time is asked for again the next time.
    """

    def __init__(self, *, timeout_s: float = 2.0) -> None:
        self._timeout_s = timeout_s
        self._names: dict[int, str] = {}
        self._threads = anyio.CapacityLimiter(2)  # of our own: a name server that hangs must not take everybody's

    def known(self, uid: int) -> str | None:
        """The name if it was looked up before."""
        return self._names.get(uid)

    async def look_up(self, uid: int) -> str:
        """Return the name of a user, or ``#UID``."""
        if (name := self._names.get(uid)) is not None:
            return name
        name = f"#{uid}"
        with anyio.move_on_after(self._timeout_s):
            name = await anyio.to_thread.run_sync(_name_of, uid, abandon_on_cancel=True, limiter=self._threads)
            if len(self._names) >= _NAMES_KEPT:
                self._names.clear()
            self._names[uid] = name
        return name


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


async def claimed_command_line(pid: int, *, timeout_s: float = 1.0) -> str:
    """Return the command line of a process, quoted for a shell, as the process itself words it.

    It is for people to read in an audit: a process can write there what it likes, and a pid can have been given to
    another process since it connected. What does not print is escaped; a long one is cut; the text is empty where there
    is nothing to read. The kernel may keep a reader of this file waiting (proc(5)), so a thread reads it.
    """
    with anyio.move_on_after(timeout_s):
        return await anyio.to_thread.run_sync(_read_command_line, pid, abandon_on_cancel=True)
    return ""


def _read_command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123 - bounded, which Path.read_bytes is not
            raw = file.read(_COMMAND_LINE_BYTES)
    except OSError:
        return ""
    words = raw.rstrip(b"\0").decode("utf-8", "backslashreplace").split("\0")
    text = "" if words == [""] else shlex.join(words)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
