"""Signals of the daemon's process, from the first line of ``bpsd serve`` to its last.

A signal that comes before the daemon listens must not kill it (SIGHUP), nor wait until the start is over (SIGTERM). So
the handlers are installed before the imports that take long, and stay until the process ends. `asyncio` would put the
default action back when its loop ends.
"""

from __future__ import annotations

__all__ = ["Signals"]

import signal
from collections.abc import Callable
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT)
"""Signals that end the daemon in good order."""


class Signals:
    """Takes SIGHUP, SIGTERM and SIGINT, and keeps them until somebody listens."""

    def __init__(self) -> None:
        self._kept: list[signal.Signals] = []
        self._listener: Callable[[signal.Signals], None] | None = None
        self._installed = self._starting = False

    def install(self) -> None:
        """Take the signals of this process from now on (in its main thread)."""
        self._installed = self._starting = True
        for number in (signal.SIGHUP, *ENDING):
            signal.signal(number, self._handle)

    def listen(self, listener: Callable[[signal.Signals], None]) -> None:
        """Call ``listener`` with each signal, first with those that were kept; it runs between two bytecodes."""
        self._listener, self._starting = listener, False
        kept, self._kept = self._kept, []
        for number in kept:
            listener(number)

    def stop_listening(self) -> None:
        """Ignore what comes from now on: the daemon has ended, and its process is about to."""
        self._listener = lambda _: None
        if self._installed:  # Python's end would put back the default action, which is to die
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _handle(self, number: int, _: FrameType | None) -> None:
        received = signal.Signals(number)
        if self._listener is not None:
            self._listener(received)
        elif self._starting and received in ENDING:
            raise SystemExit(0)  # nothing was begun that would have to be ended
        else:
            self._kept.append(received)
