"""The blocking client against a daemon on a real socket: what it says, and what it does when the daemon is not well."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpsd import messages, wire
from bpsd.client import Client, ClientError, ConnectionLost, NoDaemon, RemoteError, TimedOut, VersionMismatch, endpoint
from bpsd.errors import Conflict, Stopping
from tests.integration.fake_daemon import NOW, FakeDaemon, Hangup, command_row, run_row

RUN = "rbcdfghjk"
TOKEN = "a" * 20


@pytest.fixture
def daemon(socket_path: Path) -> Iterator[FakeDaemon]:
    """A daemon with one run."""
    fake = FakeDaemon(socket_path)
    fake.rows = {RUN: run_row(RUN)}
    with fake.running():
        yield fake


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    """A client of it, connected."""
    with Client(str(daemon.path), name="a test") as connected:
        yield connected


def once(first: Callable[[Any], Any], then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Answer the first request otherwise than all later ones."""
    asked: list[Any] = []

    def answer(params: Any) -> Any:
        asked.append(params)
        return (first if len(asked) == 1 else then)(params)

    return answer


def hang_up(params: Any) -> Any:
    raise Hangup


# -- what it says ------------------------------------------------------------------------------------------------------


def test_everything_that_it_can_say_is_what_the_daemon_takes(daemon: FakeDaemon, client: Client) -> None:
    """The fake decodes every request as the daemon does: unknown or wrongly typed parameters are refused."""
    filters: dict[str, Any] = {
        "backend": ["here"],
        "user": "alice",
        "state": ("RUNNING", "HELD"),
        "label": "isr",
        "hist": 2,
        "pattern": "u_*",
        "active": True,
        "mine": True,
        "limit": 10,
    }
    daemon.answers["logs"] = lambda p: messages.LogsResult(
        run=RUN, job=p.job, text="x", offset=0, next=1, size=1, path="/x"
    )
    daemon.answers["admin"] = lambda _: messages.AdminResult(done=["read"])
    answers = [
        client.ping(),
        client.version(),
        client.health(),
        client.backends("here", fields=True),
        client.backend_ping("here", pass_thru="x"),
        client.list_runs(**filters),
        client.report(**filters, max_age_s=5),
        client.report(RUN, backend="here"),
        client.status(RUN, backend="here", max_age_s=1.5),
        client.jobs(RUN, backend="here", state="FAILED", label="isr", pattern="isr_*", limit=5, after="0"),
        client.holds(RUN, group="h1", backend="here", label="isr", mine=True, limit=5, after="0"),
        client.logs(RUN, "isr_1", backend="here", stream="stdout", offset=-100, limit=100),
        client.events(RUN, backend="here", after=0, limit=5),
        client.refresh("here", timeout_s=5),
        client.validate_document(b"name: x\n", source="x.yaml", backend="here"),
        client.submit_document(b"name: x\n", token=TOKEN, source="x.yaml", backend="here", expires_s=60),
        client.cancel(RUN, backend="here", pass_thru="-x", expires_s=60),
        client.restart(RUN),
        client.hold(RUN),
        client.release(RUN, dry_run=True, label="isr", group="h1"),
        client.mute(RUN),
        client.mute(RUN, muted=False),
        client.commands("c1", run=RUN, backend="here", state="DONE", user="alice", since=NOW, before="c9", limit=5),
        client.commands_wait("c1", timeout_s=0),
        client.commands_resolve("c1", "done", wms_id="1234.0", note="seen"),
        client.admin("check"),
    ]
    with client.watch([RUN], backend="here", jobs=True):
        pass
    client.call("watch")
    # A fake that answers a watch by itself knows no unwatch; the parameters are decoded all the same.
    daemon.answers["unwatch"] = lambda _: messages.PingResult(time=NOW)
    client.call("unwatch", watch=1)

    assert all(answers)
    assert {method for method, _ in daemon.requests} == set(wire.METHODS)
    listed = daemon.asked("list")[0]
    assert (listed.state, listed.user, listed.active, listed.hist) == (["RUNNING", "HELD"], ["alice"], True, 2.0)


def test_hello_and_what_it_looks_like(daemon: FakeDaemon) -> None:
    client = Client(str(daemon.path))
    assert repr(client) == f"<Client {daemon.path}, not connected>"
    with client:
        assert client.hello["pid"] == 4242
        assert repr(client) == f"<Client {daemon.path}, connected to bpsd {client.hello['version']}>"
    assert daemon.connections_made == 1


def test_errors_of_the_daemon(client: Client) -> None:
    with pytest.raises(RemoteError) as caught:
        client.status("r9")

    error = caught.value
    assert (error.code, error.message) == ("run_not_found", "no run is called r9")
    assert error.advice == "did you mean rbcdfghjk?"
    assert error.fields == {"nearest": [RUN]}
    assert client.ping() == {"time": NOW}  # the connection lives on


def test_pages_are_put_together(daemon: FakeDaemon, client: Client) -> None:
    daemon.rows = {f"r{n}": run_row(f"r{n}") for n in range(5)}
    daemon.answers["list"] = lambda p: daemon._list(messages.ListParams(limit=min(p.limit, 2), after=p.after))

    everything = [row["id"] for page in client.pages(client.list_runs, "runs", None) for row in page["runs"]]
    some = [row["id"] for page in client.pages(client.list_runs, "runs", 3) for row in page["runs"]]

    assert everything == ["r0", "r1", "r2", "r3", "r4"]
    assert some == ["r0", "r1", "r2"]


# -- daemons that are not there, or not well ---------------------------------------------------------------------------


def test_no_daemon(socket_path: Path) -> None:
    with pytest.raises(NoDaemon, match=r"no such socket .*bpsd serve"):
        Client(str(socket_path)).ping()


def test_a_daemon_that_has_ended(daemon: FakeDaemon) -> None:
    daemon.stop()

    with pytest.raises(NoDaemon, match="nobody listens there"):
        Client(str(daemon.path)).ping()


def test_a_path_that_is_too_long() -> None:
    with pytest.raises(NoDaemon, match="AF_UNIX path too long"):
        Client("/tmp/" + "x" * 200).ping()


def test_another_protocol(daemon: FakeDaemon) -> None:
    daemon.protocol = wire.PROTOCOL_VERSION + 1

    with pytest.raises(VersionMismatch):
        Client(str(daemon.path)).ping()


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH\r\n", b"[]\n", b"x" * (wire.MAX_MESSAGE_BYTES + 1)])
def test_somebody_else(daemon: FakeDaemon, greeting: bytes) -> None:
    daemon.greeting = greeting

    with pytest.raises(ClientError) as caught:
        Client(str(daemon.path)).ping()

    assert caught.value.code == "protocol_error"


def test_a_daemon_that_says_nothing(daemon: FakeDaemon) -> None:
    daemon.greeting = b""

    with pytest.raises(TimedOut):
        Client(str(daemon.path), timeout_s=0.2).connect()


def test_a_daemon_that_is_full(daemon: FakeDaemon) -> None:
    daemon.greeting = (
        b'{"jsonrpc":"2.0","method":"goodbye","params":{"code":"limit_exceeded","message":"200 clients"}}\n'
    )

    with pytest.raises(RemoteError, match="200 clients") as caught:
        Client(str(daemon.path)).ping()
    assert caught.value.code == "limit_exceeded"


def test_reading_goes_on_after_a_restart(daemon: FakeDaemon, client: Client) -> None:
    client.ping()
    daemon.stop()
    daemon.start()

    assert client.status(RUN)["id"] == RUN
    assert daemon.connections_made == 2


def test_a_daemon_that_hangs_up_on_every_try(daemon: FakeDaemon, client: Client) -> None:
    daemon.answers["ping"] = hang_up

    with pytest.raises(ConnectionLost, match="the daemon closed it"):
        client.ping()
    assert len(daemon.asked("ping")) == 2


def test_the_reason_for_hanging_up_is_told(socket_path: Path) -> None:
    """A daemon that says goodbye before it closes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(socket_path))
    listener.listen()
    goodbye = b'{"jsonrpc":"2.0","method":"goodbye","params":{"code":"stopping","message":"the daemon ends"}}\n'

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(FakeDaemon(socket_path)._hello())
                connection.recv(65536)
                connection.sendall(goodbye)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with Client(str(socket_path)) as client, pytest.raises(ConnectionLost, match=r"the daemon ends \[stopping\]"):
            client.ping()
    finally:
        listener.close()
        thread.join(10)


def test_a_connection_that_was_closed_for_being_idle_is_replaced(socket_path: Path) -> None:
    """Also before a method that must not be sent twice: nothing was sent on the old connection."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(socket_path))
    listener.listen()
    goodbye = b'{"jsonrpc":"2.0","method":"goodbye","params":{"code":"deadline_exceeded","message":"idle"}}\n'
    closed = threading.Event()

    def serve() -> None:
        for last in (goodbye, b""):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(FakeDaemon(socket_path)._hello())
                request = json.loads(connection.recv(65536))
                answer = {"jsonrpc": "2.0", "id": request["id"], "result": {"method": request["method"]}}
                connection.sendall(json.dumps(answer).encode() + b"\n" + last)
            closed.set()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with Client(str(socket_path)) as client:
            client.ping()
            assert closed.wait(20)
            assert client.call("hold", run="r1") == {"method": "hold"}
    finally:
        listener.close()
        thread.join(10)


def test_a_late_answer_is_not_taken_for_another(daemon: FakeDaemon) -> None:
    slow = threading.Event()
    daemon.answers["ping"] = once(
        lambda p: (slow.wait(20), daemon._ping(p))[1], lambda _: messages.PingResult(time=1.0)
    )
    with Client(str(daemon.path), timeout_s=0.2) as client:
        with pytest.raises(TimedOut, match=r"ping: no answer from .* within 0.2 s"):
            client.ping()
        slow.set()
        client.timeout_s = 20

        assert client.ping() == {"time": 1.0}

    assert daemon.connections_made == 1


def test_a_request_over_the_limit_is_not_sent(daemon: FakeDaemon, client: Client) -> None:
    with pytest.raises(ClientError, match="a message holds at most 1048576") as caught:
        client.status("x" * wire.MAX_MESSAGE_BYTES)

    assert caught.value.code == "message_too_large"
    assert daemon.requests == []
    assert client.ping()


def test_messages_may_come_in_pieces(daemon: FakeDaemon, client: Client) -> None:
    text = "é\n" * 100_000
    daemon.answers["logs"] = lambda _: messages.LogsResult(
        run=RUN, job="j", text=text, offset=0, next=1, size=1, path="/x"
    )

    assert client.logs(RUN, "j")["text"] == text


# -- documents ---------------------------------------------------------------------------------------------------------


def test_a_large_document_goes_in_pieces(daemon: FakeDaemon, client: Client) -> None:
    data = bytes(range(256)) * 6000
    told: list[tuple[int, int]] = []

    client.submit_document(data, progress=lambda have, size: told.append((have, size)))

    assert daemon.blobs[hashlib.sha256(data).hexdigest()] == data
    piece = endpoint.BLOB_PIECE_BYTES
    assert told == [(0, len(data)), (piece, len(data)), (2 * piece, len(data)), (len(data), len(data))]


def test_a_document_that_is_there_is_not_sent_again(daemon: FakeDaemon, client: Client) -> None:
    client.put_document(b"name: x\n")
    client.put_document(b"name: x\n")

    assert [len(params.data) > 0 for params in daemon.asked("blob.put")] == [False, True, False]


def test_sending_goes_on_after_a_restart(daemon: FakeDaemon, client: Client) -> None:
    data = b"x" * (3 * endpoint.BLOB_PIECE_BYTES)
    halfway: list[int] = []

    def put(params: messages.BlobPut) -> messages.BlobPutResult:
        answer = daemon._blob_put(params)
        if answer.have == 2 * endpoint.BLOB_PIECE_BYTES and not halfway:
            halfway.append(answer.have)
            raise Hangup  # it is durable, and nobody was told
        return answer

    daemon.answers["blob.put"] = put

    digest = client.put_document(data)

    assert daemon.blobs[digest] == data
    assert halfway


def test_an_empty_document_is_not_sent(daemon: FakeDaemon, client: Client) -> None:
    with pytest.raises(ClientError, match="empty"):
        client.put_document(b"")
    assert daemon.requests == []


# -- once --------------------------------------------------------------------------------------------------------------


def test_submit_is_sent_again_under_the_same_token(daemon: FakeDaemon, client: Client) -> None:
    """The daemon took the command and died before it could say so."""

    def take_and_die(params: Any) -> Any:
        daemon._submit(params)
        raise Hangup

    daemon.answers["submit"] = once(take_and_die, daemon._submit)

    row = client.submit_document(b"name: x\n")

    assert row["created"] is False
    assert len(daemon.commands) == 1
    assert len({params.token for params in daemon.asked("submit")}) == 1


def test_submit_waits_for_a_daemon_that_is_about_to_be_replaced(daemon: FakeDaemon, client: Client) -> None:
    def stopping(params: Any) -> Any:
        raise Stopping("the daemon is about to end")

    daemon.answers["submit"] = once(stopping, daemon._submit)

    assert client.submit_document(b"name: x\n")["created"] is True


def test_a_refused_submit_is_not_tried_again(daemon: FakeDaemon, client: Client) -> None:
    def refuse(params: Any) -> Any:
        raise Conflict("the token is another run's")

    daemon.answers["submit"] = refuse

    with pytest.raises(RemoteError, match="another run's"):
        client.submit_document(b"name: x\n")
    assert len(daemon.asked("submit")) == 1


def test_a_command_that_arrived_is_not_given_twice(daemon: FakeDaemon, client: Client) -> None:
    def take_and_die(params: Any) -> Any:
        daemon._cancel(params)
        raise Hangup

    daemon.answers["cancel"] = once(take_and_die, daemon._cancel)

    row = client.cancel(RUN)

    assert row["id"] == "c1"
    assert list(daemon.commands) == ["c1"]
    assert len(daemon.asked("cancel")) == 1


def test_a_command_that_did_not_arrive_is_given_again(daemon: FakeDaemon, client: Client) -> None:
    daemon.answers["cancel"] = once(hang_up, daemon._cancel)

    row = client.cancel(RUN)

    assert row["id"] == "c1"
    assert [params.client for params in daemon.asked("cancel")] == [daemon.commands["c1"].client] * 2
    assert daemon.commands["c1"].client.startswith("a test #")


def test_two_commands_have_different_marks(daemon: FakeDaemon, client: Client) -> None:
    client.cancel(RUN)
    client.cancel(RUN)

    first, second = daemon.asked("cancel")
    assert first.client != second.client


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_wait_command_tells_what_it_waits_for(daemon: FakeDaemon, client: Client) -> None:
    states = iter(["ACCEPTED", "RUNNING", "IN_DOUBT", "DONE"])
    daemon.answers["commands.wait"] = lambda _: command_row("submit", next(states), note="here is down")
    seen: list[str] = []

    row = client.wait_command("c1", seen=lambda r: seen.append(r["state"]))

    assert row["state"] == "DONE"
    assert seen == ["ACCEPTED", "RUNNING", "IN_DOUBT"]


def test_wait_command_ends_with_a_doubt_that_lasts(daemon: FakeDaemon, client: Client) -> None:
    daemon.answers["commands.wait"] = lambda _: command_row("submit", "IN_DOUBT")

    assert client.wait_command("c1")["state"] == "IN_DOUBT"
    assert sum(params.timeout_s for params in daemon.asked("commands.wait")) > endpoint.COMMAND_SLICE_S


def test_wait_command_ends_in_time(daemon: FakeDaemon, client: Client) -> None:
    daemon.answers["commands.wait"] = lambda _: command_row("submit", "RUNNING")

    assert client.wait_command("c1", timeout_s=0)["state"] == "RUNNING"


def test_wait_command_survives_a_daemon_that_is_away(daemon: FakeDaemon, client: Client) -> None:
    daemon.accept("submit")
    daemon.answers["commands.wait"] = once(hang_up, once(hang_up, daemon._commands_wait))
    told: list[ClientError] = []

    assert client.wait_command("c1", lost=told.append)["state"] == "DONE"
    assert [type(error) for error in told] == [ConnectionLost]


def test_wait(daemon: FakeDaemon, client: Client) -> None:
    daemon.rows["rb"] = run_row("rb", wms_id="77")
    items: list[str] = []

    def end() -> None:
        daemon.until_watched()
        daemon.push("run.progress", RUN)
        daemon.push("run.state", RUN, state="SUCCEEDED", before="RUNNING")
        daemon.push("run.state", "rb", state="FAILED", before="RUNNING")

    thread = threading.Thread(target=end)
    thread.start()
    states = client.wait([RUN, "77"], seen=lambda item: items.append(item["kind"]))
    thread.join()

    assert states == {RUN: "SUCCEEDED", "rb": "FAILED"}
    assert items == ["snapshot", "run.progress", "run.state", "run.state"]


def test_wait_for_what_is_over_watches_nothing(daemon: FakeDaemon, client: Client) -> None:
    """It may be over for so long that the daemon could not watch it."""
    daemon.rows[RUN].state = "SUCCEEDED"

    assert client.wait([RUN]) == {RUN: "SUCCEEDED"}
    assert daemon.asked("watch") == []


def test_wait_asks_for_runs_that_a_snapshot_leaves_out(daemon: FakeDaemon, client: Client) -> None:
    daemon.rows["rb"] = run_row("rb", wms_id="77")

    def watch(params: messages.WatchParams) -> messages.WatchResult:
        daemon.rows[RUN].state = daemon.rows["rb"].state = "SUCCEEDED"  # between the status and the watch
        return messages.WatchResult(watch=1, seq=9, resumed=False, snapshot=[daemon.rows[RUN]])

    daemon.answers["watch"] = watch

    assert client.wait([RUN, "rb"]) == {RUN: "SUCCEEDED", "rb": "SUCCEEDED"}


def test_wait_in_vain(client: Client) -> None:
    with pytest.raises(TimedOut, match=f"not done in time: {RUN} RUNNING") as caught:
        client.wait([RUN], timeout_s=0.1)
    assert caught.value.fields == {"states": {RUN: "RUNNING"}}
