"""Tests that need the classes of LSST run in a Python that has them: ours, and the unit tests of ctrl_bps itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.figures import figure
from tests.integration.lsstbed import LSST_BEDS, ROOT, LsstBed, present_beds

EXAMPLES = figure("LSST_EXAMPLES", test=25, soak=500)
"""Made-up workflows for each property of the conversion."""

INSIDE = ROOT / "tests" / "inside_lsst"

UPSTREAM = ("test_ping.py", "test_status.py", "test_report.py", "test_drivers.py", "test_cli_commands.py")
"""Their tests that drive a service class. Those of ``BpsConfig`` that do are chosen by name."""

PATIENCE_S = 300 + 2 * EXAMPLES

pytestmark = pytest.mark.timeout(600 + PATIENCE_S)


@pytest.fixture(params=LSST_BEDS)
def bed(request: pytest.FixtureRequest) -> LsstBed:
    wanted = LsstBed(str(request.param), PATIENCE_S)
    if wanted not in present_beds():  # at least one is there, or this fails
        pytest.skip(f"no {wanted.name}: no such Python on this machine")
    return wanted


def run_pytest(bed: LsstBed, folder: Path, *arguments: str | Path, **environment: str) -> None:
    """Run pytest in a bed. With a folder of its own (its path is short: sockets are in it) it does
    not tidy up what other sessions of pytest use.
    """
    own = f"--basetemp={folder / 'p'}"
    done = bed.run("python", "-m", "pytest", "-q", own, *arguments, check=False, **environment)

    assert done.returncode == 0, f"{bed.name}:\n{done.stdout}{done.stderr}"


def test_conversion_contract_and_service(bed: LsstBed, state_dir: Path) -> None:
    run_pytest(
        bed,
        state_dir,
        *("-c", INSIDE / "pytest.ini", "--rootdir", INSIDE, "--confcutdir", INSIDE, INSIDE),
        BPSD_EXAMPLES=str(EXAMPLES),
    )


def test_upstreams_own_tests_of_a_service(bed: LsstBed, state_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "upstream"
    shutil.copytree(bed.folder / "upstream-tests", folder)
    (folder / "data").mkdir()  # not in the source distribution; all that these tests ask of it
    (folder / "data" / "config.yaml").write_text("foo: {qux: 2}\nbar: {qux: 1}\n")
    (folder / "data" / "config_with_wms.yaml").write_text("wmsServiceClass: wms_test_utils.WmsServiceFromConfig\n")
    paths = f"{INSIDE / 'upstream'}:{ROOT / 'daemon'}:{ROOT / 'adapters'}"

    run_pytest(
        bed,
        state_dir,
        *("-c", "/dev/null", "--rootdir", folder, "-p", "no:cacheprovider", "--import-mode=importlib"),
        *(folder / name for name in UPSTREAM),
        *(f"{folder}/test_bpsconfig.py::TestBpsConfigConstructor::testWmsFrom{where}" for where in SOURCES),
        PYTHONPATH=paths,
    )


SOURCES = ("Cmdline", "Config", "Env", "Defaults")
