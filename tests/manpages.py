"""The manual pages, from the parsers and the settings: ``python -m tests.manpages`` writes them into ``docs/man``.

They are committed, so that a wheel can be built without what makes them; a test compares.
"""

from __future__ import annotations

__all__ = ["FOLDER", "pages"]

import argparse
import importlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from argparse_manpage.manpage import Manpage
from docutils.core import publish_string

from bpsd import __version__
from bpsd.cli import bpsctl, verbs
from bpsd.cli.arguments import Arguments
from bpsd.cli.bpsd import command_parser
from bpsd.cli.options import add_common
from bpsd.cli.parser import Parser
from bpsd.config import BackendCommon, ConfigFile
from bpsd.registry import adapter_config, known_adapters

FOLDER = Path(__file__).parents[1] / "docs" / "man"
DATE = "2026-11-29"
"""Date in the pages; give them a new one when their words change."""

MANUAL = "bpsd manual"
_NOT_FOR_PEOPLE = ("scripted",)
"""Adapters that only tests configure."""


def pages() -> dict[str, str]:
    """Every page, by its path below ``share/man``."""
    return {
        "man1/bpsctl.1": _command_page(
            _bpsctl_parser(),
            1,
            "talk to the bpsd daemon",
            {"NOTES": _verbatim(bpsctl.usage().partition("for scripts.\n\n")[2]), "SEE ALSO": _see("bpsd(8)")},
        ),
        "man5/bpsd.yaml.5": _settings_page(),
        "man8/bpsd.8": _command_page(
            command_parser(),
            8,
            "daemon between people and their workload management systems",
            {"SEE ALSO": _see("bpsctl(1)", "bpsd.yaml(5)", "systemd.service(5)")},
        ),
    }


def _command_page(parser: argparse.ArgumentParser, section: int, summary: str, more: Mapping[str, str]) -> str:
    data = {
        "date": DATE,
        "project_name": "bpsd",
        "version": __version__,
        "manual_title": MANUAL,
        "manual_section": section,
        "description": summary,
    }
    page = Manpage(parser, _data=data, format="single-commands-section")
    for heading, text in more.items():
        page.add_section(heading, ">", text)
    return _tidy(str(page))


def _bpsctl_parser() -> argparse.ArgumentParser:
    """One parser with all verbs of bpsctl; the options that all of them take are those of the root."""
    root = Parser("", prog="bpsctl", usage=bpsctl.usage().partition("\n")[0].removeprefix("usage: "))
    root.description = "Look at runs and act on them, through the bpsd daemon."
    common = Arguments()
    add_common(common)
    root.take(common)
    below = root.add_subparsers(title="commands", metavar="VERB", parser_class=Parser, prog="bpsctl")
    for verb in verbs.names():
        parser = below.add_parser(verb, help=_sentence(verbs.summary_of(verb)), verb=verb)
        arguments = bpsctl.arguments_of(verb)
        arguments.groups[:] = [group for group in arguments.groups if group[0] != common.groups[-1][0]]
        parser.take(arguments)
        parser.description = _epilog(verb)  # the summary stands before it
    return root


def _epilog(verb: str) -> str | None:
    module = importlib.import_module(f"bpsd.cli.verbs.{verb.replace(' ', '_')}")
    text: str | None = getattr(module, "EPILOG", None)
    return f".nf\n{text}\n.fi" if text and "\n" in text else text


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _tidy(page: str) -> str:
    """Break paragraphs where the library leaves empty lines, and give a page one form on every Python."""
    lines = [line.rstrip() for line in page.replace(DATE.replace("-", r"\-"), DATE, 1).splitlines()]
    return "\n".join(_paragraphs(_with_short_usage(lines))) + "\n"


def _with_short_usage(lines: Iterable[str]) -> Iterator[str]:
    """Join the lines of a usage: where argparse breaks them depends on the Python."""
    usage = ""
    for line in lines:
        if line.startswith("usage: "):
            usage = line.removeprefix("usage: ")
        elif usage and line.startswith(" "):
            usage += f" {line.strip()}"
        else:
            if usage:
                yield from ("", usage, "")
                usage = ""
            yield line


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    before = ""
    for line in lines:
        if before in {"", ".RE"} and line and (line == ".nf" or not line.startswith(".")):
            yield ".PP"
        if line:
            yield line
        before = line


def _see(*names: str) -> str:
    return ",\n".join(rf"\fB{name.partition('(')[0]}\fR({name.partition('(')[2]}" for name in names)


def _verbatim(text: str) -> str:
    return "\n".join([".nf", *(line.replace("\\", r"\e").replace("-", r"\-") for line in text.splitlines()), ".fi"])


# -- bpsd.yaml(5) -----------------------------------------------------------------------------------------------------


def _settings_page() -> str:
    """The configuration, from the JSON Schema of its structs."""
    adapters = {name: adapter_config(name) for name in known_adapters() if name not in _NOT_FOR_PEOPLE}
    types: list[Any] = [ConfigFile, BackendCommon, *adapters.values()]
    references, components = msgspec.json.schema_components(types, ref_template="{name}")
    names = {type_: reference["$ref"] for type_, reference in zip(types, references, strict=True)}
    render = _Settings(components)
    text = "\n".join(
        [
            *_title("bpsd.yaml", "=", over=True),
            *_title("configuration of the bpsd daemon", "-", over=True),
            f":Manual section: 5\n:Manual group: {MANUAL}\n:Version: bpsd {__version__}\n:Date: {DATE}\n",
            *_title("DESCRIPTION", "="),
            "The configuration is YAML (or JSON). No setting is required: without a file a person's daemon has one",
            "backend, ``here``, that runs jobs on this machine. ``bpsd check-config`` lists every mistake in a file.",
            "Names end in their unit: ``_s`` seconds, ``_days``, ``_bytes``, ``_chars``; others are counts.\n",
            *_title("SETTINGS", "="),
            *render.settings(names[ConfigFile]),
            *_title("BACKENDS", "="),
            "The section ``backends`` maps a name to the settings of one backend. All types have these:\n",
            *render.settings(names[BackendCommon]),
            *(
                line
                for name, config in adapters.items()
                for line in (*_title(f"Type {name}", "-"), *render.settings(names[config]))
            ),
            *_title("FILES", "="),
            "``$BPSD_CONFIG``, ``$XDG_CONFIG_HOME/bpsd/bpsd.yaml`` (``~/.config/bpsd/bpsd.yaml``),",
            "``/etc/bpsd/bpsd.yaml`` (for root and the system's daemon): the first that exists is read.\n",
            *_title("SEE ALSO", "="),
            "**bpsd**\\(8), **bpsctl**\\(1)",
        ]
    )
    page: str = publish_string(text, writer="manpage", settings_overrides={"output_encoding": "unicode"})
    lines = "\n".join(line.rstrip() for line in page.splitlines() if line.strip())
    return re.sub(r"(?m)^(\.S[HS] .*)\n\.sp$", r"\1", lines) + "\n"


def _title(text: str, line: str, *, over: bool = False) -> list[str]:
    rule = line * len(text)
    return [*([rule] if over else []), text, rule, ""]


def _plain(text: str) -> str:
    """Escape what reStructuredText would take for markup."""
    return re.sub(r"([\\*`|_])", r"\\\1", text)


class _Settings:
    """Settings as definition lists."""

    def __init__(self, components: Mapping[str, Any]) -> None:
        self.components = components

    def settings(self, name: str, indent: str = "") -> Iterator[str]:
        """The settings of a struct, those of its parts below them."""
        for key, schema in self.components[name]["properties"].items():
            variants = [schema, *schema.get("anyOf", [])]
            inner = next((variant["$ref"] for variant in variants if "$ref" in variant), None)
            of_each = schema.get("additionalProperties")
            if inner is None and isinstance(of_each, dict) and "$ref" in of_each:
                inner = of_each["$ref"]
            yield f"{indent}**{_plain(key)}** ({_plain(self._kind(schema))})"
            yield f"{indent}    {_plain(self._words(schema, inner))}\n"
            if inner is not None:
                yield from self.settings(inner, f"{indent}    ")

    def _words(self, schema: Mapping[str, Any], inner: str | None) -> str:
        variants = [schema, *schema.get("anyOf", [])]
        said = next((variant["description"] for variant in variants if "description" in variant), "")
        if not said and inner is not None:
            said = inspect.cleandoc(self.components[inner].get("description", "")).partition("\n\n")[0]
        text = " ".join(said.split()).rstrip(".")
        default = schema.get("default")
        if default not in (None, {}, []) and inner is None:
            text = f"{text}. Default: {default if isinstance(default, str) else json.dumps(default)}".lstrip(". ")
        return f"{text}." if text else "Not described here; see the page of the backend."

    def _kind(self, schema: Mapping[str, Any]) -> str:
        if "anyOf" in schema:
            return " or ".join(dict.fromkeys(self._kind(each) for each in schema["anyOf"] if each != {"type": "null"}))
        if "enum" in schema:
            return " | ".join(str(each) for each in schema["enum"])
        if "$ref" in schema or schema.get("type") == "object":
            return "section"
        if schema.get("type") == "array":
            return f"list of {self._kind(schema['items'])}" if schema.get("items") else "list"
        least, most = schema.get("minimum"), schema.get("maximum")
        range_ = f", {least if least is not None else ''}..{most if most is not None else ''}"
        return f"{schema.get('type', 'any')}{range_ if (least, most) != (None, None) else ''}"


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
