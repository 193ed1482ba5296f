"""``bpsctl`` as a process: what it prints, how it ends, and how it bears what happens around it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpsd import __version__, messages, wire
from bpsd.errors import DocumentInvalid, Problem, RunAmbiguous, WorkflowInvalid
from tests.integration.bpsctl import SOURCE, Done, bpsctl, on_a_terminal, start
from tests.integration.fake_daemon import NOW, FakeDaemon, Hangup, backend_row, command_row, event, run_row

RUN = "rbcdfghjk"


@pytest.fixture
def daemon(socket_path: Path) -> Iterator[FakeDaemon]:
    """A daemon with one run."""
    fake = FakeDaemon(socket_path)
    fake.rows = {RUN: run_row(RUN)}
    with fake.running():
        yield fake


@pytest.fixture
def flow(state_dir: Path) -> Path:
    """A file with a workflow."""
    path = state_dir / "flow.yaml"
    path.write_text("name: x\n")
    return path


def document(done: Done) -> Any:
    """What ``--json`` printed."""
    body = json.loads(done.out)
    assert body.pop("version") == wire.DOCUMENT_VERSION
    return body


# -- asking ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", wire.STATES)
def test_status_exits_with_the_state(daemon: FakeDaemon, state: str) -> None:
    daemon.rows[RUN].state = state  # type: ignore[assignment]

    done = bpsctl(daemon.path, "status", "1234.0")

    assert done.code == wire.STATES[state]
    assert done.out.startswith(f"{state}  {RUN}  u_alice_DRP_{RUN}  40%\n  on here as 1234.0, seen ")
    assert done.err == ""


def test_status_imports_nothing_that_takes_time(daemon: FakeDaemon) -> None:
    """What keeps it below three times ``python3 -c pass``: json, socket, and our few modules."""
    program = (
        "import sys; from bpsd.cli.bpsctl import main; code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--socket", str(daemon.path), "status", RUN],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": SOURCE},
    )

    assert done.returncode == wire.STATES["RUNNING"], done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    slow = {"argparse", "asyncio", "contextlib", "dataclasses", "inspect", "pathlib", "shutil", "subprocess", "typing"}
    assert loaded & slow == set()
    assert {name for name in loaded if name.partition(".")[0] not in {*sys.stdlib_module_names, "__main__"}} == {
        "bpsd",
        "bpsd.cli",
        "bpsd.cli.arguments",
        "bpsd.cli.bpsctl",
        "bpsd.cli.options",
        "bpsd.cli.render",
        "bpsd.cli.session",
        "bpsd.cli.verbs",
        "bpsd.cli.verbs.status",
        "bpsd.client",
        "bpsd.client.connection",
        "bpsd.client.endpoint",
        "bpsd.client.failures",
        "bpsd.client.sync",
        "bpsd.wire",
    } | {name for name in loaded if name.startswith(("_distutils_hack", "sitecustomize", "__editable__"))}


def test_report(daemon: FakeDaemon) -> None:
    daemon.rows["rxyz"] = run_row("rxyz", "FAILED", backend="lyon", flag=" ", observed_at=NOW - 720)
    daemon.backend_rows.append(
        backend_row("lyon", state="down", stale=True, last_good_at=NOW - 720, next_poll_at=NOW + 40, error="no route")
    )

    done = bpsctl(daemon.path, "report")

    assert done.code == 0
    assert done.out.splitlines() == [
        "X STATE   %S ID        OPERATOR PROJECT CAMPAIGN PAYLOAD RUN                   BACKEND WMS ID AGE SOURCE",
        "- ------- -- --------- -------- ------- -------- ------- --------------------- ------- ------ --- ------",
        "  FAILED  40 rxyz      alice    dev     quick    DRP     u_alice_DRP_rxyz      lyon    1234.0 12m log",
        "  RUNNING 40 rbcdfghjk alice    dev     quick    DRP     u_alice_DRP_rbcdfghjk here    1234.0  3s log",
        "",
        "backend lyon: not seen for 12 min: no route; next try in 40 s",
    ]


def test_report_of_one_run(daemon: FakeDaemon) -> None:
    daemon.rows[RUN] = run_row(
        RUN,
        expected={"isr": 9, "final": 1},
        labels={"isr": {"SUCCEEDED": 4, "RUNNING": 2, "FAILED": 1}, "final": {"UNREADY": 1}},
        exit_codes={"isr": {"1": 1}},
    )

    done = bpsctl(daemon.path, "report", "--id", RUN, "--return-exit-codes")

    lines = done.out.splitlines()
    assert lines[3:6] == ["", "Path: /data/submit/1", "Global job id: None"]
    assert lines[9].split() == ["TOTAL", "0", "0", "4", "0", "0", "2", "0", "0", "4", "0", "0", "10"]
    assert lines[11].split() == ["isr", "0", "0", "2", "0", "0", "2", "0", "0", "4", "1", "0", "9"]
    assert lines[16].split() == ["isr", "1", "1", "0", "None"]
    assert lines[17].split() == ["final", "0", "None", "0", "None"]
    assert done.code == 0


def test_filters_reach_the_daemon(daemon: FakeDaemon) -> None:
    words = ["-b", "here", "-u", "alice", "-s", "failed,held", "--label", "isr", "--hist", "2", "--pattern", "u_*"]
    words += ["--active", "--mine", "--limit", "7"]
    for verb in ("report", "list"):
        assert bpsctl(daemon.path, verb, *words).code == 0
        asked = daemon.asked(verb)[0]
        assert (asked.backend, asked.user, asked.state) == (["here"], ["alice"], ["FAILED", "HELD"])
        assert (asked.label, asked.hist, asked.pattern, asked.active, asked.mine) == ("isr", 2.0, "u_*", True, True)
        assert asked.limit == 7


def test_lists_say_when_they_are_cut(daemon: FakeDaemon) -> None:
    daemon.rows = {f"r{n}": run_row(f"r{n}") for n in range(5)}

    cut = bpsctl(daemon.path, "list", "-q", "--limit", "2")
    whole = bpsctl(daemon.path, "list", "-q", "--limit", "0")

    assert (cut.out, cut.err) == (
        "r0\nr1\n",
        "bpsctl: only the newest 2 runs are shown; --limit N shows N, --limit 0 all\n",
    )
    assert (whole.out.split(), whole.err) == ([f"r{n}" for n in range(5)], "")


def test_jobs(daemon: FakeDaemon) -> None:
    daemon.jobs = [
        messages.JobRow(name="isr_1", label="isr", state="FAILED", attempt=2, exit_code=1, host="n1", note="no\tfile"),
        messages.JobRow(name="isr_2", label="isr", state="SUCCEEDED", exit_code=0, started_at=NOW, ended_at=NOW + 65),
    ]

    done = bpsctl(daemon.path, "jobs", RUN)
    failed = bpsctl(daemon.path, "jobs", RUN, "-q", "--state", "FAILED")

    first, second = (line.split() for line in done.out.splitlines()[2:])
    assert first == ["isr_1", "isr", "FAILED", "2", "1", "n1", "no", "file"]
    assert second[:4] == ["isr_2", "isr", "SUCCEEDED", "0"]
    assert second[-1] == "1:05"
    assert failed.out == "isr_1\n"


def test_jobs_in_another_order(daemon: FakeDaemon) -> None:
    daemon.jobs = [
        messages.JobRow(name="short", label="a", state="SUCCEEDED", exit_code=0, started_at=NOW + 9, ended_at=NOW + 10),
        messages.JobRow(name="waits", label="a", state="READY"),
        messages.JobRow(name="runs", label="a", state="RUNNING", started_at=NOW),
        messages.JobRow(name="failed", label="a", state="FAILED", exit_code=3, started_at=NOW + 5, ended_at=NOW + 8),
    ]

    def order(*words: str) -> list[str]:
        return bpsctl(daemon.path, "jobs", RUN, "-q", *words).out.split()

    assert order() == ["short", "waits", "runs", "failed"]
    assert order("--sort", "started") == ["runs", "failed", "short", "waits"]
    assert order("--sort", "took") == ["runs", "failed", "short", "waits"]
    assert order("--sort", "exit", "--limit", "1") == ["failed"]
    assert json.loads(bpsctl(daemon.path, "jobs", RUN, "--sort", "took", "--json").out)["jobs"][0]["name"] == "runs"


def test_an_empty_answer_says_why(daemon: FakeDaemon) -> None:
    assert bpsctl(daemon.path, "jobs", RUN).err == "bpsctl: no source has told of jobs of this run yet\n"
    assert bpsctl(daemon.path, "jobs", RUN, "--state", "HELD").err == "bpsctl: no job fulfils the conditions\n"
    daemon.rows[RUN].expected = {"init": 1, "isr": 2}
    mistyped = bpsctl(daemon.path, "jobs", RUN, "--label", "isrr").err
    assert mistyped == "bpsctl: no job has the label isrr; did you mean isr?\n"
    daemon.rows.clear()
    for verb in ("report", "list"):
        assert bpsctl(daemon.path, verb, "--mine").err == "bpsctl: no run fulfils the conditions\n"
        assert bpsctl(daemon.path, verb).err.startswith("bpsctl: there are no runs; `bpsctl submit FILE` makes one")
        assert bpsctl(daemon.path, verb, "--json").err == ""
    assert bpsctl(daemon.path, "events").err == "bpsctl: nothing happened yet\n"
    assert bpsctl(daemon.path, "commands", "--since", "1h").err == "bpsctl: no command fulfils the conditions\n"


def test_moments_reach_the_daemon(daemon: FakeDaemon) -> None:
    bpsctl(daemon.path, "events", "--since", "2h", "--until", "1970-01-02")
    bpsctl(daemon.path, "commands", "--since", "2h")

    asked = daemon.asked("events")[0]
    assert asked.since == pytest.approx(time.time() - 7200, abs=60)
    assert 0 < asked.until < 3 * 86400
    assert daemon.asked("commands")[0].since == pytest.approx(time.time() - 7200, abs=60)
    assert bpsctl(daemon.path, "events", "-f", "--until", "1h").code == 2


def test_questions_about_the_daemon(daemon: FakeDaemon) -> None:
    ping = bpsctl(daemon.path, "ping")
    assert (ping.code, ping.out.splitlines()[1]) == (0, "here: ok, 10 ms")
    assert ping.out.startswith("daemon: ok, ")

    daemon.answers["backend.ping"] = lambda _: messages.BackendPingResult(answers={"here": (2, "no scheduler", 1.5)})
    ping = bpsctl(daemon.path, "ping", "-b", "here")
    assert (ping.code, ping.out.splitlines()[1]) == (1, "here: failed (2), 1.5 s: no scheduler")

    version = bpsctl(daemon.path, "version")
    assert version.out.startswith(f"client: bpsd {__version__}, protocol 1, Python ")
    assert f"\ndaemon: bpsd {__version__}, protocol 1, Python 3.11.7, pid 4242, user mode, since " in version.out

    backends = bpsctl(daemon.path, "backends", "-v")
    assert backends.out.splitlines()[2].split()[:8] == ["here", "local", "up", "closed", "3s", "7s", "10s", "10"]
    assert "here: 5 polls, 0 failed" in backends.out

    refresh = bpsctl(daemon.path, "refresh")
    assert refresh.code == 1  # its clock stands still, so no poll was good since
    assert refresh.out.startswith("here: not seen; last seen well ")
    daemon.backend_rows = [backend_row(last_good_at=NOW)]
    assert bpsctl(daemon.path, "refresh", "-b", "here") == (0, "here: polled\n", "")


@pytest.mark.parametrize(("status", "word"), [(0, "OK"), (1, "WARNING"), (2, "CRITICAL"), (3, "UNKNOWN")])
def test_health_is_a_monitoring_plugin(daemon: FakeDaemon, status: int, word: str) -> None:
    daemon.answers["health"] = lambda _: messages.HealthResult(
        status=status,
        message=f"{word}: lyon is down | or not",
        checks=[],
        figures={"runs": 3.0, "lag_s": 0.25, "memory_bytes": 4.2e9},
    )

    done = bpsctl(daemon.path, "health")

    assert (done.code, done.out) == (
        status,
        f"BPSD {word} - lyon is down / or not | runs=3 lag_s=0.25s memory_bytes=4200000000B\n",
    )


def test_health_asked_wrongly_is_unknown(socket_path: Path) -> None:
    assert bpsctl(socket_path, "health", "--jsno").code == 3


def test_health_without_a_daemon_is_critical(socket_path: Path) -> None:
    done = bpsctl(socket_path, "health")

    assert done.code == 2
    assert done.out == f"BPSD CRITICAL - no daemon answers on {socket_path} (from BPSD_SOCKET): no such socket\n"


def test_fields(daemon: FakeDaemon) -> None:
    daemon.backend_rows = [backend_row(fields={"queue": ("refuses", "there is none"), "priority": ("honours", "")})]

    done = bpsctl(daemon.path, "backends", "--fields")

    assert done.out.splitlines()[2:] == [
        "queue    refuses",
        "priority honours",
        "",
        "queue on here: refuses: there is none",
    ]


def test_events(daemon: FakeDaemon) -> None:
    daemon.events = [event(3, "run.seen", RUN, name="u_alice"), event(4, "run.state", RUN, state="RUNNING")]

    done = bpsctl(daemon.path, "events", RUN, "-v")

    assert [line.split("  ")[-1] for line in done.out.splitlines()] == ["first seen: u_alice", "RUNNING"]
    assert done.out.lstrip().startswith("3  ")


def test_commands(daemon: FakeDaemon) -> None:
    daemon.accept("submit", token="a" * 20)
    daemon.commands["c2"] = command_row(
        "cancel", "FAILED", id="c2", error={"code": "conflict", "message": "it is over", "advice": "look"}, client="me"
    )

    table = bpsctl(daemon.path, "commands")
    one = bpsctl(daemon.path, "commands", "c2")

    assert [line.split()[:3] for line in table.out.splitlines()[2:]] == [
        ["c1", "submit", "ACCEPTED"],
        ["c2", "cancel", "FAILED"],
    ]
    assert one.out.splitlines()[:6] == [
        "Command:  c2",
        "Verb:     cancel",
        "Run:      rbcdfghjk on here",
        "State:    FAILED: not cancelled: it is over",
        "By:       alice (uid 1000, process 4242)",
        "It says:  me",
    ]
    assert one.out.endswith("Advice:   look\n")


def test_a_doubt_is_ended_by_a_person(daemon: FakeDaemon) -> None:
    daemon.commands["c1"] = command_row("submit", "IN_DOUBT")

    done = bpsctl(daemon.path, "commands", "resolve", "c1", "done", "--wms-id", "77", "--note", "seen in the queue")

    assert (done.code, done.out) == (0, "c1: DONE: submitted (resolved as done)\n")
    assert daemon.asked("commands.resolve") == [
        messages.CommandsResolve(id="c1", outcome="done", wms_id="77", note="seen in the queue")
    ]
    assert bpsctl(daemon.path, "commands", "resolve", "c1", "failed", "--wms-id", "77").code == 2


READING = (
    ("ping",),
    ("backends", "--fields"),
    ("list",),
    ("report",),
    ("report", RUN),
    ("status", RUN),
    ("jobs", RUN),
    ("logs", RUN, "isr_1"),
    ("logs", RUN, "--failed"),
    ("wait", RUN),
    ("events",),
    ("commands",),
    ("health",),
    ("version",),
    ("refresh",),
)


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_json_of_everything_that_reads(daemon: FakeDaemon, words: tuple[str, ...]) -> None:
    daemon.rows[RUN].state = "SUCCEEDED"
    daemon.answers["logs"] = lambda p: messages.LogsResult(
        run=RUN, job=p.job, text="é\n", offset=0, next=3, size=3, path="/x"
    )

    done = bpsctl(daemon.path, *words, "--json")
    plain = bpsctl(daemon.path, *words)

    assert isinstance(document(done), dict)
    assert done.code == plain.code
    assert done.err == ""


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_errors_are_json_too(socket_path: Path, words: tuple[str, ...]) -> None:
    done = bpsctl(socket_path, *words, "--json")

    body = document(done) if words[0] != "health" else {"error": {"code": "no_daemon"}}
    assert body["error"]["code"] == "no_daemon"
    assert done.code == (2 if words[0] == "health" else 4)


# -- logs --------------------------------------------------------------------------------------------------------------


class Log:
    """The log of a job that a test writes."""

    def __init__(self, text: str) -> None:
        self.data = text.encode()
        self.path = "/log.1"

    def __call__(self, params: messages.LogsParams) -> messages.LogsResult:
        start = max(0, len(self.data) + params.offset) if params.offset < 0 else params.offset
        piece = self.data[start : start + params.limit]
        return messages.LogsResult(
            run=RUN,
            job=params.job,
            text=piece.decode(),
            offset=start,
            next=start + len(piece),
            size=len(self.data),
            path=self.path,
        )


def test_log_tail(daemon: FakeDaemon) -> None:
    daemon.answers["logs"] = Log("".join(f"line {n}\n" for n in range(100_000)) + "last \x1b[31mred\x1b[0m")

    short = bpsctl(daemon.path, "logs", RUN, "isr_1", "--lines", "2", "--stream", "stdout")
    usual = bpsctl(daemon.path, "logs", RUN, "isr_1")
    many = bpsctl(daemon.path, "logs", RUN, "isr_1", "--lines", "50000")
    whole = bpsctl(daemon.path, "logs", RUN, "isr_1", "--lines", "0")

    assert short.out == "line 99999\nlast red\n"
    assert daemon.asked("logs")[0].stream == "stdout"
    assert len(usual.out.splitlines()) == 40
    assert many.out.splitlines()[0] == "line 50001"
    assert len(many.out.splitlines()) == 50_000
    assert len(whole.out.splitlines()) == 100_001


def test_log_follow(daemon: FakeDaemon) -> None:
    log = daemon.answers["logs"] = Log("first\n")
    daemon.jobs = [messages.JobRow(name="isr_1", label="isr", state="RUNNING")]
    process = start(daemon.path, "logs", RUN, "isr_1", "--follow")
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        log.data += b"second\n"
        assert process.stdout.readline() == "second\n"
        log.data, log.path = b"again\n", "/log.2"  # the job was tried anew
        assert process.stdout.readline() == "again\n"
        log.data += b"end\n"
        daemon.jobs[0].state = "SUCCEEDED"
        out, err = process.communicate(timeout=30)

    assert (process.returncode, out) == (0, "end\n")
    assert err == "bpsctl: now /log.2\n"


def test_logs_of_all_that_failed(daemon: FakeDaemon) -> None:
    daemon.jobs = [
        messages.JobRow(name=f"isr_{n}", label="isr", state="FAILED" if n < 3 else "SUCCEEDED", exit_code=1)
        for n in range(5)
    ]

    def logs(params: messages.LogsParams) -> messages.LogsResult:
        if params.job == "isr_2":
            raise DocumentInvalid("x", [Problem((), "purged")])
        return Log(f"begin\nno file /data/{params.job}\n")(params)

    daemon.answers["logs"] = logs

    done = bpsctl(daemon.path, "logs", RUN, "--failed", "--limit", "3")

    assert done.code == 0
    assert done.out == (
        "== 2 jobs of isr failed, exit code 1: isr_0, isr_1\nbegin\nno file /data/isr_0\n\n"
        "== 1 job of isr failed, exit code 1: isr_2\n(no log: the document x has 1 mistake)\n\n"
    )


def test_logs_want_a_job(daemon: FakeDaemon) -> None:
    assert bpsctl(daemon.path, "logs", RUN) == (
        2,
        "",
        "bpsctl: logs: which job?\n  `bpsctl jobs RUN` lists them; --failed shows those that failed\n",
    )
    assert bpsctl(daemon.path, "logs", RUN, "isr_1", "--failed").code == 2


# -- acting ------------------------------------------------------------------------------------------------------------


def test_submit(daemon: FakeDaemon, flow: Path) -> None:
    done = bpsctl(daemon.path, "submit", str(flow), "-b", "here", "--expires", "2h")

    assert done == (0, f"Run Id: {RUN}\nWMS Id: 1234.0\nBackend: here\n", "")
    asked = daemon.asked("submit")[0]
    assert (asked.source, asked.backend, asked.expires_s) == (str(flow), "here", 7200.0)
    assert asked.client == f"bpsctl {__version__}: submit {flow} -b here --expires 2h"
    assert [*daemon.blobs.values()] == [b"name: x\n"]


def test_submit_in_all_ways(daemon: FakeDaemon, flow: Path) -> None:
    token = "a" * 20

    quiet = bpsctl(daemon.path, "submit", "-q", str(flow))
    detached = bpsctl(daemon.path, "submit", "--detach", "--token", token, str(flow))
    again = bpsctl(daemon.path, "submit", "--token", token, str(flow))
    piped = bpsctl(daemon.path, "submit", "-", stdin="name: y\n")
    dry = bpsctl(daemon.path, "submit", "-n", str(flow))
    as_json = bpsctl(daemon.path, "submit", str(flow), "--json")

    assert quiet.out == f"{RUN}\n"
    assert detached.out == f"Run Id: {RUN}\nBackend: here\nCommand: c2\n"
    assert f"this token is that of run {RUN}" in again.err
    assert again.code == 0
    assert daemon.asked("submit")[3].source == "<stdin>"
    assert piped.code == 0
    assert dry.out == f"{flow}: flow 3 jobs (isr 2, final 1), fine for backend here\n"
    assert len(daemon.asked("submit")) == 5  # the dry run was none
    body = document(as_json)
    assert (body["run"], body["command"]["state"]) == (RUN, "DONE")


def test_submit_and_wait(daemon: FakeDaemon, flow: Path) -> None:
    process = start(daemon.path, "submit", "--wait", str(flow))
    with process:
        daemon.until_watched()
        daemon.push("run.state", RUN, state="FAILED", before="RUNNING")
        out, err = process.communicate(timeout=30)

    assert process.returncode == 1
    assert out == f"Run Id: {RUN}\nWMS Id: 1234.0\nBackend: here\nState: FAILED\n"
    assert err.splitlines() == [
        f"{RUN}  RUNNING  40%",
        f"{RUN}  FAILED  40%",
        f"bpsctl: `bpsctl logs {RUN} --failed` shows what the failed jobs said",
    ]


def test_mistakes_of_a_workflow_are_all_told(daemon: FakeDaemon, flow: Path) -> None:
    def refuse(params: messages.SubmitParams) -> messages.CommandRow:
        raise WorkflowInvalid(
            params.source,
            [
                Problem(("jobs", 3, "parents", 0), "no job is called isr9", 12, 7),
                Problem(("jbos",), "unknown key", 2, 1),
            ],
        )

    daemon.answers["submit"] = refuse

    done = bpsctl(daemon.path, "submit", str(flow))

    assert done.code == 1
    assert done.err.splitlines() == [
        f"{flow}:12:7: jobs[3].parents[0]: no job is called isr9",
        f"{flow}:2:1: jbos: unknown key",
        f"bpsctl: submit: the workflow {flow} has 2 mistakes",
        "  nothing was changed; mend the places listed and try again",
    ]
    problems = document(bpsctl(daemon.path, "submit", str(flow), "--json"))["error"]["problems"]
    assert [problem["line"] for problem in problems] == [12, 2]


def test_validate(daemon: FakeDaemon, flow: Path) -> None:
    good = bpsctl(daemon.path, "validate", str(flow))
    daemon.answers["validate"] = lambda _: messages.ValidateResult(
        ok=False,
        backend="here",
        problems=[messages.ProblemRow(key="jobs", message="a cycle: a, b, a", line=3, column=1)],
        total=1,
        warnings=["queue is ignored"],
    )
    bad = bpsctl(daemon.path, "validate", str(flow), "-b", "here")

    assert (good.code, good.out) == (0, f"{flow}: flow 3 jobs (isr 2, final 1), fine for backend here\n")
    assert (bad.code, bad.out) == (1, f"{flow}:3:1: jobs: a cycle: a, b, a\n{flow}: warning: queue is ignored\n")
    assert bad.err == f"bpsctl: {flow}: 1 mistake, found for backend here\n"


def test_files_that_cannot_be_sent(daemon: FakeDaemon, state_dir: Path) -> None:
    (state_dir / "empty").write_text(" \n")

    missing = bpsctl(daemon.path, "submit", f"{state_dir}/none")
    folder = bpsctl(daemon.path, "submit", str(state_dir))
    empty = bpsctl(daemon.path, "submit", f"{state_dir}/empty")

    assert missing.err == (
        f"bpsctl: submit: reading the workflow {state_dir}/none: No such file or directory\n  nothing was sent\n"
    )
    assert "Is a directory" in folder.err
    assert f"the workflow {state_dir}/empty is empty" in empty.err
    assert [done.code for done in (missing, folder, empty)] == [1, 1, 1]
    assert daemon.requests == []


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("FAILED", "not submitted: the folder is not writable"),
        ("EXPIRED", "not tried: here is down"),
        ("IN_DOUBT", "in doubt: nobody knows whether it was done: not tried: here is down"),
    ],
)
def test_submit_that_comes_to_nothing(daemon: FakeDaemon, flow: Path, state: str, words: str) -> None:
    error = (
        {"code": "x", "message": "the folder is not writable", "advice": "make it so"} if state == "FAILED" else None
    )
    daemon.answers["commands.wait"] = lambda _: command_row(
        "submit", state, error=error, note="not tried: here is down"
    )

    done = bpsctl(daemon.path, "submit", str(flow))

    assert done.code == 1
    assert f"bpsctl: submit: run {RUN}: {words}\n" in done.err
    assert done.out == ""


def test_what_the_backend_finds_wrong_is_told_of_the_file_that_was_given(daemon: FakeDaemon, flow: Path) -> None:
    problems = [Problem(("jobs", 0, "executable"), "there is no program /bin/tru (job init)")]
    error = WorkflowInvalid("u/alice/flow", problems).data()
    daemon.answers["commands.wait"] = lambda _: command_row("submit", "FAILED", error=error)

    done = bpsctl(daemon.path, "submit", str(flow))

    assert done.err.startswith(f"{flow}: jobs[0].executable: there is no program /bin/tru (job init)\n")


def test_cancel_by_name(daemon: FakeDaemon) -> None:
    daemon.rows["rb"] = run_row("rb", wms_id="77")

    done = bpsctl(daemon.path, "cancel", "1234.0", "rzz", "77", "-b", "here", "--pass-thru=-x")

    assert done.code == 1
    assert done.out == f"{RUN}: cancelled and gone\nrb: cancelled and gone\n"
    assert done.err == "bpsctl: cancel rzz: no run is called rzz\n  did you mean rbcdfghjk?\n"
    assert {(p.backend, p.pass_thru) for p in daemon.asked("cancel")} == {("here", "-x")}


@pytest.mark.parametrize("verb", ["cancel", "restart", "hold", "release"])
def test_orders(daemon: FakeDaemon, verb: str) -> None:
    done = bpsctl(daemon.path, verb, RUN)
    detached = bpsctl(daemon.path, verb, RUN, "--detach")
    dry = bpsctl(daemon.path, verb, RUN, "--dry-run")

    assert (done.code, detached.code, dry.code) == (0, 0, 0)
    assert detached.out == f"{RUN}: accepted as c2\n"
    assert dry.out == f"{RUN}: would {verb} it on here\n"
    assert list(daemon.commands) == ["c1", "c2"]


def test_orders_by_conditions_want_a_yes(daemon: FakeDaemon) -> None:
    daemon.rows["rb"] = run_row("rb", "FAILED")
    daemon.rows["rc"] = run_row("rc", "FAILED")

    unasked = bpsctl(daemon.path, "restart", "--mine")
    dry = bpsctl(daemon.path, "restart", "--mine", "-n")
    assert len(daemon.commands) == 0
    agreed = bpsctl(daemon.path, "restart", "--mine", "--yes", "--json")
    none = bpsctl(daemon.path, "restart", "--mine", "--state", "HELD")

    assert unasked.code == 2
    assert "restart: 2 whole runs would be hit, and nobody is there to say yes" in unasked.err
    assert dry.out == "rb: would restart it on here\nrc: would restart it on here\n"
    assert [row["run"] for row in document(agreed)["commands"]] == ["rb", "rc"]
    assert (none.code, none.err) == (0, "bpsctl: no run that you may restart fulfils the conditions\n")
    assert all(params.commandable for params in daemon.asked("list"))
    assert [params.state for params in daemon.asked("list")] == [["FAILED", "DELETED"]] * 3 + [["HELD"]]


def test_a_person_is_asked(daemon: FakeDaemon) -> None:
    with on_a_terminal(daemon.path, "cancel", "--mine") as terminal:
        terminal.until("cancel 1 whole run? [y/N] ")
        terminal.type("n\n")
        assert terminal.end() == 1
        assert "nothing was done" in terminal.seen
    with on_a_terminal(daemon.path, "cancel", "--mine") as terminal:
        terminal.until("cancel 1 whole run? [y/N] ")
        terminal.type("y\n")
        assert terminal.end() == 0
        assert "cancelled and gone" in terminal.seen
    assert len(daemon.commands) == 1


def test_orders_without_runs_make_no_sense(daemon: FakeDaemon) -> None:
    assert "cancel: which runs?" in bpsctl(daemon.path, "cancel").err
    assert "both runs and conditions" in bpsctl(daemon.path, "cancel", RUN, "--mine").err
    assert daemon.requests == []


# -- what is on hold ---------------------------------------------------------------------------------------------------


@pytest.fixture
def held(daemon: FakeDaemon) -> FakeDaemon:
    """A daemon that knows of two reasons, in two runs."""
    daemon.rows["rb"] = run_row("rb", wms_id="77")
    daemon.holds = [
        messages.HoldGroup(
            group="h1",
            reason="memory usage N MB (code 34.0)",
            example="held: memory usage 2105 MB (code 34.0)",
            held=5,
            run_count=2,
            runs={RUN: 3, "rb": 2},
            labels={"isr": 4, "coadd": 1},
            backends=["here"],
            oldest_at=NOW - 7200,
        ),
        messages.HoldGroup(
            group="h2", reason="quota", example="quota", held=1, run_count=1, runs={"rb": 1}, backends=["here"]
        ),
    ]
    return daemon


def test_holds(held: FakeDaemon) -> None:
    done = bpsctl(held.path, "holds")
    more = bpsctl(held.path, "holds", "-v", "--reason", "h1", "--mine", "--label", "isr")

    assert done.out.splitlines() == [
        "GROUP HELD RUNS OLDEST LABELS         BACKEND REASON",
        "----- ---- ---- ------ -------------- ------- -----------------------------",
        "h1       5    2     2h isr 4, coadd 1 here    memory usage N MB (code 34.0)",
        "h2       1    1                       here    quota",
    ]
    assert done.err == "bpsctl: 6 on hold in 2 runs, 2 reasons\n"
    assert more.out.endswith(
        f"\nh1: held: memory usage 2105 MB (code 34.0)\n  runs: {RUN} 3, rb 2\n  labels: isr 4, coadd 1\n"
    )
    asked = held.asked("holds")[-1]
    assert (asked.group, asked.mine, asked.label) == ("h1", True, "isr")


def test_holds_in_json_and_none(held: FakeDaemon) -> None:
    assert [group["group"] for group in document(bpsctl(held.path, "holds", "--json"))["groups"]] == ["h1", "h2"]
    held.holds = []
    assert bpsctl(held.path, "holds").out == "nothing is on hold\n"


def test_release_by_reason_wants_a_yes(held: FakeDaemon) -> None:
    unasked = bpsctl(held.path, "release", "--reason", "h1", "--label", "isr")
    wrong = bpsctl(held.path, "release", "--reason", "h1", "--confirm", "4")
    both = bpsctl(held.path, "release", "--reason", "h1", "--confirm", "4", "--yes")
    dry = bpsctl(held.path, "release", "--reason", "h1", "--dry-run")
    assert len(held.commands) == 0
    right = bpsctl(held.path, "release", "--reason", "h1", "--confirm", "5")

    assert unasked.code == both.code == 2
    assert "release: 5 on hold in 2 runs would be hit, and nobody is there to say yes" in unasked.err
    assert (wrong.code, wrong.err) == (1, "bpsctl: release: 5 would be released, not 4: nothing was done\n")
    assert dry.out == f"{RUN}: would release it on here\nrb: would release it on here\n"
    assert right.out == f"{RUN}: released\nrb: released\n"
    assert {(params.run, params.group, params.label) for params in held.asked("release")} == {
        (RUN, "h1", None),
        ("rb", "h1", None),
    }


def test_release_of_a_label_in_one_run(held: FakeDaemon) -> None:
    done = bpsctl(held.path, "release", "77", "--label", "isr")

    assert (done.code, done.out) == (0, "rb: released\n")
    assert [(params.run, params.group, params.label) for params in held.asked("release")] == [("77", None, "isr")]


def test_a_person_is_asked_before_a_bulk_release(held: FakeDaemon) -> None:
    with on_a_terminal(held.path, "release", "--mine") as terminal:
        terminal.until("release 6 on hold in 2 runs? [y/N] ")
        terminal.type("n\n")
        assert terminal.end() == 1
        assert "memory usage N MB" in terminal.seen
    assert len(held.commands) == 0


def test_a_release_of_nothing(held: FakeDaemon) -> None:
    assert "release: which runs?" in bpsctl(held.path, "release").err
    held.holds = []
    done = bpsctl(held.path, "release", "--mine", "--yes")
    assert (done.code, done.err) == (0, "bpsctl: nothing that fulfils the conditions is on hold\n")


# -- waiting -----------------------------------------------------------------------------------------------------------


def ended(process: subprocess.Popen[str]) -> Done:
    with process:
        out, err = process.communicate(timeout=30)
    return Done(process.returncode, out, err)


def test_wait_for_success(daemon: FakeDaemon) -> None:
    process = start(daemon.path, "wait", RUN)
    daemon.until_watched()
    daemon.rows[RUN].percent = 90
    daemon.push("run.progress", RUN)
    daemon.push("run.state", RUN, state="SUCCEEDED", before="RUNNING")

    done = ended(process)

    assert done == (0, f"{RUN}  SUCCEEDED\n", f"{RUN}  RUNNING  40%\n{RUN}  RUNNING  90%\n{RUN}  SUCCEEDED  90%\n")


def test_wait_for_failure(daemon: FakeDaemon) -> None:
    process = start(daemon.path, "wait", RUN, "--json")
    daemon.until_watched()
    daemon.push("run.state", RUN, state="FAILED", before="RUNNING")

    done = ended(process)

    assert (done.code, done.err) == (1, "")
    assert document(done) == {"runs": {RUN: "FAILED"}, "reached": False, "in_time": True}


def test_wait_for_any(daemon: FakeDaemon) -> None:
    daemon.rows["rb"] = run_row("rb", wms_id="77")
    process = start(daemon.path, "wait", RUN, "--any", "77")
    daemon.until_watched()
    daemon.push("run.state", "rb", state="SUCCEEDED", before="RUNNING")

    done = ended(process)

    assert (done.code, done.out) == (0, f"{RUN}  RUNNING\nrb  SUCCEEDED\n")


def test_wait_until(daemon: FakeDaemon) -> None:
    process = start(daemon.path, "wait", RUN, "--until", "held,failed")
    daemon.until_watched()
    daemon.push("run.state", RUN, state="HELD", before="RUNNING")

    assert ended(process).code == 0
    daemon.rows[RUN].state = "RUNNING"
    assert bpsctl(daemon.path, "wait", RUN, "--until", "PENDING").code == 0  # passed already


def test_wait_in_vain(daemon: FakeDaemon) -> None:
    done = bpsctl(daemon.path, "wait", RUN, "--timeout", "0.2")

    assert done.code == 3
    assert done.err.splitlines()[-1] == f"bpsctl: not done in time: {RUN} RUNNING; the runs go on"


def test_wait_with_nonsense(daemon: FakeDaemon) -> None:
    assert bpsctl(daemon.path, "wait", RUN, "--any", "--all").code == 2
    assert bpsctl(daemon.path, "wait", "rzz").code == 1


def test_ctrl_c_leaves_the_run_running_and_says_so(daemon: FakeDaemon) -> None:
    process = start(daemon.path, "wait", RUN)
    daemon.until_watched()
    process.send_signal(signal.SIGINT)

    done = ended(process)

    assert done.code == 130
    assert done.err.splitlines()[-1] == f"bpsctl: no longer waiting; the runs go on: `bpsctl wait {RUN}` waits again"
    assert "Traceback" not in done.err
    assert [method for method, _ in daemon.requests] == ["status", "watch"]


@pytest.mark.parametrize("verb", ["wait", "watch"])
def test_an_impatient_ctrl_c_is_no_crash(daemon: FakeDaemon, verb: str) -> None:
    process = start(daemon.path, verb, RUN)
    told = process.stderr if verb == "wait" else process.stdout
    assert told is not None
    assert "RUNNING" in told.readline()
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)

    done = ended(process)

    assert done.code == 130
    assert done.err.startswith(f"\nbpsctl: no longer {verb}ing; the runs go on")
    assert done.err.count("\n") == 2


def test_ctrl_c_while_a_command_is_waited_for(daemon: FakeDaemon, flow: Path) -> None:
    daemon.answers["commands.wait"] = lambda _: command_row("submit", "RUNNING", note="the queue is slow")
    for words, said in (
        (("submit", str(flow)), f"no longer waiting; run {RUN} goes on: "),
        (("cancel", RUN), "no longer waiting; the daemon goes on with it: `bpsctl commands c2` tells how far it is"),
    ):
        process = start(daemon.path, *words)
        assert process.stderr is not None
        assert process.stderr.readline() == f"{RUN}: the queue is slow\n"
        process.send_signal(signal.SIGINT)
        done = ended(process)

        assert done.code == 130
        assert said in done.err


def test_ctrl_c_before_a_submission_was_acknowledged(daemon: FakeDaemon, flow: Path) -> None:
    def never(params: messages.SubmitParams) -> messages.CommandRow:
        raise Hangup

    daemon.answers["submit"] = never
    process = start(daemon.path, "submit", str(flow))
    daemon.until(lambda: len(daemon.asked("submit")) >= 2, "a second try")
    process.send_signal(signal.SIGINT)

    done = ended(process)

    token = daemon.asked("submit")[0].token
    assert done.code == 130
    assert f"`bpsctl submit --token {token} {flow}` asks, and does not do it twice" in done.err


def test_wait_survives_a_daemon_that_dies_and_comes_back(daemon: FakeDaemon) -> None:
    process = start(daemon.path, "wait", RUN)
    daemon.until_watched()
    daemon.stop()
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(2)]
    daemon.push("run.state", RUN, state="SUCCEEDED", before="RUNNING")  # while nobody listened
    daemon.start()

    done = ended(process)

    assert lines[0] == f"{RUN}  RUNNING  40%\n"
    assert "; the runs go on, looking for the daemon again" in lines[1]
    assert "the daemon is back after" in done.err
    assert (done.code, done.out) == (0, f"{RUN}  SUCCEEDED\n")


def test_events_survive_a_daemon_that_dies_and_comes_back(daemon: FakeDaemon) -> None:
    daemon.push("run.state", RUN, state="HELD", before="RUNNING")
    process = start(daemon.path, "events", "--follow", "--json")
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    daemon.until_watched()
    daemon.stop()
    daemon.resumes = False  # it has forgotten: what was missed is in the timeline
    daemon.push("run.state", RUN, state="RUNNING", before="HELD")
    daemon.push("run.progress", RUN)
    daemon.start()
    second = json.loads(process.stdout.readline())
    daemon.until_watched()
    daemon.push("run.state", RUN, state="SUCCEEDED", before="RUNNING")
    third = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)

    assert ended(process).code == 130
    assert [item["data"]["state"] for item in (first, second, third)] == ["HELD", "RUNNING", "SUCCEEDED"]
    assert first["version"] == wire.DOCUMENT_VERSION


def test_watch_as_lines(daemon: FakeDaemon) -> None:
    process = start(daemon.path, "watch")
    assert process.stdout is not None
    assert process.stdout.readline() == f"{RUN} on here  RUNNING  40%\n"
    daemon.push("run.state", RUN, state="HELD", before="RUNNING", source="queue")
    line = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    done = ended(process)

    assert line.endswith(f"  {RUN} on here  HELD (was RUNNING), by queue\n")
    assert (done.code, done.err) == (130, "\nbpsctl: no longer watching; the runs go on\n")


# -- terminals ---------------------------------------------------------------------------------------------------------


def test_a_bar_on_a_terminal(daemon: FakeDaemon) -> None:
    with on_a_terminal(daemon.path, "wait", RUN) as terminal:
        terminal.until("40%")
        terminal.until("━")
        daemon.rows[RUN].percent = 100
        daemon.push("run.state", RUN, state="SUCCEEDED", before="RUNNING")
        assert terminal.end() == 0
        assert "100%" in terminal.seen
        assert f"{RUN}  \x1b[2;32mSUCCEEDED\x1b[0m" in terminal.seen


def test_a_table_that_renews_itself(daemon: FakeDaemon) -> None:
    with on_a_terminal(daemon.path, "watch") as terminal:
        terminal.until("RUNNING")
        daemon.push("run.state", RUN, state="HELD", before="RUNNING")
        terminal.until("HELD")
        terminal.interrupt()
        assert terminal.end() == 130
        assert "no longer watching; the runs go on" in terminal.seen


def test_a_watch_keeps_what_failed_until_a_key_clears_it(daemon: FakeDaemon) -> None:
    daemon.rows |= {f"rlive{n:04}": run_row(f"rlive{n:04}") for n in range(39)}
    with on_a_terminal(daemon.path, "watch", size=(80, 24)) as terminal:
        terminal.until("more runs: ")
        daemon.rows[RUN].state = "FAILED"
        daemon.push("run.state", RUN, state="FAILED", before="RUNNING")
        terminal.until(f"FAILED \x1b[0m 40 {RUN}")
        terminal.type("c")
        terminal.until("21 more runs: 21 RUNNING")
        terminal.type("q")
        assert terminal.end() == 0


@pytest.mark.parametrize("verb", ["report", "list", "jobs", "holds", "commands", "events", "backends"])
@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
def test_no_line_is_wider_than_the_terminal(
    verb: str, size: tuple[int, int], env: dict[str, str], daemon: FakeDaemon
) -> None:
    long = "the node lost its lease on /sdf/data/rubin/u/carl and the job was put back into the queue; " * 3
    daemon.rows = {
        f"rbcdfgh{n:02}": run_row(
            f"rbcdfgh{n:02}", site="s3df", name=f"u/carl/DRP/20261128T12{n:02}00Z_a_rather_long_name_of_a_run_isr"
        )
        for n in range(12)
    }
    daemon.jobs = [
        messages.JobRow(name=f"label_{n}_of_a_long_name_{n}", label=f"label_{n}", state="FAILED", attempt=n,
                        exit_code=139, host=f"sdfmilan{n:03}.sdf.slac.stanford.edu", started_at=NOW,
                        ended_at=NOW + n, note=long)
        for n in range(5)
    ]  # fmt: skip
    daemon.holds = [
        messages.HoldGroup(group=f"a-long-name-of-a-group-{n}", reason=long, example=long, held=n, run_count=1,
                           runs={"rbcdfgh00": n}, labels={"isr": n, "coadd": 2}, backends=["here", "there"])
        for n in range(3)
    ]  # fmt: skip
    if verb == "backends":
        daemon.backend_rows = [backend_row(f"backend{n}", state="down", error=long) for n in range(3)]
    rows = [command_row(id=f"c{n}", note=long) for n in range(3)]
    daemon.answers["commands"] = lambda _: messages.CommandsResult(commands=rows)
    daemon.events = [event(n, "run.state", "rbcdfgh00", state="FAILED", before="RUNNING", note=long) for n in (8, 9)]
    words = [verb, "rbcdfgh00"] if verb == "jobs" else [verb]
    with on_a_terminal(daemon.path, *words, env=env, size=size) as terminal:
        assert terminal.end() == 0

    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.seen).splitlines()
    assert len(lines) >= 2
    assert [line for line in lines if len(line) > size[0]] == []
    if env:
        assert "\x1b[" not in terminal.seen
    piped = bpsctl(daemon.path, *words)
    assert "…" not in piped.out
    assert "in all rows" not in piped.out


def test_a_narrow_terminal(daemon: FakeDaemon) -> None:
    daemon.rows[RUN].name = "a_very_long_name_" * 10
    with on_a_terminal(daemon.path, "report") as terminal:
        assert terminal.end() == 0
        assert "…" in terminal.seen
    with on_a_terminal(daemon.path, "report", "--wide") as terminal:
        terminal.end()
        assert daemon.rows[RUN].name in terminal.seen


@pytest.mark.parametrize(
    ("words", "env", "colour"),
    [((), {}, True), (("--no-color",), {}, False), ((), {"NO_COLOR": "1"}, False), ((), {"TERM": "dumb"}, False)],
)
def test_colours(daemon: FakeDaemon, words: tuple[str, ...], env: dict[str, str], colour: bool) -> None:
    with on_a_terminal(daemon.path, "status", RUN, *words, env=env) as terminal:
        assert terminal.end() == wire.STATES["RUNNING"]
        assert ("\x1b[32mRUNNING" in terminal.seen) is colour


def test_a_large_document_has_a_bar(daemon: FakeDaemon, flow: Path) -> None:
    flow.write_bytes(b"#" * (5 << 20))
    with on_a_terminal(daemon.path, "submit", str(flow)) as terminal:
        assert terminal.end() == 0
        assert "sending" in terminal.seen

    assert "sending 5 MB\n" in bpsctl(daemon.path, "submit", str(flow)).err


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_no_daemon(socket_path: Path) -> None:
    by_environment = bpsctl(socket_path, "list")
    by_option = bpsctl("/nowhere", "list", "--socket", str(socket_path))
    before_the_verb = bpsctl("/nowhere", "--socket", str(socket_path), "list", "-v")

    assert by_environment.code == by_option.code == before_the_verb.code == 4
    assert by_environment.err.splitlines() == [
        f"bpsctl: list: no daemon answers on {socket_path} (from BPSD_SOCKET): no such socket",
        "  start it with `bpsd serve` or `systemctl --user start bpsd`; --socket or BPSD_SOCKET names another socket",
    ]
    assert f"{socket_path} (as told)" in by_option.err
    assert before_the_verb.err.endswith("  code: no_daemon\n")


def test_the_default_socket_is_named(state_dir: Path) -> None:
    done = bpsctl("", "list", env={"XDG_RUNTIME_DIR": str(state_dir)})

    assert f"no daemon answers on {state_dir}/bpsd/bpsd.sock (the default): no such socket" in done.err


def test_version_without_a_daemon_says_its_own(socket_path: Path) -> None:
    done = bpsctl(socket_path, "version")

    assert done.code == 4
    assert done.out.startswith(f"client: bpsd {__version__}")
    assert bpsctl(socket_path, "--version") == (0, f"bpsctl {__version__} (protocol 1)\n", "")


def test_another_protocol(daemon: FakeDaemon) -> None:
    daemon.protocol = 2

    done = bpsctl(daemon.path, "list")

    assert done.code == 1
    assert done.err.startswith(f"bpsctl: list: the daemon on {daemon.path} speaks protocol 2 (bpsd {__version__}), ")


def test_an_ambiguous_name(daemon: FakeDaemon) -> None:
    def ambiguous(params: messages.StatusParams) -> messages.StatusResult:
        raise RunAmbiguous(
            "2 runs are called 1234",
            advice="name the backend (--backend)",
            candidates=[
                {"id": "ra", "backend": "here", "wms_id": "1234", "name": "x"},
                {"id": "rb", "backend": "lyon"},
            ],
        )

    daemon.answers["status"] = ambiguous

    done = bpsctl(daemon.path, "status", "1234")

    assert done.code == 1
    assert done.err.splitlines() == [
        "bpsctl: status: 2 runs are called 1234",
        "  name the backend (--backend)",
        "  ra  here  1234  x",
        "  rb  lyon  -  -",
    ]


def test_typing_mistakes(socket_path: Path) -> None:
    assert bpsctl(socket_path, "reprot") == (2, "", "bpsctl: reprot: no such verb\n  did you mean report?\n")
    assert bpsctl(socket_path, "report", "--stat=FAILED").err.endswith("did you mean --state?\n")
    assert bpsctl(socket_path).code == 2
    assert bpsctl(socket_path).out.startswith("usage: bpsctl ")
    assert bpsctl(socket_path, "-v", "--socket") == (
        2,
        "",
        "bpsctl: --socket: and no verb\n  `bpsctl --help` lists the verbs\n",
    )
    assert bpsctl(socket_path, "--help").code == bpsctl(socket_path, "help").code == 0
    assert bpsctl(socket_path, "help", "wait").out.startswith("usage: bpsctl wait ")


def test_a_reader_that_goes_away(daemon: FakeDaemon) -> None:
    daemon.rows = {f"r{n}": run_row(f"r{n}") for n in range(1000)}
    process = start(daemon.path, "report")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None

    assert (process.wait(30), process.stderr.read()) == (141, "")
    assert process.stdin is not None
    process.stdin.close()
    process.stderr.close()


def test_a_disk_that_is_full(daemon: FakeDaemon) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bpsd.cli.bpsctl", "--socket", str(daemon.path), "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={"PYTHONPATH": SOURCE},
        )

    assert (done.returncode, done.stderr) == (1, "bpsctl: writing the output: No space left on device\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_an_encoding_does_not_have(daemon: FakeDaemon, encoding: str) -> None:
    daemon.rows[RUN].name = "Ωmega_é"

    done = subprocess.run(
        [sys.executable, "-m", "bpsd.cli.bpsctl", "--socket", str(daemon.path), "status", RUN],
        capture_output=True,
        check=False,
        env={"PYTHONPATH": SOURCE, "PYTHONIOENCODING": encoding},
    )

    assert done.returncode == wire.STATES["RUNNING"]
    assert "Ωmega_é".encode(encoding, "backslashreplace") in done.stdout


def test_closed_outputs_are_no_crash(daemon: FakeDaemon) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "{sys.executable}" -m bpsd.cli.bpsctl --socket "{daemon.path}" status {RUN} >&- 2>&-'],
        check=False,
        env={"PYTHONPATH": SOURCE},
    )

    assert done.returncode == wire.STATES["RUNNING"]


# -- completion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_scripts(socket_path: Path, shell: str) -> None:
    done = bpsctl(socket_path, "completion", shell)

    assert (done.code, done.err) == (0, "")
    for word in ("report", "--until", "resolve", "--return-exit-codes"):
        assert word.lstrip("-") in done.out


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["bpsctl", "rep"], ["report"]),
        (["bpsctl", "wait", "--u"], ["--until"]),
        (["bpsctl", "commands", "res"], ["resolve"]),
        (["bpsctl", "completion", ""], ["bash", "zsh", "tcsh"]),
    ],
)
def test_bash_completes(socket_path: Path, state_dir: Path, words: list[str], completions: list[str]) -> None:
    script = state_dir / "completion"
    script.write_text(bpsctl(socket_path, "completion", "bash").out)
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _shtab_bpsctl; echo ${{COMPREPLY[@]}}"
    )

    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == completions


def test_bash_completes_what_the_daemon_knows(daemon: FakeDaemon, state_dir: Path) -> None:
    script, program = state_dir / "completion", state_dir / "bpsctl"
    script.write_text(bpsctl(daemon.path, "completion", "bash").out)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bpsd.cli.bpsctl "$@"\n')
    program.chmod(0o755)

    def completed(words: str, at: int, socket: Path) -> list[str]:
        lines = f"source {script}; COMP_WORDS=({words}); COMP_CWORD={at}; _shtab_bpsctl; echo ${{COMPREPLY[@]}}"
        env = {"PATH": f"{state_dir}:{os.environ['PATH']}", "PYTHONPATH": SOURCE, "BPSD_SOCKET": str(socket)}
        done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True, env=env)
        assert done.stderr == ""
        return done.stdout.split()

    assert completed("bpsctl status ''", 2, daemon.path) == [RUN]
    assert completed(f"bpsctl wait {RUN} {RUN[:3]}", 3, daemon.path) == [RUN]
    assert completed("bpsctl report --backend ''", 3, daemon.path) == ["here"]
    assert completed("bpsctl status ''", 2, state_dir / "nobody") == []
