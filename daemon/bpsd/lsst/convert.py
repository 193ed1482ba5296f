"""Between the classes of ``lsst.ctrl.bps`` and bpsd's documents, in both directions; nothing is ever pickled.

`to_document` makes a workflow document (`bpsd.workflow`, plain JSON values) of a ``GenericWorkflow``; `from_document`
makes the same ``GenericWorkflow`` of it again, also of a document in its canonical form. This file needs the standard
library and ``lsst`` alone: `bpsd.lsst.BpsdService` imports it, and the ``bps_plugin`` adapter sends it to the Python in
which a plugin lives (3.10 or newer).

What JSON has not is written as what it means: a mapping is an object, a tuple or a set a list, a number of numpy a
number, anything else (an UUID, a path, a date) the text that `str` makes of it, as ctrl_bps's plugins would write it.
"""

from __future__ import annotations

__all__ = [
    "DOCUMENT_FORMAT",
    "RUN_ATTRIBUTES",
    "CannotConvert",
    "config_document",
    "config_from_document",
    "from_document",
    "report_document",
    "to_document",
]

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from lsst.ctrl.bps import (
    BPS_SEARCH_ORDER,
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowGroup,
    GenericWorkflowJob,
    GenericWorkflowNoopJob,
    WmsRunReport,
)
from lsst.daf.butler import Config

DOCUMENT_FORMAT = 1
"""The key ``bpsd`` of the documents that are written and read here."""

RUN_ATTRIBUTES = {
    "project": "bps_project",
    "campaign": "bps_campaign",
    "payload": "bps_payload",
    "operator": "bps_operator",
    "site": "bps_runsite",
}
"""Our names of what runs are filed under, and ctrl_bps's (``transform.add_workflow_attributes``)."""

_ELSEWHERE = frozenset({"name", "label", "executable"})
"""Fields of a job that `_job_entry` writes by itself."""

_SAYS_NOTHING: tuple[Any, ...] = (None, "", [], {})
"""Values that a job need not name in a document."""

_NUMBERED = re.compile(r"(.*)#\d+", re.DOTALL)


class CannotConvert(ValueError):
    """A workflow has what a document cannot hold; the message says what and where."""


# -- from ctrl_bps to a document -------------------------------------------------------------------------------------


def to_document(workflow: GenericWorkflow, config: BpsConfig | None = None) -> dict[str, Any]:
    """Write a generic workflow as a workflow document.

    Parameters
    ----------
    workflow : `lsst.ctrl.bps.GenericWorkflow`
        What to write.
    config : `lsst.ctrl.bps.BpsConfig`, optional
        Its configuration, which goes along for backends that are plugins (``bps_config``).

    Returns
    -------
    document : `dict`
        Plain JSON values, keys as in `bpsd.workflow.Workflow`.

    Raises
    ------
    CannotConvert
        If it has something that no document holds: a group in a group, a group to be made when it is run, a whole
        workflow as the final job, two files of one name.
    """
    return _Writer(workflow).document(config)


class _Writer:
    """One workflow on its way into a document."""

    def __init__(self, workflow: GenericWorkflow) -> None:
        self._workflow = workflow
        self._executables: dict[str, GenericWorkflowExec] = {}
        self._files: dict[str, GenericWorkflowFile] = {}

    def document(self, config: BpsConfig | None) -> dict[str, Any]:
        workflow = self._workflow
        for _, graph in _graphs(workflow):
            for executable in graph.get_executables(data=True, transfer_only=False):
                self._executable(executable)
            for file in graph.get_files(data=True, transfer_only=False):
                self._file(file)
        groups, jobs = [], []
        for group, graph in _graphs(workflow):
            for name in graph.nodes:
                node = graph.get_job(name)
                if isinstance(node, GenericWorkflowGroup):
                    if group is not None:
                        raise CannotConvert(f"{name} is a group in the group {group}: a document has no such groups")
                    groups.append(self._group_entry(node))
                else:
                    jobs.append(self._job_entry(node, graph, group))
        final = workflow.get_final()
        if final is not None and not isinstance(final, GenericWorkflowJob):
            raise CannotConvert("the final job is a whole workflow; bpsd runs one final job")
        final_entry = None if final is None else self._job_entry(final, workflow, None)
        document = {
            "bpsd": DOCUMENT_FORMAT,
            "name": workflow.name,
            "run": _run_attributes(workflow.run_attrs),
            "executables": [
                {**dataclasses.asdict(executable), "name": name} for name, executable in self._executables.items()
            ],
            "files": [dataclasses.asdict(file) for file in self._files.values()],
            "groups": groups,
            "jobs": jobs,
        }
        if final_entry is not None:
            document["final"] = final_entry
        if config is not None:
            document["bps_config"] = config_document(config)
        return document

    def _group_entry(self, group: GenericWorkflowGroup) -> dict[str, Any]:
        return {
            "name": group.name,
            "label": group.label,
            "blocking": bool(group.blocking),
            "parents": list(self._workflow.predecessors(group.name)),
        }

    def _job_entry(self, node: Any, graph: GenericWorkflow, group: str | None) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": node.name, "label": node.label}
        if isinstance(node, GenericWorkflowNoopJob):
            entry["kind"] = "noop"
        elif type(node) is not GenericWorkflowJob:
            raise CannotConvert(
                f"{node.name} is a {type(node).__name__}, filled with jobs while it runs: bpsd takes workflows that "
                "are complete; set bpsBatchSubmission to false"
            )
        if group is not None:
            entry["group"] = group
        if node.name in graph:
            entry["parents"] = list(graph.predecessors(node.name))
        if isinstance(node, GenericWorkflowNoopJob):
            return entry
        if node.executable is not None:
            entry["executable"] = self._executable(node.executable)
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if field.name not in _ELSEWHERE:
                entry[field.name] = None if value is None else _field(node.name, field.name, value)
        entry["inputs"] = [self._file(file) for file in graph.get_job_inputs(node.name, data=True)]
        entry["outputs"] = [self._file(file) for file in graph.get_job_outputs(node.name, data=True)]
        return {name: value for name, value in entry.items() if value not in _SAYS_NOTHING}

    def _executable(self, executable: GenericWorkflowExec) -> str:
        """The name of an executable in the document.

        Jobs may have different programs of one name (``pipetask`` of two stacks); all but the first are numbered:
        ``pipetask#1``. A name that ends like that by itself is always numbered, so it can be told again.
        """
        name = str(executable.name)
        keys = (f"{name}#{number}" for number in itertools.count(1))
        key = next(keys) if _NUMBERED.fullmatch(name) else name
        while self._executables.setdefault(key, executable) != executable:
            key = next(keys)
        return key

    def _file(self, file: GenericWorkflowFile) -> str:
        known = self._files.setdefault(file.name, file)
        if known != file:
            raise CannotConvert(f"two files are named {file.name}: {known.src_uri} and {file.src_uri}")
        return str(file.name)


def _graphs(workflow: GenericWorkflow) -> Iterator[tuple[str | None, GenericWorkflow]]:
    """The workflow itself, and then each of its groups, with the group's name."""
    yield None, workflow
    for name in workflow.nodes:
        node = workflow.get_job(name)
        if isinstance(node, GenericWorkflowGroup):
            yield name, node


def _run_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: str(value) for name, value in attributes.items() if value is not None}
    named = {ours: texts[theirs] for ours, theirs in RUN_ATTRIBUTES.items() if texts.get(theirs)}
    return {**named, "attrs": texts}


def _field(job: str, name: str, value: Any) -> Any:
    try:
        return _CONVERTERS.get(name, _plain)(value)
    except (TypeError, ValueError, AttributeError) as exc:
        raise CannotConvert(f"{name} of the job {job} is {value!r}: {exc}") from exc


def _whole(value: Any) -> int:
    """A whole number. A configuration may say it as text (``"2048"``) or with a fraction, which is rounded up."""
    return int(value) if isinstance(value, int) else math.ceil(float(value))


def _truth(value: Any) -> bool:
    if not isinstance(value, str):
        return bool(value)
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise ValueError("neither true nor false")


def _exit_codes(value: Any) -> int | list[int]:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_whole(code) for code in value]
    return _whole(value)


def _minutes_or_clock(value: Any) -> int | str:
    return value if isinstance(value, str) else _whole(value)


def _level(value: Any) -> int | str:
    return int(value) if isinstance(value, int) else str(value)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, Enum):
        value = value.value
    elif type(value).__module__ == "numpy":
        value = value.tolist()
    elif isinstance(value, Config):  # its own items are changed when they are looked up
        value = value.toDict()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("JSON has no such number")
        return float(value)
    return _plain_group(value)


def _plain_group(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(inner) for inner in value), key=str)
    return str(value)


def _texts(value: Mapping[Any, Any]) -> dict[str, str]:
    return {str(key): str(one) for key, one in value.items()}


def _numbers(value: Mapping[Any, Any]) -> dict[str, int]:
    return {str(key): _whole(count) for key, count in value.items()}


_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "")

_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        (
            "request_memory",
            "request_memory_max",
            "request_cpus",
            "request_disk",
            "number_of_retries",
            "abort_on_value",
            "abort_return_value",
        ),
        _whole,
    ),
    **dict.fromkeys(
        (
            "arguments",
            "compute_site",
            "compute_cloud",
            "accounting_group",
            "accounting_user",
            "mail_to",
            "when_to_mail",
            "category",
            "concurrency_limit",
            "queue",
            "pre_cmdline",
            "post_cmdline",
        ),
        str,
    ),
    "environment": _texts,
    "memory_multiplier": float,
    "preemptible": _truth,
    "priority": _level,
    "quanta_counts": _numbers,
    "request_walltime": _minutes_or_clock,
    "retry_unless_exit": _exit_codes,
}
"""Fields whose type in a document is stricter than what a configuration may give upstream; the others are `_plain`."""


def config_document(config: BpsConfig) -> dict[str, Any]:
    """A configuration as plain values, as it was read: nothing in it is looked up or replaced."""
    plain: dict[str, Any] = _plain(config)
    return plain


# -- from a document to ctrl_bps -------------------------------------------------------------------------------------


def from_document(document: Mapping[str, Any]) -> GenericWorkflow:
    """Make the generic workflow that a document describes.

    ``environment`` of the whole workflow becomes part of each job's, which is where ctrl_bps has a place for it.

    Parameters
    ----------
    document : `~collections.abc.Mapping`
        As `to_document` made it, or in the canonical form (`bpsd.validation`): what is not set may be missing.

    Raises
    ------
    CannotConvert
        If it is of another format, or says what ctrl_bps has no word for.
    """
    return _Reader(document).workflow()


class _Reader:
    """One document on its way back."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        if document.get("bpsd", DOCUMENT_FORMAT) != DOCUMENT_FORMAT:
            raise CannotConvert(f"the document is of format {document['bpsd']}, this program reads {DOCUMENT_FORMAT}")
        self._document = document
        self._files = {
            entry["name"]: GenericWorkflowFile(**_known(GenericWorkflowFile, entry))
            for entry in document.get("files", ())
        }
        self._executables: dict[str, GenericWorkflowExec] = {}
        for entry in document.get("executables", ()):
            known = {**_known(GenericWorkflowExec, entry), "name": _unnumbered(entry["name"])}
            self._executables[entry["name"]] = GenericWorkflowExec(**known)

    def workflow(self) -> GenericWorkflow:
        document = self._document
        workflow = GenericWorkflow(document["name"])
        run = document.get("run", {})
        named = {theirs: run[ours] for ours, theirs in RUN_ATTRIBUTES.items() if run.get(ours)}
        workflow.run_attrs.update({**named, **run.get("attrs", {})})
        for file in self._files.values():
            workflow.add_file(file)
        graphs: dict[str | None, GenericWorkflow] = {None: workflow}
        for entry in document.get("groups", ()):
            group = GenericWorkflowGroup(entry["name"], entry.get("label", ""), entry.get("blocking", False))
            workflow.add_job(group)
            graphs[entry["name"]] = group
        made: dict[str, Any] = {}
        for entry in document["jobs"]:
            made[entry["name"]] = self._job(entry)
            self._add(made[entry["name"]], entry, graphs[entry.get("group")])
        for entry in document["jobs"]:
            self._order(entry, graphs[entry.get("group")])
        for entry in document.get("groups", ()):
            self._order(entry, workflow)
        self._label_groups(workflow, graphs, made)
        for key, executable in self._executables.items():
            if key == executable.name:
                workflow.add_executable(executable)
        if document.get("final") is not None:
            final = self._job(document["final"])
            workflow.add_final(final)
            self._add_files(document["final"], workflow)
        return workflow

    def _job(self, entry: Mapping[str, Any]) -> GenericWorkflowJob | GenericWorkflowNoopJob:
        name, label = entry["name"], entry.get("label", "")
        if entry.get("kind") == "noop":
            return GenericWorkflowNoopJob(name, label)
        if entry.get("working_directory") is not None:
            raise CannotConvert(f"the job {name} has a working_directory, for which ctrl_bps has no word")
        job = GenericWorkflowJob(name, label)
        for field, value in _known(GenericWorkflowJob, entry).items():
            if field not in _ELSEWHERE:
                setattr(job, field, Counter(value) if field == "quanta_counts" else value)
        shared = self._document.get("environment")
        if shared:
            job.environment = {**shared, **job.environment}
        program = entry.get("executable")
        if program is not None:
            job.executable = self._executables.get(program) or GenericWorkflowExec(
                name=program.rsplit("/", 1)[-1], src_uri=program
            )
        return job

    def _add(self, job: Any, entry: Mapping[str, Any], graph: GenericWorkflow) -> None:
        graph.add_job(job)
        self._add_files(entry, graph)

    def _add_files(self, entry: Mapping[str, Any], graph: GenericWorkflow) -> None:
        if entry.get("inputs"):
            graph.add_job_inputs(entry["name"], [self._files[name] for name in entry["inputs"]])
        if entry.get("outputs"):
            graph.add_job_outputs(entry["name"], [self._files[name] for name in entry["outputs"]])

    def _order(self, entry: Mapping[str, Any], graph: GenericWorkflow) -> None:
        """Let a node wait for its parents; the labels of jobs are ordered alike, those of other nodes are not."""
        child = graph.get_job(entry["name"])
        for parent in entry.get("parents", ()):
            if parent not in graph.nodes:
                raise CannotConvert(f"{entry['name']} waits for {parent}, across the edge of a group")
            if isinstance(child, GenericWorkflowJob) and isinstance(graph.get_job(parent), GenericWorkflowJob):
                graph.add_job_relationships(parent, entry["name"])
            else:
                graph.add_edge(parent, entry["name"])

    def _label_groups(
        self, workflow: GenericWorkflow, graphs: Mapping[str | None, GenericWorkflow], made: Mapping[str, Any]
    ) -> None:
        """Count the jobs of groups among the labels of the whole, as upstream does (``bps_run_summary``)."""
        for group, graph in graphs.items():
            for name in graph.nodes if group is not None else ():
                job = made[name]
                if isinstance(job, GenericWorkflowJob):
                    before = [made[parent] for parent in graph.predecessors(name)]
                    labels = [p.label for p in before if isinstance(p, GenericWorkflowJob) and p.label != job.label]
                    workflow._job_labels.add_job(job, labels, [])  # noqa: SLF001  # upstream has no other word for it


def _known(kind: type[Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: entry[field.name] for field in dataclasses.fields(kind) if field.name in entry}


def _unnumbered(key: str) -> str:
    found = _NUMBERED.fullmatch(key)
    return found[1] if found else key


def config_from_document(document: Mapping[str, Any], wms_service_class: str | None = None) -> BpsConfig:
    """The configuration that went along with a workflow, or an empty one.

    Parameters
    ----------
    document : `~collections.abc.Mapping`
        A workflow document.
    wms_service_class : `str`, optional
        The plugin that is to read it, in place of ours (``wmsServiceClass``).
    """
    config = BpsConfig(dict(document.get("bps_config", {})), search_order=BPS_SEARCH_ORDER)
    if wms_service_class is not None:
        config["wmsServiceClass"] = wms_service_class
    return config


# -- reports ---------------------------------------------------------------------------------------------------------


def report_document(report: WmsRunReport) -> dict[str, Any]:
    """A run report as plain values, with the names of states in place of states."""
    entry = _plain_report(report)
    entry["jobs"] = None if report.jobs is None else [_plain_report(job) for job in report.jobs]
    entry["job_state_counts"] = _counts(report.job_state_counts)
    entry["job_summary"] = (
        None if report.job_summary is None else {label: _counts(counts) for label, counts in report.job_summary.items()}
    )
    entry["exit_code_summary"] = (
        None
        if report.exit_code_summary is None
        else {label: [int(code) for code in codes] for label, codes in report.exit_code_summary.items()}
    )
    info = report.specific_info
    entry["specific_info"] = info and {"templates": info.templates, "context": _plain(info.context)}
    return entry


_COMPOUND = frozenset({"jobs", "job_state_counts", "job_summary", "exit_code_summary", "specific_info"})


def _plain_report(report: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for field in dataclasses.fields(report):
        value = getattr(report, field.name)
        if field.name == "state":
            entry["state"] = None if value is None else value.name
        elif field.name not in _COMPOUND:
            entry[field.name] = value if value is None or isinstance(value, int) else str(value)
    return entry


def _counts(counts: Mapping[Any, int] | None) -> dict[str, int] | None:
    return None if counts is None else {state.name: int(count) for state, count in counts.items()}
