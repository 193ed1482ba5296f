"""No method of the protocol leaves a descriptor, thread, process, spool file or probe file behind."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpsd import wire
from bpsd.client.failures import RemoteError
from bpsd.client.sync import Client
from bpsd.messages import PARAMS
from bpsd.testing.observer import shell_job
from bpsd_adapters.local import processes
from tests.figures import figure
from tests.integration.daemons import RunningDaemon, document, until

CALLS = figure("LEAK_CALLS", test=50, soak=1000)
FAILS = {"restart", "hold", "release", "cancel", "commands.resolve"}
"""Refused in the state in which the run or the command is: they must leave nothing behind either."""

pytestmark = pytest.mark.timeout(1800)


class Held:
    """What a daemon holds: descriptors, threads, child processes, files that are to be gone."""

    def __init__(self, daemon: RunningDaemon) -> None:
        assert daemon.process is not None
        self.pid, self.state = daemon.process.pid, daemon.state

    def count(self) -> dict[str, int]:
        me = processes.of_pid(self.pid)
        keepers = {p.pid for p in processes.descendants(me)}
        return {
            "descriptors": len(list(Path(f"/proc/{self.pid}/fd").iterdir())),
            "processes": len(keepers),
            "spool": sum(path.is_file() for path in (self.state / "spool").rglob("*")),
            "probes": sum(".probe." in path.name for path in self.state.rglob("*")),
        }

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))


def parameters(client: Client, run: str, command: str) -> dict[str, Callable[[int], dict[str, Any]]]:
    """For each method what to call it with, the nth time."""

    def put(number: int) -> dict[str, Any]:
        data = document(shell_job("a_1", f"true {number}"))
        return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "data": data, "offset": 0}

    def blob(number: int) -> str:
        return client.put_document(document(shell_job("a_1", f"true {number}")))

    def row(**params: Any) -> Callable[[int], dict[str, Any]]:
        return lambda _: params

    return {
        **{name: row() for name in ("ping", "version", "backends", "list", "report", "holds", "events", "health")},
        "backend.ping": row(backend="here"),
        "status": row(run=run),
        "jobs": row(run=run),
        "logs": row(run=run, job="a_1"),
        "watch": row(runs=[run]),
        "unwatch": row(watch=1),
        "blob.put": put,
        "validate": lambda number: {"blob": blob(number), "backend": "here"},
        "submit": lambda number: {"token": wire.new_token(), "blob": blob(number), "backend": "here"},
        **{name: row(run=run) for name in ("cancel", "restart", "hold", "release", "mute", "unmute")},
        "commands": row(),
        "commands.wait": row(id=command, timeout_s=0.1),
        "commands.resolve": row(id=command, outcome="failed"),
        "refresh": row(),
        "admin": row(act="check"),
    }


@pytest.fixture
def daemon(state_dir: Path) -> Iterator[RunningDaemon]:
    backends = {"here": {"type": "local", "ledger": str(state_dir / "ledger")}}
    commands = {"deadline_s": 300.0, "cancel_verify_s": 5.0}  # 50 submissions at once take their time
    with RunningDaemon(state_dir, backends, commands=commands) as running:
        yield running


def test_no_method_leaves_anything_behind(daemon: RunningDaemon) -> None:
    held = Held(daemon)
    with daemon.client() as client:
        accepted = client.submit_document(document(shell_job("a_1", "true")), backend="here")
        run = accepted["run"]
        until(lambda: client.status(run)["state"] == "SUCCEEDED", "the run ends")
        made = parameters(client, run, accepted["id"])
        assert made.keys() == PARAMS.keys(), "every method is called"

        def call(method: str, number: int) -> None:
            with contextlib.suppress(RemoteError) if method in FAILS else contextlib.nullcontext():
                if method == "blob.put":
                    client.put_document(made[method](number)["data"])
                elif method in ("watch", "unwatch"):
                    with daemon.client() as other:
                        watch = other.call("watch", runs=[run])["watch"]
                        other.call("unwatch", watch=watch)
                else:
                    client.call(method, **made[method](number))

        threads = held.threads()
        for method in made:
            call(method, 0)
        for method in made:
            until(
                lambda: not client.commands(state=["ACCEPTED", "RUNNING"])["commands"],
                f"no command is open (after {method})",
                timeout_s=600,
            )
            until(lambda: held.count()["processes"] == 0, "what ended is gone")
            before = held.count()
            for number in range(1, CALLS + 1):
                call(method, number)
            until(
                lambda: not client.commands(state=["ACCEPTED", "RUNNING"])["commands"],
                f"no command is open (after {method})",
                timeout_s=600,
            )
            expected = before | ({"spool": before["spool"] + CALLS} if method in ("blob.put", "validate") else {})
            until(
                lambda expected=expected: all(n <= expected[what] for what, n in held.count().items()),  # type: ignore[misc]
                f"{method} leaves nothing behind: {before} before, {held.count()} after",
            )
        until(lambda: held.threads() <= threads, f"threads that are idle end: {threads} before, {held.threads()} after")
