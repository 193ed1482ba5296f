"""The protocol as bytes: every answer to what clients send well and badly, whole and in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd import messages, wire
from bpsd.errors import BpsdError, InvalidParams, LimitExceeded, RunNotFound, WorkflowInvalid
from bpsd.errors import Problem as Mistake
from bpsd.protocol import Refused, Request, ServerProtocol, decode_params, unknown_method


def line(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode() + b"\n"


PING = line(id=1, method="ping")


def events(protocol: ServerProtocol) -> Iterator[Request | Refused]:
    while (event := protocol.next_event()) is not None:
        yield event


def told(data: bytes, *, max_message_bytes: int = wire.MAX_MESSAGE_BYTES, eof: bool = False) -> list[dict[str, Any]]:
    """What the daemon says to a client that sends ``data``, where nothing answers the requests in it."""
    protocol = ServerProtocol(max_message_bytes=max_message_bytes)
    protocol.receive_data(data)
    if eof:
        protocol.receive_eof()
    list(events(protocol))
    return replies(protocol)


def replies(protocol: ServerProtocol) -> list[dict[str, Any]]:
    data = protocol.data_to_send()
    assert not data or data.endswith(b"\n")
    return [json.loads(text) for text in data.splitlines()]


def only_error(data: bytes, **kwargs: Any) -> tuple[str, str, Any]:
    """Name, message and id of the one error that is told."""
    (reply,) = told(data, **kwargs)
    assert reply["jsonrpc"] == "2.0"
    assert wire.ERRORS[reply["error"]["data"]["code"]] == reply["error"]["code"]
    return reply["error"]["data"]["code"], reply["error"]["message"], reply["id"]


def status_result(**kwargs: Any) -> messages.StatusResult:
    fields: Any = {"id": "r2", "backend": "here", "wms_id": "7", "name": "n", "state": "RUNNING", "code": 15, "seq": 3}
    return messages.StatusResult(**(fields | kwargs))


# -- well-formed -----------------------------------------------------------------------------------------------------


def test_requests_come_in_order_with_raw_params() -> None:
    protocol = ServerProtocol()

    protocol.receive_data(line(id=1, method="status", params={"run": "r2"}) + line(id="b", method="ping") + b'{"json')

    first, second = events(protocol)
    assert isinstance(first, Request)
    assert isinstance(second, Request)
    assert (first.id, first.method, json.loads(bytes(first.params))) == (1, "status", {"run": "r2"})
    assert (second.id, second.method, bytes(second.params)) == ("b", "ping", b"{}")
    assert protocol.in_flight == {1, "b"}
    assert protocol.mid_message
    assert protocol.data_to_send() == b""


def test_windows_line_ends_and_any_order_of_members() -> None:
    protocol = ServerProtocol()

    protocol.receive_data(b' {"method":"ping" , "id":-5,"jsonrpc":"2.0"}\r\n')

    (event,) = events(protocol)
    assert isinstance(event, Request)
    assert event.id == -5


def test_results_errors_and_notifications_are_lines() -> None:
    protocol = ServerProtocol()
    protocol.receive_data(
        line(id=1, method="ping") + line(id="ä", method="ping") + line(id=3, method="status", params={"run": "r2"})
    )
    list(events(protocol))

    protocol.send_result("ä", status_result())
    protocol.send_result(1, msgspec.Raw(b'{"time":1.5}'))
    protocol.send_error(3, RunNotFound("no run r2", advice="look at bpsctl list", nearest=["r3"]))
    protocol.send_notification("goodbye", messages.Goodbye(code="stopping", message="so long"))

    assert protocol.in_flight == set()
    pending = protocol.pending_bytes
    data = protocol.data_to_send()
    assert len(data) == pending
    assert protocol.pending_bytes == 0
    assert [json.loads(text) for text in data.splitlines()] == [
        {"jsonrpc": "2.0", "id": "ä", "result": msgspec.to_builtins(status_result())},
        {"jsonrpc": "2.0", "id": 1, "result": {"time": 1.5}},
        {
            "jsonrpc": "2.0",
            "id": 3,
            "error": {
                "code": -32003,
                "message": "no run r2",
                "data": {"code": "run_not_found", "nearest": ["r3"], "advice": "look at bpsctl list"},
            },
        },
        {"jsonrpc": "2.0", "method": "goodbye", "params": {"code": "stopping", "message": "so long"}},
    ]


def test_an_answered_id_may_be_used_again() -> None:
    protocol = ServerProtocol()
    for _ in range(2):
        protocol.receive_data(PING)
        (event,) = events(protocol)
        assert isinstance(event, Request)
        protocol.send_result(1, messages.PingResult(time=0.0))


def test_repr_tells_the_state() -> None:
    protocol = ServerProtocol()
    protocol.receive_data(PING + b"{")
    list(events(protocol))

    assert repr(protocol) == "<ServerProtocol in_flight=1 unread=1 unsent=0 mid_message>"


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code", "words", "id"),
    [
        (b"hello\n", "parse_error", "the line is not JSON", None),
        (b"\n", "parse_error", "the line is not JSON", None),
        (b"GET / HTTP/1.1\r\n", "parse_error", "the line is not JSON", None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"\n', "parse_error", "truncated", None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"} {}\n', "parse_error", "trailing", None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"\xff"}}\n', "parse_error", "byte 55 of the", None),
        (b'{"jsonrpc":"2.0","id":1,"method":"pi\xc3"}\n', "parse_error", "not UTF-8 (0xc3)", None),
        (b"[" * 100_000 + b"\n", "invalid_request", "batches are not taken", None),
        (b'{"params":' + b"[" * 1_000_000 + b"\n", "parse_error", "nested too deeply", None),
        (b"[%s]\n" % PING.strip(), "invalid_request", "batches are not taken", None),
        (b"[]\n", "invalid_request", "batches are not taken", None),
        (b"17\n", "invalid_request", "expected `object`, got `int`", None),
        (b"null\n", "invalid_request", "expected `object`", None),
        (b'{"id":4,"method":"ping"}\n', "invalid_request", 'jsonrpc must be "2.0"', 4),
        (b'{"jsonrpc":"1.0","id":4,"method":"ping"}\n', "invalid_request", 'jsonrpc must be "2.0"', 4),
        (b'{"jsonrpc":2.0,"id":4,"method":"ping"}\n', "invalid_request", 'jsonrpc must be "2.0"', 4),
        (line(method="ping"), "invalid_request", "the member id is missing", None),
        (line(id=None, method="ping"), "invalid_request", "the member id must be", None),
        (line(id=True, method="ping"), "invalid_request", "the member id must be", None),
        (line(id=1.5, method="ping"), "invalid_request", "the member id must be", None),
        (line(id=[1], method="ping"), "invalid_request", "the member id must be", None),
        (line(id=2**64, method="ping"), "invalid_request", "the member id must be", None),
        (line(id="x" * 256, method="ping"), "invalid_request", "the member id must be", None),
        (line(id=4), "invalid_request", "the member method is missing", 4),
        (line(id=4, method=5), "invalid_request", "expected `str`, got `int` - at `$.method`", 4),
        (line(id=4, method="list", parms={}), "invalid_request", "no member 'parms': did you mean params?", 4),
    ],
)
def test_what_is_no_request_is_answered(data: bytes, code: str, words: str, id: int | None) -> None:
    actual = only_error(data)

    assert (actual[0], actual[2]) == (code, id)
    assert words in actual[1]


def test_the_connection_lives_on_after_each_mistake() -> None:
    protocol = ServerProtocol()
    protocol.receive_data(b"nonsense\n[]\n" + line(id=9) + line(id=9, method="ping"))

    seen = list(events(protocol))

    assert [type(event) for event in seen] == [Refused, Refused, Refused, Request]
    assert [reply["id"] for reply in replies(protocol)] == [None, None, 9]


@pytest.mark.parametrize("id", [7, "seven"])
def test_an_id_in_flight_is_refused_without_answering_the_first(id: int | str) -> None:
    code, message, answered = only_error(line(id=id, method="ping") * 2)

    assert code == "invalid_request"
    assert f"{id!r} still waits" in message
    assert answered is None


def test_a_malformed_line_with_an_id_in_flight_does_not_answer_it() -> None:
    assert only_error(line(id=7, method="ping") + line(id=7))[2] is None


def test_one_and_its_text_are_different_ids() -> None:
    assert told(line(id=1, method="ping") + line(id="1", method="ping")) == []


@pytest.mark.parametrize("excess", [0, 1, 5000])
def test_too_long_a_line_is_refused_and_skipped(excess: int) -> None:
    limit = 100
    protocol = ServerProtocol(max_message_bytes=limit)

    protocol.receive_data(b"x" * (limit + excess))

    (event,) = events(protocol)
    assert isinstance(event, Refused)
    assert event.error.code == "message_too_large"

    protocol.receive_data(b"and more" * 100)
    assert protocol.next_event() is None
    assert "mid_message" in repr(protocol)

    protocol.receive_data(b"\n" + PING)
    assert [type(event) for event in events(protocol)] == [Request]
    assert "mid_message" not in repr(protocol)
    assert [reply["error"]["data"]["code"] for reply in replies(protocol)] == ["message_too_large"]


def test_the_longest_line_is_accepted() -> None:
    exact = line(id="x" * (100 - len(line(id="", method="ping"))), method="ping")
    assert len(exact) == 100

    assert told(exact, max_message_bytes=100) == []
    assert only_error(exact, max_message_bytes=99)[0] == "message_too_large"


def test_what_is_skipped_is_not_kept() -> None:
    protocol = ServerProtocol(max_message_bytes=100)
    for _ in range(100):
        protocol.receive_data(b"x" * 50)
        list(events(protocol))

        assert len(protocol._buffer) <= 100


def test_an_end_within_a_line_is_told() -> None:
    code, message, answered = only_error(PING.strip(), eof=True)

    assert (code, answered) == ("parse_error", None)
    assert f"ended {len(PING) - 1} bytes into a line" in message
    assert told(PING, eof=True) == []


# -- answers that cannot be sent as they are -------------------------------------------------------------------------


def answering(max_message_bytes: int = wire.MAX_MESSAGE_BYTES) -> ServerProtocol:
    protocol = ServerProtocol(max_message_bytes=max_message_bytes)
    protocol.receive_data(PING)
    list(events(protocol))
    return protocol


def test_too_long_an_answer_becomes_advice_to_page() -> None:
    protocol = answering(2000)

    protocol.send_result(1, status_result(note="x" * 2000))

    (reply,) = replies(protocol)
    assert reply["error"]["data"]["code"] == "limit_exceeded"
    assert "a smaller limit" in reply["error"]["data"]["advice"]
    assert protocol.in_flight == set()


@pytest.mark.parametrize(
    "result", [msgspec.Raw(b""), msgspec.Raw(b'{"a":\n1}'), status_result(note="\ud800"), status_result(code={1j})]
)
def test_an_answer_that_is_no_line_raises_and_keeps_the_request(result: msgspec.Struct | msgspec.Raw) -> None:
    protocol = answering()

    with pytest.raises((TypeError, ValueError)):
        protocol.send_result(1, result)

    assert protocol.in_flight == {1}
    assert protocol.data_to_send() == b""


def test_too_long_a_notification_raises() -> None:
    protocol = ServerProtocol(max_message_bytes=100)

    with pytest.raises(ValueError, match="longer than a message may be"):
        protocol.send_notification("event", msgspec.Raw(b'"' + b"x" * 100 + b'"'))

    assert protocol.data_to_send() == b""


@pytest.mark.parametrize(
    "error",
    [
        RunNotFound("lone \ud800 surrogate", advice="\udfff"),
        RunNotFound("much", candidates=["x" * 100] * 100),
        RunNotFound("x" * 100_000),
        WorkflowInvalid("w.yaml", [Mistake(("jobs", n), "x" * 100) for n in range(100)]),
        LimitExceeded("keys of any kind", odd={(1, 2): 3}),
        LimitExceeded("numbers", big=1j),
    ],
    ids=lambda error: error.message[:10],
)
def test_every_error_can_be_sent(error: BpsdError) -> None:
    protocol = answering(5000)

    protocol.send_error(1, error)

    (reply,) = replies(protocol)
    assert reply["id"] == 1
    assert reply["error"]["code"] == error.number
    assert reply["error"]["data"]["code"] == error.code


def test_no_error_tells_a_secret_or_writes_on_a_terminal() -> None:
    protocol = answering(5000)

    protocol.send_error(1, RunNotFound("condor said: password=hunter2 \x1b[2J"))

    (reply,) = replies(protocol)
    assert reply["error"]["message"] == "condor said: password=[redacted] \\x1b[2J"


# -- parameters ------------------------------------------------------------------------------------------------------


def test_params_are_typed() -> None:
    params = decode_params("list", msgspec.Raw(b'{"state":["RUNNING"],"hist":2}'))

    assert params == messages.ListParams(state=["RUNNING"], hist=2.0)


@pytest.mark.parametrize(
    ("method", "raw", "message", "advice", "where"),
    [
        (
            "status",
            '{"rum":"r2"}',
            "status has no parameter 'rum'",
            "did you mean run? status takes run, backend",
            "rum",
        ),
        ("ping", '{"x":1}', "ping has no parameter 'x'", "ping takes no parameters", "x"),
        ("status", "{}", "status needs the parameter run", "status takes run, backend, max_age_s", "run"),
        ("status", '{"run":1}', "the parameter run of status: expected `str`, got `int`", "status takes", "run"),
        ("status", '{"run":""}', "the parameter run of status: expected `str` of length >= 1", "status takes", "run"),
        (
            "list",
            '{"user":[1]}',
            "the parameter user[0] of list: expected `str`, got `int`",
            "list takes",
            "user[0]",
        ),
        (
            "list",
            '{"state":["RUNING"]}',
            "the parameter state[0] of list: invalid enum value 'RUNING'",
            "it is one of DELETED, FAILED, HELD",
            "state[0]",
        ),
        (
            "logs",
            '{"run":"r","job":"j","stream":"x"}',
            "the parameter stream of logs: inv",
            "it is one of stderr, s",
            "stream",
        ),
        ("status", '["r2"]', "the parameters of status: expected `object`, got `array`", "status takes", ""),
        ("status", "null", "the parameters of status: expected `object`, got `null`", "status takes", ""),
        ("status", '{"run":"\\ud800"}', "the parameters of status: ", "status takes", ""),
        ("status", '{"run":' + "[" * 100_000, "the parameter run of status: expected `str`", "status takes", "run"),
    ],
)
def test_wrong_params_are_named(method: str, raw: str, message: str, advice: str, where: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        decode_params(method, msgspec.Raw(raw.encode()))

    assert caught.value.message.startswith(message)
    assert caught.value.advice.startswith(advice)
    assert caught.value.fields["where"] == where
    assert caught.value.fields["method"] == method


def test_unknown_methods_come_with_the_nearest() -> None:
    error = unknown_method("reprot", messages.PARAMS)

    assert error.message == "there is no method 'reprot'"
    assert error.advice == "did you mean report?"
    assert error.fields == {"nearest": ["report"]}
    assert unknown_method("x" * 1000, ["ping", "list"]).advice == "the methods are: list, ping"
    assert len(unknown_method("x" * 1000, []).message) < 120


# -- no sequence of bytes does harm ----------------------------------------------------------------------------------

LIMIT = 64
fragments = st.sampled_from(
    [
        b"\n",
        b"\r\n",
        b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n',
        b'{"jsonrpc":"2.0","id":2,"method":"a","params":[1,2]}',
        b'{"jsonrpc":"2.0",',
        b'"id":"\\ud800"',
        b"[",
        b"]",
        b"\xff\xfe",
        b"\xc3\xa4",
        b"x" * LIMIT,
        b"y" * (LIMIT - 1),
    ]
)
streams = st.lists(fragments | st.binary(max_size=20), max_size=20).map(b"".join)


def transcript(pieces: list[bytes]) -> list[Any]:
    """What a connection does with pieces of a stream: its events in order, and what it says."""
    protocol = ServerProtocol(max_message_bytes=LIMIT)
    seen: list[Any] = []
    said: list[bytes] = []
    for piece in [*pieces, None]:
        if piece is None:
            protocol.receive_eof()
        else:
            protocol.receive_data(piece)
        for event in events(protocol):
            if isinstance(event, Request):
                seen.append((event.id, event.method, bytes(event.params)))
                if event.id == 1:  # some are answered, some stay in flight
                    protocol.send_result(1, messages.PingResult(time=0.0))
            else:
                seen.append((event.id, event.error.code, event.error.message))
        said.append(protocol.data_to_send())
        assert len(protocol._buffer) < LIMIT
    assert not protocol.mid_message or protocol._skipping
    return [*seen, b"".join(said)]


@given(streams)
def test_fed_byte_by_byte_is_fed_whole(stream: bytes) -> None:
    whole = transcript([stream])

    assert transcript([stream[i : i + 1] for i in range(len(stream))]) == whole
    assert all(json.loads(text)["jsonrpc"] == "2.0" for text in whole[-1].splitlines())


@given(streams, st.lists(st.integers(min_value=1, max_value=100), max_size=10))
def test_fed_in_any_pieces_is_fed_whole(stream: bytes, sizes: list[int]) -> None:
    pieces, rest = [], stream
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]

    assert transcript([*pieces, rest]) == transcript([stream])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.sampled_from(sorted(messages.PARAMS)),
    json_values
    | st.dictionaries(
        st.sampled_from(["run", "backend", "state", "limit", "after", "since", "token", "id"]), json_values, max_size=4
    ),
)
def test_params_of_any_json_are_typed_or_refused(method: str, value: Any) -> None:
    params: messages.Params | InvalidParams
    try:
        params = decode_params(method, msgspec.Raw(json.dumps(value).encode()))
    except InvalidParams as error:
        params = error

    assert isinstance(params, (messages.PARAMS[method], InvalidParams))


@pytest.mark.parametrize(
    "name",
    [
        " - at `$" * 100_000,  # a regular expression that looks for the place goes back over the text for each of them
        "x" * 900_000,
        "`" * 300_000,
    ],
)
def test_a_parameter_with_a_huge_name_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        decode_params("list", msgspec.Raw(msgspec.json.encode({name: 1})))

    assert caught.value.message.startswith("list has no parameter '")
    assert len(caught.value.message) < 200
    assert caught.value.fields["nearest"] == []


def test_a_method_with_a_huge_name_is_no_request() -> None:
    protocol = ServerProtocol()
    protocol.receive_data(wire.encode_request(1, "p" * 900_000, {}))

    event = protocol.next_event()

    assert isinstance(event, Refused)
    assert (event.id, event.error.code) == (1, "invalid_request")


@pytest.mark.parametrize("line", [b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":tru}}\n', b"{,}\n"])
def test_an_error_keeps_the_capitals_of_json(line: bytes) -> None:
    protocol = ServerProtocol()
    protocol.receive_data(line)

    event = protocol.next_event()

    assert isinstance(event, Refused)
    assert event.error.message.startswith("the line is not JSON: JSON is malformed")
