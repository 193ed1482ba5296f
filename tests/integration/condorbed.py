"""A real HTCondor pool for tests: ``tests/testbeds/htcondor.sh`` keeps it in namespaces of its own, on loopback."""

from __future__ import annotations

__all__ = ["CondorBed", "bed_folder"]

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.leftovers import SESSION_VARIABLE

SCRIPT = Path(__file__).parents[1] / "testbeds" / "htcondor.sh"


_BEDS = Path(os.environ.get("BPSD_BEDS", "/var/tmp/bpsd-beds"))  # read now: no test sees variables of that kind


def bed_folder() -> Path:
    """Where beds are built, to be found again by the next session (a build takes a minute)."""
    return _BEDS


@dataclass
class CondorBed:
    """One pool with two schedds and an SSH server. ``share`` is a folder that jobs and tests see alike."""

    name: str = "htcondor"
    port: int = 9718
    ssh_port: int = 2222

    @property
    def root(self) -> Path:
        return bed_folder() / self.name

    @property
    def share(self) -> Path:
        return bed_folder() / "share"

    def script(self, mode: str, *arguments: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != SESSION_VARIABLE} | {
            "HTC_PORT": str(self.port),
            "HTC_SSH_PORT": str(self.ssh_port),
            "HTC_BIND": f"{self.share}:{self.share}",
        }
        return subprocess.run(
            [SCRIPT, self.root, mode, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def start(self) -> None:
        """Start it, and build it if it is not there. One that is up is taken as it is."""
        self.share.mkdir(parents=True, exist_ok=True)
        self.share.chmod(0o1777)
        done = self.script("start")
        assert done.returncode == 0, f"the HTCondor bed does not start:\n{done.stdout}{done.stderr}"

    def stop(self) -> None:
        self.script("stop")

    def run(self, *argv: str) -> str:
        """Run a program in the bed as its operator."""
        done = self.script("exec-op", *argv)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def as_root(self, *argv: str) -> str:
        """Run a program in the bed as root."""
        done = self.script("exec", *argv)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def processes(self, sign: str) -> list[str]:
        """The ids, in the bed's own namespace, of processes whose command line contains ``sign``."""
        lines = self.as_root("ps", "-eo", "pid,args").splitlines()
        return [line.split()[0] for line in lines if sign in line and "ps -eo" not in line]

    def signal(self, sign: str, signal: str) -> None:
        """Send a signal to those processes."""
        found = self.processes(sign)
        assert found, f"no process {sign} in the bed"
        self.as_root("kill", f"-{signal}", *found)

    def cut_sessions(self) -> None:
        """Break every SSH connection of the operator."""
        self.signal("sshd-session: op@notty", "KILL")

    def settings(self, **more: Any) -> dict[str, Any]:
        """A backend's settings that reach it over SSH."""
        return {"ssh": self.ssh(), "submit_root": "~/runs", "settle_s": 10.0, **more}

    def ssh(self, **more: Any) -> dict[str, Any]:
        """How to reach its submit host."""
        return {
            "host": "127.0.0.1",
            "port": self.ssh_port,
            "user": "op",
            "keys": [str(bed_folder() / "op_key")],
            "known_hosts": str(bed_folder() / f"{self.name}.known_hosts"),
            "config": "/dev/null",
            **more,
        }

    def folder(self) -> Path:
        """A new folder that the pool's jobs may write to."""
        folder = Path(tempfile.mkdtemp(prefix="t", dir=self.share))
        folder.chmod(0o1777)
        (folder / "scratch").mkdir()
        (folder / "scratch").chmod(0o1777)
        return folder

    @staticmethod
    def remove(folders: Sequence[Path]) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
