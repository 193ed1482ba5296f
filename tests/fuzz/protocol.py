"""What a client sends, grown along the code that reads it: ``python -m tests.fuzz.protocol [OPTIONS] CORPUS``.

The first byte of an input says in pieces of which size it arrives. Whatever it is: nothing is raised, each line gets
one answer of JSON, and what is kept of an unfinished line has its limit.
"""

from __future__ import annotations

import json
import sys

import atheris

with atheris.instrument_imports(include=["bpsd"]):
    from bpsd.errors import BpsdError
    from bpsd.messages import PARAMS, PingResult
    from bpsd.protocol import Request, ServerProtocol, decode_params, unknown_method

LIMIT_BYTES = 1024


def one_input(data: bytes) -> None:
    """Be a daemon to these bytes."""
    size, stream = (data[0] or 1, data[1:]) if data else (1, b"")
    protocol = ServerProtocol(max_message_bytes=LIMIT_BYTES)
    events = 0
    said = bytearray()
    for start in range(0, len(stream), size):
        protocol.receive_data(stream[start : start + size])
        while (event := protocol.next_event()) is not None:
            events += 1
            if isinstance(event, Request):
                answer(protocol, event)
        said += protocol.data_to_send()
    protocol.receive_eof()
    while (event := protocol.next_event()) is not None:
        events += 1
        if isinstance(event, Request):
            answer(protocol, event)
    said += protocol.data_to_send()
    answers = said.split(b"\n")[:-1]
    if len(answers) != events:
        raise AssertionError(f"{events} lines, and {len(answers)} answers")
    for line in answers:
        told = json.loads(line)
        if ("result" in told) == ("error" in told):
            raise AssertionError(f"neither good nor bad: {line!r}")


def answer(protocol: ServerProtocol, request: Request) -> None:
    """Take a request as the server does."""
    try:
        if request.method not in PARAMS:
            raise unknown_method(request.method, PARAMS)
        decode_params(request.method, request.params)
    except BpsdError as error:
        protocol.send_error(request.id, error)
    else:
        protocol.send_result(request.id, PingResult(time=1.0))


def main() -> None:
    """Fuzz as the command line says."""
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
