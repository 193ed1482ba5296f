"""Compare a tree with a type, find every mistake, and keep what is good.

`msgspec` stops at the first mistake; this walk, driven by `msgspec.inspect`, does not. It runs only on documents that
are known to have one, so it may take its time. What it returns is the tree with the bad parts left out (what is
required and missing gets an empty value), so that later checks can find their mistakes in the same reading.
"""

from __future__ import annotations

__all__ = ["clean", "describe"]

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect as mi

from bpsd import errors
from bpsd.documents._tree import DEPTH_MAX, INT_MAX, INT_MIN, Path, Repeated

_SHOWN_CHARS = 60

_BAD = object()
"""In place of a value with which nothing can be done."""

Report = Callable[[Path, str | Callable[[], str], bool], None]
"""Takes the path, the message (or what makes it), and whether it is the key rather than the value that is wrong."""


def describe(value: Any) -> str:
    """What a value is, for people: ``the text 'abc'``, ``the integer 3``, ``a list``."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            shown = value if len(value) <= _SHOWN_CHARS else value[:_SHOWN_CHARS] + "..."
            return f"the text {shown!r}"
        case int():
            return f"the integer {value}" if INT_MIN <= value <= INT_MAX else "an integer beyond 64 bits"
        case float():
            return f"the number {value}"
        case list():
            return "a list"
        case dict():
            return "a mapping"
    return f"a {type(value).__name__}"


def clean(tree: Any, type_: type[msgspec.Struct], report: Report) -> Any:
    """Report every mistake of ``tree`` as a ``type_``; returns what is good of it, convertible to ``type_``."""
    walk = _Walk(report)
    kind = mi.type_info(type_)
    made = walk.value(tree, kind, ())
    return _empty(kind) if made is _BAD else made


def _bare(kind: mi.Type) -> mi.Type:
    while isinstance(kind, mi.Metadata):
        kind = kind.type
    return kind


def _alternatives(kind: mi.Type) -> tuple[mi.Type, ...]:
    kind = _bare(kind)
    if isinstance(kind, mi.UnionType):
        return tuple(one for part in kind.types for one in _alternatives(part))
    return (kind,)


_KINDS: dict[type[mi.Type], tuple[str, tuple[type, ...], Callable[[], Any]]] = {
    mi.NoneType: ("nothing", (type(None),), lambda: None),
    mi.BoolType: ("true or false", (bool,), bool),
    mi.IntType: ("an integer", (int,), int),
    mi.FloatType: ("a number", (int, float), float),
    mi.StrType: ("text", (str,), str),
    mi.ListType: ("a list", (list,), list),
    mi.VarTupleType: ("a list", (list,), list),
    mi.SetType: ("a list", (list,), list),
    mi.FrozenSetType: ("a list", (list,), list),
    mi.DictType: ("a mapping", (dict,), dict),
    mi.StructType: ("a mapping", (dict,), dict),
}
"""What people call it, what a reader makes of it, and one that says nothing."""


def _choices(kind: mi.Type) -> tuple[Any, ...]:
    """The values of a type that has only few."""
    if isinstance(kind, mi.LiteralType):
        return tuple(kind.values)
    if isinstance(kind, mi.EnumType):
        return tuple(member.value for member in kind.cls)
    return ()


def _expected(alternatives: tuple[mi.Type, ...]) -> str:
    names: dict[str, None] = {}
    for one in alternatives:
        choices = ", ".join(repr(value) for value in _choices(one))
        if choices:
            names["one of " + choices if ", " in choices else choices] = None
        elif not isinstance(one, mi.NoneType):
            names[_KINDS[type(one)][0]] = None
    return " or ".join(names)


def _is_of(value: Any, kind: mi.Type) -> bool:
    """Whether the value is of that kind at all, its limits apart."""
    if isinstance(kind, mi.AnyType):
        return True
    if choices := _choices(kind):
        return any(type(value) is type(choice) and value == choice for choice in choices)
    # To Python true is an integer; to a person it is none.
    return isinstance(value, _KINDS[type(kind)][1]) and isinstance(value, bool) == isinstance(kind, mi.BoolType)


def _out_of_limits(value: Any, kind: mi.Type) -> str:
    """Why the value, which is of that kind, is not within its limits; empty if it is."""
    for name, words in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most")):
        limit = getattr(kind, name, None)
        if limit is not None:
            fits = {"gt": value > limit, "ge": value >= limit, "lt": value < limit, "le": value <= limit}[name]
            if not fits:
                return f"must be {words} {limit}, but is {value}"
    if isinstance(value, (str, list, dict)):
        return _out_of_length(value, kind)
    return ""


def _out_of_length(value: Any, kind: mi.Type) -> str:
    shortest, longest = getattr(kind, "min_length", None), getattr(kind, "max_length", None)
    if shortest is not None and len(value) < shortest:
        return "must not be empty" if shortest == 1 else f"must have at least {shortest} entries, but has {len(value)}"
    if longest is not None and len(value) > longest:
        return f"must be at most {longest} long, but is {len(value)}"
    pattern = getattr(kind, "pattern", None)
    if pattern is not None and not re.search(pattern, value):
        return f"{describe(value)} does not have the form {pattern}"
    return ""


def _unusable(value: Any) -> str:
    """Why a plain value can be in no document; empty if it can."""
    if isinstance(value, str):
        if "\0" in value:
            return "the character U+0000 is not allowed in a text"
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            return "half a surrogate pair (\\ud800 to \\udfff) is not a character"
    elif isinstance(value, float) and not math.isfinite(value):
        return "the number is not finite, or too large"
    elif isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        return "the integer is beyond 64 bits"
    return ""


@functools.lru_cache(maxsize=256)
def _unknown_key(key: str, known: tuple[str, ...]) -> str:
    close = errors.nearest(key, known, 1)
    if close:
        return f"unknown key {key!r}; did you mean {close[0]!r}?"
    return f"unknown key {key!r}; known are {', '.join(known)}" if known else f"unknown key {key!r}"


def _empty(kind: mi.Type) -> Any:
    """A value of that kind that says nothing."""
    one = _alternatives(kind)[0]
    if isinstance(one, mi.StructType):
        return {field.encode_name: _empty(field.type) for field in one.fields if field.required}
    if isinstance(one, mi.AnyType):
        return None
    if choices := _choices(one):
        return choices[0]
    if isinstance(one, (mi.IntType, mi.FloatType)):
        inside = (one.ge, one.le, one.gt and one.gt + 1, one.lt and one.lt - 1, 0)
        return next(limit for limit in inside if limit is not None)
    return _KINDS[type(one)][2]()


class _Walk:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._count = 0

    def report(self, path: Path, message: str | Callable[[], str], at_key: bool = False) -> None:
        self._count += 1
        self._report(path, message, at_key)

    def value(self, value: Any, kind: mi.Type, path: Path) -> Any:
        alternatives = _alternatives(kind)
        if isinstance(value, (dict, list)) and len(path) >= DEPTH_MAX:
            return self._bad(path, f"lists and mappings are nested more than {DEPTH_MAX} deep")
        why = _unusable(value)
        if why:
            return self._bad(path, why)
        complaint = ""
        for one in alternatives:
            if _is_of(value, one):
                complaint = _out_of_limits(value, one)
                if not complaint:
                    return self._inside(value, one, path)
        if complaint:
            return self._bad(path, complaint)
        return self._bad(path, f"expected {_expected(alternatives)}, got {describe(value)}{_hint(value, alternatives)}")

    def _bad(self, path: Path, message: str) -> Any:
        self.report(path, message)
        return _BAD

    def _inside(self, value: Any, kind: mi.Type, path: Path) -> Any:
        if isinstance(value, dict):
            self._keys(value, path)
            if isinstance(kind, mi.StructType):
                return self._struct(value, kind, path)
            each = kind.value_type if isinstance(kind, mi.DictType) else mi.AnyType()
            made = {key: self.value(item, each, (*path, key)) for key, item in value.items()}
            return {key: item for key, item in made.items() if item is not _BAD}
        if isinstance(value, list):
            of = getattr(kind, "item_type", mi.AnyType())
            # What is bad keeps its place, or the paths of later mistakes would be off by one.
            items = (self.value(item, of, (*path, index)) for index, item in enumerate(value))
            return [_empty(of) if item is _BAD else item for item in items]
        return value

    def _keys(self, value: dict[str, Any], path: Path) -> None:
        if isinstance(value, Repeated):
            for key in value.keys_given_again:
                self.report((*path, key), f"the key {key!r} is given more than once", at_key=True)
        for key in value:
            why = _unusable(key)
            if why:
                self.report((*path, key), why, at_key=True)

    def _struct(self, value: dict[str, Any], kind: mi.StructType, path: Path) -> Any:
        fields = {field.encode_name: field for field in kind.fields}
        made: dict[str, Any] = {}
        count = self._count
        for key, item in value.items():
            if key in fields:
                result = self.value(item, fields[key].type, (*path, key))
                if result is not _BAD:
                    made[key] = result
            elif kind.forbid_unknown_fields:
                self.report((*path, key), functools.partial(_unknown_key, key, tuple(fields)), at_key=True)
        for name, field in fields.items():
            if field.required and name not in made:
                made[name] = _empty(field.type)
                if name not in value:
                    self.report((*path, name), f"the key {name!r} is missing")
        return made if self._count > count or self._agrees(made, kind, path) else _BAD

    def _agrees(self, made: dict[str, Any], kind: mi.StructType, path: Path) -> bool:
        """Let a type that checks itself as a whole (``__post_init__``) do so; its parts are good."""
        if hasattr(kind.cls, "__post_init__"):
            try:
                msgspec.convert(made, kind.cls)
            except msgspec.ValidationError as exc:
                self.report(path, str(exc))
                return False
        return True


def _hint(value: Any, alternatives: tuple[mi.Type, ...]) -> str:
    """What to write instead, where a person and YAML disagree on what is a text."""
    if isinstance(value, (int, float)) and any(isinstance(one, mi.StrType) for one in alternatives):
        return "; put it in quotes"
    if isinstance(value, str) and any(isinstance(one, (mi.IntType, mi.FloatType)) for one in alternatives):
        try:
            number = float(value.replace("_", "") if len(value) < _SHOWN_CHARS else "")
        except ValueError:
            return ""
        if math.isfinite(number):
            return f"; write {int(number) if number.is_integer() and abs(number) < INT_MAX else number}, without quotes"
    return ""
