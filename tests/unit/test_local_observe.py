"""What a log says of a run, to a driver that takes over and to the daemon, however the log is cut into slices."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.jobtable import JobTable
from bpsd.models import RunObservation, WmsStates
from bpsd.reducer import JOURNAL_SOURCE
from bpsd.runs import RunRecord
from bpsd.workflow import RunAttributes
from bpsd_adapters.local.events import Begin, End, Ended, Event, Held, Intent, JobRef, JobState, Started, States
from bpsd_adapters.local.history import OpenJob, fold, may_have_run
from bpsd_adapters.local.layout import Meta, RunFolder
from bpsd_adapters.local.observe import Phase, RunCursor, Teller, driver_died
from bpsd_adapters.local.processes import GONE, Process
from bpsd_adapters.runlog import Position

META = Meta(
    wms_id="7",
    token="t0",
    name="u/op/run",
    run=RunAttributes(project="dev", operator="op"),
    job_count=3,
    run_summary="a:1;b:1;c:1",
    created=1.0,
)
S = WmsStates


def ref(node: int, attempt: int = 1) -> JobRef:
    return JobRef(node, "abc"[node], "abc"[node], attempt)


def state(node: int, what: WmsStates, attempt: int = 1) -> JobState:
    return JobState(node, "abc"[node], "abc"[node], attempt, int(what))


def begin(attempt: int, time: float) -> Begin:
    return Begin(attempt=attempt, pid=100 + attempt, start=5, boot="boot", time=time)


def started(node: int, time: float, attempt: int = 1) -> Started:
    return Started(job=ref(node, attempt), time=time, pid=1000 + node, start=9)


def ended(node: int, what: WmsStates, time: float, attempt: int = 1, code: int | None = None, **more: object) -> Ended:
    return Ended(job=ref(node, attempt), time=time, state=int(what), exit_code=code, **more)  # type: ignore[arg-type]


TWO_ATTEMPTS: list[Event] = [
    begin(1, 10.0),
    States(time=10.0, jobs=(state(0, S.READY), state(1, S.UNREADY), state(2, S.UNREADY))),
    Intent(jobs=(ref(0),)),
    started(0, 11.0),
    ended(0, S.FAILED, 12.0, code=3, again=True, note="once"),
    States(time=12.0, jobs=(state(0, S.READY, 2),)),
    Intent(jobs=(ref(0, 2),)),
    started(0, 13.0, 2),
    Held(time=13.5, held=True),
    ended(0, S.SUCCEEDED, 14.0, 2, code=0),
    States(time=14.0, jobs=(state(1, S.READY),)),
    Held(time=14.5, held=False),
    Intent(jobs=(ref(1),)),
    started(1, 15.0),
    ended(1, S.FAILED, 16.0, code=-9, note="killed"),
    States(time=16.0, jobs=(state(2, S.PRUNED),)),
    End(attempt=1, time=17.0, state=int(S.FAILED), note="1 of 3 jobs failed"),
    begin(2, 20.0),
    States(time=20.0, jobs=(state(1, S.READY, 2), state(2, S.UNREADY))),
    Intent(jobs=(ref(1, 2),)),
    started(1, 21.0, 2),
    ended(1, S.SUCCEEDED, 22.0, 2, code=0),
    States(time=22.0, jobs=(state(2, S.READY),)),
    Intent(jobs=(ref(2),)),
    started(2, 23.0),
    ended(2, S.SUCCEEDED, 24.0, code=0),
    End(attempt=2, time=25.0, state=int(S.SUCCEEDED)),
]


class Daemon:
    """A row and its jobs, folded as the daemon folds them."""

    def __init__(self) -> None:
        self.run = RunRecord(run_id="r1", backend="here", wms_id="7", source=JOURNAL_SOURCE)
        self.jobs = JobTable()
        self.cursor = RunCursor()
        self.began = 100.0

    def hear(self, observations: list[RunObservation]) -> None:
        self.began += 1
        for seen in observations:
            self.run.fold(seen, self.began, self.jobs, 1000)

    def read(self, events: list[Event]) -> None:
        teller = Teller(META, "/runs/t0", "op", self.cursor)
        self.hear(teller.tell(events))
        # The cursor goes to the daemon's store and back.
        position = Position(1, "head", self.cursor.offset + len(events))
        self.cursor = RunCursor.parsed(teller.cursor(position).text())

    def rows(self) -> list[tuple[object, ...]]:
        rows = [self.jobs.row(n) for n in range(len(self.jobs))]
        return [(r.name, r.state, r.attempt, r.exit_code, r.started_at, r.ended_at, r.note) for r in rows]


@given(st.sets(st.integers(1, len(TWO_ATTEMPTS) - 1)))
def test_slices_say_what_the_whole_says(cuts: set[int]) -> None:
    whole, sliced = Daemon(), Daemon()
    whole.read(TWO_ATTEMPTS)
    edges = [0, *sorted(cuts), len(TWO_ATTEMPTS)]
    for start, end in pairwise(edges):
        sliced.read(TWO_ATTEMPTS[start:end])

    assert sliced.run.state is whole.run.state is S.SUCCEEDED
    assert sliced.run.attempt == whole.run.attempt == 2
    assert sliced.rows() == whole.rows()
    assert sliced.cursor == whole.cursor
    assert [(a.attempt, a.state) for a in sliced.run.attempts] == [(1, "FAILED"), (2, "SUCCEEDED")]


@given(st.integers(1, len(TWO_ATTEMPTS)), st.integers(0, len(TWO_ATTEMPTS)))
def test_a_log_that_is_read_twice_changes_nothing(upto: int, again: int) -> None:
    once, twice = Daemon(), Daemon()
    once.read(TWO_ATTEMPTS[:upto])
    twice.read(TWO_ATTEMPTS[:upto])
    twice.cursor = RunCursor()
    twice.read(TWO_ATTEMPTS[: min(again, upto)])
    twice.read(TWO_ATTEMPTS[min(again, upto) : upto])

    assert (twice.run.state, twice.run.attempt) == (once.run.state, once.run.attempt)
    # The note of an earlier try of a job may get lost where a slice ends.
    assert [row[:-1] for row in twice.rows()] == [row[:-1] for row in once.rows()]


def test_a_run_as_it_goes_on() -> None:
    daemon = Daemon()
    seen = []
    for event in TWO_ATTEMPTS:
        daemon.read([event])
        seen.append(daemon.run.state.name)

    assert seen[:9] == ["RUNNING"] * 8 + ["HELD"]
    assert seen[11:17] == ["RUNNING"] * 5 + ["FAILED"]
    assert seen[17:] == ["RUNNING"] * 9 + ["SUCCEEDED"]
    assert (daemon.run.project, daemon.run.operator, daemon.run.run) == ("dev", "op", "u/op/run")
    assert daemon.run.total_number_jobs == 3
    assert daemon.cursor.phase is Phase.ENDED


def test_a_failed_try_is_seen_by_its_exit_code() -> None:
    daemon = Daemon()
    daemon.read(TWO_ATTEMPTS[:6])

    assert daemon.rows()[0][:4] == ("a", "READY", 2, 3)
    assert daemon.rows()[0][6] == "once"


def test_a_foreign_cursor_is_the_beginning() -> None:
    assert RunCursor.parsed("12:34") == RunCursor.parsed(None) == RunCursor()


# -- histories ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upto", range(len(TWO_ATTEMPTS) + 1))
def test_a_history_knows_what_is_open(upto: int) -> None:
    told = fold(TWO_ATTEMPTS[:upto])
    opened = {3: {0}, 4: {0}, 7: {0}, 8: {0}, 9: {0}, 13: {1}, 14: {1}, 20: {1}, 21: {1}, 24: {2}, 25: {2}}

    assert set(told.open) == opened.get(upto, set())
    assert (told.end is not None) == (upto in (17, 27))
    assert told.attempt == (0 if upto == 0 else 1 if upto < 18 else 2)
    assert told.succeeded == {n for n, at in ((0, 10), (1, 22), (2, 26)) if upto >= at}
    assert told.held == (9 <= upto < 12)


def test_a_history_counts_attempts_over_all() -> None:
    told = fold(TWO_ATTEMPTS)

    assert told.starts == {0: 2, 1: 2, 2: 1}
    assert told.driver == Process(102, 5)
    assert fold([]).driver == GONE


def test_an_intent_alone_is_a_start_only_if_it_left_a_trace(tmp_path: Path) -> None:
    told = fold(TWO_ATTEMPTS[:3])
    folder = RunFolder(tmp_path)
    (only,) = told.open.values()

    assert only == OpenJob(ref(0), GONE, "boot")
    assert told.starts == {}
    assert not may_have_run(only, folder, "boot")
    assert may_have_run(only, folder, "another boot")  # then files prove nothing
    folder.out.mkdir()
    folder.output("a", 1, "out").touch()
    assert may_have_run(only, folder, "boot")
    assert may_have_run(fold(TWO_ATTEMPTS[:4]).open[0], folder, "boot")


def test_what_was_intended_when_a_run_ended_was_not_started() -> None:
    told = fold([begin(1, 1.0), Intent(jobs=(ref(0), ref(1))), End(attempt=1, time=2.0, state=int(S.DELETED))])

    assert (told.open, told.starts) == ({}, {})


def test_a_started_job_is_open_with_its_process() -> None:
    assert fold(TWO_ATTEMPTS[:4]).open == {0: OpenJob(ref(0), Process(1000, 9), "boot")}


# -- killed drivers ----------------------------------------------------------------------------------------------------


def test_a_killed_driver_fails_the_run_when_no_process_is_left_and_no_job() -> None:
    daemon = Daemon()
    before: list[Event] = [*TWO_ATTEMPTS[:10], started(1, 15.0), started(2, 15.0)]
    daemon.read(before)
    told = fold(before)
    daemon.hear([driver_died(META, told, 1, [told.open[2]], "", 30.0)])

    assert daemon.run.state.name == "RUNNING", "a run with a process is not over"
    assert daemon.run.note == (
        "the driver (pid 101) was killed; 1 process of the run still lives, and it is over when the last has ended: "
        "wait, or end them with `bpsctl cancel 7`"
    )
    assert [row[1] for row in daemon.rows()] == ["SUCCEEDED", "RUNNING", "UNKNOWN"]

    daemon.hear([driver_died(META, told, 0, told.open.values(), "ValueError: x", 40.0)])
    assert [row[1] for row in daemon.rows()] == ["SUCCEEDED", "UNKNOWN", "UNKNOWN"]
    assert daemon.run.state is S.FAILED
    assert daemon.run.note == (
        "the driver (pid 101) ended with an error (ValueError: x); `bpsctl restart 7` resumes the run"
    )


def test_a_restart_after_a_killed_driver() -> None:
    daemon = Daemon()
    daemon.read(TWO_ATTEMPTS[:14])
    daemon.hear([driver_died(META, fold(TWO_ATTEMPTS[:14]), 0, fold(TWO_ATTEMPTS[:14]).open.values(), "", 30.0)])
    lost = ended(1, S.UNKNOWN, 40.0)
    daemon.read([begin(2, 40.0), lost, States(time=40.0, jobs=(state(1, S.READY, 2), state(2, S.UNREADY)))])

    assert daemon.run.state is S.RUNNING
    assert daemon.run.attempt == 2
    assert [row[1] for row in daemon.rows()] == ["SUCCEEDED", "READY", "UNREADY"]


@pytest.mark.parametrize("sliced", [False, True])
def test_ending_what_a_killed_driver_left(sliced: bool) -> None:
    """The same attempt has a driver once more: it goes from FAILED (we saw no driver) to DELETED (the log says so)."""
    daemon = Daemon()
    daemon.read(TWO_ATTEMPTS[:14])
    daemon.hear([driver_died(META, fold(TWO_ATTEMPTS[:14]), 0, fold(TWO_ATTEMPTS[:14]).open.values(), "", 30.0)])
    last: list[Event] = [
        begin(1, 40.0),
        ended(1, S.UNKNOWN, 40.0),
        Held(time=40.0, held=False),
        States(time=40.0, jobs=(state(1, S.DELETED, 2), state(2, S.DELETED))),
        End(attempt=1, time=41.0, state=int(S.DELETED), note="cancelled"),
    ]
    for piece in [[event] for event in last] if sliced else [last]:
        daemon.read(piece)

    assert daemon.run.state is S.DELETED
    assert daemon.run.note == "cancelled"
    assert [row[1] for row in daemon.rows()] == ["SUCCEEDED", "DELETED", "DELETED"]
    assert daemon.cursor.phase is Phase.ENDED
