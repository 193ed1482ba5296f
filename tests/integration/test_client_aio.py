"""The asynchronous client: typed answers, many requests at once, watches on the same connection."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from bpsd import messages, wire
from bpsd.client import (
    AsyncClient,
    ClientError,
    ConnectionLost,
    NoDaemon,
    RemoteError,
    TimedOut,
    VersionMismatch,
    endpoint,
)
from bpsd.client.aio import Away, Back, Snapshot, WatchItem
from bpsd.client.aio_link import MOST_EVENTS, Subscription
from tests.integration.fake_daemon import NOW, FakeDaemon, Hangup, event, run_row

RUN = "rbcdfghjk"


@pytest.fixture
def daemon(socket_path: Path) -> Iterator[FakeDaemon]:
    """A daemon with one run."""
    fake = FakeDaemon(socket_path)
    fake.rows = {RUN: run_row(RUN)}
    with fake.running():
        yield fake


@pytest.fixture
def client(daemon: FakeDaemon) -> AsyncClient:
    """A client of it, to be entered by the test itself: it has a task group, which belongs to one task."""
    return AsyncClient(str(daemon.path), name="a test")


async def aside(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Do what blocks (the fake daemon does) outside the event loop."""
    return await anyio.to_thread.run_sync(partial(call, *args, **kwargs))


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_everything_that_it_can_say(daemon: FakeDaemon, client: AsyncClient) -> None:
    async with client:
        daemon.answers["logs"] = lambda p: messages.LogsResult(
            run=RUN, job=p.job, text="x", offset=0, next=1, size=1, path="/x"
        )
        daemon.answers["admin"] = lambda _: messages.AdminResult(done=["read"])
        answers = [
            await client.ping(),
            await client.version(),
            await client.health(),
            await client.backends("here", fields=True),
            await client.backend_ping(pass_thru="x"),
            await client.list_runs(messages.ListParams(active=True, state=["RUNNING"])),
            await client.report(),
            await client.report(RUN),
            await client.status(RUN, backend="here"),
            await client.jobs(RUN),
            await client.holds(),
            await client.logs(messages.LogsParams(run=RUN, job="isr_1")),
            await client.events(),
            await client.refresh(timeout_s=5),
            await client.validate_document(b"name: x\n"),
            await client.submit_document(b"name: x\n", token="a" * 20, expires_s=60),
            await client.cancel(RUN, backend="here"),
            await client.restart(RUN),
            await client.hold(RUN),
            await client.release(RUN, dry_run=True, label="isr", group="h1"),
            await client.mute(RUN),
            await client.mute(RUN, muted=False),
            await client.commands(),
            await client.wait_command("c1"),
            await client.commands_resolve("c1", "done", wms_id="1234.0"),
            await client.admin("check"),
        ]
        daemon.answers["unwatch"] = lambda _: messages.PingResult(time=NOW)
        async with client.watch([RUN], backend=["here"], jobs=True):
            pass

        assert all(isinstance(answer, messages.Result) for answer in answers)
        assert {method for method, _ in daemon.requests} == set(wire.METHODS)
        assert daemon.connections_made == 1


async def test_answers_are_typed(client: AsyncClient) -> None:
    async with client:
        status = await client.status(RUN)
        report = await client.report(RUN)

        assert (status.state, status.code) == ("RUNNING", 15)
        assert report.runs[0].counts == {"SUCCEEDED": 4, "RUNNING": 2, "UNREADY": 4}
        assert report.backends["here"].state == "up"


async def test_errors(client: AsyncClient) -> None:
    async with client:
        with pytest.raises(RemoteError, match="no run is called r9") as caught:
            await client.status("r9")

        assert (caught.value.code, caught.value.fields) == ("run_not_found", {"nearest": [RUN]})
        await client.ping()


async def test_requests_are_in_flight_together(socket_path: Path) -> None:
    """A daemon that answers three requests in the wrong order, and only when it has all of them."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            await stream.send(FakeDaemon(socket_path)._hello())
            lines: list[bytes] = []
            buffer = b""
            while len(lines) < 3:
                buffer += await stream.receive()
                *whole, buffer = buffer.split(b"\n")
                lines += whole
            for line in reversed(lines):
                request = json.loads(line)
                result: Any = {"time": 4.0} if request["method"] == "ping" else {"events": []}
                await stream.send(
                    json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode() + b"\n"
                )

    answers: dict[str, Any] = {}

    async def ask(name: str, call: Any) -> None:
        answers[name] = await call()

    listener = await anyio.create_unix_listener(socket_path)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        async with AsyncClient(str(socket_path)) as client, anyio.create_task_group() as asking:
            asking.start_soon(ask, "first", client.ping)
            asking.start_soon(ask, "second", client.events)
            asking.start_soon(ask, "third", client.ping)
        group.cancel_scope.cancel()

    assert answers == {
        "first": messages.PingResult(time=4.0),
        "second": messages.EventsResult(events=[]),
        "third": messages.PingResult(time=4.0),
    }


async def test_reading_goes_on_after_a_restart(daemon: FakeDaemon, client: AsyncClient) -> None:
    async with client:
        await aside(daemon.stop)
        await aside(daemon.start)

        assert (await client.ping()).time == NOW
        assert daemon.connections_made == 2


async def test_no_answer_in_time(daemon: FakeDaemon, client: AsyncClient) -> None:
    def slow(params: Any) -> messages.PingResult:
        daemon.until(lambda: len(daemon.requests) > 1, "a second request")
        return daemon._ping(params)

    daemon.answers["ping"] = slow
    async with client:
        client.timeout_s = 0.2
        with pytest.raises(TimedOut, match=r"ping: no answer from .* within 0.2 s"):
            await client.ping()
        client.timeout_s = 20

        async with AsyncClient(str(daemon.path)) as other:
            await other.version()

        assert (await client.status(RUN)).id == RUN  # the late answer to the ping comes first, and is not taken for it


async def test_hanging_up_is_an_error_for_all_who_wait(daemon: FakeDaemon, client: AsyncClient) -> None:
    async with client:

        def hang_up(params: Any) -> Any:
            raise Hangup

        daemon.answers["ping"] = hang_up

        with pytest.raises(ConnectionLost):
            await client.ping()


async def test_nobody_there(socket_path: Path) -> None:
    with pytest.raises(NoDaemon, match="bpsd serve"):
        async with AsyncClient(str(socket_path)):
            pytest.fail("there is nobody")


async def test_another_protocol(daemon: FakeDaemon) -> None:
    daemon.protocol = 99

    with pytest.raises(VersionMismatch):
        async with AsyncClient(str(daemon.path)):
            pytest.fail("it speaks another language")


async def test_somebody_else(daemon: FakeDaemon) -> None:
    daemon.greeting = b"220 mail\r\n"

    with pytest.raises(ClientError, match="is not bpsd"):
        async with AsyncClient(str(daemon.path)):
            pytest.fail("it is a mail server")


async def test_garbage_later(daemon: FakeDaemon) -> None:
    daemon.greeting = daemon._hello() + b"garbage\n"

    async with AsyncClient(str(daemon.path)) as client:
        with pytest.raises(ClientError, match="is no message") as caught:
            await client.ping()
    assert caught.value.code == "protocol_error"


async def test_an_error_in_the_block_is_the_callers(daemon: FakeDaemon) -> None:
    with pytest.raises(ZeroDivisionError):  # itself, not in a group
        async with AsyncClient(str(daemon.path)):
            _ = 1 / 0


async def test_a_cancelled_block_ends(daemon: FakeDaemon) -> None:
    with anyio.fail_after(20), anyio.move_on_after(0.1) as scope:
        async with AsyncClient(str(daemon.path)) as client, client.watch() as watch:
            async for _ in watch:
                pass
    assert scope.cancelled_caught


async def test_outside_of_the_block() -> None:
    with pytest.raises(RuntimeError, match="outside of `async with`"):
        await AsyncClient("/tmp/nobody").ping()


async def test_a_request_over_the_limit_is_not_sent(daemon: FakeDaemon, client: AsyncClient) -> None:
    async with client:
        with pytest.raises(ClientError, match="a message holds at most"):
            await client.status("x" * wire.MAX_MESSAGE_BYTES)
        assert daemon.requests == []


# -- once --------------------------------------------------------------------------------------------------------------


async def test_documents_go_in_pieces_through_a_crash(daemon: FakeDaemon, client: AsyncClient) -> None:
    async with client:
        data = b"x" * (2 * endpoint.BLOB_PIECE_BYTES + 1)
        crashes: list[int] = []

        def put(params: messages.BlobPut) -> messages.BlobPutResult:
            answer = daemon._blob_put(params)
            if answer.have and not crashes:
                crashes.append(answer.have)
                raise Hangup
            return answer

        daemon.answers["blob.put"] = put
        told: list[int] = []

        digest = await client.put_document(data, progress=lambda have, _: told.append(have))

        assert digest == hashlib.sha256(data).hexdigest()
        assert daemon.blobs[digest] == data
        assert told == sorted(set(told))
        assert crashes


async def test_submit_and_cancel_happen_once(daemon: FakeDaemon, client: AsyncClient) -> None:
    async with client:

        def crashing(method: str) -> Any:
            original = getattr(daemon, f"_{method}")

            def answer(params: Any) -> Any:
                row = original(params)
                if len(daemon.asked(method)) == 1:
                    raise Hangup  # taken, and nobody was told
                return row

            return answer

        daemon.answers["submit"], daemon.answers["cancel"] = crashing("submit"), crashing("cancel")

        submitted = await client.submit_document(b"name: x\n")
        cancelled = await client.cancel(RUN)

        assert submitted.created is False
        assert cancelled.id == "c2"
        assert [row.verb for row in daemon.commands.values()] == ["submit", "cancel"]


# -- watching ----------------------------------------------------------------------------------------------------------


async def take(watch: AsyncIterator[WatchItem]) -> WatchItem:
    with anyio.fail_after(20):
        return await anext(watch)


async def test_watch_beside_requests(daemon: FakeDaemon, client: AsyncClient) -> None:
    async with client:
        daemon.answers["unwatch"] = lambda _: messages.PingResult(time=NOW)
        async with client.watch([RUN]) as watch:
            first = await take(watch)
            await aside(daemon.push, "run.state", RUN, state="HELD", before="RUNNING")
            assert (await client.status(RUN)).state == "HELD"
            second = await take(watch)

        assert isinstance(first, Snapshot)
        assert first.runs[0].id == RUN
        assert isinstance(second, messages.Event)
        assert (second.kind, second.data["state"]) == ("run.state", "HELD")
        assert [params.watch for params in daemon.asked("unwatch")] == [watch._id]
        assert daemon.connections_made == 1


async def test_watch_through_a_crash(daemon: FakeDaemon, client: AsyncClient) -> None:
    async with client, client.watch() as watch:
        await take(watch)
        await aside(daemon.stop)
        assert isinstance(await take(watch), Away)
        assert repr(watch) == "<AsyncWatch of all runs, daemon away>"
        await aside(daemon.push, "run.state", RUN, state="HELD", before="RUNNING")
        await aside(daemon.start)

        assert isinstance(await take(watch), Back)
        missed = await take(watch)
        assert isinstance(missed, messages.Event)
        assert missed.seq == 8
        await aside(daemon.stop)  # so that ending the watch finds nobody


async def test_a_crash_before_the_answer_to_the_watch(daemon: FakeDaemon, client: AsyncClient) -> None:
    def die(params: Any) -> Any:
        del daemon.answers["watch"]
        raise Hangup

    daemon.answers["watch"] = die
    daemon.answers["unwatch"] = lambda _: messages.PingResult(time=NOW)
    async with client, client.watch() as watch:
        assert [type(await take(watch)) for _ in range(3)] == [Away, Back, Snapshot]


@pytest.mark.parametrize(("resumes", "kind"), [(True, messages.Event), (False, Snapshot)])
async def test_dropped_events_are_asked_for_again(
    daemon: FakeDaemon, client: AsyncClient, *, resumes: bool, kind: type
) -> None:
    daemon.resumes = resumes
    async with client:
        daemon.answers["unwatch"] = lambda _: messages.PingResult(time=NOW)
        async with client.watch() as watch:
            await take(watch)
            await aside(daemon.push, "run.progress", RUN, lost=1)

            assert isinstance(await take(watch), kind)
            await aside(daemon.push, "run.state", RUN, state="HELD", before="RUNNING")
            after = await take(watch)
            assert isinstance(after, messages.Event)
            assert after.kind == "run.state"


def test_a_slow_reader_holds_a_limited_number_of_events() -> None:
    inbox = Subscription()
    for seq in range(MOST_EVENTS + 5):
        inbox.put(messages.WatchEvent(watch=1, event=event(seq, "run.progress", RUN)))

    assert inbox.lost
    assert not inbox.events


async def test_wait(daemon: FakeDaemon, client: AsyncClient) -> None:
    async with client:
        daemon.rows["rb"] = run_row("rb", wms_id="77")
        daemon.answers["unwatch"] = lambda _: messages.PingResult(time=NOW)

        async def end() -> None:
            await aside(daemon.until_watched)
            await aside(daemon.push, "run.state", RUN, state="SUCCEEDED", before="RUNNING")
            await aside(daemon.push, "run.state", "rb", state="FAILED", before="RUNNING")

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(end)
                states = await client.wait([RUN, "77"])

        assert states == {RUN: "SUCCEEDED", "rb": "FAILED"}
        assert await client.wait([RUN]) == {RUN: "SUCCEEDED"}
        assert len(daemon.asked("watch")) == 1
