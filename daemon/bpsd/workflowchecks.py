"""What can be wrong with a workflow as a whole: every finding goes to the `~bpsd.documents.Document` it came from."""

from __future__ import annotations

__all__ = ["LABELS_MAX", "RUN_ATTRS_MAX", "UNSET", "FieldTable", "WorkflowChecks"]

import bisect
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

from bpsd import errors, jobchecks, topology
from bpsd.documents import Document
from bpsd.workflow import JOB_FIELDS, UMASK_PATTERN, Executable, File, Group, Job, Workflow

_PathT: TypeAlias = tuple[str | int, ...]
_Why: TypeAlias = str | Callable[[], str]

FieldTable: TypeAlias = Mapping[str, tuple[str, str]]
"""What a backend does with each field (``honours``, ``approximates`` or ``refuses``), and how or why."""

LABELS_MAX = 1000
"""A label names a kind of job: a report has a row for each."""

RUN_ATTRS_MAX = 100
"""Attributes of a run (``run.attrs``): the daemon keeps them in memory as long as it knows the run."""

_SHOWN_OF_CYCLE = 8
_SHOWN_OF_GROUPS = 5
_NEIGHBOURS = 50
"""An unknown name is compared with so many around it in alphabetical order, by their beginnings and by their ends."""

UNSET: dict[str, Any] = {name: getattr(Job(name=""), name) for name in Job.__struct_fields__}
"""The value of each field of a job that nothing was said about."""

_SCALARS = tuple(
    name
    for name in JOB_FIELDS
    if not isinstance(UNSET[name], (list, dict)) and name not in ("arguments", "retry_unless_exit")
)
_MEANINGLESS_FOR_NOOP = tuple(name for name in JOB_FIELDS if name not in ("tags", "attrs", "quanta_counts"))
_NESTING = ("cmdvals", "tags", "profile", "attrs")


_scalars = attrgetter(*_SCALARS)


class _Names:
    """Names, perhaps 100,000 of them, and what may have been meant by one that is not among them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = names

    @functools.cached_property
    def _by_begin(self) -> list[str]:
        return sorted(self._names)

    @functools.cached_property
    def _by_end(self) -> list[str]:
        return sorted(name[::-1] for name in self._names)

    def did_you_mean(self, word: str) -> str:
        """The end of a sentence that complains about ``word``."""
        if len(word) > jobchecks.NAME_MAX_BYTES:
            return ""
        near = [*_around(self._by_begin, word), *(name[::-1] for name in _around(self._by_end, word[::-1]))]
        close = errors.nearest(word, dict.fromkeys(near), 1)
        return f"; did you mean {close[0]!r}?" if close else ""


def _around(words: list[str], word: str) -> list[str]:
    at = bisect.bisect(words, word)
    return words[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS]


class WorkflowChecks:
    """The checks of one workflow.

    Parameters
    ----------
    document : `~bpsd.documents.Document`
        Takes the mistakes.
    workflow : `~bpsd.workflow.Workflow`
        Its content, with the defaults applied.
    given : `~collections.abc.Mapping`
        The defaults: a mistake that comes from there is reported there, once.
    fields : `FieldTable`
        What the backend does with the fields.
    backend : `str`
        Its name, for the messages.
    """

    def __init__(
        self, document: Document[Any], workflow: Workflow, given: Mapping[str, Any], fields: FieldTable, backend: str
    ) -> None:
        self.document = document
        self.workflow = workflow
        self.order: list[int] = []
        self._given = given
        self._said: set[tuple[_PathT, str]] = set()
        self._fields = fields
        self._backend = f"backend {backend}" if backend else "the backend"
        self._refused = tuple(name for name in JOB_FIELDS if fields.get(name, ("", ""))[0] == "refuses")
        self._approximated = tuple(name for name in JOB_FIELDS if fields.get(name, ("", ""))[0] == "approximates")
        self._approximations: Counter[str] = Counter()
        self._useless: Counter[str] = Counter()
        self._verdicts: dict[Any, tuple[list[tuple[str, str]], list[str]]] = {}
        self._owners: dict[str, _PathT] = {}
        self._good_labels: set[str] = set()
        self._known = _Names(self._owners)
        self._files = {file.name for file in workflow.files}
        self._known_files = _Names(self._files)
        self._groups = {group.name for group in workflow.groups}

    def run(self) -> None:
        """Find everything; sets ``order``, the nodes of `bpsd.topology` in the order in which they become ready."""
        self._header()
        self._unique("executables", self.workflow.executables)
        self._unique("files", self.workflow.files)
        for index, entry in enumerate(self.workflow.executables):
            if entry.transfer_executable and not entry.src_uri:
                self.document.add(("executables", index), "transfer_executable needs a src_uri")
        self._names()
        if not self.workflow.jobs and not self.document.is_bad(("jobs",)):
            self.document.add(("jobs",), "the workflow has no jobs")
        labels = {job.label for job in self.workflow.jobs}
        if len(labels) > LABELS_MAX:
            self.document.add(("jobs",), f"{len(labels)} different labels; at most {LABELS_MAX} are allowed")
        self._category_limits()
        for index, group in enumerate(self.workflow.groups):
            self._links(("groups", index), group.name, group.parents, None)
        # What is wrong once comes before what may be wrong with every job: only the first mistakes are described.
        self._graph()
        self._jobs()

    def warnings(self) -> list[str]:
        """What is not wrong, but not as one may think either."""
        found = [
            f"{name} of {_jobs(count)} is approximated by {self._backend}: {self._fields[name][1]}"
            for name, count in self._approximations.items()
        ]
        found += [f"{text} ({_jobs(count)})" for text, count in self._useless.items()]
        used = {job.group for job in self.workflow.jobs}
        empty = [group.name for group in self.workflow.groups if group.name not in used]
        if empty:
            more = f" and {len(empty) - _SHOWN_OF_GROUPS} more" if len(empty) > _SHOWN_OF_GROUPS else ""
            found.append(f"groups without jobs: {', '.join(empty[:_SHOWN_OF_GROUPS])}{more}")
        return found

    # -- around the jobs -----------------------------------------------------------------------------------------------

    def _header(self) -> None:
        workflow = self.workflow
        self._complain(("name",), jobchecks.name_problem(workflow.name, slashes=True))
        for name in ("project", "campaign", "payload", "operator", "site", "label"):
            value = getattr(workflow.run, name)
            if value is not None:
                self._complain(("run", name), jobchecks.text_problem(value))
        if len(workflow.run.attrs) > RUN_ATTRS_MAX:
            self.document.add(
                ("run", "attrs"), f"has {len(workflow.run.attrs)} entries; at most {RUN_ATTRS_MAX} are allowed"
            )
        for name, value in workflow.run.attrs.items():
            self._complain(("run", "attrs", name), jobchecks.name_problem(name) or jobchecks.text_problem(value))
        for name, value in workflow.environment.items():
            why = jobchecks.env_name_problem(name) or jobchecks.env_value_problem(name, value)
            self._complain(("environment", name), why)
        if workflow.umask is not None and not re.fullmatch(UMASK_PATTERN, workflow.umask):
            self._complain(("umask",), f'{workflow.umask!r} is not a umask, as in "0027"')

    def _complain(self, path: _PathT, why: _Why) -> None:
        if why and not self.document.is_bad(path):
            self.document.add(path, why)

    def _unique(self, section: str, entries: Iterable[Executable | File]) -> None:
        first: dict[str, int] = {}
        for index, entry in enumerate(entries):
            path = (section, index, "name")
            self._complain(path, jobchecks.text_problem(entry.name) if entry.name else "must not be empty")
            if entry.name and first.setdefault(entry.name, index) != index:
                self.document.add(path, f"{entry.name!r} is the name of {section}[{first[entry.name]}] already")

    def _names(self) -> None:
        """Jobs, groups and the final job share one space of names, for parents name any of them."""
        for index, group in enumerate(self.workflow.groups):
            self._name(("groups", index), group.name)
        for index, job in enumerate(self.workflow.jobs):
            self._name(("jobs", index), job.name)
        if self.workflow.final is not None:
            self._name(("final",), self.workflow.final.name)

    def _name(self, path: _PathT, name: str) -> None:
        if not name and self.document.is_bad((*path, "name")):
            return
        why = jobchecks.name_problem(name)
        if why:
            self._complain((*path, "name"), why)
        owner = self._owners.setdefault(name, path)
        if owner is not path:
            self.document.add((*path, "name"), f"{name!r} is the name of {errors.Problem(owner, '').key} already")

    def _category_limits(self) -> None:
        limits = self.workflow.category_limits
        used = {job.category for job in self.workflow.jobs} if limits else set()
        for name, limit in limits.items():
            path = ("category_limits", name)
            if name not in used:
                known = _Names({category for category in used if category})
                self._complain(path, functools.partial(_unknown, "no job has the category", name, known))
            elif limit < 1:
                self._complain(path, f"must be at least 1, but is {limit}: its jobs would never run")

    # -- order ---------------------------------------------------------------------------------------------------------

    def _links(self, path: _PathT, name: str, parents: Sequence[str], group: str | None) -> None:
        if group is not None and group not in self._groups:
            known = _Names(self._groups)
            self._complain((*path, "group"), functools.partial(_unknown, "no group is named", group, known))
        for index, parent in enumerate(parents):
            if parent == name:
                self.document.add((*path, "parents", index), f"{name!r} waits for itself")
            elif group is not None and parent == group:
                self.document.add((*path, "parents", index), f"{name!r} waits for {group!r}, the group it belongs to")
            elif parent not in self._owners:
                if not self.document.is_bad((*path, "parents", index)):
                    why = functools.partial(_unknown, "no job or group is named", parent, self._known)
                    self.document.add((*path, "parents", index), why)
            elif self._owners[parent] == ("final",):
                self.document.add((*path, "parents", index), f"nothing can wait for {parent!r}, the final job")

    def _graph(self) -> None:
        jobs, groups = self.workflow.jobs, self.workflow.groups
        graph = topology.graph_of(jobs, groups)
        self.order = topology.order(graph)
        if len(self.order) == len(graph):
            return
        for cycle in topology.cycles(graph, set(range(len(graph))).difference(self.order)):
            shown = [self._node_name(node) for node in cycle]
            shown = [name for index, name in enumerate(shown) if not index or name != shown[index - 1]]
            if len(shown) > 2 * _SHOWN_OF_CYCLE:
                left_out = len(shown) - 2 * _SHOWN_OF_CYCLE
                shown = [*shown[:_SHOWN_OF_CYCLE], f"({left_out} more)", *shown[-_SHOWN_OF_CYCLE:]]
            self.document.add(self._edge(cycle[-2], cycle[0]), "these wait for one another: " + " -> ".join(shown))

    def _node_name(self, node: int) -> str:
        jobs = self.workflow.jobs
        if node < len(jobs):
            return jobs[node].name
        return f"group {self.workflow.groups[(node - len(jobs)) // 2].name}"

    def _edge(self, parent: int, child: int) -> _PathT:
        """The place in the document that makes ``child`` wait for ``parent``."""
        jobs, groups = self.workflow.jobs, self.workflow.groups
        entry: Job | Group
        if child < len(jobs):
            entry, path = jobs[child], ("jobs", child)
        else:
            index = (child - len(jobs)) // 2
            entry, path = groups[index], ("groups", index)
        name = jobs[parent].name if parent < len(jobs) else groups[(parent - len(jobs)) // 2].name
        return (*path, "parents", entry.parents.index(name)) if name in entry.parents else (*path, "group")

    # -- each job ------------------------------------------------------------------------------------------------------

    def _jobs(self) -> None:
        for index, job in enumerate(self.workflow.jobs):
            path = ("jobs", index)
            if job.parents or job.group is not None:
                self._links(path, job.name, job.parents, job.group)
            self._job(path, job)
        final = self.workflow.final
        if final is not None:
            if final.parents:
                self._complain(("final", "parents"), "the final job waits for all others; name no parents")
            if final.group is not None:
                self._complain(("final", "group"), "the final job is in no group")
            if final.kind != "payload":
                self._complain(("final", "kind"), "the final job cannot be a noop job")
            self._job(("final",), final)

    def _job(self, path: _PathT, job: Job) -> None:
        if job.label not in self._good_labels:
            why = jobchecks.label_problem(job.label)
            if why:
                self._say(path, job, "label", why)
            else:
                self._good_labels.add(job.label)
        if job.kind == "noop":
            for name in _MEANINGLESS_FOR_NOOP:
                if getattr(job, name) != UNSET[name]:
                    self._say(path, job, name, f"a noop job runs nothing, so {name} means nothing")
            return
        if job.executable is None and not self.document.is_bad((*path, "executable")):
            self.document.add((*path, "executable"), "the job has no executable")
        self._scalars(path, job)
        self._support(path, job)
        self._texts(path, job)
        self._mappings(path, job)

    def _scalars(self, path: _PathT, job: Job) -> None:
        """Numbers and short texts. Jobs of one label are alike in these, so a verdict is kept for its values."""
        codes = job.retry_unless_exit
        key = (_scalars(job), tuple(codes) if isinstance(codes, list) else codes)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._verdicts[key] = (jobchecks.scalar_problems(job), jobchecks.scalar_warnings(job))
        for name, why in verdict[0]:
            self._say(path, job, name, why)
        for text in verdict[1]:
            self._useless[text] += 1

    def _support(self, path: _PathT, job: Job) -> None:
        for name in self._refused:
            if getattr(job, name) != UNSET[name]:
                self._say(path, job, name, f"{self._backend} refuses {name}: {self._fields[name][1]}")
        for name in self._approximated:
            if getattr(job, name) != UNSET[name]:
                self._approximations[name] += 1

    def _texts(self, path: _PathT, job: Job) -> None:
        """Command lines and files."""
        if job.arguments:
            self._arguments(path, job)
        for field in ("executable", "pre_cmdline", "post_cmdline"):
            self._files_in(path, job, field, getattr(job, field) or "")
        for field in ("inputs", "outputs"):
            for index, name in enumerate(getattr(job, field)):
                if name not in self._files:
                    self._say(path, job, field, self._unknown_file(name), index)

    def _mappings(self, path: _PathT, job: Job) -> None:
        for name, value in job.environment.items():
            why = jobchecks.env_name_problem(name) or jobchecks.env_value_problem(name, value)
            if why:
                self._say(path, job, "environment", why, name)
        for name, count in job.quanta_counts.items():
            if count < 0:
                self._say(path, job, "quanta_counts", f"must be at least 0, but is {count}", name)
        for field in _NESTING:
            for name, value in getattr(job, field).items():
                if isinstance(value, (dict, list)) and jobchecks.is_nested_too_deep(value):
                    self._say(path, job, field, f"is nested more than {jobchecks.NEST_MAX} deep", name)

    def _arguments(self, path: _PathT, job: Job) -> None:
        arguments = job.arguments
        if job.cmdvals and ("{" in arguments or "}" in arguments):
            why = jobchecks.placeholder_problem(arguments, job.cmdvals)
            if why:
                self._say(path, job, "arguments", why)
                return
            arguments = arguments.format(**job.cmdvals)
        why = jobchecks.arguments_problem(arguments)
        if why:
            self._say(path, job, "arguments", why)
        self._files_in(path, job, "arguments", arguments)

    def _files_in(self, path: _PathT, job: Job, field: str, text: str) -> None:
        if "<FILE:" in text:
            for name in jobchecks.files_in(text):
                if name not in self._files:
                    self._say(path, job, field, self._unknown_file(name))

    def _unknown_file(self, name: str) -> _Why:
        return functools.partial(_unknown, "no entry of files is named", name, self._known_files)

    def _say(self, path: _PathT, job: Job, field: str, why: _Why, *rest: str | int) -> None:
        """Complain about a field of a job: where the job says it, or once where the defaults do."""
        if field in self._given and self._is_given(job, field, rest):
            path = ("defaults",)
        where = (*path, field, *rest)
        if self.document.is_bad(where):
            return
        if path == ("defaults",):
            why = why if isinstance(why, str) else why()
            if (where, why) in self._said:
                return
            self._said.add((where, why))
        self.document.add(where, why)

    def _is_given(self, job: Job, field: str, rest: tuple[str | int, ...]) -> bool:
        own, given = getattr(job, field), self._given[field]
        if isinstance(given, dict) and rest:
            return rest[0] in given and own.get(rest[0]) is given[rest[0]]
        return bool(own == given)


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _unknown(what: str, name: str, known: _Names) -> str:
    return f"{what} {name!r}{known.did_you_mean(name)}"
