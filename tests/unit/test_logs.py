"""Logs: one line an event, no secret in it, and nobody waits for it to be read."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from bpsd.logs import LogEvent, LogSink, get_logger, journald, log_context, log_to, redact
from bpsd.logs.redaction import MAX_ITEMS, MAX_TEXT_CHARS, REDACTED, redact_text

ROOT = Path(__file__).parents[2]


class Pipe:
    """A file descriptor to log to, and what was written to it."""

    def __init__(self) -> None:
        self.reader, self.fd = os.pipe()

    def lines(self) -> list[str]:
        """All that was written, once the writing end is closed."""
        os.close(self.fd)
        self.fd = -1
        with open(self.reader, "rb", closefd=False) as file:
            return file.read().decode().splitlines()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]

    def close(self) -> None:
        for fd in (self.reader, self.fd):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def lost(count: int) -> str:
    return f"lost {count}"


# -- what a line is --------------------------------------------------------------------------------------------------


def test_programs_read_json(pipe: Pipe) -> None:
    early = get_logger(backend="here")
    with log_to(pipe.fd):
        early.warning(LogEvent.POLL_FAILED, failures=2, error="no answer")

    (event,) = pipe.events()
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "poll_failed",
        "level": "warning",
        "backend": "here",
        "failures": 2,
        "error": "no answer",
    }


def test_people_read_lines(pipe: Pipe) -> None:
    with log_to(pipe.fd, form="console"):
        get_logger().info(LogEvent.DAEMON_STARTED, socket="/tmp/s")

    (line,) = pipe.lines()
    assert "daemon_started" in line
    assert "socket=/tmp/s" in line
    assert "\x1b" not in line  # no colours: it is no terminal


def test_a_terminal_is_for_people(pipe: Pipe) -> None:
    ours, terminal = os.openpty()
    try:
        with log_to(terminal):
            get_logger().info(LogEvent.DAEMON_STARTED)
        shown = os.read(ours, 4096).decode()
    finally:
        os.close(ours)
        os.close(terminal)

    assert "daemon_started" in shown
    assert not shown.startswith("{")


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_mistake_comes_with_its_traceback(pipe: Pipe, form: Any) -> None:
    with log_to(pipe.fd, form=form):
        try:
            raise RuntimeError("boom, password=hunter2hunter2")
        except RuntimeError as error:
            get_logger().error(LogEvent.POLL_BROKE, exc_info=error)

    text = "\n".join(pipe.lines())
    assert "Traceback (most recent call last)" in text
    assert "RuntimeError: boom, password=[redacted]" in text


def test_the_level_can_change_on_the_way(pipe: Pipe) -> None:
    with log_to(pipe.fd, level="warning") as control:
        log = get_logger().bind(backend="here")
        log.info(LogEvent.DAEMON_STARTED)
        log.error(LogEvent.POLL_BROKE)
        control.set_level("debug")
        log.debug(LogEvent.DAEMON_STOPPING)

    assert [event["event"] for event in pipe.events()] == ["poll_broke", "daemon_stopping"]


def test_the_context_of_a_task_is_told(pipe: Pipe) -> None:
    async def work(name: str) -> None:
        with log_context(request=name):
            await asyncio.sleep(0)
            get_logger().info(LogEvent.DAEMON_STARTED)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b"):
                group.create_task(work(name))

    with log_to(pipe.fd):
        asyncio.run(main())

    assert [event["request"] for event in pipe.events()] == ["a", "b"]


def test_libraries_and_warnings_are_heard(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own raises where arguments do not fit the format
    with log_to(pipe.fd), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.getLogger("asyncssh").warning("host key of %s changed", "usdf")
        logging.getLogger("asyncssh").info("not this")
        logging.getLogger("odd").error("no %d", "number")
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)

    events = pipe.events()
    assert {event["event"] for event in events} == {"library_message"}
    assert [event["logger"] for event in events] == ["asyncssh", "odd", "py.warnings"]
    assert events[0]["text"] == "host key of usdf changed"
    assert events[1]["text"] == "no %d"
    assert "this is old" in events[2]["text"]


def test_afterwards_all_is_as_before(pipe: Pipe) -> None:
    before, handlers = structlog.get_config(), list(logging.root.handlers)

    with log_to(pipe.fd):
        assert structlog.get_config() != before

    assert structlog.get_config() == before
    assert logging.root.handlers == handlers


class Broken:
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("form", ["console", "json"])
def test_nothing_that_is_logged_raises(pipe: Pipe, form: Any) -> None:
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    with log_to(pipe.fd, form=form):
        for value in (Broken(), cycle, "\ud800", b"\xff", {1: {2}}, float("nan"), range(3), ["x"] * 1000):
            get_logger().info(LogEvent.DAEMON_STARTED, value=value)

    assert len(pipe.lines()) == 8


def test_a_renderer_that_fails_leaves_a_line(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(structlog.processors.JSONRenderer, "__call__", fail)
    with log_to(pipe.fd):
        get_logger().info(LogEvent.DAEMON_STARTED)

    assert pipe.events() == [{"event": "daemon_started", "level": "info", "log_error": "ZeroDivisionError()"}]


# -- what no line tells ----------------------------------------------------------------------------------------------

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "key",
    ["password", "ssh_password", "token_secret", "Authorization", "api-key", "private_key", "access_token", "cookie"],
)
def test_fields_that_hold_secrets_are_hidden(key: str) -> None:
    event = redact(None, "info", {"event": "x", key: "hunter2", "deep": [{key: "hunter2"}], "empty": {key: ""}})

    assert event == {"event": "x", key: REDACTED, "deep": [{key: REDACTED}], "empty": {key: ""}}


def test_the_token_of_a_run_is_no_secret() -> None:
    assert redact(None, "info", {"token": "abcdefghij0123456789"}) == {"token": "abcdefghij0123456789"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"sent {JWT} to", "sent [redacted] to"),
        ("Authorization: Bearer abcdefghijklmnop0123", "Authorization: [redacted]"),
        ("authorization=Basic dXNlcjpwYXNz", "authorization=[redacted]"),
        ("header bearer abcdefghijklmnop0123== end", "header bearer [redacted] end"),
        ('{"password": "hunter2", "a": 1}', '{"password": [redacted]", "a": 1}'),
        ("password=hunter2&x=1", "password=[redacted]&x=1"),
        ("https://me:hunter2@host/x", "https://me:[redacted]@host/x"),
        ("a -----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY----- b", "a [redacted] b"),
        ("a -----BEGIN PRIVATE KEY-----\nabc", "a [redacted]"),
        ("basic understanding, bearer of news", "basic understanding, bearer of news"),
    ],
)
def test_texts_that_look_like_secrets_are_hidden(text: str, expected: str) -> None:
    assert redact_text(text) == expected
    assert redact_text(expected) == expected


def test_texts_cannot_write_on_a_terminal() -> None:
    assert redact_text("a\x1b[2J\nb\tc\x9b") == "a\\x1b[2J\\nb\tc\\x9b"
    assert redact_text("a\x1b\nb", lines=True) == "a\\x1b\nb"


def test_everything_is_bounded() -> None:
    event = redact(None, "info", {"text": "x" * 10**6, "list": [0] * 10**6, "map": {n: n for n in range(10**4)}})

    assert len(event["text"]) < MAX_TEXT_CHARS + 100
    assert len(event["list"]) == len(event["map"]) == MAX_ITEMS + 1
    assert event["list"][-1] == "... (1000000 in all)"


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), nested, max_size=5))
def test_what_is_redacted_stays_as_it_is(event: dict[str, Any]) -> None:
    once = redact(None, "info", dict(event))

    assert repr(redact(None, "info", dict(once))) == repr(once)


# -- a reader who does not read --------------------------------------------------------------------------------------


def fill(fd: int) -> int:
    """Fill a pipe; return how many bytes went in."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    count = 0
    try:
        while True:
            count += os.write(fd, b"." * 1024)
    except BlockingIOError:
        pass
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return count


def test_a_stalled_reader_costs_lines_and_no_time(pipe: Pipe) -> None:
    filled = fill(pipe.fd)
    sink = LogSink(pipe.fd, describe_loss=lost, max_queued_bytes=1000)

    for number in range(1000):  # with nobody reading, a write that waited would wait for ever
        sink.write(f"{number:09}\n")

    assert sink.dropped == 900
    closing = threading.Thread(target=sink.close, kwargs={"timeout_s": 60.0})
    closing.start()
    while filled:
        filled -= len(os.read(pipe.reader, filled))
    closing.join(60.0)
    assert not closing.is_alive()
    lines = pipe.lines()
    assert [line for line in lines if not line.startswith("lost")] == [f"{number:09}" for number in range(100)]
    assert sum(int(line.split()[1]) for line in lines if line.startswith("lost")) == 900


def test_closing_does_not_wait_for_a_stalled_reader(pipe: Pipe) -> None:
    fill(pipe.fd)
    sink = LogSink(pipe.fd, describe_loss=lost)
    sink.write("never read\n")

    sink.close(timeout_s=0.01)

    sink.write("after the end\n")
    assert sink.dropped == 1
    os.close(pipe.reader)  # lets the thread go: its write fails


def test_a_reader_who_is_gone_costs_lines(pipe: Pipe) -> None:
    os.close(pipe.reader)
    sink = LogSink(pipe.fd, describe_loss=lost)

    sink.write("one\n")
    sink.write("two\n")
    sink.close(timeout_s=60.0)

    assert sink.dropped == 2


def test_a_file_made_non_blocking_is_waited_for(pipe: Pipe) -> None:
    filled = fill(pipe.fd)
    fcntl.fcntl(pipe.fd, fcntl.F_SETFL, fcntl.fcntl(pipe.fd, fcntl.F_GETFL) | os.O_NONBLOCK)
    sink = LogSink(pipe.fd, describe_loss=lost)

    sink.write("x\n")
    while filled:
        filled -= len(os.read(pipe.reader, filled))
    sink.close(timeout_s=60.0)

    assert pipe.lines() == ["x"]


def test_loss_is_told_in_the_form_of_the_rest(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = fill(pipe.fd)
    with log_to(pipe.fd) as control:
        while not control.dropped:
            get_logger().info(LogEvent.DAEMON_STARTED, text="x" * 5000)
        while filled:
            filled -= len(os.read(pipe.reader, filled))
        drained = threading.Thread(target=_drain, args=(pipe.reader, seen := bytearray()))
        drained.start()
    os.close(pipe.fd)
    drained.join(60.0)

    told = [json.loads(line) for line in seen.splitlines()]
    assert [event["count"] for event in told if event["event"] == "log_lines_dropped"] == [1]


def _drain(fd: int, into: bytearray) -> None:
    while data := os.read(fd, 65_536):
        into += data


# -- the vocabulary --------------------------------------------------------------------------------------------------

SOURCES = [path for root in ("daemon", "adapters") for path in sorted((ROOT / root).rglob("*.py"))]
METHODS = {"debug", "info", "warning", "error", "critical", "exception"}


def improvised(path: Path) -> Iterator[str]:
    """Log calls whose event is a text that the vocabulary does not have."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
            continue
        owner = ast.unparse(node.func.value)
        if owner.rpartition(".")[2].lstrip("_") not in {"log", "logger"} or not node.args:
            continue
        event = node.args[0]
        if isinstance(event, ast.Constant) and isinstance(event.value, str) and event.value not in set(LogEvent):
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {event.value}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_events_come_from_the_vocabulary(source: Path) -> None:
    assert list(improvised(source)) == []


def test_improvised_events_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    source = tmp_path / "x.py"
    source.write_text("self._log.info('poll_failed')\nlog.error('something odd')\nmath.log.x('y')\n")

    assert list(improvised(source)) == ["x.py:2: something odd"]


# -- systemd's journal -----------------------------------------------------------------------------------------------


def fields_of(data: bytes) -> dict[str, str]:
    """Read a datagram as journald does (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        fields[name.decode()] = value.decode()
        data = rest
    return fields


@given(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.lists(st.text()), max_size=6))
def test_the_journal_gets_fields_and_nothing_forges_one(facts: dict[str, Any]) -> None:
    facts = {k: v for k, v in facts.items() if k not in ("event", "level", "exception", "stack", "timestamp")}

    fields = fields_of(journald.datagram({"event": "poll_failed", "level": "error", **facts}))

    assert fields["BPSD_EVENT"] == "poll_failed" or "EVENT" in {name.upper() for name in facts}
    assert fields["PRIORITY"] == "3"
    assert fields["MESSAGE"].startswith("poll_failed")
    names = {re.sub("[^A-Z0-9_]", "_", f"BPSD_{name}".upper())[:64] for name in facts}
    assert set(fields) - {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "BPSD_EVENT"} <= names


def test_events_go_to_the_journal_where_stderr_does(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal, (state_dir / "stderr").open("wb") as stderr:
        journal.bind(str(state_dir / "j"))
        journal.settimeout(30)
        status = os.fstat(stderr.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr(journald.send_lines, "__defaults__", (str(state_dir / "j"),))
        with log_to(stderr.fileno()):
            get_logger().warning(LogEvent.POLL_FAILED, backend="here", failures=2, error="two\nlines", password="x1")
        fields = fields_of(journal.recv(65536))

    assert (state_dir / "stderr").read_bytes() == b""
    assert fields == {
        "MESSAGE": "poll_failed backend=here failures=2 error=two\\nlines password=[redacted]",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "bpsd",
        "BPSD_EVENT": "poll_failed",
        "BPSD_BACKEND": "here",
        "BPSD_FAILURES": "2",
        "BPSD_ERROR": "two\\nlines",
        "BPSD_PASSWORD": REDACTED,
    }


def test_what_is_too_long_for_a_datagram_is_told_in_short(state_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(state_dir / "j"))
        line = json.dumps({"event": "poll_broke", "level": "error", "error": "x" * 10_000_000}).encode() + b"\n"

        journald.send_lines(line, str(state_dir / "j"))

        fields = fields_of(journal.recv(65536))
    assert fields["BPSD_EVENT"] == "poll_broke"
    assert fields["MESSAGE"].startswith("poll_broke error=xxx")
