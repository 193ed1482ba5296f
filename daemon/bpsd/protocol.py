"""The daemon's side of one connection, without a socket: bytes in, requests out; answers in, bytes out.

Nothing here waits, and nothing here raises for anything that a client can send. What is wrong with a line is answered
(the reply is queued before the event is returned) and the connection lives on, because every line stands for itself:

- a line that is not JSON in UTF-8, or is nested too deeply: ``parse_error``;
- a batch, a missing or unusable ``id``, another version, a member that JSON-RPC does not know: ``invalid_request``;
- an ``id`` that still waits for its answer: ``invalid_request`` with a null ``id``, as its own would answer the first;
- a line longer than the limit: ``message_too_large`` as soon as that is known; the rest of the line is not kept.

JSON-RPC 2.0 (https://www.jsonrpc.org/specification) wants requests without an ``id`` (its notifications) ignored. No
method of ours makes sense that way, and somebody who types into ``socat`` should hear why nothing happens: they are
refused like any other request without a usable ``id``.
"""

from __future__ import annotations

__all__ = ["Refused", "Request", "RequestId", "ServerProtocol", "decode_params", "event_line", "unknown_method"]

from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bpsd import messages, wire
from bpsd.errors import (
    BpsdError,
    InvalidParams,
    InvalidRequest,
    LimitExceeded,
    MessageTooLarge,
    ParseError,
    UnknownMethod,
    nearest,
)
from bpsd.logs.redaction import redact_text

RequestId = Annotated[int, Meta(ge=-(2**53), le=2**53)] | Annotated[str, Meta(max_length=255)]
"""Integers that every JSON reader keeps exact (RFC 8259, section 6), texts that are cheap to keep."""

_ADVICE = 'send one JSON object a line, such as {"jsonrpc":"2.0","id":1,"method":"ping","params":{}}'
_MAX_ERROR_TEXT = 4096  # characters of an error's message, where the whole error is longer than a message may be


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """One well-formed request. Its ``params`` are still JSON: see `decode_params`."""

    jsonrpc: Literal["2.0"]
    id: RequestId
    method: Annotated[str, Meta(max_length=255)]
    params: msgspec.Raw = msgspec.Raw(b"{}")


class Refused(msgspec.Struct, frozen=True):
    """A message that was no request. ``error`` has been queued as the answer to ``id`` (`None`: not known)."""

    error: BpsdError
    id: RequestId | None = None


_decode_request = msgspec.json.Decoder(Request).decode
_decode_id = msgspec.json.Decoder(RequestId).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_params_decoders = {method: msgspec.json.Decoder(params) for method, params in messages.PARAMS.items()}
_encode = msgspec.json.Encoder().encode
# Fields of errors are facts for people and scripts: a path or an exception among them is worth its text.
_encode_error = msgspec.json.Encoder(enc_hook=str).encode


class ServerProtocol:
    """One connection: call `receive_data`, then `next_event` until it returns `None`; answer; send `data_to_send`.

    Pulling events one at a time lets the caller stop where it must (too many requests in flight, a full write buffer,
    its share of this turn used up) and go on later: what was not pulled stays here as bytes, so the memory held is what
    was received. Without complete lines left, that is less than ``max_message_bytes``.

    Parameters
    ----------
    max_message_bytes : `int`, optional
        The longest line to accept or send, newline included.
    """

    def __init__(self, *, max_message_bytes: int = wire.MAX_MESSAGE_BYTES) -> None:
        self.in_flight: set[RequestId] = set()
        """Ids of the requests that wait for their answer."""
        self.pending_bytes = 0
        """How much `data_to_send` would return."""
        self._max = max_message_bytes
        self._buffer = bytearray()
        self._start = 0  # of the line that is next in the buffer
        self._searched = 0  # no newline in the buffer before this
        self._skipping = False  # the rest of a line that was too long
        self._eof = False
        self._out: list[bytes] = []

    def __repr__(self) -> str:
        return (
            f"<ServerProtocol in_flight={len(self.in_flight)} unread={len(self._buffer) - self._start}"
            f" unsent={self.pending_bytes}{' mid_message' if self.mid_message else ''}>"
        )

    # -- in ----------------------------------------------------------------------------------------------------------

    @property
    def mid_message(self) -> bool:
        """Whether the client has begun a line that it has not ended (meaningful once `next_event` returned `None`)."""
        return self._skipping or len(self._buffer) > self._start

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take what the client sent; it is copied."""
        self._buffer += data

    def receive_eof(self) -> None:
        """Learn that the client will send no more."""
        self._eof = True

    def next_event(self) -> Request | Refused | None:
        """Return the next complete message, or `None` if there is none yet."""
        buffer = self._buffer
        while (end := buffer.find(b"\n", self._searched)) >= 0:
            line = buffer[self._start : end]
            if end + 1 == len(buffer):
                buffer.clear()
                end = -1
            self._start = self._searched = end + 1
            if self._skipping:
                self._skipping = False
            elif len(line) >= self._max:
                return self._refuse_length()
            else:
                return self._parse(line)
        return self._unfinished()

    def _unfinished(self) -> Refused | None:
        """No newline is left: keep, drop or refuse the beginning of a line."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._searched = len(self._buffer)
        if self._skipping or self._searched >= self._max:
            self._buffer.clear()
            self._searched = 0
            if not self._skipping:
                self._skipping = True
                return self._refuse_length()
        elif self._eof and self._buffer:
            size = len(self._buffer)
            self._buffer.clear()
            self._searched = 0
            return self._refuse(
                ParseError(f"the connection ended {size} bytes into a line", advice="end every message with a newline")
            )
        return None

    def _parse(self, line: bytearray) -> Request | Refused:
        try:
            if not line.isascii():
                line.decode()  # what msgspec leaves raw, it does not look into
            request = _decode_request(line)
        except (ValueError, RecursionError) as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
            return self._refuse(*_explain(line, error))
        if request.id in self.in_flight:
            return self._refuse(
                InvalidRequest(
                    f"the id {_show(request.id)} still waits for its answer",
                    advice="give every request in flight an id of its own",
                    repeated_id=request.id,
                )
            )
        self.in_flight.add(request.id)
        return request

    def _refuse_length(self) -> Refused:
        return self._refuse(
            MessageTooLarge(
                f"a message of more than {self._max} bytes was not read",
                advice="send documents in pieces (blob.put) and name them in the request",
                max_message_bytes=self._max,
            )
        )

    def _refuse(self, error: BpsdError, id: RequestId | None = None) -> Refused:
        known = None if id in self.in_flight else id
        self._queue_error(known, error)
        return Refused(error, known)

    # -- out ---------------------------------------------------------------------------------------------------------

    def send_result(self, id: RequestId, result: msgspec.Struct | msgspec.Raw) -> None:
        """Queue the answer to a request: a message of `bpsd.messages`, or JSON that was encoded before.

        An answer that would be too long becomes ``limit_exceeded``.

        Raises
        ------
        TypeError, ValueError, OverflowError
            Raised if the result cannot be encoded. Nothing is queued, and the request still waits for its answer.
        """
        line = b"".join((b'{"jsonrpc":"2.0","id":', _encode_id(id), b',"result":', _body(result), b"}\n"))
        if len(line) > self._max:
            self.send_error(
                id,
                LimitExceeded(
                    f"the answer has {len(line)} bytes, more than the {self._max} that a message may have",
                    advice="ask for less at a time: a smaller limit with after, or narrower filters",
                    limit="max_message_bytes",
                    max_message_bytes=self._max,
                ),
            )
            return
        self.in_flight.remove(id)
        self._queue(line)

    def send_error(self, id: RequestId, error: BpsdError) -> None:
        """Queue an error as the answer to a request. It is cut to what fits and never fails."""
        self.in_flight.remove(id)
        self._queue_error(id, error)

    def send_notification(self, method: str, params: msgspec.Struct | msgspec.Raw) -> None:
        """Queue one of `bpsd.wire.NOTIFICATIONS`.

        Raises
        ------
        TypeError, ValueError, OverflowError
            Raised if it cannot be encoded or is longer than a message may be. Nothing is queued.
        """
        line = b"".join((b'{"jsonrpc":"2.0","method":', _encode(method), b',"params":', _body(params), b"}\n"))
        if len(line) > self._max:
            raise ValueError(f"a notification of {len(line)} bytes is longer than a message may be")
        self._queue(line)

    def send_lines(self, lines: bytes) -> None:
        """Queue whole lines that were encoded before (see `event_line`)."""
        self._queue(lines)

    def data_to_send(self) -> bytes:
        """What there is to send now; it is yours to send."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self.pending_bytes = 0
        return data

    def _queue(self, line: bytes) -> None:
        self._out.append(line)
        self.pending_bytes += len(line)

    def _queue_error(self, id: RequestId | None, error: BpsdError) -> None:
        line = _encode_error_line(id, error)
        if line is None or len(line) > self._max:
            line = _encode_error_line(id, _shortened(error))
            assert line is not None
        self._queue(line)


def event_line(watch: int, event: bytes, lost: int) -> bytes | None:
    """Return the notification ``event`` as one line, or `None` if it is longer than a message may be.

    Parameters
    ----------
    watch : `int`
        The number of the subscription.
    event : `bytes`
        A `bpsd.messages.Event` as JSON in one line.
    lost : `int`
        How many events the client has not got since the one before.
    """
    line = b'{"jsonrpc":"2.0","method":"event","params":{"watch":%d,"event":%b,"lost":%d}}\n' % (watch, event, lost)
    return line if len(line) <= wire.MAX_MESSAGE_BYTES else None


def decode_params(method: str, raw: msgspec.Raw) -> messages.Params:
    """Read the parameters of a request as `bpsd.messages.PARAMS` says.

    Parameters
    ----------
    method : `str`
        A method that `bpsd.messages.PARAMS` knows.
    raw : `msgspec.Raw`
        The member ``params`` of the request.

    Raises
    ------
    InvalidParams
        Raised if they are not what the method takes; it says where, and what was expected.
    """
    try:
        return _params_decoders[method].decode(raw)
    except (ValueError, RecursionError) as error:
        raise _invalid_params(method, str(error)) from error


def unknown_method(name: str, known: Iterable[str]) -> UnknownMethod:
    """Make the error for a method that is not there, with the ones that look like it."""
    names = sorted(known)
    near = nearest(name, names)
    return UnknownMethod(
        f"there is no method {_show(name)}",
        advice=f"did you mean {' or '.join(near)}?" if near else f"the methods are: {', '.join(names)}",
        nearest=near,
    )


def _encode_id(id: RequestId) -> bytes:
    return b"%d" % id if isinstance(id, int) else _encode(id)


def _body(value: msgspec.Struct | msgspec.Raw) -> bytes | msgspec.Raw:
    """JSON in one line."""
    if type(value) is not msgspec.Raw:
        return _encode(value)
    body = bytes(value)
    if not body or b"\n" in body:
        raise ValueError("pre-encoded JSON is empty or has a newline in it")
    return body


def _encode_error_line(id: RequestId | None, error: BpsdError) -> bytes | None:
    """One line of JSON without secrets; `None` if something in the error has no JSON form (a lone surrogate, say)."""
    try:
        return (
            _encode_error(
                {
                    "jsonrpc": "2.0",
                    "id": id,
                    "error": {
                        "code": error.number,
                        # What a WMS said may hold what opens a door, and be meant for somebody's terminal.
                        "message": redact_text(error.message, lines=True),
                        "data": error.data(),
                    },
                }
            )
            + b"\n"
        )
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None


def _shortened(error: BpsdError) -> BpsdError:
    """The same error in little ASCII and without its fields."""

    def short(text: str) -> str:
        return text[:_MAX_ERROR_TEXT].encode("ascii", "backslashreplace").decode("ascii")

    shorter = type(error).__new__(type(error))  # a subclass may take other parameters than a message
    BpsdError.__init__(shorter, short(error.message), advice=short(error.advice), shortened=True)
    return shorter


def _show(value: object) -> str:
    """Quote something that a client sent, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:76] + "...'"


def _lower_first(text: str) -> str:
    """The sentence as the rest of another; an abbreviation keeps its capitals ("JSON is malformed")."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _explain(line: bytearray, error: Exception) -> tuple[BpsdError, RequestId | None]:
    """Say what is wrong with a line that is no request, and which id to answer, if that can be known."""
    if isinstance(error, UnicodeDecodeError):
        return ParseError(
            f"byte {error.start} of the line is not UTF-8 (0x{line[error.start]:02x})", advice=_ADVICE
        ), None
    try:
        members = _decode_members(line)
    except msgspec.ValidationError as shape:
        if line.lstrip().startswith(b"["):
            return InvalidRequest("batches are not taken", advice="send each request on a line of its own"), None
        return InvalidRequest(_lower_first(str(shape)), advice=_ADVICE), None
    except RecursionError:
        return ParseError("the line is nested too deeply", advice=_ADVICE), None
    except ValueError as malformed:
        return ParseError(f"the line is not JSON: {_lower_first(str(malformed))}", advice=_ADVICE), None
    request_id = _readable_id(members)
    return InvalidRequest(_wrong_member(members, request_id, error), advice=_ADVICE), request_id


def _readable_id(members: dict[str, msgspec.Raw]) -> RequestId | None:
    try:
        return _decode_id(members["id"]) if "id" in members else None
    except ValueError:
        return None


def _wrong_member(members: dict[str, msgspec.Raw], id: RequestId | None, error: Exception) -> str:
    """Name the first member of an object that keeps it from being a request."""
    known = Request.__struct_fields__
    if bytes(members.get("jsonrpc", b"")) != b'"2.0"':
        return 'the member jsonrpc must be "2.0"'
    if "id" not in members:
        return "the member id is missing: this daemon takes no notifications, every request is answered"
    if id is None:
        return "the member id must be an integer within 53 bits or a text of at most 255 characters"
    if "method" not in members:
        return "the member method is missing"
    for name in members:
        if name not in known:
            near = nearest(name, known, 1)
            return f"a request has no member {_show(name)}" + (f": did you mean {near[0]}?" if near else "")
    return _lower_first(str(error))


def _invalid_params(method: str, text: str) -> InvalidParams:
    """Turn msgspec's sentence into one about this method's parameters."""
    known = messages.PARAMS[method].__struct_fields__
    takes = f"{method} takes {', '.join(known)}" if known else f"{method} takes no parameters"
    field = _quoted_field(text)
    what, where = _split_place(text)
    if field is not None and field[0] == "missing required":
        return InvalidParams(f"{method} needs the parameter {field[1]}", advice=takes, method=method, where=field[1])
    if field is not None:
        near = nearest(field[1], known)
        return InvalidParams(
            f"{method} has no parameter {_show(field[1])}",
            advice=f"did you mean {' or '.join(near)}? {takes}" if near else takes,
            method=method,
            where=field[1][:255],
            nearest=near,
        )
    if not where:
        return InvalidParams(f"the parameters of {method}: {_lower_first(what)}", advice=takes, method=method, where="")
    choices = _choices(method, where.partition(".")[0].partition("[")[0])
    return InvalidParams(
        f"the parameter {where} of {method}: {_lower_first(what)}",
        advice=f"it is one of {', '.join(choices)}" if choices else takes,
        method=method,
        where=where,
    )


def _split_place(text: str) -> tuple[str, str]:
    """Split msgspec's sentence into what is wrong, and the path of the parameter (empty: the parameters as such).

    The text may quote a megabyte that a client sent: no regular expression reads it.
    """
    what, at, where = text.rpartition(" - at `$")
    if not at or not where.endswith("`"):
        return text, ""
    return what, where[:-1].removeprefix(".")


def _quoted_field(text: str) -> tuple[str, str] | None:
    """What msgspec says of a field (``missing required`` or ``contains unknown``), and the field's name.

    No parameter is an object, so no place follows the name.
    """
    for kind in ("missing required", "contains unknown"):
        before = f"Object {kind} field `"
        if text.startswith(before) and text.endswith("`"):
            return kind, text[len(before) : -1]
    return None


@lru_cache(maxsize=256)
def _choices(method: str, name: str) -> list[str]:
    """The values that a parameter can have, if they can be listed."""
    info: Any = msgspec.inspect.type_info(messages.PARAMS[method])
    return next((_literals(field.type) for field in info.fields if field.encode_name == name), [])


def _literals(node: msgspec.inspect.Type) -> list[str]:
    if isinstance(node, msgspec.inspect.LiteralType):
        return [str(value) for value in node.values]
    if isinstance(node, msgspec.inspect.UnionType):
        return [value for part in node.types for value in _literals(part)]
    if isinstance(node, msgspec.inspect.ListType):
        return _literals(node.item_type)
    return []
