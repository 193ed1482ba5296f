"""What a verb works with: its arguments, the daemon, and the two ways to speak (results, and words beside them)."""

from __future__ import annotations

__all__ = ["GRACE_S", "Session"]

import os
import sys
import time

from bpsd import __version__, wire
from bpsd.cli.render import ELLIPSIS
from bpsd.client.failures import OutOfTime
from bpsd.client.sync import Client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from bpsd.cli.arguments import Values

STATE_COLOURS = {
    "RUNNING": "32",
    "SUCCEEDED": "2;32",
    "HELD": "33",
    "UNKNOWN": "35",
    "MISFIT": "35",
    "FAILED": "31",
    "DELETED": "2;31",
    "PRUNED": "2",
    "down": "31",
    "auth": "31",
    "stopped": "31",
    "IN_DOUBT": "35",
    "EXPIRED": "31",
}
"""SGR codes: what needs a person stands out, what is over steps back."""


WAITED_FOR = {
    "submit": "the daemon to check and accept the workflow",
    "validate": "the daemon to check the workflow",
    "backend.ping": "the backends to answer",
    "refresh": "the polls of the backends",
    "logs": "the backend to send the log",
}
"""By method, what a request waits for that takes long."""

GRACE_S = 2.0
"""Seconds that an answer which is due at the end of ``--timeout`` may be late."""


class Session:
    """One run of ``bpsctl``.

    Parameters
    ----------
    verb : `str`
        Which verb.
    args : `~bpsd.cli.arguments.Values`
        What its parser made of the command line.
    argv : sequence of `str`
        The command line, for the daemon's audit.
    """

    def __init__(self, verb: str, args: Values, argv: Iterable[str]) -> None:
        self.verb = verb
        self.args = args
        self._interrupted = ""
        self._name = f"bpsctl {__version__}: {' '.join(argv)}"
        self._client: Client | None = None
        timeout_s: float | None = getattr(args, "timeout", None)
        self.deadline = None if timeout_s is None else time.monotonic() + timeout_s
        """When the time that the person gave is over (monotonic)."""
        self.terminal = bool(sys.stdout) and sys.stdout.isatty()
        self._has_ellipsis = not sys.stdout or (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        self.colours = (
            self.terminal
            and not args.no_color
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM", "dumb") != "dumb"
        )

    @property
    def client(self) -> Client:
        """The daemon; it is connected when it is first asked something."""
        if self._client is None:
            self._client = Client(self.args.socket, name=self._name)
            self._client.deadline, self._client.waiting = self.deadline, self._say_waiting
        return self._client

    @property
    def interrupted(self) -> str:
        """What to say when the person presses Ctrl-C, or the daemon that was asked does not come back."""
        return self._interrupted

    @interrupted.setter
    def interrupted(self, text: str) -> None:
        if not self._interrupted:
            _hear_one_interrupt()
        self._interrupted = text

    def left(self) -> float | None:
        """Seconds that are left of the time that the person gave; `None`: any."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def _say_waiting(self, method: str) -> None:
        self.say(f"bpsctl: {self.verb}: waiting for {WAITED_FOR.get(method, 'the daemon to answer')}")

    def bind(self) -> None:
        """See to it that the time binds also where no daemon is asked: standard input, a file, a question."""
        left = self.left()
        if left is None:
            return
        import signal  # here: only those pay for it who give a time

        def over(*_: object) -> None:
            raise OutOfTime("the time is over")

        signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, left + GRACE_S)

    def unbind(self) -> None:
        """Undo `bind`: what is said at the end, also that the time is over, is not interrupted."""
        if self.deadline is not None:
            import signal

            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()

    # -- speaking ----------------------------------------------------------------------------------------------------

    @property
    def json(self) -> bool:
        """Whether the result is to be JSON."""
        return getattr(self.args, "json", False)

    def print(self, *lines: str) -> None:
        """Print results."""
        for line in lines:
            print(line if self._has_ellipsis else line.replace(ELLIPSIS, "~"))

    def say(self, *lines: str) -> None:
        """Say something beside the results, for people: on standard error."""
        for line in lines:
            print(line, file=sys.stderr, flush=True)

    def document(self, body: dict[str, Any], *, one_line: bool = False) -> None:
        """Print a result as JSON, with the version of its form; in streams one document a line, at once."""
        import json

        text = json.dumps({"version": wire.DOCUMENT_VERSION, **body}, indent=None if one_line else 1)
        print(text, flush=one_line)

    @property
    def width(self) -> int | None:
        """Columns of the terminal; `None` where lines may be of any length."""
        if not self.terminal or getattr(self.args, "wide", False):
            return None
        try:
            return os.get_terminal_size(sys.stdout.fileno()).columns or None
        except OSError:
            return None

    def paint(self, column: str, cell: str) -> str:
        """The colour of a cell (for `bpsd.cli.render.table`): states have one."""
        return STATE_COLOURS.get(cell, "") if self.colours and column == "STATE" else ""

    def coloured(self, state: str) -> str:
        """A state as a coloured word."""
        code = self.paint("STATE", state)
        return f"\x1b[{code}m{state}\x1b[0m" if code else state


def _hear_one_interrupt() -> None:
    """From the first Ctrl-C on be deaf to more of them, or they would cut off the words that the first one is due."""
    import signal  # here: who asks for a status does not pay for it

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in the background, where nobody presses it
        signal.signal(signal.SIGINT, interrupt)
