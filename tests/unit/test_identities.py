"""Who is who: decisions as tables, and the rows they lead to, in a database in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd import identities, wire
from bpsd.errors import Conflict, RunNotFound, UnknownBackend
from bpsd.identities import Attempt, RunIdentity, Sighting, identify, is_recycled, load, may_be, next_attempt
from bpsd.journal import SCHEMA

TOKEN = "abcdefghij0123456789"
PATH = "/data/submit/u_op_run/20260101T000000Z"
YEAR_S = 365 * 86400.0


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(_database()) as connection:
        yield connection


def _database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys=ON")
    for step in SCHEMA.steps:
        connection.executescript(step)
    for number in (1, 2):
        connection.execute("INSERT INTO backends VALUES (?, ?, 0)", (f"b{number}", f"backend{number}"))
    return connection


def _see(connection: sqlite3.Connection, *sightings: Sighting, now: float = 1000.0) -> list[str]:
    return identify(connection, sightings, now)


def _sighting(wms_id: str, backend_uid: str = "b1", **facts: object) -> Sighting:
    return Sighting(backend_uid=backend_uid, wms_id=wms_id, **facts)  # type: ignore[arg-type]


def _run(connection: sqlite3.Connection, run_id: str) -> RunIdentity:
    (run,) = load(connection, [run_id])
    return run


def _command(connection: sqlite3.Connection, run_id: str, id: str, state: str, verb: str = "submit") -> None:
    connection.execute(
        "INSERT INTO commands (id, verb, backend_uid, run_id, args, state, uid, pid, user, client, accepted_at, note)"
        " VALUES (?, ?, 'b1', ?, '{}', ?, 1, 1, 'u', '', 0, '')",
        (id, verb, run_id, state),
    )


def _ours(connection: sqlite3.Connection, *, state: str = "RUNNING", now: float = 1000.0) -> str:
    """A run whose submission is under way."""
    run_id = identities.create_run(connection, backend_uid="b1", token=TOKEN, uid=7, name="mine", now=now)
    identities.add_attempt(connection, run_id, Attempt(attempt=1, command_id="cbcdfghjk", created_at=now))
    _command(connection, run_id, "cbcdfghjk", state)
    return run_id


# -- decisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "known", "expected"),
    [(None, None, True), (TOKEN, None, True), (None, TOKEN, True), (TOKEN, TOKEN, True), ("other", TOKEN, False)],
)
def test_tokens_that_differ_are_different_runs(seen: str | None, known: str | None, *, expected: bool) -> None:
    assert may_be(_sighting("1", token=seen), RunIdentity(run_id="r", backend_uid="b1", token=known)) is expected


@pytest.mark.parametrize(
    ("later_s", "path", "owner", "expected"),
    [
        (0, PATH, "op", False),
        (0, "/elsewhere", "somebody", False),  # at the same time: the source writes paths in another way
        (YEAR_S, PATH, "op", False),  # a requeue, at the same place
        (YEAR_S, "/elsewhere", "op", True),
        (-YEAR_S, "/elsewhere", "op", True),
        (YEAR_S, PATH, "somebody", True),
        (YEAR_S, None, None, False),  # nothing says that it is elsewhere
        (3600, "/elsewhere", "op", False),
        (3601, "/elsewhere", "op", True),
    ],
)
def test_recycled_ids(later_s: float, path: str | None, owner: str | None, *, expected: bool) -> None:
    run = RunIdentity(run_id="r", backend_uid="b1", path=PATH, owner="op")
    attempt = Attempt(attempt=1, wms_id="1", submit_time=5e8)
    seen = _sighting("1", submit_time=5e8 + later_s, path=path, owner=owner)

    assert is_recycled(seen, run, attempt) is expected


def test_without_times_the_path_tells_whether_an_id_was_recycled() -> None:
    run = RunIdentity(run_id="r", backend_uid="b1", path=PATH)

    assert is_recycled(_sighting("1", path="/elsewhere"), run, Attempt(attempt=1, submit_time=1.0))
    assert is_recycled(_sighting("1", path="/elsewhere", submit_time=1e9), run, Attempt(attempt=1))
    assert not is_recycled(_sighting("1", path=PATH), run, Attempt(attempt=1, submit_time=1.0))
    assert not is_recycled(_sighting("1"), run, Attempt(attempt=1))


@pytest.mark.parametrize(
    ("seen", "kept", "later_s", "expected"),
    [
        ("s#1.0#5", "s#1.0#5", YEAR_S, False),  # the global id settles it
        ("s#1.0#7", "s#1.0#5", 0.0, True),
        ("t#1.0#5", "s#1.0#5", 0.0, True),
        ("s#1.0#7", None, 2.0, False),  # kept before global ids were: the time tells
        ("s#1.0#7", None, 61.0, True),
        (None, "s#1.0#5", 61.0, False),
    ],
)
def test_a_global_id_tells_whether_an_id_was_recycled(
    seen: str | None, kept: str | None, later_s: float, *, expected: bool
) -> None:
    run = RunIdentity(run_id="r", backend_uid="b1", path=PATH)
    attempt = Attempt(attempt=1, wms_id="1.0", global_wms_id=kept, submit_time=5e8)

    sighting = _sighting("1.0", global_wms_id=seen, path=PATH, submit_time=5e8 + later_s)

    assert is_recycled(sighting, run, attempt) is expected


def test_an_id_that_comes_with_another_global_id_is_another_run(connection: sqlite3.Connection) -> None:
    (old,) = _see(connection, _sighting("1.0", global_wms_id="s#1.0#5", path="/a", submit_time=5.0))

    new, again = _see(
        connection,
        _sighting("1.0", global_wms_id="s#1.0#9", path="/b", submit_time=9.0),
        _sighting("1.0", global_wms_id="s#1.0#5", path="/a", submit_time=5.0),
    )

    assert new != old
    assert again == old
    assert [a.global_wms_id for a in _run(connection, old).attempts] == ["s#1.0#5"]
    assert [a.global_wms_id for a in _run(connection, new).attempts] == ["s#1.0#9"]


def test_the_same_id_of_a_new_scheduler_in_the_same_folder_is_the_next_attempt(connection: sqlite3.Connection) -> None:
    (first,) = _see(connection, _sighting("1.0", global_wms_id="s#1.0#5", path="/a", submit_time=5.0))

    (second,) = _see(connection, _sighting("1.0", global_wms_id="s#1.0#9", path="/a", submit_time=9.0))

    assert second == first
    assert [(a.attempt, a.global_wms_id) for a in _run(connection, first).attempts] == [(1, "s#1.0#5"), (2, "s#1.0#9")]


def test_an_attempt_of_before_global_ids_learns_its_own(connection: sqlite3.Connection) -> None:
    (run,) = _see(connection, _sighting("1.0", path="/a", submit_time=5.0))

    assert _see(connection, _sighting("1.0", global_wms_id="s#1.0#5", path="/a", submit_time=5.0)) == [run]
    assert [a.global_wms_id for a in _run(connection, run).attempts] == ["s#1.0#5"]


@pytest.mark.parametrize(
    ("attempts", "submit_time", "own", "expected"),
    [
        ((), None, None, 1),
        ((), 5.0, 4, 4),
        (((1, 10.0),), 20.0, None, 2),
        (((1, 10.0),), None, None, 2),
        (((1, None),), 20.0, None, 2),
        (((1, 10.0),), 5.0, None, 0),  # seen late, but older
        (((0, 5.0), (1, 10.0)), 3.0, None, -1),
        (((1, 10.0), (3, 30.0)), 20.0, 2, 2),
        (((1, 10.0), (3, 30.0)), 40.0, 3, 4),  # its own number is taken
    ],
)
def test_number_of_a_new_attempt(
    attempts: tuple[tuple[int, float | None], ...], submit_time: float | None, own: int | None, expected: int
) -> None:
    known = [Attempt(attempt=number, submit_time=time) for number, time in attempts]

    assert next_attempt(_sighting("x", submit_time=submit_time, attempt=own), known) == expected


def test_id_that_is_taken_is_not_given_again(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [5, 5, 5, 28**8 - 1]
    monkeypatch.setattr("secrets.randbelow", lambda _: numbers.pop(0))

    assert _see(connection, _sighting("1"), _sighting("2")) == ["rhbbbbbbb", "r99999999"]


# -- foreign runs ----------------------------------------------------------------------------------------------------


def test_ids_are_never_numbers(connection: sqlite3.Connection) -> None:
    (run_id,) = _see(connection, _sighting("12"))

    assert run_id[0] == "r"
    assert len(run_id) == 9
    assert set(run_id[1:]) <= set(wire.RUN_ID_ALPHABET)


def test_same_id_seen_again_is_the_same_run(connection: sqlite3.Connection) -> None:
    first = _see(connection, _sighting("12", path=PATH, submit_time=5.0, owner="op"))
    before = connection.total_changes

    assert _see(connection, _sighting("12", path=PATH, submit_time=5.0, owner="op")) == first
    assert _see(connection, _sighting("12")) == first
    assert connection.total_changes == before  # nothing new, nothing written, nothing synced


def test_backends_share_no_ids(connection: sqlite3.Connection) -> None:
    here, there = _see(connection, _sighting("12", path=PATH), _sighting("12", "b2", path=PATH))

    assert here != there


def test_facts_are_learnt_once_and_kept(connection: sqlite3.Connection) -> None:
    (run_id,) = _see(connection, _sighting("12"))
    _see(connection, _sighting("12", path=PATH, submit_time=5.0, owner="op", token=TOKEN))
    _see(connection, _sighting("12", path="/elsewhere", submit_time=6.0, owner="other"))

    run = _run(connection, run_id)
    assert (run.path, run.first_submit_time, run.owner, run.token, run.uid) == (PATH, 5.0, "op", TOKEN, None)
    assert run.attempts == (Attempt(attempt=1, wms_id="12", path=PATH, submit_time=5.0, created_at=1000.0),)


def test_new_id_in_the_same_directory_is_the_next_attempt(connection: sqlite3.Connection) -> None:
    (first,) = _see(connection, _sighting("12", path=PATH, submit_time=5.0))
    (second,) = _see(connection, _sighting("15", path=PATH, submit_time=50.0))

    assert second == first
    run = _run(connection, first)
    assert run.wms_ids == ("12", "15")
    assert run.attempt_of("12") == 1
    assert run.attempt_of("15") == 2
    assert run.attempt_of("99") is None
    assert run.first_submit_time == 5.0


def test_attempts_seen_at_once_are_numbered_by_time(connection: sqlite3.Connection) -> None:
    seen = [_sighting(str(n), path=PATH, submit_time=float(n)) for n in (30, 10, 20)]

    ids = _see(connection, *seen)

    assert len(set(ids)) == 1
    assert [(a.attempt, a.wms_id) for a in _run(connection, ids[0]).attempts] == [(1, "10"), (2, "20"), (3, "30")]


def test_older_attempt_seen_late_never_overtakes(connection: sqlite3.Connection) -> None:
    (run_id,) = _see(connection, _sighting("30", path=PATH, submit_time=30.0))
    _see(connection, _sighting("20", path=PATH, submit_time=20.0))
    _see(connection, _sighting("10", path=PATH, submit_time=10.0))

    assert [(a.attempt, a.wms_id) for a in _run(connection, run_id).attempts] == [(-1, "10"), (0, "20"), (1, "30")]


def test_recycled_id_is_another_run_from_then_on(connection: sqlite3.Connection) -> None:
    old = _sighting("12", path=PATH, submit_time=5e8, owner="op")
    new = _sighting("12", path="/elsewhere", submit_time=5e8 + YEAR_S, owner="op")

    (first,) = _see(connection, old)
    (second,) = _see(connection, new)

    assert second != first
    assert _see(connection, new) == [second]
    assert _see(connection, old) == [first]  # the accounting still has it
    assert _see(connection, _sighting("12")) == [second]


def test_paths_need_not_be_unicode(connection: sqlite3.Connection) -> None:
    ids = _see(connection, _sighting("1", path="/data/\udce9"), _sighting("2", path="/data/\udcea"))

    assert len(set(ids)) == 2
    assert _see(connection, _sighting("3", path="/data/\udce9")) == ids[:1]


def test_ids_come_back_in_the_order_of_the_sightings(connection: sqlite3.Connection) -> None:
    seen = [_sighting(str(n), submit_time=float(-n)) for n in range(20)]

    ids = _see(connection, *seen)

    assert len(set(ids)) == 20
    assert [_see(connection, sighting)[0] for sighting in seen] == ids


# -- our own runs ----------------------------------------------------------------------------------------------------


def test_token_is_the_run(connection: sqlite3.Connection) -> None:
    run_id = _ours(connection)

    assert _see(connection, _sighting("12", token=TOKEN, path=PATH)) == [run_id]
    run = _run(connection, run_id)
    assert (run.uid, run.name, run.path, run.wms_ids) == (7, "mine", PATH, ("12",))
    assert run.attempts[0].command_id == "cbcdfghjk"  # it is the attempt that is under way


def test_token_on_another_backend_is_a_copy(connection: sqlite3.Connection) -> None:
    run_id = _ours(connection)

    assert _see(connection, _sighting("12", "b2", token=TOKEN)) != [run_id]


def test_other_token_in_our_directory_is_another_run(connection: sqlite3.Connection) -> None:
    run_id = _ours(connection)
    identities.bind(connection, run_id, 1, "12", path=PATH, command_id="cbcdfghjk", now=1000.0)

    assert _see(connection, _sighting("13", token="z" * 20, path=PATH)) != [run_id]
    assert _see(connection, _sighting("12", token="y" * 20, path=PATH)) != [run_id]


def test_restart_by_other_hands_is_the_next_attempt(connection: sqlite3.Connection) -> None:
    run_id = _ours(connection, state="DONE")
    identities.bind(connection, run_id, 1, "12", path=PATH, command_id="cbcdfghjk", now=1000.0)

    assert _see(connection, _sighting("15", token=TOKEN, submit_time=50.0)) == [run_id]
    assert [(a.attempt, a.wms_id) for a in _run(connection, run_id).attempts] == [(1, "12"), (2, "15")]


def test_restart_that_failed_takes_no_id_of_another(connection: sqlite3.Connection) -> None:
    run_id = _ours(connection, state="DONE")
    identities.bind(connection, run_id, 1, "12", path=PATH, command_id="cbcdfghjk", now=1000.0)
    identities.add_attempt(connection, run_id, Attempt(attempt=2, command_id="cfailed99"))
    _command(connection, run_id, "cfailed99", "FAILED", "restart")

    _see(connection, _sighting("15", path=PATH))

    found = [(a.attempt, a.wms_id) for a in _run(connection, run_id).attempts]
    assert found == [(1, "12"), (2, None), (3, "15")]


def test_own_counter_of_the_wms_says_which_attempt(connection: sqlite3.Connection) -> None:
    run_id = _ours(connection, state="DONE")
    identities.bind(connection, run_id, 1, "12", path=PATH, command_id="cbcdfghjk", now=1000.0)
    for number, id_ in ((2, "crestart2"), (3, "crestart3")):
        identities.add_attempt(connection, run_id, Attempt(attempt=number, command_id=id_))
        _command(connection, run_id, id_, "IN_DOUBT", "restart")

    _see(connection, _sighting("22", token=TOKEN, attempt=2))

    found = [(a.attempt, a.wms_id) for a in _run(connection, run_id).attempts]
    assert found == [(1, "12"), (2, "22"), (3, None)]


def test_binding_twice_changes_nothing(connection: sqlite3.Connection) -> None:
    run_id = _ours(connection)
    for _ in range(2):
        assert identities.bind(connection, run_id, 1, "12", path=PATH, command_id="cbcdfghjk", now=1000.0) == []
    before = connection.total_changes
    identities.bind(connection, run_id, 1, "12", path=None, command_id=None, now=2000.0)

    assert connection.total_changes == before
    assert _run(connection, run_id).attempts == (
        Attempt(attempt=1, wms_id="12", path=PATH, command_id="cbcdfghjk", created_at=1000.0),
    )


def test_same_run_seen_without_its_token_meanwhile_is_folded_in(connection: sqlite3.Connection) -> None:
    run_id = _ours(connection, now=1000.0)
    (phantom,) = _see(connection, _sighting("12", path=PATH), now=1001.0)
    assert phantom != run_id

    assert identities.bind(connection, run_id, 1, "12", path=PATH, command_id=None, now=1002.0) == [phantom]

    assert [run.run_id for run in load(connection)] == [run_id]
    assert _see(connection, _sighting("12", path=PATH)) == [run_id]


def test_older_run_with_that_id_is_not_folded_in(connection: sqlite3.Connection) -> None:
    (old,) = _see(connection, _sighting("12", path="/old", submit_time=5.0), now=10.0)
    run_id = _ours(connection, now=1000.0)

    assert identities.bind(connection, run_id, 1, "12", path=PATH, command_id=None, now=1002.0) == []
    assert {run.run_id for run in load(connection)} == {old, run_id}


def test_restart_taken_for_one_by_other_hands_is_put_right(connection: sqlite3.Connection) -> None:
    run_id = _ours(connection, state="DONE")
    identities.bind(connection, run_id, 1, "12", path=PATH, command_id="cbcdfghjk", now=1000.0)
    identities.add_attempt(connection, run_id, Attempt(attempt=2, command_id="crestart2"))
    _command(connection, run_id, "crestart2", "FAILED", "restart")  # as a poll would see it in an odd moment
    _see(connection, _sighting("15", path=PATH))

    identities.bind(connection, run_id, 2, "15", path=None, command_id="crestart2", now=1000.0)

    assert [(a.attempt, a.wms_id) for a in _run(connection, run_id).attempts] == [(1, "12"), (2, "15")]


def test_binding_an_unknown_run(connection: sqlite3.Connection) -> None:
    with pytest.raises(RunNotFound):
        identities.bind(connection, "rzzzzzzzz", 1, "12", path=None, command_id=None, now=0.0)


# -- backends --------------------------------------------------------------------------------------------------------


def test_backend_keeps_its_uid_under_a_new_name(connection: sqlite3.Connection) -> None:
    uid = identities.backend_uid(connection, "usdf", 5.0)

    assert uid[0] == "b"
    assert identities.backend_uid(connection, "usdf", 6.0) == uid
    assert identities.rename_backend(connection, "usdf", "slac") == uid
    assert identities.backend_uid(connection, "slac", 7.0) == uid
    assert identities.backend_uid(connection, "usdf", 8.0) != uid


def test_renaming_what_is_not_there_or_to_what_is(connection: sqlite3.Connection) -> None:
    with pytest.raises(UnknownBackend, match="known: backend1, backend2"):
        identities.rename_backend(connection, "usdf", "slac")
    with pytest.raises(Conflict, match="has a history of its own"):
        identities.rename_backend(connection, "backend1", "backend2")


# -- any order of events ---------------------------------------------------------------------------------------------

SIGHTINGS = st.builds(
    Sighting,
    backend_uid=st.sampled_from(["b1", "b2"]),
    wms_id=st.sampled_from(["1", "2", "3"]),
    token=st.sampled_from([None, TOKEN, "z" * 20]),
    path=st.sampled_from([None, "/a", "/b"]),
    submit_time=st.sampled_from([None, 1.0, 2.0, YEAR_S]),
    attempt=st.sampled_from([None, 1, 2]),
    owner=st.sampled_from([None, "op", "other"]),
)


@given(st.lists(st.lists(SIGHTINGS, max_size=4), max_size=6))
def test_whatever_is_seen_identities_hold_together(polls: list[list[Sighting]]) -> None:
    with closing(_database()) as connection:
        _ours(connection)
        for poll in polls:
            ids = _see(connection, *poll)
            runs = {run.run_id: run for run in load(connection)}
            for sighting, run_id in zip(poll, ids, strict=True):
                run = runs[run_id]
                assert run.backend_uid == sighting.backend_uid
                assert sighting.wms_id in run.wms_ids
                if sighting.token is not None:
                    assert run.token == sighting.token
            # Seen again alone, each is who it was: by its token, or (with no other claim on its id) by its id.
            for sighting, run_id in zip(poll, ids, strict=True):
                if sighting.token is not None:
                    assert _see(connection, sighting) == [run_id]
