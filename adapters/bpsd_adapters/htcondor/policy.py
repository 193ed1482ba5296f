"""What HTCondor's own words say of a removal, a hold or a refusal. Pure.

The texts are those of HTCondor 23.9: `condor_shadow` and `condor_schedd` write the reasons of removals into logs and
ads, `condor_submit` prints refusals on stderr.
"""

from __future__ import annotations

__all__ = ["Removal", "code_of_hold", "refusal", "removal", "service_status"]

import re
from typing import NamedTuple

from bpsd.diskfull import mentions_full
from bpsd.models import WmsStates, normal_exit_code

_POLICY = re.compile(r"\bPeriodicRemove\b|\bSYSTEM_PERIODIC_REMOVE|\bTimerRemove\b", re.IGNORECASE)
_HELD_FOR = re.compile(r"Job raised a signal (?P<signal>\d+)|Job exit code \((?P<code>\d+)\)")
_UNREACHABLE = re.compile(
    r"can't find address|failed to connect|unable to connect|timed? ?out|AUTHENTICATE|SECMAN|CEDAR|DCSchedd"
    r"|failed to fetch ads|can't open daemon|connection (?:refused|reset|closed)|communication error",
    re.IGNORECASE,
)
_REMOVED_BY_DAGMAN = (
    "Removed by DAGMan",
    "removed because <OtherJobRemoveRequirements = DAGManJobId =?=",
    "DAG is exiting and writing rescue file.",
)
_HELD_BEFORE = "; it was held: "
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
        was = f"{_HELD_BEFORE}{held_for}" if held_for else ""
        return Removal(False, None, f"removed: {reason or 'no reason given'}{was}")
    return Removal(True, code_of_hold(held_for), held_for or f"removed by a rule: {reason}")


def code_of_hold(reason: str) -> int | None:
    """Return the exit code that the reason of a hold quotes (128 + N for signal N), if it quotes one."""
    found = _HELD_FOR.search(reason)
    if found is None:
        return None
    return normal_exit_code(-int(found["signal"])) if found["signal"] else int(found["code"])


def service_status(state: WmsStates, note: str) -> tuple[WmsStates, str]:
    """Return the status of a service node and its details, as ``bps report`` has them.

    DAGMan removes its service nodes at the end of the DAG: a removal by DAGMan is their good end, unless the node was
    held then.
    """
    if state is WmsStates.DELETED and any(sign in note for sign in _REMOVED_BY_DAGMAN):
        held_for = note.partition(_HELD_BEFORE)[2]
        if held_for:
            return state, f"(Job was held for the following reason: {held_for})"
        return WmsStates.SUCCEEDED, ""
    if state is WmsStates.SUCCEEDED:
        return state, "(Note: Finished before workflow.)"
    if state is WmsStates.HELD:
        return state, f"({note.removeprefix('held: ')})"
    return state, f"({note})" if note else ""


def refusal(stderr: str) -> str:
    """Return why ``condor_submit`` was refused; empty if its words do not prove that it was.

    A schedd that was not reached, or that has too many jobs now, refused nothing; nor did one whose disk is full. A
    commit that failed without a reason may have succeeded in the schedd: the answer was lost.
    """
    reasons = [line["reason"].strip() for line in _LINE.finditer(stderr)]
    given = [reason for reason in reasons if not reason.startswith(_COMMIT)]
    for_now = _UNREACHABLE.search(stderr) or _LATER.search(stderr) or mentions_full(stderr)
    return "" if for_now else "; ".join(given)
