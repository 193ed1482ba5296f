"""Documents: what is right is read, what is wrong is found wherever it stands, and nothing else is ever raised."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bpsd import documents
from bpsd.documents import PROBLEMS_MAX, _json, _yaml
from bpsd.documents._tree import Path, trie_of
from bpsd.errors import ConfigInvalid, DocumentInvalid


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    executable: str
    memory: int | None = None
    walltime: int | str | None = None


class Even(msgspec.Struct, forbid_unknown_fields=True):
    """Checks itself as a whole."""

    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.high < self.low:
            raise ValueError("high is below low")


class Whole(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    inners: list[Inner] = []
    factor: Annotated[float, msgspec.Meta(ge=0, lt=10)] = 1.0
    environment: dict[str, str] = {}
    tags: dict[str, Any] = {}
    codes: int | list[int] | None = None
    kind: Literal["payload", "noop"] = "payload"
    colour: Colour = Colour.RED
    flag: bool = False
    short: Annotated[str, msgspec.Meta(min_length=1, max_length=5, pattern="^[a-z]*$")] = "x"
    pairs: tuple[int, ...] = ()
    even: Even | None = None


class Holder(msgspec.Struct):
    even: Even


def problems(text: str | bytes, type_: type[msgspec.Struct] = Whole) -> list[str]:
    """What is wrong with it, as LINE:COLUMN KEY: MESSAGE."""
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(DocumentInvalid) as caught:
        documents.load(data, "doc", type_)
    return [f"{p.line}:{p.column} {p.key}: {p.message}" for p in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\ninners:\n  - exectuable: x\n",
         ["3:5 inners[0].exectuable: unknown key 'exectuable'; did you mean 'executable'?",
          "3:5 inners[0].executable: the key 'executable' is missing"]),
        ("name: a\neven: {zzz: 1}", ["2:8 even.zzz: unknown key 'zzz'; known are low, high"]),
        ("name: a\ninners: [{executable: x, memory: abc}]",
         ["2:34 inners[0].memory: expected an integer, got the text 'abc'"]),
        ("name: a\ninners: [{executable: x, memory: '12'}]",
         ["2:34 inners[0].memory: expected an integer, got the text '12'; write 12, without quotes"]),
        ("name: a\nfactor: 1e0", ["2:9 factor: expected a number, got the text '1e0'; write 1, without quotes"]),
        ("name: a\ninners: [{executable: x, walltime: 1.5}]",
         ["2:36 inners[0].walltime: expected an integer or text, got the number 1.5; put it in quotes"]),
        ("name: 1", ["1:7 name: expected text, got the integer 1; put it in quotes"]),
        ("name: true", ["1:7 name: expected text, got true; put it in quotes"]),
        ("name: a\nflag: 1", ["2:7 flag: expected true or false, got the integer 1"]),
        ("name: a\nflag: no", ["2:7 flag: expected true or false, got the text 'no'"]),
        ("name: a\ncodes: [1, x, 3]", ["2:12 codes[1]: expected an integer, got the text 'x'"]),
        ("name: a\ncodes: {}", ["2:8 codes: expected an integer or a list, got a mapping"]),
        ("name: a\nfactor: -1", ["2:9 factor: must be at least 0, but is -1"]),
        ("name: a\nfactor: 10", ["2:9 factor: must be below 10, but is 10"]),
        ("name: a\nkind: nop", ["2:7 kind: expected one of 'noop', 'payload', got the text 'nop'"]),
        ("name: a\ncolour: green", ["2:9 colour: expected one of 'red', 'blue', got the text 'green'"]),
        ("name: a\nshort: ''", ["2:8 short: must not be empty"]),
        ("name: a\nshort: abcdef", ["2:8 short: must be at most 5 long, but is 6"]),
        ("name: a\nshort: AB", ["2:8 short: the text 'AB' does not have the form ^[a-z]*$"]),
        ("name: a\ninners: [1, x]", ["2:10 inners[0]: expected a mapping, got the integer 1",
                                     "2:13 inners[1]: expected a mapping, got the text 'x'"]),
        ("name: a\ninners:", ["2:8 inners: expected a list, got nothing"]),
        ("name: a\nname: b\nname: c", ["3:1 name: the key 'name' is given more than once (first on line 1)"]),
        ("name: a\ntags: {x: {y: 1, y: 2}}",
         ["2:18 tags.x.y: the key 'y' is given more than once (first on line 2)"]),
        ("- a", ["1:1 : expected a mapping, got a list"]),
        ("", ["1:1 name: the key 'name' is missing"]),
        ("# nothing\n", ["1:1 name: the key 'name' is missing"]),
        ("name: a\ntags: {x: .nan, y: [.inf]}", ["2:11 tags.x: the number is not finite, or too large",
                                                 "2:21 tags.y[0]: the number is not finite, or too large"]),
        ("name: a\ntags: {x: 123456789012345678901}", ["2:11 tags.x: the integer is beyond 64 bits"]),
        (f"name: a\ntags: {{x: {'9' * 5000}}}", ["2:11 tags.x: the integer is beyond 64 bits"]),
        ('name: a\ntags: {x: "\\0"}', ["2:11 tags.x: the character U+0000 is not allowed in a text"]),
        ("name: a\ntags: {[1]: x}", ["2:8 tags: a key must be text"]),
        ("name: a\ntags: !!python/object:os.system {}",
         ["2:7 tags: the tag tag:yaml.org,2002:python/object:os.system means nothing here"]),
        ("name: !env HOME", ["1:7 name: the tag !env means nothing here"]),
        ("name: a\ntags: {<<: 3}", ["2:12 tags.<<: '<<' takes a mapping or a list of mappings"]),
        ("name: *nobody", ["1:7 name: no anchor &nobody stands before this alias"]),
        ("name: a\ntags: &t {x: *t}", ["2:14 tags.x: no anchor &t stands before this alias"]),
    ],
)  # fmt: skip
def test_mistake_is_named_and_located(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\n\tflag: true", "2:1 : this is not YAML: a tab cannot indent; use spaces"),
        ("name: [", "1:8 : this is not YAML: did not find expected node content (while parsing a flow node)"),
        ("name: a: b", "1:8 : this is not YAML: a ':' cannot stand here (quotes, or indentation?)"),
        ("name: a\x00", "1:8 : the character U+0000 is not allowed in a text"),
        ("name: a\n---\nname: b", "2:1 : a second document begins here; give one document"),
        ("tags: " + "[" * 100, "1:70 : lists and mappings are nested more than 64 deep"),
        ("? " * 100, "1:129 : lists and mappings are nested more than 64 deep"),
        ("- " * 100, "1:129 : lists and mappings are nested more than 64 deep"),
        ("{a: " * 100, "1:257 : lists and mappings are nested more than 64 deep"),
        ('{"name": "a"', "1:13 : this is not JSON: expecting ',' delimiter"),
        ('{"name": nan}', "1:10 : this is not JSON: expecting value"),
        ("[" * 100_000, "1:1 : lists and mappings are nested too deep"),
    ],
)
def test_text_that_cannot_be_read_is_one_mistake_at_its_place(text: str, expected: str) -> None:
    assert problems(text) == [expected]


def test_bytes_that_are_not_utf8_are_located() -> None:
    assert problems("name: ü\nkind: ".encode() + b"\xff") == ["2:7 : this is not UTF-8: invalid start byte (0xff)"]


def test_all_mistakes_of_json_are_found_at_once() -> None:
    text = """{
  "name": "a", "name": 5,
  "inners": [{"exectuable": "x"}, {"executable": "x", "memory": true}],
  "factor": NaN,
  "tags": {"a": "\\u0000", "b": 1e999, "\\ud800": 1}
}"""

    assert problems(text) == [
        "2:16 name: the key 'name' is given more than once (first on line 2)",
        "2:24 name: expected text, got the integer 5; put it in quotes",
        "3:14 inners[0].executable: the key 'executable' is missing",
        "3:15 inners[0].exectuable: unknown key 'exectuable'; did you mean 'executable'?",
        "3:65 inners[1].memory: expected an integer, got true",
        "4:13 factor: the number is not finite, or too large",
        "5:17 tags.a: the character U+0000 is not allowed in a text",
        "5:32 tags.b: the number is not finite, or too large",
        "5:39 tags.\\ud800: half a surrogate pair (\\ud800 to \\udfff) is not a character",
    ]


def test_oddities_alone_are_found_though_a_typed_decoder_lets_them_pass() -> None:
    assert problems('{"name": "a", "tags": {"x": 1, "x": 2}}') == [
        "1:32 tags.x: the key 'x' is given more than once (first on line 1)"
    ]
    assert problems('{"name": "a\\u0000"}') == ["1:10 name: the character U+0000 is not allowed in a text"]
    assert problems('{"name": "a", "tags": {"x": 18446744073709551616}}') == [
        "1:29 tags.x: the integer is beyond 64 bits"
    ]


def test_what_only_looks_odd_is_read() -> None:
    assert documents.load(b'{"name": "\\\\u0000"}', "doc", Whole).value.name == "\\u0000"
    tags = documents.load(b'{"name": "a", "tags": {"x": -9223372036854775808, "y": 1e300}}', "doc", Whole).value.tags
    assert tags == {"x": -(2**63), "y": 1e300}


def test_aliases_that_blow_up_are_refused() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))

    (problem,) = problems(bomb)

    assert "aliases make the document larger by more than 16777216 characters" in problem


def test_long_text_behind_many_aliases_is_refused() -> None:
    (problem,) = problems(f"tags:\n  a: &a {'x' * 1_000_000}\n  b: [{', '.join(['*a'] * 20)}]")

    assert "aliases" in problem


def test_aliases_and_merge_keys_work() -> None:
    text = """name: &n one
inners:
  - &i {executable: *n, memory: 1}
  - {<<: *i, memory: 2}
  - {<<: [*i, {walltime: 5}]}
"""

    inners = documents.load(text.encode(), "doc", Whole).value.inners

    assert inners == [Inner("one", 1), Inner("one", 2), Inner("one", 1, 5)]


def test_mistake_in_what_was_merged_is_located_at_the_part_that_merges() -> None:
    text = "name: a\ntags: {t: &t {memory: x}}\ninners:\n  - {executable: e,\n     <<: *t}"

    assert problems(text) == ["4:5 inners[0].memory: expected an integer, got the text 'x'"]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("no", "no"), ("on", "on"), ("y", "y"), ("true", True), ("FALSE", False), ("null", None), ("~", None),
        ("", None), ("1:30:00", "1:30:00"), ("010", "010"), ("0x1F", 31), ("0o17", "0o17"), ("1_000", "1_000"),
        ("-7", -7), ("0", 0), ("1e3", "1e3"), ("1.5", 1.5), ("1.5e+3", 1500.0), ("1.5e3", "1.5e3"), (".5", 0.5),
        ("5.", 5.0), ("1.2.3", "1.2.3"), ("2026-01-01", "2026-01-01"),
        ("'1'", "1"), ("!!str 1", "1"), ("! 1", "1"), ("!!int '1'", 1), ("+", "+"),
    ],
)  # fmt: skip
def test_plain_words_mean_what_every_yaml_agrees_on(word: str, value: object) -> None:
    read = documents.load(f"name: a\ntags:\n  x: {word}\n".encode(), "doc", Whole).value.tags["x"]

    assert (type(read), read) == (type(value), value)


def test_keys_are_always_text() -> None:
    text = "name: a\nenvironment: {1: a, true: b, ~: c, 1.50: d}"

    assert documents.load(text.encode(), "doc", Whole).value.environment == {
        "1": "a",
        "true": "b",
        "~": "c",
        "1.50": "d",
    }


def test_byte_order_mark_is_no_part_of_the_text() -> None:
    assert documents.load('\ufeff{"name": "a"}'.encode(), "doc", Whole).value.name == "a"
    assert problems("\ufeffname: 1") == ["1:7 name: expected text, got the integer 1; put it in quotes"]


def test_more_mistakes_than_the_limit_are_counted() -> None:
    text = json.dumps({"name": "a", "environment": {f"k{i}": i for i in range(PROBLEMS_MAX + 50)}})

    with pytest.raises(DocumentInvalid) as caught:
        documents.load(text.encode(), "doc", Whole)

    assert caught.value.total == PROBLEMS_MAX + 50
    assert len(caught.value.problems) == PROBLEMS_MAX
    assert str(caught.value).endswith("... and 50 more")


def test_key_and_text_of_any_length_make_a_message_of_bounded_length_without_control_characters() -> None:
    key = "\x1b[2J" + "k" * 100_000
    (problem,) = problems(json.dumps({"name": "a", key: 1, "environment": {}}))

    assert len(problem) < 2000
    assert problem.isprintable()


def test_error_is_of_the_class_that_was_asked_for() -> None:
    for data in (b"\xff", b"name: [", b"name: 1"):
        with pytest.raises(ConfigInvalid):
            documents.load(data, "doc", Whole, error=ConfigInvalid)


def test_struct_that_checks_itself_is_heard() -> None:
    assert problems("even: {low: 3, high: 2}", Holder) == ["1:7 even: high is below low"]
    assert problems("even: {low: x, high: -2}", Holder) == ["1:13 even.low: expected an integer, got the text 'x'"]


def test_what_is_good_of_a_bad_document_is_there_for_later_checks() -> None:
    text = "inners: [3, {executable: e, memory: x}]\nkind: nop\nfactor: 2\ntags: {a: 1, b: .nan}"
    document = documents.read(text.encode(), "doc", Whole)

    assert document.total == 5
    assert document.value == Whole("", [Inner(""), Inner("e")], 2.0, tags={"a": 1})
    assert document.is_bad(("name",))
    assert document.is_bad(("inners", 0, "executable"))
    assert not document.is_bad(("inners", 1, "executable"))
    assert document.is_bad(("inners", 1, "memory"))


def test_later_check_adds_its_mistakes_in_the_order_of_the_text() -> None:
    document = documents.read(b"name: a\nkind: nop\ninners:\n  - executable: e\n", "doc", Whole)
    document.add(("inners", 0, "executable"), "cannot be run")
    document.add(("name",), lambda: "is taken")
    document.add(("inners", 0, "memory", "x"), "is not there, so the part around it")

    with pytest.raises(DocumentInvalid) as caught:
        document.check()

    assert [(p.line, p.column, p.message) for p in caught.value.problems] == [
        (1, 7, "is taken"),
        (2, 7, "expected one of 'noop', 'payload', got the text 'nop'"),
        (4, 5, "is not there, so the part around it"),
        (4, 17, "cannot be run"),
    ]
    assert repr(document) == "<Document doc with 4 mistakes>"


def test_part_of_a_type_that_is_known_later() -> None:
    document = documents.read(b"name: a\ntags:\n  t: {executable: 3}\n  u: {executable: e}\n", "doc", Whole)

    part = document.part(("tags", "u"), document.value.tags["u"], Inner)
    document.part(("tags", "t"), document.value.tags["t"], Inner)

    assert part == Inner("e")
    with pytest.raises(DocumentInvalid, match=r"line 3: tags\.t\.executable: expected text"):
        document.check()


# -- properties --------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.sampled_from(
        ["1e3", "0x1F", "010", "1:30", "no", "=", "<<", "~", "1.5e3", ".5", "+.5", "2026-01-01", "0o7", "1_0"]
    )
)
TREE = st.recursive(
    LEAF, lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXT, each, max_size=3), max_leaves=12
)
WHOLE = st.builds(
    Whole,
    name=TEXT,
    inners=st.lists(st.builds(Inner, TEXT, st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9) | TEXT)),
    factor=st.floats(0, 9.5),
    environment=st.dictionaries(TEXT, TEXT, max_size=3),
    tags=st.dictionaries(TEXT, TREE, max_size=3),
    codes=st.none() | st.integers(-9, 9) | st.lists(st.integers(-9, 9), max_size=3),
    kind=st.sampled_from(["payload", "noop"]),
    colour=st.sampled_from(Colour),
    flag=st.booleans(),
)


@given(WHOLE)
def test_json_round_trip(whole: Whole) -> None:
    assert documents.load(msgspec.json.encode(whole), "doc", Whole).value == whole


@given(WHOLE, st.booleans(), st.booleans())
def test_yaml_is_read_as_pyyaml_reads_what_it_wrote(whole: Whole, flow: bool, unicode: bool) -> None:
    tree = msgspec.to_builtins(whole)
    text = yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=unicode, sort_keys=False)
    expected = msgspec.convert(yaml.safe_load(text), Whole)  # not always `whole`: it folds U+0085 if not escaped

    assert documents.load(text.encode(), "doc", Whole).value == expected
    assert unicode or expected == whole


@given(st.from_regex(r"[-+0-9._:xoeEinfNaA~]{0,8}", fullmatch=True))
def test_a_plain_word_is_no_text_only_where_pyyaml_reads_the_same(word: str) -> None:
    value = _yaml.plain(word)

    if not isinstance(value, str):
        assert repr(value) == repr(yaml.safe_load(word))


def _mistakes_of(data: bytes) -> DocumentInvalid | None:
    try:
        documents.load(data, "doc", Whole)
    except DocumentInvalid as exc:
        return exc
    return None


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    error = _mistakes_of(data)

    assert error is not None, "no name"
    assert 1 <= len(error.problems) <= error.total
    assert all(p.line >= 1 and p.column >= 1 for p in error.problems)


@given(st.data(), WHOLE, st.booleans())
def test_no_damage_to_a_document_raises_anything_else(data: st.DataObject, whole: Whole, as_json: bool) -> None:
    tree = msgspec.to_builtins(whole)
    text = json.dumps(tree) if as_json else yaml.safe_dump(tree, allow_unicode=True)
    at = data.draw(st.integers(0, len(text)))
    till = data.draw(st.integers(at, min(len(text), at + 5)))
    put = data.draw(st.text(st.sampled_from("{}[]:,'\"\\&*!|>-?#%@` \t\n0x.eé\x00\x85\ud800"), max_size=4))

    error = _mistakes_of((text[:at] + put + text[till:]).encode("utf-8", "surrogatepass"))

    if error is not None:
        assert 1 <= len(error.problems) <= error.total
        assert str(error).encode()


KEYS = st.sampled_from(
    ["name", "inners", "factor", "environment", "tags", "codes", "kind", "colour", "nmae", "executable"]
)
NEAR = st.recursive(
    LEAF | st.sampled_from(["payload", "red", 1, 2.5]),
    lambda each: st.lists(each, max_size=2) | st.dictionaries(KEYS, each, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(KEYS, NEAR, max_size=6).map(lambda tree: {"name": "n", **tree}))
def test_walk_finds_a_mistake_exactly_where_msgspec_does(tree: dict[str, Any]) -> None:
    text = json.dumps(tree)
    refusal = ""
    try:
        msgspec.json.decode(text, type=Whole)
    except msgspec.ValidationError as exc:
        refusal = str(exc)

    error = _mistakes_of(text.encode())

    assert (error is not None) == bool(refusal)
    if error is not None and " - at `$" in refusal:
        # msgspec writes [...] for the values of a mapping, and names the part around a key that is wrong or missing.
        begin = refusal.rpartition(" - at `$")[2].rstrip("`").lstrip(".").partition("[...]")[0]
        assert any(problem.key.startswith(begin) for problem in error.problems)


def _paths(tree: object, path: Path = ()) -> list[tuple[Path, object]]:
    items: list[tuple[str | int, object]] = []
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    return [(path, tree), *(pair for part, below in items for pair in _paths(below, (*path, part)))]


@given(st.dictionaries(TEXT, TREE, max_size=4), st.sampled_from([None, 0, 1, "\t"]))
def test_every_part_of_a_json_text_is_found(tree: dict[str, Any], indent: int | str | None) -> None:
    text = json.dumps(tree, indent=indent)
    decoder = json.JSONDecoder()

    places = _json.find(text, trie_of(path for path, _ in _paths(tree)))

    for path, value in _paths(tree)[1:]:
        ((key, index),) = places[path]
        assert decoder.raw_decode(text, index)[0] == value
        if isinstance(path[-1], str):
            assert decoder.raw_decode(text, key)[0] == path[-1]


def _marks(node: yaml.Node, path: Path = ()) -> dict[Path, int]:
    marks = {path: node.start_mark.index}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            marks |= _marks(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            marks |= _marks(value, (*path, index))
    return marks


@given(st.dictionaries(TEXT, TREE, min_size=1, max_size=4), st.booleans())
def test_every_part_of_a_yaml_text_is_found(tree: dict[str, Any], flow: bool) -> None:
    text = yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True)
    top = yaml.compose(text, Loader=yaml.CSafeLoader)
    assert top is not None
    expected = _marks(top)
    del expected[()]

    places = _yaml.find(text, trie_of(expected))

    assert {path: hits[-1][1] for path, hits in places.items()} == expected


def test_locate_counts_lines_and_columns_from_one() -> None:
    document = documents.load(b'{"name": "a",\n "inners": [{"executable": "e"}]}', "doc", Whole)

    assert document.locate(("name",), ("inners", 0, "executable"), ("inners", 7), ()) == [
        (1, 10),
        (2, 28),
        (2, 12),
        (1, 1),
    ]
