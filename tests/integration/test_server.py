"""The server over real sockets: what clients do well and badly, and what it costs the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import CapturingLogger

from bpsd import messages, wire
from bpsd.config import Limits
from bpsd.errors import RunNotFound
from bpsd.peers import Members, Peer, Policy, Right, UserNames
from bpsd.protocol import event_line
from bpsd.server import Call, Connection, MethodSpec, SocketServer, open_listener, service
from bpsd.server import connection as connection_module
from bpsd.server.figures import COUNTERS, HELP
from bpsd.server.looptime import LoopTime
from tests.figures import figure
from tests.integration.socket_server import METHODS, hello

ROOT = Path(__file__).parents[2]
FUZZ = figure("SOCKET_FUZZ", test=200, soak=20_000)
"""Connections that send garbage."""
FLOOD = figure("SOCKET_FLOOD", test=50_000, soak=2_000_000)
"""Requests that one client sends without pause."""
CLIENTS = figure("SOCKET_CLIENTS", test=200, soak=500)
"""Clients at once."""

FAR = 1e6  # seconds from now, beyond every limit
PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
EVENT = b'{"jsonrpc":"2.0","method":"event","params":{"watch":1,"event":{},"lost":0}}\n'


def request(id: int | str, method: str, **params: Any) -> bytes:
    return wire.encode_request(id, method, params)


class Client:
    """A client that says what it is told to, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def hear(self) -> dict[str, Any] | None:
        """The next message; `None` at the end of the connection."""
        with anyio.fail_after(30):
            try:
                line = await self.reader.readline()
            except ConnectionError:
                return None
        if not line:
            return None
        assert line.endswith(b"\n")
        assert len(line) <= wire.MAX_MESSAGE_BYTES
        message: dict[str, Any] = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        return message

    async def say(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))
        with anyio.fail_after(30):
            await self.writer.drain()

    async def ask(self, method: str, id: int | str = 1, **params: Any) -> dict[str, Any]:
        """The answer to one request, where nothing else is said meanwhile."""
        await self.say(request(id, method, **params))
        answer = await self.hear()
        assert answer is not None
        assert answer["id"] == id
        return answer

    async def error_of(self, data: bytes) -> str:
        """The code of the error that is the next message."""
        await self.say(data)
        answer = await self.hear()
        assert answer is not None
        code: str = answer["error"]["data"]["code"]
        assert wire.ERRORS[code] == answer["error"]["code"]
        return code

    async def farewell(self) -> str:
        """The code of the goodbye, which must be the next message and the last."""
        message = await self.hear()
        assert message is not None
        assert message["method"] == "goodbye"
        assert await self.hear() is None
        code: str = message["params"]["code"]
        assert code in wire.ERRORS
        return code

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def connecting(path: Path) -> AsyncIterator[Client]:
    """A connection, before the first word."""
    reader, writer = await asyncio.open_unix_connection(path, limit=2 * wire.MAX_MESSAGE_BYTES)
    client = Client(reader, writer)
    try:
        yield client
    finally:
        client.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Client]:
    """A connection that was greeted."""
    async with connecting(path) as client:
        greeting = await client.hear()
        assert greeting is not None
        assert greeting["method"] == "hello"
        yield client


@pytest.fixture
def log() -> CapturingLogger:
    return CapturingLogger()


def logged(log: CapturingLogger, event: str) -> list[dict[str, Any]]:
    return [dict(call.kwargs) for call in log.calls if call.args[0] == event]


class Served:
    """A server that serves, with the listener and the task group that it needs."""

    def __init__(self, server: SocketServer, path: Path) -> None:
        self.server, self.path = server, path

    def connections(self) -> set[Connection]:
        return self.server._connections

    async def only(self) -> Connection:
        """The one connection that there is, as soon as it is there."""
        await eventually(lambda: len(self.connections()) == 1)
        (only,) = self.connections()
        return only


async def eventually(condition: Callable[[], object], *, seconds: float = 30) -> None:
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - it looks at things that know no event
            await anyio.sleep(0.002)


@asynccontextmanager
async def serving(
    path: Path,
    methods: Mapping[str, MethodSpec] = METHODS,
    *,
    log: Any = None,
    policy: Policy | None = None,
    **limits: Any,
) -> AsyncIterator[Served]:
    log = log or CapturingLogger()
    listener = await anyio.to_thread.run_sync(lambda: open_listener(str(path), mode=0o600, environ={}, log=log))
    server = SocketServer(
        methods, limits=Limits(**limits), hello=hello(), policy=policy or Policy(owner_uid=os.getuid()), log=log
    )
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.serve, listener)
            yield Served(server, path)
            await server.stop(0.0)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(listener.close)


class Gate:
    """A method that waits until it is let go; it remembers what became of its calls."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.done = 0
        self.open = anyio.Event()

    async def __call__(self, call: Call, params: Any) -> messages.PingResult:
        self.begun += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.done += 1
        return messages.PingResult(time=2.0)


# -- what is answered ------------------------------------------------------------------------------------------------


async def test_the_daemon_speaks_first_and_says_goodbye(socket_path: Path) -> None:
    async with serving(socket_path) as served, connecting(socket_path) as client:
        assert await client.hear() == {"jsonrpc": "2.0", "method": "hello", "params": msgspec.to_builtins(hello())}
        assert (await client.ask("ping"))["result"] == {"time": 1.0}

        await served.server.stop(30.0)

        assert await client.farewell() == "stopping"
        assert not socket_path.exists()  # noqa: ASYNC240


async def test_answers_come_in_any_order(socket_path: Path) -> None:
    gate = Gate()
    async with serving(socket_path, METHODS | {"logs": MethodSpec(gate, "read")}), connected(socket_path) as client:
        await client.say(request("late", "logs", run="r", job="j"), request("soon", "status", run="r2"))

        soon = await client.hear()
        gate.open.set()
        late = await client.hear()

    assert soon is not None
    assert late is not None
    assert (soon["id"], soon["result"]["id"]) == ("soon", "r2")
    assert (late["id"], late["result"]) == ("late", {"time": 2.0})


async def test_many_requests_in_one_piece_and_one_in_many(socket_path: Path) -> None:
    async with serving(socket_path), connected(socket_path) as client:
        await client.say(*(request(number, "status", run=f"r{number}") for number in range(1000)))
        for number in range(1000):
            answer = await client.hear()
            assert answer is not None
            assert (answer["id"], answer["result"]["id"]) == (number, f"r{number}")

        for byte in request(1000, "status", run="ä"):
            await client.say(bytes([byte]))
        answer = await client.hear()
        assert answer is not None
        assert answer["result"]["id"] == "ä"


async def test_mistakes_are_answered_and_the_connection_lives_on(socket_path: Path) -> None:
    gate = Gate()
    async with (
        serving(socket_path, METHODS | {"logs": MethodSpec(gate, "read")}) as served,
        connected(socket_path) as client,
    ):
        assert await client.error_of(b"nonsense\n") == "parse_error"
        assert await client.error_of(b'{"jsonrpc":"2.0","id":1,"method":"\xff"}\n') == "parse_error"
        assert await client.error_of(b"[" + PING.strip() + b"]\n") == "invalid_request"
        assert await client.error_of(b'{"jsonrpc":"1.0","id":1,"method":"ping"}\n') == "invalid_request"
        assert await client.error_of(request(1, "stauts", run="r")) == "unknown_method"
        assert await client.error_of(request(1, "submit")) == "unknown_method"  # known to the protocol, not offered
        assert await client.error_of(request(1, "status", run=7)) == "invalid_params"
        assert await client.error_of(request(1, "status", rum="r")) == "invalid_params"
        await client.say(request(5, "logs", run="r", job="j"))
        assert await client.error_of(request(5, "ping")) == "invalid_request"
        gate.open.set()
        answer = await client.hear()
        assert answer is not None
        assert (answer["id"], answer["result"]) == (5, {"time": 2.0})
        assert (await client.ask("ping", 5))["result"] == {"time": 1.0}
        assert served.server.figures.messages_malformed == 5


async def test_a_message_too_long_and_then_a_good_one(socket_path: Path) -> None:
    async with serving(socket_path), connected(socket_path) as client:
        long = b'{"jsonrpc":"2.0","id":1,"method":"status","params":{"run":"' + b"x" * 3 * wire.MAX_MESSAGE_BYTES

        assert await client.error_of(long) == "message_too_large"
        await client.say(b'"}}\n')

        assert (await client.ask("ping", 2))["result"] == {"time": 1.0}


async def test_the_longest_message_is_answered(socket_path: Path) -> None:
    async with serving(socket_path), connected(socket_path) as client:
        rest = wire.MAX_MESSAGE_BYTES - len(request(1, "ping", x=""))

        assert await client.error_of(request(1, "ping", x="x" * rest)) == "invalid_params"
        assert await client.error_of(request(1, "ping", x="x" * (rest + 1))) == "message_too_large"


async def test_too_long_an_answer_is_an_error(socket_path: Path) -> None:
    async with serving(socket_path), connected(socket_path) as client:
        assert await client.error_of(request(1, "report", limit=10_000)) == "limit_exceeded"  # 1.1 MB
        assert len((await client.ask("report", 2, limit=1000))["result"]["rows"]) == 110_000


# -- handlers --------------------------------------------------------------------------------------------------------


async def test_what_handlers_do_wrong_is_logged_and_told_with_a_reference(
    socket_path: Path, log: CapturingLogger
) -> None:
    def break_at_once(call: Call, params: Any) -> object:
        raise ZeroDivisionError("secret detail")

    async def break_later(call: Call, params: Any) -> object:
        await anyio.lowlevel.checkpoint()
        raise KeyError("secret detail")

    def answer_nonsense(call: Call, params: Any) -> object:
        return {1j}

    def answer_two_lines(call: Call, params: Any) -> object:
        return msgspec.Raw(b'{"time":\n1}')

    broken = {
        name: MethodSpec(handler, "none")
        for name, handler in {
            "version": break_at_once,
            "backends": break_later,
            "health": answer_nonsense,
            "list": answer_two_lines,
        }.items()
    }
    async with serving(socket_path, METHODS | broken, log=log), connected(socket_path) as client:
        for method in broken:
            error = (await client.ask(method))["error"]

            assert error["code"] == wire.ERRORS["internal_error"]
            assert "secret" not in str(error)
            (entry,) = (each for each in logged(log, "request_broke") if each["method"] == method)
            assert entry["reference"] == error["data"]["reference"]
            assert isinstance(entry["exc_info"], Exception)
        assert (await client.ask("ping"))["result"] == {"time": 1.0}


async def test_an_internal_error_is_logged_a_few_times_for_each_user_and_every_answer_refers_to_a_line(
    socket_path: Path, log: CapturingLogger
) -> None:
    async def fail(call: Call, params: Any) -> object:
        raise KeyError("what only the log is told")

    references = []
    async with serving(socket_path, {"health": MethodSpec(fail, "none")}, log=log) as served:
        async with connected(socket_path) as client:
            for number in range(100):
                error = (await client.ask("health", number))["error"]
                assert "only the log" not in str(error)
                assert "Traceback" not in str(error)
                references.append(error["data"]["reference"])
        assert served.server.figures.internal_errors == 100
    lines = logged(log, "request_broke")

    assert 0 < len(lines) < 50  # 5 in 10 s
    assert {(line["method"], line["uid"]) for line in lines} == {("health", os.getuid())}
    assert set(references) == {line["reference"] for line in lines}


@pytest.mark.parametrize("awaits", [False, True])
async def test_a_request_that_holds_the_loop_is_logged_with_its_user(
    socket_path: Path, log: CapturingLogger, awaits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(connection_module, "LoopTime", lambda: LoopTime(lambda: now))

    def work() -> messages.PingResult:
        nonlocal now
        now += 0.02
        return messages.PingResult(time=1.0)

    def at_once(call: Call, params: Any) -> object:
        return [work(), work(), work()][0]

    async def in_pieces(call: Call, params: Any) -> object:
        for _ in range(2):
            work()
            await anyio.lowlevel.checkpoint()
        return work()

    async def waits(call: Call, params: Any) -> object:
        asyncio.get_running_loop().call_soon(work)  # somebody else's time
        asyncio.get_running_loop().call_soon(work)
        await anyio.lowlevel.checkpoint()
        return work()

    methods = {"version": MethodSpec(in_pieces if awaits else at_once, "none"), "backends": MethodSpec(waits, "none")}
    async with serving(socket_path, methods, log=log) as served, connected(socket_path) as client:
        assert "result" in await client.ask("version")
        assert "result" in await client.ask("backends")
        assert served.server.figures.requests_slow == 1
    (line,) = logged(log, "request_slow")
    assert (line["method"], line["uid"], line["pid"], line["held_s"]) == ("version", os.getuid(), os.getpid(), 0.06)


async def test_errors_of_bpsd_and_deadlines_are_told_as_they_are(socket_path: Path, log: CapturingLogger) -> None:
    async def not_found(call: Call, params: Any) -> object:
        raise RunNotFound("no run r2", advice="look at bpsctl list")

    async def too_late(call: Call, params: Any) -> object:
        with anyio.fail_after(0):
            await anyio.sleep_forever()
        raise AssertionError("it slept for ever")

    methods = {"version": MethodSpec(not_found, "none"), "health": MethodSpec(too_late, "none")}
    async with serving(socket_path, methods, log=log), connected(socket_path) as client:
        error = (await client.ask("version"))["error"]
        assert (error["message"], error["data"]["code"]) == ("no run r2", "run_not_found")
        assert (await client.ask("health"))["error"]["data"]["code"] == "deadline_exceeded"
    assert logged(log, "request_broke") == []


async def test_what_waits_for_the_answer_comes_after_it(socket_path: Path, log: CapturingLogger) -> None:
    def watch(call: Call, params: Any) -> object:
        call.after_reply(lambda: call.connection.send_lines(EVENT, 1))
        return messages.PingResult(time=1.0)

    async def watch_later(call: Call, params: Any) -> object:
        return watch(call, params)

    def break_afterwards(call: Call, params: Any) -> object:
        call.after_reply(lambda: 1 / 0)
        return messages.PingResult(time=1.0)

    methods = {
        "watch": MethodSpec(watch, "none"),
        "events": MethodSpec(watch_later, "none"),
        "health": MethodSpec(break_afterwards, "none"),
    }
    async with serving(socket_path, methods, log=log), connected(socket_path) as client:
        for method in ("watch", "events"):
            assert "result" in await client.ask(method)
            notification = await client.hear()
            assert notification is not None
            assert (notification["method"], notification["params"]["watch"]) == ("event", 1)
        assert "result" in await client.ask("health")
        assert "result" in await client.ask("health")  # one answer each, whatever came after it
    assert len(logged(log, "request_broke")) == 2


async def test_a_client_that_leaves_takes_its_requests_along(socket_path: Path) -> None:
    leave, finish = Gate(), Gate()
    methods = {"logs": MethodSpec(leave, "none"), "submit": MethodSpec(finish, "none", finish=True)}
    submit = request(2, "submit", token="a" * 20, blob="0" * 64)
    async with serving(socket_path, methods) as served:
        async with connected(socket_path) as client:
            await client.say(request(1, "logs", run="r", job="j"), submit)
            await eventually(lambda: leave.begun and finish.begun)
            assert served.server.figures.requests_in_flight == 2

        await eventually(lambda: leave.cancelled == 1)
        await eventually(lambda: not served.connections())
        assert (finish.cancelled, finish.done) == (0, 0)
        finish.open.set()
        await eventually(lambda: finish.done == 1)


async def test_what_a_client_held_is_let_go(socket_path: Path, log: CapturingLogger) -> None:
    seen: list[Connection] = []

    def watch(call: Call, params: Any) -> object:
        call.connection.on_close(lambda: 1 / 0)
        call.connection.on_close(lambda: seen.append(call.connection))
        return messages.PingResult(time=1.0)

    async with serving(socket_path, {"watch": MethodSpec(watch, "none")}, log=log) as served:
        async with connected(socket_path) as client:
            await client.ask("watch")
            connection = await served.only()
            assert repr(connection) == f"<Connection 1 uid={os.getuid()} pid={os.getpid()} open in_flight=0>"
        await eventually(lambda: seen)
        assert seen == [connection]
        assert not connection.send_lines(EVENT, 1)
        assert "over" in repr(connection)
    assert len(logged(log, "close_callback_broke")) == 1


# -- clients that send half, or nothing, or do not read --------------------------------------------------------------


@pytest.mark.parametrize("trickle", [False, True])
async def test_half_a_message_is_not_waited_for_for_ever(
    socket_path: Path, log: CapturingLogger, trickle: bool
) -> None:
    async with serving(socket_path, log=log, read_timeout_s=0.2) as served, connected(socket_path) as client:
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                for byte in PING[:-1] * 1000:
                    with contextlib.suppress(OSError):
                        await client.say(bytes([byte]))
                    await anyio.sleep(0.05 if trickle else 30)

            tasks.start_soon(send)
            assert await client.farewell() == "deadline_exceeded"
            tasks.cancel_scope.cancel()
        assert served.server.figures.clients_dropped == 1
    (entry,) = logged(log, "client_dropped")
    assert (entry["uid"], entry["pid"]) == (os.getuid(), os.getpid())
    assert "half a message" in entry["reason"]


async def test_half_a_message_that_we_do_not_read_is_not_the_client_s_fault(socket_path: Path) -> None:
    gate = Gate()
    methods = METHODS | {"logs": MethodSpec(gate, "none")}
    async with (
        serving(socket_path, methods, requests_in_flight=1) as served,
        connected(socket_path) as client,
    ):
        await client.say(request(1, "logs", run="r", job="j"), PING[:10])
        await eventually(lambda: gate.begun)
        connection = await served.only()

        connection.check(time.monotonic())
        connection.check(time.monotonic() + FAR)

        gate.open.set()
        assert (await client.hear() or {})["result"] == {"time": 2.0}
        await client.say(PING[10:])
        assert (await client.hear() or {})["result"] == {"time": 1.0}


async def test_a_client_that_asks_nothing_is_let_go(socket_path: Path) -> None:
    async with serving(socket_path, greet_timeout_s=0.2), connected(socket_path) as client:
        assert await client.farewell() == "deadline_exceeded"


def test_idle_connections_end_by_default() -> None:
    assert 0 < Limits().idle_timeout_s <= 3600


@pytest.mark.parametrize(("idle_timeout_s", "stays"), [(0.0, True), (10.0, False)])
async def test_an_idle_client_is_let_go_if_the_limits_say_so(
    socket_path: Path, idle_timeout_s: float, stays: bool
) -> None:
    async with serving(socket_path, idle_timeout_s=idle_timeout_s) as served, connected(socket_path) as client:
        await client.ask("ping")
        connection = await served.only()

        connection.check(now := time.monotonic())
        connection.check(now + FAR)

        if stays:
            assert "result" in await client.ask("ping")
        else:
            assert await client.farewell() == "deadline_exceeded"


async def test_a_client_that_waits_or_watches_is_not_idle(socket_path: Path) -> None:
    gate = Gate()

    def watch(call: Call, params: Any) -> object:
        call.connection.watching += 1
        return messages.PingResult(time=1.0)

    methods = {"logs": MethodSpec(gate, "none"), "watch": MethodSpec(watch, "none")}
    async with (
        serving(socket_path, methods, idle_timeout_s=10.0) as served,
        connected(socket_path) as waiting,
        connected(socket_path) as watching,
    ):
        await waiting.say(request(1, "logs", run="r", job="j"))
        await watching.ask("watch")
        await eventually(lambda: gate.begun)

        for connection in served.connections():
            connection.check(now := time.monotonic())
            connection.check(now + FAR)

        gate.open.set()
        assert "result" in (await waiting.hear() or {})
        assert "result" in await watching.ask("watch")


async def test_a_client_that_never_reads_is_dropped(socket_path: Path, log: CapturingLogger) -> None:
    limit = 2 * wire.MAX_MESSAGE_BYTES
    async with serving(socket_path, log=log, write_buffer_bytes=limit, write_timeout_s=0.3) as served:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(socket_path))
            client.setblocking(False)
            connection = await served.only()
            waiting: list[int] = []
            while served.connections():
                with contextlib.suppress(OSError):
                    client.send(request(1, "report", limit=9000))
                waiting.append(connection._transport.get_write_buffer_size())
                await anyio.lowlevel.checkpoint()

        assert limit < max(waiting) < limit + wire.MAX_MESSAGE_BYTES
        assert served.server.figures.clients_dropped == 1
        async with connected(socket_path) as other:
            assert "result" in await other.ask("ping")
    (entry,) = logged(log, "client_dropped")
    assert "nothing was read for 0.3 s" in entry["reason"]


async def test_a_client_that_reads_late_gets_everything(socket_path: Path) -> None:
    async with (
        serving(socket_path, write_buffer_bytes=wire.MAX_MESSAGE_BYTES) as served,
        connected(socket_path) as client,
    ):
        for number in range(50):
            await client.say(request(number, "report", limit=2000))
        await eventually(lambda: not next(iter(served.connections()))._writable)

        for number in range(50):
            answer = await client.hear()
            assert answer is not None
            assert (answer["id"], len(answer["result"]["rows"])) == (number, 220_000)


async def test_a_watcher_that_is_too_slow_loses_and_is_told(socket_path: Path) -> None:
    async with (
        serving(socket_path, write_buffer_bytes=wire.MAX_MESSAGE_BYTES) as served,
        connected(socket_path) as client,
    ):
        connection = await served.only()
        event = event_line(1, b'{"data":"%s"}' % (b"x" * 10_000), 0)
        assert event is not None

        sent = [connection.send_lines(event, 1) for _ in range(1000)]

        count = sum(sent)
        assert sent == [True] * count + [False] * (1000 - count)
        assert 100 < count < 150  # what the kernel takes comes on top
        assert connection.lost == served.server.figures.notifications_lost == 1000 - count
        for _ in range(count):
            message = await client.hear()
            assert message is not None
            assert message["method"] == "event"
        assert connection.send_lines(event, 1)  # it has caught up
        assert (await client.hear() or {})["method"] == "event"


# -- clients that leave halfway --------------------------------------------------------------------------------------


async def test_a_client_that_shuts_its_half_gets_its_answers(socket_path: Path) -> None:
    gate = Gate()
    methods = METHODS | {"logs": MethodSpec(gate, "none")}
    async with serving(socket_path, methods, requests_in_flight=2) as served, connected(socket_path) as client:
        await client.say(*(request(number, "logs", run="r", job="j") for number in range(5)), PING[:5])
        client.writer.write_eof()
        await eventually(lambda: gate.begun == 2)
        connection = await served.only()
        connection.check(time.monotonic() + FAR)  # it has all its time: it still reads
        gate.open.set()

        answers = [await client.hear() for _ in range(6)]

        assert sorted(answer["id"] for answer in answers if answer and "result" in answer) == [0, 1, 2, 3, 4]
        (error,) = (answer["error"] for answer in answers if answer and "error" in answer)
        assert "ended 5 bytes into a line" in error["message"]
        assert await client.hear() is None
        await eventually(lambda: not served.connections())


async def test_a_watcher_that_shuts_its_half_goes_on_watching_until_it_leaves(socket_path: Path) -> None:
    def watch(call: Call, params: Any) -> object:
        call.connection.watching += 1
        return messages.PingResult(time=1.0)

    async with serving(socket_path, {"watch": MethodSpec(watch, "none")}) as served:
        async with connected(socket_path) as client:
            await client.say(request(1, "watch"))
            client.writer.write_eof()
            assert "result" in (await client.hear() or {})
            connection = await served.only()
            await eventually(lambda: "half-closed" in repr(connection))

            connection.check(time.monotonic() + FAR)

            assert connection.send_lines(EVENT, 1)
            assert (await client.hear() or {})["method"] == "event"
        connection.check(time.monotonic())
        await eventually(lambda: not served.connections())


async def test_a_client_that_leaves_while_we_do_not_read_is_noticed(socket_path: Path) -> None:
    gate = Gate()
    async with serving(socket_path, {"logs": MethodSpec(gate, "none")}, requests_in_flight=1) as served:
        async with connected(socket_path) as client:
            await client.say(request(1, "logs", run="r", job="j"), request(2, "logs", run="r", job="j"))
            await eventually(lambda: gate.begun)
            connection = await served.only()
            assert connection.in_flight == 1

        connection.check(time.monotonic())
        await eventually(lambda: gate.cancelled == 1)
        await eventually(lambda: not served.connections())
        assert gate.begun == 1


# -- many, and too many ----------------------------------------------------------------------------------------------


async def test_requests_in_flight_are_bounded(socket_path: Path) -> None:
    gate = Gate()
    async with (
        serving(socket_path, METHODS | {"logs": MethodSpec(gate, "none")}, requests_in_flight=3) as served,
        connected(socket_path) as client,
        connected(socket_path) as other,
    ):
        await client.say(*(request(number, "logs", run="r", job="j") for number in range(10)))
        await eventually(lambda: gate.begun == 3)
        assert "result" in await other.ask("ping")
        assert gate.begun == 3
        assert served.server.figures.requests_in_flight == 3

        gate.open.set()

        assert sorted([(await client.hear() or {})["id"] for _ in range(10)]) == list(range(10))


@pytest.mark.parametrize("limit", ["clients", "clients_per_user"])
async def test_too_many_clients_are_turned_away(socket_path: Path, log: CapturingLogger, limit: str) -> None:
    limits: dict[str, Any] = {limit: 2, "clients_reserved": 0}
    async with (
        serving(socket_path, log=log, **limits) as served,
        connected(socket_path) as first,
        connected(socket_path),
    ):
        async with connecting(socket_path) as third:
            assert await third.farewell() == "limit_exceeded"
        assert "result" in await first.ask("ping")
        assert served.server.figures.clients_refused == 1
        assert f"limits.{limit} allows (2)" in logged(log, "client_refused")[0]["reason"]

        first.close()
        await eventually(lambda: len(served.connections()) == 1)

        async with connected(socket_path) as fourth:
            assert "result" in await fourth.ask("ping")


async def test_connections_are_reserved_for_the_owner_and_admins(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 connections of each of two users that do nothing, and admins come in all the same."""
    admin, limits = 5, {"clients": 6, "clients_per_user": 3, "clients_reserved": 3}
    everybody = frozenset[Right]({"read"})
    policy = Policy(owner_uid=os.getuid(), others=everybody, admins=Members(uids=frozenset({admin})))
    methods = METHODS | {"watch": MethodSpec(watching, "none")}
    async with serving(socket_path, methods, policy=policy, **limits) as served, AsyncExitStack() as stack:
        for uid in (3, 3, 3, 4, 4, 4):
            pretend(monkeypatch, uid)
            client = await stack.enter_async_context(connected(socket_path))
            await client.ask("watch")  # they are not idle
        for uid in (3, 4, 6):
            pretend(monkeypatch, uid)
            async with connecting(socket_path) as turned_away:
                assert await turned_away.farewell() == "limit_exceeded"
        for uid in (admin, os.getuid(), admin):
            pretend(monkeypatch, uid)
            client = await stack.enter_async_context(connected(socket_path))
            assert "result" in await client.ask("ping")
        async with connecting(socket_path) as one_more:
            assert await one_more.farewell() == "limit_exceeded"

        assert served.server.use.clients == 9
        assert served.server.use.limit == 6
        assert [*served.server.use.by_user.values()][:2] == [3, 3]


async def test_a_user_with_few_connections_displaces_an_idle_one_of_a_user_with_many(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(owner_uid=os.getuid(), others=frozenset({"read"}))
    methods = METHODS | {"watch": MethodSpec(watching, "none")}
    async with serving(socket_path, methods, policy=policy, clients=4) as served, AsyncExitStack() as stack:
        pretend(monkeypatch, 3)
        clients = [await stack.enter_async_context(connected(socket_path)) for _ in range(4)]
        for client in clients:
            await client.ask("ping")
        await clients[0].ask("watch")
        for connection in served.connections():
            connection.check(time.monotonic())

        pretend(monkeypatch, 4)
        for _ in range(2):
            other = await stack.enter_async_context(connected(socket_path))
            assert "result" in await other.ask("ping")
            await eventually(lambda: len(served.connections()) == 4)
        async with connecting(socket_path) as turned_away:  # now both have two
            assert await turned_away.farewell() == "limit_exceeded"

        assert "result" in await clients[0].ask("ping")
        assert served.server.figures.clients_dropped == 2


async def test_what_a_callback_of_the_end_returns_is_awaited(socket_path: Path, log: CapturingLogger) -> None:
    ended: list[str] = []

    def hold(call: Call, params: Any) -> object:
        async def end(name: str) -> None:
            await anyio.lowlevel.checkpoint()
            ended.append(name)

        async def fail() -> None:
            await anyio.lowlevel.checkpoint()
            raise ValueError

        call.connection.on_close(fail)
        call.connection.on_close(lambda: end("released"))
        return messages.PingResult(time=1.0)

    async with serving(socket_path, {"ping": MethodSpec(hold, "none")}, log=log):
        async with connected(socket_path) as client:
            await client.ask("ping")
        await eventually(lambda: ended)
    assert len(logged(log, "close_callback_broke")) == 1


def watching(call: Call, params: Any) -> object:
    """A method after which the client is not idle."""
    call.connection.watching += 1
    return messages.PingResult(time=1.0)


def pretend(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    """Make every client another user's, by the kernel's word."""
    monkeypatch.setattr(service, "peer_of", lambda _: Peer(pid=os.getpid(), uid=uid, gid=uid, groups=(uid,), user=""))


async def test_strangers_are_turned_away(
    socket_path: Path, log: CapturingLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, 54321)
    async with serving(socket_path, log=log), connecting(socket_path) as client:
        assert await client.farewell() == "permission_denied"
    assert logged(log, "client_refused")[0]["uid"] == 54321


async def test_rights_are_checked_before_a_handler_is_asked(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 54321)
    called: list[Peer] = []

    def remember(call: Call, params: Any) -> object:
        called.append(call.peer)
        return messages.PingResult(time=1.0)

    names: dict[str, Right] = {
        "version": "none",
        "health": "read",
        "submit": "submit",
        "cancel": "command",
        "list": "admin",
    }
    methods = {name: MethodSpec(remember, right) for name, right in names.items()}
    policy = Policy(owner_uid=os.getuid(), others=frozenset({"read"}))
    async with serving(socket_path, methods, policy=policy) as served, connected(socket_path) as client:
        allowed = {}
        for name, right in names.items():
            answer = await client.ask(name)  # its parameters may be wrong: the right comes first
            allowed[right] = answer.get("error", {}).get("data", {}).get("code") != "permission_denied"
        assert allowed == {"none": True, "read": True, "submit": False, "command": False, "admin": False}
        assert {peer.user for peer in called} == {"#54321"}

        served.server.set_policy(Policy(owner_uid=os.getuid(), others=frozenset({"read", "submit"})))
        assert "permission_denied" not in str(await client.ask("submit"))  # who is connected has new rights at once

        served.server.set_policy(Policy(owner_uid=os.getuid()))
        assert await client.farewell() == "permission_denied"
        async with connecting(socket_path) as next_one:
            assert await next_one.farewell() == "permission_denied"


async def test_a_slow_name_server_keeps_only_whom_it_should_name(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = anyio.Event()
    look_up = UserNames.look_up

    async def look_up_slowly(self: UserNames, uid: int) -> str:
        if uid == 54321:
            await answered.wait()
        return await look_up(self, uid)

    monkeypatch.setattr(UserNames, "look_up", look_up_slowly)
    policy = Policy(owner_uid=os.getuid(), others=frozenset({"read"}))
    async with serving(socket_path, policy=policy), connected(socket_path) as known:
        with monkeypatch.context() as patch:
            pretend(patch, 54321)
            stranger = await anyio.connect_unix(socket_path)
            assert "result" in await known.ask("ping")
        async with stranger, connected(socket_path) as later:
            assert "result" in await later.ask("ping")
            answered.set()
            with anyio.fail_after(30):
                assert b"hello" in await stranger.receive()


async def test_limits_can_change_on_the_way(socket_path: Path) -> None:
    async with serving(socket_path) as served, connected(socket_path):
        served.server.set_limits(Limits(clients=1, clients_reserved=0))

        async with connecting(socket_path) as second:
            assert await second.farewell() == "limit_exceeded"


async def test_a_flood_takes_turns_with_others(socket_path: Path) -> None:
    order: list[int] = []

    def remember(call: Call, params: Any) -> object:
        order.append(call.connection.id)
        return messages.PingResult(time=1.0)

    total = 20_000
    async with (
        serving(socket_path, {"ping": MethodSpec(remember, "none")}),
        connected(socket_path) as flood,
        connected(socket_path) as other,
    ):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood.say, *(request(number, "ping") for number in range(total)))

            async def read() -> None:
                for _ in range(total):
                    assert await flood.hear() is not None

            tasks.start_soon(read)
            await eventually(lambda: order)
            for _ in range(10):
                await other.ask("ping")
            assert order.count(1) < total  # it did not have to wait for the end of the flood
        assert (order.count(1), order.count(2)) == (total, 10)


# -- a server in a process of its own --------------------------------------------------------------------------------


class Daemon:
    """A server in a process of its own."""

    def __init__(self, path: Path, **limits: Any) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.socket_server", str(path), json.dumps(limits)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("serving")

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        client.connect(str(self.path))
        return client

    def exchange(self, data: bytes) -> list[dict[str, Any]]:
        """All that is said to a client that sends this and then no more."""
        with self.connect() as client:
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            except ConnectionError:
                pass  # it said goodbye before it had read all
            with client.makefile("rb") as file:
                return [json.loads(line) for line in file]

    def stop(self) -> str:
        self.process.terminate()
        _, said = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, said
        return said


@pytest.fixture
def daemon(socket_path: Path) -> Iterator[Callable[..., Daemon]]:
    started: list[Daemon] = []

    def start(**limits: Any) -> Daemon:
        started.append(Daemon(socket_path, **limits))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


FLOOD_PROGRAM = """
import socket, sys
clients = []
for _ in range(3):
    client = socket.socket(socket.AF_UNIX)
    client.connect(sys.argv[1])
    client.setblocking(False)
    clients.append(client)
piece = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\\n' * 500
left = [piece] * 3
print("flooding", flush=True)
while True:
    for number, client in enumerate(clients):
        try:
            left[number] = left[number][client.send(left[number]):] or piece
        except BlockingIOError:
            pass
        try:
            client.recv(1 << 20)
        except BlockingIOError:
            pass
"""


@contextlib.contextmanager
def flooded(path: Path) -> Iterator[None]:
    """Have three clients that ask without pause."""
    with subprocess.Popen([sys.executable, "-c", FLOOD_PROGRAM, str(path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


async def test_of_many_clients_none_is_starved(daemon: Callable[..., Daemon]) -> None:
    served = await anyio.to_thread.run_sync(lambda: daemon(clients=CLIENTS + 10, clients_per_user=CLIENTS + 10))
    counts = [0] * CLIENTS
    greeted: list[int] = []
    all_greeted, over = anyio.Event(), anyio.Event()

    async def ask(number: int) -> None:
        async with connected(served.path) as client:
            greeted.append(number)
            if len(greeted) == CLIENTS:
                all_greeted.set()
            await all_greeted.wait()
            while not over.is_set():
                assert (await client.ask("status", run=str(number)))["result"]["id"] == str(number)
                counts[number] += 1
                if counts[number] == 20:
                    over.set()

    with flooded(served.path):
        async with anyio.create_task_group() as tasks:
            for number in range(CLIENTS):
                tasks.start_soon(ask, number)

    assert min(counts) >= 5, counts


def test_a_flood_costs_no_memory(daemon: Callable[..., Daemon]) -> None:
    served = daemon(write_buffer_bytes=wire.MAX_MESSAGE_BYTES)
    piece = b"".join(request(number, "status", run="r") for number in range(500))
    answered = 0
    resident: list[int] = []
    with served.connect() as client:
        assert b"hello" in client.recv(4096)
        client.setblocking(False)
        left = memoryview(piece)
        sent = 0
        while answered < FLOOD:
            with contextlib.suppress(BlockingIOError):
                left = left[client.send(left) :]
            if not left:
                sent += 500
                left = memoryview(piece)
                resident.append(served.resident_bytes())
            with contextlib.suppress(BlockingIOError):
                answered += client.recv(1 << 20).count(b"\n")

    assert sent >= FLOOD - 500
    assert max(resident[len(resident) // 4 :]) - resident[len(resident) // 4] < 4 * 2**20
    served.stop()


def test_clients_that_never_read_cost_bounded_memory(daemon: Callable[..., Daemon]) -> None:
    limit = wire.MAX_MESSAGE_BYTES
    served = daemon(write_buffer_bytes=limit, write_timeout_s=3600)
    before = served.resident_bytes()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.connect()) for _ in range(20)]
        ask = request(1, "report", limit=1000)
        for client in clients:
            client.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                for _ in range(10_000):  # 1 GB of answers, if they were all made
                    client.sendall(ask)

        assert served.resident_bytes() - before < 20 * 2 * limit
        assert served.exchange(PING)[-1]["result"] == {"time": 1.0}  # and the others are served
    served.stop()


def test_garbage_does_no_harm(daemon: Callable[..., Daemon]) -> None:
    served = daemon()
    resident: list[int] = []
    pieces = st.binary(max_size=300) | st.sampled_from(
        [b"\n", PING, b"[", b'{"jsonrpc":"2.0","id":', b'"\\ud800"', b"x" * 70_000, b"\xff" * 9, b"[" * 50_000 + b"\n"]
    )

    @given(st.lists(pieces, max_size=20).map(b"".join))
    def garbage(data: bytes) -> None:
        said = served.exchange(data)

        assert said[0]["method"] == "hello"
        assert all(message["jsonrpc"] == "2.0" for message in said)
        assert data.count(PING) == 0 or len(said) > 1
        resident.append(served.resident_bytes())

    garbage()
    while len(resident) < FUZZ:
        garbage()

    assert served.exchange(PING)[-1]["result"] == {"time": 1.0}
    half = len(resident) // 2
    assert max(resident[half:]) - max(resident[:half]) < 4 * 2**20
    assert "broke" not in served.stop()


def test_without_file_descriptors_clients_wait(daemon: Callable[..., Daemon]) -> None:
    served = daemon(open_files=40)
    with contextlib.ExitStack() as stack:
        waiting = {stack.enter_context(served.connect()) for _ in range(60)}
        greeted: set[socket.socket] = set()
        while newly := select.select(list(waiting), [], [], 0.5)[0]:
            assert all(b"hello" in client.recv(4096) for client in newly)
            greeted.update(newly)
            waiting.difference_update(newly)
        assert 10 < len(greeted) < 40

        for client in greeted:
            client.close()

        for client in waiting:
            assert b"hello" in client.recv(4096)
            client.close()
    assert '"accept_failed"' in served.stop()


# -- the end ---------------------------------------------------------------------------------------------------------


async def test_a_stop_lets_what_was_asked_be_answered(socket_path: Path) -> None:
    gate = Gate()
    methods = METHODS | {"logs": MethodSpec(gate, "none")}
    async with (
        serving(socket_path, methods) as served,
        connected(socket_path) as busy,
        connected(socket_path) as idle,
        anyio.create_task_group() as tasks,
    ):
        await busy.say(request(1, "logs", run="r", job="j"))
        await eventually(lambda: gate.begun)

        tasks.start_soon(served.server.stop, 30.0)

        assert await idle.farewell() == "stopping"
        assert not socket_path.exists()  # noqa: ASYNC240
        await busy.say(PING)  # too late
        gate.open.set()
        assert (await busy.hear() or {})["id"] == 1
        assert await busy.farewell() == "stopping"
    assert repr(served.server) == "<SocketServer stopped clients=0 in_flight=0>"


async def test_a_stop_does_not_wait_longer_than_told(socket_path: Path) -> None:
    gate, finish = Gate(), Gate()
    methods = {"logs": MethodSpec(gate, "none"), "jobs": MethodSpec(finish, "none", finish=True)}
    async with serving(socket_path, methods) as served, connected(socket_path) as client:
        await client.say(request(1, "logs", run="r", job="j"), request(2, "jobs", run="r"))
        await eventually(lambda: gate.begun and finish.begun)

        await served.server.stop(0.01)

        assert await client.farewell() == "stopping"
    assert (gate.cancelled, finish.cancelled) == (1, 1)


async def test_a_stop_waits_for_what_must_finish_although_its_client_left(socket_path: Path) -> None:
    gate = Gate()
    methods = {"jobs": MethodSpec(gate, "none", finish=True)}
    async with serving(socket_path, methods) as served:
        async with connected(socket_path) as client:
            await client.say(request(2, "jobs", run="r"))
            await eventually(lambda: gate.begun)
        await eventually(lambda: not served.connections())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(served.server.stop, 30.0)
            await eventually(lambda: not socket_path.exists())
            gate.open.set()
    assert (gate.done, gate.cancelled) == (1, 0)


async def test_a_cancelled_server_says_goodbye_too(socket_path: Path) -> None:
    async with serving(socket_path) as served, connected(socket_path) as client:
        assert served.server._tasks is not None
        served.server._tasks.cancel_scope.cancel()

        assert await client.farewell() == "stopping"


async def test_a_client_that_does_not_take_its_goodbye_delays_nobody(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "GOODBYE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as client:
        async with serving(socket_path) as served:
            client.connect(str(socket_path))
            client.send(request(1, "report", limit=9000) * 3)
            connection = await served.only()
            await eventually(lambda: connection._transport.get_write_buffer_size())
            await served.server.stop(0.0)
        assert not served.connections()


async def test_a_server_that_never_served_stops(socket_path: Path, log: CapturingLogger) -> None:
    server = SocketServer(METHODS, limits=Limits(), hello=hello(), policy=Policy(owner_uid=0), log=log)

    await server.stop(0.0)

    assert repr(server) == "<SocketServer new clients=0 in_flight=0>"


def test_methods_that_the_protocol_does_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match="frobnicate"):
        SocketServer(
            {"frobnicate": METHODS["ping"]}, limits=Limits(), hello=hello(), policy=Policy(owner_uid=0), log=None
        )


async def test_everything_is_counted(socket_path: Path) -> None:
    async with serving(socket_path) as served, connected(socket_path) as client:
        await client.ask("ping")
        await client.error_of(b"x\n")

        figures = served.server.figures

        assert (figures.clients, figures.clients_accepted, figures.requests) == (1, 1, 1)
        assert (figures.messages_malformed, figures.bytes_in) == (1, len(request(1, "ping")) + 2)
        assert figures.bytes_out > 200
        assert set(figures.as_dict()) == set(HELP) >= COUNTERS
