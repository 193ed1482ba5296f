"""The jobs of one run as its event logs tell them: a fold that may be fed late, twice and out of order. Pure.

A job's attempt grows by one whenever HTCondor put it back into the queue (evicted, held, requeued) or DAGMan submitted
its node anew. Within one attempt the end wins over everything, so an event that comes late changes nothing.
"""

from __future__ import annotations

__all__ = ["LOG_RANK", "LOG_SOURCE", "RunTracker"]

import secrets
from collections.abc import Iterable, Mapping

import msgspec

from bpsd.models import TERMINAL, JobObservation, WmsStates, ending
from bpsd_adapters.htcondor.dagfile import DagNode, DagShape
from bpsd_adapters.htcondor.eventlog import Event, EventKind
from bpsd_adapters.htcondor.jobstate import PRE_FAILED, REFUSED, NodeEvent
from bpsd_adapters.htcondor.policy import code_of_hold, removal

LOG_SOURCE = "log"
LOG_RANK = 20
_NOTE_CHARS = 400


class _Job(msgspec.Struct):
    """A job as it is now. ``cluster`` is its newest submission; ``version`` counts the tracker's changes."""

    label: str
    state: WmsStates = WmsStates.UNREADY
    attempt: int = 1
    cluster: int = -1
    counts: bool = True
    version: int = 0
    exit_code: int | None = None
    time: float | None = None
    start_time: float | None = None
    end_time: float | None = None
    host: str = ""
    note: str = ""
    service: bool = False
    ends_as_dag: bool = False


class RunTracker:
    """Fold of the logs of a run and of its groups."""

    def __init__(self) -> None:
        self.generation = secrets.token_hex(4)
        self.version = 1
        self._jobs: dict[str, _Job] = {}
        self._order: dict[str, None] = {}
        self._node_of: dict[int, str] = {}
        self._shapes: dict[str, DagShape] = {}
        self._groups: dict[str, int] = {}
        """Nodes that are DAGs of their own, with the number of their submissions."""
        self._group_clusters: set[int] = set()

    def __repr__(self) -> str:
        return f"<RunTracker {len(self._jobs)} jobs, version {self.version}>"

    def __len__(self) -> int:
        return sum(job.counts for job in self._jobs.values())

    @property
    def cursor(self) -> str:
        """What `changed` needs to tell later what is new."""
        return f"{self.generation}:{self.version}"

    def add_dag(self, file: str, shape: DagShape, done: Iterable[str] = ()) -> None:
        """Take in the nodes of a DAG file; ``done`` were done before this attempt began."""
        old = self._shapes.get(file)
        self._shapes[file] = shape
        for name in old.nodes.keys() - shape.nodes.keys() if old is not None else ():
            job = self._jobs.get(name)
            if job is not None and job.state in _WAITING:
                job.state, job.note = WmsStates.PRUNED, "the DAG file was written again without it"
                self._touch(name, job)
        before = set(done)
        for node in shape.nodes.values():
            if node.subdag is not None:
                self._groups.setdefault(node.name, 0)
            elif node.name not in self._jobs:
                job = _Job(label=node.label, counts=node.counts, service=node.service, ends_as_dag=node.ends_as_dag)
                if node.name in before:
                    job.state = WmsStates.SUCCEEDED
                self._jobs[node.name] = job
                self._touch(node.name, job)

    def take(self, events: Iterable[Event]) -> None:
        """Take in events of any of the logs."""
        for event in events:
            if event.kind is EventKind.SUBMIT and event.node:
                self._submitted(event)
                continue
            name = self._node_of.get(_key(event))
            if name is None:
                continue  # before the first look at the submission, or a group's DAGMan
            job = self._jobs[name]
            if job.cluster == _key(event) and _apply(job, event):
                self._touch(name, job)

    def take_nodes(self, events: Iterable[NodeEvent]) -> None:
        """Take in what DAGMan says of nodes that it has not submitted; of the others the event logs know more."""
        for event in events:
            job = self._jobs.get(event.node)
            if job is None or job.state not in _WAITING:
                continue
            if event.name == PRE_FAILED:
                job.state, job.end_time, job.note = WmsStates.FAILED, event.time, "its pre-command failed"
            elif event.name == REFUSED:
                job.state, job.note = WmsStates.READY, "HTCondor did not take it"
            job.time = event.time
            self._touch(event.node, job)

    def _submitted(self, event: Event) -> None:
        job = self._jobs.get(event.node)
        if job is None and event.node in self._groups and _key(event) not in self._group_clusters:
            self._group_clusters.add(_key(event))
            self._groups[event.node] += 1
        if job is None or _key(event) in self._node_of:
            return
        self._node_of[_key(event)] = event.node
        if job.cluster >= 0 or job.state is WmsStates.FAILED:
            job.attempt += 1
        job.cluster = _key(event)
        _reset(job, WmsStates.PENDING, event.time)
        self._touch(event.node, job)

    def finish(self, ended: WmsStates) -> None:
        """The run is over: what waited for a failed job was pruned, and what was in the queue is gone from it."""
        for shape in self._shapes.values():
            failed = {name for name, job in self._jobs.items() if name in shape.nodes and job.state in _NOT_DONE}
            for name in shape.below(failed):
                job = self._jobs.get(name)
                if job is not None and job.state in _WAITING:
                    job.state = WmsStates.PRUNED
                    self._touch(name, job)
        if ended is WmsStates.DELETED:
            for name, job in self._jobs.items():
                if job.state not in TERMINAL and job.state not in _WAITING:
                    job.state = WmsStates.DELETED
                    job.note = "removed with its run"
                    self._touch(name, job)

    def repair(self, status: Mapping[str, tuple[int, str]]) -> None:
        """What only DAGMan knows at the end: nodes that failed before they were submitted (a pre-command, a file)."""
        for name, (number, why) in status.items():
            job = self._jobs.get(name)
            never_submitted = job is not None and job.cluster < 0 and job.state in (*_WAITING, WmsStates.FAILED)
            if job is not None and never_submitted and number in _STATUS_STATES:
                job.state, job.note = _STATUS_STATES[number], why[:_NOTE_CHARS]
                self._touch(name, job)

    def born_held(self, name: str, time: float, note: str) -> None:
        """The queue says that a job was submitted on hold; its log says only that it was submitted."""
        job = self._jobs.get(name)
        if job is not None and job.state is WmsStates.PENDING and job.attempt == 1:
            # A slow schedd writes its log later than the ad.
            job.state, job.time, job.note = WmsStates.HELD, max(time, job.time or time), note[:_NOTE_CHARS]
            self._touch(name, job)

    def failed(self) -> bool:
        """Whether a job that counts failed."""
        return any(job.state is WmsStates.FAILED for job in self._jobs.values() if job.counts)

    def all_succeeded(self) -> bool:
        """Whether there are jobs, and every one of them succeeded."""
        states = {job.state for job in self._jobs.values() if job.counts}
        return states == {WmsStates.SUCCEEDED}

    def failures(self) -> list[str]:
        """Return the failed jobs, each with its cause in a few words."""
        return [
            f"{name} ({job.note or ending(job.exit_code or 0)})"
            for name, job in self._jobs.items()
            if job.counts and job.state is WmsStates.FAILED
        ]

    def services(self) -> list[tuple[str, WmsStates, str]]:
        """Return the service nodes (provisioning), each with its state and a note."""
        return [(name, job.state, job.note) for name, job in self._jobs.items() if job.service]

    def submissions_of(self, group: str) -> int:
        """Return how often a node that is a DAG of its own was submitted."""
        return self._groups.get(group, 0)

    def shape(self, file: str) -> DagShape | None:
        """Return what a DAG file was taken in as, if it was."""
        return self._shapes.get(file)

    def missing_nodes(self, file: str, total: int | None) -> tuple[int, tuple[str, ...]]:
        """Return how many of DAGMan's nodes a DAG file does not show, and its commands that are not followed."""
        shape = self._shapes.get(file)
        if shape is None:
            return 0, ()
        return max(0, (total or 0) - len(shape.nodes)), shape.unfollowed

    def node(self, name: str) -> tuple[str, DagNode] | None:
        """Return a node, and the DAG file that has it."""
        return next(((file, s.nodes[name]) for file, s in self._shapes.items() if name in s.nodes), None)

    def cluster_of(self, name: str) -> int | None:
        """The newest submission of a job."""
        job = self._jobs.get(name)
        return job.cluster if job is not None and job.cluster >= 0 else None

    def label_of(self, name: str) -> str | None:
        """The label of a job."""
        job = self._jobs.get(name)
        return job.label if job is not None else None

    def changed(self, cursor: str | None) -> list[JobObservation]:
        """The jobs that changed since ``cursor``; all of them if it is not ours."""
        generation, _, number = (cursor or "").partition(":")
        since = int(number) if generation == self.generation and number.isdigit() else 0
        found = []
        for name in reversed(self._order):
            job = self._jobs[name]
            if job.version <= since:
                break
            if job.counts:
                found.append(_observation(name, job))
        return found[::-1]

    def _touch(self, name: str, job: _Job) -> None:
        self.version += 1
        job.version = self.version
        self._order.pop(name, None)
        self._order[name] = None


_STATUS_STATES = {6: WmsStates.FAILED, 7: WmsStates.PRUNED}
_WAITING = (WmsStates.UNREADY, WmsStates.READY)
_NOT_DONE = (WmsStates.FAILED, WmsStates.PRUNED, WmsStates.DELETED)


def _key(event: Event) -> int:
    """A submission; nodes without a job have cluster 0 and a number of their own in ``subproc``."""
    return event.cluster if event.cluster > 0 else -1000 - event.subproc


def _reset(job: _Job, state: WmsStates, time: float) -> None:
    job.state, job.time = state, time
    job.exit_code = job.start_time = job.end_time = None
    job.host = job.note = ""


def _apply(job: _Job, event: Event) -> bool:  # noqa: C901, PLR0912  # one branch for each kind of event
    """Change a job by an event of its newest submission; whether it changed."""
    kind = event.kind
    if job.state in TERMINAL and kind is not EventKind.POST_SCRIPT:
        return False
    if kind is EventKind.EXECUTE:
        if job.state is WmsStates.RUNNING or (job.time is not None and event.time < job.time):
            return False
        job.state, job.time, job.start_time, job.host = WmsStates.RUNNING, event.time, event.time, event.host
        job.note = ""
    elif kind in (EventKind.EVICTED, EventKind.SHADOW_EXCEPTION, EventKind.RECONNECT_FAILED):
        if job.state is not WmsStates.RUNNING:
            return False
        job.attempt += 1
        exit_code = event.exit_code
        _reset(job, WmsStates.PENDING, event.time)
        job.note = (event.reason or ("requeued" if exit_code is None else f"requeued after {ending(exit_code)}"))[
            :_NOTE_CHARS
        ]
    elif kind is EventKind.HELD:
        if job.state is WmsStates.HELD:
            return False
        job.state, job.time, job.exit_code = WmsStates.HELD, event.time, code_of_hold(event.reason)
        job.note = f"held: {event.reason} (code {event.code or 0}.{event.subcode or 0})"[:_NOTE_CHARS]
    elif kind is EventKind.RELEASED:
        if job.state is not WmsStates.HELD:
            return False
        if job.start_time is not None:  # an eviction before the hold has begun the next attempt already
            job.attempt += 1
        _reset(job, WmsStates.PENDING, event.time)
    elif kind is EventKind.TERMINATED:
        job.state = WmsStates.SUCCEEDED if event.exit_code == 0 else WmsStates.FAILED
        job.exit_code, job.time, job.end_time, job.note = event.exit_code, event.time, event.time, ""
    elif kind is EventKind.ABORTED:
        _removed(job, event)
    elif kind is EventKind.EXECUTABLE_ERROR:
        job.note = "HTCondor could not run the executable"
    elif kind is EventKind.SUSPENDED:
        job.note = "suspended"
    elif kind is EventKind.UNSUSPENDED:
        job.note = ""
    elif kind is EventKind.DISCONNECTED:
        job.note = "the connection to the execute host is broken"
    elif kind is EventKind.RECONNECTED:
        job.note = ""
    elif kind is EventKind.POST_SCRIPT:
        return _post(job, event)
    else:
        return False
    return True


def _removed(job: _Job, event: Event) -> None:
    """Take the removal of a job as what it was: its failure, or a person's wish."""
    held_for = job.note.removeprefix("held: ") if job.state is WmsStates.HELD else ""
    was = removal(event.reason, held_for)
    job.state = WmsStates.FAILED if was.failed else WmsStates.DELETED
    job.exit_code, job.note = was.exit_code, was.note[:_NOTE_CHARS]
    job.time = job.end_time = event.time


def _post(job: _Job, event: Event) -> bool:
    """A post script's word is the node's; the job's own exit code stays."""
    state = WmsStates.SUCCEEDED if event.exit_code == 0 else WmsStates.FAILED
    if state is job.state or job.state not in TERMINAL or job.ends_as_dag:
        return False
    job.state = state
    job.note = f"post-command ended with {ending(event.exit_code)}"
    return True


def _observation(name: str, job: _Job) -> JobObservation:
    return JobObservation(
        name=name,
        label=job.label,
        state=job.state,
        attempt=job.attempt,
        rank=LOG_RANK,
        wms_id=f"{job.cluster}.0" if job.cluster > 0 else "",
        exit_code=job.exit_code,
        time=job.time,
        start_time=job.start_time,
        end_time=job.end_time,
        host=job.host,
        note=job.note,
    )
