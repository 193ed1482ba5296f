"""Sentences about states, events, commands, mistakes and tails."""

from __future__ import annotations

from typing import Any

import pytest

from bpsd.cli import describe, tails
from bpsd.cli.problems import problem_lines
from bpsd.cli.verbs.backends import field_lines
from bpsd.cli.verbs.status import lines_of

NOW = 1_780_000_000.0


def status(**fields: Any) -> dict[str, Any]:
    """A status as the daemon sends it."""
    return {
        "id": "rbcdfghjk",
        "backend": "here",
        "wms_id": "1234.0",
        "name": "u_alice",
        "state": "RUNNING",
        "code": 15,
        "percent": 40,
        "observed_at": NOW - 3,
        "source": "queue",
        "note": "",
    } | fields


def test_status() -> None:
    assert lines_of(status(), NOW, "RUNNING") == [
        "RUNNING  rbcdfghjk  u_alice  40%",
        "  on here as 1234.0, seen 3 s ago (queue)",
    ]


def test_status_of_a_later_attempt_with_a_note() -> None:
    lines = lines_of(status(attempt=2, note="2 jobs are held", wms_id="rbcdfghjk", name="rbcdfghjk"), NOW, "RUNNING")

    assert lines == [
        "RUNNING  rbcdfghjk  40%  attempt 2",
        "  on here, seen 3 s ago (queue)",
        "  2 jobs are held",
    ]


def test_status_that_is_not_known_any_more_says_what_was() -> None:
    lines = lines_of(
        status(state="UNKNOWN", last_known="RUNNING", last_known_at=NOW - 10800, note="not in queue, history, files"),
        NOW,
        "UNKNOWN",
    )

    assert lines[0] == "UNKNOWN  (was RUNNING 3 h ago; not in queue, history, files)  rbcdfghjk  u_alice  40%"
    assert len(lines) == 2


def test_status_of_a_backend_that_does_not_answer() -> None:
    lines = lines_of(status(stale=True, error="connection refused", observed_at=None), NOW, "RUNNING")

    assert lines[1:] == [
        "  on here as 1234.0, not seen there yet",
        "  the backend does not answer, so this may have changed: connection refused",
    ]


@pytest.mark.parametrize(
    ("kind", "data", "text"),
    [
        ("run.seen", {"name": "u_alice", "row": {}}, "first seen: u_alice"),
        (
            "run.state",
            {"state": "FAILED", "before": "RUNNING", "source": "log", "row": {}},
            "FAILED (was RUNNING), by log",
        ),
        ("run.state", {"state": "READY", "note": "accepted"}, "READY: accepted"),
        ("run.attempt", {"attempt": 2, "wms_id": "77"}, "attempt 2 as 77"),
        (
            "run.conflict",
            {"state": "SUCCEEDED", "source": "log", "other_state": "FAILED", "other_source": "queue"},
            "stays SUCCEEDED by log, though queue says FAILED",
        ),
        ("command.state", {"verb": "cancel", "command": "c1", "state": "DONE", "note": ""}, "cancel c1 DONE"),
        ("backend.state", {"state": "down", "before": "up", "error": "no\nroute"}, "down (was up): no route"),
        (
            "daemon.storage",
            {"file": "store.db", "problem": "no\nspace"},
            "daemon.storage: file store.db, problem no space",
        ),
        ("daemon.start", {}, "daemon.start"),
    ],
)
def test_events(kind: str, data: dict[str, Any], text: str) -> None:
    assert describe.event_text({"kind": kind, "data": data}) == text


def test_event_lines_say_where() -> None:
    event = {"seq": 3, "time": NOW, "kind": "daemon.start", "backend": None, "run": None, "data": {}}

    assert describe.event_line(event).endswith("  bpsd  daemon.start")
    assert describe.event_line(event | {"backend": "here"}).endswith("  here  daemon.start")
    assert describe.event_line(event | {"backend": "here", "run": "r1"}).endswith("  r1 on here  daemon.start")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"verb": "cancel", "state": "DONE", "note": "it had ended"}, "cancelled and gone (it had ended)"),
        ({"verb": "submit", "state": "DONE"}, "submitted"),
        ({"verb": "hold", "state": "FAILED", "error": {"message": "it cannot"}}, "not held: it cannot"),
        ({"verb": "cancel", "state": "FAILED"}, "not cancelled: no reason given"),
        ({"verb": "restart", "state": "EXPIRED", "note": "not tried: here is down"}, "not tried: here is down"),
        ({"verb": "restart", "state": "EXPIRED"}, "not tried in time"),
        ({"verb": "submit", "state": "SUPERSEDED"}, "overtaken by a later command"),
        (
            {"verb": "submit", "state": "IN_DOUBT", "note": "timed out"},
            "in doubt: nobody knows whether it was done: timed out",
        ),
        ({"verb": "submit", "state": "RUNNING"}, "under way"),
        ({"verb": "submit", "state": "ACCEPTED", "note": "here is down"}, "waits: here is down"),
    ],
)
def test_outcomes(row: dict[str, Any], words: str) -> None:
    assert describe.command_outcome(row) == words


def test_mistakes_have_places_that_editors_understand() -> None:
    lines = problem_lines(
        {
            "source": "flow.yaml",
            "total": 5,
            "problems": [
                {"key": "jobs[3].parents[0]", "message": "no job is called isr9", "line": 12, "column": 7},
                {"key": "jobs", "message": "a cycle", "line": 2, "column": 0},
                {"key": "", "message": "not\na mapping", "line": 0, "column": 0},
            ],
        }
    )

    assert lines == [
        "flow.yaml:12:7: jobs[3].parents[0]: no job is called isr9",
        "flow.yaml:2: jobs: a cycle",
        "flow.yaml: not a mapping",
        "flow.yaml: ... and 2 more",
    ]


def test_fields_by_backend() -> None:
    here = {"name": "here", "fields": {"queue": ["refuses", "there is none"], "priority": ["honours", ""]}}
    usdf = {"name": "usdf", "fields": {"queue": ["honours", ""]}}

    assert field_lines([here, usdf]) == [
        "FIELD    here    usdf",
        "-------- ------- -------",
        "queue    refuses honours",
        "priority honours -",
        "",
        "queue on here: refuses: there is none",
    ]


# -- tails -------------------------------------------------------------------------------------------------------------


def test_a_log_commands_no_terminal() -> None:
    text = "\x1b[31mred\x1b[0m\ttab \x1b]0;title\x07done\rover\r\nline\n\x00\x9b"

    assert tails.printable(text) == "red\ttab done\nover\nline\n"


def test_last_lines() -> None:
    assert tails.last_lines("a\nb\nc\n", 2) == "b\nc\n"
    assert tails.last_lines("a\nb", 5) == "a\nb"


def test_names_are_matched_literally() -> None:
    assert tails.literal("isr[1]*?") == "isr[[]1][*][?]"


def test_like_failures_stand_together() -> None:
    def job(name: str, label: str = "isr", code: int = 1) -> dict[str, Any]:
        return {"name": name, "label": label, "exit_code": code}

    groups = tails.grouped(
        [
            (job("isr_1"), "reading\nValueError: no file /data/1.fits\n\n"),
            (job("final", "final", 137), "killed"),
            (job("isr_2"), "other\nValueError: no file /data/22.fits\n"),
            (job("isr_3"), ""),
        ]
    )

    assert [(g["jobs"], g["exit_code"]) for g in groups] == [(["isr_1", "isr_2"], 1), (["final"], 137), (["isr_3"], 1)]
    assert groups[0]["cause"] == "ValueError: no file #"
    assert tails.group_lines(groups[0]) == [
        "== 2 jobs of isr failed, exit code 1: isr_1, isr_2",
        "reading",
        "ValueError: no file /data/1.fits",
    ]


@pytest.mark.parametrize(
    ("job", "head"),
    [
        ({"exit_code": 143, "note": "walltime of 2 s exceeded"}, "walltime of 2 s exceeded"),
        ({"exit_code": None, "note": "cannot start: permission denied: /x"}, "cannot start: permission denied: /x"),
        ({"exit_code": -11}, "signal 11 (SIGSEGV)"),
        ({"exit_code": 3}, "exit code 3"),
    ],
)
def test_the_head_of_a_group_says_why_its_jobs_failed(job: dict[str, Any], head: str) -> None:
    (group,) = tails.grouped([({"name": "isr_1", "label": "isr", **job}, "")])

    assert tails.group_lines(group) == [f"== 1 job of isr failed, {head}: isr_1", "(it printed nothing)"]


MISTAKES = "the workflow wf.yaml has 2 mistakes:\n  wf.yaml: line 3: jobs[0].a: x\n  wf.yaml: jobs[1]: y"
ON_ONE_LINE = "the workflow wf.yaml has 2 mistakes: wf.yaml: line 3: jobs[0].a: x; wf.yaml: jobs[1]: y"


def test_all_mistakes_of_a_rejected_workflow_are_in_its_events() -> None:
    command = {
        "kind": "command.state",
        "data": {"verb": "submit", "command": "c1", "state": "FAILED", "note": MISTAKES},
    }
    run = {"kind": "run.state", "data": {"state": "FAILED", "note": f"not submitted: {MISTAKES}"}}

    assert describe.event_text(command) == f"submit c1 FAILED: {ON_ONE_LINE}"
    assert describe.event_text(run) == f"FAILED: not submitted: {ON_ONE_LINE}"


def test_a_large_group_names_only_some() -> None:
    group = {"label": "isr", "exit_code": None, "jobs": [f"isr_{n}" for n in range(12)], "text": "x"}

    assert tails.group_lines(group)[0].endswith("isr_9 and 2 more")
