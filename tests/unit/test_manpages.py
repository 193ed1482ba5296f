"""The manual pages are what the parsers and the settings say, and those that the units name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bpsd.cli import verbs
from bpsd.cli.arguments import Arguments
from bpsd.cli.bpsctl import arguments_of
from bpsd.cli.install import MAN_PAGES
from bpsd.cli.options import add_common
from tests.manpages import FOLDER, pages

UNITS = sorted((Path(__file__).parents[2] / "systemd").glob("*/bpsd.*"))
PAGES = pages()


def test_committed_pages_are_current() -> None:
    committed = {str(path.relative_to(FOLDER)): path.read_text(encoding="utf-8") for path in FOLDER.glob("*/*")}

    assert committed == PAGES, "run: make man"
    assert set(PAGES) == set(MAN_PAGES)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_page_that_a_unit_names_exists(unit: Path) -> None:
    named = re.findall(r"man:(\S+)\((\d)\)", unit.read_text(encoding="utf-8"))

    assert named
    assert {f"man{section}/{name}.{section}" for name, section in named} - set(PAGES) == set()


def test_every_verb_and_option_has_its_place() -> None:
    common = Arguments()
    add_common(common)
    of_all = {name for argument in common.all() for name in argument.names}
    page = PAGES["man1/bpsctl.1"].replace("\\-", "-")

    assert {name for name in of_all if name not in page.partition("\n.SS ")[0]} == set()
    for verb in verbs.names():
        section = page.partition(f"bpsctl {verb}\\fR\n")[2].partition("\n.SS ")[0]
        assert section, verb
        options = {name for argument in arguments_of(verb).all() for name in argument.names if name.startswith("--")}
        assert {name for name in options if name not in section} <= of_all, verb
