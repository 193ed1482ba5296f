"""Who has which cores and how much memory of this machine: one small file that all drivers of a user share.

A driver takes the file's lock, reads the book, decides with `settle` what it gets, writes the book and lets go: about
20 microseconds, no daemon needed. Each driver writes the whole of its own entry every time. A book that was lost or
damaged is begun with a list of the drivers that live (`~bpsd_adapters.local.ledgerfile.living_drivers`), and gives
nothing to anybody until each of them has entered what it has, or has ended.

An entry counts while its driver lives, and each claim in it while the job's process lives: what survives a killed
driver keeps its cores. Who waits is served in order: what was wanted earlier and would fit goes first, and what has
waited for `PATIENCE_S` holds back all that came later until it fits, so that big jobs get their turn.
"""

from __future__ import annotations

__all__ = [
    "Book",
    "Capacity",
    "Claim",
    "Ledger",
    "Owner",
    "Settlement",
    "Want",
    "Wish",
    "prune",
    "settle",
]

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from bpsd_adapters.local import ledgerfile, processes
from bpsd_adapters.local.processes import Process
from bpsd_adapters.runlog import frame, parse

PATIENCE_S = 30.0
"""How long smaller jobs may overtake one that does not fit."""

WAITER_LOST_S = 5.0
"""Who has not looked for this long (a stopped process) holds nobody back."""

PRUNE_EVERY_S = 0.2
"""How often the dead are looked for while somebody waits."""

LOCK_WAIT_S = 2.0
"""How long to wait for another process that uses the file, which takes it microseconds unless it is stopped."""

BOOK_MAX_BYTES = 4 * 1024 * 1024
"""The longest book that is read; a longer file is damaged."""


class Claim(msgspec.Struct, array_like=True, frozen=True):
    """Cores and memory of a job; ``pid`` is 0 until its process is known."""

    cores: int
    memory_mb: int
    pid: int = 0
    start: int = 0


class Want(msgspec.Struct, array_like=True, frozen=True):
    """What a driver waits for, since when, and when it last looked (`time.monotonic`, the same in all processes)."""

    cores: int
    memory_mb: int
    since: float
    looked: float


class Owner(msgspec.Struct, array_like=True, frozen=True):
    """The entry of one driver."""

    pid: int
    start: int
    claims: tuple[Claim, ...] = ()
    want: Want | None = None

    @property
    def process(self) -> Process:
        """The driver."""
        return Process(self.pid, self.start)


class Book(msgspec.Struct, array_like=True, frozen=True):
    """The whole ledger, of one boot of the machine.

    ``missing`` are drivers that lived when the book was begun and have not entered what they have yet.
    """

    boot: str
    owners: tuple[Owner, ...] = ()
    missing: tuple[Process, ...] = ()


class Capacity(NamedTuple):
    """What may be given out in all."""

    cores: int
    memory_mb: int


class Wish(NamedTuple):
    """What a job asks for."""

    cores: int
    memory_mb: int


class Settlement(NamedTuple):
    """What came of asking: the new book, which wishes were granted, and whom to wake since they may go on now."""

    book: Book
    granted: tuple[bool, ...]
    wake: tuple[Process, ...]


# -- decisions ---------------------------------------------------------------------------------------------------------


def prune(book: Book, is_alive: Callable[[Process], bool]) -> Book:
    """The book without the dead: of a dead driver only the claims of living jobs stay."""
    kept = []
    for owner in book.owners:
        if is_alive(owner.process):
            kept.append(owner)
            continue
        claims = tuple(c for c in owner.claims if is_alive(Process(c.pid, c.start)))
        if claims:
            kept.append(Owner(owner.pid, owner.start, claims))
    return Book(book.boot, tuple(kept), tuple(p for p in book.missing if is_alive(p)))


def settle(
    book: Book, me: Process, claims: Sequence[Claim], wishes: Sequence[Wish], capacity: Capacity, now: float
) -> Settlement:
    """Enter what a driver has, and grant what it may have beside.

    Parameters
    ----------
    book : `Book`
        As it is.
    me : `Process`
        The driver that asks.
    claims : `~collections.abc.Sequence` [`Claim`]
        All that it has; what it does not name is free again.
    wishes : `~collections.abc.Sequence` [`Wish`]
        What it would like beside, the most urgent first.
    capacity : `Capacity`
        What may be given out in all.
    now : `float`
        `time.monotonic`.
    """
    others = [o for o in book.owners if o.process != me]
    missing = tuple(p for p in book.missing if p != me)
    before = next((o.want for o in book.owners if o.process == me), None)
    free = _free(capacity, [*claims, *(c for o in others for c in o.claims)])
    waiting = [o.want for o in others if o.want is not None and now - o.want.looked < WAITER_LOST_S]
    granted: list[bool] = []
    refused: list[Want] = []
    mine = list(claims)
    for wish in wishes:
        since = now
        if before is not None and (before.cores, before.memory_mb) == wish:
            since, before = before.since, None
        want = Want(wish.cores, wish.memory_mb, since, now)
        yes = not missing and _fits(want, free) and not _is_held_back(want, waiting, refused, free, now)
        granted.append(yes)
        if yes:
            mine.append(Claim(wish.cores, wish.memory_mb))
            free = Capacity(free.cores - wish.cores, free.memory_mb - wish.memory_mb)
        else:
            refused.append(want)
    first = min(refused, key=lambda w: w.since, default=None)
    entry = Owner(me.pid, me.start, tuple(mine), first)
    wake = tuple(o.process for o in others if not missing and o.want is not None and _fits(o.want, free))
    keep = (entry,) if mine or first is not None else ()
    return Settlement(Book(book.boot, (*others, *keep), missing), tuple(granted), wake)


def _free(capacity: Capacity, claims: Sequence[Claim]) -> Capacity:
    return Capacity(
        capacity.cores - sum(c.cores for c in claims), capacity.memory_mb - sum(c.memory_mb for c in claims)
    )


def _fits(want: Want, free: Capacity) -> bool:
    return want.cores <= free.cores and want.memory_mb <= free.memory_mb


def _is_held_back(want: Want, waiting: Sequence[Want], refused: Sequence[Want], free: Capacity, now: float) -> bool:
    """Whether somebody goes first: of other drivers who came earlier, of one's own whoever has lost patience."""
    if any(now - w.since > PATIENCE_S for w in refused):
        return True
    return any(w.since < want.since and (_fits(w, free) or now - w.since > PATIENCE_S) for w in waiting)


# -- the file ----------------------------------------------------------------------------------------------------------


_decode = msgspec.json.Decoder(Book).decode


class Ledger:
    """The ledger as one driver uses it.

    Parameters
    ----------
    path : `~pathlib.Path`
        The file; made if it is not there.
    capacity : `Capacity`
        What may be given out in all.
    me : `Process`
        The driver.
    """

    def __init__(self, path: Path, capacity: Capacity, me: Process) -> None:
        self.path = path
        self.capacity = capacity
        self._me = me
        self._boot = processes.boot_id()
        self._fd = -1
        self._left = b""
        self._pruned_at = float("-inf")
        self._private = path == ledgerfile.ledger_in(path.parent.parent)
        self._earlier = ledgerfile.earlier_path() if self._private else None

    def settle(self, claims: Sequence[Claim], wishes: Sequence[Wish] = ()) -> tuple[bool, ...]:
        """Enter what this driver has and ask for more; wakes other drivers (SIGUSR1) if they may go on.

        Returns
        -------
        granted : `tuple` [`bool`]
            For each wish whether it was granted.

        Raises
        ------
        OSError
            If the file cannot be used (the message says what to do); then nothing was granted.
        """
        with self._held() as fd, self._earlier_held() as earlier_fd:
            known = _parsed(fd, self._boot)
            book = known or Book(self._boot, (), ledgerfile.living_drivers(self.path))
            strangers = self._strangers(earlier_fd, book)
            book = Book(book.boot, (*book.owners, *strangers), book.missing)
            now = time.monotonic()
            settled = settle(book, self._me, claims, wishes, self.capacity, now)
            crowded = len(book.owners) > 1 or bool(book.missing)
            if not all(settled.granted) and crowded and now - self._pruned_at > PRUNE_EVERY_S:
                self._pruned_at = now
                book = prune(book, processes.is_alive)
                settled = settle(book, self._me, claims, wishes, self.capacity, now)
            self._left = b""
            data = self._write(fd, earlier_fd, settled.book, {owner.process for owner in strangers})
            if not strangers and all(o.process == self._me or o.want is None for o in settled.book.owners):
                self._left = data
        for other in (*settled.wake, *(settled.book.missing if known is None else ())):
            processes.send(other, signal.SIGUSR1)
        return settled.granted

    def nobody_waits(self) -> bool:
        """Whether the book is still as this driver left it, with nobody else waiting for anything.

        Then the driver may give what one of its jobs held to the next that asks for as much, without a `settle`: in
        the book it holds that all the time. One read without the lock: what another is just writing is not what this
        driver wrote.
        """
        try:
            return self._left != b"" and os.pread(self._fd, len(self._left) + 1, 0) == self._left
        except OSError:
            return False

    def was_replaced(self) -> bool:
        """Whether the file that this driver entered its jobs in was removed or replaced: it is to enter them again."""
        return self._fd >= 0 and not self._is_at_path()

    def read(self) -> Book:
        """The book as it is, without the dead; an empty one if it is damaged (see `fault`). No file stays open.

        Raises
        ------
        OSError
            If the file cannot be used.
        """
        try:
            with self._held() as fd:
                return prune(_parsed(fd, self._boot) or Book(self._boot), processes.is_alive)
        finally:
            self._forget()

    def fault(self) -> str:
        """Say what keeps drivers from using the ledger; empty if nothing does. It leaves the file as it is."""
        try:
            with self._held() as fd:
                size, book = os.fstat(fd).st_size, _parsed(fd, self._boot)
        except OSError as exc:
            return str(exc)
        finally:
            self._forget()
        if book is None:
            return f"the ledger {self.path} is damaged; the next job that starts begins it again" if size else ""
        missing = prune(book, processes.is_alive).missing
        if not missing:
            return ""
        pids = ", ".join(str(process.pid) for process in missing)
        return (
            f"the ledger {self.path} was lost or damaged, and no job starts until the drivers that live have entered "
            f"their jobs again; these have not (they may be stopped): {pids}"
        )

    def close(self) -> None:
        """Give everything back."""
        self.settle(())
        self._forget()

    def _forget(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._left = -1, b""

    @contextmanager
    def _held(self) -> Iterator[int]:
        fd = self._open()
        try:
            yield fd
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)

    def _open(self) -> int:
        """The file, locked; another one if somebody removed it meanwhile."""
        while True:
            if self._fd < 0:
                self._fd = ledgerfile.open_own(self.path, private_folder=self._private)
            _lock(self._fd, self.path)
            if self._is_at_path():
                return self._fd
            self._forget()

    def _is_at_path(self) -> bool:
        try:
            there = self.path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    @contextmanager
    def _earlier_held(self) -> Iterator[int]:
        """The ledger of an earlier version, locked, while drivers that began before an upgrade use it; else -1."""
        fd = -1 if self._earlier is None else ledgerfile.open_earlier(self._earlier)
        if self._earlier is None or fd < 0:
            self._earlier = None
            yield -1
            return
        try:
            _lock(fd, self._earlier)
            yield fd
        finally:
            os.close(fd)

    def _strangers(self, earlier_fd: int, book: Book) -> list[Owner]:
        """Entries that only the earlier ledger has. If no driver uses it any more, it is removed."""
        if self._earlier is None:
            return []
        known = {owner.process for owner in book.owners}
        theirs = prune(_parsed(earlier_fd, self._boot) or Book(self._boot), processes.is_alive).owners
        strangers = [owner for owner in theirs if owner.process not in known and owner.process != self._me]
        if not strangers and not ledgerfile.living_drivers(self._earlier):
            self._earlier.unlink(missing_ok=True)
            self._earlier = None
        return strangers

    def _write(self, fd: int, earlier_fd: int, book: Book, strangers: set[Process]) -> bytes:
        """Write the book; drivers that began before an upgrade get the whole of it in their own ledger."""
        if self._earlier is not None:
            _write(earlier_fd, Book(book.boot, book.owners))
            book = Book(book.boot, tuple(o for o in book.owners if o.process not in strangers), book.missing)
        return _write(fd, book)


def _lock(fd: int, path: Path) -> None:
    """Lock the file; not for longer than `LOCK_WAIT_S`, since who holds it may be stopped.

    Raises
    ------
    TimeoutError
        If another process holds it all that time.
    """
    until, pause = time.monotonic() + LOCK_WAIT_S, 0.0001
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise TimeoutError(
                    f"cannot lock {path}: another process has held it for {LOCK_WAIT_S:g} s; `fuser {path}` shows which"
                ) from None
        else:
            return
        time.sleep(pause)
        pause = min(2 * pause, 0.01)


def _parsed(fd: int, boot: str) -> Book | None:
    size = os.fstat(fd).st_size
    lines = parse(os.pread(fd, size, 0))[0] if size <= BOOK_MAX_BYTES else []
    if not lines:
        return None
    try:
        book = _decode(lines[0])
    except msgspec.MsgspecError:
        return None  # another version's: its drivers enter themselves again
    return book if book.boot == boot else None


def _write(fd: int, book: Book) -> bytes:
    data = frame(msgspec.json.encode(book))
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))
    return data
