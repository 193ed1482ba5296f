"""Jobs that run now: each is a session of its own with up to three steps (before, the job, after), one at a time.

A job is over when its process is. What that left running in its process group is then ended, at once if the job came
to its end by itself, else when the grace is over. The process is looked at before it is reaped (``WNOWAIT``), so that
its pid, which is the group's number, cannot mean another group while it gets signals.
"""

from __future__ import annotations

__all__ = ["RunningJob"]

import errno
import os
import signal
from typing import NamedTuple

from bpsd.diskfull import FULL_ERRNOS
from bpsd.models import ending, normal_exit_code
from bpsd_adapters.local import processes
from bpsd_adapters.local.cgroups import OomCounter
from bpsd_adapters.local.commands import Command
from bpsd_adapters.local.events import JobRef
from bpsd_adapters.local.ledger import Claim, Wish

POST_TIME_S = 60.0
"""What a post-command gets at least where there is a walltime and the job used it up."""

TRY_AGAIN_S = 1.0
"""How long to wait when the machine cannot start a process now."""

LOOK_EVERY_S = 0.05
"""How often to look whether what a job left running has heeded SIGTERM."""

_FOR_NOW = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}) | FULL_ERRNOS
"""Errors of the machine's state, not of the job's: the start is tried again."""

_DEFAULT_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGPIPE", "SIGTERM", "SIGXFSZ")
)
"""Python ignores some of these, and ``nohup`` others; a job gets none of that."""

OOM = OomCounter()
"""Of the unit that the driver and its jobs are in."""

OUT_OF_MEMORY = "out of memory"
"""How a note begins if the kernel ended a job because the control group was out of memory."""

_KILLED = frozenset({-signal.SIGKILL, 128 + signal.SIGKILL})
"""Exit codes of a job that SIGKILL ended, and of a shell whose command it ended."""

_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_INF = float("inf")


class _Step(NamedTuple):
    name: str
    program: str
    argv: list[str]


class RunningJob:
    """An attempt of a job from its first process to its last.

    Parameters
    ----------
    ref : `JobRef`
        Which.
    command : `Command`
        What to execute.
    wish : `Wish`
        The cores and memory that it holds.
    outputs : `tuple` [`str`, `str`]
        Files for stdout and stderr.
    walltime_s : `float` or `None`
        How long it may take.
    grace_s : `float`
        How long it may take to end after SIGTERM.
    umask : `int`
        The umask of its processes, which its output files follow too.
    """

    __slots__ = (
        "_command",
        "_gone",
        "_grace_s",
        "_killed",
        "_oom_before",
        "_outputs",
        "_steps",
        "_umask",
        "_walltime_s",
        "deadline",
        "exit_code",
        "kill_at",
        "note",
        "out_of_time",
        "process",
        "ref",
        "removed",
        "spawn_at",
        "step",
        "wish",
    )

    def __init__(
        self,
        ref: JobRef,
        command: Command,
        wish: Wish,
        outputs: tuple[str, str],
        walltime_s: float | None,
        grace_s: float,
        umask: int,
    ) -> None:
        self.ref = ref
        self.exit_code: int | None = None
        """Of the job itself, 128 + N for a signal; `None` if it has not run."""

        self.note = ""
        self.out_of_time = self.removed = False
        self.process = processes.GONE
        self.step = ""
        self.deadline = self.kill_at = _INF
        self.spawn_at = -_INF
        self._killed = self._gone = False
        self._oom_before = 0
        self.wish = wish
        self._command, self._outputs = command, outputs
        self._walltime_s, self._grace_s = walltime_s, grace_s
        self._umask = umask
        self._steps = [_Step("job", command.program, command.argv)]
        if command.before is not None:
            self._steps.insert(0, _Step("pre", command.before[0], command.before))

    def __repr__(self) -> str:
        return f"<RunningJob {self.ref.name}.{self.ref.attempt} {self.step or 'not started'} {self.process.pid}>"

    @property
    def claim(self) -> Claim:
        """What it holds, for the ledger."""
        return Claim(self.wish.cores, self.wish.memory_mb, self.process.pid, self.process.start)

    def end(self, now: float, note: str, *, removed: bool) -> None:
        """Have it end: TERM now, KILL after the grace. To be asked again hastens nothing."""
        self.removed = self.removed or removed
        if self.kill_at != _INF:
            return
        self._say(note)
        self.kill_at = now + self._grace_s
        if self.process.pid and not self._gone:
            _signal_group(self.process.pid, signal.SIGTERM)
            _signal_group(self.process.pid, signal.SIGCONT)  # a stopped process hears nothing else

    def next_look(self, now: float) -> float:
        """When something may be due though no process of ours ends (monotonic)."""
        if self.kill_at == _INF:
            return min(self.spawn_at, self.deadline)
        if self._gone:
            return min(self.kill_at, now + LOOK_EVERY_S)
        return _INF if self._killed else min(self.spawn_at, self.kill_at)

    def look(self, now: float) -> bool:
        """See what happened and start what is due; whether it is all over. If not, `process` may be another one now."""
        if self.process == processes.GONE:
            return self._look_at_start(now)
        if self.kill_at == _INF and now >= self.deadline:
            self.out_of_time = self.out_of_time or self.step != "post"
            self.end(now, f"walltime of {self._walltime_s:.0f} s exceeded", removed=False)
        if now >= self.kill_at and not self._killed:
            self._killed = True
            _signal_group(self.process.pid, signal.SIGKILL)
        if not self._gone and os.waitid(os.P_PID, self.process.pid, _PEEK) is None:
            return False
        if now < self.kill_at != _INF and processes.group_is_alive(self.process.pid):
            self._gone = True
            return False
        _signal_group(self.process.pid, signal.SIGKILL)  # what it left behind
        code = normal_exit_code(os.waitstatus_to_exitcode(os.waitpid(self.process.pid, 0)[1]))
        self.process = processes.GONE
        return self._step_ended(code, now)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _spawn(self, now: float) -> None:
        """Start the next step; if the machine cannot now, `spawn_at` says when to try again."""
        step = self._steps[0]
        self._oom_before = OOM.count()
        own = os.umask(self._umask)  # a spawned process has that of its parent, and this one has a single thread
        try:
            os.chdir(self._command.folder)
            out, err = self._outputs
            pid = os.posix_spawn(
                step.program,
                step.argv,
                self._command.environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, out, _APPEND, 0o666),
                    (os.POSIX_SPAWN_OPEN, 2, err, _APPEND, 0o666),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=_DEFAULT_SIGNALS,
            )
        except OSError as exc:
            if exc.errno not in _FOR_NOW:
                raise
            self.spawn_at = now + TRY_AGAIN_S
            return
        finally:
            os.umask(own)
        self.process = processes.of_child(pid)
        self.step = step.name
        self.spawn_at, self._gone = _INF, False
        del self._steps[0]
        if self._walltime_s is not None and self.deadline == _INF:
            self.deadline = now + self._walltime_s

    def _look_at_start(self, now: float) -> bool:
        if self.removed:
            return True
        if now < self.spawn_at:
            return False
        try:
            self._spawn(now)
        except OSError as exc:
            self._say(f"cannot start: {(exc.strerror or str(exc)).lower()}: {exc.filename or self._command.program}")
            return True
        return False

    def _say(self, note: str) -> None:
        self.note = f"{self.note}; {note}" if self.note else note

    def _step_ended(self, code: int, now: float) -> bool:
        if code in _KILLED and not self._killed and OOM.count() > self._oom_before:
            self._say(f"{OUT_OF_MEMORY}: the kernel ended it (request_memory was {self.wish.memory_mb} MB)")
        if self.step == "post":
            if code:
                self._say(f"post_cmdline ended with {ending(code)}")
            return True
        if self.step == "pre" and code == 0 and self.kill_at == _INF:
            self.spawn_at = now
            return self._look_at_start(now)
        if self.step == "pre":
            self._say(f"pre_cmdline ended with {ending(code)}")
            return True
        self.exit_code = code
        if self._command.after is None or self.removed:
            return True
        self._steps.append(_Step("post", self._command.after[0], self._command.after))
        if self.deadline != _INF:
            self.deadline = max(self.deadline, now + POST_TIME_S)
        self.kill_at, self._killed = _INF, False
        self.spawn_at = now
        return self._look_at_start(now)


_PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT


def _signal_group(leader: int, number: int) -> None:
    """Signal a group whose leader is an unreaped child of ours."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        pass  # nobody is in it any more
    except PermissionError:
        pass  # nobody in it may be signalled by us (a set-uid program); the ledger goes on counting it
