"""A process that accepts commands and carries them out until it is killed.

``python -m tests.unit.journal_victim PATH`` prints ``ID STATE`` when the journal has said that the
state is durable, and never before.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import anyio

from bpsd import wire
from bpsd.journal import CommandRecord, Journal

CLIENTS = 6


def _say(command: CommandRecord) -> None:
    os.write(1, f"{command.id} {command.state}\n".encode())


async def _client(journal: Journal) -> None:
    while True:
        command, _ = await journal.accept(
            CommandRecord(
                verb="submit",
                backend="here",
                token=wire.new_token(),
                args={"blob": "x" * 500},
                uid=1,
                pid=2,
                user="op",
                accepted_at=time.time(),
            )
        )
        _say(command)
        command = await journal.begin(command.id)
        _say(command)
        await journal.bind(command.run_id, 1, f"{command.run_id}.0", "/somewhere", command.id)
        _say(await journal.finish(command.id, "DONE", result={"wms_id": f"{command.run_id}.0"}))


async def main(path: Path) -> None:
    """Work until killed."""
    async with Journal(path, backups=1) as journal, anyio.create_task_group() as group:
        for _ in range(CLIENTS):
            group.start_soon(_client, journal)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
