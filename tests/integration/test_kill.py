"""SIGKILL of the daemon at random moments: no acknowledged command is lost, and none is done twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bpsd import wire
from bpsd.client.failures import ClientError
from bpsd.client.sync import Client
from tests.figures import figure
from tests.integration.daemons import RunningDaemon, document, true_job, until

KILLS = figure("KILLS", test=30, soak=500)
"""How often the daemon is killed while commands are given."""

WORKFLOW = document(true_job("a_1"))


class Operator(threading.Thread):
    """Gives commands without a pause, and remembers every one that was acknowledged."""

    def __init__(self, daemon: RunningDaemon, seed: int) -> None:
        super().__init__(daemon=True)
        self._daemon = daemon
        self._random = random.Random(seed)
        self.over = threading.Event()
        self.tokens: list[str] = []
        self.acknowledged: dict[str, str] = {}
        self.runs: list[str] = []
        self.refused = 0

    def run(self) -> None:
        """Until it is over: submit, cancel, restart, as it comes."""
        while not self.over.is_set():
            try:
                with self._daemon.client(timeout_s=5) as client:
                    while not self.over.is_set():
                        self._one(client)
            except (ClientError, OSError):
                time.sleep(0.01)  # the daemon is gone: it will be back

    def _one(self, client: Client) -> None:
        verb = self._random.choice(["submit", "submit", "cancel", "restart"]) if self.runs else "submit"
        try:
            if verb == "submit":
                token = wire.new_token()
                self.tokens.append(token)
                row = client.submit_document(WORKFLOW, token=token, backend="toy")
                self.runs.append(row["run"])
            else:
                row = client.command(verb, self._random.choice(self.runs))
        except ClientError as exc:
            if exc.code not in ("conflict", "run_not_found"):
                raise
            self.refused += 1  # in that moment it made no sense: an answer as good as any
            return
        self.acknowledged[row["id"]] = row["verb"]


def have_acknowledged(operators: list[Operator], count: int) -> bool:
    """Whether the operators together have had so many commands acknowledged."""
    return sum(len(operator.acknowledged) for operator in operators) >= count


def test_no_acknowledged_command_is_lost_and_none_is_done_twice(state_dir: Path) -> None:
    chance = random.Random(20261122)
    with RunningDaemon(state_dir, {"toy": {"type": "scripted"}}) as daemon:
        operators = [Operator(daemon, seed) for seed in range(2)]
        for operator in operators:
            operator.start()
        for kill in range(1, KILLS + 1):
            # A machine may be so slow that nobody gets a word in between two kills: that would prove nothing.
            until(partial(have_acknowledged, operators, 2 * kill), "commands are acknowledged")
            time.sleep(chance.uniform(0.0, 0.3))
            daemon.kill()
            daemon.start()
        for operator in operators:
            operator.over.set()
            operator.join(30)
        acknowledged = {name: verb for operator in operators for name, verb in operator.acknowledged.items()}
        tokens = {token for operator in operators for token in operator.tokens}

        with daemon.client() as client:
            rows: dict[str, dict[str, Any]] = {}
            before = None
            while page := client.commands(limit=1000, before=before)["commands"]:
                rows.update((row["id"], row) for row in page)
                before = page[-1]["id"]
            assert set(acknowledged) <= set(rows), "acknowledged commands are missing"
            over = [client.wait_command(name, timeout_s=60) for name in rows]
            assert {row["state"] for row in over} <= {"DONE", "FAILED", "SUPERSEDED"}
        wms = daemon.wms("toy").read()

    done = Counter(row["verb"] for row in over if row["state"] == "DONE")
    assert done["submit"] > 0
    assert done["cancel"] > 0
    of_token = Counter(run.tokens[0] for run in wms.runs.values())
    assert set(of_token) <= tokens
    assert max(of_token.values()) == 1, "a token was submitted twice"
    submitted = {row["token"] for row in over if row["verb"] == "submit" and row["state"] == "DONE"}
    assert submitted == set(of_token), "the journal and the WMS disagree on what was submitted"
    restarts = Counter(row["token"] for row in over if row["verb"] == "restart" and row["state"] == "DONE")
    for run in wms.runs.values():
        assert run.attempt == 1 + restarts[run.tokens[0]], "a restart was lost or done twice"


@pytest.mark.parametrize("torn", ["journal.db", "store.db"])
def test_a_kill_and_a_torn_database_lose_no_run(state_dir: Path, torn: str) -> None:
    with RunningDaemon(state_dir, {"toy": {"type": "scripted"}}) as daemon:
        with daemon.client() as client:
            runs = [client.submit_document(WORKFLOW, backend="toy")["run"] for _ in range(5)]
            until(lambda: {r["state"] for r in client.list_runs()["runs"]} == {"PENDING"}, "all are in the WMS")
        daemon.kill()
        for path in (daemon.state / torn, daemon.state / f"{torn}-wal"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        daemon.start()

        with daemon.client() as client:
            until(lambda: len(client.list_runs()["runs"]) == 5, "all runs are shown again")
            until(lambda: {r["state"] for r in client.list_runs()["runs"]} == {"PENDING"}, "in their state")
            assert sorted(r["id"] for r in client.list_runs()["runs"]) == sorted(runs)
