"""How the jobs of a hosted run are doing, read off the plugin's own objects, which look like those of ctrl_bps_parsl.

Sent as ``bpsd_jobs.py`` with ``host.py``: standard library, Python 3.10 or newer. A workflow shows its jobs in a
mapping ``jobs`` of name to an object with ``generic`` (or ``label``), ``done`` and a ``future``, and perhaps a
``final`` one; while it runs, ``dfk`` has the executors.
"""

from __future__ import annotations

__all__ = ["Watch", "dead_service", "watch_of"]

import multiprocessing.process
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

JOBS_PER_LINE = 1000
LOOK_EVERY_S = 0.5
"""How often a host looks at its jobs."""

SUCCEEDED, UNREADY, READY, PENDING, RUNNING, DELETED, FAILED, PRUNED = 0, 12, 13, 14, 15, 16, 19, 20
"""The values of ``WmsStates``."""

TERMINAL = (SUCCEEDED, DELETED, FAILED, PRUNED)


def dead_service(workflow: Any) -> str:
    """What is to be said of a process that the plugin's executors need and that has died; empty if they all live.

    In Parsl each executor starts such processes (``HighThroughputExecutor`` its interchange), and does not notice that
    one has died: its jobs are waited for for ever (Parsl#3374).
    """
    kernel = getattr(workflow, "dfk", None)
    if kernel is None or getattr(kernel, "cleanup_called", False):
        return ""
    executors = dict(getattr(kernel, "executors", None) or {})
    for label, executor in executors.items():
        for name, process in list(getattr(executor, "__dict__", {}).items()):
            code = _exit_code(process)
            if code is not None and not getattr(kernel, "cleanup_called", False):
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                what = name.replace("_proc", "").strip("_").replace("_", " ")
                return f"the {what} of executor {label} (pid {process.pid}) {how} while the run went on"
    return ""


def _exit_code(value: Any) -> int | None:
    """How a process ended, if the value is one that has."""
    if isinstance(value, subprocess.Popen):
        code: int | None = value.poll()
        return code
    if isinstance(value, multiprocessing.process.BaseProcess):
        return value.exitcode
    return None


class Watch:
    """Looks at the jobs of a workflow and writes down what changed.

    Parameters
    ----------
    append : callable
        Writes events to the log of the run.
    jobs : `dict`
        Name to the plugin's own object of a job.
    parents : `dict`
        Name to the names of jobs that have to succeed before.
    final : `str`, optional
        The job that runs in this process, at last.
    since : `float`
        When the attempt began (epoch seconds): output that is older is that of another attempt.
    earlier : `frozenset` [`str`]
        The jobs that succeeded in attempts before this one: Parsl does not run ``pipetaskInit`` again.
    """

    def __init__(
        self,
        append: Callable[[dict[str, Any]], None],
        jobs: dict[str, Any],
        parents: dict[str, Any],
        final: str | None,
        since: float,
        earlier: frozenset[str],
    ) -> None:
        self.append, self.jobs, self.parents, self.final, self.since = append, jobs, parents, final, since
        self.earlier = earlier
        self.seen: dict[str, tuple[int, int | None, str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def start(self) -> None:
        """Look from time to time, from another thread."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            self.look()

    def look(self, ending: int | None = None, note: str = "") -> None:
        """Write down what changed; with ``ending``, what has no end yet gets this one, and what ran this note."""
        changed = []
        for name, job in self.jobs.items():
            before = self.seen.get(name)
            if before is not None and before[0] in TERMINAL:
                continue
            now = self._state(name, job)
            if ending is not None and now[0] not in TERMINAL:
                ran = now[0] in (RUNNING, PENDING)
                now = (ending, None, note) if ran else (max(ending, PRUNED), None, "")
            if now != before:
                self.seen[name] = now
                changed.append([name, _label(job), *now])
        for at in range(0, len(changed), JOBS_PER_LINE):
            self.append({"e": "jobs", "t": time.time(), "jobs": changed[at : at + JOBS_PER_LINE]})

    def _state(self, name: str, job: Any) -> tuple[int, int | None, str]:
        """State, exit code and note of a job."""
        if job.done:
            return SUCCEEDED, 0, ""
        future = job.future
        if future is None:
            return self._before(name, job)
        if not future.done():
            return self._live(job, future), None, ""
        error = future.exception()
        if error is None:
            return SUCCEEDED, 0, ""
        if type(error).__name__ == "DependencyError":
            return PRUNED, None, ""
        code = getattr(error, "exitcode", None)
        return FAILED, code if isinstance(code, int) else None, f"{type(error).__name__}: {error}"[:500]

    def _before(self, name: str, job: Any) -> tuple[int, int | None, str]:
        """A job without a future: it waits, or it runs in this process (the first and the last)."""
        if name == self.final:
            return RUNNING if self._has_output(job) else UNREADY, None, ""
        if name in self.earlier:
            return SUCCEEDED, 0, ""
        if not self.parents.get(name) and self._has_output(job):
            return RUNNING, None, ""
        waits = any(self.seen.get(parent, (UNREADY,))[0] != SUCCEEDED for parent in self.parents.get(name, ()))
        return UNREADY if waits else READY, None, ""

    def _live(self, job: Any, future: Any) -> int:
        """The state of a job that Parsl has: its output begins when a worker takes it (parsl.app.bash)."""
        record = getattr(future, "task_record", None)
        if record is None:  # the future of another plugin
            return RUNNING if future.running() or self._has_output(job) else UNREADY
        status = getattr(record.get("status"), "name", "")
        if status in ("running", "running_ended") or (status == "launched" and self._has_output(job)):
            return RUNNING
        return PENDING if status == "launched" else UNREADY

    def _has_output(self, job: Any) -> bool:
        try:
            return Path(job.stderr).stat().st_mtime >= self.since
        except (OSError, AttributeError, TypeError):
            return False


def _label(job: Any) -> str:
    return str(getattr(getattr(job, "generic", job), "label", ""))


def watch_of(
    append: Callable[[dict[str, Any]], None], workflow: Any, since: float, earlier: frozenset[str]
) -> Watch | None:
    """A watch over the jobs of a workflow; `None` if it does not show them."""
    jobs = getattr(workflow, "jobs", None)
    if not isinstance(jobs, dict) or not all(hasattr(j, "future") and hasattr(j, "done") for j in jobs.values()):
        return None
    if not hasattr(workflow, "final"):  # the last that its constructor sets
        return None
    final = workflow.final
    watched = dict(jobs)
    if final is not None:
        watched[final.name] = final
    parents = getattr(workflow, "parents", {})
    return Watch(append, watched, parents, None if final is None else final.name, since, earlier)
