"""How to reach a submit host, as a backend's settings say it; asyncssh is loaded only if it is wanted."""

from __future__ import annotations

__all__ = ["SshSettings", "check_host", "hops", "make_transport"]

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import anyio.to_thread
import msgspec
from msgspec import Meta

from bpsd.errors import Problem
from bpsd.pathchecks import cannot_read, cannot_run, expanded
from bpsd_adapters.transports.base import Transport

PORT_MAX = 65535

_HOP = re.compile(r"(?:(?P<user>[^@]+)@)?(?P<host>\[[^\]]+\]|[^:@\[\]]+)(?::(?P<port>\d{1,5}))?")


class SshSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """How to reach a host. What is not said here is taken from ``~/.ssh/config``, the agent and the default keys.

    ``keys`` and ``certificates`` are files; ``known_hosts`` a file in place of the user's own (keys are always
    checked); ``jump`` is ``[USER@]HOST[:PORT]``, several separated by commas, reached with the same keys and known
    hosts; ``config`` a file in place of ``~/.ssh/config``.
    """

    host: str
    port: Annotated[int, Meta(ge=1, le=PORT_MAX)] | None = None
    user: str | None = None
    keys: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    known_hosts: str | None = None
    jump: str | None = None
    config: str | None = None
    connect_timeout_s: Annotated[float, Meta(gt=0)] = 20.0
    keepalive_s: Annotated[float, Meta(ge=0)] = 15.0

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
        if found["port"] is not None and not 1 <= int(found["port"]) <= PORT_MAX:
            raise ValueError(f"the port of jump host {text!r} is not a number from 1 to {PORT_MAX}")
        port = None if found["port"] is None else int(found["port"])
        host = found["host"].removeprefix("[").removesuffix("]")
        way.append(msgspec.structs.replace(settings, host=host, port=port, user=found["user"], jump=None))
    return [*way, msgspec.structs.replace(settings, jump=None)]


def check_host(
    ssh: SshSettings | None, bin_dir: str | None, environment: Mapping[str, str], programs: Sequence[str]
) -> list[Problem]:
    """Return what is wrong with the way to the submit host; it blocks.

    Over SSH these are the files that the settings name. Where the submit host is this machine, these are the programs
    that must be in ``bin_dir`` or in ``PATH``.
    """
    if ssh is not None:
        return _check_ssh(ssh)
    search = environment.get("PATH", os.environ.get("PATH", os.defpath))
    if bin_dir is not None:
        search = f"{bin_dir}:{search}"
    where = () if bin_dir is None else ("bin_dir",)
    return [Problem(where, wrong) for program in programs if (wrong := cannot_run(program, search))]


def _check_ssh(settings: SshSettings) -> list[Problem]:
    named: list[tuple[tuple[str | int, ...], str | None]] = [
        *((("keys", index), key) for index, key in enumerate(settings.keys)),
        *((("certificates", index), name) for index, name in enumerate(settings.certificates)),
        (("known_hosts",), settings.known_hosts),
        (("config",), settings.config),
    ]
    return [
        Problem(("ssh", *where), wrong)
        for where, path in named
        if path is not None and (wrong := cannot_read(expanded(path)))
    ]


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
