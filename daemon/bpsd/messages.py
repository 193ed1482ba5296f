"""Every request and answer on the socket, typed: what `bpsd.wire` names, with its fields.

Names of states travel as words (``"RUNNING"``), times as epoch seconds (float). An answer says *when* something was
seen (``observed_at``), never how long ago: an age would go stale in flight. Unknown parameters are refused, with what
was expected; unknown fields in answers are ignored by clients, so that answers can grow.

``python -m bpsd.messages`` prints the JSON Schema of all of it (committed as ``docs/protocol.schema.json``).
"""

from __future__ import annotations

__all__ = [
    "PARAMS",
    "RESULTS",
    "AdminParams",
    "AdminResult",
    "AttemptRow",
    "BackendPing",
    "BackendPingResult",
    "BackendRow",
    "BackendsParams",
    "BackendsResult",
    "BlobPut",
    "BlobPutResult",
    "CommandRow",
    "CommandsParams",
    "CommandsResolve",
    "CommandsResult",
    "CommandsWait",
    "Event",
    "EventsParams",
    "EventsResult",
    "Filters",
    "Goodbye",
    "HealthCheck",
    "HealthResult",
    "Hello",
    "HoldGroup",
    "HoldsParams",
    "HoldsResult",
    "JobRow",
    "JobsParams",
    "JobsResult",
    "ListParams",
    "ListResult",
    "ListRow",
    "LogsParams",
    "LogsResult",
    "MuteParams",
    "MuteResult",
    "Nothing",
    "Params",
    "PingResult",
    "ProblemRow",
    "RefreshParams",
    "RefreshResult",
    "ReportParams",
    "ReportResult",
    "Result",
    "RunCommand",
    "RunRow",
    "SourceRow",
    "StatusParams",
    "StatusResult",
    "SubmitParams",
    "UnwatchParams",
    "ValidateParams",
    "ValidateResult",
    "VersionResult",
    "WatchEvent",
    "WatchParams",
    "WatchResult",
    "schema",
]

import inspect
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bpsd import wire
from bpsd.bounds import (
    MAX_EXACT,
    Backends,
    CommandState,
    CommandStates,
    Count,
    Cursor,
    Days,
    Epoch,
    Name,
    Offset,
    Pattern,
    Rows,
    RunName,
    Runs,
    Seconds,
    Sha256,
    StateName,
    States,
    Text,
    Token,
    Users,
)
from bpsd.workflow import UMASK_PATTERN

Counts = dict[str, int]


class Params(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a request: unknown ones are refused."""


class Result(msgspec.Struct, kw_only=True):
    """An answer."""


# -- notifications from the daemon -----------------------------------------------------------------------------------


class Hello(Result, kw_only=True):
    """The first line of every connection."""

    name: str = "bpsd"
    version: str
    protocol: int
    pid: int
    mode: Literal["user", "system"]
    max_message_bytes: int


class Goodbye(Result, kw_only=True):
    """The last line of a connection that the daemon closes: why."""

    code: str
    message: str


# -- parts of answers ------------------------------------------------------------------------------------------------


class SourceRow(Result, kw_only=True):
    """How asking one source of a backend went, last time. ``user``: it is asked for the runs of this user only."""

    name: str
    user: str = ""
    status: Literal["ok", "partial", "failed"]
    covers: str = ""
    cost_s: float = 0.0
    cost_bytes: int = 0
    error: str = ""


class BackendRow(Result, kw_only=True):
    """One backend and how it is doing.

    ``state``: ``up``, ``down`` (the last polls failed), ``auth`` (it refuses us), ``starting``, ``stopped`` (its
    adapter failed: see ``error``). ``breaker``: ``closed``, ``open`` (not asked until ``next_poll_at``) or
    ``half_open``. If it is ``stale``, so are all of its live runs; else those that were observed last before
    ``stale_before``, as some of its ``sources`` do not answer.
    """

    name: str
    uid: str
    type: str
    state: Literal["starting", "up", "down", "auth", "stopped"]
    breaker: Literal["closed", "open", "half_open"] = "closed"
    stale: bool = False
    stale_before: float | None = None
    last_good_at: float | None = None
    last_attempt_at: float | None = None
    next_poll_at: float | None = None
    interval_s: float | None = None
    poll_cost_s: float | None = None
    polls: int = 0
    failures: int = 0
    error: str = ""
    clock_offset_s: float | None = None
    runs_live: int = 0
    runs_hot: int = 0
    jobs_known: int = 0
    sources: list[SourceRow] = []
    submit_allowed: bool = True
    account: str | None = None
    fields: dict[str, tuple[str, str]] | None = None


class RunRow(Result, kw_only=True):
    """One run in a report.

    ``id`` is ours and stays over restarts; ``attempt`` counts submit and restarts from 1. ``state`` UNKNOWN comes with
    ``last_known`` and ``note`` ("not in queue, history, files"). ``flag`` is that of `bps report`; ``percent`` its
    ``%S``. ``observed_at`` is the last time a source confirmed the row, ``source`` which one; ``history`` rows come
    from our own records. ``labels``, ``expected``, ``exit_codes`` (label to code to count), ``attempts`` and ``info``
    are there when a single run was asked for. Of a ``muted`` run nobody is notified.
    """

    id: str
    backend: str
    wms_id: str
    name: str
    state: StateName
    flag: str = " "
    percent: int | None = None
    attempt: int = 1
    total: int | None = None
    counts: Counts = {}
    global_wms_id: str | None = None
    path: str | None = None
    label: str | None = None
    project: str | None = None
    campaign: str | None = None
    payload: str | None = None
    operator: str | None = None
    site: str | None = None
    owner: str | None = None
    ours: bool = False
    token: str | None = None
    run_summary: str | None = None
    submitted_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    changed_at: float | None = None
    note: str = ""
    last_known: StateName | None = None
    last_known_at: float | None = None
    command: str | None = None
    muted: bool = False
    labels: dict[str, Counts] | None = None
    expected: dict[str, int] | None = None
    exit_codes: dict[str, dict[str, int]] | None = None
    attempts: list[AttemptRow] | None = None
    info: str | None = None
    observed_at: float | None = None
    source: str = ""


class AttemptRow(Result, kw_only=True):
    """One attempt of a run."""

    attempt: int
    wms_id: str | None = None
    global_wms_id: str | None = None
    state: StateName | None = None
    at: float | None = None
    command: str | None = None


class JobRow(Result, kw_only=True):
    """One job of a run."""

    name: str
    label: str
    state: StateName
    attempt: int | None = None
    wms_id: str = ""
    exit_code: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    host: str = ""
    note: str = ""


class CommandRow(Result, kw_only=True):
    """One command, its user (the kernel's word), its result; its place ``position`` of ``waiting`` while it waits."""

    id: str
    verb: str
    state: CommandState
    backend: str
    run: str
    token: str | None = None
    attempt: int | None = None
    uid: int
    pid: int
    user: str
    client: str = ""
    args: dict[str, Any] = {}
    accepted_at: float
    expires_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    note: str = ""
    position: int | None = None
    waiting: int | None = None
    created: bool = True


class Event(Result, kw_only=True):
    """Something that happened, in the order of ``seq``.

    ``kind``: ``run.seen``, ``run.state``, ``run.attempt``, ``run.conflict``, ``run.muted``, ``run.progress``
    (watchers only), ``job.state`` (watchers that ask), ``watch.lost`` (this client reads too slowly),
    ``backend.state``, ``command.state``, ``daemon.start``, ``daemon.reload``, ``daemon.storage``. To watchers,
    ``data`` of a ``run.`` event also holds the run's ``row`` (a `RunRow`).
    """

    seq: int
    time: float
    kind: str
    backend: str | None = None
    run: str | None = None
    data: dict[str, Any] = {}


class ProblemRow(Result, kw_only=True):
    """One mistake in a document, with its place (lines and columns from 1; 0: not known)."""

    key: str
    message: str
    line: int = 0
    column: int = 0


# -- requests --------------------------------------------------------------------------------------------------------


class Nothing(Params, kw_only=True):
    """No parameters."""


class PingResult(Result, kw_only=True):
    """The daemon is there."""

    time: float


class VersionResult(Result, kw_only=True):
    """Which daemon this is."""

    version: str
    protocol: int
    python: str
    pid: int
    mode: str
    uid: int
    socket: str
    state_dir: str
    config: str | None
    started_at: float


class BackendsParams(Params, kw_only=True):
    """All backends, or one; ``fields`` adds what each does with every field of a job."""

    backend: Name | None = None
    fields: bool = False


class BackendsResult(Result, kw_only=True):
    """The backends, in the order of the configuration."""

    backends: list[BackendRow]
    time: float


class BackendPing(Params, kw_only=True):
    """Ask the WMS itself whether it is up and lets us in."""

    backend: Name | None = None
    pass_thru: Text | None = None


class BackendPingResult(Result, kw_only=True):
    """Backend to status (0: fine), message and seconds that it took."""

    answers: dict[str, tuple[int, str, float]]


class Filters(Params, kw_only=True):
    """Which runs: all conditions must hold.

    ``hist`` adds runs that ended in the last so many days (default: all that are hot); ``pattern`` is a shell pattern
    over run name, payload, campaign and project; ``active`` leaves out what is over; ``commandable`` leaves out what
    the caller may not cancel, restart, hold or release.
    """

    backend: Backends = []
    user: Users = []
    state: States = []
    label: Name | None = None
    hist: Days | None = None
    pattern: Pattern | None = None
    active: bool = False
    mine: bool = False
    commandable: bool = False


class ListParams(Filters, kw_only=True):
    """Ids of runs; ``after`` is the ``next`` of the page before."""

    limit: Rows = 1000
    after: Cursor | None = None


class ListRow(Result, kw_only=True):
    """One run in a list."""

    id: str
    backend: str
    wms_id: str
    name: str
    state: StateName


class ListResult(Result, kw_only=True):
    """A page of runs, the newest first; ``next`` is there if more follow."""

    runs: list[ListRow]
    seq: int
    next: str | None = None


class ReportParams(Filters, kw_only=True):
    """Runs with counts; with ``run``, one in full. ``max_age_s`` polls first what was seen longer ago."""

    run: RunName | None = None
    max_age_s: Seconds | None = None
    limit: Rows = 1000
    after: Cursor | None = None


class ReportResult(Result, kw_only=True):
    """A page of rows; ``messages`` are for people (a backend that is down, a row that is old)."""

    runs: list[RunRow]
    seq: int
    time: float
    next: str | None = None
    messages: list[str] = []
    backends: dict[str, BackendRow] = {}


class StatusParams(Params, kw_only=True):
    """The state of one run."""

    run: RunName
    backend: Name | None = None
    max_age_s: Seconds | None = None


class StatusResult(Result, kw_only=True):
    """The state of one run; ``code`` is the exit code of ``bpsctl status``."""

    id: str
    backend: str
    wms_id: str
    name: str
    state: StateName
    code: int
    attempt: int = 1
    percent: int | None = None
    note: str = ""
    last_known: StateName | None = None
    last_known_at: float | None = None
    ended_at: float | None = None
    observed_at: float | None = None
    source: str = ""
    stale: bool = False
    error: str = ""
    seq: int


class JobsParams(Params, kw_only=True):
    """Jobs of one run; ``pattern`` is a shell pattern over names."""

    run: RunName
    backend: Name | None = None
    state: States = []
    label: Name | None = None
    pattern: Pattern | None = None
    limit: Rows = 1000
    after: Cursor | None = None


class JobsResult(Result, kw_only=True):
    """A page of jobs at one sequence number; ``total`` counts all that match."""

    run: str
    jobs: list[JobRow]
    total: int
    seq: int
    next: str | None = None
    observed_at: float | None = None
    source: str = ""


class HoldsParams(Filters, kw_only=True):
    """What is on hold, in live runs, grouped by reason; ``runs`` only of these, ``group`` only that one.

    ``label`` chooses jobs (the label of a run: all of its jobs). ``after`` is the ``next`` of the page before.
    """

    runs: Runs = []
    group: Name | None = None
    limit: Rows = 1000
    after: Cursor | None = None


class HoldGroup(Result, kw_only=True):
    """Jobs, and runs as such, that are on hold for the same reason.

    ``reason`` is without what differs from job to job, ``example`` one as the WMS gave it; ``held`` counts jobs and
    runs that are themselves on hold, ``runs`` how many of them each run has (of at most 10,000 runs; ``run_count``
    counts all), ``labels`` the jobs by label; ``oldest_at`` is the WMS's time of the oldest hold.
    """

    group: str
    reason: str
    example: str
    held: int = 0
    run_count: int = 0
    runs: dict[str, int] = {}
    labels: dict[str, int] = {}
    backends: list[str] = []
    oldest_at: float | None = None


class HoldsResult(Result, kw_only=True):
    """A page of groups, the largest first; ``held`` and ``run_count`` count those of all pages."""

    groups: list[HoldGroup]
    held: int
    run_count: int
    seq: int
    time: float
    next: str | None = None


class LogsParams(Params, kw_only=True):
    """A piece of what a job printed; a negative ``offset`` (bytes) counts from the end."""

    run: RunName
    backend: Name | None = None
    job: Annotated[str, Meta(min_length=1, max_length=4096)]
    stream: Literal["stdout", "stderr"] = "stderr"
    offset: Offset = -8192
    limit: Annotated[int, Meta(ge=1, le=262_144)] = 65_536


class LogsResult(Result, kw_only=True):
    """Text (undecodable bytes replaced) of bytes ``offset`` to ``next`` of a file of ``size`` bytes now."""

    run: str
    job: str
    text: str
    offset: int
    next: int
    size: int
    path: str


class EventsParams(Params, kw_only=True):
    """The timeline, of one run or of all, oldest first from ``after`` or ``since``; without either the last ``limit``.

    ``since`` and ``until`` are epoch seconds.
    """

    run: RunName | None = None
    backend: Name | None = None
    after: Count | None = None
    since: Epoch | None = None
    until: Epoch | None = None
    limit: Rows = 200


class EventsResult(Result, kw_only=True):
    """A page of the timeline."""

    events: list[Event]
    next: int | None = None


class WatchParams(Params, kw_only=True):
    """A snapshot, then every change. ``since`` resumes after that sequence number if every event since is still kept,
    events of jobs included where they are wanted; else the snapshot also holds the runs that ended since.

    ``mine``: of runs of the asking user alone.
    """

    runs: Runs = []
    backend: Backends = []
    mine: bool = False
    jobs: bool = False
    since: Count | None = None


class WatchResult(Result, kw_only=True):
    """``watch`` names the subscription; ``snapshot`` is empty when it was resumed.

    ``complete`` is false if there are more rows than a message holds: read ``report``, and watch from its ``seq``.
    """

    watch: int
    seq: int
    resumed: bool
    snapshot: list[RunRow]
    complete: bool = True


class WatchEvent(Result, kw_only=True):
    """The parameters of the notification ``event``."""

    watch: int
    event: Event
    lost: int = 0


class UnwatchParams(Params, kw_only=True):
    """End a subscription of this connection."""

    watch: Count


class BlobPut(Params, kw_only=True):
    """A piece (base64) of a document of ``size`` bytes with this sha256, to the spool. Empty ``data`` asks how much
    is there.
    """

    sha256: Sha256
    size: Annotated[int, Meta(ge=1, le=MAX_EXACT)]
    offset: Count = 0
    data: Annotated[str, Meta(max_length=wire.MAX_MESSAGE_BYTES)] = ""


class BlobPutResult(Result, kw_only=True):
    """How many bytes are durable; the next piece begins there."""

    have: int
    complete: bool


class ValidateParams(Params, kw_only=True):
    """Check a workflow in the spool against a backend, without submitting it."""

    blob: Sha256
    source: Text = "workflow"
    backend: Name | None = None


class ValidateResult(Result, kw_only=True):
    """Every mistake and every warning."""

    ok: bool
    backend: str
    problems: list[ProblemRow] = []
    total: int = 0
    warnings: list[str] = []
    name: str = ""
    job_count: int = 0
    labels: dict[str, int] = {}


class SubmitParams(Params, kw_only=True):
    """Submit the workflow ``blob`` under ``token``, which the client made; the same token again is the same run.

    ``umask`` is the client's own: that of jobs where neither the document nor the backend's settings name one.
    """

    token: Token
    blob: Sha256
    source: Text = "workflow"
    backend: Name | None = None
    umask: Annotated[str, Meta(pattern=UMASK_PATTERN, max_length=4)] | None = None
    expires_s: Seconds | None = None
    client: Annotated[str, Meta(max_length=1024)] = ""


class RunCommand(Params, kw_only=True):
    """``cancel``, ``restart``, ``hold`` or ``release`` of a run; ``dry_run`` says what would be done and does
    nothing. ``label`` is for ``hold`` and ``release``: only the waiting or held jobs of that label; ``group`` (see
    `HoldGroup`) is for ``release``: only what is held in that group.
    """

    run: RunName
    backend: Name | None = None
    pass_thru: Text | None = None
    label: Name | None = None
    group: Name | None = None
    expires_s: Seconds | None = None
    dry_run: bool = False
    client: Annotated[str, Meta(max_length=1024)] = ""


class MuteParams(Params, kw_only=True):
    """``mute`` or ``unmute``: whether the notifications of the configuration tell of a run."""

    run: RunName
    backend: Name | None = None


class MuteResult(Result, kw_only=True):
    """The run, by our id, and whether it is muted now."""

    run: str
    muted: bool


class CommandsParams(Params, kw_only=True):
    """Commands, the newest first."""

    id: Name | None = None
    run: RunName | None = None
    backend: Name | None = None
    state: CommandStates = []
    user: Name | None = None
    since: Epoch | None = None
    before: Cursor | None = None
    limit: Rows = 100


class CommandsResult(Result, kw_only=True):
    """A page of commands."""

    commands: list[CommandRow]
    next: str | None = None


class CommandsWait(Params, kw_only=True):
    """Wait until a command is over, at most ``timeout_s``; the answer is the command as it then is."""

    id: Name
    timeout_s: Annotated[float, Meta(ge=0, le=3600)] = 60.0


class CommandsResolve(Params, kw_only=True):
    """A person's word on a command in doubt: it was ``done`` (as ``wms_id``), it ``failed``, or try it ``again``."""

    id: Name
    outcome: Literal["done", "failed", "again"]
    wms_id: RunName | None = None
    note: Annotated[str, Meta(max_length=1024)] = ""


class RefreshParams(Params, kw_only=True):
    """Poll now (joining a poll in flight) one backend or all, and wait for it."""

    backend: Name | None = None
    timeout_s: Annotated[float, Meta(ge=0, le=600)] = 60.0


class RefreshResult(Result, kw_only=True):
    """Backend to when it was last seen well (`None`: not yet)."""

    last_good_at: dict[str, float | None]


class HealthCheck(Result, kw_only=True):
    """One check: ``status`` is 0 (fine), 1 (warning) or 2 (critical)."""

    name: str
    status: int
    message: str


class HealthResult(Result, kw_only=True):
    """The worst of all checks, and the figures of the daemon."""

    status: int
    message: str
    checks: list[HealthCheck]
    figures: dict[str, float]


class AdminParams(Params, kw_only=True):
    """Care of the daemon's own records.

    ``accept``: take commands again after the journal was restored from a copy. ``check``: look for damage.
    ``backup``: copy journal and history now. ``vacuum``: give free pages of the history back.
    """

    act: Literal["accept", "check", "backup", "vacuum"]


class AdminResult(Result, kw_only=True):
    """What was done, a line each; ``problems`` is empty if nothing is wrong."""

    done: list[str]
    problems: list[str] = []


PARAMS: dict[str, type[Params]] = {
    "ping": Nothing,
    "version": Nothing,
    "backends": BackendsParams,
    "backend.ping": BackendPing,
    "list": ListParams,
    "report": ReportParams,
    "status": StatusParams,
    "jobs": JobsParams,
    "holds": HoldsParams,
    "logs": LogsParams,
    "events": EventsParams,
    "watch": WatchParams,
    "unwatch": UnwatchParams,
    "blob.put": BlobPut,
    "validate": ValidateParams,
    "submit": SubmitParams,
    "cancel": RunCommand,
    "restart": RunCommand,
    "hold": RunCommand,
    "release": RunCommand,
    "mute": MuteParams,
    "unmute": MuteParams,
    "commands": CommandsParams,
    "commands.wait": CommandsWait,
    "commands.resolve": CommandsResolve,
    "refresh": RefreshParams,
    "health": Nothing,
    "admin": AdminParams,
}

RESULTS: dict[str, type[Result]] = {
    "ping": PingResult,
    "version": VersionResult,
    "backends": BackendsResult,
    "backend.ping": BackendPingResult,
    "list": ListResult,
    "report": ReportResult,
    "status": StatusResult,
    "jobs": JobsResult,
    "holds": HoldsResult,
    "logs": LogsResult,
    "events": EventsResult,
    "watch": WatchResult,
    "unwatch": PingResult,
    "blob.put": BlobPutResult,
    "validate": ValidateResult,
    "submit": CommandRow,
    "cancel": CommandRow,
    "restart": CommandRow,
    "hold": CommandRow,
    "release": CommandRow,
    "mute": MuteResult,
    "unmute": MuteResult,
    "commands": CommandsResult,
    "commands.wait": CommandRow,
    "commands.resolve": CommandRow,
    "refresh": RefreshResult,
    "health": HealthResult,
    "admin": AdminResult,
}


def schema() -> dict[str, Any]:
    """The JSON Schema of every method's ``params`` and ``result`` and of the notifications."""
    types: list[Any] = [*PARAMS.values(), *RESULTS.values(), Hello, WatchEvent, Goodbye]
    refs, components = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    for definition in components.values():
        if "description" in definition:  # a docstring: before Python 3.13 it keeps the indentation of the source
            definition["description"] = inspect.cleandoc(definition["description"])
    by_type = dict(zip(types, refs, strict=True))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bpsd socket protocol",
        "methods": {m: {"params": by_type[PARAMS[m]], "result": by_type[RESULTS[m]]} for m in PARAMS},
        "notifications": {
            "hello": by_type[Hello],
            "event": by_type[WatchEvent],
            "goodbye": by_type[Goodbye],
        },
        "$defs": components,
    }


if __name__ == "__main__":
    import json

    print(json.dumps(schema(), indent=1, sort_keys=True))
