"""Work that keeps a core busy for seconds, in a process beside the daemon: having it done there, and being the helper.

``python -P -m MODULE`` takes an order as JSON on its stdin and prints the answer: 100,000 jobs take seconds in which no
other thread of Python runs. MODULE has a function from order to answer, and at its end::

    if __name__ == "__main__":
        serve(Order, work)
"""

from __future__ import annotations

__all__ = ["NICENESS", "SMALL_JOBS", "ask", "ask_if_large", "serve"]

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
import msgspec

from bpsd.errors import BackendUnavailable
from bpsd.processes import run_process

NICENESS = 10
"""Added to the daemon's, which has questions to answer meanwhile."""

SMALL_JOBS = 1000
"""Documents up to so many jobs may be worked on in a thread: starting Python would take longer than the work."""

_LAST_WORDS_CHARS = 600

O = TypeVar("O", bound=msgspec.Struct)  # noqa: E741  # order
A = TypeVar("A", bound=msgspec.Struct)


async def ask_if_large(work: Callable[[O], A], order: O, answer: type[A], *, job_count: int, about: str) -> A:
    """The answer to an order: from a thread if the document is small, else from a helper.

    Parameters
    ----------
    work : `~collections.abc.Callable`
        A function at the top of a module that calls `serve` with it.
    order : `msgspec.Struct`
        What it is given.
    answer : `type`
        What it returns.
    job_count : `int`
        How many jobs it goes through.
    about : `str`
        What is done, for the error, as in ``preparing run x``.

    Raises
    ------
    BackendUnavailable
        If the helper came to no answer.
    """
    if job_count <= SMALL_JOBS:
        return await anyio.to_thread.run_sync(work, order)
    return await ask(work, order, answer, about=about)


async def ask(work: Callable[[O], A], order: O, answer: type[A], *, about: str) -> A:
    """The answer of a helper; see `ask_if_large`.

    Raises
    ------
    BackendUnavailable
        If it came to none.
    """
    # -P: a file of that name in the daemon's working folder must not be taken for a module of ours.
    # -X utf8: paths in the order are UTF-8, whatever the locale is.
    command = [sys.executable, "-P", "-X", "utf8", "-m", work.__module__]
    done = await run_process(command, input=msgspec.json.encode(order))
    try:
        return msgspec.json.decode(done.stdout, type=answer)
    except msgspec.MsgspecError as exc:
        words = done.stderr.decode(errors="replace").strip()[-_LAST_WORDS_CHARS:]
        raise BackendUnavailable(
            f"{about} came to no answer (exit code {done.returncode}): {words}",
            advice="is there memory and disk enough for it? if so, try again; the daemon's log tells more",
        ) from exc


def serve(order: type[O], work: Callable[[O], msgspec.Struct]) -> None:
    """Be the helper, for one order."""
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(NICENESS)
    gc.disable()  # a workflow has no cycles to collect, and this process ends with its answer
    told = msgspec.json.decode(sys.stdin.buffer.read(), type=order)
    sys.stdout.buffer.write(msgspec.json.encode(work(told)))
