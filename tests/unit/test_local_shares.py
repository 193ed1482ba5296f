"""What the agents of several users say, put together."""

from __future__ import annotations

from bpsd.models import KnownRun, PollResult, RunObservation, SourceReport, WmsStates
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


def test_an_agent_is_believed_of_its_own_users_runs_alone() -> None:
    mine = RunObservation(wms_id="7", source="log", token="a" * 20, state=WmsStates.RUNNING)

    assert seen(share(1, mine), share(2, mine)) == [("1-7", WmsStates.RUNNING)]
