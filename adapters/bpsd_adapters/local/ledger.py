"""Who has which cores and how much memory of this machine: one small file that all drivers of a user share.

A driver takes the file's lock, reads the book, decides with `settle` what it gets, writes the book and lets go: about
20 microseconds, no daemon needed. Each driver writes the whole of its own entry every time, so a book that was lost
(systemd-logind's RemoveIPC cleans /dev/shm when a user logs out) or garbled is soon whole again.

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
    "default_path",
    "prune",
    "settle",
]

import fcntl
import os
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from bpsd_adapters.local import processes
from bpsd_adapters.local.processes import Process
from bpsd_adapters.runlog import frame, parse

PATIENCE_S = 30.0
"""How long smaller jobs may overtake one that does not fit."""

WAITER_LOST_S = 5.0
"""Who has not looked for this long (a stopped process) holds nobody back."""

PRUNE_EVERY_S = 0.2
"""How often the dead are looked for while somebody waits."""


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
    """The whole ledger, of one boot of the machine."""

    boot: str
    owners: tuple[Owner, ...] = ()


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
    return Book(book.boot, tuple(kept))


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
        yes = _fits(want, free) and not _is_held_back(want, waiting, refused, free, now)
        granted.append(yes)
        if yes:
            mine.append(Claim(wish.cores, wish.memory_mb))
            free = Capacity(free.cores - wish.cores, free.memory_mb - wish.memory_mb)
        else:
            refused.append(want)
    first = min(refused, key=lambda w: w.since, default=None)
    entry = Owner(me.pid, me.start, tuple(mine), first)
    wake = tuple(o.process for o in others if o.want is not None and _fits(o.want, free))
    keep = (entry,) if mine or first is not None else ()
    return Settlement(Book(book.boot, (*others, *keep)), tuple(granted), wake)


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


def default_path() -> Path:
    """Where a user's ledger is: in memory if there is a place, since it is of no use after a boot."""
    shared = Path("/dev/shm")  # noqa: S108  # _open_own refuses what another user put there
    folder = shared if os.access(shared, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    return folder / f"bpsd-ledger-{os.getuid()}"


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
        fd = self._open()
        try:
            book = self._read(fd)
            now = time.monotonic()
            settled = settle(book, self._me, claims, wishes, self.capacity, now)
            if not all(settled.granted) and len(book.owners) > 1 and now - self._pruned_at > PRUNE_EVERY_S:
                self._pruned_at = now
                book = prune(book, processes.is_alive)
                settled = settle(book, self._me, claims, wishes, self.capacity, now)
            self._left = b""
            data = self._write(fd, settled.book)
            if all(owner.process == self._me or owner.want is None for owner in settled.book.owners):
                self._left = data
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
        for other in settled.wake:
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

    def read(self) -> Book:
        """The book as it is, without the dead."""
        fd = self._open()
        try:
            return prune(self._read(fd), processes.is_alive)
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give everything back."""
        self.settle(())
        os.close(self._fd)
        self._fd, self._left = -1, b""

    def _open(self) -> int:
        """The file, locked; another one if somebody removed it meanwhile."""
        while True:
            if self._fd < 0:
                self._fd = _open_own(self.path)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                there = self.path.stat(follow_symlinks=False)
            except FileNotFoundError:
                there = None
            mine = os.fstat(self._fd)
            if there is not None and (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                return self._fd
            os.close(self._fd)
            self._fd = -1

    def _read(self, fd: int) -> Book:
        lines = parse(os.pread(fd, os.fstat(fd).st_size, 0))[0]
        if lines:
            try:
                book = _decode(lines[0])
            except msgspec.MsgspecError:
                return Book(self._boot)  # another version's: its drivers enter themselves again
            if book.boot == self._boot:
                return book
        return Book(self._boot)

    def _write(self, fd: int, book: Book) -> bytes:
        data = frame(msgspec.json.encode(book))
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
        return data


def _open_own(path: Path) -> int:
    """Open a file in a folder that others can write to; it must be ours, and no link to something else."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and status.st_nlink <= 1:
        return fd
    os.close(fd)
    raise PermissionError(
        f"the ledger {path} is not a file of user {os.getuid()} alone (owner {status.st_uid}, {status.st_nlink} "
        "links): remove it, or name another place with the setting 'ledger'"
    )
