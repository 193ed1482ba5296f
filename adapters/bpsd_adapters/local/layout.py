"""Where everything of the local backend lies, and the names of files.

::

    STATE/counter                the last number given to a run
    STATE/ids/12                 a link to the folder of run 12
    STATE/runs/TOKEN/            the folder of a run
        meta.json                what it is (`Meta`)
        workflow.json            the canonical document
        run.log                  what happened, see `bpsd_adapters.local.events`; its lock is its driver's life
        driver.err               what its drivers had to complain about
        out/JOB.ATTEMPT.out|err  what jobs printed
        work/                    where jobs start unless they say otherwise
        cancel.ATTEMPT           somebody asked to end this attempt of the run
        hold.ATTEMPT             somebody asked to start no more jobs in it
"""

from __future__ import annotations

__all__ = ["Meta", "RunFolder", "StateFolder"]

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bpsd_adapters.driven import RunMeta
from bpsd_adapters.files import read_limited, safe_name, sync_folder, write_durably


class Meta(RunMeta, frozen=True, kw_only=True):
    """What a run is, apart from its jobs; never changes."""

    wms_id: str
    umask: str = ""
    """The umask of its jobs, as octal digits; empty in runs of older versions."""


META_MAX_BYTES = 16 * 1024 * 1024
"""The largest description of a run that is read."""

_decode_meta = msgspec.json.Decoder(Meta).decode


class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    path : `~pathlib.Path`
        The folder, absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "run.log"
        self.workflow = path / "workflow.json"
        self.out = path / "out"
        self._out = str(self.out)
        self.work = path / "work"
        self.driver_err = path / "driver.err"

    def __repr__(self) -> str:
        return f"<RunFolder {self.path}>"

    @property
    def token(self) -> str:
        """The token of the run."""
        return self.path.name

    def meta(self) -> Meta:
        """What the run is.

        Raises
        ------
        OSError, msgspec.MsgspecError
            If that cannot be read.
        """
        return _decode_meta(read_limited(self.path / "meta.json", META_MAX_BYTES))

    def write_meta(self, meta: Meta) -> None:
        """Write what the run is, on the disk."""
        write_durably(self.path / "meta.json", msgspec.json.encode(meta))

    def output(self, job: str, attempt: int, stream: str) -> Path:
        """The file of what an attempt of a job printed (``stream`` is ``out`` or ``err``)."""
        return self.out / f"{safe_name(job)}.{attempt}.{stream}"

    def outputs(self, job: str, attempt: int) -> tuple[str, str]:
        """The files of both streams of an attempt of a job, stdout first, as texts: asked for every job that starts."""
        both = f"{self._out}/{safe_name(job)}.{attempt}"
        return both + ".out", both + ".err"

    def cancel_request(self, attempt: int) -> Path:
        """The file whose existence asks to end this attempt of the run."""
        return self.path / f"cancel.{attempt}"

    def hold_request(self, attempt: int) -> Path:
        """The file whose existence asks to start no more jobs in this attempt of the run."""
        return self.path / f"hold.{attempt}"


class StateFolder:
    """The folder of one local backend.

    Parameters
    ----------
    path : `~pathlib.Path`
        The folder.
    runs : `~pathlib.Path`, optional
        Where the folders of runs are, if elsewhere.
    """

    def __init__(self, path: Path, runs: Path | None = None) -> None:
        self.path = path
        self.runs = runs or path / "runs"
        self.ids = path / "ids"

    def make(self) -> None:
        """Make what is missing, and remove what helpers that were killed left half made."""
        for folder in (self.runs, self.ids):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for half in self.runs.glob(".*.*"):
            maker = half.name.rpartition(".")[2]
            if maker.isdecimal() and not Path("/proc", maker).exists():
                shutil.rmtree(half, ignore_errors=True)

    def half_made(self, token: str) -> RunFolder:
        """Where this process makes the folder of a run, before it is renamed."""
        return RunFolder(self.runs / f".{token}.{os.getpid()}")

    def run(self, token: str) -> RunFolder:
        """The folder of the run with this token, whether it exists or not."""
        return RunFolder(self.runs / token)

    def numbered(self, wms_id: str) -> RunFolder | None:
        """The folder of the run with this number."""
        if not (wms_id.isascii() and wms_id.isdecimal()):
            return None
        try:
            return RunFolder((self.ids / wms_id).readlink())
        except OSError:
            return None

    def numbers(self) -> list[int]:
        """The numbers of all runs, in their order."""
        return sorted(int(link.name) for link in self.ids.iterdir() if link.name.isdecimal())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else gives out numbers meanwhile."""
        fd = os.open(self.path / "counter", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def next_number(self) -> int:
        """A number that no run had before (while `locked`); durable, so that it is never given twice."""
        counter = self.path / "counter"
        text = read_limited(counter, 100).decode("ascii", "replace").strip()
        number = max([int(text) if text.isdecimal() else 0, *self.numbers()]) + 1
        # In place, since the lock is on this file; a torn number is repaired by the links in ids/.
        with counter.open("r+b") as file:
            file.write(b"%d\n" % number)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        return number

    def give_number(self, folder: RunFolder, wms_id: str) -> None:
        """Let the number lead to the run's folder; doing it twice does no harm."""
        try:
            (self.ids / wms_id).symlink_to(folder.path)
        except FileExistsError:
            return
        sync_folder(self.ids)
