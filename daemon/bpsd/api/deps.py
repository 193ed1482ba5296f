"""What the methods work with, and what several of them share: finding a run, hot or cold."""

from __future__ import annotations

__all__ = ["Deps"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from bpsd import wire
from bpsd.api.scans import Scans
from bpsd.api.visibility import Sight
from bpsd.api.workflows import Workflows
from bpsd.cache import Cache
from bpsd.commands.engine import CommandEngine
from bpsd.config import Config
from bpsd.errors import (
    BackendUnavailable,
    PermissionDenied,
    RunAmbiguous,
    RunNotFound,
    UnknownBackend,
    nearest,
    refusal_text,
)
from bpsd.jobtable import JobTable
from bpsd.journal import Journal
from bpsd.peers import Peer, Policy, may_submit
from bpsd.poller import Backend
from bpsd.runs import RunRecord, decode_record
from bpsd.server import Call, ClientsUse
from bpsd.slices import Pause, in_turns, nearest_of
from bpsd.spool import Spool
from bpsd.store import Store

MOST_COMMANDS = 1000
"""Commands of one run that are looked through for its submission."""

MOST_NAMESAKES = 5
"""Runs that are named to somebody who gave the name of a run for its id."""


@dataclass(slots=True)
class Deps:
    """Everything that a method may use.

    ``figures`` gives the daemon's own figures for `health`. ``refused`` says why the last reload was refused (empty: it
    was not). ``needs_restart`` lists the settings that the last reload could not apply. ``names_unknown`` lists the
    users and groups of the configuration that do not exist on this host now. ``config_wrong`` lists the metrics and
    notifications that cannot work here, with the reasons.
    """

    config: Config
    config_path: str | None
    cache: Cache
    store: Store
    journal: Journal
    engine: CommandEngine
    backends: Mapping[str, Backend]
    spool: Spool
    workflows: Workflows
    figures: Callable[[], dict[str, float]]
    clients: Callable[[], ClientsUse]
    socket_fault: Callable[[], str]
    policy: Policy
    clock: Callable[[], float]
    started_at: float
    log: Any
    refused: str = ""
    needs_restart: Sequence[str] = ()
    names_unknown: Sequence[str] = ()
    config_wrong: Callable[[], Sequence[str]] = tuple
    scans: Scans = field(default_factory=Scans)

    def sight(self, call: Call) -> Sight:
        """What the caller may see of others' runs and commands."""
        return Sight(call.peer, self.policy)

    def backend(self, name: str | None) -> Backend:
        """The backend called ``name``, or the only one.

        Raises
        ------
        UnknownBackend
            If there is none of that name, or none was named and there are several: a campaign on the wrong site costs
            more than a word.
        """
        if name is None:
            if len(self.backends) == 1:
                return next(iter(self.backends.values()))
            raise UnknownBackend(
                f"there are {len(self.backends)} backends, and none was named",
                advice=f"name one of {', '.join(self.backends)} (--backend)",
                known=list(self.backends),
            )
        backend = self.backends.get(name)
        if backend is None:
            near = nearest(name, self.backends)
            raise UnknownBackend(
                f"no backend is called {name}",
                advice=(f"did you mean {near[0]}? " if near else "") + f"the backends are: {', '.join(self.backends)}",
                known=list(self.backends),
            )
        return backend

    def check_backends(self, names: list[str]) -> None:
        """Refuse filters that name a backend that is not there: an empty answer would look like good news."""
        for name in names:
            self.backend(name)

    async def find(self, text: str, backend: str | None) -> tuple[RunRecord, JobTable | None, bool]:
        """The run that a person calls ``text``: hot, or from our history.

        Returns
        -------
        record : `~bpsd.runs.RunRecord`
        jobs : `~bpsd.jobtable.JobTable` or `None`
            Its jobs (`None` if none are kept).
        hot : `bool`
            Whether it is in memory.

        Raises
        ------
        RunNotFound, RunAmbiguous
            If not exactly one run answers to it.
        """
        try:
            record = self.cache.resolve(text, backend)
        except RunNotFound as unknown:
            try:
                cold = await self._cold(text, backend, unknown)
            except RunNotFound as nowhere:
                await self.check_refused(text, nowhere)
                raise
            hot = self.cache.get(cold.run_id)
            if hot is None:
                return cold, await self.cold_jobs(cold.run_id), False
            record = hot  # what is in memory is newer than what was written of it
        jobs = self.cache.jobs(record.run_id)
        if not len(jobs) and not record.live:
            # The jobs of a run that ended before the daemon started are on the disk only.
            return record, await self.cold_jobs(record.run_id), True
        return record, jobs, True

    async def find_id(self, text: str, backend: str | None) -> str:
        """Our id of the run that a person calls ``text``, also if its submission was refused."""
        try:
            record, _, _ = await self.find(text, backend)
        except RunNotFound as exc:
            if "refused" not in exc.fields:
                raise
            return str(exc.fields["run"])
        return record.run_id

    async def check_refused(self, text: str, unknown: RunNotFound) -> None:
        """Raise why there is no run ``text``, if that is the id or the token of a submission that was refused."""
        command = await self.journal.by_token(text) if len(text) == wire.TOKEN_LENGTH else None
        if command is None:
            found = await self.journal.commands(run_id=text, limit=MOST_COMMANDS)
            command = next((c for c in found if c.verb == "submit"), None)
        if command is None or command.state != "FAILED" or command.error is None:
            return
        raise RunNotFound(
            f"run {command.run_id} does not exist: its submission was refused: {refusal_text(command.error)}",
            advice=f"correct that and submit again; `bpsctl commands {command.id}` shows the refusal",
            run=command.run_id,
            refused=command.id,
            **{name: command.error[name] for name in ("source", "problems", "total") if name in command.error},
        ) from unknown

    def can(self, backend: str, what: Literal["holds", "reads_output"]) -> bool:
        """Whether a backend can do something; one that is not open now is asked when the time comes."""
        try:
            return bool(getattr(self.backends[backend].service.capabilities, what))
        except BackendUnavailable:
            return True

    def check_submitter(self, peer: Peer, backend: Backend) -> None:
        """Refuse somebody who may not submit to a backend."""
        if not may_submit(peer, self.policy, backend.name):
            raise PermissionDenied(
                f"{peer.user} may not submit to backend {backend.name}",
                advice=f"an administrator can name you, or a group of yours, in backends.{backend.name}.submitters",
                right="submit",
            )

    async def _cold(self, text: str, backend: str | None, unknown: RunNotFound) -> RunRecord:
        """The run in the history that has this id; `RunNotFound` with those that are only named so, as ``nearest``."""
        wms_ids = self.cache.wms_ids(text)
        found = [s for name in dict.fromkeys((text, *chain(*wms_ids.values()))) for s in await self.store.find(name)]
        stored = [s for s in {s.run_id: s for s in found}.values() if backend in (None, s.backend)]
        called = [
            s
            for s in stored
            if text in (s.run_id, s.wms_id, s.global_wms_id, s.token, s.path) or s.wms_id in wms_ids.get(s.backend, ())
        ]
        if len(called) == 1:
            return decode_record(called[0].doc)
        if called:
            raise RunAmbiguous(
                f"{len(called)} runs in the history are called {text}",
                advice="use one of the ids that begin with r",
                candidates=[{"id": s.run_id, "backend": s.backend, "wms_id": s.wms_id, "name": s.name} for s in called],
            )
        if not stored:
            raise await self._not_found(text, unknown)
        # A name is no id: many runs share it, and the beginning of one may be a slip of the hand.
        ids = [s.run_id for s in stored[:MOST_NAMESAKES]]
        raise RunNotFound(
            unknown.message,
            advice=f"runs whose name is or begins so: {', '.join(ids)}; say which by its id",
            nearest=ids,
        ) from unknown

    async def _not_found(self, text: str, unknown: RunNotFound) -> RunNotFound:
        near = await nearest_of(text, self.cache.latest_names())
        if not near:
            return unknown
        return RunNotFound(unknown.message, advice=f"did you mean {' or '.join(near)}?", nearest=near)

    async def hot(self, texts: Sequence[str], backend: str | None = None) -> list[RunRecord]:
        """The hot runs that a person calls so, in slices; `RunNotFound` has the nearest names.

        Raises
        ------
        RunNotFound, RunAmbiguous
            If not exactly one hot run answers to each.
        """
        pause = Pause()
        found = []
        for text in texts:
            try:
                found.append(self.cache.resolve(text, backend))
            except RunNotFound as unknown:
                await self.check_refused(text, unknown)
                raise await self._not_found(text, unknown) from None
            await pause.if_due()
        return found

    async def cold_jobs(self, run_id: str) -> JobTable | None:
        """The jobs of a run as the store keeps them."""
        snapshot, appended = await self.store.jobs(run_id)
        if snapshot is None and not appended:
            return None
        jobs = JobTable()
        await in_turns(jobs.loading(snapshot, appended))
        return jobs
