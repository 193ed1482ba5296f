"""What the runs that we drive ourselves have in common, whatever their jobs run on: words of their logs, and identity.

Next to `bpsd_adapters.dag` (what may run) and `bpsd_adapters.runlog` (the lines themselves).
"""

from __future__ import annotations

__all__ = ["DEFAULT_UMASK", "End", "Held", "JobRef", "KeptCursor", "RunMeta", "UmaskSetting", "identity", "umask_of"]

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeAlias

import msgspec
from msgspec import Meta

from bpsd.workflow import UMASK_PATTERN, RunAttributes, WorkflowFile

DEFAULT_UMASK = "0022"
"""The umask of jobs that run on this machine where the submitter's is not known: the daemon's own is 077."""


UmaskSetting: TypeAlias = (
    Annotated[
        str,
        Meta(
            pattern=UMASK_PATTERN, description="umask of jobs where the workflow names none; default: the submitter's"
        ),
    ]
    | None
)
"""The setting of a backend."""


def umask_of(workflow: WorkflowFile, setting: str | None, config: Mapping[str, Any]) -> str:
    """Return the umask of the jobs of a run on this machine: of the document, the settings, or the submitter."""
    return workflow.umask or setting or config.get("submitter_umask") or DEFAULT_UMASK


class JobRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A job in an attempt of its own: the first, or a retry, or one in a later attempt of the run."""

    node: int
    name: str
    label: str
    attempt: int


class Held(msgspec.Struct, frozen=True, tag_field="e", tag="held", kw_only=True):
    """The run is held (starts no more jobs), or is no longer."""

    time: float
    held: bool


class End(msgspec.Struct, frozen=True, tag_field="e", tag="end", kw_only=True):
    """The attempt of the run is over."""

    attempt: int
    time: float
    state: int
    note: str = ""


class RunMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is, apart from its jobs; never changes."""

    token: str
    name: str
    run: RunAttributes
    job_count: int
    run_summary: str
    created: float


def identity(meta: RunMeta, path: str) -> dict[str, Any]:
    """What the first observation of a run says beside its state, as fields of `~bpsd.models.RunObservation`."""
    run = meta.run
    return {
        "path": path,
        "label": run.label,
        "run": meta.name,
        "project": run.project,
        "campaign": run.campaign,
        "payload": run.payload,
        "operator": run.operator,
        "site": run.site,
        "run_summary": meta.run_summary,
        "submit_time": meta.created,
        "total_number_jobs": meta.job_count,
    }


class KeptCursor:
    """What a structure that is a cursor has beside its fields: the text that the daemon keeps of it."""

    __slots__ = ()

    def text(self) -> str:
        """As a text."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def parsed(cls, text: str | None) -> Self:
        """Of a text; from the beginning if it is not one of ours."""
        try:
            return cls() if text is None else msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError:
            return cls()
