"""Accounts on a submit host as people have them: other login shells, startup files that print, move, alias or read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from bpsd.errors import BackendUnavailable
from bpsd.models import WmsStates
from bpsd.testing.contract import Bed
from bpsd.testing.observer import document, shell_job
from bpsd_adapters.slurm.service import SlurmService
from tests.integration.slurmbed import SlurmBed

pytestmark = pytest.mark.timeout(300)

ACCOUNTS = ("dash", "ksh", "zsh", "csh", "tcsh", "fish", "talk", "cd", "alias", "sftp")


@pytest.fixture(scope="module")
def shells(slurm: SlurmBed) -> SlurmBed:
    slurm.do("shells")
    return slurm


@pytest.fixture
def folder(shells: SlurmBed) -> Iterator[Path]:
    folder = shells.new_folder()
    yield folder
    shells.remove(folder)


def settings_of(bed: SlurmBed, account: str, **more: Any) -> dict[str, Any]:
    settings = bed.settings(work_dir=f"/home/op-{account}/bpsd", **more)
    settings["ssh"]["user"] = f"op-{account}"
    return settings


@pytest.mark.parametrize("account", ACCOUNTS)
async def test_a_run_goes_through_any_login_shell(shells: SlurmBed, folder: Path, account: str) -> None:
    """Submitted, seen, read and held to its umask, with words that no shell of them may touch."""
    bed = Bed(SlurmService, settings_of(shells, account), folder)
    odd = 'a\'b "$HOME" `x` !y \\z'
    async with bed.open() as observer:
        assert (await observer.service.ping())[0] == 0
        jobs = [
            shell_job("a_1", 'printf "%s\\n" "$ODD"; umask', environment={"ODD": odd}),
            shell_job("b_1", 'test -n "$HOME" && exit 3', parents=["a_1"]),
        ]
        wms_id, _ = await observer.submit(document(*jobs, umask="0026"))
        run = await observer.until_over(wms_id, timeout_s=90.0)
        assert run.state is WmsStates.FAILED
        assert observer.states(wms_id) == {"a_1": "SUCCEEDED", "b_1": "FAILED"}
        out = await observer.service.read_output(wms_id, "a_1", "stdout", 0, 4096)
        assert out.data.decode() == f"{odd}\n0026\n"
        assert {source.status for source in observer.sources} == {"ok"}


async def test_an_account_whose_startup_files_read_the_input_is_told_so(shells: SlurmBed, folder: Path) -> None:
    bed = Bed(SlurmService, settings_of(shells, "read"), folder)
    async with bed.open() as observer:
        status, message = await observer.service.ping()
        assert status == 1
        assert "startup files" in message
        with pytest.raises(BackendUnavailable, match="startup files"):
            await observer.service.run_submission_checks()


async def test_ping_tries_the_work_folder_as_real_work_does(shells: SlurmBed, folder: Path) -> None:
    bed = Bed(SlurmService, settings_of(shells, "tcsh") | {"work_dir": "/proc/closed"}, folder)
    async with bed.open() as observer:
        status, message = await observer.service.ping()
        assert status == 1
        assert "work_dir /proc/closed cannot be used" in message


@pytest.mark.parametrize(("account", "umask"), [("tcsh", "0002"), ("dash", "0022")])
async def test_over_ssh_the_umask_is_the_accounts_unless_somebody_says_another(
    shells: SlurmBed, folder: Path, account: str, umask: str
) -> None:
    for more, said in (({}, umask), ({"umask": "0077"}, "0077")):
        state = folder / said
        await anyio.to_thread.run_sync(state.mkdir)
        bed = Bed(SlurmService, settings_of(shells, account, **more), state)
        async with bed.open() as observer:
            workflow = await observer.workflow(document(shell_job("a_1", "umask")))
            prepared = await observer.service.prepare({"submitter_umask": "0011"}, workflow)
            await observer.service.submit(prepared)
            wms_id = str(prepared.run_id)
            await observer.until_over(wms_id, timeout_s=90.0)
            out = await observer.service.read_output(wms_id, "a_1", "stdout", 0, 4096)
            assert out.data.decode() == f"{said}\n"
