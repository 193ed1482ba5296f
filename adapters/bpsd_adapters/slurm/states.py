"""What Slurm's words mean: states and reasons as `~bpsd.models.WmsStates`. Pure; see docs/slurm.md for the map.

The state decides, never the exit code: a job that ran out of time has 0:0. A word that is not known is UNKNOWN, which
changes nothing, since Slurm gets new words with its releases.
"""

from __future__ import annotations

__all__ = ["NO_OUTPUT", "NO_OUTPUT_SIGNAL", "Meaning", "is_live", "meaning_of"]

from typing import NamedTuple

from bpsd.models import WmsStates
from bpsd_adapters.slurm.reasons import why_stuck

_WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "POWER_UP_NODE"})
_RUNNING = frozenset({"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING", "LAUNCHING"})
_HELD = frozenset({"SPECIAL_EXIT", "RESV_DEL_HOLD", "REQUEUE_HOLD"})
_MISFIT = frozenset({"SUSPENDED", "STOPPED", "REVOKED"})
_FAILED = frozenset(
    {
        "FAILED",
        "TIMEOUT",
        "OUT_OF_MEMORY",
        "NODE_FAIL",
        "BOOT_FAIL",
        "DEADLINE",
        "PREEMPTED",
        "LAUNCH_FAILED",
        "RECONFIG_FAIL",
    }
)
"""Ended without success."""

_TELLING = {
    "TIMEOUT": "out of time",
    "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not boot",
    "DEADLINE": "past its deadline",
    "PREEMPTED": "preempted",
    "LAUNCH_FAILED": "could not be launched",
    "RECONFIG_FAIL": "its node could not be configured",
}

NO_OUTPUT_SIGNAL = 53
"""What Slurm ends a job with whose output file it cannot make."""

NO_OUTPUT = "its log cannot be written where it ran: is work_dir on a file system that the nodes share?"
_NO_OUTPUT = f"RaisedSignal:{NO_OUTPUT_SIGNAL}"

_HOLD_REASONS = ("JobHeld", "job requeued in held state", "JobHoldMaxRequeue", "launch failed requeued held")


class Meaning(NamedTuple):
    """What a row says of a job: its state, whether that is its end, and why, in a few words."""

    state: WmsStates
    over: bool
    note: str = ""


def meaning_of(word: str, reason: str = "", priority: int | None = None) -> Meaning:
    """What a state means; ``reason`` and ``priority`` are those of ``squeue``, where sacct has none.

    Parameters
    ----------
    word : `str`
        Slurm's long form, as ``OUT_OF_MEMORY`` or ``CANCELLED by 1000``.
    reason : `str`, optional
        Why it waits, or why it failed.
    priority : `int`, optional
        0 is a job on hold.
    """
    word = word.split(" ", 1)[0].rstrip("+")
    reason = "" if reason == "None" else reason
    if word == "COMPLETED":
        return Meaning(WmsStates.SUCCEEDED, True)
    if word in _FAILED:
        told = _TELLING.get(word, "" if reason == "NonZeroExitCode" else reason)
        if reason.startswith(_NO_OUTPUT):
            told = NO_OUTPUT
        return Meaning(WmsStates.FAILED, True, told)
    if word == "CANCELLED":
        pruned = reason == "DependencyNeverSatisfied"
        return Meaning(WmsStates.PRUNED if pruned else WmsStates.DELETED, True, "cancelled in Slurm")
    if word in _HELD:
        return Meaning(WmsStates.HELD, False, reason or word)
    if word in _WAITING:
        return _waiting(reason, priority)
    if word in _RUNNING:
        return Meaning(WmsStates.RUNNING, False)
    if word in _MISFIT:
        return Meaning(WmsStates.MISFIT, False, word.lower())
    return Meaning(WmsStates.UNKNOWN, False, f"Slurm says {word[:40]!r}")


def _waiting(reason: str, priority: int | None) -> Meaning:
    if reason == "DependencyNeverSatisfied":
        return Meaning(WmsStates.PRUNED, False, why_stuck(reason))
    if priority == 0 or reason.startswith(_HOLD_REASONS):
        return Meaning(WmsStates.HELD, False, reason or "on hold")
    if reason == "Dependency":
        return Meaning(WmsStates.UNREADY, False)
    return Meaning(WmsStates.PENDING, False, why_stuck(reason) or reason)


def is_live(word: str) -> bool:
    """Whether a job in this state waits or runs (or may, for a word that is not known)."""
    return not meaning_of(word).over
