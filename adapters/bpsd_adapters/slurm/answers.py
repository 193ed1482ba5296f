"""What sbatch answered: submitted, refused, too many jobs, or doubt. Pure.

An answer is read for what is expected. Everything else is doubt: Slurm is then asked whether it has the jobs.
"""

from __future__ import annotations

__all__ = [
    "Outcome",
    "Submission",
    "classify",
    "is_mistake",
    "is_uncertain",
    "job_id_in",
    "parse_called_off",
    "plain",
    "read_submission",
    "read_submissions",
]

import re
from enum import Enum
from typing import NamedTuple

from bpsd_adapters.slurm.reasons import is_policy, is_submit_limit

_JOB_ID = re.compile(r"([0-9]{1,10})(?:;[^\s;]+)?", re.ASCII)
"""What ``sbatch --parsable`` prints: the job id, and the cluster if there are several."""

_CALLED_OFF = re.compile(r"([0-9]+) (off|tried|id (?P<id>[0-9]{1,10}))", re.ASCII)
_FROM_CONTROLLER = re.compile(r"(?:Batch job submission failed|allocation failure): (.*)")
"""What precedes the words of slurmctld."""

_LEADING = re.compile(r"^(?:sbatch: )?(?:error: |fatal: )?")
_OWN_ERROR = re.compile(r"^sbatch: (?:error|fatal|unrecognized option|invalid option|option )", re.MULTILINE)
_SLEEPS = "sleeping and retrying"
_UNCERTAIN = re.compile(
    r"timed out|unable to contact|connect failure|connection (?:refused|reset|failure)|socket error|zero bytes|"
    r"transport endpoint|communication|standby|state save|I/O error writing|(?:send|receive|shutdown) failure|"
    r"authentication error|insane message length|broken pipe",
    re.IGNORECASE,
)
"""Errors after which slurmctld may have the job all the same, or may take it the next time."""

_FOR_NOW = re.compile(r"temporarily un(?:able|available)|MaxJobCount|too many jobs", re.IGNORECASE)
_POLICY = re.compile(r"accounting/QOS policy", re.IGNORECASE)
_MISTAKE = re.compile(
    r"\binvalid\b|unrecognized|requires an argument|ambiguous|is not supported|time limit specification|"
    r"specification needs to be provided|required option|mutually exclusive",
    re.IGNORECASE,
)
"""What slurmctld says of options that no state of the cluster makes right."""

_FIRST_OF_SIGNALS, _LAST_OF_SIGNALS = 129, 192
_OPTION_ERROR = 255
"""Exit code of sbatch when it does not understand its own options."""


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


def job_id_in(text: str) -> int | None:
    """Return the job id that sbatch printed: the last line that is one. A site's wrapper may print other lines."""
    found = [match[1] for line in text.splitlines() if (match := _JOB_ID.fullmatch(line.strip()))]
    return int(found[-1]) if found else None


def parse_called_off(text: str) -> dict[int, tuple[str, int | None]]:
    """Return what `scripts.CALL_OFF` printed of each chunk: ``off``, ``tried``, or ``id`` with the job id.

    A chunk of which nothing readable is said is left out: it stays in doubt.
    """
    found: dict[int, tuple[str, int | None]] = {}
    for line in text.splitlines():
        match = _CALLED_OFF.fullmatch(line)
        if match is not None:
            job_id = match["id"]
            found[int(match[1])] = ("id", int(job_id)) if job_id else (match[2], None)
    return found


def read_submission(stdout: str, stderr: str) -> Submission:
    """Return what became of a chunk, from what `scripts.SUBMIT` printed.

    Parameters
    ----------
    stdout : `str`
        A line with a word of the script, then what sbatch printed.
    stderr : `str`
        What sbatch printed on its stderr.
    """
    head, _, said = stdout.partition("\n")
    word, _, number = head.partition(" ")
    text = plain(stderr)
    if word == "not-written":
        return Submission(Outcome.NOT_WRITTEN, text=text)
    if word != "ended" or not number.isdecimal():
        return Submission(Outcome.DOUBT, text=text)
    code, job_id = int(number), job_id_in(said)
    if code == 0 and job_id is not None:
        return Submission(Outcome.SUBMITTED, job_id)
    if code == 0:
        printed = plain(said) or plain(stderr) or "nothing"
        return Submission(Outcome.DOUBT, text=f"sbatch printed no job id, but: {printed[:200]}")
    if job_id is not None:
        return Submission(Outcome.DOUBT, text=f"sbatch printed job id {job_id} and failed with {code}: {text}")
    return Submission(classify(stderr, code), text=text or f"sbatch failed with {code} and said nothing")


def read_submissions(stdout: str, stderr: str) -> tuple[dict[int, int], Submission | None]:
    """Return what `scripts.SUBMIT_ALL` printed: chunk to job id, as far as it came, and why it came no further."""
    found: dict[int, int] = {}
    lines = stdout.splitlines()
    for number, line in enumerate(lines):
        chunk, _, rest = line.partition(" ")
        if line == "done":
            return found, None
        if line == "not-written":
            return found, Submission(Outcome.NOT_WRITTEN, text=plain(stderr))
        if not chunk.isdecimal():
            continue
        word, _, value = rest.partition(" ")
        if word == "id" and value.isdecimal():
            found[int(chunk)] = int(value)
        elif word == "no-parent":
            return found, Submission(Outcome.NOT_WRITTEN, text=f"the job id of a parent is gone: {plain(stderr)}")
        elif word in ("ended", "tried"):
            return found, read_submission("\n".join([rest, *lines[number + 1 :]]), stderr)
    return found, Submission(Outcome.DOUBT, text=plain(stderr) or "the submission broke off")


def is_uncertain(text: str) -> bool:
    """Return whether an error is one of the way to slurmctld: it may have done its work all the same."""
    return _UNCERTAIN.search(text) is not None


def classify(stderr: str, code: int) -> Outcome:
    """Return what the words of an sbatch that failed, and printed no job id, mean for its jobs."""
    if _FIRST_OF_SIGNALS <= code <= _LAST_OF_SIGNALS:
        return Outcome.FULL if _SLEEPS in stderr else Outcome.DOUBT
    controller = _FROM_CONTROLLER.findall(stderr)
    if controller:
        return _by_controller(controller[-1], _reasons(stderr))
    if _UNCERTAIN.search(stderr):
        return Outcome.DOUBT
    return Outcome.REFUSED if code == _OPTION_ERROR or _OWN_ERROR.search(stderr) else Outcome.DOUBT


def is_mistake(stderr: str, code: int) -> bool:
    """Return whether ``sbatch --test-only`` refused options for good; nodes that are away now may come back."""
    if code == 0 or _FIRST_OF_SIGNALS <= code <= _LAST_OF_SIGNALS:
        return False
    reasons = _reasons(stderr)
    if reasons:
        return not any(map(is_submit_limit, reasons))
    controller = _FROM_CONTROLLER.findall(stderr)
    if controller:
        return bool(_MISTAKE.search(controller[-1])) and not _UNCERTAIN.search(controller[-1])
    return classify(stderr, code) is Outcome.REFUSED


def plain(text: str) -> str:
    """Return what a tool printed as one line, without its own name before each error."""
    return "; ".join(filter(None, (" ".join(_LEADING.sub("", line).split()) for line in text.splitlines())))


def _by_controller(said: str, reasons: list[str]) -> Outcome:
    if _UNCERTAIN.search(said):
        return Outcome.DOUBT
    if any(map(is_submit_limit, reasons)) or _FOR_NOW.search(said):
        return Outcome.LIMITED
    if _POLICY.search(said) and not reasons:
        return Outcome.LIMITED  # an old slurmctld does not name the limit
    return Outcome.REFUSED


def _reasons(stderr: str) -> list[str]:
    """The lines that are one word: slurmctld names there the limit that a job violates."""
    words = (_LEADING.sub("", line).strip() for line in stderr.splitlines())
    return [word for word in words if is_policy(word)]
