"""Programs are started and awaited, whatever is cancelled when."""

from __future__ import annotations

import gc
import subprocess
import warnings
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from bpsd.processes import run_process
from bpsd_adapters.transports.local import LocalTransport


def run_it() -> Awaitable[object]:
    return run_process(["sleep", "30"])


def over_a_transport() -> Awaitable[object]:
    return LocalTransport().run(["sleep", "30"], deadline_s=20)


@pytest.mark.parametrize("start", [run_it, over_a_transport])
def test_a_call_that_is_cancelled_while_its_program_starts_leaves_no_process(
    start: Callable[[], Awaitable[object]],
) -> None:
    """The loop may end right after the cancellation, as at the end of a daemon."""

    async def give_up_after(steps: int) -> None:
        async with anyio.create_task_group() as group:

            async def call() -> None:
                await start()

            group.start_soon(call)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()

    for steps in [*range(12)] * 3:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            anyio.run(give_up_after, steps)
            gc.collect()
        assert [str(one.message) for one in told if issubclass(one.category, ResourceWarning)] == []


async def test_a_program_gets_its_input_and_its_output_is_returned() -> None:
    done = await run_process(["sh", "-c", "cat; echo why >&2; exit 3"], input=b"x" * 1_000_000)

    assert (done.returncode, len(done.stdout), done.stderr) == (3, 1_000_000, b"why\n")


async def test_streams_can_be_closed_and_input_may_stay_unread() -> None:
    closed = await run_process(["sh", "-c", "echo x"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    unread = await run_process(["true"], input=b"x" * 10_000_000)

    assert (closed.returncode, closed.stdout) == (0, b"")
    assert unread.returncode == 0


async def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        await run_process(["no-such-program"])
