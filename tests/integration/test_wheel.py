"""What is installed from the wheel works, not only what lies in the tree."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import bpsd
from bpsd.cli.install import MAN_PAGES
from tests.wheels import build_wheel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with TemporaryDirectory(prefix="b", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def wheel(scratch: Path) -> Path:
    return build_wheel(scratch / "dist")


@pytest.fixture(scope="module")
def installed(scratch: Path, wheel: Path) -> Path:
    """The bin folder of an environment with the wheel in it.

    Its dependencies are those of this environment, lent by path: the tree is not on it, for a path that is lent brings
    no ``.pth`` file along.
    """
    venv.create(scratch / "venv", with_pip=False, symlinks=True)
    python = scratch / "venv" / "bin" / "python"
    install: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-qq",
        "--no-deps",
        "--no-index",
        wheel,
    ]
    subprocess.run(install, check=True)
    (site,) = (scratch / "venv" / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python.parent


def _says(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout


def test_wheel_holds_both_packages_with_their_types_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    assert {name.partition("/")[0] for name in names} == {
        "bpsd",
        "bpsd_adapters",
        f"bpsd-{bpsd.__version__}.dist-info",
        f"bpsd-{bpsd.__version__}.data",
    }
    in_tree = {
        str(path.relative_to(source))
        for source in (ROOT / "daemon", ROOT / "adapters")
        for path in source.rglob("*")
        if path.suffix in {".py", ".typed"}
    }
    units = {f"bpsd/{path.relative_to(ROOT)}" for path in (ROOT / "systemd").rglob("*") if path.is_file()}
    shared = {
        f"bpsd-{bpsd.__version__}.data/data/share/{name}"
        for name in (
            "bpsd/bpsd.yaml",
            "bpsd/monitoring/bpsd-alerts.yaml",
            "bpsd/monitoring/bpsd-dashboard.json",
            "doc/bpsd/admin.md",
            "man/man1/bpsctl.1",
            "man/man5/bpsd.yaml.5",
            "man/man8/bpsd.8",
        )
    }
    assert {name for name in names if ".dist-info/" not in name} == in_tree | units | shared
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_both_commands_run_from_the_wheel(installed: Path) -> None:
    where = _says(installed / "python", "-c", "import bpsd; print(bpsd.__file__)")
    assert Path(where.strip()).is_relative_to(installed.parent)

    assert bpsd.__version__ in _says(installed / "bpsctl", "--version")
    assert bpsd.__version__ in _says(installed / "bpsd", "--version")
    assert (installed.parent / "share/bpsd/monitoring/bpsd-alerts.yaml").exists()
    assert "would write /etc/systemd/system/bpsd.service" in _says(
        installed / "bpsd", "install", "--system", "--dry-run"
    )


def test_adapters_are_found_from_the_wheel(installed: Path) -> None:
    program = (
        "import json; from importlib.metadata import entry_points;"
        "print(json.dumps({each.name: each.load().__name__ for each in entry_points(group='bpsd.adapters')}))"
    )

    assert json.loads(_says(installed / "python", "-c", program)) == {
        "bps_plugin": "BpsPluginService",
        "htcondor": "HTCondorService",
        "local": "LocalService",
        "scripted": "ScriptedService",
        "slurm": "SlurmService",
    }


@pytest.mark.parametrize("page", MAN_PAGES)
@pytest.mark.parametrize("check", [("mandoc", "-T", "lint", "-W", "warning"), ("groff", "-man", "-Tutf8", "-ww", "-z")])
def test_manual_pages_have_no_mistake(installed: Path, page: str, check: tuple[str, ...]) -> None:
    done = subprocess.run([*check, installed.parent / "share/man" / page], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
