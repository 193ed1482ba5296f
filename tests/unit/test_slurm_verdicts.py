"""What became of a job, from what its witnesses say: no combination of them makes an end that nobody saw."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bpsd.models import TERMINAL, WmsStates
from bpsd_adapters.slurm.parsing import AccountRow, ExitRecord, QueueRow
from bpsd_adapters.slurm.scripts import NOT_CLAIMED, NOT_SEEN
from bpsd_adapters.slurm.states import is_live
from bpsd_adapters.slurm.verdicts import Doubt, Evidence, Live, Over, judge

WORDS = (
    "PENDING",
    "RUNNING",
    "COMPLETING",
    "COMPLETED",
    "FAILED",
    "TIMEOUT",
    "OUT_OF_MEMORY",
    "NODE_FAIL",
    "CANCELLED",
    "PREEMPTED",
    "SUSPENDED",
    "SOMETHING_NEW",
)


def row(state: str, reason: str = "None") -> QueueRow:
    return QueueRow(12, (3,), 15, "bps", state, 100, 50.0, reason)


def record(code: int | None) -> ExitRecord:
    return ExitRecord(3, 1, 15, 0, code, 50.0, 60.0, "n1", "")


def account(state: str, code: int = 0, signal: int = 0) -> AccountRow:
    return AccountRow(12, (3,), "bps", state, code, signal, 50.0, 60.0, "n1")


def judged(*rows: QueueRow, record: ExitRecord | None = None, account: AccountRow | None = None, waited_s: float = 0.0):  # type: ignore[no-untyped-def]
    return judge(Evidence(rows, record, account), waited_s=waited_s, grace_s=30.0)


def over(verdict: object) -> tuple[WmsStates, int | None, str]:
    assert isinstance(verdict, Over), verdict
    return verdict.state, verdict.exit_code, verdict.source


rows_of = st.lists(
    st.builds(row, st.sampled_from(WORDS), st.sampled_from(("None", "NonZeroExitCode", "Resources"))), max_size=2
)
records = st.none() | st.builds(record, st.none() | st.integers(0, 255))
accounts = st.none() | st.builds(account, st.sampled_from(WORDS), st.integers(0, 255), st.integers(0, 15))


@given(rows_of, records, accounts, st.floats(0, 100))
def test_an_end_has_a_witness(
    rows: list[QueueRow], seen: ExitRecord | None, known: AccountRow | None, waited_s: float
) -> None:
    verdict = judged(*rows, record=seen, account=known, waited_s=waited_s)

    if isinstance(verdict, Over):
        assert verdict.state in TERMINAL
        told = [r for r in rows if not is_live(r.state)], seen, known if known and not is_live(known.state) else None
        assert any(told), "it ended, and nobody said so"
        live = [r for r in rows if is_live(r.state) and r.state != "COMPLETING"]
        assert not live or (seen is not None and seen.exit_code == 0), "it ended while Slurm has it alive"
    if verdict is Doubt.MISSING:
        assert not rows
        assert seen is None
    if not rows and seen is None and known is None:
        assert verdict is Doubt.MISSING


@given(rows_of, accounts)
def test_a_success_that_was_written_down_is_one_whatever_slurm_says(
    rows: list[QueueRow], known: AccountRow | None
) -> None:
    assert over(judged(*rows, record=record(0), account=known)) == (WmsStates.SUCCEEDED, 0, "exit")


def test_a_failure_counts_once_slurm_has_not_requeued_it() -> None:
    assert isinstance(judged(row("RUNNING"), record=record(3)), Live)
    assert isinstance(judged(row("PENDING", "BeginTime"), record=record(3)), Live)
    assert judged(row("COMPLETING"), record=record(3)) is Doubt.WAITING
    assert over(judged(row("COMPLETING"), record=record(3), waited_s=31)) == (WmsStates.FAILED, 3, "exit")
    assert over(judged(record=record(3))) == (WmsStates.FAILED, 3, "exit")


def test_why_it_got_a_signal_is_slurms_to_say() -> None:
    assert judged(record=record(143)) is Doubt.WAITING
    timeout = judged(row("TIMEOUT", "TimeLimit"), record=record(143))
    assert over(timeout) == (WmsStates.FAILED, 143, "exit")
    assert timeout.note == "out of time"
    assert over(judged(row("CANCELLED"), record=record(143)))[0] is WmsStates.DELETED
    assert over(judged(record=record(143), waited_s=31))[0] is WmsStates.FAILED
    assert judged(record=record(143), account=account("TIMEOUT")).note == "out of time"
    assert over(judged(record=record(143), account=account("CANCELLED by 1000")))[0] is WmsStates.DELETED


def test_a_job_that_tidies_up_when_it_is_cancelled_was_cancelled() -> None:
    """Whatever exit code it then chooses; and if the kernel killed a part of it, that is why it failed."""
    assert over(judged(row("CANCELLED"), record=record(1))) == (WmsStates.DELETED, 1, "exit")
    known = account("CANCELLED by 1000")
    assert over(judged(row("COMPLETING"), record=record(1), account=known)) == (WmsStates.DELETED, 1, "exit")
    killed = judged(row("OUT_OF_MEMORY", "OutOfMemory"), record=record(9))
    assert (over(killed), killed.note) == ((WmsStates.FAILED, 9, "exit"), "out of memory")
    assert judged(row("FAILED", "NonZeroExitCode"), record=record(9)).note == ""


def test_the_state_decides_and_not_the_code() -> None:
    """TIMEOUT has exit code 0:0."""
    assert over(judged(row("TIMEOUT"))) == (WmsStates.FAILED, None, "queue")
    assert over(judged(account=account("TIMEOUT"))) == (WmsStates.FAILED, None, "accounting")
    assert over(judged(account=account("FAILED", 0, 11))) == (WmsStates.FAILED, 139, "accounting")


def test_a_record_may_be_late() -> None:
    assert judged(row("COMPLETED")) is Doubt.WAITING
    assert judged(row("FAILED", "NonZeroExitCode")) is Doubt.WAITING
    assert over(judged(row("COMPLETED"), waited_s=31))[0] is WmsStates.SUCCEEDED
    late = judged(row("FAILED", "NonZeroExitCode"), account=account("FAILED", 7), waited_s=31)
    assert over(late) == (WmsStates.FAILED, 7, "queue")


def test_the_queue_beats_accounting_while_it_lists_the_job() -> None:
    """What sacct says of it then is an earlier incarnation."""
    assert isinstance(judged(row("PENDING", "BeginTime"), account=account("NODE_FAIL", 1)), Live)


def test_who_found_anothers_claim_says_nothing_of_the_job() -> None:
    """Two Slurm jobs under one name: the second ended without running, as its wrapper does."""
    second = row("FAILED", "NonZeroExitCode")
    assert over(judged(second, row("CANCELLED")))[0] is WmsStates.DELETED
    timeout = judged(second, row("TIMEOUT"))
    assert (over(timeout)[0], timeout.note) == (WmsStates.FAILED, "out of time")
    mine = row("CANCELLED")._replace(job_id=99)
    assert over(judged(second, mine, record=record(143)._replace(job_id=99)))[0] is WmsStates.DELETED


def test_what_was_not_run_is_no_success_and_says_why() -> None:
    unseen = judged(row("FAILED", "NonZeroExitCode"), account=account("FAILED", NOT_SEEN), waited_s=31)
    assert over(unseen)[0] is WmsStates.FAILED
    assert "nodes share" in unseen.note
    unclaimed = judged(account=account("FAILED", NOT_CLAIMED), waited_s=31)
    assert over(unclaimed)[0] is WmsStates.FAILED
    assert "claim" in unclaimed.note


def test_of_two_slurm_jobs_with_one_name_the_living_one_counts() -> None:
    assert isinstance(judged(row("COMPLETED"), row("RUNNING")), Live)
    assert isinstance(judged(row("PENDING"), row("COMPLETING"), record=record(None)), Live)
