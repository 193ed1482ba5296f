"""The real ``bps`` command in a Python of its own (``tests/testbeds/lsst.sh``), and a real Butler repository for it."""

from __future__ import annotations

__all__ = ["LSST_BEDS", "Bps", "LsstBed", "Repository", "present_beds"]

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.integration.condorbed import bed_folder

ROOT = Path(__file__).parents[2]
LSST_BEDS = ("lsst-current", "lsst-3.11")
PATIENCE_S = 300.0


def present_beds() -> list[LsstBed]:
    """The beds that could be made with the Pythons of this machine, the current release first."""
    found = [LsstBed(name) for name in LSST_BEDS if (bed_folder() / name / "bin" / "bps").exists()]
    assert found, f"no {' or '.join(LSST_BEDS)} in {bed_folder()}: `make beds` makes them"
    return found


@dataclass(frozen=True)
class LsstBed:
    """A virtual environment with LSST's middleware; bpsd is added by ``PYTHONPATH``."""

    name: str
    patience_s: float = field(default=PATIENCE_S, compare=False)

    @property
    def folder(self) -> Path:
        return bed_folder() / self.name

    def environment(self, **more: str) -> dict[str, str]:
        """What somebody's shell has who has set up the middleware."""
        base = {key: value for key, value in os.environ.items() if not key.startswith("VIRTUAL_ENV")}
        return {
            **base,
            "CTRL_MPEXEC_DIR": str(self.folder),
            "DAF_BUTLER_DIR": str(self.folder),
            "PATH": f"{self.folder / 'bin'}:{base['PATH']}",
            "PYTHONPATH": f"{ROOT / 'daemon'}:{ROOT / 'adapters'}",
            **more,
        }

    def run(self, *argv: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the bed."""
        done = subprocess.run(
            [self.folder / "bin" / argv[0], *argv[1:]],
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=self.patience_s,
        )
        assert done.returncode == 0 or not check, f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done


@dataclass(frozen=True)
class Bps:
    """The ``bps`` command of a user whose daemon listens on ``socket``."""

    bed: LsstBed
    socket: Path
    more: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, verb: str, *options: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        variables = {"BPS_WMS_SERVICE_CLASS": "bpsd.lsst.BpsdService", "BPSD_SOCKET": str(self.socket), **self.more}
        return self.bed.run("bps", verb, *options, check=check, **variables)

    def submit(self, config: Path, verb: str = "submit") -> tuple[str, Path]:
        """Submit and return the run's id and its submit directory."""
        done = self(verb, config)
        run_id = re.search(r"^Run Id: (\S+)$", done.stdout, re.MULTILINE)
        assert run_id, done.stdout + done.stderr
        name = re.search(r"^Run Name: (\S+)$", done.stdout, re.MULTILINE)
        assert name, done.stdout
        folders = [path.parent for path in config.parent.glob(f"submit/**/{name[1]}_config.yaml")]
        assert len(folders) == 1, folders
        return run_id[1], folders[0]


class Repository:
    """A Butler repository with an instrument of four detectors and a pipeline of three tasks, nine quanta in all."""

    def __init__(self, bed: LsstBed, folder: Path) -> None:
        self.bed = bed
        self.folder = folder
        bed.run("python", ROOT / "tests" / "testbeds" / "lsst_mock_repo.py", folder)

    @property
    def raw(self) -> Path:
        """The file that the quantum of isr for detector 2 reads."""
        return self.folder / "repo" / "input_run" / "raw0" / "raw0_Cam1_Ab_input_run.json"

    def hide_raw(self) -> None:
        """Make that quantum fail."""
        self.raw.rename(self.raw.with_suffix(".hidden"))

    def show_raw(self) -> None:
        """Let it succeed."""
        self.raw.with_suffix(".hidden").rename(self.raw)

    def config(self, name: str, detectors: int = 4, **settings: Any) -> Path:
        """A submit file for the pipeline over the first detectors; its output collection is ``u/op/NAME``."""
        return self._write(
            name,
            {
                "pipelineYaml": str(self.folder / "pipe.yaml"),
                "payload": {
                    "payloadName": name,
                    "butlerConfig": str(self.folder / "repo"),
                    "inCollection": "input_chain",
                    "dataQuery": f"instrument='Cam1' AND detector <= {detectors}",
                    "output": f"u/op/{name}",
                    "outputRun": f"u/op/{name}/{{timestamp}}",
                },
                "submitPath": f"{self.folder}/submit/{{outputRun}}",
                **settings,
            },
        )

    def command_config(self, name: str, command: str, **settings: Any) -> Path:
        """A submit file for ``bps submitcmd``: one command, no quantum graph."""
        executable, _, arguments = command.partition(" ")
        return self._write(
            name,
            {
                "payload": {"payloadName": name},
                "customJob": {"executable": executable, "arguments": arguments},
                "submitPath": f"{self.folder}/submit/{name}/{{timestamp}}",
                "uniqProcName": f"{name}_{{timestamp}}",
                **settings,
            },
        )

    def _write(self, name: str, settings: Mapping[str, Any]) -> Path:
        path = self.folder / f"{name}.yaml"
        common = {
            "project": "dev",
            "campaign": "mock",
            "operator": "op",
            "computeSite": "anywhere",
            "requestMemory": 512,
            "finalJob": {"whenRun": "ALWAYS", "requestCpus": 1, "requestMemory": 64, "command1": "echo at the end"},
        }
        path.write_text(yaml.safe_dump({**common, **settings}))
        return path

    def outputs(self, collection: str) -> dict[str, int]:
        """Dataset type to how many files the runs of a collection have written."""
        counts: dict[str, int] = {}
        for path in (self.folder / "repo" / collection).rglob("*.json"):
            counts[path.parent.name] = counts.get(path.parent.name, 0) + 1
        return counts

    def remove(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.folder)
