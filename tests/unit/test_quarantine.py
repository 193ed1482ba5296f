"""One run's unexpected error stays with that run."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from bpsd.errors import BackendUnavailable
from bpsd.logs import LogEvent
from bpsd.models import KnownRun, RunObservation, WmsStates
from bpsd_adapters.quarantine import FIRST_PAUSE_S, LONGEST_PAUSE_S, Quarantine


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def quarantine(clock: Clock) -> Quarantine:
    return Quarantine(structlog.get_logger(), "site", expected=(OSError,), clock=clock)


READING, WRITING = "reading its log", "writing its log"


def fail(kept: Quarantine, run: str, exc: Exception) -> None:
    with kept.guard(run, READING):
        raise exc


def known(wms_id: str) -> KnownRun:
    return KnownRun(run_id=f"r{wms_id}", wms_id=wms_id, attempt=2)


def test_a_run_that_fails_pauses_longer_each_time_and_no_other_run_pauses() -> None:
    clock = Clock()
    kept = quarantine(clock)
    pauses = []
    for _ in range(12):
        fail(kept, "1", ValueError("odd"))
        before = clock.now
        while not kept.is_due("1", READING):
            clock.now += 1.0
        pauses.append(clock.now - before)
        assert kept.is_due("2", READING)
        assert kept.is_due("1", WRITING)
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_work_that_went_well_ends_the_quarantine_for_that_part() -> None:
    kept = quarantine(Clock())
    fail(kept, "1", ValueError("odd"))
    with kept.guard("1", WRITING):
        pass
    assert "1" in kept
    with kept.guard("1", READING):
        pass
    assert "1" not in kept
    assert kept.note("1") == ""


def test_the_traceback_is_logged_once_for_each_error() -> None:
    kept = quarantine(Clock())
    with capture_logs() as logs:
        for text in ("odd", "odd", "odd", "other"):
            fail(kept, "1", ValueError(text))
    assert [(entry["event"], "exc_info" in entry) for entry in logs] == [
        (LogEvent.RUN_QUARANTINED, True),
        (LogEvent.RUN_QUARANTINED, False),
        (LogEvent.RUN_QUARANTINED, False),
        (LogEvent.RUN_QUARANTINED, True),
    ]
    assert kept.note("1") == "internal error while reading its log: ValueError: other"


@pytest.mark.parametrize("exc", [BackendUnavailable("away"), OSError("full")])
def test_errors_that_the_adapter_foresees_pass_through(exc: Exception) -> None:
    kept = quarantine(Clock())
    with pytest.raises(type(exc)):
        fail(kept, "1", exc)
    assert "1" not in kept


def test_of_a_group_the_unexpected_errors_stay_and_the_foreseen_ones_pass() -> None:
    kept = quarantine(Clock())
    with pytest.raises(ExceptionGroup) as caught:
        fail(kept, "1", ExceptionGroup("both", [OSError("full"), KeyError("x")]))
    assert [type(exc) for exc in caught.value.exceptions] == [OSError]
    assert kept.note("1").endswith("KeyError: 'x'")
    fail(kept, "2", ExceptionGroup("one", [KeyError("y")]))
    assert "2" in kept


def test_a_cancellation_is_no_error_of_a_run() -> None:
    class Cancelled(BaseException):
        pass

    kept = quarantine(Clock())
    with pytest.raises(Cancelled), kept.guard("1", READING):
        raise Cancelled
    assert "1" not in kept


def test_a_command_of_a_person_makes_a_run_due() -> None:
    kept = quarantine(Clock())
    fail(kept, "1", ValueError("odd"))
    assert not kept.is_due("1", READING)
    kept.retry_now("1")
    assert kept.is_due("1", READING)
    assert kept.note("1"), "it is in quarantine until its work went well"
    kept.forget("1")
    assert "1" not in kept


def recover(kept: Quarantine, run: str) -> None:
    with kept.guard(run, READING):
        pass


def told(kept: Quarantine, *runs: str, usual: Any = None) -> dict[str, str | None]:
    return {seen.wms_id: seen.note for seen in kept.noted([], map(known, runs), "log", usual)}


def test_the_note_of_a_run_is_its_error_until_it_recovers() -> None:
    kept = quarantine(Clock())
    assert told(kept, "1", "2") == {}
    fail(kept, "1", ValueError("odd"))
    assert told(kept, "1", "2") == {"1": "internal error while reading its log: ValueError: odd"}
    recover(kept, "1")
    assert told(kept, "1", "2") == {}


def test_the_usual_note_replaces_the_error_once() -> None:
    kept = quarantine(Clock())
    usual = {"1": "one", "2": None}.get

    def note_of(run: KnownRun) -> str | None:
        return usual(run.wms_id)

    assert told(kept, "1", "2", usual=note_of) == {"1": "one"}, "an earlier process may have reported an error"
    assert told(kept, "1", "2", usual=note_of) == {}
    fail(kept, "1", ValueError("odd"))
    assert "odd" in str(told(kept, "1", "2", usual=note_of)["1"])
    recover(kept, "1")
    assert told(kept, "1", "2", usual=note_of) == {"1": "one"}
    assert told(kept, "1", "2", usual=note_of) == {}


def test_an_observation_keeps_its_state_and_one_that_is_added_claims_none() -> None:
    kept = quarantine(Clock())
    seen = [RunObservation(wms_id=run, source="q", state=WmsStates.RUNNING, note="n") for run in ("1", "2")]
    fail(kept, "1", ValueError("odd"))
    fail(kept, "3", ValueError("odd"))
    first, second, added = kept.noted(seen, [known("1"), known("2"), known("3")], "log")
    assert first == msgspec.structs.replace(seen[0], note=kept.note("1"))
    assert second is seen[1]
    assert (added.state, added.attempt, added.jobs) == (None, 2, ())


def test_what_the_poll_says_of_a_run_goes_before_its_usual_note() -> None:
    kept = quarantine(Clock())
    over = RunObservation(wms_id="1", source="q", state=WmsStates.FAILED, note="the driver was killed")
    assert kept.noted([over], [known("1")], "log", lambda _: "") == [over]

    fail(kept, "1", ValueError("odd"))
    assert "odd" in str(kept.noted([over], [known("1")], "log", lambda _: "")[0].note)
    recover(kept, "1")
    assert kept.noted([over], [known("1")], "log", lambda _: "") == [over]
