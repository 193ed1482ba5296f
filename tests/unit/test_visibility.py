"""Rights to read, as pure decisions."""

from __future__ import annotations

import msgspec
import pytest

from bpsd.api.visibility import Sight, without_token
from bpsd.errors import PermissionDenied
from bpsd.messages import CommandRow, RunRow
from bpsd.peers import ALL_RIGHTS, Members, Peer, Policy, Right, rights_of
from bpsd.runs import RunRecord

TOKEN = "a" * 20
POLICY = Policy(
    owner_uid=1,
    others=frozenset({"read"}),
    readers=Members(uids=frozenset({2})),
    auditors=Members(uids=frozenset({3})),
    operators=Members(uids=frozenset({4})),
    accounts={("b", "svc"): 5},
)


def peer(uid: int) -> Peer:
    return Peer(pid=9, uid=uid, gid=uid, groups=(uid,), user=f"u{uid}")


@pytest.mark.parametrize(
    ("uid", "rights"),
    [
        (0, ALL_RIGHTS),
        (1, ALL_RIGHTS),
        (2, {"none", "read", "output"}),
        (3, {"none", "read", "audit"}),
        (4, {"none", "read", "output", "command"}),
        (6, {"none", "read"}),
    ],
)
def test_who_has_which_rights(uid: int, rights: set[Right]) -> None:
    assert rights_of(peer(uid), POLICY) == rights


def test_output_is_for_the_owner_and_those_with_the_right() -> None:
    ours = RunRecord(run_id="r1", backend="b", uid=7)
    found = RunRecord(run_id="r2", backend="b", owner="svc")
    assert [uid for uid in range(9) if Sight(peer(uid), POLICY).sees_output(ours)] == [0, 1, 2, 4, 7]
    assert [uid for uid in range(9) if Sight(peer(uid), POLICY).sees_output(found)] == [0, 1, 2, 4, 5]
    with pytest.raises(PermissionDenied, match="u6 may not read the output of run r1"):
        Sight(peer(6), POLICY).check_output("u6", ours)


def test_a_row_loses_its_token_and_nothing_else() -> None:
    row = RunRow(id="r1", backend="b", wms_id="1", name=f'"token":"{TOKEN}"', state="RUNNING", token=TOKEN)
    row.path = f"/runs/{TOKEN}/x"
    hidden = msgspec.json.decode(without_token(msgspec.json.encode(row), TOKEN), type=RunRow)
    assert hidden == msgspec.structs.replace(row, token=None, path="/runs/.../x", name='"token":"..."')
    assert without_token(b"{}", None) == b"{}"


def test_a_command_shows_its_arguments_to_its_user_and_auditors() -> None:
    def shown(uid: int) -> CommandRow:
        row = CommandRow(
            id="c1",
            verb="submit",
            state="DONE",
            backend="b",
            run="r1",
            token=TOKEN,
            uid=7,
            pid=99,
            user="u7",
            client="bpsctl",
            args={"command_line": "bpsctl submit --secret", "workflow": {"name": "w"}},
            accepted_at=1.0,
        )
        return Sight(peer(uid), POLICY).command(row)

    for uid in (0, 1, 3, 7):
        assert (shown(uid).token, shown(uid).pid, shown(uid).client) == (TOKEN, 99, "bpsctl")
        assert "command_line" in shown(uid).args
    for uid in (2, 4, 6):
        assert (shown(uid).token, shown(uid).pid, shown(uid).client) == (None, 0, "")
        assert shown(uid).args == {"workflow": {"name": "w"}}
