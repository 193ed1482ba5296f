"""A run's engine without Slurm: whatever it is told, its log gives the same engine again."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.models import WmsStates
from bpsd.testing.observer import document, shell_job
from bpsd.workflow import RunAttributes
from bpsd_adapters import runlog
from bpsd_adapters.runlog import RunLog
from bpsd_adapters.slurm.chunks import Sight
from bpsd_adapters.slurm.engine import Engine
from bpsd_adapters.slurm.handover import parents_first
from bpsd_adapters.slurm.layout import Meta, RunFolder
from bpsd_adapters.slurm.looks import by_run
from bpsd_adapters.slurm.options import Defaults
from bpsd_adapters.slurm.parsing import ExitRecord, QueueRow

TOKEN = "t" * 20


@contextlib.contextmanager
def run_of(*jobs: dict[str, Any], **fields: Any) -> Iterator[RunFolder]:
    path = Path(tempfile.mkdtemp(prefix="bpsd"))
    folder = RunFolder(path)
    folder.workflow.write_bytes(msgspec.json.encode(document(*jobs, **fields)))
    yield folder
    shutil.rmtree(path)


def opened(folder: RunFolder, *, hands_off: bool = False) -> Engine:
    meta = Meta(
        number=1,
        token=TOKEN,
        name="run",
        run=RunAttributes(),
        job_count=1,
        run_summary="",
        created=0.0,
        folder="/w",
        hands_off=hands_off,
    )
    fd = runlog.lock(folder.log)
    assert fd is not None
    return Engine(meta, folder, RunLog(folder.log, fd), Defaults())


def told(engine: Engine) -> tuple[Any, ...]:
    """What must survive a killed daemon."""
    chunks = {
        n: (c.job_id, {i: (j.ref, j.attempt, j.state if j.wms_id else None) for i, j in c.open.items()})
        for n, c in engine.chunks.items()
    }
    return (
        engine.attempt,
        engine.end,
        engine.held,
        engine.cancelled,
        bytes(engine._dag.state),
        list(engine._dag.starts),
        chunks,
    )


def row(engine: Engine, chunk: int, index: int, state: str, reason: str = "None", start: float = 1.0) -> QueueRow:
    job_id = engine.chunks[chunk].job_id or 0
    return QueueRow(job_id, (index,), job_id + index, f"bps-{TOKEN}-{chunk}", state, 5, start, reason)


def look(engine: Engine, now: float, rows: dict[tuple[int, int], QueueRow], codes: dict[tuple[int, int], int]) -> None:
    by_chunk: dict[int, dict[int, list[QueueRow]]] = {}
    for (chunk, index), one in rows.items():
        by_chunk.setdefault(chunk, {})[index] = [one]
    engine.see(Sight(now, now, by_chunk, records_of(engine, now, codes)), 100.0)


def records_of(engine: Engine, now: float, codes: dict[tuple[int, int], int]) -> dict[tuple[int, int], ExitRecord]:
    records = {}
    for (chunk, index), code in codes.items():
        ref = engine.chunks[chunk].open[index].ref
        records[chunk, index] = ExitRecord(ref.node, ref.attempt, 1, 0, code, now, now, "n1", "")
    return records


DIAMOND = (
    shell_job("a_1", "true", number_of_retries=1),
    shell_job("b_1", "true", parents=["a_1"]),
    shell_job("b_2", "true", parents=["a_1"], request_memory=10),
    shell_job("c_1", "true", parents=["b_1", "b_2"]),
)


ACTS = ("plan", "plan", "submit", "see", "see", "read", "withdraw", "cancel", "hold", "full", "kill")
LET_IT_END = 40
"""From this step on nothing is done but what brings a run to its end."""


def do(act: str, engine: Engine, now: float, data: st.DataObject, *, ending: bool) -> None:
    """What a driver does with an engine."""
    if act == "plan":
        for plan in engine.plan(10, now):
            engine.in_doubt(plan.chunk, now)
    elif act == "submit":
        for chunk in engine.doubtful():
            engine.submitted(chunk.number, 100 + 10 * chunk.number, now)
    elif act == "withdraw":
        for chunk in engine.doubtful():
            engine.withdraw(chunk.number, now, "refused")
    elif act == "cancel" and data.draw(st.integers(0, 5)) == 0:
        engine.cancel(now)
    elif act == "hold":
        engine.hold(now, held=not engine.held)
    elif act == "read":
        places = engine.record_paths().values()
        codes = {place: data.draw(st.sampled_from([0, 1])) for place in places if data.draw(st.booleans())}
        engine.take_records(records_of(engine, now, codes), now)
    elif act == "full":
        with patch.object(RunLog, "append", _no_room), contextlib.suppress(OSError):
            do(data.draw(st.sampled_from(ACTS)), engine, now, data, ending=ending)
    elif act == "see":
        look_at_some(engine, now, data, ending=ending)


def look_at_some(engine: Engine, now: float, data: st.DataObject, *, ending: bool) -> None:
    """Some jobs are alive and some have ended; at last all have."""
    rows, codes = {}, {}
    for place in [(n, i) for n, c in engine.chunks.items() if c.job_id is not None for i in c.open]:
        if ending or data.draw(st.booleans()):
            codes[place] = data.draw(st.sampled_from([0, 0, 0, 1]))
        else:
            rows[place] = row(engine, *place, data.draw(st.sampled_from(["PENDING", "RUNNING"])))
    look(engine, now + 0.5, rows, codes)


@given(st.data())
def test_a_killed_daemon_is_where_it_was(data: st.DataObject) -> None:
    """After any events the log makes the same engine again, and a run always comes to its end."""
    with run_of(*DIAMOND, final=shell_job("final_1", "true")) as folder:
        engine = opened(folder)
        engine.begin(1, 1.0)
        for step in range(LET_IT_END + 40):
            ending = step >= LET_IT_END
            act = ("plan", "submit", "see")[step % 3] if ending else data.draw(st.sampled_from(ACTS))
            if act == "kill":
                engine.write(step + 2.0)
                before = told(engine)
                engine.close()
                engine = opened(folder)
                assert engine.skipped_events == 0
                assert told(engine) == before
            if ending:
                engine.hold(step + 2.0, held=False)
            do(act, engine, step + 2.0, data, ending=ending)
        assert engine.end is not None
        assert engine.in_queue == 0
        engine.close()


def test_a_requeue_is_another_attempt_and_the_claim_stays() -> None:
    with run_of(shell_job("a_1", "true")) as folder:
        engine = opened(folder)
        engine.begin(1, 1.0)
        engine.plan(10, 1.0)
        engine.submitted(1, 50, 1.0)
        for now, state, start in (
            (2.0, "RUNNING", 2.0),
            (3.0, "PENDING", 2.0),
            (4.0, "RUNNING", 4.0),
            (5.0, "RUNNING", 5.0),
        ):
            look(engine, now, {(1, 0): row(engine, 1, 0, state, start=start)}, {})
        job = engine.chunks[1].open[0]
        assert (job.attempt, job.ref.attempt) == (3, 1)
        look(engine, 6.0, {}, {(1, 0): 0})
        assert engine.end is not None
        assert engine.end.state == WmsStates.SUCCEEDED
        assert list(engine._dag.starts) == [3]
        engine.close()


def test_what_no_source_knows_is_asked_for_and_not_ended() -> None:
    with run_of(shell_job("a_1", "true")) as folder:
        engine = opened(folder)
        engine.begin(1, 1.0)
        engine.plan(10, 1.0)
        engine.submitted(1, 50, 1.0)
        sight = Sight(2.0, 2.0, {}, {})
        assert engine.missing(sight) == {50}
        assert engine.see(sight, 100.0) == []
        assert engine.see(Sight(90.0, 90.0, {}, {}), float("inf")) == []
        assert engine.see(Sight(103.0, 103.0, {}, {}), 100.0) == [(1, [0])]
        assert engine.in_queue == 1
        engine.close()


def test_what_sbatch_refuses_keeps_no_other_job_waiting() -> None:
    """Nor is it offered with each look: until somebody releases it, or some time has passed."""
    with run_of(*(shell_job(f"big_{n}", "true", label="big") for n in range(3)), shell_job("a_1", "true")) as folder:
        engine = opened(folder)
        engine.begin(1, 1.0)
        (plan,) = engine.plan(3, 1.0)
        engine.withdraw(plan.chunk, 1.0, "sbatch refuses it: too much", unused=True, refused_s=100.0)
        assert [p.label for p in engine.plan(3, 2.0)] == ["a"]
        assert not engine.has_ready
        engine.note("", 2.0)
        assert engine._note == "3 jobs not submitted: sbatch refuses it: too much"
        assert engine.offer_again(["big_1"]) == 1
        assert [p.size for p in engine.plan(3, 3.0)] == [1]
        engine.close()
        engine = opened(folder)
        assert engine.has_ready, "who takes up the run offers the others once"
        engine.close()


def test_a_job_that_slurm_has_alive_is_not_looked_for_on_the_disk() -> None:
    with run_of(*DIAMOND[:1], *(shell_job(f"x_{n}", "true") for n in range(2))) as folder:
        engine = opened(folder)
        engine.begin(1, 1.0)
        for plan in engine.plan(10, 1.0):
            engine.submitted(plan.chunk, 50 + plan.chunk, 1.0)
        rows = {(2, 0): row(engine, 2, 0, "RUNNING"), (2, 1): row(engine, 2, 1, "COMPLETING")}
        sight = Sight(2.0, 2.0, {2: {index: [one] for (_, index), one in rows.items()}})
        assert set(engine.record_paths(sight)) == {f"{TOKEN}/exits/1/0", f"{TOKEN}/exits/2/1"}
        assert engine.record_paths(Sight(0.5, 2.0, {})) == {}, "it was submitted after the queue was asked"
        engine.close()


def test_a_cancelled_array_may_be_a_row_without_indices() -> None:
    """As 22.05 shows one of which all that waited was cancelled: what has a row of its own is told by that."""
    with run_of(*(shell_job(f"x_{n}", "true") for n in range(2))) as folder:
        engine = opened(folder)
        engine.begin(1, 1.0)
        engine.plan(10, 1.0)
        engine.submitted(1, 50, 1.0)
        whole = QueueRow(50, (), 50, f"bps-{TOKEN}-1", "CANCELLED", 5, None, "BeginTime")
        other = whole._replace(array_id=49, job_id=49)
        for row_of_all, left in ((other, 2), (whole, 1)):
            rows = by_run([row_of_all, row(engine, 1, 0, "RUNNING")] if row_of_all is whole else [row_of_all])
            engine.see(Sight(2.0, 2.0, rows[TOKEN]), 100.0)
            assert engine.in_queue == left
        assert WmsStates(engine._dag.state[1]) is WmsStates.DELETED
        engine.close()


def test_what_could_not_be_written_yet_comes_before_what_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or who reads the log would take back the new submission of a job in place of the old one."""
    with run_of(shell_job("a_1", "true")) as folder:
        engine = opened(folder, hands_off=True)
        engine.begin(1, 1.0)
        engine.hand_over(1.0)
        with monkeypatch.context() as full:
            full.setattr(RunLog, "append", _no_room)
            with pytest.raises(OSError, match="no room"):
                engine.withdraw(1, 2.0, "not in Slurm any more")
        engine.hand_over(3.0)
        assert set(engine.chunks) == {2}
        before = told(engine)
        engine.close()
        engine = opened(folder, hands_off=True)
        assert (told(engine), engine.skipped_events) == (before, 0)
        engine.close()


def _no_room(*_: Any, **__: Any) -> None:
    raise OSError("no room")


def test_a_whole_run_is_handed_over_parents_first() -> None:
    with run_of(*DIAMOND[1:3], DIAMOND[0] | {"number_of_retries": 0}, DIAMOND[3]) as folder:
        engine = opened(folder, hands_off=True)
        engine.begin(1, 1.0)
        _, lines = engine.hand_over(1.0)
        seen: set[str] = set()
        for chunk, _, parents, *_ in lines:
            assert set(parents.split()) <= seen
            seen.add(chunk)
        assert sorted(len(line[2].split()) for line in lines) == [0, 1, 1, 2]
        before = told(engine)
        engine.close()
        engine = opened(folder, hands_off=True)
        assert told(engine) == before
        assert engine.hand_over(2.0)[1] == lines
        engine.close()
    assert parents_first({2: [1], 1: [0], 0: []}) == [0, 1, 2]
