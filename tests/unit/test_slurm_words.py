"""What Slurm's tools print, and what it means: every word of the map, and whatever else may come."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.models import WmsStates
from bpsd_adapters.slurm.answers import Outcome, classify, is_mistake, job_id_in
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
from bpsd_adapters.slurm.reasons import is_policy, is_submit_limit, why_stuck
from bpsd_adapters.slurm.states import is_live, meaning_of

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


REASONS = [
    line.split()
    for line in (Path(__file__).parents[1] / "fixtures" / "slurm_reasons.txt").read_text().splitlines()
    if not line.startswith("#")
]
NEVER, SUBMIT_LIMITS, PASSING = ([name for name, kind in REASONS if kind == k] for k in ("never", "submit", "passes"))


@pytest.mark.parametrize("reason", NEVER)
def test_reasons_that_do_not_pass_say_why(reason: str) -> None:
    assert why_stuck(f"({reason})").startswith(f"{reason}: ")
    assert why_stuck(f"({reason}, and more)")
    assert is_policy(reason)
    if not reason.startswith("Dependency"):
        assert meaning_of("PENDING", reason, 5) == (WmsStates.PENDING, False, why_stuck(reason))


def test_reasons_that_pass_are_no_alarm() -> None:
    assert [reason for reason in (*PASSING, *SUBMIT_LIMITS) if why_stuck(reason)] == []
    assert [reason for reason in (*PASSING, *NEVER) if is_submit_limit(reason)] == []
    assert all(is_submit_limit(reason) and is_policy(reason) for reason in SUBMIT_LIMITS)


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
    st.lists(st.text(st.characters(exclude_characters="\n|", categories=("L", "N", "P", "Zs"))), min_size=2, max_size=6)
)
def test_a_garbled_row_makes_the_answer_none(parts: list[str]) -> None:
    line = "|".join(parts)
    with pytest.raises(ValueError, match="squeue printed"):
        parse_squeue(line)
    with pytest.raises(ValueError, match="sacct printed"):
        parse_sacct(line)


def test_the_banner_of_a_site_is_passed_over() -> None:
    assert parse_squeue("*** Welcome ***\n\n12|0|12|x|RUNNING|1|1|None\n@end\n")[0].array_id == 12
    assert parse_sacct("*** Welcome ***\n5|y|COMPLETED|0:0|1|2|n1\n")[0].array_id == 5


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


@given(st.integers(0, 10**9), st.text())
def test_the_label_is_in_the_name_for_people(number: int, label: str) -> None:
    name = chunk_name(TOKEN, number, label)
    assert parse_chunk_name(name) == (TOKEN, number)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
    assert chunk_name(TOKEN, 7, "isr") == f"bps-{TOKEN}-7.isr"


def test_names_of_others_are_not_ours() -> None:
    for name in ("bps-abc-1", f"bps-{TOKEN}", f"bps-{TOKEN}-x", f"x-bps-{TOKEN}-1", f"bps-{TOKEN.upper()}-1"):
        assert parse_chunk_name(name) is None


POLICY = (
    "sbatch: error: Batch job submission failed: "
    "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)

SAID = [
    # code, stderr, what it means, whether --test-only may refuse the workflow for it
    (1, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", Outcome.DOUBT, False),
    (1, "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received", Outcome.DOUBT, False),
    (1, ("sbatch: error: slurm_persist_conn_open: failed to send persistent connection init message\nsbatch: error: "
        "Batch job submission failed: Unable to contact slurm controller (connect failure)"), Outcome.DOUBT, False),
    (1, "sbatch: fatal: Unable to contact slurm controller (connect failure)", Outcome.DOUBT, False),
    (1, f"sbatch: error: AssocMaxSubmitJobLimit\n{POLICY}", Outcome.LIMITED, False),
    (1, f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{POLICY}", Outcome.LIMITED, False),
    (1, f"sbatch: error: QOSGrpSubmitJobsLimit\n{POLICY}", Outcome.LIMITED, False),
    (1, POLICY, Outcome.LIMITED, False),
    (1, "sbatch: error: Batch job submission failed: Resource temporarily unavailable", Outcome.LIMITED, False),
    (1, "sbatch: error: Batch job submission failed: MaxJobCount limit reached", Outcome.LIMITED, False),
    (143, "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", Outcome.FULL, False),
    (1, f"sbatch: error: QOSMaxWallDurationPerJobLimit\n{POLICY}", Outcome.REFUSED, True),
    (1, f"sbatch: error: QOSMaxNodePerJobLimit\n{POLICY}", Outcome.REFUSED, True),
    (1, f"sbatch: error: AssocMaxCpuPerJobLimit\n{POLICY}", Outcome.REFUSED, True),
    (1, f"sbatch: error: QOSMaxCpuPerUserLimit\n{POLICY}", Outcome.REFUSED, True),
    (1, ("QOSMaxWallDurationPerJobLimit\nallocation failure: Job violates accounting/QOS policy (job submit limit, "
        "user's size and/or time limits)"), Outcome.REFUSED, True),
    (1, ("sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid "
        "partition name specified"), Outcome.REFUSED, True),
    (1, "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        Outcome.REFUSED, True),
    (1, "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
        Outcome.REFUSED, True),
    (1, ("sbatch: error: Memory specification can not be satisfied\nsbatch: error: Batch job submission failed: "
        "Requested node configuration is not available"), Outcome.REFUSED, False),
    (1, "allocation failure: Requested node configuration is not available", Outcome.REFUSED, False),
    (255, "sbatch: error: Invalid --time specification", Outcome.REFUSED, True),
    (255, "sbatch: error: invalid memory constraint 4 GB\nsbatch: error: Invalid --mem specification",
        Outcome.REFUSED, True),
    (1, 'sbatch: unrecognized option \'--nope\'\nTry "sbatch --help" for more information', Outcome.REFUSED, True),
    (255, "sbatch: error: Invalid numeric value \"x\" for --sockets-per-node.", Outcome.REFUSED, True),
    (255, "", Outcome.REFUSED, True),
    (137, "", Outcome.DOUBT, False),
    (143, "sbatch: error: Batch job submission failed: Invalid qos specification", Outcome.DOUBT, False),
    (1, "", Outcome.DOUBT, False),
    (1, "You must name a project", Outcome.DOUBT, False),
]  # fmt: skip


@pytest.mark.parametrize(("code", "said", "outcome", "mistake"), SAID)
def test_what_sbatch_says_when_it_fails(code: int, said: str, outcome: Outcome, mistake: bool) -> None:
    assert classify(said, code) is outcome
    assert is_mistake(said, code) is mistake


@given(st.text(), st.integers(0, 255))
def test_whatever_sbatch_says_has_a_meaning(said: str, code: int) -> None:
    assert classify(said, code) in Outcome
    assert not is_mistake(said, 0)
    job_id_in(said)


def test_the_id_is_the_last_line_that_is_one() -> None:
    assert job_id_in("12 nodes\n\n 7 \n42;bed\nbye 3\n") == 42
    assert job_id_in("Submitted batch job 42") is None
    assert job_id_in("") is None
