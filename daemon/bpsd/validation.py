"""A workflow from outside: read, checked as a whole, and brought into its canonical form.

`validate` finds every mistake, those of form and those of sense, in one reading::

    workflow = validation.load_workflow(data, "night.yaml", fields=capabilities.fields)

In the canonical form ``defaults`` have been applied to every payload job and to the final job (what a job says wins;
of ``environment``, ``profile`` and the like the entries are merged; an empty value says nothing), each job has a label
(``payload``, ``noop`` or ``final`` if it was given none) and each parent is named once. To validate a canonical
document changes nothing.
"""

from __future__ import annotations

__all__ = [
    "FieldSupportLike",
    "Validated",
    "canonical_json",
    "label_counts",
    "load_workflow",
    "placed",
    "run_summary",
    "validate",
]

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import msgspec

from bpsd import documents, topology
from bpsd.errors import Problem, WorkflowInvalid
from bpsd.models import made_ready
from bpsd.workflow import JOB_FIELDS, Job, Workflow
from bpsd.workflowchecks import UNSET, WorkflowChecks


class _HasValue(Protocol):
    @property
    def value(self) -> Any: ...


FieldSupportLike: TypeAlias = str | _HasValue
"""A `bpsd.interface.FieldSupport` (of a layer above this one), or its value."""

_DEFAULTABLE = ("label", *JOB_FIELDS)


def _default_of(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=field.default_factory)
    return msgspec.field(default=field.default)


def _like(struct: type[msgspec.Struct], name: str, names: tuple[str, ...], **types: Any) -> type[msgspec.Struct]:
    """A strict struct with these fields of another, some with another type."""
    made: list[Any] = []
    for field in msgspec.structs.fields(struct):
        if field.name in types:
            made.append((field.name, types[field.name], msgspec.field(default_factory=types[field.name])))
        elif field.name in names and field.required:
            made.append((field.name, field.type))
        elif field.name in names:
            made.append((field.name, field.type, _default_of(field)))
    return msgspec.defstruct(name, made, module=__name__, kw_only=True, forbid_unknown_fields=True)


_Defaults = _like(Job, "Defaults", _DEFAULTABLE)
_Source = _like(Workflow, "Source", Workflow.__struct_fields__, defaults=_Defaults)
"""A `Workflow` as it comes from outside: the defaults have the types of a job's fields."""

made_ready(_Source)  # documents are validated in threads, many at the same moment

_OF_BPS = {"pipelineYaml", "payload", "submitPath", "wmsServiceClass", "includeConfigs", "pipetask"}
_BPS_CONFIG = Problem(
    (), "this is what `bps submit` takes, not a workflow; docs/lsst.md says how `bps` goes through bpsd", 1, 1
)
"""What somebody hears who gives us a configuration of ``bps``, in place of all its keys that are unknown here."""


@dataclass(frozen=True, slots=True)
class Validated:
    """A valid workflow in its canonical form, and what is good to know of it.

    ``label_counts`` counts what runs (payload jobs and the final job; a noop job runs nothing), in the order in which
    the labels become ready. ``job_count`` is their sum. ``warnings`` are sentences.
    """

    workflow: Workflow
    label_counts: Mapping[str, int]
    warnings: tuple[str, ...]

    @property
    def job_count(self) -> int:
        """How many jobs will run."""
        return sum(self.label_counts.values())

    @property
    def run_summary(self) -> str:
        """``label:count;...``, as in upstream's ``bps_run_summary``."""
        return _summary(self.label_counts)


def validate(
    data: bytes,
    source: str,
    *,
    fields: Mapping[str, tuple[FieldSupportLike, str]] | None = None,
    backend: str = "",
) -> Validated:
    """Read and check a workflow.

    Parameters
    ----------
    data : `bytes`
        The document, YAML or JSON.
    source : `str`
        Its name, for people.
    fields : `~collections.abc.Mapping`, optional
        What the backend does with each field of a job (`bpsd.interface.Capabilities`).
    backend : `str`, optional
        Its name, for the messages.

    Raises
    ------
    WorkflowInvalid
        With every mistake; of a configuration of ``bps``, that it is one.
    """
    try:
        return _validated(data, source, fields or {}, backend)
    except WorkflowInvalid as exc:
        unknown = {problem.key for problem in exc.problems}
        if "jobs" in unknown and not unknown.isdisjoint(_OF_BPS):
            raise WorkflowInvalid(source, (_BPS_CONFIG,)) from None
        raise


def _validated(data: bytes, source: str, fields: Mapping[str, tuple[FieldSupportLike, str]], backend: str) -> Validated:
    document = documents.read(data, source, _Source, error=WorkflowInvalid)
    read: Any = document.value
    given = {name: value for name in _DEFAULTABLE if (value := getattr(read.defaults, name)) != UNSET[name]}
    workflow = Workflow(**{name: getattr(read, name) for name in Workflow.__struct_fields__ if name != "defaults"})
    _apply_defaults(workflow, given)
    table = {
        name: (support if isinstance(support, str) else str(support.value), reason)
        for name, (support, reason) in fields.items()
    }
    checks = WorkflowChecks(document, workflow, given, table, backend)
    checks.run()
    document.check()
    for job in workflow.jobs:  # not before: the places of mistakes count the parents as they stand in the text
        if len(job.parents) > 1 and len(set(job.parents)) < len(job.parents):
            job.parents = list(dict.fromkeys(job.parents))
    return Validated(workflow, _count_labels(workflow, checks.order), tuple(checks.warnings()))


def load_workflow(
    data: bytes,
    source: str,
    *,
    fields: Mapping[str, tuple[FieldSupportLike, str]] | None = None,
    backend: str = "",
) -> Workflow:
    """`validate`, where the workflow alone is wanted."""
    return validate(data, source, fields=fields, backend=backend).workflow


def placed(data: bytes, source: str, mistakes: WorkflowInvalid) -> WorkflowInvalid:
    """Mistakes that were found in the canonical form, with their places in the document that it was made of."""
    document = documents.read(data, source, _Source, error=WorkflowInvalid)
    places = document.locate(*(problem.where for problem in mistakes.problems))
    found = [
        replace(problem, line=line, column=column)
        for problem, (line, column) in zip(mistakes.problems, places, strict=True)
    ]
    return WorkflowInvalid(source, found, total=mistakes.total)


def canonical_json(workflow: Workflow) -> bytes:
    """The workflow as the bytes that adapters and drivers read (`msgspec.json`); what is not set is left out."""
    return msgspec.json.encode(workflow)


def label_counts(workflow: Workflow) -> dict[str, int]:
    """How many jobs of each label run, in the order in which the labels become ready, the final job's last."""
    return _count_labels(workflow, topology.order(topology.graph_of(workflow.jobs, workflow.groups)))


def run_summary(workflow: Workflow) -> str:
    """`label_counts` as upstream writes them: ``label:count;...``."""
    return _summary(label_counts(workflow))


def _summary(counts: Mapping[str, int]) -> str:
    return ";".join(f"{label}:{count}" for label, count in counts.items())


def _count_labels(workflow: Workflow, order: list[int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    jobs = workflow.jobs
    for node in order:
        if node < len(jobs) and jobs[node].kind == "payload":
            label = jobs[node].label
            counts[label] = counts.get(label, 0) + 1
    if workflow.final is not None:
        counts[workflow.final.label] = counts.pop(workflow.final.label, 0) + 1
    return counts


def _apply_defaults(workflow: Workflow, given: Mapping[str, Any]) -> None:
    merged = {name: value for name, value in given.items() if isinstance(value, dict)}
    simple = {name: value for name, value in given.items() if name not in merged}
    for job in workflow.jobs:
        if job.kind == "payload":
            _apply(job, simple, merged)
        job.label = job.label or job.kind
    if workflow.final is not None and workflow.final.kind == "payload":
        _apply(workflow.final, {name: value for name, value in simple.items() if name != "label"}, merged)
    if workflow.final is not None:
        workflow.final.label = workflow.final.label or "final"


def _apply(job: Job, simple: Mapping[str, Any], merged: Mapping[str, Mapping[str, Any]]) -> None:
    for name, value in simple.items():
        if getattr(job, name) == UNSET[name]:
            setattr(job, name, value)
    for name, value in merged.items():
        setattr(job, name, {**value, **getattr(job, name)})
