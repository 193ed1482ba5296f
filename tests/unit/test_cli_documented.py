"""``docs/bpsctl.md`` says what there is: every verb, every option, every key of JSON, every exit code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bpsd import messages, wire
from bpsd.cli import verbs
from bpsd.cli.bpsctl import BROKEN_PIPE, arguments_of

TEXT = (Path(__file__).parents[2] / "docs" / "bpsctl.md").read_text(encoding="utf-8")
SHARED, *REST = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
SECTIONS = {
    title: body
    for part in REST
    for title, _, body in (section.partition("\n") for section in re.split(r"^### ", part, flags=re.MULTILINE)[1:])
}

METHODS = {
    "report": "report",
    "status": "status",
    "list": "list",
    "jobs": "jobs",
    "holds": "holds",
    "logs": "logs",
    "events": "events",
    "commands": "commands",
    "validate": "validate",
    "backends": "backends",
    "refresh": "refresh",
    "health": "health",
    "admin": "admin",
}
"""Verbs that print the result of a method as it is (or with something added)."""


def test_every_verb_has_its_section_in_the_order_of_the_help() -> None:
    assert list(SECTIONS) == verbs.names()


@pytest.mark.parametrize("verb", verbs.names())
def test_every_option_is_told(verb: str) -> None:
    told = {*re.findall(r"--[a-z-]+", SECTIONS[verb] + SHARED)}
    told |= {*re.findall(r"--[a-z-]+", SECTIONS["cancel"])} if "As `cancel`" in SECTIONS[verb] else set()

    options = {name for argument in arguments_of(verb).all() for name in argument.names if name.startswith("--")}

    assert options - told == set()


@pytest.mark.parametrize("verb", verbs.names())
def test_no_option_is_told_that_does_not_exist(verb: str) -> None:
    of_others = {"--id"} | ({"--wait"} if verb == "cancel" else set())
    options = {name for argument in arguments_of(verb).all() for name in argument.names}

    assert {*re.findall(r"--[a-z-]+", SECTIONS[verb])} - options - of_others == set()


def keys_told(verb: str) -> set[str]:
    row = next(line for line in TEXT.splitlines() if re.match(rf"\| (`\w+`, )*`{verb}`", line))
    return {*re.findall(r"`([a-z_]+)`", row.split("|")[2])}


@pytest.mark.parametrize("verb", [verb for verb in verbs.names() if verb != "completion"])
def test_every_verb_with_json_tells_its_keys(verb: str) -> None:
    assert any(argument.dest == "json" for argument in arguments_of(verb).all())
    told = keys_told(verb)
    assert told
    if verb in METHODS:
        assert set(messages.RESULTS[METHODS[verb]].__struct_fields__) - told == set()


ROOT = Path(__file__).parents[2]
SAID = re.compile(r"\bbpsctl (?:-[a-z-]+ )*([a-z]+(?: resolve)?)\b((?: (?!bpsctl)[^\s`|;>)]+)*)")


def recommended(path: Path) -> list[tuple[str, set[str]]]:
    """Every ``bpsctl VERB`` in a file, with the options that stand behind it."""
    text = re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))  # literals that stand side by side are one
    return [
        (verb, {*re.findall(r"(?<=\s)--?[a-z][a-z-]*", f" {rest}")})
        for verb, rest in SAID.findall(text)
        if verb in verbs.names()
    ]


def test_what_our_words_recommend_can_be_said() -> None:
    texts = [*ROOT.glob("daemon/**/*.py"), *ROOT.glob("adapters/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    said = [(path, verb, options) for path in texts for verb, options in recommended(path)]
    assert len(said) > 100

    for path, verb, options in said:
        known = {name for argument in arguments_of(verb).all() for name in argument.names} | {"--help"}
        assert options <= known, f"{path.relative_to(ROOT)} says bpsctl {verb} {options - known}"


def test_exit_codes() -> None:
    for code in {*wire.EXIT_CODES.values(), BROKEN_PIPE}:
        assert f"\n| {code} | " in TEXT
    for state, number in wire.STATES.items():
        assert re.search(rf"{state}\s+{number}\b", TEXT)
