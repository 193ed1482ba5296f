"""Units of systemd for local runs, and what goes over to agents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from bpsd.errors import (
    BackendAuthError,
    BackendUnavailable,
    BpsdError,
    Conflict,
    Problem,
    RunNotFound,
    UnsupportedOperation,
    WorkflowInvalid,
)
from bpsd_adapters.local.agentwire import error_of, trouble_of
from bpsd_adapters.local.units import limits, scope_command, service_command, slice_command, unit_name

ROOT = Path(__file__).parents[2]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a user service, process 5."""
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd/private").touch()
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    return {"INVOCATION_ID": "x", "SYSTEMD_EXEC_PID": "5", "XDG_RUNTIME_DIR": str(tmp_path)}


def test_a_user_service_gives_its_drivers_scopes(manager: Mapping[str, str]) -> None:
    command = scope_command("tok", manager, 5)

    assert command[:5] == ["/usr/bin/systemd-run", "--user", "--scope", "--quiet", "--collect"]
    assert re.fullmatch(r"--unit=bpsd-run-tok-[0-9a-f]{8}", command[5])
    assert command[6:] == ["--"]


@pytest.mark.parametrize(
    "change",
    [
        {"SYSTEMD_EXEC_PID": "4"},  # of a desktop's service that we were started from
        {"INVOCATION_ID": None},
        {"XDG_RUNTIME_DIR": None},
        {"XDG_RUNTIME_DIR": "/nowhere"},
    ],
)
def test_other_processes_do_not(manager: dict[str, str], change: Mapping[str, str | None]) -> None:
    environ = {name: value for name, value in {**manager, **change}.items() if value is not None}

    assert scope_command("tok", environ, 5) == []


def test_without_the_program_there_are_no_scopes(manager: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)

    assert scope_command("tok", manager, 5) == []


def test_units_take_no_more_than_the_backend_has(manager: Mapping[str, str]) -> None:
    wanted = ["CPUQuota=300%", "MemoryMax=1128M", "TasksMax=4096"]
    assert limits(3, 1000) == wanted
    service = service_command("bpsd-run-7-1-ab", 7, ["x"], outlived=True, limiting=wanted)
    scope = scope_command("tok", manager, 5, wanted)
    for command in (service, scope):
        assert {f"--property={each}" for each in wanted} <= set(command[: command.index("--")])
    assert slice_command(3, 1000)[-4:] == ["bpsd.slice", "CPUQuota=300%", "MemoryMax=2024M", "TasksMax=4096"]


@pytest.mark.parametrize("outlived", [True, False])
def test_a_service_is_a_user_s_and_lives_as_long_as_what_it_launched(outlived: bool) -> None:
    command = service_command("bpsd-run-7-1-ab", 7, ["python", "-m", "x"], outlived=outlived)

    assert command[0] == "systemd-run"
    assert command[command.index("--") + 1 :] == ["python", "-m", "x"]
    assert {"--uid=7", "--unit=bpsd-run-7-1-ab", "--no-ask-password"} <= set(command)
    assert ("--property=ExitType=cgroup" in command) is outlived
    assert "--property=StateDirectory=bpsd-runs/7" in command


def test_names_of_units_are_those_that_the_rule_allows() -> None:
    rule = (ROOT / "systemd/polkit.rules").read_text(encoding="utf-8")
    found = re.search(r"/(\^bpsd-.*\$)/", rule)
    assert found is not None
    allowed = re.compile(found[1])

    for name in (unit_name("run", 1000, "12"), unit_name("agent", 1000)):
        assert allowed.fullmatch(f"{name}.service")
    for other in ("sshd.service", "bpsd.service", "bpsd-run-1.service\nsshd.service", "xbpsd-run-1.service"):
        assert not allowed.fullmatch(other)
    assert unit_name("run", 1) != unit_name("run", 1)


@pytest.mark.parametrize(
    "error",
    [
        BackendUnavailable("not there", advice="again"),
        Conflict("it runs", advice="wait"),
        RunNotFound("no run 5"),
        UnsupportedOperation("no"),
        WorkflowInvalid("w", [Problem(("jobs", 3, "arguments"), "bad")], total=7),
    ],
)
def test_errors_come_over_as_they_are(error: BpsdError) -> None:
    came = error_of(trouble_of(error))

    assert (type(came), str(came), came.advice) == (type(error), str(error), error.advice)


def test_an_error_that_is_not_known_leaves_a_doubt() -> None:
    assert type(error_of(trouble_of(BackendAuthError("?")))) is BackendUnavailable
