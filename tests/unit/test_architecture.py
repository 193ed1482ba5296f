"""What ``docs/architecture.md`` says of the layers is true, of every module that there is."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import bpsd

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "daemon", ROOT / "adapters")
MAX_LINES = 600
LONGER_FOR_A_REASON = {
    "bpsd.cache": 620,  # one state that everything here changes together
    "bpsd.messages": 880,  # the table of everything that goes over the socket: nobody reads it from top to bottom
}

STANDARD_LIBRARY_ONLY = ("bpsd.cli.bpsctl", "bpsd.client.sync")
"""What must start in a few milliseconds."""

OF_BPSD_ALLOWED = ("bpsd.cli", "bpsd.client", "bpsd.wire")
"""The packages and modules of bpsd that these may load."""

NEED_LSST = ("bpsd.lsst.",)
"""Modules for another Python, where LSST's packages are (tests/testbeds/lsst.sh): here they are only read."""


def _name(path: Path) -> str:
    source = next(source for source in SOURCES if path.is_relative_to(source))
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for source in SOURCES for path in sorted(source.rglob("*.py"))}


def _defined(tree: ast.Module) -> set[str]:
    """The functions and classes of a module that are public by name."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, definitions) and not node.name.startswith("_")}


def _taken_by_others() -> dict[str, set[str]]:
    """Module to the names that other modules import from it."""
    taken: dict[str, set[str]] = {name: set() for name in MODULES}
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in taken:
                taken[node.module].update(alias.name for alias in node.names)
    return taken


TAKEN_BY_OTHERS = _taken_by_others()


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", STANDARD_LIBRARY_ONLY)
def test_clients_load_the_standard_library_alone(module: str) -> None:
    program = (
        f"import json, sys; before = set(sys.modules); import {module};"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    loaded = json.loads(done.stdout)

    foreign = [name for name in loaded if name.partition(".")[0] not in {*sys.stdlib_module_names, "bpsd"}]
    assert foreign == []
    ours = [name for name in loaded if name.startswith("bpsd.")]
    assert [name for name in ours if not f"{name}.".startswith(tuple(f"{each}." for each in OF_BPSD_ALLOWED))] == []
    assert "bpsd.cli.bpsd" not in loaded


@pytest.mark.parametrize("name", MODULES)
def test_module_introduces_itself_and_stays_short(name: str) -> None:
    source = MODULES[name].read_text(encoding="utf-8")

    tree = ast.parse(source)

    if tree.body:  # an empty __init__ has nothing to say
        assert ast.get_docstring(tree), f"{name} has no docstring"
    assert source.count("\n") <= LONGER_FOR_A_REASON.get(name, MAX_LINES)


def _is_public(name: str) -> bool:
    return MODULES[name].name not in {"__init__.py", "__main__.py"} and "._" not in name


def _listed(tree: ast.Module) -> list[str]:
    """What ``__all__`` is said to be, of a module that cannot be imported here."""
    said = next(node.value for node in tree.body if isinstance(node, ast.Assign) and _is_all(node.targets))
    return [str(name) for name in ast.literal_eval(said)]


def _is_all(targets: list[ast.expr]) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)


@pytest.mark.parametrize("name", [name for name in MODULES if _is_public(name)])
def test_all_names_what_is_public(name: str) -> None:
    """What a module defines without an underscore, and what others take from it, is what ``__all__`` lists."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))

    listed = _listed(tree) if name.startswith(NEED_LSST) else importlib.import_module(name).__all__

    assert len(listed) == len(set(listed))
    if not name.startswith(NEED_LSST):
        module = importlib.import_module(name)
        assert [entry for entry in listed if entry.startswith("_") or not hasattr(module, entry)] == []
    assert _defined(tree) - set(listed) == set(), "defined, public by name, and not in __all__"
    submodules = {other.rpartition(".")[2] for other in MODULES if other.rpartition(".")[0] == name}
    assert TAKEN_BY_OTHERS[name] - submodules - set(listed) == set(), "taken by other modules, and not in __all__"


def test_package_itself_loads_nothing() -> None:
    """``import bpsd`` is on the way to bpsctl."""
    program = "import sys; before = set(sys.modules); import bpsd; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "['bpsd']"


def test_version_is_said_once() -> None:
    assert version("bpsd") == bpsd.__version__
