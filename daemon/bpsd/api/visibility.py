"""What of somebody else's runs and commands a peer may see: the rights ``read`` (status), ``output`` and ``audit``.

Everybody sees all of their own. Of others' runs ``read`` shows the state; ``output`` adds what jobs printed and the
tokens of runs; ``audit`` adds what others' commands were asked with: tokens, arguments, processes.
"""

from __future__ import annotations

__all__ = ["Sight", "without_token"]

import msgspec

from bpsd.errors import PermissionDenied
from bpsd.messages import CommandRow, RunRow
from bpsd.peers import Peer, Policy, owner_of, rights_of
from bpsd.runs import RunRecord

HIDDEN = b"..."
"""Stands for the token where it is a part of something else."""

SHOWN_ARGS = ("workflow", "wms_id", "label", "group")
"""Arguments of a command that everybody sees: which workflow, which run, which part of it."""


class Sight:
    """What one peer may see, under the policy that is in force now."""

    __slots__ = ("_policy", "_uid", "audit", "output")

    def __init__(self, peer: Peer, policy: Policy) -> None:
        rights = rights_of(peer, policy)
        self._policy, self._uid = policy, peer.uid
        self.output, self.audit = "output" in rights, "audit" in rights

    def owns(self, record: RunRecord) -> bool:
        """Whether a run belongs to the peer."""
        return owner_of(self._policy, record.uid, record.backend, record.owner) == self._uid

    def sees_output(self, record: RunRecord) -> bool:
        """Whether the peer may see what jobs of this run print, and its token."""
        return self.output or self.owns(record)

    def check_output(self, user: str, record: RunRecord) -> None:
        """Refuse who may not see what jobs of this run print.

        Raises
        ------
        PermissionDenied
            If the run is somebody else's, and the peer has no right to its output.
        """
        if not self.sees_output(record):
            raise PermissionDenied(
                f"{user} may not read the output of run {record.run_id}, which belongs to another user",
                advice="ask its owner; an administrator can name you, or a group of yours, in rights.output",
                right="output",
            )

    def encoded(self, record: RunRecord, row: bytes) -> bytes:
        """Return the row of a run, encoded before, without what the peer may not see."""
        return row if self.sees_output(record) else without_token(row, record.token)

    def row(self, record: RunRecord, row: RunRow) -> RunRow:
        """Return the row of a run without what the peer may not see."""
        if self.sees_output(record):
            return row
        return msgspec.json.decode(without_token(msgspec.json.encode(row), record.token), type=RunRow)

    def command(self, row: CommandRow) -> CommandRow:
        """Return a command without what the peer may not see."""
        if self.audit or row.uid == self._uid:
            return row
        row.pid, row.client = 0, ""
        row.args = {name: value for name, value in row.args.items() if name in SHOWN_ARGS}
        return msgspec.json.decode(without_token(msgspec.json.encode(row), row.token), type=CommandRow)


def without_token(row: bytes, token: str | None) -> bytes:
    """Return an encoded row without its token, which may also be part of a path; it stands as it is in JSON."""
    if token is None:
        return row
    secret = token.encode()
    return row.replace(b'"token":"%s"' % secret, b'"token":null', 1).replace(secret, HIDDEN)
