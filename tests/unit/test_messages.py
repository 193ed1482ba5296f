"""What the socket can say is written down, and the document is what the code says."""

from __future__ import annotations

import json
from pathlib import Path

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
