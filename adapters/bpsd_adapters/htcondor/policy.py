"""What HTCondor's own words say of a removal, a hold or a refusal. Pure.

The texts are those of HTCondor 23.9: `condor_shadow` and `condor_schedd` write the reasons of removals into logs and
ads, `condor_submit` prints refusals on stderr.
"""

from __future__ import annotations

__all__ = ["Removal", "refusal", "removal"]

import re
from typing import NamedTuple

from bpsd.diskfull import mentions_full
from bpsd.models import normal_exit_code

_POLICY = re.compile(r"\bPeriodicRemove\b|\bSYSTEM_PERIODIC_REMOVE|\bTimerRemove\b", re.IGNORECASE)
_HELD_FOR = re.compile(r"Job raised a signal (?P<signal>\d+)|Job exit code \((?P<code>\d+)\)")
_UNREACHABLE = re.compile(
    r"can't find address|failed to connect|unable to connect|timed? ?out|AUTHENTICATE|SECMAN|CEDAR|DCSchedd"
    r"|failed to fetch ads|can't open daemon|connection (?:refused|reset|closed)|communication error",
    re.IGNORECASE,
)
_LATER = re.compile(r"would exceed|MAX_JOBS_", re.IGNORECASE)  # a limit of the schedd that other jobs have reached
_COMMIT = "Failed to commit job submission into the queue"
_LINE = re.compile(r"^ERROR: (?P<reason>.+)$", re.MULTILINE)


class Removal(NamedTuple):
    """What the removal of a job was: the end of a failed job, or somebody's wish."""

    failed: bool
    exit_code: int | None
    note: str


def removal(reason: str, held_for: str) -> Removal:
    """Return what a removal was.

    A rule (``periodic_remove`` of the job or of the pool) removes what has failed, and the reason of the hold before it
    tells why; everything else is a person's doing.

    Parameters
    ----------
    reason : `str`
        Reason of the removal.
    held_for : `str`
        Reason of the hold that the job was in, as of ``on_exit_hold``; empty if it was not held.
    """
    if _POLICY.search(reason) is None:
        return Removal(False, None, f"removed: {reason or 'no reason given'}")
    return Removal(True, _code_of_hold(held_for), held_for or f"removed by a rule: {reason}")


def _code_of_hold(reason: str) -> int | None:
    """Return the exit code that the reason of a hold quotes (128 + N for signal N), if it quotes one."""
    found = _HELD_FOR.search(reason)
    if found is None:
        return None
    return normal_exit_code(-int(found["signal"])) if found["signal"] else int(found["code"])


def refusal(stderr: str) -> str:
    """Return why ``condor_submit`` was refused; empty if its words do not prove that it was.

    A schedd that was not reached, or that has too many jobs now, refused nothing; nor did one whose disk is full. A
    commit that failed without a reason may have succeeded in the schedd: the answer was lost.
    """
    reasons = [line["reason"].strip() for line in _LINE.finditer(stderr)]
    given = [reason for reason in reasons if not reason.startswith(_COMMIT)]
    for_now = _UNREACHABLE.search(stderr) or _LATER.search(stderr) or mentions_full(stderr)
    return "" if for_now else "; ".join(given)
