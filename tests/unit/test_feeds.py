"""An event is encoded once and filtered once per filter, however many clients watch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import anyio
import pytest

from bpsd import wire
from bpsd.api import feeds as module
from bpsd.api.feeds import Feeds, Subject, Watcher
from bpsd.cache import Cache
from bpsd.messages import Event
from bpsd.models import WmsStates
from bpsd.peers import Peer, Policy
from bpsd.protocol import event_line
from bpsd.runs import RunRecord
from bpsd.server import Connection
from tests.unit.test_cache import make_cache, polled, seen

OWNER = Peer(pid=0, uid=1, gid=1, groups=(1,), user="ann")
POLICY = Policy(owner_uid=1, others=frozenset({"read"}))
EVERYTHING = Subject(frozenset(), frozenset(), None, jobs=False, reader=OWNER)


class FakeConnection:
    """Keeps what it is sent; refuses it while ``full``."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.full = False

    def send_lines(self, lines: bytes, count: int) -> bool:
        assert lines.count(b"\n") == count
        if not self.full:
            self.blocks.append(lines)
        return not self.full

    @property
    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line)["params"] for line in b"".join(self.blocks).splitlines()]


def watcher(connection: FakeConnection, number: int = 1) -> Watcher:
    return Watcher(number, cast("Connection", connection))


def feeds_of(cache: Cache, uids: dict[str, int] | None = None) -> Feeds:
    def is_mine(record: RunRecord, uid: int, user: str) -> bool:
        return (uids or {}).get(record.run_id) == uid

    return Feeds(cache, is_mine, lambda: POLICY)


async def poll(cache: Cache, state: WmsStates, *, runs: Sequence[int] = (1,), jobs: int = 0) -> None:
    await cache.apply_poll("b", polled(*(seen(state, jobs=jobs, wms_id=str(n)) for n in runs)), 1.0)
    await asyncio.sleep(2 * module.GATHER_S)


async def until(reached: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not reached():  # noqa: ASYNC110
            await anyio.sleep(0.01)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the events that were encoded."""
    kinds: list[str] = []
    real = module._encode

    def encode(event: Event, kind: str, data: dict[str, Any]) -> bytes:
        kinds.append(kind)
        return real(event, kind, data)

    monkeypatch.setattr(module, "_encode", encode)
    return kinds


async def test_an_event_is_encoded_once_and_written_once_to_each(encoded: list[str]) -> None:
    cache = make_cache([])
    feeds = feeds_of(cache)
    clients = [FakeConnection() for _ in range(50)]
    for client in clients:
        feeds.join(EVERYTHING, watcher(client))

    await poll(cache, WmsStates.RUNNING, runs=range(1, 21))

    assert len(encoded) == cache.seq > 20
    assert [told["event"]["seq"] for told in clients[0].told] == list(range(1, cache.seq + 1))
    assert all(client.blocks == clients[0].blocks for client in clients)
    assert all(client.blocks[-1] is clients[0].blocks[-1] for client in clients)  # the very same bytes
    assert len(clients[0].blocks) < 5


async def test_a_filter_is_asked_once_however_many_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache([])
    feeds = feeds_of(cache)
    asked = 0
    real = Subject.holds

    def holds(subject: Subject, *args: Any) -> bool:
        nonlocal asked
        asked += 1
        return real(subject, *args)

    monkeypatch.setattr(Subject, "holds", holds)
    for _ in range(30):
        feeds.join(EVERYTHING, watcher(FakeConnection()))
    for run in range(100, 400):  # each watches a run of its own: no event about another run gets there
        feeds.join(EVERYTHING._replace(runs=frozenset({f"r{run:08d}"})), watcher(FakeConnection()))

    await poll(cache, WmsStates.RUNNING)

    assert asked == cache.seq


async def test_each_gets_what_it_asked_for() -> None:
    cache = make_cache([])
    feeds = feeds_of(cache, {"r00000002": 7})
    subjects = {
        "all": EVERYTHING,
        "one": EVERYTHING._replace(runs=frozenset({"r00000001"})),
        "mine": EVERYTHING._replace(mine=(7, "seven")),
        "elsewhere": EVERYTHING._replace(backends=frozenset({"other"})),
        "jobs": EVERYTHING._replace(jobs=True),
    }
    clients = {name: FakeConnection() for name in subjects}
    for number, (name, subject) in enumerate(subjects.items(), start=1):
        feeds.join(subject, watcher(clients[name], number))

    await poll(cache, WmsStates.RUNNING, runs=(1, 2), jobs=2)

    runs = {name: {told["event"]["run"] for told in client.told} for name, client in clients.items()}
    both = {"r00000001", "r00000002"}
    assert runs == {"all": both, "one": {"r00000001"}, "mine": {"r00000002"}, "elsewhere": set(), "jobs": both}
    assert {told["watch"] for told in clients["jobs"].told} == {5}
    assert [name for name, c in clients.items() if "job.state" in {told["event"]["kind"] for told in c.told}] == [
        "jobs"
    ]
    assert clients["one"].told[0]["event"]["data"]["row"]["id"] == "r00000001"


async def test_a_new_watcher_gets_nothing_from_before_and_one_that_left_nothing_more() -> None:
    cache = make_cache([])
    feeds = feeds_of(cache)
    first, second = FakeConnection(), FakeConnection()
    leave = feeds.join(EVERYTHING, watcher(first))
    await cache.announce("daemon.start")
    feeds.join(EVERYTHING, watcher(second))  # in the same turn of the loop
    leave()
    await cache.announce("daemon.reload")
    await asyncio.sleep(2 * module.GATHER_S)

    assert [told["event"]["kind"] for told in first.told] == ["daemon.start"]
    assert [told["event"]["kind"] for told in second.told] == ["daemon.reload"]


async def test_the_last_to_leave_ends_the_work(encoded: list[str]) -> None:
    cache = make_cache([])
    feeds = feeds_of(cache)
    leave = [feeds.join(EVERYTHING._replace(runs=frozenset({"r1"})), watcher(FakeConnection())) for _ in range(2)]
    for end in leave:
        end()
        end()
    await poll(cache, WmsStates.RUNNING)

    assert encoded == []
    assert cache.events._listeners == []
    assert feeds._of_run == {}


async def test_a_slow_client_hears_of_its_loss_and_the_others_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOSS_REPORT_S", 0.01)
    cache = make_cache([])
    feeds = feeds_of(cache)
    slow, quick = FakeConnection(), FakeConnection()
    feeds.join(EVERYTHING, watcher(slow))
    feeds.join(EVERYTHING, watcher(quick))
    slow.full = True
    await poll(cache, WmsStates.RUNNING)
    lost = len(quick.told)
    slow.full = False
    await until(lambda: slow.blocks)
    await cache.announce("daemon.reload")
    await asyncio.sleep(2 * module.GATHER_S)

    assert lost > 0
    assert [(t["event"]["kind"], t["lost"]) for t in slow.told] == [("watch.lost", lost), ("daemon.reload", 0)]
    assert [t["lost"] for t in quick.told] == [0] * (lost + 1)


async def test_the_next_event_tells_of_a_loss_too() -> None:
    cache = make_cache([])
    feeds = feeds_of(cache)
    slow = FakeConnection()
    feeds.join(EVERYTHING, watcher(slow))
    slow.full = True
    await poll(cache, WmsStates.RUNNING)
    lost = cache.seq
    slow.full = False
    await cache.announce("daemon.reload")
    await asyncio.sleep(2 * module.GATHER_S)

    assert [(t["event"]["kind"], t["lost"]) for t in slow.told] == [("daemon.reload", lost)]


async def test_an_event_longer_than_a_message_is_lost_and_the_rest_comes() -> None:
    cache = make_cache([])
    feeds = feeds_of(cache)
    client = FakeConnection()
    feeds.join(EVERYTHING, watcher(client))
    await cache.announce("daemon.start")
    await cache.announce("daemon.storage", what="x" * wire.MAX_MESSAGE_BYTES)
    await cache.announce("daemon.reload")
    await asyncio.sleep(2 * module.GATHER_S)
    await cache.announce("daemon.reload")
    await asyncio.sleep(2 * module.GATHER_S)

    assert [(t["event"]["seq"], t["lost"]) for t in client.told] == [(1, 0), (3, 1), (4, 0)]
    assert event_line(1, b"x" * wire.MAX_MESSAGE_BYTES, 0) is None


async def test_what_was_missed_comes_in_slices_and_before_what_happens_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SLICE_S", 0.0005)
    cache = make_cache([])
    for _ in range(500):
        await cache.announce("daemon.reload")
    missed = cache.events.after(0, jobs=False)
    assert missed is not None
    feeds = feeds_of(cache)
    client = FakeConnection()
    back = watcher(client)
    feeds.join(EVERYTHING, back)

    feeds.replay(EVERYTHING, back, missed)
    await cache.announce("daemon.storage")
    await until(lambda: len(client.told) == 501)

    assert [told["event"]["seq"] for told in client.told] == list(range(1, 502))
    assert len(client.blocks) > 2
