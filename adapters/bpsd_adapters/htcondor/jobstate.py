"""DAGMan's own log of its nodes (``JOBSTATE_LOG``), which our DAGs ask for: a line for each event. Pure.

``1795377025 b_1 PRE_SCRIPT_FAILURE - - - 7``: epoch seconds, node, event, job id, tag, nothing, number. It tells what
no event log can, since no job is there yet: a pre-command that failed, a submission that HTCondor refused. What a
DAGMan before this one wrote into it (a restart by hand goes on in the same file) is another attempt's.
"""

from __future__ import annotations

__all__ = ["PRE_FAILED", "REFUSED", "JobstateReader", "NodeEvent"]

import re
from typing import NamedTuple

PRE_FAILED = "PRE_SCRIPT_FAILURE"
REFUSED = "SUBMIT_FAILURE"

MAX_LINE_BYTES = 64 * 1024
_LINE = re.compile(rf"(\d+) (\S+) ({PRE_FAILED}|{REFUSED}) ")
_STARTED = re.compile(r"\d+ INTERNAL \*\*\* DAGMAN_STARTED (\d+)\.")


class NodeEvent(NamedTuple):
    """Something that happened to a node; ``time`` in epoch seconds."""

    time: float
    node: str
    name: str


class JobstateReader:
    """Turns the bytes of the log, in pieces of any size, into the events of one run.

    Parameters
    ----------
    cluster : `int`
        That of the run's DAGMan.
    """

    def __init__(self, cluster: int) -> None:
        self._cluster = cluster
        self._ours = False
        self._rest = b""

    def feed(self, data: bytes) -> list[NodeEvent]:
        """The events that ``data`` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[:MAX_LINE_BYTES]
        events = []
        for line in lines:
            text = line.decode(errors="replace")
            started = _STARTED.match(text)
            if started is not None:
                self._ours = int(started[1]) == self._cluster
            found = _LINE.match(text) if self._ours else None
            if found is not None:
                events.append(NodeEvent(float(found[1]), found[2], found[3]))
        return events
