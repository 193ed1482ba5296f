"""Where the daemon is, and what its first words mean: the decisions that both clients share. Nothing here does I/O
beyond looking whether a socket exists.
"""

from __future__ import annotations

__all__ = [
    "BLOB_PIECE_BYTES",
    "CALL_TIMEOUT_S",
    "COMMAND_SLICE_S",
    "HELLO_TIMEOUT_S",
    "NOT_YOURS",
    "REPEATABLE",
    "RETRY_FIRST_S",
    "RETRY_MOST_S",
    "RETURN_WITHIN_S",
    "SETTLED",
    "WAITING_AFTER_S",
    "check_hello",
    "find_socket",
    "given",
    "is_lost",
    "names",
    "no_daemon",
    "systemctl",
    "too_large",
]

import os

from bpsd import __version__, wire
from bpsd.client.failures import ClientError, ConnectionLost, NoDaemon, RemoteError, VersionMismatch, from_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

CALL_TIMEOUT_S = 60.0
"""Seconds that a request may take, unless the caller says otherwise."""

HELLO_TIMEOUT_S = 10.0
"""Seconds from the connection to the daemon's first word."""

RETURN_WITHIN_S = 60.0
"""Seconds that a client waits for a daemon to come back (an upgrade, a crash) in the midst of a command."""

RETRY_FIRST_S = 0.1
RETRY_MOST_S = 2.0
"""Pauses between attempts to connect again, in seconds: from the first, doubling, to the most."""

COMMAND_SLICE_S = 30.0
"""Seconds of the longest ``commands.wait`` (they begin short and double): a doubt that is older is told."""

WAITING_AFTER_S = 3.0
"""Seconds after which a person is told what a request or a command waits for."""

BLOB_PIECE_BYTES = 512 * 1024
"""Bytes of a document in one ``blob.put``: in base64 and with its frame well below `bpsd.wire.MAX_MESSAGE_BYTES`."""

REPEATABLE = frozenset(wire.METHODS) - {
    "blob.put",
    "cancel",
    "commands.resolve",
    "hold",
    "release",
    "restart",
    "submit",
}
"""Methods that may be sent again as they are when the connection broke before the answer."""

NOT_YOURS = "this daemon is another user's; --socket or BPSD_SOCKET names another socket"
"""Advice for whom a daemon does not let in."""

SETTLED = ("DONE", "FAILED", "EXPIRED", "SUPERSEDED")
"""States in which a command stays."""


def given(**params: Any) -> dict[str, Any]:
    """Drop the parameters that say nothing: `None`, `False` and empty lists."""
    return {name: value for name, value in params.items() if value is not None and value is not False and value != []}


def names(value: Sequence[str]) -> list[str]:
    """A list of names; one name alone is taken for itself, not for its letters."""
    return [value] if isinstance(value, str) else [*value]


def find_socket(wanted: str | None, environ: Mapping[str, str], uid: int) -> tuple[str, str]:
    """Choose the socket; the second value says why that one, for error messages."""
    if wanted:
        return wanted, "as told"
    if environ.get("BPSD_SOCKET"):
        return environ["BPSD_SOCKET"], "from BPSD_SOCKET"
    own = wire.default_socket(environ, uid)
    if not _exists(own) and _exists(os.path.dirname(wire.SYSTEM_SOCKET)):  # noqa: PTH120  # see _exists
        return wire.SYSTEM_SOCKET, f"the system's, as there is no {own}"
    return own, "the default"


def _exists(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116  # pathlib would double the imports of a client
    except OSError:
        return False
    return True


def systemctl(path: str) -> str:
    """The beginning of a command of systemd's for the daemon that listens on ``path``."""
    return "systemctl" if path == wire.SYSTEM_SOCKET else "systemctl --user"


def no_daemon(path: str, why: str, error: OSError) -> NoDaemon:
    """Say why nobody answers on ``path``, and how to change that."""
    if path == wire.SYSTEM_SOCKET:
        advice = "`systemctl status bpsd` tells why; `systemctl restart bpsd.socket bpsd.service` starts it"
    else:
        advice = "start it with `bpsd serve` or `systemctl --user start bpsd`"
    advice += "; --socket or BPSD_SOCKET names another socket"
    if isinstance(error, FileNotFoundError):
        reason = "no such socket"
    elif isinstance(error, ConnectionRefusedError):
        reason = "nobody listens there (the daemon has ended)"
    elif isinstance(error, PermissionError):
        reason = "permission denied"
        advice = NOT_YOURS
    elif isinstance(error, (TimeoutError, BlockingIOError)):
        reason = "it does not accept connections (overloaded or stopped)"
        advice = "see its log, and `bpsctl health` once it answers"
    elif error.errno is None:  # Python itself refuses it, before the kernel is asked
        reason = str(error)
        advice = "a socket's path has at most 107 bytes; --socket or BPSD_SOCKET names another socket"
    else:
        reason = error.strerror or str(error)
    return NoDaemon(
        f"no daemon answers on {path} ({why}): {reason}", advice=advice, fields={"socket": path, "chosen": why}
    )


def check_hello(message: object, path: str) -> dict[str, Any]:
    """Take the daemon's first message; return the parameters of its ``hello``.

    Raises
    ------
    VersionMismatch
        It speaks another protocol.
    RemoteError
        It said ``goodbye`` at once (too many clients, another user's).
    ClientError
        Whoever listens there is not bpsd.
    """
    said = message if isinstance(message, dict) else {}
    params = said.get("params")
    if isinstance(said.get("error"), dict):
        raise from_response(said["error"])
    if said.get("method") == "goodbye" and isinstance(params, dict):
        code = str(params.get("code", ""))
        raise RemoteError(
            str(params.get("message", "the daemon hung up")),
            code=code,
            advice=NOT_YOURS if code == "permission_denied" else "",
        )
    if said.get("method") != "hello" or not isinstance(params, dict) or params.get("name") != "bpsd":
        raise ClientError(
            f"what answers on {path} is not bpsd: its first message is no hello",
            code="protocol_error",
            advice="--socket or BPSD_SOCKET names another socket",
        )
    theirs = params.get("protocol")
    if theirs != wire.PROTOCOL_VERSION:
        older = isinstance(theirs, int) and theirs < wire.PROTOCOL_VERSION
        raise VersionMismatch(
            f"the daemon on {path} speaks protocol {theirs} (bpsd {params.get('version')}), "
            f"this client protocol {wire.PROTOCOL_VERSION} (bpsd {__version__})",
            advice=f"restart the daemon, it still runs the older version: `{systemctl(path)} restart bpsd`; runs go on"
            if older
            else f"use the client of the daemon's version: bpsd {params.get('version')}",
            fields={"daemon": params.get("version"), "client": __version__},
        )
    return params


def is_lost(error: ClientError) -> bool:
    """Whether the daemon may be back soon: the connection broke, nobody answers (yet), or it is about to end."""
    return isinstance(error, (ConnectionLost, NoDaemon)) or error.code == "stopping"


def too_large(method: str, size: int) -> ClientError:
    """What to raise for a request that no daemon would take."""
    return ClientError(
        f"{method}: the request has {size} bytes, a message holds at most {wire.MAX_MESSAGE_BYTES}",
        code="message_too_large",
        advice="name fewer things in one request; documents go in pieces",
    )
