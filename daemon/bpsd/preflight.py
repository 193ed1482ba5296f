"""Find what is wrong with a configuration on this host, before anything runs: files, folders, programs, names.

`bpsd check-config` prints all of it. A running daemon asks the same questions: `backend_problems` each time that it
opens a backend, and `OutletCheck` at the start and at each reload. What stops one backend, or one notification,
stops nothing else. Everything here blocks: call it in a thread, or with `all_findings`, which has a time limit.
"""

from __future__ import annotations

__all__ = ["CHECK_WAIT_S", "Finding", "OutletCheck", "all_findings", "backend_problems"]

import importlib.util
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread

from bpsd import documents, wire
from bpsd.config import SYSTEM_STATE_DIR, BackendConfig, Config
from bpsd.couriers import DeliveryFailed, read_secret
from bpsd.errors import BpsdError, CannotStart, Problem
from bpsd.filesystems import network_mount
from bpsd.logs.events import LogEvent
from bpsd.outlets import Route
from bpsd.pathchecks import cannot_run, cannot_write_in, nearest_folder
from bpsd.permissions import policy_of, unknown_places
from bpsd.registry import adapter
from bpsd.server.listener import check_folder

CHECK_WAIT_S = 10.0
"""Time for one part of the checks; a file system or a name service that does not answer is reported."""

_MADE_BY_UNITS = (SYSTEM_STATE_DIR, str(Path(wire.SYSTEM_SOCKET).parent))
"""Folders that systemd makes when it starts a system's daemon."""


class Finding(NamedTuple):
    """Something that is wrong on this host: the key of the configuration, and what is wrong.

    ``stops`` says what cannot work: the ``daemon``, a ``backend``, a ``part`` (a notification, the metrics), or nothing
    (``note``).
    """

    where: documents.Path
    message: str
    stops: str


def all_findings(config: Config) -> list[Finding]:
    """Ask everything at once, each part in a thread of its own; a part that does not answer in time is a finding."""
    parts: dict[documents.Path, tuple[Callable[[], Sequence[Finding]], str]] = {
        ("state_dir",): (lambda: _state(config), "daemon"),
        ("socket",): (lambda: _socket(config), "daemon"),
        ("metrics",): (lambda: _metrics(config), "part"),
        ("notifications",): (lambda: _notifications(config), "part"),
        ("rights",): (lambda: _people(config), "note"),
    }
    for backend in config.backends.values():
        parts["backends", backend.name] = (_asker(backend), "backend")
    found: dict[documents.Path, Sequence[Finding]] = {}

    def ask(where: documents.Path, question: Callable[[], Sequence[Finding]], stops: str) -> None:
        try:
            found[where] = question()
        except OSError as exc:
            found[where] = [Finding(where, f"cannot be checked: {exc}", stops)]

    threads = [threading.Thread(target=ask, args=(at, *part), daemon=True) for at, part in parts.items()]
    for thread in threads:
        thread.start()
    until = time.monotonic() + CHECK_WAIT_S
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    answered = dict(found)
    late = f"the check did not end within {CHECK_WAIT_S:g} s: a file system or the name service does not answer"
    return [
        finding for where, (_, stops) in parts.items() for finding in answered.get(where, [Finding(where, late, stops)])
    ]


def backend_problems(backend: BackendConfig) -> list[Problem]:
    """Return what would keep a backend from working; ``where`` begins below the backend's own section."""
    try:
        return list(adapter(backend.type).check_settings(backend.settings))
    except BpsdError as exc:
        return [Problem(("type",), exc.message)]
    except Exception as exc:  # noqa: BLE001  # whatever an adapter of a third party does
        return [Problem((), f"the adapter's own check failed: {exc!r}")]


class OutletCheck:
    """The check of metrics and notifications in a running daemon: what is wrong is shown, and the rest goes on.

    Its thread has a place of its own: a file system that does not answer must not take the places of others.

    Attributes
    ----------
    wrong : `list` [`str`]
        The keys, with what is wrong.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._threads = anyio.CapacityLimiter(1)
        self.wrong: list[str] = []

    async def check(self, config: Config) -> None:
        """Look again; what is new in it is logged."""
        before, wrong = self.wrong, [f"metrics, notifications: their files did not answer within {CHECK_WAIT_S:g} s"]
        with anyio.move_on_after(CHECK_WAIT_S):
            wrong = await anyio.to_thread.run_sync(_outlets, config, abandon_on_cancel=True, limiter=self._threads)
        self.wrong = wrong
        for text in wrong:
            if text not in before:
                self._log.warning(LogEvent.CONFIG_WRONG, error=text)


def _outlets(config: Config) -> list[str]:
    return [str(Problem(found.where, found.message)) for found in (*_metrics(config), *_notifications(config))]


def _asker(backend: BackendConfig) -> Callable[[], list[Finding]]:
    where: documents.Path = ("backends", backend.name)
    return lambda: [Finding((*where, *p.where), p.message, "backend") for p in backend_problems(backend)]


def _state(config: Config) -> list[Finding]:
    folder = config.state_dir
    if folder in _MADE_BY_UNITS and not Path(folder).exists():
        return []
    wrong = cannot_write_in(folder)
    if wrong:
        return [Finding(("state_dir",), wrong, "daemon")]
    status = os.stat(nearest_folder(folder))  # noqa: PTH116  # a text
    if Path(folder).exists() and os.getuid() not in (status.st_uid, 0):
        return [Finding(("state_dir",), f"the folder {folder} belongs to user {status.st_uid}", "daemon")]
    mount = network_mount(Path(nearest_folder(folder)))
    if mount is not None and not config.state_on_network:
        text = (
            f"{folder} is on the network file system {mount[0]} ({mount[1]}); name a folder on a local disk, or set "
            "state_on_network"
        )
        return [Finding(("state_dir",), text, "daemon")]
    return []


def _socket(config: Config) -> list[Finding]:
    folder = Path(config.socket).parent
    if str(folder) in _MADE_BY_UNITS:  # systemd opens that socket, as root
        return []
    try:
        wrong = cannot_write_in(str(folder))
        if not wrong and folder.exists():
            check_folder(folder)
    except CannotStart as exc:
        wrong = exc.message
    return [Finding(("socket",), wrong, "daemon")] if wrong else []


def _metrics(config: Config) -> list[Finding]:
    path = config.metrics.textfile
    if path is None:
        return []
    wrong = cannot_write_in(str(Path(path).parent), may_be_made=False)
    if not wrong and Path(path).is_dir():
        wrong = f"cannot write {path}: it is a directory"
    return [Finding(("metrics", "textfile"), wrong, "part")] if wrong else []


def _notifications(config: Config) -> list[Finding]:
    return [
        Finding(("notifications", "routes", name, *where), message, "part")
        for name, route in config.notifications.routes.items()
        for where, message in _of_route(route)
    ]


def _of_route(route: Route) -> list[tuple[documents.Path, str]]:
    found: list[tuple[documents.Path, str]] = []
    if route.command is not None and (wrong := cannot_run(route.command[0])):
        found.append((("command",), wrong))
    if route.webhook is not None and importlib.util.find_spec("httpx") is None:
        found.append((("webhook",), "webhooks need the Python package httpx, which is not installed"))
    files: list[tuple[documents.Path, str | None]] = []
    if route.webhook is not None:
        files += [(("webhook", "url_file"), route.webhook.url_file)]
        files += [(("webhook", "bearer_file"), route.webhook.bearer_file)]
    if route.mail is not None:
        files += [(("mail", "password_file"), route.mail.password_file)]
    for where, path in files:
        if path is not None:
            try:
                read_secret(str(where[-1]), path)
            except DeliveryFailed as exc:
                found.append((where, exc.message))
    return found


def _people(config: Config) -> list[Finding]:
    unknown = policy_of(config, os.getuid())[1]
    return [
        Finding(where, f"{name}: no such {name.split()[0]} on this host now", "note")
        for where, name in unknown_places(config, unknown)
    ]
