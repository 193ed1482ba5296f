"""What a run's log says: the events, told to a DAG, so that the same lines always give the same state."""

from __future__ import annotations

__all__ = ["RunState"]

from collections.abc import Iterable

from bpsd.models import WmsStates, ending
from bpsd_adapters import runlog
from bpsd_adapters.dag import Dag, Outcome, Verdict
from bpsd_adapters.document import Document
from bpsd_adapters.slurm.chunks import Chunk, QueuedJob, Refused
from bpsd_adapters.slurm.events import (
    Begin,
    Cancel,
    End,
    Ended,
    Event,
    Held,
    Intent,
    JobRef,
    Note,
    States,
    Submitted,
    Withdrawn,
    decode,
)
from bpsd_adapters.slurm.layout import Meta, RunFolder
from bpsd_adapters.slurm.parsing import chunk_name

FAILURES_NAMED = 3
"""How many failed jobs the note at the end of a run names."""


class RunState:
    """How far a run is.

    Parameters
    ----------
    meta : `Meta`
        What the run is.
    folder : `RunFolder`
        Where its files are, here.

    Raises
    ------
    OSError, msgspec.MsgspecError
        If its files cannot be read.
    """

    def __init__(self, meta: Meta, folder: RunFolder) -> None:
        self.meta, self.folder = meta, folder
        self._document = Document(folder.workflow)
        self._dag = Dag(
            self._document.jobs(),
            groups=self._document.groups,
            final=self._document.final(),
            category_limits=self._document.category_limits,
        )
        self.chunks: dict[int, Chunk] = {}
        self.attempt = 0
        self.end: End | None = None
        self.held = self.cancelled = False
        self.refused: dict[int, Refused] = {}
        """Ready jobs that are not to be had as they are, and why: they are not submitted until they are offered again.
        A process that takes up the run offers them once."""

        self.spent: list[int] = []
        """Chunks of which nothing is open any more and whose files are still to be removed."""

        self.skipped_events = 0
        self._refusals: dict[int, int] = {}
        """How often a job was refused since it was last taken."""

        self._queued: dict[int, tuple[Chunk, int]] = {}
        self._next_chunk = 1
        self._note = ""
        self._stop_note = ""
        self._failures: list[str] = []
        self._failure_count = 0
        for event in runlog.events(folder.log, decode):
            self._replay(event)

    @property
    def live(self) -> bool:
        """Whether an attempt has begun and is not over."""
        return self.attempt > 0 and self.end is None

    @property
    def in_queue(self) -> int:
        """How many jobs are in Slurm, or may be."""
        return len(self._queued)

    # -- what is in Slurm, and what waits ----------------------------------------------------------------------------

    def doubtful(self) -> list[Chunk]:
        """Chunks that were about to be submitted, and nobody knows whether they were."""
        return [c for c in self.chunks.values() if c.job_id is None and not c.in_flight and not self._to_hand(c)]

    def _to_hand(self, chunk: Chunk) -> bool:
        return chunk.whole and chunk.job_id is None and chunk.doubted is None and not chunk.ending

    def waiting(self) -> dict[str, str]:
        """The arrays in which jobs wait without being on hold: id to name."""
        return self._arrays(WmsStates.PENDING, WmsStates.UNREADY)

    def on_hold(self) -> dict[str, str]:
        """The arrays in which jobs are on hold: id to name."""
        return self._arrays(WmsStates.HELD)

    def _arrays(self, *states: WmsStates) -> dict[str, str]:
        there = [chunk for chunk in self.chunks.values() if chunk.job_id is not None]
        return {f"{chunk.job_id}": chunk.name for chunk in there if _some(chunk, *states)}

    def ending(self) -> dict[int, str]:
        """The arrays that are to end: id to name."""
        there = [chunk for chunk in self.chunks.values() if chunk.ending and chunk.job_id is not None]
        return {job_id: chunk.name for chunk in there for job_id in (chunk.job_id or 0, *chunk.others)}

    def slurm_ids(self, names: Iterable[str]) -> dict[str, str]:
        """The ids in Slurm of those of these jobs that are there, each with the name of its array."""
        wanted = set(names)
        return {
            f"{chunk.job_id}_{index}": chunk.name
            for chunk in self.chunks.values()
            for index, job in chunk.open.items()
            if chunk.job_id is not None and job.ref.name in wanted
        }

    def offer_again(self, names: Iterable[str] | None = None) -> int:
        """Let what was refused (of these jobs, or all) be submitted again; how many there are."""
        wanted = None if names is None else set(names)
        again = [n for n in self.refused if wanted is None or self._document.job_name(n).name in wanted]
        for node in again:
            del self.refused[node]
        return len(again)

    def offer_due(self, now: float) -> None:
        """Let those refused jobs be submitted again that have waited for long enough."""
        for node in [n for n, refused in self.refused.items() if now >= refused.due]:
            del self.refused[node]

    def take_spent(self) -> list[int]:
        """Return the chunks whose files can go, once; of a run that is over all that it had."""
        spent, self.spent = self.spent, []
        return spent

    # -- the fold ----------------------------------------------------------------------------------------------------

    def _replay(self, event: Event) -> None:
        """Take an event of the log. One that does not fit (lines before it were damaged) is passed over."""
        try:
            self._apply(event)
        except (ValueError, KeyError):
            self.skipped_events += 1

    def _apply(self, event: Event) -> None:
        if isinstance(event, Begin):
            self._begin(event)
        elif isinstance(event, Intent):
            self._intend(event)
        elif isinstance(event, Submitted):
            chunk = self.chunks[event.chunk]
            chunk.job_id, chunk.submitted = event.job_id, event.time
        elif isinstance(event, Withdrawn):
            chunk = self.chunks[event.chunk]
            for node in event.nodes:
                self._withdraw(chunk, node, unused=event.unused)
            self._drop_empty(chunk)
        elif isinstance(event, Ended):
            self._replay_end(event)
        elif isinstance(event, States):
            self._replay_states(event)
        elif isinstance(event, Cancel):
            self._cancel()
        elif isinstance(event, Held):
            self.held = event.held
        elif isinstance(event, Note):
            self._note = event.note
        else:
            self.end = event
            self.chunks.clear()
            self._queued.clear()

    def _begin(self, event: Begin) -> None:
        self.attempt, self.end = event.attempt, None
        self.held = self.cancelled = False
        self.refused.clear()
        self._refusals.clear()
        self._note = self._stop_note = ""
        self._failures, self._failure_count = [], 0
        self.chunks.clear()
        self._queued.clear()
        self._dag.begin()

    def _intend(self, event: Intent) -> None:
        chunk = self.chunks[event.chunk] = Chunk(
            event.chunk,
            event.time,
            event.name or chunk_name(self.meta.token, event.chunk),
            whole=event.whole,
        )
        self._next_chunk = max(self._next_chunk, event.chunk + 1)
        for index, ref in enumerate(event.jobs):
            if not event.whole or self._dag.state[ref.node] == WmsStates.READY:
                self._dag.start(ref.node)
            chunk.open[index] = QueuedJob(ref, ref.attempt)
            self._queued[ref.node] = chunk, index

    def _replay_end(self, event: Ended) -> None:
        chunk, index = self._queued[event.job.node]
        out = self._finish(chunk, index, event.judged, removed=event.removed, lost=event.lost)
        self._note_failure(event.job, WmsStates(event.state), event.again, event.note or ending(event.exit_code))
        self._heed(out, event.job.name, event.exit_code)
        self._drop_empty(chunk)

    def _replay_states(self, event: States) -> None:
        """Which attempt of a job is shown, and where it was seen last, outlives us too."""
        for told in event.jobs:
            chunk, index = self._queued.get(told.node, (None, 0))
            if chunk is not None and told.wms_id:
                job = chunk.open[index]
                job.attempt, job.state, job.note = told.attempt, WmsStates(told.state), told.note
                job.start, job.wms_id = told.start, told.wms_id

    def _cancel(self) -> Outcome:
        self.cancelled = True
        self.refused.clear()
        self._end_all()
        return self._dag.stop(WmsStates.DELETED, final=False)

    def _finish(self, chunk: Chunk, index: int, judged: int | None, *, removed: bool, lost: bool) -> Outcome:
        job = chunk.open.pop(index)
        node = job.ref.node
        del self._queued[node]
        if self._dag.state[node] == WmsStates.READY:  # hands-off: Slurm began it before we saw its parents end
            self._dag.start(node)
        self._dag.starts[node] = max(self._dag.starts[node], job.attempt)
        return self._dag.finish(node, judged, removed=removed, lost=lost)

    def _withdraw(self, chunk: Chunk, node: int, *, unused: bool) -> Outcome:
        _, index = self._queued.pop(node)
        del chunk.open[index]
        if self._dag.state[node] != WmsStates.RUNNING:
            return Outcome()
        if unused:
            self._dag.starts[node] -= 1
        return self._dag.withdraw(node)

    def _drop_empty(self, chunk: Chunk) -> None:
        if not chunk.open and self.chunks.pop(chunk.number, None) is not None and not chunk.whole:
            self.spent.append(chunk.number)

    def _note_failure(self, ref: JobRef, state: WmsStates, again: bool, why: str) -> None:
        if state is WmsStates.FAILED and not again:
            self._failure_count += 1
            if len(self._failures) < FAILURES_NAMED:
                self._failures.append(f"{ref.name} ({why})")

    def _heed(self, out: Outcome, name: str, exit_code: int | None) -> None:
        if out.verdict is Verdict.ABORT:
            self._stop_note = (
                f"{name} ended with its abort_on_value ({ending(exit_code)}): the run returns {out.return_value}"
            )
            self._end_all()

    def _end_all(self) -> None:
        for chunk in self.chunks.values():
            chunk.ending = True


def _some(chunk: Chunk, *states: WmsStates) -> bool:
    return any(job.state in states for job in chunk.open.values())
