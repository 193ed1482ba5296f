"""Polls of a pool whose tools and files are scripted: what is asked, how often, and what is told of it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import CapturingLogger

from bpsd.errors import BackendUnavailable, DeadlineExceeded
from bpsd.models import KnownRun, PollRequest, PollResult, WmsStates
from bpsd_adapters.htcondor import jobs
from bpsd_adapters.htcondor.classads import CHILD_COLUMNS
from bpsd_adapters.htcondor.jobs import RUNS_AT_ONCE
from bpsd_adapters.htcondor.pool import Pool
from bpsd_adapters.htcondor.runfiles import RunFiles
from bpsd_adapters.htcondor.watch import DENIED_S, Watcher
from bpsd_adapters.quarantine import Quarantine
from bpsd_adapters.transports.base import Completed
from bpsd_adapters.transports.scripted import ScriptedTransport, answer

NOW = 1795377025

QUIET = structlog.wrap_logger(CapturingLogger(), processors=[lambda _logger, _method, entry: ((), entry)])
"""The default logger would read source files to show a traceback, and block the loop."""


def ad(cluster: int, **more: Any) -> dict[str, Any]:
    """A DAGMan job that runs."""
    return {
        "ClusterId": cluster,
        "ProcId": 0,
        "JobUniverse": 7,
        "GlobalJobId": f"here#{cluster}.0#1",
        "JobStatus": 2,
        "Iwd": f"/r/{cluster}",
        "UserLog": "run.dag.dagman.log",
        "QDate": NOW - 10,
        "EnteredCurrentStatus": NOW - 10,
        **more,
    }


def ended(cluster: int, **more: Any) -> dict[str, Any]:
    return ad(cluster, JobStatus=4, ExitCode=0, **more)


def log(cluster: int, *nodes: str) -> bytes:
    """Each node is submitted and ends well."""
    text = ""
    for number, node in enumerate(nodes):
        head = f"({cluster * 100 + number:03}.000.000) 2026-11-22 19:50:25"
        text += f"000 {head} Job submitted from host: <x>\n    DAG Node: {node}\n...\n"
        text += f"005 {head} Job terminated.\n\t(1) Normal termination (return value 0)\n...\n"
    return text.encode()


class Site:
    """A pool with one schedd, or more."""

    def __init__(self, *schedds: str, read_bytes: int = 1 << 20) -> None:
        self.queue: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.old: list[dict[str, Any]] = []
        self.children: list[dict[str, Any]] = []
        self.transport = ScriptedTransport(self._reply)
        self.quarantine = Quarantine(QUIET, "pool", expected=(OSError,))
        self.watcher = Watcher(Pool(self.transport, 30.0), (None, *schedds), 2.0, read_bytes, self.quarantine)
        self.last = PollResult()

    def _reply(self, argv: Sequence[str], _: bytes) -> Completed | None:
        if argv[0] == "date":
            return answer(f"{NOW}.5 +0000\n")
        if argv[0] == "stat":
            found = [path for path in argv[4:] if path in self.transport.files]
            return answer("".join(f"{len(self.transport.files[path])} {path}\0" for path in found))
        constraint = argv[argv.index("-constraint") + 1]
        if "-af:tV" in argv:
            clusters = [int(number) for number in constraint.partition("{")[2].partition("}")[0].split(",")]
            rows = [job for job in self.children if job["DAGManJobId"] in clusters and argv[0] == "condor_q"]
            return answer("".join("\t".join(_column(job.get(name)) for name in CHILD_COLUMNS) + "\n" for job in rows))
        if "-name" in argv:
            return answer(b"[\n]\n")
        if argv[0] == "condor_q":
            since = int(constraint.rpartition(">= ")[2].rstrip(")"))
            jobs = [each for each in self.queue if each["JobUniverse"] == 7 or each["EnteredCurrentStatus"] >= since]
            return answer(msgspec.json.encode(jobs))
        wanted = [int(number) for number in re.findall(r"ClusterId == (\d+)", constraint)]
        if wanted:
            return answer(msgspec.json.encode([each for each in self.old if each["ClusterId"] in wanted]))
        since = int(argv[argv.index("-since") + 1].rpartition(" ")[2])
        return answer(msgspec.json.encode([a for a in self.history if a["EnteredCurrentStatus"] >= since]))

    def folder(self, cluster: int, *nodes: str, said: bytes | None = None) -> None:
        """The files of a run."""
        dag = "".join(f"JOB {node} jobs/{node[0]}/x.sub\n" for node in nodes)
        self.transport.files[f"/r/{cluster}/run.dag"] = dag.encode()
        self.transport.files[f"/r/{cluster}/run.dag.nodes.log"] = log(cluster, *nodes) if said is None else said

    async def poll(self, *known: KnownRun, cursor: str | None = "last", deadline_s: float = 60.0) -> PollResult:
        self.transport.calls.clear()
        after = self.last.cursor if cursor == "last" else cursor
        self.last = await self.watcher.poll(PollRequest(cursor=after, known=known, deadline_s=deadline_s))
        return self.last

    def asked(self, tool: str) -> list[tuple[str, ...]]:
        return [call for call in self.transport.calls if call[0] == tool]


def _column(value: Any) -> str:
    return "undefined" if value is None else f'"{value}"' if isinstance(value, str) else str(value)


def told(result: PollResult) -> dict[str, tuple[str | None, int]]:
    """Of each run its state and how many jobs changed."""
    return {s.wms_id: (None if s.state is None else s.state.name, len(s.jobs)) for s in result.observations}


async def test_nothing_new_is_one_question_and_no_jobs() -> None:
    site = Site()
    site.queue = [ad(7)]
    site.folder(7, "a_1", "b_1")
    assert told(await site.poll()) == {"7.0": ("RUNNING", 2)}

    result = await site.poll(KnownRun(run_id="r", wms_id="7.0", cursor=site.last.run_cursors["here#7.0#1"]))

    assert told(result) == {"7.0": ("RUNNING", 0)}
    assert [call[0] for call in site.transport.calls] == ["condor_q"]
    assert {(source.name, source.status) for source in result.sources} == {("queue", "ok"), ("history", "ok")}


async def test_the_history_is_read_when_a_run_left_the_queue_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    site.queue = [ad(7), ad(8)]
    for cluster in (7, 8, 9):
        site.folder(cluster, "a_1")
    known = [KnownRun(run_id=f"r{n}", wms_id=f"{n}.0") for n in (7, 8)]
    await site.poll(*known)
    site.queue, site.history = [ad(8)], [ended(7)]

    assert told(await site.poll(*known)) == {"7.0": ("SUCCEEDED", 1), "8.0": ("RUNNING", 1)}
    assert len(site.asked("condor_history")) == 1
    assert told(await site.poll(known[1])) == {"7.0": ("SUCCEEDED", 0), "8.0": ("RUNNING", 1)}
    assert site.asked("condor_history") == []
    site.history += [ended(9)]  # came and went between two polls
    monkeypatch.setattr("bpsd_adapters.htcondor.watch.HISTORY_EVERY_S", 0.0)
    assert told(await site.poll(known[1])) == {
        "7.0": ("SUCCEEDED", 0),
        "9.0": ("SUCCEEDED", 1),
        "8.0": ("RUNNING", 1),
    }
    monkeypatch.undo()
    await site.poll(cursor=None)  # from the beginning: what was read last does not reach so far
    assert len(site.asked("condor_history")) == 1


async def test_no_full_ads_ever() -> None:
    site = Site("other")
    site.queue, site.history = [ad(7)], [ended(8)]
    await site.poll(KnownRun(run_id="r9", wms_id="9.0"))

    asked = [call for call in site.transport.calls if call[0].startswith("condor_")]
    assert len(asked) >= 7
    assert all("-attributes" in call or "-af:tV" in call for call in asked)


@pytest.mark.parametrize("again", [False, True])
async def test_what_there_is_no_room_for_is_told_in_further_polls_and_ends_with_its_last_job(again: bool) -> None:
    """Of runs that ended long ago too, and once more for a daemon that has forgotten all; what was told is let go."""
    site = Site(read_bytes=100)
    site.history = [ended(n, EnteredCurrentStatus=NOW - 80_000) for n in range(1, 30)]
    for n in range(1, 30):
        site.folder(n, "a_1")
    if again:
        while (await site.poll()).more:
            pass
    runs, jobs = dict[str, WmsStates | None](), dict[str, WmsStates]()
    polls, kept, cursor = 0, [], None
    while polls == 0 or site.last.more:
        for seen in (await site.poll(cursor=cursor)).observations:
            runs[seen.wms_id] = seen.state
            jobs.update((seen.wms_id, job.state) for job in seen.jobs)
        files = [site.watcher.files_of(f"{n}.0") for n in range(1, 30)]
        kept.append(sum(file is not None and file.is_loaded for file in files))
        polls, cursor = polls + 1, "last"

    assert polls > 2
    assert runs == jobs == {f"{n}.0": WmsStates.SUCCEEDED for n in range(1, 30)}
    assert max(kept) <= 2 * RUNS_AT_ONCE
    assert told(await site.poll()) == {}


async def test_the_jobs_of_a_run_that_is_over_are_told_once() -> None:
    site = Site()
    site.history = [ended(7)]
    site.folder(7, "a_1", "b_1")

    assert told(await site.poll()) == {"7.0": ("SUCCEEDED", 2)}
    assert told(await site.poll()) == {"7.0": ("SUCCEEDED", 0)}
    earlier = site.last.cursor
    assert told(await site.poll()) == {"7.0": ("SUCCEEDED", 0)}
    assert told(await site.poll(cursor=earlier)) == {"7.0": ("SUCCEEDED", 2)}  # the last answer came to nothing


async def test_a_log_is_read_to_its_end_although_it_was_measured_before_the_run_ended() -> None:
    site = Site()
    site.queue = [ad(n) for n in range(1, 7)]
    for n in range(1, 7):
        site.folder(n, "a_1", said=b"")
    known = tuple(KnownRun(run_id=f"r{n}", wms_id=f"{n}.0") for n in range(1, 7))
    await site.poll(*known)
    measured = site.transport.calls

    site.queue, site.history = [], [ended(n) for n in range(1, 7)]
    files = {f"/r/{n}/run.dag.nodes.log": log(n, "a_1") for n in range(1, 7)}
    read = site.transport._reply

    def reply(argv: Sequence[str], data: bytes) -> Completed | None:
        said = read(argv, data)
        if argv[0] == "condor_history":
            site.transport.files.update(files)
        return said

    site.transport._reply = reply
    result = await site.poll(*known)

    assert measured is site.transport.calls
    assert len(site.asked("stat")) == 1
    assert told(result) == {f"{n}.0": ("SUCCEEDED", 1) for n in range(1, 7)}


async def test_a_history_that_denied_a_run_is_not_read_for_it_in_every_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site("other")
    known = [KnownRun(run_id=f"r{n}", wms_id=f"{n}.0", token="t" * 20) for n in range(1, 4)]
    known += [KnownRun(run_id="r9", wms_id="other#9.0#1")]
    site.old = [ended(3, bps_token="t" * 20), ended(2, bps_token="u" * 20)]
    site.folder(3, "a_1")

    result = await site.poll(*known)

    assert result.absent == ("1.0", "2.0", "other#9.0#1")
    assert told(result)["3.0"][0] == "SUCCEEDED"
    assert len(site.asked("condor_history")) == 2 + 2  # each schedd's own, and one for all that miss there
    assert (await site.poll(known[0], known[1])).absent == ("1.0", "2.0")
    assert len(site.asked("condor_history")) == 0
    monkeypatch.setattr("bpsd_adapters.htcondor.watch.DENIED_S", DENIED_S * -1)
    assert (await site.poll(known[0])).absent == ("1.0",)
    assert len(site.asked("condor_history")) == 1


async def test_an_id_that_the_schedd_gave_again_is_another_run() -> None:
    """The older run is looked for by its global id; its jobs and its end are not those of the run in the queue."""
    site = Site()
    site.queue = [ad(1, GlobalJobId="here#1.0#900", QDate=900, Iwd="/r/1")]
    site.folder(1, "a_1")
    old = KnownRun(run_id="rold", wms_id="1.0", global_wms_id="here#1.0#100")

    result = await site.poll(old)

    assert [seen.key for seen in result.observations] == ["here#1.0#900"]
    assert result.absent == ("here#1.0#100",)
    (asked,) = [call for call in site.asked("condor_history") if "ClusterId == 1" in call[2]]
    assert 'GlobalJobId =?= "here#1.0#100"' in asked[2]

    site.watcher._denied.clear()
    site.old = [ended(1, GlobalJobId="here#1.0#900"), ended(1, GlobalJobId="here#1.0#100", QDate=100, Iwd="/r/2")]
    result = await site.poll(old)

    states = {seen.key: seen.state for seen in result.observations}
    assert states == {"here#1.0#900": WmsStates.RUNNING, "here#1.0#100": WmsStates.SUCCEEDED}
    assert set(result.run_cursors) == set(states)
    assert not result.absent


async def test_a_run_of_a_schedd_that_is_not_named_any_more_is_none_of_ours() -> None:
    """Every schedd counts by itself: ours has a run of the same number."""
    site = Site()
    site.old = [ended(9)]
    site.folder(9, "a_1")
    elsewhere, ours = KnownRun(run_id="r1", wms_id="other#9.0#1"), KnownRun(run_id="r2", wms_id="here#9.0#1")

    assert [seen.key for seen in (await site.poll(elsewhere, ours)).observations] == ["here#9.0#1"]
    assert site.last.absent == ("other#9.0#1",)


async def test_no_question_is_longer_than_a_command_line() -> None:
    """As after a schedd that lost its queue and its history: nobody knows any of hundreds of runs."""
    site = Site()
    known = [KnownRun(run_id=f"r{n}", wms_id=f"{n}.0", token="t" * 20) for n in range(100_000, 102_500)]
    absent: list[int] = []
    longest = 0
    while len(absent) < 5:
        absent.append(len((await site.poll(*known)).absent))
        longest = max(longest, *(len(word) for call in site.asked("condor_history") for word in call))

    assert absent == [500, 1000, 1500, 2000, 2500]
    assert longest < 128 * 1024


async def test_a_log_that_is_gone_is_no_evidence_and_the_pool_is_asked_instead() -> None:
    site = Site()
    site.queue = [ad(7), ad(8)]
    for cluster in (7, 8):
        site.folder(cluster, "a_1")
        del site.transport.files[f"/r/{cluster}/run.dag"]
    site.children = [
        {"DAGManJobId": cluster, "ClusterId": cluster * 10, "JobStatus": 2, "NumJobStarts": 1, "bps_job_name": "a_1"}
        for cluster in (7, 8)
    ]
    result = await site.poll()
    assert told(result) == {"7.0": ("RUNNING", 1), "8.0": ("RUNNING", 1)}
    assert len(site.asked("condor_q")) == 1 + 1  # for both together
    assert "cannot be read" in str(result.observations[0].specific_info)

    site.folder(7, "a_1")
    assert [job.state for job in (await site.poll()).observations[0].jobs] == [WmsStates.SUCCEEDED]
    del site.transport.files["/r/7/run.dag.nodes.log"]
    (seen, _) = (await site.poll()).observations
    assert [(job.name, job.state) for job in seen.jobs] == [("a_1", WmsStates.RUNNING)]


async def test_one_run_that_cannot_be_read_is_nobody_elses_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    site.queue = [ad(7), ad(8)]
    site.folder(7, "a_1")
    site.folder(8, *(f"a_{n}" for n in range(50)))
    monkeypatch.setattr("bpsd_adapters.htcondor.runfiles.MAX_DAG_BYTES", 100)

    result = await site.poll()

    assert told(result) == {"7.0": ("RUNNING", 1), "8.0": ("RUNNING", 0)}
    assert "larger than 100 bytes" in str(result.observations[1].specific_info)


async def test_a_schedd_that_hangs_is_waited_for_once_a_minute_and_only_once() -> None:
    site = Site("other")
    site.queue = [ad(7)]
    site.folder(7, "a_1")
    answers = site.transport._reply

    def reply(argv: Sequence[str], data: bytes) -> Completed | None:
        if "-name" in argv:
            raise DeadlineExceeded("condor_q did not end within 30 s")
        return answers(argv, data)

    site.transport._reply = reply
    for asked in (1, 0):
        result = await site.poll()
        assert told(result)["7.0"][0] == "RUNNING"
        assert len([call for call in site.transport.calls if "-name" in call]) == asked
        assert {(source.name, source.status) for source in result.sources} == {
            ("queue", "ok"),
            ("history", "ok"),
            ("queue of other", "failed"),
            ("history of other", "failed"),
        }


async def test_a_poll_that_failed_makes_nobody_read_the_logs_again() -> None:
    site = Site()
    site.queue = [ad(7)]
    site.folder(7, "a_1")
    await site.poll()
    known = KnownRun(run_id="r7", wms_id="7.0", cursor=site.last.run_cursors["here#7.0#1"])
    answers = site.transport._reply
    site.transport._reply = lambda argv, data: answer(b"", 1, "no") if argv[0] == "condor_q" else answers(argv, data)

    assert told(await site.poll(known)) == {}
    site.transport._reply = answers
    assert told(await site.poll(known)) == {"7.0": ("RUNNING", 0)}
    site.queue = []
    await site.poll()
    await site.poll()
    assert site.watcher.files_of("here#7.0#1") is None


async def test_what_fails_for_all_comes_as_one_error() -> None:
    site = Site()
    site.transport._reply = lambda argv, _: answer(b"", 1, "no") if argv[0] == "date" else None

    with pytest.raises(BackendUnavailable, match="date on scripted failed"):
        await site.poll()


async def test_an_old_rescue_file_that_was_set_aside_counts_no_more() -> None:
    site = Site()
    site.queue = [ad(7)]
    site.folder(7, "a_1", "b_1", said=b"")
    files = site.transport.files
    files["/r/7/run.dag.rescue001.old"] = b"DONE a_1\nDONE b_1\n"
    files["/r/7/run.dag.rescue001"] = b"DONE a_1\n"

    (seen,) = (await site.poll()).observations

    assert {job.name: job.state.name for job in seen.jobs} == {"a_1": "SUCCEEDED", "b_1": "UNREADY"}


async def test_a_clock_that_is_off_is_said() -> None:
    offset_s = (await Site().poll()).clock_offset_s

    assert offset_s is not None
    assert abs(time.time() + offset_s - NOW) < 60  # when it is by the scripted host's clock


async def test_jobs_on_hold_are_asked_for_again_when_a_log_is_read_again() -> None:
    """Though it is read to its end in the next poll only: no log tells that a job was submitted on hold."""
    site = Site()
    site.queue = [ad(7), held(7, 700, "a_1")]
    site.folder(7, "a_1", "b_1", said=submitted(700, "a_1"))
    known = KnownRun(run_id="r", wms_id="7.0")
    assert states(await site.poll(known))["a_1"] is WmsStates.HELD
    path = "/r/7/run.dag.nodes.log"
    site.transport.files[path] = submitted(700, "a_1")[:-20]

    assert (await site.poll(known)).more
    site.transport.files[path] = submitted(700, "a_1")
    await site.poll(known)
    assert states(await site.poll(known))["a_1"] is WmsStates.HELD


def held(dagman: int, cluster: int, node: str) -> dict[str, Any]:
    """A job that was submitted on hold, long ago."""
    return {
        "ClusterId": cluster,
        "ProcId": 0,
        "JobUniverse": 5,
        "JobStatus": 5,
        "DAGManJobId": dagman,
        "DAGNodeName": node,
        "EnteredCurrentStatus": NOW - 10_000,
    }


def submitted(cluster: int, node: str) -> bytes:
    head = f"000 ({cluster}.000.000) 2026-11-22 17:03:45 Job submitted from host: <x>"
    return f"{head}\n    DAG Node: {node}\n...\n".encode()


def states(result: PollResult) -> dict[str, WmsStates]:
    return {job.name: job.state for seen in result.observations for job in seen.jobs}


@pytest.mark.parametrize(("owner", "name"), [(RunFiles, "update"), (RunFiles, "finish"), (jobs, "observe_run")])
async def test_an_unexpected_error_in_one_run_stays_with_that_run(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """Reading, finishing or observing one run breaks: the other run is told as ever, and the error is the note."""
    site = Site()
    site.history = [ended(7), ended(8)]
    for cluster in (7, 8):
        site.folder(cluster, "a_1")
    whole = getattr(owner, name)

    def poisoned(*arguments: Any, **more: Any) -> Any:
        first = arguments[0]
        if (first._cluster if isinstance(first, RunFiles) else first["ClusterId"]) == 7:
            raise ZeroDivisionError("poisoned")
        return whole(*arguments, **more)

    monkeypatch.setattr(owner, name, poisoned)
    known = [KnownRun(run_id=str(n), wms_id=f"{n}.0", state=WmsStates.RUNNING) for n in (7, 8)]
    result = await site.poll(*known)
    assert told(result)["8.0"] == ("SUCCEEDED", 1)
    notes = {seen.wms_id: seen.note or "" for seen in result.observations}
    assert "ZeroDivisionError: poisoned" in notes["7.0"]
    assert "poisoned" not in notes["8.0"]
    monkeypatch.undo()
    site.quarantine.retry_now("here#7.0#1")
    result = await site.poll(*known, cursor=None)
    assert told(result) == {"7.0": ("SUCCEEDED", 1), "8.0": ("SUCCEEDED", 1)}
    assert "7.0" not in site.quarantine


async def test_logs_that_were_not_read_are_the_first_of_the_next_poll() -> None:
    site = Site(read_bytes=1)
    site.queue = [ad(cluster) for cluster in range(1, 31)]
    for cluster in range(1, 31):
        site.folder(cluster, "a_1")
    seen: set[str] = set()

    for _ in range(60):
        for cluster in range(1, 11):  # these never stop writing
            site.transport.files[f"/r/{cluster}/run.dag.nodes.log"] += b"..."
        result = await site.poll()
        seen |= {run.wms_id for run in result.observations if any(job.state.name == "SUCCEEDED" for job in run.jobs)}

    assert seen == {f"{cluster}.0" for cluster in range(1, 31)}
