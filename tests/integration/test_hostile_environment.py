"""A job's variables change nothing of what we believe about it: every name of every script, with hostile values."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bpsd_adapters
from bpsd.models import WmsStates
from bpsd.testing.contract import Bed
from bpsd.testing.observer import document, shell_job
from bpsd.workflow import RESERVED_PREFIX, RESERVED_VARIABLES
from bpsd_adapters.local.service import LocalService
from bpsd_adapters.slurm.service import SlurmService
from tests.integration.slurmbed import SlurmBed

pytestmark = pytest.mark.timeout(300)

HOSTILE = ("0", "", "/nonexistent", "x; exit 0", "$(exit 0)", "7 8 9")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MEANT = {"PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "OPTIND"}
"""What breaks the job itself: what it is found by, and what dash does not even start with. PATH has a test below."""


def names() -> list[str]:
    """Every name that any script of any adapter assigns or reads, and those that shells treat in a way of their own."""
    found: set[str] = set()
    for path in Path(bpsd_adapters.__file__).parent.rglob("*.py"):
        text = path.read_text()
        found |= set(re.findall(r"\b([A-Za-z_][A-Za-z0-9_]*)=", text))
        found |= set(re.findall(r"\$\{*([A-Za-z_][A-Za-z0-9_]*)", text))
        found |= set(re.findall(r"[\"'](BPSD_[A-Z_]+|SLURM_[A-Z_]+|SBATCH_[A-Z_]+|_?CONDOR_[A-Z_]+)[\"']", text))
    shells = (
        "_ BASH_ENV ENV SHELLOPTS BASHOPTS POSIXLY_CORRECT IFS PS1 PS2 PS4 PWD OLDPWD CDPATH HOME UID EUID PPID RANDOM "
        "SECONDS node attempt base folder entry owner mine chunk before log code note start run pre post out err index "
        "LINENO OPTIND OPTARG OPTERR FUNCNAME GROUPS DIRSTACK HISTCMD TMPDIR LC_ALL LANG TZ USER LOGNAME SHELL MAIL "
        "SLURM_JOB_ID SLURM_ARRAY_TASK_ID SLURM_RESTART_COUNT SLURM_CONF"
    )
    found |= set(shells.split())
    usable = {n for n in found if NAME.fullmatch(n) and not n.startswith(RESERVED_PREFIX)}
    return sorted(usable - RESERVED_VARIABLES - MEANT)


def hostile(value: str) -> dict[str, str]:
    return dict.fromkeys(names(), value)


async def outcomes(bed: Bed, environment: dict[str, str]) -> dict[str, Any]:
    """What we believe of four jobs: one that fails before it runs, one that fails, one that succeeds, and a child."""
    trace = bed.scratch / f"trace{abs(hash(frozenset(environment.items())))}"
    jobs = [
        shell_job("before_1", f"echo before >> {trace}", pre_cmdline="exit 1", environment=environment),
        shell_job("fails_1", f"echo fails >> {trace}; exit 5", environment=environment, post_cmdline="exit 3"),
        shell_job("good_1", f"echo good >> {trace}; echo said", environment=environment),
        shell_job("child_1", f"echo child >> {trace}", parents=["before_1"], environment=environment),
    ]
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(document(*jobs))
        run = await observer.until_over(wms_id, timeout_s=120.0)
        table = observer.jobs[wms_id]
        rows = {table.row(n).name: table.row(n) for n in range(len(table))}
        out = await observer.service.read_output(wms_id, "good_1", "stdout", 0, 4096)
        assert all(row.started_at is None or row.started_at > 1_000_000_000 for row in rows.values())
        return {
            "run": run.state,
            "states": observer.states(wms_id),
            "codes": {name: row.exit_code for name, row in rows.items()},
            "notes": {name: row.note for name, row in rows.items()},
            "said": out.data,
            "ran": sorted(trace.read_text().split()) if trace.exists() else [],
        }


async def compare(bed: Bed) -> None:
    plain = await outcomes(bed, {})
    assert plain["run"] is WmsStates.FAILED
    assert plain["states"] == {
        "before_1": "FAILED", "fails_1": "FAILED", "good_1": "SUCCEEDED", "child_1": "PRUNED",
    }  # fmt: skip
    assert plain["ran"] == ["fails", "good"]
    for value in HOSTILE:
        assert await outcomes(bed, hostile(value)) == plain, value


async def test_local_jobs(tmp_path: Path) -> None:
    await compare(Bed(LocalService, {"cores": 4, "memory_mb": 1000, "ledger": str(tmp_path / "ledger")}, tmp_path))


@pytest.fixture
def cluster_folder(slurm: SlurmBed) -> Iterator[Path]:
    folder = slurm.new_folder()
    yield folder
    slurm.remove(folder)


async def test_slurm_jobs(slurm: SlurmBed, cluster_folder: Path) -> None:
    await compare(Bed(SlurmService, slurm.settings(), cluster_folder))


async def test_a_path_without_tools_harms_the_job_alone(slurm: SlurmBed, cluster_folder: Path) -> None:
    """The wrapper finds its tools; what the job starts by name, it does not find."""
    bed = Bed(SlurmService, slurm.settings(), cluster_folder)
    environment = {"PATH": "/nonexistent"}
    async with bed.open() as observer:
        wms_id, _ = await observer.submit(
            document(
                shell_job("a_1", "exit 6", environment=environment), shell_job("b_1", "ls", environment=environment)
            )
        )
        await observer.until_over(wms_id, timeout_s=90.0)
        table = observer.jobs[wms_id]
        assert {table.row(n).name: table.row(n).exit_code for n in range(2)} == {"a_1": 6, "b_1": 127}


def test_the_names_are_those_of_the_scripts() -> None:
    assert {"owner", "entry", "SLURM_JOB_ID", "IFS", "newest", "UID", "dag"} <= set(names())
    assert len(names()) > 100
    assert not any(name in os.environ for name in ("_bpsd_run",))


def mode(path: Path | str) -> int:
    return Path(path).stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("document_says", "settings_say", "submitter", "expected"),
    [
        ("0077", "0002", "0027", "0077"),
        (None, "0002", "0027", "0002"),
        (None, None, "0027", "0027"),
        (None, None, None, "0022"),
    ],
)
async def test_the_umask_of_local_jobs_is_the_submitters_unless_somebody_says_another(
    tmp_path: Path, document_says: str | None, settings_say: str | None, submitter: str | None, expected: str
) -> None:
    settings = {"cores": 1, "memory_mb": 100, "ledger": str(tmp_path / "ledger"), "umask": settings_say}
    bed = Bed(LocalService, settings, tmp_path)
    async with bed.open() as observer:
        made = bed.scratch / "made"
        one = shell_job("a_1", f"umask; touch {made}", post_cmdline=f"umask >> {made}")
        workflow = await observer.workflow(document(one, umask=document_says) if document_says else document(one))
        prepared = await observer.service.prepare({"submitter_umask": submitter}, workflow)
        await observer.service.submit(prepared)
        wms_id = str(prepared.run_id)
        await observer.until_over(wms_id, timeout_s=60.0)
        out = await observer.service.read_output(wms_id, "a_1", "stdout", 0, 4096)
        assert out.data.decode() == f"{expected}\n"
        assert made.read_text() == f"{expected}\n"
        assert {mode(made), mode(out.path)} == {0o666 & ~int(expected, 8)}
        assert mode(f"{prepared.submit_path}/run.log") & 0o077 == 0
