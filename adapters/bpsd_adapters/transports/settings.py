"""How to reach a submit host, as a backend's settings say it; asyncssh is loaded only if it is wanted."""

from __future__ import annotations

__all__ = ["SshSettings", "hops", "make_transport"]

import re
from collections.abc import Mapping, Sequence

import anyio.to_thread
import msgspec

from bpsd_adapters.transports.base import Transport

_HOP = re.compile(r"(?:(?P<user>[^@]+)@)?(?P<host>\[[^\]]+\]|[^:@\[\]]+)(?::(?P<port>\d{1,5}))?")


class SshSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """How to reach a host. What is not said here is taken from ``~/.ssh/config``, the agent and the default keys.

    ``keys`` and ``certificates`` are files; ``known_hosts`` a file in place of the user's own (keys are always
    checked); ``jump`` is ``[USER@]HOST[:PORT]``, several separated by commas, reached with the same keys and known
    hosts; ``config`` a file in place of ``~/.ssh/config``.
    """

    host: str
    port: int | None = None
    user: str | None = None
    keys: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    known_hosts: str | None = None
    jump: str | None = None
    config: str | None = None
    connect_timeout_s: float = 20.0
    keepalive_s: float = 15.0

    def __post_init__(self) -> None:
        if self.jump is not None:
            hops(self)


def hops(settings: SshSettings) -> list[SshSettings]:
    """The hosts on the way, the submit host last.

    Raises
    ------
    ValueError
        If ``jump`` makes no sense.
    """
    way = []
    for text in filter(None, (settings.jump or "").replace(" ", "").split(",")):
        found = _HOP.fullmatch(text)
        if found is None:
            raise ValueError(f"jump host {text!r} is not [USER@]HOST[:PORT]")
        port = None if found["port"] is None else int(found["port"])
        host = found["host"].removeprefix("[").removesuffix("]")
        way.append(msgspec.structs.replace(settings, host=host, port=port, user=found["user"], jump=None))
    return [*way, msgspec.structs.replace(settings, jump=None)]


async def make_transport(
    ssh: SshSettings | None, environment: Mapping[str, str] | None = None, path: Sequence[str] = ()
) -> Transport:
    """A transport to the host of the settings, or to this machine; not yet open."""
    if ssh is None:
        from bpsd_adapters.transports.local import LocalTransport

        return LocalTransport(environment, path)
    # asyncssh looks for libraries (with processes) when it is first loaded: not in the daemon's loop.
    return await anyio.to_thread.run_sync(_ssh, ssh, environment, path)


def _ssh(ssh: SshSettings, environment: Mapping[str, str] | None, path: Sequence[str]) -> Transport:
    from bpsd_adapters.transports.ssh import SshTransport

    return SshTransport(ssh, environment, path)
