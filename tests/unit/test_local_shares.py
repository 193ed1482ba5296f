"""What the agents of several users say, put together."""

from __future__ import annotations

import msgspec

from bpsd.models import KnownRun, PollResult, RunObservation, SourceReport, WmsStates
from bpsd.reducer import absence_is_proof, confirms_all
from bpsd_adapters.local.shares import Share, together

OWNERS = {"a" * 20: 1, "b" * 20: 2}


def share(uid: int, *seen: RunObservation, error: str = "") -> Share:
    made = Share(uid, (KnownRun(run_id=f"r{uid}", wms_id="7", token="ab"[uid - 1] * 20),), None)
    made.error = error
    made.result = None if error else PollResult(observations=seen, sources=(SourceReport(name="log", status="ok"),))
    return made


def seen(*shares: Share) -> list[tuple[str, WmsStates | None]]:
    result = together(shares, {}, 0.1, OWNERS.get, str)
    return [(each.wms_id, each.state) for each in result.observations]


def test_what_one_agent_does_not_tell_makes_no_other_users_runs_look_old() -> None:
    assert seen(share(1), share(2)) == []  # all answered: nothing new needs no word
    assert seen(share(1), share(2, error="it hangs")) == [("1-7", None)]
    assert seen(share(1), Share(2, (), None)) == [("1-7", None)]  # not asked, or still reading


def test_an_agent_is_believed_of_its_own_users_runs_alone() -> None:
    mine = RunObservation(wms_id="7", source="log", token="a" * 20, state=WmsStates.RUNNING)

    assert seen(share(1, mine), share(2, mine)) == [("1-7", WmsStates.RUNNING)]


def test_each_user_is_a_source_whose_trouble_and_cost_are_its_own() -> None:
    fine, hangs, slow = share(1), share(2, error="it hangs"), Share(3, (), None)
    fine.cost_s, hangs.cost_s = 0.2, 20.0
    assert fine.result is not None
    fine.result = msgspec.structs.replace(fine.result, absent=("7",))

    result = together((fine, hangs, slow), {}, 0.2, OWNERS.get, "user{}".format)

    assert [(s.name, s.user, s.status, s.asked, s.error) for s in result.sources] == [
        ("processes", "", "ok", True, ""),
        ("log", "user1", "ok", True, ""),
        ("log", "user2", "partial", False, "it hangs"),
        ("log", "user3", "ok", False, ""),
    ]
    assert result.absent == ("1-7",)
    assert absence_is_proof(result.sources)  # of the runs of those who answered
    assert not confirms_all(result.sources)
    assert result.sources[0].cost_s == 0.2


def test_an_agent_that_read_in_part_proves_no_absence() -> None:
    partial = share(1)
    assert partial.result is not None
    partial.result = msgspec.structs.replace(
        partial.result, absent=("7",), sources=(SourceReport(name="log", status="partial", error="a disk is away"),)
    )

    result = together((partial,), {}, 0.1, OWNERS.get, str)

    assert result.absent == ()
    assert [source.error for source in result.sources] == ["", "a disk is away"]
