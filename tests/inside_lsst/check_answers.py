"""What `BpsdService` makes of each answer of the daemon; the daemon is a table of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lsst.ctrl.bps import BPS_DEFAULTS, BpsConfig, WmsStates
from lsst.ctrl.bps.tests.gw_test_utils import make_3_label_workflow

from bpsd.client.failures import NoDaemon, RemoteError
from bpsd.client.sync import Client
from bpsd.lsst import BpsdService
from bpsd.lsst.service import BpsdServiceError, BpsdWorkflow

NOT_FOUND = RemoteError("no run is called 7", code="run_not_found", advice="`bpsctl list` shows all")
CONFLICT = RemoteError("run r1 is over", code="conflict")


class _Table(Client):
    """A client whose daemon answers by a table: an answer, an error to raise, or several in turn."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__("/nobody")
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def connect(self) -> dict[str, Any]:
        return {}

    def request(self, method: str, params: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.asked.append((method, params))
        answer = self.answers[method]
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        found: dict[str, Any] = answer
        return found

    def sent(self, method: str) -> dict[str, Any]:
        """The parameters of the one request of that method."""
        (params,) = [params for name, params in self.asked if name == method]
        return params


class Service(BpsdService):
    """`BpsdService` with such a daemon."""

    def __init__(self, **answers: Any) -> None:
        super().__init__({})
        self.table = _Table(answers)

    def _client(self, verb: str) -> Client:
        return self.table


def command(state: str, **more: Any) -> dict[str, Any]:
    return {"id": "c1", "run": "r1", "verb": "cancel", "backend": "pool", "state": state, **more}


def backends(*names: str) -> dict[str, Any]:
    return {"backends": [{"name": name} for name in names]}


# -- submit ----


def config_of(**settings: Any) -> BpsConfig:
    return BpsConfig(
        {"computeSite": "there", **settings}, defaults=BPS_DEFAULTS, wms_service_class_fqn="bpsd.lsst.BpsdService"
    )


def prepared(folder: Path) -> BpsdWorkflow:
    return BpsdService(config_of()).prepare(config_of(), make_3_label_workflow("night", True), folder)


def submitted(folder: Path, config: BpsConfig, *names: str, end: Any) -> tuple[BpsdWorkflow, dict[str, Any]]:
    workflow = prepared(folder)
    service = Service(backends=backends(*names), submit=command("ACCEPTED"))
    service.table.answers |= {"blob.put": {"have": 0, "complete": True}, "commands.wait": end}
    service.submit(workflow, config=config, whatever="upstream may add")
    return workflow, service.table.sent("submit")


@pytest.mark.parametrize(
    ("settings", "names", "chosen"),
    [
        ({}, ["only"], "only"),
        ({}, ["here", "there"], "there"),
        ({"bpsdBackend": "here"}, ["here", "there"], "here"),
        ({"site": {"there": {"bpsdBackend": "here"}}}, ["here", "there"], "here"),
    ],
)
def test_backend_is_chosen(tmp_path: Path, settings: dict[str, Any], names: list[str], chosen: str) -> None:
    workflow, params = submitted(tmp_path, config_of(**settings), *names, end=command("DONE"))

    assert workflow.run_id == "r1"
    assert params["backend"] == chosen
    assert params["token"] == workflow.token


@pytest.mark.parametrize(
    ("settings", "said"),
    [({}, "computeSite 'there' is none of"), ({"bpsdBackend": "x"}, "bpsdBackend 'x' is none of")],
)
def test_backend_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(BpsdServiceError, match=f"{said} .*: one, two; set bpsdBackend"):
        submitted(tmp_path, config_of(**settings), "one", "two", end=command("DONE"))


def test_submission_that_fails_tells_why(tmp_path: Path) -> None:
    problems = [{"key": "jobs[0].mail_to", "message": "backend refuses mail_to: nobody is sent mail"}]
    failed = command("FAILED", error={"message": "1 mistake", "advice": "mend it", "problems": problems})

    with pytest.raises(BpsdServiceError) as caught:
        submitted(tmp_path, config_of(), "only", end=failed)

    assert str(caught.value).splitlines() == [
        "cancel of run r1 on pool: FAILED",
        "  1 mistake",
        "  jobs[0].mail_to: backend refuses mail_to: nobody is sent mail",
        "  mend it",
    ]


def test_who_does_not_wait_for_a_submission_is_told_its_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        submitted(tmp_path, config_of(), "only", end=KeyboardInterrupt())

    assert "run r1 goes on all the same" in caplog.text


def test_submission_in_doubt_says_how_to_find_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bpsd.client.endpoint.COMMAND_SLICE_S", 0.0)  # no patience

    with pytest.raises(BpsdServiceError, match="`bpsctl commands c1` tells"):
        submitted(tmp_path, config_of(), "only", end=command("IN_DOUBT", note="timed out"))


# -- commands on runs ----


def test_cancel_and_restart_tell_what_came_of_them() -> None:
    done = Service(cancel=command("ACCEPTED"), restart=command("ACCEPTED"), status={"id": "r1", "name": "night"})
    done.table.answers["commands.wait"] = command("DONE")
    assert done.cancel("r1", "-forcex") == (True, "")
    assert done.table.sent("cancel")["pass_thru"] == "-forcex"
    assert done.restart("r1") == ("r1", "night", "")

    refused = Service(cancel=CONFLICT, restart=NOT_FOUND)
    assert refused.cancel("r1") == (False, "run r1 is over")
    assert refused.restart("7") == (None, None, "no run is called 7 (`bpsctl list` shows all)")

    failed = Service(cancel=command("ACCEPTED"), restart=command("ACCEPTED"))
    failed.table.answers["commands.wait"] = command("EXPIRED", note="the backend did not answer")
    expected = "cancel of run r1 on pool: EXPIRED\n  the backend did not answer"
    assert failed.cancel("r1") == (False, expected)
    assert failed.restart("r1") == (None, None, expected)

    gone = Service(cancel=NoDaemon("no daemon answers"), restart=NoDaemon("no daemon answers"))
    for act in (gone.cancel, gone.restart):
        with pytest.raises(BpsdServiceError, match="no daemon answers"):
            act("r1")


# -- questions ----


def test_status_of_any_kind_of_id(tmp_path: Path) -> None:
    workflow = prepared(tmp_path / "run")
    other = tmp_path / "other"
    other.mkdir()
    for wms_id, asked in (
        (1234, "1234"),
        (" 12.0 ", "12.0"),
        (str(tmp_path / "run"), workflow.token),
        (str(tmp_path / "other" / ".." / "other"), str(other)),
    ):
        service = Service(status={"state": "RUNNING", "note": "", "error": "not seen for 5 minutes"})
        assert service.get_status(wms_id) == (WmsStates.RUNNING, "not seen for 5 minutes")
        assert service.table.sent("status")["run"] == asked


def test_a_folder_hides_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever lies where the command is given, an id is an id; and an empty text is not the folder one is in."""
    prepared(tmp_path)
    (tmp_path / "1234").mkdir()
    monkeypatch.chdir(tmp_path)
    for text, asked in (("1234", "1234"), ("", ""), ("1234/", str(tmp_path / "1234"))):
        service = Service(status={"state": "RUNNING"})
        service.get_status(text)
        assert service.table.sent("status")["run"] == asked


def test_status_of_what_is_not_known() -> None:
    unknown = Service(status=NOT_FOUND)
    assert unknown.get_status("7") == (WmsStates.UNKNOWN, "no run is called 7 (`bpsctl list` shows all)")
    with pytest.raises(BpsdServiceError, match="several"):
        Service(status=RemoteError("several runs are called 7", code="run_ambiguous")).get_status("7")


def test_list_is_of_what_is_not_over() -> None:
    assert Service(status={"id": "r1", "state": "HELD"}).list_submitted_jobs("12") == ["r1"]
    assert Service(status={"id": "r1", "state": "DELETED"}).list_submitted_jobs("12") == []
    assert Service(status=NOT_FOUND).list_submitted_jobs("12") == []
    listed = Service(list=[{"runs": [{"id": "r1"}, {"id": "r2"}], "next": "r2"}, {"runs": [{"id": "r3"}]}])
    assert listed.list_submitted_jobs(user="op") == ["r1", "r2", "r3"]
    assert all(params["active"] and params["user"] == ["op"] for _, params in listed.table.asked)


def test_report_without_an_id_is_of_all_with_no_jobs() -> None:
    row = {"id": "r1", "backend": "pool", "wms_id": "1", "name": "n", "state": "RUNNING"}
    service = Service(
        report=[{"runs": [row], "next": "r1"}, {"runs": [row | {"id": "r2"}], "messages": ["pool is down"]}]
    )

    runs, message = service.report(user="op", pass_thru="x", is_global=True)

    assert [run.wms_id for run in runs] == ["r1", "r2"]
    assert [run.jobs for run in runs] == [[], []]
    assert message == "pool is down\nbpsd answers from what it knows; --pass-thru 'x' was not used"
    assert service.table.asked[0][1] | {"active": True, "user": ["op"]} == service.table.asked[0][1]
    with_history = Service(report={"runs": []})
    assert with_history.report(hist=2.5) == ([], "")
    assert with_history.table.sent("report")["hist"] == 2.5
    assert "active" not in with_history.table.sent("report")


def test_report_of_one_run_has_all_its_jobs() -> None:
    row = {"id": "r1", "backend": "pool", "wms_id": "1", "name": "n", "state": "RUNNING"}
    job = {"name": "a", "label": "l", "state": "RUNNING"}
    service = Service(report={"runs": [row]}, jobs=[{"jobs": [job], "next": "a"}, {"jobs": [job | {"name": "b"}]}])

    (run,), message = service.report(12)

    assert ([each.name for each in run.jobs], message) == (["a", "b"], "")
    assert service.table.sent("report")["run"] == "12"
    assert Service(report=NOT_FOUND).report("7") == ([], "")


def test_ping_counts_those_that_do_not_answer() -> None:
    answers = {"here": [0, "2 cores", 0.1], "pool": [1, "", 5.0], "other": [0, "", 0.1]}
    service = Service()
    service.table.answers["backend.ping"] = {"answers": answers}

    assert service.ping() == (1, "here: 2 cores\npool: no answer\nother: fine")
    assert service.ping("here")[0] == 1
    assert service.table.asked[-1][1] == {"backend": "here"}
