"""What a wait waits for, as a pure decision over what a watch tells. Both clients and ``bpsctl wait`` use it."""

from __future__ import annotations

__all__ = ["DONE", "Goal", "reached"]

from bpsd import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

DONE = "done"
"""Beside the names of states: any state that only a new attempt leaves."""

_COURSE = ("UNREADY", "READY", "PENDING", "RUNNING", "SUCCEEDED")
"""The states of a run that goes well, in their order: to have passed one is to have reached it."""


def reached(state: str, until: Sequence[str]) -> bool | None:
    """Whether a run in ``state`` has reached one of ``until``; `None` while it still may.

    With ``done`` only success counts as reached: what ended in another way is `False`.
    """
    if state in until:
        return True
    if state in _COURSE and any(goal in _COURSE[: _COURSE.index(state)] for goal in until):
        return True
    if state in wire.TERMINAL_STATES:
        return DONE in until and state == "SUCCEEDED"
    return None


class Goal:
    """Whether some runs have all (or one of them) reached what is waited for.

    Parameters
    ----------
    ids : iterable of `str`
        Our ids of the runs.
    until : sequence of `str`
        Names of states, or ``done``.
    any_of : `bool`, optional
        One run is enough.
    """

    def __init__(self, ids: Iterable[str], until: Sequence[str], *, any_of: bool = False) -> None:
        self.states: dict[str, str] = dict.fromkeys(ids, "UNKNOWN")
        self._until = tuple(until)
        self._any_of = any_of
        self._reached: dict[str, bool | None] = dict.fromkeys(self.states)

    def __repr__(self) -> str:
        return f"<Goal {'any' if self._any_of else 'all'} of {len(self.states)} {'/'.join(self._until)}: {self.states}>"

    def see(self, item: dict[str, Any]) -> list[str]:
        """Take an item of a watch, or the status of one run as if it were a row of a snapshot.

        Returns
        -------
        runs : `list` [`str`]
            For a snapshot: those of our runs that it does not hold (it is limited), to be asked for one by one.
        """
        if item["kind"] == "snapshot":
            for row in item["runs"]:
                self.see_row(row)
            there = {row["id"] for row in item["runs"]}
            return [run for run in self.undecided() if run not in there]
        if item["kind"] == "run.state":
            self._set(item["run"], item["data"]["state"])
        return []

    def see_row(self, row: dict[str, Any]) -> None:
        """Take a row of a report, or a status."""
        self._set(row["id"], row["state"])

    def undecided(self) -> list[str]:
        """Our runs of which it is not known yet whether they reach what is waited for."""
        return [run for run, verdict in self._reached.items() if verdict is None]

    def to_watch(self) -> list[str]:
        """Return the runs that a watch is to name; none, for everything, if they are more than a request may name."""
        undecided = self.undecided()
        return undecided if len(undecided) <= wire.MAX_RUNS_NAMED else []

    def _set(self, run: str, state: str) -> None:
        if run not in self.states:
            return
        self.states[run] = state
        if self._reached[run] is not True or DONE in self._until:  # "was RUNNING" stays true, "is done" need not
            self._reached[run] = reached(state, self._until)

    def is_over(self) -> bool:
        """Whether there is nothing left to wait for."""
        verdicts = self._reached.values()
        if self._any_of and any(verdict is True for verdict in verdicts):
            return True
        return all(verdict is not None for verdict in verdicts)

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        verdicts = [verdict is True for verdict in self._reached.values()]
        return any(verdicts) if self._any_of else all(verdicts)

    def unmet(self) -> str:
        """Say what is still waited for."""
        waiting = [f"{run} {self.states[run]}" for run in self.undecided()]
        shown = ", ".join(waiting[:5]) + (f" and {len(waiting) - 5} more" if len(waiting) > 5 else "")
        return f"not {' or '.join(self._until)} in time: {shown}"
