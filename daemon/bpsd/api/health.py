"""``health``: one word for monitoring, and why."""

from __future__ import annotations

__all__ = ["Health"]

import shutil

import anyio.to_thread

from bpsd.api.deps import Deps
from bpsd.messages import HealthCheck, HealthResult, Nothing
from bpsd.server import Call, ClientsUse

MIN_FREE_BYTES = 256 * 1024 * 1024
"""Less room than that in the state folder is a warning; a tenth of it is critical."""

MAX_LOOP_LAG_S = 1.0
"""The loop was held up for longer than this lately: a warning."""

MOST_USERS = 5
"""Users named in one check."""

OK, WARNING, CRITICAL = 0, 1, 2
_WORDS = ("OK", "WARNING", "CRITICAL")


class Health:
    """Looks at backends, commands in doubt, storage, disk and the loop."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    async def health(self, call: Call, params: Nothing) -> HealthResult:
        """The worst of all checks."""
        figures = self._deps.figures()
        free = (await anyio.to_thread.run_sync(shutil.disk_usage, self._deps.config.state_dir)).free
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
            _disk(free),
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
        if self._deps.journal.status.read_only:
            return HealthCheck(
                name="journal",
                status=CRITICAL,
                message="the journal was restored from a copy and takes no commands: see the log, then "
                "`bpsctl admin accept`",
            )
        return HealthCheck(name="journal", status=OK, message="the journal is writable")

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


def _disk(free: int) -> HealthCheck:
    status = OK if free >= MIN_FREE_BYTES else WARNING if free >= MIN_FREE_BYTES // 10 else CRITICAL
    return HealthCheck(name="disk", status=status, message=f"{free / 1e9:.1f} GB are free in the state folder")


def _loop(figures: dict[str, float]) -> HealthCheck:
    lag = figures.get("loop_lag_max_s", 0.0)
    status = WARNING if lag > MAX_LOOP_LAG_S else OK
    return HealthCheck(name="loop", status=status, message=f"the loop was held up for {lag:.3f} s at most lately")
