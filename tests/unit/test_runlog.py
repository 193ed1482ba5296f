"""The event log of a run: cut anywhere, garbled anywhere, it tells less, never something else."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd_adapters.runlog import (
    MAX_LINE_BYTES,
    Damage,
    Piece,
    Position,
    Repair,
    RunLog,
    events,
    frame,
    is_held,
    lock,
    parse,
    read_from,
)
from tests.figures import figure

FLIPS_PER_BYTE = figure("RUNLOG_FLIPS_PER_BYTE", test=1, soak=8)

EVENTS: list[dict[str, Any]] = [
    {"e": "begin", "attempt": 1},
    {"e": "intent", "job": "isr_1", "attempt": 1},
    {"e": "ended", "job": "isr_1", "exit": 0, "note": "ein Ende\nmit Zeilen"},
    {"e": "intent", "job": "isr_2", "attempt": 1},
    {"e": "ended", "job": "isr_2", "exit": 1},
    {"e": "end", "state": "FAILED"},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.log"


def opened(path: Path) -> RunLog:
    fd = lock(path)
    assert fd is not None
    return RunLog(path, fd)


def written(path: Path, what: list[dict[str, Any]] = EVENTS) -> bytes:
    log = opened(path)
    log.append(what, durable=True)
    log.close()
    return path.read_bytes()


def followed(path: Path, window: int = 1 << 20) -> tuple[list[Any], list[Damage]]:
    seen: list[Any] = []
    damage: list[Damage] = []
    position: Position | None = None
    while True:
        piece: Piece[Any] = read_from(path, position, window)
        seen += piece.events
        damage += piece.damage
        position = piece.position
        if not piece.more:
            return seen, damage


def is_subsequence(short: list[Any], whole: list[Any]) -> bool:
    rest = iter(whole)
    return all(any(one == other for other in rest) for one in short)


# -- every cut, every flip ---------------------------------------------------------------------------------------------


def test_a_log_cut_at_every_byte_is_a_shorter_history(path: Path) -> None:
    whole = written(path)
    ends = parse(whole)[1]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        before = [e for e, end in zip(EVENTS, ends, strict=True) if end <= length]

        assert followed(path) == (before, [])
        log = opened(path)
        assert log.repair.cut_bytes == length - max((e for e in ends if e <= length), default=0)
        log.append([{"e": "more"}], durable=False)
        log.close()
        assert followed(path) == ([*before, {"e": "more"}], [])


def test_every_flipped_byte_loses_a_line_and_says_so(path: Path) -> None:
    whole = written(path)
    for at in range(len(whole)):
        for bit in range(FLIPS_PER_BYTE):
            garbled = bytearray(whole)
            garbled[at] ^= 1 << ((at + bit) % 8)
            path.write_bytes(garbled)

            seen, damage = followed(path)
            assert len(EVENTS) - 2 <= len(seen) < len(EVENTS)  # a flipped newline loses the line behind it too
            assert is_subsequence(seen, EVENTS)
            tail_is_bad = seen == EVENTS[: len(seen)]
            assert damage or tail_is_bad

            log = opened(path)
            assert log.repair != Repair()
            assert bool(log.repair.aside) == bool(damage)
            log.append([{"e": "more"}], durable=True)
            log.close()
            assert followed(path) == ([*seen, {"e": "more"}], [])
            if damage:
                assert (path.parent / log.repair.aside).read_bytes() == garbled
                (path.parent / log.repair.aside).unlink()


@given(garbage=st.binary(max_size=300), cut=st.integers(0, 400), window=st.integers(1, 200))
def test_garbage_anywhere_never_yields_an_event(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes, cut: int, window: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "run.log"
    whole = written(path)
    path.write_bytes(whole[:cut] + garbage + whole[cut:])

    seen, _ = followed(path, window)
    assert is_subsequence(seen, EVENTS)
    assert list(events(path)) == seen
    log = opened(path)
    log.close()
    assert followed(path, window) == (seen, [])


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(-9, 9)), max_size=20),
    st.integers(1, 100),
)
def test_what_was_appended_is_read_whatever_the_window(
    tmp_path_factory: pytest.TempPathFactory, what: list[dict[str, Any]], window: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "run.log"
    written(path, what)

    assert followed(path, window) == (what, [])


# -- following ---------------------------------------------------------------------------------------------------------


def test_half_a_line_is_left_for_later(path: Path) -> None:
    whole = written(path)
    path.write_bytes(whole[:-1])
    first: Piece[Any] = read_from(path, None, 1 << 20)
    assert len(first.events) == len(EVENTS) - 1

    path.write_bytes(whole)
    second: Piece[Any] = read_from(path, first.position, 1 << 20)
    assert second.events == EVENTS[-1:]
    assert not second.restarted
    assert read_from(path, second.position, 1 << 20).events == []


def test_bad_lines_at_the_end_are_left_for_the_writer(path: Path) -> None:
    whole = written(path)
    path.write_bytes(whole + b"half\nof a line\n")
    first: Piece[Any] = read_from(path, None, 1 << 20)
    assert first.damage == []
    assert first.position.offset == len(whole)

    log = opened(path)
    assert str(log.repair) == "15 bytes of a torn tail cut off"
    log.append([{"e": "more"}], durable=False)
    log.close()
    assert read_from(path, first.position, 1 << 20).events == [{"e": "more"}]


def test_damage_is_reported_with_its_place(path: Path) -> None:
    whole = bytearray(written(path))
    ends = parse(bytes(whole))[1]
    whole[ends[1] + 20] ^= 1
    path.write_bytes(whole)

    _, damage = followed(path)
    assert damage == [Damage(ends[1], ends[2] - ends[1])]
    assert str(damage[0]) == f"{ends[2] - ends[1]} bytes from byte {ends[1]} are unreadable"
    log = opened(path)
    log.close()
    assert str(log.repair) == f"{damage[0]}; set aside as run.log.damaged-at-{ends[1]}"


def test_a_second_damage_at_the_same_place_has_a_name_too(path: Path) -> None:
    for expected in ("run.log.damaged-at-0", "run.log.damaged-at-0.1"):
        path.write_bytes(b"garbage\n" + frame(b"{}"))
        log = opened(path)
        log.close()
        assert log.repair.aside == expected


@pytest.mark.parametrize("how", ["cut", "replaced", "rewritten", "removed and made again"])
def test_another_file_is_read_from_its_beginning(path: Path, how: str) -> None:
    written(path)
    position = read_from(path, None, 1 << 20).position
    other = frame(b'{"e":"other"}') * 50
    if how == "cut":
        path.write_bytes(frame(b'{"e":"other"}'))
    elif how == "replaced":
        (path.parent / "new").write_bytes(other)
        (path.parent / "new").replace(path)
    elif how == "rewritten":
        path.write_bytes(other)
    else:
        path.unlink()
        path.write_bytes(other)

    piece: Piece[Any] = read_from(path, position, 1 << 20)
    assert piece.restarted
    assert set(map(str, piece.events)) == {"{'e': 'other'}"}


def test_an_event_of_a_newer_version_is_reported_and_kept(path: Path) -> None:
    written(path, [{"e": 1}, {"e": "new"}, {"e": 2}])
    piece: Piece[Any] = read_from(path, None, 1 << 20, msgspec.json.Decoder(dict[str, int]).decode)

    assert piece.events == [{"e": 1}, {"e": 2}]
    assert "not understood" in piece.damage[0].what
    log = opened(path)
    log.close()
    assert log.repair == Repair()


def test_a_log_that_is_not_there(path: Path) -> None:
    assert list(events(path)) == []
    assert not is_held(path)
    with pytest.raises(FileNotFoundError):
        read_from(path, None, 100)


def test_longer_than_any_line(path: Path) -> None:
    long = {"e": "x" * (MAX_LINE_BYTES - 100)}
    written(path, [EVENTS[0], long, EVENTS[1]])
    assert followed(path, 10) == ([EVENTS[0], long, EVENTS[1]], [])

    log = opened(path)
    with pytest.raises(ValueError, match="does not fit a line"):
        log.append([{"e": "x" * MAX_LINE_BYTES}], durable=False)
    log.close()
    path.write_bytes(b"\0" * (3 * MAX_LINE_BYTES) + b"\n" + frame(b'{"e":1}'))
    seen, damage = followed(path, 10)
    assert seen == [{"e": 1}]
    assert sum(d.length for d in damage) == 3 * MAX_LINE_BYTES + 1
    log = opened(path)
    log.close()
    assert log.repair.aside
    assert followed(path) == ([{"e": 1}], [])


def test_a_long_torn_tail_is_cut(path: Path) -> None:
    whole = written(path)
    path.write_bytes(whole + b"\0" * (3 * MAX_LINE_BYTES))
    log = opened(path)
    log.close()

    assert log.repair == Repair(cut_bytes=3 * MAX_LINE_BYTES)
    assert path.read_bytes() == whole
    assert repr(log) == f"<RunLog {path}, {len(whole)} bytes>"


# -- holding -----------------------------------------------------------------------------------------------------------


def test_held_means_alive(path: Path) -> None:
    script = (
        "import sys; from bpsd_adapters.runlog import lock; assert lock(sys.argv[1]); print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        assert is_held(path)
        assert lock(path) is None
        holder.send_signal(signal.SIGKILL)
    assert not is_held(path)
    fd = lock(path)
    assert fd is not None
    os.close(fd)


def test_the_hold_goes_with_the_descriptor(path: Path) -> None:
    fd = lock(path)
    assert fd is not None
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(fd,)) as heir:
        os.close(fd)
        assert is_held(path)
        assert heir.stdin is not None
        heir.stdin.close()
    assert not is_held(path)


def test_setting_a_damaged_log_aside_never_lets_it_go(path: Path) -> None:
    path.write_bytes(b"garbage\n" + frame(b'{"e":1}'))
    log = opened(path)

    assert is_held(path)
    assert lock(path) is None
    log.close()
    assert not is_held(path)


def test_a_link_in_the_place_of_a_log_is_not_followed(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        lock(path)


# -- a disk that fills -------------------------------------------------------------------------------------------------


@contextmanager
def files_end_at(size_bytes: int) -> Iterator[None]:
    """Files of this process end there: the write fails (Python ignores the signal), and so would pytest's own word."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_the_log_as_it_was(path: Path) -> None:
    log = opened(path)
    count = 0

    def fill() -> None:
        nonlocal count
        while True:
            log.append([{"e": count, "pad": "x" * 100}], durable=True)
            count += 1

    with files_end_at(4096), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        fill()
    assert len(followed(path)[0]) == count
    assert path.read_bytes()[-1:] == b"\n"

    log.append([{"e": "after"}], durable=True)
    log.close()
    assert followed(path)[0][-1] == {"e": "after"}
    assert followed(path)[1] == []
