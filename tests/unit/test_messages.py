"""What the socket can say is written down, and the document is what the code says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from bpsd import messages, wire
from bpsd.models import WmsStates

SCHEMA = Path(__file__).parents[2] / "docs" / "protocol.schema.json"


def test_the_schema_in_the_documentation_is_current() -> None:
    assert json.loads(SCHEMA.read_text()) == messages.schema(), (
        "run: python -m bpsd.messages > docs/protocol.schema.json"
    )


def test_every_method_has_parameters_and_a_result() -> None:
    assert set(messages.PARAMS) == set(messages.RESULTS) == set(wire.METHODS)


def test_states_are_those_of_the_wire() -> None:
    assert {state.name: state.value for state in WmsStates} == wire.STATES


@pytest.mark.parametrize("method", wire.METHODS)
def test_parameters_that_nobody_knows_are_refused(method: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="nonsense"):
        msgspec.json.decode(b'{"nonsense":1}', type=messages.PARAMS[method])


def unbounded(node: msgspec.inspect.Type, where: str) -> list[str]:
    """The places below a type at which a client may send as much as it likes, or any number."""
    kinds = msgspec.inspect
    if isinstance(node, kinds.IntType | kinds.FloatType):
        bounded = (node.ge, node.gt) != (None, None) and (node.le, node.lt) != (None, None)
        return [] if bounded else [where]
    if isinstance(node, kinds.Metadata):
        return unbounded(node.type, where)
    if isinstance(node, kinds.UnionType):
        return [place for part in node.types for place in unbounded(part, where)]
    if isinstance(node, kinds.StructType):
        return [place for field in node.fields for place in unbounded(field.type, f"{where}.{field.encode_name}")]
    if isinstance(node, kinds.BoolType | kinds.NoneType | kinds.LiteralType):
        return []
    own = (
        [] if getattr(node, "max_length", None) is not None else [where]
    )  # also Any, Raw, and what is thought of later
    if isinstance(node, kinds.ListType):
        return own + unbounded(node.item_type, f"{where}[]")
    if isinstance(node, kinds.DictType):
        return [*own, *unbounded(node.key_type, f"{where}.key"), *unbounded(node.value_type, f"{where}.value")]
    return own


@pytest.mark.parametrize("method", wire.METHODS)
def test_every_parameter_has_a_maximum_or_a_range(method: str) -> None:
    assert unbounded(msgspec.inspect.type_info(messages.PARAMS[method]), method) == []


class _Open(msgspec.Struct):
    text: str
    number: int
    half: Annotated[int, msgspec.Meta(ge=0)]
    share: float | None
    names: list[Annotated[str, msgspec.Meta(max_length=9)]]
    inner: Annotated[list[str], msgspec.Meta(max_length=9)]
    table: dict[str, int]
    anything: Any
    fine: Annotated[list[Annotated[str, msgspec.Meta(max_length=9)]], msgspec.Meta(max_length=9)] | bool | None


def test_the_walk_over_the_schema_finds_what_has_no_bound() -> None:
    found = unbounded(msgspec.inspect.type_info(_Open), "m")

    assert found == [
        *("m.text", "m.number", "m.half", "m.share", "m.names", "m.inner[]"),
        *("m.table", "m.table.key", "m.table.value", "m.anything"),
    ]


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("events", b'{"after":9223372036854775808}'),
        ("events", b'{"since":1e300}'),
        ("report", b'{"user":[%s]}' % b",".join(b'"u%d"' % n for n in range(90_000))),
        ("list", b'{"pattern":"%s"}' % (b"[" * 200_000)),
        ("submit", b'{"token":"aaaaaaaaaaaaaaaaaaaa\\n","blob":"%s"}' % (b"0" * 64)),
        ("submit", b'{"token":"aaaaaaaaaaaaaaaaaaaa","blob":"%s\\n"}' % (b"0" * 64)),
    ],
)
def test_parameters_beyond_their_bounds_are_refused(method: str, params: bytes) -> None:
    with pytest.raises(msgspec.ValidationError, match="Expected"):
        msgspec.json.decode(params, type=messages.PARAMS[method])
