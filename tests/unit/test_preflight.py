"""check-config lists every mistake that can be found without running; a daemon asks the same questions."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import structlog

from bpsd import pathchecks, preflight
from bpsd.cli import bpsd as program
from bpsd.config import Config, load_config
from bpsd.preflight import OutletCheck
from bpsd.registry import adapter_config, known_adapters
from bpsd_adapters.local.service import LocalService

WRONG = """\
socket: {folder}/file/bpsd.sock
state_dir: {folder}/file/state
metrics: {{textfile: {folder}/none/bpsd.prom}}
notifications:
  routes:
    gone: {{command: [{folder}/gone]}}
    plain: {{command: [{folder}/file]}}
    hook: {{webhook: {{url_file: {folder}/url}}}}
backends:
  pool:
    type: htcondor
    ssh:
      host: login.example.org
      keys: [{folder}/file, {folder}/id_none]
      known_hosts: {folder}
  cluster:
    type: slurm
    work_dir: {folder}/file/runs
    bin_dir: {folder}
  parsl:
    type: bps_plugin
    plugin: lsst.ctrl.bps.parsl.ParslService
    python: {folder}/bin/python
    submit_root: {folder}/runs
  here:
    type: local
    run_dir: {folder}/file/runs
"""


def configured(tmp_path: Path, text: str) -> Path:
    (tmp_path / "file").write_text("a\nb\n")
    path = tmp_path / "bpsd.yaml"
    path.write_text(text.format(folder=tmp_path))
    return path


def complaints(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[str]]:
    code = program.main(["check-config", "--config", str(path), *options])
    said = capsys.readouterr().err.splitlines()
    return code, [line.strip().removeprefix(f"{path}:") for line in said[1:]]


def test_all_mistakes_are_listed_at_once_with_line_column_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # also on a machine with Slurm
    code, said = complaints(configured(tmp_path, WRONG), capsys)

    assert code == 1
    places = [line.split(": ")[:2] for line in said]
    assert places == [
        ["1:9", "socket"],
        ["2:12", "state_dir"],
        ["3:21", "metrics.textfile"],
        ["6:21", "notifications.routes.gone.command"],
        ["7:22", "notifications.routes.plain.command"],
        ["8:32", "notifications.routes.hook.webhook.url_file"],
        ["14:" + str(16 + len(f"{tmp_path}/file")), "backends.pool.ssh.keys[1]"],
        ["15:20", "backends.pool.ssh.known_hosts"],
        ["18:15", "backends.cluster.work_dir"],
        *[["19:14", "backends.cluster.bin_dir"]] * 4,
        ["23:13", "backends.parsl.python"],
        ["27:14", "backends.here.run_dir"],
    ]
    assert f"cannot run {tmp_path}/gone: No such file or directory" in said[3]
    assert "is not executable" in said[4]


def test_mistakes_of_the_file_and_of_the_host_come_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "metrics: {{textfile: {folder}/none/x.prom}}\n"
        "polling: {{jitter: 7}}\n"
        "backends:\n"
        "  far: {{type: htcondor, ssh: {{host: h, port: 99999}}}}\n"
        "  here: {{type: local, run_dir: {folder}/file/x}}\n"
    )
    code, said = complaints(configured(tmp_path, text), capsys)

    assert code == 2
    assert [line.split(": ")[1] for line in said] == [
        "metrics.textfile",
        "polling.jitter",
        "backends.far.ssh.port",
        "backends.here.run_dir",
    ]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("backends: {{b: {{type: htcondor, ssh: {{host: h, jump: 'g:0'}}}}}}", "backends.b.ssh"),
        ("backends: {{b: {{type: htcondor, ssh: {{host: h, jump: 'g:65536'}}}}}}", "backends.b.ssh"),
        ("backends: {{b: {{type: htcondor, submit_root: runs}}}}", "backends.b.submit_root"),
        ("notifications: {{routes: {{r: {{webhook: {{url: 'http://h:99999/'}}}}}}}}", "notifications.routes.r.webhook"),
        ("notifications: {{routes: {{r: {{webhook: {{url: 'http://h:port/'}}}}}}}}", "notifications.routes.r.webhook"),
    ],
)
def test_ports_and_relative_folders_are_refused(
    text: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = complaints(configured(tmp_path, text), capsys, "--state-dir", str(tmp_path / "state"))

    assert code == 2
    assert any(line.split(": ")[1].startswith(key) for line in said), said


def test_what_stops_one_backend_keeps_no_daemon_from_a_reload(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configured(
        tmp_path,
        "socket: {folder}/s/bpsd.sock\nstate_dir: {folder}/state\n"
        "backends: {{here: {{type: local, run_dir: {folder}/file/x}}}}\n",
    )
    assert complaints(path, capsys)[0] == 1
    code, said = complaints(path, capsys, "--reload")
    assert (code, len(said)) == (0, 1)

    path.write_text(path.read_text().replace("/state\n", "/file/state\n"))
    assert complaints(path, capsys, "--reload")[0] == 1


def test_a_configuration_that_works_has_no_complaint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o700)
    path = configured(
        tmp_path,
        "socket: {folder}/s/bpsd.sock\nstate_dir: {folder}/state\nmetrics: {{textfile: {folder}/x.prom}}\n"
        "notifications: {{routes: {{r: {{command: [{folder}/hook]}}}}}}\n"
        "backends: {{here: {{type: local, run_dir: {folder}/runs}}}}\n",
    )
    assert complaints(path, capsys) == (0, [])
    assert not (tmp_path / "state").exists()  # nothing was made
    assert not (tmp_path / "runs").exists()


def test_a_state_folder_on_a_network_file_system_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 1 0:1 / / rw - ext4 x rw\n2 1 0:2 / {tmp_path} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr("bpsd.filesystems.MOUNTINFO", mounts)
    path = configured(tmp_path, "state_dir: {folder}/state\nsocket: {folder}/s/bpsd.sock\n")

    code, said = complaints(path, capsys)
    assert code == 1
    assert "network file system" in said[0]
    path.write_text(path.read_text() + "state_on_network: true\n")
    assert complaints(path, capsys) == (0, [])


def test_a_check_that_does_not_end_is_reported_and_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(LocalService, "check_settings", classmethod(lambda *_: answered.wait(300) and ()))
    monkeypatch.setattr(preflight, "CHECK_WAIT_S", 0.2)
    began = time.monotonic()
    path = configured(tmp_path, "state_dir: {folder}/state\nsocket: {folder}/s/x\nbackends: {{here: {{type: local}}}}")

    code, said = complaints(path, capsys)
    answered.set()

    assert time.monotonic() - began < 120
    assert code == 1
    late = "the check did not end within 0.2 s: a file system or the name service does not answer"
    assert said == [f"3:18: backends.here: {late}"]


@pytest.fixture
def notifying(tmp_path: Path) -> Config:
    path = configured(tmp_path, "notifications: {{routes: {{r: {{command: [{folder}/hook]}}}}}}")
    return load_config(path, adapter_config, known_adapters(), environ={"HOME": str(tmp_path)}, uid=os.getuid())


async def test_a_daemon_shows_what_is_wrong_with_notifications_until_it_is_repaired(
    tmp_path: Path, notifying: Config
) -> None:
    check = OutletCheck(structlog.get_logger())
    with structlog.testing.capture_logs() as logs:
        await check.check(notifying)
        await check.check(notifying)
    assert [entry["event"] for entry in logs] == ["config_wrong"]
    assert "notifications.routes.r.command" in check.wrong[0]

    (tmp_path / "hook").write_text("#!/bin/sh\n")
    (tmp_path / "hook").chmod(0o700)
    await check.check(notifying)
    assert check.wrong == []


def test_the_null_device_is_an_empty_file() -> None:
    """`ssh.config: /dev/null` means that no file is read."""
    assert pathchecks.cannot_read("/dev/null") == ""
    assert "not a regular file" in pathchecks.cannot_read("/dev/zero")
