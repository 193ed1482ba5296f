"""HTCondor as a backend: DAGMan runs it, the pool's own command line tools are asked, here or over SSH."""

from __future__ import annotations

__all__ = ["HTCondorService"]

import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import anyio
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
from bpsd.models import KnownRun, PollRequest, PollResult, Question, TokenAnswer, WmsRunReport
from bpsd.pathchecks import cannot_write_in, expanded
from bpsd.workflow import WorkflowFile
from bpsd_adapters.htcondor import policy, scripts
from bpsd_adapters.htcondor.classads import Ad, JobStatus, as_number, as_text
from bpsd_adapters.htcondor.fields import FIELDS
from bpsd_adapters.htcondor.finder import Finder, all_of_them, named_jobs
from bpsd_adapters.htcondor.hostclock import HostClock
from bpsd_adapters.htcondor.observe import HISTORY, Ids, dag_file
from bpsd_adapters.htcondor.pool import Pool
from bpsd_adapters.htcondor.prepare import PROBLEMS_MAX, Answer, prepare
from bpsd_adapters.htcondor.runfiles import Room, RunFiles
from bpsd_adapters.htcondor.settings import HTCondorConfig
from bpsd_adapters.htcondor.submission import DAG_FILE
from bpsd_adapters.htcondor.watch import Watcher, source_name
from bpsd_adapters.quarantine import Quarantine
from bpsd_adapters.transports.base import FileInfo, Transport
from bpsd_adapters.transports.settings import check_host, make_transport

_FORCEX = re.compile(r"(?:^|(?<=\s))-forcex(?:$|(?=\s))")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]+")
TOOLS = ("condor_q", "condor_history", "condor_submit", "condor_submit_dag", "condor_rm")
"""Programs of the pool without which nothing works."""

STDERR, STDOUT = "stderr", "stdout"

SLOWEST_UPLOAD_BYTES_PER_S = 1_000_000.0
"""How much longer the files of a large run may take."""

MOST_BYTES = 1 << 40
"""No limit of what is read for one run that somebody asks for by hand."""


class HTCondorService(WmsService):
    """Runs in an HTCondor pool, ours and those that people submit by themselves."""

    Config: ClassVar[type[msgspec.Struct]] = HTCondorConfig

    @classmethod
    def check_settings(cls, config: HTCondorConfig) -> Sequence[Problem]:
        """See `WmsService.check_settings`."""
        problems = check_host(config.ssh, config.bin_dir, config.environment, TOOLS)
        if config.ssh is None and (wrong := cannot_write_in(expanded(config.submit_root))):
            problems.append(Problem(("submit_root",), wrong))
        return problems

    def __init__(self, config: HTCondorConfig, context: ServiceContext) -> None:
        super().__init__(config, context)
        self._settings = config
        self._quarantine = Quarantine(context.log, context.backend, expected=(OSError,))
        self._root: str | None = None

    async def __aenter__(self) -> Self:
        config = self._settings
        path = () if config.bin_dir is None else (config.bin_dir,)
        environment = dict(config.environment)
        if config.schedd is not None:
            environment["_CONDOR_SCHEDD_HOST"] = config.schedd
        self._transport: Transport = await make_transport(config.ssh, environment, path)
        self._pool = Pool(self._transport, config.command_deadline_s, config.owner)
        schedds = (None, *config.schedds)
        self._finder = Finder(self._pool, self.context.backend, schedds)
        self._watcher = Watcher(self._pool, schedds, config.history_days, config.read_bytes, self._quarantine)
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(exc_type, exc, tb)

    @property
    def capabilities(self) -> Capabilities:
        """See `WmsService.capabilities`; each schedd is a source of its own."""
        schedds = (None, *self._settings.schedds)
        return Capabilities(
            fields=FIELDS,
            sources=(*(source_name(kind, schedd) for kind in ("queue", "history") for schedd in schedds), "log"),
            settle_s=self._settings.settle_s,
            holds=True,
            reads_output=True,
        )

    def folders(self) -> tuple[Path, ...]:
        """Return the folder of the runs, unless it is on another host."""
        return (Path(self._settings.submit_root).expanduser(),) if self._settings.ssh is None else ()

    # -- submit ------------------------------------------------------------------------------------------------------

    async def prepare(
        self, config: Mapping[str, Any], generic_workflow: WorkflowFile, out_prefix: str | None = None
    ) -> WmsWorkflow:
        """See `WmsService.prepare`: the run's folder is whole, or is not there."""
        root, name = await self._submit_root(), _folder_name(generic_workflow)
        folder = posixpath.join(root, name)
        if await self._transport.stat(posixpath.join(folder, DAG_FILE)) is None:
            archive = self.context.state_dir / f"{generic_workflow.token}.tar"
            try:
                await self._check(generic_workflow.name, await prepare(generic_workflow, folder, archive))
                data = await anyio.Path(archive).read_bytes()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.Path(archive).unlink(missing_ok=True)
            done = await self._transport.run(
                ["sh", "-c", scripts.UNPACK, "sh", root, name],
                input=data,
                deadline_s=self._settings.command_deadline_s + len(data) / SLOWEST_UPLOAD_BYTES_PER_S,
            )
            done.check(self._transport.host)
        return WmsWorkflow(name=generic_workflow.name, token=generic_workflow.token, submit_path=folder)

    async def check_workflow(self, config: Mapping[str, Any], generic_workflow: WorkflowFile) -> None:
        """See `WmsService.check_workflow`: whether the run's files can be written and its programs are there."""
        folder = posixpath.join(await self._submit_root(), _folder_name(generic_workflow))
        await self._check(generic_workflow.name, await prepare(generic_workflow, folder, None))

    async def submit(self, workflow: WmsWorkflow, **kwargs: Any) -> None:
        """See `WmsService.submit`: the script on the submit host submits once, whatever breaks."""
        attempt = f"{workflow.token}.1"
        more = (workflow.name,)
        cluster = await self._once(scripts.SUBMIT, workflow.submit_path, attempt, DAG_FILE, *more)
        workflow.run_id = Ids(None, cluster).text()
        await self._write_info(workflow.submit_path, Ids(None, cluster))

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

    async def _check(self, source: str, looked: Answer) -> None:
        """Raise what HTCondor cannot be told, and what is not on the submit host."""
        problems = [Problem(found.where, found.message) for found in looked.problems]
        total = looked.total
        for path, job in looked.executables.items() if self._settings.check_executables else ():
            found: FileInfo | None = await self._transport.stat(path)
            if found is None or found.is_dir:
                total += 1
                message = f"there is no program {path} on {self._transport.host} (job {job})"
                problems.append(Problem(("jobs",), message))
        if problems:
            raise WorkflowInvalid(source, problems[:PROBLEMS_MAX], total=total)

    async def _once(
        self, script: str, folder: str, attempt_token: str, dag: str, *more: str, schedd: str | None = None
    ) -> int:
        """Run a script that has an effect once, on the schedd; returns the cluster."""
        argv = ["sh", "-c", script, "sh", folder, attempt_token, dag]
        if schedd is not None:
            argv = ["env", f"_CONDOR_SCHEDD_HOST={schedd}", *argv]
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
        why = policy.refusal(done.stderr.decode(errors="replace")) if done.returncode != 0 else ""
        if why:
            raise Conflict(
                f"HTCondor on {self._transport.host} refused the run: {why}",
                advice="change what it refuses, or ask the administrators of the pool; then submit again",
            )
        text = done.check(self._transport.host).stdout.decode().strip()
        if not text.isdecimal():
            raise BackendUnavailable(f"condor_submit did not say which cluster it made: {done.error_text}")
        return int(text)

    async def _write_info(self, folder: str, ids: Ids) -> str:
        """``NAME.info.json``, by which bps finds the run of a folder, and the run's id. Without it all goes on."""
        ad: Ad | None = None
        try:
            ad = (await self._finder.run(ids.text())).ad
            schedd = (as_text(ad, "GlobalJobId") or "").partition("#")[0]
            facts = {key: value for key, value in ad.items() if key.startswith("bps_")}
            facts |= {"ClusterId": ids.cluster, "GlobalJobId": ad.get("GlobalJobId")}
            data = msgspec.json.encode({schedd: {f"{ids.cluster}.0": facts}})
            await self._transport.write(posixpath.join(folder, "run.info.json"), data)
        except (BpsdError, OSError) as exc:
            self.context.log.info(LogEvent.INFO_FILE_NOT_WRITTEN, backend=self.context.backend, error=str(exc))
        return ids.text(ad)

    # -- commands ----------------------------------------------------------------------------------------------------

    async def restart(
        self, wms_workflow_id: str, *, attempt_token: str | None = None
    ) -> tuple[str | None, str | None, str]:
        """See `WmsService.restart`: from the rescue file, as ``bps restart`` does, but once, and where the run was."""
        ad, ids, _ = await self._finder.run(wms_workflow_id)
        dag, name = dag_file(ad), as_text(ad, "bps_run")
        if dag is None:
            raise Conflict(f"run {wms_workflow_id} does not say where its DAG is")
        folder = as_text(ad, "Iwd") or posixpath.dirname(dag)
        file = posixpath.relpath(dag, folder)  # below it for a run of condor_submit_dag -usedagdir
        token = attempt_token or f"{as_text(ad, 'bps_token') or 'restart'}.after-{as_number(ad, 'ClusterId')}"
        found = await self.find_by_token(token, self.context.clock())
        if found.verdict == "found":
            return found.wms_id, name, ""
        live = await self._finder.newest_in(folder, live=True)
        if live is not None:
            raise Conflict(
                f"a run of {folder} is in the queue ({live.wms_id})", advice="wait for its end, or cancel it"
            )
        total, done = as_number(ad, "DAG_NodesTotal"), as_number(ad, "DAG_NodesDone")
        if total is not None and total == done and as_number(ad, "ExitCode") == 0:
            raise Conflict(f"all jobs of run {wms_workflow_id} are done")
        if await self._transport.stat(dag) is None:
            raise Conflict(
                f"the folder {folder} of run {wms_workflow_id} is not on {self._transport.host}, or its DAG is gone",
                advice="restart it where it was submitted",
            )
        cluster = await self._once(scripts.RESTART, folder, token, file, schedd=ids.schedd)
        return await self._write_info(folder, Ids(ids.schedd, cluster)), name, ""

    async def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        """See `WmsService.cancel`; asked again, it removes what its DAGMan left behind.

        ``-forcex`` in ``pass_thru`` forgets what is removed but cannot be reached (HTCondor allows it for nothing
        else); the rest of it is a constraint that the run must fulfil, as in ``bps cancel``.
        """
        found = await self._finder.run(wms_id)
        extra = _FORCEX.sub(" ", pass_thru or "").strip()
        constraint = all_of_them(found.itself(), extra)
        if found.source == HISTORY:
            if as_number(found.ad, "JobStatus") == JobStatus.COMPLETED:
                return False, f"run {wms_id} is over already"
            if not (await self._pool.left_behind(found.ids.schedd, [found.ad])).get(found.ids.cluster):
                return True, ""
            constraint = await self._finder.members(found)
        elif extra and not (await self._pool.queue(found.ids.schedd, constraint, ("ClusterId",))).ads:
            return False, f"run {wms_id} does not fulfil {extra}"
        if _FORCEX.search(pass_thru or ""):
            going = f"({constraint}) && JobStatus == {JobStatus.REMOVED:d}"
            await self._pool.act("condor_rm", found.ids.schedd, "-forcex", "-constraint", going)
        constraint = f"({constraint}) && JobStatus != {JobStatus.REMOVED:d}"
        return await self._act("condor_rm", found.ids.schedd, constraint)

    async def hold(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """See `WmsService.hold`: DAGMan and what waits in the queue; what runs goes on."""
        return await self._change("condor_hold", wms_id, jobs, "JobStatus == 1", "JobStatus != 5")

    async def release(self, wms_id: str, jobs: tuple[str, ...] = ()) -> tuple[bool, str]:
        """See `WmsService.release`: whatever of the run, or of these jobs, is held."""
        return await self._change("condor_release", wms_id, jobs, "JobStatus == 5", "JobStatus == 5")

    async def _change(self, tool: str, wms_id: str, jobs: Sequence[str], which: str, dagman: str) -> tuple[bool, str]:
        """Act on jobs of a run in a certain state, in calls that a command line can carry."""
        found = await self._finder.run(wms_id)
        members = await self._finder.members(found)
        whole = f"({members} && {which}) || ({found.itself()} && {dagman})"
        named = [f"{members} && {which} && {names}" for names in named_jobs(jobs)]
        for constraint in named or [whole]:
            agreed, message = await self._act(tool, found.ids.schedd, constraint)
            if not agreed:
                return False, message
        return True, ""

    async def _act(self, tool: str, schedd: str | None, constraint: str) -> tuple[bool, str]:
        """Act on jobs; that there are none which the tool could change is as good as done."""
        done = await self._pool.act(tool, schedd, "-constraint", constraint)
        if done.returncode == 0 or not (await self._pool.queue(schedd, constraint, ("ClusterId",), limit=1)).ads:
            return True, ""
        return False, done.error_text

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
        if request.question is not None:
            return await self._answer(request.question)
        return await self._watcher.poll(request)

    async def _answer(self, question: Question) -> PollResult:
        """What upstream's readers ask: one run in full, or a summary by the DAGs' own counters."""
        if question.wms_id is not None:
            found = await self._finder.run(question.wms_id)
            watcher = Watcher(self._pool, (found.ids.schedd,), question.hist, MOST_BYTES, self._quarantine)
            return PollResult(observations=(await watcher.look(found),))
        pool = Pool(self._transport, self._settings.command_deadline_s, self._settings.owner, question.pass_thru)
        schedds = await self._finder.every_schedd() if question.is_global else (None, *self._settings.schedds)
        result = await Watcher(pool, schedds, question.hist, 0, self._quarantine).poll(PollRequest())
        once = {seen.global_wms_id: seen for seen in reversed(result.observations)}
        return msgspec.structs.replace(result, observations=[*once.values()][::-1], more=False)

    async def report(
        self,
        wms_workflow_id: str | None = None,
        user: str | None = None,
        hist: float = 0,
        pass_thru: str | None = None,
        is_global: bool = False,
        return_exit_codes: bool = False,
    ) -> tuple[list[WmsRunReport], str]:
        """See `WmsService.report`. A run is found after its end too; one that was restarted is its newest attempt."""
        message = ""
        if wms_workflow_id is not None:
            try:
                named = await (self._finder.namesakes if is_global else self._finder.all_of)(wms_workflow_id)
            except RunNotFound as exc:
                return [], exc.message
            if len(named) > 1:
                ids = ", ".join(as_text(found.ad, "GlobalJobId") or found.wms_id for found in named)
                return [], f"More than one job matches id '{wms_workflow_id}', their global ids are: {ids}"
            if not named:
                return [], f"no schedd knows a run {wms_workflow_id}"
            newest = await self._finder.newest_in(as_text(named[0].ad, "Iwd") or "") or named[0]
            if newest.key != named[0].key:
                message = f"run {named[0].wms_id} was restarted as {newest.wms_id}"
            wms_workflow_id = newest.key
        reports, amiss = await super().report(wms_workflow_id, user, hist, pass_thru, is_global, return_exit_codes)
        return reports, "\n".join(filter(None, (message, amiss)))

    async def list_submitted_jobs(
        self,
        wms_id: str | None = None,
        user: str | None = None,
        require_bps: bool = True,
        pass_thru: str | None = None,
        is_global: bool = False,
    ) -> list[str]:
        """See `WmsService.list_submitted_jobs`: what ``bps cancel`` would cancel, jobs without a DAGMan included."""
        extra = _FORCEX.sub(" ", pass_thru or "").strip()
        return await self._finder.submitted(wms_id, user, require_bps=require_bps, extra=extra, is_global=is_global)

    async def find_by_token(self, token: str, since: float) -> TokenAnswer:
        """See `WmsService.find_by_token`: queues and whole histories; proof of absence after ``settle_s``."""
        return await self._finder.by_token(token, lambda: since + self._settings.settle_s - self.context.clock())

    async def read_output(self, wms_id: str, job: str, stream: str, offset: int, limit: int) -> OutputPiece:
        """See `WmsService.read_output`. Runs of ``bps submit`` have one file for both streams."""
        run = await self._finder.run(wms_id)
        dag = dag_file(run.ad)
        files = self._watcher.files_of(run.key)
        if files is None and dag is not None:
            files = RunFiles(self._transport, dag, HostClock(), run.ids.cluster)
            try:
                await files.update(Room())
            except OSError as exc:
                raise RunNotFound(f"the files of run {wms_id} cannot be read: {exc}") from exc
        label = files.tracker.label_of(job) if files is not None else None
        cluster = files.tracker.cluster_of(job) if files is not None else None
        if dag is None or files is None or label is None:
            raise JobNotFound(f"run {wms_id} has no job {job}")
        if cluster is None:
            raise JobNotFound(f"job {job} of run {wms_id} has not been submitted yet")
        suffixes = ("err", "out") if stream == STDERR else ("out",)
        paths = [path for suffix in suffixes for path in await self._output_files(files, job, cluster, suffix)]
        folder = posixpath.dirname(paths[0]) if paths else posixpath.dirname(dag)
        for path in paths:
            found = await self._transport.stat(path)
            if found is not None:
                begin = max(0, found.size + offset) if offset < 0 else offset
                data = await self._transport.read(path, begin, limit)
                return OutputPiece(data=data, offset=begin, size=found.size, path=path)
        raise JobNotFound(f"job {job} of run {wms_id} has no {stream} yet in {folder}")

    async def _output_files(self, files: RunFiles, job: str, cluster: int, suffix: str) -> list[str]:
        """Return the paths where a job's output may be: next to its submit file, the newest start first."""
        placed = files.tracker.node(job)
        if placed is None:
            return []
        dag, node = placed
        folder = posixpath.normpath(posixpath.join(files.base_of(dag), node.folder))
        plain = posixpath.join(folder, f"{job}.{cluster}.{suffix}")
        if await self._transport.stat(plain) is not None:
            return [plain]
        try:
            names = await self._transport.listdir(folder)
        except OSError:
            return [plain]
        of_starts = re.compile(rf"{re.escape(f'{job}.{cluster}.')}(\d+)\.{suffix}")
        numbered = [(int(found[1]), name) for name in names if (found := of_starts.fullmatch(name)) is not None]
        return [posixpath.join(folder, name) for _, name in sorted(numbered, reverse=True)] or [plain]

    def order_id(self, run: KnownRun) -> str:
        """See `WmsService.order_id`: the global id, which no schedd gives twice."""
        return run.key

    def resolve_id(self, text: str) -> tuple[str, ...]:
        """See `WmsService.resolve_id`."""
        ids = Ids.parse(text)
        if ids is None or ids.schedd is not None:
            return (text,)
        return tuple(dict.fromkeys((ids.text(), text)))


def _folder_name(workflow: WorkflowFile) -> str:
    """The name of a run's folder under ``submit_root``."""
    return f"{_UNSAFE.sub('_', workflow.name)[:80]}-{workflow.token}"
