"""A table of jobs counts right after whatever it took, and comes back from the store as it was."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.jobtable import ROWS_PER_PART, JobTable, encode_changes
from bpsd.models import JobObservation, WmsStates

observations = st.lists(
    st.builds(
        JobObservation,
        name=st.sampled_from([f"job_{number}" for number in range(8)]),
        label=st.sampled_from(["isr", "coadd"]),
        state=st.sampled_from(WmsStates),
        attempt=st.sampled_from([None, 1, 2]),
        rank=st.sampled_from([0, 10, 30]),
        exit_code=st.sampled_from([None, 0, 1, 137, -9]),
        time=st.sampled_from([None, 1.0, 2.0]),
        host=st.sampled_from(["", "node1", "node2"]),
        note=st.sampled_from(["", "out of memory"]),
    ),
    max_size=30,
)


def seen(state: WmsStates, rank: int = 0) -> list[JobObservation]:
    return [JobObservation(name="a", label="l", state=state, attempt=1, rank=rank)]


def everything(table: JobTable) -> object:
    rows = [table.row(row) for row in range(len(table))]
    return rows, table.state_counts(), table.label_counts(), table.exit_codes()


@given(observations, observations)
def test_a_table_comes_back_with_its_counts(first: list[JobObservation], later: list[JobObservation]) -> None:
    table = JobTable()
    table.apply(1, first)
    snapshot = table.dump()
    moved = table.apply(1, later)

    loaded = JobTable.load(snapshot)
    loaded.apply(1, later)

    assert everything(loaded) == everything(table)
    states = {row.name: row.state for row in map(table.row, range(len(table)))}
    again = JobTable.load(snapshot, [encode_changes(1, moved)])
    assert {row.name: row.state for row in map(again.row, range(len(again)))} == states
    assert again.state_counts() == table.state_counts()


def test_a_snapshot_of_many_parts_comes_back() -> None:
    count = 2 * ROWS_PER_PART + 10
    table = JobTable()
    for row in range(count):
        late = row > ROWS_PER_PART + 5
        table.apply(
            1,
            [
                JobObservation(
                    name=f"j{row}",
                    label=f"l{row % 3}",
                    state=WmsStates.FAILED if row % 7 == 0 else WmsStates.RUNNING,
                    attempt=1,
                    exit_code=3 if row % 7 == 0 else None,
                    wms_id=f"1.{row}" if late else "",
                    host=f"node{row % 5}",
                    note="walltime" if row % 1000 == 0 else "",
                )
            ],
        )

    parts = list(table.parts())

    assert len(parts) == 3
    assert everything(JobTable.load(b"".join(parts))) == everything(table)
    assert len(list(JobTable().loading(b"".join(parts), [encode_changes(1, seen(WmsStates.HELD))]))) == 4
    with pytest.raises(ValueError, match="truncated"):
        JobTable.load(b"".join(parts)[:-1])


def test_a_snapshot_of_one_part_without_a_length_is_read() -> None:
    """As written before snapshots had parts."""
    table = JobTable()
    table.apply(1, seen(WmsStates.RUNNING))
    assert everything(JobTable.load(table.dump()[4:])) == everything(table)


@given(observations, st.integers(1, 10))
def test_in_pieces_or_whole_is_the_same(jobs: list[JobObservation], size: int) -> None:
    whole, pieces = JobTable(), JobTable()
    moved = whole.apply(1, jobs)

    some = [job for start in range(0, len(jobs), size) for job in pieces.apply(1, jobs[start : start + size])]

    assert some == moved
    assert everything(pieces) == everything(whole)


@pytest.mark.parametrize(("field", "value"), [("state", b"\x63"), ("label_of", b"\x07\0\0\0"), ("code", b"\0")])
def test_a_damaged_table_is_refused(field: str, value: bytes) -> None:
    table = JobTable()
    table.apply(1, seen(WmsStates.RUNNING))
    dumped = msgspec.msgpack.decode(table.dump()[4:])
    columns = {"label_of": 3, "state": 4, "code": 8}
    dumped[columns[field]] = value

    with pytest.raises(ValueError, match=r"a job has a state or a label|the column code|bytes"):
        JobTable.load(msgspec.msgpack.encode(dumped))


def test_a_weaker_source_that_repeats_an_end_does_not_soften_it() -> None:
    table = JobTable()
    table.apply(1, seen(WmsStates.FAILED, rank=30))
    table.apply(1, seen(WmsStates.FAILED, rank=0))

    assert table.apply(1, seen(WmsStates.SUCCEEDED, rank=10)) == []
    assert table.row(0).state == "FAILED"


HUGE = st.integers(-(2**70), 2**70)


@given(run_attempt=st.integers(1, 2**70), attempt=HUGE, rank=HUGE, code=HUGE)
def test_absurd_numbers_are_cut_and_harm_no_count(run_attempt: int, attempt: int, rank: int, code: int) -> None:
    table = JobTable()
    table.apply(1, [JobObservation(name="a", label="isr", state=WmsStates.RUNNING)])

    for state in (WmsStates.RUNNING, WmsStates.FAILED):
        seen = JobObservation(name="a", label="isr", state=state, attempt=attempt, rank=rank, exit_code=code)
        table.apply(run_attempt, [seen, msgspec.structs.replace(seen, name="b")])

    assert table.state_counts() == {"FAILED": 2}
    shown = 128 - code if -64 <= code < 0 else max(-(2**31) + 1, min(code, 2**31 - 1))
    assert table.exit_codes() == {"isr": {shown: 2} if shown else {}}
    assert JobTable.load(table.dump()).state_counts() == {"FAILED": 2}


def test_hosts_are_kept_once() -> None:
    table = JobTable()
    jobs = [JobObservation(name=f"j{n}", label="isr", state=WmsStates.RUNNING, host=f"n{n % 3}") for n in range(9)]
    table.apply(1, jobs)
    again = JobTable.load(table.dump())

    for job in jobs:
        again.apply(1, [msgspec.structs.replace(job, host="n9" if job.name == "j0" else job.host)])

    assert [again.row(n).host for n in range(9)] == ["n9", "n1", "n2", "n0", "n1", "n2", "n0", "n1", "n2"]
    assert len(again.dump()) - len(table.dump()) == len("\xa2n9".encode("latin-1"))
