"""Event logs of HTCondor: read in pieces of any size, late, twice and damaged; and what they make of the jobs."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from bpsd.models import WmsStates
from bpsd_adapters.htcondor.dagfile import DagShape, parse_dag, parse_node_status, parse_rescue
from bpsd_adapters.htcondor.dagmanout import dagman_errors
from bpsd_adapters.htcondor.eventlog import MAX_EVENT_BYTES, Event, EventKind, EventReader
from bpsd_adapters.htcondor.hostclock import HostClock, zone_of
from bpsd_adapters.htcondor.jobstate import PRE_FAILED, JobstateReader, NodeEvent
from bpsd_adapters.htcondor.tracker import RunTracker

# As HTCondor 23.9.6 writes it, addresses shortened.
LOG = b"""\
000 (002.000.000) 2026-11-22 19:50:25 Job submitted from host: <127.0.0.1:9718>
    DAG Node: A
...
000 (000.2147483647.001) 2026-11-22 19:50:25 Job submitted from host: <dummy-submit-for-noop-job>
    DAG Node: N
...
005 (000.2147483647.001) 2026-11-22 19:50:25 Job terminated.
\t(1) Normal termination (return value 0)
\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Remote Usage
...
001 (002.000.000) 2026-11-22 19:50:25 Job executing on host: <127.0.0.1:9718>
\tSlotName: slot1_1@node7.example.org
...
004 (002.000.000) 2026-11-22 19:50:26 Job was evicted.
\t(0) Job terminated and was requeued
\t(1) Normal termination (return value 3)
...
001 (002.000.000) 2026-11-22 19:50:29 Job executing on host: <127.0.0.1:9718>
...
012 (002.000.000) 2026-11-22 19:50:30 Job was held.
\tvia condor_hold (by user op)
\tCode 1 Subcode 0
...
013 (002.000.000) 2026-11-22 19:50:31 Job was released.
\tvia condor_release (by user op)
...
001 (002.000.000) 2026-11-22 19:50:35 Job executing on host: <127.0.0.1:9718>
...
005 (002.000.000) 2026-11-22 19:50:36 Job terminated.
\t(1) Normal termination (return value 3)
...
"""

DAG = """\
# made by hand
JOB A jobs/isr/isr.sub
VARS A bpsd_job="A" bpsd_label="isr" bpsd_arguments="\\"-c 'echo \\"\\"x\\"\\"'\\""
JOB B "B.sub" DIR "jobs/coadd"
JOB C "C.sub" DIR "jobs/coadd"
JOB N noop.sub NOOP
FINAL F "F.sub" DIR "jobs/finalJob"
SUBDAG EXTERNAL wms_g subdags/wms_g/g.dag
JOB wms_check_status_wms_g "x.sub" DIR "subdags/wms_g"
PARENT A CHILD B
PARENT B CHILD C
"""


def events(data: bytes = LOG, piece: int | None = None) -> list[Event]:
    reader = EventReader(HostClock())
    pieces = [data[n : n + piece] for n in range(0, len(data), piece)] if piece else [data]
    return [event for each in pieces for event in reader.feed(each)]


def tracker(taken: list[Event]) -> RunTracker:
    run = RunTracker()
    run.add_dag("run.dag", parse_dag(DAG))
    run.take(taken)
    return run


def states(run: RunTracker) -> dict[str, str]:
    return {job.name: job.state.name for job in run.changed(None)}


def test_a_log_says_what_happened() -> None:
    seen = events()

    assert [(e.kind.name, e.cluster, e.node) for e in seen[:2]] == [("SUBMIT", 2, "A"), ("SUBMIT", 0, "N")]
    assert seen[3].host == "node7.example.org"
    assert (seen[4].kind, seen[4].exit_code) == (EventKind.EVICTED, 3)
    assert (seen[6].reason, seen[6].code, seen[6].subcode) == ("via condor_hold (by user op)", 1, 0)
    assert seen[0].time == 1795377025.0


def test_times_are_those_of_the_host() -> None:
    there = HostClock(0.0, timezone(timedelta(hours=1)))
    assert EventReader(there).feed(LOG)[0].time == 1795377025.0 - 3600.0
    utc = LOG.replace(b"2026-11-22 19:50:25", b"2026-11-22T19:50:25Z")
    assert EventReader(there).feed(utc)[0].time == 1795377025.0


def executed(*times: str, clock: HostClock) -> list[float]:
    """What is made of events with these times."""
    text = "".join(f"001 (002.000.000) {time} Job executing on host: <x>\n...\n" for time in times)
    return [event.time for event in EventReader(clock).feed(text.encode())]


def test_times_without_a_year_are_of_the_last_twelve_months_or_follow_those_before() -> None:
    now = 1795377025.0  # 2026-11-22 19:50:25

    assert executed("11/22 19:50:25", clock=HostClock(now)) == [now]
    assert executed("12/31 23:59:59", "01/01 00:00:00", clock=HostClock(now)) == [1767225599.0, 1767225600.0]
    assert executed("12/31 23:59:59", "01/01 00:00:00", clock=HostClock(1798761599.0)) == [1798761599.0, 1798761600.0]
    months = [f"{month:02}/01 00:00:00" for month in (12, 1, 2, 3, 4, 5, 6)]  # of a run that is followed so long
    went_on = executed("11/22 19:50:25", "11/25 00:00:00", *months, clock=HostClock(now))
    assert [round((time - now) / 86_400) for time in went_on] == [0, 2, 8, 39, 70, 98, 129, 159, 190]


def test_a_log_goes_on_through_the_hours_that_clocks_are_turned_by() -> None:
    clock = HostClock(0.0, ZoneInfo("Europe/Paris"))
    autumn = executed("2026-10-25 01:59:59", "2026-10-25 02:30:00", "2026-10-25 02:00:01", "2026-10-25 02:00:00",
                      "2026-10-25 02:59:00", "2026-10-25 03:00:00", clock=clock)  # fmt: skip
    began = autumn[0]
    assert [time - began for time in autumn] == [0, 1801, 3602, 3601, 7141, 7201]
    spring = executed("2026-03-29 01:59:59", "2026-03-29 03:00:00", clock=clock)
    assert spring[1] - spring[0] == 1
    before_and_after = executed("2026-07-01 12:00:00", "2026-12-01 12:00:00", clock=clock)
    assert before_and_after == [1782900000.0, 1796122800.0]


def test_the_rules_of_a_zone_are_believed_if_the_host_says_the_same() -> None:
    rules = Path(TZPATH[0], "Europe/Paris").read_bytes()
    summer, winter = 1782900000.0, 1796122800.0

    zone = zone_of(rules, summer, 7200.0)
    assert [datetime.fromtimestamp(moment, zone).hour for moment in (summer, winter)] == [12, 12]
    for other in (zone_of(rules, summer, 3600.0), zone_of(b"", summer, 3600.0), zone_of(rules[:60], summer, 3600.0)):
        assert [datetime.fromtimestamp(moment, other).hour for moment in (summer, winter)] == [11, 12]


@given(st.integers(min_value=1, max_value=200))
def test_pieces_make_no_difference(piece: int) -> None:
    assert events(piece=piece) == events()


@given(st.binary(max_size=300), st.integers(min_value=0, max_value=len(LOG)))
def test_garbage_loses_at_most_its_neighbour(garbage: bytes, place: int) -> None:
    seen = events(LOG[:place] + garbage + b"\n...\n" + LOG[place:])

    assert len([event for event in seen if event in events()]) >= len(events()) - 1


def test_what_never_ends_is_dropped() -> None:
    reader = EventReader(HostClock())

    reader.feed(b"x" * (MAX_EVENT_BYTES + 1))

    assert reader.pending <= 8
    assert reader.skipped == 1


def test_a_job_goes_through_its_attempts() -> None:
    run = tracker(events())

    job = {job.name: job for job in run.changed(None)}["A"]
    assert (job.state, job.exit_code, job.attempt, job.label) == (WmsStates.FAILED, 3, 3, "isr")
    assert states(run) == {"A": "FAILED", "B": "UNREADY", "C": "UNREADY", "F": "UNREADY"}
    assert run.failed()


def test_the_end_of_a_run_prunes_what_waited_for_a_failure() -> None:
    run = tracker(events())

    run.finish(WmsStates.FAILED)

    assert states(run) == {"A": "FAILED", "B": "PRUNED", "C": "PRUNED", "F": "UNREADY"}


def test_a_removed_run_takes_what_was_in_the_queue_with_it() -> None:
    run = tracker(events()[:4])

    run.finish(WmsStates.DELETED)

    assert states(run)["A"] == "DELETED"


@given(st.lists(st.integers(min_value=0, max_value=len(LOG)), max_size=6))
def test_doubled_events_change_nothing(places: list[int]) -> None:
    """A log read again from anywhere before, as after a truncation."""
    once = events()
    again = [event for place in places for event in once[: place % len(once)]]

    assert states(tracker(once + again)) == states(tracker(once))


@given(st.permutations(range(len(events()))))
def test_the_end_wins_in_any_order_once_the_node_is_known(order: list[int]) -> None:
    once = events()
    run = tracker([event for event in once if event.kind is EventKind.SUBMIT])

    run.take([once[n] for n in order if once[n].kind is not EventKind.SUBMIT])

    assert states(run)["A"] == "FAILED"


def test_a_job_submitted_on_hold_is_held_although_its_log_was_written_later() -> None:
    run = tracker(events(LOG[: LOG.index(b"001 (")]))
    submitted = next(job for job in run.changed(None) if job.name == "A")
    cursor = run.cursor

    run.born_held("A", (submitted.time or 0) - 1, "held: by its submit file")

    (held,) = run.changed(cursor)
    assert (held.state, held.time, held.note) == (WmsStates.HELD, submitted.time, "held: by its submit file")


def test_only_what_changed_is_told() -> None:
    run = tracker(events()[:4])
    cursor = run.cursor
    assert run.changed(cursor) == []

    run.take(events()[4:5])

    assert [(job.name, job.state) for job in run.changed(cursor)] == [("A", WmsStates.PENDING)]
    assert len(run.changed("another:7")) == len(run)


def test_a_node_submitted_anew_is_the_next_attempt() -> None:
    anew = [
        Event(kind=EventKind.SUBMIT, cluster=9, proc=0, subproc=0, time=1795377100.0, node="A"),
        Event(kind=EventKind.TERMINATED, cluster=9, proc=0, subproc=0, time=1795377101.0, exit_code=0),
    ]
    run = tracker(events() + anew + events())

    job = {job.name: job for job in run.changed(None)}["A"]
    assert (job.state, job.attempt, job.wms_id) == (WmsStates.SUCCEEDED, 4, "9.0")


def test_a_post_script_has_the_last_word_on_the_node() -> None:
    post = Event(kind=EventKind.POST_SCRIPT, cluster=2, proc=0, subproc=0, time=1795377100.0, exit_code=0)
    run = tracker([*events(), post])

    job = {job.name: job for job in run.changed(None)}["A"]
    assert (job.state, job.exit_code) == (WmsStates.SUCCEEDED, 3)


def test_a_dag_file_names_nodes_labels_and_order() -> None:
    shape: DagShape = parse_dag(DAG)

    assert {n.name: n.label for n in shape.nodes.values() if n.counts} == {
        "A": "isr",
        "B": "coadd",
        "C": "coadd",
        "F": "finalJob",
    }
    assert shape.nodes["F"].final
    assert shape.nodes["wms_g"].subdag == "subdags/wms_g/g.dag"
    assert shape.below({"A"}) == {"B", "C"}


def test_a_rescue_file_names_what_is_done() -> None:
    assert parse_rescue("# Rescue DAG file\nDONE A\n\nDONE B\n# Total\n") == {"A", "B"}


@given(st.text(max_size=200))
def test_any_text_is_some_dag(text: str) -> None:
    shape = parse_dag(text)

    assert all(name == node.name for name, node in shape.nodes.items())


def test_a_node_status_file_tells_what_no_log_does() -> None:
    text = """[
  Type = "NodeStatus";
  Node = "B";
  NodeStatus = 6; /* "STATUS_ERROR" */
  StatusDetails = "PRE script failed with status 1";
  RetryCount = 0;
]
"""
    status = parse_node_status(text)
    assert status == {"B": (6, "PRE script failed with status 1")}
    run = tracker([])

    run.repair(status)
    run.finish(WmsStates.FAILED)

    assert (states(run)["B"], states(run)["C"]) == ("FAILED", "PRUNED")


JOBSTATE = b"""\
1795377000 INTERNAL *** DAGMAN_STARTED 11.0 ***
1795377001 B PRE_SCRIPT_STARTED - - - 1
1795377002 B PRE_SCRIPT_FAILURE - - - 1
1795377003 C SUBMIT_FAILURE - - - 2
1795377004 INTERNAL *** DAGMAN_FINISHED 1 ***
1795377100 INTERNAL *** DAGMAN_STARTED 12.0 ***
1795377101 A SUBMIT 13.0 - - 3
1795377102 A PRE_SCRIPT_FAILURE - - - 3
1795377103 C PRE_SCRIPT_FAILURE - - - 4
1795377104 F SUBMIT_FAILURE - - - 5
"""


@given(st.integers(min_value=1, max_value=400))
def test_dagmans_own_log_tells_of_nodes_that_were_not_submitted_in_this_attempt(piece: int) -> None:
    reader = JobstateReader(12)
    told = [event for n in range(0, len(JOBSTATE), piece) for event in reader.feed(JOBSTATE[n : n + piece])]
    run = tracker(events()[:4])
    run.take_nodes(told)

    assert states(run) == {"A": "RUNNING", "B": "UNREADY", "C": "FAILED", "F": "READY"}
    assert {job.name: job.note for job in run.changed(None) if job.note} == {
        "C": "its pre-command failed",
        "F": "HTCondor did not take it",
    }
    run.repair({"C": (6, "PRE script failed with status 4"), "F": (6, "Job submit failed")})
    run.finish(WmsStates.FAILED)
    assert {job.name: job.note for job in run.changed(None) if job.state is WmsStates.FAILED} == {
        "C": "PRE script failed with status 4",
        "F": "Job submit failed",
    }


def test_a_node_that_is_submitted_after_its_pre_command_failed_is_the_next_attempt() -> None:
    run = tracker([])
    run.take_nodes([NodeEvent(1795377000.0, "A", PRE_FAILED)])
    failed = states(run)["A"]
    run.take(events()[:1])

    job = {job.name: job for job in run.changed(None)}["A"]
    assert (failed, job.state, job.attempt) == ("FAILED", WmsStates.PENDING, 2)


def test_a_hold_of_an_evicted_job_and_its_release_are_one_more_attempt() -> None:
    head = "(002.000.000) 2026-11-22 19:50:25"
    text = (
        f"000 {head} Job submitted from host: <x>\n    DAG Node: A\n...\n001 {head} Job executing on host: <x>\n...\n"
    )
    text += f"004 {head} Job was evicted.\n...\n012 {head} Job was held.\n"
    text += "\tJob raised a signal 9.\n\tCode 3 Subcode 34\n...\n"
    held = {job.name: job for job in tracker(events(text.encode())).changed(None)}["A"]
    assert (held.state, held.exit_code) == (WmsStates.HELD, 137)

    text += f"013 {head} Job was released.\n...\n001 {head} Job executing on host: <x>\n...\n"
    again = {job.name: job for job in tracker(events(text.encode())).changed(None)}["A"]
    assert (again.state, again.attempt) == (WmsStates.RUNNING, 2)


def test_dagmans_errors_are_those_of_its_last_start() -> None:
    start = "11/22/26 19:50:25 ** condor_scheduniv_exec.7.0 (CONDOR_DAGMAN) STARTING UP\n"
    old = "11/22/26 19:50:25 ERROR: an earlier error\n"
    new = "11/22/26 19:50:26 Warning: it is odd\n"
    new += "11/22/26 19:50:26 ERROR: Warning is fatal error because of DAGMAN_USE_STRICT setting\n"

    assert dagman_errors(start + old + start + new) == "ERROR: Warning: it is odd"
    assert dagman_errors(start + "11/22/26 19:50:25 ERROR: the following job(s) failed:\n") == ""


def test_a_dag_file_says_what_is_not_followed_and_which_nodes_are_services() -> None:
    shape = parse_dag("INCLUDE more.dag\nJOB A a.sub\nSERVICE p p.sub\nSPLICE s s.dag\n")

    assert shape.unfollowed == ("INCLUDE", "SPLICE")
    assert (shape.nodes["p"].service, shape.nodes["p"].counts, shape.nodes["A"].counts) == (True, False, True)
