"""Arguments, environment and paths of jobs are UTF-8, whatever the locale in which the daemon was started."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from bpsd.testing.observer import shell_job
from tests.integration.daemons import RunningDaemon, document, until
from tests.integration.test_bps_plugin import tiny_settings

TEXT = "Gipfel é ☃"


@pytest.fixture(params=["ascii", "latin-1"])
def locale(request: pytest.FixtureRequest, tmp_path: Path) -> Mapping[str, str]:
    """An environment in which Python would encode for another locale than UTF-8."""
    plain = {name: value for name, value in os.environ.items() if name not in ("LANG", "PYTHONUTF8")}
    if request.param == "ascii":
        return plain | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    localedef = shutil.which("localedef")
    assert localedef is not None, "localedef makes the locale (Debian: libc-bin, and the sources in locales)"
    command = [localedef, "-i", "POSIX", "-f", "ISO-8859-1", "--no-archive", str(tmp_path / "xx_XX")]
    subprocess.run(command, check=False, capture_output=True)  # complains of what POSIX leaves out
    return plain | {"LC_ALL": "xx_XX", "LOCPATH": str(tmp_path)}


@pytest.mark.parametrize("backend", ["here", "plugin"])
def test_jobs_get_utf8_whatever_the_locale(
    state_dir: Path, tmp_path: Path, backend: str, locale: Mapping[str, str]
) -> None:
    folder = state_dir / TEXT
    folder.mkdir()
    shown = subprocess.run(
        ["python3", "-c", "import sys; print(sys.getfilesystemencoding())"], env=locale, capture_output=True, check=True
    )
    assert shown.stdout.decode().strip() != "utf-8", "the locale is another"
    backends = {
        "here": {"type": "local", "ledger": str(folder / "ledger"), "run_dir": str(folder / "runs")},
        "plugin": {"type": "bps_plugin", **tiny_settings(folder, "BlockingService", blocks=True)},
    }
    daemon = RunningDaemon(state_dir, {backend: backends[backend]})
    daemon.environment = locale
    with daemon, daemon.client() as client:
        out = tmp_path / "said"
        job = shell_job("a_1", f'printf "%s %s" "{TEXT}" "$GREETING" > {out}', environment={"GREETING": TEXT})
        run = client.submit_document(document(job))["run"]
        until(lambda: client.status(run)["state"] in ("SUCCEEDED", "FAILED"), "the run is over")
        assert client.status(run)["state"] == "SUCCEEDED", client.report(run)
        greeting = TEXT if backend == "here" else ""  # the small plugin gives its jobs no environment
        assert out.read_bytes().decode() == f"{TEXT} {greeting}"
        path = client.report(run)["runs"][0]["path"]
        assert Path(path).is_dir()
        assert TEXT in path
