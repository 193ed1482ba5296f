"""The driver without Slurm: one run's trouble is no other's, and what nobody knows is not guessed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
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
from structlog.testing import CapturingLogger

from bpsd.errors import BackendUnavailable
from bpsd.interface import ServiceContext
from bpsd.models import KnownRun, PollRequest, WmsStates
from bpsd.testing.observer import document, shell_job
from bpsd.workflow import RunAttributes, WorkflowFile
from bpsd_adapters.quarantine import Quarantine
from bpsd_adapters.slurm import observe
from bpsd_adapters.slurm.acts import Acts
from bpsd_adapters.slurm.answers import Outcome, Submission
from bpsd_adapters.slurm.chunks import Plan
from bpsd_adapters.slurm.driver import Driver
from bpsd_adapters.slurm.engine import Engine
from bpsd_adapters.slurm.layout import StateFolder, run_id
from bpsd_adapters.slurm.observe import BackendCursor, Follower
from bpsd_adapters.slurm.parsing import ClusterLimits, ExitRecord, QueueRow
from bpsd_adapters.slurm.settings import SlurmConfig
from bpsd_adapters.transports.base import CommandFailed

QUIET = structlog.wrap_logger(CapturingLogger(), processors=[lambda _logger, _method, entry: ((), entry)])
"""The default logger would read source files to show a traceback, and block the loop."""

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
        self.ended: list[int] = []
        self.discarded: list[tuple[str, int]] = []
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

    async def call_off(self, folder: str, chunks: Sequence[int]) -> dict[int, tuple[str, int | None]]:
        if folder in self.gone:
            raise CommandFailed(f"cannot cd to {folder}", returncode=1, stderr="")
        return dict.fromkeys(chunks, ("tried", None))

    async def discard(self, folder: str, chunks: Sequence[int]) -> None:
        self.discarded += [(folder, chunk) for chunk in chunks]

    async def cancel(self, arrays: Mapping[int, str]) -> None:
        ended = set(arrays)
        self.ended += sorted(ended)
        self.rows = [row._replace(state="CANCELLED") if row.array_id in ended else row for row in self.rows]

    async def void(self, folder: str, claims: Sequence[str]) -> dict[str, str]:
        return {claim: self.owners.get(claim, "void") for claim in claims}


def driver_of(state: StateFolder, cluster: FakeCluster, group: TaskGroup, config: SlurmConfig = CONFIG) -> Driver:
    context = ServiceContext("site", state.path, QUIET, time.time, lambda _: None, group)
    return Driver(cluster, state, config, context, Quarantine(context.log, "site", expected=(OSError,)))  # type: ignore[arg-type]


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
        assert [row.name for row in cluster.rows] == [f"bps-{token}-1.a"] * 3 + [f"bps-{token}-2.c"]


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


def poison(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[str]:
    """Have a method fail for the first run alone; returns the runs for which it was called and did not fail."""
    healthy, whole = [], getattr(owner, name)

    def token_in(arguments: tuple[Any, ...]) -> str:
        engine = arguments[0] if isinstance(arguments[0], Engine) else arguments[1].engine
        return str(engine.meta.token)

    def poisoned(*arguments: Any, **more: Any) -> Any:
        token = token_in(arguments)
        if token == "0" * 20:
            raise ZeroDivisionError("poisoned")
        healthy.append(token)
        return whole(*arguments, **more)

    monkeypatch.setattr(owner, name, poisoned)
    return healthy


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Engine, "record_paths"),
        (Engine, "missing"),
        (Engine, "see"),
        (Engine, "doubtful"),
        (Engine, "note"),
        (Engine, "plan"),
        (Acts, "submit"),
    ],
)
async def test_an_unexpected_error_in_one_run_stays_with_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """Whatever breaks, the other run goes on to its end, and the error is to be seen."""
    cluster = FakeCluster()
    jobs = shell_job("a_1", "true"), shell_job("b_1", "true", parents=["a_1"])
    async with driven(tmp_path, cluster, 2, *jobs) as driver:
        poison(monkeypatch, owner, name)
        for _ in range(6):
            await driver.look()
            cluster.rows = [row._replace(state="COMPLETED") for row in cluster.rows]
            cluster.records = {
                f"{'1' * 20}/exits/{n + 1}/0": ExitRecord(n, 1, 100, 0, 0, 1.0, 2.0, "n1", "") for n in (0, 1)
            }
        assert await driver.open("1" * 20) is None, "the healthy run is over"
        assert "ZeroDivisionError: poisoned" in driver._quarantine.note(run_id("0" * 20))
        assert driver._quarantine.note(run_id("1" * 20)) == ""


async def test_an_unexpected_error_between_looks_stays_with_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FakeCluster()
    async with driven(tmp_path, cluster, 2, shell_job("a_1", "true"), shell_job("b_1", "true")) as driver:
        await driver.look()
        poison(monkeypatch, Engine, "take_records")
        cluster.records = {
            f"{n * 20}/exits/{chunk}/0": ExitRecord(node, 1, 100, 0, 0, 1.0, 2.0, "n1", "")
            for n in "01"
            for chunk, node in ((1, 0), (2, 1))
        }
        assert await driver.read_records()
        assert await driver.open("1" * 20) is None, "the healthy run is over"
        assert run_id("0" * 20) in driver._quarantine


async def test_what_is_in_slurm_of_a_poisoned_run_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, sick = FakeCluster(), "0" * 20
    async with driven(tmp_path, cluster, 2, shell_job("a_1", "true")) as driver:
        await driver.look()
        poison(monkeypatch, Engine, "see")
        poison(monkeypatch, Engine, "doubtful")
        await driver.look()
        await driver.tell(sick, lambda engine: engine.cancel(2.0))
        await driver.look()
        assert cluster.ended == [100]
        assert await states(driver, "1" * 20) == ["RUNNING"]


async def test_a_run_whose_log_breaks_the_engine_keeps_no_other_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FakeCluster()
    async with driven(tmp_path, cluster, 2, shell_job("a_1", "true")) as before:
        await anyio.to_thread.run_sync(before.close)
        whole = Engine.__init__

        def poisoned(self: Engine, meta: Any, *more: Any) -> None:
            if meta.token == "0" * 20:
                raise ZeroDivisionError("poisoned")
            whole(self, meta, *more)

        monkeypatch.setattr(Engine, "__init__", poisoned)
        state = StateFolder(tmp_path)
        await anyio.to_thread.run_sync(state.make)
        async with anyio.create_task_group() as group:
            after = driver_of(state, cluster, group)
            await after._runs.find_all()
            await after._runs.take_up()
            assert list(after.attempts) == ["1" * 20]
            assert "poisoned" in after._quarantine.note(run_id("0" * 20))
            await anyio.to_thread.run_sync(after.close)


async def test_an_error_outside_of_any_run_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster()
    config = msgspec.structs.replace(CONFIG, poll_interval_s=0.01, idle_interval_s=0.02)
    calls: list[float] = []

    async def broken_once() -> tuple[list[QueueRow], int]:
        calls.append(time.time())
        if len(calls) == 1:
            raise KeyError("unforeseen")
        return cluster.rows, 0

    async with driven(tmp_path, cluster, 1, shell_job("a_1", "true"), config=config) as driver:
        await driver.look()
        monkeypatch.setattr(cluster, "queue", broken_once)
        async with anyio.create_task_group() as group:
            group.start_soon(driver.run)
            with anyio.fail_after(30):
                while len(calls) < 2:  # noqa: ASYNC110 - it has no event for that
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()


async def test_a_log_that_breaks_the_reader_keeps_no_other_run_from_being_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Quarantine(QUIET, "site")
    async with driven(tmp_path, FakeCluster(), 2, shell_job("a_1", "true")):
        state = StateFolder(tmp_path)
        await anyio.to_thread.run_sync(state.make)
        follower = Follower(state, kept)
        whole = observe._Teller.tell

        def poisoned(self: observe._Teller, events: Any) -> Any:
            if self._meta.token == "0" * 20:
                raise ZeroDivisionError("poisoned")
            return whole(self, events)

        monkeypatch.setattr(observe._Teller, "tell", poisoned)
        request = PollRequest(known=tuple(KnownRun(run_id=n, wms_id=run_id(n * 20), token=n * 20) for n in "01"))
        looks = await anyio.to_thread.run_sync(lambda: list(follower.looks(request, BackendCursor())))
        seen = [one for look in looks for one in look.observations]
        assert [one.state for one in seen] == [WmsStates.RUNNING]
        first, second = kept.noted(seen, request.known, "log")
        assert (first.wms_id, first.note) == (run_id("1" * 20), "")
        assert second.wms_id == run_id("0" * 20)
        assert "poisoned" in str(second.note)
        monkeypatch.undo()
        kept.retry_now(run_id("0" * 20))
        looks = await anyio.to_thread.run_sync(lambda: list(follower.looks(request, BackendCursor())))
        assert {one.wms_id for look in looks for one in look.observations} == {run_id(n * 20) for n in "01"}
        assert run_id("0" * 20) not in kept
