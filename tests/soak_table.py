"""Write ``docs/soak.md`` at the end of a soak: when, where, how it went, and the figures that it ran at.

Only where ``BPSD_SOAK_TABLE`` names the page, as ``make soak`` does: a soak of one test is not to replace it.
"""

from __future__ import annotations

__all__ = ["pytest_sessionstart", "pytest_terminal_summary", "soak_table"]

import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.figures import FIGURES

OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed")
STARTED = pytest.StashKey[float]()
DOCUMENT = os.environ.get("BPSD_SOAK_TABLE")


def _machine() -> str:
    """The processor, its count and the memory, as this machine names them."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = facts.get("model name", platform.machine())
    return f"{len(os.sched_getaffinity(0))} cores of {model}, {memory_gib:.0f} GiB, Linux {platform.release()}"


def soak_table(
    counts: Mapping[str, int],
    figures: Mapping[str, tuple[int, int, int]],
    users: Mapping[str, Sequence[str]],
    took_s: float,
) -> str:
    """The document.

    Parameters
    ----------
    counts : `~collections.abc.Mapping` [`str`, `int`]
        How many tests ended how (``passed``, ``failed``, ``error``, ...).
    figures : `~collections.abc.Mapping`
        Name to (in use, of make test, of make soak).
    users : `~collections.abc.Mapping`
        Name of a figure to the results of the test files that name it, ``path: passed``.
    took_s : `float`
        Seconds from the first test to the last.
    """
    rows = [
        f"| `{name}` | {used:,} | {test:,} | {'<br>'.join(users.get(name, ())) or 'all properties'} |"
        for name, (used, test, _) in sorted(figures.items())
    ]
    outcome = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()) if count)
    return "\n".join(
        [
            "# The last soak",
            "",
            "`make soak` runs the tests of `make test` at their full figures and writes this page.",
            "",
            f"- Date: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {took_s / 3600:.1f} hours",
            f"- Machine: {_machine()}",
            f"- Python: {platform.python_implementation()} {platform.python_version()}",
            f"- Result: {outcome}",
            "",
            "| figure | this soak | `make test` | result |",
            "|---|---:|---:|---|",
            *rows,
            "",
        ]
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note when it began."""
    session.config.stash[STARTED] = time.time()


def _results_by_file(stats: Mapping[str, Sequence[object]]) -> dict[str, dict[str, int]]:
    """Test file to outcome to how many."""
    results: dict[str, dict[str, int]] = {}
    for outcome in OUTCOMES:
        for report in stats.get(outcome, ()):
            if isinstance(report, pytest.TestReport):
                of_file = results.setdefault(report.nodeid.partition("::")[0], {})
                of_file[outcome] = of_file.get(outcome, 0) + 1
    return results


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    """At the end of a soak, write the table."""
    if not DOCUMENT:
        return
    results = _results_by_file(terminalreporter.stats)
    sources = {file: (config.rootpath / file).read_text(encoding="utf-8") for file in results}
    users = {
        name: [f"{file}: {_in_words(results[file])}" for file in sorted(results) if f'"{name}"' in sources[file]]
        for name in FIGURES
    }
    counts = {outcome: sum(of_file.get(outcome, 0) for of_file in results.values()) for outcome in OUTCOMES}
    took_s = time.time() - config.stash[STARTED]
    Path(DOCUMENT).write_text(soak_table(counts, FIGURES, users, took_s), encoding="utf-8")
    terminalreporter.write_line(f"wrote {DOCUMENT}")
