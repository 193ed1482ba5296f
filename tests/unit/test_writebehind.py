from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.store import SCHEMA
from bpsd.writebehind import ROW_BYTES, Batch, Pending, StoredRun, TimelineEvent

RUN_IDS = st.sampled_from(["r1", "r2", "r3"])
DOCS = st.binary(max_size=3)
BACKENDS = st.sampled_from(["here", "there"])
CURSORS = st.sampled_from([None, "a", "b\udce9", "\x00"])


def _run(run_id: str, **facts: Any) -> StoredRun:
    given = {
        "backend": "here",
        "doc": b"{}",
        "state": 15,
        "live": True,
        "updated_at": 5.0,
        "ended_at": None,
        "wms_id": "12",
        "token": None,
        "path": None,
        "name": "demo",
        **facts,
    }
    return StoredRun(run_id=run_id, **given)


def _event(seq: int, run_id: str | None = "r1", doc: bytes = b"{}") -> TimelineEvent:
    return TimelineEvent(seq, 5.0, run_id, "here", "run.state", doc)


BATCHES = st.builds(
    Batch,
    runs=st.lists(st.builds(_run, RUN_IDS, doc=DOCS, live=st.booleans()), max_size=3),
    jobs_replace=st.dictionaries(RUN_IDS, DOCS, max_size=2),
    jobs_append=st.dictionaries(RUN_IDS, DOCS, max_size=2),
    # A number belongs to one event, which may come twice.
    events=st.lists(st.integers(0, 5).map(lambda n: _event(n + 1, (None, "r1", "r2")[n % 3])), max_size=3),
    cursors=st.dictionaries(BACKENDS, CURSORS, max_size=2),
    run_cursors=st.dictionaries(st.tuples(BACKENDS, RUN_IDS), CURSORS, max_size=2),
    forget=st.lists(RUN_IDS, max_size=2),
)


def _database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for step in SCHEMA.steps:
        connection.executescript(step)
    return connection


def _content(connection: sqlite3.Connection) -> dict[str, list[Any]]:
    queries = {
        "meta": "SELECT * FROM meta",
        "runs": "SELECT * FROM runs ORDER BY run_id",
        "snapshots": "SELECT * FROM job_snapshots ORDER BY run_id",
        "pieces": "SELECT run_id, doc FROM job_pieces ORDER BY run_id, number",
        "timeline": "SELECT * FROM timeline ORDER BY seq",
        "cursors": "SELECT * FROM cursors ORDER BY backend",
        "run_cursors": "SELECT * FROM run_cursors ORDER BY backend, run_id",
    }
    return {name: connection.execute(query).fetchall() for name, query in queries.items()}


@given(st.lists(st.lists(BATCHES, max_size=4), max_size=4))
def test_writing_a_fold_is_writing_one_by_one(groups: list[list[Batch]]) -> None:
    with closing(_database()) as singly, closing(_database()) as folded:
        for group in groups:
            fold = Pending()
            for batch in group:
                Pending(batch).write(singly)
                fold.absorb(Pending(batch))
            fold.write(folded)

        assert _content(folded) == _content(singly)


@given(st.lists(BATCHES, min_size=3, max_size=3))
def test_what_is_put_back_comes_before_what_came_since(batches: list[Batch]) -> None:
    """As when a write has failed: the older fold takes in the newer one."""
    older, newer = Pending(batches[0]), Pending(batches[1])
    newer.absorb(Pending(batches[2]))
    older.absorb(newer)
    with closing(_database()) as singly, closing(_database()) as folded:
        for batch in batches:
            Pending(batch).write(singly)
        older.write(folded)

        assert _content(folded) == _content(singly)


@given(st.lists(BATCHES, max_size=5))
def test_size_follows_what_waits(batches: list[Batch]) -> None:
    fold = Pending()
    for batch in batches:
        fold.absorb(Pending(batch))

    assert (fold.size > 0) == bool(fold)


def test_run_that_is_put_often_waits_once() -> None:
    fold = Pending()
    for n in range(1000):
        fold.absorb(Pending(Batch(runs=[_run("r1", doc=b"x" * 1000, updated_at=float(n))])))

    assert 1000 + ROW_BYTES <= fold.size <= 2 * (1000 + ROW_BYTES)
    assert repr(fold) == f"<Pending 1 runs, 0 events, {fold.size} bytes>"


def test_nothing_waits_in_an_empty_fold() -> None:
    assert not Pending()
    assert not Pending(Batch())
    assert Pending(Batch(forget=["r1"]))
    assert Pending(Batch(cursors={"here": None}))


@pytest.mark.parametrize(
    "broken",
    [
        {"name": None},
        {"wms_id": 12},
        {"doc": None},
        {"updated_at": "yesterday"},
        {"state": "RUNNING"},
        {"path": 5},
    ],
)
def test_what_cannot_be_written_is_its_callers_error(broken: dict[str, Any]) -> None:
    """It must not wait among the others, where it would keep them from being written for ever."""
    with pytest.raises((AttributeError, TypeError, ValueError)):
        Pending(Batch(runs=[_run("r1", **broken)]))


def test_texts_of_all_kinds_are_written_and_cursors_come_back_as_they_were() -> None:
    odd = "\udce9 \x00 \U0001f600"
    batch = Batch(
        runs=[_run("r1", name=odd, path=odd, wms_id=odd, token=odd, backend=odd)],
        cursors={"here": odd},
        run_cursors={("here", "r1"): odd},
    )
    with closing(_database()) as connection:
        Pending(batch).write(connection)
        content = _content(connection)

    assert content["runs"][0][-2] == "\\udce9 \x00 \U0001f600"
    assert content["cursors"][0][1].decode("utf-8", "surrogatepass") == odd
    assert content["run_cursors"][0][2].decode("utf-8", "surrogatepass") == odd
