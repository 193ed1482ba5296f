"""The demo's workflow computes what it says: its steps in its own order, over its own files."""

from __future__ import annotations

import graphlib
import importlib
import json
import random
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "config" / "examples" / "demo"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a program of the demo as it imports its neighbours: from its own folder."""
    monkeypatch.syspath_prepend(str(DEMO))

    def program(name: str) -> ModuleType:
        module = importlib.import_module(name)
        assert module.__file__ == str(DEMO / f"{name}.py")
        return module

    return program


@pytest.fixture
def folder(state_dir: Path) -> Path:
    for name in ("raw", "calib"):
        shutil.copytree(DEMO / name, state_dir / name)
    return state_dir


def _run(demo: Any, folder: Path, arguments: str) -> None:
    _, step, *numbers = arguments.split()
    demo("pipeline").STEPS[step](folder, *map(int, numbers))


def test_steps_in_the_order_of_the_workflow_find_how_clear_the_sky_was(
    demo: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe = demo("observe")
    true_weather = observe.make_weather(random.Random(observe.SEED))
    monkeypatch.setattr(demo("pipeline"), "RESAMPLES", 3)
    document = demo("workflow").workflow(folder, DEMO / "pipeline.py")
    jobs = {job["name"]: job for job in document["jobs"]}
    order = graphlib.TopologicalSorter({name: job["parents"] for name, job in jobs.items()}).static_order()

    for name in order:
        _run(demo, folder, jobs[name]["arguments"])
    _run(demo, folder, document["final"]["arguments"])

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["complete"]
    assert summary["exposures"] == 40
    assert [visit["stars"] for visit in summary["visits"]] == [35] * 8
    assert [visit["clearness"] for visit in summary["visits"]] == pytest.approx(
        [clear for clear, _ in true_weather], rel=0.03
    )
    mosaic = demo("images").read(folder / "mosaic.pgm")
    assert (mosaic.width, mosaic.height) == (200, 40)
    assert max(mosaic.pixels) > 20 * min(mosaic.pixels)


def test_exposure_that_was_cut_short_says_so(demo: Any, folder: Path) -> None:
    path = folder / "raw" / "v5_d2.pgm"
    path.write_bytes(path.read_bytes()[:2000])

    with pytest.raises(
        demo("images").BrokenImage, match=r"v5_d2\.pgm.*3840 bytes, and \d+ bytes follow.*Copy it again"
    ):
        _run(demo, folder, "pipeline.py isr 5 2")


def test_missing_inputs_are_all_named(demo: Any, folder: Path) -> None:
    (folder / "raw" / "v5_d2.pgm").unlink()
    (folder / "calib" / "dark_d3.pfm").unlink()

    with pytest.raises(demo("pipeline").CannotGoOn, match=r"2 inputs .*raw/v5_d2\.pgm, calib/dark_d3\.pfm"):
        _run(demo, folder, "pipeline.py init")


def test_images_come_back_as_they_were_written(demo: Any, state_dir: Path) -> None:
    images = demo("images")
    image = images.Image(3, 2, [-1.5, 0.0, 1.0, 2.0, 70000.0, 5.25], {"visit": "3", "dx": "-1"})

    images.write_pfm(state_dir / "a.pfm", image)
    images.write_pgm(state_dir / "a.pgm", image)

    assert images.read(state_dir / "a.pfm") == image
    assert images.read(state_dir / "a.pgm").pixels == [0, 0, 1, 2, 65535, 5]
    assert sorted(path.name for path in state_dir.iterdir()) == ["a.pfm", "a.pgm"]


def test_final_job_sums_up_a_failed_run_too(demo: Any, folder: Path) -> None:
    _run(demo, folder, "pipeline.py init")

    _run(demo, folder, "pipeline.py final")

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert (summary["complete"], summary["exposures"], summary["mosaic_sha256"]) == (False, 0, None)
