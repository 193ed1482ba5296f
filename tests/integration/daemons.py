"""Real daemons for tests: ``bpsd serve`` as a process with its own folder, and what a test wants to do to it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from bpsd.client.sync import Client
from bpsd.testing.wms import ScriptedWms

PATIENCE_S = 90.0

FAST: Mapping[str, Any] = {
    "polling": {
        "min_interval_s": 0.1,
        "idle_interval_s": 0.2,
        "backoff_initial_s": 0.1,
        "backoff_max_s": 0.4,
        "deadline_s": 5.0,
        "stale_after_s": 1.0,
    },
    "commands": {"doubt_retry_initial_s": 0.1, "doubt_retry_max_s": 0.3, "cancel_verify_s": 0.5, "deadline_s": 3.0},
    # A test is itself a client, and on a loaded machine one that reads late.
    "limits": {"read_timeout_s": 600.0, "write_timeout_s": 600.0},
}
"""Settings for tests that have no minutes to wait."""


class RunningDaemon:
    """A daemon in ``folder``. A context manager that ends it, whatever happened."""

    program: tuple[str, ...] = ("-m", "bpsd.cli.bpsd")
    environment: Mapping[str, str] | None = None

    def __init__(self, folder: Path, backends: Mapping[str, Any], **settings: Any) -> None:
        self.folder = folder
        self.config = folder / "bpsd.yaml"
        self.socket = folder / "s"
        self.state = folder / "state"
        self.log = folder / "bpsd.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.configure({**FAST, **settings, "backends": dict(backends)})

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write the configuration (JSON is YAML)."""
        whole = {"socket": str(self.socket), "state_dir": str(self.state), **settings}
        self.config.write_text(json.dumps(whole))

    def start(self, *, wait: bool = True) -> RunningDaemon:
        """Start it and, unless told not to, wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "serve", "--config", str(self.config)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until a request is answered."""

        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the daemon ended: {self.log.read_text()}"
            try:
                with self.client() as client:
                    client.ping()
            except Exception:  # noqa: BLE001  # not there yet, in whatever way
                return False
            return True

        until(answers, "the daemon answers")

    def client(self, timeout_s: float = PATIENCE_S) -> Client:
        """A connection to it."""
        return Client(str(self.socket), timeout_s=timeout_s)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> RunningDaemon:
        return self if self.process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(PATIENCE_S)

    def wms(self, backend: str) -> ScriptedWms:
        """The file of a scripted backend."""
        with self.client() as client:
            uid = client.backends(backend)["backends"][0]["uid"]
        return ScriptedWms(self.state / "backends" / uid / "wms.json")

    def logged(self) -> list[dict[str, Any]]:
        """What it logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


def until(reached: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Wait until ``reached`` returns something true, and return it."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = reached()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def document(*jobs: Mapping[str, Any], **fields: Any) -> bytes:
    """A workflow document."""
    return msgspec.json.encode({"bpsd": 1, "name": "test", "jobs": list(jobs), **fields})


def true_job(name: str, *, parents: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """A job that does nothing."""
    return {
        "name": name,
        "label": name.split("_", maxsplit=1)[0],
        "executable": "true",
        "parents": list(parents),
        **fields,
    }
