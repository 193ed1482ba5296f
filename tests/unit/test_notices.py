"""What is told of what happens, and what of it is told as one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.messages import Event
from bpsd.models import WmsStates
from bpsd.notices import (
    MAX_EXAMPLES,
    MAX_GROUPS,
    Digest,
    Memory,
    Notice,
    Remembered,
    Told,
    cause_of,
    compose,
    notices_of,
)
from bpsd.runs import RunRecord

DAY_S = 86_400.0


def record(run_id: str = "rbbbbbbbb", **fields: Any) -> RunRecord:
    defaults = {"backend": "usdf", "wms_id": "7", "run": "u/her/dr1", "operator": "her", "state": WmsStates.RUNNING}
    return RunRecord(run_id=run_id, **{**defaults, **fields})


def run_event(state: str, before: str = "RUNNING", *, source: str = "log", time: float = 1.0, seq: int = 1) -> Event:
    data = {"state": state, "before": before, "source": source}
    return Event(seq=seq, time=time, kind="run.state", backend="usdf", run="rbbbbbbbb", data=data)


def backend_event(state: str, error: str = "", time: float = 1.0) -> Event:
    return Event(seq=1, time=time, kind="backend.state", backend="usdf", data={"state": state, "error": error})


def told(event: Event, of: RunRecord | None = None, codes: Any = None) -> list[tuple[str, bool, str]]:
    return [(n.kind, n.recovered, n.cause) for n in notices_of(event, of, codes or {})]


@pytest.mark.parametrize(
    ("state", "before", "expected"),
    [
        ("FAILED", "RUNNING", [("failed", False, "isr: exit code 1")]),
        ("SUCCEEDED", "RUNNING", [("failed", True, ""), ("finished", False, "")]),
        ("HELD", "RUNNING", [("held", False, "out of memory: # MB")]),
        ("RUNNING", "HELD", [("held", True, "")]),
        ("RUNNING", "READY", []),
        ("RUNNING", "UNKNOWN", [("stale", True, "")]),
        ("DELETED", "RUNNING", []),
        ("UNKNOWN", "RUNNING", []),
    ],
)
def test_changes_of_a_run(state: str, before: str, expected: list[tuple[str, bool, str]]) -> None:
    run = record(note="out of memory: 4096 MB")

    assert told(run_event(state, before), run, {"isr": {"1": 3}}) == expected
    assert told(run_event(state, before), record(muted=True), {"isr": {"1": 3}}) == []
    assert told(run_event(state, before), None) == []


def test_a_run_that_vanished_is_stale_and_a_failed_poll_is_not() -> None:
    run = record(note="not in queue, history, files")

    assert told(run_event("UNKNOWN", source="absence"), run) == [("stale", False, "not in queue, history, files")]
    assert told(Event(seq=1, time=1.0, kind="run.attempt", run="rbbbbbbbb"), run) == []


def test_changes_of_a_backend() -> None:
    error = "cannot reach login12.example.org after 61.5 s"

    assert told(backend_event("down", error)) == [
        ("backend_down", False, "down: cannot reach login12.example.org after # s")
    ]
    assert told(backend_event("auth", "key refused")) == [("backend_down", False, "auth: key refused")]
    assert told(backend_event("up")) == [("backend_down", True, "")]
    assert told(backend_event("starting")) == []


@pytest.mark.parametrize(
    ("note", "codes", "cause"),
    [
        ("1 of 5 jobs failed: isr_2", {"isr": {"1": 1}}, "isr: exit code 1"),
        ("", {"isr": {"137": 1, "2": 40}}, "isr: exit code 2, signal 9 (SIGKILL)"),
        ("", {name: {"1": 1} for name in "abcd"}, "a: exit code 1; b: exit code 1; c: exit code 1; ..."),
        (
            "2 of 9 jobs failed",
            {"isr": {"walltime of 2 s exceeded": 1, "3": 1}},
            "isr: exit code 3, walltime of 2 s exceeded",
        ),
        ("no room in /scratch/her/0123 (4 of 17 jobs)", {}, "no room in # (# of # jobs)"),
        ("", {"isr": {}}, ""),
    ],
)
def test_what_failed_alike_has_the_same_cause(note: str, codes: dict[str, dict[str, int]], cause: str) -> None:
    assert cause_of(note, codes) == cause


def notice(subject: str = "run r1", kind: Any = "failed", cause: str = "isr: exit code 1", **fields: Any) -> Notice:
    run = {"id": subject.split()[1], "name": "n", "operator": "her"} if subject.startswith("run") else None
    return Notice(kind=kind, subject=subject, backend="usdf", cause=cause, run=run, **{"time": 1.0, **fields})


def offer(digest: Digest, memory: Memory, one: Notice) -> None:
    told = memory.outcome(one, DAY_S)
    if told is not None:
        digest.add(one, told)


def test_500_failures_of_one_kind_are_one_group_with_some_examples() -> None:
    memory, digest = Memory(), Digest()
    for number in range(500):
        failed = notice(f"run r{number}", time=float(number), seq=number)
        offer(digest, memory, failed)
    other = notice("run rx", cause="coadd: exit code 9")
    offer(digest, memory, other)

    message = compose(digest, "host", 1000.0)

    assert [(g.outcome, g.count, len(g.runs)) for g in message.groups] == [
        ("first", 500, MAX_EXAMPLES),
        ("first", 1, 1),
    ]
    assert message.subject == "bpsd on host: 500 runs failed on usdf, and 1 more"
    assert "500 runs failed on usdf: isr: exit code 1\n  r0 n (her)\n" in message.text
    assert "... and 490 more" in message.text
    assert digest.first_seq == 0
    assert msgspec.json.decode(msgspec.json.encode(message))["groups"][0]["count"] == 500


def test_first_again_and_recovered() -> None:
    memory = Memory()

    def outcome(time: float, *, recovered: bool = False) -> str | None:
        result = memory.outcome(notice("backend usdf", "backend_down", "down", time=time, recovered=recovered), DAY_S)
        return result and result[0]

    assert outcome(0.0, recovered=True) is None  # nobody was told that it was down
    assert outcome(1.0) == "first"
    assert outcome(2.0) is None  # it is still down
    assert outcome(3.0, recovered=True) == "recovered"
    assert outcome(4.0, recovered=True) is None
    assert outcome(5.0) == "again"
    assert outcome(6.0, recovered=True) == "recovered"
    assert outcome(-1e6) == "again"  # the clock was set back
    assert outcome(-1e6, recovered=True) == "recovered"
    assert outcome(2 * DAY_S) == "first"


def test_a_run_that_fails_once_more_is_told_once_more() -> None:
    memory = Memory()

    assert [memory.outcome(notice(), DAY_S) for _ in range(2)] == [
        ("first", "isr: exit code 1", False),
        ("again", "isr: exit code 1", True),
    ]
    assert memory.outcome(notice(cause="", recovered=True), DAY_S) == Told("recovered", "isr: exit code 1")


def test_what_was_told_is_remembered_over_a_restart() -> None:
    memory = Memory()
    memory.outcome(notice("backend usdf", "stale", ""), DAY_S)

    again = Memory(msgspec.json.decode(msgspec.json.encode(memory.dump()), type=Remembered))

    assert again.open_subjects("stale") == ["backend usdf"]
    assert again.open_subjects("failed") == []
    assert again.outcome(notice("backend usdf", "stale", "", recovered=True), DAY_S) == Told("recovered", "")


def test_what_is_over_before_it_was_told_is_not_told() -> None:
    memory, digest = Memory(), Digest()
    for one in (notice("run r1"), notice("run r2"), notice("run r1", cause="", recovered=True)):
        offer(digest, memory, one)

    assert [(g.count, [run["id"] for run in g.runs]) for g in digest.groups()] == [(1, ["r2"])]
    offer(digest, memory, notice("run r2", cause="", recovered=True))
    assert not digest


def test_a_digest_is_bounded() -> None:
    digest = Digest()
    for number in range(MAX_GROUPS + 7):
        digest.add(notice(f"run r{number}", cause="x" * number), Told("first", "x" * number, open_before=False))

    message = compose(digest, "host", 1.0)

    assert (len(message.groups), message.omitted) == (MAX_GROUPS, 7)
    assert "7 more of other causes" in message.text


@given(st.lists(st.tuples(st.sampled_from(["down", "auth", "up"]), st.booleans()), max_size=30))
def test_who_follows_the_messages_knows_how_it_is(changes: list[tuple[str, bool]]) -> None:
    """Whatever happens between two messages: what they say of a backend is true when they are sent."""
    memory, digest, believed = Memory(), Digest(), "up"
    for number, (state, send) in enumerate(changes):
        for one in notices_of(backend_event(state, time=float(number)), None, {}):
            offer(digest, memory, one)
        if send and digest:
            groups = compose(digest, "host", 0.0).groups
            believed = "up" if groups[-1].outcome == "recovered" and len(groups) == 1 else believed
            if any(group.outcome != "recovered" for group in groups):
                believed = "down"
            digest = Digest()
        if send:
            assert believed == ("up" if state == "up" else "down")


@given(st.text(), st.dictionaries(st.text(), st.dictionaries(st.text(), st.integers(1, 9), max_size=3), max_size=5))
def test_whatever_comes_from_outside_makes_a_message(text: str, codes: dict[str, dict[str, int]]) -> None:
    run = record(run=text or None, note=text, operator=text, owner=text, payload=text)
    digest, memory = Digest(), Memory()
    for state in ("FAILED", "HELD", "SUCCEEDED"):
        for one in notices_of(run_event(state), run, codes):
            offer(digest, memory, one)

    message = compose(digest, "host", 1.0)

    assert "\n" not in message.subject
    assert msgspec.json.encode(message)
