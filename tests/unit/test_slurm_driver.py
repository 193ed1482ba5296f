"""The driver without Slurm: one run's trouble is no other's, and what nobody knows is not guessed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
import structlog
from anyio.abc import TaskGroup

from bpsd.errors import BackendUnavailable
from bpsd.interface import ServiceContext
from bpsd.models import WmsStates
from bpsd.testing.observer import document, shell_job
from bpsd.workflow import RunAttributes, WorkflowFile
from bpsd_adapters.slurm.chunks import Plan
from bpsd_adapters.slurm.cluster import Outcome, Submission
from bpsd_adapters.slurm.driver import Driver
from bpsd_adapters.slurm.layout import StateFolder
from bpsd_adapters.slurm.parsing import ClusterLimits, ExitRecord, QueueRow
from bpsd_adapters.slurm.settings import SlurmConfig
from bpsd_adapters.transports.base import CommandFailed

CONFIG = SlurmConfig(work_dir="/w", settle_s=0.0, lost_after_s=0.0)


class FakeCluster:
    """Slurm as a list of rows; ``gone`` are the folders of runs that somebody removed."""

    def __init__(self) -> None:
        self.rows: list[QueueRow] = []
        self.records: dict[str, ExitRecord] = {}
        self.owners: dict[str, str] = {}
        self.gone: set[str] = set()
        self.outcome = Outcome.SUBMITTED
        self.unreadable = False
        self.asked: list[list[str]] = []
        self._ids = iter(range(100, 10_000, 100))

    async def queue(self) -> tuple[list[QueueRow], int]:
        return self.rows, 0

    async def limits(self) -> ClusterLimits:
        return ClusterLimits(has_accounting=False)

    async def association_limit(self, cluster: str) -> None:
        return None

    async def exits(self, paths: Sequence[str]) -> tuple[dict[str, ExitRecord], int]:
        self.asked.append(list(paths))
        if self.unreadable:
            raise BackendUnavailable("/w cannot be read")
        return {path: record for path, record in self.records.items() if path in paths}, 0

    async def submit(self, folder: str, plan: Plan) -> Submission:
        if self.outcome is not Outcome.SUBMITTED:
            return Submission(self.outcome)
        array = next(self._ids)
        self.rows += [
            QueueRow(array, (index,), array + index, plan.name, "RUNNING", 5, 1.0, "None") for index in range(plan.size)
        ]
        return Submission(Outcome.SUBMITTED, array)

    async def call_off(self, folder: str, chunks: Sequence[int]) -> dict[int, str]:
        if folder in self.gone:
            raise CommandFailed(f"cannot cd to {folder}", returncode=1, stderr="")
        return dict.fromkeys(chunks, "tried")

    async def void(self, folder: str, claims: Sequence[str]) -> dict[str, str]:
        return {claim: self.owners.get(claim, "void") for claim in claims}


def driver_of(state: StateFolder, cluster: FakeCluster, group: TaskGroup, config: SlurmConfig = CONFIG) -> Driver:
    context = ServiceContext("site", state.path, structlog.get_logger(), time.time, lambda _: None, group)
    return Driver(cluster, state, config, context)  # type: ignore[arg-type]


@asynccontextmanager
async def driven(
    folder: Path, cluster: FakeCluster, runs: int, *jobs: dict[str, Any], config: SlurmConfig = CONFIG
) -> AsyncIterator[Driver]:
    state = StateFolder(folder)
    path = folder / "w.json"
    await anyio.to_thread.run_sync(state.make)
    await anyio.Path(path).write_bytes(msgspec.json.encode(document(*jobs)))
    async with anyio.create_task_group() as group:
        driver = driver_of(state, cluster, group, config)
        for number in range(runs):
            token = f"{number}" * 20
            workflow = WorkflowFile(
                path=str(path),
                name="run",
                token=token,
                run=RunAttributes(),
                job_count=len(jobs),
                run_summary="",
                size_bytes=1,
            )
            await anyio.to_thread.run_sync(partial(state.add, workflow, f"/w/{token}", 1.0, hands_off=False))
            await driver.begin(token, 1)
        yield driver
        await anyio.to_thread.run_sync(driver.close)


async def states(driver: Driver, token: str) -> list[str]:
    engine = await driver.open(token)
    assert engine is not None
    return [WmsStates(state).name for state in engine._dag.state]


async def test_a_run_whose_folder_is_gone_keeps_no_other_from_going_on(tmp_path: Path) -> None:
    cluster = FakeCluster()
    async with driven(tmp_path, cluster, 2, shell_job("a_1", "true")) as driver:
        cluster.outcome = Outcome.DOUBT
        await driver.look()
        cluster.gone.add("/w/" + "0" * 20)
        cluster.outcome = Outcome.SUBMITTED
        await driver.look()  # the claim of the other was taken: it is ready, and submitted
        assert await states(driver, "1" * 20) == ["RUNNING"]
        assert len(cluster.rows) == 1
        sick = await driver.open("0" * 20)
        assert sick is not None
        assert "cannot cd to /w/000" in sick._note


async def test_jobs_that_began_after_all_are_not_given_up_at_once(tmp_path: Path) -> None:
    """Nobody knew of a chunk, yet two of its jobs have their claims: how they end is still to be seen."""
    cluster = FakeCluster()
    async with driven(tmp_path, cluster, 1, *(shell_job(f"a_{n}", "true") for n in range(3))) as driver:
        token = "0" * 20
        cluster.outcome = Outcome.DOUBT
        await driver.look()
        cluster.outcome = Outcome.SUBMITTED
        cluster.owners = {"0.1": "501", "1.1": "502"}
        cluster.records = {
            f"{token}/exits/1/{index}": ExitRecord(index, 1, 501 + index, 0, 0, 1.0, 2.0, "n1", "") for index in (0, 1)
        }
        await driver.look()
        assert await states(driver, token) == ["RUNNING", "RUNNING", "RUNNING"]
        assert len(cluster.rows) == 1, "the third never began: it is submitted again"
        await driver.look()
        assert await states(driver, token) == ["SUCCEEDED", "SUCCEEDED", "RUNNING"]


async def test_only_what_slurm_does_not_show_as_alive_is_looked_for_on_the_disk(tmp_path: Path) -> None:
    cluster = FakeCluster()
    async with driven(tmp_path, cluster, 1, *(shell_job(f"a_{n}", "true") for n in range(3))) as driver:
        await driver.look()
        await driver.look()
        assert cluster.asked == []
        cluster.rows[1] = cluster.rows[1]._replace(state="COMPLETED")
        await driver.look()
        assert cluster.asked == [[f"{'0' * 20}/exits/1/1"]]


async def test_between_looks_success_is_read_from_the_disk_and_the_run_goes_on(tmp_path: Path) -> None:
    """Nothing of that asks Slurm, which still shows them as running; why another failed it will be asked."""
    cluster, token = FakeCluster(), "0" * 20
    children = shell_job("c_1", "true", parents=["a_0"]), shell_job("d_1", "true", parents=["a_1"])
    async with driven(tmp_path, cluster, 1, *(shell_job(f"a_{n}", "true") for n in range(3)), *children) as driver:
        await driver.look()
        cluster.records = {
            f"{token}/exits/1/0": ExitRecord(0, 1, 100, 0, 0, 1.0, 2.0, "n1", ""),
            f"{token}/exits/1/1": ExitRecord(1, 1, 101, 0, 3, 1.0, 2.0, "n1", ""),
            f"{token}/exits/1/2": ExitRecord(2, 9, 101, 0, 0, 1.0, 2.0, "n1", ""),  # of another attempt
        }

        assert await driver.read_records()

        assert cluster.asked == [[f"{token}/exits/1/{index}" for index in range(3)]]
        assert await states(driver, token) == ["SUCCEEDED", "RUNNING", "RUNNING", "RUNNING", "UNREADY"]
        assert [row.name for row in cluster.rows] == [f"bps-{token}-1"] * 3 + [f"bps-{token}-2"]


async def test_between_looks_a_well_filled_queue_is_left_alone(tmp_path: Path) -> None:
    cluster, token = FakeCluster(), "0" * 20
    config = msgspec.structs.replace(CONFIG, window_jobs=4)
    async with driven(tmp_path, cluster, 1, *(shell_job(f"a_{n}", "true") for n in range(8)), config=config) as driver:
        await driver.look()
        for index, in_slurm in enumerate((4, 4 + 2)):
            cluster.records[f"{token}/exits/1/{index}"] = ExitRecord(index, 1, 100, 0, 0, 1.0, 2.0, "n1", "")
            await driver.read_records()
            assert len(cluster.rows) == in_slurm


async def test_records_that_cannot_be_read_are_left_to_the_next_look(tmp_path: Path) -> None:
    cluster = FakeCluster()
    async with driven(tmp_path, cluster, 1, shell_job("a_1", "true")) as driver:
        await driver.look()
        cluster.unreadable = True
        assert not await driver.read_records()
        assert not driver.watch.exits.ok


async def test_a_run_that_cannot_be_opened_is_tried_again(tmp_path: Path) -> None:
    """As when the daemon before this one still lets go of it."""
    cluster = FakeCluster()
    async with driven(tmp_path, cluster, 2, shell_job("a_1", "true")) as before:
        async with anyio.create_task_group() as group:
            state = StateFolder(tmp_path)
            await anyio.to_thread.run_sync(state.make)
            after = driver_of(state, cluster, group, msgspec.structs.replace(CONFIG, poll_interval_s=0.01))
            group.start_soon(after.run)
            await anyio.sleep(0.1)
            assert after.attempts == {}
            await anyio.to_thread.run_sync(before.close)
            with anyio.fail_after(10):
                while len(after.attempts) < 2:  # noqa: ASYNC110 - it has no event for that
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        await anyio.to_thread.run_sync(after.close)


async def test_a_run_that_could_not_be_begun_can_be_begun_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with driven(tmp_path, FakeCluster(), 1, shell_job("a_1", "true")) as driver:
        token = "0" * 20
        await driver.tell(token, lambda engine: engine.cancel(2.0))
        await driver.look()
        with monkeypatch.context() as full:
            full.setattr("bpsd_adapters.slurm.engine.RunLog.append", _no_room)
            with pytest.raises(OSError, match="no room"):
                await driver.begin(token, 2)

        await driver.begin(token, 2)

        assert driver.attempts == {token: 2}


def _no_room(*_: Any, **__: Any) -> None:
    raise OSError("no room")
