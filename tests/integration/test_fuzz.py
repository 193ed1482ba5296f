"""Coverage-guided fuzzing (libFuzzer, by atheris) of what reads foreign bytes: no crash, no hang, no growth."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from bpsd import wire
from tests.figures import figure

ROOT = Path(__file__).parents[2]
RUNS = {
    "protocol": figure("FUZZ_PROTOCOL", test=15_000, soak=500_000),
    "config": figure("FUZZ_CONFIG", test=3_000, soak=300_000),
}
"""Inputs that each target is given."""
ONE_INPUT_S = 10
MEMORY_MB = 700


def protocol_seeds() -> list[bytes]:
    """A request of every method, and some that are none."""
    good = [wire.encode_request(number, method, {"run": "r"}) for number, method in enumerate(wire.METHODS)]
    bad = [b"{}\n", b"[]\n", b'{"jsonrpc":"2.0"}\n', b"\xff\n", b'{"a":' * 300]
    return [bytes([size]) + line for size in (7, 255) for line in (*good, *bad)]


def config_seeds() -> list[bytes]:
    """The files that there are, whole and line by line."""
    files = [ROOT / "config" / "bpsd.yaml", *sorted((ROOT / "config" / "examples").glob("*.yaml"))]
    whole = [path.read_bytes() for path in files]
    return [*whole, *(b"\n\n".join([part, b""]) for text in whole for part in text.split(b"\n\n")), b'{"mode": "user"}']


@pytest.mark.timeout(14_400)
@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.version_info >= (3, 14), reason="atheris has no release for this machine"
)
@pytest.mark.parametrize("target", RUNS)
def test_coverage_guided(target: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate({"protocol": protocol_seeds, "config": config_seeds}[target]()):
        (corpus / f"{number}").write_bytes(seed)

    done = subprocess.run(
        [
            *(sys.executable, "-m", f"tests.fuzz.{target}"),
            *(
                f"-runs={RUNS[target]}",
                f"-timeout={ONE_INPUT_S}",
                f"-rss_limit_mb={MEMORY_MB}",
                "-max_len=4096",
                "-seed=5",
            ),
            *(f"-artifact_prefix={tmp_path}/", str(corpus)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )

    found = [path.name for path in tmp_path.iterdir() if path != corpus]
    assert (done.returncode, found) == (0, []), done.stderr[-4000:]
    assert f"Done {RUNS[target]} runs" in done.stderr, done.stderr[-2000:]
