"""What the agents of several users say, put together: each is believed of its own user's runs, within bounds.

An agent is a process of its user's, who may have it say anything. What it says cannot reach another user's runs, nor
keep the daemon from hearing of those.
"""

from __future__ import annotations

__all__ = ["Share", "cursors_of", "is_number", "renamed", "together", "watches", "whole_id"]

from collections.abc import Callable, Iterable, Sequence

import anyio
import msgspec

from bpsd.models import KnownRun, PollResult, RunObservation, SourceReport
from bpsd_adapters.local.follow import BackendCursor
from bpsd_adapters.local.observe import LOG, PROCESSES, still_there

CURSOR_CHARS = 1024 * 1024
"""How much an agent may have the daemon remember."""

NUMBER_DIGITS = 12

TROUBLE_CHARS = 500
"""How much is shown of what is wrong with an agent."""


class Share:
    """The poll of one user's agent: a ``result``, or an ``error``, once it is ``done``.

    ``denied``: systemd did not start the agent, which is the host's fault and not the user's.
    """

    def __init__(self, uid: int, known: tuple[KnownRun, ...], cursor: str | None) -> None:
        self.uid, self.known, self.cursor = uid, known, cursor
        self.result: PollResult | None = None
        self.error = ""
        self.denied = False
        self.more = False
        self.cost_s = 0.0
        self.done = anyio.Event()

    def __repr__(self) -> str:
        return f"<Share of user {self.uid}: {self.error or ('answered' if self.result else 'not answered')}>"

    @property
    def trouble(self) -> str:
        """What is wrong with it; empty if nothing is, or nothing is known yet."""
        said = [] if self.result is None else [source.error or source.name for source in self._troubled()]
        return "; ".join([*([self.error] if self.error else []), *said])[:TROUBLE_CHARS]

    @property
    def is_whole(self) -> bool:
        """Whether the agent answered, completely."""
        return self.result is not None and not self._troubled()

    def _troubled(self) -> list[SourceReport]:
        return [] if self.result is None else [source for source in self.result.sources if source.status != "ok"]

    def report(self, name: str) -> SourceReport:
        """How asking this user's agent went. Its cost is not the backend's: who is slow is asked less often."""
        return SourceReport(
            name=LOG,
            user=name,
            asked=self.result is not None,
            status="failed" if self.denied else "partial" if self.trouble else "ok",
            covers=f"runs of user {name}",
            cost_s=self.cost_s,
            error=self.trouble,
        )


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
    cost_s: float,
    owner_of: Callable[[str], int | None],
    name_of: Callable[[int], str],
) -> PollResult:
    """Put the shares together: each user's agent is a source of its own, and its trouble is that user's alone.

    Parameters
    ----------
    shares : `~collections.abc.Sequence` [`Share`]
        One for each user who has something to tell, asked or not.
    cursors : `dict`
        Those of all users until now.
    cost_s : `float`
        How long those took that answered without delay, at the same time.
    owner_of : callable
        From a token to the user who submitted under it.
    name_of : callable
        From a user's number to the name.
    """
    answered = [(share.uid, share.result) for share in shares if share.result is not None]
    all_denied = bool(shares) and all(share.denied for share in shares)
    whole = all(share.is_whole for share in shares)
    new = {uid: result.cursor for uid, result in answered if result.cursor and len(result.cursor) <= CURSOR_CHARS}
    agents = SourceReport(
        name=PROCESSES,
        status="failed" if all_denied else "ok",
        covers=f"agents of {len(shares)} users",
        cost_s=cost_s,
        error=shares[0].error if all_denied else "",
    )
    return PollResult(
        observations=[
            seen
            for share in shares
            for seen in _own(share.uid, _reported(share, whole=whole), owner_of, name_of(share.uid))
        ],
        cursor=msgspec.json.encode({str(uid): text for uid, text in (cursors | new).items()}).decode(),
        run_cursors={
            whole_id(uid, number): text
            for uid, result in answered
            for number, text in result.run_cursors.items()
            if is_number(number) and len(text) <= CURSOR_CHARS
        },
        sources=(agents, *(share.report(name_of(share.uid)) for share in shares)),
        absent=tuple(
            whole_id(share.uid, number)
            for share in shares
            if share.result is not None and share.is_whole
            for number in share.result.absent
            if is_number(number)
        ),
        more=any(share.more for share in shares),
    )


def _reported(share: Share, *, whole: bool) -> list[RunObservation]:
    """What an agent saw; if others were silent, also that its user's runs are as they were: they must not look old."""
    result = share.result
    if result is None:
        return []
    if whole or share.more or not share.is_whole:
        return [*result.observations]
    return [*result.observations, *still_there(share.known, result.absent)]


def _own(
    uid: int, observations: Iterable[RunObservation], owner_of: Callable[[str], int | None], name: str
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
