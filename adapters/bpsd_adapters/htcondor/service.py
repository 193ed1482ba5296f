"""HTCondor as a backend: DAGMan runs it, the pool's own command line tools are asked, here or over SSH."""

from __future__ import annotations

__all__ = ["HTCondorService"]

import io
import posixpath
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import anyio
import anyio.to_thread
import msgspec

from bpsd.errors import (
    BackendAuthError,
    BackendUnavailable,
    BpsdError,
    Conflict,
    JobNotFound,
    Problem,
    RunNotFound,
    WorkflowInvalid,
)
from bpsd.interface import Capabilities, OutputPiece, ServiceContext, WmsService, WmsWorkflow
from bpsd.logs import LogEvent
from bpsd.models import PollRequest, PollResult, TokenAnswer
from bpsd.workflow import Workflow, WorkflowFile
from bpsd_adapters.htcondor import scripts
from bpsd_adapters.htcondor.classads import Ad, as_number, as_text, literal
from bpsd_adapters.htcondor.fields import FIELDS
from bpsd_adapters.htcondor.observe import Ids, dag_file
from bpsd_adapters.htcondor.pool import IS_RUN, Pool
from bpsd_adapters.htcondor.runfiles import RunFiles
from bpsd_adapters.htcondor.settings import HTCondorConfig
from bpsd_adapters.htcondor.submission import DAG_FILE, Submission, SubmissionProblem, write_submission
from bpsd_adapters.htcondor.watch import Watcher
from bpsd_adapters.transports.base import FileInfo, Transport
from bpsd_adapters.transports.settings import make_transport

_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]+")
STDERR, STDOUT = "stderr", "stdout"


class HTCondorService(WmsService):
    """Runs in an HTCondor pool, ours and those that people submit by themselves."""

    Config: ClassVar[type[msgspec.Struct]] = HTCondorConfig

    def __init__(self, config: HTCondorConfig, context: ServiceContext) -> None:
        super().__init__(config, context)
        self._settings = config
        self._root: str | None = None

    async def __aenter__(self) -> Self:
        config = self._settings
        path = () if config.bin_dir is None else (config.bin_dir,)
        environment = dict(config.environment)
        if config.schedd is not None:
            environment["_CONDOR_SCHEDD_HOST"] = config.schedd
        self._transport: Transport = await make_transport(config.ssh, environment, path)
        self._pool = Pool(self._transport, config.command_deadline_s, config.owner)
        self._watcher = Watcher(self._pool, (None, *config.schedds), config.history_days, config.read_bytes)
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(exc_type, exc, tb)

    @property
    def capabilities(self) -> Capabilities:
        """See `WmsService.capabilities`."""
        return Capabilities(
            fields=FIELDS,
            sources=("queue", "history", "log"),
            settle_s=self._settings.settle_s,
            shares_files=self._settings.ssh is None,
            finds_foreign_runs=True,
            holds=True,
            reads_output=True,
        )

    # -- submit ------------------------------------------------------------------------------------------------------

    async def prepare(
        self, config: Mapping[str, Any], generic_workflow: WorkflowFile, out_prefix: str | None = None
    ) -> WmsWorkflow:
        """See `WmsService.prepare`: the run's folder is whole, or is not there."""
        root = await self._submit_root()
        name = f"{_UNSAFE.sub('_', generic_workflow.name)[:80]}-{generic_workflow.token}"
        folder = posixpath.join(root, name)
        if await self._transport.stat(posixpath.join(folder, DAG_FILE)) is None:
            submission = await anyio.to_thread.run_sync(_write, generic_workflow, folder)
            await self._check_executables(generic_workflow.name, submission)
            archive = await anyio.to_thread.run_sync(_packed, submission)
            done = await self._pool.tool(["sh", "-c", scripts.UNPACK, "sh", root, name], input=archive)
            done.check(self._transport.host)
        return WmsWorkflow(name=generic_workflow.name, token=generic_workflow.token, submit_path=folder)

    async def submit(self, workflow: WmsWorkflow, **kwargs: Any) -> None:
        """See `WmsService.submit`: the script on the submit host submits once, whatever breaks."""
        attempt = f"{workflow.token}.1"
        more = (workflow.name,)
        cluster = await self._once(scripts.SUBMIT, workflow.submit_path, attempt, DAG_FILE, *more)
        workflow.run_id = Ids(None, cluster).text()
        await self._write_info(workflow.submit_path, cluster)

    async def run_submission_checks(self) -> None:
        """See `WmsService.run_submission_checks`."""
        for tool in ("condor_submit_dag", "condor_submit", "tar", "flock"):
            await self._pool.tool([tool, "--help" if tool in ("tar", "flock") else "-help"])

    async def _submit_root(self) -> str:
        if self._root is None:
            root = self._settings.submit_root
            if root.startswith("~/"):
                home = (await self._pool.tool(["sh", "-c", "cd && pwd"])).check(self._transport.host)
                root = posixpath.join(home.stdout.decode().strip(), root[2:])
            self._root = root
        return self._root

    async def _check_executables(self, source: str, submission: Submission) -> None:
        if not self._settings.check_executables:
            return
        problems = []
        for path, job in submission.executables.items():
            found: FileInfo | None = await self._transport.stat(path)
            if found is None or found.is_dir:
                message = f"there is no program {path} on {self._transport.host} (job {job})"
                problems.append(Problem(("jobs",), message))
        if problems:
            raise WorkflowInvalid(source, problems)

    async def _once(self, script: str, folder: str, attempt_token: str, dag: str, *more: str) -> int:
        """Run a script that has an effect once; returns the cluster."""
        argv = ["sh", "-c", script, "sh", folder, attempt_token, dag]
        done = await self._pool.tool([*argv, "once", *more])
        if done.returncode == scripts.IN_DOUBT:
            intent = await self._transport.stat(posixpath.join(folder, f".bpsd.{attempt_token}.intent"))
            answer = await self.find_by_token(attempt_token, 0.0 if intent is None else intent.mtime)
            if answer.verdict == "found" and answer.wms_id is not None:
                ids = Ids.parse(answer.wms_id)
                assert ids is not None
                return ids.cluster
            if answer.verdict != "absent":
                raise BackendUnavailable(
                    f"whether {attempt_token} was submitted is not known yet: {answer.reason}",
                    advice="the pool is asked again until it can tell",
                )
            done = await self._pool.tool([*argv, "again", *more])
        if done.returncode == scripts.NOTHING_TO_RESTART:
            raise Conflict(f"{folder} has no rescue file: there is nothing to restart")
        text = done.check(self._transport.host).stdout.decode().strip()
        if not text.isdecimal():
            raise BackendUnavailable(f"condor_submit did not say which cluster it made: {done.error_text}")
        return int(text)

    async def _write_info(self, folder: str, cluster: int) -> None:
        """``NAME.info.json``, by which bps finds the run of a folder. Without it the run is none the worse."""
        try:
            ad = await self._find(Ids(None, cluster))
            if ad is not None:
                schedd = (as_text(ad, "GlobalJobId") or "").partition("#")[0]
                facts = {key: value for key, value in ad.items() if key.startswith("bps_")}
                facts |= {"ClusterId": cluster, "GlobalJobId": ad.get("GlobalJobId")}
                data = msgspec.json.encode({schedd: {f"{cluster}.0": facts}})
                await self._transport.write(posixpath.join(folder, "run.info.json"), data)
        except (BpsdError, OSError) as exc:
            self.context.log.info(LogEvent.INFO_FILE_NOT_WRITTEN, backend=self.context.backend, error=str(exc))

    # -- commands ----------------------------------------------------------------------------------------------------

    async def restart(
        self, wms_workflow_id: str, *, attempt_token: str | None = None
    ) -> tuple[str | None, str | None, str]:
        """See `WmsService.restart`: from the rescue file, as ``bps restart`` does, but once."""
        ad, _ = await self._run(wms_workflow_id)
        dag, name = dag_file(ad), as_text(ad, "bps_run")
        if dag is None:
            raise Conflict(f"run {wms_workflow_id} does not say where its DAG is")
        folder, file = posixpath.split(dag)
        token = attempt_token or f"{as_text(ad, 'bps_token') or 'restart'}.after-{as_number(ad, 'ClusterId')}"
        found = await self.find_by_token(token, self.context.clock())
        if found.verdict == "found":
            return found.wms_id, name, ""
        for schedd in (None, *self._settings.schedds):
            live = await self._pool.queue(schedd, f"JobUniverse == 7 && Iwd == {literal(folder)}", ("ClusterId",))
            if live.ads:
                raise Conflict(
                    f"a run of {folder} is in the queue ({as_number(live.ads[0], 'ClusterId')}.0)",
                    advice="wait for its end, or cancel it",
                )
        total, done = as_number(ad, "DAG_NodesTotal"), as_number(ad, "DAG_NodesDone")
        if total is not None and total == done and as_number(ad, "ExitCode") == 0:
            raise Conflict(f"all jobs of run {wms_workflow_id} are done")
        cluster = await self._once(scripts.RESTART, folder, token, file)
        await self._write_info(folder, cluster)
        return Ids(None, cluster).text(), name, ""

    async def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        """See `WmsService.cancel`. ``-forcex`` in ``pass_thru`` removes what cannot be reached any more."""
        ad, ids = await self._run(wms_id)
        force = ["-forcex"] if "-forcex" in (pass_thru or "").split() else []
        if not force and as_number(ad, "JobStatus") == 4:
            return False, f"run {wms_id} is over already"
        done = await self._pool.act("condor_rm", ids.schedd, *force, str(ids.cluster))
        if done.returncode == 0 or await self._is_gone(ids):
            return True, ""
        return False, done.error_text

    async def hold(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """See `WmsService.hold`: DAGMan and what waits in the queue; what runs goes on."""
        _, ids = await self._run(wms_id)
        which = _of_run(ids.cluster, jobs, "JobStatus == 1", with_dagman="JobStatus != 5")
        return await self._change("condor_hold", ids, which)

    async def release(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """See `WmsService.release`: whatever of the run is held."""
        _, ids = await self._run(wms_id)
        which = _of_run(ids.cluster, jobs, "JobStatus == 5", with_dagman="JobStatus == 5")
        return await self._change("condor_release", ids, which)

    async def _change(self, tool: str, ids: Ids, constraint: str) -> tuple[bool, str]:
        done = await self._pool.act(tool, ids.schedd, "-constraint", constraint)
        return (True, "") if done.returncode == 0 else (False, done.error_text)

    async def ping(self, pass_thru: str | None = None) -> tuple[int, str]:
        """See `WmsService.ping`: schedd (may we write to it?) and collector."""
        which = ["-name", self._settings.schedd] if self._settings.schedd is not None else []
        asks = {
            "schedd": ["condor_ping", *which, "-type", "schedd", "-table", "WRITE"],
            "collector": ["condor_status", "-schedd", "-limit", "1", "-af", "Name"],
        }
        for part, argv in asks.items():
            try:
                done = await self._pool.tool(argv)
            except (BackendUnavailable, BackendAuthError) as exc:
                return 1, f"{part}: {exc.message}"
            if done.returncode != 0:
                return 1, f"{part}: {done.error_text}"
        return 0, ""

    # -- readers -----------------------------------------------------------------------------------------------------

    async def poll(self, request: PollRequest) -> PollResult:
        """See `WmsService.poll`."""
        return await self._watcher.poll(request)

    async def find_by_token(self, token: str, since: float) -> TokenAnswer:
        """See `WmsService.find_by_token`: queue and whole history; proof of absence after ``settle_s``."""
        attribute = "bps_attempt_token" if "." in token else "bps_token"
        constraint = f"{IS_RUN} && {attribute} =?= {literal(token)}"
        try:
            queue = await self._pool.queue(None, constraint)
            ads = list(queue.ads) or (await self._pool.history(None, constraint)).ads
        except BackendUnavailable as exc:
            return TokenAnswer(verdict="cannot_tell", reason=exc.message)
        if ads:
            ad = max(ads, key=lambda ad: as_number(ad, "ClusterId") or 0)
            return TokenAnswer(verdict="found", wms_id=Ids.of(ad, None).text(ad), path=as_text(ad, "Iwd"))
        wait = since + self._settings.settle_s - self.context.clock()
        if wait > 0:
            return TokenAnswer(verdict="cannot_tell", reason=f"not found, which is proof only in {wait:.0f} s")
        return TokenAnswer(verdict="absent")

    async def read_output(self, wms_id: str, job: str, stream: str, offset: int, limit: int) -> OutputPiece:
        """See `WmsService.read_output`. Runs of ``bps submit`` have one file for both streams."""
        ad, _ = await self._run(wms_id)
        dag = dag_file(ad)
        files = self._watcher.files_of(wms_id)
        if files is None and dag is not None:
            files = RunFiles(self._transport, dag, 0.0)
            try:
                await files.update(self._settings.read_bytes)
            except OSError as exc:
                raise RunNotFound(f"the files of run {wms_id} cannot be read: {exc}") from exc
        label = files.tracker.label_of(job) if files is not None else None
        cluster = files.tracker.cluster_of(job) if files is not None else None
        if dag is None or files is None or label is None:
            raise JobNotFound(f"run {wms_id} has no job {job}")
        if cluster is None:
            raise JobNotFound(f"job {job} of run {wms_id} has not been submitted yet")
        folder = posixpath.join(posixpath.dirname(dag), "jobs", label)
        for suffix in ("err", "out") if stream == STDERR else ("out",):
            path = posixpath.join(folder, f"{job}.{cluster}.{suffix}")
            found = await self._transport.stat(path)
            if found is not None:
                begin = max(0, found.size + offset) if offset < 0 else offset
                data = await self._transport.read(path, begin, limit)
                return OutputPiece(data=data, offset=begin, size=found.size, path=path)
        raise JobNotFound(f"job {job} of run {wms_id} has no {stream} yet in {folder}")

    def resolve_id(self, text: str) -> tuple[str, ...]:
        """See `WmsService.resolve_id`."""
        ids = Ids.parse(text)
        if ids is None or ids.schedd is not None:
            return (text,)
        return tuple(dict.fromkeys((ids.text(), text)))

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _run(self, wms_id: str) -> tuple[Ad, Ids]:
        """A run's ad, by any of its ids or its folder."""
        ids = Ids.parse(wms_id)
        if ids is None and wms_id.startswith("/"):
            constraint = f"{IS_RUN} && Iwd == {literal(wms_id.rstrip('/'))}"
            ads = (await self._pool.queue(None, constraint)).ads or (
                await self._pool.history(None, constraint, "-limit", "1")
            ).ads
            if ads:
                return ads[0], Ids.of(ads[0], None)
        if ids is not None:
            if ids.schedd is not None and ids.schedd not in self._settings.schedds:
                ids = Ids(None, ids.cluster)
            ad = await self._find(ids)
            if ad is not None:
                return ad, ids
        raise RunNotFound(f"backend {self.context.backend} knows no run {wms_id}: not in queue, not in history")

    async def _find(self, ids: Ids) -> Ad | None:
        constraint = f"ClusterId == {ids.cluster} && JobUniverse == 7"
        queue = await self._pool.queue(ids.schedd, constraint)
        if queue.ads:
            return queue.ads[0]
        history = await self._pool.history(ids.schedd, constraint, "-limit", "1")
        return history.ads[0] if history.ads else None

    async def _is_gone(self, ids: Ids) -> bool:
        return not (await self._pool.queue(ids.schedd, f"ClusterId == {ids.cluster}", ("ClusterId",))).ads


def _of_run(cluster: int, jobs: Sequence[str], children: str, *, with_dagman: str) -> str:
    if jobs:
        names = " || ".join(f"bps_job_name =?= {literal(job)}" for job in jobs)
        return f"DAGManJobId =?= {cluster} && ({names})"
    return f"(DAGManJobId =?= {cluster} && {children}) || (ClusterId == {cluster} && {with_dagman})"


def _write(file: WorkflowFile, folder: str) -> Submission:
    """Read the document and write the submission (in a thread)."""
    workflow = msgspec.json.decode(Path(file.path).read_bytes(), type=Workflow)
    try:
        return write_submission(workflow, file.token, folder, file.run_summary)
    except SubmissionProblem as exc:
        raise WorkflowInvalid(file.name, [Problem(exc.where, str(exc))]) from exc


def _packed(submission: Submission) -> bytes:
    """The files as a tar archive; folders come with them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in submission.files.items():
            data = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755 if name in submission.programs else 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
