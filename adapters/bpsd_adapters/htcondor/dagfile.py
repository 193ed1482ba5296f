"""What a ``.dag`` file and its rescue files say of the nodes of a run: ours, or made by ``bps submit``. Pure."""

from __future__ import annotations

__all__ = ["DagNode", "DagShape", "parse_dag", "parse_node_status", "parse_rescue"]

import posixpath
import re
from collections.abc import Iterator

import msgspec

_NODE = re.compile(
    r'(?P<command>JOB|FINAL|SUBDAG\s+EXTERNAL)\s+(?P<name>\S+)\s+"?(?P<file>[^\s"]+)"?'
    r'(?:\s+DIR\s+"?(?P<dir>[^\s"]+)"?)?(?P<rest>.*)',
    re.IGNORECASE,
)
_LABEL = re.compile(r'VARS\s+(?P<name>\S+)\s.*?\bbpsd_label="(?P<label>[^"]*)"', re.IGNORECASE)
_PARENT = re.compile(r"PARENT\s+(?P<parents>.+?)\s+CHILD\s+(?P<children>.+)", re.IGNORECASE)
_DONE = re.compile(r"DONE\s+(\S+)", re.IGNORECASE)
_STATUS = re.compile(
    r'Node = "(?P<node>[^"]*)";\s*NodeStatus = (?P<status>\d+);[^\n]*\n\s*StatusDetails = "(?P<why>(?:[^"\\]|\\.)*)";'
)
_OWN = ("wms_check_status_",)
_NAME_PREFIX = "wms_"


class DagNode(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A node. ``counts`` tells whether people know it as a job; ``subdag`` is the file of a group's DAG."""

    name: str
    label: str
    counts: bool = True
    final: bool = False
    noop: bool = False
    subdag: str | None = None


class DagShape(msgspec.Struct, kw_only=True):
    """The nodes of one DAG file by name, and who needs whom."""

    nodes: dict[str, DagNode]
    children: dict[str, list[str]]
    status_file: str | None = None
    jobstate_log: str | None = None

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


def parse_dag(text: str) -> DagShape:
    """The shape of a DAG. ``bps`` puts a job's label into its folder (``jobs/LABEL``), we into a variable."""
    nodes: dict[str, DagNode] = {}
    children: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    status_file = jobstate_log = None
    for line in _lines(text):
        word = line.split(maxsplit=1)[0].upper()
        if word in ("JOB", "FINAL", "SUBDAG"):
            node = _node(line)
            if node is not None:
                nodes[node.name] = node
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
    return DagShape(nodes=nodes, children=children, status_file=status_file, jobstate_log=jobstate_log)


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
        return DagNode(name=name, label="", counts=False, subdag=file)
    noop = "NOOP" in found["rest"].upper().split()
    return DagNode(
        name=name,
        label=_label(name, folder),
        counts=not noop and not name.startswith(_OWN),
        final=command == "FINAL",
        noop=noop,
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
