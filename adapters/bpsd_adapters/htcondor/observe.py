"""A DAGMan job's ad, and the jobs that its logs tell of, as an observation of the run. Pure."""

from __future__ import annotations

__all__ = ["HISTORY", "QUEUE", "Ids", "dag_file", "observe_child", "observe_run"]

import posixpath
from collections.abc import Sequence
from typing import NamedTuple

from bpsd.models import TERMINAL, JobObservation, RunObservation, WmsSpecificInfo, WmsStates, normal_exit_code
from bpsd_adapters.htcondor.classads import Ad, JobStatus, as_number, as_text, counts, run_note, run_state
from bpsd_adapters.htcondor.policy import removal

QUEUE, HISTORY = "queue", "history"
_RANKS = {QUEUE: 0, HISTORY: 10}
_DAGMAN_LOG = ".dagman.log"


class Ids(NamedTuple):
    """A job in a pool with several schedds; ``schedd`` is `None` for the one that the backend submits to."""

    schedd: str | None
    cluster: int

    @classmethod
    def parse(cls, text: str) -> Ids | None:
        """An id as people write it: ``12``, ``12.0`` or ``SCHEDD#12.0#TIME``; `None` if it is neither."""
        name, _, rest = text.strip().rpartition("#") if text.count("#") == 1 else ("", "", text.strip())
        if text.count("#") == 2:
            name, rest, _ = text.strip().split("#")
        cluster, dot, proc = rest.partition(".")
        if not cluster.isdecimal() or (dot and proc != "0"):
            return None
        return cls(name or None, int(cluster))

    @classmethod
    def of(cls, ad: Ad, schedd: str | None) -> Ids:
        """The id of an ad of a schedd's answer."""
        return cls(schedd, as_number(ad, "ClusterId") or 0)

    def text(self, ad: Ad | None = None) -> str:
        """The id under which a run is known: short where the backend submits, global elsewhere."""
        if self.schedd is None:
            return f"{self.cluster}.{(as_number(ad, 'ProcId') if ad is not None else None) or 0}"
        return (as_text(ad, "GlobalJobId") if ad is not None else None) or f"{self.schedd}#{self.cluster}.0"


def dag_file(ad: Ad) -> str | None:
    """The path of a run's DAG file on the submit host."""
    folder, log = as_text(ad, "Iwd"), as_text(ad, "UserLog")
    if folder is None or log is None or not log.endswith(_DAGMAN_LOG):
        return None
    return posixpath.join(folder, log.removesuffix(_DAGMAN_LOG))


def observe_run(
    ad: Ad,
    wms_id: str,
    source: str,
    *,
    jobs: Sequence[JobObservation] = (),
    total: int | None = None,
    job_failed: bool = False,
    left: int = 0,
    unread: bool = False,
    info: WmsSpecificInfo | None = None,
    why: str = "",
    all_succeeded: bool = False,
) -> RunObservation:
    """An observation of a run.

    Parameters
    ----------
    ad : `~bpsd_adapters.htcondor.classads.Ad`
        The DAGMan job's.
    wms_id : `str`
        Its id.
    source : `str`
        ``queue`` or ``history``.
    jobs : `~collections.abc.Sequence` [`~bpsd.models.JobObservation`]
        Jobs that changed.
    total : `int`, optional
        How many jobs there are, if the logs tell; else the DAG's own counters are taken.
    job_failed : `bool`
        Whether the logs know of a failed job: then the run did not succeed, whatever its final job made of it.
    left : `int`
        How many of its jobs are in the queue although its DAGMan is gone: then it is not over.
    unread : `bool`
        Whether its logs are not read to their end yet: then an end is told when they are.
    info : `~bpsd.models.WmsSpecificInfo`, optional
        Where the jobs come from, if not from the logs.
    why : `str`
        What the run's files say of its end or of its trouble.
    all_succeeded : `bool`
        Whether every job succeeded by the logs: then so did the run, as ``bps report`` has it, whatever became of its
        service nodes.
    """
    state: WmsStates | None = run_state(ad)
    note = run_note(ad)
    if source == QUEUE and state in TERMINAL:
        # On its way out: what became of it, the history will tell.
        note = "is being removed" if as_number(ad, "JobStatus") == JobStatus.REMOVED else note
        state = None
    if unread and state in TERMINAL:
        state, note = None, "it is over; its logs are being read"
    if left:
        state, note = None, f"{note}; {left} of its jobs still in the queue".removeprefix("; ")
    if state is WmsStates.SUCCEEDED and job_failed:
        state = WmsStates.FAILED
    if state is WmsStates.FAILED and all_succeeded and as_number(ad, "JobStatus") == JobStatus.COMPLETED:
        state = WmsStates.SUCCEEDED
    note = "; ".join(filter(None, (note, why)))
    token, number = as_text(ad, "bps_token"), None
    attempt_token = as_text(ad, "bps_attempt_token")
    if token is not None and attempt_token is not None:
        suffix = attempt_token.rpartition(".")[2]
        number = int(suffix) if suffix.isdecimal() else None
    over = state in TERMINAL
    return RunObservation(
        wms_id=wms_id,
        source=source,
        rank=_RANKS[source],
        state=state,
        token=token,
        attempt=number,
        source_time=as_number(ad, "EnteredCurrentStatus"),
        global_wms_id=as_text(ad, "GlobalJobId"),
        path=as_text(ad, "Iwd"),
        label=as_text(ad, "bps_label"),
        run=as_text(ad, "bps_run"),
        project=as_text(ad, "bps_project"),
        campaign=as_text(ad, "bps_campaign"),
        payload=as_text(ad, "bps_payload"),
        operator=as_text(ad, "bps_operator"),
        site=as_text(ad, "bps_runsite"),
        run_summary=as_text(ad, "bps_job_summary"),
        owner=as_text(ad, "Owner"),
        submit_time=as_number(ad, "QDate"),
        start_time=as_number(ad, "JobStartDate"),
        end_time=(as_number(ad, "CompletionDate") or as_number(ad, "EnteredCurrentStatus")) if over else None,
        note=note,
        total_number_jobs=as_number(ad, "DAG_NodesTotal") if total is None else total,
        job_state_counts=counts(ad) if total is None else None,
        specific_info=info,
        jobs=tuple(jobs),
    )


def observe_child(ad: Ad) -> JobObservation | None:
    """A job from its own ad: for runs whose files we may not read. Attempts are counted as the logs count them."""
    name = as_text(ad, "bps_job_name")
    if name is None:
        return None
    state = run_state(ad)
    starts = as_number(ad, "NumJobStarts") or 0
    over = state in TERMINAL
    signal = as_number(ad, "ExitSignal") if ad.get("ExitBySignal") else None
    code = (normal_exit_code(-signal) if signal else as_number(ad, "ExitCode")) if over else None
    note = run_note(ad)
    if as_number(ad, "JobStatus") == JobStatus.REMOVED:
        was = removal(as_text(ad, "RemoveReason") or "", as_text(ad, "LastHoldReason") or "")
        state, note = (WmsStates.FAILED if was.failed else WmsStates.DELETED), was.note
        code = was.exit_code if was.failed else code
    entered = as_number(ad, "EnteredCurrentStatus")
    return JobObservation(
        name=name,
        label=as_text(ad, "bps_job_label") or name,
        state=state,
        attempt=starts + 1 if state is WmsStates.PENDING else max(1, starts),
        rank=_RANKS[HISTORY] if over else _RANKS[QUEUE],
        wms_id=f"{as_number(ad, 'ClusterId')}.{as_number(ad, 'ProcId') or 0}",
        exit_code=code,
        time=entered,
        start_time=as_number(ad, "JobStartDate"),
        end_time=entered if over else None,
        note=note,
    )
