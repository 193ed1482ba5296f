"""Which runs a request is about."""

from __future__ import annotations

import pytest

from bpsd.api.conditions import Condition
from bpsd.messages import ListParams
from bpsd.models import WmsStates
from bpsd.peers import Peer, Policy
from bpsd.runs import RunRecord

OWNER, ALICE, BOB, ROOT = 500, 1000, 1001, 0


def run(uid: int | None, owner: str = "") -> RunRecord:
    return RunRecord(run_id="rb", backend="here", state=WmsStates.RUNNING, uid=uid, owner=owner)


@pytest.mark.parametrize(
    ("peer", "record", "selected"),
    [
        (ALICE, run(ALICE), True),
        (ALICE, run(BOB), False),
        (ALICE, run(None, "alice@wms"), True),
        (ALICE, run(None, "bob@wms"), False),
        (ROOT, run(BOB), True),
        (OWNER, run(BOB), True),
    ],
)
def test_commandable_selects_what_the_caller_may_command(peer: int, record: RunRecord, selected: bool) -> None:
    policy = Policy(owner_uid=OWNER, others=frozenset({"read"}), accounts={("here", "alice@wms"): ALICE})
    who = Peer(uid=peer, gid=peer, groups=(peer,), pid=1, user="x")

    assert Condition(ListParams(commandable=True), who, 0.0, policy)(record) is selected
    assert Condition(ListParams(), who, 0.0, policy)(record)


@pytest.mark.parametrize(
    ("total", "succeeded", "percent"), [(12, 3, 25), (12, 12, 100), (12, 100_002, 100), (None, 5, None), (0, 5, None)]
)
def test_the_percentage_is_never_above_100(total: int | None, succeeded: int, percent: int | None) -> None:
    record = run(ALICE)
    record.total_number_jobs, record.job_state_counts = total, {WmsStates.SUCCEEDED: succeeded}

    assert record.percent(None) == percent
    assert record.as_row(None).percent == percent
