r"""HTCondor's event log (``*.nodes.log``, ``*.dagman.log``), read piece by piece. Pure.

An event is a head line, some indented lines and a line of three dots::

    001 (002.000.000) 2026-11-22 19:50:25 Job executing on host: <127.0.0.1:9718?...>
    \tSlotName: slot1_1@host
    ...

Only the SubmitEvent names the node. Times are those of the submit host's clock and zone.
"""

from __future__ import annotations

__all__ = ["MAX_EVENT_BYTES", "Event", "EventKind", "EventReader"]

import re
from enum import IntEnum

import msgspec

from bpsd.models import normal_exit_code
from bpsd_adapters.htcondor.hostclock import HostClock

MAX_EVENT_BYTES = 64 * 1024
"""The longest event that is taken; what is longer without an end is no event log."""

_END = b"\n...\n"
_HEAD = re.compile(
    r"(?P<kind>\d{3}) \((?P<cluster>\d+)\.(?P<proc>\d+)\.(?P<sub>\d+)\) "
    r"(?:(?P<iso>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.\d+)?(?P<utc>Z)?|"
    r"(?P<old>\d\d/\d\d \d\d:\d\d:\d\d)) ?(?P<text>.*)"
)
_NODE = re.compile(r"^\s+DAG Node: (\S+)", re.MULTILINE)
_RETURN = re.compile(r"\(1\) Normal termination \(return value (-?\d+)\)")
_SIGNAL = re.compile(r"\(0\) Abnormal termination \(signal (\d+)\)")
_CODE = re.compile(r"^\s+Code (-?\d+) Subcode (-?\d+)", re.MULTILINE)
_SLOT = re.compile(r"^\s+SlotName: (\S+)", re.MULTILINE)


class EventKind(IntEnum):
    """The events that say something of a job's state (ULogEventNumber)."""

    SUBMIT = 0
    EXECUTE = 1
    EXECUTABLE_ERROR = 2
    EVICTED = 4
    TERMINATED = 5
    SHADOW_EXCEPTION = 7
    ABORTED = 9
    SUSPENDED = 10
    UNSUSPENDED = 11
    HELD = 12
    RELEASED = 13
    POST_SCRIPT = 16
    DISCONNECTED = 22
    RECONNECTED = 23
    RECONNECT_FAILED = 24
    CLUSTER_REMOVE = 36


_KINDS = frozenset(EventKind)


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event. ``exit_code`` is 128 + N for a signal; ``reason`` is HTCondor's text; ``time`` in epoch seconds."""

    kind: EventKind
    cluster: int
    proc: int
    subproc: int
    time: float
    node: str = ""
    host: str = ""
    exit_code: int | None = None
    reason: str = ""
    code: int | None = None
    subcode: int | None = None


class EventReader:
    """Turns the bytes of a log, in pieces of any size, into events; what it does not know it passes over.

    Parameters
    ----------
    clock : `~bpsd_adapters.htcondor.hostclock.HostClock`
        Of the host that writes the log.
    """

    def __init__(self, clock: HostClock) -> None:
        self._clock = clock
        self._latest = 0.0
        self._rest = b""
        self.skipped = 0
        """Events that could not be read."""

    @property
    def pending(self) -> int:
        """Bytes of an event that has no end yet."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes."""
        data = self._rest + data.replace(b"\r\n", b"\n")
        if data.startswith(b"...\n"):
            data = data[4:]
        *whole, self._rest = data.split(_END)
        if len(self._rest) > MAX_EVENT_BYTES:
            self.skipped += 1
            self._rest = self._rest[-len(_END) :]
        events = []
        for block in whole:
            event = self._parse(block.decode(errors="replace"))
            if event is not None:
                events.append(event)
        return events

    def _parse(self, block: str) -> Event | None:
        block = block.lstrip("\n")
        head = _HEAD.match(block)
        if head is None:
            self.skipped += bool(block.strip(". \n"))
            return None
        number = int(head["kind"])
        if number not in _KINDS:
            return None
        body = block[head.end() :]
        try:
            time = self._time(head)
        except ValueError:
            self.skipped += 1
            return None
        code = _CODE.search(body)
        node = _NODE.search(body)
        slot = _SLOT.search(body)
        return Event(
            kind=EventKind(number),
            cluster=int(head["cluster"]),
            proc=int(head["proc"]),
            subproc=int(head["sub"]),
            time=time,
            node=node[1] if node is not None else "",
            host=slot[1].rpartition("@")[2] if slot is not None else "",
            exit_code=_exit_code(body),
            reason=_reason(body) if number in (EventKind.ABORTED, EventKind.HELD, EventKind.SHADOW_EXCEPTION) else "",
            code=int(code[1]) if code is not None else None,
            subcode=int(code[2]) if code is not None else None,
        )

    def _time(self, head: re.Match[str]) -> float:
        if head["iso"] is not None:
            time = self._clock.moment(head["iso"].replace("T", " "), self._latest, utc=bool(head["utc"]))
        else:
            time = self._clock.moment_of_some_year(head["old"], self._latest)
        self._latest = max(self._latest, time)
        return time


def _exit_code(body: str) -> int | None:
    normal = _RETURN.search(body)
    if normal is not None:
        return int(normal[1])
    signal = _SIGNAL.search(body)
    return normal_exit_code(-int(signal[1])) if signal is not None else None


def _reason(body: str) -> str:
    for line in body.splitlines():
        text = line.strip()
        if text and not text.startswith("Code "):
            return text
    return ""
