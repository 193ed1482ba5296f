"""The contract suite: what every adapter must do, as tests that its author inherits.

Subclass `AdapterContract` (what any WMS can be made to show) and, for a backend that runs jobs, `ExecutionContract`
too, and give the fixture ``bed``::

    class TestMine(AdapterContract, ExecutionContract):
        @pytest.fixture
        def bed(self, tmp_path):
            return Bed(MyService, {"host": "..."}, tmp_path)

The tests are coroutines for ``pytest-asyncio`` in auto mode. Nothing in them is timed: they poll until something is so.
"""

from __future__ import annotations

__all__ = ["AdapterContract", "Bed", "ExecutionContract"]

import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bpsd import wire
from bpsd.errors import BpsdError, RunNotFound
from bpsd.interface import FieldSupport, WmsService
from bpsd.models import PollRequest, WmsStates
from bpsd.testing.observer import Observer, document, open_service, shell_job
from bpsd.testing.steady import HOSTILE_NAMES, SteadyContract
from bpsd.workflow import JOB_FIELDS


@dataclass
class Bed:
    """Where a contract runs: the adapter, its settings, and a folder on a file system that its jobs can see."""

    service: type[WmsService]
    settings: dict[str, Any]
    folder: Path
    patience_s: float = 60.0
    scratch: Path = field(init=False)

    def __post_init__(self) -> None:
        self.scratch = self.folder / "scratch"
        self.scratch.mkdir(parents=True, exist_ok=True)

    def open(self) -> Any:
        """The service, opened; the same state each time."""
        return open_service(self.service, self.settings, self.folder / "state")

    async def finish(self, observer: Observer, wms_id: str) -> None:
        """Let the jobs of a run end well. A backend that runs jobs by itself needs no help."""


def _two_jobs() -> dict[str, Any]:
    """The smallest workflow with an order."""
    return document(
        shell_job("first_1", "true"),
        shell_job("second_1", "true", parents=["first_1"]),
        run={"project": "dev", "campaign": "contract", "payload": "pay", "operator": "op"},
    )


async def _answer(call: Awaitable[tuple[Any, ...]]) -> tuple[bool, str]:
    """Whether the adapter agreed, and its message; an unknown run may also be an error."""
    try:
        answer = await call
    except RunNotFound as exc:
        return False, str(exc)
    return bool(answer[0]), str(answer[-1])


class AdapterContract(SteadyContract):
    """What every adapter must do."""

    async def test_names_every_field(self, bed: Bed) -> None:
        """Nothing is dropped in silence: each field is honoured, approximated or refused, and it says why."""
        async with bed.open() as observer:
            fields = observer.service.capabilities.fields
        assert sorted(fields) == sorted(JOB_FIELDS)
        assert [n for n, (support, why) in fields.items() if support is not FieldSupport.HONOURS and not why] == []

    async def test_ping(self, bed: Bed) -> None:
        """A healthy WMS says so."""
        async with bed.open() as observer:
            status, message = await observer.service.ping()
        assert status == 0, message

    async def test_a_run_is_seen_under_its_token_and_ends(self, bed: Bed) -> None:
        """What was submitted is found by its token, shows its attributes, and succeeds."""
        async with bed.open() as observer:
            wms_id, workflow = await observer.submit(_two_jobs())
            answer = await observer.service.find_by_token(workflow.token, time.time() - 60)
            assert (answer.verdict, answer.wms_id) == ("found", wms_id)
            await bed.finish(observer, wms_id)
            run = await observer.until_over(wms_id, timeout_s=bed.patience_s)

            assert run.state is WmsStates.SUCCEEDED
            assert run.token == workflow.token
            assert (run.project, run.campaign, run.payload, run.operator) == ("dev", "contract", "pay", "op")
            assert run.as_row(observer.jobs[wms_id], full=True).labels == {
                "first": {"SUCCEEDED": 1},
                "second": {"SUCCEEDED": 1},
            }
            assert run.attempt == 1
            assert [source.status for source in observer.sources] == ["ok"] * len(observer.sources)

    async def test_a_check_leaves_nothing_behind(self, bed: Bed) -> None:
        """What validate asks makes no run, and the same workflow can be submitted afterwards."""
        async with bed.open() as observer:
            workflow = await observer.workflow(_two_jobs())
            await observer.service.run_submission_checks()
            await observer.service.check_workflow({}, workflow)
            answer = await observer.service.find_by_token(workflow.token, time.time() - 60)
            assert answer.verdict != "found"
            prepared = await observer.service.prepare({}, workflow)
            await observer.service.submit(prepared)
            assert prepared.run_id is not None
            await bed.finish(observer, prepared.run_id)
            run = await observer.until_over(prepared.run_id, timeout_s=bed.patience_s)
            assert run.state is WmsStates.SUCCEEDED

    async def test_the_same_token_is_the_same_run(self, bed: Bed) -> None:
        """Submitting a prepared workflow twice, or preparing it twice, makes one run."""
        async with bed.open() as observer:
            workflow = await observer.workflow(_two_jobs())
            ids = set()
            for _ in range(2):
                prepared = await observer.service.prepare({}, workflow)
                await observer.service.submit(prepared)
                ids.add(prepared.run_id)
            assert len(ids) == 1
            await bed.finish(observer, str(next(iter(ids))))
            await observer.until_over(str(next(iter(ids))), timeout_s=bed.patience_s)
            assert len([run for run in observer.runs.values() if run.token == workflow.token]) == 1

    async def test_an_unknown_token_is_not_found(self, bed: Bed) -> None:
        """A token that was never submitted is absent, or the adapter says that it cannot tell; it is never found."""
        async with bed.open() as observer:
            settled = time.time() - observer.service.capabilities.settle_s - 60
            answer = await observer.service.find_by_token(wire.new_token(), settled)
        assert answer.verdict in ("absent", "cannot_tell")

    async def test_polls_may_be_repeated_and_begun_again(self, bed: Bed) -> None:
        """The same result twice, an old cursor, and no cursor at all lead to the same rows."""
        async with bed.open() as observer:
            wms_id, _ = await observer.submit(_two_jobs())
            early = await observer.poll()
            await bed.finish(observer, wms_id)
            await observer.until_over(wms_id, timeout_s=bed.patience_s)
            before = (observer.runs[wms_id].state, observer.states(wms_id))

            observer.fold(early, began=time.time())
            assert (observer.runs[wms_id].state, observer.states(wms_id)) == before

            anew = Observer(observer.service, observer.folder)
            await anew.until_over(wms_id, timeout_s=bed.patience_s)
            assert (anew.runs[wms_id].state, anew.states(wms_id)) == before

    async def test_a_reopened_service_knows_its_runs(self, bed: Bed) -> None:
        """A daemon that restarts with nothing but the adapter's state finds the run, by token and by poll."""
        async with bed.open() as observer:
            wms_id, workflow = await observer.submit(_two_jobs())
        async with bed.open() as observer:
            answer = await observer.service.find_by_token(workflow.token, time.time() - 600)
            assert (answer.verdict, answer.wms_id) == ("found", wms_id)
            await bed.finish(observer, wms_id)
            run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert run.state is WmsStates.SUCCEEDED

    async def test_a_live_run_is_never_called_absent(self, bed: Bed) -> None:
        """From submission to the end no poll says that the run is gone."""
        async with bed.open() as observer:
            wms_id, _ = await observer.submit(_two_jobs())
            absent: list[str] = []
            finished = False
            for _ in range(2000):
                result = await observer.poll()
                absent += result.absent
                if not finished:
                    await bed.finish(observer, wms_id)
                    finished = True
                if wms_id in observer.runs and not observer.runs[wms_id].live:
                    break
            else:
                await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert absent == []

    async def test_cancel_ends_a_run_and_may_be_repeated(self, bed: Bed) -> None:
        """A cancelled run is DELETED, and cancelling it again does no harm."""
        async with bed.open() as observer:
            wms_id, _ = await observer.submit(document(shell_job("long_1", "sleep 300")))
            agreed, message = await observer.service.cancel(wms_id)
            assert agreed, message
            run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert run.state is WmsStates.DELETED
            await observer.service.cancel(wms_id)
            await observer.poll()
            assert observer.runs[wms_id].state is WmsStates.DELETED

    async def test_unknown_runs_are_refused(self, bed: Bed) -> None:
        """Cancelling or restarting what is not there is a clear error or a clear no."""
        async with bed.open() as observer:
            for ask in (observer.service.cancel, observer.service.restart):
                agreed, message = await _answer(ask("987654321"))
                assert not agreed
                assert message

    async def test_upstream_readers_agree_with_the_polls(self, bed: Bed) -> None:
        """`report`, `get_status` and `list_submitted_jobs` say what the polls said."""
        async with bed.open() as observer:
            wms_id, _ = await observer.submit(_two_jobs())
            await bed.finish(observer, wms_id)
            await observer.until_over(wms_id, timeout_s=bed.patience_s)
            reports, _ = await observer.service.report(wms_workflow_id=wms_id, hist=2)
            assert [report.wms_id for report in reports] == [wms_id]
            report = reports[0]
            assert report.state is WmsStates.SUCCEEDED
            assert report.total_number_jobs == 2
            assert report.job_state_counts is not None
            assert report.job_state_counts[WmsStates.SUCCEEDED] == 2
            assert report.jobs is not None
            assert sorted(job.name for job in report.jobs) == ["first_1", "second_1"]
            state, _ = await observer.service.get_status(wms_id, hist=2)
            assert state is WmsStates.SUCCEEDED
            assert wms_id not in await observer.service.list_submitted_jobs()

    async def test_every_form_of_an_id_leads_to_it(self, bed: Bed) -> None:
        """The forms of an id that the adapter names contain the id itself."""
        async with bed.open() as observer:
            wms_id, _ = await observer.submit(_two_jobs())
            assert wms_id in observer.service.resolve_id(wms_id)
            await observer.service.cancel(wms_id)
            await observer.until_over(wms_id, timeout_s=bed.patience_s)


class ExecutionContract:
    """What an adapter must do whose backend runs jobs: each field that it honours is proven."""

    async def test_order_and_output(self, bed: Bed) -> None:
        """Parents before children, the final job last, and output that can be read in pieces."""
        trace = bed.scratch / "trace"

        def job(name: str, *parents: str) -> dict[str, Any]:
            wait = "" if parents else "sleep 1; "  # what does not wait for its parents overtakes them
            script = f"{wait}echo {name} >> {trace}; echo out of {name}; echo err of {name} >&2"
            return shell_job(name, script, parents=parents)

        async with bed.open() as observer:
            wms_id, _ = await observer.submit(
                document(
                    job("a_1"), job("b_1", "a_1"), job("b_2", "a_1"), job("c_1", "b_1", "b_2"), final=job("final_1")
                )
            )
            run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert run.state is WmsStates.SUCCEEDED
            order = trace.read_text().split()
            assert sorted(order) == ["a_1", "b_1", "b_2", "c_1", "final_1"]
            assert (order[0], order[3:]) == ("a_1", ["c_1", "final_1"])
            if observer.service.capabilities.reads_output:
                whole = await observer.service.read_output(wms_id, "b_1", "stdout", 0, 65536)
                assert b"out of b_1\n" in whole.data
                assert whole.size == len(whole.data)
                tail = await observer.service.read_output(wms_id, "b_1", "stdout", -4, 65536)
                assert tail.data == whole.data[-4:]
                errors = await observer.service.read_output(wms_id, "b_1", "stderr", 0, 65536)
                assert b"err of b_1\n" in errors.data

    async def test_failure_prunes_and_restart_goes_on_from_there(self, bed: Bed) -> None:
        """A failed job prunes what needs it; a restart repeats nothing that succeeded and is the next attempt."""
        mended, trace = bed.scratch / "mended", bed.scratch / "ran"
        async with bed.open() as observer:
            wms_id, workflow = await observer.submit(
                document(
                    shell_job("good_1", f"echo good_1 >> {trace}"),
                    shell_job("bad_1", f"echo bad_1 >> {trace}; test -e {mended} || exit 3"),
                    shell_job("after_1", f"echo after_1 >> {trace}", parents=["good_1", "bad_1"]),
                    final=shell_job("final_1", f"echo final_1 >> {trace}"),
                )
            )
            run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert run.state is WmsStates.FAILED
            assert observer.states(wms_id) == {
                "good_1": "SUCCEEDED",
                "bad_1": "FAILED",
                "after_1": "PRUNED",
                "final_1": "SUCCEEDED",
            }
            assert run.as_row(observer.jobs[wms_id], full=True).exit_codes["bad"] == {"3": 1}

            mended.touch()
            new_id = await observer.restart(wms_id, workflow.token, 2)
            again, _, _ = await observer.service.restart(wms_id, attempt_token=f"{workflow.token}.2")
            assert again == new_id
            found = await observer.service.find_by_token(f"{workflow.token}.2", time.time() - 600)
            assert (found.verdict, found.wms_id) == ("found", new_id)
            run = await observer.until_over(new_id, attempt=2, timeout_s=bed.patience_s)
            assert run.state is WmsStates.SUCCEEDED
            ran = trace.read_text().split()
            assert ran.count("good_1") == 1
            assert ran.count("bad_1") == 2
            assert ran.count("after_1") == 1

    async def test_environment_and_arguments(self, bed: Bed) -> None:
        """Environment variables arrive, and arguments keep their quoting without a shell."""
        out = bed.scratch / "out"
        async with bed.open() as observer:
            if observer.service.capabilities.fields["environment"][0] is FieldSupport.REFUSES:
                return
            wms_id, _ = await observer.submit(
                document(
                    shell_job("env_1", f'printf "%s|" "$ONE" "$TWO" > {out}', environment={"ONE": "1 $HOME 'q'"}),
                    environment={"ONE": "run", "TWO": "two"},
                )
            )
            await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert out.read_text() == "1 $HOME 'q'|two|"

    async def test_variables_of_a_job_change_nothing_of_its_outcome(self, bed: Bed) -> None:
        """A job that sets the names that wrappers use ends as without them: no false success."""
        async with bed.open() as observer:
            support = observer.service.capabilities.fields["environment"][0]
            if support is FieldSupport.REFUSES:
                return
            jobs = []
            for number, value in enumerate(("0", "", "/nonexistent; exit 0"), start=1):
                hostile: dict[str, Any] = {"environment": dict.fromkeys(HOSTILE_NAMES, value)}
                jobs += [
                    shell_job(f"bad_{number}", "exit 5", **hostile),
                    shell_job(f"good_{number}", "exit 0", **hostile),
                    shell_job(f"after_{number}", "true", parents=[f"bad_{number}"], **hostile),
                ]
            wms_id, _ = await observer.submit(document(*jobs))
            run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert run.state is WmsStates.FAILED
            ends = {"bad": "FAILED", "good": "SUCCEEDED", "after": "PRUNED"}
            assert observer.states(wms_id) == {job["name"]: ends[job["label"]] for job in jobs}
            assert run.as_row(observer.jobs[wms_id], full=True).exit_codes["bad"] == {"5": 3}

    async def test_retries(self, bed: Bed) -> None:
        """A job is retried as often as it says, and not after an exit code that forbids it."""
        tries, never = bed.scratch / "tries", bed.scratch / "never"
        async with bed.open() as observer:
            wms_id, _ = await observer.submit(
                document(
                    shell_job("flaky_1", f"echo x >> {tries}; test $(wc -l < {tries}) -ge 3", number_of_retries=4),
                    shell_job("hopeless_1", f"echo x >> {never}; exit 42", number_of_retries=4, retry_unless_exit=[42]),
                )
            )
            run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert run.state is WmsStates.FAILED
            assert observer.states(wms_id) == {"flaky_1": "SUCCEEDED", "hopeless_1": "FAILED"}
            assert len(tries.read_text().split()) == 3
            assert len(never.read_text().split()) == 1

    async def test_pre_and_post_commands(self, bed: Bed) -> None:
        """The post command runs whatever happened, and the job's exit code is that of the job."""
        trace = bed.scratch / "prepost"
        async with bed.open() as observer:
            if observer.service.capabilities.fields["pre_cmdline"][0] is FieldSupport.REFUSES:
                return
            wms_id, _ = await observer.submit(
                document(
                    shell_job(
                        "wrapped_1",
                        f"echo job >> {trace}; exit 5",
                        pre_cmdline=f"echo pre >> {trace}",
                        post_cmdline=f"echo post >> {trace}",
                    )
                )
            )
            await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert trace.read_text().split() == ["pre", "job", "post"]
            assert observer.jobs[wms_id].row(0).exit_code == 5

    async def test_abort_on_value(self, bed: Bed) -> None:
        """A job whose exit code aborts the run keeps what has not begun from beginning."""
        late = bed.scratch / "late"
        async with bed.open() as observer:
            if observer.service.capabilities.fields["abort_on_value"][0] is FieldSupport.REFUSES:
                return
            wms_id, _ = await observer.submit(
                document(
                    shell_job("abort_1", "exit 9", abort_on_value=9, abort_return_value=1),
                    shell_job("other_1", "sleep 2"),
                    shell_job("late_1", f"touch {late}", parents=["other_1"]),
                )
            )
            run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert run.state is WmsStates.FAILED
            assert observer.states(wms_id)["abort_1"] == "FAILED"
            assert not late.exists()

    async def test_a_signal_is_one_number_in_every_field(self, bed: Bed) -> None:
        """A signal is 128 + N in reports, and ``-N`` and 128 + N mean the same where a workflow names it."""
        tries, late = bed.scratch / "signal-tries", bed.scratch / "signal-late"
        async with bed.open() as observer:
            support = observer.service.capabilities.fields
            if FieldSupport.REFUSES in (support["abort_on_value"][0], support["retry_unless_exit"][0]):
                return
            script = f"echo x >> {tries}; kill -SEGV $$"
            policy: dict[str, Any] = {"number_of_retries": 2, "retry_unless_exit": [139], "abort_on_value": -11}
            wms_id, _ = await observer.submit(
                document(
                    shell_job("signal_1", script, abort_return_value=1, **policy),
                    shell_job("other_1", "sleep 2"),
                    shell_job("late_1", f"touch {late}", parents=["other_1"]),
                )
            )
            run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert run.state is WmsStates.FAILED
            job = observer.jobs[wms_id].find("signal_1")
            assert job is not None
            assert (job.state, job.exit_code, job.note) == ("FAILED", 139, "signal 11 (SIGSEGV)")
            assert len(tries.read_text().split()) == 1
            assert not late.exists()

    async def test_noop_and_groups(self, bed: Bed) -> None:
        """Noop jobs only order; a group waits as a whole and, unless it blocks, its failures stay inside."""
        trace = bed.scratch / "groups"
        async with bed.open() as observer:
            wms_id, _ = await observer.submit(
                document(
                    shell_job("in_1", f"sleep 1; echo in_1 >> {trace}", group="g1"),
                    shell_job("in_2", "exit 1", group="g1"),
                    shell_job("in_3", f"echo in_3 >> {trace}", group="g1", parents=["in_2"]),
                    {"name": "sync", "label": "sync", "kind": "noop", "parents": ["g1"]},
                    shell_job("next_1", f"echo next_1 >> {trace}", parents=["sync"]),
                    groups=[{"name": "g1", "label": "g1"}],
                )
            )
            run = await observer.until_over(wms_id, timeout_s=bed.patience_s)
            assert run.state is WmsStates.FAILED
            assert trace.read_text().split() == ["in_1", "next_1"]
            assert observer.states(wms_id)["in_3"] == "PRUNED"
            assert "sync" not in observer.states(wms_id), "a noop job is no job that anybody counts"

    async def test_bad_workflows_are_refused_before_anything_runs(self, bed: Bed) -> None:
        """A missing executable is found before the WMS has the run."""
        async with bed.open() as observer:
            before = await observer.service.poll(PollRequest())  # a real pool has runs of others
            job = shell_job("a_1", "true") | {"executable": "/nonexistent/program"}
            name = f"refused-{wire.new_token()}"
            with pytest.raises(BpsdError, match="nonexistent"):
                await observer.submit(document(job, name=name))
            after = await observer.service.poll(PollRequest())
            known = {seen.wms_id for seen in before.observations}
            new = [s for s in after.observations if s.wms_id not in known and s.run in (None, name)]
            assert [seen for seen in new if seen.state is not WmsStates.DELETED] == []
