"""What of somebody else's runs a user may read: every method, with the users of several peers."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpsd import messages, wire
from bpsd.client.failures import RemoteError
from bpsd.client.sync import Client
from bpsd.client.sync_watch import Watch
from tests.integration.daemons import RunningDaemon, document, true_job, until
from tests.integration.test_rights import as_user, reload

OWNER, OTHER, READER, AUDITOR, OPERATOR = 65530, 65531, 65532, 65533, 65534
BACKENDS: dict[str, Any] = {"a": {"type": "scripted", "submitters": {"users": ["*"]}}}
RIGHTS = {
    "output": {"users": [str(READER)]},
    "audit": {"users": [str(AUDITOR)]},
    "operator": {"users": [str(OPERATOR)]},
}
PRINTED = "what the job printed"
NAME = "the name of the client"


class World:
    """A run of `OWNER`, and a client of each user. ``token`` and what the job printed are not for everybody."""

    def __init__(self, daemon: RunningDaemon, stack: ExitStack) -> None:
        self.daemon = daemon
        self.clients: dict[int, Client] = {}
        for uid in (OWNER, OTHER, READER, AUDITOR, OPERATOR):
            with as_user(uid):
                self.clients[uid] = stack.enter_context(daemon.client())
                self.clients[uid].ping()
        self.owner = self.clients[OWNER]
        self.owner.name = NAME
        self.token = wire.new_token()
        command = self.owner.submit_document(document(true_job("j")), token=self.token, backend="a")
        self.run, self.command = command["run"], command["id"]
        until(lambda: self.owner.commands(id=self.command)["commands"][0]["state"] == "DONE", "it is submitted")
        with daemon.wms("a").edit() as content:
            content.runs["1"].jobs[0].log = PRINTED
        until(lambda: self.owner.jobs(self.run)["jobs"], "its job is seen")

    def ask(self, uid: int, method: str, **params: Any) -> str:
        """The answer as text, or the error."""
        try:
            return json.dumps(self.clients[uid].call(method, **params))
        except RemoteError as error:
            return f"{error.code}: {error} {error.advice}"

    def watch(self, uid: int) -> str:
        """A snapshot, and the events of a change."""
        with self.watching(uid) as watch:
            said = json.dumps(watch.read(20))
            self.daemon.wms("a").change("1", note=f"touched for {uid}")
            while not (item := watch.read(20) or {}) or f"touched for {uid}" not in json.dumps(item):
                said += json.dumps(item)
        return said + json.dumps(item)

    @contextmanager
    def watching(self, uid: int) -> Iterator[Watch]:
        with ExitStack() as stack:
            with as_user(uid):
                watch = stack.enter_context(self.clients[uid].watch())
            yield watch

    def secrets(self, text: str) -> set[str]:
        """What of the run and its command is in an answer."""
        found = {"token": self.token, "output": PRINTED, "client": NAME, "pid": f'"pid": {os.getpid()}'}
        found |= {"arguments": '"command_line"'}
        return {name for name, secret in found.items() if secret in text}


@pytest.fixture
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))
    folder.chmod(0o755)
    with RunningDaemon(folder, BACKENDS, mode="system", rights=RIGHTS) as daemon, ExitStack() as stack:
        yield World(daemon, stack)
    shutil.rmtree(folder)


NOTHING: set[str] = set()
TOKEN, OUTPUT, COMMAND = {"token"}, {"output"}, {"token", "client", "pid", "arguments"}

METHODS: dict[str, tuple[Callable[[World, int], str], set[str]]] = {
    "ping": (lambda w, uid: w.ask(uid, "ping"), NOTHING),
    "version": (lambda w, uid: w.ask(uid, "version"), NOTHING),
    "backends": (lambda w, uid: w.ask(uid, "backends", fields=True), NOTHING),
    "backend.ping": (lambda w, uid: w.ask(uid, "backend.ping"), NOTHING),
    "list": (lambda w, uid: w.ask(uid, "list"), NOTHING),
    "report": (lambda w, uid: w.ask(uid, "report") + w.ask(uid, "report", run=w.run), TOKEN),
    "status": (lambda w, uid: w.ask(uid, "status", run=w.run), NOTHING),
    "jobs": (lambda w, uid: w.ask(uid, "jobs", run=w.run), NOTHING),
    "holds": (lambda w, uid: w.ask(uid, "holds"), NOTHING),
    "logs": (lambda w, uid: w.ask(uid, "logs", run=w.run, job="j"), OUTPUT),
    "events": (lambda w, uid: w.ask(uid, "events", run=w.run) + w.ask(uid, "events"), NOTHING),
    "watch": (World.watch, TOKEN),
    "unwatch": (lambda w, uid: w.ask(uid, "unwatch", watch=1), NOTHING),
    "blob.put": (lambda w, uid: w.ask(uid, "blob.put", sha256="0" * 64, size=9), NOTHING),
    "validate": (lambda w, uid: w.ask(uid, "validate", blob="0" * 64, backend="a"), NOTHING),
    "submit": (lambda w, uid: w.ask(uid, "submit", token=wire.new_token(), blob="0" * 64), NOTHING),
    "commands": (lambda w, uid: w.ask(uid, "commands") + w.ask(uid, "commands", id=w.command), COMMAND),
    "commands.wait": (lambda w, uid: w.ask(uid, "commands.wait", id=w.command, timeout_s=0), COMMAND),
    "commands.resolve": (lambda w, uid: w.ask(uid, "commands.resolve", id=w.command, outcome="failed"), NOTHING),
    "cancel": (lambda w, uid: w.ask(uid, "cancel", run="no-such-run"), NOTHING),
    "restart": (lambda w, uid: w.ask(uid, "restart", run="no-such-run"), NOTHING),
    "hold": (lambda w, uid: w.ask(uid, "hold", run="no-such-run"), NOTHING),
    "release": (lambda w, uid: w.ask(uid, "release", run="no-such-run"), NOTHING),
    "mute": (lambda w, uid: w.ask(uid, "mute", run="no-such-run"), NOTHING),
    "unmute": (lambda w, uid: w.ask(uid, "unmute", run="no-such-run"), NOTHING),
    "refresh": (lambda w, uid: w.ask(uid, "refresh"), NOTHING),
    "health": (lambda w, uid: w.ask(uid, "health"), NOTHING),
    "admin": (lambda w, uid: w.ask(uid, "admin", act="check"), NOTHING),
}
"""Every method: how it is asked, and what of the run its answer holds for the owner."""


def test_every_method_is_classified() -> None:
    assert set(METHODS) == set(messages.PARAMS)


def test_what_each_user_sees_of_a_run_of_another(world: World) -> None:
    seen = {
        uid: {method: world.secrets(ask(world, uid)) for method, (ask, _) in METHODS.items()} for uid in world.clients
    }
    whole = {method: shown for method, (_, shown) in METHODS.items()}

    def only(*methods: str) -> dict[str, set[str]]:
        return {method: shown if method in methods else NOTHING for method, shown in whole.items()}

    assert seen[OWNER] == whole
    assert seen[OTHER] == only()
    assert seen[READER] == only("report", "watch", "logs")
    assert seen[AUDITOR] == only("commands", "commands.wait")
    assert seen[OPERATOR] == only("report", "watch", "logs")
    assert "permission_denied" in world.ask(OTHER, "logs", run=world.run, job="j")
    assert "rights.output" in world.ask(OTHER, "logs", run=world.run, job="j")


def test_rights_change_also_for_who_watches(world: World) -> None:
    with world.watching(OTHER) as watch:
        assert world.token not in json.dumps(watch.read(20))
        reload(world.daemon, backends=BACKENDS, rights={"others": ["status", "output"]})
        world.daemon.wms("a").change("1", note="after the reload")
        until(lambda: "after the reload" in (text := json.dumps(watch.read(20))) and world.token in text, "it is seen")
    assert world.secrets(world.ask(OTHER, "logs", run=world.run, job="j")) == OUTPUT
    assert world.secrets(world.ask(READER, "commands")) == NOTHING
