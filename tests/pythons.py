"""The other Pythons that the tests found, for the header of the report and for `test_other_pythons`."""

from __future__ import annotations

__all__ = ["OTHER_PYTHONS", "pytest_report_header"]

import platform
from pathlib import Path

OTHER_PYTHONS = {
    folder.name.removeprefix(".venv-"): folder / "bin" / "python"
    for folder in sorted(Path(__file__).parents[1].glob(".venv-3.*"))
    if (folder / ".installed").exists()
}
"""Version to interpreter, in the virtual environments that `tests/testbeds/pythons` made."""


def pytest_report_header() -> str:
    """Say which Pythons run what."""
    others = ", ".join(OTHER_PYTHONS) or "no other"
    return f"Pythons: {platform.python_version()} (all tests); {others} (unit tests and demo, in test_other_pythons)"
