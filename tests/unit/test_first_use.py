"""msgspec must not meet a type for the first time in two threads at once (see `bpsd.models.made_ready`)."""

from __future__ import annotations

import subprocess
import sys

import pytest

FIRST_USE = """
import sys, threading
sys.setswitchinterval(1e-6)
import msgspec
from {module} import {name} as T
together = threading.Barrier(4)
def use():
    together.wait()
    try:
        msgspec.json.decode(b"{{}}", type=T)
    except msgspec.ValidationError:
        pass
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("bpsd.workflow", "Workflow"),
        ("bpsd.workflow", "WorkflowFile"),
        ("bpsd.testing.wms", "WmsFile"),
        ("bpsd_adapters.local.follow", "BackendCursor"),
    ],
)
def test_types_that_threads_decode_are_ready(module: str, name: str) -> None:
    for _ in range(8):  # without made_ready about one in four died
        done = subprocess.run([sys.executable, "-c", FIRST_USE.format(module=module, name=name)], check=False)
        assert done.returncode == 0
