"""Many people at once before one real daemon with its embedded backend."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio

from bpsd import wire
from tests.integration.daemons import RunningDaemon, document, true_job
from tests.integration.local_support import opened

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


async def test_checks_at_the_same_moment_do_not_disturb_one_another(tmp_path: Path) -> None:
    said: list[tuple[int, str]] = []
    async with opened(tmp_path) as local, anyio.create_task_group() as group:

        async def ask() -> None:
            said.append(await local.service.ping())

        for _ in range(4 * CROWD):
            group.start_soon(ask)

    assert {status for status, _ in said} == {0}, said
