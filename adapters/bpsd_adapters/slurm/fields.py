"""What Slurm does with each field of a job."""

from __future__ import annotations

__all__ = ["FIELDS"]

from collections.abc import Mapping

from bpsd.interface import FieldSupport

_KEPT = "kept in the run's workflow.json, without effect on the job"

_HONOURED = (
    "abort_on_value",
    "abort_return_value",
    "accounting_group",
    "arguments",
    "category",
    "cmdvals",
    "environment",
    "executable",
    "memory_multiplier",
    "number_of_retries",
    "pre_cmdline",
    "queue",
    "request_cpus",
    "request_memory",
    "request_memory_max",
    "retry_unless_exit",
    "working_directory",
)

_APPROXIMATED = {
    "accounting_user": "kept; Slurm accounts to the user who submits",
    "attrs": _KEPT,
    "compute_cloud": "kept; Slurm has no clouds",
    "compute_site": "kept; a backend is one site",
    "concurrency_limit": "asked for as a license of that name (sbatch --licenses)",
    "inputs": "used where they are: nodes and submit host share files",
    "mail_to": "handed to Slurm (--mail-user), a mail for each array",
    "outputs": "left where the job writes them",
    "post_cmdline": "runs on the node whatever the job's exit code, but not once Slurm has ended the job",
    "preemptible": "true asks for a requeue after a preemption; the site's policy decides",
    "priority": "the order in which bpsd submits what is ready; the site's own priorities order the queue",
    "profile": "each entry is an option of sbatch, as in {constraint: haswell}; bpsd refuses those that it sets",
    "quanta_counts": _KEPT,
    "request_disk": "the least of temporary disk that a node must have (--tmp); it is not reserved",
    "request_walltime": "rounded up to whole minutes (--time)",
    "tags": _KEPT,
    "when_to_mail": "always, complete, error or never, as --mail-type",
}

FIELDS: Mapping[str, tuple[FieldSupport, str]] = {
    **dict.fromkeys(_HONOURED, (FieldSupport.HONOURS, "")),
    **{name: (FieldSupport.APPROXIMATES, how) for name, how in _APPROXIMATED.items()},
}
"""For `bpsd.interface.Capabilities`."""
