"""What a ``.dag`` file and its rescue files say of the nodes of a run: ours, or made by ``bps submit``. Pure."""

from __future__ import annotations

__all__ = ["DagNode", "DagShape", "parse_dag", "parse_node_status", "parse_rescue"]

import posixpath
import re
from collections.abc import Iterator

import msgspec

_NODE = re.compile(
    r'(?P<command>JOB|FINAL|SERVICE|SUBDAG\s+EXTERNAL)\s+(?P<name>\S+)\s+"?(?P<file>[^\s"]+)"?'
    r'(?:\s+DIR\s+"?(?P<dir>[^\s"]+)"?)?(?P<rest>.*)',
    re.IGNORECASE,
)
_LABEL = re.compile(r'VARS\s+(?P<name>\S+)\s.*?\bbpsd_label="(?P<label>[^"]*)"', re.IGNORECASE)
_PARENT = re.compile(r"PARENT\s+(?P<parents>.+?)\s+CHILD\s+(?P<children>.+)", re.IGNORECASE)
_DONE = re.compile(r"DONE\s+(\S+)", re.IGNORECASE)
_STATUS = re.compile(
    r'Node = "(?P<node>[^"]*)";\s*NodeStatus = (?P<status>\d+);[^\n]*\n\s*StatusDetails = "(?P<why>(?:[^"\\]|\\.)*)";'
)
_SCRIPT = re.compile(r"SCRIPT\s.*?\bPOST\s+(?P<name>\S+)\s+(?P<rest>.+)", re.IGNORECASE)
_DAG_STATUS = re.compile(r"\$(?:DAG_STATUS\b|\(DAG_STATUS\))")
_OWN = ("wms_check_status_",)
_UNFOLLOWED = ("SPLICE", "INCLUDE", "SUBMIT-DESCRIPTION")
"""Commands that bring nodes, or parts of nodes, from elsewhere; `parse_dag` does not read those."""
_NAME_PREFIX = "wms_"


class DagNode(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A node.

    ``counts`` tells whether people know it as a job; ``folder`` is that of its submit file, as the DAG file names it.
    Of a group, ``subdag`` is the file of its DAG and ``runs_in`` the folder in which DAGMan runs it, if the DAG file
    names one. ``ends_as_dag`` marks a node whose post script returns the status of the whole DAG, as upstream's final
    job has it: that script's exit code says nothing about the job.
    """

    name: str
    label: str
    counts: bool = True
    final: bool = False
    noop: bool = False
    service: bool = False
    subdag: str | None = None
    runs_in: str | None = None
    folder: str = ""
    ends_as_dag: bool = False


class DagShape(msgspec.Struct, kw_only=True):
    """The nodes of one DAG file by name, and who needs whom."""

    nodes: dict[str, DagNode]
    children: dict[str, list[str]]
    status_file: str | None = None
    jobstate_log: str | None = None
    unfollowed: tuple[str, ...] = ()
    """Commands in the file that are not followed: jobs may be missing."""

    def below(self, names: set[str]) -> set[str]:
        """Everything that needs one of these nodes, directly or not."""
        found: set[str] = set()
        todo = list(names)
        while todo:
            for child in self.children.get(todo.pop(), ()):
                if child not in found:
                    found.add(child)
                    todo.append(child)
        return found


def parse_dag(text: str) -> DagShape:  # noqa: C901  # one branch for each command of a DAG file
    """The shape of a DAG. ``bps`` puts a job's label into its folder (``jobs/LABEL``), we into a variable."""
    nodes: dict[str, DagNode] = {}
    children: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    unfollowed: set[str] = set()
    ends_as_dag: set[str] = set()
    status_file = jobstate_log = None
    for line in _lines(text):
        word = line.split(maxsplit=1)[0].upper()
        if word in ("JOB", "FINAL", "SERVICE", "SUBDAG"):
            node = _node(line)
            if node is not None:
                nodes[node.name] = node
        elif word in _UNFOLLOWED:
            unfollowed.add(word)
        elif word == "SCRIPT":
            script = _SCRIPT.match(line)
            if script is not None and _DAG_STATUS.search(script["rest"]):
                ends_as_dag.add(script["name"])
        elif word == "VARS":
            found = _LABEL.match(line)
            if found is not None:
                labels[found["name"]] = found["label"]
        elif word == "PARENT":
            _edges(line, children)
        elif word == "NODE_STATUS_FILE" and len(line.split()) > 1:
            status_file = line.split()[1]
        elif word == "JOBSTATE_LOG" and len(line.split()) > 1:
            jobstate_log = line.split()[1]
    for name, label in labels.items():
        if name in nodes:
            nodes[name] = msgspec.structs.replace(nodes[name], label=label)
    for name in ends_as_dag & nodes.keys():
        nodes[name] = msgspec.structs.replace(nodes[name], ends_as_dag=True)
    return DagShape(
        nodes=nodes,
        children=children,
        status_file=status_file,
        jobstate_log=jobstate_log,
        unfollowed=tuple(sorted(unfollowed)),
    )


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield stripped


def _node(line: str) -> DagNode | None:
    found = _NODE.match(line)
    if found is None:
        return None
    name, command = found["name"], found["command"].upper()
    folder = found["dir"] or posixpath.dirname(found["file"])
    if command.startswith("SUBDAG"):
        file = found["file"] if found["dir"] is None else posixpath.join(found["dir"], found["file"])
        return DagNode(name=name, label="", counts=False, subdag=file, runs_in=found["dir"])
    noop = "NOOP" in found["rest"].upper().split()
    return DagNode(
        name=name,
        label=_label(name, folder),
        counts=not noop and command != "SERVICE" and not name.startswith(_OWN),
        final=command == "FINAL",
        noop=noop,
        service=command == "SERVICE",
        folder=posixpath.join(found["dir"] or "", posixpath.dirname(found["file"])),
    )


def _label(name: str, folder: str) -> str:
    parts = [part for part in folder.split("/") if part]
    if "jobs" in parts and parts.index("jobs") + 1 < len(parts):
        return parts[parts.index("jobs") + 1]
    return name.removeprefix(_NAME_PREFIX)


def _edges(line: str, children: dict[str, list[str]]) -> None:
    found = _PARENT.match(line)
    if found is not None:
        for parent in found["parents"].split():
            children.setdefault(parent, []).extend(found["children"].split())


def parse_rescue(text: str) -> set[str]:
    """The nodes that a rescue file counts as done."""
    return {found[1] for line in _lines(text) if (found := _DONE.match(line)) is not None}


def parse_node_status(text: str) -> dict[str, tuple[int, str]]:
    """What a node status file says of each node: DAGMan's number (6: error, 7: futile) and its words."""
    return {found["node"]: (int(found["status"]), found["why"]) for found in _STATUS.finditer(text)}
