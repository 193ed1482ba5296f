"""Reading the logs of many runs, a little at a time: what a poll does. Synchronous; the service calls it in a thread.

How far each run was read is the daemon's to keep (`~bpsd_adapters.local.observe.RunCursor`), so nothing is lost or told
twice when the daemon ends. What it does not keep are the runs that it does not know as live: they are in the backend's
own cursor.
"""

from __future__ import annotations

__all__ = ["BackendCursor", "Follower", "Look", "take_for"]

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from bpsd.models import KnownRun, PollRequest, RunObservation, made_ready
from bpsd_adapters import runlog
from bpsd_adapters.driven import KeptCursor
from bpsd_adapters.files import read_tail
from bpsd_adapters.local import history as histories
from bpsd_adapters.local import processes
from bpsd_adapters.local.events import decode
from bpsd_adapters.local.history import History
from bpsd_adapters.local.layout import Meta, RunFolder, StateFolder
from bpsd_adapters.local.observe import Phase, RunCursor, Teller, driver_died, log_unreadable
from bpsd_adapters.local.scribe import ENDS_WITH_ERROR
from bpsd_adapters.quarantine import Quarantine

SLICE_BYTES = 16 * 1024
"""How much of a log is read at once: some hundred events, less than a millisecond."""

READING = "reading its log"

WATCHED_MAX = 1000
"""How many runs that are neither live nor over (killed drivers, never begun) are looked at again; the newest."""

SAID_MAX_CHARS = 300
"""How much of a driver's last error a note quotes."""

_ERROR_BYTES = 16 * 1024
_CLOCK_TICK_S = 0.1
"""The times of files are those of the last tick of the kernel's clock, at most 10 ms ago."""

_COMPLAINT = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ", re.MULTILINE)
"""How a complaint begins (`bpsd_adapters.local.scribe.complain`)."""

T = TypeVar("T")

_LIVE = frozenset({Phase.RUNNING, Phase.HELD, Phase.ENDING})


class BackendCursor(KeptCursor, msgspec.Struct, array_like=True):
    """What the backend as a whole was seen to have: all numbers up to ``upto``, and who of them must be looked at."""

    upto: int = 0
    watch: dict[str, RunCursor] = msgspec.field(default_factory=dict)


made_ready(BackendCursor)


@dataclass(slots=True)
class Look:
    """What one look at one run brought."""

    wms_id: str
    cursor: RunCursor
    known: bool
    observations: list[RunObservation] = field(default_factory=list)
    more: bool = False
    absent: bool = False
    error: str = ""
    read_bytes: int = 0

    @property
    def job_count(self) -> int:
        """How many jobs it tells of."""
        return sum(len(seen.jobs) for seen in self.observations)


def take_for(source: Iterator[T], seconds: float) -> list[T]:
    """What an iterator yields within a time, at least one; empty when it is exhausted."""
    until = time.monotonic() + seconds
    taken: list[T] = []
    for item in source:
        taken.append(item)
        if time.monotonic() >= until:
            break
    return taken


class Follower:
    """Reads the logs of a backend's runs.

    Parameters
    ----------
    state : `StateFolder`
        Where they are.
    owner : `str`
        Whose runs they are.
    quarantine : `~bpsd_adapters.quarantine.Quarantine`
        Runs that cannot be read for now.
    """

    def __init__(self, state: StateFolder, owner: str, quarantine: Quarantine) -> None:
        self._state, self.owner, self._quarantine = state, owner, quarantine
        self._metas: dict[str, Meta] = {}
        self._histories: dict[str, tuple[int, History]] = {}
        self._turn = 0
        self._expected: set[str] = set()
        self.live: dict[str, Path] = {}
        """The logs of the runs that were live when they were last looked at."""

    def expect(self, wms_id: str) -> None:
        """A run that was over has a driver again: look at it in the next poll, though the daemon may not ask for it."""
        self._expected.add(wms_id)

    def looks(self, request: PollRequest, cursor: BackendCursor) -> Iterator[Look]:
        """Look at all runs that the request knows, that the cursor watches, and that are new; ``cursor`` moves along.

        The runs that are known are begun with another one each time, so that a busy one does not keep the others from
        being seen when a poll ends early.
        """
        done = {k.wms_id for k in request.known}
        while self._expected:
            cursor.watch.setdefault(self._expected.pop(), RunCursor())
        self._turn += 1
        turn = self._turn % max(len(request.known), 1)
        for one in (*request.known[turn:], *request.known[:turn]):
            cursor.watch.pop(one.wms_id, None)
            for look in self._known(one):
                if look.cursor.phase is Phase.DEAD:  # over for the daemon, which asks no more
                    cursor.watch[one.wms_id] = look.cursor
                yield look
        for wms_id, where in list(cursor.watch.items()):
            if wms_id not in done:
                done.add(wms_id)
                yield from self._unknown(wms_id, where, cursor)
        for number in self._state.numbers():
            if number <= cursor.upto:
                continue
            cursor.upto = number
            if str(number) not in done:
                yield from self._unknown(str(number), RunCursor(), cursor)
        for wms_id in sorted(cursor.watch, key=int)[:-WATCHED_MAX]:
            del cursor.watch[wms_id]

    # -- one run -----------------------------------------------------------------------------------------------------

    def _known(self, run: KnownRun) -> Iterator[Look]:
        folder = self._state.numbered(run.wms_id)
        if folder is None and run.token is not None:
            folder = self._state.run(run.token)
        if folder is None and run.path is not None:
            folder = RunFolder(Path(run.path))
        where = RunCursor.parsed(run.cursor)
        if folder is None or not folder.path.is_dir():
            self.live.pop(run.wms_id, None)
            # If it comes back (a disk that was away), nobody remembers what it was: it is read from the beginning.
            absent = folder is None or not folder.path.exists()
            yield Look(run.wms_id, RunCursor() if absent else where, known=True, absent=absent)
            return
        yield from self._read(run.wms_id, folder, where, known=True)

    def _unknown(self, wms_id: str, where: RunCursor, cursor: BackendCursor) -> Iterator[Look]:
        folder = self._state.numbered(wms_id)
        if folder is None or not folder.path.exists():
            cursor.watch.pop(wms_id, None)
            return
        cursor.watch[wms_id] = where
        for look in self._read(wms_id, folder, where, known=False):
            cursor.watch[wms_id] = look.cursor
            yield look
        if cursor.watch[wms_id].phase is Phase.ENDED:
            del cursor.watch[wms_id]

    def _read(self, wms_id: str, folder: RunFolder, where: RunCursor, *, known: bool) -> Iterator[Look]:
        more = self._quarantine.is_due(wms_id, READING)
        if not more:
            yield Look(wms_id, where, known, error=f"run {wms_id}: {self._quarantine.note(wms_id)}")
        while more:
            look = Look(wms_id, where, known)
            try:
                with self._quarantine.guard(wms_id, READING):
                    self._read_on(folder, look)
            except FileNotFoundError:
                return  # never begun
            if wms_id in self._quarantine:
                look = Look(wms_id, where, known, error=f"run {wms_id}: {self._quarantine.note(wms_id)}")
            where, more = look.cursor, look.more
            if where.phase in _LIVE:
                self.live[wms_id] = folder.log
            else:
                self.live.pop(wms_id, None)
            if where.phase is Phase.ENDED:
                self._metas.pop(folder.token, None)
                self._histories.pop(folder.token, None)
            yield look

    def _read_on(self, folder: RunFolder, look: Look) -> None:
        """One slice of a log; at its end also whether somebody still writes it."""
        before = look.cursor
        piece = runlog.read_from(folder.log, before.position if before.offset else None, SLICE_BYTES, decode)
        if piece.restarted:
            look.cursor = RunCursor()
        look.more = piece.more
        look.read_bytes = max(piece.position.offset - look.cursor.offset, 0)
        if piece.damage:
            look.error = f"{folder.log}: " + "; ".join(map(str, piece.damage[:3]))
        if piece.events:
            teller = Teller(self._meta(folder), str(folder.path), self.owner, look.cursor)
            look.observations += teller.tell(piece.events)
            look.cursor = teller.cursor(piece.position)
        else:
            look.cursor = look.cursor.moved(piece.position)
        if piece.more or not (look.cursor.phase in _LIVE or look.cursor.phase is Phase.ORPHANS):
            return
        if runlog.is_held(folder.log):
            return
        # Nobody holds it now; if nobody wrote since it was read either, then nobody did when it was read.
        look.more = bool(runlog.read_from(folder.log, piece.position, SLICE_BYTES, decode).events)
        if not look.more:
            self._driver_is_gone(folder, look)

    def _driver_is_gone(self, folder: RunFolder, look: Look) -> None:
        meta = self._meta(folder)
        unread = folder.log.stat().st_size - look.cursor.offset
        if unread and _ends_in_newline(folder.log):
            look.observations.append(log_unreadable(meta, look.cursor, unread, time.time()))
            look.cursor = look.cursor.in_phase(Phase.DEAD)
            return
        history = self._history(folder, look.cursor.offset)
        left = histories.left_over(history, folder)
        boot, alive = processes.boot_id(), {process.pid for process in left}
        lost = [
            j for j in history.open.values() if j.process.pid not in alive and histories.may_have_run(j, folder, boot)
        ]
        said = _last_words(folder, history)
        look.observations.append(driver_died(meta, history, len(left), lost, said, time.time()))
        look.cursor = look.cursor.in_phase(Phase.ORPHANS if left else Phase.DEAD)
        if not left:
            self._histories.pop(folder.token, None)

    def _history(self, folder: RunFolder, offset: int) -> History:
        """All that the log says; it is read once while it does not grow, since what is left is looked for often."""
        kept = self._histories.get(folder.token)
        if kept is None or kept[0] != offset:
            kept = self._histories[folder.token] = (offset, histories.read(folder.log))
        return kept[1]

    def _meta(self, folder: RunFolder) -> Meta:
        meta = self._metas.get(folder.token)
        if meta is None:
            meta = self._metas[folder.token] = folder.meta()
        return meta


def _ends_in_newline(log: Path) -> bool:
    return read_tail(log, 1) == b"\n"


def _last_words(folder: RunFolder, history: History) -> str:
    """The error with which the last driver ended, if it wrote one: the last line of what is last in ``driver.err``."""
    try:
        written = folder.driver_err.stat().st_mtime
        text = read_tail(folder.driver_err, _ERROR_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
    if history.begin is None or written < history.begin.time - _CLOCK_TICK_S:
        return ""
    last = _COMPLAINT.split(text)[-1].strip()
    return last.splitlines()[-1][:SAID_MAX_CHARS] if last.startswith(ENDS_WITH_ERROR) else ""
