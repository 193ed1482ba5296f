"""Names of the configuration become the kernel's numbers."""

from __future__ import annotations

import grp
import pwd
import threading
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from bpsd.cli import bpsd as program
from bpsd.config import BackendConfig, Config, Polling, default_config
from bpsd.peers import Members
from bpsd.permissions import policy_of
from bpsd.roles import Rights, Who


class Settings(msgspec.Struct):
    """Of an adapter that has none."""


def config(rights: Rights, *, mode: str = "system", **backend: object) -> Config:
    base = default_config({"HOME": "/h"}, 7, lambda _: Settings, ["local"])
    only = BackendConfig(
        name="b",
        type="x",
        settings=Settings(),
        polling=Polling(),
        commands_at_once=1,
        commands_deadline_s=1.0,
        **backend,  # type: ignore[arg-type]  # what a test says of it
    )
    return msgspec.structs.replace(base, mode=mode, rights=rights, backends={"b": only})


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> None:
    users, groups = {"ann": 11, "svc": 12}, {"ops": 21}
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.struct_passwd((name, "x", users[name], 1, "", "", "")))
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", groups[name], [])))


def test_names_and_numbers_are_found(people: None) -> None:
    rights = Rights(
        viewer=Who(users=["500"]), operator=Who(users=["ann"], groups=["ops", "77"]), admin=Who(users=["svc"])
    )

    policy, unknown = policy_of(config(rights, submitters=Who(users=["*", "ann"]), accounts={"acc": "ann"}), 7)

    assert unknown == []
    assert policy.owner_uid == 7
    assert policy.viewers == Members(uids=frozenset({500}))
    assert policy.operators == Members(uids=frozenset({11}), gids=frozenset({21, 77}))
    assert policy.admins == Members(uids=frozenset({12}))
    assert policy.submitters == {"b": Members(uids=frozenset({11}), everybody=True)}
    assert policy.accounts == {("b", "acc"): 11}


def test_names_that_nobody_has_are_told_and_harm_no_other(people: None) -> None:
    rights = Rights(operator=Who(users=["ann", "nobody-here"], groups=["none-such"]))

    policy, unknown = policy_of(config(rights, accounts={"acc": "nobody-here"}), 7)

    assert unknown == ["group none-such", "user nobody-here"]
    assert policy.operators == Members(uids=frozenset({11}))
    assert policy.accounts == {}


@pytest.mark.parametrize(
    ("mode", "others", "expected"),
    [("system", None, {"read"}), ("user", None, set()), ("system", [], set()), ("system", ["read", "command"], ...)],
)
def test_by_default_a_system_s_daemon_is_read_by_everybody(mode: str, others: object, expected: object) -> None:
    policy, _ = policy_of(config(Rights(others=others), mode=mode), 7)  # type: ignore[arg-type]  # as a file says it

    assert policy.others == ({"read", "command"} if expected is ... else expected)


@pytest.mark.parametrize("hangs", [False, True])
def test_check_config_tells_whom_nobody_knows_and_waits_for_no_name_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hangs: bool
) -> None:
    file = tmp_path / "bpsd.yaml"
    file.write_text("mode: system\nbackends: {wms: {type: scripted}}\nrights: {viewer: {users: [bbo]}}\n")
    answered = threading.Event()

    def nobody(name: str) -> NoReturn:
        if hangs:
            answered.wait(60)
        raise KeyError(name)

    monkeypatch.setattr("pwd.getpwnam", nobody)
    monkeypatch.setattr("bpsd.preflight.CHECK_WAIT_S", 0.1 if hangs else 60.0)

    assert program.main(["check-config", "--config", str(file)]) == 0
    answered.set()

    unknown = capsys.readouterr().out.splitlines()[-1]
    assert ("the check did not end within 0.1 s" in unknown) is hangs
    assert ("user bbo: no such user on this host now (rights.viewer.users[0])" in unknown) is not hangs
