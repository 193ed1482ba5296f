"""What Slurm's tools print, and what it means: every word of the map, and whatever else may come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.models import WmsStates
from bpsd_adapters.slurm import states
from bpsd_adapters.slurm.cluster import Outcome, classify_refusal
from bpsd_adapters.slurm.looks import by_run
from bpsd_adapters.slurm.parsing import (
    chunk_name,
    parse_chunk_name,
    parse_exits,
    parse_indices,
    parse_limits,
    parse_sacct,
    parse_squeue,
    smallest_limit,
)
from bpsd_adapters.slurm.states import is_live, meaning_of, why_stuck

TOKEN = "abcdefghij0123456789"

MAP = [
    ("PENDING", "Dependency", 100, WmsStates.UNREADY, False),
    ("PENDING", "DependencyNeverSatisfied", 100, WmsStates.PRUNED, False),
    ("CANCELLED", "DependencyNeverSatisfied", 100, WmsStates.PRUNED, True),
    ("PENDING", "JobHeldUser", 0, WmsStates.HELD, False),
    ("PENDING", "JobHeldAdmin", 0, WmsStates.HELD, False),
    ("PENDING", "Dependency", 0, WmsStates.HELD, False),
    ("PENDING", "job requeued in held state", 0, WmsStates.HELD, False),
    ("SPECIAL_EXIT", "None", 5, WmsStates.HELD, False),
    ("PENDING", "Resources", 100, WmsStates.PENDING, False),
    ("PENDING", "BeginTime", 100, WmsStates.PENDING, False),
    ("CONFIGURING", "None", 100, WmsStates.PENDING, False),
    ("REQUEUED", "None", 100, WmsStates.PENDING, False),
    ("RUNNING", "None", 100, WmsStates.RUNNING, False),
    ("COMPLETING", "None", 100, WmsStates.RUNNING, False),
    ("STAGE_OUT", "None", 100, WmsStates.RUNNING, False),
    ("SUSPENDED", "None", 100, WmsStates.MISFIT, False),
    ("REVOKED", "None", 100, WmsStates.MISFIT, False),
    ("COMPLETED", "None", 100, WmsStates.SUCCEEDED, True),
    ("FAILED", "NonZeroExitCode", 100, WmsStates.FAILED, True),
    ("FAILED", "RaisedSignal:11(Segmentation fault)", 100, WmsStates.FAILED, True),
    ("TIMEOUT", "TimeLimit", 100, WmsStates.FAILED, True),
    ("OUT_OF_MEMORY", "OutOfMemory", 100, WmsStates.FAILED, True),
    ("NODE_FAIL", "NodeDown", 100, WmsStates.FAILED, True),
    ("PREEMPTED", "None", 100, WmsStates.FAILED, True),
    ("DEADLINE", "DeadLine", 100, WmsStates.FAILED, True),
    ("BOOT_FAIL", "None", 100, WmsStates.FAILED, True),
    ("CANCELLED", "None", 100, WmsStates.DELETED, True),
    ("CANCELLED by 1000", "", None, WmsStates.DELETED, True),
    ("CANCELLED+", "", None, WmsStates.DELETED, True),
]


@pytest.mark.parametrize(("word", "reason", "priority", "state", "over"), MAP)
def test_the_map(word: str, reason: str, priority: int | None, state: WmsStates, over: bool) -> None:
    meaning = meaning_of(word, reason, priority)

    assert (meaning.state, meaning.over) == (state, over)


@given(word=st.text(), reason=st.text(), priority=st.none() | st.integers(0, 2**32))
def test_whatever_slurm_says_has_a_meaning(word: str, reason: str, priority: int | None) -> None:
    """A word that is not known is UNKNOWN and no end: nobody is told that a job is over who does not know it."""
    meaning = meaning_of(word, reason, priority)

    known = word.split(" ", 1)[0].rstrip("+")
    assert meaning.state is not WmsStates.UNKNOWN or not meaning.over
    assert not meaning.over or known.isupper()
    assert is_live(word) == (not meaning_of(word).over)


@pytest.mark.parametrize("reason", sorted(states.STUCK))
def test_reasons_that_do_not_pass_say_why(reason: str) -> None:
    assert reason in meaning_of("PENDING", reason, 5).note
    assert why_stuck(f"({reason})")


def test_reasons_that_pass_are_no_alarm() -> None:
    assert [
        r for r in ("Resources", "Priority", "None", "AssocGrpCpuLimit", "QOSMaxJobsPerUserLimit") if why_stuck(r)
    ] == []
    assert why_stuck("QOSMaxGRESPerJob")


@given(st.sets(st.integers(0, 5000), min_size=1))
def test_indices_as_slurm_writes_them(numbers: set[int]) -> None:
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)

    assert set(parse_indices(f"[{text}%20]")) == set(parse_indices(text)) == numbers


def test_indices_with_steps_and_without_any() -> None:
    assert parse_indices("0-8:4,11") == (0, 4, 8, 11)
    assert parse_indices("N/A") == ()
    for cut in ("1,5,9|", "1,5,...", "0-99999999999"):
        with pytest.raises(ValueError, match="array indices"):
            parse_indices(cut)


def test_squeue_rows_of_arrays_and_of_others() -> None:
    name = chunk_name(TOKEN, 7)
    text = (
        f"12|[0-1,4%2]|12|{name}|PENDING|429|N/A|(JobHeld|User)\n"
        f"12|2|15|{name}|RUNNING|429|1795384213|None\n"
        "99|N/A|99|mine|RUNNING|429|1795384213|None\n"
    )
    rows = parse_squeue(text)

    assert [row.indices for row in rows] == [(0, 1, 4), (2,), ()]
    assert rows[0].reason == "JobHeld|User"
    assert (rows[0].start, rows[1].start) == (None, 1795384213.0)
    mine = by_run(rows)
    assert {index: [row.state for row in found] for index, found in mine[TOKEN][7].items()} == {
        0: ["PENDING"],
        1: ["PENDING"],
        4: ["PENDING"],
        2: ["RUNNING"],
    }


@given(
    st.text(alphabet=st.characters(exclude_characters="\n")).filter(lambda line: line.count("|") < 7 and line.split())
)
def test_a_garbled_line_makes_the_answer_none(line: str) -> None:
    with pytest.raises(ValueError, match="squeue printed"):
        parse_squeue(line)
    with pytest.raises(ValueError, match="sacct printed"):
        parse_sacct(line)


def test_sacct_rows() -> None:
    rows = parse_sacct(
        "22_3|bps-x-1|CANCELLED by 1000|0:15|1795384213|1795384217|n1\n"
        "22180_[10-12]|x|PENDING|0:0|Unknown|Unknown|None assigned\n"
        "5|y|COMPLETED|0:0|1|2|n1\n"
    )

    assert [(row.array_id, row.indices, row.state, row.exit_code, row.signal) for row in rows] == [
        (22, (3,), "CANCELLED by 1000", 0, 15),
        (22180, (10, 11, 12), "PENDING", 0, 0),
        (5, (), "COMPLETED", 0, 0),
    ]
    assert (rows[0].nodes, rows[1].nodes, rows[1].end) == ("n1", "", None)


def test_exit_records_that_are_not_whole_are_left_for_later() -> None:
    whole = "3 1 88 0 9 100 105 n1 post_cmdline ended with 1."

    records = parse_exits(f"t/exits/1/0:{whole}\nt/exits/1/1:4 1 89 0 - 1 2 n2 .\na:{whole[:-1]}\nb:5 1\n\n")

    assert {path: (r.node, r.exit_code, r.note) for path, r in records.items()} == {
        "t/exits/1/0": (3, 9, "post_cmdline ended with 1"),
        "t/exits/1/1": (4, None, ""),
    }


@given(st.text())
def test_records_of_any_kind_do_no_harm(text: str) -> None:
    parse_exits(text)


def test_limits_of_a_site() -> None:
    limits = parse_limits("MinJobAge               = 300 sec\nMaxArraySize = 1001\nAccountingStorageType = (null)\nx\n")

    assert (limits.min_job_age_s, limits.max_array_size, limits.max_job_count) == (300, 1001, None)
    assert not limits.has_accounting
    assert smallest_limit(["", "500", "20", "N"]) == 20
    assert smallest_limit(["", "N"]) is None


@given(st.integers(0, 10**9))
def test_names_of_chunks(number: int) -> None:
    assert parse_chunk_name(chunk_name(TOKEN, number)) == (TOKEN, number)


def test_names_of_others_are_not_ours() -> None:
    for name in ("bps-abc-1", f"bps-{TOKEN}", f"bps-{TOKEN}-x", f"x-bps-{TOKEN}-1", f"bps-{TOKEN.upper()}-1"):
        assert parse_chunk_name(name) is None


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", Outcome.DOUBT),
        ("Unable to contact slurm controller (connect failure)", Outcome.DOUBT),
        ("sbatch: error: AssocMaxSubmitJobLimit", Outcome.LIMITED),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", Outcome.LIMITED),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", Outcome.LIMITED),
        ("Batch job submission failed: Invalid partition name specified", Outcome.REFUSED),
        ("Requested node configuration is not available", Outcome.REFUSED),
    ],
)
def test_what_sbatch_says_when_it_fails(said: str, outcome: Outcome) -> None:
    assert classify_refusal(said) is outcome
