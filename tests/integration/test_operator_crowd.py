"""Many people at once before one real daemon with its embedded backend."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bpsd import wire
from tests.integration.daemons import RunningDaemon, document, true_job

CROWD = 12
"""How many runs are submitted at the same moment."""


def test_runs_submitted_at_the_same_moment_all_succeed(state_dir: Path) -> None:
    backend = {"type": "local", "ledger": str(state_dir / "ledger"), "commands_at_once": CROWD}
    with RunningDaemon(state_dir, {"here": backend}) as daemon:

        def submit(number: int) -> tuple[str, str]:
            with daemon.client() as client:
                command = client.submit_document(document(true_job(f"a_{number}")), token=wire.new_token())
                command = client.wait_command(command["id"])
                return command["state"], command["note"]

        with ThreadPoolExecutor(CROWD) as pool:
            outcomes = list(pool.map(submit, range(CROWD)))

    assert {state for state, _ in outcomes} == {"DONE"}, outcomes
