"""Bulk: ``blob.put`` into the spool, ``validate`` of what lies there, ``logs`` of jobs."""

from __future__ import annotations

__all__ = ["Bulk"]

import base64
from collections.abc import Awaitable
from itertools import islice
from pathlib import Path

import anyio
import msgspec

from bpsd import wire
from bpsd.api.deps import Deps
from bpsd.api.paging import PAGE_BYTES
from bpsd.api.uploads import Uploads
from bpsd.api.workflows import Checked
from bpsd.commands.submit import check_submission
from bpsd.errors import (
    BackendAuthError,
    BackendUnavailable,
    BpsdError,
    InvalidParams,
    JobNotFound,
    Problem,
    UnsupportedOperation,
    WorkflowInvalid,
)
from bpsd.messages import (
    BlobPut,
    BlobPutResult,
    LogsParams,
    LogsResult,
    ProblemRow,
    ValidateParams,
    ValidateResult,
)
from bpsd.poller import Backend
from bpsd.server import Call
from bpsd.slices import nearest_of

MOST_NEARBY = 1000
"""Jobs of a run among which the nearest to a mistyped name is looked for."""

CHECKS_AT_ONCE = 2
"""How many documents one backend is asked to check at once: some adapters ask the WMS."""


class Bulk:
    """The methods that move documents and output."""

    def __init__(self, deps: Deps, uploads: Uploads) -> None:
        self._deps, self._uploads = deps, uploads
        self._checks: dict[str, anyio.CapacityLimiter] = {}

    def put(self, call: Call, params: BlobPut) -> Awaitable[BlobPutResult]:
        """A piece of a document, which belongs to the connection; answered when it is durable."""
        self._uploads.own(call, params.sha256)
        return self._put(call.peer.uid, params)

    async def _put(self, uid: int, params: BlobPut) -> BlobPutResult:
        try:
            data = base64.b64decode(params.data, validate=True)
        except ValueError as exc:  # not base64, or not even ASCII
            raise InvalidParams(f"blob.put: data is not base64: {exc}") from exc
        have = await self._deps.spool.put(params.sha256, params.size, params.offset, data, uid)
        return BlobPutResult(have=have, complete=have >= params.size)

    async def validate(self, call: Call, params: ValidateParams) -> ValidateResult:
        """Everything that is wrong with a document, for one backend: what a submission of it would be told."""
        deps = self._deps
        backend = deps.backend(params.backend)
        deps.check_submitter(call.peer, backend)
        blob = await deps.spool.open_blob(params.blob, call.peer.uid)
        token = wire.new_token()  # names the scratch file only
        try:
            checked = await deps.workflows.check(
                blob,
                params.source,
                backend=backend.name,
                capabilities=backend.service.capabilities,
                token=token,
                uid=call.peer.uid,
            )
            more = await self._ask_adapter(backend, call.peer.uid, checked, blob, params.source)
        except WorkflowInvalid as exc:
            problems = [ProblemRow(key=p.key, message=p.message, line=p.line, column=p.column) for p in exc.problems]
            return ValidateResult(ok=False, backend=backend.name, problems=problems, total=exc.total)
        finally:
            await anyio.to_thread.run_sync(deps.workflows.drop, token)
        return ValidateResult(
            ok=True,
            backend=backend.name,
            warnings=[*checked.warnings, *more],
            name=checked.file.name,
            job_count=checked.file.job_count,
            labels=checked.labels,
        )

    async def _ask_adapter(self, backend: Backend, uid: int, checked: Checked, blob: Path, source: str) -> list[str]:
        """Let the backend check a workflow as it does before a submission; returns warnings.

        Raises
        ------
        WorkflowInvalid
            If a submission would be refused.
        """
        deadline_s = backend.settings.commands_deadline_s
        try:
            async with self._checks.setdefault(backend.name, anyio.CapacityLimiter(CHECKS_AT_ONCE)):
                with anyio.fail_after(deadline_s):
                    await check_submission(backend.service, uid, checked.file)
        except WorkflowInvalid as exc:
            raise await self._deps.workflows.place(blob, source, exc) from exc
        except TimeoutError:
            why = f"no answer within {deadline_s:g} s"
        except (BackendUnavailable, BackendAuthError) as exc:
            why = str(exc)
        except BpsdError as exc:
            raise WorkflowInvalid(source, [Problem((), str(exc))]) from exc
        else:
            return []
        return [f"backend {backend.name} could not check this now; it does so when you submit: {why}"]

    async def logs(self, call: Call, params: LogsParams) -> LogsResult:
        """A piece of what a job printed, as text that ends at a whole character."""
        deps = self._deps
        record, jobs, _ = await deps.find(params.run, params.backend)
        deps.sight(call).check_output(call.peer.user, record)
        if jobs is not None and len(jobs) and jobs.find(params.job) is None:
            near = await nearest_of(params.job, islice(jobs.names(), MOST_NEARBY))
            raise JobNotFound(
                f"run {record.run_id} has no job {params.job}",
                advice=f"did you mean {' or '.join(near)}?" if near else "`bpsctl jobs` lists them",
                nearest=near,
            )
        if not record.wms_id:
            raise JobNotFound(
                f"run {record.run_id} has no logs: " + (record.note or "it is not submitted yet"),
                advice=f"`bpsctl status {record.run_id}` tells how it stands",
            )
        backend = deps.backend(record.backend)
        if not deps.can(backend.name, "reads_output"):
            raise UnsupportedOperation(
                f"backend {backend.name} cannot show the output of jobs",
                advice="look into the run's folder on the submit host" + (f": {record.path}" if record.path else ""),
            )
        with anyio.fail_after(backend.settings.polling.deadline_s):
            service = backend.service
            wms_id = deps.cache.order_id(record, service)
            piece = await service.read_output(wms_id, params.job, params.stream, params.offset, params.limit)
        data, text = _fitting_text(piece.data, at_end=piece.offset + len(piece.data) >= piece.size)
        return LogsResult(
            run=record.run_id,
            job=params.job,
            text=text,
            offset=piece.offset,
            next=piece.offset + len(data),
            size=piece.size,
            path=piece.path,
        )


def _fitting_text(data: bytes, *, at_end: bool) -> tuple[bytes, str]:
    """As much of ``data`` as fits a message, and what it is as text (a control character takes six bytes of JSON)."""
    data = _whole_characters(data, at_end=at_end)
    text = data.decode("utf-8", "replace")
    while len(msgspec.json.encode(text)) > PAGE_BYTES:
        data = _whole_characters(data[: len(data) // 2], at_end=False)
        text = data.decode("utf-8", "replace")
    return data, text


def _whole_characters(data: bytes, *, at_end: bool) -> bytes:
    """``data`` without the beginning of a character whose rest is in the next piece."""
    if at_end:
        return data
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # the last byte that begins a character (RFC 3629)
            length = 1 if byte < 0x80 else 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4
            return data[:-back] if length > back else data
    return data
