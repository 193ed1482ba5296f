"""The generic workflow: a WMS-neutral description of jobs and their order, as a YAML or JSON document.

The fields and their meaning are those of ``lsst.ctrl.bps.GenericWorkflowJob``, ``GenericWorkflowExec``,
``GenericWorkflowFile`` and ``GenericWorkflowGroup`` (release 30.2026.4300). A document looks like this::

    bpsd: 1
    name: u/op/demo
    run: {project: dev, campaign: demo, payload: demo, operator: op}
    defaults: {request_memory: 512}
    jobs:
      - {name: init, label: init, executable: /bin/true}
      - {name: isr_1, label: isr, executable: /usr/bin/env, arguments: "python3 isr.py 1", parents: [init]}
    final: {name: done, label: final, executable: /bin/true}

The types here are the *canonical* form: `validated` documents have ``defaults`` applied to every job.
"""

from __future__ import annotations

__all__ = [
    "JOB_FIELDS",
    "RESERVED_PREFIX",
    "RESERVED_VARIABLES",
    "UMASK_PATTERN",
    "Executable",
    "File",
    "Group",
    "Job",
    "RunAttributes",
    "Workflow",
    "WorkflowFile",
    "walltime_seconds",
]

import re
from typing import Any, Literal

import msgspec

from bpsd.models import made_ready

RESERVED_PREFIX = "_bpsd_"
"""Variables of jobs do not begin with this: they are those of the scripts that run jobs."""

RESERVED_VARIABLES = frozenset(
    f"BPSD_{name}"
    for name in ("ATTEMPT", "CPUS", "JOB", "LABEL", "MEMORY_MB", "RUN", "RUN_ATTEMPT", "RUN_FOLDER", "TOKEN")
)
"""Variables that a job finds in its environment, and by which its processes are known."""

UMASK_PATTERN = "^0?[0-7]{3}$"
"""A umask as a document and the settings write it."""

_CLOCK = re.compile(r"(?:(?:(?P<h>\d+):)?(?P<m>\d+):)?(?P<s>\d+)", re.ASCII)


class Executable(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A program that jobs share (``GenericWorkflowExec``); jobs name it by ``name``."""

    name: str
    src_uri: str | None = None
    transfer_executable: bool = False


class File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file or folder that jobs name in ``inputs`` and ``outputs`` (``GenericWorkflowFile``)."""

    name: str
    src_uri: str | None = None
    wms_transfer: bool = False
    job_access_remote: bool = False
    job_shared: bool = False


class Group(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Jobs that are ordered as one (``GenericWorkflowGroup``).

    The group begins when all ``parents`` (jobs or groups) are over, and its children wait for all of it. Unless it is
    ``blocking``, a failure inside prunes only descendants inside: what comes after the group runs all the same.
    """

    name: str
    label: str = ""
    blocking: bool = False
    parents: list[str] = []


class Job(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One job.

    ``executable`` is a path, a name looked up in ``PATH``, or the name of an entry of ``executables``. ``arguments``
    is a command line in the shell's quoting that no shell reads: ``<FILE:name>`` stands for the path of a file of the
    workflow, ``<ENV:NAME>`` for an environment variable where the job runs. Memory and disk are in MB,
    ``request_walltime`` in minutes (a number) or as ``[[HH:]MM:]SS``. ``working_directory`` is bpsd's own: where the
    job starts (default: the run's folder).
    """

    name: str
    label: str = ""
    kind: Literal["payload", "noop"] = "payload"
    group: str | None = None
    parents: list[str] = []
    inputs: list[str] = []
    outputs: list[str] = []

    executable: str | None = None
    arguments: str = ""
    cmdvals: dict[str, Any] = {}
    quanta_counts: dict[str, int] = {}
    tags: dict[str, Any] = {}
    request_memory: int | None = None
    request_memory_max: int | None = None
    memory_multiplier: float | None = None
    request_cpus: int | None = None
    request_disk: int | None = None
    request_walltime: int | str | None = None
    compute_site: str | None = None
    compute_cloud: str | None = None
    accounting_group: str | None = None
    accounting_user: str | None = None
    mail_to: str | None = None
    when_to_mail: str | None = None
    number_of_retries: int | None = None
    retry_unless_exit: int | list[int] | None = None
    abort_on_value: int | None = None
    abort_return_value: int | None = None
    priority: int | str | None = None
    category: str | None = None
    concurrency_limit: str | None = None
    queue: str | None = None
    pre_cmdline: str | None = None
    post_cmdline: str | None = None
    preemptible: bool | None = None
    profile: dict[str, Any] = {}
    attrs: dict[str, Any] = {}
    environment: dict[str, str] = {}
    working_directory: str | None = None


STRUCTURAL_FIELDS = frozenset({"name", "label", "kind", "group", "parents"})

JOB_FIELDS = tuple(f for f in Job.__struct_fields__ if f not in STRUCTURAL_FIELDS)
"""The fields of a job that a backend honours, approximates or refuses (the others every backend must honour)."""


class RunAttributes(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What people file a run under; the columns of a report. ``operator`` is display only, never a right."""

    project: str | None = None
    campaign: str | None = None
    payload: str | None = None
    operator: str | None = None
    site: str | None = None
    label: str | None = None
    attrs: dict[str, str] = {}


class Workflow(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole workflow. ``name`` is the run's name (bps: ``uniqProcName`` or the output run).

    ``umask`` is that of the jobs, as octal digits in quotes (``"0027"``; default: the submitter's own). ``bps_config``
    is the ``BpsConfig`` that a workflow of LSST's ``bps`` was made with, for backends that are plugins of ctrl_bps;
    nobody else reads it.
    """

    bpsd: Literal[1] = 1
    name: str
    run: RunAttributes = msgspec.field(default_factory=RunAttributes)
    defaults: dict[str, Any] = {}
    environment: dict[str, str] = {}
    category_limits: dict[str, int] = {}
    executables: list[Executable] = []
    files: list[File] = []
    groups: list[Group] = []
    jobs: list[Job] = []
    final: Job | None = None
    umask: str | None = None
    bps_config: dict[str, Any] = {}


class WorkflowFile(msgspec.Struct, frozen=True, kw_only=True):
    """A validated workflow that lies in a file, with the facts that are wanted without opening it.

    ``path`` holds the canonical JSON of a `Workflow` (`msgspec.json`): 50 MB for 100,000 jobs, so it is decoded outside
    the daemon's loop, by the adapter's helper or driver. ``run_summary`` is ``label:count;...`` in the order in which
    labels become ready, the final job last. It and ``job_count`` count payload jobs and the final job: a noop job only
    orders, and as in upstream's reports (ctrl_bps_htcondor, report_utils.py) it is no job of the run.
    """

    path: str
    token: str
    name: str
    run: RunAttributes
    job_count: int
    run_summary: str
    size_bytes: int
    umask: str = ""
    """`Workflow.umask`; empty if the document names none."""


def walltime_seconds(walltime: int | str) -> int:
    """The seconds of a ``request_walltime``: a number is in minutes, a text is ``[[HH:]MM:]SS``.

    Raises
    ------
    ValueError
        If the text is not of that form, or the time is not longer than nothing.
    """
    if isinstance(walltime, str):
        found = _CLOCK.fullmatch(walltime.strip())
        if found is None:
            raise ValueError(f"{walltime!r} is not a number of minutes and not [[HH:]MM:]SS")
        seconds = int(found["h"] or 0) * 3600 + int(found["m"] or 0) * 60 + int(found["s"])
    else:
        seconds = walltime * 60
    if seconds <= 0:
        raise ValueError(f"a walltime of {walltime!r} leaves no time to run")
    return seconds


made_ready(Workflow, WorkflowFile)  # they are decoded in threads, many at the same moment
