"""Units of systemd in which runs live, so that they are not the daemon's to take along when it is restarted.

One person's daemon that is a user service puts each driver into a *scope*: a control group of its own, with everything
else as it was. The daemon of a system starts *services* as whoever submitted a run (``run_as: submitter``).
"""

from __future__ import annotations

__all__ = [
    "SLICE",
    "STATE_FOLDER",
    "limits",
    "own_units",
    "scope_command",
    "service_command",
    "slice_command",
    "unit_name",
]

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from typing import Literal

SLICE = "bpsd.slice"
"""Holds all runs of a system's daemon, for who wants to limit them together (``systemctl edit bpsd.slice``)."""

DRIVER_MEMORY_MB = 128
"""What a run's unit may take beside the memory of its jobs."""

SLICE_MEMORY_MB = 1024
"""What all drivers and agents together may take beside the memory of the jobs."""

TASKS_PER_CORE = 1024
"""Processes and threads that a run may have for each core, and as many again for one."""

STATE_FOLDER = "bpsd-runs"
"""Below ``/var/lib``, with one folder for each person, which systemd makes and gives them."""


def unit_name(kind: Literal["run", "agent"], *parts: object) -> str:
    """A name that no unit had before: ``bpsd-run-1000-12-4f3a2b1c``."""
    return "-".join(["bpsd", kind, *map(str, parts), secrets.token_hex(4)])


def own_units(token: str, uid: int, number: str) -> tuple[str, ...]:
    """How the names of the units begin that a run has for itself: as a scope, and as a service of its submitter's."""
    return f"bpsd-run-{token}-", f"bpsd-run-{uid}-{number}-"


def limits(cores: int, memory_mb: int, *, beside_mb: int = DRIVER_MEMORY_MB) -> list[str]:
    """Return the properties that keep a unit from taking more than a backend has.

    Parameters
    ----------
    cores, memory_mb : `int`
        What the backend has for jobs.
    beside_mb : `int`, optional
        Memory for what is no job.
    """
    return [
        f"CPUQuota={100 * cores}%",
        f"MemoryMax={memory_mb + beside_mb}M",
        f"TasksMax={TASKS_PER_CORE * (cores + 1)}",
    ]


def slice_command(cores: int, memory_mb: int) -> list[str]:
    """Return the command that limits all runs of the system's daemon together, until the next boot."""
    properties = limits(cores, memory_mb, beside_mb=SLICE_MEMORY_MB)
    return ["systemctl", "--no-ask-password", "set-property", "--runtime", SLICE, *properties]


def scope_command(run: str, environ: Mapping[str, str], pid: int, properties: Sequence[str] = ()) -> list[str]:
    """What goes before a driver's command line to give it a scope; nothing if this process is no user service.

    ``systemd-run --scope`` becomes the program that it runs, with its environment, file descriptors and session.
    """
    # The second says for whom systemd has set the first: every process of a desktop inherits it.
    service = "INVOCATION_ID" in environ and environ.get("SYSTEMD_EXEC_PID") == str(pid)
    manager = os.path.join(environ.get("XDG_RUNTIME_DIR", ""), "systemd/private")  # noqa: PTH118  # no path if there is none
    if not service or not os.path.isabs(manager) or not os.path.exists(manager):  # noqa: PTH110, PTH117  # as above
        return []
    program = shutil.which("systemd-run")
    if program is None:
        return []
    unit = f"--unit={unit_name('run', run)}"
    limiting = [f"--property={each}" for each in properties]
    return [program, "--user", "--scope", "--quiet", "--collect", unit, *limiting, "--"]


def service_command(
    unit: str, uid: int, program: Sequence[str], *, outlived: bool, limiting: Sequence[str] = ()
) -> list[str]:
    """The command that starts a service as a user, with our stdin, stdout and stderr.

    Parameters
    ----------
    unit : `str`
        Its name.
    uid : `int`
        Whose it is.
    program : `~collections.abc.Sequence` [`str`]
        What it runs.
    outlived : `bool`
        Whether what it starts in the background may outlive it: the service goes on then until all that has ended.
    limiting : `~collections.abc.Sequence` [`str`], optional
        Properties that limit it (`limits`).
    """
    properties = [
        f"Slice={SLICE}",
        f"StateDirectory={STATE_FOLDER}/{uid}",
        "StateDirectoryMode=0700",
        "UMask=0077",
        "CollectMode=inactive-or-failed",
        # A job that takes more memory than there is must not take its run along.
        "OOMPolicy=continue",
        # A stop (of the unit, or of the machine) ends drivers and jobs alike, in good order.
        "KillMode=control-group",
        f"ExitType={'cgroup' if outlived else 'main'}",
        *limiting,
    ]
    return [
        "systemd-run",
        "--quiet",
        "--pipe",
        "--no-ask-password",
        f"--unit={unit}",
        f"--uid={uid}",
        f"--description=bpsd: {'a run' if outlived else 'runs'} of user {uid}",
        *(f"--property={each}" for each in properties),
        "--",
        *program,
    ]
