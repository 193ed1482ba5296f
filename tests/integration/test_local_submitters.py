"""Runs as their submitters, with agents that are plain processes (`test_systemd` has real units and real users)."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import anyio
import msgspec
import pytest

from bpsd.errors import BackendUnavailable, PermissionDenied, RunNotFound, UnsupportedOperation
from bpsd.interface import ServiceContext, WmsWorkflow
from bpsd.models import KnownRun, PollRequest, PollResult, RunObservation, SourceReport, WmsStates
from bpsd.runs import RunRecord
from bpsd.testing.contract import AdapterContract, Bed
from bpsd.testing.observer import Observer, document, shell_job
from bpsd.workflow import WorkflowFile
from bpsd_adapters.local.service import LocalConfig, LocalService
from bpsd_adapters.local.submitters import PROMPT_S, SubmitterService

ANN, BEN = 41001, 41002
"""User ids of people who need not be there: who we are is systemd's business."""


class AnnsRuns(SubmitterService):
    """With somebody who submits, as the daemon says it."""

    Config: ClassVar[type[msgspec.Struct]] = LocalConfig

    async def prepare(
        self, config: Mapping[str, Any], generic_workflow: WorkflowFile, out_prefix: str | None = None
    ) -> WmsWorkflow:
        return await super().prepare({"submitter_uid": ANN, **config}, generic_workflow, out_prefix)

    async def check_workflow(self, config: Mapping[str, Any], generic_workflow: WorkflowFile) -> None:
        await super().check_workflow({"submitter_uid": ANN, **config}, generic_workflow)


@pytest.fixture(autouse=True)
def plain_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Agents as children of a shell that stays, as ``systemd-run`` does; returns the units that were wanted."""
    wanted: list[str] = []
    for uid in (ANN, BEN):
        (tmp_path / "lib" / str(uid)).mkdir(parents=True)

    def command(unit: str, uid: int, program: Sequence[str], *, outlived: bool, limiting: Sequence[str]) -> list[str]:
        wanted.append(unit)
        assert bool(limiting) is outlived
        return [
            "env",
            f"STATE_DIRECTORY={tmp_path / 'lib' / str(uid)}",
            "sh",
            "-c",
            'exec 3<&0; "$@" <&3 3<&- & wait',
            "sh",
            *program,
        ]

    monkeypatch.setattr("bpsd_adapters.local.submitters.service_command", command)
    monkeypatch.setattr("bpsd_adapters.local.submitters.slice_command", lambda *_: ["true"])
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/systemd-run")
    return wanted


class TestSubmitters(AdapterContract):
    @pytest.fixture
    def bed(self, tmp_path: Path) -> Bed:
        settings = {"cores": 2, "ledger": str(tmp_path / "ledger"), "terminate_grace_s": 2.0, "run_as": "submitter"}
        return Bed(AnnsRuns, settings, tmp_path)


async def settled(observer: Observer, jobs: list[dict[str, Any]], uid: int = ANN) -> str:
    """Submit as somebody; returns the run's id."""
    workflow = await observer.workflow(document(*jobs))
    prepared = await observer.service.prepare({"submitter_uid": uid}, workflow)
    await observer.service.submit(prepared)
    assert prepared.run_id is not None
    return prepared.run_id


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(AnnsRuns, {"cores": 2, "ledger": str(tmp_path / "ledger"), "terminate_grace_s": 2.0}, tmp_path)


async def test_each_user_has_agents_and_units_of_their_own(bed: Bed, plain_agents: list[str]) -> None:
    async with bed.open() as observer:
        anns = await settled(observer, [shell_job("a", "true")])
        bens = await settled(observer, [shell_job("b", "true")], BEN)
        assert (anns, bens) == (f"{ANN}-1", f"{BEN}-1")
        for run in (anns, bens):
            assert (await observer.until_over(run)).state is WmsStates.SUCCEEDED

    kinds = sorted(unit.rsplit("-", 1)[0] for unit in plain_agents)
    assert kinds == [f"bpsd-agent-{ANN}", f"bpsd-agent-{BEN}", f"bpsd-run-{ANN}-1", f"bpsd-run-{BEN}-1"]


async def test_nothing_runs_as_root_or_as_nobody(bed: Bed, plain_agents: list[str]) -> None:
    async with bed.open() as observer:
        workflow = await observer.workflow(document(shell_job("a", "true")))
        with pytest.raises(PermissionDenied):
            await observer.service.prepare({"submitter_uid": 0}, workflow)
        with pytest.raises(UnsupportedOperation):
            await observer.service.prepare({"submitter_uid": None}, workflow)
        with pytest.raises(RunNotFound):
            await observer.service.cancel("1")

    assert plain_agents == []


async def test_a_token_is_its_first_submitter_s(bed: Bed) -> None:
    async with bed.open() as observer:
        workflow = await observer.workflow(document(shell_job("a", "true")))
        await observer.service.prepare({"submitter_uid": ANN}, workflow)

        with pytest.raises(PermissionDenied):
            await observer.service.prepare({"submitter_uid": BEN}, workflow)


async def test_an_agent_tells_of_its_own_user_s_runs_alone(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user's process says of somebody else's run is dropped, whatever it claims."""
    async with bed.open() as observer:
        service = observer.service
        assert isinstance(service, SubmitterService)
        anns = await settled(observer, [shell_job("a", "sleep 60")])
        bens = await settled(observer, [shell_job("b", "sleep 60")], BEN)
        token = (await observer.until(anns, lambda run: run.state is WmsStates.RUNNING)).token
        await observer.until(bens, lambda run: run.state is WmsStates.RUNNING)
        own = observer.runs[bens].token
        lies = [
            RunObservation(wms_id="1", source="log", state=WmsStates.FAILED, token=token, attempt=99),
            RunObservation(wms_id="x", source="log", state=WmsStates.FAILED, token=own, attempt=99),
            RunObservation(wms_id="1", source="log", state=WmsStates.FAILED, attempt=99),
        ]
        bens_agent, ask = service._agents[BEN], service._agents[BEN].call

        async def lying(name: str, args: msgspec.Struct) -> Any:
            answer = await ask(name, args)
            if not isinstance(answer, PollResult):
                return answer
            return msgspec.structs.replace(
                answer, observations=lies, run_cursors={"x": "y"}, absent=("x",), cursor="z" * 2**21, more=True
            )

        with monkeypatch.context() as patch:
            patch.setattr(bens_agent, "call", lying)
            patch.setattr("bpsd_adapters.local.submitters.MORE_ROUNDS", 3)
            results = [await service.poll(PollRequest(known=observer.known())) for _ in range(4)]

        result = results[0]
        assert [seen for seen in result.observations if seen.attempt == 99] == []
        assert [name for name in result.run_cursors if "x" in name] == []
        assert result.absent == ()
        assert len(result.cursor or "") < 1000
        assert [each.more for each in results] == [True, True, False, False]  # nor is there no end to it
        for run in (anns, bens):
            assert (await service.cancel(run))[0]
            await observer.until_over(run)


async def test_an_agent_that_ends_is_started_again_and_takes_nobody_along(bed: Bed) -> None:
    async with bed.open() as observer:
        service = observer.service
        assert isinstance(service, SubmitterService)
        run = await settled(observer, [shell_job("a", "sleep 60")])
        await observer.until(run, lambda seen: seen.state is WmsStates.RUNNING)
        service._agents[ANN].close()

        result = await service.poll(PollRequest(known=observer.known()))

        assert {source.status for source in result.sources} == {"ok"}
        assert (await service.cancel(run))[0]
        assert (await observer.until_over(run)).state is WmsStates.DELETED


async def test_a_stopped_agent_delays_only_its_owner(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -STOP of one's own agent: others' polls take no longer, and cost no more."""
    monkeypatch.setattr("bpsd_adapters.local.submitters.ANSWER_WAIT_S", 5.0)
    async with bed.open() as observer:
        service = observer.service
        assert isinstance(service, SubmitterService)
        anns = await settled(observer, [shell_job("a", "sleep 60")])
        bens = await settled(observer, [shell_job("b", "sleep 60")], BEN)
        for run in (anns, bens):
            await observer.until(run, lambda seen: seen.state is WmsStates.RUNNING)
        agent = await stopped_agent(tmp_path, BEN)
        try:
            service._due.clear()
            polls = []
            for _ in range(3):
                began = time.monotonic()
                polls.append((await service.poll(PollRequest(known=observer.known())), time.monotonic() - began))
                assert anns in {seen.wms_id for seen in polls[-1][0].observations}
            assert polls[1][1] < PROMPT_S  # the first waited for a moment, the others know it
            assert sum(s.cost_s for s in polls[0][0].sources if not s.user) < PROMPT_S
            failures: list[tuple[str, str]] = []

            def note(sources: Sequence[SourceReport]) -> None:
                failures.extend((each.user, each.error) for each in sources if each.status != "ok")

            def ended(run: RunRecord) -> bool:
                note(observer.sources)
                return not run.live

            assert (await service.cancel(anns))[0]  # Ben's agent hangs, and Ann's run ends
            await observer.until(anns, ended)
            while not any("is asked again in" in error for _, error in failures):
                note((await service.poll(PollRequest(known=observer.known()))).sources)
                await anyio.sleep(0.05)
            assert failures[0] == (f"#{BEN}", f"the agent of user #{BEN} failed: no answer within 5 s")
            assert {user for user, _ in failures} == {f"#{BEN}"}
        finally:
            os.kill(agent, signal.SIGCONT)
        assert service._due[BEN] <= time.monotonic()  # its pause is all that it has to wait for
        monkeypatch.setattr("bpsd_adapters.local.submitters.PAUSE_S", 0.0)
        assert (await service.cancel(bens))[0]
        await observer.until_over(bens)


async def stopped_agent(folder: Path, uid: int) -> int:
    """Stop the agent that reads a user's runs; returns its process id."""

    def stop() -> int:
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                place = (entry / "environ").read_bytes()
            except OSError:
                continue
            # Its state folder is cut from its environment; the shell that started it still has it.
            if (
                b"bpsd_adapters.local.agent" in words
                and words[0] == os.fsencode(sys.executable)
                and (os.fsencode(f"STATE_DIRECTORY={folder / 'lib' / str(uid)}") in place.split(b"\0"))
            ):
                os.kill(int(entry.name), signal.SIGSTOP)
                return int(entry.name)
        raise AssertionError(f"no agent of {uid}")

    return await anyio.to_thread.run_sync(stop)


async def test_a_slow_agent_is_asked_less_often_and_misses_nothing(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpsd_adapters.local.submitters.PROMPT_S", 0.2)
    async with bed.open() as observer:
        service = observer.service
        assert isinstance(service, SubmitterService)
        run = await settled(observer, [shell_job("a", "sleep 60")])
        await observer.until(run, lambda seen: seen.state is WmsStates.RUNNING)
        ask, asked = service._agents[ANN].call, 0

        async def slowly(name: str, args: msgspec.Struct) -> Any:
            nonlocal asked
            if name == "poll":
                asked += 1
                await anyio.sleep(0.5)
            return await ask(name, args)

        service._due.clear()
        with monkeypatch.context() as patch:
            patch.setattr(service._agents[ANN], "call", slowly)
            first = await service.poll(PollRequest(cursor=observer.cursor, known=observer.known()))
            await anyio.sleep(0.6)
            later = await service.poll(PollRequest(cursor=observer.cursor, known=observer.known()))
            after = await service.poll(PollRequest(cursor=observer.cursor, known=observer.known()))

        assert [result.sources[-1].asked for result in (first, later, after)] == [False, True, False]
        assert {result.sources[-1].status for result in (first, later, after)} == {"ok"}
        assert later.sources[-1].cost_s >= 0.5
        assert asked == 1  # the next is due in 20 times what it took
        assert (await service.cancel(run))[0]
        await observer.until_over(run)


async def test_users_whose_agent_does_not_start_are_a_partial_answer(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = KnownRun(run_id="r", wms_id=f"{BEN}-7")
    async with bed.open() as observer:
        service = observer.service
        run = await settled(observer, [shell_job("a", "sleep 60")])
        await observer.until(run, lambda seen: seen.state is WmsStates.RUNNING)
        with monkeypatch.context() as patch:
            patch.setattr(
                "bpsd_adapters.local.submitters.service_command",
                lambda *_, **__: ["sh", "-c", "echo Access denied >&2; exit 1"],
            )
            result = await service.poll(PollRequest(known=(stranger, *observer.known())))

            assert {s.user: s.status for s in result.sources} == {"": "ok", f"#{ANN}": "ok", f"#{BEN}": "failed"}
            assert "Access denied" in result.sources[-1].error
            assert result.absent == ()
            with pytest.raises(BackendUnavailable, match="Access denied"):
                await service.cancel(f"{BEN}-7")
        assert (await service.cancel(run))[0]
        await observer.until_over(run)


async def test_where_no_agent_starts_at_all_the_backend_is_down(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bed.open() as observer:
        monkeypatch.setattr(
            "bpsd_adapters.local.submitters.service_command",
            lambda *_, **__: ["sh", "-c", "echo Access denied >&2; exit 1"],
        )
        result = await observer.service.poll(PollRequest(known=(KnownRun(run_id="r", wms_id=f"{BEN}-7"),)))

    assert {source.status for source in result.sources} == {"failed"}


@pytest.mark.blocking_allowed  # what a service is made of is looked at as it is made
async def test_the_settings_choose_the_class(tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        context = ServiceContext("b", tmp_path, None, lambda: 0.0, lambda _: None, tasks)

        assert isinstance(LocalService.made(LocalConfig(), context), LocalService)
        assert isinstance(LocalService.made(LocalConfig(run_as="submitter"), context), SubmitterService)
