"""The jobs of the runs that a poll saw: from the runs' logs as they grow, or else as the pool itself tells of them."""

from __future__ import annotations

__all__ = ["OBSERVING", "OVERLAP_S", "Held", "JobWatcher", "Looked", "each"]

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import anyio

from bpsd.errors import BackendAuthError, BackendUnavailable, LimitExceeded
from bpsd.models import JobObservation, RunObservation, WmsSpecificInfo, WmsStates
from bpsd_adapters.htcondor.classads import MANY_STARTS, Ad, as_number, as_text, run_note, run_state
from bpsd_adapters.htcondor.finder import Found
from bpsd_adapters.htcondor.hostclock import HostClock
from bpsd_adapters.htcondor.observe import HISTORY, dag_file, observe_child, observe_run
from bpsd_adapters.htcondor.policy import service_status
from bpsd_adapters.htcondor.pool import Pool
from bpsd_adapters.htcondor.runfiles import Room, RunFiles
from bpsd_adapters.htcondor.tracker import RunTracker
from bpsd_adapters.quarantine import Quarantine

OVERLAP_S = 120.0
"""How much of a source is read again: what entered it late is not missed."""

RUNS_AT_ONCE = 8
"""The logs of so many runs are read at the same time: each piece of one takes round trips to the submit host."""

FAILURES_MAX = 5
"""Maximum number of failed jobs that the note of a run names."""

READING, OBSERVING = "reading its files", "making out its state"
"""Parts of the work for a run; each pauses by itself after an unexpected error."""

_CHILDREN = "children:"
_UNREADABLE = (OSError, BackendUnavailable, BackendAuthError, LimitExceeded)


class Held:
    """Jobs that were submitted on hold, by the DAGMan that did it; those of a group may belong to any run."""

    def __init__(self, runs: Iterable[Found], born_held: Mapping[str | None, Sequence[Ad]]) -> None:
        dagmans = {(found.ids.schedd, found.ids.cluster) for found in runs}
        self._ads: dict[tuple[str | None, int | None], list[Ad]] = {}
        for schedd, ads in born_held.items():
            for ad in ads:
                dagman = as_number(ad, "DAGManJobId")
                self._ads.setdefault((schedd, dagman if (schedd, dagman) in dagmans else None), []).append(ad)

    def of(self, found: Found) -> list[Ad]:
        """Those that may be jobs of a run."""
        return [*self._ads.get((found.ids.schedd, found.ids.cluster), ()), *self._ads.get((found.ids.schedd, None), ())]


class Looked(NamedTuple):
    """What there is to tell of runs, how far each was told, and whether more is to be read at once."""

    observations: list[RunObservation]
    cursors: dict[str, str]
    more: bool


class JobWatcher:
    """Sees the jobs of a pool's runs.

    Parameters
    ----------
    pool : `~bpsd_adapters.htcondor.pool.Pool`
        Whom to ask for the jobs of runs whose files are not there or not for us.
    quarantine : `~bpsd_adapters.quarantine.Quarantine`
        Runs that broke in an unexpected way, by their ids.
    """

    def __init__(self, pool: Pool, quarantine: Quarantine) -> None:
        self._pool, self._quarantine = pool, quarantine
        self._files: dict[str, RunFiles] = {}
        self._turns = 0
        self._turn_of: dict[str, int] = {}
        """When the logs of a run were read last: those that waited longest are read first."""
        self.reread = False
        """Whether the logs of a run that is not new were read from their beginning."""

    def files_of(self, key: str) -> RunFiles | None:
        """The files of a run that is watched."""
        return self._files.get(key)

    def let_go(self, key: str, cursor: str | None) -> bool:
        """Forget the jobs of a run that is over, if they were all told up to ``cursor``; whether they were."""
        files = self._files.get(key)
        if files is None or not files.is_finished or files.tracker.cursor != cursor:
            return False
        del self._files[key]
        return True

    async def sizes(self) -> dict[str, int]:
        """How large the logs are that are followed, asked for all of them at once."""
        paths = [path for files in self._files.values() for path in files.logs]
        try:
            return await self._pool.sizes(paths)
        except (BackendUnavailable, BackendAuthError):
            return {}  # each is then asked for by itself, and says what is wrong with it

    async def look(
        self,
        runs: Mapping[str, Found],
        told: Mapping[str, str | None],
        held: Held,
        left: Mapping[str, int],
        clock: HostClock,
        room: Room,
        sizes: Mapping[str, int],
    ) -> Looked:
        """Observe runs with the jobs that changed.

        Parameters
        ----------
        runs : `~collections.abc.Mapping` [`str`, `~bpsd_adapters.htcondor.finder.Found`]
            The runs by their keys.
        told : `~collections.abc.Mapping` [`str`, `str`]
            How far each was told: its cursor.
        held : `Held`
            Jobs submitted on hold.
        left : `~collections.abc.Mapping` [`str`, `int`]
            How many jobs of runs without a DAGMan are in the queue all the same.
        clock : `~bpsd_adapters.htcondor.hostclock.HostClock`
            The submit host's.
        room : `~bpsd_adapters.htcondor.runfiles.Room`
            How much may be read.
        sizes : `~collections.abc.Mapping` [`str`, `int`]
            Of logs, as of before the queue was asked; of a run that is over they are asked for again.
        """
        self.reread = False
        for gone in self._files.keys() - runs.keys() - told.keys():  # a run whose schedd is silent is still known
            del self._files[gone]
        unread: dict[str, str] = dict.fromkeys(runs.keys() - _newest(runs), "")
        unfinished: set[str] = set()

        async def read(key: str, found: Found) -> None:
            """Read on in its files; what cannot be read, or breaks us, is asked of the pool."""
            why, done = "", False
            if self._quarantine.is_due(key, READING):
                try:
                    with self._quarantine.guard(key, READING):
                        if not room.is_used_up:
                            self._turns += 1
                            self._turn_of[key] = self._turns
                        if await self._read(key, found, clock, room, {} if found.source == HISTORY else sizes):
                            unfinished.add(key)
                        done = True
                except _UNREADABLE as exc:
                    why = str(exc)
            if not done:
                self._files.pop(key, None)
                unread[key] = why or self._quarantine.note(key)

        self._turn_of = {key: turn for key, turn in self._turn_of.items() if key in runs}
        waiting = sorted(runs.keys() - unread.keys(), key=lambda key: (self._turn_of.get(key, 0), key))
        await each([read(key, runs[key]) for key in waiting], RUNS_AT_ONCE)
        asked = await self._ask({key: runs[key] for key in runs if key in unread}, told, clock)
        observations, cursors = [], {key: cursor for key, (_, cursor) in asked.items()}
        for key, found in runs.items():
            if not self._quarantine.is_due(key, OBSERVING):
                continue
            with self._quarantine.guard(key, OBSERVING):
                jobs_left = left.get(key, 0)
                if key in unread:
                    info, jobs = _why(found.ad, unread[key]), asked[key][0]
                    seen = observe_run(found.ad, found.wms_id, found.source, jobs=jobs, left=jobs_left, info=info)
                else:
                    seen = await self._observe(
                        key, found, told.get(key), held.of(found), jobs_left, unread=key in unfinished
                    )
                    cursors[key] = self._files[key].tracker.cursor
                observations.append(seen)
        return Looked(observations, cursors, bool(unfinished))

    async def _read(self, key: str, found: Found, clock: HostClock, room: Room, sizes: Mapping[str, int]) -> bool:
        """Read on in a run's logs; whether there is more."""
        files = self._files.get(key)
        if files is None:
            dag = dag_file(found.ad)
            assert dag is not None  # or it would not be the newest run of a folder
            files = self._files[key] = RunFiles(self._pool.transport, dag, clock, found.ids.cluster)
            self.reread |= found.submitted_at < clock.now - OVERLAP_S
        tracker = files.tracker
        more = await files.update(room, sizes)
        self.reread |= files.tracker is not tracker
        return more

    async def _observe(
        self, key: str, found: Found, cursor: str | None, held: Sequence[Ad], left: int, *, unread: bool
    ) -> RunObservation:
        """A run whose files are read."""
        files = self._files[key]
        self._take_held(files, held)
        if found.source == HISTORY and not left and not unread:
            await files.finish(run_state(found.ad))
        missing, commands = files.tracker.missing_nodes(files.dag, as_number(found.ad, "DAG_NodesTotal"))
        is_whole = files.is_loaded and not missing and not commands
        return observe_run(
            found.ad,
            found.wms_id,
            found.source,
            jobs=files.tracker.changed(cursor),
            total=len(files.tracker) if is_whole else None,
            job_failed=files.tracker.failed(),
            left=left,
            unread=unread,
            info=_services(files.tracker),
            why="" if unread else await self._why(found, files, missing, commands),
            all_succeeded=is_whole and files.tracker.all_succeeded(),
        )

    @staticmethod
    async def _why(found: Found, files: RunFiles, missing: int, commands: Sequence[str]) -> str:
        """Return what a run's files say of its end or trouble: failed jobs, DAGMan's errors, what is not followed."""
        said = []
        tracker, state = files.tracker, run_state(found.ad)
        over = found.source == HISTORY
        restarts = (as_number(found.ad, "NumJobStarts") or 0) >= MANY_STARTS
        failures = tracker.failures() if over and state in (WmsStates.FAILED, WmsStates.SUCCEEDED) else []
        if failures:
            more = f" and {len(failures) - FAILURES_MAX} more" if len(failures) > FAILURES_MAX else ""
            said.append(f"failed: {', '.join(failures[:FAILURES_MAX])}{more}")
        if (over and state is WmsStates.FAILED) or restarts:
            words = await files.dagman_words()
            said += [f"DAGMan: {words}"] if words else []
        said += [
            f"{name} is held: {note}" for name, held, note in tracker.services() if held is WmsStates.HELD and not over
        ]
        if missing or commands:
            what = f"the DAG uses {', '.join(commands)}" if commands else "DAGMan has nodes of further files"
            ad = found.ad
            said.append(
                f"{what}, which bpsd does not follow: not all jobs are shown; DAGMan counts"
                f" {as_number(ad, 'DAG_NodesTotal') or 0} nodes, {as_number(ad, 'DAG_NodesDone') or 0} done,"
                f" {as_number(ad, 'DAG_NodesFailed') or 0} failed"
            )
        return "; ".join(said)

    @staticmethod
    def _take_held(files: RunFiles, ads: Sequence[Ad]) -> None:
        for ad in ads:
            name = as_text(ad, "bps_job_name") or as_text(ad, "DAGNodeName") or ""
            if files.tracker.cluster_of(name) == as_number(ad, "ClusterId"):
                files.tracker.born_held(name, float(as_number(ad, "EnteredCurrentStatus") or 0), run_note(ad))

    # -- jobs whose logs cannot be read ------------------------------------------------------------------------------

    async def _ask(
        self, runs: Mapping[str, Found], told: Mapping[str, str | None], clock: HostClock
    ) -> dict[str, tuple[list[JobObservation], str]]:
        """Of each run the jobs that changed, and how far it is told then: one question for all that were told of."""
        answers: dict[str, tuple[list[JobObservation], str]] = {}
        questions: dict[tuple[str | None, bool], dict[str, float]] = {}
        for key, found in runs.items():
            cursor = told.get(key) or ""
            answers[key] = [], cursor
            since = _since(cursor)
            ended = (as_number(found.ad, "EnteredCurrentStatus") or 0) if found.source == HISTORY else clock.now
            if since <= ended + OVERLAP_S:
                questions.setdefault((found.ids.schedd, since > 0), {})[key] = since

        async def ask(schedd: str | None, since: Mapping[str, float]) -> None:
            # A cluster id that was given again is the later run's, and so are the jobs that the pool shows under it.
            whose = {runs[key].ids.cluster: key for key in sorted(since, key=lambda key: runs[key].submitted_at)}
            try:
                ads = await self._pool.children(schedd, [*whose], min(since.values()))
            except (BackendUnavailable, BackendAuthError):
                return
            for key in since:
                answers[key] = [], f"{_CHILDREN}{int(clock.now - OVERLAP_S)}"
            for ad in ads:
                job, run = observe_child(ad), whose.get(as_number(ad, "DAGManJobId") or 0)
                if job is not None and run is not None:
                    answers[run][0].append(job)

        await each([ask(schedd, since) for (schedd, _), since in questions.items()], RUNS_AT_ONCE)
        return answers


def _services(tracker: RunTracker) -> WmsSpecificInfo | None:
    """Return the status of the service nodes, in the words of ``bps report``."""
    services = tracker.services()
    if not services:
        return None
    info = WmsSpecificInfo()
    for name, state, note in services:
        status, details = service_status(state, note)
        info.add_message("Status of {job_name}: {status} {status_details}", job_name=name, status=status.name,
                         status_details=details)  # fmt: skip
    return info


def _since(cursor: str) -> float:
    number = cursor.removeprefix(_CHILDREN)
    return float(number) if cursor.startswith(_CHILDREN) and number.isdecimal() else 0.0


def _why(ad: Ad, error: str) -> WmsSpecificInfo | None:
    if not error:
        return None
    info = WmsSpecificInfo()
    message = "jobs come from the queue and the history: {dag} cannot be read ({why})"
    info.add_message(message, dag=dag_file(ad) or "", why=error)
    return info


def _newest(runs: Mapping[str, Found]) -> set[str]:
    """The newest run in each folder: the files there are its own."""
    best: dict[str, tuple[int, str]] = {}
    for key, found in runs.items():
        file = dag_file(found.ad)
        if file is not None:
            best[file] = max(best.get(file, (-1, "")), (found.submitted_at, key))
    return {key for _, key in best.values()}


async def each(calls: Sequence[Coroutine[Any, Any, None]], at_once: int) -> None:
    """Do all of that, so much at once; if one fails the rest is given up, and its error comes as it is."""
    limiter = anyio.CapacityLimiter(at_once)

    async def one(call: Coroutine[Any, Any, None]) -> None:
        async with limiter:
            await call

    try:
        async with anyio.create_task_group() as group:
            for call in calls:
                group.start_soon(one, call)
    except BaseExceptionGroup as exc:
        raise _first(exc) from exc
    finally:
        for call in calls:
            call.close()


def _first(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
