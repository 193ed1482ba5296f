"""What client and daemon must agree on: framing, method names, error codes, state numbers.

Standard library only, and of that only what every client needs anyway (``json``): this module decides how long
``bpsctl`` takes to start. The typed view of the same things is `bpsd.messages`.

The protocol is newline-delimited JSON-RPC 2.0 (https://www.jsonrpc.org/specification) in UTF-8 on a Unix stream socket.
The daemon speaks first, with the notification ``hello``. Requests may be answered in any order; there are no batches.
"""

from __future__ import annotations

__all__ = [
    "COMMAND_STATES",
    "DOCUMENT_VERSION",
    "ERRORS",
    "EXIT_CODES",
    "JOB_FLAG_STATES",
    "MAX_MESSAGE_BYTES",
    "MAX_RUNS_NAMED",
    "MAX_SIGNAL",
    "METHODS",
    "NOTIFICATIONS",
    "PROTOCOL_VERSION",
    "RUN_ID_ALPHABET",
    "STATES",
    "SYSTEM_SOCKET",
    "TERMINAL_STATES",
    "TOKEN_ALPHABET",
    "TOKEN_LENGTH",
    "default_socket",
    "encode_request",
    "ending",
    "new_token",
    "normal_exit_code",
    "own_umask",
    "signal_of",
    "xdg",
]

import json
import os

TYPE_CHECKING = False  # the type checker's own name for it; typing itself would cost every client its import
if TYPE_CHECKING:
    from collections.abc import Mapping

PROTOCOL_VERSION = 1
"""Raised when a client of the version before could misunderstand an answer."""

DOCUMENT_VERSION = 1
"""Version of every document that `bpsctl --json` prints (key ``version``)."""

MAX_MESSAGE_BYTES = 1024 * 1024
"""The longest line that either side sends or accepts, newline included."""

MAX_RUNS_NAMED = 1_000
"""Runs that one request names at most: looking them up is one step of the daemon's loop (10,000 took 42 ms)."""

STATES = {
    "UNKNOWN": 10,
    "MISFIT": 11,
    "UNREADY": 12,
    "READY": 13,
    "PENDING": 14,
    "RUNNING": 15,
    "DELETED": 16,
    "HELD": 17,
    "SUCCEEDED": 0,
    "FAILED": 19,
    "PRUNED": 20,
}
"""`lsst.ctrl.bps.WmsStates`, in its order; the numbers are also the exit codes of ``bpsctl status``."""

TERMINAL_STATES = ("DELETED", "SUCCEEDED", "FAILED", "PRUNED")
"""States that a run or a job leaves only by a new attempt."""

JOB_FLAG_STATES = (("HELD", "H"), ("DELETED", "D"), ("FAILED", "F"))
"""What makes the flag of a running run in a report, first match first (as `bps report`)."""

COMMAND_STATES = ("ACCEPTED", "RUNNING", "DONE", "FAILED", "IN_DOUBT", "EXPIRED", "SUPERSEDED")

METHODS = (
    "ping",
    "version",
    "backends",
    "backend.ping",
    "list",
    "report",
    "status",
    "jobs",
    "holds",
    "logs",
    "events",
    "watch",
    "unwatch",
    "blob.put",
    "validate",
    "submit",
    "cancel",
    "restart",
    "hold",
    "release",
    "mute",
    "unmute",
    "commands",
    "commands.wait",
    "commands.resolve",
    "refresh",
    "health",
    "admin",
)

NOTIFICATIONS = ("hello", "event", "goodbye")

ERRORS = {
    # JSON-RPC's own
    "parse_error": -32700,
    "invalid_request": -32600,
    "unknown_method": -32601,
    "invalid_params": -32602,
    "internal_error": -32603,
    # ours
    "backend_unavailable": -32001,
    "backend_auth": -32002,
    "run_not_found": -32003,
    "run_ambiguous": -32004,
    "unknown_backend": -32005,
    "permission_denied": -32006,
    "unsupported": -32007,
    "workflow_invalid": -32008,
    "config_invalid": -32009,
    "conflict": -32010,
    "limit_exceeded": -32011,
    "message_too_large": -32012,
    "deadline_exceeded": -32013,
    "job_not_found": -32014,
    "blob_not_found": -32015,
    "command_not_found": -32016,
    "stopping": -32017,
    "storage": -32018,
    "protocol_error": -32019,
    "read_only": -32020,
    "cannot_start": -32021,
}
"""Name of an error (``error.data.code``, for scripts) to its JSON-RPC number (``error.code``)."""

EXIT_CODES = {
    "ok": 0,
    "failed": 1,
    "usage": 2,
    "timeout": 3,
    "no_daemon": 4,
    "interrupted": 130,
}
"""Exit codes of ``bpsctl``, but for ``status``, which exits with the number of the state."""

MAX_SIGNAL = 64
"""The highest number of a signal on Linux."""

TOKEN_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
TOKEN_LENGTH = 20
RUN_ID_ALPHABET = "bcdfghjkmnpqrstvwxyz23456789"
"""Run ids are ``r`` and 8 of these: never a number, no vowels, nothing that looks like something else."""


SYSTEM_SOCKET = "/run/bpsd/bpsd.sock"
"""Where a daemon that serves many users listens."""


def xdg(environ: Mapping[str, str], name: str) -> str:
    """One of the folders of the XDG Base Directory Specification, which says to ignore a relative path; or nothing."""
    value = environ.get(name, "")
    return value if value.startswith("/") else ""


def default_socket(environ: Mapping[str, str], uid: int) -> str:
    """Where that user's own daemon listens if nobody says otherwise.

    ``$XDG_RUNTIME_DIR/bpsd/bpsd.sock``; without that variable (cron, su, some batch nodes) the folder that it would
    name, ``/run/user/UID``, if it is there and the user's; else a folder that outlives the login,
    ``$XDG_STATE_HOME/bpsd/bpsd.sock`` (by default ``~/.local/state``).
    """
    given = xdg(environ, "XDG_RUNTIME_DIR")
    base = given or f"/run/user/{uid}"
    if not given:
        try:
            owner = os.stat(base).st_uid  # noqa: PTH116  # pathlib would double the imports of a client
        except OSError:
            owner = None
        if owner != uid:
            home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111  # as above
            known = (
                f"{home}/.local/state" if home.startswith("/") else base
            )  # a user without a passwd entry has no home
            base = xdg(environ, "XDG_STATE_HOME") or known
    return f"{base}/bpsd/bpsd.sock"


def new_token() -> str:
    """Make the token of a new run: 20 characters of [a-z0-9], about 103 bits of the system's randomness."""
    # os.urandom, not secrets: the import of secrets (hmac, base64, random) costs more than the rest of a client.
    out: list[str] = []
    while len(out) < TOKEN_LENGTH:
        out.extend(TOKEN_ALPHABET[b % 36] for b in os.urandom(32) if b < 252)  # 252 = 7 * 36: no bias
    return "".join(out[:TOKEN_LENGTH])


def normal_exit_code(code: int) -> int:
    """Return an exit code in bpsd's one convention: a signal is 128 plus its number, as shells have it.

    Python and DAGMan write a signal as a negative number; a shell or a container between bpsd and a program can only
    say 128 + N. Both mean the same, on every backend and in every job field.
    """
    return 128 - code if -MAX_SIGNAL <= code < 0 else code


def signal_of(code: int) -> str:
    """Return ``signal 11 (SIGSEGV)`` for an exit code that means a signal, in either convention; else an empty text."""
    number = normal_exit_code(code) - 128
    if not 0 < number <= MAX_SIGNAL:
        return ""
    import signal  # only those pay for its import who have a signal to name

    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return ""


def ending(code: int | None) -> str:
    """Return how a program ended: ``signal 11 (SIGSEGV)`` or ``exit code 3``. bpsd spells it here alone."""
    if code is None:
        return "no exit code"
    return signal_of(code) or f"exit code {normal_exit_code(code)}"


def encode_request(id: int | str, method: str, params: object) -> bytes:
    """One request as the bytes to send, newline included."""
    return (
        json.dumps(
            {"jsonrpc": "2.0", "id": id, "method": method, "params": params}, ensure_ascii=False, separators=(",", ":")
        ).encode("utf-8", "surrogateescape")
        + b"\n"
    )


def own_umask() -> str | None:
    """The umask of this process, as octal digits; `None` where the system does not tell it without changing it."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123  # pathlib is slow to import
            for line in status:
                if line.startswith("Umask:"):
                    return line.split()[1]
    except OSError:
        pass
    return None
