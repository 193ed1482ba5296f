"""What the local backend makes of each field of a job."""

from __future__ import annotations

__all__ = ["FIELDS"]

from collections.abc import Mapping

from bpsd.interface import FieldSupport

_ONE_MACHINE = "there is only this machine: accepted, without effect"
_NO_ACCOUNTS = "nothing is accounted here: accepted, without effect"
_KEPT = "kept in the run's workflow.json, without effect on the job"
_NO_MAIL = "nobody is sent mail; see `bpsctl wait` and `bpsctl watch`"

_HONOURED = (
    "abort_on_value",
    "abort_return_value",
    "arguments",
    "category",
    "cmdvals",
    "environment",
    "executable",
    "memory_multiplier",
    "number_of_retries",
    "post_cmdline",
    "pre_cmdline",
    "priority",
    "request_cpus",
    "request_memory_max",
    "request_walltime",
    "retry_unless_exit",
    "working_directory",
)

_APPROXIMATED = {
    "accounting_group": _NO_ACCOUNTS,
    "accounting_user": _NO_ACCOUNTS,
    "attrs": _KEPT,
    "compute_cloud": _ONE_MACHINE,
    "compute_site": _ONE_MACHINE,
    "concurrency_limit": "the cores of this machine are the only limit that runs share; see `category` for one run",
    "inputs": "used where they are, never copied",
    "outputs": "left where the job writes them, never copied",
    "preemptible": "jobs are never preempted",
    "profile": _KEPT,
    "quanta_counts": _KEPT,
    "queue": _ONE_MACHINE,
    "request_disk": "accepted, but space is neither reserved nor limited",
    "request_memory": "set aside in the machine's ledger, but a job that takes more is not ended",
    "tags": _KEPT,
}

_REFUSED = {"mail_to": _NO_MAIL, "when_to_mail": _NO_MAIL}

FIELDS: Mapping[str, tuple[FieldSupport, str]] = {
    **dict.fromkeys(_HONOURED, (FieldSupport.HONOURS, "")),
    **{name: (FieldSupport.APPROXIMATES, how) for name, how in _APPROXIMATED.items()},
    **{name: (FieldSupport.REFUSES, why) for name, why in _REFUSED.items()},
}
"""For `bpsd.interface.Capabilities`."""
