"""``bpsd install``: what it would do, and that it does that and no more."""

from __future__ import annotations

import configparser
import stat
from pathlib import Path

import pytest

from bpsd.cli import bpsd as program
from bpsd.cli.install import (
    MAN_PAGES,
    UNITS,
    Act,
    Place,
    Remove,
    Run,
    Write,
    installation,
    perform,
    programs_folder,
    removal,
    system_place,
    user_place,
)
from bpsd.errors import CannotStart

ROOT = Path(__file__).parents[2]
PROGRAMS = "/srv/tools/bpsd/bin"


def done(acts: list[Act]) -> list[str]:
    """Do what concerns files."""
    return list(perform([act for act in acts if not isinstance(act, Run)]))


def files(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in root.rglob("*")
        if path.is_file()
    }


def unit(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[method-assign, assignment]  # systemd's names have capitals
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


def test_a_system_gets_units_an_account_and_a_first_configuration(tmp_path: Path) -> None:
    acts = installation(system_place(tmp_path), PROGRAMS)
    done(acts)

    assert files(tmp_path) == {
        "etc/systemd/system/bpsd.service": "0o644",
        "etc/systemd/system/bpsd.socket": "0o644",
        "etc/sysusers.d/bpsd.conf": "0o644",
        "etc/tmpfiles.d/bpsd.conf": "0o644",
        "etc/bpsd/bpsd.yaml": "0o640",
        **{f"usr/local/share/man/{name}": "0o644" for name in MAN_PAGES},
    }
    assert unit(tmp_path / "etc/systemd/system/bpsd.service")["Service"]["ExecStart"] == (
        f"{PROGRAMS}/bpsd serve --config /etc/bpsd/bpsd.yaml"
    )
    programs = [act.argv[0] for act in acts if isinstance(act, Run)]
    assert programs == ["systemd-sysusers", "systemd-tmpfiles", "systemctl", "systemctl"]
    # The account is made before what belongs to it.
    order = [type(act).__name__ if not isinstance(act, Run) else act.argv[0] for act in acts]
    assert order.index("systemd-sysusers") < order.index("systemd-tmpfiles") < order.index("systemctl")


def test_the_rule_that_gives_rights_comes_only_when_it_is_asked_for(tmp_path: Path) -> None:
    place = system_place(tmp_path)
    assert place.rule is not None

    done(installation(place, PROGRAMS, run_as_submitter=True))
    assert place.rule.exists()

    place.rule.write_text("of an older version", encoding="utf-8")
    done(installation(place, PROGRAMS))  # an upgrade, where nobody says it again
    assert "polkit.addRule" in place.rule.read_text(encoding="utf-8")

    done(installation(place, PROGRAMS, run_as_submitter=False))
    assert not place.rule.exists()

    done(installation(place, PROGRAMS))
    assert not place.rule.exists()


def test_a_configuration_that_is_there_stays(tmp_path: Path) -> None:
    place = system_place(tmp_path)
    assert place.config is not None
    place.config.parent.mkdir(parents=True)
    place.config.write_text("mine", encoding="utf-8")

    assert f"left {place.config} as it is" in done(installation(place, PROGRAMS))

    assert place.config.read_text(encoding="utf-8") == "mine"


def test_what_was_installed_is_taken_away_but_for_what_is_not_ours(tmp_path: Path) -> None:
    place = system_place(tmp_path)
    done(installation(place, PROGRAMS, run_as_submitter=True))

    done(removal(place))

    assert set(files(tmp_path)) == {"etc/bpsd/bpsd.yaml"}
    assert all(line.startswith("there is no") for line in done(removal(place)))  # twice does no harm


def test_a_person_gets_two_units(tmp_path: Path) -> None:
    place = user_place({"HOME": str(tmp_path)})
    acts = installation(place, PROGRAMS)
    done(acts)

    assert set(files(tmp_path)) == {f".config/systemd/user/{name}" for name in UNITS}
    assert [act.argv for act in acts if isinstance(act, Run)] == [
        ("systemctl", "--user", "daemon-reload"),
        ("systemctl", "--user", "enable", *UNITS),
    ]
    assert user_place({"XDG_CONFIG_HOME": "/c"}).files["user/bpsd.service"] == Path("/c/systemd/user/bpsd.service")


def test_what_fails_says_what_was_being_done_and_by_whom_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file", encoding="utf-8")

    with pytest.raises(CannotStart, match=r"cannot write .*bpsd\.service") as caught:
        done(installation(system_place(tmp_path), PROGRAMS))
    assert "root" in caught.value.advice

    with pytest.raises(CannotStart, match="false failed with exit code 1: it said nothing"):
        list(perform([Run(("false",))]))
    assert list(perform([Run(("false",), may_fail=True)])) == ["ran false ()"]
    with pytest.raises(CannotStart, match="there is no no-such-program here"):
        list(perform([Run(("no-such-program",))]))


def test_a_dry_run_says_what_would_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["uninstall", "--system", "--dry-run"]) == 0

    said = capsys.readouterr().out.splitlines()
    assert "would remove /etc/systemd/system/bpsd.service" in said
    assert said[0] == "would run systemctl disable --now bpsd.service bpsd.socket"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["install", "--user", "--run-as-submitter"], "goes with --system"),
        (["install", "--system", "--dry-run"], "the account bpsd cannot run the programs in /home/you/bin"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "programs_folder", lambda: "/home/you/bin")

    assert program.main(arguments) == 1

    assert says in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["system", "user"])
def test_units_agree_with_the_daemon(kind: str) -> None:
    service = unit(ROOT / "systemd" / kind / "bpsd.service")["Service"]
    socket = unit(ROOT / "systemd" / kind / "bpsd.socket")["Socket"]

    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert float(service["TimeoutStopSec"]) > 2 * 20.0  # stop.timeout_s by default, for requests and for the disk
    assert socket["ListenStream"] in ("/run/bpsd/bpsd.sock", "%t/bpsd/bpsd.sock")
    assert socket["SocketMode"] == {"system": "0666", "user": "0600"}[kind]
    assert service["RuntimeDirectoryPreserve"] == "yes"  # or a stop of the service would remove the socket


def test_programs_are_those_of_this_installation() -> None:
    assert (Path(programs_folder()) / "bpsd").exists()


def test_acts_are_told_in_words(tmp_path: Path) -> None:
    acts: list[Act] = [Write(tmp_path / "a", "", keep=True), Remove(tmp_path / "b"), Run(("c", "d"))]

    assert list(map(str, acts)) == [f"write, unless it is there, {tmp_path}/a", f"remove {tmp_path}/b", "run c d"]
    assert Place(("systemctl",), {}).config is None
