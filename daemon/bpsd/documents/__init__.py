"""Documents: YAML or JSON text to a typed value, or every mistake in it with its line, column and key.

::

    text ---> typed value                    nearly always: msgspec, or libyaml's events and msgspec; fast
         ---> tree ---> mistakes, value      only if that failed: a walk along the type that finds them all
              ---> line, column              only of what has mistakes: a second look at the text

What is JSON is recognised by its first characters. The checks that follow on the typed value (`bpsd.validation`,
`bpsd.config`) add their mistakes to the same `Document`, which finds the places when it is asked to `~Document.check`.
"""

from __future__ import annotations

__all__ = ["PROBLEMS_MAX", "Document", "Path", "load", "read"]

import re
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import msgspec

from bpsd.documents import _json
from bpsd.documents._tree import Path, Places, Trie, Unreadable, trie_of
from bpsd.errors import DocumentInvalid, Problem

T = TypeVar("T", bound=msgspec.Struct)
S = TypeVar("S", bound=msgspec.Struct)

PROBLEMS_MAX = 100
"""How many mistakes of one document are described; the others are only counted."""

_KEY_SHOWN_CHARS = 200
_MESSAGE_CHARS = 1000

_JSON_BEGINS = re.compile(r"[ \t\n\r]*(?:\{[ \t\n\r]*[\"}]|\[)")


class Document(Generic[T]):
    """A document that could be read, and the mistakes found in it so far.

    Attributes
    ----------
    source : `str`
        Its name, for people.
    value : `~msgspec.Struct`
        Its content. Where there are mistakes, the bad parts are left out: an optional part has its default, a required
        one is empty, and `is_bad` tells which they are.
    total : `int`
        How many mistakes there are.
    """

    def __init__(
        self, source: str, text: str, find: Callable[[str, Trie], Places], error: type[DocumentInvalid]
    ) -> None:
        self.source = source
        self.value: T
        self.total = 0
        self._text = text
        self._find = find
        self._error = error
        self._mistakes: list[tuple[Path, str, bool, int | None]] = []
        self._bad: set[Path] = set()

    def __repr__(self) -> str:
        return f"<Document {self.source} with {self.total} mistakes>"

    def add(
        self,
        where: Path,
        message: str | Callable[[], str],
        *,
        at_key: bool = False,
        index: int | None = None,
        lost: bool = False,
    ) -> None:
        """Note a mistake.

        Parameters
        ----------
        where : `tuple`
            Path of what is wrong; it need not exist in the text.
        message : `str` or `~collections.abc.Callable`
            What is wrong with it; a callable is called only if the mistake will be described.
        at_key : `bool`, optional
            Whether the key is wrong, rather than its value.
        index : `int`, optional
            The place in the text, where it is known.
        lost : `bool`, optional
            Whether the value is not what stands there, because that is of no use.
        """
        self.total += 1
        if lost:
            self._bad.add(where)
        if len(self._mistakes) < PROBLEMS_MAX:
            text = message if isinstance(message, str) else message()
            text = text if len(text) <= _MESSAGE_CHARS else text[:_MESSAGE_CHARS] + "..."
            self._mistakes.append((where, text, at_key, index))

    def is_bad(self, where: Path) -> bool:
        """Whether what stands at this path, or around it, was of no use, so that its value says nothing."""
        return bool(self._bad) and any(where[:length] in self._bad for length in range(len(where) + 1))

    def part(self, where: Path, tree: Any, type_: type[S]) -> S:
        """A part of the document that was read as plain values, as a type that was not known until then.

        Its mistakes are noted; what they leave of it is returned.
        """
        from bpsd.documents import _walk  # only documents with mistakes, and only those with parts, pay for it

        known_before = frozenset(self._bad)

        def report(path: Path, message: str | Callable[[], str], at_key: bool) -> None:
            if (*where, *path) not in known_before:
                self.add((*where, *path), message, at_key=at_key, lost=True)

        good = _walk.clean(tree, type_, report)
        try:
            return msgspec.convert(good, type_)
        except msgspec.ValidationError as exc:
            if not self.total:  # two readings of one type disagree: better what msgspec says than a traceback
                self.add(where, str(exc))
            raise self.invalid() from exc

    def locate(self, *paths: Path) -> list[tuple[int, int]]:
        """Line and column, from 1, of the values at these paths (of the part around it for one that is not there)."""
        places = self._places(paths)
        return [self._line_and_column(_index_of(places, path, at_key=False)) for path in paths]

    def check(self) -> None:
        """Raise all mistakes that were noted, in the order of the text, if there are any."""
        if self.total:
            raise self.invalid()

    def invalid(self) -> DocumentInvalid:
        """The error that tells of all mistakes noted so far."""
        return self._error(self.source, self._problems(), total=self.total)

    def _problems(self) -> list[Problem]:
        places = self._places(where for where, _, _, index in self._mistakes if index is None)
        found = []
        for where, message, at_key, index in self._mistakes:
            at = _index_of(places, where, at_key=at_key) if index is None else index
            hits = places.get(where, [])
            first = f" (first on line {self._line_and_column(hits[0][0])[0]})" if at_key and len(hits) > 1 else ""
            found.append((at, Problem(_printable(where), message + first, *self._line_and_column(at))))
        found.sort(key=lambda pair: pair[0])
        return [problem for _, problem in found]

    def _places(self, paths: Iterable[Path]) -> Places:
        wanted = trie_of(paths)
        return self._find(self._text, wanted) if wanted else {}

    def _line_and_column(self, index: int) -> tuple[int, int]:
        return _line_and_column(self._text, index)


def _printable(path: Path) -> Path:
    """The path as it may appear on a terminal, whatever somebody took for keys."""
    return tuple(
        part
        if isinstance(part, int) or (part.isprintable() and len(part) <= _KEY_SHOWN_CHARS)
        else repr(part[:_KEY_SHOWN_CHARS])[1:-1]
        for part in path
    )


def _line_and_column(text: str, index: int) -> tuple[int, int]:
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


def _index_of(places: Places, path: Path, *, at_key: bool) -> int:
    """The place of the last mention of ``path``, or of the nearest part around it that there is."""
    for length in range(len(path), 0, -1):
        hits = places.get(path[:length])
        if hits:
            key, value = hits[-1]
            return key if at_key and length == len(path) else value
    return 0


def load(data: bytes, source: str, type_: type[T], *, error: type[DocumentInvalid] = DocumentInvalid) -> Document[T]:
    """Read a document that has no mistakes, or raise them all (``error``)."""
    document = read(data, source, type_, error=error)
    document.check()
    return document


def read(data: bytes, source: str, type_: type[T], *, error: type[DocumentInvalid] = DocumentInvalid) -> Document[T]:
    """Read a document, mistakes and all.

    Parameters
    ----------
    data : `bytes`
        YAML or JSON, in UTF-8.
    source : `str`
        Its name, for people.
    type_ : `type`
        A `msgspec.Struct`.
    error : `type`, optional
        What to raise.

    Raises
    ------
    DocumentInvalid
        (or ``error``) If the text cannot be read to its end, so that nothing can be said of what follows.
    """
    text = _decode(data, source, error)
    try:
        if _JSON_BEGINS.match(text):
            return _read_json(text, source, type_, error)
        return _read_yaml(text, source, type_, error)
    except Unreadable as exc:
        raise error(source, [Problem((), exc.message, *_line_and_column(text, exc.index))]) from exc


def _decode(data: bytes, source: str, error: type[DocumentInvalid]) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as exc:
        before = data[: exc.start].decode("utf-8")
        message = f"this is not UTF-8: {exc.reason} (0x{data[exc.start]:02x})"
        raise error(source, [Problem((), message, *_line_and_column(before, len(before)))]) from exc


def _read_json(text: str, source: str, type_: type[T], error: type[DocumentInvalid]) -> Document[T]:
    document: Document[T] = Document(source, text, _json.find, error)
    try:
        document.value = msgspec.json.decode(text, type=type_)
        if not _json.has_oddities(text):
            return document
    except (msgspec.MsgspecError, RecursionError):
        pass  # the walk finds out what it is, and what else there is
    _compare(document, _json.read(text), type_)
    return document


def _read_yaml(text: str, source: str, type_: type[T], error: type[DocumentInvalid]) -> Document[T]:
    from bpsd.documents import _yaml  # only here: most of what is large is JSON, and it costs a start 30 ms

    document: Document[T] = Document(source, text, _yaml.find, error)
    tree, notes, odd = _yaml.read(text)
    if tree is None:
        tree = {}  # nothing at all, or all of it commented out: every key is missing
    for where, message, index in notes:
        document.add(where, message, index=index, lost=True)
    try:
        document.value = msgspec.convert(tree, type_)
        if not odd:
            return document
    except (msgspec.MsgspecError, RecursionError):
        pass
    _compare(document, tree, type_)
    return document


def _compare(document: Document[T], tree: Any, type_: type[T]) -> None:
    """Find every mistake in the tree, and set the document's value to what is left of it."""
    document.value = document.part((), tree, type_)
