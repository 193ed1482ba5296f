"""The adapter in docs/adapters.md is executed as it is printed, and passes the contract suite."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bpsd.testing.contract import AdapterContract, Bed

DOCS = Path(__file__).parents[2] / "docs" / "adapters.md"


def documented() -> Any:
    found = re.search(r"```python\n(# folder_wms.py\n.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(compile(found[1], "folder_wms.py", "exec"), names)
    return names["FolderService"]


class TestDocumented(AdapterContract):
    @pytest.fixture
    def bed(self, tmp_path: Path) -> Bed:
        root = tmp_path / "root"
        root.mkdir()
        return Bed(documented(), {"root": str(root)}, tmp_path)


def test_the_page_names_every_public_part_of_the_suite() -> None:
    text = DOCS.read_text()
    for name in (
        "AdapterContract",
        "ExecutionContract",
        "Bed",
        "Observer",
        "MUTANTS",
        "EXECUTION_MUTANTS",
        "asyncio_mode",
    ):
        assert f"`{name}" in text or f"{name} =" in text or f".{name}" in text, name
