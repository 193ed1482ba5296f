"""The rules of evidence: no sequence of polls, however bad, makes a report lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.jobtable import JobTable, encode_changes
from bpsd.models import TERMINAL, JobObservation, RunObservation, SourceReport, WmsStates
from bpsd.reducer import JOURNAL_SOURCE, JobKey, RunKey, Verdict, absence_is_proof, confirms_all, job_wins, judge_run
from bpsd.runs import RunRecord, decode_record, encode_record

LIVE = sorted(set(WmsStates) - TERMINAL - {WmsStates.UNKNOWN})
ENDS = sorted(TERMINAL)


@dataclass
class Truth:
    """What really happens in the WMS: attempts, each a walk through live states that may end in a terminal one."""

    attempts: list[list[WmsStates]] = field(default_factory=list)

    def moments(self) -> list[tuple[int, WmsStates, float]]:
        """Every (attempt, state, time) there ever is, in order."""
        walk = [(n, state) for n, states in enumerate(self.attempts, start=1) for state in states]
        return [(n, state, float(time)) for time, (n, state) in enumerate(walk, start=1)]


truths = st.lists(
    st.tuples(st.lists(st.sampled_from(LIVE), min_size=1, max_size=4), st.sampled_from(ENDS)).map(
        lambda walk: [*walk[0], walk[1]]
    ),
    min_size=1,
    max_size=3,
).map(Truth)


def observe(moment: tuple[int, WmsStates, float], *, counted: bool = True) -> RunObservation:
    attempt, state, time = moment
    return RunObservation(
        wms_id=f"{attempt}.0",
        source="queue",
        state=state,
        attempt=attempt if counted else None,
        source_time=time,
        jobs=[JobObservation(name="a", label="l", state=state, attempt=attempt if counted else None, time=time)],
    )


def fresh() -> RunRecord:
    return RunRecord(run_id="rbcdfghjk", backend="b", source=JOURNAL_SOURCE)


@given(truths, st.data())
def test_no_sequence_of_polls_yields_a_state_that_never_was(truth: Truth, data: st.DataObject) -> None:
    moments = truth.moments()
    seen = data.draw(st.lists(st.sampled_from(moments), min_size=1, max_size=20))
    record, jobs = fresh(), JobTable()
    ended: dict[int, WmsStates] = {}

    for attempt, state, _ in seen:  # repeated and late at will; a failed or empty poll is one that is not in the list
        clock = data.draw(st.floats(-1e9, 1e9))  # set back and forward between any two
        record.fold(observe((attempt, state, clock)), clock, jobs, 100)

        assert (record.attempt, record.state) in {(n, state) for n, state, _ in moments}
        if record.attempt in ended:
            assert record.state is ended[record.attempt]
        if record.state in TERMINAL:
            ended[record.attempt] = record.state
        assert jobs.row(0).state == record.state.name

    last = max(n for n, _, _ in seen)
    of_last = [state for n, state, _ in seen if n == last]
    end = [state for state in of_last if state in TERMINAL]
    assert (record.attempt, record.state) == (last, end[0] if end else of_last[-1])


@given(truths, st.data())
def test_an_attempt_that_nobody_counts_never_leaves_its_end(truth: Truth, data: st.DataObject) -> None:
    first = [m for m in truth.moments() if m[0] == 1]
    seen = data.draw(st.lists(st.sampled_from(first), min_size=1, max_size=20))
    record = fresh()
    for moment in seen:
        before = record.state
        record.fold(observe(moment, counted=False), moment[2], None, 100)
        if before in TERMINAL:
            assert record.state is before


@given(truths, st.data())
def test_absence_never_ends_a_run_and_never_touches_one_that_is_over(truth: Truth, data: st.DataObject) -> None:
    record = fresh()
    for began, moment in enumerate(data.draw(st.lists(st.sampled_from(truth.moments()), min_size=1, max_size=10))):
        record.fold(observe(moment), began, None, 100)
        before, seen_at = record.state, record.observed_at
        record.vanish(began + 0.5, ("queue", "history"))
        if before in TERMINAL:
            assert record.state is before
        elif before is WmsStates.UNKNOWN:  # seen was an earlier attempt than that which was lost
            assert record.last_known is not None
        else:
            assert record.state is WmsStates.UNKNOWN
            assert record.last_known is before
            assert record.last_known_at == seen_at
            assert record.note == "not in queue, history"


def test_a_run_that_was_lost_may_be_found_again() -> None:
    record = fresh()
    record.fold(observe((1, WmsStates.RUNNING, 1.0)), 1.0, None, 100)
    record.vanish(2.0, ("queue",))

    record.fold(observe((1, WmsStates.RUNNING, 1.0)), 3.0, None, 100)

    assert record.state is WmsStates.RUNNING
    assert record.last_known is None


def test_absence_seen_twice_keeps_the_state_that_was_known() -> None:
    record = fresh()
    record.fold(observe((1, WmsStates.HELD, 1.0)), 1.0, None, 100)
    record.vanish(2.0, ("queue",))

    assert record.vanish(3.0, ("queue",)) == []
    assert record.last_known is WmsStates.HELD


def test_what_is_only_accepted_does_not_vanish() -> None:
    record = fresh()
    record.from_journal(WmsStates.READY, "accepted", 1.0)

    assert record.vanish(2.0, ("queue",)) == []
    assert record.state is WmsStates.READY


@pytest.mark.parametrize(
    ("statuses", "proof"),
    [((), False), (("ok",), True), (("ok", "ok"), True), (("ok", "partial"), False), (("failed",), False)],
)
def test_only_complete_answers_prove_absence(statuses: tuple[str, ...], proof: bool) -> None:
    sources = [SourceReport(name=s, status=s) for s in statuses]  # type: ignore[arg-type]

    assert absence_is_proof(sources) is proof


def key(state: WmsStates, *, rank: int = 0, source: str = "queue", attempt: int = 1) -> RunKey:
    return RunKey(attempt, "1", state, source, rank)


def judge(before: RunKey, state: WmsStates | None, **over: object) -> Verdict:
    seen: dict[str, object] = {"attempt": before.attempt, "wms_id": "1", "rank": 0} | over
    return judge_run(before, state=state, **seen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "state", "over", "verdict"),
    [
        (key(WmsStates.RUNNING), WmsStates.HELD, {}, Verdict.TAKE),
        (key(WmsStates.RUNNING), WmsStates.RUNNING, {}, Verdict.AGREES),
        (key(WmsStates.RUNNING), None, {}, Verdict.AGREES),
        (key(WmsStates.RUNNING), WmsStates.UNKNOWN, {}, Verdict.AGREES),
        (key(WmsStates.UNKNOWN), WmsStates.HELD, {}, Verdict.TAKE),
        (key(WmsStates.FAILED), WmsStates.RUNNING, {}, Verdict.STALE),
        (key(WmsStates.FAILED), WmsStates.RUNNING, {"attempt": 2}, Verdict.NEW_ATTEMPT),
        (key(WmsStates.FAILED, attempt=2), WmsStates.RUNNING, {"attempt": 1}, Verdict.STALE),
        (key(WmsStates.FAILED), WmsStates.SUCCEEDED, {}, Verdict.CONFLICT),
        (key(WmsStates.FAILED), WmsStates.SUCCEEDED, {"rank": 10}, Verdict.TAKE),
        (key(WmsStates.FAILED, rank=10), WmsStates.SUCCEEDED, {"rank": 0}, Verdict.CONFLICT),
        (key(WmsStates.FAILED), WmsStates.RUNNING, {"attempt": None, "wms_id": "2"}, Verdict.NEW_ATTEMPT),
        (
            key(WmsStates.FAILED),
            WmsStates.RUNNING,
            {"attempt": None, "wms_id": "0", "older_ids": ("0",)},
            Verdict.STALE,
        ),
        (key(WmsStates.FAILED, source=JOURNAL_SOURCE), WmsStates.RUNNING, {}, Verdict.TAKE),
    ],
)
def test_verdicts(before: RunKey, state: WmsStates | None, over: dict[str, object], verdict: Verdict) -> None:
    assert judge(before, state, **over) is verdict


def test_a_conflict_goes_to_the_timeline_and_changes_nothing() -> None:
    record = fresh()
    record.fold(observe((1, WmsStates.SUCCEEDED, 1.0)), 1.0, None, 100)

    changes, _ = record.fold(observe((1, WmsStates.FAILED, 2.0)), 2.0, None, 100)

    assert [change.kind for change in changes] == ["run.conflict"]
    assert record.state is WmsStates.SUCCEEDED


def test_texts_from_outside_are_cut() -> None:
    record = fresh()
    record.fold(
        RunObservation(wms_id="1", source="q", state=WmsStates.HELD, note="n" * 999, payload="p" * 999), 1.0, None, 64
    )

    assert (len(record.note), len(record.payload or "")) == (64, 64)


def test_a_record_survives_the_store() -> None:
    record = fresh()
    for moment in Truth([[WmsStates.RUNNING, WmsStates.FAILED], [WmsStates.PENDING]]).moments():
        record.fold(observe(moment), moment[2], None, 100)

    assert decode_record(encode_record(record)) == record
    assert [(a.attempt, a.wms_id, a.state) for a in record.attempts] == [(1, "1.0", "FAILED"), (2, "2.0", "PENDING")]


# -- jobs ------------------------------------------------------------------------------------------------------------

job_moments = st.lists(
    st.builds(
        JobObservation,
        name=st.sampled_from(["a", "b", "c"]),
        label=st.just("l"),
        state=st.sampled_from(sorted(WmsStates)),
        attempt=st.integers(1, 3),
        rank=st.sampled_from([0, 10]),
        exit_code=st.sampled_from([None, 0, 1, 9]),
        wms_id=st.sampled_from(["", "7.0"]),
        note=st.sampled_from(["", "why"]),
    ),
    max_size=25,
)


@given(st.lists(st.tuples(st.integers(1, 2), job_moments), max_size=4))
def test_counts_are_those_of_the_rows_and_survive_the_store(polls: list[tuple[int, list[JobObservation]]]) -> None:
    table = JobTable()
    pieces = []
    for run_attempt, jobs in polls:
        moved = table.apply(run_attempt, jobs)
        pieces.append(encode_changes(run_attempt, jobs))
        assert len(moved) <= len(jobs)

    rows = [table.row(n) for n in range(len(table))]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    assert table.state_counts() == {s.name: counts[s.name] for s in WmsStates if s.name in counts}
    codes: dict[int, int] = {}
    for row in rows:
        if row.exit_code and row.state in ("FAILED", "HELD", "DELETED"):
            codes[row.exit_code] = codes.get(row.exit_code, 0) + 1
    assert table.exit_codes().get("l", {}) == codes

    for other in (JobTable.load(table.dump()), JobTable.load(None, pieces)):
        assert [other.row(n) for n in range(len(other))] == rows
        assert other.state_counts() == table.state_counts()
        assert other.exit_codes() == table.exit_codes()


@given(st.sampled_from(ENDS), st.sampled_from(sorted(WmsStates)), st.sampled_from([None, 1]))
def test_a_job_leaves_its_end_only_by_a_new_attempt_or_a_better_source(
    end: WmsStates, other: WmsStates, attempt: int | None
) -> None:
    before = JobKey(1, attempt, end, 10, 5.0)

    assert not job_wins(before, JobKey(1, attempt, other, 10, 9.0)) or other is end
    assert not job_wins(before, JobKey(1, None, other, 10, 9.0)) or other is end
    assert job_wins(before, JobKey(2, 1, other, 0, 9.0))
    assert job_wins(before, JobKey(1, 2, other, 0, 9.0)) is (attempt is not None or other is end)


U, R, S, F = WmsStates.UNKNOWN, WmsStates.RUNNING, WmsStates.SUCCEEDED, WmsStates.FAILED


@pytest.mark.parametrize(
    ("before", "after", "wins"),
    [
        (
            JobKey(1, 1, R, 0, 5.0),
            JobKey(2, 1, R, 10, 1.0),
            True,
        ),  # a later attempt of the run, whatever the clock says
        (JobKey(2, 1, R, 0, 5.0), JobKey(1, 2, S, 10, 9.0), False),
        (
            JobKey(1000, 1, S, 0, None),
            JobKey(int("1000"), 1, R, 10, None),
            False,
        ),  # numbers that are equal, not the same
        (JobKey(1, 2, R, 0, 5.0), JobKey(1, 1, S, 10, 9.0), False),  # an earlier attempt of the job
        (JobKey(1, 1, S, 10, 5.0), JobKey(1, 2, R, 0, 1.0), True),
        (
            JobKey(1, 1, S, 10, 5.0),
            JobKey(1, 1, F, 10, 9.0),
            False,
        ),  # the first of two ends, unless the source is better
        (JobKey(1, 1, S, 10, 5.0), JobKey(1, 1, F, 11, 1.0), True),
        (JobKey(1, 1, S, 10, 5.0), JobKey(1, 1, S, 0, 1.0), True),  # details may come later
        (JobKey(1, 1, S, 0, 5.0), JobKey(1, 1, R, 10, 9.0), False),
        (JobKey(1, 1, R, 10, 9.0), JobKey(1, 1, S, 0, 1.0), True),
        (JobKey(1, 1, R, 0, 5.0), JobKey(1, 1, U, 0, 1.0), True),  # of one source what it says later
        (JobKey(1, 1, R, 0, 5.0), JobKey(1, 1, U, 10, 5.0), True),  # of two sources what is later by their clock
        (JobKey(1, 1, R, 0, 5.0), JobKey(1, 1, U, 10, 4.0), False),
        (JobKey(1, 1, R, 10, 5.0), JobKey(1, 1, U, 0, 4.0), False),
        (JobKey(1, 1, R, 10, 5.0), JobKey(1, 1, U, 0, 6.0), True),
        (JobKey(1, 1, R, 10, None), JobKey(1, 1, U, 0, 4.0), True),
        (JobKey(1, 1, R, 10, 5.0), JobKey(1, 1, U, 0, None), True),
        (JobKey(1, 1, R, 0, None), JobKey(1, 1, U, 10, 4.0), True),
    ],
)
def test_the_order_of_evidence_about_a_job(before: JobKey, after: JobKey, wins: bool) -> None:
    assert job_wins(before, after) is wins


@pytest.mark.parametrize(
    ("attempt", "wms_id", "older", "verdict"),
    [
        (None, "7", (), Verdict.AGREES),
        (None, "8", (), Verdict.NEW_ATTEMPT),
        (None, "6", (), Verdict.NEW_ATTEMPT),
        (None, "8", ("8",), Verdict.STALE),
        (1000, "8", (), Verdict.AGREES),
        (999, "7", (), Verdict.STALE),
        (1001, "7", (), Verdict.NEW_ATTEMPT),
    ],
)
def test_the_order_of_attempts_of_a_run(
    attempt: int | None, wms_id: str, older: tuple[str, ...], verdict: Verdict
) -> None:
    before = RunKey(int("1000"), "7", R, "queue", 0)
    assert judge_run(before, attempt=attempt, wms_id=wms_id, state=R, rank=0, older_ids=older) is verdict


def test_the_first_sighting_of_an_accepted_run_is_its_state() -> None:
    """The source of the record comes from the store: an equal text, not the same one."""
    before = RunKey(1, "", WmsStates.SUCCEEDED, "".join(list(JOURNAL_SOURCE)), 99)
    assert judge_run(before, attempt=1, wms_id="7", state=R, rank=0) is Verdict.TAKE


@pytest.mark.parametrize("source", ["file", "history", "log", "queue"])
def test_only_the_journal_gives_way_to_any_sighting(source: str) -> None:
    before = RunKey(1, "7", F, source, 0)
    assert judge_run(before, attempt=1, wms_id="7", state=R, rank=99) is Verdict.STALE


@pytest.mark.parametrize(
    ("status", "asked", "confirmed"),
    [("ok", True, True), ("ok", False, False), ("partial", True, False), ("failed", True, False)],
)
def test_silence_confirms_only_if_every_source_was_asked_and_answered(
    status: Literal["ok", "partial", "failed"], asked: bool, confirmed: bool
) -> None:
    good = SourceReport(name="queue", status="ok")
    other = SourceReport(name="history", status=status, asked=asked)
    assert confirms_all((good, other)) is confirmed
    assert confirms_all((other, good)) is confirmed
    assert not confirms_all(())
