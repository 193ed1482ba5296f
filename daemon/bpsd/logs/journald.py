"""Logs for systemd's journal, with their fields: ``journalctl BPSD_EVENT=poll_failed BPSD_BACKEND=usdf``.

Each event goes as one datagram of journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): ``MESSAGE`` for
people, ``PRIORITY`` by its level, and each of its fields with ``BPSD_`` before its name.
"""

from __future__ import annotations

__all__ = ["JOURNAL_SOCKET", "datagram", "is_journal", "send_lines"]

import errno
import json
import os
import re
import socket
from collections.abc import Mapping
from typing import Any

JOURNAL_SOCKET = "/run/systemd/journal/socket"

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)
_NO_NAME_CHARS = re.compile(r"[^A-Z0-9_]")
_NAME_CHARS = 64  # systemd.journal-fields(7)
_NOT_IN_MESSAGE = ("event", "level", "timestamp", "exception", "stack")


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether a file descriptor leads to the journal (systemd.exec(5), ``$JOURNAL_STREAM``)."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def datagram(event: Mapping[str, Any], *, whole: bool = True) -> bytes:
    """One event in the journal's words; unless ``whole``, only what it is and what people read of it."""
    words = [f"{name}={_text(value)}" for name, value in event.items() if name not in _NOT_IN_MESSAGE]
    message = " ".join([str(event.get("event", "")), *words])
    fields = {
        "MESSAGE": "\n".join([message, *(str(event[name]) for name in ("exception", "stack") if event.get(name))]),
        "PRIORITY": str(_PRIORITIES.get(str(event.get("level")), 6)),
        "SYSLOG_IDENTIFIER": "bpsd",
        "BPSD_EVENT": str(event.get("event", "")),
    }
    if whole:
        for name, value in event.items():
            if name not in _NOT_IN_MESSAGE:
                fields["BPSD_" + _NO_NAME_CHARS.sub("_", name.upper())[: _NAME_CHARS - 5]] = _text(value)
    else:
        fields["MESSAGE"] = fields["MESSAGE"][:4096]
    return b"".join(_field(name, value) for name, value in fields.items())


def send_lines(lines: bytes, path: str = JOURNAL_SOCKET) -> None:
    """Send JSON lines, each an event; for the thread of `bpsd.logs.sink.LogSink`.

    Raises
    ------
    OSError
        If nobody is there to take them.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(path)
        for line in lines.splitlines():
            event = json.loads(line)
            try:
                sender.send(datagram(event))
            except OSError as exc:
                if exc.errno != errno.EMSGSIZE:
                    raise
                sender.send(datagram(event, whole=False))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
    return b"%s=%s\n" % (name.encode(), data)
