"""What a driver does: one attempt of one run, from its first line in the log to its last.

Plain synchronous Python with one place where it waits (`bpsd_adapters.local.signals`): no threads, no event loop. A
turn of the loop sees what ended, asks the ledger for room, writes results and intents in one go to the disk, starts
what was intended, and waits.

SIGUSR1 means "look again" (at the requests in the run's folder, and at the ledger), SIGTERM "end your jobs and go".
"""

from __future__ import annotations

__all__ = ["SIGNALS", "Driver", "DriverSettings"]

import os
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from bpsd.models import WmsStates, ending
from bpsd.workflow import Job, walltime_seconds
from bpsd_adapters.cmdline import CommandError
from bpsd_adapters.dag import Dag, Outcome, Verdict
from bpsd_adapters.document import Document
from bpsd_adapters.driven import DEFAULT_UMASK
from bpsd_adapters.local import history as histories
from bpsd_adapters.local import processes
from bpsd_adapters.local.commands import Commander, job_variables, run_variables
from bpsd_adapters.local.events import Begin, End, Ended, Held, Intent, JobRef, JobState, Started, States
from bpsd_adapters.local.history import History
from bpsd_adapters.local.jobs import RunningJob
from bpsd_adapters.local.layout import RunFolder
from bpsd_adapters.local.ledger import Capacity, Ledger, Wish
from bpsd_adapters.local.scribe import Scribe, complain
from bpsd_adapters.local.signals import SignalInbox
from bpsd_adapters.local.units import own_units
from bpsd_adapters.runlog import RunLog

LOOKAHEAD = 8
"""How many ready jobs are looked at for one that fits into what is free."""

JOBS_PER_LINE = 100
"""How many jobs a line about states or intents names."""

INTEND_FOR_S = 0.1
"""How far ahead jobs are intended: for about as long as this, so that a sync of the disk serves all that start then."""

TRY_AGAIN_S = 1.0
"""How long to wait for a ledger that cannot be used."""

TELL_LEDGER_S = 0.05
"""How soon the ledger has the pids of new jobs, which count there even if we are killed; most jobs are over before."""

LOOK_AGAIN_S = 1.0
"""How often to look at the ledger while jobs wait for room: so others see that we are not gone."""

LEDGER_CHECK_S = 5.0
"""How often to check that the ledger is still the file that our jobs are entered in."""

DYING_S = 0.05
"""How long processes that were just killed may take to be gone before they count as left running."""

LOST_NOTE = "its driver was killed: nobody saw how it ended"

FAILURES_NAMED = 3
"""How many failed jobs the note at the end of a run names."""

SIGNALS = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
"""What a driver waits for; blocked until it collects them, so that none is lost and none ends it."""

_INF = float("inf")


class DriverSettings(msgspec.Struct, kw_only=True):
    """What a driver is told, as JSON on its command line.

    ``log_fd`` is the run's log, held. ``only_end`` takes over an attempt whose driver died, to end it.
    """

    attempt: int
    cores: int
    memory_mb: int
    ledger: str
    grace_s: float
    log_fd: int
    only_end: bool = False


class _Candidate(NamedTuple):
    node: int
    job: Job
    wish: Wish


class Driver:
    """One attempt of a run, from its first line in the log to its last.

    Parameters
    ----------
    folder : `RunFolder`
        The run.
    settings : `DriverSettings`
        What to do.
    log : `~bpsd_adapters.runlog.RunLog`
        Its log, held.
    history : `History`
        What the log says of earlier attempts.
    keeper : `~bpsd_adapters.local.processes.Process`
        The parent of this process, which adopts what its jobs orphan.
    """

    def __init__(
        self, folder: RunFolder, settings: DriverSettings, log: RunLog, history: History, keeper: processes.Process
    ) -> None:
        self._folder, self._settings, self._log, self._history = folder, settings, log, history
        self._keeper = keeper
        self._attempt = settings.attempt
        self._capacity = Capacity(settings.cores, settings.memory_mb)
        self._me = processes.of_pid(os.getpid())
        self._ledger = Ledger(Path(settings.ledger), self._capacity, self._me)
        self._inbox = SignalInbox(SIGNALS)
        self._running: dict[int, RunningJob] = {}
        self._candidates: dict[int, _Candidate] = {}
        self._scribe = Scribe(log)
        self._intended: set[int] = set()
        self._intend_ahead, self._intended_at = LOOKAHEAD, -_INF
        self._ledger_at, self._tell_at = -_INF, _INF
        self._ledger_checked_at = -_INF
        self._given_back: list[Wish] = []
        self._waits_for_room = False
        self._held = False
        self._stopped_as: WmsStates | None = None
        self._stop_note = ""
        self._failures: list[str] = []
        self._failure_count = 0
        self._umask = self._umask_of_jobs()

    # -- beginning ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Write that the attempt began; when this returns, it did.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        begin = Begin(
            attempt=self._attempt,
            pid=self._me.pid,
            start=self._me.start,
            boot=processes.boot_id(),
            time=time.time(),
            host=platform.node(),
            keeper_pid=self._keeper.pid,
            keeper_start=self._keeper.start,
            control_group=processes.control_group(own_units(self._folder.token, os.getuid(), self._number())),
        )
        self._log.append([begin], durable=True)

    def _umask_of_jobs(self) -> int:
        try:
            return int(self._folder.meta().umask or DEFAULT_UMASK, 8)
        except (OSError, msgspec.MsgspecError):
            return int(DEFAULT_UMASK, 8)

    def _number(self) -> str:
        try:
            return self._folder.meta().wms_id
        except (OSError, msgspec.MsgspecError):
            return ""

    def run(self) -> None:
        """Drive the attempt to its end."""
        self._end_survivors()
        self._load()
        self._heed_requests()
        while True:
            self._start_what_fits()
            self._scribe.write()
            if self._dag.done and self._scribe.is_clean:
                break
            self._wait()
            self._look_at_jobs()
        self._end_left()
        result = int(self._dag.result())
        self._scribe.add(End(attempt=self._attempt, time=time.time(), state=result, note=self._closing_note()))
        self._scribe.write_at_last()
        try:
            self._ledger.close()
        except OSError as exc:
            complain(f"the ledger cannot be used: {exc}")  # our entry in it dies with us

    def _end_survivors(self) -> None:
        """End what a killed driver left running, and write that nobody saw how it ended. Nothing runs next to it."""
        find = partial(histories.left_over, self._history, self._folder)
        while left := processes.end_all(find, self._settings.grace_s):
            complain(f"attempt {self._attempt} waits for processes that do not die: {[p.pid for p in left]}")
        boot, now, unknown = processes.boot_id(), time.time(), int(WmsStates.UNKNOWN)
        lost = [job.job for job in self._history.open.values() if histories.may_have_run(job, self._folder, boot)]
        ends = [Ended(job=job, time=now, state=unknown, note=LOST_NOTE) for job in lost]
        self._scribe.add(*ends)
        histories.fold(ends, self._history)

    def _end_left(self) -> None:
        """End what jobs left running outside of their process groups: a run is not over while it has processes."""

        def find() -> list[processes.Process]:
            return [process for process in processes.descendants(self._keeper) if process != self._me]

        if not find():
            return
        time.sleep(DYING_S)
        if not (found := find()):
            return
        grace_s = 0.0 if self._dag.result() is WmsStates.DELETED else self._settings.grace_s
        left = processes.end_all(find, grace_s)
        complain(
            f"ended {len(found)} processes that jobs had left running: {[p.pid for p in found]}"
            + (f"; {[p.pid for p in left]} do not die" if left else "")
        )

    def _load(self) -> None:
        self._document = Document(self._folder.workflow)
        self._dag = Dag(
            self._document.jobs(),
            groups=self._document.groups,
            final=self._document.final(),
            category_limits=self._document.category_limits,
        )
        self._commander = Commander(
            self._document.executables,
            self._document.files,
            self._document.environment,
            os.environ,
            str(self._folder.work),
            run_variables(self._folder.token, self._document.name, str(self._folder.path), self._attempt),
        )
        for node, starts in self._history.starts.items():
            self._dag.record(node, starts, succeeded=node in self._history.succeeded)
        for node in self._history.succeeded - self._history.starts.keys():
            self._dag.record(node, 0, succeeded=True)
        done = self._history.succeeded
        self._dag.begin()
        again = [n for n in range(len(self._document)) if n not in done or self._dag.state[n] != WmsStates.SUCCEEDED]
        self._tell_states(again)

    # -- a turn of the loop ------------------------------------------------------------------------------------------

    def _start_what_fits(self) -> None:
        """Ask for room for what is ready, the most urgent first, and start what gets it, until nothing does."""
        self._waits_for_room = False
        while self._scribe.may_go_on and time.monotonic() >= self._ledger_at:
            candidates = [] if self._held else [self._candidate(n) for n in self._dag.ready(LOOKAHEAD)]
            impossible = [c for c in candidates if not self._is_possible(c)]
            if impossible:
                for one in impossible:
                    self._fail_unstarted(one)
                continue
            if not candidates and not self._given_back and time.monotonic() < self._tell_at:
                return
            chosen = self._in_the_place_of_others(candidates) or self._granted(candidates)
            self._waits_for_room = len(chosen) < len(candidates)
            if not chosen or not self._launch(chosen):
                return
            if self._waits_for_room and all(c.node in self._running for c in chosen):
                return  # nothing was given back since

    def _in_the_place_of_others(self, candidates: Sequence[_Candidate]) -> Sequence[_Candidate]:
        """The most urgent, if they want what jobs that ended gave back, all of it and no more, and nobody else waits.

        In the ledger it is still ours, so that it need not be asked for each job of many that are over at once.
        """
        first = candidates[: len(self._given_back)]
        if time.monotonic() >= self._tell_at or sorted(c.wish for c in first) != sorted(self._given_back):
            return ()
        if not self._ledger.nobody_waits():
            return ()
        self._given_back.clear()
        return first

    def _granted(self, candidates: Sequence[_Candidate]) -> Sequence[_Candidate]:
        """Those for which the ledger has room; it hears what we have."""
        try:
            granted = self._ledger.settle([r.claim for r in self._running.values()], [c.wish for c in candidates])
        except OSError as exc:
            if self._ledger_at == -_INF:
                complain(f"the ledger cannot be used, trying again every {TRY_AGAIN_S:.0f} s: {exc}")
            self._ledger_at = time.monotonic() + TRY_AGAIN_S
            return ()
        self._ledger_at, self._tell_at = -_INF, _INF
        self._given_back.clear()
        return [c for c, yes in zip(candidates, granted, strict=True) if yes]

    def _intend(self, chosen: Sequence[_Candidate]) -> bool:
        """Have it on the disk that these are about to be started; false if that could not be written.

        What is next in turn is intended along with them, the further ahead the sooner it is needed: the disk is asked
        once for many short jobs. Long ones are intended hardly before they start, so that after a power failure, when
        nothing but the intent is left, not many are thought to have run that had not.
        """
        if all(c.node in self._intended for c in chosen):
            return True
        now = time.monotonic()
        if now - self._intended_at < INTEND_FOR_S:
            self._intend_ahead = min(2 * self._intend_ahead, JOBS_PER_LINE)
        else:
            self._intend_ahead = max(self._intend_ahead // 2, LOOKAHEAD)
        ahead = [self._candidate(n) for n in self._dag.ready(self._intend_ahead)]
        new = [c for c in ahead if c.node not in self._intended and self._is_possible(c)]
        intent = Intent(jobs=tuple(self._ref(c.node, self._dag.starts[c.node] + 1, c.job) for c in new))
        self._scribe.add(intent)
        if not self._scribe.write(durable=True):
            self._scribe.take_back(intent)
            return False
        self._intended.update(c.node for c in new)
        self._intended_at = now
        return True

    def _launch(self, chosen: Sequence[_Candidate]) -> bool:
        """Start jobs that are intended on the disk; false if that could not be written."""
        self._claims_change()
        if not self._intend(chosen):
            return False
        attempts = [self._dag.start(one.node) for one in chosen]
        for one, attempt in zip(chosen, attempts, strict=True):
            self._intended.discard(one.node)
            del self._candidates[one.node]
            ref = self._ref(one.node, attempt, one.job)
            if self._dag.stopped and one.node != self._dag.final:  # by the one before, which could not start
                self._ended(one.node, ref, None, None, self._stop_note, removed=True)
            else:
                self._start(one, ref)
        return True

    def _start(self, one: _Candidate, ref: JobRef) -> None:
        walltime = one.job.request_walltime
        own = job_variables(one.job, ref.attempt, one.wish.cores, one.wish.memory_mb)
        try:
            command = self._commander.command(one.job, own)
        except CommandError as exc:
            self._ended(one.node, ref, None, None, f"cannot start: {exc}")
            return
        job = RunningJob(
            ref,
            command,
            one.wish,
            self._folder.outputs(ref.name, ref.attempt),
            None if walltime is None else float(walltime_seconds(walltime)),
            self._settings.grace_s,
            self._umask,
        )
        self._running[one.node] = job
        self._look_at(one.node, job, time.monotonic())

    def _look_at_jobs(self) -> None:
        now = time.monotonic()
        for node, job in list(self._running.items()):
            self._look_at(node, job, now)

    def _look_at(self, node: int, job: RunningJob, now: float) -> None:
        before = job.process
        over = job.look(now)
        if not over:
            if job.process not in (before, processes.GONE):
                self._claims_change()
                pid, start = job.process
                self._scribe.add(Started(job=job.ref, time=time.time(), pid=pid, start=start, step=job.step))
            return
        del self._running[node]
        self._given_back.append(job.wish)
        self._claims_change()
        judged = None if job.out_of_time else job.exit_code
        self._ended(node, job.ref, judged, job.exit_code, job.note, removed=job.removed)

    def _ended(
        self, node: int, ref: JobRef, judged: int | None, shown: int | None, note: str, *, removed: bool = False
    ) -> None:
        """Tell the graph and the log how an attempt of a job ended, and do what follows."""
        out = self._dag.finish(node, judged, removed=removed)
        again = out.verdict is Verdict.RETRY
        state = WmsStates.FAILED if again else WmsStates(self._dag.state[node])
        self._scribe.add(Ended(job=ref, time=time.time(), state=int(state), exit_code=shown, again=again, note=note))
        if state is WmsStates.FAILED and not again:
            self._failure_count += 1
            if len(self._failures) < FAILURES_NAMED:
                self._failures.append(f"{ref.name} ({note or ending(shown)})")
        if out.verdict is Verdict.ABORT:
            why = f"{ref.name} ended with its abort_on_value ({ending(shown)})"
            self._stop_note = f"{why}: the run returns {out.return_value}"
            self._end_jobs("the run was aborted")
        self._tell_outcome(out)

    def _wait(self) -> None:
        """Wait for a signal, or until something is due."""
        now = time.monotonic()
        due = min([self._scribe.next_look(), *(job.next_look(now) for job in self._running.values())])
        if self._waits_for_room:
            due = min(due, now + LOOK_AGAIN_S)
        if self._running:
            due = min(due, now + LEDGER_CHECK_S)
        if self._scribe.may_go_on:
            due = min(due, max(self._tell_at, self._ledger_at))
        if self._ledger_at > now:
            due = min(due, self._ledger_at)
        got = self._inbox.wait(None if due == _INF else max(due - now, 0.0))
        if not got:
            self._check_ledger(now)
        for number in sorted(got & {signal.SIGTERM, signal.SIGINT}):
            self._stop(WmsStates.FAILED, f"the driver was told to end ({signal.Signals(number).name})")
        if signal.SIGUSR1 in got:
            self._tell_at = -_INF  # who sends it may have begun the ledger again
            self._heed_requests()

    def _check_ledger(self, now: float) -> None:
        """Enter the jobs again if the ledger was removed or replaced: in the new one their cores look free."""
        if now >= self._ledger_checked_at + LEDGER_CHECK_S:
            self._ledger_checked_at = now
            if self._ledger.was_replaced():
                self._tell_at = -_INF

    def _claims_change(self) -> None:
        self._tell_at = min(self._tell_at, time.monotonic() + TELL_LEDGER_S)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _heed_requests(self) -> None:
        """Do what the files in the run's folder ask for."""
        if self._folder.cancel_request(self._attempt).exists():
            self._stop(WmsStates.DELETED, "cancelled")
        elif self._settings.only_end:
            self._stop(WmsStates.FAILED, "its driver was killed, and what it left was ended")
        held = self._folder.hold_request(self._attempt).exists() and not self._dag.stopped
        if held != self._held:
            self._held, self._tell_at = held, -_INF
            self._scribe.add(Held(time=time.time(), held=held))

    def _stop(self, state: WmsStates, note: str) -> None:
        """Let the run end as ``state``: what runs gets SIGTERM, what has not begun does not. A cancel outweighs all."""
        if self._stopped_as in (state, WmsStates.DELETED):
            return
        self._stopped_as, self._stop_note = state, note
        self._tell_outcome(self._dag.stop(state, final=False))
        self._end_jobs(note)

    def _end_jobs(self, why: str) -> None:
        now = time.monotonic()
        for job in self._running.values():
            job.end(now, why, removed=True)

    # -- jobs --------------------------------------------------------------------------------------------------------

    def _candidate(self, node: int) -> _Candidate:
        known = self._candidates.get(node)
        if known is None:
            job = self._document.job(node)
            known = _Candidate(node, job, self._wish(node, job))
            self._candidates[node] = known
        return known

    def _wish(self, node: int, job: Job) -> Wish:
        """What the next attempt of a job asks for: memory grows with each retry, up to its limit and the machine's."""
        memory = job.request_memory or 0
        if job.memory_multiplier is not None and job.memory_multiplier > 1:
            most = min(job.request_memory_max or self._capacity.memory_mb, self._capacity.memory_mb)
            grown = memory * job.memory_multiplier ** self._dag.retries(node)
            memory = max(memory, int(min(grown, most)))
        return Wish(max(job.request_cpus or 1, 1), memory)

    def _is_possible(self, one: _Candidate) -> bool:
        return one.wish.cores <= self._capacity.cores and one.wish.memory_mb <= self._capacity.memory_mb

    def _fail_unstarted(self, one: _Candidate) -> None:
        """The backend is smaller now than when the run was accepted."""
        del self._candidates[one.node]
        attempt = self._dag.start(one.node)
        note = f"asks for {one.wish.cores} cores and {one.wish.memory_mb} MB, this backend has {self._capacity}"
        self._ended(one.node, self._ref(one.node, attempt, one.job), None, None, note)

    def _ref(self, node: int, attempt: int, job: Job) -> JobRef:
        return JobRef(node, job.name, job.label, attempt)

    # -- the log -----------------------------------------------------------------------------------------------------

    def _tell_outcome(self, out: Outcome) -> None:
        self._tell_states([*out.completed, *out.pruned, *out.removed, *out.ready])

    def _tell_states(self, nodes: Sequence[int]) -> None:
        """Write the present states of jobs that nobody ran."""
        now = time.time()
        nodes = [node for node in nodes if not self._dag.is_instant(node)]
        for at in range(0, len(nodes), JOBS_PER_LINE):
            self._scribe.add(States(time=now, jobs=tuple(self._states(nodes[at : at + JOBS_PER_LINE]))))

    def _states(self, nodes: Sequence[int]) -> Iterator[JobState]:
        for node in nodes:
            name = self._document.job_name(node)
            # The attempt that is to come, or would have: an attempt that ended has a line of its own.
            yield JobState(node, name.name, name.label, self._dag.starts[node] + 1, self._dag.state[node])

    def _closing_note(self) -> str:
        words = [self._stop_note] if self._stop_note else []
        if self._failure_count:
            more = self._failure_count - len(self._failures)
            names = ", ".join(self._failures) + (f" and {more} more" if more else "")
            words.append(f"{self._failure_count} of {len(self._document)} jobs failed: {names}")
        return "; ".join(words)
