"""The service on a real systemd, from the built wheel: `bpsd install`, and what a site relies on from then on."""

from __future__ import annotations

import json
import re
import stat
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bpsd.testing.wms import ScriptedWms
from tests.integration.systemdbed import PROGRAMS, SystemdBed
from tests.wheels import build_wheel, previous_wheel

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
MAX_EXPOSURE = 2.0
WATCHDOG_S = 6

STATE = "/var/lib/bpsd"
HERE = {"type": "local", "run_as": "submitter", "submitters": {"users": ["alice", "bob"]}}
SITE = {
    "mode": "system",
    "backends": {
        "here": HERE,
        "wms": {"type": "frozen", "submitters": {"users": ["alice"]}, "poll": {"idle_interval_s": 2}},
    },
    "commands": {"doubt_retry_initial_s": 0.2, "doubt_retry_max_s": 1.0, "cancel_verify_s": 2.0},
    "rights": {"operator": {"groups": ["operators"]}},
    "stop": {"timeout_s": 3},
}

FROZEN = f"""
import time
from pathlib import Path
from bpsd.testing.scripted import ScriptedService

class FrozenService(ScriptedService):
    async def poll(self, request):
        freeze = Path("{STATE}/freeze")
        if freeze.exists():
            freeze.unlink()
            time.sleep(3600)  # a mistake of an adapter: it stops the whole loop
        return await super().poll(request)
"""

JOB = {"label": "x", "executable": "/bin/sh"}


def workflow(name: str, *scripts: str) -> str:
    jobs = [{**JOB, "name": f"j{number}", "arguments": f"-c '{script}'"} for number, script in enumerate(scripts)]
    return json.dumps({"name": name, "jobs": jobs})


@pytest.fixture(scope="module")
def bed() -> Iterator[SystemdBed]:
    """The machine, with bpsd installed as its service."""
    bed = SystemdBed()
    bed.start()
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as folder:
        bed.install_wheel(build_wheel(Path(folder)))
    _forget(bed)
    bed.run(f"{PROGRAMS}/bpsd", "install", "--system", "--run-as-submitter")
    _install_frozen_adapter(bed)
    yield bed
    _forget(bed)
    bed.stop()


def _forget(bed: SystemdBed) -> None:
    """What another session may have left."""
    bed.try_("systemctl", "stop", "bpsd.socket", "bpsd.service", "bpsd.slice")
    bed.try_("systemctl", "reset-failed", "bpsd.socket", "bpsd.service")
    bed.run("rm", "-rf", STATE, "/var/lib/bpsd-runs", "/etc/bpsd", "/etc/systemd/system/bpsd.service.d")


def _install_frozen_adapter(bed: SystemdBed) -> None:
    (site,) = bed.path("/opt/bpsd/lib").glob("python*/site-packages")
    (site / "frozen_adapter.py").write_text(textwrap.dedent(FROZEN), encoding="utf-8")
    info = site / "frozen_adapter-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: frozen-adapter\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[bpsd.adapters]\nfrozen = frozen_adapter:FrozenService\n", encoding="utf-8")


@pytest.fixture
def serving(bed: SystemdBed) -> SystemdBed:
    """The service as `SITE` has it, with nothing in its records."""
    bed.configure(SITE)
    bed.run("systemctl", "stop", "bpsd.socket", "bpsd.service")
    bed.run("find", STATE, "-mindepth", "1", "-delete")
    bed.run("systemctl", "reset-failed")  # also what counts how often it was started lately
    bed.run("systemctl", "start", "bpsd.socket", "bpsd.service")
    return bed


def answer(bed: SystemdBed, user: str, *words: str) -> dict[str, Any]:
    """A run as ``bpsctl report`` tells it."""
    (run,) = bed.bpsctl(user, "report", *words)["runs"]
    assert isinstance(run, dict)
    return run


def until_state(bed: SystemdBed, run: str, state: str) -> dict[str, Any]:
    def seen() -> dict[str, Any] | None:
        told = answer(bed, "olga", "--id", run)
        return told if told["state"] == state else None

    found = bed.until(f"run {run} {state}", seen)
    assert isinstance(found, dict)
    return found


def until_printed(bed: SystemdBed, run: str) -> str:
    bpsctl = (f"{PROGRAMS}/bpsctl", "logs", "--stream", "stdout", run, "j0")
    return str(bed.until(f"output of run {run}", lambda: bed.as_user("olga", *bpsctl).stdout))


# -- installed -------------------------------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing(bed: SystemdBed) -> None:
    unit = bed.path("/etc/systemd/system/bpsd.service")
    unit.write_text("not ours", encoding="utf-8")

    said = bed.run(f"{PROGRAMS}/bpsd", "install", "--system", "--dry-run")

    assert "would write /etc/systemd/system/bpsd.service" in said
    assert unit.read_text(encoding="utf-8") == "not ours"
    bed.run(f"{PROGRAMS}/bpsd", "install", "--system", "--run-as-submitter")
    assert unit.read_text(encoding="utf-8") == (ROOT / "systemd/system/bpsd.service").read_text(encoding="utf-8")


def test_units_are_sound_and_little_exposed(bed: SystemdBed) -> None:
    checked = bed.try_("systemd-analyze", "verify", "--man=no", "bpsd.service", "bpsd.socket")
    assert (checked.returncode, checked.stderr) == (0, "")

    told = bed.run("systemd-analyze", "security", "--no-pager", "bpsd.service")

    found = re.search(r"Overall exposure level for bpsd.service: ([\d.]+)", told)
    assert found is not None
    assert float(found[1]) <= MAX_EXPOSURE, told
    assert bed.run("systemctl", "is-enabled", "bpsd.service", "bpsd.socket").split() == ["enabled", "enabled"]


def test_the_sandbox_lets_ssh_and_programs_through(bed: SystemdBed) -> None:
    """What backends need: an SSH connection (both ends in the sandbox), a program, and bytes from its pipe."""
    program = """
        import asyncio, asyncssh, subprocess
        async def main():
            key = asyncssh.generate_private_key("ssh-ed25519")
            def process(handle):
                handle.stdout.write("heard " + handle.command)
                handle.exit(0)
            class Server(asyncssh.SSHServer):
                def begin_auth(self, username):
                    return False
            server = await asyncssh.listen(
                "127.0.0.1", 0, server_host_keys=[key], process_factory=process, server_factory=Server
            )
            async with asyncssh.connect("localhost", server.get_port(), known_hosts=None, username="u") as link:
                print((await link.run("hello")).stdout)
            print(subprocess.run(["/bin/sh", "-c", "echo program; id -un"], capture_output=True, text=True).stdout)
        asyncio.run(main())
    """
    kept = re.compile(
        r"(User|Group|NoNew|Capability|Ambient|Protect|Private|Device|Keyring|Lock|Memory|RemoveIPC|Restrict|SystemCall"
        r"|UMask|StateDirectory|WorkingDirectory)\w*="
    )
    unit = (ROOT / "systemd/system/bpsd.service").read_text(encoding="utf-8").splitlines()
    sandbox = [f"--property={line}" for line in unit if kept.match(line)]
    assert len(sandbox) > 25

    said = bed.run(
        "systemd-run", "--pipe", "--wait", "--quiet", *sandbox, f"{PROGRAMS}/python", "-c", textwrap.dedent(program)
    )

    assert said.split() == ["heard", "hello", "program", "bpsd"]


# -- started ---------------------------------------------------------------------------------------------------------


def test_a_client_that_comes_early_waits_and_is_served(bed: SystemdBed) -> None:
    bed.configure(SITE)
    bed.run("systemctl", "stop", "bpsd.service")
    bed.run("systemctl", "start", "bpsd.socket")
    assert bed.properties("bpsd.service", "ActiveState")["ActiveState"] == "inactive"

    assert bed.bpsctl("alice", "version")["daemon"]["mode"] == "system"

    told = bed.properties("bpsd.service", "ActiveState", "SubState", "Type", "StatusText")
    assert told == {"Type": "notify", "ActiveState": "active", "SubState": "running", "StatusText": told["StatusText"]}
    assert told["StatusText"].startswith("backends: 2")
    (opened, *_) = bed.journal("BPSD_EVENT=socket_opened")
    assert opened["BPSD_ACTIVATED"] == "true"


def test_readiness_is_told_when_clients_are_served(serving: SystemdBed) -> None:
    """``systemctl start`` returns when the service is ready: then nobody waits for it any more."""
    first, last = (
        serving.journal(f"BPSD_EVENT={event}")[0]["__MONOTONIC_TIMESTAMP"]
        for event in ("socket_opened", "daemon_started")
    )
    ready = serving.properties("bpsd.service", "ActiveEnterTimestampMonotonic")["ActiveEnterTimestampMonotonic"]

    assert int(first) <= int(last)
    assert int(first) <= int(ready)


def test_modes_of_socket_and_records(serving: SystemdBed) -> None:
    def mode(path: str) -> tuple[str, str]:
        owner, bits = serving.run("stat", "-c", "%U:%G %a", path).split()
        return owner, bits

    assert mode("/run/bpsd/bpsd.sock") == ("bpsd:bpsd", "666")
    assert mode("/run/bpsd") == ("bpsd:bpsd", "755")
    assert mode("/etc/bpsd/bpsd.yaml") == ("root:bpsd", "640")
    assert mode(STATE) == ("bpsd:bpsd", "700")
    records = serving.run("find", STATE, "-type", "f", "-printf", "%P %U %m\n").splitlines()
    uid = serving.run("id", "-u", "bpsd").strip()
    assert {line.split(" ", 1)[0] for line in records} >= {"journal.db", "store.db", "bpsd.lock"}
    assert {tuple(line.split()[1:]) for line in records} == {(uid, "600")}
    assert not stat.S_IMODE(serving.path("/etc/polkit-1/rules.d/50-bpsd.rules").stat().st_mode) & 0o022


def test_the_journal_has_fields(serving: SystemdBed) -> None:
    serving.bpsctl("alice", "submit", "--backend", "wms", "-", input=workflow("u/fields", "true"))

    (entry,) = serving.journal("BPSD_EVENT=command_accepted")

    uid = serving.run("id", "-u", "alice").strip()
    assert entry["_SYSTEMD_UNIT"] == "bpsd.service"
    assert (entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"]) == ("bpsd", "6")
    assert (entry["BPSD_UID"], entry["BPSD_USER"]) == (uid, "alice")  # the kernel's word, through the sandbox
    assert (entry["BPSD_VERB"], entry["BPSD_BACKEND"]) == ("submit", "wms")
    assert entry["MESSAGE"].startswith("command_accepted command=c")


# -- kept running ----------------------------------------------------------------------------------------------------


def test_a_frozen_loop_is_ended_by_the_watchdog_and_nothing_is_lost(serving: SystemdBed) -> None:
    drop_in = serving.path("/etc/systemd/system/bpsd.service.d/quick.conf")
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(f"[Service]\nWatchdogSec={WATCHDOG_S}\n", encoding="utf-8")
    serving.run("systemctl", "daemon-reload")
    serving.run("systemctl", "restart", "bpsd.service")
    try:
        run = serving.bpsctl("alice", "submit", "--backend", "wms", "-", input=workflow("u/kept", "true"))["run"]
        before, start = serving.main_pid(), serving.invocation()
        serving.run("touch", f"{STATE}/freeze")
        serving.run("chown", "bpsd:", f"{STATE}/freeze")

        serving.until("another process", lambda: serving.main_pid() not in (0, before))

        assert answer(serving, "alice", "--id", run)["name"] == "u/kept"
        assert [row["state"] for row in serving.bpsctl("alice", "commands")["commands"]] == ["DONE"]
        assert int(serving.properties("bpsd.service", "NRestarts")["NRestarts"]) >= 1
        traceback = serving.run("journalctl", f"_SYSTEMD_INVOCATION_ID={start}", "-o", "cat", "--no-pager")
        assert "frozen_adapter.py" in traceback  # where it hung
    finally:
        drop_in.unlink()
        serving.run("systemctl", "daemon-reload")


def test_a_reload_takes_a_good_configuration_and_refuses_a_bad_one(serving: SystemdBed) -> None:
    before = serving.main_pid()
    backends: Mapping[str, Any] = {**SITE["backends"], "more": {"type": "scripted"}}  # type: ignore[dict-item]  # a mapping
    serving.configure({**SITE, "backends": backends})

    serving.run("systemctl", "reload", "bpsd.service")

    def names() -> list[str]:
        return [row["name"] for row in serving.bpsctl("bob", "backends")["backends"]]

    serving.until("the new backend", lambda: names() == ["here", "wms", "more"])

    serving.configure({**SITE, "backends": {"wms": {"type": "nonsense"}}})
    refused = serving.try_("systemctl", "reload", "bpsd.service")

    assert refused.returncode != 0
    assert "nonsense" in serving.words()
    assert names() == ["here", "wms", "more"]
    assert serving.main_pid() == before
    assert serving.properties("bpsd.service", "ActiveState")["ActiveState"] == "active"


def test_a_daemon_that_cannot_start_says_so_and_starts_once_it_is_mended(serving: SystemdBed) -> None:
    """Nobody hangs meanwhile, and no client wears out systemd's patience."""
    serving.run("systemctl", "stop", "bpsd.service")
    serving.configure({"mode": "system", "backends": {"wms": {"type": "nonsense"}}})
    assert serving.try_("systemctl", "start", "bpsd.service").returncode != 0

    for _ in range(3):
        told = serving.as_user("alice", f"{PROGRAMS}/bpsctl", "report")
        assert told.returncode != 0
        assert "the daemon cannot start: the configuration /etc/bpsd/bpsd.yaml has 1 mistake" in told.stderr
    told = serving.as_user("alice", f"{PROGRAMS}/bpsctl", "health")
    assert (told.returncode, told.stdout.partition(":")[0]) == (2, "BPSD CRITICAL - the daemon cannot start")

    misspelt = {**SITE, "rights": {"operator": {"groups": ["operatrs"]}}}
    serving.configure(misspelt)
    assert "unknown:       group operatrs" in serving.run(
        f"{PROGRAMS}/bpsd", "check-config", "--config", "/etc/bpsd/bpsd.yaml"
    )
    serving.run("systemctl", "start", "bpsd.service")
    told = serving.as_user("alice", f"{PROGRAMS}/bpsctl", "health")
    assert (told.returncode, "whom nobody knows here: group operatrs" in told.stdout) == (1, True)
    assert "nobody knows group operatrs" in serving.run("systemctl", "status", "--no-pager", "bpsd.service")
    serving.configure(SITE)
    serving.run("systemctl", "reload", "bpsd.service")
    serving.until("all is well", lambda: serving.as_user("alice", f"{PROGRAMS}/bpsctl", "health").returncode == 0)


def test_a_stop_during_a_submit_keeps_its_time_and_the_command(serving: SystemdBed) -> None:
    serving.bpsctl("alice", "submit", "--backend", "wms", "-", input=workflow("u/first", "true"))
    (file,) = serving.path(f"{STATE}/backends").glob("*/wms.json")
    wms = ScriptedWms(file)

    def fault(kind: str | None) -> None:
        wms.fault("submit", kind)
        serving.run("sh", "-c", f"chown bpsd: {STATE}/backends/*/*")

    fault("hang")
    submitted = serving.bpsctl("alice", "submit", "--detach", "--backend", "wms", "-", input=workflow("u/cut", "true"))
    serving.until(
        "the submit under way",
        lambda: "RUNNING" in {row["state"] for row in serving.bpsctl("alice", "commands")["commands"]},
    )

    serving.run("systemctl", "stop", "bpsd.service", "bpsd.socket")

    told = serving.properties("bpsd.service", "Result", "ActiveState", "ExecMainStatus")
    assert told == {
        "Result": "success",
        "ActiveState": "inactive",
        "ExecMainStatus": "0",
    }  # "timeout" if it took longer
    fault(None)
    serving.run("systemctl", "start", "bpsd.socket")
    done = serving.bpsctl("alice", "commands", "--run", submitted["run"])["commands"][0]
    done = serving.until(
        "the command carried out, once",
        lambda: (row := serving.bpsctl("alice", "commands", done["id"])["commands"][0])["state"] == "DONE" and row,
    )
    assert [run.name for run in wms.read().runs.values()].count("u/cut") == 1


# -- people ----------------------------------------------------------------------------------------------------------


def test_people_of_different_roles_run_jobs_as_themselves(serving: SystemdBed) -> None:
    runs, ids, pids = {}, {}, {}
    for user in ("alice", "bob"):
        ids[user] = serving.run("id", "-u", user).strip()
        document = workflow(f"u/{user}", "echo $(id -un; id -Gn; echo $HOME; echo $$); exec sleep 600")
        runs[user] = serving.bpsctl(user, "submit", "--backend", "here", "-", input=document)["run"]
    for user, run in runs.items():
        assert until_state(serving, run, "RUNNING")["owner"] == user
        *who, pids[user] = until_printed(serving, run).split()
        assert who == [user, user, f"/home/{user}"]
        assert serving.run("stat", "-c", "%U", f"/proc/{pids[user]}").strip() == user
        units = serving.run("systemctl", "list-units", "--plain", "--no-legend", f"bpsd-run-{ids[user]}-*").split()
        assert [unit for unit in units if unit.endswith(".service")]

    # Whose run it is decides; bob pretends to be alice in words, which are his own.
    denied = serving.as_user("bob", f"{PROGRAMS}/bpsctl", "cancel", "--yes", runs["alice"])
    assert denied.returncode == 1
    assert "bob may not cancel" in denied.stderr
    assert answer(serving, "bob", "--id", runs["alice"])["state"] == "RUNNING"

    # A restart of the daemon disturbs no run: they are in units of their own, as their owners.
    serving.run("systemctl", "restart", "bpsd.service")
    serving.run("stat", *(f"/proc/{pid}" for pid in pids.values()))
    refresh = ("olga", f"{PROGRAMS}/bpsctl", "refresh")
    serving.until("a good poll since then", lambda: serving.as_user(*refresh).returncode == 0)
    assert {answer(serving, "olga", "--id", run)["state"] for run in runs.values()} == {"RUNNING"}

    serving.bpsctl("alice", "cancel", "--yes", runs["alice"])
    serving.bpsctl("olga", "cancel", "--yes", runs["bob"])  # an operator ends anybody's
    for run in runs.values():
        until_state(serving, run, "DELETED")
    serving.until(
        "no unit of a run is left",
        lambda: "bpsd-run-" not in serving.run("systemctl", "list-units", "--plain", "--no-legend", "bpsd-run-*"),
    )
    assert serving.try_("stat", *(f"/proc/{pid}" for pid in pids.values())).stdout == ""

    audit = serving.bpsctl("root", "commands")["commands"]
    olga = serving.run("id", "-u", "olga").strip()
    assert {(row["verb"], row["user"], str(row["uid"])) for row in audit} == {
        ("submit", "alice", ids["alice"]),
        ("submit", "bob", ids["bob"]),
        ("cancel", "alice", ids["alice"]),
        ("cancel", "olga", olga),
    }
    assert all(row["pid"] > 1 and "bpsctl" in row["args"]["command_line"] for row in audit)
    told = serving.as_user("root", f"{PROGRAMS}/bpsctl", "commands", audit[0]["id"]).stdout
    assert re.search(r"(?m)^It says:", told)
    assert re.search(rf"(?m)^By: +olga \(uid {olga}, process \d+\)$", told)


def test_who_may_not_is_refused_whatever_it_says_of_itself(serving: SystemdBed) -> None:
    refused = serving.as_user(
        "olga", f"{PROGRAMS}/bpsctl", "submit", "--backend", "here", "-", input=workflow("u/o", "id")
    )
    assert refused.returncode == 1
    assert "may not" in refused.stderr
    refused = serving.as_user(
        "bob", f"{PROGRAMS}/bpsctl", "submit", "--backend", "wms", "-", input=workflow("u/b", "id")
    )
    assert refused.returncode == 1
    assert "bob may not submit to backend wms" in refused.stderr
    assert serving.as_user("bob", f"{PROGRAMS}/bpsctl", "admin", "check").returncode == 1

    # A request that names another user is no request that this protocol knows.
    pretending = {"jsonrpc": "2.0", "id": 1, "method": "cancel", "params": {"run": "rbbbbbbbb", "uid": 0}}
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('/run/bpsd/bpsd.sock');"
        "s.sendall(sys.stdin.buffer.read()); f = s.makefile(); print(f.readline(), f.readline())"
    )
    said = serving.as_user("bob", "/usr/bin/python3", "-c", program, input=json.dumps(pretending) + "\n").stdout
    assert '"invalid_params"' in said
    assert "uid" in said

    # What a document says of its operator is for display; the run is the submitter's.
    document = json.loads(workflow("u/mine", "sleep 60")) | {"run": {"operator": "root"}}
    run = serving.bpsctl("bob", "submit", "--backend", "here", "-", input=json.dumps(document))["run"]
    assert (answer(serving, "bob", "--id", run)["operator"], answer(serving, "bob", "--id", run)["owner"]) == (
        "root",
        "bob",
    )
    assert serving.as_user("alice", f"{PROGRAMS}/bpsctl", "cancel", "--yes", run).returncode == 1
    serving.bpsctl("bob", "cancel", "--yes", run)
    denied = serving.journal("BPSD_EVENT=request_denied")
    assert {entry["BPSD_USER"] for entry in denied} == {"alice", "bob", "olga"}


def test_without_the_rule_a_submit_waits_and_says_what_is_missing(serving: SystemdBed) -> None:
    serving.run(f"{PROGRAMS}/bpsd", "install", "--system", "--no-run-as-submitter")
    try:
        bpsctl = ("submit", "--detach", "--backend", "here", "-")
        submitted = serving.bpsctl("alice", *bpsctl, input=workflow("u/waits", "true"))

        def command() -> dict[str, Any]:
            (row,) = serving.bpsctl("alice", "commands", "--run", submitted["run"])["commands"]
            assert isinstance(row, dict)
            return row

        serving.until("the reason", lambda: "--run-as-submitter" in command()["note"])
        assert command()["state"] in ("ACCEPTED", "RUNNING")
    finally:
        serving.run(f"{PROGRAMS}/bpsd", "install", "--system", "--run-as-submitter")
    serving.until("the command carried out", lambda: command()["state"] == "DONE")
    until_state(serving, submitted["run"], "SUCCEEDED")


# -- one person's own ------------------------------------------------------------------------------------------------


def test_a_person_s_own_daemon_is_a_user_service_whose_runs_outlive_it(bed: SystemdBed) -> None:
    bed.run("loginctl", "enable-linger", "alice")
    uid = bed.run("id", "-u", "alice").strip()
    bed.until("the user's manager", lambda: bed.try_("test", "-S", f"/run/user/{uid}/systemd/private").returncode == 0)
    own = ("env", f"XDG_RUNTIME_DIR=/run/user/{uid}", f"BPSD_SOCKET=/run/user/{uid}/bpsd/bpsd.sock")

    def alice(*argv: str, input: str | None = None) -> str:
        done = bed.as_user("alice", *own, *argv, input=input)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    alice(f"{PROGRAMS}/bpsd", "install", "--user")
    try:
        alice("systemctl", "--user", "start", "bpsd.socket")
        document = workflow("u/own", "sleep 60")
        run = json.loads(alice(f"{PROGRAMS}/bpsctl", "submit", "--json", "-", input=document))["run"]
        units = alice("systemctl", "--user", "list-units", "--plain", "--no-legend", "bpsd-run-*")
        assert re.search(r"bpsd-run-\S+\.scope", units)
        assert bed.run("stat", "-c", "%U %a", f"/run/user/{uid}/bpsd/bpsd.sock").split() == ["alice", "600"]
        stranger = bed.as_user("bob", *own[2:], f"{PROGRAMS}/bpsctl", "ping")
        assert stranger.returncode != 0

        alice("systemctl", "--user", "restart", "bpsd.service")

        (told,) = json.loads(alice(f"{PROGRAMS}/bpsctl", "report", "--json", "--id", run))["runs"]
        assert told["state"] == "RUNNING"
        alice(f"{PROGRAMS}/bpsctl", "cancel", "--yes", run)
    finally:
        alice(f"{PROGRAMS}/bpsd", "uninstall", "--user")
        bed.run("loginctl", "disable-linger", "alice")
    assert not (bed.path("/home") / "alice" / ".config/systemd/user/bpsd.service").exists()


def test_an_upgrade_as_documented_leaves_runs_alone(serving: SystemdBed, tmp_path: Path) -> None:
    """From the wheel of the commit before this one, in place, with a run under way in a unit of its own."""
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    new = build_wheel(tmp_path / "new")
    serving.install_wheel(previous_wheel(tmp_path / "old"))
    try:
        serving.run(f"{PROGRAMS}/bpsd", "install", "--system", "--run-as-submitter")
        serving.run("systemctl", "restart", "bpsd.service")
        document = workflow("u/upgraded", "echo $$; while [ ! -e /tmp/upgraded ]; do sleep 0.2; done")
        run = serving.bpsctl("alice", "submit", "--backend", "here", "-", input=document)["run"]
        until_state(serving, run, "RUNNING")
        pid = until_printed(serving, run).strip()
        before = serving.main_pid()
    finally:
        serving.bpsctl("root", "admin", "backup")
        serving.install_wheel(new)
        serving.run(f"{PROGRAMS}/bpsd", "install", "--system", "--run-as-submitter")
        serving.run("systemctl", "restart", "bpsd.service")

    assert serving.main_pid() != before
    assert serving.run("stat", "-c", "%U", f"/proc/{pid}").strip() == "alice"
    until_state(serving, run, "RUNNING")
    serving.run("touch", "/tmp/upgraded")
    until_state(serving, run, "SUCCEEDED")
    assert serving.bpsctl("root", "admin", "check")["problems"] == []
    assert {row["state"] for row in serving.bpsctl("alice", "commands")["commands"]} == {"DONE"}


def test_zz_uninstall_leaves_state_and_configuration(serving: SystemdBed) -> None:
    said = serving.run(f"{PROGRAMS}/bpsd", "uninstall", "--system")

    assert "/var/lib/bpsd-runs and the account bpsd stay" in said
    assert "systemctl stop bpsd.slice" in said
    assert serving.try_("test", "-e", "/run/bpsd").returncode != 0
    assert serving.properties("bpsd.service", "LoadState")["LoadState"] == "not-found"
    assert not serving.path("/etc/polkit-1/rules.d/50-bpsd.rules").exists()
    assert serving.path("/etc/bpsd/bpsd.yaml").exists()
    assert serving.path(f"{STATE}/journal.db").exists()
    assert serving.try_("test", "-e", "/run/bpsd/bpsd.sock").returncode != 0
