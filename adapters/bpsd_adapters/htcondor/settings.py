"""The settings of an HTCondor backend."""

from __future__ import annotations

__all__ = ["HTCondorConfig"]

from typing import Annotated

import msgspec
from msgspec import Meta

from bpsd_adapters.transports.settings import SshSettings


class HTCondorConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Settings of a backend of the kind ``htcondor``.

    ``ssh``
        How to reach the submit host; without it the pool's tools are run on this machine.
    ``submit_root``
        Folder on the submit host under which each run gets its own; ``~/`` is the account's home there.
    ``schedd``
        The schedd that runs are submitted to (default: the submit host's own).
    ``schedds``
        Further schedds whose runs are to be seen.
    ``owner``
        Only runs of this account (default: everybody's).
    ``bin_dir``, ``environment``
        Where the pool's tools are if not in ``PATH``, and variables for them (``CONDOR_CONFIG``, ``_CONDOR_...``).
    ``check_executables``
        Whether a program that a job names by its path must be there on the submit host.
    ``command_deadline_s``
        How long one of the pool's tools may take; a hung schedd is given up by itself after 20 s.
    ``settle_s``
        How long after a submission was cut off "not found" begins to be proof.
    ``history_days``
        How far back runs that have ended are read when nothing is known yet.
    ``read_bytes``
        The most that is read of event logs in one poll.
    """

    ssh: SshSettings | None = None
    submit_root: Annotated[str, Meta(pattern="^(/|~/)")] = "~/bpsd-runs"
    schedd: str | None = None
    schedds: tuple[str, ...] = ()
    owner: str | None = None
    bin_dir: str | None = None
    environment: dict[str, str] = {}
    check_executables: bool = True
    command_deadline_s: float = 30.0
    settle_s: float = 60.0
    history_days: float = 2.0
    read_bytes: int = 64 * 1024 * 1024
