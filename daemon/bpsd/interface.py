"""The contract between the daemon and an adapter: the async twin of ``lsst.ctrl.bps.BaseWmsService``.

A native adapter implements ``prepare``, ``submit``, ``restart``, ``cancel``, ``ping``, ``run_submission_checks`` and
**one reader**, ``poll``; ``report``, ``get_status`` and ``list_submitted_jobs`` are derived from it (`bpsd.derived`).
An adapter that bridges a plugin implements those three and inherits ``poll``. To lack either is an error when the
class is made.

Every path is a path on the backend's submit host. Every method may be cancelled by its deadline and must then leave
nothing running that it started to *ask* with. Errors are those of `bpsd.errors`; foreign ones are mapped at the
adapter's edge, with ``from``. The contract in words is in ``docs/adapters.md``; the suite that proves it is
`bpsd.testing.contract`.
"""

from __future__ import annotations

__all__ = ["Capabilities", "FieldSupport", "OutputPiece", "ServiceContext", "WmsService", "WmsWorkflow"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import msgspec
from anyio.abc import TaskGroup

from bpsd.errors import Problem, UnsupportedOperation
from bpsd.models import KnownRun, PollRequest, PollResult, TokenAnswer, WmsRunReport, WmsStates
from bpsd.workflow import JOB_FIELDS, WorkflowFile


class FieldSupport(Enum):
    """What a backend does with a field of a job."""

    HONOURS = "honours"
    APPROXIMATES = "approximates"
    REFUSES = "refuses"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can do; constant while the service is open.

    ``fields`` maps every name of `bpsd.workflow.JOB_FIELDS` to what becomes of it and, unless it is honoured, how or
    why. ``settle_s`` is how long after a submission was cut off a complete "not found" begins to be proof (longer
    than the WMS's own message time-outs). ``poll_floor_s`` is the least time between two polls that the WMS should have
    to bear; only a backend that asks nobody (files of our own) may say less than 2 s. ``sources`` are the names of its
    sources, most trusted last.
    """

    fields: Mapping[str, tuple[FieldSupport, str]]
    sources: tuple[str, ...]
    settle_s: float = 0.0
    poll_floor_s: float = 2.0
    finds_by_token: bool = True
    holds: bool = False
    reads_output: bool = False
    commands_at_once: int = 4

    def __post_init__(self) -> None:
        missing = [name for name in JOB_FIELDS if name not in self.fields]
        unknown = [name for name in self.fields if name not in JOB_FIELDS]
        if missing or unknown:
            raise TypeError(f"capabilities must name every job field: missing {missing}, unknown {unknown}")


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """What the daemon lends a service.

    ``state_dir`` belongs to this backend alone and exists. ``wake(reason)`` asks for a poll soon and may be called
    from any task. ``task_group`` is the backend's own: a task that fails there takes down this backend and no other.
    ``clock`` returns epoch seconds.
    """

    backend: str
    state_dir: Path
    log: Any
    clock: Callable[[], float]
    wake: Callable[[str], None]
    task_group: TaskGroup


@dataclass(slots=True)
class WmsWorkflow:
    """A prepared submission: ``submit`` sets ``run_id`` (the id in the WMS). ``data`` is the adapter's own."""

    name: str
    token: str
    submit_path: str
    run_id: str | None = None
    data: dict[str, Any] = field(default_factory=dict)


class OutputPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a job's output: ``data`` from ``offset``; ``size`` is the whole file's now. ``path`` for people."""

    data: bytes
    offset: int
    size: int
    path: str


class WmsService(ABC):
    """One backend. An async context manager: entered before anything is asked, left when the backend stops.

    Parameters
    ----------
    config : `~collections.abc.Mapping`
        The backend's settings, already validated as ``Config``.
    context : `ServiceContext`
        What the daemon lends.
    """

    Config: ClassVar[type[msgspec.Struct]]
    """The settings of this kind of backend; a field's metadata gives its description."""

    _READERS: ClassVar[tuple[str, ...]] = ("report", "get_status", "list_submitted_jobs")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        native = cls.poll is not WmsService.poll
        bridged = all(getattr(cls, name) is not getattr(WmsService, name) for name in WmsService._READERS)
        if not (native or bridged):
            raise TypeError(f"{cls.__qualname__} must implement either poll or all of {', '.join(cls._READERS)}")

    def __init__(self, config: Any, context: ServiceContext) -> None:
        self.config = config
        self.context = context

    @classmethod
    def made(cls, config: Any, context: ServiceContext) -> WmsService:
        """Make the service of a backend; an adapter may choose another class of its own by its settings."""
        return cls(config, context)

    @classmethod
    def check_settings(cls, config: Any) -> Sequence[Problem]:  # noqa: ARG003  # for those who override it
        """Return what of the settings cannot work on this host: files, folders and programs that are not as needed.

        ``bpsd check-config`` asks this, and the daemon before it opens the backend. ``where`` of each problem is its
        path in the backend's settings, as in ``("ssh", "keys", 0)``. It changes nothing, starts nothing and uses no
        network. It is called in a thread and may block; `bpsd.pathchecks` has the common checks.
        """
        return ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this backend can do."""

    def folders(self) -> tuple[Path, ...]:
        """Return the folders on this host that it writes to, beside its ``state_dir``: `health` looks for free space.

        It is called on the event loop and does not touch the disk.
        """
        return ()

    # -- commands ----------------------------------------------------------------------------------------------------

    @abstractmethod
    async def prepare(
        self, config: Mapping[str, Any], generic_workflow: WorkflowFile, out_prefix: str | None = None
    ) -> WmsWorkflow:
        """Make what ``submit`` needs. Repeating it for the same token gives the same submission.

        ``config`` holds, if a person submitted, that person's user id by the kernel's word as ``submitter_uid``, and
        the umask of the client as ``submitter_umask`` (octal digits, or `None`).
        """

    @abstractmethod
    async def submit(self, workflow: WmsWorkflow, **kwargs: Any) -> None:
        """Hand the workflow to the WMS under its token and set ``workflow.run_id``.

        Raises
        ------
        BackendUnavailable
            If it is not known whether the WMS took it; ``find_by_token`` will tell.
        """

    @abstractmethod
    async def restart(
        self, wms_workflow_id: str, *, attempt_token: str | None = None
    ) -> tuple[str | None, str | None, str]:
        """Restart a run from the point of failure; returns its id, its name and a message (empty if all went well).

        ``attempt_token`` is ``TOKEN.ATTEMPT`` of the new attempt: a second call with it finds the attempt made.
        """

    @abstractmethod
    async def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        """Ask the WMS to end a run; returns whether it agreed, and a message. Safe to repeat."""

    @abstractmethod
    async def ping(self, pass_thru: str | None = None) -> tuple[int, str]:
        """Whether the WMS is up, reachable and lets us in: 0 for yes, and a message."""

    async def run_submission_checks(self) -> None:
        """Raise what would make any submission fail (a missing program or folder, no right)."""
        return

    async def check_workflow(self, config: Mapping[str, Any], generic_workflow: WorkflowFile) -> None:
        """Raise what ``prepare`` would refuse of this workflow, and leave nothing behind.

        ``validate`` and ``submit --dry-run`` ask this, so that they answer as ``submit`` does. So ``prepare`` must make
        the same checks, best with the same function. ``config`` is that of ``prepare``.

        Raises
        ------
        WorkflowInvalid
            With every mistake.
        """
        return

    async def hold(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """Put a run, or some of its jobs, on hold."""
        raise UnsupportedOperation(f"backend {self.context.backend} cannot hold runs")

    async def release(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """Release what is held."""
        raise UnsupportedOperation(f"backend {self.context.backend} cannot release runs")

    # -- readers -----------------------------------------------------------------------------------------------------

    async def poll(self, request: PollRequest) -> PollResult:
        """See what changed since the cursors of the request. Must not answer in place of a source that failed."""
        from bpsd import derived

        return await derived.poll_from_reports(self)

    async def report(
        self,
        wms_workflow_id: str | None = None,
        user: str | None = None,
        hist: float = 0,
        pass_thru: str | None = None,
        is_global: bool = False,
        return_exit_codes: bool = False,
    ) -> tuple[list[WmsRunReport], str]:
        """Reports of runs, asked of the WMS now, and a message (upstream's ``report``)."""
        from bpsd import derived

        return await derived.report_from_poll(self, wms_workflow_id, user, hist, pass_thru, is_global)

    async def get_status(self, wms_workflow_id: str, hist: float = 1, is_global: bool = False) -> tuple[WmsStates, str]:
        """The state of one run, asked of the WMS now, and a message (upstream's ``get_status``)."""
        from bpsd import derived

        return await derived.status_from_poll(self, wms_workflow_id, hist, is_global)

    async def list_submitted_jobs(
        self,
        wms_id: str | None = None,
        user: str | None = None,
        require_bps: bool = True,
        pass_thru: str | None = None,
        is_global: bool = False,
    ) -> list[str]:
        """The ids of runs in the WMS now (upstream's ``list_submitted_jobs``)."""
        from bpsd import derived

        return await derived.list_from_poll(self, wms_id, user)

    async def find_by_token(self, token: str, since: float) -> TokenAnswer:
        """Whether the WMS has a run (``TOKEN``) or an attempt (``TOKEN.ATTEMPT``) submitted at or after ``since``."""
        return TokenAnswer(verdict="cannot_tell", reason=f"{type(self).__name__} cannot ask by token")

    async def read_output(self, wms_id: str, job: str, stream: str, offset: int, limit: int) -> OutputPiece:
        """A piece of a job's ``stdout`` or ``stderr`` (last attempt); a negative offset counts from the end."""
        raise UnsupportedOperation(f"backend {self.context.backend} cannot show the output of jobs")

    def order_id(self, run: KnownRun) -> str:
        """Return the id by which orders (cancel, restart, hold, release, read_output) name a run; default ``wms_id``.

        An adapter whose WMS has ids that are never given twice returns ``run.key``, and its orders carry that id in
        the request itself, so that they cannot hit another run that has the same ``wms_id`` now.
        """
        return run.wms_id

    def resolve_id(self, text: str) -> tuple[str, ...]:
        """All forms of a WMS id under which this backend's runs may be known (``12``: ``12``, ``12.0``)."""
        return (text,)
