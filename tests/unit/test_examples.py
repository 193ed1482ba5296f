"""The workflows in ``config/examples`` are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpsd import validation

WORKFLOWS = Path(__file__).parents[2] / "config" / "examples" / "workflows"

SUMMARIES = {
    "diamond.yaml": "make:1;look:2;report:1;tidy:1",
    "groups.json": "isr:2;calibrate:2;coadd:1;finish:1",
    "retry.yaml": "flaky:1;hungry:1;hopeless:1;after:2",
}


@pytest.mark.parametrize("path", sorted(WORKFLOWS.iterdir()), ids=lambda path: str(path.name))
def test_workflow_is_valid(path: Path) -> None:
    valid = validation.validate(path.read_bytes(), path.name)

    assert valid.run_summary == SUMMARIES[path.name]
    assert valid.warnings == ()
