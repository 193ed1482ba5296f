"""The pool's own command line tools, over a transport: questions with projections, and orders. The I/O of ads."""

from __future__ import annotations

__all__ = ["IS_DAG", "IS_RUN", "Answer", "Gone", "Pool"]

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bpsd.errors import BackendAuthError, BackendUnavailable
from bpsd_adapters.htcondor.classads import (
    CHILD_COLUMNS,
    DAG_ATTRIBUTES,
    Ad,
    as_number,
    as_text,
    literal,
    parse_ads,
    parse_columns,
)
from bpsd_adapters.htcondor.hostclock import HostClock, zone_of
from bpsd_adapters.htcondor.runfiles import sizes_of
from bpsd_adapters.transports.base import Completed, Transport

MAX_ANSWER_BYTES = 64 * 1024 * 1024

ZONE_FILE = "/etc/localtime"
ZONE_BYTES = 64 * 1024

LEFT_BEHIND_MOST = 1000
"""How many jobs without a DAGMan are counted; from there on it is enough that there are some."""

LINGERS_S = 11 * 86_400.0
"""How late a job may enter the history: spooled output is kept for ten days."""

_REFUSED = ("AUTHENTICATE:", "DCSchedd::authenticate", "Permission denied", "not authorized", "SECMAN:2010")

IS_DAG = "JobUniverse == 7 && DAGManJobId =?= undefined"
"""DAGMan jobs; a group's DAGMan has a ``DAGManJobId``."""

IS_RUN = f'{IS_DAG} && bps_isjob =?= "True"'
"""DAGMan jobs of runs."""


_BORN_HELD = "DAGManJobId =!= undefined && JobStatus == 5 && HoldReasonCode == 15"
"""Jobs submitted on hold: no log tells of that, the queue alone does."""


class Answer(NamedTuple):
    """Ads, and what they cost."""

    ads: list[dict[str, Any]]
    cost_s: float
    cost_bytes: int


class Gone(NamedTuple):
    """A run that left the queue, with what is known of its identity."""

    cluster: int
    token: str | None = None
    global_id: str | None = None

    def term(self) -> str:
        """Return its part of a constraint."""
        which = f"ClusterId == {self.cluster}"
        if self.global_id is not None:
            which += f" && GlobalJobId =?= {literal(self.global_id)}"
        elif self.token is not None:
            which += f" && bps_token =?= {literal(self.token)}"
        return f"({which})"

    def is_it(self, ad: Ad) -> bool:
        """Return whether an ad is that run's."""
        return (
            as_number(ad, "ClusterId") == self.cluster
            and self.token in (None, as_text(ad, "bps_token"))
            and self.global_id in (None, as_text(ad, "GlobalJobId"))
        )


class Pool:
    """One pool.

    Parameters
    ----------
    transport : `~bpsd_adapters.transports.base.Transport`
        To the submit host; open.
    deadline_s : `float`
        How long one tool may take.
    owner : `str`, optional
        Whose runs are asked for.
    runs : `str`, optional
        A constraint that chooses runs, in place of ours.
    """

    def __init__(
        self, transport: Transport, deadline_s: float, owner: str | None = None, runs: str | None = None
    ) -> None:
        self.transport = transport
        self._deadline_s = deadline_s
        self._runs = IS_RUN if runs is None else f"{IS_DAG} && ({runs})"
        if owner is not None:
            self._runs += f" && Owner == {literal(owner)}"

    async def runs(self, schedd: str | None, held_since: float) -> Answer:
        """The runs in the queue of a schedd, and the jobs that were submitted on hold since then."""
        held = f"{_BORN_HELD} && EnteredCurrentStatus >= {int(held_since)}"
        return await self.queue(
            schedd,
            f"({self._runs}) || ({held})",
            (*DAG_ATTRIBUTES, "JobUniverse", "DAGManJobId", "bps_job_name", "DAGNodeName"),
        )

    async def children(self, schedd: str | None, clusters: Sequence[int], since: float) -> list[dict[str, Any]]:
        """The jobs of runs that changed since a time of the submit host's clock, in the queue or gone from it."""
        whose = f"member(DAGManJobId, {{{','.join(map(str, sorted(clusters)))}}})"
        changed = f"{whose} && JobUniverse != 7 && EnteredCurrentStatus >= {int(since)}"
        gone = await self._columns(
            ["condor_history", *_name(schedd), "-constraint", changed, "-since", _read_back_to(since)]
        )
        here = await self._columns(["condor_q", *_name(schedd), "-allusers", "-constraint", changed])
        return [*here.ads, *gone.ads]

    async def gone(self, schedd: str | None, runs: Sequence[Gone]) -> list[dict[str, Any]]:
        """Return these runs as the history has them; it is read until all are found, or to its end."""
        which = f"ProcId == 0 && ({' || '.join(run.term() for run in runs)})"
        return (await self.history(schedd, which, "-limit", f"{len(runs)}")).ads

    async def ended(self, schedd: str | None, since: float) -> Answer:
        """The runs that left the queue since a time of the submit host's clock."""
        return await self.history(schedd, self._runs, "-since", _read_back_to(since))

    async def left_behind(self, schedd: str | None, runs: Sequence[Ad]) -> dict[int, int]:
        """Return how many jobs of ended runs are in the queue, by the runs' clusters; of very many not all are counted.

        What was submitted after the end of a run is of another run, to which the cluster id was given again.
        """
        ended = {as_number(ad, "ClusterId") or 0: as_number(ad, "EnteredCurrentStatus") for ad in runs}
        clusters = ended.keys()
        tokens = {token: as_number(ad, "ClusterId") or 0 for ad in runs if (token := as_text(ad, "bps_token"))}
        constraint = " || ".join(
            f"(DAGManJobId =?= {cluster}" + ("" if end is None else f" && QDate <= {end}") + ")"
            for cluster, end in sorted(ended.items())
        )
        if tokens:
            constraint += f" || (DAGManJobId =!= undefined && member(bps_token, {{{','.join(map(literal, tokens))}}}))"
        seen = await self.queue(schedd, constraint, ("DAGManJobId", "bps_token"), limit=LEFT_BEHIND_MOST)
        count = dict.fromkeys(clusters, 1 if len(seen.ads) >= LEFT_BEHIND_MOST else 0)
        for ad in seen.ads:
            dag = as_number(ad, "DAGManJobId")
            cluster = dag if dag in clusters else tokens.get(as_text(ad, "bps_token") or "", dag)
            count[cluster or 0] = count.get(cluster or 0, 0) + 1
        return count

    async def queue(
        self,
        schedd: str | None,
        constraint: str,
        attributes: Sequence[str] = DAG_ATTRIBUTES,
        limit: int | None = None,
    ) -> Answer:
        """The ads in a queue that satisfy a constraint."""
        most = () if limit is None else ("-limit", f"{limit}")
        return await self._ask(
            ["condor_q", *_name(schedd), "-allusers", "-constraint", constraint, *most, "-json", "-attributes",
             ",".join(attributes)]
        )  # fmt: skip

    async def history(
        self, schedd: str | None, constraint: str, *more: str, attributes: Sequence[str] = DAG_ATTRIBUTES
    ) -> Answer:
        """The ads in a history that satisfy a constraint, newest first."""
        return await self._ask(
            ["condor_history", *_name(schedd), "-constraint", constraint, *more, "-json", "-attributes",
             ",".join(attributes)]
        )  # fmt: skip

    async def schedd_names(self) -> list[str]:
        """The schedds that the collector knows."""
        done = await self.tool(["condor_status", "-schedd", "-af", "Name"])
        return done.check(self.transport.host).stdout.decode(errors="replace").split()

    async def act(self, tool: str, schedd: str | None, *arguments: str) -> Completed:
        """Run ``condor_rm``, ``condor_hold`` or ``condor_release``; whatever comes of it."""
        done = await self.tool([tool, *_name(schedd), *arguments])
        if done.returncode != 0 and any(sign in done.error_text for sign in _REFUSED):
            raise BackendAuthError(f"{tool} was refused: {done.error_text}", advice="renew the token or ask the admin")
        return done

    async def tool(self, argv: Sequence[str], **options: Any) -> Completed:
        """Run any tool within the deadline."""
        return await self.transport.run(argv, deadline_s=self._deadline_s, **options)

    async def sizes(self, paths: Sequence[str]) -> dict[str, int]:
        """The sizes of files on the submit host (see `~bpsd_adapters.htcondor.runfiles.sizes_of`)."""
        return await sizes_of(self.transport, paths, self._deadline_s)

    async def host_clock(self) -> HostClock:
        """The submit host's clock, now."""
        done = (await self.tool(["date", "+%s.%N %z"])).check(self.transport.host)
        seconds, zone = done.stdout.decode().split()
        try:
            rules = await self.transport.read(ZONE_FILE, 0, ZONE_BYTES)
        except OSError:
            rules = b""
        offset_s = int(zone[1:3]) * 3600.0 + int(zone[3:5]) * 60.0
        now = float(seconds)
        return HostClock(now, zone_of(rules, now, -offset_s if zone[0] == "-" else offset_s))

    async def _columns(self, argv: Sequence[str]) -> Answer:
        return await self._ask(
            [*argv, "-af:tV", *CHILD_COLUMNS.values()], lambda said: parse_columns(said, [*CHILD_COLUMNS])
        )

    async def _ask(self, argv: Sequence[str], parse: Callable[[bytes], list[dict[str, Any]]] = parse_ads) -> Answer:
        began = time.monotonic()
        done = await self.tool(argv, max_output_bytes=MAX_ANSWER_BYTES)
        if done.returncode != 0:
            if any(sign in done.error_text for sign in _REFUSED):
                raise BackendAuthError(f"{argv[0]} was refused: {done.error_text}", advice="renew the token")
            done.check(self.transport.host)
        try:
            ads = parse(done.stdout)
        except ValueError as exc:
            raise BackendUnavailable(f"{argv[0]} on {self.transport.host} gave a garbled answer: {exc}") from exc
        return Answer(ads, time.monotonic() - began, len(done.stdout))


def _read_back_to(since: float) -> str:
    """Return the condition at which a history, read from its newest entry, is read no further.

    A job that stayed in the queue after its end (``leave_in_queue``, spooled output) enters the history late: it is
    older than its neighbours, and says nothing about the entries behind it. DAGMan jobs are entered when they end.
    """
    bound, oldest = int(since), int(since - LINGERS_S)
    return f"EnteredCurrentStatus < {oldest} || {IS_DAG} && EnteredCurrentStatus < {bound}"


def _name(schedd: str | None) -> list[str]:
    return [] if schedd is None else ["-name", schedd]
