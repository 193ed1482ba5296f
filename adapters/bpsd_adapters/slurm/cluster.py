"""Slurm's own tools on the submit host, through a transport: batched questions and few orders. The I/O of this adapter.

A return code is no state: what cannot be asked raises, and an answer that is garbled is no answer.
"""

from __future__ import annotations

__all__ = ["Cluster", "Outcome", "Submission", "classify_refusal"]

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, TypeVar

import anyio.to_thread

from bpsd.errors import BackendAuthError, BackendUnavailable
from bpsd_adapters.slurm import scripts
from bpsd_adapters.slurm.chunks import Plan
from bpsd_adapters.slurm.options import job_options
from bpsd_adapters.slurm.parsing import (
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    AccountRow,
    ClusterLimits,
    ExitRecord,
    QueueRow,
    parse_exits,
    parse_limits,
    parse_sacct,
    parse_squeue,
    smallest_limit,
)
from bpsd_adapters.slurm.settings import SlurmConfig
from bpsd_adapters.transports.base import STDERR_CHARS, Completed, Transport

IDS_PER_CALL = 1000
"""How many ids one call of sacct, scancel or scontrol names."""

PING_DEADLINE_S = 20.0

_ALL_STATES = "BF,CA,CD,DL,F,NF,OOM,PD,PR,R,RQ,S,TO"
_LIMITED = re.compile(
    r"MaxSubmitJob|SubmitJobLimit|SubmitJobsLimit|accounting/QOS policy|temporarily unable to accept|MaxJobCount",
    re.IGNORECASE,
)
_OF_NO_CONCERN = re.compile(r"\S+: (Job has already finished|No error|Job/step already completing or completed)\s*")
"""What scontrol says, and fails for, of those tasks of an array that ended before."""

_SAID_BY_SBATCH = re.compile(r"\s*sbatch: error: ")
_MISTAKE = re.compile(
    r"invalid (partition|account|qos|feature|license|time|reservation|gres|generic resource|wckey)|option|"
    r"time limit is invalid",
    re.IGNORECASE,
)
_UNCERTAIN = re.compile(
    r"timed out|unable to contact|connect failure|connection (refused|reset)|socket|zero bytes|transport endpoint|"
    r"communication|standby|state save|I/O error writing|message (send|receive) failure|slurmctld.*(down|not respond)",
    re.IGNORECASE,
)

R = TypeVar("R")


class Outcome(Enum):
    """What became of an attempt to submit a chunk."""

    SUBMITTED = "submitted"
    LIMITED = "limited"
    """Refused, since too many jobs are in the queue: later it may be taken."""

    REFUSED = "refused"
    """Refused as it is."""

    DOUBT = "doubt"
    """Nobody said whether Slurm has it."""

    FULL = "full"
    """As `DOUBT`, and Slurm said that it takes no more jobs for now."""

    NOT_WRITTEN = "not written"
    """Its files could not be written: nothing was submitted."""


class Submission(NamedTuple):
    """What became of a chunk."""

    outcome: Outcome
    job_id: int = 0
    text: str = ""


def classify_refusal(text: str) -> Outcome:
    """What a word of sbatch that failed means for the chunk."""
    if _UNCERTAIN.search(text):
        return Outcome.DOUBT
    return Outcome.LIMITED if _LIMITED.search(text) else Outcome.REFUSED


class Cluster:
    """One cluster, as one user sees it from one submit host.

    Parameters
    ----------
    transport : `~bpsd_adapters.transports.base.Transport`
        To the submit host; open.
    config : `SlurmConfig`
        Deadlines and the work folder.
    """

    def __init__(self, transport: Transport, config: SlurmConfig) -> None:
        self.transport = transport
        self._config = config

    # -- questions ---------------------------------------------------------------------------------------------------

    async def queue(self) -> tuple[list[QueueRow], int]:
        """All jobs of ours that slurmctld knows, with those that ended lately, and the size of the answer.

        Raises
        ------
        BackendUnavailable
            If it does not answer, or not completely.
        """
        done = await self._shell(scripts.SQUEUE, SQUEUE_FORMAT)
        text = done.check(self.transport.host).stdout.decode(errors="replace")
        rows = await anyio.to_thread.run_sync(_parsed, parse_squeue, text, self.transport.host)
        return rows, len(done.stdout)

    async def accounts(self, array_ids: Iterable[int]) -> list[AccountRow]:
        """What accounting has of arrays, task by task.

        Raises
        ------
        BackendUnavailable
            If it does not answer, or there is no accounting.
        """
        ids = sorted(set(array_ids))
        rows: list[AccountRow] = []
        for start in range(0, len(ids), IDS_PER_CALL):
            rows += await self._sacct("-j", ",".join(map(str, ids[start : start + IDS_PER_CALL])))
        return rows

    async def accounts_by_name(self, names: Sequence[str], since_s: float) -> list[AccountRow]:
        """What accounting has under these names, from so many seconds ago by Slurm's own clock."""
        ago = f"now-{max(int(since_s), 60)}seconds"
        return await self._sacct("-S", ago, "-s", _ALL_STATES, "--name", ",".join(names))

    async def exits(self, paths: Sequence[str]) -> tuple[Mapping[str, ExitRecord], int]:
        """Those exit records that are there, by these paths below the work folder, and the size of the answer.

        Raises
        ------
        BackendUnavailable
            If the work folder cannot be read.
        """
        told = "".join(f"{path}\n" for path in paths).encode()
        done = (await self._shell(scripts.COLLECT, self._config.work_dir, input=told)).check(self.transport.host)
        text = done.stdout.decode(errors="replace")
        if not text.endswith("@end\n"):
            raise BackendUnavailable(f"the exit records in {self._config.work_dir} were not read to the end")
        return parse_exits(text), len(done.stdout)

    async def limits(self) -> ClusterLimits:
        """What the controller says of itself."""
        done = await self._tool("scontrol", "show", "config")
        return parse_limits(done.check(self.transport.host).stdout.decode(errors="replace"))

    async def association_limit(self, cluster: str) -> int | None:
        """How many jobs our association in this cluster may have submitted, if that is limited and can be read."""
        script = 'exec sacctmgr -n -P show assoc where user="$(id -un)" cluster="$1" format=MaxSubmitJobs,GrpSubmitJobs'
        try:
            done = await self._shell(script, cluster)
        except BackendUnavailable:
            return None  # accounting is away: a refusal will tell
        if done.returncode != 0:
            return None
        return smallest_limit(re.split(r"[|\n]", done.stdout.decode(errors="replace")))

    async def ping(self) -> tuple[int, str]:
        """Whether slurmctld is up; asked so that a dead one is told of at once."""
        done = await self.transport.run(["scontrol", "ping"], deadline_s=PING_DEADLINE_S)
        text = " ".join(done.stdout.decode(errors="replace").split()) or done.error_text
        return (0, "") if done.returncode == 0 and " UP" in text else (1, f"slurmctld: {text or 'no word'}")

    async def probe(self) -> None:
        """See that the tools are there and that the work folder can be written.

        Raises
        ------
        BackendUnavailable
            If not.
        """
        await self._of_work_dir(scripts.PROBE, self._config.work_dir)

    async def absent_programs(self, programs: Sequence[str]) -> list[str]:
        """Which of these are not on the submit host."""
        told = "".join(f"{program}\n" for program in programs).encode()
        done = (await self._shell(scripts.PROGRAMS, input=told)).check(self.transport.host)
        return done.stdout.decode(errors="replace").splitlines()

    async def would_refuse(self, options: Sequence[str]) -> str:
        """What sbatch says against these options, if they are a mistake; nodes that are away now may come back."""
        argv = ["sbatch", "--test-only", "--array=0", *options, "--wrap=true"]
        done = await self.transport.run(argv, deadline_s=self._config.command_deadline_s)
        if done.returncode == 0 or not _MISTAKE.search(done.error_text):
            return ""
        return done.error_text

    # -- orders ------------------------------------------------------------------------------------------------------

    async def make_run(self, folder: str) -> None:
        """Make a run's folder on the submit host; doing it again does no harm.

        Raises
        ------
        BackendUnavailable
            If it cannot be made.
        """
        wrapper = scripts.WRAPPER.encode()
        await self._of_work_dir(scripts.MAKE_RUN, folder, f"{len(wrapper)}", input=wrapper)

    async def submit(self, folder: str, plan: Plan) -> Submission:
        """Submit a chunk, once: a second call for the same chunk only says that it was tried."""
        argv = [
            "sh", "-c", scripts.SUBMIT, "sh", folder, str(plan.chunk), str(len(plan.jobs)),
            "--parsable", f"--array=0-{plan.size - 1}",
            *job_options(folder, plan.name, plan.label, f"{plan.chunk}_%a"), *plan.options,
            f"{folder}/wrapper.sh", folder, str(plan.chunk),
        ]  # fmt: skip
        try:
            done = await self.transport.run(argv, deadline_s=self._config.submit_deadline_s, input=plan.jobs)
        except (BackendUnavailable, BackendAuthError) as exc:
            return Submission(Outcome.DOUBT, text=exc.message)
        if done.returncode == 0:
            text = done.stdout.decode(errors="replace").strip().partition(";")[0]
            return Submission(Outcome.SUBMITTED, int(text)) if text.isdecimal() else Submission(Outcome.DOUBT)
        outcome = {
            scripts.CALLED_OFF: Outcome.DOUBT,
            scripts.NOT_WRITTEN: Outcome.NOT_WRITTEN,
            scripts.FULL: Outcome.FULL,
        }.get(done.returncode)
        if outcome is None:  # one that a signal ended said nothing of what Slurm has
            ended_by_signal = done.returncode < 0 or done.returncode > 128
            outcome = Outcome.DOUBT if ended_by_signal else classify_refusal(done.error_text)
        text = _SAID_BY_SBATCH.sub("; ", done.error_text).strip("; ")
        if outcome is Outcome.NOT_WRITTEN:
            text = f"{folder} on {self.transport.host} cannot be written: {text}"
        return Submission(outcome, text=text)

    async def call_off(self, folder: str, chunks: Sequence[int]) -> dict[int, str]:
        """Keep chunks from being submitted, if that was not begun: ``off``, ``tried``, or ``id N``."""
        done = (await self._shell(scripts.CALL_OFF, folder, *map(str, chunks))).check(self.transport.host)
        lines = (line.partition(" ") for line in done.stdout.decode(errors="replace").splitlines())
        return {int(number): said for number, _, said in lines}

    async def void(self, folder: str, claims: Sequence[str]) -> dict[str, str]:
        """Take the claims that nobody has, so that no job begins under them; who has each now (``void`` or a job)."""
        told = "".join(f"{claim}\n" for claim in claims).encode()
        done = (await self._shell(scripts.VOID, folder, input=told)).check(self.transport.host)
        lines = (line.partition(" ") for line in done.stdout.decode(errors="replace").splitlines())
        return {claim: owner.strip() for claim, _, owner in lines}

    async def write_all(self, folder: str, jobs: bytes) -> None:
        """Write the jobs of a run that is handed over whole."""
        await self.transport.write(f"{folder}/chunks/{scripts.ALL}.jobs", jobs)

    async def submit_all(self, folder: str, lines: Sequence[Sequence[str]]) -> tuple[dict[int, int], Submission | None]:
        """Submit jobs with what they wait for, in this order: chunk to id, as far as it came, and why no further."""
        told = "".join(shlex.join(line) + "\n" for line in lines).encode()
        argv = ["sh", "-c", scripts.SUBMIT_ALL, "sh", folder]
        done = await self.transport.run(argv, deadline_s=self._config.submit_deadline_s, input=told)
        found = {}
        for line in done.stdout.decode(errors="replace").splitlines():
            chunk, _, said = line.partition(" ")
            job_id = said.partition(";")[0]
            if job_id.isdecimal():
                found[int(chunk)] = int(job_id)
        if done.returncode == 0:
            return found, None
        doubt = done.returncode == scripts.CALLED_OFF
        outcome = Outcome.DOUBT if doubt else classify_refusal(done.error_text)
        return found, Submission(outcome, text=done.error_text)

    async def cancel(self, ids: Iterable[int]) -> None:
        """End arrays with all their tasks; those that are over are no error. The queue will tell."""
        await self._each("scancel", (), ids)

    async def hold(self, ids: Iterable[int | str]) -> str:
        """Hold what waits of these; what it had to say."""
        return await self._control("hold", ids)

    async def release(self, ids: Iterable[int | str]) -> str:
        """Release these; what it had to say."""
        return await self._control("release", ids)

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _control(self, verb: str, ids: Iterable[int | str]) -> str:
        said = ""
        whole = [str(i) for i in ids]
        for start in range(0, len(whole), IDS_PER_CALL):
            done = await self._tool("scontrol", verb, ",".join(whole[start : start + IDS_PER_CALL]))
            if done.returncode and not said:
                left = " ".join(_OF_NO_CONCERN.sub("", done.stderr.decode(errors="replace")).split())
                said = left[:STDERR_CHARS]
        return said

    async def _each(self, tool: str, options: Sequence[str], ids: Iterable[int]) -> None:
        whole = [str(i) for i in ids]
        for start in range(0, len(whole), IDS_PER_CALL):
            done = await self._tool(tool, *options, *whole[start : start + IDS_PER_CALL])
            if done.returncode and _UNCERTAIN.search(done.error_text):
                done.check(self.transport.host)

    async def _sacct(self, *which: str) -> list[AccountRow]:
        argv = ["env", "SLURM_TIME_FORMAT=%s", "sacct", "-X", "-n", "-P", *which, "-o", SACCT_FORMAT]
        done = await self._tool(*argv)
        return _parsed(
            parse_sacct, done.check(self.transport.host).stdout.decode(errors="replace"), self.transport.host
        )

    async def _of_work_dir(self, script: str, *arguments: str, input: bytes = b"") -> None:
        done = await self._shell(script, *arguments, input=input)
        if done.returncode:
            raise BackendUnavailable(
                f"work_dir {self._config.work_dir} cannot be used on {self.transport.host}: {done.error_text}",
                advice="make it, or name another folder that submit host and nodes share as the backend's work_dir",
            )

    async def _tool(self, *argv: str) -> Completed:
        return await self.transport.run(argv, deadline_s=self._config.command_deadline_s)

    async def _shell(self, script: str, *arguments: str, input: bytes = b"") -> Completed:
        argv = ["sh", "-c", script, "sh", *arguments]
        return await self.transport.run(argv, deadline_s=self._config.command_deadline_s, input=input)


def _parsed(parse: Callable[[str], list[R]], text: str, host: str) -> list[R]:
    try:
        return parse(text)
    except ValueError as exc:
        raise BackendUnavailable(f"Slurm on {host} gave a garbled answer: {exc}") from exc
