"""A small daemon on a real Unix socket, with answers that a test scripts: the other end for tests of the clients.

Every request is decoded by `bpsd.messages`, so that a client which says what the daemon would refuse fails here too,
and every answer is one of its types. Each connection has a thread; nothing is shared with the code under test but the
contract.
"""

from __future__ import annotations

__all__ = ["FakeDaemon", "Hangup", "backend_row", "command_row", "event", "run_row", "status_of"]

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bpsd import __version__, messages, wire
from bpsd.errors import BpsdError, InvalidParams, RunNotFound
from bpsd.models import WmsStates

NOW = 1_780_000_000.0
"""The daemon's clock stands still."""

Answer = Callable[[Any], Any]


class Hangup(Exception):
    """Raised by an answer: close the connection instead of answering."""


def run_row(id: str = "rbcdfghjk", state: str = "RUNNING", **fields: Any) -> messages.RunRow:
    """A row of a run with plausible fields."""
    known: dict[str, Any] = {
        "id": id,
        "backend": "here",
        "wms_id": "1234.0",
        "name": f"u_alice_DRP_{id}",
        "state": state,
        "percent": 40,
        "total": 10,
        "counts": {"SUCCEEDED": 4, "RUNNING": 2, "UNREADY": 4},
        "operator": "alice",
        "project": "dev",
        "campaign": "quick",
        "payload": "DRP",
        "path": "/data/submit/1",
        "observed_at": NOW - 3,
        "source": "log",
    }
    return messages.RunRow(**(known | fields))


def backend_row(name: str = "here", **fields: Any) -> messages.BackendRow:
    """A backend that is well."""
    known: dict[str, Any] = {
        "name": name,
        "uid": f"uid-{name}",
        "type": "local",
        "state": "up",
        "last_good_at": NOW - 3,
        "last_attempt_at": NOW - 3,
        "next_poll_at": NOW + 7,
        "interval_s": 10.0,
        "poll_cost_s": 0.01,
        "polls": 5,
    }
    return messages.BackendRow(**(known | fields))


def command_row(verb: str = "cancel", state: str = "DONE", **fields: Any) -> messages.CommandRow:
    """A command as the daemon would have it."""
    known: dict[str, Any] = {
        "id": "c1",
        "verb": verb,
        "state": state,
        "backend": "here",
        "run": "rbcdfghjk",
        "uid": 1000,
        "pid": 4242,
        "user": "alice",
        "accepted_at": NOW - 1,
    }
    return messages.CommandRow(**(known | fields))


def event(seq: int, kind: str, run: str | None = None, **data: Any) -> messages.Event:
    """An event now."""
    return messages.Event(seq=seq, time=NOW, kind=kind, run=run, backend="here", data=data)


def status_of(row: messages.RunRow) -> messages.StatusResult:
    """The status that belongs to a row."""
    return messages.StatusResult(
        id=row.id,
        backend=row.backend,
        wms_id=row.wms_id,
        name=row.name,
        state=row.state,
        code=int(WmsStates[row.state]),
        attempt=row.attempt,
        percent=row.percent,
        note=row.note,
        last_known=row.last_known,
        last_known_at=row.last_known_at,
        observed_at=row.observed_at,
        source=row.source,
        seq=7,
    )


class FakeDaemon:
    """The daemon. ``rows`` and ``backends`` answer the reads; ``answers[method]`` replaces the answer of a method."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, messages.RunRow] = {}
        self.backend_rows = [backend_row()]
        self.jobs: list[messages.JobRow] = []
        self.holds: list[messages.HoldGroup] = []
        self.blobs: dict[str, bytearray] = {}
        self.commands: dict[str, messages.CommandRow] = {}
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, Any]] = []
        self.protocol = wire.PROTOCOL_VERSION
        self.greeting: bytes | None = None
        self.seq = 7
        self.events: list[messages.Event] = []
        self.resumes = True
        """Whether a watch may go on from a sequence number."""
        self.connections_made = 0
        self._changed = threading.Condition()
        self._telling = threading.RLock()  # an event of a watch never overtakes the answer that names the watch
        self._watchers: list[tuple[socket.socket, int]] = []
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen; as a daemon after a crash does, take away a stale socket."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen(16)
        self._listener = listener
        self._begin(self._accept, listener)

    def stop(self) -> None:
        """Die: nothing is said to anybody, and the socket stays where it is."""
        with self._changed:
            listener, self._listener = self._listener, None
            doomed, self._open, self._watchers = self._open, set(), []
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
            listener.close()
        for connection in doomed:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(10)
                assert not thread.is_alive()
        self._threads = [t for t in self._threads if t is threading.current_thread()]

    def _begin(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._changed:
                if self._listener is not listener:
                    connection.close()
                    return
                self._open.add(connection)
                self.connections_made += 1
                self._changed.notify_all()
            self._begin(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as lines:
                connection.sendall(self.greeting if self.greeting is not None else self._hello())
                for line in lines:
                    request = msgspec.json.decode(line)
                    assert set(request) == {"jsonrpc", "id", "method", "params"}, request
                    with self._telling if request["method"] == "watch" else contextlib.nullcontext():
                        connection.sendall(self._reply(connection, request))
        except (OSError, Hangup):
            pass
        finally:
            with self._changed:
                self._open.discard(connection)
                self._watchers = [w for w in self._watchers if w[0] is not connection]

    def _hello(self) -> bytes:
        hello = messages.Hello(
            version=__version__,
            protocol=self.protocol,
            pid=4242,
            mode="user",
            max_message_bytes=wire.MAX_MESSAGE_BYTES,
        )
        return _notification("hello", hello)

    # -- answering ---------------------------------------------------------------------------------------------------

    def _reply(self, connection: socket.socket, request: dict[str, Any]) -> bytes:
        method = request["method"]
        try:
            try:
                params = msgspec.convert(request["params"], messages.PARAMS[method], strict=True)
            except msgspec.ValidationError as error:
                raise InvalidParams(f"{method}: {error}") from error
            with self._changed:
                self.requests.append((method, params))
                self._changed.notify_all()
            if isinstance(params, messages.WatchParams) and "watch" not in self.answers:
                return self._watch(connection, request["id"], params)
            answer = self.answers.get(method) or getattr(self, "_" + method.replace(".", "_"))
            result = answer(params)
            assert isinstance(result, messages.RESULTS[method]), (method, result)
            return _response(request["id"], result)
        except BpsdError as error:
            body = {"code": error.number, "message": error.message, "data": error.data()}
            return msgspec.json.encode({"jsonrpc": "2.0", "id": request["id"], "error": body}) + b"\n"

    def _find(self, run: str) -> messages.RunRow:
        for row in self.rows.values():
            if run in (row.id, row.wms_id, row.path, row.token):
                return row
        raise RunNotFound(f"no run is called {run}", advice="did you mean rbcdfghjk?", nearest=[*self.rows])

    def _ping(self, params: messages.Nothing) -> messages.PingResult:
        return messages.PingResult(time=NOW)

    def _version(self, params: messages.Nothing) -> messages.VersionResult:
        return messages.VersionResult(
            version=__version__,
            protocol=self.protocol,
            python="3.11.7",
            pid=4242,
            mode="user",
            uid=1000,
            socket=str(self.path),
            state_dir="/state",
            config=None,
            started_at=NOW - 100,
        )

    def _backends(self, params: messages.BackendsParams) -> messages.BackendsResult:
        rows = [row for row in self.backend_rows if params.backend in (None, row.name)]
        return messages.BackendsResult(backends=rows, time=NOW)

    def _backend_ping(self, params: messages.BackendPing) -> messages.BackendPingResult:
        return messages.BackendPingResult(
            answers={row.name: (0, "", 0.01) for row in self.backend_rows if params.backend in (None, row.name)}
        )

    def _chosen(self, params: messages.ListParams | messages.ReportParams) -> list[messages.RunRow]:
        return [
            row
            for row in self.rows.values()
            if (not params.state or row.state in params.state)
            and (not params.backend or row.backend in params.backend)
            and not (params.active and WmsStates[row.state].is_terminal)
        ]

    def _list(self, params: messages.ListParams) -> messages.ListResult:
        rows = self._chosen(params)
        start = 0 if params.after is None else [row.id for row in rows].index(params.after) + 1
        page = rows[start : start + params.limit]
        more = page[-1].id if start + len(page) < len(rows) else None
        return messages.ListResult(
            runs=[
                messages.ListRow(id=row.id, backend=row.backend, wms_id=row.wms_id, name=row.name, state=row.state)
                for row in page
            ],
            seq=self.seq,
            next=more,
        )

    def _report(self, params: messages.ReportParams) -> messages.ReportResult:
        rows = [self._find(params.run)] if params.run else self._chosen(params)[: params.limit]
        return messages.ReportResult(
            runs=rows, seq=self.seq, time=NOW, backends={row.name: row for row in self.backend_rows}
        )

    def _status(self, params: messages.StatusParams) -> messages.StatusResult:
        return status_of(self._find(params.run))

    def _jobs(self, params: messages.JobsParams) -> messages.JobsResult:
        rows = [job for job in self.jobs if not params.state or job.state in params.state]
        start = int(params.after or 0)
        page = rows[start : start + params.limit]
        end = start + len(page)
        return messages.JobsResult(
            run=self._find(params.run).id,
            jobs=page,
            total=len(rows),
            seq=self.seq,
            next=str(end) if end < len(rows) else None,
            observed_at=NOW - 3,
            source="log",
        )

    def _holds(self, params: messages.HoldsParams) -> messages.HoldsResult:
        groups = [group for group in self.holds if params.group in (None, group.group)]
        start = int(params.after or 0)
        end = min(start + params.limit, len(groups))
        return messages.HoldsResult(
            groups=groups[start:end],
            held=sum(group.held for group in groups),
            run_count=len({run for group in groups for run in group.runs}),
            seq=self.seq,
            time=NOW,
            next=str(end) if end < len(groups) else None,
        )

    def _events(self, params: messages.EventsParams) -> messages.EventsResult:
        rows = [
            e
            for e in self.events
            if (params.after or 0) < e.seq and params.run in (None, e.run) and e.kind != "run.progress"
        ]
        return messages.EventsResult(events=rows)

    def _health(self, params: messages.Nothing) -> messages.HealthResult:
        check = messages.HealthCheck(name="backends", status=0, message="1 of 1 up")
        return messages.HealthResult(status=0, message="all is well", checks=[check], figures={"runs": 1.0})

    def _refresh(self, params: messages.RefreshParams) -> messages.RefreshResult:
        return messages.RefreshResult(last_good_at={row.name: row.last_good_at for row in self.backend_rows})

    def _blob_put(self, params: messages.BlobPut) -> messages.BlobPutResult:
        import binascii

        blob = self.blobs.setdefault(params.sha256, bytearray())
        if params.data:
            assert params.offset == len(blob), "a piece must begin where the spool ends"
            blob += binascii.a2b_base64(params.data)
        return messages.BlobPutResult(have=len(blob), complete=len(blob) == params.size)

    def _validate(self, params: messages.ValidateParams) -> messages.ValidateResult:
        return messages.ValidateResult(ok=True, backend="here", name="flow", job_count=3, labels={"isr": 2, "final": 1})

    def _submit(self, params: messages.SubmitParams) -> messages.CommandRow:
        assert params.blob in self.blobs
        for row in self.commands.values():
            if row.token == params.token:
                return msgspec.structs.replace(row, created=False)
        return self.accept("submit", token=params.token, client=params.client)

    def _cancel(self, params: messages.RunCommand) -> messages.CommandRow:
        return self._command("cancel", params)

    def _restart(self, params: messages.RunCommand) -> messages.CommandRow:
        return self._command("restart", params)

    def _hold(self, params: messages.RunCommand) -> messages.CommandRow:
        return self._command("hold", params)

    def _release(self, params: messages.RunCommand) -> messages.CommandRow:
        return self._command("release", params)

    def _mute(self, params: messages.MuteParams) -> messages.MuteResult:
        return messages.MuteResult(run=params.run, muted=True)

    def _unmute(self, params: messages.MuteParams) -> messages.MuteResult:
        return messages.MuteResult(run=params.run, muted=False)

    def _command(self, verb: str, params: messages.RunCommand) -> messages.CommandRow:
        run = self._find(params.run).id
        if params.dry_run:
            return command_row(verb, "ACCEPTED", id="", run=run, note=f"would {verb} {run}", created=False)
        return self.accept(verb, run=run, client=params.client)

    def accept(self, verb: str, **fields: Any) -> messages.CommandRow:
        """Take a command into the journal."""
        row = command_row(verb, "ACCEPTED", id=f"c{len(self.commands) + 1}", **fields)
        self.commands[row.id] = row
        return row

    def _commands(self, params: messages.CommandsParams) -> messages.CommandsResult:
        rows = [row for row in self.commands.values() if params.id in (None, row.id)]
        return messages.CommandsResult(commands=rows[::-1])

    def _commands_wait(self, params: messages.CommandsWait) -> messages.CommandRow:
        row = msgspec.structs.replace(self.commands[params.id], state="DONE", result={"wms_id": "1234.0"})
        self.commands[params.id] = row
        return row

    def _commands_resolve(self, params: messages.CommandsResolve) -> messages.CommandRow:
        return msgspec.structs.replace(self.commands[params.id], state="DONE", note=f"resolved as {params.outcome}")

    # -- watching ----------------------------------------------------------------------------------------------------

    def _watch(self, connection: socket.socket, id: int, params: messages.WatchParams) -> bytes:
        with self._changed:
            rows = [self._find(run) for run in params.runs] if params.runs else [*self.rows.values()]
            number = len(self.requests)
            resumed = params.since is not None and self.resumes
            missed = [e for e in self.events if params.since is not None and e.seq > params.since] if resumed else []
            self._watchers.append((connection, number))
            self._changed.notify_all()
        result = messages.WatchResult(watch=number, seq=self.seq, resumed=resumed, snapshot=[] if resumed else rows)
        return _response(id, result) + b"".join(_told(number, happened) for happened in missed)

    def push(self, kind: str, run: str | None = None, *, lost: int = 0, **data: Any) -> None:
        """Let something happen and tell the watchers."""
        with self._changed:
            self.seq += 1
            if kind == "run.state" and run in self.rows:
                self.rows[run].state = data["state"]
            if kind.startswith("run.") and run in self.rows:
                data["row"] = msgspec.to_builtins(self.rows[run])
            happened = event(self.seq, kind, run, **data)
            self.events.append(happened)
            watchers = [*self._watchers]
        for connection, number in watchers:
            with self._telling, contextlib.suppress(OSError):
                connection.sendall(_told(number, happened, lost))

    # -- for tests ---------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
        """Wait for something that the other side causes."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s), f"it never came about: {what}"

    def until_watched(self, count: int = 1) -> None:
        """Wait until somebody watches."""
        self.until(lambda: len(self._watchers) >= count, f"{count} watchers")

    def asked(self, method: str) -> list[Any]:
        """The parameters of every request of a method."""
        return [params for name, params in self.requests if name == method]

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeDaemon]:
        """Live as long as the block."""
        self.start()
        try:
            yield self
        finally:
            self.stop()
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()


def _response(id: int, result: Any) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": id, "result": result}) + b"\n"


def _notification(method: str, params: Any) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "method": method, "params": params}) + b"\n"


def _told(watch: int, happened: messages.Event, lost: int = 0) -> bytes:
    return _notification("event", messages.WatchEvent(watch=watch, event=happened, lost=lost))
