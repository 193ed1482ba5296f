"""A workflow document as the files of a submission: a ``.dag`` and its submit files. Pure.

Nodes, attributes and expressions are those that ctrl_bps_htcondor writes (release 30.2026.4300), so that ``bps report``
reads our runs. Jobs that differ only in what `VARS` can say share a submit file. Groups that block are flattened
between two gates; a group that does not becomes a sub-DAG, since DAGMan starts no node whose parent failed; its
outcome is checked by a node of its own, so that the run fails and can be restarted.
"""

from __future__ import annotations

__all__ = ["DAG_FILE", "Submission", "SubmissionProblem", "write_submission"]

import hashlib
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bpsd.models import normal_exit_code, signal_of
from bpsd.workflow import Executable, File, Group, Job, Workflow, walltime_seconds
from bpsd_adapters.htcondor import quoting
from bpsd_adapters.htcondor.classads import literal

DAG_FILE = "run.dag"
_SAFE = re.compile(r"[^A-Za-z0-9_.+-]")
_FILE = re.compile(r"<FILE:([^<>]+)>")
_ENV = re.compile(r"<ENV:([A-Za-z_][A-Za-z0-9_]*)>")
_OOM = "(HoldReasonCode =?= 34 && HoldReasonSubCode =?= 0 || HoldReasonCode =?= 3 && HoldReasonSubCode =?= 34)"
_LAST_OOM = (
    "LastJobStatus =?= 5 && (LastHoldReasonCode =?= 34 && LastHoldReasonSubCode =?= 0 "
    "|| LastHoldReasonCode =?= 3 && LastHoldReasonSubCode =?= 34)"
)
_GROUP = "wms_group_"
_GO = 'cd -- "$1" && shift && exec "$@"'
_GO_WITH_PROGRAM = 'program=$PWD/$2; cd -- "$1" && shift 2 && exec "$program" "$@"'
_JOBS_WORD = """case "$1" in
  -[1-9] | -[1-5][0-9] | -6[0-4]) exit $((128 - $1)) ;;
  -*) exit 1 ;;
  *) exit "$1" ;;
esac
"""
"""DAGMan gives a node the post script's exit code: let it be the job's. DAGMan writes a signal as -N, as all others
128 + N; below -1000 are its own codes for a job that did not run."""
_NOOP_SUB = "executable = /bin/true\nuniverse = vanilla\nqueue\n"


class SubmissionProblem(ValueError):
    """A value cannot be said to HTCondor; ``where`` is its place in the document."""

    def __init__(self, where: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.where = where


class Submission(NamedTuple):
    """The files by their names in the run's folder, and which of them are programs; of no use if there are problems."""

    files: dict[str, str]
    programs: frozenset[str]
    executables: dict[str, str]
    """Executable files that must be there before anything runs, and the job that names each first."""
    problems: list[SubmissionProblem]
    """Values that cannot be said in HTCondor's files, one of a job at most."""


_NO_NODE_NAME = re.compile(r'[\s+"\\]|\$\(')
_RESERVED = frozenset({"PARENT", "CHILD", "ALL_NODES"})


def _check_node_name(name: str, where: tuple[str | int, ...]) -> None:
    """Refuse a name that DAGMan does not accept, or would read as something else."""
    found = _NO_NODE_NAME.search(name)
    if found is not None:
        raise SubmissionProblem(
            (*where, "name"), f"DAGMan does not accept {found[0]!r} in the name of a job ({name!r}); rename the job"
        )
    if name.upper() in _RESERVED:
        raise SubmissionProblem((*where, "name"), f"{name!r} is a word of DAGMan's own language; rename the job")


def write_submission(workflow: Workflow, token: str, folder: str, run_summary: str) -> Submission:
    """The files of a submission.

    Parameters
    ----------
    workflow : `~bpsd.workflow.Workflow`
        Validated; defaults are applied.
    token : `str`
        The run's identity.
    folder : `str`
        Where the files will lie on the submit host.
    run_summary : `str`
        ``label:count;...``.
    """
    return _Writer(workflow, token, folder, run_summary).write()


class _Start(NamedTuple):
    """The program that HTCondor begins, words before the job's arguments, and files that it needs for that."""

    program: str
    words: tuple[str, ...] = ()
    transferred: bool = False
    brought: tuple[str, ...] = ()


class _Writer:
    def __init__(self, workflow: Workflow, token: str, folder: str, run_summary: str) -> None:
        self.workflow = workflow
        self.folder = folder
        self.attributes = _run_attributes(workflow, token, run_summary)
        self.executables: dict[str, Executable] = {e.name: e for e in workflow.executables}
        self.inputs: dict[str, File] = {f.name: f for f in workflow.files}
        self.files: dict[str, str] = {}
        self.programs: set[str] = set()
        self.needed: dict[str, str] = {}
        self.problems: list[SubmissionProblem] = []
        self.subdag_of = {group.name: group for group in workflow.groups if not group.blocking}

    def write(self) -> Submission:
        groups = {group.name: group for group in self.workflow.groups}
        if '"' in self.workflow.name:
            raise SubmissionProblem(
                ("name",), f"HTCondor does not accept '\"' in the name of a run: {self.workflow.name}"
            )
        members: dict[str, list[tuple[int, Job]]] = {name: [] for name in groups}
        top: list[tuple[int, Job]] = []
        for number, job in enumerate(self.workflow.jobs):
            if job.group in self.subdag_of:
                members[job.group].append((number, job))
            else:
                top.append((number, job))
        lines = self._dag_lines(top)
        for group in self.workflow.groups:
            if group.blocking:
                lines += _gates(group, [job for job in self.workflow.jobs if job.group == group.name])
            else:
                lines += self._subdag(group, members[group.name])
        if self.workflow.final is not None:
            lines += self._node_or_none("FINAL", self.workflow.final, ("final",))
        lines += _order(self.workflow, self.subdag_of)
        lines += [f"MAXJOBS {_safe(name)} {limit}" for name, limit in sorted(self.workflow.category_limits.items())]
        lines += [f"SET_JOB_ATTR {name}={literal(value)}" for name, value in self.attributes.items()]
        name = posixpath.splitext(DAG_FILE)[0]
        lines += [f"NODE_STATUS_FILE {name}.node_status", f"JOBSTATE_LOG {name}.jobstate.log"]
        self.files[DAG_FILE] = "\n".join(lines) + "\n"
        return Submission(self.files, frozenset(self.programs), self.needed, self.problems)

    def _dag_lines(self, jobs: Sequence[tuple[int, Job]]) -> list[str]:
        lines: list[str] = []
        for number, job in jobs:
            lines += self._node_or_none("JOB", job, ("jobs", number))
        return lines

    def _node_or_none(self, command: str, job: Job, where: tuple[str | int, ...]) -> list[str]:
        try:
            return self._node(command, job, where)
        except SubmissionProblem as exc:
            self.problems.append(exc)
            return []

    def _subdag(self, group: Group, members: Sequence[tuple[int, Job]]) -> list[str]:
        """A sub-DAG, a script that lets the run go on, and a node that fails if the group did."""
        node = f"{_GROUP}{group.name}"
        file = f"subdags/{node}/{group.name}.dag"
        names = {job.name: _node_name(job) for _, job in members}
        inner = self._dag_lines(members)
        inner += [f"PARENT {names[p]} CHILD {_node_name(job)}" for _, job in members for p in job.parents if p in names]
        self.files[file] = "\n".join(inner) + "\n"
        status = f"subdags/{node}/{node}.status.txt"
        after, check = f"scripts/{node}.after.sh", f"scripts/{node}.check.sh"
        self._program(after, f'echo "$1" > {shlex.quote(status)}\nexit 0\n')
        self._program(check, f"exit $(cat {shlex.quote(status)})\n")
        self.files.setdefault("noop.sub", _NOOP_SUB)
        return [
            f"SUBDAG EXTERNAL {node} {file}",
            f"SCRIPT POST {node} {after} $RETURN",
            f"JOB wms_check_status_{node} noop.sub NOOP",
            f"SCRIPT PRE wms_check_status_{node} {check}",
            f"PARENT {node} CHILD wms_check_status_{node}",
        ]

    def _program(self, name: str, body: str) -> None:
        self.files[name] = f"#!/bin/sh\ncd {shlex.quote(self.folder)} || exit 1\n{body}"
        self.programs.add(name)

    def _node(self, command: str, job: Job, where: tuple[str | int, ...]) -> list[str]:
        _check_node_name(job.name, where)
        if command == "FINAL" and job.abort_on_value is not None:
            raise SubmissionProblem(
                (*where, "abort_on_value"), "DAGMan does not accept it for the final job; remove it"
            )
        if job.kind == "noop":
            self.files.setdefault("noop.sub", _NOOP_SUB)
            return [f"JOB {_node_name(job)} noop.sub NOOP"]
        shared, own = self._commands(job, where)
        text = "\n".join(f"{key} = {value}" for key, value in sorted(shared.items())) + "\nqueue\n"
        label = _safe(job.label or job.name)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        file = f"jobs/{label}/{label}.{digest}.sub"
        self.files[file] = text
        values = " ".join(f"{key}={quoting.dag_value(value)}" for key, value in own.items())
        lines = [f"{command} {job.name} {file}", f"VARS {job.name} {values}"]
        if job.abort_on_value is not None:
            returns = "" if job.abort_return_value is None else f" RETURN {job.abort_return_value}"
            lines.append(f"ABORT-DAG-ON {job.name} {normal_exit_code(job.abort_on_value)}{returns}")
        if command == "JOB" and isinstance(job.priority, int):
            lines.append(f"PRIORITY {job.name} {job.priority}")
        if command == "JOB" and job.category:
            lines.append(f"CATEGORY {job.name} {_safe(job.category)}")
        return lines + self._scripts(job, where)

    def _scripts(self, job: Job, where: tuple[str | int, ...]) -> list[str]:
        lines = []
        if job.pre_cmdline is not None:
            self._program(f"scripts/{job.name}.pre.sh", self._shell_line(job.pre_cmdline, where) + "\n")
            lines.append(f"SCRIPT PRE {job.name} scripts/{job.name}.pre.sh")
        aborts_on_signal = job.abort_on_value is not None and signal_of(job.abort_on_value)
        if job.post_cmdline is not None or aborts_on_signal:
            body = "" if job.post_cmdline is None else f"( {self._shell_line(job.post_cmdline, where)}\n)\n"
            self._program(f"scripts/{job.name}.post.sh", body + _JOBS_WORD)
            lines.append(f"SCRIPT POST {job.name} scripts/{job.name}.post.sh $RETURN")
        return lines

    def _shell_line(self, line: str, where: tuple[str | int, ...]) -> str:
        line = _FILE.sub(lambda found: shlex.quote(self._file(found[1], (*where, "pre_cmdline"))), line)
        return _ENV.sub(lambda found: f"${{{found[1]}}}", line)

    def _file(self, name: str, where: tuple[str | int, ...]) -> str:
        file = self.inputs.get(name)
        if file is None:
            raise SubmissionProblem(where, f"<FILE:{name}> names no file of the workflow")
        path = (file.src_uri or name).removeprefix("file://")
        return posixpath.basename(path.rstrip("/")) if file.wms_transfer and not file.job_shared else path

    # -- submit commands ---------------------------------------------------------------------------------------------

    def _commands(self, job: Job, where: tuple[str | int, ...]) -> tuple[dict[str, str], dict[str, str]]:
        """The lines of the submit file that jobs share, and the variables that are this job's own."""
        label = _safe(job.label or job.name)
        start = self._start(job)
        shared = {
            "universe": "vanilla",
            "executable": _said(_ENV.sub(r"$ENV(\1)", start.program), start.program, (*where, "executable")),
            "transfer_executable": str(start.transferred),
            "should_transfer_files": "YES",
            "when_to_transfer_output": "ON_EXIT_OR_EVICT",
            "transfer_output_files": '""',
            "getenv": "True",
            "arguments": "$(bpsd_arguments)",
            "environment": "$(bpsd_environment)",
            "output": f"jobs/{label}/$(bpsd_job).$(Cluster).out",
            "error": f"jobs/{label}/$(bpsd_job).$(Cluster).err",
            "log": f"jobs/{label}/{label}.log",
            "batch_name": _said(self.workflow.name, self.workflow.name, ("name",)),
            "My.bps_job_name": '"$(bpsd_job)"',
            "My.bps_job_label": '"$(bpsd_label)"',
            "My.bps_job_quanta": '"$(bpsd_quanta)"',
        }
        shared |= _requests(job, where) | _policy(job, where) | self._transfers(job, start.brought)
        shared |= {f"My.{name}": literal(value) for name, value in self.attributes.items()}
        for name, value in {**_attributes(job), **job.attrs}.items():
            shared[f"My.{name}"] = literal(str(value)) if not isinstance(value, int | float) else str(value)
        for key, value in job.profile.items():
            shared[f"My.{key[1:]}" if key.startswith("+") else key] = str(value)
        own = {
            "bpsd_job": job.name,
            "bpsd_label": job.label,
            "bpsd_quanta": ";".join(f"{name}:{count}" for name, count in job.quanta_counts.items()),
            "bpsd_arguments": self._arguments(job, where, start.words),
            "bpsd_environment": self._environment(job, where),
        }
        return shared, own

    def _start(self, job: Job) -> _Start:
        """How a job's program is begun: HTCondor itself neither looks into ``PATH`` nor goes to a folder."""
        declared = self.executables.get(job.executable or "")
        program = (declared.src_uri or declared.name) if declared is not None else job.executable or ""
        program = program.removeprefix("file://")
        transferred = declared is not None and declared.transfer_executable
        if program.startswith("/"):
            self.needed.setdefault(program, job.name)
        folder = job.working_directory
        if folder is not None and transferred:
            words = ("-c", _GO_WITH_PROGRAM, "sh", folder, posixpath.basename(program))
            return _Start("/bin/sh", words, brought=(program,))
        if folder is not None:
            return _Start("/bin/sh", ("-c", _GO, "sh", folder, program))
        if "/" not in program and not _ENV.match(program) and not transferred:
            return _Start("/usr/bin/env", (program,))
        return _Start(program, transferred=transferred)

    def _arguments(self, job: Job, where: tuple[str | int, ...], before: Sequence[str]) -> str:
        place = (*where, "arguments")
        text = job.arguments
        if job.cmdvals:
            try:
                text = text.format(**job.cmdvals)
            except (KeyError, IndexError, ValueError, AttributeError) as exc:
                raise SubmissionProblem(place, f"cannot be filled in with cmdvals: {exc!r}") from exc
        try:
            words = shlex.split(text)
        except ValueError as exc:
            raise SubmissionProblem(place, str(exc).lower()) from exc
        words = [*before, *(_FILE.sub(lambda found: self._file(found[1], place), word) for word in words)]
        return _expanded(quoting.arguments(words), place)

    def _environment(self, job: Job, where: tuple[str | int, ...]) -> str:
        variables = {**self.workflow.environment, **job.environment}
        return _expanded(quoting.environment(variables), (*where, "environment"))

    def _transfers(self, job: Job, brought: Sequence[str]) -> dict[str, str]:
        """What is copied to the job: files that the WMS is to transfer and that jobs do not share."""
        paths = [*brought]
        paths += [
            (file.src_uri or file.name).removeprefix("file://")
            for name in job.inputs
            if (file := self.inputs.get(name)) is not None and file.wms_transfer and not file.job_shared
        ]
        return {"transfer_input_files": ",".join(paths)} if paths else {}


def _node_name(job: Job) -> str:
    """``bps report`` takes the third part of the name of what is no job for its label."""
    return f"wms_noop_{job.name}" if job.kind == "noop" else job.name


def _run_attributes(workflow: Workflow, token: str, run_summary: str) -> dict[str, str]:
    run = workflow.run
    quanta: dict[str, int] = {}
    for job in workflow.jobs:
        for name, count in job.quanta_counts.items():
            quanta[name] = quanta.get(name, 0) + count
    attributes = {
        "bps_isjob": "True",
        "bps_token": token,
        "bps_run": workflow.name,
        "bps_project": run.project,
        "bps_campaign": run.campaign,
        "bps_payload": run.payload,
        "bps_operator": run.operator,
        "bps_runsite": run.site,
        "bps_label": run.label,
        "bps_job_summary": run_summary,
        "bps_run_quanta": ";".join(f"{name}:{count}" for name, count in quanta.items()),
        "bps_wms_service": "lsst.ctrl.bps.htcondor.htcondor_service.HTCondorService",
        "bps_wms_workflow": "lsst.ctrl.bps.htcondor.htcondor_workflow.HTCondorWorkflow",
    }
    return {**run.attrs, **{name: value for name, value in attributes.items() if value}}


def _gates(group: Group, members: Sequence[Job]) -> list[str]:
    names = [_node_name(job) for job in members]
    begin, end = f"{_GROUP}{group.name}_begin", f"{_GROUP}{group.name}"
    lines = [f"JOB {begin} noop.sub NOOP", f"JOB {end} noop.sub NOOP"]
    if names:
        lines += [f"PARENT {begin} CHILD {' '.join(names)}", f"PARENT {' '.join(names)} CHILD {end}"]
    return [*lines, f"PARENT {begin} CHILD {end}"]


def _order(workflow: Workflow, subdags: Mapping[str, Group]) -> list[str]:
    """Edges of the outer DAG. A group ends at ``wms_group_NAME``; a blocking one begins at ``..._begin``."""
    groups = {group.name for group in workflow.groups}
    inside = {job.name: job.group for job in workflow.jobs if job.group in subdags}

    nodes = {job.name: _node_name(job) for job in workflow.jobs}

    def end_of(name: str) -> str:
        return f"{_GROUP}{name}" if name in groups else nodes[name]

    lines = [
        f"PARENT {' '.join(end_of(parent) for parent in job.parents)} CHILD {nodes[job.name]}"
        for job in workflow.jobs
        if job.parents and job.name not in inside
    ]
    for group in workflow.groups:
        begin = f"{_GROUP}{group.name}" + ("" if group.name in subdags else "_begin")
        outer = {end_of(p) for job in workflow.jobs if job.group == group.name and group.name in subdags
                 for p in job.parents if inside.get(p) != group.name}  # fmt: skip
        parents = sorted(outer | {end_of(parent) for parent in group.parents})
        if parents:
            lines.append(f"PARENT {' '.join(parents)} CHILD {begin}")
    return lines


def _requests(job: Job, where: tuple[str | int, ...]) -> dict[str, str]:
    lines: dict[str, str] = {}
    for field, key in (
        ("request_cpus", "request_cpus"),
        ("mail_to", "notify_user"),
        ("when_to_mail", "notification"),
        ("priority", "priority"),
        ("accounting_group", "accounting_group"),
        ("accounting_user", "accounting_group_user"),
        ("concurrency_limit", "concurrency_limits"),
    ):
        value = getattr(job, field)
        if value is not None:
            lines[key] = _said(str(value), str(value), (*where, field))
    if job.request_disk is not None:
        lines["request_disk"] = f"{job.request_disk}MB"
    if job.request_memory is not None:
        lines["request_memory"] = f"{job.request_memory}"
    if job.request_walltime is not None:
        lines["allowed_execute_duration"] = str(walltime_seconds(job.request_walltime))
    return lines


def _policy(job: Job, where: tuple[str | int, ...]) -> dict[str, str]:
    """Retries, and memory that grows with them: the expressions of ctrl_bps_htcondor."""
    lines: dict[str, str] = {}
    grows = job.memory_multiplier is not None and job.memory_multiplier > 1 and job.request_memory
    limit = job.request_memory_max
    if grows and limit is None:
        raise SubmissionProblem(
            (*where, "memory_multiplier"), "needs request_memory_max: HTCondor must be told where growth ends"
        )
    step = f"int({job.request_memory} * pow({job.memory_multiplier}, NumJobStarts"
    if grows:
        lines["request_memory"] = (
            f"({_LAST_OOM}) ? min({{{step})), {limit}}}) : max({{{job.request_memory}, MemoryUsage ?: 0}})"
        )
        lines["on_exit_hold"] = "ExitBySignal == true || ExitCode > 128"
        lines["on_exit_hold_subcode"] = "34"
        lines["on_exit_hold_reason"] = (
            'ExitBySignal == true ? strcat("Job raised a signal ", string(ExitSignal), '
            '". Handling job as if it has gone over memory limit.") : strcat("Job exit code (", string(ExitCode), '
            '") > 128. Handling job as if it has gone over memory limit.")'
        )
    if job.retry_unless_exit is not None:
        lines["retry_until"] = _retry_until(job.retry_unless_exit)
    if job.number_of_retries is not None:
        lines["max_retries"] = f"{job.number_of_retries}"
        allowed = "NumJobStarts <= JobMaxRetries"
        if grows:
            below = f"min({{{step} - 1)), {limit}}}) < {limit}"
            lines["periodic_release"] = f"JobStatus == 5 && {allowed} && {_OOM} && {below}"
            at_limit = f"min({{{step} - 1)), {limit}}}) == {limit}"
            lines["periodic_remove"] = f"JobStatus == 5 && (NumJobStarts > JobMaxRetries || ({_OOM} && {at_limit}))"
    return lines


def _retry_until(codes: int | list[int]) -> str:
    """The exit codes after which a job is not tried again; a signal is 128 + N, whoever ended the job."""
    wanted = [normal_exit_code(code) for code in ([codes] if isinstance(codes, int) else codes)]
    if len(wanted) == 1 and not signal_of(wanted[0]):
        return f"{wanted[0]}"
    code = "ExitBySignal =?= true ? 128 + ExitSignal : ExitCode"
    return f"member({code}, {{{','.join(map(str, wanted))}}})"


def _attributes(job: Job) -> dict[str, object]:
    named: dict[str, object] = {f"bps_tag_{_safe(name)}": value for name, value in job.tags.items()}
    for name in ("compute_site", "compute_cloud", "queue"):
        value = getattr(job, name)
        if value is not None:
            named[f"bps_{name}"] = value
    if job.preemptible is not None:
        named["bps_preemptible"] = str(job.preemptible)
    return named


def _expanded(text: str, where: tuple[str | int, ...]) -> str:
    """Quoted text with nothing to expand in it but ``<ENV:NAME>``."""
    pieces = _ENV.split(text)  # text, name, text, name, ..., text
    return "".join(f"$ENV({piece})" if n % 2 else _said(piece, piece, where) for n, piece in enumerate(pieces))


def _said(text: str, original: str, where: tuple[str | int, ...]) -> str:
    if text != original:
        return text
    try:
        return quoting.plain(text)
    except ValueError as exc:
        raise SubmissionProblem(where, f"{original!r} cannot be said to HTCondor: {exc}") from exc


def _safe(name: str) -> str:
    return _SAFE.sub("_", name)
