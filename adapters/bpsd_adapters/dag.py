"""Which job may start next, and which never will: the order of a workflow as a pure state machine.

Whoever drives a workflow tells it what happened (`Dag.start`, `Dag.finish`, `Dag.withdraw`, `Dag.stop`) and hears what
follows (`Outcome`); nothing here reads a clock, a file or a process, so the same events always give the same state.

Nodes are numbers: the jobs in the order of the document, then the final job, then *gates*, which stand for the
beginning and the end of a group, so that ordering n jobs before m takes n + m edges. State is kept in columns, about
40 bytes for a job with two parents, and the names of jobs are not kept at all.

An edge is *hard* (a failure of the parent prunes the child) or *soft* (order only). Every member of a non-blocking
group has a soft edge to its end, which is why what comes after the group runs all the same.
"""

from __future__ import annotations

__all__ = ["Dag", "Outcome", "Policy", "Verdict", "priority_number"]

import heapq
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Self

from bpsd.models import WmsStates, normal_exit_code
from bpsd.workflow import Group, Job, Workflow

UNREADY = int(WmsStates.UNREADY)
READY = int(WmsStates.READY)
RUNNING = int(WmsStates.RUNNING)
SUCCEEDED = int(WmsStates.SUCCEEDED)
FAILED = int(WmsStates.FAILED)
PRUNED = int(WmsStates.PRUNED)
DELETED = int(WmsStates.DELETED)
UNKNOWN = int(WmsStates.UNKNOWN)

SOFT = 1
"""The lowest bit of an edge; the rest is the child."""

NO_CATEGORY = -1


class Policy(NamedTuple):
    """What a job's failure leads to; the same for many jobs and shared by them."""

    retries: int = 0
    retry_unless: frozenset[int] = frozenset()
    abort_on: int | None = None
    abort_return: int | None = None


class Verdict(Enum):
    """What became of a job that ended."""

    SUCCEEDED = "succeeded"
    RETRY = "retry"
    """It failed and is ready again."""

    FAILED = "failed"
    ABORT = "abort"
    """It ended with its ``abort_on_value``: end what runs; only the final job is still to come."""

    REMOVED = "removed"
    """It was ended on purpose."""

    LOST = "lost"
    """Nobody saw how it ended."""


@dataclass(slots=True)
class Outcome:
    """What follows from an event. The lists hold jobs in the order in which it happened, gates never."""

    verdict: Verdict | None = None
    return_value: int | None = None
    """With `Verdict.ABORT`: what the run is to return."""

    ready: list[int] = field(default_factory=list)
    completed: list[int] = field(default_factory=list)
    """Noop jobs that came and went."""

    pruned: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    """Jobs that will not run since the run was stopped."""


def priority_number(priority: int | str | None) -> int:
    """A job's priority as a number, 0 if it has none; higher goes first.

    Raises
    ------
    ValueError
        If it is a text that is not a whole number.
    """
    return 0 if priority is None else int(priority)


class Dag:
    """The jobs of one run, their order, and how far they are.

    Parameters
    ----------
    jobs : `~collections.abc.Iterable` [`~bpsd.workflow.Job`]
        In the order of the document; looked at once, not kept.
    groups : `~collections.abc.Sequence` [`~bpsd.workflow.Group`], optional
        What jobs name in ``group`` and ``parents``.
    final : `~bpsd.workflow.Job`, optional
        The job that runs last, whatever happened.
    category_limits : `~collections.abc.Mapping` [`str`, `int`], optional
        How many jobs of a category may run at once.

    Raises
    ------
    ValueError
        If a parent or a group is unknown, a limit is below 1, or the order is circular. Documents are validated before;
        this is the last defence.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        *,
        groups: Sequence[Group] = (),
        final: Job | None = None,
        category_limits: Mapping[str, int] | None = None,
    ) -> None:
        plan = _Plan(jobs, groups, final, category_limits or {})
        self.job_count = plan.job_count
        """How many jobs there are without the final one."""

        self.final: int | None = plan.final
        self._policies, self._policy = plan.policies, plan.policy
        self._rank, self._category = plan.ranks(), plan.category
        self._room = list(plan.limits)
        self._limits = tuple(plan.limits)
        self._instant = plan.instant
        self._first, self._edges = plan.edges()
        self._size = len(self._instant)
        self.state = bytearray([UNREADY]) * self._size
        """The `WmsStates` value of each node."""

        self.starts = array("I", bytes(4 * self._size))
        """How often each node was started, over all attempts of the run: the number of its last attempt."""

        self._tries = array("I", bytes(4 * self._size))
        self._waiting = array("I", bytes(4 * self._size))
        self._heap: list[int] = []
        self._parked: list[list[int]] = [[] for _ in self._room]
        self._open = self._running = 0
        self._stopped: WmsStates | None = None
        self._check_order()

    @classmethod
    def of(cls, workflow: Workflow) -> Self:
        """The order of a whole workflow."""
        return cls(
            workflow.jobs,
            groups=workflow.groups,
            final=workflow.final,
            category_limits=workflow.category_limits,
        )

    def __repr__(self) -> str:
        counts = {s.name: n for s in WmsStates if (n := self.count(s))}
        return f"<Dag {self.job_count} jobs, {counts}>"

    # -- events ------------------------------------------------------------------------------------------------------

    def record(self, node: int, starts: int, *, succeeded: bool) -> None:
        """What the log says of earlier attempts of the run; before `begin`."""
        self.starts[node] = max(self.starts[node], starts)
        if succeeded:
            self.state[node] = SUCCEEDED

    def begin(self) -> Outcome:
        """Begin an attempt of the run: what succeeded stays, all else is to be done (again), the final job always."""
        out = Outcome()
        self._reset()
        state, first, edges, waiting = self.state, self._first, self._edges, self._waiting
        for node in range(self._size):
            if state[node] != SUCCEEDED:
                for edge in edges[first[node] : first[node + 1]]:
                    waiting[edge >> 1] += 1
        self._open = self.job_count - state.count(SUCCEEDED, 0, self.job_count)
        for node in [n for n in range(self._size) if state[n] == UNREADY and not waiting[n] and n != self.final]:
            if self._free(node, out):
                self._settle(node, out)
        self._look_at_end(out)
        return out

    def is_instant(self, node: int) -> bool:
        """Whether a node only orders others (noop): nobody runs it, and no report counts it (as upstream)."""
        return bool(self._instant[node])

    def ready(self, limit: int) -> list[int]:
        """Up to ``limit`` jobs that may start now, the most urgent first, as the limits of categories allow."""
        found: list[int] = []
        kept: list[int] = []
        taken: dict[int, int] = {}
        before = -1
        while self._heap and len(found) < limit:
            entry = heapq.heappop(self._heap)
            node = entry % self._size
            if self.state[node] != READY or entry == before:
                continue  # it was started, removed, or stands there twice
            before = entry
            category = self._category[node]
            if category != NO_CATEGORY and taken.get(category, 0) >= self._room[category]:
                heapq.heappush(self._parked[category], entry)
                continue
            taken[category] = taken.get(category, 0) + 1
            found.append(node)
            kept.append(entry)
        for entry in kept:
            heapq.heappush(self._heap, entry)
        return found

    def start(self, node: int) -> int:
        """A ready job starts; returns the number of this attempt of it."""
        if self.state[node] != READY:
            raise ValueError(f"node {node} is {WmsStates(self.state[node]).name}, not READY")
        category = self._category[node]
        if category != NO_CATEGORY:
            if not self._room[category]:
                raise ValueError(f"node {node} is over the limit of its category")
            self._room[category] -= 1
        self.state[node] = RUNNING
        self.starts[node] += 1
        self._running += 1
        return self.starts[node]

    def finish(self, node: int, exit_code: int | None = None, *, removed: bool = False, lost: bool = False) -> Outcome:
        """A running job ended.

        Parameters
        ----------
        node : `int`
            The job.
        exit_code : `int`, optional
            Its exit code, a signal in either convention; `None` if it has none (it could not start, ran out of time).
        removed : `bool`, optional
            It was ended on purpose: unless it succeeded all the same, it is DELETED and not tried again.
        lost : `bool`, optional
            Nobody saw how it ended: it is UNKNOWN, and what depends on it does not run.
        """
        if self.state[node] != RUNNING:
            raise ValueError(f"node {node} is {WmsStates(self.state[node]).name}, not RUNNING")
        out = Outcome()
        self._running -= 1
        self._give_room(self._category[node])
        exit_code = None if exit_code is None else normal_exit_code(exit_code)
        out.verdict = self._judge(node, exit_code, removed=removed, lost=lost)
        if out.verdict is Verdict.RETRY:
            self._tries[node] += 1
            self._enqueue(node)
            out.ready.append(node)
            return out
        self.state[node] = SUCCEEDED if exit_code == 0 else _STATE_OF[out.verdict]
        if node != self.final:
            self._open -= 1
        if out.verdict is Verdict.ABORT:
            policy = self._policies[self._policy[node]]
            out.return_value = policy.abort_on if policy.abort_return is None else policy.abort_return
            self._stop(WmsStates.FAILED if out.return_value else WmsStates.SUCCEEDED, out, final=True)
        elif node != self.final:
            self._settle(node, out)
            self._look_at_end(out)
        return out

    def withdraw(self, node: int) -> Outcome:
        """A job that was started turns out not to have begun, and never will under that number: it is ready again.

        If the run was stopped meanwhile it is removed, unless it is the final job and that may still run.
        """
        if self.state[node] != RUNNING:
            raise ValueError(f"node {node} is {WmsStates(self.state[node]).name}, not RUNNING")
        out = Outcome()
        self._running -= 1
        self._give_room(self._category[node])
        if self.stopped and (node != self.final or self._stopped is WmsStates.DELETED):
            self.state[node] = DELETED
            out.removed.append(node)
            if node != self.final:
                self._open -= 1
                self._look_at_end(out)
        else:
            self._enqueue(node)
            out.ready.append(node)
        return out

    def stop(self, state: WmsStates, *, final: bool) -> Outcome:
        """Start nothing more: the run is to end as ``state``; what has not begun is DELETED.

        What runs is to be ended by the caller and then told with `finish`. ``final`` lets the final job run after that.
        """
        out = Outcome()
        self._stop(state, out, final=final)
        return out

    # -- what it says ------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """How many jobs run."""
        return self._running

    @property
    def done(self) -> bool:
        """Whether nothing is left to do in this attempt of the run."""
        if self._open or self._running:
            return False
        return self.final is None or self.state[self.final] not in (UNREADY, READY)

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called in this attempt of the run."""
        return self._stopped is not None

    def result(self) -> WmsStates:
        """The state of the run once it is `done`."""
        if self._stopped is WmsStates.DELETED:
            return WmsStates.DELETED
        if self.final is not None and self.state[self.final] != SUCCEEDED:
            return WmsStates.FAILED
        if self._stopped is not None:
            return self._stopped
        whole = self.state.count(SUCCEEDED, 0, self.job_count) == self.job_count
        return WmsStates.SUCCEEDED if whole else WmsStates.FAILED

    def count(self, state: WmsStates) -> int:
        """How many jobs, the final one included, are in a state."""
        return self.state.count(int(state), 0, self.job_count + (self.final is not None))

    def retries(self, node: int) -> int:
        """How many retries of a job this attempt of the run has begun."""
        return self._tries[node]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        for node in range(self._size):
            if self.state[node] != SUCCEEDED or self._instant[node] or node == self.final:
                self.state[node] = UNREADY
        self._tries = array("I", bytes(4 * self._size))
        self._waiting = array("I", bytes(4 * self._size))
        self._heap, self._parked = [], [[] for _ in self._limits]
        self._room = list(self._limits)
        self._running, self._stopped = 0, None

    def _stop(self, state: WmsStates, out: Outcome, *, final: bool) -> None:
        self._stopped = state
        for node in range(self.job_count):
            if self.state[node] in (UNREADY, READY):
                self.state[node] = DELETED
                self._open -= 1
                out.removed.append(node)
        if final:
            self._look_at_end(out)
        elif self.final is not None and self.state[self.final] in (UNREADY, READY):
            self.state[self.final] = DELETED
            out.removed.append(self.final)

    def _judge(self, node: int, exit_code: int | None, *, removed: bool, lost: bool) -> Verdict:
        policy = self._policies[self._policy[node]]
        if lost:
            return Verdict.LOST
        if policy.abort_on is not None and exit_code == policy.abort_on and not self.stopped and node != self.final:
            return Verdict.ABORT
        if exit_code == 0:
            return Verdict.SUCCEEDED
        if removed:
            return Verdict.REMOVED
        again = self._tries[node] < policy.retries and exit_code not in policy.retry_unless
        # After an abort the final job is the only one that may still be tried again.
        return Verdict.RETRY if again and (not self.stopped or node == self.final) else Verdict.FAILED

    def _give_room(self, category: int) -> None:
        if category != NO_CATEGORY:
            self._room[category] += 1
            if self._parked[category]:
                heapq.heappush(self._heap, heapq.heappop(self._parked[category]))

    def _enqueue(self, node: int) -> None:
        self.state[node] = READY
        heapq.heappush(self._heap, self._rank[node] * self._size + node)

    def _free(self, node: int, out: Outcome) -> bool:
        """Nothing holds the node back any more: it is ready, or over at once (then true) if there is nothing to run."""
        if not self._instant[node]:
            self._enqueue(node)
            out.ready.append(node)
            return False
        self.state[node] = SUCCEEDED
        if node < self.job_count:
            self._open -= 1
        if node < self.job_count or node == self.final:
            out.completed.append(node)
        return True

    def _settle(self, ended: int, out: Outcome) -> None:
        """Tell the children of a node that ended, and theirs where that ends them too."""
        state, first, edges, waiting = self.state, self._first, self._edges, self._waiting
        stack = [ended]
        while stack:
            node = stack.pop()
            well = state[node] == SUCCEEDED
            for edge in edges[first[node] : first[node + 1]]:
                child = edge >> 1
                if state[child] != UNREADY:
                    continue
                if not well and not edge & SOFT:
                    state[child] = PRUNED
                    if child < self.job_count:
                        self._open -= 1
                        out.pruned.append(child)
                    stack.append(child)
                    continue
                waiting[child] -= 1
                if not waiting[child] and self._free(child, out):
                    stack.append(child)

    def _look_at_end(self, out: Outcome) -> None:
        """The final job is ready once nothing else is open."""
        if self.final is not None and not self._open and not self._running and self.state[self.final] == UNREADY:
            self._free(self.final, out)

    def _check_order(self) -> None:
        """Kahn's algorithm, for its answer to one question: is every node reached?"""
        left = array("I", bytes(4 * self._size))
        for edge in self._edges:
            left[edge >> 1] += 1
        stack = [n for n in range(self._size) if not left[n]]
        reached = 0
        while stack:
            node = stack.pop()
            reached += 1
            for edge in self._edges[self._first[node] : self._first[node + 1]]:
                child = edge >> 1
                left[child] -= 1
                if not left[child]:
                    stack.append(child)
        if reached != self._size:
            circle = [n for n in range(self.job_count) if left[n]][:3]
            raise ValueError(f"the order of the jobs is circular (at or behind jobs number {circle})")


_STATE_OF = {
    Verdict.SUCCEEDED: SUCCEEDED,
    Verdict.FAILED: FAILED,
    Verdict.ABORT: FAILED,
    Verdict.REMOVED: DELETED,
    Verdict.LOST: UNKNOWN,
}


class _Plan:
    """The columns and edges of a `Dag`, gathered from a document."""

    def __init__(
        self, jobs: Iterable[Job], groups: Sequence[Group], final: Job | None, limits: Mapping[str, int]
    ) -> None:
        self.policies: list[Policy] = []
        self.policy = array("I")
        self.category = array("i")
        self.instant = bytearray()
        if any(limit < 1 for limit in limits.values()):
            raise ValueError(f"a category with a limit below 1 would never run: {dict(limits)}")
        self.limits = list(limits.values())
        self._categories = {name: i for i, name in enumerate(limits)}
        self._policy_numbers: dict[Policy, int] = {}
        self._priority = array("q")
        self._from, self._to = array("I"), array("I")
        self._numbers: dict[str, int] = {}
        self._parents: list[list[str]] = []
        self._group_of: dict[int, str] = {}
        for job in jobs:
            self._add_job(job)
        self.job_count = len(self.instant)
        self.final = None if final is None else self._add_final(final)
        begins, ends = self._add_gates(groups)
        self._link_jobs(ends)
        self._link_groups(groups, begins, ends)

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _add_job(self, job: Job) -> None:
        node = len(self.instant)
        self._numbers[job.name] = node
        self._parents.append(job.parents)
        if job.group is not None:
            self._group_of[node] = job.group
        self._add_node(job)

    def _add_final(self, job: Job) -> int:
        self._add_node(job)
        return len(self.instant) - 1

    def _add_node(self, job: Job) -> None:
        unless = job.retry_unless_exit
        codes = () if unless is None else [unless] if isinstance(unless, int) else unless
        policy = Policy(
            job.number_of_retries or 0,
            frozenset(normal_exit_code(code) for code in codes),
            None if job.abort_on_value is None else normal_exit_code(job.abort_on_value),
            job.abort_return_value,
        )
        number = self._policy_numbers.setdefault(policy, len(self.policies))
        if number == len(self.policies):
            self.policies.append(policy)
        self.policy.append(number)
        self.category.append(self._categories.get(job.category or "", NO_CATEGORY))
        self.instant.append(job.kind == "noop")
        self._priority.append(priority_number(job.priority))

    def _add_gates(self, groups: Sequence[Group]) -> tuple[dict[str, int], dict[str, int]]:
        begins: dict[str, int] = {}
        ends: dict[str, int] = {}
        for group in groups:
            for gates in (begins, ends):
                gates[group.name] = len(self.instant)
                self.instant.append(True)
                self.policy.append(0)
                self.category.append(NO_CATEGORY)
                self._priority.append(0)
        return begins, ends

    def ranks(self) -> array[int]:
        """For each node the place of its priority among all priorities, the highest first."""
        places = {p: i for i, p in enumerate(sorted(set(self._priority), reverse=True))}
        return array("I", (places[p] for p in self._priority))

    # -- edges -------------------------------------------------------------------------------------------------------

    def _link(self, parent: int, child: int, soft: int = 0) -> None:
        self._from.append(parent)
        self._to.append(child << 1 | soft)

    def _link_jobs(self, ends: Mapping[str, int]) -> None:
        for child, parents in enumerate(self._parents):
            for name in parents:
                parent = self._numbers.get(name, ends.get(name))
                if parent is None:
                    raise ValueError(f"job number {child} names the unknown parent {name!r}")
                self._link(parent, child)

    def _link_groups(self, groups: Sequence[Group], begins: Mapping[str, int], ends: Mapping[str, int]) -> None:
        inner_parent, inner_child = self._inner_edges()
        blocking = {g.name for g in groups if g.blocking}
        for group in groups:
            for name in group.parents:
                parent = self._numbers.get(name, ends.get(name))
                if parent is None:
                    raise ValueError(f"group {group.name!r} names the unknown parent {name!r}")
                self._link(parent, begins[group.name])
            # What fails before the group prunes what comes after it, even where a failure inside would not.
            self._link(begins[group.name], ends[group.name])
        for node, name in self._group_of.items():
            if name not in ends:
                raise ValueError(f"job number {node} is in the unknown group {name!r}")
            if node not in inner_parent:
                self._link(begins[name], node)
            if name not in blocking:
                self._link(node, ends[name], SOFT)
            elif node not in inner_child:
                self._link(node, ends[name])

    def _inner_edges(self) -> tuple[set[int], set[int]]:
        """The members that have a parent in their group, and those that have a child there."""
        with_parent: set[int] = set()
        with_child: set[int] = set()
        for node, group in self._group_of.items():
            for name in self._parents[node]:
                parent = self._numbers.get(name)
                if parent is not None and self._group_of.get(parent) == group:
                    with_parent.add(node)
                    with_child.add(parent)
        return with_parent, with_child

    def edges(self) -> tuple[array[int], array[int]]:
        """The edges sorted by parent: where those of each node begin, and all of them."""
        size = len(self.instant)
        first = array("I", bytes(4 * (size + 1)))
        for parent in self._from:
            first[parent + 1] += 1
        for node in range(size):
            first[node + 1] += first[node]
        place = array("I", first)
        edges = array("I", bytes(4 * len(self._to)))
        for parent, edge in zip(self._from, self._to, strict=True):
            edges[place[parent]] = edge
            place[parent] += 1
        return first, edges
