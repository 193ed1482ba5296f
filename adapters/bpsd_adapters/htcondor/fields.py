"""What HTCondor does with each field of a job."""

from __future__ import annotations

__all__ = ["FIELDS"]

from collections.abc import Mapping

from bpsd.interface import FieldSupport

_HONOURS = (FieldSupport.HONOURS, "")


def _approximates(how: str) -> tuple[FieldSupport, str]:
    return FieldSupport.APPROXIMATES, how


FIELDS: Mapping[str, tuple[FieldSupport, str]] = {
    "inputs": _approximates("files with wms_transfer that jobs do not share are transferred, all others are named"),
    "outputs": _approximates("they are named; jobs write them where they are wanted"),
    "executable": _HONOURS,
    "arguments": _approximates("<ENV:NAME> is the variable of DAGMan on the submit host; all else is honoured"),
    "cmdvals": _HONOURS,
    "quanta_counts": _HONOURS,
    "tags": _approximates("written into the job's ad as bps_tag_NAME"),
    "request_memory": _HONOURS,
    "request_memory_max": _HONOURS,
    "memory_multiplier": _approximates("grows after a hold for memory, as bps does it; needs request_memory_max"),
    "request_cpus": _HONOURS,
    "request_disk": _HONOURS,
    "request_walltime": _approximates("a job that takes longer is put on hold (allowed_execute_duration)"),
    "compute_site": _approximates("written into the job's ad as bps_compute_site; the pool chooses"),
    "compute_cloud": _approximates("written into the job's ad as bps_compute_cloud; HTCondor has no clouds"),
    "accounting_group": _HONOURS,
    "accounting_user": _HONOURS,
    "mail_to": _HONOURS,
    "when_to_mail": _approximates("always, complete, error or never, HTCondor's own words"),
    "number_of_retries": _HONOURS,
    "retry_unless_exit": _HONOURS,
    "abort_on_value": _HONOURS,
    "abort_return_value": _HONOURS,
    "priority": _HONOURS,
    "category": _HONOURS,
    "concurrency_limit": _HONOURS,
    "queue": _approximates("written into the job's ad as bps_queue; HTCondor has no queues"),
    "pre_cmdline": _approximates("DAGMan runs it on the submit host (SCRIPT PRE)"),
    "post_cmdline": _approximates("DAGMan runs it on the submit host (SCRIPT POST); the job's exit code stays"),
    "preemptible": _approximates("written into the job's ad as bps_preemptible; the pool's policy decides"),
    "profile": _approximates("each entry is a line of the submit file, or an attribute of the ad if it begins with +"),
    "attrs": _approximates("written into the job's ad"),
    "environment": _HONOURS,
    "working_directory": _approximates("a shell goes there first; what is transferred stays in the job's own folder"),
}  # fmt: skip
