"""The verbs of ``bpsctl``: a module each, with ``arguments(parser)`` and ``run(session)``, imported when it is said."""

from __future__ import annotations

__all__ = ["GROUPS", "module_of", "names", "summary_of"]

GROUPS = {
    "Looking": {
        "report": "show runs with their progress, or one run label by label",
        "status": "say the state of one run; it is also the exit code",
        "list": "list the ids of runs",
        "jobs": "list the jobs of a run",
        "holds": "show what is on hold, grouped by reason",
        "logs": "show what a job printed, or what the failed ones did",
        "watch": "follow runs live",
        "wait": "wait until runs have ended, or reached a state",
        "events": "show what happened, and when",
        "commands": "show what was asked for, by whom, and what became of it",
    },
    "Acting": {
        "submit": "submit a workflow",
        "validate": "check a workflow without submitting it",
        "cancel": "cancel runs, and see to it that they are gone",
        "restart": "restart runs from where they failed",
        "hold": "put runs on hold",
        "release": "release held runs, or held jobs by label or reason",
        "mute": "notify nobody of runs any more",
        "unmute": "notify of runs again",
        "commands resolve": "say what became of a command in doubt",
    },
    "The daemon": {
        "ping": "ask the daemon and every backend whether they answer",
        "backends": "show the backends, and what each does with the fields of a job",
        "refresh": "poll backends now",
        "health": "one line for a monitoring system",
        "admin": "care for the daemon's own records: accept, check, backup, vacuum",
        "version": "say the versions of client and daemon",
        "completion": "print the completion script for a shell",
    },
}
"""What there is, in the order of the help; a name of two words is a verb below a verb."""


def names() -> list[str]:
    """All verbs."""
    return [verb for group in GROUPS.values() for verb in group]


def summary_of(verb: str) -> str:
    """What a verb does, in one line."""
    return next(group[verb] for group in GROUPS.values() if verb in group)


def module_of(verb: str) -> str:
    """The module that holds a verb."""
    return f"{__name__}.{verb.replace(' ', '_')}"
