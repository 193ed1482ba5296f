"""The end of the logs: lines wait in a bounded queue, and a thread writes them.

A pipe whose reader stalls, or a terminal that somebody stopped with Ctrl-S, makes ``write(2)`` wait as long as it
pleases. That must not stop the daemon: what does not fit into the queue is dropped and counted, and the count is told
when somebody reads again. A file on a full disk is waited for in the same way.
"""

from __future__ import annotations

__all__ = ["LogSink"]

import os
import select
import threading
from collections.abc import Callable

from bpsd.diskfull import is_full

FULL_RETRY_S = 1.0
"""Pause before a line is written again that a full disk refused."""


class LogSink:
    """A text file, as far as a logger can tell, that never makes its writer wait.

    Parameters
    ----------
    fd : `int`
        Where to write; it is not closed.
    describe_loss : `~collections.abc.Callable`
        Makes a line (without newline) that says how many lines were dropped.
    deliver : `~collections.abc.Callable`, optional
        Takes whole lines in place of the file descriptor; it may wait, and may raise `OSError`.
    max_queued_bytes : `int`, optional
        How much may wait to be written.
    """

    def __init__(
        self,
        fd: int,
        *,
        describe_loss: Callable[[int], str],
        deliver: Callable[[bytes], None] | None = None,
        max_queued_bytes: int = 1024 * 1024,
    ) -> None:
        self.dropped = 0
        """Lines dropped since the beginning."""
        self._fd = fd
        self._describe_loss = describe_loss
        self._deliver = deliver or self._write_fully
        self._max = max_queued_bytes
        self._changed = threading.Condition()  # guards all that follows
        self._queue: list[bytes] = []
        self._queued_bytes = 0  # with those that the thread is writing just now
        self._untold = 0  # dropped lines that no line has told yet
        self._closed = False
        # A daemon thread: one that waits for a stalled pipe must not keep the process from ending.
        self._thread = threading.Thread(target=self._write_all, name="logs", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        """Queue a text that ends with a newline, or drop it."""
        data = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._closed or self._queued_bytes + len(data) > self._max:
                self.dropped += 1
                self._untold += 1
                return
            self._queue.append(data)
            self._queued_bytes += len(data)
            self._changed.notify()

    def flush(self) -> None:
        """Do nothing: the thread writes as soon as it can."""

    def close(self, *, timeout_s: float = 2.0) -> None:
        """Take no more, and wait until all is written, but not longer than ``timeout_s``."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _write_all(self) -> None:
        while (data := self._next()) is not None:
            try:
                self._deliver(data)
            except OSError:  # the reader is gone: there is nobody to tell, and nothing to stop for
                with self._changed:
                    self.dropped += data.count(b"\n")
            with self._changed:
                self._queued_bytes = sum(map(len, self._queue))

    def _next(self) -> bytes | None:
        """Wait for what is to be written; `None` when nothing more will come."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            lines, self._queue = self._queue, []
            untold, self._untold = self._untold, 0
        if untold:
            lines.append(self._describe_loss(untold).encode("utf-8", "backslashreplace") + b"\n")
        return b"".join(lines) or None

    def _write_fully(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # somebody who shares the file made it non-blocking
                select.select([], [self._fd], [])
            except OSError as exc:
                if not is_full(exc):
                    raise
                with self._changed:
                    if self._closed or self._changed.wait_for(lambda: self._closed, FULL_RETRY_S):
                        raise
