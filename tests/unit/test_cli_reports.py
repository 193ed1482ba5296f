"""Reports as operators of ``bps report`` know them.

The tables by label and of exit codes were compared with those of lsst-ctrl-bps 30.2026 for 300 random reports; here are
its rules, one by one.
"""

from __future__ import annotations

from typing import Any

import pytest

from bpsd.cli import reports

NOW = 1_780_000_000.0


def row(**fields: Any) -> dict[str, Any]:
    """A row as the daemon sends it."""
    return {
        "id": "rbcdfghjk",
        "backend": "here",
        "wms_id": "1234.0",
        "name": "u_alice_DRP",
        "state": "RUNNING",
        "flag": " ",
        "percent": 40,
        "operator": "alice",
        "project": "dev",
        "campaign": None,
        "payload": "DRP",
        "path": "/data/submit",
        "global_wms_id": "sched#1234.0",
        "observed_at": NOW - 3,
        "source": "queue",
        "counts": {},
    } | fields


UP = {"here": {"state": "up", "stale": False}}


def test_summary_has_the_columns_of_bps_and_ours() -> None:
    rows = [
        row(flag="F"),
        row(id="rxyz23456", wms_id="77", state="SUCCEEDED", percent=100, campaign="quick", observed_at=NOW - 7300),
        row(id="rzzz99999", wms_id="", state="READY", percent=None, observed_at=None, source=""),
    ]

    assert reports.summary_lines(rows, NOW, UP) == [
        "X STATE      %S ID        OPERATOR PROJECT CAMPAIGN PAYLOAD RUN         BACKEND WMS ID AGE SOURCE",
        "- --------- --- --------- -------- ------- -------- ------- ----------- ------- ------ --- ------",
        "F RUNNING    40 rbcdfghjk alice    dev              DRP     u_alice_DRP here    1234.0  3s queue",
        "  SUCCEEDED 100 rxyz23456 alice    dev     quick    DRP     u_alice_DRP here    77      2h queue",
        "  READY     UNK rzzz99999 alice    dev              DRP     u_alice_DRP here             -",
    ]


def test_ids_that_say_nothing_new_have_no_column() -> None:
    lines = reports.summary_lines([row(wms_id="rbcdfghjk")], NOW, UP)

    assert lines[0].split() == [
        "X", "STATE", "%S", "ID", "OPERATOR", "PROJECT", "CAMPAIGN", "PAYLOAD", "RUN", "BACKEND", "AGE", "SOURCE",
    ]  # fmt: skip


def test_site_and_global_id_where_they_are_there() -> None:
    lines = reports.summary_lines([row(site="usdf")], NOW, UP, is_global=True)

    assert " SITE " in lines[0]
    assert " sched#1234.0 " in lines[2]
    assert "1234.0 " not in lines[2].replace("sched#1234.0", "")


def test_stale_rows_are_marked_and_the_backend_says_why() -> None:
    backends: dict[str, dict[str, Any]] = {
        "here": {
            "state": "down",
            "stale": True,
            "last_good_at": NOW - 720,
            "next_poll_at": NOW + 40,
            "error": "refused",
        },
        "usdf": {"state": "up", "stale": False},
    }
    rows = [row(observed_at=NOW - 720), row(state="FAILED", observed_at=NOW - 720), row(backend="usdf")]

    usdf = backends["usdf"]
    usdf |= {"stale_before": NOW - 60, "sources": [{"name": "queue", "status": "ok"}]}
    rows += [row(backend="usdf", observed_at=NOW - 61)]  # one of its sources does not answer

    ages = [line.split()[-2] for line in reports.summary_lines(rows, NOW, backends)[2:]]

    assert ages == ["12m*", "12m", "3s", "61s*"]  # what is over does not change any more
    down = "backend here: not seen for 12 min: refused; next try in 40 s"
    assert reports.backend_lines(backends, NOW) == [down]
    usdf["sources"].append({"name": "queue of b", "status": "failed", "error": "it hangs"})
    assert reports.backend_lines(backends, NOW) == [down, "backend usdf, queue of b: it hangs"]


def test_sentences_about_backends() -> None:
    backends: dict[str, dict[str, Any]] = {
        "a": {"state": "starting", "last_good_at": None},
        "b": {"state": "auth", "last_good_at": NOW - 60, "error": "token expired", "next_poll_at": NOW - 1},
        "c": {"state": "stopped", "last_good_at": None, "error": "KeyError('x')"},
        "d": {"state": "up", "stale": True, "last_good_at": NOW - 300},
    }

    assert reports.backend_lines(backends, NOW) == [
        "backend a: not seen yet",
        "backend b: not seen for 60 s: it refuses us: token expired; next try in 0 s",
        "backend c: not seen yet: KeyError('x'); its adapter has stopped, see `bpsctl backends -v`",
        "backend d: not seen for 5 min",
    ]


def test_labels_in_the_order_of_the_pipeline_and_missing_jobs_unready() -> None:
    lines, words = reports.label_lines(
        row(
            run_summary="pipetaskInit:1;isr:4;coadd:2",
            counts={"SUCCEEDED": 2, "FAILED": 1, "RUNNING": 1},
            labels={"isr": {"FAILED": 1, "RUNNING": 1, "SUCCEEDED": 1}, "pipetaskInit": {"SUCCEEDED": 1}},
        )
    )

    assert lines == [
        "             UNKNOWN MISFIT UNREADY READY PENDING RUNNING DELETED HELD SUCCEEDED FAILED PRUNED EXPECTED",
        "------------ ------- ------ ------- ----- ------- ------- ------- ---- --------- ------ ------ --------",
        "TOTAL              0      0       0     0       0       1       0    0         2      1      0        7",
        "------------ ------- ------ ------- ----- ------- ------- ------- ---- --------- ------ ------ --------",
        "pipetaskInit       0      0       0     0       0       0       0    0         1      0      0        1",
        "isr                0      0       1     0       0       1       0    0         1      1      0        4",
        "coadd             -1     -1      -1    -1      -1      -1      -1   -1        -1     -1     -1        2",
    ]
    assert words == []


def test_labels_without_a_run_summary() -> None:
    lines, words = reports.label_lines(row(total=3, labels={"b": {"SUCCEEDED": 2}, "a": {"FAILED": 1}}))

    assert [line.split()[0] for line in lines[4:]] == ["a", "b"]
    assert [line.split()[-1] for line in lines[2:]] == ["3", lines[3].split()[-1], "-1", "-1"]
    assert words == ["WARNING: Could not determine order of pipeline, instead sorted alphabetically."]


def test_labels_that_nobody_knows() -> None:
    lines, words = reports.label_lines(row(total=3, counts={"RUNNING": 3}))

    assert len(lines) == 3
    assert words == ["WARNING: Job summary for run 'rbcdfghjk' not available, report may be incomplete."]


def test_expected_of_the_daemon_wins_over_the_summary() -> None:
    assert reports.expected_of(row(expected={"x": 2}, run_summary="y:1")) == {"x": 2}
    assert reports.expected_of(row(run_summary="a:b:3;odd;c:")) == {"a:b": 3}
    assert reports.expected_of(row(run_summary=None)) == {}


def test_exit_codes_of_payload_and_infrastructure() -> None:
    lines, words = reports.exit_code_lines(
        row(
            run_summary="isr:9;coadd:2;final:1",
            labels={"isr": {"FAILED": 6}, "coadd": {"SUCCEEDED": 2}, "final": {"FAILED": 1}},
            exit_codes={"isr": {"1": 2, "2": 1, "137": 2, "-9": 1}},
        )
    )

    assert lines == [
        "      PAYLOAD ERROR COUNT PAYLOAD ERROR CODES INFRASTRUCTURE ERROR COUNT INFRASTRUCTURE ERROR CODES",
        "----- ------------------- ------------------- -------------------------- --------------------------",
        "isr                     3                1, 2                          3                    -9, 137",
        "coadd                   0                None                          0                       None",
    ]
    assert words == ["WARNING: Exit code summary was not available for job labels: final"]


def test_exit_codes_that_nobody_knows() -> None:
    assert reports.exit_code_lines(row()) == (
        [],
        ["WARNING: Exit code summary for run 'rbcdfghjk' not available, report may be incomplete."],
    )


def test_details() -> None:
    lines = reports.detail_lines(
        row(
            state="UNKNOWN",
            last_known="RUNNING",
            last_known_at=NOW - 10800,
            note="not in queue, history, files",
            owner="alice",
            info="first\nsecond\x1b[2J",
            attempts=[{"attempt": 1, "wms_id": "1", "state": "FAILED", "at": None, "command": "c1"}, {"attempt": 2}],
        ),
        NOW,
    )

    assert lines == [
        "Path: /data/submit",
        "Global job id: sched#1234.0",
        "Owner: alice",
        "Last known: RUNNING 3 h ago",
        "Note: not in queue, history, files",
        "first",
        "second\\x1b[2J",
        "",
        "Attempts:",
        "ATTEMPT WMS ID STATE  SINCE COMMAND",
        "------- ------ ------ ----- -------",
        "      1 1      FAILED       c1",
        "      2",
    ]


def test_times_and_how_long_it_took() -> None:
    over = reports.detail_lines(row(state="SUCCEEDED", started_at=NOW - 400, ended_at=NOW - 215), NOW)
    running = reports.detail_lines(row(started_at=NOW - 61), NOW)

    assert over[2].startswith("Times: started ")
    assert over[2].endswith("(3:05)")
    assert running[2].endswith("(1:01)")


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("count", [1, 39])
def test_no_row_of_a_report_is_wider_than_the_terminal(width: int, count: int) -> None:
    rows = [
        row(
            id=f"rbcdfgh{n:02}",
            name=f"u/carl/DRP/20261128T12{n:02}00Z_isr",
            payload="DRP-LSSTCam-weekly",
            campaign="DM-51234",
            operator="carl",
            site="s3df",
            wms_id=f"{10_000_000 + n}.0",
            source="log",
            labels={f"a label that is long enough {k}": {"SUCCEEDED": 7, "FAILED": k} for k in range(5)},
            exit_codes={"a label that is long enough 1": {"139": 4, "1": 3}},
            expected={f"a label that is long enough {k}": 8 for k in range(5)},
            attempts=[{"attempt": k, "wms_id": "10000000.0", "state": "FAILED", "at": NOW} for k in (1, 2)],
        )
        for n in range(count)
    ]
    lines = reports.summary_lines(rows, NOW, UP, width=width)
    tables = [lines, reports.label_lines(rows[0], width)[0], reports.exit_code_lines(rows[0], width)[0]]

    assert max(len(line) for table in tables for line in table) <= width
    names = [line for line in lines if "carl" in line and "isr" in line]
    assert len({*names}) == len(names) == count
    if width == 80 and count > 1:
        assert "in all rows: SOURCE log, PROJECT dev, CAMPAIGN DM-51234" in lines[-1]
