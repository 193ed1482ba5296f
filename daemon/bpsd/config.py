"""The configuration: every setting with its default and its meaning, read from YAML (or JSON) with all its mistakes.

Without a file a person gets one backend ``here`` that runs on this machine. ``config/bpsd.yaml`` lists every setting at
its default; the description of each is in its ``msgspec.Meta``. Names end in the unit: ``_s`` (seconds), ``_days``,
``_bytes``, ``_chars``; those without are counts.
"""

from __future__ import annotations

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_BACKEND",
    "SOCKET_MAX_BYTES",
    "SOCKET_VARIABLE",
    "SYSTEM_CONFIG",
    "SYSTEM_STATE_DIR",
    "AdapterConfig",
    "BackendCommon",
    "BackendConfig",
    "Commands",
    "Config",
    "ConfigFile",
    "Draft",
    "History",
    "Limits",
    "Logs",
    "Polling",
    "PollingOverrides",
    "Stop",
    "default_config",
    "draft_config",
    "find_config",
    "home_folder",
    "load_config",
]

import os
import pwd
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from bpsd import documents, wire
from bpsd.documents import Document
from bpsd.errors import CannotStart, ConfigInvalid, nearest
from bpsd.outlets import MetricsSettings, Notifications
from bpsd.roles import Rights, Who

CONFIG_VARIABLE = "BPSD_CONFIG"
SOCKET_VARIABLE = "BPSD_SOCKET"
SYSTEM_CONFIG = "/etc/bpsd/bpsd.yaml"
SYSTEM_STATE_DIR = "/var/lib/bpsd"

DEFAULT_BACKEND = ("here", "local")
"""Name and type of the backend that a person has without saying so."""

SOCKET_MAX_BYTES = 107
"""The longest path of a Unix socket (unix(7): 108 bytes with the NUL)."""

_RUNS_HERE = ("local",)
"""Types whose runs would run as the daemon's own user, whoever submitted them, unless their settings say otherwise."""

_RUNS_AS = {
    "user": "run_as: submitter is for a daemon in mode system; here all runs are yours",
    "system": "in mode system it needs run_as: submitter, or everybody's runs would run as the daemon's user",
}

_BACKEND_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")

AdapterConfig: TypeAlias = Callable[[str], type[msgspec.Struct]]
"""From the type of a backend to the type of its settings (`bpsd.interface.WmsService.Config`)."""


class Polling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When backends are asked."""

    min_interval_s: Annotated[float, Meta(ge=0.1, description="between two polls while runs change")] = 2.0
    idle_interval_s: Annotated[float, Meta(ge=0.1, description="between two polls while nothing happens")] = 30.0
    max_interval_s: Annotated[
        float, Meta(ge=0.1, description="the longest that a slow backend is left alone for its slowness")
    ] = 300.0
    cost_factor: Annotated[
        float, Meta(ge=0, le=10_000, description="a poll that took t seconds is not repeated within this times t")
    ] = 20.0
    deadline_s: Annotated[float, Meta(ge=0.1, description="the longest that one poll may take")] = 60.0
    breaker_failures: Annotated[
        int, Meta(ge=1, description="after so many failed polls in a row the breaker is open: single probes only")
    ] = 5
    backoff_initial_s: Annotated[float, Meta(ge=0.1, description="pause after the first failed poll; it doubles")] = 2.0
    backoff_max_s: Annotated[float, Meta(ge=0.1, description="the longest pause after failed polls")] = 300.0
    jitter: Annotated[
        float, Meta(ge=0, lt=1, description="how far an interval may be off, as a fraction of itself, either way")
    ] = 0.1
    stale_after_s: Annotated[float, Meta(ge=1, description="what was not seen for so long is shown as stale")] = 120.0


class Commands(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of commands (submit, cancel, restart, ...)."""

    expires_s: Annotated[
        float, Meta(ge=1, description="a command that could not begin for so long is given up, untried")
    ] = 3600.0
    deadline_s: Annotated[float, Meta(ge=1, description="the longest that a backend may take over one command")] = 300.0
    at_once_per_backend: Annotated[int, Meta(ge=1, le=1000, description="how many go to one backend at once")] = 4
    queue_per_user: Annotated[int, Meta(ge=1, description="how many of one user may be unfinished")] = 1000
    submissions_per_user: Annotated[
        int, Meta(ge=1, description="maximum number of unfinished submissions of one user (default 500)")
    ] = 500
    runs_per_user: Annotated[
        int,
        Meta(ge=1, description="maximum number of active runs that one user has submitted (default 2000)"),
    ] = 2000
    doubt_retry_initial_s: Annotated[
        float, Meta(ge=0.1, description="pause before a backend is first asked what became of a doubtful command")
    ] = 5.0
    doubt_retry_max_s: Annotated[float, Meta(ge=0.1, description="the longest pause between such questions")] = 300.0
    cancel_verify_s: Annotated[
        float, Meta(ge=0.1, description="how long a cancelled run may take to go before the cancel is repeated")
    ] = 30.0


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon takes from outside at most."""

    clients: Annotated[int, Meta(ge=1, description="maximum number of connections (default 1024)")] = 1024
    clients_per_user: Annotated[
        int, Meta(ge=1, description="maximum number of connections of one user (default 256)")
    ] = 256
    clients_reserved: Annotated[
        int,
        Meta(
            ge=0,
            description="further connections, beyond clients and clients_per_user, for root, the daemon's owner and "
            "rights.admin (default 32)",
        ),
    ] = 32
    requests_in_flight: Annotated[int, Meta(ge=1, description="unanswered requests on one connection")] = 64
    greet_timeout_s: Annotated[
        float, Meta(ge=0.1, description="a new client that sends nothing for so long is let go")
    ] = 60.0
    idle_timeout_s: Annotated[
        float,
        Meta(
            ge=0,
            description="close a connection that sends no request, waits for no answer and watches nothing for this "
            "time (default 900; 0: never)",
        ),
    ] = 900.0
    read_timeout_s: Annotated[float, Meta(ge=0.1, description="the longest that half a message may stay half")] = 30.0
    write_timeout_s: Annotated[
        float, Meta(ge=0.1, description="a client that reads nothing of what waits for it for so long is let go")
    ] = 30.0
    write_buffer_bytes: Annotated[
        int, Meta(ge=wire.MAX_MESSAGE_BYTES, description="what may wait for one client before it gets no more")
    ] = 8 * 1024 * 1024
    uploads_per_user: Annotated[
        int, Meta(ge=1, description="maximum number of unfinished uploads of one user (default 16)")
    ] = 16
    watchers_per_connection: Annotated[int, Meta(ge=1, description="watches on one connection")] = 16
    spool_bytes_per_user: Annotated[
        int, Meta(ge=1024, description="documents of one user that wait to be submitted, together")
    ] = 2 * 1024**3
    workflow_bytes: Annotated[int, Meta(ge=1024, description="one workflow document")] = 512 * 1024**2
    text_chars: Annotated[int, Meta(ge=256, description="any text field from outside; what is longer is cut")] = 4096
    page_rows: Annotated[int, Meta(ge=1, le=10_000, description="rows in one answer")] = 10_000


class History(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept, and for how long."""

    hot_days: Annotated[float, Meta(ge=0, description="runs that ended are answered from memory for so long")] = 7.0
    keep_days: Annotated[float, Meta(ge=1, description="and then from the disk until so long after their end")] = 400.0
    timeline_events_per_run: Annotated[int, Meta(ge=100, description="entries in the timeline of one run")] = 10_000
    store_bytes: Annotated[
        int, Meta(ge=1024**2, description="the history on the disk; beyond it goes what ended first, whatever its age")
    ] = 4 * 1024**3
    backups: Annotated[int, Meta(ge=1, le=1000, description="daily copies of the journal")] = 7


class Stop(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The end of the daemon (runs go on without it)."""

    timeout_s: Annotated[
        float, Meta(ge=1, description="how long a stop may take before what is left is broken off")
    ] = 20.0


class Logs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon tells of itself, on its standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="the least important that is written")
    ] = "info"
    format: Annotated[
        Literal["auto", "console", "journald", "json"],
        Meta(description="auto: console on a terminal, journald where systemd's journal reads it, else JSON lines"),
    ] = "auto"


def _overrides(section: type[msgspec.Struct], name: str) -> type[msgspec.Struct]:
    """The same settings with their limits, each of which may be left out."""
    fields: list[Any] = [
        (field.name, field.type | None, msgspec.field(default=None)) for field in msgspec.structs.fields(section)
    ]
    return msgspec.defstruct(name, fields, module=__name__, frozen=True, kw_only=True, forbid_unknown_fields=True)


PollingOverrides = _overrides(Polling, "PollingOverrides")
"""`Polling` for one backend: what is left out is as for all."""


class BackendCommon(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every backend has, whatever its type; the settings of its type stand beside these."""

    type: Annotated[str, Meta(description="the kind of WMS: the name of an adapter")]
    poll: Annotated[
        PollingOverrides | None,  # type: ignore[valid-type]  # made by _overrides
        Meta(description="what differs from the section polling"),
    ] = None
    commands_at_once: (
        Annotated[int, Meta(ge=1, le=1000, description="commands that go to it at once (default: as for all)")] | None
    ) = None
    commands_deadline_s: (
        Annotated[float, Meta(ge=1, description="the longest that it may take over one (default: as for all)")] | None
    ) = None
    submitters: Annotated[
        Who, Meta(description="who may submit to it (mode system; nobody by default; the user '*': everybody)")
    ] = Who()
    accounts: Annotated[
        dict[str, str], Meta(description="accounts of the WMS, each with the local user whose its runs are")
    ] = {}


class ConfigFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration as it stands in a file."""

    mode: Annotated[
        Literal["user", "system"],
        Meta(description="user: one person's daemon, for that person and root alone; system: one for many"),
    ] = "user"
    socket: (
        Annotated[str, Meta(description="where it listens (default: the place where bpsctl looks, which depends)")]
        | None
    ) = None
    state_dir: (
        Annotated[str, Meta(description="what it must remember (default: $XDG_STATE_HOME/bpsd, or /var/lib/bpsd)")]
        | None
    ) = None
    state_on_network: Annotated[
        bool, Meta(description="let the state lie on a network file system: slower, and only one host may use it")
    ] = False
    backends: (
        Annotated[dict[str, Any], Meta(description="each by its name (default in mode user: here, of type local)")]
        | None
    ) = None
    polling: Polling = Polling()
    commands: Commands = Commands()
    limits: Limits = Limits()
    history: History = History()
    stop: Stop = Stop()
    logs: Logs = Logs()
    rights: Rights = Rights()
    metrics: MetricsSettings = MetricsSettings()
    notifications: Notifications = Notifications()


class BackendConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One backend, with what it shares with the others filled in. Its ``repr`` does not show the adapter's settings."""

    name: str
    type: str
    settings: msgspec.Struct
    polling: Polling
    commands_at_once: int
    commands_deadline_s: float
    submitters: Who = Who()
    accounts: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<BackendConfig {self.name} ({self.type})>"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration in force: paths are absolute, backends complete.

    Its ``repr`` shows no adapter's settings, for those may hold secrets.
    """

    mode: Literal["user", "system"]
    socket: str
    state_dir: str
    state_on_network: bool
    backends: dict[str, BackendConfig]
    polling: Polling
    commands: Commands
    limits: Limits
    history: History
    stop: Stop
    logs: Logs
    rights: Rights
    metrics: MetricsSettings
    notifications: Notifications

    def __repr__(self) -> str:
        backends = ", ".join(f"{backend.name} ({backend.type})" for backend in self.backends.values())
        return f"<Config mode={self.mode} socket={self.socket} state_dir={self.state_dir} backends: {backends}>"


class Draft(NamedTuple):
    """A configuration with the document it stands in, which holds its mistakes and knows the place of every key.

    Where the document has mistakes, ``config`` has the default instead, and lacks the backends that have any.
    """

    config: Config
    document: Document[ConfigFile]


def find_config(environ: Mapping[str, str], uid: int) -> Path | None:
    """The configuration file that is there if none was named: ``$BPSD_CONFIG``, the user's own, root's system-wide one.

    What ``$BPSD_CONFIG`` names is returned even if it is not there, since somebody wants it; no file at all means zero
    configuration.
    """
    if named := environ.get(CONFIG_VARIABLE):
        return Path(named)
    home = wire.xdg(environ, "XDG_CONFIG_HOME") or f"{home_folder(environ)}/.config"
    candidates = [Path(home) / "bpsd/bpsd.yaml", *([Path(SYSTEM_CONFIG)] if uid == 0 else [])]
    return next((path for path in candidates if path.exists()), None)


def default_config(
    environ: Mapping[str, str], uid: int, adapter_config: AdapterConfig, known_adapters: Sequence[str]
) -> Config:
    """Zero configuration: mode user, and one backend ``here`` of type ``local``."""
    draft = draft_config(None, adapter_config, known_adapters, environ=environ, uid=uid)
    draft.document.check()
    return draft.config


def load_config(
    path: str | os.PathLike[str],
    adapter_config: AdapterConfig,
    known_adapters: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    uid: int | None = None,
) -> Config:
    """Read a configuration file; the parameters are those of `draft_config`.

    Raises
    ------
    ConfigInvalid
        With every mistake.
    CannotStart
        If the file cannot be read.
    """
    draft = draft_config(path, adapter_config, known_adapters, environ=environ, uid=uid)
    draft.document.check()
    return draft.config


def draft_config(
    path: str | os.PathLike[str] | None,
    adapter_config: AdapterConfig,
    known_adapters: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    uid: int | None = None,
) -> Draft:
    """Read a configuration file with its mistakes, to which more can be added.

    ``path`` is `None` for zero configuration. ``adapter_config`` gives the type of the settings of a type of backend;
    ``known_adapters`` are these types. ``environ`` and ``uid`` say whose daemon it is (default: this process's).

    Raises
    ------
    ConfigInvalid
        If the text cannot be read to its end.
    CannotStart
        If the file cannot be read.
    """
    try:
        data = b"{}" if path is None else Path(path).read_bytes()
    except OSError as exc:
        raise CannotStart(
            f"cannot read the configuration {path}: {exc.strerror}",
            advice=f"name another with --config or ${CONFIG_VARIABLE}; without any, bpsd runs a local backend",
        ) from exc
    environ, uid = os.environ if environ is None else environ, os.getuid() if uid is None else uid
    return _drafted(data, "(no file)" if path is None else str(path), adapter_config, known_adapters, environ, uid)


def _drafted(
    data: bytes,
    source: str,
    adapter_config: AdapterConfig,
    known_adapters: Sequence[str],
    environ: Mapping[str, str],
    uid: int,
) -> Draft:
    document = documents.read(data, source, ConfigFile, error=ConfigInvalid)
    file = document.value
    _check_polling(document, ("polling",), file.polling)
    if file.commands.doubt_retry_max_s < file.commands.doubt_retry_initial_s:
        document.add(("commands", "doubt_retry_max_s"), "is less than doubt_retry_initial_s")
    if file.notifications.retry_max_s < file.notifications.retry_initial_s:
        document.add(("notifications", "retry_max_s"), "is less than retry_initial_s")
    for name, route in file.notifications.routes.items():
        for unknown in sorted({*route.backends} - {*(file.backends or {DEFAULT_BACKEND[0]: None})}):
            document.add(("notifications", "routes", name, "backends"), f"there is no backend {unknown!r}")
    if file.history.keep_days < file.history.hot_days:
        document.add(("history", "keep_days"), "is less than hot_days")
    if file.rights.names_anybody and file.mode == "user" and not document.is_bad(("mode",)):
        document.add(("rights",), "only a daemon in mode system serves others", at_key=True)
    backends = {
        backend.name: backend
        for name, tree in _named_backends(document).items()
        if (backend := _backend(document, name, tree, adapter_config, known_adapters))
    }
    config = Config(
        mode=file.mode,
        socket=_socket(document, environ, uid),
        state_dir=_state_dir(document, environ),
        state_on_network=file.state_on_network,
        backends=backends,
        polling=file.polling,
        commands=file.commands,
        limits=file.limits,
        history=file.history,
        stop=file.stop,
        logs=file.logs,
        rights=file.rights,
        metrics=file.metrics,
        notifications=file.notifications,
    )
    return Draft(config, document)


def _check_polling(document: Document[ConfigFile], where: documents.Path, polling: Polling) -> None:
    for low, high in (
        ("min_interval_s", "idle_interval_s"),
        ("idle_interval_s", "max_interval_s"),
        ("backoff_initial_s", "backoff_max_s"),
    ):
        if getattr(polling, high) < getattr(polling, low):
            document.add((*where, high), f"is {getattr(polling, high):g}, less than {low} ({getattr(polling, low):g})")


def _named_backends(document: Document[ConfigFile]) -> Mapping[str, Any]:
    file = document.value
    if file.backends is None:
        if file.mode == "user":
            return {DEFAULT_BACKEND[0]: {"type": DEFAULT_BACKEND[1]}}
        if not document.is_bad(("backends",)):
            document.add(("backends",), "a daemon in mode system needs at least one backend")
        return {}
    if not file.backends:
        document.add(("backends",), "there is no backend; leave the section out for the one that is there by default")
    return file.backends


def _backend(
    document: Document[ConfigFile],
    name: str,
    tree: Any,
    adapter_config: AdapterConfig,
    known_adapters: Sequence[str],
) -> BackendConfig | None:
    """One backend; `None` if there is a mistake in it."""
    where: documents.Path = ("backends", name)
    file = document.value
    if not _BACKEND_NAME.fullmatch(name):
        document.add(where, "a name of a backend is a-z, then up to 31 of a-z, 0-9, _ and -", at_key=True)
    kind = tree.get("type") if isinstance(tree, dict) else None
    if not isinstance(kind, str):
        document.part(where, tree, _AnyBackend)
        return None
    if kind not in known_adapters:
        document.add((*where, "type"), _unknown_type(kind, known_adapters))
        document.part(where, tree, _AnyBackend)
        return None
    if kind in _RUNS_HERE and (file.mode == "system") != (tree.get("run_as") == "submitter"):
        document.add((*where, "type"), _RUNS_AS[file.mode])
    try:
        settings_type = adapter_config(kind)
    except CannotStart as exc:
        document.add((*where, "type"), exc.message)
        return None
    before = document.total
    whole: Any = document.part(where, tree, _joined(settings_type))
    polling = _overridden(file.polling, whole.poll)
    if whole.poll is not None:
        _check_polling(document, (*where, "poll"), polling)
    if document.total > before:
        return None
    try:
        settings = settings_type(**{field: getattr(whole, field) for field in settings_type.__struct_fields__})
    except ValueError as exc:  # a type that checks itself as a whole
        document.add(where, str(exc))
        return None
    return BackendConfig(
        name=name,
        type=kind,
        settings=settings,
        polling=polling,
        commands_at_once=whole.commands_at_once or file.commands.at_once_per_backend,
        commands_deadline_s=whole.commands_deadline_s or file.commands.deadline_s,
        submitters=whole.submitters,
        accounts=whole.accounts,
    )


class _AnyBackend(BackendCommon, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A backend of no known type: only what all have can be checked."""


def _joined(settings_type: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The settings of a backend as they stand in the file: those of all, and those of its type."""
    common, own = msgspec.structs.fields(BackendCommon), msgspec.structs.fields(settings_type)
    if clash := {field.name for field in common} & {field.name for field in own}:
        raise TypeError(f"{settings_type.__qualname__} takes names that all backends have: {sorted(clash)}")
    return msgspec.defstruct(
        "Backend", [_definition(field) for field in (*common, *own)], kw_only=True, forbid_unknown_fields=True
    )


def _definition(field: msgspec.structs.FieldInfo) -> Any:
    if field.required:
        return (field.name, field.type)
    if field.default_factory is not msgspec.NODEFAULT:
        return (field.name, field.type, msgspec.field(default_factory=field.default_factory))
    return (field.name, field.type, msgspec.field(default=field.default))


def _overridden(polling: Polling, overrides: Any) -> Polling:
    if overrides is None:
        return polling
    given = {name: value for name in Polling.__struct_fields__ if (value := getattr(overrides, name)) is not None}
    return msgspec.structs.replace(polling, **given)


def _unknown_type(kind: str, known: Sequence[str]) -> str:
    close = nearest(kind, known, 1)
    return f"there is no adapter {kind!r}; " + (
        f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
    )


def _socket(document: Document[ConfigFile], environ: Mapping[str, str], uid: int) -> str:
    """The environment wins, for the clients look there first."""
    if named := environ.get(SOCKET_VARIABLE):
        return named
    file = document.value
    if file.socket is None:
        return wire.SYSTEM_SOCKET if file.mode == "system" else wire.default_socket(environ, uid)
    path = _path(document, ("socket",), file.socket, environ)
    if len(os.fsencode(path)) > SOCKET_MAX_BYTES:
        document.add(("socket",), f"is {len(os.fsencode(path))} bytes long; a Unix socket takes {SOCKET_MAX_BYTES}")
    return path


def _state_dir(document: Document[ConfigFile], environ: Mapping[str, str]) -> str:
    file = document.value
    if file.state_dir is not None:
        return _path(document, ("state_dir",), file.state_dir, environ)
    if file.mode == "system":
        return SYSTEM_STATE_DIR
    return f"{wire.xdg(environ, 'XDG_STATE_HOME') or f'{home_folder(environ)}/.local/state'}/bpsd"


def _path(document: Document[ConfigFile], where: documents.Path, path: str, environ: Mapping[str, str]) -> str:
    if path == "~" or path.startswith("~/"):
        path = home_folder(environ) + path[1:]
    if not path.startswith("/") and not document.is_bad(where):
        document.add(where, f"{path!r} is not absolute (it may begin with ~/)")
    return path


def home_folder(environ: Mapping[str, str]) -> str:
    """Return the home directory; where ``HOME`` is not set it asks the name service, which may take long.

    Raises
    ------
    CannotStart
        If this user has no entry in the user database.
    """
    try:
        return environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError as exc:  # in a container, or in an LDAP outage
        raise CannotStart(
            f"cannot find the home directory: user {os.getuid()} has no entry in the user database",
            advice="set HOME, or name the socket and the state_dir in the configuration",
        ) from exc
