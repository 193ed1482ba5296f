"""YAML: a document as a tree, and the places of its parts, both straight from libyaml's events.

No node tree is built (it would cost ten times the time and the memory), and what a plain word means does not depend on
whose YAML it is: it is a number, a truth value or nothing only where versions 1.1 (PyYAML's) and 1.2 agree on that, and
text otherwise. So ``no``, ``1:30:00``, ``010``, ``2026-01-01`` and ``1e3`` are text. Keys are always text. Merge keys
(``<<``) work.
"""

from __future__ import annotations

__all__ = ["ALIAS_EXPANSION_MAX_CHARS", "Note", "find", "read"]

import re
from typing import Any, TypeAlias

import yaml

from bpsd.documents._tree import DEPTH_MAX, INT_MAX, INT_MIN, Path, Places, Trie, Unreadable, mapping, read_int

ALIAS_EXPANSION_MAX_CHARS = 16 * 1024 * 1024
"""How much all the aliases (``*name``) of a document may add to it."""

Note: TypeAlias = tuple[Path, str, int]
"""A mistake met while reading on: where, what, and the index in the text."""

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What YAML does not allow in a text (YAML 1.2.2, production 1, c-printable)."""

_PLAIN = re.compile(
    r"(?P<int>[-+]?(?:0|[1-9][0-9]*))|(?P<hex>0x[0-9a-fA-F]+)"
    r"|(?P<float>(?:[-+]?[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))"
)
_FIRST_OF_NUMBER = frozenset("0123456789+-.")
_WORDS: dict[str, bool | None] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_TAG_PREFIX = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(_TAG_PREFIX + name for name in ("int", "float", "bool", "null"))
_ADVICE = {
    "found character that cannot start any token": "this character cannot stand here",
    "mapping values are not allowed in this context": "a ':' cannot stand here (quotes, or indentation?)",
}


def plain(text: str) -> Any:
    """What an unquoted word means."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _FIRST_OF_NUMBER:
        return text
    found = _PLAIN.fullmatch(text)
    if found is None:
        return text
    if found["int"]:
        return read_int(text)
    if found["hex"]:
        return read_int(text, 16)
    # Python writes infinity and not-a-number without YAML's dot.
    return float(text.replace(".", "") if text[-1] in "fFnN" else text)


class _Events:
    """libyaml's events, one at a time; foreign errors become `Unreadable`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._parser = yaml.CSafeLoader(text)

    def next(self) -> Any:
        try:
            return self._parser.get_event()
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            index = min(mark.index, len(self._text)) if mark else 0
            raise Unreadable(f"this is not YAML: {_explain(exc, self._text, index)}", index) from exc
        except yaml.YAMLError as exc:
            raise Unreadable(f"this is not YAML: {' '.join(str(exc).split())}", 0) from exc

    def close(self) -> None:
        self._parser.dispose()


def _explain(exc: Any, text: str, index: int) -> str:
    if text[index : index + 1] == "\t":
        return "a tab cannot indent; use spaces"
    problem = exc.problem or "something is wrong here"
    said = _ADVICE.get(problem, problem)
    return f"{said} ({exc.context})" if exc.context else said


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.events = _Events(text)
        self.notes: list[Note] = []
        self.odd = False
        self.chars = 0
        self.chars_by_alias = 0
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.path: list[str | int] = []

    def document(self) -> Any:
        self.events.next()  # the start of the stream
        if isinstance(self.events.next(), yaml.StreamEndEvent):
            return None
        value = self.node(self.events.next())
        self.events.next()  # the end of the document
        after = self.events.next()
        if not isinstance(after, yaml.StreamEndEvent):
            raise Unreadable("a second document begins here; give one document", after.start_mark.index)
        return value

    def note(self, message: str, event: Any) -> None:
        self.odd = True
        self.notes.append((tuple(self.path), message, event.start_mark.index))

    def node(self, event: Any) -> Any:
        kind = type(event)
        if kind is yaml.AliasEvent:
            return self.alias(event)
        chars = self.chars
        value: Any
        if kind is yaml.ScalarEvent:
            value = self.scalar(event)
            self.chars += 8 + len(event.value)
        else:
            if len(self.path) >= DEPTH_MAX:
                raise Unreadable(f"lists and mappings are nested more than {DEPTH_MAX} deep", event.start_mark.index)
            self.chars += 8
            value = self.mapping(event) if kind is yaml.MappingStartEvent else self.sequence(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, self.chars - chars)
        return value

    def alias(self, event: Any) -> Any:
        if event.anchor not in self.anchors:
            self.note(f"no anchor &{event.anchor} stands before this alias", event)
            return None
        value, chars = self.anchors[event.anchor]
        self.chars += chars
        self.chars_by_alias += chars
        if self.chars_by_alias > ALIAS_EXPANSION_MAX_CHARS:
            raise Unreadable(
                f"aliases make the document larger by more than {ALIAS_EXPANSION_MAX_CHARS} characters",
                event.start_mark.index,
            )
        return value

    def scalar(self, event: Any) -> Any:
        text = event.value
        tag = event.tag
        if tag is None or tag in _SCALAR_TAGS:
            value = plain(text) if event.implicit[0] or tag is not None else text
            if isinstance(value, (int, float)) and not INT_MIN <= value <= INT_MAX:
                self.odd = True  # not-a-number and infinity too; a number that large goes the long way and passes
        else:
            if tag not in ("!", _TAG_PREFIX + "str"):
                self.note(f"the tag {tag} means nothing here", event)
            value = text
        if "\0" in text:
            self.odd = True
        return value

    def sequence(self, start: Any) -> list[Any]:
        if start.tag not in (None, "!", _TAG_PREFIX + "seq"):
            self.note(f"the tag {start.tag} means nothing here", start)
        made: list[Any] = []
        event = self.events.next()
        while type(event) is not yaml.SequenceEndEvent:
            self.path.append(len(made))
            made.append(self.node(event))
            self.path.pop()
            event = self.events.next()
        return made

    def mapping(self, start: Any) -> dict[str, Any]:
        if start.tag not in (None, "!", _TAG_PREFIX + "map"):
            self.note(f"the tag {start.tag} means nothing here", start)
        pairs: list[tuple[str, Any]] = []
        merged: list[Any] = []
        event = self.events.next()
        while type(event) is not yaml.MappingEndEvent:
            key = self.key(event)
            value_event = self.events.next()
            self.path.append(key)
            value = self.node(value_event)
            if key == "<<" and getattr(event, "implicit", (False,))[0]:
                merged += self.to_merge(value, value_event)
            else:
                pairs.append((key, value))
            self.path.pop()
            event = self.events.next()
        made = mapping(pairs)
        self.odd = self.odd or type(made) is not dict
        for other in merged:
            for key, value in other.items():
                made.setdefault(key, value)
        return made

    def key(self, event: Any) -> str:
        """The text of a key; of one that is not text, a text that stands for it."""
        if type(event) is yaml.ScalarEvent:
            if event.anchor is not None:
                self.anchors[event.anchor] = (event.value, 8 + len(event.value))
            if "\0" in event.value:
                self.odd = True
            return str(event.value)
        if type(event) is yaml.AliasEvent:
            value = self.alias(event)
            if isinstance(value, str):
                return value
        else:
            self.path.append("?")  # a level like any other: keys in keys in keys are bounded, too
            self.node(event)
            self.path.pop()
        self.note("a key must be text", event)
        return f"(key at {event.start_mark.index})"

    def to_merge(self, value: Any, event: Any) -> list[Any]:
        values = value if isinstance(value, list) else [value]
        if all(isinstance(v, dict) for v in values):
            return values
        self.note("'<<' takes a mapping or a list of mappings", event)
        return []


def read(text: str) -> tuple[Any, list[Note], bool]:
    """The text as a tree, what was wrong on the way, and whether there is anything that a typed decoder would let pass.

    Raises
    ------
    Unreadable
        If the text is not YAML, holds characters that YAML forbids, is nested too deep or blown up by its aliases.
    """
    bad = _UNPRINTABLE.search(text)
    if bad:
        raise Unreadable(f"the character U+{ord(bad[0]):04X} is not allowed in a text", bad.start())
    reader = _Reader(text)
    try:
        return reader.document(), reader.notes, reader.odd
    finally:
        reader.events.close()


def find(text: str, wanted: Trie) -> Places:
    """The places of the wanted parts of a text that `read` could read."""
    places: Places = {}
    events = _Events(text)
    try:
        events.next()
        events.next()
        _find(events, events.next(), wanted, (), places)
    finally:
        events.close()
    return places


def _find(events: _Events, start: Any, wanted: Trie, path: Path, places: Places) -> None:
    """Note the places of ``wanted`` below the node that begins with the event ``start``, and read to its end."""
    kind = type(start)
    if kind is yaml.MappingStartEvent:
        while type(key := events.next()) is not yaml.MappingEndEvent:
            name = key.value if type(key) is yaml.ScalarEvent else f"(key at {key.start_mark.index})"
            _find(events, key, {}, (), places)
            _find_part(events, name, key.start_mark.index, events.next(), wanted, path, places)
    elif kind is yaml.SequenceStartEvent:
        position = 0
        while type(event := events.next()) is not yaml.SequenceEndEvent:
            _find_part(events, position, event.start_mark.index, event, wanted, path, places)
            position += 1


def _find_part(
    events: _Events, part: str | int, key_at: int, start: Any, wanted: Trie, path: Path, places: Places
) -> None:
    below = wanted.get(part)
    if below is not None:
        places.setdefault((*path, part), []).append((key_at, start.start_mark.index))
    _find(events, start, below or {}, (*path, part), places)
