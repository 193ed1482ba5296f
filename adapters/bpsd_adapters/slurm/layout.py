"""Where the daemon keeps a Slurm backend's runs.

::

    STATE/runs/TOKEN/        the folder of a run
        meta.json            what it is (`Meta`)
        workflow.json        the canonical document
        run.log              what was done, see `bpsd_adapters.slurm.events`; its lock is the hold on the run
"""

from __future__ import annotations

__all__ = ["Meta", "RunFolder", "StateFolder", "run_id", "token_of"]

import os
import re
import shutil
import threading
from pathlib import Path

import msgspec

from bpsd.models import made_ready
from bpsd.workflow import WorkflowFile
from bpsd_adapters.driven import RunMeta
from bpsd_adapters.files import read_limited, sync_folder, write_durably

_TOKEN = re.compile(r"[a-z0-9]{20}", re.ASCII)


def run_id(token: str) -> str:
    """The id of a run: the beginning of the names of its jobs in Slurm."""
    return f"bps-{token}"


def token_of(text: str) -> str | None:
    """The token in a run's id, or in the name of one of its jobs, or itself."""
    token = text.removeprefix("bps-").partition("-")[0]
    return token if _TOKEN.fullmatch(token) else None


class Meta(RunMeta, frozen=True, kw_only=True):
    """What a run is, apart from its jobs; never changes. ``folder`` is its folder on the submit host."""

    number: int
    folder: str
    hands_off: bool = False
    umask: str = ""
    """The umask of its jobs, as octal digits; empty: that of the account on the submit host."""


made_ready(Meta)
META_MAX_BYTES = 16 * 1024 * 1024
"""The largest description of a run that is read."""

_decode_meta = msgspec.json.Decoder(Meta).decode


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "run.log"
        self.workflow = path / "workflow.json"

    def __repr__(self) -> str:
        return f"<RunFolder {self.path}>"

    def meta(self) -> Meta:
        """What the run is.

        Raises
        ------
        OSError, msgspec.MsgspecError
            If that cannot be read.
        """
        return _decode_meta(read_limited(self.path / "meta.json", META_MAX_BYTES))


class StateFolder:
    """The folder of one backend; used by one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "runs"
        self._metas: dict[str, Meta] = {}
        self._lock = threading.Lock()

    def make(self) -> None:
        """Make what is missing, remove what was left half made, and look what runs there are."""
        self.runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in list(self.runs.iterdir()):
            if entry.name.startswith("."):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                self.load(entry.name)

    def run(self, token: str) -> RunFolder:
        """The folder of the run with this token, whether it exists or not."""
        return RunFolder(self.runs / token)

    def meta(self, token: str) -> Meta | None:
        """What the run with this token is, from memory; `None` if there is none."""
        return self._metas.get(token)

    def load(self, token: str) -> Meta | None:
        """What the run with this token is, from its file if need be; `None` if there is none, or it cannot be read."""
        meta = self._metas.get(token)
        if meta is None:
            try:
                meta = self._metas[token] = self.run(token).meta()
            except (OSError, msgspec.MsgspecError):
                return None
        return meta

    def metas(self) -> list[Meta]:
        """All runs, in the order in which they came."""
        return sorted(self._metas.values(), key=lambda meta: meta.number)

    def forget(self, token: str) -> None:
        """The run's folder is gone."""
        self._metas.pop(token, None)

    def add(self, workflow: WorkflowFile, folder: str, now: float, *, hands_off: bool, umask: str = "") -> Meta:
        """Make the folder of a run, whole, unless it is there.

        Raises
        ------
        OSError
            If it cannot be made; then there is none.
        """
        target = self.run(workflow.token)
        with self._lock:
            found = self.load(workflow.token)
            if found is not None:
                return found
            meta = Meta(
                number=1 + max((meta.number for meta in self._metas.values()), default=0),
                token=workflow.token,
                name=workflow.name,
                run=workflow.run,
                job_count=workflow.job_count,
                run_summary=workflow.run_summary,
                created=now,
                folder=folder,
                hands_off=hands_off,
                umask=umask,
            )
            half = self.runs / f".{workflow.token}"
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(mode=0o700)
            _copy(Path(workflow.path), half / "workflow.json")
            write_durably(half / "meta.json", msgspec.json.encode(meta))
            half.rename(target.path)
            sync_folder(self.runs)
            self._metas[workflow.token] = meta
            return meta


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1024 * 1024)
        writer.flush()
        os.fsync(writer.fileno())
