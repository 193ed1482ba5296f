"""The words of a local run's log. The log alone says what a run did; see `bpsd_adapters.runlog` for the lines.

Lines name jobs with name and label, so that a reader needs nothing beside the log, and with their number in the
document, so that the driver needs no names. New fields get defaults, or older logs could not be read.
"""

from __future__ import annotations

__all__ = ["Begin", "End", "Ended", "Event", "Held", "Intent", "JobRef", "JobState", "Started", "States", "decode"]

from typing import TypeAlias

import msgspec

from bpsd_adapters.driven import End, Held, JobRef


class JobState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A job that came into a state (a `~bpsd.models.WmsStates` value) without anything being run."""

    node: int
    name: str
    label: str
    attempt: int
    state: int


class Begin(msgspec.Struct, frozen=True, tag_field="e", tag="begin", kw_only=True):
    """A driver took over the run for this attempt; it writes all lines up to the next one of these.

    ``keeper_pid``, ``keeper_start`` and ``control_group`` lead to what it leaves if it is killed, see
    `bpsd_adapters.local.processes.Trace`.
    """

    attempt: int
    pid: int
    start: int
    boot: str
    time: float
    host: str = ""
    keeper_pid: int = 0
    keeper_start: int = 0
    control_group: str = ""


class States(msgspec.Struct, frozen=True, tag_field="e", tag="states", kw_only=True):
    """Jobs that came into another state: all of them as the attempt begins, later the ready, pruned and removed."""

    time: float
    jobs: tuple[JobState, ...]


class Intent(msgspec.Struct, frozen=True, tag_field="e", tag="intent", kw_only=True):
    """These are about to be started: from here on they may have run."""

    jobs: tuple[JobRef, ...]


class Started(msgspec.Struct, frozen=True, tag_field="e", tag="started", kw_only=True):
    """A process of a job runs; with pre- and post-commands a job has several, one after the other."""

    job: JobRef
    time: float
    pid: int
    start: int
    step: str = "job"


class Ended(msgspec.Struct, frozen=True, tag_field="e", tag="ended", kw_only=True):
    """An attempt of a job is over. ``again``: another is to follow in this attempt of the run."""

    job: JobRef
    time: float
    state: int
    exit_code: int | None = None
    again: bool = False
    note: str = ""


Event: TypeAlias = Begin | States | Intent | Started | Ended | Held | End

decode = msgspec.json.Decoder(Event).decode
"""An event of a payload; `msgspec.MsgspecError` if it is of another version."""
