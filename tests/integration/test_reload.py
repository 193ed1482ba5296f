"""A reload applies every setting, or says that it needs a restart: each one is changed in a daemon that runs.

The settings come from the structs of the configuration: one that is added later has no entry here, and fails.
"""

from __future__ import annotations

import copy
import json
import os
import time
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import anyio
import msgspec
import pytest

from bpsd.config import BackendCommon, ConfigFile, load_config
from bpsd.errors import LimitExceeded
from bpsd.journal import CommandRecord
from bpsd.logs import get_logger, log_to
from bpsd.models import PollResult, RunObservation, SourceReport, WmsStates
from bpsd.poller import Backend
from bpsd.registry import adapter_config, known_adapters
from bpsd.reloading import NEEDS_RESTART
from bpsd.signals import Signals
from bpsd.supervisor import Daemon
from tests.integration.daemons import RunningDaemon, until

ROUTE = {"command": ["/bin/true"]}
BASE: dict[str, Any] = {
    "mode": "system",  # the section rights is for it alone
    "backends": {"toy": {"type": "scripted", "poll": {}, "submitters": {}, "accounts": {}}},
    "notifications": {
        "routes": {
            "program": ROUTE,
            "web": {"webhook": {"url": "http://127.0.0.1:9/old"}},
            "webfile": {"webhook": {"url_file": "/old"}},
            "post": {"mail": {"to": ["a@example.org"], "from": "b@example.org"}},
            "login": {
                "mail": {
                    "to": ["a@example.org"],
                    "from": "b@example.org",
                    "tls": "tls",
                    "user": "old",
                    "password_file": "/old",
                }
            },
        }
    },
}

Probe = Callable[[Daemon], Any]


@dataclass(frozen=True)
class Entry:
    """A setting: what it is set to, how its effect is seen, and what is then seen."""

    value: Any
    probe: Callable[[Daemon], Awaitable[Any] | Any]
    seen: Any
    at: str = ""
    """Where it stands, if the path holds names (``*``)."""


def toy(daemon: Daemon) -> Backend:
    return daemon._backends["toy"]


def at(path: str) -> Probe:
    """Follow attributes, and keys in brackets, from the daemon."""

    def probe(daemon: Daemon) -> Any:
        found: Any = daemon
        for part in path.split("."):
            found = found[part[1:-1]] if part.startswith("[") else getattr(found, part)
        return found

    return probe


# -- effects that are more than a value in its place -----------------------------------------------------------------


async def writes_debug(daemon: Daemon) -> bool:
    """Whether the log takes a line of level debug."""
    log = Path(daemon._config.state_dir).parent / "log"
    before = len(log.read_text())
    get_logger().debug("the_debug_line")
    get_logger().error("the_error_line")
    with anyio.fail_after(60):
        while "the_error_line" not in (new := log.read_text()[before:]):  # noqa: ASYNC110 - a thread writes it
            await anyio.sleep(0.01)
    return "the_debug_line" in new


async def spooled(daemon: Daemon, size: int) -> str:
    """Which limit a document of this size meets."""
    try:
        await daemon._spool.put("0" * 64, size, 0, b"", 7)
    except LimitExceeded as exc:
        return str(exc.fields["limit"])
    await daemon._spool.collect(-1.0)
    return ""


def uploads(daemon: Daemon) -> Any:
    """How many documents of one user may be on their way."""
    return daemon._spool._uploads_per_user


async def text_kept(daemon: Daemon) -> int:
    """How much of a long text from a WMS is kept."""
    seen = RunObservation(wms_id="9", source="queue", state=WmsStates.RUNNING, payload="x" * 1000)
    result = PollResult(observations=[seen], sources=(SourceReport(name="queue", status="ok"),))
    await daemon._cache.apply_poll("toy", result, time.time())
    (record,) = [record for record in daemon._cache.records() if record.wms_id == "9"]
    return len(record.payload or "")


async def copies(daemon: Daemon) -> int:
    """How many copies of the journal a backup leaves of five old ones."""
    folder = Path(daemon._config.state_dir) / "copies"
    await anyio.Path(folder).mkdir(exist_ok=True)
    newest = await daemon._journal.backup()
    for day in range(1, 6):
        await anyio.Path(folder / f"journal-2001-01-0{day}.db").write_bytes(newest.read_bytes())
    await daemon._journal.backup()
    return len(list(folder.glob("journal-*")))


async def slots(daemon: Daemon) -> Any:
    """How many commands may go to the backend at once."""
    with anyio.fail_after(60):
        while toy(daemon)._service is None:  # noqa: ASYNC110 - as above
            await anyio.sleep(0.01)
    return daemon._engine._sized_slots(toy(daemon)).calls._limit


async def expires_s(daemon: Daemon) -> float:
    """How long a command has to begin, that is accepted now."""
    orders = _bound(daemon, "submit")
    peer = msgspec.structs.replace(_peer(), pid=0)
    command: CommandRecord = await orders._command(
        "hold", peer, backend="toy", run_id="r", token=None, attempt=None, args={}, client="", expires_s=None
    )
    return round((command.expires_at or 0.0) - command.accepted_at)


def _bound(daemon: Daemon, method: str) -> Any:
    handler: Any = daemon._server._core.methods[method].handler
    return handler.__self__


def _peer() -> Any:
    from bpsd.peers import Peer

    return Peer(pid=0, uid=os.getuid(), gid=0, groups=(), user="me")


def page_rows(daemon: Daemon) -> int:
    from bpsd.messages import ListParams

    return int(_bound(daemon, "list")._limit(ListParams()))


async def of_settings(daemon: Daemon) -> Any:
    """Which file the adapter works with."""
    with anyio.fail_after(60):
        while toy(daemon)._service is None:  # noqa: ASYNC110 - as above
            await anyio.sleep(0.01)
    return Path(toy(daemon).service.wms.path).name  # type: ignore[attr-defined]  # of the scripted adapter


def route(name: str, path: str) -> Probe:
    return at(f"_notifier._lanes.[{name}].route.{path}")


def routes(field: str, value: Any, seen: Any = None, *, of: str = "program", part: str = "") -> Entry:
    where = f"{part}.{field}" if part else field
    attribute = where.replace(".from", ".sender")
    return Entry(value, route(of, attribute), value if seen is None else seen, at=f"notifications.routes.{of}.{where}")


def value(number: Any, path: str) -> Entry:
    return Entry(number, at(path), number)


UID = os.getuid()
OWN_POLLING: Mapping[str, Any] = {
    "min_interval_s": 1.5,
    "idle_interval_s": 29.0,
    "max_interval_s": 299.0,
    "cost_factor": 19.0,
    "deadline_s": 59.0,
    "breaker_failures": 4,
    "backoff_initial_s": 1.5,
    "backoff_max_s": 299.0,
    "jitter": 0.2,
    "stale_after_s": 119.0,
}
LIMITS: Mapping[str, Any] = {
    "clients": 500,
    "clients_per_user": 200,
    "clients_reserved": 15,
    "requests_in_flight": 60,
    "greet_timeout_s": 59.0,
    "idle_timeout_s": 3000.0,
    "read_timeout_s": 29.0,
    "write_timeout_s": 29.0,
    "write_buffer_bytes": 9 * 1024 * 1024,
}
MEMBERS = {
    "viewer": "viewers",
    "output": "readers",
    "audit": "auditors",
    "operator": "operators",
    "admin": "admins",
}
ENTRIES: dict[str, Entry] = {
    "logs.level": Entry("debug", writes_debug, seen=True),
    **{f"polling.{name}": value(v, f"_backends.[toy].settings.polling.{name}") for name, v in OWN_POLLING.items()},
    **{
        f"backends.*.poll.{name}": Entry(
            v, at(f"_backends.[toy].settings.polling.{name}"), v, at=f"backends.toy.poll.{name}"
        )
        for name, v in OWN_POLLING.items()
    },
    "backends.*.type": Entry("local", at("_backends.[toy].type"), "local", at="backends.toy.type"),
    "backends.*.commands_at_once": Entry(3, slots, 3, at="backends.toy.commands_at_once"),
    "backends.*.commands_deadline_s": Entry(
        299.0,
        lambda daemon: daemon._engine._desk(toy(daemon))._deadline_s,
        299.0,
        at="backends.toy.commands_deadline_s",
    ),
    "backends.*.submitters.users": Entry(
        [str(UID)], lambda d: d._server._policy.submitters["toy"].uids, {UID}, at="backends.toy.submitters.users"
    ),
    "backends.*.submitters.groups": Entry(
        ["5"], lambda d: d._server._policy.submitters["toy"].gids, {5}, at="backends.toy.submitters.groups"
    ),
    "backends.*.accounts": Entry(
        {"svc": str(UID)}, at("_deps.policy.accounts"), {("toy", "svc"): UID}, at="backends.toy.accounts"
    ),
    "backends.*.(settings)": Entry("/tmp/elsewhere.json", of_settings, "elsewhere.json", at="backends.toy.path"),
    "commands.expires_s": Entry(3000.0, expires_s, 3000),
    "commands.deadline_s": Entry(299.0, at("_backends.[toy].settings.commands_deadline_s"), 299.0),
    "commands.at_once_per_backend": Entry(3, slots, 3),
    "commands.queue_per_user": value(900, "_deps.config.commands.queue_per_user"),
    "commands.submissions_per_user": value(90, "_deps.config.commands.submissions_per_user"),
    "commands.runs_per_user": value(80, "_deps.config.commands.runs_per_user"),
    "commands.doubt_retry_initial_s": value(4.0, "_engine.settings.doubt_retry_initial_s"),
    "commands.doubt_retry_max_s": value(299.0, "_engine.settings.doubt_retry_max_s"),
    "commands.cancel_verify_s": Entry(29.0, lambda d: d._engine._desk(toy(d)).verify_s, 29.0),
    **{f"limits.{name}": value(v, f"_server._core.limits.{name}") for name, v in LIMITS.items()},
    "limits.watchers_per_connection": value(15, "_deps.config.limits.watchers_per_connection"),
    "limits.uploads_per_user": Entry(2, uploads, 2),
    "limits.spool_bytes_per_user": Entry(4096, lambda d: spooled(d, 10_000), "quota_bytes_per_user"),
    "limits.workflow_bytes": Entry(4096, lambda d: spooled(d, 10_000), "max_blob_bytes"),
    "limits.text_chars": Entry(300, text_kept, 300),
    "limits.page_rows": Entry(99, page_rows, 99),
    "history.hot_days": value(6.0, "_config.history.hot_days"),
    "history.keep_days": Entry(8.0, at("_journal._keep_days"), 8.0),
    "history.timeline_events_per_run": value(9_000, "_config.history.timeline_events_per_run"),
    "history.store_bytes": value(2**30, "_config.history.store_bytes"),
    "history.backups": Entry(3, copies, 3),
    "stop.timeout_s": value(19.0, "_config.stop.timeout_s"),
    "rights.others": Entry(["submit"], at("_server._policy.others"), {"read", "submit"}),
    **{
        f"rights.{right}.users": Entry(["5"], at(f"_server._policy.{members}.uids"), {5})
        for right, members in MEMBERS.items()
    },
    **{
        f"rights.{right}.groups": Entry(["5"], at(f"_server._policy.{members}.gids"), {5})
        for right, members in MEMBERS.items()
    },
    "metrics.textfile": value("/nowhere/bpsd.prom", "_exposition._settings.textfile"),
    "metrics.interval_s": value(14.0, "_exposition._settings.interval_s"),
    "metrics.listen": value("127.0.0.1:0", "_exposition._settings.listen"),
    "notifications.digest_s": value(29.0, "_notifier._settings.digest_s"),
    "notifications.again_after_s": value(80_000.0, "_notifier._settings.again_after_s"),
    "notifications.deadline_s": value(29.0, "_notifier._settings.deadline_s"),
    "notifications.retry_initial_s": value(4.0, "_notifier._settings.retry_initial_s"),
    "notifications.retry_max_s": value(299.0, "_notifier._settings.retry_max_s"),
    "notifications.give_up_s": value(80_000.0, "_notifier._settings.give_up_s"),
    "notifications.routes.*.command": routes("command", ["/bin/false"]),
    "notifications.routes.*.tell": routes("tell", ["failed"]),
    "notifications.routes.*.backends": routes("backends", ["toy"]),
    "notifications.routes.*.users": routes("users", ["ann"]),
    "notifications.routes.*.pattern": routes("pattern", "u/*"),
    "notifications.routes.*.webhook.url": routes("url", "http://127.0.0.1:9/new", of="web", part="webhook"),
    "notifications.routes.*.webhook.url_file": routes("url_file", "/new", of="webfile", part="webhook"),
    "notifications.routes.*.webhook.bearer_file": routes("bearer_file", "/new", of="web", part="webhook"),
    "notifications.routes.*.mail.to": routes("to", ["c@example.org"], of="post", part="mail"),
    "notifications.routes.*.mail.from": routes("from", "c@example.org", of="post", part="mail"),
    "notifications.routes.*.mail.host": routes("host", "mx.example.org", of="post", part="mail"),
    "notifications.routes.*.mail.port": routes("port", 26, of="post", part="mail"),
    "notifications.routes.*.mail.tls": routes("tls", "starttls", of="post", part="mail"),
    "notifications.routes.*.mail.user": routes("user", "new", of="login", part="mail"),
    "notifications.routes.*.mail.password_file": routes("password_file", "/new", of="login", part="mail"),
}
RESTARTS: Mapping[str, Any] = {
    "mode": "user",
    "socket": "/nowhere/s",
    "state_dir": "/nowhere/state",
    "state_on_network": True,
    "logs.format": "console",
}


# -- the settings there are ------------------------------------------------------------------------------------------


def structs_in(annotation: Any) -> Iterator[tuple[type[msgspec.Struct], str]]:
    """The structs that a type holds, with ``.*`` for those in a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        yield annotation, ""
        return
    inner = get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is dict:
        yield from ((struct, f".*{more}") for struct, more in structs_in(inner[1]))
    elif origin in (typing.Annotated, typing.Union, UnionType):
        for part in inner:
            yield from structs_in(part)


def settings_of(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    """Every setting, as a path."""
    for field in msgspec.structs.fields(struct):
        path = f"{prefix}{field.encode_name}"
        if path == "backends":
            yield from settings_of(BackendCommon, "backends.*.")
            yield "backends.*.(settings)"
            continue
        inner = list(structs_in(field.type))
        for found, more in inner:
            yield from settings_of(found, f"{path}{more}.")
        if not inner:
            yield path


def changed(path: str, new: Any) -> dict[str, Any]:
    """The configuration with one setting changed."""
    settings = copy.deepcopy(BASE)
    *sections, last = path.split(".")
    place = settings
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = new
    if path == "backends.toy.type":
        settings["backends"]["toy"] |= {"run_as": "submitter"}
    return settings


def test_every_setting_has_an_entry() -> None:
    assert sorted({*ENTRIES, *RESTARTS}) == sorted(settings_of(ConfigFile))
    assert sorted(RESTARTS) == sorted(NEEDS_RESTART)


# -- the proof -------------------------------------------------------------------------------------------------------


class World:
    """A daemon in this process, and its configuration."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "bpsd.yaml"
        self.own = {"socket": str(folder / "s"), "state_dir": str(folder / "state")}
        self.write(BASE)
        self.daemon: Daemon

    def write(self, settings: Mapping[str, Any]) -> None:
        self.file.write_text(json.dumps({**self.own, **settings}))

    def load(self) -> Any:
        return load_config(self.file, adapter_config, known_adapters(), environ={"HOME": "/nowhere"})

    async def seen(self, entry: Entry) -> Any:
        found = entry.probe(self.daemon)
        return await found if isinstance(found, Awaitable) else found


async def until_ready(daemon: Daemon) -> None:
    with anyio.fail_after(60):
        while not daemon._is_ready:  # noqa: ASYNC110 - the daemon has no event for it
            await anyio.sleep(0.01)


@pytest.mark.blocking_allowed  # it reads files and ends the log as a program's main thread does
async def test_every_setting_is_applied_or_reported(tmp_path: Path) -> None:
    world = World(tmp_path)
    descriptor = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    with log_to(descriptor, form="json") as control:
        world.daemon = daemon = Daemon(
            world.load(),
            config_path=str(world.file),
            reload=world.load,
            signals=Signals(),
            set_level=control.set_level,
            log=get_logger(),
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(daemon.run)
            await until_ready(daemon)
            wrong = [said for path, entry in ENTRIES.items() if (said := await applied(world, path, entry))]
            wrong += [said for path, new in RESTARTS.items() if (said := await reported(world, path, new))]
            daemon.stop("over")
    os.close(descriptor)
    assert not wrong, "\n".join(wrong)


async def applied(world: World, path: str, entry: Entry) -> str:
    """What is wrong with a setting that a reload should apply."""
    where = entry.at or path
    world.write(BASE)
    await world.daemon.reload()
    before = await world.seen(entry)
    for _ in range(1000):  # a part that is told of other settings may follow them in its next turn
        if before != entry.seen:
            break
        await anyio.sleep(0.01)
        before = await world.seen(entry)
    world.write(changed(where, entry.value))
    await world.daemon.reload()
    if world.daemon._deps.refused or world.daemon._deps.needs_restart:
        return f"{path}: {world.daemon._deps.refused} {world.daemon._deps.needs_restart}"
    after = await world.seen(entry)
    for _ in range(1000):
        if after == entry.seen:
            break
        await anyio.sleep(0.01)
        after = await world.seen(entry)
    if before == after or after != entry.seen:
        return f"{path}: was {before!r}, is {after!r}, should be {entry.seen!r}"
    return ""


async def reported(world: World, path: str, new: Any) -> str:
    """What is wrong with a setting that waits for a restart."""
    daemon = world.daemon
    before = daemon._config
    world.write(changed(path, new))
    await daemon.reload()
    health = await _bound(daemon, "health").health(None, None)
    (check,) = [check for check in health.checks if check.name == "config"]
    words = f"needs a restart: {path}"
    if words not in daemon._status() or words not in check.message or check.status != 1:
        return f"{path}: systemd is told {daemon._status()!r}, health says {health.message!r}"
    if daemon._config != before:
        return f"{path}: it is in force: {daemon._config!r}"
    world.write(BASE)
    await daemon.reload()
    return "still reported" if daemon._deps.needs_restart else ""


def test_what_can_be_applied_is_applied_beside_what_needs_a_restart(tmp_path: Path) -> None:
    from bpsd.reloading import applicable

    world = World(tmp_path)
    old = world.load()
    world.write({**BASE, "logs": {"format": "console", "level": "debug"}})

    in_force, waiting = applicable(old, world.load())

    assert waiting == ["logs.format"]
    assert (in_force.logs.format, in_force.logs.level) == ("auto", "debug")


def test_a_backend_that_cannot_work_keeps_neither_the_daemon_nor_the_others_from_running(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    runs = tmp_path / "file" / "runs"
    broken = {"type": "local", "run_dir": str(runs)}
    hook = {"routes": {"r": {"command": [str(tmp_path / "hook")]}}}
    with RunningDaemon(tmp_path, {"good": {"type": "local"}, "broken": broken}, notifications=hook) as daemon:

        def states() -> dict[str, tuple[str, str]]:
            with daemon.client() as client:
                return {row["name"]: (row["state"], row["error"]) for row in client.call("backends")["backends"]}

        until(lambda: [state for state, _ in states().values()] == ["up", "stopped"], "one backend runs")
        assert states()["broken"][1].startswith(f"run_dir: cannot use the folder {runs}: {tmp_path}/file")
        with daemon.client() as client:
            health = {check["name"]: check["message"] for check in client.call("health")["checks"]}
        assert health["config"].startswith("notifications.routes.r.command: cannot run")

        (tmp_path / "file").unlink()
        until(lambda: [state for state, _ in states().values()] == ["up", "up"], "the other runs once it can")
