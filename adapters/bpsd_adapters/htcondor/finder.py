"""One run out of a pool: by any of its ids, its folder or its token, on whichever schedd it is."""

from __future__ import annotations

__all__ = ["Finder", "Found", "all_of_them", "named_jobs"]

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bpsd.errors import BackendUnavailable, RunNotFound, no_run
from bpsd.models import TokenAnswer
from bpsd_adapters.htcondor.classads import Ad, as_number, as_text, literal
from bpsd_adapters.htcondor.observe import HISTORY, QUEUE, Ids
from bpsd_adapters.htcondor.pool import IS_DAG, IS_RUN, Pool
from bpsd_adapters.transports.base import CommandFailed

_LISTED = ("ClusterId", "ProcId", "GlobalJobId", "DAGManJobId")
_NO_SCHEDD = ("no record of", "Can't find address for schedd", "unknown schedd")


NAMES_PER_CALL = 500
"""How many jobs one constraint names: a command line has an end (128 kB for a word of it)."""


class Found(NamedTuple):
    """A run's ad, its id, and where it was found (``queue`` or ``history``)."""

    ad: Ad
    ids: Ids
    source: str

    @property
    def wms_id(self) -> str:
        """The id under which the run is known."""
        return self.ids.text(self.ad)

    @property
    def key(self) -> str:
        """The id that no schedd gives twice; the WMS id of an ad that lacks it."""
        return as_text(self.ad, "GlobalJobId") or self.wms_id

    @property
    def submitted_at(self) -> int:
        """When it was submitted, by its schedd's clock (epoch seconds; 0 if the ad does not say)."""
        return as_number(self.ad, "QDate") or 0

    def itself(self) -> str:
        """Return the constraint that this DAGMan job satisfies and no other, of no time."""
        global_id = as_text(self.ad, "GlobalJobId")
        exactly = "" if global_id is None else f" && GlobalJobId =?= {literal(global_id)}"
        return f"ClusterId == {self.ids.cluster}{exactly}"

    def lifetime(self) -> str:
        """Return the constraint that jobs satisfy which were submitted while this DAGMan was there.

        A cluster id is given again when a schedd begins a new spool: jobs of the later DAGMan with this cluster id
        are not jobs of this one.
        """
        ended = as_number(self.ad, "EnteredCurrentStatus") if self.source == HISTORY else None
        until = "" if ended is None else f" && QDate <= {ended}"
        return f"QDate >= {self.submitted_at}{until}"


class Finder:
    """Looks for runs.

    Parameters
    ----------
    pool : `~bpsd_adapters.htcondor.pool.Pool`
        Whom to ask.
    backend : `str`
        Its name, for errors.
    schedds : `~collections.abc.Sequence`
        Those that the backend's settings name; `None` for the one that it submits to.
    """

    def __init__(self, pool: Pool, backend: str, schedds: Sequence[str | None]) -> None:
        self._pool, self._backend, self._schedds = pool, backend, tuple(schedds)

    async def every_schedd(self) -> tuple[str | None, ...]:
        """The schedds of the settings, then those that the pool's collector knows (the own one again, by its name)."""
        named = await self._pool.schedd_names()
        return (*self._schedds, *(name for name in named if name not in self._schedds))

    async def run(self, text: str) -> Found:
        """The run that is called ``text``: an id of the own schedd, a global id of any, or its folder.

        Raises
        ------
        RunNotFound
            If no queue and no history has it.
        """
        if not text.strip():
            raise no_run(self._backend, "")
        ids = Ids.parse(text)
        found = await (self._in_folder(text.strip()) if ids is None else self._by_id(ids, text.strip()))
        if found is None:
            raise no_run(self._backend, text, "it is neither in the queue nor in the history")
        return found

    async def all_of(self, text: str) -> list[Found]:
        """That one run, as a list."""
        return [await self.run(text)]

    async def namesakes(self, text: str) -> list[Found]:
        """Every run of the pool with that local id (``bps ... --global``)."""
        ids = Ids.parse(text)
        if ids is None or ids.schedd is not None:
            return [await self.run(text)]
        asked = [await self._look(Ids(schedd, ids.cluster)) for schedd in await self.every_schedd()]
        seen = {as_text(found.ad, "GlobalJobId"): found for found in reversed(asked) if found is not None}
        return [*seen.values()][::-1]

    async def newest_in(self, folder: str, *, live: bool = False) -> Found | None:
        """The newest run of a folder, in the queue or else in the history of any schedd of the settings."""
        constraint = f"{IS_RUN} && Iwd == {literal(folder)}"
        if live:  # also what a person submitted there without the attributes of a run
            constraint = f"{IS_DAG} && Iwd == {literal(folder)}"
        seen = [
            Found(ad, Ids.of(ad, schedd), QUEUE)
            for schedd in self._schedds
            for ad in (await self._pool.queue(schedd, constraint)).ads
        ]
        if not seen and not live:
            seen = [
                Found(ad, Ids.of(ad, schedd), HISTORY)
                for schedd in self._schedds
                for ad in (await self._pool.history(schedd, constraint, "-limit", "1")).ads
            ]
        return max(seen, key=lambda found: found.submitted_at, default=None)

    async def by_token(self, token: str, settled: Callable[[], float]) -> TokenAnswer:
        """Whether any schedd of the settings has a run or an attempt of that token.

        ``settled`` gives the seconds until "not found" is proof; it is asked after the pool was.
        """
        attribute = "bps_attempt_token" if "." in token else "bps_token"
        constraint = f"{IS_RUN} && {attribute} =?= {literal(token)}"
        found: list[Found] = []
        silent: list[str] = []
        for schedd in self._schedds:
            try:
                ads = (await self._pool.queue(schedd, constraint)).ads
                ads = ads or (await self._pool.history(schedd, constraint)).ads
            except BackendUnavailable as exc:
                silent.append(exc.message)
                continue
            found += [Found(ad, Ids.of(ad, schedd), QUEUE) for ad in ads]
        if found:
            newest = max(found, key=lambda each: (each.submitted_at, each.ids.cluster))
            return TokenAnswer(verdict="found", wms_id=newest.wms_id, path=as_text(newest.ad, "Iwd"))
        if silent:
            return TokenAnswer(verdict="cannot_tell", reason="; ".join(silent))
        wait = settled()
        if wait > 0:
            return TokenAnswer(verdict="cannot_tell", reason=f"not found, which is proof only in {wait:.0f} s")
        return TokenAnswer(verdict="absent")

    async def submitted(
        self, wms_id: str | None, user: str | None, *, require_bps: bool, extra: str, is_global: bool
    ) -> list[str]:
        """The ids of what is in the queues now: runs, and jobs whose run is not there any more (``bps cancel``)."""
        terms = [f"({extra})"] if extra else []
        terms += ['bps_isjob =?= "True"'] if require_bps else []
        terms += [f"Owner == {literal(user)}"] if user is not None else []
        schedds = await self.every_schedd() if is_global else self._schedds
        if wms_id is not None:
            try:
                _, ids, _ = await self.run(wms_id)
            except RunNotFound:
                local = Ids.parse(wms_id)
                if local is None or local.schedd is not None:
                    return []
                ids = local
            terms.append(f"(DAGManJobId =?= {ids.cluster} || ClusterId == {ids.cluster})")
            if not is_global or Ids.parse(wms_id) != Ids(None, ids.cluster):
                schedds = (ids.schedd,)
        listed: dict[str | None, str] = {}
        for schedd in schedds:
            for ad in await self._tops(schedd, terms):
                listed.setdefault(as_text(ad, "GlobalJobId"), Ids.of(ad, schedd).text(ad))
        return [*listed.values()]

    async def _tops(self, schedd: str | None, terms: Sequence[str]) -> list[Ad]:
        tops = (await self._pool.queue(schedd, all_of_them(*terms, "DAGManJobId =?= undefined"), _LISTED)).ads
        here = sorted({as_number(ad, "ClusterId") or 0 for ad in await self._dagmans(schedd)})
        orphaned = "DAGManJobId =!= undefined"
        if here:
            orphaned += f" && !member(DAGManJobId, {{{','.join(map(str, here))}}})"
        orphans = (await self._pool.queue(schedd, all_of_them(*terms, orphaned), _LISTED)).ads
        return [*tops, *orphans]

    async def _dagmans(self, schedd: str | None) -> list[Ad]:
        return [*(await self._pool.queue(schedd, "JobUniverse == 7", ("ClusterId",))).ads]

    # -- the jobs of a run -------------------------------------------------------------------------------------------

    async def members(self, found: Found) -> str:
        """The constraint of what a run has in the queue beside its DAGMan: jobs, groups, jobs of groups."""
        cluster, then = found.ids.cluster, found.lifetime()
        below = await self._pool.queue(
            found.ids.schedd, f"JobUniverse == 7 && DAGManJobId =?= {cluster} && {then}", ("ClusterId",)
        )
        dags = [cluster, *(as_number(ad, "ClusterId") or 0 for ad in below.ads)]
        constraint = f"(member(DAGManJobId, {{{','.join(map(str, dags))}}}) && {then})"
        token = as_text(found.ad, "bps_token")
        if token is None:
            return f"({constraint})"
        return f"({constraint} || (bps_token =?= {literal(token)} && DAGManJobId =!= undefined))"

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _by_id(self, ids: Ids, text: str) -> Found | None:
        if ids.schedd is None:
            return await self._look(ids)
        where = (ids.schedd,) if ids.schedd in self._schedds else (None, ids.schedd)
        exactly = text if text.count("#") == 2 else None
        for schedd in where:
            found = await self._look(Ids(schedd, ids.cluster), exactly)
            if found is not None and f"{as_text(found.ad, 'GlobalJobId')}#".startswith(f"{text}#"):
                return found
        return None

    async def _in_folder(self, text: str) -> Found | None:
        if not text.startswith("/"):
            return None
        return await self.newest_in(text.rstrip("/") or "/")

    async def _look(self, ids: Ids, global_id: str | None = None) -> Found | None:
        constraint = f"ClusterId == {ids.cluster} && JobUniverse == 7"
        if global_id is not None:  # a history may have several runs of one cluster id
            constraint += f" && GlobalJobId =?= {literal(global_id)}"
        try:
            queue = await self._pool.queue(ids.schedd, constraint)
            if queue.ads:
                return Found(queue.ads[0], ids, QUEUE)
            history = await self._pool.history(ids.schedd, constraint, "-limit", "1")
        except CommandFailed as exc:
            if ids.schedd not in self._schedds and any(sign in exc.message for sign in _NO_SCHEDD):
                return None  # a person named a schedd that this pool does not have
            raise
        return Found(history.ads[0], ids, HISTORY) if history.ads else None


def named_jobs(names: Sequence[str]) -> list[str]:
    """Constraints that together name these jobs."""
    pieces = [names[start : start + NAMES_PER_CALL] for start in range(0, len(names), NAMES_PER_CALL)]
    return [f"member(bps_job_name ?: DAGNodeName, {{{','.join(map(literal, piece))}}})" for piece in pieces]


def all_of_them(*terms: str) -> str:
    """A constraint that wants all of these."""
    return " && ".join(f"({term})" for term in terms if term) or "True"
