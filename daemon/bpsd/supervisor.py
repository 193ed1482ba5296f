"""The whole daemon: what is started in which order, what watches over it, and how it stops.

Start: lock the state folder, bind the socket (clients wait in its backlog), open the journal and the store, fill the
cache, open the backends, take up unfinished commands, answer. Stop, within ``stop.timeout_s``: take no more clients,
let what is being answered finish, leave commands as the journal has them, close the backends, write the store, close
the journal. Runs go on in any case: no adapter's run depends on this process.
"""

from __future__ import annotations

__all__ = ["Daemon"]

import asyncio
import fcntl
import gc
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from bpsd import __version__, wire
from bpsd.api.deps import Deps
from bpsd.api.table import method_table
from bpsd.api.workflows import Workflows
from bpsd.cache import Cache
from bpsd.commandlog import OPEN_STATES
from bpsd.commands.engine import VERBS, CommandEngine
from bpsd.config import BackendConfig, Config, Limits
from bpsd.errors import BpsdError, CannotStart, ConfigInvalid, WorkflowInvalid
from bpsd.events import first_number
from bpsd.journal import CommandRecord, Journal, Sighting
from bpsd.journalcheck import count_start
from bpsd.logs.events import LogEvent
from bpsd.messages import Hello
from bpsd.metrics import Metrics
from bpsd.models import RunObservation
from bpsd.monitor import Monitor
from bpsd.notifier import Notifier
from bpsd.openfiles import make_room, open_files
from bpsd.peers import Policy
from bpsd.permissions import NAMES_WAIT_S, policy_of
from bpsd.poller import Backend
from bpsd.preflight import OutletCheck, backend_problems
from bpsd.registry import adapter
from bpsd.reloading import applicable
from bpsd.scrape import Exposition
from bpsd.sdnotify import SystemdNotifier
from bpsd.server import Listener, SocketServer, open_listener
from bpsd.signals import Signals
from bpsd.spool import Spool
from bpsd.store import Store, StoreStatus
from bpsd.upkeep import DAY_S, LoopMeter, Upkeep, memory_bytes

GC_THRESHOLDS = (5_000, 5, 1_000)
"""Collections of young objects are small (1 ms, 5 ms), those of the oldest, which walk over every run, rare."""

SWITCH_INTERVAL_S = 0.0005
"""How long the loop may wait for the interpreter's lock while a thread (storage, a helper) holds it: 5 ms is Python's
own choice, and each message read or written is such a wait."""

STATUS_S = 30.0
"""How often systemd is told how things are."""

NAMES_RETRY_S = 60.0
"""How often those that nobody had are asked for again."""


class Daemon:
    """One daemon, from `run` to the end.

    Parameters
    ----------
    config : `~bpsd.config.Config`
        The configuration in force.
    reload : callable
        Reads the configuration again (in a thread); raises `~bpsd.errors.ConfigInvalid` if it has mistakes.
    signals : `~bpsd.signals.Signals`
        Installed, with what was received since.
    set_level : callable
        Sets the least important level of the log that is written.
    """

    def __init__(
        self,
        config: Config,
        *,
        config_path: str | None,
        reload: Callable[[], Config],
        signals: Signals,
        set_level: Callable[[str], None],
        log: Any,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._config_path, self._reload = config, config_path, reload
        self._signals, self._set_level = signals, set_level
        self._log, self._clock = log, clock
        self._systemd = SystemdNotifier(os.environ)
        self._metrics = Metrics(version=__version__)
        self._meter = LoopMeter(self._systemd, self._metrics.loop_delay_s.observe, self._stuck_backends, log)
        self._state = Path(config.state_dir)
        self._backends: dict[str, Backend] = {}
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._stop = anyio.Event()
        self._reload_wanted = anyio.Event()
        self._policy = Policy(os.getuid())
        self._names_unknown: list[str] = []
        self._outlets, self._asking_names = OutletCheck(log), anyio.CapacityLimiter(1)
        self._is_ready = False
        self._started_at = clock()
        self._metrics.started_at.set(self._started_at)
        self._metrics.expect_commands(VERBS, sorted({*wire.COMMAND_STATES} - OPEN_STATES))

    def __repr__(self) -> str:
        return f"<Daemon {self._config.socket} with {', '.join(self._backends) or 'no backend yet'}>"

    # -- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until a signal or `stop` ends it.

        Raises
        ------
        CannotStart
            If lock, socket, folder or file system forbid it.
        """
        loop = asyncio.get_running_loop()
        self._starting = anyio.CancelScope()

        def received(number: signal.Signals) -> None:
            loop.call_soon_threadsafe(self._signalled, number)

        self._signals.listen(received)
        try:
            with self._starting:
                async with AsyncExitStack() as stack:
                    await stack.enter_async_context(self._locked_state())
                    # The socket is there before the rest: who comes early waits in its backlog.
                    listener = await anyio.to_thread.run_sync(self._open_listener)
                    stack.callback(listener.close)
                    await self._open_storage(stack)
                    await self._serve(listener)
        finally:
            self._signals.stop_listening()
        self._log.info(LogEvent.DAEMON_STOPPED)

    def stop(self, reason: str) -> None:
        """End in good order; a start that is not over is given up."""
        if not self._stop.is_set():
            self._log.info(LogEvent.DAEMON_STOPPING, reason=reason)
            self._systemd.stopping(reason)
            self._stop.set()
            if not self._is_ready:
                self._starting.cancel()

    def _signalled(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            self._reload_wanted.set()
        else:
            self.stop(number.name)

    def _open_listener(self) -> Listener:
        mode = 0o600 if self._config.mode == "user" else 0o666
        return open_listener(self._config.socket, mode=mode, environ=os.environ, log=self._log)

    @asynccontextmanager
    async def _locked_state(self) -> AsyncIterator[None]:
        descriptor = await anyio.to_thread.run_sync(self._lock_state)
        try:
            yield
        finally:
            os.close(descriptor)

    def _lock_state(self) -> int:
        """Make the state folder ours alone: two daemons on one journal would each do what the other has done."""
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._state.chmod(0o700)
            descriptor = os.open(self._state / "bpsd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            why = "it is no folder" if isinstance(exc, FileExistsError) else exc.strerror
            raise CannotStart(
                f"the state folder {self._state} cannot be used: {why}",
                advice="set state_dir in the configuration to a folder on a local disk that you may write",
            ) from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise CannotStart(
                f"another bpsd (process {owner}) uses the state folder {self._state}",
                advice="use that one (`bpsctl version` shows it), stop it, or give this one a state_dir of its own",
            ) from exc
        with suppress(OSError):  # on a full disk we are still the one that holds the lock
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    async def _open_storage(self, stack: AsyncExitStack) -> None:
        config, network = self._config, self._config.state_on_network
        self._journal = await stack.enter_async_context(
            Journal(
                self._state / "journal.db",
                backups=config.history.backups,
                allow_network=network,
                keep_days=config.history.keep_days,
            )
        )
        status = self._journal.status
        if status.kind == "restored" and not status.older:
            self._log.error(
                LogEvent.JOURNAL_RESTORED,
                reason=status.reason,
                restored_from=status.restored_from,
                set_aside=status.set_aside,
            )
        self._store = await stack.enter_async_context(
            Store(self._state / "store.db", allow_network=network, on_emptied=self._on_emptied)
        )
        if self._store.status.kind == "emptied":
            self._tell_emptied(self._store.status)
        self._cache = Cache(
            put=self._store.put,
            identify=self._identify,
            recall=self._store.recall,
            text_chars=config.limits.text_chars,
            clock=self._clock,
        )
        loaded = await self._store.load(self._clock() - config.history.hot_days * DAY_S)
        for run_id in self._cache.load(loaded):
            self._log.warning(LogEvent.RUN_UNREADABLE, run=run_id)
        self._cache.events.begin(
            first_number(await count_start(self._journal, self._store, self._log), loaded.last_seq)
        )
        limits = config.limits
        self._spool = Spool(
            self._state / "spool", limits.spool_bytes_per_user, limits.workflow_bytes, limits.uploads_per_user
        )
        self._workflows = Workflows(self._state / "workflows")

    async def _identify(self, backend: str, seen: Sequence[RunObservation]) -> Sequence[str]:
        uid = self._backends[backend].uid
        return await self._journal.identify(
            [
                Sighting(
                    backend_uid=uid,
                    wms_id=obs.wms_id,
                    global_wms_id=obs.global_wms_id,
                    token=obs.token,
                    path=obs.path,
                    submit_time=obs.submit_time,
                    attempt=obs.attempt,
                    owner=obs.owner,
                )
                for obs in seen
            ]
        )

    def _on_emptied(self, status: StoreStatus) -> None:
        self._tell_emptied(status)
        self._group.start_soon(self._cache.put_again)

    def _tell_emptied(self, status: StoreStatus) -> None:
        self._log.error(LogEvent.STORE_EMPTIED, reason=status.reason, set_aside=status.set_aside)

    async def _serve(self, listener: Listener) -> None:
        gc.set_threshold(*GC_THRESHOLDS)
        self._make_room(self._config.limits)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        async with anyio.create_task_group() as self._group:
            self._engine = CommandEngine(
                journal=self._journal,
                cache=self._cache,
                backends=self._backends,
                settings=self._config.commands,
                log=self._log,
                clock=self._clock,
                finished=self._command_over,
                place=self._place,
            )
            await self._know_people()
            await self._outlets.check(self._config)
            self._deps = self._make_deps()
            self._server = self._make_server()
            self._notifier = self._make_notifier()
            await self._group.start(self._notifier.run)
            for settings in self._config.backends.values():
                await self._add_backend(settings)
            await self._group.start(self._engine.run)
            await self._cache.announce("daemon.start", version=__version__, pid=os.getpid())
            gc.collect()
            gc.freeze()  # what is there now stays: collections need not walk over it again
            self._group.start_soon(self._meter.run, name="loop meter")
            self._group.start_soon(self._upkeep().run, name="upkeep")
            self._exposition = Exposition(self._make_monitor(), self._config.metrics, log=self._log)
            self._group.start_soon(self._exposition.run, name="metrics")
            self._group.start_soon(self._ask_for_people, name="people")
            self._group.start_soon(self._tell_status, name="status")
            await self._group.start(self._server.serve, listener)
            self._ready()
            self._group.start_soon(self._reload_when_wanted, name="reload")
            await self._stop.wait()
            await self._wind_down()
            self._group.cancel_scope.cancel()

    def _ready(self) -> None:
        self._log.info(
            LogEvent.DAEMON_STARTED,
            version=__version__,
            mode=self._config.mode,
            socket=self._config.socket,
            state_dir=str(self._state),
            backends=list(self._backends),
        )
        self._systemd.ready(self._status())
        self._is_ready = True

    def _status(self) -> str:
        """How things are, in a line for ``systemctl status``."""
        states = Counter(backend.row().state for backend in self._backends.values())
        amiss = ", ".join(f"{count} {state}" for state, count in sorted(states.items()) if state != "up")
        said = f"backends: {len(self._backends)}{f' ({amiss})' if amiss else ''}, runs: {len(self._cache)}"
        if fault := self._server.socket_fault:
            said += f"; {fault}"
        if self._names_unknown:
            said += f"; nobody knows {', '.join(self._names_unknown[:5])}"
        if self._deps.refused:
            said += f"; the last reload was refused: {self._deps.refused}"
        if self._deps.needs_restart:
            said += f"; needs a restart: {', '.join(self._deps.needs_restart)}"
        return said

    async def _tell_status(self) -> None:
        while True:
            self._systemd.status(self._status())
            await anyio.sleep(STATUS_S)

    async def _wind_down(self) -> None:
        """Answer what was asked, then write what is known; a stuck WMS must not hold the stop up."""
        with anyio.move_on_after(self._config.stop.timeout_s):
            await self._server.stop(self._config.stop.timeout_s / 2)
            for scope in self._scopes.values():
                scope.cancel()
            try:
                await self._store.flush()
            except BpsdError as exc:
                self._log.error(LogEvent.UPKEEP_FAILED, what="flush", error=str(exc))

    # -- people ------------------------------------------------------------------------------------------------------

    async def _know_people(self) -> None:
        """Find those whom the configuration names. A name service that does not answer must not keep the daemon."""
        self._names_unknown = ["all of them: the name service does not answer"]
        with anyio.move_on_after(NAMES_WAIT_S):
            self._policy, self._names_unknown = await anyio.to_thread.run_sync(
                policy_of, self._config, os.getuid(), abandon_on_cancel=True, limiter=self._asking_names
            )
        if self._names_unknown:
            self._log.warning(LogEvent.NAMES_UNKNOWN, names=self._names_unknown, retry_s=NAMES_RETRY_S)

    async def _ask_for_people(self) -> None:
        """Ask again for names that nobody had, and look again at what was wrong: somebody may have repaired it."""
        while True:
            await anyio.sleep(NAMES_RETRY_S)
            await self._outlets.check(self._config)
            if self._names_unknown:
                await self._know_people()
                self._use_people()

    def _use_people(self) -> None:
        """Also for those who are connected."""
        self._deps.policy, self._deps.names_unknown = self._policy, self._names_unknown
        self._server.set_policy(self._policy)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _make_server(self) -> SocketServer:
        return SocketServer(
            method_table(self._deps),
            limits=self._config.limits,
            hello=Hello(
                version=__version__,
                protocol=wire.PROTOCOL_VERSION,
                pid=os.getpid(),
                mode=self._config.mode,
                max_message_bytes=wire.MAX_MESSAGE_BYTES,
            ),
            policy=self._policy,
            log=self._log,
        )

    def _make_deps(self) -> Deps:
        return Deps(
            config=self._config,
            config_path=self._config_path,
            cache=self._cache,
            store=self._store,
            journal=self._journal,
            engine=self._engine,
            backends=self._backends,
            spool=self._spool,
            workflows=self._workflows,
            figures=self._figures,
            clients=lambda: self._server.use,
            socket_fault=lambda: self._server.socket_fault,
            policy=self._policy,
            names_unknown=self._names_unknown,
            config_wrong=lambda: self._outlets.wrong,
            clock=self._clock,
            started_at=self._started_at,
            log=self._log,
        )

    def _make_room(self, limits: Limits) -> None:
        limit, wanted = make_room(limits.clients + limits.clients_reserved)
        if limit < wanted:
            self._log.warning(LogEvent.OPEN_FILES_LIMITED, limit=limit, wanted=wanted)

    def _make_monitor(self) -> Monitor:
        return Monitor(
            metrics=self._metrics,
            cache=self._cache,
            engine=self._engine,
            backends=self._backends,
            figures=self._figures,
            waiting=self._notifier.waiting,
            state_dir=self._state,
            clock=self._clock,
        )

    def _upkeep(self) -> Upkeep:
        return Upkeep(
            config=lambda: self._config,
            cache=self._cache,
            store=self._store,
            journal=self._journal,
            spool=self._spool,
            pinned=self._engine.pinned_blobs,
            log=self._log,
            clock=self._clock,
        )

    def _make_notifier(self) -> Notifier:
        return Notifier(
            self._config.notifications,
            path=self._state / "notified.json",
            cache=self._cache,
            backends=self._backends,
            timeline=lambda after, limit: self._store.timeline(after_seq=after, limit=limit),
            metrics=self._metrics,
            daemon=socket.gethostname(),
            log=self._log,
            clock=self._clock,
        )

    def _polled(self, backend: str, outcome: str, seconds: float) -> None:
        self._metrics.polls.labels(backend, outcome).inc()
        self._metrics.poll_s.labels(backend).observe(seconds)

    async def _command_over(self, command: CommandRecord) -> None:
        self._metrics.commands.labels(command.verb, command.state).inc()
        self._metrics.command_s.labels(command.verb).observe(max(0.0, self._clock() - command.accepted_at))
        if command.verb == "submit" and command.token is not None:
            await anyio.to_thread.run_sync(self._workflows.drop, command.token)

    async def _place(self, command: CommandRecord, mistakes: WorkflowInvalid) -> WorkflowInvalid:
        """Say where in the document that was sent the mistakes are that its backend has found."""
        try:
            blob = await self._spool.open_blob(command.args["blob"], command.uid)
            return await self._workflows.place(blob, command.args["source"], mistakes)
        except (BpsdError, OSError):  # the document is gone, or the disk fails: the mistakes are told all the same
            return mistakes

    def _figures(self) -> dict[str, float]:
        counts = self._cache.counts()
        return {
            **self._meter.figures(),
            "memory_bytes": memory_bytes(),
            "open_files": open_files(),
            "journal_waiting_jobs": float(self._journal.statistics.waiting),
            "journal_read_only": float(self._journal.status.read_only),
            "store_waiting_bytes": float(self._store.waiting_bytes),
            "config_refused": float(bool(self._deps.refused)),
            "runs_hot": float(sum(of["hot"] for of in counts.values())),
            "runs_live": float(sum(of["live"] for of in counts.values())),
            "jobs_known": float(sum(of["jobs"] for of in counts.values())),
            "commands_open": float(self._engine.open_commands),
            "commands_in_doubt": float(len(self._engine.in_doubt())),
            "uptime_s": self._clock() - self._started_at,
            **{name: float(value) for name, value in msgspec.to_builtins(self._server.figures).items()},
        }

    # -- backends ----------------------------------------------------------------------------------------------------

    async def _add_backend(self, settings: BackendConfig) -> None:
        """Open a backend, in place of the one of this name if there is one: at no time is there none."""
        folder = self._state / "backends" / await self._journal.backend_uid(settings.name)
        await anyio.to_thread.run_sync(lambda: folder.mkdir(mode=0o700, parents=True, exist_ok=True))
        backend = Backend(
            uid=folder.name,
            make=lambda context: adapter(settings.type).made(settings.settings, context),
            check=lambda: backend_problems(settings),
            settings=settings,
            cache=self._cache,
            state_dir=folder,
            log=self._log,
            clock=self._clock,
            polled=self._polled,
            stood_still_s=lambda: self._meter.stood_still_s,
        )
        if settings.name in self._backends:
            self._remove_backend(settings.name)
        self._backends[settings.name] = backend
        self._metrics.expect_backend(settings.name)
        scope = self._scopes[settings.name] = anyio.CancelScope()
        self._group.start_soon(self._run_backend, backend, scope, name=f"backend {settings.name}")

    async def _run_backend(self, backend: Backend, scope: anyio.CancelScope) -> None:
        with scope:
            await backend.run()

    def _stuck_backends(self) -> list[str]:
        return [name for name, backend in self._backends.items() if backend.is_stuck()]

    def _remove_backend(self, name: str) -> None:
        self._scopes.pop(name).cancel()
        del self._backends[name]
        self._metrics.forget_backend(name)

    # -- reload ------------------------------------------------------------------------------------------------------

    async def _reload_when_wanted(self) -> None:
        """Read the configuration again at each SIGHUP; several during one reload are one."""
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted = anyio.Event()
            await self.reload()

    async def reload(self) -> None:
        """Read the configuration again; one with mistakes is refused and the present one goes on."""
        self._systemd.reloading()
        try:
            new = await anyio.to_thread.run_sync(self._reload)
        except BpsdError as exc:
            advice = "`bpsd check-config` lists what is wrong" if isinstance(exc, ConfigInvalid) else exc.advice
            self._deps.refused = f"{exc.message}: {advice}"
            self._log.error(LogEvent.CONFIG_REFUSED, error=str(exc))
            await self._cache.announce("daemon.reload", ok=False, error=exc.message)
        else:
            in_force, waiting = applicable(self._config, new)
            await self._take(in_force)
            self._deps.refused, self._deps.needs_restart = "", waiting
            self._log.info(LogEvent.CONFIG_RELOADED, backends=list(self._backends))
            if waiting:
                self._log.warning(LogEvent.RESTART_NEEDED, settings=waiting)
            await self._cache.announce("daemon.reload", ok=True, backends=list(self._backends), needs_restart=waiting)
        self._systemd.ready(self._status())

    async def _take(self, new: Config) -> None:
        old, self._config = self._config, new
        self._deps.config = new
        self._set_level(new.logs.level)
        self._cache.text_chars = new.limits.text_chars
        self._spool.set_limits(new.limits.spool_bytes_per_user, new.limits.workflow_bytes, new.limits.uploads_per_user)
        self._journal.keep(backups=new.history.backups, days=new.history.keep_days)
        self._make_room(new.limits)
        self._server.set_limits(new.limits)
        await self._know_people()
        self._use_people()
        await self._outlets.check(new)
        self._exposition.use(new.metrics)
        self._notifier.use(new.notifications)
        await self._take_backends(old, new)
        self._engine.use(new.commands)

    async def _take_backends(self, old: Config, new: Config) -> None:
        """Open, close and change backends; only what its adapter has to do with opens one again."""
        for name in old.backends.keys() - new.backends.keys():
            self._remove_backend(name)
        for name, now in new.backends.items():
            before = old.backends.get(name)
            if before is not None and (now.type, now.settings) == (before.type, before.settings):
                self._backends[name].use(now)
            else:
                await self._add_backend(now)
        # The order of the configuration is the order of the answers.
        for name in new.backends:
            self._backends[name] = self._backends.pop(name)
