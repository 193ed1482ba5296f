"""Events are numbered once and for all, and a watcher that comes back gets all of them or learns that it cannot."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd import events
from bpsd.events import NUMBERS_PER_START, EventBus, first_number
from bpsd.messages import Event
from bpsd.models import JobObservation, WmsStates


def bus(seq: int = 0) -> EventBus:
    made = EventBus(lambda: 1.0)
    made.begin(seq)
    return made


def jobs(count: int) -> list[JobObservation]:
    return [JobObservation(name=f"j{n}", label="a", state=WmsStates.RUNNING) for n in range(count)]


def emit(made: EventBus, *kinds: str, moved: Sequence[JobObservation] = ()) -> None:
    for kind in kinds:
        made.emit(kind, {}, "b", "r1", moved if kind == "job.state" else ())


def numbers(made: EventBus, seq: int, *, jobs: bool = False) -> list[int] | None:
    missed = made.after(seq, jobs=jobs)
    return None if missed is None else [each.event.seq for each in missed]


def test_an_event_has_a_number_of_its_own_and_so_has_the_event_of_its_jobs() -> None:
    made, heard = bus(), list[tuple[int, str, int]]()
    made.listen(lambda event, moved: heard.append((event.seq, event.kind, len(moved))))

    emit(made, "run.state", "job.state", "run.state", moved=jobs(3))

    assert heard == [(1, "run.state", 0), (2, "job.state", 3), (3, "run.state", 0)]
    missed = made.after(1, jobs=True)
    assert missed is not None
    assert [len(each.moved) for each in missed] == [3, 0]


def test_a_number_from_before_the_start_or_from_the_future_is_not_resumed() -> None:
    made = bus(seq=2 * NUMBERS_PER_START)
    start = made.seq
    emit(made, "run.state", "run.state")

    assert numbers(made, start) == [start + 1, start + 2]
    assert numbers(made, start + 2) == []
    assert numbers(made, start + 3) is None
    assert numbers(made, start - 1) is None
    assert numbers(made, NUMBERS_PER_START + 7) is None


def test_who_wants_jobs_resumes_only_if_all_changed_jobs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "JOBS_KEPT", 5)
    made = bus()
    emit(made, "job.state", "run.state", "job.state", moved=jobs(3))  # 6 jobs: the first event loses its jobs

    assert numbers(made, 0) == [1, 2, 3]
    assert numbers(made, 0, jobs=True) is None
    assert numbers(made, 1, jobs=True) == [2, 3]


@given(st.lists(st.integers(min_value=0, max_value=4), max_size=40), st.integers(min_value=0, max_value=45))
def test_what_is_resumed_is_whole(moved: list[int], since: int) -> None:
    """Whatever is dropped meanwhile: all events after a number, with all their jobs, or none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "EVENTS_KEPT", 10)
        patch.setattr(events, "JOBS_KEPT", 12)
        made, heard = bus(), list[tuple[Event, int]]()
        made.listen(lambda event, of: heard.append((event, len(of))))
        for count in moved:
            emit(made, "job.state" if count else "run.state", moved=jobs(count))

    for wanted in (False, True):
        missed = made.after(since, jobs=wanted)
        if missed is None:
            continue
        later = [(event.seq, count) for event, count in heard if event.seq > since]
        assert [each.event.seq for each in missed] == [seq for seq, _ in later]
        if wanted:
            assert [len(each.moved) for each in missed] == [count for _, count in later]


def test_each_start_counts_from_numbers_that_no_start_before_used() -> None:
    used = 0
    for starts in (1, 2, 3):
        first = first_number(starts, used)
        assert first > used
        used = first + 12_345
    assert first_number(1, used) > used  # the journal was restored from an older copy
    assert first_number(None, used) > used  # the disk is full
    assert first_number(2, 0) == 2 * NUMBERS_PER_START  # the store was begun anew
