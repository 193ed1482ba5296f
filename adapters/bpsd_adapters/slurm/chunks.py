"""What was submitted together, and what one look at Slurm shows of it."""

from __future__ import annotations

__all__ = ["Chunk", "Plan", "QueuedJob", "Refused", "Sight"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bpsd.models import WmsStates
from bpsd_adapters.slurm.events import JobRef
from bpsd_adapters.slurm.parsing import AccountRow, ExitRecord, QueueRow


@dataclass(slots=True)
class QueuedJob:
    """A job that was submitted and is not over."""

    ref: JobRef
    attempt: int
    """As it is shown: requeues count."""

    state: WmsStates = WmsStates.READY
    note: str = ""
    start: float | None = None
    wms_id: str = ""
    doubt_since: float | None = None


@dataclass(slots=True)
class Chunk:
    """Jobs that were submitted, or are about to be, as one array."""

    number: int
    intended: float
    name: str
    """Its job name in Slurm."""

    open: dict[int, QueuedJob] = field(default_factory=dict)
    """By index: those that are not over."""

    job_id: int | None = None
    submitted: float = 0.0
    whole: bool = False
    """Whether it is one job of a run that is handed to Slurm whole."""

    doubted: float | None = None
    """Since when it is known that nobody knows whether Slurm has it."""

    why: str = ""
    """What sbatch said when it ended and left that in doubt; empty if it was cut off."""

    in_flight: bool = False
    """Whether this process is submitting it just now."""

    ending: bool = False
    """Whether what of it is in Slurm is to go."""

    others: set[int] = field(default_factory=set)
    """Further Slurm jobs that bear its name."""


class Refused(NamedTuple):
    """A ready job that Slurm does not take as it is."""

    note: str
    due: float
    """When it is offered again (epoch seconds)."""


class Plan(NamedTuple):
    """A chunk to submit."""

    chunk: int
    name: str
    label: str
    size: int
    options: tuple[str, ...]
    jobs: bytes


class Sight(NamedTuple):
    """What one look showed of a run.

    ``began`` is when the queue was asked: what was submitted later need not be in it.
    """

    began: float
    now: float
    rows: Mapping[int, Mapping[int, Sequence[QueueRow]]]
    """By chunk and index."""

    records: Mapping[tuple[int, int], ExitRecord] = {}
    """By chunk and index."""

    accounts: Mapping[tuple[int, int], AccountRow] = {}
    """By array and index."""

    def ids(self, chunk: int) -> set[int]:
        """The Slurm jobs that bear the name of a chunk."""
        return {row.array_id for rows in self.rows.get(chunk, {}).values() for row in rows}
