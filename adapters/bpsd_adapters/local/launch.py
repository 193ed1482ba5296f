"""Processes that the daemon starts for a run: its drivers."""

from __future__ import annotations

__all__ = ["check_driver", "launch_driver"]

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bpsd.processes import run_process
from bpsd_adapters.local.engine import DriverSettings

_COMPLAINT_MAX_CHARS = 500


async def launch_driver(folder: Path, settings: DriverSettings, scope: Sequence[str] = ()) -> tuple[int, str]:
    """Start a driver; when this returns it has begun, or said why not.

    This is the one place where a driver comes to life. It goes on without us: another session, no pipe, no parent, and
    where ``scope`` (what goes before its command line) makes one, a control group of its own.

    Returns
    -------
    code : `int`
        See `bpsd_adapters.local.driver`.
    said : `str`
        What it had to say.
    """
    command = [*scope, *_python("driver"), str(folder), msgspec.json.encode(settings).decode()]
    return await _run(command, settings.log_fd)


async def check_driver() -> tuple[int, str]:
    """Whether a driver would start at all."""
    return await _run([*_python("driver"), "--check"])


def _python(module: str) -> list[str]:
    # -P: a file of that name in the daemon's working folder must not be taken for a module of ours.
    # -X utf8: arguments, environment and paths of jobs are UTF-8, whatever the locale is.
    return [sys.executable, "-P", "-X", "utf8", "-m", f"bpsd_adapters.local.{module}"]


async def _run(command: Sequence[str], *fds: int) -> tuple[int, str]:
    done = await run_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=fds,
    )
    return done.returncode, _last_words(done.stderr)


def _last_words(stderr: bytes) -> str:
    return stderr.decode(errors="replace").strip()[-_COMPLAINT_MAX_CHARS:]
