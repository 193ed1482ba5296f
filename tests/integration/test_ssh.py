"""The SSH transport against a real OpenSSH server (of the HTCondor bed)."""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from bpsd.errors import DeadlineExceeded
from bpsd.processes import run_process
from bpsd_adapters.transports.base import (
    CommandMissing,
    HostKeyRefused,
    LoginRefused,
    OutputTooLarge,
    Transport,
    Unreachable,
)
from bpsd_adapters.transports.settings import SshSettings, make_transport
from tests.integration.condorbed import CondorBed

NASTY = ["a b", "", "$HOME", "`id`", "'", '"', "\\", "*", "~", "!x", "a;b", "-n", "ä€", "two\nlines", "$(x)"]


def settings(pool: CondorBed, **changes: Any) -> SshSettings:
    return msgspec.convert(pool.ssh(**changes), SshSettings)


@pytest.fixture
async def ssh(pool: CondorBed) -> AsyncIterator[Transport]:
    async with await make_transport(settings(pool), {"X": "1 '2'"}) as transport:
        yield transport


async def test_words_arrive_as_they_are(ssh: Transport) -> None:
    done = await ssh.run(["sh", "-c", 'printf "%s\\0" "$X" "$@"; cat', "sh", *NASTY], deadline_s=30, input=b"in")

    assert done.stdout.decode().split("\0") == ["1 '2'", *NASTY, "in"]
    done = await ssh.run(["sh", "-c", "pwd; echo no >&2; exit 3"], deadline_s=30, cwd="/usr/lib")
    assert (done.stdout, done.returncode, done.error_text) == (b"/usr/lib\n", 3, "no")


async def test_files(ssh: Transport) -> None:
    folder = (await ssh.run(["mktemp", "-d"], deadline_s=30)).stdout.decode().strip()
    path = f"{folder}/f ' x"
    assert await ssh.stat(path) is None
    await ssh.write(path, b"0123456789")
    await ssh.write(path, b"9876543210")
    found = await ssh.stat(path)
    assert found is not None
    assert (found.size, found.is_dir) == (10, False)
    assert await ssh.read(path, 4, 3) == b"543"
    assert await ssh.read(path, 40, 3) == b""
    assert await ssh.listdir(folder) == ["f ' x"]
    assert await ssh.listdir(f"{folder}/none") == []
    with pytest.raises(FileNotFoundError):
        await ssh.read(f"{folder}/none", 0, 1)
    with pytest.raises(PermissionError):
        await ssh.read("/etc/shadow", 0, 1)


async def _until_nobody_runs(pool: CondorBed, sign: str) -> None:
    with anyio.fail_after(20):
        while sign in await anyio.to_thread.run_sync(pool.as_root, "ps", "-eo", "args"):  # noqa: ASYNC110  # no event
            await anyio.sleep(0.2)


async def test_a_deadline_ends_the_command_there(pool: CondorBed, ssh: Transport) -> None:
    with pytest.raises(DeadlineExceeded):
        await ssh.run(["sh", "-c", "sleep 301.5 & sleep 301.5; true"], deadline_s=1)

    await _until_nobody_runs(pool, "sleep 301.5")


async def test_what_is_given_up_ends_there(pool: CondorBed, ssh: Transport) -> None:
    with anyio.move_on_after(2.0):
        await ssh.run(["sh", "-c", "sleep 302.5; true"], deadline_s=200)

    await _until_nobody_runs(pool, "sleep 302.5")


async def test_too_much_output_is_cut(pool: CondorBed, ssh: Transport) -> None:
    with pytest.raises(OutputTooLarge):
        await ssh.run(["yes", "303.5"], deadline_s=60, max_output_bytes=100_000)

    await _until_nobody_runs(pool, "yes 303.5")


async def test_a_missing_program_is_told_from_one_that_fails(ssh: Transport) -> None:
    with pytest.raises(CommandMissing, match="no-such-program"):
        await ssh.run(["no-such-program"], deadline_s=30)

    assert (await ssh.run(["sh", "-c", "exit 127"], deadline_s=30)).returncode == 127


async def test_all_share_one_connection(pool: CondorBed, ssh: Transport) -> None:
    async with await make_transport(settings(pool)) as other:
        places: set[bytes] = set()

        async def ask(transport: Transport) -> None:
            done = await transport.run(["sh", "-c", "echo $SSH_CONNECTION; sleep 0.2"], deadline_s=30)
            places.add(done.stdout)

        async with anyio.create_task_group() as group:
            for n in range(20):
                group.start_soon(ask, ssh if n % 2 else other)
        assert len(places) == 1


async def test_a_broken_connection_is_said_so_and_made_again(pool: CondorBed, ssh: Transport) -> None:
    async def cut() -> None:
        port = int((await ssh.run(["sh", "-c", "echo $SSH_CLIENT"], deadline_s=30)).stdout.split()[1])
        with anyio.fail_after(20):
            while "sleep 304.5" not in await anyio.to_thread.run_sync(pool.as_root, "ps", "-eo", "args"):  # noqa: ASYNC110
                await anyio.sleep(0.1)
        await anyio.to_thread.run_sync(pool.kill_sessions, [port])

    failed: list[Unreachable] = []
    async with anyio.create_task_group() as group:
        group.start_soon(cut)
        try:
            await ssh.run(["sleep", "304.5"], deadline_s=40)
        except Unreachable as exc:
            failed.append(exc)

    assert failed
    assert (await ssh.run(["echo", "again"], deadline_s=30)).stdout == b"again\n"


async def test_an_unknown_host_key_is_refused(pool: CondorBed, tmp_path: Path) -> None:
    unknown = tmp_path / "known_hosts"
    unknown.touch()

    async with await make_transport(settings(pool, known_hosts=str(unknown))) as transport:
        with pytest.raises(HostKeyRefused):
            await transport.run(["true"], deadline_s=30)


async def test_an_unknown_key_is_refused(pool: CondorBed, tmp_path: Path) -> None:
    key = tmp_path / "key"
    await run_process(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])

    async with await make_transport(settings(pool, keys=[str(key)])) as transport:
        with pytest.raises(LoginRefused):
            await transport.run(["true"], deadline_s=30)


async def test_a_host_that_is_not_there_is_asked_seldom(pool: CondorBed) -> None:
    async with await make_transport(settings(pool, port=1)) as transport:
        with pytest.raises(Unreachable):
            await transport.run(["true"], deadline_s=30)
        began = time.monotonic()
        with pytest.raises(Unreachable, match="tried again in"):
            await transport.run(["true"], deadline_s=30)
        assert time.monotonic() - began < 20


# -- ways to get there -------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    """Two new keys."""
    made = {name: tmp_path / name for name in ("authority", "key")}
    for path in made.values():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return made


def public(key: Path) -> str:
    return key.with_suffix(".pub").read_text().strip()


@pytest.fixture
def authorized(pool: CondorBed) -> Iterator[Callable[[str], None]]:
    """Lets another key in, as long as the test runs."""
    place = "/home/op/.ssh/authorized_keys"
    before = pool.as_root("cat", place).strip()

    def let_in(lines: str) -> None:
        pool.as_root("sh", "-c", 'printf "%s\\n" "$2" >"$1"', "sh", place, lines)

    yield lambda line: let_in(f"{before}\n{line}")
    let_in(before)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An agent, and no keys at home."""
    socket = tmp_path / "agent"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 30
            while not socket.exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield
        finally:
            process.terminate()


async def said(chosen: SshSettings) -> bytes:
    async with await make_transport(chosen) as transport:
        return (await transport.run(["id", "-un"], deadline_s=30)).stdout


async def sessions(pool: CondorBed) -> int:
    return len(await anyio.to_thread.run_sync(pool.processes, "sshd-session: op"))


async def test_over_jump_hosts(pool: CondorBed) -> None:
    """The bed is its own jump host."""
    at = f"op@127.0.0.1:{pool.ssh_port}"
    before = await sessions(pool)
    async with await make_transport(settings(pool, jump=f"{at}, {at}")) as transport:
        assert (await transport.run(["id", "-un"], deadline_s=30)).stdout == b"op\n"
        assert await transport.listdir("/nowhere") == []
        assert await sessions(pool) - before >= 3
    with anyio.fail_after(30):
        while await sessions(pool) > before:  # noqa: ASYNC110  # no event
            await anyio.sleep(0.1)


async def test_a_jump_host_that_refuses_is_named(pool: CondorBed, keys: dict[str, Path]) -> None:
    chosen = settings(pool, jump=f"nobody@127.0.0.1:{pool.ssh_port}", host="localhost", keys=[str(keys["key"])])
    with pytest.raises(LoginRefused, match=r"127\.0\.0\.1 does not let us in"):
        await said(chosen)


def test_a_jump_host_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"jump host 'a:b' is not \[USER@\]HOST\[:PORT\]"):
        msgspec.convert({"host": "h", "jump": "x@[::1]:22,a:b"}, SshSettings)


async def test_with_a_certificate(
    pool: CondorBed, tmp_path: Path, keys: dict[str, Path], authorized: Callable[[str], None]
) -> None:
    def sign(principal: str) -> str:
        words = ["-s", str(keys["authority"]), "-I", principal, "-n", principal, "-V", "+1h", f"{keys['key']}.pub"]
        subprocess.run(["ssh-keygen", "-q", *words], check=True)
        return str((tmp_path / "key-cert.pub").rename(tmp_path / f"{principal}.pub"))

    right, wrong = await anyio.to_thread.run_sync(sign, "op"), await anyio.to_thread.run_sync(sign, "nobody")
    await anyio.to_thread.run_sync(authorized, f"cert-authority {public(keys['authority'])}")
    key = str(keys["key"])

    assert await said(settings(pool, keys=[key], certificates=[right])) == b"op\n"
    with pytest.raises(LoginRefused):
        await said(settings(pool, keys=[key], certificates=[wrong]))


@pytest.mark.usefixtures("agent")
async def test_with_an_agent(pool: CondorBed, keys: dict[str, Path], authorized: Callable[[str], None]) -> None:
    await anyio.to_thread.run_sync(authorized, await anyio.to_thread.run_sync(public, keys["key"]))
    with pytest.raises(LoginRefused):
        await said(settings(pool, keys=[]))

    await run_process(["ssh-add", "-q", str(keys["key"])])

    assert await said(settings(pool, keys=[])) == b"op\n"


async def test_by_the_configuration_of_ssh(pool: CondorBed, tmp_path: Path) -> None:
    """Host, port, user, key, known hosts and the way there: all from a file that ssh itself would read."""
    there = pool.ssh()
    config = tmp_path / "config"
    config.write_text(
        f"Host door pool\n  HostName 127.0.0.1\n  Port {pool.ssh_port}\n  User op\n  IdentityFile {there['keys'][0]}\n"
        f"  UserKnownHostsFile {there['known_hosts']}\n\nHost pool\n  ProxyJump door\n"
    )

    assert await said(SshSettings(host="pool", config=str(config))) == b"op\n"
    with pytest.raises(Unreachable, match="pool"):
        await said(SshSettings(host="pool", config="/dev/null"))
