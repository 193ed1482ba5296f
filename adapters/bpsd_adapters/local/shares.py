"""What the agents of several users say, put together: each is believed of its own user's runs, within bounds.

An agent is a process of its user's, who may have it say anything. What it says cannot reach another user's runs, nor
keep the daemon from hearing of those.
"""

from __future__ import annotations

__all__ = ["Share", "cursors_of", "is_number", "renamed", "together", "watches", "whole_id"]

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from bpsd.models import KnownRun, PollResult, RunObservation, SourceReport
from bpsd_adapters.local.follow import BackendCursor
from bpsd_adapters.local.observe import LOG, PROCESSES, still_there

CURSOR_CHARS = 1024 * 1024
"""How much an agent may have the daemon remember."""

NUMBER_DIGITS = 12


class Share:
    """What one user's agent is asked, and what came of it: a ``result``, or an ``error``.

    ``denied``: systemd did not start it, which is nobody's fault but the host's.
    """

    def __init__(self, uid: int, known: tuple[KnownRun, ...], cursor: str | None) -> None:
        self.uid, self.known, self.cursor = uid, known, cursor
        self.result: PollResult | None = None
        self.error = ""
        self.denied = False
        self.more = False

    def __repr__(self) -> str:
        return f"<Share of user {self.uid}: {self.error or ('answered' if self.result else 'not asked')}>"


def is_number(text: str) -> bool:
    """Whether it can be the number of a run."""
    return text.isascii() and text.isdecimal() and len(text) <= NUMBER_DIGITS


def whole_id(uid: int, number: str) -> str:
    """The id by which the daemon knows a user's run."""
    return f"{uid}-{number}"


def renamed(text: str, uid: int, number: str) -> str:
    """What an agent says of a run, with the id by which the daemon knows it."""
    whole = whole_id(uid, number)
    return text.replace(f" {number}`", f" {whole}`").replace(f"run {number} ", f"run {whole} ")


def cursors_of(text: str | None) -> dict[int, str]:
    """User to the cursor of that user's agent."""
    try:
        return {int(uid): cursor for uid, cursor in msgspec.json.decode(text or "{}", type=dict[str, str]).items()}
    except ValueError:
        return {}


def watches(cursor: str) -> bool:
    """Whether an agent has runs to look at that the daemon does not know as live."""
    return bool(BackendCursor.parsed(cursor).watch)


def together(
    shares: Sequence[Share],
    cursors: dict[int, str],
    took_s: float,
    owner_of: Callable[[str], int | None],
    name_of: Callable[[int], str | None],
) -> PollResult:
    """One result of all shares.

    Parameters
    ----------
    shares : `~collections.abc.Sequence` [`Share`]
        One for each user who was asked.
    cursors : `dict`
        Those of all users until now.
    took_s : `float`
        How long it took to ask them, at the same time.
    owner_of : callable
        From a token to the user who submitted under it.
    name_of : callable
        From a user's number to the name.
    """
    answered = [(share.uid, share.result) for share in shares if share.result is not None]
    said = [source.error for _, result in answered for source in result.sources if source.error]
    errors = [share.error for share in shares if share.error] + said
    all_denied = bool(shares) and all(share.denied for share in shares)
    status: Literal["ok", "partial", "failed"] = "failed" if all_denied else "partial" if errors else "ok"
    new = {uid: result.cursor for uid, result in answered if result.cursor and len(result.cursor) <= CURSOR_CHARS}
    return PollResult(
        observations=[
            seen
            for share in shares
            for seen in _own(share.uid, _told(share, whole=status == "ok"), owner_of, name_of(share.uid))
        ],
        cursor=msgspec.json.encode({str(uid): text for uid, text in (cursors | new).items()}).decode(),
        run_cursors={
            whole_id(uid, number): text
            for uid, result in answered
            for number, text in result.run_cursors.items()
            if is_number(number) and len(text) <= CURSOR_CHARS
        },
        sources=tuple(
            SourceReport(
                name=name,
                status=status,
                covers=f"runs of {len(answered)} of {len(shares)} users",
                cost_s=took_s if name == LOG else 0.0,
                error="; ".join(errors[:3]),
            )
            for name in (PROCESSES, LOG)
        ),
        absent=tuple(
            whole_id(uid, number) for uid, result in answered for number in result.absent if is_number(number)
        ),
        more=any(share.more for share in shares),
    )


def _told(share: Share, *, whole: bool) -> list[RunObservation]:
    """What an agent saw; if others were silent, also that its user's runs are as they were: they must not look old."""
    result = share.result
    if result is None:
        return []
    if whole or share.more or any(source.status != "ok" for source in result.sources):
        return [*result.observations]
    return [*result.observations, *still_there(share.known, result.absent)]


def _own(
    uid: int, observations: Iterable[RunObservation], owner_of: Callable[[str], int | None], name: str | None
) -> list[RunObservation]:
    return [
        msgspec.structs.replace(
            seen,
            wms_id=whole_id(uid, seen.wms_id),
            global_wms_id=None,
            owner=None if seen.owner is None else name,
            note=None if seen.note is None else renamed(seen.note, uid, seen.wms_id),
        )
        for seen in observations
        if seen.token is not None and owner_of(seen.token) == uid and is_number(seen.wms_id)
    ]
