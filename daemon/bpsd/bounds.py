"""The types of parameters: every text, list and number that a client sends has a maximum or a range.

A test walks over the parameters of all methods (`bpsd.messages.PARAMS`) and fails on a field without a bound.
"""

from __future__ import annotations

__all__ = [
    "MAX_EXACT",
    "Backends",
    "CommandState",
    "CommandStates",
    "Count",
    "Cursor",
    "Days",
    "Epoch",
    "Name",
    "Offset",
    "Pattern",
    "Rows",
    "RunName",
    "Runs",
    "Seconds",
    "Sha256",
    "StateName",
    "States",
    "Text",
    "Token",
    "Users",
]

from typing import Annotated, Literal

from msgspec import Meta

from bpsd import wire

MAX_EXACT = 2**53
"""The largest integer that every JSON reader keeps exact (RFC 8259, section 6)."""

RunName = Annotated[
    str, Meta(min_length=1, max_length=4096, description="our id, the WMS id, the global id, the token or the path")
]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Text = Annotated[str, Meta(max_length=4096)]
Pattern = Annotated[str, Meta(max_length=1024, description="a shell pattern: *, ?, [seq], [!seq]")]
# A pattern alone lets a newline follow the end: `$` matches before it.
Token = Annotated[str, Meta(pattern="^[a-z0-9]{20}$", max_length=20)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
Cursor = Annotated[str, Meta(max_length=255, description="the `next` of the page before")]
Rows = Annotated[int, Meta(ge=1, le=10_000)]
Count = Annotated[int, Meta(ge=0, le=MAX_EXACT)]
Offset = Annotated[int, Meta(ge=-MAX_EXACT, le=MAX_EXACT)]
Seconds = Annotated[float, Meta(ge=0, le=1e10)]
Days = Annotated[float, Meta(ge=0, le=1e6)]
Epoch = Annotated[float, Meta(ge=-1e11, le=1e11, description="epoch seconds")]
StateName = Literal[
    "UNKNOWN",
    "MISFIT",
    "UNREADY",
    "READY",
    "PENDING",
    "RUNNING",
    "DELETED",
    "HELD",
    "SUCCEEDED",
    "FAILED",
    "PRUNED",
]
CommandState = Literal["ACCEPTED", "RUNNING", "DONE", "FAILED", "IN_DOUBT", "EXPIRED", "SUPERSEDED"]
States = Annotated[list[StateName], Meta(max_length=64)]
CommandStates = Annotated[list[CommandState], Meta(max_length=64)]
Backends = Annotated[list[Name], Meta(max_length=1000)]
Users = Annotated[list[Name], Meta(max_length=1000)]
Runs = Annotated[list[RunName], Meta(max_length=wire.MAX_RUNS_NAMED)]
