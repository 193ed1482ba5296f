"""The local transport, with real processes; the quoting of the other one is proved in the bed."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from bpsd.errors import DeadlineExceeded
from bpsd_adapters.transports.base import CommandFailed, CommandMissing, OutputTooLarge
from bpsd_adapters.transports.local import LocalTransport
from bpsd_adapters.transports.scripted import ScriptedTransport, answer


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):  # also between opening and reading it
        return True


async def _until_gone(pid: int) -> None:
    with anyio.fail_after(10):
        while not _gone(pid):  # noqa: ASYNC110  # another process: there is no event
            await anyio.sleep(0.01)


async def test_a_program_gets_its_words_and_its_input() -> None:
    done = await LocalTransport({"X": "1 2"}).run(
        ["sh", "-c", 'printf "%s|" "$X" "$@"; cat', "sh", "a b", "$HOME", "'"], deadline_s=30, input=b"in"
    )

    assert done.check("here").stdout == b"1 2|a b|$HOME|'|in"


async def test_a_failure_is_an_answer_until_it_is_checked() -> None:
    done = await LocalTransport().run(["sh", "-c", "echo why >&2; exit 3"], deadline_s=30)

    assert (done.returncode, done.error_text) == (3, "why")
    with pytest.raises(CommandFailed, match="sh on here failed with 3: why"):
        done.check("here")


async def test_a_missing_program_is_said_so() -> None:
    with pytest.raises(CommandMissing, match="no-such-program"):
        await LocalTransport().run(["no-such-program"], deadline_s=30)


async def test_a_deadline_ends_the_program_and_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(DeadlineExceeded, match="did not end within"):
        await LocalTransport().run(["sh", "-c", f"sleep 300 & echo $! $$ > {pids}; wait"], deadline_s=1.0)

    for pid in pids.read_text().split():
        await _until_gone(int(pid))


async def test_a_call_that_is_given_up_ends_its_program(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def give_up() -> None:
                while not pid.exists() or not pid.read_text():  # noqa: ASYNC110  # as above
                    await anyio.sleep(0.01)
                scope.cancel()

            group.start_soon(give_up)
            await LocalTransport().run(["sh", "-c", f"echo $$ > {pid}; exec sleep 300"], deadline_s=60)

    await _until_gone(int(pid.read_text()))


async def test_too_much_output_ends_the_program() -> None:
    began = time.monotonic()
    with pytest.raises(OutputTooLarge, match="more than 1000 bytes"):
        await LocalTransport().run(["yes"], deadline_s=60, max_output_bytes=1000)

    assert time.monotonic() - began < 60


async def test_input_that_nobody_reads_is_no_error() -> None:
    done = await LocalTransport().run(["true"], deadline_s=30, input=b"x" * 10_000_000)

    assert done.returncode == 0


async def test_programs_are_looked_for_in_the_folders_of_the_settings(tmp_path: Path) -> None:
    program = tmp_path / "condor_q"
    program.write_text("#!/bin/sh\necho mine\n")
    program.chmod(0o755)

    done = await LocalTransport(path=[str(tmp_path)]).run(["sh", "-c", "condor_q"], deadline_s=30)

    assert done.stdout == b"mine\n"


async def test_files(tmp_path: Path) -> None:
    transport = LocalTransport()
    path = str(tmp_path / "f")
    assert await transport.stat(path) is None

    await transport.write(path, b"0123456789")

    found = await transport.stat(path)
    assert found is not None
    assert (found.size, found.is_dir) == (10, False)
    assert await transport.read(path, 4, 3) == b"456"
    assert await transport.read(path, 20, 3) == b""
    assert await transport.listdir(str(tmp_path)) == ["f"]
    assert await transport.listdir(str(tmp_path / "none")) == []
    with pytest.raises(FileNotFoundError):
        await transport.read(str(tmp_path / "none"), 0, 1)


async def test_a_scripted_transport_answers_as_told() -> None:
    transport = ScriptedTransport(lambda argv, _: answer("yes") if argv[0] == "ask" else None)

    assert (await transport.run(["ask", "x"], deadline_s=1)).stdout == b"yes"
    with pytest.raises(CommandMissing):
        await transport.run(["other"], deadline_s=1)
    assert transport.calls == [("ask", "x"), ("other",)]
