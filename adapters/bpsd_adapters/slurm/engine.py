"""One run as it is driven: what was seen goes in, what is to be written and submitted comes out. No I/O but the log.

The state is the log, told to a `~bpsd_adapters.dag.Dag`: a daemon that was killed opens the log and is where it was.
Before a chunk is submitted its intent is on the disk; what became of a chunk that has an intent and no id is looked up
(`Chunk.job_id` is `None`) before its jobs are submitted again. Not thread-safe: one call at a time.
"""

from __future__ import annotations

__all__ = ["REFUSED_MAX_S", "Engine"]

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from bpsd.models import WmsStates, ending
from bpsd_adapters.cmdline import CommandError
from bpsd_adapters.dag import Outcome, Verdict
from bpsd_adapters.runlog import RunLog
from bpsd_adapters.slurm.chunks import Chunk, Plan, QueuedJob, Refused, Sight
from bpsd_adapters.slurm.commands import RunFacts, entry
from bpsd_adapters.slurm.events import (
    Begin,
    Cancel,
    End,
    Ended,
    Event,
    Held,
    Intent,
    JobRef,
    JobState,
    Note,
    States,
    Submitted,
    Withdrawn,
)
from bpsd_adapters.slurm.handover import handed_over
from bpsd_adapters.slurm.layout import Meta, RunFolder
from bpsd_adapters.slurm.looks import WHOLE, record_path
from bpsd_adapters.slurm.options import Defaults, OptionError, memory_for, options_of
from bpsd_adapters.slurm.parsing import ExitRecord, QueueRow, chunk_name
from bpsd_adapters.slurm.reasons import why_stuck
from bpsd_adapters.slurm.runstate import RunState
from bpsd_adapters.slurm.verdicts import Doubt, Evidence, Live, Over, is_alive, judge

STATES_PER_LINE = 100
"""How many jobs a line about states names."""

RECORD_GRACE_S = 30.0
"""How long a file that a node wrote may take to be seen on the submit host (NFS caches attributes that long)."""

RECORDS_BETWEEN_LOOKS = 5000
"""How many exit records of a run are looked for at once from look to look: each path is some 50 bytes on the way."""

REFUSED_MAX_S = 3600.0
"""The longest pause between two offers of a job that Slurm refuses."""

STUCK_NAMED = 3
"""How many reasons for never starting the note of a run names."""


class Engine(RunState):
    """One attempt of a run after the other.

    Parameters
    ----------
    meta : `Meta`
        What the run is.
    folder : `RunFolder`
        Where its files are, here.
    log : `~bpsd_adapters.runlog.RunLog`
        Its log, held.
    defaults : `Defaults`
        What every job gets.

    Raises
    ------
    OSError, msgspec.MsgspecError
        If its files cannot be read.
    """

    def __init__(self, meta: Meta, folder: RunFolder, log: RunLog, defaults: Defaults) -> None:
        super().__init__(meta, folder)
        self._log, self._defaults = log, defaults
        self._pending: list[Event] = []
        self._live: list[JobState] = []
        self._now = meta.created
        self.written = 0
        """How many events this process has written."""

    def __repr__(self) -> str:
        return f"<Engine {self.meta.token}.{self.attempt} {self._dag!r}, {len(self.chunks)} chunks>"

    # -- what it says ------------------------------------------------------------------------------------------------

    @property
    def has_ready(self) -> bool:
        """Whether there is something to submit."""
        return bool(not self.held and self._ready(1))

    @property
    def shown_note(self) -> str:
        """The note of the run: what a person should know of it now, or of its end."""
        return self._note if self.end is None else self.end.note

    def quiet(self, sight: Sight) -> Iterator[tuple[Chunk, int]]:
        """The jobs (by chunk and index) that the queue does not show as alive: how they ended is to be found out."""
        for chunk in self.chunks.values():
            if chunk.job_id is None or chunk.submitted >= sight.began:
                continue
            for index in chunk.open:
                if not is_alive(_rows(chunk, index, sight)):
                    yield chunk, index

    def record_paths(self, sight: Sight | None = None) -> dict[str, tuple[int, int]]:
        """The exit records to look for, by path below the work folder: whose they are, by chunk and index.

        Those of jobs that are quiet in a look; without one, those of the jobs that Slurm has had for longest.
        """
        in_slurm = ((c, i) for c in self.chunks.values() if c.job_id is not None for i in c.open)
        jobs = islice(in_slurm, RECORDS_BETWEEN_LOOKS) if sight is None else self.quiet(sight)
        return {record_path(self.meta.token, chunk, index): (chunk.number, index) for chunk, index in jobs}

    def missing(self, sight: Sight) -> set[int]:
        """The arrays of jobs that the queue does not list as alive and that left no record."""
        found: set[int] = set()
        for chunk, index in self.quiet(sight):
            verdict = judge(self._evidence(chunk, index, sight), waited_s=0, grace_s=1)
            if isinstance(verdict, Doubt):
                found |= {chunk.job_id or 0, *chunk.others}
        return found

    def run_facts(self) -> RunFacts:
        """What its jobs have in common."""
        document = self._document
        return RunFacts(
            token=self.meta.token,
            name=self.meta.name,
            folder=self.meta.folder,
            attempt=self.attempt,
            executables=document.executables,
            files=document.files,
            environment=document.environment,
            umask=self.meta.umask,
        )

    # -- orders ------------------------------------------------------------------------------------------------------

    def begin(self, attempt: int, now: float) -> None:
        """Begin an attempt of the run; when this returns, it is on the disk."""
        self._now = now
        event = Begin(attempt=attempt, time=now)
        self._keep(event)
        self._replay(event)
        again = [n for n in range(len(self._document)) if not self._dag.is_instant(n)]
        self._tell(self._state_of(n) for n in again)
        self.write(now)

    def cancel(self, now: float) -> None:
        """End the run: nothing more is submitted, and what is in Slurm is to go."""
        if self.cancelled or not self.live:
            return
        self._now = now
        event = Cancel(time=now)
        self._keep(event)
        self._tell_outcome(self._cancel())
        self.write(now)

    def hold(self, now: float, *, held: bool) -> None:
        """Let the run submit nothing more, or go on; a release also tries again what was refused."""
        if not held:
            self.offer_again()
        if held != self.held and self.live:
            self._keep(Held(time=now, held=held))
            self.held = held
            self.write(now)

    # -- submitting --------------------------------------------------------------------------------------------------

    def plan(self, limit: int, now: float) -> list[Plan]:
        """Take up to ``limit`` ready jobs, an array for each label and resources; their intent is on the disk.

        Raises
        ------
        OSError
            If that cannot be written: then nothing was taken.
        """
        self._now = now
        if self.held or limit < 1:
            return []
        groups: dict[tuple[str, tuple[str, ...]], list[tuple[JobRef, str]]] = {}
        broken: list[tuple[JobRef, str]] = []
        facts = self.run_facts()
        for node in self._ready(limit):
            job, retries = self._document.job(node), self._dag.retries(node)
            ref = JobRef(node, job.name, job.label, self._dag.starts[node] + 1)
            try:
                array = groups.setdefault((job.label, options_of(job, self._defaults, retries)), [])
                array.append((ref, entry(facts, job, node, ref.attempt, len(array), memory_for(job, retries))))
            except (OptionError, CommandError) as exc:
                broken.append((ref, f"{exc.field}: {exc}"))
        for ref, why in broken:
            self._fail_unstarted(ref, why, now)
        intents, plans = [], []
        for number, ((label, options), array) in enumerate(((k, a) for k, a in groups.items() if a), self._next_chunk):
            name = chunk_name(self.meta.token, number, label)
            intents.append(Intent(chunk=number, time=now, jobs=tuple(ref for ref, _ in array), name=name))
            text = "".join(text for _, text in array)
            plans.append(Plan(number, name, label, len(array), options, text.encode()))
        if not intents:
            return []
        self._keep(*intents)
        for intent in intents:
            self._replay(intent)
            self.chunks[intent.chunk].in_flight = True
        return plans

    def hand_over(self, now: float) -> tuple[bytes, list[list[str]]]:
        """All jobs of a run that Slurm does not have yet, as `handed_over`; their intent is on the disk."""
        self._now = now
        open_states = (WmsStates.UNREADY, WmsStates.READY)
        fresh = [
            n for n in range(self._dag.job_count)
            if self._dag.state[n] in open_states and n not in self._queued and not self._dag.is_instant(n)
        ]  # fmt: skip
        if not fresh and not any(map(self._to_hand, self.chunks.values())):
            return b"", []
        jobs = {n: self._document.job(n) for n in range(self._dag.job_count)}
        intents = [
            Intent(
                chunk=number,
                time=now,
                jobs=(JobRef(n, jobs[n].name, jobs[n].label, self._dag.starts[n] + 1),),
                whole=True,
                name=chunk_name(self.meta.token, number, jobs[n].label),
            )
            for number, n in enumerate(fresh, self._next_chunk)
        ]
        if intents:
            self._keep(*intents)
            for intent in intents:
                self._replay(intent)
        whole = {n: chunk for n, (chunk, _) in self._queued.items() if chunk.whole}
        return handed_over(jobs, whole, self.run_facts(), self._defaults, wanted=self._to_hand)

    def submitted(self, number: int, job_id: int, now: float) -> None:
        """Slurm has a chunk."""
        chunk = self.chunks[number]
        chunk.in_flight = False
        self._now = now
        event = Submitted(chunk=number, time=now, job_id=job_id)
        self._pending.append(event)
        self._replay(event)
        pending = WmsStates.UNREADY if chunk.whole else WmsStates.PENDING
        for index, job in chunk.open.items():
            job.state, job.wms_id = pending, f"{job_id}_{index}"
            self._refusals.pop(job.ref.node, None)
        self._tell(
            JobState(j.ref.node, j.ref.name, j.ref.label, j.attempt, int(pending), f"{job_id}_{i}")
            for i, j in chunk.open.items()
        )
        self.write(now)

    def in_doubt(self, number: int, now: float, why: str = "") -> None:
        """Sbatch has ended, and whether Slurm has the chunk is not known. ``why`` is what sbatch said, if it did."""
        chunk = self.chunks[number]
        chunk.in_flight = False
        chunk.doubted, chunk.why = now, why

    def withdraw(
        self,
        number: int,
        now: float,
        note: str = "",
        indices: Iterable[int] | None = None,
        *,
        unused: bool = False,
        refused_s: float | None = None,
    ) -> None:
        """Jobs of a chunk (all) did not run and never will in it: they are ready again.

        Parameters
        ----------
        number : `int`
            The chunk.
        now : `float`
            Epoch seconds.
        note : `str`, optional
            Why.
        indices : `~collections.abc.Iterable` [`int`], optional
            Which jobs.
        unused : `bool`, optional
            Whether Slurm never had them: then their next offer is the same attempt.
        refused_s : `float`, optional
            How long jobs that were refused as they are wait for their next offer, the first time; each further refusal
            doubles it. The other jobs of the run go on.
        """
        chunk = self.chunks[number]
        chunk.in_flight = False
        self._now = now
        refs = [chunk.open[i].ref for i in (list(chunk.open) if indices is None else indices)]
        self._pending.append(
            Withdrawn(chunk=number, time=now, nodes=tuple(ref.node for ref in refs), note=note, unused=unused)
        )
        told = []
        for ref in refs:
            out = self._withdraw(chunk, ref.node, unused=unused)
            if refused_s is not None and out.ready:
                before = self._refusals.get(ref.node, 0)
                self._refusals[ref.node] = before + 1
                pause_s = min(refused_s * 2.0 ** min(before, 20), max(refused_s, REFUSED_MAX_S))
                self.refused[ref.node] = Refused(note, now + pause_s)
            state = WmsStates.HELD if ref.node in self.refused else WmsStates(self._dag.state[ref.node])
            told.append(JobState(ref.node, ref.name, ref.label, ref.attempt, int(state), "", note))
        self._tell(told)
        self._drop_empty(chunk)
        self.write(now)

    # -- seeing ------------------------------------------------------------------------------------------------------

    def see(self, sight: Sight, lost_after_s: float) -> list[tuple[int, list[int]]]:
        """Take in a look at Slurm; returns chunks and indices of jobs that no source has known for so long."""
        self._now = sight.now
        missing: list[tuple[int, list[int]]] = []
        for chunk in list(self.chunks.values()):
            seen_ids = sight.ids(chunk.number)
            if chunk.job_id is None and seen_ids and not chunk.in_flight:
                self.submitted(chunk.number, min(seen_ids), sight.began)
            if chunk.job_id is None or chunk.submitted > sight.began:
                continue
            chunk.others |= seen_ids - {chunk.job_id}
            gone = self._see_chunk(chunk, sight, lost_after_s)
            if gone:
                missing.append((chunk.number, gone))
            self._drop_empty(chunk)
        over = (WmsStates.PRUNED, WmsStates.DELETED)  # hands-off: Slurm is about to end them
        self._tell(told for told in self._live if self._dag.state[told.node] not in over)
        self._live = []
        self.write(sight.now)
        return missing

    def take_records(self, records: Mapping[tuple[int, int], ExitRecord], now: float) -> None:
        """Take in what jobs wrote since the last look: that one succeeded is final, whatever the queue shows.

        Why a job failed, and whether it is tried again, Slurm is asked with the next look.
        """
        self._now = now
        for (number, index), record in records.items():
            chunk = self.chunks.get(number)
            if chunk is None or index not in chunk.open or not _is_of(record, chunk.open[index].ref):
                continue
            verdict = judge(Evidence(record=record), waited_s=0.0, grace_s=RECORD_GRACE_S)
            if isinstance(verdict, Over) and verdict.state is WmsStates.SUCCEEDED:
                self._ended(chunk, index, verdict, now)
                self._drop_empty(chunk)
        self.write(now)

    def lose(self, number: int, index: int, now: float, note: str) -> None:
        """Nobody will ever know how a job ended."""
        self._now = now
        chunk = self.chunks[number]
        self._ended(chunk, index, Over(WmsStates.UNKNOWN, note=note, source="absence"), now, lost=True)
        self._drop_empty(chunk)
        self.write(now)

    def _keep(self, *events: Event) -> None:
        """Have these on the disk, behind what could not be written before."""
        self._log.append([*self._pending, *events], durable=True)
        self.written += len(self._pending) + len(events)
        self._pending.clear()

    def write(self, now: float) -> None:
        """Write what there is to say; and that the run is over, if it is.

        Raises
        ------
        OSError
            If it cannot be written; it is tried again with the next.
        """
        if self.live and self._dag.done and not self.chunks:
            self._pending.append(
                End(attempt=self.attempt, time=now, state=int(self._dag.result()), note=self._closing_note())
            )
        if not self._pending:
            return
        ends = [event for event in self._pending if isinstance(event, End)]
        self._log.append(self._pending, durable=bool(ends))
        self.written += len(self._pending)
        self._pending.clear()
        for event in ends:
            self._replay(event)

    def close(self) -> None:
        """Let the log go."""
        self._log.close()

    # -- inside: what was seen ---------------------------------------------------------------------------------------

    def _see_chunk(self, chunk: Chunk, sight: Sight, lost_after_s: float) -> list[int]:
        missing = []
        for index, job in list(chunk.open.items()):
            waited = 0.0 if job.doubt_since is None else sight.now - job.doubt_since
            verdict = judge(self._evidence(chunk, index, sight), waited_s=waited, grace_s=RECORD_GRACE_S)
            if isinstance(verdict, Doubt):
                job.doubt_since = sight.now if job.doubt_since is None else job.doubt_since
                if verdict is Doubt.MISSING and sight.now - job.doubt_since >= lost_after_s:
                    missing.append(index)
            elif isinstance(verdict, Over):
                self._ended(chunk, index, verdict, sight.now)
            else:
                job.doubt_since = None
                self._is_live(index, job, verdict)
        return missing

    def _evidence(self, chunk: Chunk, index: int, sight: Sight) -> Evidence:
        ref, record = chunk.open[index].ref, sight.records.get((chunk.number, index))
        if record is not None and not _is_of(record, ref):
            record = None  # an earlier attempt's
        ids = (chunk.job_id or 0, *chunk.others)
        accounts = (sight.accounts.get((i, index)) for i in ids)
        # An id that has another name there was given to another job, before or after.
        account = next((a for a in accounts if a is not None and a.name == chunk.name), None)
        return Evidence(_rows(chunk, index, sight), record, account)

    def _is_live(self, index: int, job: QueuedJob, seen: Live) -> None:
        if seen.state is WmsStates.UNKNOWN:
            return
        ran = job.state in (WmsStates.RUNNING, WmsStates.MISFIT)
        runs = seen.state in (WmsStates.RUNNING, WmsStates.MISFIT)
        if ran and (not runs or (job.start is not None and seen.start is not None and seen.start > job.start)):
            job.attempt += 1  # requeued: another incarnation
            job.state = WmsStates.READY
        start = seen.start if runs else None
        if (seen.state, seen.note) == (job.state, job.note):
            job.start = start if start is not None else job.start
            return
        job.state, job.note, job.start = seen.state, seen.note, start
        job.wms_id = f"{seen.wms_id}_{index}"
        ref = job.ref
        self._live.append(
            JobState(ref.node, ref.name, ref.label, job.attempt, int(seen.state), job.wms_id, seen.note, start)
        )

    def _ended(self, chunk: Chunk, index: int, over: Over, now: float, *, lost: bool = False) -> None:
        job = chunk.open[index]
        state_before = self._dag.state[job.ref.node]
        if state_before == WmsStates.UNREADY:
            return  # hands-off: the end of its parents is still to be seen
        if state_before in (WmsStates.PRUNED, WmsStates.DELETED):  # hands-off: Slurm ended it, as was to be
            del chunk.open[index], self._queued[job.ref.node]
            return
        removed = over.state in (WmsStates.DELETED, WmsStates.PRUNED) or (chunk.ending and over.exit_code is None)
        judged = 0 if over.state is WmsStates.SUCCEEDED else over.exit_code or None
        out = self._finish(chunk, index, judged, removed=removed, lost=lost)
        again = out.verdict is Verdict.RETRY
        note = "" if removed and chunk.ending else over.note  # by whom everybody knows
        state = WmsStates.FAILED if again else WmsStates(self._dag.state[job.ref.node])
        self._pending.append(
            Ended(
                job=job.ref,
                chunk=chunk.number,
                time=over.end or now,
                state=int(state),
                judged=judged,
                removed=removed,
                lost=lost,
                again=again,
                shown_attempt=job.attempt,
                exit_code=over.exit_code,
                note=note,
                wms_id=job.wms_id or f"{chunk.job_id}_{index}",
                start=over.start,
                host=over.host,
                source=over.source,
            )
        )
        self._note_failure(job.ref, state, again, note or ending(over.exit_code))
        self._heed(out, job.ref.name, over.exit_code)
        self._tell_outcome(out)

    def _fail_unstarted(self, ref: JobRef, why: str, now: float) -> None:
        """A job that cannot be submitted: it fails as if it had been tried."""
        number = self._next_chunk
        intent = Intent(chunk=number, time=now, jobs=(ref,))
        self._pending.append(intent)
        self._replay(intent)
        self._ended(self.chunks[number], 0, Over(WmsStates.FAILED, note=why, source="log"), now)
        self._drop_empty(self.chunks[number])

    def note(self, trouble: str, now: float) -> None:
        """Point out what keeps the run from going on, and jobs that will never start by themselves."""
        reasons = Counter(
            f"will not start: {job.note}"
            for chunk in self.chunks.values()
            for job in chunk.open.values()
            if job.state in (WmsStates.PENDING, WmsStates.PRUNED) and why_stuck(job.note.partition(":")[0])
        )
        reasons.update(f"not submitted: {refused.note}" for refused in self.refused.values())
        told = [f"{count} job{'s' * (count > 1)} {why}" for why, count in reasons.most_common(STUCK_NAMED)]
        self.say("; ".join([*([trouble] if trouble else []), *told]), now)
        self.write(now)

    def say(self, note: str, now: float) -> None:
        """Have the run's note be this."""
        if note != self._note and self.live:
            self._note = note
            self._pending.append(Note(time=now, note=note))

    def _closing_note(self) -> str:
        parts = [self._stop_note] if self._stop_note else []
        if self.cancelled:
            parts.append("cancelled")
        if self._failures:
            more = self._failure_count - len(self._failures)
            parts.append("failed: " + ", ".join(self._failures) + (f" and {more} more" if more else ""))
        return "; ".join(parts)

    # -- inside: telling ---------------------------------------------------------------------------------------------

    def _ready(self, limit: int) -> list[int]:
        """What may be submitted; with hands-off some of it is in Slurm already."""
        if self.meta.hands_off:  # all but the final job is handed over whole
            found = [n for n in self._dag.ready(limit + len(self._queued)) if n == self._dag.final]
        else:
            found = self._dag.ready(limit + len(self.refused))
        return [n for n in found if n not in self.refused][:limit]

    def _state_of(self, node: int) -> JobState:
        name = self._document.job_name(node)
        return JobState(node, name.name, name.label, self._dag.starts[node], self._dag.state[node])

    def _tell(self, states: Iterable[JobState]) -> None:
        line: list[JobState] = []
        for state in states:
            line.append(state)
            if len(line) == STATES_PER_LINE:
                self._pending.append(States(time=self._now, jobs=tuple(line)))
                line = []
        if line:
            self._pending.append(States(time=self._now, jobs=tuple(line)))

    def _tell_outcome(self, out: Outcome) -> None:
        nodes = [*out.ready, *out.pruned, *out.removed]
        self._tell(self._state_of(n) for n in nodes if not self._dag.is_instant(n))


def _rows(chunk: Chunk, index: int, sight: Sight) -> Sequence[QueueRow]:
    """The queue's rows of a job: its own, or that of its whole array."""
    rows = sight.rows.get(chunk.number, {})
    return rows.get(index) or [row for row in rows.get(WHOLE, ()) if row.array_id == chunk.job_id]


def _is_of(record: ExitRecord, ref: JobRef) -> bool:
    return (record.node, record.attempt) == (ref.node, ref.attempt)
