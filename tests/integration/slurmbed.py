"""A real Slurm cluster for tests: ``tests/testbeds/slurm.sh`` keeps it in namespaces of its own, on loopback."""

from __future__ import annotations

__all__ = ["OLD_SLURM", "VERSIONS", "SlurmBed"]

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.figures import figure
from tests.integration.condorbed import bed_folder
from tests.leftovers import SESSION_VARIABLE

OLD_SLURM = figure("OLD_SLURM", test=0, soak=1)
"""Whether the oldest version has its turn too: building its cluster takes a minute, and another six the tests."""

VERSIONS = ("slurm", "old_slurm")[: 1 + OLD_SLURM]
"""The fixtures of those that have."""

SCRIPT = Path(__file__).parents[1] / "testbeds" / "slurm.sh"

SHIM = """#!/bin/sh
exec {script} {folder} exec-op {tool} "$@"
"""


@dataclass
class SlurmBed:
    """One cluster with accounting and an SSH server. ``share`` is a folder that jobs and tests see alike."""

    name: str = "slurm"
    suite: str = "trixie"
    port: int = 16817
    ssh_port: int = 2223

    @property
    def folder(self) -> Path:
        return bed_folder() / self.name

    @property
    def share(self) -> Path:
        return bed_folder() / "share"

    def script(self, mode: str, *arguments: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != SESSION_VARIABLE} | {
            "SLURM_SUITE": self.suite,
            "SLURM_PORT": str(self.port),
            "SLURM_SSH_PORT": str(self.ssh_port),
            "SLURM_BIND": f"{self.share}:{self.share}",
        }
        return subprocess.run(
            [SCRIPT, self.folder, mode, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def do(self, mode: str, *arguments: str) -> str:
        """Have the bed do something, and see that it did."""
        done = self.script(mode, *arguments)
        assert done.returncode == 0, f"{mode} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Start it, and build it if it is not there. One that is up is taken as it is."""
        self.share.mkdir(parents=True, exist_ok=True)
        self.share.chmod(0o1777)
        self.do("start")

    def stop(self) -> None:
        self.script("stop")

    def run(self, *argv: str) -> str:
        """Run a program in the bed as its operator."""
        return self.do("exec-op", *argv)

    @contextmanager
    def conf(self, *changes: str) -> Iterator[None]:
        """Another slurm.conf for a time."""
        self.do("conf", *changes)
        try:
            yield
        finally:
            self.do("conf")

    def settings(self, **more: Any) -> dict[str, Any]:
        """A backend's settings that reach it over SSH, with intervals for tests that have no minutes to wait."""
        return {
            "ssh": {
                "host": "127.0.0.1",
                "port": self.ssh_port,
                "user": "op",
                "keys": [str(bed_folder() / "op_key")],
                "known_hosts": str(self.folder / "known_hosts"),
                "config": "/dev/null",
            },
            "work_dir": "/home/op/bpsd",
            "poll_interval_s": 0.2,
            "idle_interval_s": 0.4,
            "settle_s": 5.0,
            "submit_deadline_s": 20.0,
            "lost_after_s": 5.0,
            **more,
        }

    def local_settings(self, folder: Path, **more: Any) -> dict[str, Any]:
        """A backend's settings as if its daemon ran in the bed: what it starts, it starts there, as the operator."""
        tools = folder / "tools"
        tools.mkdir()
        for tool in ("sh", "env", "sbatch", "scancel", "scontrol"):
            shim = tools / tool
            shim.write_text(SHIM.format(script=SCRIPT, folder=self.folder, tool=tool))
            shim.chmod(0o755)
        settings = self.settings(bin_dir=str(tools), work_dir=str(folder / "work"), **more)
        del settings["ssh"]
        return settings

    def new_folder(self) -> Path:
        """A new folder that the cluster's jobs may write to."""
        folder = Path(tempfile.mkdtemp(prefix="t", dir=self.share))
        folder.chmod(0o1777)
        (folder / "scratch").mkdir()
        (folder / "scratch").chmod(0o1777)
        return folder

    @staticmethod
    def remove(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
