"""The order of a workflow: told against a naive model that recomputes everything after every event."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.models import WmsStates as S
from bpsd.workflow import Group, Job, Workflow
from bpsd_adapters.dag import Dag, Verdict, priority_number

TERMINAL = {S.SUCCEEDED, S.FAILED, S.PRUNED, S.DELETED, S.UNKNOWN}


def job(name: str, *parents: str, **fields: object) -> Job:
    return Job(name=name, parents=list(parents), **fields)  # type: ignore[arg-type]


def states(dag: Dag) -> list[S]:
    count = dag.job_count + (dag.final is not None)
    return [S(value) for value in dag.state[:count]]


def begun(*jobs: Job, **rest: object) -> Dag:
    dag = Dag(jobs, **rest)  # type: ignore[arg-type]
    dag.begin()
    return dag


def run(dag: Dag, node: int, exit_code: int | None = 0) -> Verdict | None:
    dag.start(node)
    return dag.finish(node, exit_code).verdict


# -- by example --------------------------------------------------------------------------------------------------------


def test_diamond_in_order() -> None:
    dag = Dag([job("a"), job("b", "a"), job("c", "a"), job("d", "b", "c")])

    assert dag.begin().ready == [0]
    dag.start(0)
    assert dag.finish(0, 0).ready == [1, 2]
    assert run(dag, 1) is Verdict.SUCCEEDED
    assert dag.ready(9) == [2]
    assert run(dag, 2) is Verdict.SUCCEEDED
    assert run(dag, 3) is Verdict.SUCCEEDED
    assert dag.done
    assert dag.result() is S.SUCCEEDED
    assert repr(dag) == "<Dag 4 jobs, {'SUCCEEDED': 4}>"


def test_failure_prunes_descendants_and_nothing_else() -> None:
    dag = begun(job("a"), job("b", "a"), job("c", "b"), job("x"), job("y", "x"))
    dag.start(0)
    out = dag.finish(0, 3)

    assert out.verdict is Verdict.FAILED
    assert out.pruned == [1, 2]
    assert run(dag, 3) is Verdict.SUCCEEDED
    assert run(dag, 4) is Verdict.SUCCEEDED
    assert dag.result() is S.FAILED


def test_retries_are_counted_and_some_exit_codes_are_final() -> None:
    dag = begun(job("a", number_of_retries=2, retry_unless_exit=[5, 6]), job("b", number_of_retries=2))

    assert run(dag, 0, 1) is Verdict.RETRY
    assert dag.retries(0) == 1
    assert run(dag, 0, 5) is Verdict.FAILED
    assert [run(dag, 1, -9), run(dag, 1, None), run(dag, 1, 1)] == [Verdict.RETRY, Verdict.RETRY, Verdict.FAILED]
    assert list(dag.starts[:2]) == [2, 3]


def test_a_single_exit_code_is_final_too() -> None:
    assert run(begun(job("a", number_of_retries=1, retry_unless_exit=7)), 0, 7) is Verdict.FAILED


@pytest.mark.parametrize(
    ("fields", "returned", "state"),
    [
        ({"abort_on_value": 4}, 4, S.FAILED),
        ({"abort_on_value": 4, "abort_return_value": 9}, 9, S.FAILED),
        ({"abort_on_value": 4, "abort_return_value": 0}, 0, S.SUCCEEDED),
    ],
)
def test_abort_ends_the_run_and_leaves_the_final_job(fields: dict[str, int], returned: int, state: S) -> None:
    dag = begun(
        job("a", number_of_retries=3, **fields), job("b"), job("c", "a"), job("d"), final=job("end", kind="payload")
    )
    dag.start(1)
    dag.start(0)
    out = dag.finish(0, 4)

    assert out.verdict is Verdict.ABORT
    assert out.return_value == returned
    assert out.removed == [2, 3]
    assert out.ready == []
    assert dag.ready(9) == []
    last = dag.finish(1, -15, removed=True)
    assert last.verdict is Verdict.REMOVED
    assert last.ready == [4] == dag.ready(9)
    assert run(dag, 4) is Verdict.SUCCEEDED
    assert dag.done
    assert states(dag) == [S.FAILED, S.DELETED, S.DELETED, S.DELETED, S.SUCCEEDED]
    assert dag.result() is state


def test_abort_of_the_last_job_frees_the_final_one_at_once() -> None:
    dag = begun(job("a", abort_on_value=0), final=job("end"))
    dag.start(0)

    assert dag.finish(0, 0).ready == [1]
    assert states(dag)[0] is S.SUCCEEDED


def test_cancel_ends_all_and_the_final_job_does_not_run() -> None:
    dag = begun(job("a"), job("b", "a"), job("c", number_of_retries=5), final=job("end"))
    dag.start(0)
    dag.start(2)
    out = dag.stop(S.DELETED, final=False)

    assert out.removed == [1, 3]
    assert dag.running == 2
    assert dag.finish(0, 0, removed=True).verdict is Verdict.SUCCEEDED  # it was quicker
    assert dag.finish(2, -15, removed=True).verdict is Verdict.REMOVED
    assert dag.done
    assert dag.stopped
    assert dag.result() is S.DELETED


@pytest.mark.parametrize("exit_code", [3, 5])
def test_an_exit_code_near_the_value_aborts_nothing(exit_code: int) -> None:
    dag = begun(job("a", abort_on_value=4), job("b"))

    assert run(dag, 0, exit_code) is Verdict.FAILED
    assert not dag.stopped
    assert dag.ready(9) == [1]


def test_after_an_abort_only_the_final_job_is_tried_again() -> None:
    dag = begun(job("a", abort_on_value=4), job("b", number_of_retries=2), final=job("end", number_of_retries=1))
    dag.start(0)
    dag.start(1)
    dag.finish(0, 4)

    assert dag.finish(1, 1).verdict is Verdict.FAILED
    assert run(dag, 2, 1) is Verdict.RETRY
    assert run(dag, 2, 0) is Verdict.SUCCEEDED
    assert dag.done


def test_the_exit_code_of_the_final_job_aborts_nothing() -> None:
    dag = begun(job("a"), final=job("end", abort_on_value=4, abort_return_value=0))
    run(dag, 0)

    assert run(dag, 1, 4) is Verdict.FAILED
    assert dag.result() is S.FAILED


def test_a_job_that_did_not_begin_before_a_cancel_is_removed_and_the_run_ends() -> None:
    dag = begun(job("a"), job("b"), final=job("end"))
    dag.start(0)
    dag.start(1)
    dag.stop(S.DELETED, final=False)

    first, over = dag.withdraw(0), dag.done
    assert (first.removed, over) == ([0], False)
    assert dag.withdraw(1).removed == [1]
    assert dag.done
    assert states(dag) == [S.DELETED, S.DELETED, S.DELETED]
    assert dag.count(S.DELETED) == 3
    assert dag.count(S.READY) == 0


def test_a_job_that_did_not_begin_before_an_abort_is_removed_and_the_final_job_is_not() -> None:
    dag = begun(job("a", abort_on_value=4), job("b"), final=job("end"))
    dag.start(0)
    dag.start(1)
    dag.finish(0, 4)
    out = dag.withdraw(1)

    assert (out.removed, out.ready) == ([1], [2])
    dag.start(2)
    again = dag.withdraw(2)
    assert (again.removed, again.ready) == ([], [2])
    assert run(dag, 2) is Verdict.SUCCEEDED
    assert dag.done


def test_the_final_job_that_did_not_begin_before_a_cancel_is_removed() -> None:
    dag = begun(job("a"), final=job("end"))
    run(dag, 0)
    dag.start(1)
    dag.stop(S.DELETED, final=False)

    assert dag.withdraw(1).removed == [1]
    assert dag.done


def test_a_cancel_of_a_run_without_a_final_job_removes_its_jobs_alone() -> None:
    dag = begun(job("a"))

    assert dag.stop(S.DELETED, final=False).removed == [0]
    assert dag.done


def test_final_job_runs_after_failures_and_decides() -> None:
    dag = begun(job("a"), final=job("end", number_of_retries=1))
    run(dag, 0, 1)

    assert dag.ready(9) == [1]
    assert run(dag, 1, 1) is Verdict.RETRY
    assert run(dag, 1, 0) is Verdict.SUCCEEDED
    assert dag.result() is S.FAILED


def test_a_failed_final_job_fails_the_run() -> None:
    dag = begun(job("a"), final=job("end"))
    run(dag, 0)
    run(dag, 1, 1)

    assert dag.done
    assert dag.result() is S.FAILED


def test_noop_jobs_complete_at_once_also_as_the_final_one() -> None:
    dag = Dag([job("n", kind="noop"), job("a", "n"), job("m", "a", kind="noop")], final=job("end", kind="noop"))

    assert dag.begin().completed == [0]
    dag.start(1)
    assert dag.finish(1, 0).completed == [2, 3]
    assert dag.done
    assert dag.result() is S.SUCCEEDED


def test_nothing_but_noops_is_over_as_it_begins() -> None:
    dag = begun(job("n", kind="noop"))

    assert dag.done


def test_lost_job_is_unknown_and_never_succeeded_or_failed() -> None:
    dag = begun(job("a", number_of_retries=3), job("b", "a"))
    dag.start(0)
    out = dag.finish(0, lost=True)

    assert out.verdict is Verdict.LOST
    assert out.pruned == [1]
    assert states(dag) == [S.UNKNOWN, S.PRUNED]
    assert dag.result() is S.FAILED


def test_the_next_attempt_of_a_run_does_only_what_is_left() -> None:
    dag = begun(job("a"), job("b", "a", number_of_retries=1), job("c", "b"), job("d"), final=job("end"))
    run(dag, 0)
    run(dag, 1, 1)
    run(dag, 1, 1)
    run(dag, 3)
    run(dag, 4)
    assert dag.result() is S.FAILED

    assert dag.begin().ready == [1]
    assert states(dag) == [S.SUCCEEDED, S.READY, S.UNREADY, S.SUCCEEDED, S.UNREADY]
    assert dag.start(1) == 3  # attempts of a job never start again from one
    assert dag.finish(1, 1).verdict is Verdict.RETRY  # its retries do
    run(dag, 1)
    run(dag, 2)
    assert run(dag, 4) is Verdict.SUCCEEDED
    assert dag.starts[4] == 2
    assert dag.result() is S.SUCCEEDED


def test_what_the_log_says_is_taken_over() -> None:
    dag = Dag([job("a"), job("b", "a"), job("c", "b")])
    dag.record(0, 2, succeeded=True)
    dag.record(1, 1, succeeded=False)

    assert dag.begin().ready == [1]
    assert dag.start(1) == 2


def test_categories_limit_what_runs_at_once() -> None:
    jobs = [job(f"db{i}", category="db") for i in range(4)] + [job("free"), job("other", category="none")]
    dag = begun(*jobs, category_limits={"db": 2})

    assert dag.ready(9) == [0, 1, 4, 5]
    dag.start(0)
    dag.start(1)
    assert dag.ready(9) == [4, 5]
    with pytest.raises(ValueError, match="limit of its category"):
        dag.start(2)
    dag.finish(0, 0)
    assert dag.ready(9) == [2, 4, 5]


def test_priority_goes_before_order_and_order_before_nothing() -> None:
    dag = begun(job("a"), job("b", priority=5), job("c", priority="-1"), job("d", priority=5))

    assert dag.ready(9) == [1, 3, 0, 2]
    assert dag.ready(1) == [1]
    assert priority_number(None) == 0
    with pytest.raises(ValueError, match="invalid literal"):
        priority_number("DAG_PRIO + 1")


def test_groups_are_ordered_as_one() -> None:
    groups = [Group(name="g", parents=["a"]), Group(name="h", parents=["g"], blocking=True)]
    dag = begun(
        job("a"),
        job("g1", group="g"),
        job("g2", "g1", group="g"),
        job("g3", group="g"),
        job("h1", group="h"),
        job("h2", group="h"),
        job("z", "h"),
        groups=groups,
    )
    assert dag.ready(9) == [0]
    run(dag, 0)
    assert dag.ready(9) == [1, 3]
    assert run(dag, 1, 1) is Verdict.FAILED
    assert dag.ready(9) == [3]  # g2 is pruned, g is not over
    run(dag, 3)
    assert dag.ready(9) == [4, 5]  # a failure in g stops nothing behind it
    run(dag, 4, 1)
    assert states(dag)[6] is S.PRUNED  # in h it does
    run(dag, 5)
    assert dag.done


def test_failure_before_a_group_prunes_through_it() -> None:
    dag = begun(job("a"), job("g1", group="g"), job("z", "g"), groups=[Group(name="g", parents=["a"])])
    run(dag, 0, 1)

    assert states(dag) == [S.FAILED, S.PRUNED, S.PRUNED]


def test_order_holds_again_in_the_next_attempt() -> None:
    dag = begun(job("g1", group="g"), job("z", "g"), groups=[Group(name="g")])
    run(dag, 0, 1)
    run(dag, 1, 1)

    assert dag.begin().ready == [0]  # z waits for the group once more


@pytest.mark.parametrize(
    ("jobs", "groups", "limits", "message"),
    [
        ([job("a", "b"), job("b", "a")], [], {}, "circular"),
        ([job("a", "ghost")], [], {}, "unknown parent 'ghost'"),
        ([job("a", group="ghost")], [], {}, "unknown group 'ghost'"),
        ([job("a")], [Group(name="g", parents=["ghost"])], {}, "unknown parent 'ghost'"),
        ([job("a", "g", group="g")], [Group(name="g")], {}, "circular"),
        ([job("a")], [], {"db": 0}, "limit below 1"),
    ],
)
def test_what_no_validator_passes_is_refused(
    jobs: list[Job], groups: list[Group], limits: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Dag(jobs, groups=groups, category_limits=limits)


def test_events_out_of_turn_are_refused() -> None:
    dag = begun(job("a"), job("b", "a"))

    with pytest.raises(ValueError, match="is UNREADY, not READY"):
        dag.start(1)
    with pytest.raises(ValueError, match="is READY, not RUNNING"):
        dag.finish(0, 0)


# -- against a naive model ---------------------------------------------------------------------------------------------


@st.composite
def workflows(draw: st.DrawFn) -> Workflow:
    count = draw(st.integers(1, 9))
    group_count = draw(st.integers(0, 2))
    names = [f"j{i}" for i in range(count)]
    group_names = [f"g{i}" for i in range(group_count)]
    member = [draw(st.sampled_from([None, *group_names])) for _ in names]
    jobs = []
    for i, name in enumerate(names):
        parents = draw(st.lists(st.sampled_from(names[:i]), max_size=3)) if i else []
        # A job behind a group comes after all of its members, or the order would be circular.
        behind = [g for g in group_names if member[i] is None and all(member[k] != g for k in range(i, count))]
        parents += draw(st.lists(st.sampled_from(behind), max_size=1)) if behind else []
        retries = draw(st.integers(0, 1))
        abort = draw(st.sampled_from([None, None, None, 2]))
        kind = draw(st.sampled_from(["payload", "payload", "payload", "noop"]))
        priority = draw(st.integers(-1, 1))
        category = draw(st.sampled_from([None, "few"]))
        jobs.append(
            job(
                name,
                *parents,
                group=member[i],
                number_of_retries=retries,
                abort_on_value=abort,
                kind=kind,
                priority=priority,
                category=category,
            )
        )
    groups = []
    for g in group_names:
        begins = min((i for i in range(count) if member[i] == g), default=0)
        parents = draw(st.lists(st.sampled_from(names[:begins]), max_size=2)) if begins else []
        outside = [p for p in parents if member[int(p[1:])] is None]
        groups.append(Group(name=g, blocking=draw(st.booleans()), parents=outside))
    final = job("final") if draw(st.booleans()) else None
    return Workflow(name="w", jobs=jobs, groups=groups, final=final, category_limits={"few": draw(st.integers(1, 2))})


@dataclass
class Model:
    """What the words of the document say, recomputed from the ends of jobs each time."""

    workflow: Workflow
    ended: dict[str, S]

    def job_state(self, name: str) -> S | None:
        """SUCCEEDED, FAILED, PRUNED, ..., or None while it is open."""
        if name in self.ended:
            return self.ended[name]
        one = next(j for j in self.workflow.jobs if j.name == name)
        verdicts = self.holds(one)
        if False in verdicts:
            return S.PRUNED
        if one.kind == "noop" and None not in verdicts:
            return S.SUCCEEDED
        return None

    def holds(self, one: Job) -> list[bool | None]:
        """For each thing that it waits for: over and well (True), never well (False), still open (None)."""
        verdicts = [self.holds_name(name) for name in one.parents]
        if one.group is not None and not any(
            j.name in one.parents and j.group == one.group for j in self.workflow.jobs
        ):
            verdicts.append(self.group_begins(one.group))
        return verdicts

    def holds_name(self, name: str) -> bool | None:
        if any(g.name == name for g in self.workflow.groups):
            return self.group_ends(name)
        state = self.job_state(name)
        return None if state is None else state is S.SUCCEEDED

    def group_begins(self, name: str) -> bool | None:
        group = next(g for g in self.workflow.groups if g.name == name)
        verdicts = [self.holds_name(parent) for parent in group.parents]
        return False if False in verdicts else None if None in verdicts else True

    def group_ends(self, name: str) -> bool | None:
        group = next(g for g in self.workflow.groups if g.name == name)
        begins = self.group_begins(name)
        members = [self.job_state(j.name) for j in self.workflow.jobs if j.group == name]
        if begins is False or (group.blocking and any(m not in (None, S.SUCCEEDED) for m in members)):
            return False
        return None if begins is None or None in members else True


@given(workflow=workflows(), data=st.data())
def test_every_step_is_what_the_naive_model_says(workflow: Workflow, data: st.DataObject) -> None:
    dag = Dag.of(workflow)
    names = [j.name for j in workflow.jobs]
    succeeded: set[str] = set()
    for attempt in range(2):
        dag.begin()
        model = Model(workflow, dict.fromkeys(succeeded, S.SUCCEEDED))
        running: list[int] = []
        aborted = False
        started = dict.fromkeys(range(len(names) + 1), 0)
        while not dag.done:
            if not aborted:
                check(dag, model, running)
            ready = dag.ready(100)
            assert len(set(ready)) == len(ready)
            assert not set(ready) & set(running)
            assert ready or running, "nothing can go on, and it is not done"
            if dag.final in ready:
                assert not running
                assert all(s in TERMINAL for s in states(dag)[:-1])
            if ready and (not running or data.draw(st.booleans())):
                node = data.draw(st.sampled_from(ready))
                first = max(workflow.jobs[n].priority or 0 for n in ready) if dag.final not in ready else 0
                if dag.final not in ready:
                    assert (workflow.jobs[ready[0]].priority or 0) == first
                before = dag.starts[node]
                assert dag.start(node) == before + 1
                started[node] += 1
                running.append(node)
                few = [n for n in running if n != dag.final and workflow.jobs[n].category == "few"]
                assert len(few) <= workflow.category_limits["few"]
                continue
            node = running.pop(data.draw(st.integers(0, len(running) - 1)))
            code = data.draw(st.sampled_from([0, 0, 0, 1, 2, -9]))
            verdict = dag.finish(node, code, removed=aborted).verdict
            if node == dag.final:
                continue
            one = workflow.jobs[node]
            if not aborted:
                again = code != 0 and started[node] <= (one.number_of_retries or 0) and code != one.abort_on_value
                assert (verdict is Verdict.RETRY) == again
                if verdict is Verdict.RETRY:
                    continue
            aborted = aborted or verdict is Verdict.ABORT
            model.ended[one.name] = S.SUCCEEDED if code == 0 else S.FAILED
        seen = states(dag)
        assert all(s in TERMINAL for s in seen)
        if not aborted:
            check(dag, model, running)
            well = all(s is S.SUCCEEDED for s in seen)
            assert (dag.result() is S.SUCCEEDED) == well
        if dag.final is not None:
            assert started[dag.final] == 1, f"the final job did not run once in attempt {attempt}"
        succeeded = {
            n for n, s, j in zip(names, seen, workflow.jobs, strict=False) if s is S.SUCCEEDED and j.kind != "noop"
        }


def check(dag: Dag, model: Model, running: list[int]) -> None:
    """Every job is where the model says."""
    for node, one in enumerate(model.workflow.jobs):
        seen, want = S(dag.state[node]), model.job_state(one.name)
        if want is not None:
            assert seen is want, f"{one.name} is {seen.name}, not {want.name}"
        elif node in running:
            assert seen is S.RUNNING
        else:
            holds = model.holds(one)
            assert seen is (S.UNREADY if None in holds else S.READY), f"{one.name} is {seen.name}, holds {holds}"


@given(workflow=workflows(), data=st.data())
def test_the_same_events_give_the_same_state_and_a_log_replaces_the_past(
    workflow: Workflow, data: st.DataObject
) -> None:
    one, two = Dag.of(workflow), Dag.of(workflow)
    one.begin()
    two.begin()
    while not one.done:
        node = one.ready(1)[0]
        assert two.ready(1) == [node]
        code = data.draw(st.sampled_from([0, 0, 1]))
        one.start(node)
        two.start(node)
        assert one.finish(node, code) == two.finish(node, code)
        assert one.state == two.state

    told = Dag.of(workflow)
    for node, state in enumerate(states(one)):
        if node != one.final:
            told.record(node, one.starts[node], succeeded=state is S.SUCCEEDED)
    if one.final is not None:
        told.record(one.final, one.starts[one.final], succeeded=False)
    assert told.begin() == one.begin()
    assert told.state == one.state
    assert told.starts == one.starts


def test_a_hundred_thousand_jobs_are_built_and_run() -> None:
    """The shape of a processing of visits: one beginning, chains of two, one end for every hundred."""
    jobs = [job("init", label="init")]
    for i in range(49_500):
        jobs += [job(f"isr_{i}", "init"), job(f"cal_{i}", f"isr_{i}")]
    for i in range(495):
        jobs.append(job(f"coadd_{i}", *(f"cal_{k}" for k in range(i * 100, i * 100 + 100))))
    dag = begun(*jobs)
    while not dag.done:
        for node in dag.ready(64):
            run(dag, node)

    assert dag.result() is S.SUCCEEDED
    assert dag.count(S.SUCCEEDED) == 99_496
