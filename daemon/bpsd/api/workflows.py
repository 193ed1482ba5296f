"""From a document in the spool to a validated workflow in a file, outside the daemon's loop.

Decoding 50 MB of JSON holds the interpreter's lock for most of a second, in whatever thread it is done: documents above
`SMALL_BYTES` go to a helper process (`bpsd.validate_worker`), small ones are done in a thread, since starting Python
would take longer than the work.
"""

from __future__ import annotations

__all__ = ["Checked", "Workflows"]

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from bpsd.errors import BpsdError, DeadlineExceeded, LimitExceeded, Problem, StorageError, WorkflowInvalid
from bpsd.fair import FairSlots
from bpsd.interface import Capabilities
from bpsd.processes import run_process
from bpsd.validate_worker import Instructions, work
from bpsd.validation import placed
from bpsd.workflow import WorkflowFile

SMALL_BYTES = 64 * 1024
"""Documents up to this size are checked in a thread of the daemon."""

DEADLINE_S = 300.0
"""How long a helper may take over one document."""

AT_ONCE = 2
"""How many helpers run at once: each may hold a few hundred MB."""


class Checked(msgspec.Struct, kw_only=True):
    """A workflow that may be submitted."""

    file: WorkflowFile
    warnings: list[str]
    labels: dict[str, int]


class Workflows:
    """Validates documents and keeps the canonical files until their command is over.

    Parameters
    ----------
    folder : `~pathlib.Path`
        Where canonical files lie, one for each token.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._helpers = FairSlots(AT_ONCE)

    def path(self, token: str) -> Path:
        """Where the canonical file of a token lies."""
        return self._folder / f"{token}.json"

    async def check(
        self, blob: Path, source: str, *, backend: str, capabilities: Capabilities, token: str, uid: int
    ) -> Checked:
        """Validate ``blob`` of a user for a backend and write its canonical file.

        Raises
        ------
        WorkflowInvalid
            With every mistake.
        DeadlineExceeded
            If the helper took too long.
        """
        order = Instructions(
            input=str(blob),
            source=source,
            output=str(self.path(token)),
            fields={name: (support.value, note) for name, (support, note) in capabilities.fields.items()},
            backend=backend,
            token=token,
        )
        size = (await anyio.Path(blob).stat()).st_size
        await anyio.to_thread.run_sync(lambda: self._folder.mkdir(mode=0o700, parents=True, exist_ok=True))
        answer = await (anyio.to_thread.run_sync(work, order) if size <= SMALL_BYTES else self._in_helper(order, uid))
        if not answer["ok"]:
            raise _refusal(source, answer)
        facts = {name: answer[name] for name in ("name", "run", "job_count", "run_summary", "size_bytes", "umask")}
        return Checked(
            file=msgspec.convert({"path": order.output, "token": token, **facts}, WorkflowFile),
            warnings=answer["warnings"],
            labels=answer["labels"],
        )

    async def place(self, blob: Path, source: str, mistakes: WorkflowInvalid) -> WorkflowInvalid:
        """What a backend found wrong, with the places in the document, if it is one that a person may have written."""
        if (await anyio.Path(blob).stat()).st_size > SMALL_BYTES:
            return mistakes
        data = await anyio.Path(blob).read_bytes()
        return await anyio.to_thread.run_sync(placed, data, source, mistakes)

    async def _in_helper(self, order: Instructions, uid: int) -> dict[str, Any]:
        async with self._helpers.slot(uid):
            try:
                with anyio.fail_after(DEADLINE_S):
                    done = await run_process(
                        [sys.executable, "-X", "utf8", "-m", "bpsd.validate_worker"],
                        input=msgspec.json.encode(order) + b"\n",
                        env=_environment(os.environ),
                    )
            except TimeoutError as exc:
                raise DeadlineExceeded(
                    f"checking {order.source} took more than {DEADLINE_S:g} s", advice="split the workflow"
                ) from exc
        if done.returncode != 0:
            tail = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise StorageError(
                f"the helper that checks {order.source} ended with {done.returncode}: {tail[0]}",
                advice="is there memory and disk enough for the document?",
            )
        return msgspec.json.decode(done.stdout, type=dict[str, Any])

    def drop(self, token: str) -> None:
        """Remove the canonical file of a token (its command is over); one that cannot be removed is left there."""
        with suppress(OSError):
            self.path(token).unlink(missing_ok=True)


def _refusal(source: str, answer: dict[str, Any]) -> BpsdError:
    """The worker's error as ours."""
    if answer["code"] == WorkflowInvalid.code:
        problems = [
            Problem((p["key"],) if p["key"] else (), p["message"], p["line"], p["column"]) for p in answer["problems"]
        ]
        return WorkflowInvalid(source, problems, total=answer["total"])
    kind = LimitExceeded if answer["code"] == LimitExceeded.code else StorageError
    return kind(answer["message"], advice=answer["advice"])


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The helper needs to find Python's modules, and nothing else of ours."""
    keep = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "BPSD_TEST_SESSION")
    return {name: environ[name] for name in keep if name in environ}
