"""The asynchronous client: typed answers, any number of requests in flight on one connection, watches beside them."""

from __future__ import annotations

__all__ = ["AsyncClient", "AsyncWatch", "Away", "Back", "Snapshot", "WatchItem"]

import binascii
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

import anyio
import msgspec
from anyio.abc import TaskGroup

from bpsd import __version__, messages, wire
from bpsd.client import endpoint
from bpsd.client.aio_link import Link, Subscription, open_link
from bpsd.client.failures import ClientError, ConnectionLost, TimedOut
from bpsd.client.goals import DONE, Goal

UNWATCH_S = 1.0
"""Seconds that ending a watch may take; the daemon drops what it tells to nobody anyway."""

T = TypeVar("T")
Names = Sequence[str]
RunVerb = Literal["cancel", "restart", "hold", "release"]


class Snapshot(msgspec.Struct, frozen=True):
    """All that is watched, as it is at ``seq``: the first item of a watch, and again whenever events were missed.

    ``runs`` are the live runs, named ones and, after a break, those that ended in it; ``complete`` is false if there
    are more than a message holds.
    """

    seq: int
    runs: list[messages.RunRow]
    complete: bool = True


class Away(msgspec.Struct, frozen=True):
    """The daemon went away; it is looked for again and again."""

    error: str


class Back(msgspec.Struct, frozen=True):
    """The daemon is back."""

    away_s: float


WatchItem = Snapshot | messages.Event | Away | Back


class AsyncClient:
    """A connection to the daemon, for use as ``async with AsyncClient() as bpsd``.

    Answers are the types of `bpsd.messages`; errors those of `bpsd.client.failures`. Methods may be called from several
    tasks at once. What only reads is sent again, once, when the connection turns out to be broken.

    Parameters
    ----------
    socket_path : `str`, optional
        By default ``$BPSD_SOCKET``, else the user's own daemon, else the system's.
    timeout_s : `float`, optional
        Seconds that one request may take.
    name : `str`, optional
        Who we are, for the daemon's audit.
    """

    def __init__(
        self,
        socket_path: str | None = None,
        *,
        timeout_s: float = endpoint.CALL_TIMEOUT_S,
        name: str | None = None,
    ) -> None:
        self.socket_path, self.chosen = endpoint.find_socket(socket_path, os.environ, os.getuid())
        self.timeout_s = timeout_s
        self.name = (name or f"python client {__version__}")[:900]
        self._link: Link | None = None
        self._connecting = anyio.Lock()
        self._group: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<AsyncClient {self.socket_path}, {self._link or 'not connected'}>"

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        try:
            await self.connect()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        group, self._group = self._group, None
        assert group is not None
        group.cancel_scope.cancel()
        # The group is not told of an error in the block: it would wrap it in an ExceptionGroup, and it is the caller's.
        await group.__aexit__(None, None, None)

    # -- requests ----------------------------------------------------------------------------------------------------

    async def connect(self) -> messages.Hello:
        """Connect, if there is no connection, and return the daemon's ``hello``."""
        return (await self._linked()).hello

    async def _linked(self) -> Link:
        if self._group is None:
            raise RuntimeError("AsyncClient is used outside of `async with`")
        async with self._connecting:
            if self._link is None or self._link.broken is not None:
                self._link = await open_link(self.socket_path, self.chosen)
                self._group.start_soon(self._link.run, name="bpsd client reader")
            return self._link

    async def call(self, method: str, params: messages.Params | None = None, *, timeout_s: float | None = None) -> Any:
        """Send any request; the result has the type that `bpsd.messages.RESULTS` tells.

        Raises
        ------
        RemoteError
            The daemon refused it.
        ConnectionLost
            The connection broke and the method may not be repeated blindly.
        TimedOut
            No answer came in time.
        """
        limit = self.timeout_s if timeout_s is None else timeout_s
        kept = self._link is not None and self._link.broken is None
        try:
            with anyio.fail_after(limit):
                link = await self._linked()
                try:
                    answer = await link.request(method, params or messages.Nothing())
                except ConnectionLost:
                    if not kept or method not in endpoint.REPEATABLE:
                        raise
                    answer = await (await self._linked()).request(method, params or messages.Nothing())
        except TimeoutError as exc:
            raise TimedOut(f"{method}: no answer from {self.socket_path} within {limit:g} s") from exc
        return msgspec.json.decode(answer, type=messages.RESULTS[method])

    async def _ask(self, method: str, params: messages.Params | None, result: type[T], extra_s: float = 0.0) -> T:
        assert result is messages.RESULTS[method]
        return cast(T, await self.call(method, params, timeout_s=self.timeout_s + extra_s))

    async def _patiently(self, act: Callable[[], Awaitable[T]]) -> T:
        """Do ``act``, again if the daemon went away, until it is back or long enough gone."""
        pause, deadline = endpoint.RETRY_FIRST_S, None
        while True:
            try:
                return await act()
            except ClientError as error:
                now = time.monotonic()
                deadline = deadline or now + endpoint.RETURN_WITHIN_S
                if not endpoint.is_lost(error) or now >= deadline:
                    raise
            await anyio.sleep(pause)
            pause = min(pause * 2, endpoint.RETRY_MOST_S)

    # -- questions ---------------------------------------------------------------------------------------------------

    async def ping(self) -> messages.PingResult:
        """Ask whether the daemon is there."""
        return await self._ask("ping", None, messages.PingResult)

    async def version(self) -> messages.VersionResult:
        """Ask which daemon this is."""
        return await self._ask("version", None, messages.VersionResult)

    async def health(self) -> messages.HealthResult:
        """Ask the daemon how it is."""
        return await self._ask("health", None, messages.HealthResult)

    async def backends(self, backend: str | None = None, *, fields: bool = False) -> messages.BackendsResult:
        """Ask how the backends are; with ``fields``, what each does with every field of a job."""
        params = messages.BackendsParams(backend=backend, fields=fields)
        return await self._ask("backends", params, messages.BackendsResult)

    async def backend_ping(
        self, backend: str | None = None, *, pass_thru: str | None = None
    ) -> messages.BackendPingResult:
        """Have the daemon ask one WMS, or all, whether it is up and lets us in."""
        params = messages.BackendPing(backend=backend, pass_thru=pass_thru)
        return await self._ask("backend.ping", params, messages.BackendPingResult)

    async def list_runs(self, params: messages.ListParams | None = None) -> messages.ListResult:
        """Ask for the ids of runs, one page."""
        return await self._ask("list", params or messages.ListParams(), messages.ListResult)

    async def report(self, params: messages.ReportParams | str | None = None) -> messages.ReportResult:
        """Ask for runs with their counts, one page; a `str` names one run, to be shown in full."""
        if isinstance(params, str):
            params = messages.ReportParams(run=params)
        return await self._ask("report", params or messages.ReportParams(), messages.ReportResult)

    async def status(
        self, run: str, *, backend: str | None = None, max_age_s: float | None = None
    ) -> messages.StatusResult:
        """Ask for the state of one run."""
        params = messages.StatusParams(run=run, backend=backend, max_age_s=max_age_s)
        return await self._ask("status", params, messages.StatusResult)

    async def jobs(self, params: messages.JobsParams | str) -> messages.JobsResult:
        """Ask for the jobs of a run, one page."""
        if isinstance(params, str):
            params = messages.JobsParams(run=params)
        return await self._ask("jobs", params, messages.JobsResult)

    async def holds(self, params: messages.HoldsParams | None = None) -> messages.HoldsResult:
        """Ask what is on hold, grouped by reason, one page."""
        return await self._ask("holds", params or messages.HoldsParams(), messages.HoldsResult)

    async def logs(self, params: messages.LogsParams) -> messages.LogsResult:
        """Ask for a piece of what a job printed."""
        return await self._ask("logs", params, messages.LogsResult)

    async def events(self, params: messages.EventsParams | None = None) -> messages.EventsResult:
        """Ask for a page of the timeline of one run, or of all."""
        return await self._ask("events", params or messages.EventsParams(), messages.EventsResult)

    async def commands(self, params: messages.CommandsParams | None = None) -> messages.CommandsResult:
        """Ask for commands, one page, the newest first."""
        return await self._ask("commands", params or messages.CommandsParams(), messages.CommandsResult)

    async def admin(self, act: Literal["accept", "check", "backup", "vacuum"]) -> messages.AdminResult:
        """Have the daemon care for its own records."""
        return await self._ask("admin", messages.AdminParams(act=act), messages.AdminResult)

    async def mute(self, run: str, *, backend: str | None = None, muted: bool = True) -> messages.MuteResult:
        """Have nobody notified of a run any more, or (with ``muted=False``) again."""
        params = messages.MuteParams(run=run, backend=backend)
        return await self._ask("mute" if muted else "unmute", params, messages.MuteResult)

    async def refresh(self, backend: str | None = None, *, timeout_s: float = 60.0) -> messages.RefreshResult:
        """Have one backend, or all, polled now, and wait for it."""
        params = messages.RefreshParams(backend=backend, timeout_s=timeout_s)
        return await self._ask("refresh", params, messages.RefreshResult, timeout_s)

    # -- documents ---------------------------------------------------------------------------------------------------

    async def put_document(self, data: bytes, progress: Callable[[int, int], object] | None = None) -> str:
        """Bring a document into the daemon's spool, from where an earlier attempt ended; return its sha256."""
        if not data:
            raise ClientError("the document is empty", code="workflow_invalid", advice="nothing was sent")
        digest = await anyio.to_thread.run_sync(lambda: hashlib.sha256(data).hexdigest())
        size, have, piece = len(data), 0, b""
        while True:
            encoded = binascii.b2a_base64(piece, newline=False).decode("ascii")
            params = messages.BlobPut(sha256=digest, size=size, offset=have, data=encoded)
            try:
                answer = await self._ask("blob.put", params, messages.BlobPutResult)
            except ClientError as error:
                if not endpoint.is_lost(error):
                    raise
                params = messages.BlobPut(sha256=digest, size=size)  # how much did arrive?
                answer = await self._patiently(partial(self._ask, "blob.put", params, messages.BlobPutResult))
            have = answer.have
            if progress is not None:
                progress(have, size)
            if answer.complete:
                return digest
            piece = data[have : have + endpoint.BLOB_PIECE_BYTES]

    async def validate_document(
        self, data: bytes, *, source: str = "workflow", backend: str | None = None
    ) -> messages.ValidateResult:
        """Have a workflow checked against a backend, without submitting it."""
        params = messages.ValidateParams(blob=await self.put_document(data), source=source, backend=backend)
        return await self._ask("validate", params, messages.ValidateResult)

    async def submit_document(
        self,
        data: bytes,
        *,
        token: str | None = None,
        source: str = "workflow",
        backend: str | None = None,
        expires_s: float | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> messages.CommandRow:
        """Submit a workflow and return the command, durable at the daemon.

        As `bpsd.client.sync.Client.submit_document`: the same token is sent again when the connection breaks.
        """
        params = messages.SubmitParams(
            token=token or wire.new_token(),
            blob=await self.put_document(data, progress),
            source=source,
            backend=backend,
            umask=await anyio.to_thread.run_sync(wire.own_umask),
            expires_s=expires_s,
            client=self.name,
        )
        return await self._patiently(lambda: self._ask("submit", params, messages.CommandRow))

    # -- commands on runs --------------------------------------------------------------------------------------------

    async def command(
        self,
        verb: RunVerb,
        run: str,
        *,
        backend: str | None = None,
        pass_thru: str | None = None,
        label: str | None = None,
        group: str | None = None,
        expires_s: float | None = None,
        dry_run: bool = False,
    ) -> messages.CommandRow:
        """Give a command on a run, once, whatever happens to the connection; as `bpsd.client.sync.Client.command`."""
        mark = f"{self.name} #{wire.new_token()[:8]}"
        params = messages.RunCommand(
            run=run,
            backend=backend,
            pass_thru=pass_thru,
            label=label,
            group=group,
            expires_s=expires_s,
            dry_run=dry_run,
            client=mark,
        )
        sent = False

        async def attempt() -> messages.CommandRow:
            nonlocal sent
            if sent and not dry_run:
                known = await self.commands(messages.CommandsParams(run=run, backend=backend))
                for row in known.commands:
                    if row.client == mark:
                        return row
            sent = True
            return await self._ask(verb, params, messages.CommandRow)

        return await self._patiently(attempt)

    async def cancel(self, run: str, **options: Any) -> messages.CommandRow:
        """Cancel a run; options as in `command`."""
        return await self.command("cancel", run, **options)

    async def restart(self, run: str, **options: Any) -> messages.CommandRow:
        """Restart a run that has ended, from where it failed; options as in `command`."""
        return await self.command("restart", run, **options)

    async def hold(self, run: str, **options: Any) -> messages.CommandRow:
        """Put a run on hold; options as in `command`."""
        return await self.command("hold", run, **options)

    async def release(self, run: str, **options: Any) -> messages.CommandRow:
        """Release a held run; options as in `command`."""
        return await self.command("release", run, **options)

    async def wait_command(self, id: str) -> messages.CommandRow:
        """Wait until a command is over, or has been in doubt for a while; cancel the scope to give up."""
        slice_s = endpoint.COMMAND_SLICE_S / 32
        while True:
            params = messages.CommandsWait(id=id, timeout_s=slice_s)
            row = await self._patiently(partial(self._ask, "commands.wait", params, messages.CommandRow, slice_s))
            if row.state in endpoint.SETTLED or (row.state == "IN_DOUBT" and slice_s == endpoint.COMMAND_SLICE_S):
                return row
            slice_s = min(slice_s * 2, endpoint.COMMAND_SLICE_S)

    async def commands_resolve(
        self, id: str, outcome: Literal["done", "failed", "again"], *, wms_id: str | None = None, note: str = ""
    ) -> messages.CommandRow:
        """Say what became of a command in doubt."""
        params = messages.CommandsResolve(id=id, outcome=outcome, wms_id=wms_id, note=note)
        return await self._ask("commands.resolve", params, messages.CommandRow)

    # -- watching ----------------------------------------------------------------------------------------------------

    def watch(
        self,
        runs: Names = (),
        *,
        backend: Names = (),
        mine: bool = False,
        jobs: bool = False,
        since: int | None = None,
    ) -> AsyncWatch:
        """Follow runs: ``async with client.watch() as watch: async for item in watch``."""
        what = messages.WatchParams(
            runs=endpoint.names(runs), backend=endpoint.names(backend), mine=mine, jobs=jobs, since=since
        )
        return AsyncWatch(self, what)

    async def wait(self, runs: Iterable[str], *, until: Names = (DONE,), any_of: bool = False) -> dict[str, str]:
        """Wait until runs have reached a state; returns our id of each to its state. Cancel the scope to give up."""
        rows = [await self.status(run) for run in runs]
        goal = Goal([row.id for row in rows], endpoint.names(until), any_of=any_of)
        for row in rows:
            goal.see_row({"id": row.id, "state": row.state})
        if goal.is_over():
            return goal.states
        async with self.watch(goal.to_watch()) as watch:
            while not goal.is_over():
                item = await anext(watch)
                if isinstance(item, Snapshot):
                    shown = [{"id": row.id, "state": row.state} for row in item.runs]
                    for run in goal.see({"kind": "snapshot", "runs": shown}):
                        status = await self._patiently(partial(self.status, run))
                        goal.see_row({"id": status.id, "state": status.state})
                elif isinstance(item, messages.Event):
                    goal.see({"kind": item.kind, "run": item.run, "data": item.data})
        return goal.states


class AsyncWatch:
    """A subscription: a snapshot, then every event, in order and without holes, through restarts of the daemon.

    Made by `AsyncClient.watch`; an asynchronous context manager and iterator over `WatchItem`.
    """

    def __init__(self, client: AsyncClient, what: messages.WatchParams) -> None:
        self.seq = what.since
        """The last sequence number seen."""
        self._client, self._what = client, what
        self._link: Link | None = None
        self._id = 0
        self._subscription = Subscription()
        self._away_since: float | None = None
        self._ready: list[WatchItem] = []

    def __repr__(self) -> str:
        state = "daemon away" if self._link is None else f"at {self.seq}"
        return f"<AsyncWatch of {', '.join(self._what.runs) or 'all runs'}, {state}>"

    async def __aenter__(self) -> Self:
        try:
            await self._subscribe()
        except ClientError as error:
            self._lose(error)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._unsubscribe()
        self._link = None

    def __aiter__(self) -> AsyncIterator[WatchItem]:
        return self

    async def __anext__(self) -> WatchItem:
        while not self._ready:
            if self._link is None:
                await self._return()
            else:
                await self._listen()
        return self._ready.pop(0)

    async def _subscribe(self) -> None:
        link = await self._client._linked()  # noqa: SLF001  # the watch is a part of its client
        self._subscription = Subscription()
        params = msgspec.structs.replace(self._what, since=self.seq)
        with anyio.fail_after(self._client.timeout_s):
            answer = await link.request("watch", params, self._subscription)
        result = msgspec.json.decode(answer, type=messages.WatchResult)
        self._link, self._id = link, result.watch
        if not result.resumed:
            self.seq = result.seq
            self._ready.append(Snapshot(seq=result.seq, runs=result.snapshot, complete=result.complete))

    async def _unsubscribe(self) -> None:
        if self._link is None or self._link.broken is not None:
            return
        self._link.forget(self._id)
        with anyio.move_on_after(UNWATCH_S, shield=True):
            try:
                await self._link.request("unwatch", messages.UnwatchParams(watch=self._id))
            except ClientError:
                pass  # the connection broke: then the subscription is over as well

    async def _listen(self) -> None:
        inbox = self._subscription
        if inbox.lost:
            # Some of what happened was dropped on the way: go on after what came last.
            await self._unsubscribe()
            self._link = None
            await self._return()
        elif inbox.events:
            event = inbox.events.popleft()
            self.seq = event.seq
            self._ready.append(event)
        elif inbox.error is not None:
            self._lose(inbox.error)
        else:
            inbox.changed = anyio.Event()
            await inbox.changed.wait()

    def _lose(self, error: ClientError) -> None:
        if not endpoint.is_lost(error):
            raise error
        self._link, self._away_since = None, time.monotonic()
        self._ready.append(Away(error=error.message))

    async def _return(self) -> None:
        pause = endpoint.RETRY_FIRST_S
        while True:
            here = len(self._ready)
            try:
                await self._subscribe()
            except (ClientError, TimeoutError) as error:
                if isinstance(error, ClientError) and not endpoint.is_lost(error):
                    raise
                self._away_since = self._away_since or time.monotonic()
                await anyio.sleep(pause)
                pause = min(pause * 2, endpoint.RETRY_MOST_S)
                continue
            if self._away_since is not None:
                self._ready.insert(here, Back(away_s=time.monotonic() - self._away_since))
                self._away_since = None
            return
