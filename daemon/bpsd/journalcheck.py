"""Notices at the start that the journal is older than the history: somebody put an older copy in its place.

The journal counts the starts of the daemon and its commands. The history keeps the numbers that it has seen. A journal
that is behind them does not know commands that were acknowledged, and perhaps carried out: it takes none until a person
has looked at the WMS (``bpsctl admin accept``), as if it had been damaged.
"""

from __future__ import annotations

__all__ = ["count_start", "follow", "reason_to_distrust"]

from collections.abc import Mapping
from typing import Any

from bpsd.errors import StorageError
from bpsd.journal import Journal, Position
from bpsd.logs.events import LogEvent
from bpsd.store import Store

STARTS_MARK, COMMANDS_MARK = "journal_starts", "journal_commands"


def reason_to_distrust(position: Position, seen: Mapping[str, int]) -> str:
    """Return why a journal is older than the history; empty if it is not.

    Parameters
    ----------
    position : `~bpsd.journal.Position`
        What the journal has counted, this start included.
    seen : `~collections.abc.Mapping`
        The numbers that the history has seen before this start.
    """
    if position.commands < seen.get(COMMANDS_MARK, 0):
        return f"it holds {position.commands} commands, and the history has seen {seen[COMMANDS_MARK]}"
    if position.starts <= seen.get(STARTS_MARK, 0):
        return f"it knows of {position.starts - 1} starts of the daemon, and the history of {seen[STARTS_MARK]}"
    return ""


async def count_start(journal: Journal, store: Store, logger: Any) -> int | None:
    """Count this start, and let the journal take no commands if it is older than the history.

    Returns
    -------
    starts : `int` or `None`
        How often a daemon was started on this journal; `None` if the disk did not let it count.
    """
    try:
        position = await journal.count_start()
        reason = reason_to_distrust(position, await store.marks())
        if reason and not journal.status.read_only:
            await journal.distrust(reason)
            logger.error(LogEvent.JOURNAL_OLDER, reason=reason)
    except StorageError as exc:  # a full disk does not keep the daemon from starting
        failure = str(exc)
    else:
        follow(journal, store)
        return position.starts
    logger.error(LogEvent.JOURNAL_WRITE_FAILED, error=failure)
    return None


def follow(journal: Journal, store: Store) -> None:
    """Have the history keep what the journal counts, from now on."""

    def keep(position: Position) -> None:
        store.set_marks({STARTS_MARK: position.starts, COMMANDS_MARK: position.commands})

    journal.when_counted = keep
    if not journal.status.read_only:
        keep(journal.position)
