"""Which runs and jobs a request is about: the conditions of its parameters, compiled once for each request."""

from __future__ import annotations

__all__ = ["SECONDS_PER_DAY", "Condition", "JobCondition", "is_mine"]

from collections.abc import Callable, Iterator

from bpsd.jobtable import JobTable
from bpsd.messages import Filters, JobsParams
from bpsd.models import WmsStates
from bpsd.patterns import Glob
from bpsd.peers import Peer, Policy, may_command
from bpsd.runs import RunRecord

SECONDS_PER_DAY = 86_400.0

Test = Callable[[RunRecord], bool]


class Condition:
    """All conditions of `~bpsd.messages.Filters` in one: call it with a run.

    Parameters
    ----------
    params : `~bpsd.messages.Filters`
        What the client asked for.
    peer : `~bpsd.peers.Peer`
        Who asks (``mine``).
    now : `float`
        Epoch seconds (``hist``).
    policy : `~bpsd.peers.Policy`
        Who may do what (``commandable``).
    """

    __slots__ = ("_tests",)

    def __init__(self, params: Filters, peer: Peer, now: float, policy: Policy) -> None:
        self._tests = tuple(_tests(params, peer, now, policy))

    def __call__(self, record: RunRecord) -> bool:
        """Whether a run fulfils all conditions."""
        return all(test(record) for test in self._tests)


def _tests(params: Filters, peer: Peer, now: float, policy: Policy) -> Iterator[Test]:
    """The tests of which a run must pass every one, those that cost little first."""
    if params.active:
        yield lambda record: record.live
    if params.backend:
        backends = frozenset(params.backend)
        yield lambda record: record.backend in backends
    if params.state:
        states = frozenset(WmsStates[name] for name in params.state)
        yield lambda record: record.state in states
    if params.mine:
        yield lambda record: is_mine(record, peer.uid, peer.user)
    if params.commandable:
        yield lambda record: may_command(peer, policy, uid=record.uid, backend=record.backend, account=record.owner)
    if params.user:
        users = frozenset(params.user)
        yield lambda record: record.owner in users or record.operator in users
    if params.hist is not None:
        oldest = now - params.hist * SECONDS_PER_DAY
        yield lambda record: record.live or (record.end_time or record.changed_at or 0.0) >= oldest
    if params.label is not None:
        label = params.label
        yield (
            lambda record: record.label == label or (label in (record.run_summary or "") and label in record.expected())
        )
    if params.pattern is not None:
        yield _named_like(Glob(params.pattern))


def _named_like(glob: Glob) -> Test:
    matches = glob.matches

    def test(record: RunRecord) -> bool:
        texts = (record.run, record.payload, record.campaign, record.project, record.label)
        return any(text is not None and matches(text) for text in texts)

    return test


def is_mine(record: RunRecord, uid: int, user: str) -> bool:
    """Whether a run is this user's: submitted through us, or under an account of that name."""
    return record.uid == uid if record.uid is not None else record.owner == user


class JobCondition:
    """All conditions of `~bpsd.messages.JobsParams` in one."""

    __slots__ = ("_glob", "_label", "_states")

    def __init__(self, params: JobsParams) -> None:
        self._states = frozenset(WmsStates[name] for name in params.state)
        self._label = params.label
        self._glob = None if params.pattern is None else Glob(params.pattern)

    def rows(self, jobs: JobTable) -> Iterator[int | None]:
        """Go over all jobs: the row of each that fulfils the conditions, `None` for each that does not."""
        names, glob = jobs.names(), self._glob
        for row in jobs.scan(self._states, self._label):
            yield row if row is None or glob is None or glob.matches(names[row]) else None
