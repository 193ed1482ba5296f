"""Names of files, and numbers that are given once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.workflow import RunAttributes
from bpsd_adapters.files import safe_name, write_durably
from bpsd_adapters.local.layout import Meta, RunFolder, StateFolder


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("isr_123-4.r+x", "isr_123-4.r+x"),
        ("u/op/isr 1", "u%2Fop%2Fisr%201"),
        ("..", "%2E."),
        ("50%", "50%25"),
        ("é", "%C3%A9"),
    ],
)
def test_names_stay_readable(name: str, file: str) -> None:
    assert safe_name(name) == file


@given(st.lists(st.text(max_size=300), min_size=2, max_size=6, unique=True))
def test_no_two_jobs_have_the_same_file(names: list[str]) -> None:
    files = [f"{safe_name(name)}.{attempt}.out" for name in names for attempt in (1, 11)]

    assert len(set(files)) == len(files)
    assert all(0 < len(file) <= 255 and "/" not in file and file not in (".", "..") for file in files)


def test_long_names_that_differ_at_the_end_are_told_apart() -> None:
    one, two = safe_name("x" * 400 + "1"), safe_name("x" * 400 + "2")

    assert one != two
    assert len(one) == len(two) == 200
    assert one.startswith("x" * 100)


@pytest.mark.parametrize("job", ["isr_1", "u/op/isr 1", "x" * 400, ".hidden", "n\n"])
def test_both_files_of_a_job_are_the_files_of_its_streams(tmp_path: Path, job: str) -> None:
    folder = RunFolder(tmp_path)

    assert folder.outputs(job, 2) == (str(folder.output(job, 2, "out")), str(folder.output(job, 2, "err")))
    assert Path(folder.outputs(job, 2)[0]).parent == folder.out


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"one")
    with pytest.raises(TypeError):
        write_durably(path, "not bytes")  # type: ignore[arg-type]

    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path)
    folder.make()
    return folder


def number(state: StateFolder, token: str) -> int:
    with state.locked():
        given = state.next_number()
        state.give_number(state.run(token), str(given))
        return given


def test_numbers_lead_to_runs(state: StateFolder) -> None:
    assert [number(state, "a"), number(state, "b")] == [1, 2]
    assert state.numbers() == [1, 2]
    found = state.numbered("2")
    assert found is not None
    assert found.path == state.runs / "b"
    assert found.token == "b"
    assert [state.numbered(text) for text in ("3", "x", "", "-1", "../runs/a", "²")] == [None] * 6
    state.give_number(RunFolder(Path("/other")), "2")
    again = state.numbered("2")
    assert again is not None
    assert again.path == state.runs / "b"


def test_numbers_are_not_used_again(state: StateFolder) -> None:
    number(state, "a")
    number(state, "b")
    (state.ids / "2").unlink()

    assert number(state, "c") == 3


@pytest.mark.parametrize("garbage", ["", "x", "\0\0\0"])
def test_a_garbled_counter_goes_on_behind_the_last_number(state: StateFolder, garbage: str) -> None:
    number(state, "a")
    number(state, "b")
    (state.path / "counter").write_text(garbage)

    assert number(state, "c") == 3


def test_what_a_run_is_comes_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    meta = Meta(
        wms_id="1",
        token="t",
        name="n",
        run=RunAttributes(operator="op"),
        job_count=2,
        run_summary="a:2",
        created=1.5,
    )
    folder.write_meta(meta)

    assert folder.meta() == meta
    assert repr(folder) == f"<RunFolder {tmp_path}>"
    assert folder.output("a b", 3, "err") == tmp_path / "out" / "a%20b.3.err"


def test_the_same_file_may_be_written_by_several_at_once(tmp_path: Path) -> None:
    wanted = [bytes([number]) * 4096 for number in range(8)]
    with ThreadPoolExecutor(len(wanted)) as pool:
        for _ in range(5):
            list(pool.map(lambda data: write_durably(tmp_path / "held", data), wanted))

            assert (tmp_path / "held").read_bytes() in wanted

    assert [path.name for path in tmp_path.iterdir()] == ["held"]
