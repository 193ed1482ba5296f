"""``health``: one word for monitoring, and why."""

from __future__ import annotations

__all__ = ["Health"]

from collections.abc import Mapping
from pathlib import Path

import anyio

from bpsd.api.deps import Deps
from bpsd.errors import BackendUnavailable
from bpsd.filesystems import Space, spaces
from bpsd.messages import HealthCheck, HealthResult, Nothing
from bpsd.server import Call, ClientsUse

MIN_FREE_BYTES = 256 * 1024 * 1024
"""Less room than that in the state folder is a warning; a tenth of it is critical."""

DISKS_S = 3.0
"""How long `health` waits for file systems to tell their free space: one on a dead server never does."""

MAX_LOOP_LAG_S = 1.0
"""The loop was held up for longer than this lately: a warning."""

MOST_FINDINGS = 5
"""Mistakes of the configuration named in one check."""

MOST_USERS = 5
"""Users named in one check."""

OK, WARNING, CRITICAL = 0, 1, 2
_WORDS = ("OK", "WARNING", "CRITICAL")


class Health:
    """Looks at backends, commands in doubt, storage, disk and the loop."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._threads = anyio.CapacityLimiter(2)  # those that a dead server keeps are not joined by more

    async def health(self, call: Call, params: Nothing) -> HealthResult:
        """The worst of all checks."""
        figures = self._deps.figures()
        disks, free = await self._disks()
        figures["disk_free_bytes"] = float(free)
        checks = [
            *self._backends(),
            self._doubts(),
            self._journal(),
            self._store(),
            self._config(),
            self._people(),
            _clients(self._deps.clients()),
            _socket(self._deps.socket_fault()),
            *disks,
            self._waiting_for_disk(),
            _loop(figures),
        ]
        worst = max(check.status for check in checks)
        bad = [check.message for check in checks if check.status]
        word = _WORDS[worst]
        count = len(self._deps.backends)
        fine = f"{count} {'backend' if count == 1 else 'backends'}, nothing amiss"
        message = f"{word}: " + ("; ".join(bad) or fine)
        return HealthResult(status=worst, message=message, checks=checks, figures=figures)

    def _backends(self) -> list[HealthCheck]:
        checks = []
        for backend in self._deps.backends.values():
            row = backend.row()
            status = OK
            text = f"backend {row.name} is {row.state}"
            if row.state in ("down", "auth", "stopped"):
                status = CRITICAL if row.stale else WARNING
                text += f" ({row.error})"
            elif row.state == "up" and row.stale:
                status, text = WARNING, text + ", but has not been seen well for too long"
            elif row.state == "up" and backend.error:
                status, text = WARNING, f"{text}, but for {backend.error}"
            checks.append(HealthCheck(name=f"backend.{row.name}", status=status, message=text))
        return checks

    def _doubts(self) -> HealthCheck:
        doubts = self._deps.engine.in_doubt()
        if not doubts:
            return HealthCheck(name="commands", status=OK, message="no command is in doubt")
        names = ", ".join(command.id for command in doubts[:5])
        return HealthCheck(
            name="commands",
            status=WARNING,
            message=f"{len(doubts)} commands are in doubt ({names}): `bpsctl commands --state IN_DOUBT`",
        )

    def _journal(self) -> HealthCheck:
        status = self._deps.journal.status
        if status.older:
            return HealthCheck(
                name="journal",
                status=CRITICAL,
                message=f"the journal is older than the history and takes no commands ({status.reason}): put the newer "
                "one back, or look at the WMS, then `bpsctl admin accept`",
            )
        if status.read_only:
            return HealthCheck(
                name="journal",
                status=CRITICAL,
                message="the journal was restored from a copy and takes no commands: see the log, then "
                "`bpsctl admin accept`",
            )
        if failure := self._deps.engine.journal_failure:
            return HealthCheck(
                name="journal", status=CRITICAL, message=f"the journal cannot be written, commands wait: {failure}"
            )
        return HealthCheck(name="journal", status=OK, message="the journal is writable")

    async def _disks(self) -> tuple[list[HealthCheck], int]:
        """Look at each file system that the daemon writes to; also the free bytes of that of the state folder."""
        folders = self._folders()
        found: list[Space] = []
        with anyio.move_on_after(DISKS_S):
            found = await anyio.to_thread.run_sync(spaces, folders, abandon_on_cancel=True, limiter=self._threads)
        if not found:
            message = f"a file system does not answer within {DISKS_S:g} s (one of those of {', '.join(folders)})"
            return [HealthCheck(name="disk", status=WARNING, message=message)], 0
        return [_disk(space) for space in found], found[0].free_bytes

    def _folders(self) -> Mapping[str, Path]:
        """Return the folders that the daemon writes to, by what a person calls them; the state folder is the first."""
        folders = {"the state folder": Path(self._deps.config.state_dir)}
        for backend in self._deps.backends.values():
            try:
                service = backend.service
            except BackendUnavailable:  # not open now
                continue
            folders |= {f"the runs of backend {backend.name}": folder for folder in service.folders()}
        if (textfile := self._deps.config.metrics.textfile) is not None:
            folders["metrics.textfile"] = Path(textfile).parent
        return folders

    def _waiting_for_disk(self) -> HealthCheck:
        waiting = self._deps.engine.waiting_for_disk()
        if not waiting:
            return HealthCheck(name="disk.commands", status=OK, message="no command waits for a disk")
        names = ", ".join(command.id for command, _ in waiting[:5])
        return HealthCheck(
            name="disk.commands",
            status=WARNING,
            message=f"{len(waiting)} commands wait for a disk ({names}): {waiting[0][1]}",
        )

    def _store(self) -> HealthCheck:
        failure = self._deps.store.failure
        if failure is not None:
            return HealthCheck(
                name="history",
                status=WARNING,
                message=f"the history cannot be written and waits in memory: {failure}",
            )
        return HealthCheck(name="history", status=OK, message="the history is written")

    def _config(self) -> HealthCheck:
        if self._deps.refused:
            return HealthCheck(
                name="config",
                status=WARNING,
                message=f"the last reload was refused, and the older configuration goes on: {self._deps.refused}",
            )
        if self._deps.needs_restart:
            return HealthCheck(
                name="config",
                status=WARNING,
                message=f"needs a restart: {', '.join(self._deps.needs_restart)} (a reload cannot apply this; "
                "a restart disturbs no run)",
            )
        wrong = self._deps.config_wrong()
        if wrong:
            more = f"; and {len(wrong) - MOST_FINDINGS} more" if len(wrong) > MOST_FINDINGS else ""
            return HealthCheck(name="config", status=WARNING, message="; ".join(wrong[:MOST_FINDINGS]) + more)
        return HealthCheck(name="config", status=OK, message="the configuration in force is that of the last reload")

    def _people(self) -> HealthCheck:
        unknown = self._deps.names_unknown
        if unknown:
            return HealthCheck(
                name="people",
                status=WARNING,
                message=f"the configuration gives rights to whom nobody knows here: {', '.join(unknown[:5])}",
            )
        return HealthCheck(name="people", status=OK, message="everybody whom the configuration names is known")


def _clients(use: ClientsUse) -> HealthCheck:
    text = f"{use.clients} of {use.limit} connections are in use (limits.clients)"
    most = ", ".join(f"{user} {count}" for user, count in [*use.by_user.items()][:MOST_USERS])
    if use.clients >= use.limit:
        return HealthCheck(
            name="clients", status=CRITICAL, message=f"{text}, and new clients are turned away; most have: {most}"
        )
    full = [user for user, count in use.by_user.items() if count >= use.limit_per_user]
    if full:
        names = ", ".join(full[:MOST_USERS])
        return HealthCheck(
            name="clients",
            status=WARNING,
            message=f"{names}: {use.limit_per_user} connections are in use (limits.clients_per_user), and their new "
            "clients are turned away",
        )
    return HealthCheck(name="clients", status=OK, message=text)


def _socket(fault: str) -> HealthCheck:
    if fault:
        return HealthCheck(name="socket", status=CRITICAL, message=fault)
    return HealthCheck(name="socket", status=OK, message="clients can reach the socket")


def _disk(space: Space) -> HealthCheck:
    free = space.free_bytes
    status = OK if free >= MIN_FREE_BYTES else WARNING if free >= MIN_FREE_BYTES // 10 else CRITICAL
    text = f"{free / 1e9:.1f} GB are free on {space.mount} ({', '.join(space.uses)})"
    if not space.free_files:
        status, text = CRITICAL, f"no more files can be made on {space.mount} ({', '.join(space.uses)})"
    elif status == CRITICAL:
        text = f"the file system {space.mount} is full ({', '.join(space.uses)}): {free / 1e6:.1f} MB are free"
    name = "disk" if "the state folder" in space.uses else f"disk.{space.mount}"
    return HealthCheck(name=name, status=status, message=text)


def _loop(figures: dict[str, float]) -> HealthCheck:
    lag = figures.get("loop_lag_max_s", 0.0)
    status = WARNING if lag > MAX_LOOP_LAG_S else OK
    return HealthCheck(name="loop", status=status, message=f"the loop was held up for {lag:.3f} s at most lately")
