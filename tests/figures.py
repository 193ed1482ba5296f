"""The figures that the tests run at: a small one in ``make test``, the issue's full one in ``make soak``.

``BPSD_SOAK=1`` takes the full figures; one of them alone is set by its own name, as in ``BPSD_KILLS=100``.
"""

from __future__ import annotations

__all__ = ["FIGURES", "MEASURED", "SOAK", "figure", "measured"]

import os
import sys

SOAK = os.environ.get("BPSD_SOAK", "") not in ("", "0")

FIGURES: dict[str, tuple[int, int, int]] = {}
"""Name to (in use, of make test, of make soak), for the table of ``docs/soak.md``."""

NAMED_IN: dict[str, set[str]] = {}
"""Name to the modules that have it."""


def figure(name: str, *, test: int, soak: int) -> int:
    """The number called ``name`` to use in this session."""
    chosen = int(os.environ.get(f"BPSD_{name}", soak if SOAK else test))
    FIGURES[name] = (chosen, test, soak)
    NAMED_IN.setdefault(name, set()).add(sys._getframe(1).f_globals["__name__"])
    return chosen


MEASURED: dict[str, tuple[str, str]] = {}
"""Name to (value, module) of what was measured in this session, for the table."""


def measured(name: str, value: str) -> None:
    """Have a measured value in the row of the test file that calls this."""
    MEASURED[name] = (value, sys._getframe(1).f_globals["__name__"])
