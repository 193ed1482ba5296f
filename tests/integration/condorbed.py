"""A real HTCondor pool for tests: ``tests/testbeds/htcondor.sh`` keeps it in namespaces of its own, on loopback."""

from __future__ import annotations

__all__ = ["FIRST_SCHEDD", "SECOND_SCHEDD", "CondorBed", "bed_folder", "twin_bed"]

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.leftovers import SESSION_VARIABLE

SCRIPT = Path(__file__).parents[1] / "testbeds" / "htcondor.sh"


SECOND_SCHEDD = "schedd2@htcbed.localdomain"
FIRST_SCHEDD = "htcbed.localdomain"
INSIDE = ("sh", "date", "tar", "flock", "condor_q", "condor_history", "condor_submit", "condor_submit_dag", "condor_rm",
          "condor_hold", "condor_release", "condor_ping", "condor_status")  # fmt: skip
"""The programs that the adapter uses, which `CondorBed.inside` runs in the bed."""

BEDS = Path(os.environ.get("BPSD_BEDS", "/var/tmp/bpsd-beds"))  # read now: no test sees variables of that kind
FIRST_PORT = int(os.environ.get("BPSD_BED_PORT", "9718"))


def bed_folder() -> Path:
    """Where beds are built, to be found again by the next session (a build takes a minute)."""
    return BEDS


@dataclass(eq=False)
class CondorBed:
    """One pool with two schedds and an SSH server. ``share`` is a folder that jobs and tests see alike."""

    name: str = "htcondor"
    port: int = FIRST_PORT
    ssh_port: int = FIRST_PORT - 7496
    copy_of: str | None = None

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
            "HTC_FROM": "" if self.copy_of is None else str(bed_folder() / self.copy_of),
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
        """Start it with empty queues, and build it if it is not there. One that is up is taken as it is."""
        self.share.mkdir(parents=True, exist_ok=True)
        self.share.chmod(0o1777)
        if self.root.exists() and self.copy_of is None:
            self.script("lsst")
        if self.root.exists() and self.script("status").returncode != 0:
            self.script("wipe")
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

    def kill_sessions(self, ports: Iterable[int]) -> None:
        """SIGKILL for the SSH server's processes of the connections that come from these ports."""
        for port in ports:
            sockets = self.as_root("ss", "-Htnp", "sport", "=", f":{self.ssh_port}", "and", "dport", "=", f":{port}")
            for pid in re.findall(r"pid=(\d+)", sockets):
                self.script("exec", "kill", "-KILL", pid)  # another of its processes may have taken it along

    def settings(self, **more: Any) -> dict[str, Any]:
        """A backend's settings that reach it over SSH."""
        return {"ssh": self.ssh(), "submit_root": "~/runs", "settle_s": 10.0, **more}

    def inside(self, folder: Path, **more: Any) -> dict[str, Any]:
        """A backend's settings that reach it by processes of the submit host itself, with runs in ``folder``."""
        programs = folder / "bin"
        programs.mkdir(exist_ok=True)
        init = self.script("init-pid").stdout.strip()
        enter = f"nsenter -t {init} -m -p -u -r -- setpriv --reuid=1000 --regid=1000 --clear-groups"
        variables = "HOME=/home/op USER=op LOGNAME=op PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin"
        variables += ' ${_CONDOR_SCHEDD_HOST:+"_CONDOR_SCHEDD_HOST=$_CONDOR_SCHEDD_HOST"}'
        for name in INSIDE:
            program = programs / name
            program.write_text(
                f"#!/bin/sh\nexec {enter} env -i {variables}"
                f' /bin/sh -c \'cd "$0" 2>/dev/null || cd; exec "$@"\' "$PWD" {name} "$@"\n'
            )
            program.chmod(0o755)
        return {"bin_dir": str(programs), "submit_root": str(folder / "scratch" / "runs"), "settle_s": 10.0, **more}

    def ssh(self, **more: Any) -> dict[str, Any]:
        """How to reach its submit host; ``port`` names a relay."""
        known_hosts = bed_folder() / f"{self.name}.known_hosts"
        if "port" in more:
            line = known_hosts.read_text().replace(f"]:{self.ssh_port} ", f"]:{more['port']} ")
            known_hosts = bed_folder() / f"{self.name}.known_hosts.{more['port']}"
            known_hosts.write_text(line)
        return {
            "host": "127.0.0.1",
            "port": self.ssh_port,
            "user": "op",
            "keys": [str(bed_folder() / "op_key")],
            "known_hosts": str(known_hosts),
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


def twin_bed() -> CondorBed:
    """Another pool, whose schedds have the same names as those of the first."""
    return CondorBed("htcondor-twin", FIRST_PORT + 100, FIRST_PORT - 7396, copy_of="htcondor")
