"""``admin``: care of the daemon's own records."""

from __future__ import annotations

__all__ = ["Admin"]

from bpsd.api.deps import Deps
from bpsd.messages import AdminParams, AdminResult
from bpsd.server import Call


class Admin:
    """What an administrator does to journal and history while the daemon runs."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    async def admin(self, call: Call, params: AdminParams) -> AdminResult:
        """One act."""
        acts = {"accept": self._accept, "check": self._check, "backup": self._backup, "vacuum": self._vacuum}
        return await acts[params.act]()

    async def _accept(self) -> AdminResult:
        await self._deps.journal.accept_restored()
        await self._deps.cache.announce("daemon.storage", what="the restored journal was accepted")
        return AdminResult(done=["the journal takes commands again"])

    async def _check(self) -> AdminResult:
        problems = [f"journal: {text}" for text in await self._deps.journal.check()]
        problems += [f"history: {text}" for text in await self._deps.store.check()]
        return AdminResult(done=["journal and history were read from end to end"], problems=problems)

    async def _backup(self) -> AdminResult:
        await self._deps.store.flush()
        copies = [
            await self._deps.journal.backup(again=True),
            await self._deps.store.backup(self._deps.config.history.backups),
        ]
        return AdminResult(done=[f"wrote {copy}" for copy in copies])

    async def _vacuum(self) -> AdminResult:
        freed = await self._deps.store.vacuum()
        return AdminResult(done=[f"{freed} bytes were given back to the file system"])
