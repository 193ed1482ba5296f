"""What can go wrong between a program and the daemon, for both clients.

::

    ClientError               code, message, advice, fields
    ├── NoDaemon              nobody answers on the socket
    ├── ConnectionLost        the connection broke; whether the request was carried out is not known
    ├── TimedOut              no answer in time; the request may still be carried out
    │   └── OutOfTime         the time that the caller gave for everything is over
    ├── VersionMismatch       the daemon speaks another version of the protocol
    └── RemoteError           the daemon's own refusal: ``code`` is a key of `bpsd.wire.ERRORS`

Standard library only: ``bpsctl`` imports this on every start.
"""

from __future__ import annotations

__all__ = [
    "ClientError",
    "ConnectionLost",
    "NoDaemon",
    "OutOfTime",
    "RemoteError",
    "TimedOut",
    "VersionMismatch",
    "from_response",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class ClientError(Exception):
    """Root of what the clients raise.

    Parameters
    ----------
    message : `str`
        One sentence: what was being done, to what, and what went wrong.
    code : `str`, optional
        For scripts; by default the class's own.
    advice : `str`, optional
        What the reader can do now.
    fields : `dict`, optional
        Facts for machines.
    """

    code = "client_error"

    def __init__(
        self, message: str, *, code: str | None = None, advice: str = "", fields: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.fields: dict[str, Any] = fields or {}
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.advice})" if self.advice else self.message


class NoDaemon(ClientError):
    """Nobody answers on the socket."""

    code = "no_daemon"


class ConnectionLost(ClientError):
    """The connection broke while a request was under way: whether it was carried out is not known."""

    code = "connection_lost"


class TimedOut(ClientError):
    """No answer came in time. The request may still be carried out."""

    code = "timeout"


class OutOfTime(TimedOut):
    """The time that the caller gave for everything together is over."""


class VersionMismatch(ClientError):
    """Client and daemon speak different versions of the protocol."""

    code = "version_mismatch"


class RemoteError(ClientError):
    """The daemon refused a request; ``fields`` holds what its error carries beside code and advice."""


def from_response(error: dict[str, Any]) -> RemoteError:
    """Turn the ``error`` of a JSON-RPC response into an exception to raise."""
    data = error.get("data")
    data = dict(data) if isinstance(data, dict) else {}
    code = data.pop("code", None) or f"rpc{error.get('code', '')}"
    return RemoteError(str(error.get("message", "")), code=code, advice=data.pop("advice", ""), fields=data)
