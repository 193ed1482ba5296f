"""The folder that `make wheelhouse` builds installs bpsd where there is no index and no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import bpsd
from tests.wheelhouse import build_wheelhouse

NOWHERE = "http://127.0.0.1:9"
"""Where nothing answers."""


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with TemporaryDirectory(prefix="b", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def requirements(scratch: Path) -> Path:
    return build_wheelhouse(scratch / "wheelhouse")


def install(folder: Path, requirements: Path) -> subprocess.CompletedProcess[str]:
    venv.create(folder, with_pip=False, symlinks=True)
    away = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "PIP_INDEX_URL"), NOWHERE)
    return subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--isolated", "--python", folder / "bin" / "python", "install", "-q"),
            *("--no-cache-dir", "--no-index", "--find-links", requirements.parent, "--require-hashes"),
            *("-r", requirements),
        ],
        env={**os.environ, **away, "PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(900)
def test_bpsd_is_installed_without_an_index(scratch: Path, requirements: Path) -> None:
    done = install(scratch / "venv", requirements)
    assert done.returncode == 0, done.stderr

    def says(*command: str) -> str:
        program = scratch / "venv" / "bin" / command[0]
        return subprocess.run([program, *command[1:]], check=True, capture_output=True, text=True, cwd="/").stdout

    assert says("bpsd", "--version") == f"bpsd {bpsd.__version__}\n"
    assert "usage: bpsctl" in says("bpsctl", "--help")
    assert "backend:       here (local)" in says("bpsd", "check-config")
    assert "complete" in says("bpsctl", "completion", "bash")
    assert (scratch / "venv/share/man/man8/bpsd.8").exists()


def test_list_names_every_wheel_by_its_hash_and_no_place(requirements: Path) -> None:
    text = requirements.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]

    assert len(lines) == len(list(requirements.parent.glob("*.whl"))) > 10
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line)] == []
    assert "//" not in text


@pytest.mark.timeout(900)
def test_a_wheel_that_was_changed_is_refused(scratch: Path, requirements: Path) -> None:
    wheel = next(requirements.parent.glob("rich-*.whl"))
    whole = wheel.read_bytes()
    wheel.write_bytes(whole + b"x")
    try:
        done = install(scratch / "other", requirements)
    finally:
        wheel.write_bytes(whole)

    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
