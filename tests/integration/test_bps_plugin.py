"""A plugin of ``bps`` as a backend: the contract of every adapter and what plugins get wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
import structlog

from bpsd.errors import (
    BackendAuthError,
    BackendUnavailable,
    Conflict,
    DeadlineExceeded,
    RunNotFound,
    UnsupportedOperation,
    WorkflowInvalid,
)
from bpsd.models import WmsStates
from bpsd.testing.contract import AdapterContract, Bed, ExecutionContract
from bpsd.testing.observer import Observer, document, shell_job
from bpsd_adapters.bps_plugin.service import BpsPluginService
from bpsd_adapters.local import processes
from tests.leftovers import SESSION_VARIABLE

WORLD = Path(__file__).parents[1] / "fixtures" / "plugin_world"


def tiny_settings(folder: Path, plugin: str, **more: Any) -> dict[str, Any]:
    """A backend's settings for one of the small plugins."""
    wms = folder / "wms"
    wms.mkdir(exist_ok=True)
    return {
        "plugin": f"tinywms.{plugin}",
        "python": sys.executable,
        "environment": {
            "PYTHONPATH": str(WORLD),
            "TINY_WMS": str(wms),
            SESSION_VARIABLE: os.environ[SESSION_VARIABLE],
        },
        "submit_root": str(folder / "runs"),
        "settle_s": 0.0,
        **more,
    }


class SmallPlugin(AdapterContract):
    """What these plugins do of what jobs may ask for."""

    test_order_and_output = ExecutionContract.test_order_and_output
    test_failure_prunes_and_restart_goes_on_from_there = (
        ExecutionContract.test_failure_prunes_and_restart_goes_on_from_there
    )
    test_bad_workflows_are_refused_before_anything_runs = (
        ExecutionContract.test_bad_workflows_are_refused_before_anything_runs
    )


class TestReportingPlugin(SmallPlugin):
    @pytest.fixture
    def bed(self, tmp_path: Path) -> Bed:
        settings = tiny_settings(tmp_path, "TinyService", token_query="token={token}")
        return Bed(BpsPluginService, settings, tmp_path)


class TestBlockingPlugin(SmallPlugin):
    @pytest.fixture
    def bed(self, tmp_path: Path) -> Bed:
        settings = tiny_settings(tmp_path, "BlockingService", blocks=True)
        return Bed(BpsPluginService, settings, tmp_path)


@pytest.fixture
def python_3_10() -> str:
    """The oldest Python that a plugin may live in."""
    found = [shutil.which("python3.10"), *map(str, Path.home().glob(".pyenv/versions/3.10.*/bin/python"))]
    for python in filter(None, found):
        if subprocess.run([python, "-c", "pass"], capture_output=True, check=False).returncode == 0:
            return python
    pytest.skip("no Python 3.10 on this machine")


@pytest.mark.parametrize("plugin", ["TinyService", "BlockingService"])
async def test_a_plugin_in_the_oldest_python(tmp_path: Path, python_3_10: str, plugin: str) -> None:
    settings = tiny_settings(tmp_path, plugin, blocks=plugin == "BlockingService") | {"python": python_3_10}
    async with Bed(BpsPluginService, settings, tmp_path).open() as observer:
        wms_id, workflow = await observer.submit(ONE_JOB)
        run = await observer.until_over(wms_id)
        assert (run.state, run.token) == (WmsStates.SUCCEEDED, workflow.token)
        assert observer.service._commanding.facts["python"].startswith("3.10.")


# -- what plugins get wrong --------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Bed:
    return Bed(BpsPluginService, tiny_settings(tmp_path, "TinyService", token_query="token={token}"), tmp_path)


@pytest.fixture
def blocking(tmp_path: Path) -> Bed:
    return Bed(BpsPluginService, tiny_settings(tmp_path, "BlockingService", blocks=True), tmp_path)


def let(bed: Bed, method: str, what: str) -> None:
    """Let a method of the plugin misbehave; an empty word mends it."""
    (bed.folder / "wms" / f"fault.{method}").write_text(what)


def remove(folder: Path) -> None:
    """Delete a folder."""
    shutil.rmtree(folder)


def environ_of(pid: int) -> str:
    """A process's environment, parted by zero bytes."""
    return Path(f"/proc/{pid}/environ").read_text()


ONE_JOB = document(shell_job("only_1", "true"))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("total_number_jobs", "nan", "not what a report looks like"), ("state", "fine", "not what a report looks like")],
)
async def test_a_value_that_cannot_be_read_is_an_error_of_its_run(tiny: Bed, field: str, value: str, said: str) -> None:
    gate = tiny.scratch / "gate"
    waits = document(shell_job("waits_1", f"until test -e {gate}; do sleep 0.05; done"))
    async with tiny.open() as observer:
        bad, _ = await observer.submit(waits)
        good, _ = await observer.submit(waits)
        for wms_id in (bad, good):
            await observer.until(wms_id, lambda run: run.state is WmsStates.RUNNING)
        let(tiny, "values", repr({bad: (field, value)}))
        began = time.monotonic()
        result = await observer.poll()
        assert time.monotonic() - began < 30, "at once, not when the time is over"
        assert [source.status for source in result.sources] == ["partial"]
        assert said in result.sources[0].error
        await observer.until(bad, lambda run: said in run.note)
        assert observer.runs[bad].state is WmsStates.RUNNING
        assert observer.runs[good].note == ""
        gate.touch()
        assert (await observer.until_over(good)).state is WmsStates.SUCCEEDED
        let(tiny, "values", "{}")
        run = await observer.until_over(bad)
        assert (run.state, run.note) == (WmsStates.SUCCEEDED, "")


async def test_text_with_half_a_character_is_shown_spelled_out(tiny: Bed) -> None:
    async with tiny.open() as observer:
        wms_id, _ = await observer.submit(ONE_JOB)
        let(tiny, "values", repr({wms_id: ("label", "a\ud800b")}))
        await observer.until_over(wms_id)
        reports, _ = await observer.service.report(wms_id)
        assert reports[0].label == "a\\ud800b"


async def test_an_exit_in_prepare_refuses_the_run_at_once(tiny: Bed) -> None:
    let(tiny, "prepare", "exit")
    async with tiny.open() as observer:
        with pytest.raises(WorkflowInvalid, match="1 mistake") as caught:
            await observer.submit(ONE_JOB)
    assert "sys.exit('no credentials')" in str(caught.value.problems[0].message)


async def test_exit_is_an_answer(tiny: Bed) -> None:
    let(tiny, "report", "exit")
    async with tiny.open() as observer:
        with pytest.raises(BackendAuthError, match=r"sys\.exit\('no credentials'\)"):
            await observer.service.report()
        assert await observer.service.ping() == (0, "tiny is well"), "the worker is still there"


async def test_nothing_is_typed_at_a_plugin(tiny: Bed) -> None:
    let(tiny, "report", "ask")
    async with tiny.open() as observer:
        with pytest.raises(BackendUnavailable, match="EOF"):
            await observer.service.report()


async def test_an_error_of_a_plugin_fails_the_poll_and_the_next_is_good(tiny: Bed) -> None:
    async with tiny.open() as observer:
        let(tiny, "report", "raise")
        with pytest.raises(BackendUnavailable, match="the WMS has a cold"):
            await observer.poll()
        let(tiny, "report", "")
        await observer.poll()


async def test_a_process_that_dies_is_started_again(tiny: Bed) -> None:
    async with tiny.open() as observer:
        let(tiny, "ping", "die")
        status, message = await observer.service.ping()
        assert status == 1
        assert "ended" in message
        let(tiny, "ping", "")
        assert await observer.service.ping() == (0, "tiny is well")


async def test_a_call_is_ended_by_its_deadline(tmp_path: Path) -> None:
    bed = Bed(BpsPluginService, tiny_settings(tmp_path, "TinyService", call_deadline_s=2.0), tmp_path)
    let(bed, "report", "hang")
    async with bed.open() as observer:
        with pytest.raises(DeadlineExceeded):
            await observer.service.report()
        let(bed, "report", "")
        assert await observer.service.report() == ([], "")


async def test_what_a_plugin_prints_is_logged_and_disturbs_nothing(tiny: Bed) -> None:
    with structlog.testing.capture_logs() as logs:
        async with tiny.open() as observer:
            await observer.service.ping()
            await observer.service.ping()
    said = [log["text"] for log in logs if log["event"] == "plugin_said"]
    assert said.count("tiny: ping") >= 1
    assert said.count("a child of ping") >= 1


async def test_a_plugin_has_the_backend_s_environment_and_no_other(tiny: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "x")
    async with tiny.open() as observer:
        await observer.service.ping()
        pid = observer.service._reading.facts["pid"]
        variables = environ_of(pid).split("\0")
    names = {variable.partition("=")[0] for variable in variables if variable}
    configured = set(tiny.settings["environment"])
    assert names - configured == {"HOME", "USER", "LOGNAME", "LANG", "PATH", "PWD"} & (names - configured)
    assert "SECRET_OF_THE_DAEMON" not in names


@pytest.mark.parametrize("fault", ["raise", "die", "exit"])
async def test_a_submission_that_was_cut_off_is_found_by_its_token(tiny: Bed, fault: str) -> None:
    """The WMS has the run, and the plugin did not come back: nothing is submitted twice."""
    async with tiny.open() as observer:
        workflow = await observer.workflow(ONE_JOB)
        prepared = await observer.service.prepare({}, workflow)
        let(tiny, "submit", fault)
        with pytest.raises((BackendUnavailable, BackendAuthError)):
            await observer.service.submit(prepared)
        let(tiny, "submit", "")
        with pytest.raises(BackendUnavailable, match="its end is not known"):
            await observer.service.submit(prepared)
        answer = await observer.service.find_by_token(workflow.token, time.time() - 60)
        assert (answer.verdict, answer.wms_id) == ("found", "1")
        await observer.service.submit(prepared)
        assert prepared.run_id == "1"
        run = await observer.until_over("1")
        assert (run.state, run.token) == (WmsStates.SUCCEEDED, workflow.token)
    assert len(list((tiny.folder / "wms").glob("*.json"))) == 1


async def test_a_submission_that_never_arrived_is_tried_again(tiny: Bed) -> None:
    async with tiny.open() as observer:
        workflow = await observer.workflow(ONE_JOB)
        prepared = await observer.service.prepare({}, workflow)
        let(tiny, "submit", "die")
        with pytest.raises(BackendUnavailable):
            await observer.service.submit(prepared)
        for run in (tiny.folder / "wms").glob("*.json"):
            run.unlink()  # the WMS lost it: it answers completely, and does not have it
        let(tiny, "submit", "")
        assert (await observer.service.find_by_token(workflow.token, time.time() - 60)).verdict == "absent"
        await observer.service.submit(prepared)
        assert (await observer.until_over(str(prepared.run_id))).state is WmsStates.SUCCEEDED


async def test_without_a_question_by_token_nobody_can_tell(tmp_path: Path) -> None:
    bed = Bed(BpsPluginService, tiny_settings(tmp_path, "TinyService"), tmp_path)
    async with bed.open() as observer:
        workflow = await observer.workflow(ONE_JOB)
        prepared = await observer.service.prepare({}, workflow)
        let(bed, "submit", "die")
        with pytest.raises(BackendUnavailable):
            await observer.service.submit(prepared)
        answer = await observer.service.find_by_token(workflow.token, 0.0)
        assert answer.verdict == "cannot_tell"
        assert "cannot be asked by token" in answer.reason


async def test_a_plugin_without_restart_leaves_no_attempt_in_doubt(tmp_path: Path) -> None:
    bed = Bed(BpsPluginService, tiny_settings(tmp_path, "OnceService"), tmp_path)
    async with bed.open() as observer:
        wms_id, workflow = await observer.submit(document(shell_job("bad_1", "false")))
        assert (await observer.until_over(wms_id)).state is WmsStates.FAILED
        attempt = f"{workflow.token}.2"
        for _ in range(2):
            with pytest.raises(UnsupportedOperation, match="does not implement restart"):
                await observer.service.restart(wms_id, attempt_token=attempt)
        assert (await observer.service.find_by_token(attempt, 0.0)).verdict == "absent"


async def test_a_folder_that_was_removed_is_not_where_a_worker_stays(tiny: Bed) -> None:
    """Plugins find themselves in the folder of the run that they prepare, and not there for ever."""
    async with tiny.open() as observer:
        wms_id, workflow = await observer.submit(document(shell_job("bad_1", "false")))
        await observer.until_over(wms_id)
        last, other = await observer.submit(ONE_JOB)
        await observer.until_over(last)
        remove(tiny.folder / "runs" / other.token)
        again = await observer.restart(wms_id, workflow.token, 2)
        assert (await observer.until_over(again, attempt=2)).state is WmsStates.FAILED


async def test_what_a_plugin_cannot_prepare_is_a_mistake_of_the_workflow(tiny: Bed) -> None:
    let(tiny, "prepare", "raise")
    async with tiny.open() as observer:
        with pytest.raises(WorkflowInvalid, match="the WMS has a cold"):
            await observer.submit(ONE_JOB)


async def test_a_plugin_that_lists_nothing_is_asked_for_our_runs(tmp_path: Path) -> None:
    """As PanDA: no question goes out without an id."""
    bed = Bed(BpsPluginService, tiny_settings(tmp_path, "TinyService", lists=False), tmp_path)
    async with bed.open() as observer:
        wms_id, workflow = await observer.submit(ONE_JOB)
        run = await observer.until_over(wms_id)
        assert (run.state, run.token) == (WmsStates.SUCCEEDED, workflow.token)
        reports, _ = await observer.service.report(hist=2)
        assert [report.wms_id for report in reports] == [wms_id]
        assert await observer.service.list_submitted_jobs() == []


def test_panda_is_not_started_without_its_servers() -> None:
    settings = {"plugin": "lsst.ctrl.bps.panda.PanDAService", "python": "python3", "environment": {"PANDA_URL": "x"}}
    with pytest.raises(msgspec.ValidationError, match="PANDA_URL_SSL, PANDA_API_URL, PANDA_API_URL_SSL"):
        msgspec.convert(settings, BpsPluginService.Config)


# -- hosts -------------------------------------------------------------------------------------------------------------


def begin_of(bed: Bed, token: str) -> dict[str, Any]:
    """How the last attempt of a run began, as its log tells."""
    lines = (bed.folder / "runs" / token / "run.log").read_bytes().splitlines()
    begins: list[dict[str, Any]] = [e for e in (json.loads(line[16:]) for line in lines) if e["e"] == "begin"]
    return begins[-1]


def host_of(bed: Bed, token: str) -> int:
    """The process that hosts a run."""
    pid: int = begin_of(bed, token)["pid"]
    return pid


async def test_a_run_goes_on_without_the_daemon_and_its_workers(blocking: Bed) -> None:
    gate = blocking.scratch / "gate"
    async with blocking.open() as observer:
        wms_id, workflow = await observer.submit(
            document(shell_job("waits_1", f"while ! test -e {gate}; do sleep 0.05; done"))
        )
        await observer.until(wms_id, lambda run: observer.states(wms_id) == {"waits_1": "RUNNING"} or not run.live)
        host = host_of(blocking, workflow.token)
    assert host_of(blocking, workflow.token) == host
    gate.touch()
    async with blocking.open() as observer:
        run = await observer.until_over(wms_id)
        assert (run.state, run.token) == (WmsStates.SUCCEEDED, workflow.token)


async def test_a_killed_host_is_noticed_and_a_restart_goes_on_from_there(blocking: Bed) -> None:
    gate, trace = blocking.scratch / "gate", blocking.scratch / "trace"
    async with blocking.open() as observer:
        wms_id, workflow = await observer.submit(
            document(
                shell_job("before_1", f"echo before >> {trace}"),
                shell_job(
                    "waits_1", f"echo waits >> {trace}; until test -e {gate}; do sleep 0.05; done", parents=["before_1"]
                ),
            )
        )
        await observer.until(wms_id, lambda _: trace.exists() and "waits" in trace.read_text())
        await observer.until(wms_id, lambda _: observer.states(wms_id).get("before_1") == "SUCCEEDED")
        os.kill(host_of(blocking, workflow.token), signal.SIGKILL)
        run = await observer.until(wms_id, lambda run: "process of the run still lives" in run.note)
        assert run.state is WmsStates.RUNNING
        with pytest.raises(Conflict, match="goes on"):
            await observer.restart(wms_id, workflow.token, 2)

        gate.touch()
        run = await observer.until_over(wms_id)
        assert run.state is WmsStates.FAILED
        assert run.note == "its host process is gone; a restart goes on from where it was"
        again = await observer.restart(wms_id, workflow.token, 2)
        run = await observer.until_over(again, attempt=2)
        assert run.state is WmsStates.SUCCEEDED
        assert trace.read_text().split() == ["before", "waits", "waits"]


SCRIPT = "(setsid env -i /bin/sleep 300 >/dev/null 2>&1 &); touch {started}; exec sleep 300"
"""Leaves a process that nothing in it connects with its run: no environment, no session, no file."""


def living(pids: list[int]) -> list[int]:
    """Those that have not ended."""
    return [pid for pid in pids if processes.of_pid(pid) != processes.GONE]


async def with_a_killed_host(bed: Bed, observer: Observer) -> tuple[str, list[int]]:
    """A run whose host was killed, and the two processes that it left."""
    started = bed.scratch / "started"
    wms_id, workflow = await observer.submit(document(shell_job("long_1", SCRIPT.format(started=started))))
    await observer.until(wms_id, lambda _: started.exists())
    begin = await anyio.to_thread.run_sync(begin_of, bed, workflow.token)
    keeper = processes.Process(*begin["keeper"])
    found = [p.pid for p in await anyio.to_thread.run_sync(processes.descendants, keeper) if p.pid != begin["pid"]]
    assert len(found) == 2
    os.kill(begin["pid"], signal.SIGKILL)
    return wms_id, found


async def test_a_killed_host_is_cancelled_in_its_place(blocking: Bed) -> None:
    """What a killed host left running is ended too."""
    async with blocking.open() as observer:
        wms_id, left = await with_a_killed_host(blocking, observer)
        run = await observer.until(wms_id, lambda run: "2 processes of the run still live" in run.note)
        assert run.state is WmsStates.RUNNING
        agreed, _ = await observer.service.cancel(wms_id)
        assert agreed
        assert (await observer.until_over(wms_id)).state is WmsStates.DELETED
        assert await anyio.to_thread.run_sync(living, left) == []


async def test_what_a_killed_host_left_is_ended_where_that_is_configured(blocking: Bed) -> None:
    blocking.settings["leftover_processes"] = "end"
    async with blocking.open() as observer:
        wms_id, left = await with_a_killed_host(blocking, observer)
        run = await observer.until_over(wms_id)
        assert (run.state, run.note) == (WmsStates.FAILED, "its host process was killed, and what it left was ended")
        assert await anyio.to_thread.run_sync(living, left) == []


async def test_a_run_that_is_over_leaves_no_process(blocking: Bed) -> None:
    stray = blocking.scratch / "stray"
    script = f"(setsid env -i /bin/sh -c 'echo $$ > {stray}; exec sleep 300' >/dev/null 2>&1 &); "
    async with blocking.open() as observer:
        wms_id, _ = await observer.submit(document(shell_job("a_1", script + f"until test -s {stray}; do :; done")))
        assert (await observer.until_over(wms_id)).state is WmsStates.SUCCEEDED
        assert await anyio.to_thread.run_sync(living, [int(stray.read_text())]) == []


async def test_a_plugin_that_fails_at_once_is_a_failed_run(blocking: Bed) -> None:
    let(blocking, "submit", "raise")
    async with blocking.open() as observer:
        wms_id, _ = await observer.submit(ONE_JOB)
        run = await observer.until_over(wms_id)
        assert run.state is WmsStates.FAILED
        assert run.note == "RuntimeError: the WMS has a cold"


async def test_a_run_that_goes_on_is_not_restarted(blocking: Bed) -> None:
    async with blocking.open() as observer:
        wms_id, workflow = await observer.submit(document(shell_job("long_1", "sleep 300")))
        with pytest.raises(Exception, match="goes on"):
            await observer.service.restart(wms_id, attempt_token=f"{workflow.token}.2")
        with pytest.raises(RunNotFound):
            await observer.service.get_status("/nowhere")
        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id)


async def test_a_run_whose_folder_was_deleted_is_absent_and_the_others_are_not(blocking: Bed) -> None:
    flag = blocking.scratch / "flag"
    flag.touch()
    async with blocking.open() as observer:
        orphan = shell_job("long_1", f"while test -e {flag}; do sleep 0.05; done")
        gone, workflow = await observer.submit(document(orphan))
        there, _ = await observer.submit(document(shell_job("long_1", "sleep 300")))
        await observer.until(there, lambda run: run.state is WmsStates.RUNNING)
        os.kill(host_of(blocking, workflow.token), signal.SIGKILL)
        remove(Path(gone))
        result = await observer.poll()
        assert result.absent == (gone,)
        flag.unlink()
        await observer.service.cancel(there)
        await observer.until_over(there)


async def test_a_folder_that_is_not_mounted_denies_no_run(blocking: Bed) -> None:
    runs = blocking.folder / "runs"
    async with blocking.open() as observer:
        wms_id, _ = await observer.submit(document(shell_job("long_1", "sleep 300")))
        await observer.until(wms_id, lambda run: run.state is WmsStates.RUNNING)
        runs.rename(runs.with_name("elsewhere"))
        with pytest.raises(BackendUnavailable, match="is its file system mounted"):
            await observer.poll()
    async with blocking.open() as observer:
        with pytest.raises(BackendUnavailable, match="is its file system mounted"):
            await observer.poll()
        assert not (runs / ".bpsd").exists()
    runs.with_name("elsewhere").rename(runs)
    async with blocking.open() as observer:
        await observer.until(wms_id, lambda run: run.state is WmsStates.RUNNING)
        await observer.service.cancel(wms_id)
        await observer.until_over(wms_id)


async def test_a_slow_import_is_waited_for_by_several_polls(tmp_path: Path) -> None:
    """Who asks may give up: the import goes on, and is not begun again."""
    bed = Bed(BpsPluginService, tiny_settings(tmp_path, "TinyService"), tmp_path)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "slowwms.py").write_text(
        "import pathlib, time, os\nfrom tinywms import TinyService as SlowService\n"
        f"pathlib.Path({str(tmp_path)!r}, 'begun').open('a').write('x')\n"
        f"while not pathlib.Path({str(tmp_path)!r}, 'gate').exists(): time.sleep(0.05)\n"
    )
    bed.settings["plugin"] = "slowwms.SlowService"
    bed.settings["environment"]["PYTHONPATH"] += f":{tmp_path / 'slow'}"
    async with bed.open() as observer:
        for _ in range(3):
            with pytest.raises(TimeoutError), anyio.fail_after(0.5):
                await observer.service.report()
        (tmp_path / "gate").touch()
        assert await observer.service.report() == ([], "")
    assert (tmp_path / "begun").read_text() == "x"


@pytest.mark.parametrize(
    ("text", "forms"), [("12", {"12", "12.0"}), ("12.0", {"12", "12.0"}), ("/a/b/", {"/a/b/", "/a/b"})]
)
async def test_forms_of_an_id(tiny: Bed, text: str, forms: set[str]) -> None:
    async with tiny.open() as observer:
        assert set(observer.service.resolve_id(text)) == forms
