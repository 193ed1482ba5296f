"""The words of a Slurm run's log. The log alone says what was done; see `bpsd_adapters.runlog` for the lines.

A resumed run is the same events told to a fresh `~bpsd_adapters.dag.Dag` (`bpsd_adapters.slurm.engine`), so `Ended`
says what that was told. New fields get defaults, or older logs could not be read.
"""

from __future__ import annotations

__all__ = [
    "Begin",
    "Cancel",
    "End",
    "Ended",
    "Event",
    "Held",
    "Intent",
    "JobRef",
    "JobState",
    "Note",
    "States",
    "Submitted",
    "Withdrawn",
    "decode",
]

from typing import TypeAlias

import msgspec

from bpsd.models import made_ready
from bpsd_adapters.driven import End, Held, JobRef


class JobState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A job that came into a state (a `~bpsd.models.WmsStates` value); ``attempt`` also counts Slurm's requeues."""

    node: int
    name: str
    label: str
    attempt: int
    state: int
    wms_id: str = ""
    note: str = ""
    start: float | None = None


class Begin(msgspec.Struct, frozen=True, tag_field="e", tag="begin", kw_only=True):
    """An attempt of the run began."""

    attempt: int
    time: float


class States(msgspec.Struct, frozen=True, tag_field="e", tag="states", kw_only=True):
    """Jobs that came into another state and are not over."""

    time: float
    jobs: tuple[JobState, ...]


class Intent(msgspec.Struct, frozen=True, tag_field="e", tag="intent", kw_only=True):
    """A chunk is about to be submitted: on the disk before sbatch runs. A job's index is its place here."""

    chunk: int
    time: float
    jobs: tuple[JobRef, ...]
    whole: bool = False
    """Whether it is one job of a run that is handed to Slurm whole."""

    name: str = ""
    """Its job name in Slurm; empty in logs of older versions: then it has no label."""


class Submitted(msgspec.Struct, frozen=True, tag_field="e", tag="submitted", kw_only=True):
    """Slurm has the chunk, under this id."""

    chunk: int
    time: float
    job_id: int


class Withdrawn(msgspec.Struct, frozen=True, tag_field="e", tag="withdrawn", kw_only=True):
    """These jobs of a chunk were not run and never will be under their number: refused, or their claims were taken."""

    chunk: int
    time: float
    nodes: tuple[int, ...]
    note: str = ""
    unused: bool = False
    """Whether Slurm never had them: then their number is given again."""


class Ended(msgspec.Struct, frozen=True, tag_field="e", tag="ended", kw_only=True):
    """An attempt of a job is over. ``judged``, ``removed`` and ``lost`` are what the DAG was told."""

    job: JobRef
    chunk: int
    time: float
    state: int
    judged: int | None = None
    removed: bool = False
    lost: bool = False
    again: bool = False
    shown_attempt: int = 0
    exit_code: int | None = None
    note: str = ""
    wms_id: str = ""
    start: float | None = None
    host: str = ""
    source: str = ""


class Cancel(msgspec.Struct, frozen=True, tag_field="e", tag="cancel", kw_only=True):
    """The run is to end."""

    time: float


class Note(msgspec.Struct, frozen=True, tag_field="e", tag="note", kw_only=True):
    """What a person should know of the run now; empty if nothing any more."""

    time: float
    note: str


Event: TypeAlias = Begin | States | Intent | Submitted | Withdrawn | Ended | Held | Cancel | Note | End

made_ready(Event)

decode = msgspec.json.Decoder(Event).decode
"""An event of a payload; `msgspec.MsgspecError` if it is of another version."""
