"""`BpsdService` where no daemon is needed, and where none runs. The rest is proven with the real ``bps`` command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from lsst.ctrl.bps import (
    BPS_DEFAULTS,
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowJob,
    WmsStates,
)
from lsst.ctrl.bps.bps_reports import compile_code_summary, compile_job_summary
from lsst.ctrl.bps.report import display_report
from lsst.ctrl.bps.tests.gw_test_utils import make_3_label_workflow

from bpsd import wire
from bpsd.lsst import BpsdService, preparing, reports
from bpsd.lsst.service import BpsdServiceError, BpsdWorkflow


@pytest.fixture(autouse=True)
def no_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BPSD_SOCKET", str(tmp_path / "nobody"))


def config_of(**settings: Any) -> BpsConfig:
    return BpsConfig(
        {"computeSite": "here", "memoryLimit": 4096, "operator": "op", **settings},
        defaults=BPS_DEFAULTS,
        wms_service_class_fqn="bpsd.lsst.BpsdService",
    )


def workflow_of(**fields: Any) -> GenericWorkflow:
    job = GenericWorkflowJob("job", "label1", executable=GenericWorkflowExec("sh", "sh"), **fields)
    workflow = GenericWorkflow("night")
    workflow.add_job(job)
    return workflow


def prepared(workflow: GenericWorkflow, environ: Mapping[str, str] | None = None, **settings: Any) -> dict[str, Any]:
    return preparing.prepared_document(config_of(**settings), workflow, environ or {})


# -- the price of it ---------------------------------------------------------------------------------------------------


QUESTION = """
import sys
import lsst.ctrl.bps.cli.bps, lsst.ctrl.bps.report
before = set(sys.modules)
from bpsd.lsst import BpsdService
print(BpsdService({}).ping()[0])
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_what_is_imported_for_a_question_is_ours_alone() -> None:
    """No plugin's library and none of the daemon's: what ``bps report`` takes, it takes to import the middleware."""
    done = subprocess.run([sys.executable, "-c", QUESTION], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "bpsd"]


# -- preparing ---------------------------------------------------------------------------------------------------------


SHELL = {
    "PATH": "/bin",
    "EUPS_PATH": "/stack",
    "PS1": "$ ",
    "SSH_AUTH_SOCK": "/tmp/x",
    "BPSD_SOCKET": "/run/s",
    "LINES_OF": "a\nb",
    "BASH_FUNC_module%%": "() { :; }",
    "XDG_RUNTIME_DIR": "/run",
}


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        (True, {"PATH", "EUPS_PATH"}),
        ("true", {"PATH", "EUPS_PATH"}),
        (False, set()),
        ("EUPS_*, SSH_AUTH_SOCK", {"EUPS_PATH", "SSH_AUTH_SOCK"}),
        (["PATH"], {"PATH"}),
    ],
)
def test_jobs_get_what_the_shell_has_and_a_job_can_use(wanted: Any, kept: set[str]) -> None:
    assert preparing.shell_environment(wanted, SHELL) == {name: SHELL[name] for name in kept}
    assert set(prepared(workflow_of(), SHELL, bpsdEnvironment=wanted).get("environment", {})) == kept


def test_variables_are_expanded_where_the_user_is() -> None:
    workflow = workflow_of(
        arguments="<ENV:STACK>/run <ENV:TEXT> <ENV:UNKNOWN> {x}",
        cmdvals={"x": "<ENV:STACK>"},
        environment={"PATH": "/mine:<ENV:PATH>"},
    )
    workflow.add_executable(GenericWorkflowExec("tool", "<ENV:STACK>/bin/tool"))
    workflow.add_file(GenericWorkflowFile("f", "<ENV:STACK>/f"))

    document = prepared(workflow, {"PATH": "/usr/bin:/bin", "STACK": "/opt/s", "TEXT": "two words"})

    (job,) = document["jobs"]
    assert job["arguments"] == "/opt/s/run <ENV:TEXT> <ENV:UNKNOWN> {x}", "what would change the quoting stays"
    assert job["cmdvals"] == {"x": "/opt/s"}
    assert job["environment"] == {"PATH": "/mine:/usr/bin:/bin"}
    assert document["environment"]["TEXT"] == "two words", "so it is there when the job runs"
    programs = {entry["name"]: entry["src_uri"] for entry in document["executables"]}
    assert programs["tool"] == "/opt/s/bin/tool"
    assert programs["sh"] in ("/usr/bin/sh", "/bin/sh"), "looked up in the user's PATH"
    assert document["files"][0]["src_uri"] == "/opt/s/f"


def test_memory_scaling_keeps_to_the_sites_limit() -> None:
    def limit(**fields: Any) -> int | None:
        big: dict[str, Any] = {"site": {"big": {"memoryLimit": 9999}}, "computeSite": "big"}
        settings = big if fields.pop("big", False) else {}
        (job,) = prepared(workflow_of(**fields), **settings)["jobs"]
        found: int | None = job.get("request_memory_max")
        return found

    assert limit(request_memory=100, memory_multiplier=2) == 4096
    assert limit(request_memory=100, memory_multiplier=2, request_memory_max=200) == 200
    assert limit(request_memory=100, memory_multiplier=2, request_memory_max=8000) == 4096
    assert limit(request_memory=100, memory_multiplier=2, big=True) == 9999
    assert limit(request_memory="100", memory_multiplier="2") == 4096, "as text, as a submit file may have it"
    assert limit(request_memory=100) is None, "nothing scales"
    assert limit(request_memory=5000, memory_multiplier=2) is None, "what is asked for is above the limit already"


@pytest.mark.parametrize(
    ("fields", "settings", "said"),
    [
        ({"request_memory": "many", "memory_multiplier": 2}, {}, "request_memory of the job job is 'many'"),
        ({"memory_multiplier": 2}, {"memoryLimit": "lots"}, "memoryLimit for label1 is 'lots': it is a number of MB"),
    ],
)
def test_what_is_no_number_is_a_mistake_and_no_traceback(
    tmp_path: Path, fields: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(BpsdServiceError, match=said):
        BpsdService(config_of()).prepare(config_of(**settings), workflow_of(**fields), tmp_path)


def test_lines_of_a_profile_reach_the_jobs_of_their_label_and_site() -> None:
    (job,) = prepared(
        workflow_of(profile={"rank": "Memory"}),
        site={"here": {"profile": {"condor": {"requirements": "(Name == 1)", "+Flavour": "long"}}}},
    )["jobs"]

    assert job["profile"] == {"rank": "Memory", "requirements": "(Name == 1)", "+Flavour": "long"}


def test_what_only_plugins_fill_in_is_said(caplog: pytest.LogCaptureFixture) -> None:
    prepared(workflow_of(arguments="--try <WMS:attemptNum>"))

    assert "<WMS:...>" in caplog.text


def test_commands_that_a_plugin_would_put_together_are_refused() -> None:
    with pytest.raises(preparing.CannotPrepare, match="bpsMakeCommand is false for label1"):
        prepared(workflow_of(), bpsMakeCommand=False)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, (None, "here")),
        ({"bpsdBackend": "slurm"}, ("slurm", "here")),
        ({"site": {"here": {"bpsdBackend": "pool"}}}, ("pool", "here")),
        ({"bps_cmdline": {"computeSite": "there"}, "site": {"here": {"bpsdBackend": "pool"}}}, (None, "there")),
    ],
)
def test_backend_comes_from_a_setting_or_the_site(settings: dict[str, Any], named: tuple[str | None, str]) -> None:
    assert preparing.backend_setting(config_of(**settings)) == named


# -- prepare and submit ------------------------------------------------------------------------------------------------


def test_prepare_writes_the_same_run_once(tmp_path: Path) -> None:
    service = BpsdService(config_of())

    first = service.prepare(config_of(), make_3_label_workflow("night", True), tmp_path / "run")
    again = service.prepare(config_of(), make_3_label_workflow("night", True), tmp_path / "run")

    path = tmp_path / "run" / "bpsd.json"
    assert first.token == again.token == json.loads(path.read_text())["run"]["attrs"]["bps_token"]
    assert len(first.token) == wire.TOKEN_LENGTH
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["bpsd.json"]
    read = BpsdWorkflow.from_folder(path.parent)
    assert (read.name, read.token, read.document) == ("night", first.token, first.document)
    assert read.config["memoryLimit"] == 4096
    changed = service.prepare(config_of(memoryLimit=1), make_3_label_workflow("night", True), tmp_path / "run")
    assert changed.token != first.token, "another content is another run"


def test_what_was_prepared_must_be_there_to_be_submitted(tmp_path: Path) -> None:
    workflow = BpsdService(config_of()).prepare(config_of(), make_3_label_workflow("night", True), tmp_path / "run")
    (tmp_path / "run" / "bpsd.json").unlink()
    with pytest.raises(BpsdServiceError, match="prepare the run again"):
        BpsdService(config_of()).submit(workflow)


def test_prepare_tells_every_mistake(tmp_path: Path) -> None:
    workflow = workflow_of(request_cpus=0, mail_to="a\nb")

    with pytest.raises(BpsdServiceError) as caught:
        BpsdService(config_of()).prepare(config_of(), workflow, str(tmp_path))

    assert "request_cpus: must be at least 1" in str(caught.value)
    assert "mail_to: contains the control character" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_bpsd_cannot_do_is_refused_with_advice(tmp_path: Path) -> None:
    service = BpsdService(config_of())
    with pytest.raises(BpsdServiceError, match=r"set remoteBuild\.enabled to false"):
        service.submit(None, config=config_of(), remote_build={"enabled": True}, config_file="x")
    with pytest.raises(BpsdServiceError, match="set bpsBatchSubmission to false"):
        BpsdService(config_of(bpsBatchSubmission=True)).run_submission_checks()
    with pytest.raises(BpsdServiceError, match=r"set remoteBuild\.enabled to false"):
        BpsdService(config_of(remoteBuild={"enabled": True})).run_submission_checks()
    with pytest.raises(BpsdServiceError, match="prepare the run again"):
        BpsdWorkflow.from_folder(tmp_path)


def test_without_a_daemon_every_method_says_so(tmp_path: Path) -> None:
    service = BpsdService({})
    workflow = BpsdService(config_of()).prepare(config_of(), make_3_label_workflow("night", True), str(tmp_path))
    for act in (
        lambda: service.submit(workflow, config=config_of()),
        lambda: service.report("1"),
        service.report,
        lambda: service.get_status("1"),
        service.list_submitted_jobs,
        lambda: service.cancel("1"),
        lambda: service.restart("1"),
        BpsdService(config_of()).run_submission_checks,
    ):
        with pytest.raises(click.ClickException, match=f"no daemon answers on {os.environ['BPSD_SOCKET']}"):
            act()
    status, message = service.ping(None)
    assert status == 1
    assert "bpsd serve" in message
    assert "--socket" not in message, "bps has no such option"


def test_prepare_command_checks_the_configuration_alone() -> None:
    with click.Context(click.Command("prepare"), info_name="prepare"):
        BpsdService(config_of()).run_submission_checks()


def test_cancel_of_nothing_in_particular_ends_nothing() -> None:
    with click.Context(click.Command("cancel"), info_name="cancel"):
        assert BpsdService({}).list_submitted_jobs() == []


# -- reports -----------------------------------------------------------------------------------------------------------


ROW: dict[str, Any] = {
    "id": "rbcdfghjk",
    "backend": "pool",
    "wms_id": "12",
    "name": "night",
    "state": "RUNNING",
    "total": 5,
    "counts": {"SUCCEEDED": 2, "FAILED": 2, "RUNNING": 1},
    "path": "/submit/night",
    "operator": "op",
    "site": "here",
    "run_summary": "isr:3;coadd:2",
    "labels": {"isr": {"SUCCEEDED": 2, "FAILED": 1}, "coadd": {"FAILED": 1, "RUNNING": 1}},
    "exit_codes": {"isr": {"1": 1}, "coadd": {"137": 1}},
    "observed_at": 1.7e9,
    "source": "queue",
    "note": "braces {like} these are text",
}


def test_a_report_is_filled_for_those_who_count_on_it() -> None:
    job = {"name": "isr_1", "label": "isr", "state": "FAILED", "wms_id": "13"}

    report = reports.run_report(ROW, [job])

    assert (report.wms_id, report.global_wms_id, report.state) == ("rbcdfghjk", "pool:12", WmsStates.RUNNING)
    assert report.job_state_counts[WmsStates.FAILED] == 2
    assert set(report.job_state_counts) == set(WmsStates)
    assert report.exit_code_summary == {"isr": [1], "coadd": [137]}
    assert [(j.name, j.state) for j in report.jobs] == [("isr_1", WmsStates.FAILED)]
    assert compile_job_summary(report) == []
    assert compile_code_summary(report) == []
    page = io.StringIO()
    display_report([report], [], is_detailed=True, return_exit_codes=True, file=page)
    shown = page.getvalue()
    assert "WARNING" not in shown
    assert "braces {like} these are text" in shown
    assert "  F RUNNING  40 rbcdfghjk" in shown


def test_a_report_of_a_run_of_which_little_is_known() -> None:
    report = reports.run_report({"id": "r1", "backend": "b", "wms_id": "", "name": "n", "state": "BRAND_NEW"})

    assert report.state is WmsStates.MISFIT
    assert (report.jobs, report.job_summary, report.exit_code_summary) == ([], {}, {})
    assert (report.total_number_jobs, report.run_summary, report.path) == (0, "", "")
    assert sum(report.job_state_counts.values()) == 0
    assert report.global_wms_id == "b:r1"
