"""Processes that the daemon starts for a run: the helper of ``prepare``, and drivers."""

from __future__ import annotations

__all__ = ["ask_helper", "check_driver", "launch_driver"]

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec

from bpsd.errors import BackendUnavailable
from bpsd_adapters.local.engine import DriverSettings
from bpsd_adapters.local.prepare import Answer, Order

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


async def ask_helper(order: Order) -> Answer:
    """Let the helper look at a workflow and make its folder.

    Raises
    ------
    BackendUnavailable
        If it came to no answer.
    """
    done = await anyio.run_process(_python("prepare"), input=msgspec.json.encode(order), check=False)
    try:
        return msgspec.json.decode(done.stdout, type=Answer)
    except msgspec.MsgspecError as exc:
        raise BackendUnavailable(
            f"preparing run {order.workflow.name} came to no answer (exit code {done.returncode}): "
            f"{_last_words(done.stderr)}",
            advice="try again; if it stays so, the daemon's log tells more",
        ) from exc


def _python(module: str) -> list[str]:
    # -P: a file of that name in the daemon's working folder must not be taken for a module of ours.
    return [sys.executable, "-P", "-m", f"bpsd_adapters.local.{module}"]


async def _run(command: Sequence[str], *fds: int) -> tuple[int, str]:
    done = await anyio.run_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
        start_new_session=True,
        pass_fds=fds,
    )
    return done.returncode, _last_words(done.stderr)


def _last_words(stderr: bytes) -> str:
    return stderr.decode(errors="replace").strip()[-_COMPLAINT_MAX_CHARS:]
