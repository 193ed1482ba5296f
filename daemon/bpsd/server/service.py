"""The server itself: lets clients in or turns them away, watches over them, and ends in order."""

from __future__ import annotations

__all__ = ["SocketServer"]

import asyncio
import errno
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from bpsd.config import Limits
from bpsd.logs import LogEvent
from bpsd.messages import PARAMS, Goodbye, Hello
from bpsd.peers import Peer, Policy, Right, UserNames, peer_of, rights_of
from bpsd.server.connection import Connection, Core
from bpsd.server.figures import ClientsUse, SocketFigures
from bpsd.server.listener import Listener, say_goodbye
from bpsd.server.methods import MethodSpec

ACCEPTED_PER_TURN = 16
"""Clients accepted (or turned away) before the loop looks for news from the others."""

ACCEPT_PAUSE_S = 0.2
"""How long to wait when there is nothing left (file descriptors, memory) to accept a client with."""

CHECK_INTERVAL_S = 1.0
"""How often connections are looked at for what takes too long, where the limits are not shorter than that."""

STOOD_STILL_S = 0.5
"""A check that comes later than this was kept by the loop, or the process was stopped: no fault of any client."""

SOCKET_CHECK_S = 10.0
"""How often the daemon looks whether clients can still reach its socket, and binds it again if not."""

GOODBYE_S = 1.0
"""How long clients have to take their goodbye."""

_STOPPING = Goodbye(code="stopping", message="the daemon is stopping")


class SocketServer:
    """Serves methods to the clients of one socket.

    ``serve`` runs until ``stop`` was called (from another task) or it is cancelled; a server serves once.

    Parameters
    ----------
    methods : `~collections.abc.Mapping` [`str`, `MethodSpec`]
        What can be asked; the parameters of each are those of `bpsd.messages.PARAMS`.
    limits : `bpsd.config.Limits`
        What clients may take. It can be replaced (`set_limits`).
    hello : `bpsd.messages.Hello`
        The first thing that each client hears.
    policy : `bpsd.peers.Policy`
        Who may do what.
    log : `object`
        A logger.
    """

    def __init__(
        self, methods: Mapping[str, MethodSpec], *, limits: Limits, hello: Hello, policy: Policy, log: Any
    ) -> None:
        unknown = set(methods) - set(PARAMS)
        if unknown:
            raise ValueError(f"bpsd.messages does not know the methods {sorted(unknown)}")
        self._policy = policy
        self._log = log
        self._names = UserNames()
        self._connections: set[Connection] = set()
        self._clients_of: Counter[int] = Counter()  # connected or about to be
        self._next_id = 1
        self._core = Core(
            methods=methods,
            limits=limits,
            hello=msgspec.Raw(msgspec.json.encode(hello)),
            log=log,
            opened=self._opened,
            closed=self._closed,
            spawn=self._spawn,
        )
        self._listener: Listener | None = None
        self._tasks: TaskGroup | None = None
        self._running = 0  # handlers that wait
        self._quiet = anyio.Event()  # set, while the server stops, when no client and no handler is left
        self._accepting = anyio.CancelScope()
        self._on_socket = anyio.CancelScope()  # left when the socket is replaced
        self._replaced: socket.socket | None = None
        self._not_accepting = anyio.Event()
        self._stopped = anyio.Event()

    def __repr__(self) -> str:
        state = "new" if self._tasks is None else "stopped" if self._stopped.is_set() else "serving"
        return f"<SocketServer {state} clients={len(self._connections)} in_flight={self._in_flight}>"

    @property
    def figures(self) -> SocketFigures:
        """What was counted until now."""
        return msgspec.structs.replace(
            self._core.figures, clients=len(self._connections), requests_in_flight=self._in_flight
        )

    def set_limits(self, limits: Limits) -> None:
        """Use other limits from now on, for those who are connected too."""
        self._core.limits = limits
        for connection in self._connections:
            connection.use_limits()

    def set_policy(self, policy: Policy) -> None:
        """Let in whom another policy lets in. Who is connected may do what it says from now on, or has to go."""
        self._policy = policy
        for connection in list(self._connections):
            connection.rights = rights_of(connection.peer, policy)
            if not connection.rights:
                connection.finish(Goodbye(code="permission_denied", message=_not_for(connection.peer)))

    async def serve(self, listener: Listener, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve clients. ``started`` means that the next one to connect is accepted.

        Parameters
        ----------
        listener : `Listener`
            It stays the caller's to close, but `stop` makes it stop listening.
        task_status : `anyio.abc.TaskStatus`, optional
            For `anyio.abc.TaskGroup.start`.
        """
        self._listener = listener
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._accept_all, listener, name="accept")
                tasks.start_soon(self._check_all, name="check clients")
                tasks.start_soon(self._keep_reachable, listener, name="check the socket")
                task_status.started()
                await self._stopped.wait()
                tasks.cancel_scope.cancel()
        finally:
            self._stopped.set()
            with anyio.CancelScope(shield=True):
                await self._say_goodbye()

    async def stop(self, deadline_s: float) -> None:
        """End `serve` in order.

        1. Nobody new: the listener stops listening (a socket of systemd's keeps who comes now for the next daemon).
        2. Nothing new: what was asked before is answered, and each client then hears ``goodbye``.
        3. After ``deadline_s`` the rest is cancelled, and its clients hear ``goodbye`` too.
        """
        if self._listener is None or self._stopped.is_set():
            return
        self._accepting.cancel()
        await self._not_accepting.wait()
        await anyio.to_thread.run_sync(self._listener.stop_listening)
        for connection in list(self._connections):
            connection.finish(_STOPPING)
        with anyio.move_on_after(deadline_s):
            while self._connections or self._running:
                self._quiet = anyio.Event()
                await self._quiet.wait()
        self._stopped.set()

    # -- clients -----------------------------------------------------------------------------------------------------

    async def _accept_all(self, listener: Listener) -> None:
        """Accept clients, a few in each turn of the loop: those who are there are served in between."""
        try:
            with self._accepting:
                while True:
                    with anyio.CancelScope() as self._on_socket:
                        await self._accept_on(listener.socket)
                    self._admit_waiting()
        finally:
            self._not_accepting.set()
            self._close_replaced()

    async def _accept_on(self, listening: socket.socket) -> None:
        while True:
            for _ in range(ACCEPTED_PER_TURN):
                connected = await self._accept(listening)
                if connected is not None:
                    self._admit(connected)
            await anyio.lowlevel.checkpoint()

    async def _keep_reachable(self, listener: Listener) -> None:
        """Bind the socket again when its file was removed or replaced; who is connected notices nothing."""
        while True:
            await anyio.sleep(SOCKET_CHECK_S)
            replaced = await anyio.to_thread.run_sync(listener.restore)
            if replaced is None:
                continue
            self._replaced = replaced
            if self._not_accepting.is_set():
                self._close_replaced()
            else:  # nobody waits for clients in it any more when it is closed
                self._on_socket.cancel()

    def _admit_waiting(self) -> None:
        """Let in the clients who wait in a socket that was replaced."""
        while self._replaced is not None and (connected := _next_waiting(self._replaced)) is not None:
            self._admit(connected)
        self._close_replaced()

    def _close_replaced(self) -> None:
        if self._replaced is not None:
            self._replaced.close()
            self._replaced = None

    async def _accept(self, listening: socket.socket) -> socket.socket | None:
        """Wait for a client, not at all if there is one."""
        try:
            connected, _ = await asyncio.get_running_loop().sock_accept(listening)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                raise  # the listening socket itself is of no use any more
            self._log.error(LogEvent.ACCEPT_FAILED, error=str(error), retry_s=ACCEPT_PAUSE_S)
            await anyio.sleep(ACCEPT_PAUSE_S)
            return None
        return connected

    def _admit(self, connected: socket.socket) -> None:
        """Let a client in, or tell it why not."""
        try:
            peer = peer_of(connected)
        except OSError:
            connected.close()
            return
        rights = rights_of(peer, self._policy)
        refusal = self._refusal(peer, rights)
        if refusal is not None:
            self._turn_away(connected, peer, refusal)
            return
        self._clients_of[peer.uid] += 1
        assert self._tasks is not None
        self._tasks.start_soon(self._open, connected, peer, name="open a connection")

    def _refusal(self, peer: Peer, rights: frozenset[Right]) -> Goodbye | None:
        limits = self._core.limits
        if not rights:
            return Goodbye(code="permission_denied", message=_not_for(peer))
        reserved = limits.clients_reserved if "admin" in rights else 0
        if self._clients_of[peer.uid] >= limits.clients_per_user + reserved:
            return _too_many("clients_per_user", limits.clients_per_user)
        if self._clients_of.total() >= limits.clients + reserved and not self._make_room(peer.uid):
            return _too_many("clients", limits.clients)
        return None

    def _make_room(self, uid: int) -> bool:
        """Close the idlest connection of the user with the most, if that user has more than the one who comes."""
        most, count = self._clients_of.most_common(1)[0]
        if count <= self._clients_of[uid] + 1:
            return False
        now = time.monotonic()
        idle = [
            (c.idle_s(now) or 0.0, c) for c in self._connections if c.peer.uid == most and c.idle_s(now) is not None
        ]
        if not idle:
            return False
        _, connection = max(idle, key=lambda entry: entry[0])
        connection.close_idle("it was idle, and another user needed a connection (limits.clients)")
        return True

    @property
    def socket_fault(self) -> str:
        """Why new clients cannot reach the socket; empty if they can."""
        return "" if self._listener is None else self._listener.fault

    @property
    def use(self) -> ClientsUse:
        """Who uses the connections now."""
        limits = self._core.limits
        users = Counter({self._names.known(uid) or f"#{uid}": count for uid, count in self._clients_of.items()})
        return ClientsUse(
            clients=self._clients_of.total(),
            limit=limits.clients,
            limit_per_user=limits.clients_per_user,
            by_user=dict(users.most_common()),
        )

    def _turn_away(self, connected: socket.socket, peer: Peer, goodbye: Goodbye) -> None:
        self._core.figures.clients_refused += 1
        self._core.warn(
            LogEvent.CLIENT_REFUSED,
            (peer.uid, goodbye.code),
            uid=peer.uid,
            pid=peer.pid,
            code=goodbye.code,
            reason=goodbye.message,
        )
        say_goodbye(connected, goodbye)
        connected.close()

    async def _open(self, connected: socket.socket, peer: Peer) -> None:
        """Make a connection, with its user's name. Looking that up may take long, and keeps nobody else."""
        user = self._names.known(peer.uid)
        if user is None:
            try:
                user = await self._names.look_up(peer.uid)
            except BaseException:  # the server ends
                connected.close()
                raise
        named = msgspec.structs.replace(peer, user=user)
        connection = Connection(self._core, self._next_id, named, rights_of(peer, self._policy))
        self._next_id += 1
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, connected)

    def _opened(self, connection: Connection) -> None:
        self._core.figures.clients_accepted += 1
        self._connections.add(connection)
        if self._accepting.cancel_called:
            connection.finish(_STOPPING)

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._clients_of[connection.peer.uid] -= 1
        if not self._clients_of[connection.peer.uid]:
            del self._clients_of[connection.peer.uid]
        self._quiet.set()

    async def _check_all(self) -> None:
        """Look after the clients, for as long as the server runs."""
        while True:
            limits = self._core.limits
            shortest = min(limits.greet_timeout_s, limits.read_timeout_s, limits.write_timeout_s)
            due = time.monotonic() + min(CHECK_INTERVAL_S, shortest / 4)
            await anyio.sleep(due - time.monotonic())
            now = time.monotonic()
            stood_still = now - due
            for connection in list(self._connections):
                if stood_still > STOOD_STILL_S:
                    connection.excuse(stood_still)
                connection.check(now)

    async def _say_goodbye(self) -> None:
        """End the connections that are left, giving their clients a moment to read it."""
        for connection in list(self._connections):
            connection.end(_STOPPING)
        with anyio.move_on_after(GOODBYE_S):
            while self._connections:
                self._quiet = anyio.Event()
                await self._quiet.wait()
        for connection in list(self._connections):
            connection.abort()

    # -- handlers that wait ------------------------------------------------------------------------------------------

    @property
    def _in_flight(self) -> int:
        return sum(connection.in_flight for connection in self._connections)

    def _spawn(self, function: Callable[..., Any], *args: object, name: str) -> None:
        assert self._tasks is not None
        self._running += 1
        self._tasks.start_soon(self._run, function, args, name=name)

    async def _run(self, function: Callable[..., Any], args: tuple[object, ...]) -> None:
        try:
            await function(*args)
        finally:
            self._running -= 1
            self._quiet.set()


def _next_waiting(listening: socket.socket) -> socket.socket | None:
    """Accept a client that waits in a socket; `None` if there is none."""
    try:
        return listening.accept()[0]
    except OSError:
        return None


def _not_for(peer: Peer) -> str:
    return f"this daemon is not for user {peer.uid}"


def _too_many(limit: str, value: int) -> Goodbye:
    return Goodbye(
        code="limit_exceeded",
        message=f"there are as many clients as limits.{limit} allows ({value}): try again later, or close some",
    )
