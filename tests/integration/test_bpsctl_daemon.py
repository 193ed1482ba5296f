"""``bpsctl`` and the asynchronous client with the real daemon and real jobs, as an operator would use them."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from bpsd.client import AsyncClient
from bpsd.client.aio import Away, Back, Snapshot
from bpsd.messages import Event
from tests.integration.bpsctl import bpsctl, start
from tests.integration.daemons import RunningDaemon, document, true_job, until


@pytest.fixture
def daemon(state_dir: Path) -> Iterator[RunningDaemon]:
    """A daemon with the local backend."""
    with RunningDaemon(state_dir, {"here": {"type": "local"}}) as running:
        yield running


def workflow(folder: Path) -> Path:
    """A job, two that fail while a file is missing, one that needs them."""
    mended = folder / "mended"
    script = f"echo working; test -e {mended} || {{ echo no calibration in {mended} for $0 >&2; exit 1; }}"
    jobs = [
        true_job("init"),
        *(
            true_job(f"isr_{n}", parents=("init",)) | {"executable": "/bin/sh", "arguments": f"-c '{script}'"}
            for n in (1, 2)
        ),
        true_job("coadd", parents=("isr_1", "isr_2")),
    ]
    path = folder / "flow.json"
    path.write_bytes(document(*jobs, name="u_alice_DRP", run={"project": "dev", "payload": "DRP"}))
    return path


def test_a_run_that_fails_is_mended_and_restarted(daemon: RunningDaemon) -> None:
    flow = workflow(daemon.folder)

    submitted = bpsctl(daemon.socket, "submit", str(flow), "--wait")
    assert submitted.code == 1, submitted
    found = re.search("^Run Id: (r[a-z0-9]{8})$", submitted.out, re.MULTILINE)
    assert found
    run = found[1]
    assert f"`bpsctl logs {run} --failed`" in submitted.err

    assert bpsctl(daemon.socket, "status", run).code == 19
    report = bpsctl(daemon.socket, "report", run, "--return-exit-codes").out
    rows = {line.split()[0]: line.split()[1:] for line in report.splitlines() if line}
    assert rows["FAILED"][:2] == ["25", run]
    assert rows["TOTAL"] == ["0", "0", "0", "0", "0", "0", "0", "0", "1", "2", "1", "4"]
    assert "\nisr                     2                   1 " in report
    logs = bpsctl(daemon.socket, "logs", run, "--failed").out
    assert logs.startswith("== 2 jobs of isr failed, exit code 1: isr_1, isr_2\nno calibration in ")
    assert bpsctl(daemon.socket, "logs", run, "isr_1", "--stream", "stdout").out == "working\n"
    assert bpsctl(daemon.socket, "jobs", run, "-q", "--state", "PRUNED").out == "coadd\n"
    assert "there is nothing to cancel" in bpsctl(daemon.socket, "cancel", run).err

    (daemon.folder / "mended").touch()
    assert bpsctl(daemon.socket, "restart", "--state", "failed", "--yes").out == f"{run}: restarted\n"
    waited = bpsctl(daemon.socket, "wait", run)
    assert (waited.code, waited.out) == (0, f"{run}  SUCCEEDED\n")
    timeline = bpsctl(daemon.socket, "events", run).out
    assert "  FAILED (was " in timeline
    assert "  attempt 2 as " in timeline
    verbs = [row["verb"] for row in json.loads(bpsctl(daemon.socket, "commands", "--json").out)["commands"]]
    assert verbs == ["restart", "submit"]


def test_cancelling_what_runs(daemon: RunningDaemon) -> None:
    flow = daemon.folder / "flow.json"
    flow.write_bytes(document(true_job("sleep") | {"executable": "/bin/sleep", "arguments": "600"}))
    run = bpsctl(daemon.socket, "submit", "-q", str(flow)).out.strip()
    assert bpsctl(daemon.socket, "wait", run, "--until", "RUNNING").code == 0

    assert "only a run that is over can be restarted" in bpsctl(daemon.socket, "restart", run).err
    waiting = start(daemon.socket, "wait", run)
    assert waiting.stderr is not None
    assert waiting.stderr.readline().startswith(f"{run}  RUNNING")
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert "the runs go on" in err
    assert bpsctl(daemon.socket, "status", run).code == 15

    assert bpsctl(daemon.socket, "cancel", "--active", "--yes").out == f"{run}: cancelled and gone\n"
    assert bpsctl(daemon.socket, "status", run).code == 16


def test_questions_and_mistakes(daemon: RunningDaemon) -> None:
    flow = daemon.folder / "flow.yaml"
    flow.write_text("name: x\njobs:\n  - {name: a, label: a, executable: 'true', parents: [b]}\n  - {nmae: c}\n")

    wrong = bpsctl(daemon.socket, "submit", str(flow))
    ambiguous = bpsctl(daemon.socket, "report", "-b", "her")

    assert wrong.code == 1
    assert f"{flow}:3:" in wrong.err
    assert f"{flow}:4:" in wrong.err
    assert "mistakes\n" in wrong.err
    assert (ambiguous.code, ambiguous.err.splitlines()[1]) == (1, "  did you mean here? the backends are: here")
    assert bpsctl(daemon.socket, "ping").code == 0
    assert bpsctl(daemon.socket, "refresh").code == 0
    assert bpsctl(daemon.socket, "health").out.startswith("BPSD OK - ")
    assert "priority " in bpsctl(daemon.socket, "backends", "--fields").out
    assert str(daemon.socket) in bpsctl(daemon.socket, "version").out
    assert bpsctl(daemon.socket, "admin", "check").code == 0


async def test_a_watch_through_a_killed_daemon(daemon: RunningDaemon) -> None:
    go = daemon.folder / "go"
    waits = f"-c 'until test -e {go}; do sleep 0.05; done'"
    data = document(true_job("sleep") | {"executable": "/bin/sh", "arguments": waits})
    kinds: list[str] = []
    with anyio.fail_after(60):
        async with AsyncClient(str(daemon.socket)) as client:
            command = await client.submit_document(data)
            assert (await client.wait_command(command.id)).state == "DONE"
            async with client.watch([command.run]) as watch:
                async for item in watch:
                    kinds.append(type(item).__name__)
                    if isinstance(item, Snapshot) and kinds == ["Snapshot"]:
                        await anyio.to_thread.run_sync(daemon.kill)
                    elif isinstance(item, Away):
                        go.touch()  # the run ends while nobody watches
                        await anyio.to_thread.run_sync(daemon.start)
                    elif isinstance(item, Snapshot | Event):
                        state = (await client.status(command.run)).state
                        if state == "SUCCEEDED":
                            break
            assert await client.wait([command.run]) == {command.run: "SUCCEEDED"}

    assert kinds[0] == "Snapshot"
    assert kinds.index(Away.__name__) < kinds.index(Back.__name__)
    until(lambda: daemon.process is not None and daemon.process.poll() is None, "it is there")


def test_why_jobs_failed_is_said_wherever_a_person_looks(daemon: RunningDaemon) -> None:
    plain, gone = daemon.folder / "no-program", daemon.folder / "gone"
    plain.write_text("#!/bin/sh\n")
    plain.chmod(0o755)
    gone.mkdir()
    shell = {"executable": "/bin/sh"}
    jobs = [
        true_job("spoil_1") | shell | {"arguments": f"-c 'chmod 644 {plain}; rmdir {gone}'"},
        true_job("late_1") | shell | {"arguments": "-c 'sleep 60'", "request_walltime": "00:00:01"},
        true_job("denied_1", parents=("spoil_1",)) | {"executable": str(plain)},
        true_job("nowhere_1", parents=("spoil_1",)) | {"working_directory": str(gone)},
        true_job("segv_1") | shell | {"arguments": "-c 'kill -SEGV $$'"},
    ]
    causes = {
        "late_1": "walltime of 1 s exceeded",
        "denied_1": f"cannot start: permission denied: {plain} is not an executable file",
        "nowhere_1": f"cannot start: no such file or directory: {gone}",
        "segv_1": "signal 11 (SIGSEGV)",
    }
    flow = daemon.folder / "flow.json"
    flow.write_bytes(document(*jobs, name="broken"))
    run = bpsctl(daemon.socket, "submit", "-q", str(flow)).out.strip()
    assert bpsctl(daemon.socket, "wait", run).code == 1

    tails = bpsctl(daemon.socket, "logs", run, "--failed").out
    rows = json.loads(bpsctl(daemon.socket, "jobs", run, "--json").out)["jobs"]
    report = bpsctl(daemon.socket, "report", run).out
    events = bpsctl(daemon.socket, "events", run).out
    assert {row["name"]: row["note"] for row in rows if row["note"]} == causes
    for name, cause in causes.items():
        assert f" failed, {cause}: {name}\n" in tails
    named = report.partition("Note: ")[2].partition("\n")[0]
    assert sum(f"{name} ({cause})" in named for name, cause in causes.items()) >= 3  # it names the first few
    assert named in events
