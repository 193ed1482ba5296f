"""The reasons that Slurm gives for a job that does not start, or is refused. Pure.

They are the words of ``squeue``'s column REASON, and of slurmctld when it refuses a submission: a list that is the same
from 22.05 to 24.11 but for a few words (src/common/job_state_reason.c there).
"""

from __future__ import annotations

__all__ = ["is_policy", "is_submit_limit", "never_resolves", "why_stuck"]

import re

_NAMED = {
    "AccountNotAllowed": "its account may not use this partition",
    "BadConstraints": "no node is as it asks for",
    "DependencyNeverSatisfied": "what it waits for has failed or is gone",
    "InvalidAccount": "its account is not known",
    "InvalidQOS": "its QOS is not known",
    "MaxMemPerLimit": "it asks for more memory per node or per CPU than the site allows",
    "PartitionConfig": "it asks for what its partition does not give",
    "PartitionInactive": "its partition takes no jobs",
    "PartitionNodeLimit": "it asks for more nodes than its partition has or gives",
    "PartitionTimeLimit": "it asks for more time than its partition gives",
    "QOSMinCpuNotSatisfied": "it asks for fewer CPUs than its QOS demands",
    "QOSNotAllowed": "its QOS may not be used in this partition",
    "ReservationDeleted": "its reservation is gone",
    "ReservationInvalid": "its reservation cannot be used",
}
"""Reasons with a meaning of their own."""

_WHOSE = {"Assoc": "account", "QOS": "QOS"}
_WHAT = {
    "BB": "burst buffer",
    "Billing": "billing units",
    "CPU": "CPUs",
    "Cpu": "CPUs",
    "Energy": "energy",
    "GRES": "GRES",
    "License": "licenses",
    "Mem": "memory",
    "Memory": "memory",
    "Node": "nodes",
    "Unknown": "of some resource",
    "WallDuration": "time",
}
_TOO_MUCH = re.compile(r"(Assoc|QOS)Max([A-Za-z]+?)(Minutes)?Per(Job|Node)(?:Limit)?")
_TOO_LITTLE = re.compile(r"QOSMin([A-Za-z]+)")
_USED_UP = re.compile(r"(Assoc|QOS)Grp(?:[A-Za-z]+?(?<!Run)Minutes|Wall)(?:Limit)?")
_POLICY = re.compile(r"(?:Assoc|QOS|Max|Partition|Reservation)[A-Z][A-Za-z]*|AccountingPolicy|" + "|".join(_NAMED))


def why_stuck(reason: str) -> str:
    """Return why a job with this reason will not start unless somebody does something; empty if it may."""
    name = reason.strip("()").split(",", 1)[0].strip()
    meaning = _meaning(name)
    return f"{name}: {meaning}" if meaning else ""


def never_resolves(reason: str) -> bool:
    """Return whether a reason does not pass by itself."""
    return bool(_meaning(reason))


def is_submit_limit(reason: str) -> bool:
    """Return whether a reason is the number of jobs that wait or run: with fewer of them the job is taken."""
    return "Submit" in reason


def is_policy(reason: str) -> bool:
    """Return whether a word is a limit or a rule of the site."""
    return _POLICY.fullmatch(reason) is not None


def _meaning(name: str) -> str:
    if name in _NAMED:
        return _NAMED[name]
    if is_submit_limit(name):
        return ""
    found = _TOO_MUCH.fullmatch(name)
    if found is not None:
        whose, what, minutes, per = found.groups()
        what = _WHAT.get(what, what)
        what = f"{what} x minutes" if minutes else what
        return f"it asks for more {what} than its {_WHOSE[whose]} gives one {per.lower()}"
    found = _TOO_LITTLE.fullmatch(name)
    if found is not None:
        return f"it asks for less {_WHAT.get(found[1], found[1])} than its QOS demands"
    found = _USED_UP.fullmatch(name)
    if found is not None:
        return f"the budget of its {_WHOSE[found[1]]} is used up"
    return ""
