"""What of the ``bps_plugin`` adapter is pure: words of plugins as evidence, logs of hosts as observations, values."""

from __future__ import annotations

import ast
import base64
import json
import subprocess
import sys
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import CapturingLogger

import bpsd_adapters.bps_plugin
from bpsd.errors import BackendUnavailable
from bpsd.interface import FieldSupport
from bpsd.models import JobObservation, KnownRun, PollRequest, RunObservation, WmsJobReport, WmsRunReport, WmsStates
from bpsd.workflow import JOB_FIELDS
from bpsd_adapters import runlog
from bpsd_adapters.bps_plugin import hosted, worker
from bpsd_adapters.bps_plugin.bridge import BridgedRuns, as_observation, convert_reports, counted, settled
from bpsd_adapters.bps_plugin.entries import Attempt, Entries, Entry, token_and_number
from bpsd_adapters.bps_plugin.fields import fields_of
from bpsd_adapters.bps_plugin.hosted import HostedRuns, RunCursor, observations_of
from bpsd_adapters.bps_plugin.link import WorkerError
from bpsd_adapters.bps_plugin.plugin import Plugin, plain, says_no
from bpsd_adapters.bps_plugin.settings import PANDA_VARIABLES, BpsPluginConfig, Traits, traits_of
from bpsd_adapters.bps_plugin.worker import Entry as WrittenEntry
from bpsd_adapters.bps_plugin.worker import Refused, error_of, locked
from bpsd_adapters.quarantine import Quarantine

TOKEN = "a" * 20


def entry(*ids: str, cancelled: bool = False) -> Entry:
    """A run with an attempt for each id, the first at 1000 s, the next at 2000 s."""
    attempts = {str(n): Attempt("done", wms_id, 1000.0 * n) for n, wms_id in enumerate(ids, 1)}
    return Entry(TOKEN, f"/runs/{TOKEN}", {"run": "u/op/x", "operator": "op"}, attempts, cancelled)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_what_is_known_of_upstream_s_plugins() -> None:
    def traits(plugin: str, **more: Any) -> Traits:
        return traits_of(BpsPluginConfig(plugin=plugin, python="python3", **more))

    assert traits("lsst.ctrl.bps.parsl.ParslService").blocks
    assert traits("lsst.ctrl.bps.htcondor.HTCondorService").token_query
    assert not traits("third.party.ParslService").blocks, "a name alone says nothing"
    assert traits("third.party.Service", blocks=True).blocks
    panda = traits("lsst.ctrl.bps.panda.PanDAService", environment=dict.fromkeys(PANDA_VARIABLES, "http://x"))
    assert not panda.lists


@pytest.mark.parametrize("missing", PANDA_VARIABLES)
def test_panda_needs_all_four_of_its_servers(missing: str) -> None:
    environment = dict.fromkeys(PANDA_VARIABLES, "http://x") | {missing: ""}
    with pytest.raises(ValueError, match=missing):
        BpsPluginConfig(plugin="lsst.ctrl.bps.panda.PanDAService", python="python3", environment=environment)


@pytest.mark.parametrize("plugin", ["lsst.ctrl.bps.parsl.ParslService", "third.party.Service"])
def test_every_field_is_declared(plugin: str) -> None:
    fields = fields_of(plugin)
    assert sorted(fields) == sorted(JOB_FIELDS)
    assert [name for name, (support, why) in fields.items() if support is not FieldSupport.HONOURS and not why] == []


# -- a plugin's word ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "run", "expected"),
    [
        (None, None, None),
        (WmsStates.UNKNOWN, None, None),
        (WmsStates.RUNNING, None, WmsStates.RUNNING),
        (WmsStates.FAILED, entry("7"), WmsStates.FAILED),
        (WmsStates.FAILED, entry("7", cancelled=True), WmsStates.DELETED),
        (WmsStates.SUCCEEDED, entry("7", cancelled=True), WmsStates.SUCCEEDED),
        (WmsStates.FAILED, entry("7", "7"), None),  # the end of the attempt before
        (WmsStates.FAILED, entry("6", "7"), WmsStates.FAILED),
        (WmsStates.RUNNING, entry("7", "7"), WmsStates.RUNNING),
    ],
)
def test_what_a_state_is_worth(state: WmsStates | None, run: Entry | None, expected: WmsStates | None) -> None:
    traits = Traits(failed_if_cancelled=True)
    assert settled(state, run, "7", traits, now=2030.0, settle_s=60.0) is expected


def test_the_end_before_is_believed_after_a_while() -> None:
    assert settled(WmsStates.FAILED, entry("7", "7"), "7", Traits(), 2061.0, 60.0) is WmsStates.FAILED


def test_success_without_jobs_is_no_success() -> None:
    report = WmsRunReport(wms_id="7", state=WmsStates.SUCCEEDED)
    assert counted(report)
    assert not counted(msgspec.structs.replace(report, job_state_counts=dict.fromkeys(WmsStates, 0)))
    assert counted(msgspec.structs.replace(report, job_state_counts={WmsStates.SUCCEEDED: 1}))


def test_our_runs_are_seen_under_their_token_and_attempt() -> None:
    report = WmsRunReport(wms_id="8", path="/elsewhere", operator=None, project="dev")
    ours = as_observation(report, entry("7", "8"), WmsStates.RUNNING)
    assert (ours.token, ours.attempt, ours.operator, ours.project) == (TOKEN, 2, "op", "dev")
    assert ours.path == f"/runs/{TOKEN}"
    foreign = as_observation(report, None, WmsStates.RUNNING)
    assert (foreign.token, foreign.attempt, foreign.path) == (None, None, "/elsewhere")


@pytest.mark.parametrize("order", [1, -1])
async def test_an_id_that_a_new_pool_gives_again_is_that_of_the_later_run(order: int) -> None:
    """A WMS that was built anew counts from 1 again, and folders are read in no order."""
    before, after = entry("1"), Entry("b" * 20, f"/runs/{'b' * 20}", {}, {"1": Attempt("done", "1", 5000.0)})

    class Folders:
        async def ask(self, call: str, deadline_s: float, **arguments: Any) -> Any:
            return {"now": 6000.0, "newest": 5000.0, "entries": msgspec.to_builtins([before, after][::order])}

    entries = Entries(Folders(), 1.0)  # type: ignore[arg-type]
    await entries.refresh()

    assert entries.of_id("1") == after
    assert entries.of_id(before.path) == before


class Pool:
    """A plugin that lists one run of ours, and tells of its jobs if it is well."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0

    async def ask(self, call: str, deadline_s: float, **arguments: Any) -> Any:
        if call == "entries":
            return {"now": 1100.0, "newest": 1000.0, "entries": [msgspec.to_builtins(entry("7"))]}
        jobs = None
        if arguments["arguments"]["wms_workflow_id"] is not None:
            self.asked += 1
            if self.error is not None:
                raise self.error
            jobs = [WmsJobReport(wms_id="8", name="a_1", label="a", state=WmsStates.SUCCEEDED)]
        report = WmsRunReport(
            wms_id="7", state=WmsStates.SUCCEEDED, job_state_counts={WmsStates.SUCCEEDED: 1}, jobs=jobs
        )
        return [msgspec.to_builtins([report], str_keys=True), ""]


QUIET = structlog.wrap_logger(CapturingLogger(), processors=[lambda _logger, _method, entry: ((), entry)])
"""The default logger would read source files to show a traceback, and block the loop."""


def bridged(pool: Any, quarantine: Quarantine | None = None) -> BridgedRuns:
    return BridgedRuns(
        pool,
        Entries(pool, 1.0),
        Traits(),
        deadline_s=1.0,
        settle_s=60.0,
        history_days=2.0,
        quarantine=quarantine or Quarantine(QUIET, "b"),
    )


class Reborn:
    """A plugin whose WMS counts from 1 again: its run 1 is a later one than ours."""

    async def ask(self, call: str, deadline_s: float, **arguments: Any) -> Any:
        if call == "entries":
            return {"now": 9000.0, "newest": 0.0, "entries": []}
        report = WmsRunReport(wms_id="1.0", global_wms_id="s#1.0#900", path="/new", state=WmsStates.RUNNING)
        return [msgspec.to_builtins([report], str_keys=True), ""]


@pytest.mark.parametrize(
    ("known", "absent"),
    [
        ({"global_wms_id": "s#1.0#100"}, ("rold",)),
        ({"global_wms_id": "s#1.0#900", "path": "/old"}, ()),  # the global id settles it
        ({"path": "/old"}, ("rold",)),
        ({"path": "/new"}, ()),
        ({}, ()),
    ],
)
async def test_a_run_whose_id_the_plugin_reports_for_another_run_is_absent(
    known: dict[str, str], absent: tuple[str, ...]
) -> None:
    link = Reborn()
    runs = bridged(link)
    run = KnownRun(run_id="rold", wms_id="1.0", state=WmsStates.RUNNING, **known)  # type: ignore[arg-type]

    result = await runs.poll(PollRequest(known=(run,)))

    assert result.absent == absent
    assert [seen.key for seen in result.observations] == ["s#1.0#900"]


@pytest.mark.parametrize("error", [WorkerError("no", "ValueError", "no", ""), BackendUnavailable("it hangs")])
async def test_jobs_that_could_not_be_asked_for_are_asked_for_again(error: Exception) -> None:
    """Also of a run that is over, so that nothing of it changes any more."""
    pool = Pool()
    runs = bridged(pool)
    pool.error = error
    if isinstance(error, WorkerError):
        assert [source.status for source in (await runs.poll(PollRequest())).sources] == ["partial"]
    else:
        with pytest.raises(BackendUnavailable):
            await runs.poll(PollRequest())
    pool.error = None

    told = await runs.poll(PollRequest(cursor="[]"))

    assert [(seen.wms_id, len(seen.jobs)) for seen in told.observations] == [("7", 1)]
    await runs.poll(PollRequest(cursor=told.cursor))
    assert pool.asked == 2


class TwoRuns(Pool):
    """The pool has a second run."""

    async def ask(self, call: str, deadline_s: float, **arguments: Any) -> Any:
        answer = await super().ask(call, deadline_s, **arguments)
        if call != "entries":
            wanted = arguments["arguments"]["wms_workflow_id"]
            first = answer[0][0]
            answer[0] = [first | {"wms_id": wms_id} for wms_id in ("7", "8") if wanted in (None, wms_id)]
        return answer


@pytest.mark.parametrize("name", ["_observed", "_detail"])
async def test_an_unexpected_error_in_one_run_stays_with_that_run(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Making out a report, or the details of a run, breaks: the other run is told as ever, the error is the note."""
    kept = Quarantine(QUIET, "b")
    runs = bridged(TwoRuns(), kept)
    whole = getattr(BridgedRuns, name)

    def poisoned(self: BridgedRuns, what: Any) -> Any:
        if getattr(what, "wms_id", what) == "7":
            raise ZeroDivisionError("poisoned")
        return whole(self, what)

    monkeypatch.setattr(BridgedRuns, name, poisoned)
    known = tuple(KnownRun(run_id=n, wms_id=n, state=WmsStates.RUNNING) for n in ("7", "8"))
    told = await runs.poll(PollRequest(known=known))
    seen = {one.wms_id: one for one in told.observations}
    assert (seen["8"].state, len(seen["8"].jobs)) == (WmsStates.SUCCEEDED, 1)
    assert "ZeroDivisionError: poisoned" in (seen["7"].note or "")
    assert "poisoned" not in (seen["8"].note or "")
    assert told.absent == ()
    monkeypatch.undo()
    kept.retry_now("7")
    again = await runs.poll(PollRequest(known=known))
    assert {one.wms_id: len(one.jobs) for one in again.observations}["7"] == 1
    assert "7" not in kept


async def test_an_unexpected_error_in_one_log_stays_with_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ("a" * 20, "b" * 20)

    class Logs:
        async def ask(self, call: str, deadline_s: float, **arguments: Any) -> Any:
            if call == "entries":
                entries = [msgspec.structs.replace(entry("x"), token=t, path=f"/runs/{t}") for t in tokens]
                return {"now": 1100.0, "newest": 1000.0, "entries": [msgspec.to_builtins(one) for one in entries]}
            data = base64.b64encode(LOG).decode()
            return {path: {"data": data, "held": False, "there": True, "left": 0} for path in arguments["wanted"]}

    def poisoned(one: Entry, *more: Any) -> Any:
        if one.token == tokens[0]:
            raise ZeroDivisionError("poisoned")
        return observations_of(one, *more)

    kept = Quarantine(QUIET, "b")
    link: Any = Logs()
    runs = HostedRuns(link, Entries(link, 1.0), 1.0, 2.0, kept, end_left=False)
    monkeypatch.setattr(hosted, "observations_of", poisoned)
    known = tuple(KnownRun(run_id=t, wms_id=f"/runs/{t}", token=t, state=WmsStates.RUNNING) for t in tokens)
    told = await runs.poll(PollRequest(known=known))
    assert {one.wms_id for one in told.observations if one.state is WmsStates.SUCCEEDED} == {f"/runs/{tokens[1]}"}
    assert ["poisoned" in (one.note or "") for one in told.observations if one.wms_id == f"/runs/{tokens[0]}"] == [True]
    assert told.absent == ()


def test_exit_codes_go_to_jobs_where_there_is_no_choice() -> None:
    jobs = [WmsJobReport(wms_id=n, name=n, label=n[0], state=WmsStates.FAILED) for n in ("a1", "a2", "b1", "b2")]
    report = WmsRunReport(wms_id="1", jobs=jobs, exit_code_summary={"a": [3, 3], "b": [1, 2]})
    codes = {job.name: job.exit_code for job in as_observation(report, None, None).jobs}
    assert codes == {"a1": 3, "a2": 3, "b1": None, "b2": None}


def test_what_is_no_report_is_an_error() -> None:
    with pytest.raises(BackendUnavailable, match="not what a report looks like"):
        convert_reports([{"state": "fine"}])
    with pytest.raises(BackendUnavailable, match="not a list of reports"):
        convert_reports("none")


def test_a_report_that_is_none_is_an_error_of_its_run() -> None:
    good, garbled = convert_reports([{"wms_id": "7", "total_number_jobs": "nan"}, {"wms_id": "8", "state": 15}])
    assert [report.wms_id for report in good] == ["8"]
    assert list(garbled) == ["7"]
    assert "total_number_jobs" in garbled["7"]


@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), "nan"), (float("-inf"), "-inf"), ("a\ud800b", "a\\ud800b"), ("é☃", "é☃"), (1.5, 1.5), (True, True)],
)
def test_what_json_cannot_say_is_text(value: Any, said: Any) -> None:
    assert plain({"x": [value]}) == {"x": [said]}
    msgspec.json.decode(json.dumps(plain(value), allow_nan=False))


@pytest.mark.parametrize(("text", "parts"), [("abc", ("abc", 1)), ("abc.3", ("abc", 3))])
def test_tokens(text: str, parts: tuple[str, int]) -> None:
    assert token_and_number(text) == parts


# -- logs of hosts -----------------------------------------------------------------------------------------------------

EVENTS: list[dict[str, Any]] = [
    {"e": "begin", "n": 1, "t": 1.0, "pid": 5},
    {"e": "jobs", "t": 2.0, "jobs": [["a", "l", 13, None, ""], ["b", "l", 12, None, ""]]},
    {"e": "jobs", "t": 3.0, "jobs": [["a", "l", 15, None, ""]]},
    {"e": "jobs", "t": 4.0, "jobs": [["a", "l", 19, 3, "broken"], ["b", "l", 20, None, ""]]},
    {"e": "end", "n": 1, "t": 5.0, "state": 19, "note": "1 of 2"},
    {"e": "begin", "n": 2, "t": 6.0, "pid": 6},
    {"e": "jobs", "t": 7.0, "jobs": [["a", "l", 0, 0, ""], ["b", "l", 15, None, ""]]},
    {"e": "jobs", "t": 8.0, "jobs": [["b", "l", 0, 0, ""]]},
    {"e": "end", "n": 2, "t": 9.0, "state": 0, "note": ""},
]
LINES = [runlog.frame(json.dumps(event).encode()) for event in EVENTS]
LOG = b"".join(LINES)


def test_a_run_whose_host_is_gone_is_over_when_its_last_process_is() -> None:
    told, cursor, lost = observations_of(entry("/r"), b"".join(LINES[:3]), False, RunCursor(), 2)
    assert (told[-1].state, lost, cursor.over) == (WmsStates.RUNNING, False, False)
    assert "2 processes of the run still live" in str(told[-1].note)
    again, cursor, lost = observations_of(entry("/r"), b"", False, cursor, 0)
    assert (again[-1].state, lost, cursor.over) == (WmsStates.FAILED, True, True)


def folded(observations: list[RunObservation]) -> dict[int, tuple[WmsStates | None, dict[str, JobObservation]]]:
    """Attempt to its last state and jobs."""
    found: dict[int, tuple[WmsStates | None, dict[str, JobObservation]]] = {}
    for seen in observations:
        assert seen.attempt is not None
        jobs = found.get(seen.attempt, (None, {}))[1] | {job.name: job for job in seen.jobs}
        found[seen.attempt] = (seen.state, jobs)
    return found


def states(observations: list[RunObservation]) -> dict[int, tuple[WmsStates | None, dict[str, WmsStates]]]:
    return {
        n: (state, {name: job.state for name, job in jobs.items()}) for n, (state, jobs) in folded(observations).items()
    }


@given(cuts=st.lists(st.integers(0, len(LOG)), max_size=6))
def test_a_log_may_be_read_in_any_pieces(cuts: list[int]) -> None:
    """Wherever reading stopped, in a line too, the same is seen in the end."""
    cursor, seen = RunCursor(), list[RunObservation]()
    for end in [*sorted(cuts), len(LOG)]:
        found, cursor, lost = observations_of(entry("x"), LOG[cursor.offset : end], True, cursor)
        assert not lost
        seen += found
    whole, _, _ = observations_of(entry("x"), LOG, True, RunCursor())
    assert states(seen) == states(whole)
    assert cursor == RunCursor(len(LOG), 2, over=True)


def test_what_a_whole_log_says() -> None:
    whole, _, _ = observations_of(entry("x"), LOG, False, RunCursor())
    assert states(whole) == {
        1: (WmsStates.FAILED, {"a": WmsStates.FAILED, "b": WmsStates.PRUNED}),
        2: (WmsStates.SUCCEEDED, {"a": WmsStates.SUCCEEDED, "b": WmsStates.SUCCEEDED}),
    }
    job = folded(whole)[1][1]["a"]
    assert (job.exit_code, job.start_time, job.end_time, job.note) == (3, 3.0, 4.0, "broken")
    assert {(seen.wms_id, seen.token, seen.run) for seen in whole} == {(f"/runs/{TOKEN}", TOKEN, "u/op/x")}


@pytest.mark.parametrize("lines", range(1, 5))
def test_a_host_that_is_gone_without_a_word(lines: int) -> None:
    """The run goes no further: FAILED; of a job that ran nobody knows the end."""
    found, cursor, lost = observations_of(entry("x"), b"".join(LINES[:lines]), False, RunCursor())
    assert lost
    assert cursor.over
    state, jobs = states(found)[1]
    assert state is WmsStates.FAILED
    if lines == 3:
        assert jobs == {"a": WmsStates.UNKNOWN, "b": WmsStates.UNREADY}


def test_a_torn_line_is_left_for_later_and_a_damaged_one_passed_over() -> None:
    found, cursor, _ = observations_of(entry("x"), LINES[0] + LINES[1][:-5], True, RunCursor())
    assert cursor.offset == len(LINES[0])
    assert [seen.jobs for seen in found] == [()]
    damaged = LINES[0] + b"x" * 30 + b"\n" + LINES[1]
    found, cursor, _ = observations_of(entry("x"), damaged, True, RunCursor())
    assert cursor.offset == len(damaged)
    assert len(found[0].jobs) == 2


def test_what_a_later_release_writes_is_passed_over() -> None:
    later = runlog.frame(b'{"e":"song","t":1}')
    found, _, _ = observations_of(entry("x"), LINES[0] + later + LINES[1], True, RunCursor())
    assert len(found[0].jobs) == 2


# -- the worker --------------------------------------------------------------------------------------------------------


class Kind(Enum):
    FAILED = 19


class Report:
    run_summary = "a:1"
    wms_id = 12
    state = Kind.FAILED
    job_state_counts: dict[Kind, int] = {Kind.FAILED: 2}  # noqa: RUF012  # as a plugin has it


@pytest.mark.parametrize("said", [b"", b'{"id": 2, "call": "nonsense", "args": {}', b'{"id": 2'])
def test_a_worker_ends_when_its_daemon_is_killed_in_the_middle_of_a_request(tmp_path: Path, said: bytes) -> None:
    first = {"id": 1, "call": "begin", "args": {"root": str(tmp_path / "runs"), "plugin": "x.Y", "settings": {}}}
    for name in ("host", "worker"):
        (tmp_path / f"bpsd_{name}.py").write_bytes(Path(worker.__file__).with_name(f"{name}.py").read_bytes())
    command = [sys.executable, str(tmp_path / "bpsd_worker.py")]

    done = subprocess.run(
        command, input=json.dumps(first).encode() + b"\n" + said, capture_output=True, check=False, timeout=30
    )

    assert done.returncode == 0


def test_values_become_plain() -> None:
    assert plain([1, "a", None, (True, {2: {3}})]) == [1, "a", None, [True, {"2": [3]}]]
    report = plain(Report())
    assert (report["wms_id"], report["state"], report["job_state_counts"]) == ("12", 19, {"19": 2})
    assert plain(Path("/x")) == "/x"
    json.dumps(report)


@pytest.mark.parametrize(
    ("message", "no"),
    [
        ('[[-1, {"status": -1, "message": "no such request"}]]', True),
        ('[false, "not a number"]', True),
        ('[[0, {"message": "Command registered successfully", "status": 0}]]', False),
        ("", False),
        (None, False),
        ("0", False),
        ("[]", False),
        ("it is being removed", False),
    ],
)
def test_an_answer_inside_an_answer(message: Any, no: bool) -> None:
    assert says_no(message) is no


def test_errors_become_replies() -> None:
    def raised(exc: BaseException) -> dict[str, Any]:
        try:
            raise exc
        except BaseException as caught:  # noqa: BLE001  # SystemExit is one of them
            return error_of(caught)

    assert raised(SystemExit("no"))["text"] == "sys.exit('no')"
    assert raised(Refused("Busy", "later")) == {"kind": "Busy", "text": "later", "trace": ""}
    broken = raised(KeyError("x"))
    assert broken["kind"] == "KeyError"
    assert "Traceback" in broken["trace"]
    assert len(raised(ValueError("x" * 10**6))["text"]) < 10_000


def test_an_entry_is_on_the_disk(tmp_path: Path) -> None:
    written = WrittenEntry(tmp_path)
    assert written.attempt(1) == {}
    written.note(1, "begun")
    written.note(1, "done", "7")
    read = msgspec.convert(WrittenEntry(tmp_path).data, Entry)
    assert (read.attempts["1"].state, read.attempts["1"].wms_id, read.ours, read.last) == ("done", "7", True, 1)


def test_settings_of_a_run_are_handed_on_as_they_were_read() -> None:
    """What names other settings is looked up by the plugin; where files go is ours to say."""
    document = {
        "run": {"project": "dev", "payload": "night"},
        "bps_config": {
            "subDirTemplate": "{label}/{tract}",
            "submitPath": "/data/submit/{outputRun}",
            "payload": {"butlerConfig": "/repo"},
            "bps_defined": {"timestamp": "T", "submitPath": "/data/submit/x", "runQgraphFile": "/q.qg"},
            "wmsServiceClass": "bpsd.lsst.BpsdService",
        },
    }
    plugin: Any = SimpleNamespace(name="a.B")
    settings = Plugin.run_settings(plugin, document, Path("/runs/t"), SimpleNamespace(name="u/op/x"))
    assert settings == {
        "subDirTemplate": "{label}/{tract}",
        "submitPath": "/runs/t",
        "uniqProcName": "u_op_x",
        "project": "dev",
        "payload": {"butlerConfig": "/repo", "payloadName": "night"},
        "bps_defined": {
            "timestamp": "T",
            "submitPath": "/runs/t",
            "uniqProcName": "u_op_x",
            "runQgraphFile": "/q.qg",
        },
        "wmsServiceClass": "a.B",
    }


def test_a_run_is_submitted_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpsd_adapters.bps_plugin.worker.LOCK_PATIENCE_S", 0.1)
    with locked(tmp_path), pytest.raises(Refused, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("name", ["worker.py", "plugin.py", "host.py"])
def test_what_is_sent_is_for_older_pythons_and_for_no_bpsd(name: str) -> None:
    """Python 3.10's grammar, and nothing imported but the standard library."""
    source = Path(str(bpsd_adapters.bps_plugin.__file__)).with_name(name).read_text()
    tree = ast.parse(source, feature_version=(3, 10))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert [one for one in imported if one.partition(".")[0] in ("bpsd", "bpsd_adapters", "msgspec", "anyio")] == []
