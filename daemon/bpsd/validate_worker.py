"""The helper process that validates large workflows, so that the daemon's loop never stops for one.

``python -m bpsd.validate_worker`` reads one line of JSON on its standard input::

    {"input": PATH, "source": NAME, "output": PATH, "fields": {FIELD: [SUPPORT, REASON]}, "backend": NAME,
     "token": TOKEN}

(all but ``input`` and ``source`` may be missing) and writes one line on its standard output, either ::

    {"ok": true, "name": ..., "token": ..., "run": {...}, "job_count": ..., "run_summary": ..., "labels": {...},
     "size_bytes": ..., "warnings": [...]}

after ``output`` holds the canonical form (complete or not at all; only its owner can read it), or ::

    {"ok": false, "code": ..., "message": ..., "advice": ..., "total": ...,
     "problems": [{"key": ..., "message": ..., "line": ..., "column": ...}]}

where ``code`` is a key of `bpsd.wire.ERRORS`. A token is written into the run's attributes as ``bps_token``.
"""

from __future__ import annotations

__all__ = ["Instructions", "main", "work"]

import contextlib
import gc
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from bpsd import validation
from bpsd.errors import BpsdError, LimitExceeded, StorageError

NICENESS = 10
"""Added to the daemon's: checking 100,000 jobs keeps a core busy for seconds while the daemon has to answer."""


class Instructions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to do; ``output`` empty means to validate only."""

    input: str
    source: str
    output: str = ""
    fields: dict[str, tuple[str, str]] = {}
    backend: str = ""
    token: str = ""


def work(instructions: Instructions) -> dict[str, Any]:
    """Validate, write the canonical form, and answer."""
    try:
        return _validate(instructions)
    except BpsdError as exc:
        data = exc.data()
        answer = {"ok": False, "message": exc.message, "advice": exc.advice, "code": exc.code}
        return answer | {name: data[name] for name in ("problems", "total") if name in data}


def _validate(instructions: Instructions) -> dict[str, Any]:
    try:
        content = Path(instructions.input).read_bytes()
        valid = validation.validate(
            content, instructions.source, fields=instructions.fields, backend=instructions.backend
        )
        del content
        run = valid.workflow.run
        if instructions.token:
            run.attrs = {**run.attrs, "bps_token": instructions.token}
        canonical = validation.canonical_json(valid.workflow)
        if instructions.output:
            _write(Path(instructions.output), canonical)
    except OSError as exc:
        raise StorageError(
            f"cannot read or keep the workflow {instructions.source}: {exc.strerror or exc}",
            advice="nothing was submitted; see to the daemon's state folder (`bpsctl version` names it) and try again",
        ) from exc
    except MemoryError as exc:
        raise LimitExceeded(
            f"the workflow {instructions.source} does not fit into memory", advice="split it into several runs"
        ) from exc
    return {
        "ok": True,
        "name": valid.workflow.name,
        "token": instructions.token,
        "run": msgspec.to_builtins(run),
        "job_count": valid.job_count,
        "run_summary": valid.run_summary,
        "labels": dict(valid.label_counts),
        "size_bytes": len(canonical),
        "umask": valid.workflow.umask or "",
        "warnings": list(valid.warnings),
    }


def _write(path: Path, content: bytes) -> None:
    """Write a file that is complete, durable and its owner's alone, or not there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def main() -> int:
    """Serve one line."""
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(NICENESS)
    gc.disable()  # a workflow has no cycles to collect, and this process ends when it is written: 1 s of 100,000 jobs
    instructions = msgspec.json.decode(sys.stdin.buffer.readline(), type=Instructions)
    sys.stdout.buffer.write(msgspec.json.encode(work(instructions)) + b"\n")
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
