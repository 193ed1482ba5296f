"""Print the demo's workflow document: ``python workflow.py FOLDER > workflow.yaml``.

The shape is that of a campaign's night: one job to begin with, one for each exposure of each detector, one for each
visit that waits for the visit's exposures, one for each detector that stacks all visits, one that joins the stacks,
and a final job that always runs. FOLDER holds ``raw`` and ``calib``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline import DETECTORS, VISITS


def workflow(folder: Path, pipeline: Path) -> dict[str, Any]:
    """The document.

    Parameters
    ----------
    folder : `~pathlib.Path`
        Where the exposures are and the results go.
    pipeline : `~pathlib.Path`
        The program of all steps.
    """

    def job(label: str, *numbers: int, after: list[str]) -> dict[str, Any]:
        arguments = " ".join(["<FILE:pipeline>", label, *map(str, numbers)])
        return {"name": name(label, *numbers), "label": label, "arguments": arguments, "parents": after}

    jobs = [job("init", after=[])]
    jobs += [job("isr", visit, detector, after=["init"]) for visit in VISITS for detector in DETECTORS]
    jobs += [job("calibrate", visit, after=[name("isr", visit, each) for each in DETECTORS]) for visit in VISITS]
    jobs += [job("coadd", detector, after=[name("calibrate", each) for each in VISITS]) for detector in DETECTORS]
    jobs += [job("mosaic", after=[name("coadd", each) for each in DETECTORS])]
    return {
        "bpsd": 1,
        "name": "demo/night1",
        "run": {"project": "demo", "campaign": "night1", "payload": "coadds", "operator": "you"},
        "defaults": {
            "executable": "python",
            "request_memory": 64,
            "request_walltime": 5,
            "working_directory": str(folder),
        },
        "executables": [{"name": "python", "src_uri": sys.executable}],
        "files": [{"name": "pipeline", "src_uri": str(pipeline)}],
        "jobs": jobs,
        "final": job("final", after=[]),
    }


def name(label: str, *numbers: int) -> str:
    """A job's name: ``isr_3_1`` is detector 1 of visit 3."""
    return "_".join([label, *map(str, numbers)])


def main() -> None:
    """Print it."""
    document = workflow(Path(sys.argv[1]).resolve(), Path(__file__).with_name("pipeline.py").resolve())
    yaml.safe_dump(document, sys.stdout, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
