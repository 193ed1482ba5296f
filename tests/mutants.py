"""The mutation run: small faults are put into a copy of the code, and the unit tests that belong to it must notice.

``python -m tests.mutants`` runs every target; ``python -m tests.mutants reducer dag`` runs these. ``make mutants``
calls it. A mutant that no test notices must be explained in ``tests/fixtures/mutants.toml``, else the run fails. The
work is cosmic-ray's; the tree of the caller is never changed.
"""

from __future__ import annotations

__all__ = ["TARGETS", "Survivor", "explained", "main", "unexplained"]

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
EXPLANATIONS = ROOT / "tests" / "fixtures" / "mutants.toml"
COPIED = ("daemon", "adapters", "tests", "config", "docs", "systemd", "pyproject.toml", "README.md", "CHANGELOG.md")
TEST_TIMEOUT_S = 120.0
"""Time allowed for the tests of one mutant; an endless loop counts as noticed."""

TARGETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "reducer": ("daemon/bpsd/reducer.py", ("tests/unit/test_reducer.py",)),
    "dag": ("adapters/bpsd_adapters/dag.py", ("tests/unit/test_dag.py",)),
    "engine": (
        "daemon/bpsd/commands/engine.py",
        ("tests/unit/test_command_engine.py", "tests/unit/test_command_order.py"),
    ),
    "outcomes": (
        "daemon/bpsd/commands/outcomes.py",
        ("tests/unit/test_command_engine.py", "tests/unit/test_command_order.py"),
    ),
    "local-observe": ("adapters/bpsd_adapters/local/observe.py", ("tests/unit/test_local_observe.py",)),
    "slurm-observe": (
        "adapters/bpsd_adapters/slurm/observe.py",
        ("tests/unit/test_slurm_engine.py", "tests/unit/test_slurm_driver.py"),
    ),
    "htcondor-observe": (
        "adapters/bpsd_adapters/htcondor/observe.py",
        ("tests/unit/test_htcondor_ads.py", "tests/unit/test_htcondor_watch.py", "tests/unit/test_htcondor_pool.py"),
    ),
}
"""Name to (module, the tests that must notice a fault in it)."""

EXCLUDED_OPERATORS = (
    "core/ReplaceBinaryOperator_BitOr_.*",  # nearly all of them are in annotations, which nobody evaluates
    "core/ReplaceComparisonOperator_(Is_Eq|Eq_Is|IsNot_NotEq|NotEq_IsNot)",  # the same for an enumeration
    "core/ReplaceBinaryOperator_Mul_Div",  # of a bare * between parameters: no signature either way
    "core/RemoveDecorator",  # dataclass, property: what is left does not import
)


class Survivor(NamedTuple):
    """A mutant that no test noticed. ``line`` is its text: an explanation outlives an edit above."""

    target: str
    operator: str
    function: str
    line: str
    occurrence: int
    diff: str


def explained() -> set[tuple[str, str, str, str]]:
    """Return (target, operator, function, line) of the mutants that are explained."""
    entries = tomllib.loads(EXPLANATIONS.read_text())["mutant"]
    assert all(entry["why"].strip() for entry in entries)
    return {
        (entry["target"], operator, entry["function"], entry["line"])
        for entry in entries
        for operator in entry["operators"]
    }


def unexplained(survivors: Sequence[Survivor]) -> list[Survivor]:
    """Return the survivors that no entry explains."""
    known = explained()
    return [s for s in survivors if not {(s.target, op, s.function, s.line) for op in (s.operator, "*")} & known]


def configuration(module: str, tests: Sequence[str]) -> str:
    """Return cosmic-ray's settings for one module."""
    options = "-x -q -p no:cacheprovider --basetemp=tmp --hypothesis-profile=mutants"
    command = f"{sys.executable} -m pytest {options} {' '.join(tests)}"
    return f"""
[cosmic-ray]
module-path = {json.dumps(module)}
timeout = {TEST_TIMEOUT_S}
excluded-modules = []
test-command = {json.dumps(command)}

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = {json.dumps(EXCLUDED_OPERATORS)}
"""


def results(target: str, copy: Path, dump: str) -> Iterator[tuple[bool, Survivor]]:
    """Read what cosmic-ray says: for each mutant whether a test noticed it."""
    for row in dump.splitlines():
        work, result = json.loads(row)
        if result is None or result.get("worker_outcome") == "skipped":
            continue
        mutation = work["mutations"][0]
        source = (copy / mutation["module_path"]).read_text().splitlines()
        yield (
            result["test_outcome"] == "killed",
            Survivor(
                target,
                mutation["operator_name"],
                mutation.get("definition_name") or "",
                source[mutation["start_pos"][0] - 1].strip(),
                mutation["occurrence"],
                result.get("diff") or "",
            ),
        )


def mutate(target: str, folder: Path) -> tuple[int, list[Survivor]]:
    """Run one target in a copy of the tree; return how many mutants there were, and those that survived."""
    module, tests = TARGETS[target]
    copy = folder / target
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    environment = os.environ | {
        "PYTHONPATH": f"{copy / 'daemon'}:{copy / 'adapters'}:{copy}",
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutant of the same second and length would run from the cache of another
    }
    (copy / "cr.toml").write_text(configuration(module, tests))
    bin_folder = Path(sys.executable).parent

    def run(*command: str) -> str:
        program, *arguments = command
        done = subprocess.run(
            [bin_folder / program, *arguments],
            cwd=copy, env=environment, text=True, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        return done.stdout

    run("cosmic-ray", "init", "cr.toml", "cr.sqlite")
    run("cr-filter-operators", "cr.sqlite", "cr.toml")
    run("cosmic-ray", "baseline", "cr.toml")
    run("cosmic-ray", "exec", "cr.toml", "cr.sqlite")
    outcomes = list(results(target, copy, run("cosmic-ray", "dump", "cr.sqlite")))
    return len(outcomes), [survivor for killed, survivor in outcomes if not killed]


def main(names: Sequence[str]) -> int:
    """Run the targets, print the score of each and every mutant that needs a test or an explanation."""
    os.nice(10)
    left = 0
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        for target in names or TARGETS:
            count, survivors = mutate(target, Path(folder))
            bad = unexplained(survivors)
            left += len(bad)
            print(
                f"{target}: {count} mutants, {count - len(survivors)} noticed, {len(survivors) - len(bad)} explained, "
                f"{len(bad)} neither",
                flush=True,
            )
            for survivor in bad:
                print(f"  {survivor.operator} #{survivor.occurrence} in {survivor.function}: {survivor.line}")
                print(survivor.diff, flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
