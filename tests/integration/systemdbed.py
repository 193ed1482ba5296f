"""A machine with a real systemd for tests: ``tests/testbeds/systemd.sh`` keeps it in name spaces of its own."""

from __future__ import annotations

__all__ = ["SystemdBed"]

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.integration.condorbed import bed_folder
from tests.leftovers import SESSION_VARIABLE

SCRIPT = Path(__file__).parents[1] / "testbeds" / "systemd.sh"
PROGRAMS = "/opt/bpsd/bin"
PATIENCE_S = 60.0


class SystemdBed:
    """One machine, shared by the tests of a session: each test configures and restarts the daemon as it needs it."""

    def __init__(self) -> None:
        self.root = bed_folder() / "systemd"

    def _script(self, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, self.root, *arguments],
            env={name: value for name, value in os.environ.items() if name != SESSION_VARIABLE},
            input=input or "",
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def start(self) -> None:
        """Boot it, when nobody else on this host uses it any more."""
        self._lock = (bed_folder() / "systemd.lock").open("ab")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        done = self._script("start")
        assert done.returncode == 0, f"the systemd bed does not start:\n{done.stdout}{done.stderr}"

    def stop(self) -> None:
        """Power it off."""
        self._script("stop")
        self._lock.close()

    # -- doing things inside -----------------------------------------------------------------------------------------

    def try_(self, *argv: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program as root."""
        return self._script("exec", *argv, input=input)

    def run(self, *argv: str, input: str | None = None) -> str:
        """Run a program as root; it must succeed."""
        done = self.try_(*argv, input=input)
        assert done.returncode == 0, f"{argv} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def as_user(self, user: str, *argv: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program as one of the people of the machine, as after a login."""
        uid = self.run("id", "-u", user).strip()
        own = [f"XDG_RUNTIME_DIR=/run/user/{uid}"] if self.path(f"/run/user/{uid}").exists() else []
        environment = [f"HOME=/home/{user}", f"USER={user}", *own]
        return self.try_("runuser", "-u", user, "--", "env", *environment, *argv, input=input)

    def bpsctl(self, user: str, *argv: str, input: str | None = None) -> Any:
        """What ``bpsctl ... --json`` answers somebody."""
        done = self.as_user(user, f"{PROGRAMS}/bpsctl", *argv, "--json", input=input)
        assert done.returncode == 0, f"bpsctl {argv} as {user}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def path(self, path: str) -> Path:
        """A file of the machine, as the tests see it (but for what it has in memory: /run, /tmp, /dev)."""
        return self.root / path.lstrip("/")

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        """What systemd knows of a unit."""
        lines = self.run("systemctl", "show", unit, f"--property={','.join(names)}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def main_pid(self) -> int:
        """The daemon's process id, inside."""
        return int(self.properties("bpsd.service", "MainPID")["MainPID"])

    def invocation(self) -> str:
        """What systemd calls this start of the daemon: process ids come again in the next session, this does not."""
        return self.properties("bpsd.service", "InvocationID")["InvocationID"]

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """What the journal has of this start of the daemon, oldest first."""
        this_start = f"_SYSTEMD_INVOCATION_ID={self.invocation()}"
        lines = self.run("journalctl", "-o", "json", "--all", "--no-pager", this_start, *matches).splitlines()
        return [json.loads(line) for line in lines]

    # -- bpsd --------------------------------------------------------------------------------------------------------

    def install_wheel(self, wheel: Path) -> None:
        """Install a wheel where its dependencies are."""
        inside = self.path("/opt/wheel")
        shutil.rmtree(inside, ignore_errors=True)
        inside.mkdir()
        shutil.copy(wheel, inside)
        pip = (f"{PROGRAMS}/pip", "install", "-qq", "--disable-pip-version-check", "--no-index", "--no-deps")
        self.run(*pip, "--force-reinstall", f"/opt/wheel/{wheel.name}")

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write the system's configuration (JSON is YAML)."""
        self.path("/etc/bpsd/bpsd.yaml").write_text(json.dumps(settings), encoding="utf-8")

    def until(self, what: str, holds: Callable[[], Any]) -> Any:
        """Wait for something to become true; return what it said."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := holds()):
            assert time.monotonic() < deadline, f"not seen within {PATIENCE_S:g} s: {what}\n{self.words()}"
            time.sleep(0.1)
        return found

    def words(self) -> str:
        """The last lines of the daemon, for a test that fails."""
        return self.try_("journalctl", "-u", "bpsd.service", "-n", "30", "--no-pager").stdout
