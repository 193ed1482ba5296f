"""Writing a run's log so that it is both quick and true.

What is about to be started must be on the disk before; what ended must be *written* at once, since a written line
outlives a killed driver, but may reach the disk a moment later, together with others: only a machine that loses its
power within that moment forgets it, and then a job that succeeded runs again.
"""

from __future__ import annotations

__all__ = ["ENDS_WITH_ERROR", "Scribe", "complain"]

import sys
import time

from bpsd_adapters.local.events import Event
from bpsd_adapters.runlog import RunLog

SYNC_WITHIN_S = 0.05
"""How long a written line may wait for the disk."""

TRY_AGAIN_S = 1.0
"""How long to wait for a disk that cannot be written."""

ENDS_WITH_ERROR = "the driver ends with an error:"
"""How the last complaint of a driver begins, for those who look why it is gone."""

_INF = float("inf")


class Scribe:
    """Collects events and writes them; a disk that is full is waited for.

    Parameters
    ----------
    log : `~bpsd_adapters.runlog.RunLog`
        The log, held.
    """

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._pending: list[Event] = []
        self._sync_at = _INF
        self._try_at = -_INF

    def add(self, *events: Event) -> None:
        """Have these written with the next `write`."""
        self._pending += events

    def write(self, *, durable: bool = False) -> bool:
        """Write what was added, ``durable`` also to the disk; false if that is not possible now."""
        try:
            if self._pending:
                self._log.append(self._pending, durable=durable)
                self._pending.clear()
                self._sync_at = _INF if durable else min(self._sync_at, time.monotonic() + SYNC_WITHIN_S)
            elif (durable and self._sync_at != _INF) or time.monotonic() >= self._sync_at:
                self._log.sync()
                self._sync_at = _INF
        except OSError as exc:
            if self._try_at == -_INF:
                complain(f"the log cannot be written, trying again every {TRY_AGAIN_S:.0f} s: {exc}")
            self._try_at = time.monotonic() + TRY_AGAIN_S
            return False
        self._try_at = -_INF
        return True

    def write_at_last(self) -> None:
        """Write what was added to the disk, however long it takes."""
        while not self.write(durable=True):
            time.sleep(TRY_AGAIN_S)

    def take_back(self, event: Event) -> None:
        """Forget an event that was added and could not be written."""
        self._pending.remove(event)

    @property
    def may_go_on(self) -> bool:
        """Whether the disk took what it was given last, or may be asked again."""
        return time.monotonic() >= self._try_at

    @property
    def is_clean(self) -> bool:
        """Whether all that was added is written."""
        return not self._pending

    def next_look(self) -> float:
        """When there is something to do (monotonic)."""
        return self._try_at if self._try_at > -_INF else self._sync_at


def complain(text: str) -> None:
    """A line for a person, in the run's ``driver.err``."""
    try:
        sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")
        sys.stderr.flush()
    except OSError:
        pass  # the disk is full: what this is about
