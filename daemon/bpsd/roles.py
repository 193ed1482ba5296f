"""The section ``rights`` of the configuration, and what a backend says of people: names, as they stand in the file.

What follows from them for somebody who connects is decided in `bpsd.peers`, with the numbers that `bpsd.permissions`
finds for these names.
"""

from __future__ import annotations

__all__ = ["EVERYBODY", "Rights", "Who"]

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

EVERYBODY = "*"
"""As the name of a user: everybody who is let in."""

_Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Who(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """People: users by name (or number), and the members of groups."""

    users: Annotated[list[_Name], Meta(description="names or numbers of users (default: none)")] = []
    groups: Annotated[
        list[_Name], Meta(description="names or numbers of groups, for all their members (default: none)")
    ] = []


class Rights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may do what; the daemon's owner and root may do everything, and people end and restart their own runs."""

    others: (
        Annotated[
            list[Literal["status", "output", "audit", "read", "submit", "command"]],
            Meta(
                description="rights of everybody else (mode system only; default there: [status], also written read); "
                "output adds the output of others' jobs, audit the arguments of others' commands; []: not let in"
            ),
        ]
        | None
    ) = None
    viewer: Annotated[Who, Meta(description="users who may read the status of all runs")] = Who()
    output: Annotated[
        Who, Meta(description="users who may also read the output of others' jobs and the tokens of their runs")
    ] = Who()
    audit: Annotated[
        Who, Meta(description="users who may also read the arguments, tokens and processes of others' commands")
    ] = Who()
    operator: Annotated[
        Who, Meta(description="users with the right output who may also cancel, restart, hold and release every run")
    ] = Who()
    admin: Annotated[Who, Meta(description="who may do everything, as the owner may")] = Who()

    @property
    def names_anybody(self) -> bool:
        """Whether it lets in anybody beside the owner."""
        return bool(self.others) or any(
            who.users or who.groups for who in (self.viewer, self.output, self.audit, self.operator, self.admin)
        )
