"""Slurm's own tools on the submit host, through a transport: batched questions and few orders. The I/O of this adapter.

A return code is no state: what cannot be asked raises, and an answer that is garbled is no answer.
"""

from __future__ import annotations

__all__ = ["Cluster"]

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

import anyio.to_thread

from bpsd.errors import BackendAuthError, BackendUnavailable
from bpsd_adapters.slurm import scripts
from bpsd_adapters.slurm.answers import (
    Outcome,
    Submission,
    is_mistake,
    is_uncertain,
    parse_called_off,
    plain,
    read_submission,
    read_submissions,
)
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
_OF_NO_CONCERN = re.compile(r"\S+: (Job has already finished|No error|Job/step already completing or completed)\s*")
"""What scontrol says, and fails for, of those tasks of an array that ended before."""

K = TypeVar("K", int, str)
R = TypeVar("R")


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
        self._clean = scripts.clean(config.environment)

    # -- questions ---------------------------------------------------------------------------------------------------

    async def queue(self) -> tuple[list[QueueRow], int]:
        """All jobs of ours that slurmctld knows, with those that ended lately, and the size of the answer.

        Raises
        ------
        BackendUnavailable
            If it does not answer, or not completely.
        """
        done = await self._shell(self._clean + scripts.SQUEUE, SQUEUE_FORMAT)
        text = done.check(self.transport.host).stdout.decode(errors="replace")
        if not text.endswith("@end\n"):
            raise BackendUnavailable(f"squeue on {self.transport.host} gave an answer that is not whole")
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
        try:
            done = await self._shell(self._clean + scripts.ASSOCIATION, cluster)
        except BackendUnavailable:
            return None  # accounting is away: a refusal will tell
        if done.returncode != 0:
            return None
        return smallest_limit(re.split(r"[|\n]", done.stdout.decode(errors="replace")))

    async def ping(self) -> tuple[int, str]:
        """Whether slurmctld is up; asked so that a dead one is told of at once."""
        argv = ["sh", "-c", self._clean + scripts.PING, "sh", self._config.work_dir]
        done = await self.transport.run(argv, deadline_s=PING_DEADLINE_S)
        if done.returncode == scripts.NO_WORK_DIR:
            return 1, f"work_dir {self._config.work_dir} cannot be used on {self.transport.host}: {done.error_text}"
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
        done = await self._tool("sbatch", "--test-only", "--array=0", *options, "--wrap=true")
        said = done.stderr.decode(errors="replace")
        return plain(said)[-STDERR_CHARS:] if is_mistake(said, done.returncode) else ""

    # -- orders ------------------------------------------------------------------------------------------------------

    async def make_run(self, folder: str, umask: str) -> None:
        """Make a run's folder on the submit host; doing it again does no harm.

        Raises
        ------
        BackendUnavailable
            If it cannot be made.
        """
        wrapper = scripts.WRAPPER.encode()
        await self._of_work_dir(scripts.MAKE_RUN, folder, f"{len(wrapper)}", umask, input=wrapper)

    async def submit(self, folder: str, plan: Plan) -> Submission:
        """Submit a chunk, once: a second call for the same chunk only says that it was tried."""
        argv = [
            "sh", "-c", self._clean + scripts.SUBMIT, "sh", folder, str(plan.chunk), str(len(plan.jobs)),
            "--parsable", f"--array=0-{plan.size - 1}",
            *job_options(folder, plan.name, plan.label, f"{plan.chunk}_%a"), *plan.options,
            f"{folder}/wrapper.sh", folder, str(plan.chunk),
        ]  # fmt: skip
        try:
            done = await self.transport.run(argv, deadline_s=self._config.submit_deadline_s, input=plan.jobs)
        except (BackendUnavailable, BackendAuthError) as exc:
            return Submission(Outcome.DOUBT, text=exc.message)
        answer = read_submission(done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        if answer.outcome is Outcome.NOT_WRITTEN:
            return answer._replace(text=f"{folder} on {self.transport.host} cannot be written: {answer.text}")
        return answer

    async def call_off(self, folder: str, chunks: Sequence[int]) -> dict[int, tuple[str, int | None]]:
        """Keep chunks from being submitted, if that was not begun; see `parse_called_off`."""
        done = (await self._shell(scripts.CALL_OFF, folder, *map(str, chunks))).check(self.transport.host)
        return parse_called_off(done.stdout.decode(errors="replace"))

    async def discard(self, folder: str, chunks: Iterable[int]) -> None:
        """Remove the files of chunks that are over, or that Slurm refused."""
        told = "".join(f"{chunk}\n" for chunk in chunks).encode()
        (await self._shell(scripts.DISCARD, folder, input=told)).check(self.transport.host)

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
        argv = ["sh", "-c", self._clean + scripts.SUBMIT_ALL, "sh", folder]
        done = await self.transport.run(argv, deadline_s=self._config.submit_deadline_s, input=told)
        return read_submissions(done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    async def cancel(self, arrays: Mapping[int, str]) -> None:
        """End arrays (id to name) with all their tasks; those that are over are no error. The queue will tell.

        Raises
        ------
        BackendUnavailable
            If Slurm cannot be asked.
        """
        for some in _portions(arrays.items()):
            done = await self._shell(self._clean + scripts.CANCEL, input=_lines(some))
            if done.returncode and is_uncertain(done.error_text):
                done.check(self.transport.host)

    async def hold(self, ids: Mapping[str, str]) -> str:
        """Hold what waits of these arrays or tasks (id to the name of the array); what scontrol had to say."""
        return await self._control("hold", ids)

    async def release(self, ids: Mapping[str, str]) -> str:
        """Release these (see `hold`); what scontrol had to say."""
        return await self._control("release", ids)

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _control(self, verb: str, ids: Mapping[str, str]) -> str:
        said = ""
        for some in _portions(ids.items()):
            done = await self._shell(self._clean + scripts.CONTROL, verb, input=_lines(some))
            if done.returncode and not said:
                left = " ".join(_OF_NO_CONCERN.sub("", done.stderr.decode(errors="replace")).split())
                said = left[:STDERR_CHARS]
        return said

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
        return await self._shell(self._clean + scripts.TOOL, *argv)

    async def _shell(self, script: str, *arguments: str, input: bytes = b"") -> Completed:
        argv = ["sh", "-c", script, "sh", *arguments]
        return await self.transport.run(argv, deadline_s=self._config.command_deadline_s, input=input)


def _portions(items: Iterable[tuple[K, str]]) -> Iterator[list[tuple[K, str]]]:
    """So many at a time as one call names."""
    left = iter(items)
    while some := list(islice(left, IDS_PER_CALL)):
        yield some


def _lines(arrays: Iterable[tuple[int | str, str]]) -> bytes:
    return "".join(f"{job_id}|{name}\n" for job_id, name in arrays).encode()


def _parsed(parse: Callable[[str], list[R]], text: str, host: str) -> list[R]:
    try:
        return parse(text)
    except ValueError as exc:
        raise BackendUnavailable(f"Slurm on {host} gave a garbled answer: {exc}") from exc
