"""Holds: reasons that mean the same are one group, and a release is about what was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd import holds
from bpsd.jobtable import JobTable
from bpsd.models import JobObservation, WmsStates
from bpsd.runs import RunRecord

MEMORY = "held: Job has gone over memory limit of 2048 megabytes. Peak usage: 2105 megabytes. (code 34.0)"
TRANSFER = (
    "held: Transfer input files failure at execution point slot1_2@node17.example.org using protocol file. Details: "
    "reading from file /data/u/a/in_0042.fits: (errno 2) No such file or directory (code 13.2)"
)


def record(**fields: object) -> RunRecord:
    return RunRecord(run_id="rbcdfghjk", backend="usdf", wms_id="12.0", state=WmsStates.RUNNING, **fields)  # type: ignore[arg-type]


def table(*jobs: tuple[str, str, WmsStates, str]) -> JobTable:
    jobs_ = JobTable()
    jobs_.apply(
        1,
        [
            JobObservation(name=name, label=label, state=state, note=note, attempt=1, time=100.0 + number)
            for number, (name, label, state, note) in enumerate(jobs)
        ],
    )
    return jobs_


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (MEMORY, MEMORY.replace("2105", "3000.5")),
        (TRANSFER, TRANSFER.replace("slot1_2@node17", "slot2_1@node3").replace("in_0042", "other")),
        (
            "held: Failed to connect to <10.0.3.7:9618?addrs=10.0.3.7-9618&alias=x> (code 6.0)",
            "held: Failed to connect to <134.158.1.2:4080> (code 6.0)",
        ),
        (
            "held: no credential for 1b4e28ba-2fa1-11d2-883f-0016d3cca427",
            "held: no credential for 00000000-aaaa-4444-b",
        ),
        ("held: node12.in2p3.fr is full", "held: cca-3.hpc.example.org is full"),
    ],
)
def test_what_differs_from_job_to_job_does_not_matter(one: str, other: str) -> None:
    assert holds.reason_of(one) == holds.reason_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (MEMORY, TRANSFER),
        (MEMORY, MEMORY.replace("code 34.0", "code 34.2")),
        ("held: via condor_hold (by user op)", "held: via condor_hold (by user alice)"),
        ("", MEMORY),
    ],
)
def test_what_is_another_reason_stays_another(one: str, other: str) -> None:
    assert holds.reason_of(one) != holds.reason_of(other)
    assert holds.group_of(holds.reason_of(one)) != holds.group_of(holds.reason_of(other))


def test_a_reason_can_be_read() -> None:
    assert holds.reason_of(TRANSFER) == (
        "Transfer input files failure at execution point HOST using protocol file. Details: "
        "reading from file PATH: (errno N) No such file or directory (code 13.2)"
    )
    assert holds.reason_of("") == holds.NO_REASON


@given(st.text(max_size=600))
def test_any_text_has_a_bounded_reason(note: str) -> None:
    reason = holds.reason_of(note)
    assert 0 < len(reason) <= holds.MAX_REASON_CHARS + len(note)
    assert holds.group_of(reason) == holds.group_of(holds.reason_of(note))


def everything(record: RunRecord, jobs: JobTable) -> list[holds.Held]:
    return [held for held in holds.held_in(record, jobs) if held is not None]


def count(groups: holds.HoldGroups, record: RunRecord, jobs: JobTable) -> None:
    for held in everything(record, jobs):
        groups.add(record, held)


def select(record: RunRecord, jobs: JobTable, label: str | None, group: str | None) -> holds.Selection | None:
    return holds.select_held(record, everything(record, jobs), label, group)


def test_groups_count_jobs_runs_and_labels() -> None:
    groups = holds.HoldGroups()
    jobs = table(
        ("a_1", "isr", WmsStates.HELD, MEMORY),
        ("a_2", "isr", WmsStates.HELD, MEMORY.replace("2105", "9")),
        ("b_1", "coadd", WmsStates.HELD, TRANSFER),
        ("c_1", "coadd", WmsStates.RUNNING, ""),
    )
    count(groups, record(), jobs)
    over = record()
    over.state = WmsStates.FAILED
    count(groups, over, jobs)

    first, second = groups.rows()

    assert (first.held, first.run_count, first.runs, first.labels) == (2, 1, {"rbcdfghjk": 2}, {"isr": 2})
    assert (first.oldest_at, first.backends, first.example) == (100.0, ["usdf"], MEMORY)
    assert (second.held, second.labels) == (1, {"coadd": 1})


def test_a_run_on_hold_counts_and_so_do_jobs_that_nobody_can_name() -> None:
    groups = holds.HoldGroups()
    held = record(note="held: quota (code 1.0)", changed_at=7.0)
    held.state = WmsStates.HELD
    count(groups, held, JobTable())
    count(groups, record(job_state_counts={WmsStates.HELD: 4, WmsStates.RUNNING: 1}), JobTable())

    unnamed, itself = groups.rows()

    assert (unnamed.held, unnamed.reason, unnamed.labels) == (4, holds.NOT_SINGLY, {})
    assert (itself.held, itself.reason, itself.oldest_at) == (1, "quota (code 1.0)", 7.0)


def test_a_label_and_a_group_choose() -> None:
    jobs = table(
        ("a_1", "isr", WmsStates.HELD, MEMORY),
        ("a_2", "isr", WmsStates.HELD, TRANSFER),
        ("b_1", "coadd", WmsStates.HELD, MEMORY),
    )
    memory = holds.group_of(holds.reason_of(MEMORY))

    assert select(record(), jobs, "isr", None) == (False, ("a_1", "a_2"), False, "")
    assert select(record(), jobs, None, memory) == (False, ("a_1", "b_1"), False, "")
    assert select(record(), jobs, "isr", memory) == (False, ("a_1",), False, "")
    assert select(record(), jobs, "none", None) is None
    whole = select(record(label="DRP"), jobs, "DRP", None)
    assert whole is not None
    assert (whole.whole, len(whole.jobs), whole.itself) == (True, 3, False)
    counted = holds.HoldGroups("isr", memory)
    count(counted, record(), jobs)
    assert [group.held for group in counted.rows()] == [1]


def test_a_run_on_hold_among_jobs_held_for_other_reasons_is_not_released_with_them() -> None:
    jobs = table(("a_1", "isr", WmsStates.HELD, MEMORY), ("a_2", "isr", WmsStates.HELD, "held: quota"))
    held = record(note="held: quota")
    held.state = WmsStates.HELD
    quota = holds.group_of(holds.reason_of("held: quota"))

    chosen = select(held, jobs, None, quota)
    alone = select(held, table(("a_1", "isr", WmsStates.HELD, MEMORY)), None, quota)

    assert chosen is not None
    assert (chosen.whole, chosen.jobs, chosen.itself) == (False, ("a_2",), True)
    assert "the run itself stays on hold" in chosen.note
    assert alone is not None
    assert (alone.whole, alone.jobs) == (False, ())
    assert "release it by name" in alone.note
