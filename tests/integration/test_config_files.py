"""The files in ``config``, with the installed adapters: ``bpsd.yaml`` is complete and the examples are valid."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from bpsd.config import BackendCommon, Config, ConfigFile, default_config, load_config
from bpsd.registry import adapter_config, known_adapters

FOLDER = Path(__file__).parents[2] / "config"
DOCUMENTED = FOLDER / "bpsd.yaml"
ENVIRON = {"HOME": "/h", "XDG_RUNTIME_DIR": "/run/user/7"}
UID = 7
HERE = ("backends", "here")


def load(path: Path) -> Config:
    return load_config(path, adapter_config, known_adapters(), environ=ENVIRON, uid=UID)


def settings() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting: its path in the file, and its type."""
    for field in msgspec.structs.fields(ConfigFile):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from (((field.name, inner.name), inner.type) for inner in msgspec.structs.fields(field.type))
        else:
            yield (field.name,), field.type
    for struct in (BackendCommon, adapter_config("local")):
        yield from (((*HERE, field.name), field.type) for field in msgspec.structs.fields(struct))


def description(type_: Any) -> str:
    for meta in getattr(type_, "__metadata__", ()):
        if meta.description:
            return str(meta.description)
    return next(filter(None, map(description, typing.get_args(type_))), "")


def test_documented_file_is_the_default() -> None:
    assert load(DOCUMENTED) == default_config(ENVIRON, UID, adapter_config, known_adapters())


@pytest.mark.parametrize(("path", "type_"), list(settings()))
def test_documented_file_has_each_setting_under_its_description(path: tuple[str, ...], type_: Any) -> None:
    lines = DOCUMENTED.read_text(encoding="utf-8").splitlines()
    section = 0 if len(path) == 1 else lines.index(f"{path[0]}:")
    indent = "  " * (len(path) - 1)
    at = next(number for number in range(section, len(lines)) if lines[number].startswith(f"{indent}{path[-1]}:"))

    comment: list[str] = []
    while lines[at - 1].lstrip().startswith("#"):
        at -= 1
        comment.insert(0, lines[at].lstrip("# "))

    assert description(type_)
    assert description(type_) in " ".join(comment)


def test_documented_file_has_nothing_else() -> None:
    found: set[tuple[str, ...]] = set()
    for key, value in yaml.safe_load(DOCUMENTED.read_text(encoding="utf-8")).items():
        if key == "backends":
            found |= {(*HERE, inner) for inner in value["here"]} | {(key,)}
        elif isinstance(value, dict):
            found |= {(key, inner) for inner in value}
        else:
            found.add((key,))

    assert found == {path for path, _ in settings()}


def test_every_name_of_a_number_ends_in_its_unit_or_is_a_count() -> None:
    units = ("_s", "_days", "_bytes", "_chars")
    fractions = {("polling", "cost_factor"), ("polling", "jitter")}
    for path, type_ in settings():
        if float in {type_, *typing.get_args(type_)} and path not in fractions:
            assert path[-1].endswith(units), path


@pytest.mark.parametrize("path", sorted((FOLDER / "examples").glob("*.yaml")), ids=lambda path: str(path.name))
def test_example_is_valid(path: Path) -> None:
    assert load(path).backends
