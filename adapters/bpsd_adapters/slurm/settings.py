"""What a backend of type ``slurm`` is told in the configuration."""

from __future__ import annotations

__all__ = ["SlurmConfig"]

from typing import Annotated

import msgspec
from msgspec import Meta

from bpsd.workflow import UMASK_PATTERN
from bpsd_adapters.slurm.options import Defaults, MemoryOption
from bpsd_adapters.transports.settings import SshSettings


class SlurmConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Settings of a Slurm backend.

    ``work_dir``
        Folder on the submit host, on a file system that the nodes share: each run gets its own in it.
    ``ssh``
        How to reach the submit host; without it Slurm's tools are run on this machine.
    ``bin_dir``, ``environment``
        Where Slurm's tools are if not in ``PATH``, and variables for them (``SLURM_CONF``).
    ``partition``, ``account``, ``qos``
        What a job gets that names none.
    ``options``
        Further options of ``sbatch``, as in ``{constraint: haswell}``; a job's ``profile`` outweighs them.
    ``memory``
        How a job's ``request_memory`` is asked for: ``per_node`` (``--mem``), ``per_cpu`` (``--mem-per-cpu``, divided
        by the job's CPUs) or ``none`` (not at all: for sites that give memory with cores).
    ``hands_off``
        Submit a run's whole DAG at once, with dependencies that Slurm keeps.
    ``window_jobs``
        The most jobs of this backend that wait or run in Slurm at once; the site's own limits may make it less.
    ``poll_interval_s``, ``idle_interval_s``
        Between two looks at the queue while something changes, and while nothing does.
    ``record_interval_s``
        Between two readings of what jobs wrote of their ends, from look to look: files, which cost Slurm nothing.
    ``command_deadline_s``, ``submit_deadline_s``
        How long one of Slurm's tools may take, and ``sbatch``; slurmctld that is away is given up by itself after 20 s.
    ``settle_s``
        How long after a submission was cut off "not in the queue" begins to be proof.
    ``lost_after_s``
        How long a job must be unknown to the queue, to accounting and to its exit record before it is given up.
    ``umask``
        The umask of jobs, as in ``"0027"``, where the workflow names none (default: the submitter's; over SSH the
        account's on the submit host).
    ``check_executables``
        Whether programs that jobs name must be there on the submit host.
    """

    work_dir: Annotated[str, Meta(pattern="^/")]
    ssh: SshSettings | None = None
    bin_dir: str | None = None
    environment: dict[str, str] = {}
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    options: dict[str, str | int | bool | None] = {}
    memory: MemoryOption = "per_node"
    hands_off: bool = False
    window_jobs: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    poll_interval_s: Annotated[float, Meta(gt=0)] = 30.0
    idle_interval_s: Annotated[float, Meta(gt=0)] = 120.0
    record_interval_s: Annotated[float, Meta(gt=0)] = 5.0
    command_deadline_s: Annotated[float, Meta(gt=0)] = 45.0
    submit_deadline_s: Annotated[float, Meta(gt=0)] = 75.0
    settle_s: Annotated[float, Meta(ge=0)] = 120.0
    lost_after_s: Annotated[float, Meta(ge=0)] = 600.0
    umask: Annotated[str, Meta(pattern=UMASK_PATTERN)] | None = None
    check_executables: bool = True

    @property
    def defaults(self) -> Defaults:
        """What every job gets."""
        return Defaults(self.partition, self.account, self.qos, self.options, self.memory)
