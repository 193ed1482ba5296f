"""The ledger: never more given out than there is, everybody gets a turn, the dead hold nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd_adapters.local import ledger as ledgers
from bpsd_adapters.local import ledgerfile, processes
from bpsd_adapters.local.ledger import (
    PATIENCE_S,
    WAITER_LOST_S,
    Book,
    Capacity,
    Claim,
    Ledger,
    Owner,
    Want,
    Wish,
    prune,
    settle,
)
from bpsd_adapters.local.ledgerfile import default_path, ledger_in
from bpsd_adapters.local.processes import GONE, Process

A, B, C = Process(1, 10), Process(2, 20), Process(3, 30)
TWO = Capacity(2, 1000)
ONE_CORE = Wish(1, 0)
EMPTY = Book("boot")


# -- decisions ---------------------------------------------------------------------------------------------------------


def test_gives_what_there_is_and_no_more() -> None:
    settled = settle(EMPTY, A, [], [ONE_CORE, ONE_CORE, ONE_CORE], TWO, 0.0)

    assert settled.granted == (True, True, False)
    assert settled.book.owners == (Owner(1, 10, (Claim(1, 0), Claim(1, 0)), Want(1, 0, 0.0, 0.0)),)


def test_memory_counts_like_cores() -> None:
    assert settle(EMPTY, A, [], [Wish(1, 800), Wish(1, 300), Wish(1, 200)], TWO, 0.0).granted == (True, False, True)


def test_two_drivers_take_turns() -> None:
    """Each end of a job gives the core to who has waited longer, though the other asks first."""
    book = settle(EMPTY, A, [], [ONE_CORE] * 3, TWO, 0.0).book
    book = settle(book, B, [], [ONE_CORE], TWO, 1.0).book
    after_one_end = settle(book, A, [Claim(1, 0)], [ONE_CORE], TWO, 2.0)
    assert after_one_end.granted == (True,)  # A wanted a third since 0.0

    book = settle(after_one_end.book, A, [Claim(1, 0)] * 2, [ONE_CORE], TWO, 3.0).book
    after_another = settle(book, A, [Claim(1, 0)], [ONE_CORE], TWO, 4.0)
    assert after_another.granted == (False,)  # now B has waited longer
    assert after_another.wake == (B,)
    assert settle(after_another.book, B, [], [ONE_CORE], TWO, 4.1).granted == (True,)


def test_small_jobs_overtake_a_big_one_for_a_while() -> None:
    book = settle(EMPTY, A, [], [ONE_CORE], TWO, 0.0).book
    book = settle(book, B, [], [Wish(2, 0)], TWO, 1.0).book
    young = settle(book, C, [], [ONE_CORE], TWO, 2.0)
    assert young.granted == (True,)

    book = settle(book, B, [], [Wish(2, 0)], TWO, 1.5 + PATIENCE_S).book
    assert settle(book, C, [], [ONE_CORE], TWO, 2.0 + PATIENCE_S).granted == (False,)
    book = settle(book, A, [], [], TWO, 2.0 + PATIENCE_S).book
    assert settle(book, B, [], [Wish(2, 0)], TWO, 2.0 + PATIENCE_S).granted == (True,)


def test_a_driver_does_not_starve_its_own_big_job() -> None:
    book = settle(EMPTY, A, [Claim(1, 0)], [Wish(2, 0)], TWO, 0.0).book
    both = [Wish(2, 0), ONE_CORE]

    assert settle(book, A, [Claim(1, 0)], both, TWO, PATIENCE_S - 1).granted == (False, True)
    assert settle(book, A, [Claim(1, 0)], both, TWO, PATIENCE_S + 1).granted == (False, False)


def test_who_does_not_look_any_more_holds_nobody_back() -> None:
    book = settle(EMPTY, A, [], [ONE_CORE, Wish(2, 0)], TWO, 0.0).book

    assert settle(book, B, [], [ONE_CORE], TWO, PATIENCE_S + WAITER_LOST_S).granted == (True,)


def test_what_is_not_named_again_is_free() -> None:
    book = settle(EMPTY, A, [Claim(2, 0)], [], TWO, 0.0).book

    assert settle(book, A, [], [], TWO, 1.0).book == EMPTY


def test_of_a_dead_driver_living_jobs_stay() -> None:
    book = Book("boot", (Owner(1, 10, (Claim(1, 5, 7, 70), Claim(1, 5, 8, 80), Claim(1, 5)), Want(1, 1, 0, 0)),))
    assert prune(book, lambda p: p == Process(7, 70)) == Book("boot", (Owner(1, 10, (Claim(1, 5, 7, 70),)),))
    assert prune(book, lambda p: p == A) == book
    assert prune(book, lambda _: False) == EMPTY


def test_a_book_that_was_begun_again_gives_nothing_until_all_drivers_have_entered_their_jobs() -> None:
    book = Book("boot", (), (A, B))
    early = settle(book, C, [], [ONE_CORE], TWO, 0.0)
    assert early.granted == (False,)

    book = settle(early.book, A, [Claim(1, 0)], [ONE_CORE], TWO, 1.0).book
    assert (book.missing, [len(o.claims) for o in book.owners if o.process == A]) == ((B,), [1])
    last = settle(book, B, [], [], TWO, 2.0)
    assert (last.book.missing, last.wake) == ((), (C, A))

    assert prune(book, lambda p: p != B).missing == ()  # a driver that ended has nothing to enter


@dataclass
class _Driver:
    process: Process
    todo: list[Wish]
    running: list[Wish] = field(default_factory=list)


@given(
    loads=st.lists(
        st.lists(st.builds(Wish, st.integers(1, 2), st.integers(0, 1000)), min_size=1, max_size=6),
        min_size=1,
        max_size=3,
    ),
    ends=st.lists(st.tuples(st.integers(0, 9), st.floats(0.1, 2 * PATIENCE_S)), min_size=18, max_size=18),
)
def test_whatever_ends_when_nothing_is_oversubscribed_and_all_jobs_run(
    loads: list[list[Wish]], ends: list[tuple[int, float]]
) -> None:
    book, now = EMPTY, 0.0
    drivers = [_Driver(Process(i + 1, 1), list(load)) for i, load in enumerate(loads)]
    for which, pause in ends:
        for driver in drivers:
            book = _turn(book, driver, now)
        used = [claim for owner in book.owners for claim in owner.claims]
        assert sum(c.cores for c in used) <= TWO.cores
        assert sum(c.memory_mb for c in used) <= TWO.memory_mb
        busy = [d for d in drivers if d.running]
        assert busy or not any(d.todo for d in drivers), "the machine stands still"
        now += pause
        if busy:
            driver = busy[which % len(busy)]
            driver.running.pop()
            book = _turn(book, driver, now)
    assert not any(d.todo for d in drivers)


def _turn(book: Book, driver: _Driver, now: float) -> Book:
    settled = settle(book, driver.process, [Claim(*w) for w in driver.running], driver.todo, TWO, now)
    for wish, yes in zip(list(driver.todo), settled.granted, strict=True):
        if yes:
            driver.todo.remove(wish)
            driver.running.append(wish)
    return settled.book


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@contextmanager
def sleeper() -> Iterator[Process]:
    """Another process, which could be a driver or a job."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield processes.of_pid(process.pid)
        process.kill()


@pytest.fixture
def me() -> Iterator[Process]:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)  # ledgers send it to those who wait
    yield processes.of_pid(os.getpid())
    signal.signal(signal.SIGUSR1, before)


def test_drivers_share_a_file(path: Path, me: Process) -> None:
    with sleeper() as other:
        assert Ledger(path, TWO, other).settle([], [ONE_CORE]) == (True,)
        mine = Ledger(path, TWO, me)
        assert mine.settle([], [ONE_CORE, ONE_CORE]) == (True, False)
        assert {o.pid for o in mine.read().owners} == {me.pid, other.pid}
    assert mine.settle([Claim(1, 0)], [ONE_CORE]) == (True,)  # the other is dead
    mine.close()
    assert Ledger(path, TWO, me).read().owners == ()
    assert path.stat().st_mode & 0o777 == 0o600


def test_jobs_of_a_dead_driver_are_counted_while_they_live(path: Path, me: Process) -> None:
    mine = Ledger(path, TWO, me)
    with sleeper() as job:
        with sleeper() as driver:
            Ledger(path, TWO, driver).settle([Claim(1, 0, *job)])
        assert mine.settle([], [ONE_CORE, ONE_CORE]) == (True, False)
    deadline = time.monotonic() + 10
    while mine.settle([Claim(1, 0)], [ONE_CORE]) != (True,):
        assert time.monotonic() < deadline, "the dead job is still counted"


def test_who_waits_is_woken(path: Path, me: Process) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        with sleeper() as other:
            others = Ledger(path, Capacity(1, 0), other)
            others.settle([Claim(1, 0)])
            assert Ledger(path, Capacity(1, 0), me).settle([], [ONE_CORE]) == (False,)
            others.settle([])
            assert signal.sigtimedwait({signal.SIGUSR1}, 10) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def test_a_book_as_one_left_it_need_not_be_asked(path: Path, me: Process) -> None:
    """Until somebody else writes in it, and again when what he wrote is no wish that waits."""
    mine = Ledger(path, TWO, me)
    assert not mine.nobody_waits()
    with sleeper() as other:
        others = Ledger(path, TWO, other)
        mine.settle([Claim(1, 0)], [ONE_CORE, ONE_CORE])  # what it refused to us keeps nobody else waiting
        assert mine.nobody_waits()
        others.settle([], [ONE_CORE])
        assert not mine.nobody_waits()
        mine.settle([Claim(1, 0)] * 2)
        assert not mine.nobody_waits()  # the other still waits for one
        others.settle([])
        mine.settle([Claim(1, 0)] * 2)
        assert mine.nobody_waits()
    mine.close()
    assert not mine.nobody_waits()


@pytest.mark.parametrize("garbage", [b"", b"nonsense", b"00000000 000002 {}\n"])
def test_a_garbled_book_is_begun_anew(path: Path, me: Process, garbage: bytes) -> None:
    path.write_bytes(garbage)

    assert Ledger(path, TWO, me).settle([], [ONE_CORE]) == (True,)


def test_the_book_of_another_boot_is_empty(path: Path, me: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger(path, TWO, me).settle([Claim(2, 0)])
    monkeypatch.setattr(processes, "boot_id", lambda: "another")
    with sleeper() as other:
        assert Ledger(path, TWO, other).settle([], [Wish(2, 0)]) == (True,)


def test_a_removed_file_is_made_again_with_what_one_has(path: Path, me: Process) -> None:
    mine = Ledger(path, TWO, me)
    mine.settle([Claim(1, 0)])
    path.unlink()
    mine.settle([Claim(1, 0)])

    with sleeper() as other:
        assert Ledger(path, TWO, other).settle([], [Wish(2, 0)]) == (False,)


@contextmanager
def driver(path: Path) -> Iterator[Process]:
    """A process that looks like a driver with this ledger."""
    program = """
import signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print(flush=True)
time.sleep(300)
"""
    folder = path.parent / "run"
    folder.mkdir(exist_ok=True)
    words = ["bpsd_adapters.local.driver", str(folder), f'{{"attempt":1,"ledger":"{path}"}}']
    with (
        (folder / "driver.err").open("wb") as err,
        subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=err) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        yield processes.of_pid(process.pid)
        process.kill()


@pytest.mark.parametrize("damage", ["removed", "damaged", "huge"])
def test_a_lost_ledger_gives_no_core_twice(path: Path, me: Process, damage: str) -> None:
    """The driver with the jobs may be stopped: then nobody gets its cores, and the fault is named."""
    with driver(path) as busy, driver(path.with_name("another")):
        theirs = Ledger(path, TWO, busy)
        theirs.settle([Claim(2, 0)])
        if damage == "removed":
            path.unlink()
        elif damage == "damaged":
            path.write_bytes(b"nonsense")
        else:
            os.truncate(path, ledgers.BOOK_MAX_BYTES + 1)
        mine = Ledger(path, TWO, me)
        fault = mine.fault()
        assert ("is damaged" in fault) is (damage != "removed")

        assert mine.settle([], [ONE_CORE]) == (False,)
        assert f"these have not (they may be stopped): {busy.pid}" in mine.fault()
        assert theirs.was_replaced() is (damage == "removed")

        theirs.settle([Claim(2, 0)])
        assert not theirs.was_replaced()
        assert mine.fault() == ""
        assert mine.settle([], [ONE_CORE]) == (False,)
        theirs.settle([])
        assert mine.settle([], [ONE_CORE]) == (True,)


def test_what_somebody_else_put_there_is_refused(path: Path, tmp_path: Path, me: Process) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        Ledger(path, TWO, me).settle([])
    path.unlink()
    path.hardlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match=r"not a file of user \d+ alone .* setting 'ledger'"):
        Ledger(path, TWO, me).settle([])
    assert "alone" in Ledger(path, TWO, me).fault()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PermissionError, match=r"not a file of user \d+ alone"):
        Ledger(path, TWO, me).settle([])
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_who_holds_the_lock_keeps_nobody_waiting_for_ever(
    path: Path, me: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "LOCK_WAIT_S", 0.05)
    with Ledger(path, TWO, me)._held():  # a stopped driver
        assert "another process has held it for 0.05 s" in Ledger(path, TWO, me).fault()
        with pytest.raises(TimeoutError):
            Ledger(path, TWO, me).settle([], [ONE_CORE])
    assert Ledger(path, TWO, me).settle([], [ONE_CORE]) == (True,)


def test_looking_for_a_fault_leaves_no_file_open(path: Path, me: Process) -> None:
    mine = Ledger(path, TWO, me)
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(3):
        assert mine.fault() == ""
    assert len([*Path("/proc/self/fd").iterdir()]) == before


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ledgerfile, "RUNS_FOLDER", tmp_path / "lib")
    monkeypatch.setattr(ledgerfile, "EARLIER_FOLDER", tmp_path / "shm")
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    (tmp_path / "shm").mkdir()
    return tmp_path


def test_each_user_has_one_where_nobody_else_can_write(home: Path, me: Process) -> None:
    path = default_path(Path("/nowhere"))
    assert path == ledger_in(home / ".local/state/bpsd")
    assert Ledger(path, TWO, me).settle([], [ONE_CORE]) == (True,)
    assert path.parent.stat().st_mode & 0o777 == 0o700

    path.parent.chmod(0o777)
    with pytest.raises(PermissionError, match=r"folder must be a directory of user \d+ that nobody else can write to"):
        Ledger(path, TWO, me).settle([])

    own = home / "lib" / str(os.getuid())  # jobs of a system's daemon count too
    own.mkdir(parents=True, mode=0o700)
    assert default_path(Path("/nowhere")) == ledger_in(own)


def test_without_a_home_it_is_in_the_state_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.setattr(os, "getuid", lambda: 41001)

    assert default_path(home / "state") == ledger_in(home / "state")


def test_ledgers_of_other_boots_are_removed_when_they_are_old(home: Path, me: Process) -> None:
    path = default_path(home)
    path.parent.mkdir(parents=True, mode=0o700)
    old, recent = path.with_name("old"), path.with_name("recent")
    old.touch()
    recent.touch()
    os.utime(old, (0, time.time() - ledgerfile.KEEP_S - 60))

    Ledger(path, TWO, me).settle([])

    assert (old.exists(), recent.exists()) == (False, True)


def test_drivers_from_before_an_upgrade_and_later_ones_count_each_other(home: Path, me: Process) -> None:
    earlier = ledgerfile.earlier_path()
    with driver(earlier) as old:
        theirs = Ledger(earlier, TWO, old)
        theirs.settle([Claim(1, 0)])
        mine = Ledger(default_path(home), TWO, me)
        assert mine.settle([], [ONE_CORE, ONE_CORE]) == (True, False)
        assert theirs.settle([Claim(1, 0)], [ONE_CORE]) == (False,)
        theirs.settle([])
        assert mine.settle([Claim(1, 0)], [ONE_CORE]) == (True,)
        assert theirs.settle([], [ONE_CORE]) == (False,)
    assert mine.settle([Claim(1, 0)], [ONE_CORE]) == (True,)
    assert not earlier.exists()


def test_what_somebody_else_put_in_the_earlier_place_stops_nobody(home: Path, me: Process) -> None:
    """Anybody may write there: a file of another user, a FIFO, a link."""
    os.mkfifo(ledgerfile.earlier_path())

    assert Ledger(default_path(home), TWO, me).settle([], [ONE_CORE]) == (True,)


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_process_is_more_than_its_pid() -> None:
    with sleeper() as process:
        assert processes.is_alive(process)
        assert not processes.is_alive(Process(process.pid, process.start + 1))
        assert not processes.send(Process(process.pid, process.start + 1), signal.SIGKILL)
        assert processes.send(process, 0)
    assert not processes.is_alive(process)
    assert not processes.send(process, signal.SIGTERM)
    assert not processes.is_alive(GONE)
    assert not processes.send(GONE, signal.SIGTERM)


def test_a_zombie_is_not_alive() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    assert processes.of_pid(pid) == GONE
    assert processes.of_child(pid).start > 0
    assert not processes.group_is_alive(pid)
    os.waitpid(pid, 0)


KEPT = """
import os, subprocess, sys, time
from bpsd_adapters.local import processes
keeper = processes.fork_kept()
os.setsid()
script = "sleep 300 & env -i sleep 300 & (setsid env -i sleep 300 >/dev/null 2>&1 &); sleep 300"
job = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True)
print(*keeper, os.getpid(), *processes.of_pid(job.pid), flush=True)
time.sleep(300)
"""
"""A driver under its keeper, with a job of one session and a process that left it."""


@pytest.mark.parametrize("kills_keeper", [False, True])
def test_processes_of_a_killed_driver_are_found_by_descent(tmp_path: Path, kills_keeper: bool) -> None:
    """None of them is known by its environment: they have none."""
    with (
        (tmp_path / "job.out").open("wb") as out,
        subprocess.Popen([sys.executable, "-c", KEPT], stdout=subprocess.PIPE, stderr=out) as started,
    ):
        assert started.stdout is not None
        numbers = [int(word) for word in started.stdout.readline().split()]
        keeper, driver, job = Process(*numbers[:2]), numbers[2], Process(*numbers[3:])
        assert keeper.pid == started.pid
        trace = processes.Trace(keeper, (job,))
        find = partial(processes.left_over, trace)
        until(lambda: len(processes.descendants(keeper)) == 6)
        os.kill(driver, signal.SIGKILL)
        until(lambda: len(find()) == 5)
        expected = {process.pid for process in find()}
        if kills_keeper:  # what left its session is orphaned now, and found by where it writes, or not at all
            os.kill(keeper.pid, signal.SIGKILL)
            started.wait()
            until(lambda: len(find()) == 4)
            stray = next(iter(expected - {process.pid for process in find()}))
            assert os.getsid(stray) == stray
            os.kill(stray, signal.SIGKILL)
        assert processes.left_over(processes.Trace(leaders=(Process(job.pid, job.start + 1),))) == []
        assert processes.end_all(find, 0.1) == []
        until(lambda: not any(processes.is_alive(Process(pid, 0)) for pid in expected))
    assert started.returncode == (-signal.SIGKILL if kills_keeper else 0), "the keeper ends with the last process"


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


THREADED = """
import ctypes, os, subprocess, sys, threading, time
job = subprocess.Popen(["/bin/sleep", "300"], start_new_session=True)
threading.Thread(target=time.sleep, args=(300,)).start()
print(job.pid, flush=True)
ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)  # exit(2): this thread alone
"""
"""A process whose first thread ends while another goes on, and with it a child."""


def test_a_process_lives_while_one_of_its_threads_does() -> None:
    """As a manager of Parsl's does that is told to end: its workers are not orphans yet."""
    with subprocess.Popen([sys.executable, "-c", THREADED], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        child = int(started.stdout.readline())
        until(lambda: b") Z " in Path(f"/proc/{started.pid}/stat").read_bytes())
        assert processes.of_pid(started.pid).pid == started.pid
        me = processes.of_pid(os.getpid())
        assert {child, started.pid} <= {process.pid for process in processes.descendants(me)}
        assert child in {p.pid for p in processes.descendants(processes.of_pid(started.pid))}
        os.kill(started.pid, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)


def test_a_keeper_is_ended_by_no_signal_while_there_is_something_to_keep() -> None:
    with subprocess.Popen([sys.executable, "-c", KEPT], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        keeper = Process(*(int(word) for word in started.stdout.readline().split()[:2]))
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            processes.send(keeper, number)
        time.sleep(0.1)
        assert processes.is_alive(keeper)
        processes.end_all(lambda: processes.descendants(keeper), 0.0)
    assert started.returncode == 0
