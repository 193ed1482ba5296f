"""The blocking client: standard library alone, quick to import, no threads.

What changes something is sent again after a broken connection only where that cannot do it twice: ``submit`` by its
token, commands on runs after asking whether the first one arrived.
"""

from __future__ import annotations

__all__ = ["Client"]

import time

from bpsd import wire
from bpsd.client import endpoint
from bpsd.client.connection import Connection
from bpsd.client.failures import ClientError, TimedOut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, ParamSpec, TypeVar

    from bpsd.client.sync_watch import Watch

    Row = dict[str, Any]
    Names = Sequence[str]
    T = TypeVar("T")
    P = ParamSpec("P")


class Client(Connection):
    """The daemon's methods, one by one; answers are dictionaries with the fields of `bpsd.messages`.

    Parameters
    ----------
    socket_path : `str`, optional
        By default ``$BPSD_SOCKET``, else the user's own daemon, else the system's.
    timeout_s : `float`, optional
        Seconds that one request may take.
    name : `str`, optional
        Who we are, for the daemon's audit: a program and its arguments. The user's name it has from the kernel.
    """

    # -- questions ---------------------------------------------------------------------------------------------------

    def ping(self) -> Row:
        """Ask whether the daemon is there."""
        return self.call("ping")

    def version(self) -> Row:
        """Ask which daemon this is."""
        return self.call("version")

    def health(self) -> Row:
        """Ask the daemon how it is."""
        return self.call("health")

    def backends(self, backend: str | None = None, *, fields: bool = False) -> Row:
        """Ask how the backends are; with ``fields``, what each does with every field of a job."""
        return self.call("backends", backend=backend, fields=fields)

    def backend_ping(self, backend: str | None = None, *, pass_thru: str | None = None) -> Row:
        """Have the daemon ask one WMS, or all, whether it is up and lets us in."""
        return self.call("backend.ping", backend=backend, pass_thru=pass_thru)

    def list_runs(
        self,
        *,
        backend: Names = (),
        user: Names = (),
        state: Names = (),
        label: str | None = None,
        hist: float | None = None,
        pattern: str | None = None,
        active: bool = False,
        mine: bool = False,
        commandable: bool = False,
        limit: int | None = None,
        after: str | None = None,
    ) -> Row:
        """Ask for the ids of runs, one page; see `bpsd.messages.Filters` for the conditions."""
        return self.call(
            "list",
            backend=endpoint.names(backend),
            user=endpoint.names(user),
            state=endpoint.names(state),
            label=label,
            hist=hist,
            pattern=pattern,
            active=active,
            mine=mine,
            commandable=commandable,
            limit=limit,
            after=after,
        )

    def report(
        self,
        run: str | None = None,
        *,
        backend: Names = (),
        user: Names = (),
        state: Names = (),
        label: str | None = None,
        hist: float | None = None,
        pattern: str | None = None,
        active: bool = False,
        mine: bool = False,
        max_age_s: float | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Row:
        """Ask for runs with their counts, one page; with ``run``, for that one in full."""
        return self.call(
            "report",
            run=run,
            backend=endpoint.names(backend),
            user=endpoint.names(user),
            state=endpoint.names(state),
            label=label,
            hist=hist,
            pattern=pattern,
            active=active,
            mine=mine,
            max_age_s=max_age_s,
            limit=limit,
            after=after,
        )

    def status(self, run: str, *, backend: str | None = None, max_age_s: float | None = None) -> Row:
        """Ask for the state of one run."""
        return self.call("status", run=run, backend=backend, max_age_s=max_age_s)

    def jobs(
        self,
        run: str,
        *,
        backend: str | None = None,
        state: Names = (),
        label: str | None = None,
        pattern: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Row:
        """Ask for the jobs of a run, one page."""
        return self.call(
            "jobs",
            run=run,
            backend=backend,
            state=endpoint.names(state),
            label=label,
            pattern=pattern,
            limit=limit,
            after=after,
        )

    def holds(
        self,
        runs: Names = (),
        *,
        group: str | None = None,
        backend: Names = (),
        user: Names = (),
        state: Names = (),
        label: str | None = None,
        pattern: str | None = None,
        mine: bool = False,
        commandable: bool = False,
        limit: int | None = None,
        after: str | None = None,
    ) -> Row:
        """Ask what is on hold, grouped by reason, one page."""
        return self.call(
            "holds",
            runs=endpoint.names(runs),
            group=group,
            backend=endpoint.names(backend),
            user=endpoint.names(user),
            state=endpoint.names(state),
            label=label,
            pattern=pattern,
            mine=mine,
            commandable=commandable,
            limit=limit,
            after=after,
        )

    def logs(
        self,
        run: str,
        job: str,
        *,
        backend: str | None = None,
        stream: str = "stderr",
        offset: int | None = None,
        limit: int | None = None,
    ) -> Row:
        """Ask for a piece of what a job printed; a negative ``offset`` counts bytes from the end."""
        return self.call("logs", run=run, backend=backend, job=job, stream=stream, offset=offset, limit=limit)

    def events(
        self,
        run: str | None = None,
        *,
        backend: str | None = None,
        after: int | None = None,
        since: float | None = None,
        until: float | None = None,
        limit: int | None = None,
    ) -> Row:
        """Ask for a page of the timeline of one run, or of all; ``since`` and ``until`` are epoch seconds."""
        return self.call("events", run=run, backend=backend, after=after, since=since, until=until, limit=limit)

    def commands(
        self,
        id: str | None = None,
        *,
        run: str | None = None,
        backend: str | None = None,
        state: Names = (),
        user: str | None = None,
        since: float | None = None,
        before: str | None = None,
        limit: int | None = None,
    ) -> Row:
        """Ask for commands, one page, the newest first."""
        return self.call(
            "commands",
            id=id,
            run=run,
            backend=backend,
            state=endpoint.names(state),
            user=user,
            since=since,
            before=before,
            limit=limit,
        )

    def pages(self, ask: Callable[..., Row], key: str, limit: int | None, **params: Any) -> Iterator[Row]:
        """Yield the pages of ``list_runs``, ``report`` or ``jobs`` until ``limit`` rows (`None`: all) were seen."""
        after, left = None, limit
        while True:
            page = ask(limit=10_000 if left is None else min(left, 10_000), after=after, **params)
            yield page
            after = page.get("next")
            left = None if left is None else left - len(page[key])
            if not after or (left is not None and left <= 0):
                return

    def admin(self, act: str) -> Row:
        """Have the daemon care for its own records: ``accept``, ``check``, ``backup`` or ``vacuum``."""
        return self.call("admin", act=act)

    def mute(self, run: str, *, backend: str | None = None, muted: bool = True) -> Row:
        """Have nobody notified of a run any more, or (with ``muted=False``) again."""
        return self.call("mute" if muted else "unmute", run=run, backend=backend)

    def refresh(self, backend: str | None = None, *, timeout_s: float = 60.0) -> Row:
        """Have one backend, or all, polled now, and wait for it."""
        params = endpoint.given(backend=backend, timeout_s=timeout_s)
        return self.request("refresh", params, timeout_s + self.timeout_s)

    # -- documents ---------------------------------------------------------------------------------------------------

    def put_document(self, data: bytes, progress: Callable[[int, int], object] | None = None) -> str:
        """Bring a document into the daemon's spool, from where an earlier attempt ended; return its sha256.

        Parameters
        ----------
        data : `bytes`
            The document.
        progress : callable, optional
            Told the bytes that are durable there, and the size.
        """
        import binascii
        import hashlib

        if not data:
            raise ClientError("the document is empty", code="workflow_invalid", advice="nothing was sent")
        digest, size, piece = hashlib.sha256(data).hexdigest(), len(data), b""
        have = 0
        while True:
            encoded = binascii.b2a_base64(piece, newline=False).decode("ascii")
            try:
                answer = self.blob_put(digest, size, have, encoded)
            except ClientError as error:
                if not (self.hello and endpoint.is_lost(error)):
                    raise
                answer = self.patiently(None, self.blob_put, digest, size, 0)  # how much did arrive?
            have = answer["have"]
            if progress is not None:
                progress(have, size)
            if answer["complete"]:
                return digest
            piece = data[have : have + endpoint.BLOB_PIECE_BYTES]

    def blob_put(self, sha256: str, size: int, offset: int, data: str = "") -> Row:
        """Send one piece (base64) of a document; empty ``data`` asks how much is there."""
        return self.call("blob.put", sha256=sha256, size=size, offset=offset, data=data)

    def validate_document(
        self,
        data: bytes,
        *,
        source: str = "workflow",
        backend: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Row:
        """Have a workflow checked against a backend, without submitting it."""
        return self.validate(self.put_document(data, progress), source=source, backend=backend)

    def validate(self, blob: str, *, source: str = "workflow", backend: str | None = None) -> Row:
        """Have a workflow in the spool checked."""
        return self.call("validate", blob=blob, source=source, backend=backend)

    def submit_document(
        self,
        data: bytes,
        *,
        token: str | None = None,
        source: str = "workflow",
        backend: str | None = None,
        expires_s: float | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Row:
        """Submit a workflow and return the command, durable at the daemon; its ``run`` is the run's id.

        A connection that breaks in between is no harm: the same token is sent again and names the same run.

        Parameters
        ----------
        data : `bytes`
            The workflow document, YAML or JSON.
        token : `str`, optional
            The run's identity (see `bpsd.wire.new_token`); by default a new one.
        source : `str`, optional
            The document's name in error messages.
        backend : `str`, optional
            Where to; needed if there are several backends.
        expires_s : `float`, optional
            Seconds after which a command that has not begun is not tried any more.
        progress : callable, optional
            As in `put_document`.
        """
        token = token or wire.new_token()
        blob = self.put_document(data, progress)
        return self.patiently(None, self.submit, token, blob, source=source, backend=backend, expires_s=expires_s)

    def submit(
        self,
        token: str,
        blob: str,
        *,
        source: str = "workflow",
        backend: str | None = None,
        expires_s: float | None = None,
    ) -> Row:
        """Submit a workflow in the spool under a token; the same token again is the same run."""
        return self.call(
            "submit",
            token=token,
            blob=blob,
            source=source,
            backend=backend,
            umask=wire.own_umask(),
            expires_s=expires_s,
            client=self.name,
        )

    # -- commands on runs --------------------------------------------------------------------------------------------

    def cancel(self, run: str, **options: Any) -> Row:
        """Cancel a run; options as in `command`."""
        return self.command("cancel", run, **options)

    def restart(self, run: str, **options: Any) -> Row:
        """Restart a run that has ended, from where it failed; options as in `command`."""
        return self.command("restart", run, **options)

    def hold(self, run: str, **options: Any) -> Row:
        """Put a run on hold; options as in `command`."""
        return self.command("hold", run, **options)

    def release(self, run: str, **options: Any) -> Row:
        """Release a held run; options as in `command`."""
        return self.command("release", run, **options)

    def command(
        self,
        verb: str,
        run: str,
        *,
        backend: str | None = None,
        pass_thru: str | None = None,
        label: str | None = None,
        group: str | None = None,
        expires_s: float | None = None,
        dry_run: bool = False,
    ) -> Row:
        """Give a command on a run and return it as accepted, durable at the daemon (`wait_command` waits for its end).

        ``label`` is for ``hold`` and ``release``: only jobs of that label; ``group`` is for ``release``: only what is
        held in that group of `holds`.

        If the connection breaks before the answer, the daemon is asked, by a mark in the command's ``client``, whether
        it has the command, and told again only if not.
        """
        mark = f"{self.name} #{wire.new_token()[:8]}"
        params = endpoint.given(
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

        def attempt() -> Row:
            nonlocal sent
            if sent and not dry_run:
                known: list[Row] = self.commands(run=run, backend=backend, limit=100)["commands"]
                for row in known:
                    if row["client"] == mark:
                        return row
            sent = True
            return self.request(verb, params, self.timeout_s)

        return self.patiently(None, attempt)

    def wait_command(
        self,
        id: str,
        *,
        timeout_s: float | None = None,
        seen: Callable[[Row], object] | None = None,
        lost: Callable[[ClientError], object] | None = None,
    ) -> Row:
        """Wait until a command is over or in doubt, and return it as it then is.

        Parameters
        ----------
        id : `str`
            The command's id.
        timeout_s : `float`, optional
            Seconds after which it is returned as it is; by default without limit.
        seen : callable, optional
            Told the command now and then, while it is not over; its ``note`` says what it waits for.
        lost : callable, optional
            Told the error each time that the daemon could not be reached; the command does not depend on us.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        slice_s = endpoint.COMMAND_SLICE_S / 32
        while True:
            left = slice_s if deadline is None else max(0.0, deadline - time.monotonic())
            row = self.patiently(lost, self.commands_wait, id, timeout_s=min(left, slice_s))
            if row["state"] in endpoint.SETTLED:
                return row
            if row["state"] == "IN_DOUBT" and slice_s == endpoint.COMMAND_SLICE_S:
                return row  # it was given half a minute to be cleared up by itself
            if deadline is not None and time.monotonic() >= deadline:
                return row
            if seen is not None:
                seen(row)
            slice_s = min(slice_s * 2, endpoint.COMMAND_SLICE_S)

    def commands_wait(self, id: str, *, timeout_s: float = 60.0) -> Row:
        """Wait for the end of a command in one request, at most ``timeout_s``."""
        params = {"id": id, "timeout_s": timeout_s}
        return self.request("commands.wait", params, timeout_s + self.timeout_s)

    def commands_resolve(self, id: str, outcome: str, *, wms_id: str | None = None, note: str | None = None) -> Row:
        """Say what became of a command in doubt: ``done``, ``failed`` or ``again``."""
        return self.call("commands.resolve", id=id, outcome=outcome, wms_id=wms_id, note=note)

    def patiently(
        self, lost: Callable[[ClientError], object] | None, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do ``act``, again if a daemon that we have met went away, until it is back or long enough gone.

        Parameters
        ----------
        lost : callable or `None`
            Told the error each time that the daemon could not be reached.
        act : callable
            What can be repeated without harm, with its arguments.
        """
        pause, deadline = endpoint.RETRY_FIRST_S, None
        while True:
            try:
                return act(*args, **kwargs)
            except ClientError as error:
                now = time.monotonic()
                deadline = deadline or now + endpoint.RETURN_WITHIN_S
                if not (self.hello and endpoint.is_lost(error)) or now >= deadline:
                    raise
                if lost is not None:
                    lost(error)
            self.close()
            time.sleep(self.within(pause, "looking for the daemon"))
            pause = min(pause * 2, endpoint.RETRY_MOST_S)

    # -- watching ----------------------------------------------------------------------------------------------------

    def watch(
        self,
        runs: Names = (),
        *,
        backend: Names = (),
        mine: bool = False,
        jobs: bool = False,
        since: int | None = None,
        patience_s: float | None = None,
    ) -> Watch:
        """Follow runs: iterate over what is returned; see `bpsd.client.sync_watch.Watch`."""
        from bpsd.client.sync_watch import Watch

        return Watch(
            self.clone(),
            endpoint.names(runs),
            backend=endpoint.names(backend),
            mine=mine,
            jobs=jobs,
            since=since,
            patience_s=patience_s,
        )

    def wait(
        self,
        runs: Iterable[str],
        *,
        until: Names = ("done",),
        any_of: bool = False,
        timeout_s: float | None = None,
        seen: Callable[[Row], object] | None = None,
    ) -> dict[str, str]:
        """Wait until runs have reached a state, without polling; survives a daemon that is restarted.

        Parameters
        ----------
        runs : `~collections.abc.Iterable` [`str`]
            Runs, by any of their names.
        until : sequence of `str`
            Names of states, or ``done``: any state in which a run stays.
        any_of : `bool`
            The first run that reaches it ends the wait; by default all must.
        timeout_s : `float`, optional
            Seconds; by default without limit.
        seen : callable, optional
            Told every item of the watch.

        Returns
        -------
        states : `dict` [`str`, `str`]
            Our id of each run to its state.

        Raises
        ------
        TimedOut
            The time is over; ``fields["states"]`` holds the states as they are.
        """
        from bpsd.client.goals import Goal

        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        rows = [self.status(run) for run in runs]
        goal = Goal([row["id"] for row in rows], endpoint.names(until), any_of=any_of)
        for row in rows:
            goal.see_row(row)
        if goal.is_over():
            return goal.states
        with self.watch(goal.to_watch()) as watch:
            while not goal.is_over():
                item = watch.read(None if deadline is None else deadline - time.monotonic())
                if item is None:
                    raise TimedOut(goal.unmet(), fields={"states": goal.states})
                for run in goal.see(item):
                    goal.see_row(self.patiently(None, self.status, run))
                if seen is not None:
                    seen(item)
        return goal.states
