"""What we know of the runs that we submitted: read from their folders, kept in memory, asked for by token or id."""

from __future__ import annotations

__all__ = ["Attempt", "Entries", "Entry", "token_and_number"]

import msgspec

from bpsd.models import made_ready
from bpsd_adapters.bps_plugin.link import WorkerLink

_OVERLAP_S = 5.0
"""How much is read again each time, by the file system's own clock: of two files of one second one may come later."""


class Attempt(msgspec.Struct, frozen=True):
    """One attempt: ``state`` is ``begun``, ``done`` (the WMS took it) or ``failed``; ``time`` is that of the host."""

    state: str
    wms_id: str | None = None
    time: float = 0.0


class Entry(msgspec.Struct, frozen=True):
    """One run, as `bpsd_adapters.bps_plugin.worker.Entry` writes it."""

    token: str
    path: str
    run: dict[str, str | int | None] = {}
    attempts: dict[str, Attempt] = {}
    cancelled: bool = False

    @property
    def ours(self) -> bool:
        """Whether we submitted it; of others' runs only restarts are written down."""
        return "1" in self.attempts

    @property
    def last(self) -> int:
        """The number of the last attempt that the WMS took; 0 if there is none."""
        return max((int(n) for n, attempt in self.attempts.items() if attempt.state == "done"), default=0)

    def attempt_of(self, wms_id: str) -> int:
        """The attempt that has this id now (the last, if a restart keeps the id)."""
        return max((int(n) for n, attempt in self.attempts.items() if attempt.wms_id == wms_id), default=0)

    def taken_at(self, wms_id: str) -> float:
        """When the WMS gave it this id, by the host's clock."""
        return max((attempt.time for attempt in self.attempts.values() if attempt.wms_id == wms_id), default=0.0)

    def restarted_at(self, wms_id: str) -> float | None:
        """When a run was restarted that kept its id; `None` if it was not."""
        number = self.attempt_of(wms_id)
        before = self.attempts.get(str(number - 1))
        kept = before is not None and before.wms_id == wms_id
        return self.attempts[str(number)].time if kept else None


made_ready(list[Entry])


class Entries:
    """The entries of one backend.

    Parameters
    ----------
    link : `WorkerLink`
        The worker that reads them.
    deadline_s : `float`
        How long that may take.
    """

    def __init__(self, link: WorkerLink, deadline_s: float) -> None:
        self._link, self._deadline_s = link, deadline_s
        self._since = 0.0
        self._by_token: dict[str, Entry] = {}
        self._by_id: dict[str, Entry] = {}
        self.now = 0.0

    async def refresh(self) -> list[Entry]:
        """Read what was written since the last time; returns that."""
        answer = await self._link.ask("entries", self._deadline_s, since=self._since)
        entries = msgspec.convert(answer["entries"], list[Entry])
        self.now = answer["now"]
        self._since = max(0.0, answer["newest"] - _OVERLAP_S)
        for entry in entries:
            self._by_token[entry.token] = entry
            for attempt in entry.attempts.values():
                if attempt.wms_id is not None:
                    self._by_id[attempt.wms_id] = self._latest_with(attempt.wms_id, entry)
            self._by_id[entry.path] = entry
        return entries

    def _latest_with(self, wms_id: str, entry: Entry) -> Entry:
        """Whose an id is now: a WMS that was built anew counts from 1 again."""
        holder = self._by_id.get(wms_id, entry)
        if holder.token == entry.token or holder.taken_at(wms_id) <= entry.taken_at(wms_id):
            return entry
        return holder

    def of_id(self, wms_id: str) -> Entry | None:
        """The run with this id (the last that was given it), or in this folder."""
        return self._by_id.get(wms_id.rstrip("/"))

    def all(self) -> list[Entry]:
        """Every entry."""
        return list(self._by_token.values())


def token_and_number(token: str) -> tuple[str, int]:
    """The two parts of ``TOKEN`` or ``TOKEN.ATTEMPT``."""
    run, _, number = token.partition(".")
    return run, int(number) if number.isdecimal() else 1
