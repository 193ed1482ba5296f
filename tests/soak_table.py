"""Keep ``docs/soak.md``: for each test file when and on what version it was last run at full figures, and how it went.

Only where ``BPSD_SOAK_TABLE`` names the page, as ``make soak`` does. A soak of a part (``PYTEST_ARGS``) renews the rows
of its files and leaves the others, which say their own version and date: a soak takes hours, and need not be in one go.
"""

from __future__ import annotations

__all__ = [
    "Row",
    "pytest_collection_finish",
    "pytest_sessionstart",
    "pytest_terminal_summary",
    "soak_table",
    "told_before",
]

import os
import platform
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import hypothesis
import pytest

from tests.figures import FIGURES, MEASURED, NAMED_IN

OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed")
VERSION = pytest.StashKey[str]()
CHOSEN = pytest.StashKey[Mapping[str, int]]()
DOCUMENT = os.environ.get("BPSD_SOAK_TABLE")
_WORD = re.compile(r"\w+")  # a bed's figure is told of every file that names the bed's module
HEAD = ("tests", "figures (of `make test`)", "result", "took", "when", "version", "Python")


@dataclass(frozen=True)
class Row:
    """What is told of one test file."""

    file: str
    figures: str
    result: str
    took: str
    when: str
    version: str
    python: str


def told_before(page: str) -> list[Row]:
    """The rows of a page that `soak_table` made; those of files that are no more are left to the caller."""
    cells = ([cell.strip() for cell in line.strip("|\n ").split("|")] for line in page.splitlines())
    return [Row(*of) for of in cells if len(of) == len(HEAD) and of[0].startswith("tests/")]


def soak_table(rows: Iterable[Row], machine: str, examples: int) -> str:
    """The document; hypothesis tried so many ``examples``."""
    ordered = sorted(rows, key=lambda row: row.file)
    failed = [row.file for row in ordered if any(word in row.result for word in ("failed", "error"))]
    return "\n".join(
        [
            "# The last soak",
            "",
            "`make soak` runs the tests of `make test` at their full figures and keeps this page: a row tells of",
            "the last run of its file, and of which version (`+`: with changes that were not committed).",
            f"Hypothesis tries {examples} examples (`EXAMPLES`) for each property.",
            "",
            f"- Machine: {machine}",
            f"- Not passed: {', '.join(failed) or 'none'}",
            "",
            f"| {' | '.join(HEAD)} |",
            "|---|---|---|---:|---|---|---|",
            *(f"| {' | '.join(astuple(row))} |" for row in ordered),
            "",
        ]
    )


def _machine() -> str:
    """The processor, its count and the memory, as this machine names them."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = facts.get("model name", platform.machine())
    return f"{len(os.sched_getaffinity(0))} cores of {model}, {memory_gib:.0f} GiB, Linux {platform.release()}"


def _version(root: Path) -> str:
    """The commit that is tested; ``+`` behind it if the tree has changes beside this page."""

    def git(*argv: str) -> str:
        done = subprocess.run(["git", "-C", root, *argv], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!docs/soak.md")
    return (git("rev-parse", "--short=9", "HEAD") or "unknown") + ("+" if changed else "")


def _took(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


def _rows(stats: Mapping[str, Sequence[object]], chosen: Mapping[str, int], root: Path, version: str) -> list[Row]:
    """One row for each test file of this session that came to its end."""
    counts: dict[str, dict[str, int]] = {}
    seconds: dict[str, float] = {}
    for outcome, reports in stats.items():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file = report.nodeid.partition("::")[0]
                seconds[file] = seconds.get(file, 0.0) + report.duration
                if outcome in OUTCOMES:
                    of_file = counts.setdefault(file, {})
                    of_file[outcome] = of_file.get(outcome, 0) + 1
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    python = platform.python_version()
    rows = []
    for file, of_file in counts.items():
        if sum(of_file.values()) < chosen[file]:
            continue  # somebody ended the soak in the middle of it
        imported = set(_WORD.findall((root / file).read_text(encoding="utf-8"))) | {Path(file).stem}
        own = [
            f"`{name}` {used:,} ({small:,})"
            for name, (used, small, _) in sorted(FIGURES.items())
            if imported & {module.rpartition(".")[2] for module in NAMED_IN[name]}
        ]
        own += [
            f"measured `{name}` {value}"
            for name, (value, module) in sorted(MEASURED.items())
            if module.rpartition(".")[2] == Path(file).stem
        ]
        result = ", ".join(f"{count} {word}" for word, count in of_file.items())
        rows.append(Row(file, ", ".join(own) or "-", result, _took(seconds[file]), now, version, python))
    return rows


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note what is tested: the tree may change while it is."""
    if DOCUMENT:
        session.config.stash[VERSION] = _version(session.config.rootpath)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note how many tests of which file are to run."""
    session.config.stash[CHOSEN] = Counter(item.nodeid.partition("::")[0] for item in session.items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    """At the end of a soak, or of a part of one, renew the table."""
    if not DOCUMENT:
        return
    root, page = config.rootpath, Path(DOCUMENT)
    rows = _rows(terminalreporter.stats, config.stash[CHOSEN], root, config.stash[VERSION])
    renewed = {row.file for row in rows}
    before = told_before(page.read_text(encoding="utf-8")) if page.exists() else []
    kept = [row for row in before if row.file not in renewed and (root / row.file).exists()]
    page.write_text(soak_table([*kept, *rows], _machine(), hypothesis.settings().max_examples), encoding="utf-8")
    terminalreporter.write_line(f"wrote {page}")
