"""What systemd wants to hear from a service of ``Type=notify`` (sd_notify(3)): a datagram to ``$NOTIFY_SOCKET``.

The library of this name on the package index was last released in 2017; the protocol is these few lines.
"""

from __future__ import annotations

__all__ = ["SystemdNotifier"]

import os
import socket
import time
from collections.abc import MutableMapping


class SystemdNotifier:
    """Tells systemd how the daemon is doing; without systemd it does nothing.

    No call waits or raises: what cannot be told, `tell` reports as `False`, and the daemon goes on.

    Parameters
    ----------
    environ : `~collections.abc.MutableMapping`
        The environment of the process. What systemd put there is taken out: it is not meant for our children.
    pid : `int`, optional
        The process that the watchdog is for (default: this one).
    """

    def __init__(self, environ: MutableMapping[str, str], *, pid: int | None = None) -> None:
        self._address = _address(environ.pop("NOTIFY_SOCKET", ""))
        watchdog_usec = environ.pop("WATCHDOG_USEC", "")
        watchdog_pid = environ.pop("WATCHDOG_PID", "")
        for_us = watchdog_pid in ("", str(os.getpid() if pid is None else pid))
        self.watchdog_s = int(watchdog_usec) / 1e6 if self._address and for_us and watchdog_usec.isdigit() else None
        """Seconds after which systemd ends a service that has not called `watchdog`; `None`: it does not watch."""

    def ready(self, status: str = "") -> bool:
        """Say that start-up, or a reload, is over."""
        return self.tell("READY=1", *_status(status))

    def reloading(self) -> bool:
        """Say that the configuration is being read again; `ready` ends it."""
        return self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> bool:
        """Say that the daemon is about to end."""
        return self.tell("STOPPING=1", *_status(status))

    def status(self, status: str) -> bool:
        """Say in one line how things are, for ``systemctl status``."""
        return self.tell(*_status(status))

    def watchdog(self) -> bool:
        """Say that the daemon is alive."""
        return self.tell("WATCHDOG=1")

    def tell(self, *assignments: str) -> bool:
        """Send assignments; return whether systemd has got them."""
        if self._address is None or not assignments:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(assignments).encode("utf-8", "backslashreplace"), self._address)
        except OSError:
            return False
        return True


def _address(name: str) -> bytes | None:
    """The address of a notification socket: a path, or ``@`` for the abstract namespace; others we cannot reach."""
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    return os.fsencode(name) if name.startswith("/") else None


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={' '.join(text.split())}",) if text else ()
