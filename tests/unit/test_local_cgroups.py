"""The kernel's word that a job was out of memory."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bpsd_adapters.local import jobs
from bpsd_adapters.local.cgroups import OomCounter
from bpsd_adapters.local.commands import Command
from bpsd_adapters.local.events import JobRef
from bpsd_adapters.local.ledger import Wish

V1 = "12:pids:/a\n4:memory:/a.slice/b.service\n1:name=systemd:/a\n0::/a\n"
V2 = "0::/a.slice/b.service\n"


def counter(tmp_path: Path, own: str, file: str, text: str) -> tuple[OomCounter, Path]:
    (tmp_path / "own").write_text(own)
    counting = tmp_path / "cgroup" / file
    counting.parent.mkdir(parents=True)
    counting.write_text(text)
    return OomCounter(tmp_path / "cgroup", tmp_path / "own"), counting


@pytest.mark.parametrize(
    ("own", "file", "text"),
    [
        (V2, "a.slice/b.service/memory.events", "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n"),
        (V1, "memory/a.slice/b.service/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
    ],
)
def test_both_versions_of_control_groups_count(tmp_path: Path, own: str, file: str, text: str) -> None:
    assert counter(tmp_path, own, file, text)[0].count() == 2


def test_where_nothing_counts_there_is_no_count(tmp_path: Path) -> None:
    assert OomCounter(tmp_path, tmp_path / "none").count() == 0
    assert counter(tmp_path, V2, "a.slice/b.service/memory.events", "nonsense")[0].count() == 0


@pytest.mark.parametrize(("count", "says"), [(1, True), (0, False)])
def test_a_job_killed_by_signal_9_was_out_of_memory_only_if_the_kernel_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, says: bool
) -> None:
    oom, file = counter(tmp_path, V2, "a.slice/b.service/memory.events", "oom_kill 0\n")
    monkeypatch.setattr(jobs, "OOM", oom)
    monkeypatch.chdir(tmp_path)
    script = f"echo oom_kill {count} > {file}; kill -9 $$"
    command = Command("/bin/sh", ["sh", "-c", script], {}, str(tmp_path), None, None)
    out = (str(tmp_path / "out"), str(tmp_path / "err"))
    job = jobs.RunningJob(JobRef(0, "a", "a", 1), command, Wish(1, 512), out, None, 1.0, umask=0o022)
    while not job.look(0.0):
        pass

    assert job.exit_code == 128 + signal.SIGKILL
    assert job.note == ("out of memory: the kernel ended it (request_memory was 512 MB)" if says else "")
