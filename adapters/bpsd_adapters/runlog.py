"""An append-only event log, one per run: what happened is what the log says, and a state is a fold over it.

A line is ``CRC32 LENGTH JSON`` and a newline: eight hexadecimal digits, six, and the payload, which never contains a
newline itself. ``cut -c17- run.log`` shows the JSON.

Who writes it holds a ``flock`` on it for as long as it lives, so *held* means *alive*. Before an effect (a job started)
goes a line of intent, on the disk; after it a line with the result. What a killed writer leaves behind is one of

- a *torn tail*, bad bytes behind the last good line: cut off by the next writer, not yet read by any reader;
- *damage*, bad bytes before a good line: the next writer sets the file aside and goes on with the good lines;
- nothing worse. Neither stops a reader, and both are told.
"""

from __future__ import annotations

__all__ = [
    "MAX_LINE_BYTES",
    "Damage",
    "Piece",
    "Position",
    "Repair",
    "RunLog",
    "events",
    "frame",
    "is_held",
    "lock",
    "parse",
    "read_from",
]

import errno
import fcntl
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from bpsd_adapters.files import open_regular

E = TypeVar("E")

MAX_LINE_BYTES = 1024 * 1024
"""The longest payload that is written."""

LOCK_PATIENCE_S = 0.5
"""How long `lock` tries: a reader that only looks whether the lock is held has it for an instant."""

_PREFIX_BYTES = 16
_LONGEST_LINE = _PREFIX_BYTES + MAX_LINE_BYTES + 1
_READ_BYTES = 1024 * 1024
_HEAD_BYTES = 8
GARBAGE_MAX_BYTES = 64 * 1024 * 1024
"""How far the end of a line is looked for: a log of ours has none that is longer."""

_FLAGS = os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW

_encode = msgspec.json.Encoder().encode


class Damage(NamedTuple):
    """Bytes of a log that are not what was written, or not understood."""

    offset: int
    length: int
    what: str = "unreadable"

    def __str__(self) -> str:
        return f"{self.length} bytes from byte {self.offset} are {self.what}"


class Position(NamedTuple):
    """How far a reader is: the file it read (inode and first bytes) and the end of the last line it took."""

    inode: int
    head: str
    offset: int


class Repair(NamedTuple):
    """What opening a log for writing had to mend."""

    damage: tuple[Damage, ...] = ()
    cut_bytes: int = 0
    aside: str = ""

    def __str__(self) -> str:
        words = [str(d) for d in self.damage[:3]]
        if self.aside:
            words.append(f"set aside as {self.aside}")
        if self.cut_bytes:
            words.append(f"{self.cut_bytes} bytes of a torn tail cut off")
        return "; ".join(words)


@dataclass(frozen=True, slots=True)
class Piece(Generic[E]):
    """What `read_from` read."""

    events: list[E]
    position: Position
    damage: list[Damage]
    more: bool
    """Whether there was more than fits."""

    restarted: bool
    """Whether the file is not the one that the position was of: this is its beginning."""


# -- lines -------------------------------------------------------------------------------------------------------------


def frame(payload: bytes) -> bytes:
    """The payload as a line."""
    return b"%08x %06x %b\n" % (zlib.crc32(payload), len(payload), payload)


def parse(data: bytes, base: int = 0, *, end_of_file: bool = True) -> tuple[list[bytes], list[int], list[Damage], int]:
    """The good lines of a stretch of a log that begins where a line begins.

    Parameters
    ----------
    data : `bytes`
        The stretch.
    base : `int`, optional
        Where it begins in the file.
    end_of_file : `bool`, optional
        Whether nothing follows: then bad lines behind the last good one may still be mended by the writer.

    Returns
    -------
    payloads : `list` [`bytes`]
    ends : `list` [`int`]
        Where the line of each ends in the file.
    damage : `list` [`Damage`]
    consumed : `int`
        How many bytes of ``data`` are done with.
    """
    payloads: list[bytes] = []
    ends: list[int] = []
    damage: list[Damage] = []
    at = consumed = 0
    while (end := data.find(b"\n", at)) >= 0:
        payload = data[at + _PREFIX_BYTES : end]
        if data[at : at + _PREFIX_BYTES] == b"%08x %06x " % (zlib.crc32(payload), len(payload)):
            if at > consumed:
                damage.append(Damage(base + consumed, at - consumed))
            payloads.append(payload)
            consumed = end + 1
            ends.append(base + consumed)
        at = end + 1
    if not end_of_file and at > consumed:
        damage.append(Damage(base + consumed, at - consumed))
        consumed = at
    return payloads, ends, damage, consumed


def _take(fd: int, offset: int, max_bytes: int) -> tuple[list[bytes], list[int], list[Damage], int, bool]:
    """What `parse` sees in the next stretch of an open log, how much that was, and whether the file ends there."""
    window = max_bytes
    while True:
        data = os.pread(fd, window, offset)
        at_end = len(data) < window
        payloads, ends, damage, consumed = parse(data, offset, end_of_file=at_end)
        if payloads or at_end:
            return payloads, ends, damage, consumed, at_end
        if window >= _LONGEST_LINE:
            break
        window = min(2 * window, _LONGEST_LINE)  # a line longer than the window, or bad ones: what follows tells
    if not consumed:
        consumed = _to_newline(fd, offset)
        damage = [Damage(offset, consumed)] if consumed else []
    return [], [], damage, consumed, not consumed


def _to_newline(fd: int, offset: int) -> int:
    """How many bytes there are up to the next newline and with it; 0 if none follows."""
    start = offset
    while data := os.pread(fd, _LONGEST_LINE, offset):
        if (found := data.find(b"\n")) >= 0:
            return offset + found + 1 - start
        offset += len(data)
        if offset - start > GARBAGE_MAX_BYTES:
            raise OSError(
                errno.EFBIG, f"no line ends within {GARBAGE_MAX_BYTES} bytes after {start}: this is not a log"
            )
    return 0


# -- reading -----------------------------------------------------------------------------------------------------------


def read_from(
    path: Path | str, position: Position | None, max_bytes: int, decode: Callable[[bytes], E] = msgspec.json.decode
) -> Piece[E]:
    """What was appended since a position, at most ``max_bytes`` at once (but one line always).

    A line that is not whole yet is left for the next call. A file that was replaced or cut is read from its beginning.

    Parameters
    ----------
    path : `~pathlib.Path` or `str`
        The log.
    position : `Position` or `None`
        What the call before returned; `None` for the beginning.
    max_bytes : `int`
        How much to read.
    decode : callable, optional
        Makes an event of a payload; its `msgspec.MsgspecError` is reported as damage.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    fd = open_regular(path)
    try:
        status = os.fstat(fd)
        head = os.pread(fd, _HEAD_BYTES, 0).decode("latin-1")
        offset = 0
        if position is not None and position.offset and _still_there(fd, status, head, position):
            offset = position.offset
        payloads, ends, damage, consumed, at_end = _take(fd, offset, max_bytes)
    finally:
        os.close(fd)
    found: list[E] = []
    for payload, end in zip(payloads, ends, strict=True):
        try:
            found.append(decode(payload))
        except msgspec.MsgspecError as exc:
            damage.append(Damage(end - len(payload) - 1, len(payload), f"not understood ({exc})"))
    return Piece(
        found,
        Position(status.st_ino, head, offset + consumed),
        damage,
        more=not at_end,
        restarted=position is not None and position.offset > offset,
    )


def _still_there(fd: int, status: os.stat_result, head: str, position: Position) -> bool:
    """Whether the file is the one that the position is of, and was not cut before it."""
    return (
        status.st_ino == position.inode
        and head == position.head
        and status.st_size >= position.offset
        and os.pread(fd, 1, position.offset - 1) == b"\n"
    )


def events(path: Path | str, decode: Callable[[bytes], E] = msgspec.json.decode) -> Iterator[E]:
    """All events of a log, in pieces; what is unreadable is passed over. A log that is not there has none."""
    position: Position | None = None
    while True:
        try:
            piece = read_from(path, position, _READ_BYTES, decode)
        except FileNotFoundError:
            return
        yield from piece.events
        position = piece.position
        if not piece.more:
            return


# -- holding -----------------------------------------------------------------------------------------------------------


def lock(path: Path | str) -> int | None:
    """Open a log for writing and hold it; made if it is not there. Returns `None` if another holds it.

    The descriptor may be handed to another process, and the hold with it: it ends when the last copy is closed.

    Raises
    ------
    OSError
        If the file cannot be opened.
    """
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):
                return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                return None
            time.sleep(0.005)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def is_held(path: Path | str) -> bool:
    """Whether a writer of this log lives. A log that is not there has none."""
    while True:
        try:
            fd = open_regular(path)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if _is_at(fd, path):
                return False
        except BlockingIOError:
            return True
        finally:
            os.close(fd)


def _is_at(fd: int, path: Path | str) -> bool:
    """Whether the path still leads to the open file: a writer that sets a damaged log aside puts another there."""
    mine = os.fstat(fd)
    try:
        there = Path(path).stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


# -- writing -----------------------------------------------------------------------------------------------------------


class RunLog:
    """A log that this process may write, since it holds it.

    Parameters
    ----------
    path : `~pathlib.Path`
        The log.
    fd : `int`
        From `lock`, in this process or in the one that handed it on. It is closed by `close`.

    Raises
    ------
    OSError
        If the file cannot be read or mended.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self.repair = Repair()
        self._torn = False
        self._end = self._mend()

    def __repr__(self) -> str:
        return f"<RunLog {self.path}, {self._end} bytes>"

    def append(self, new: Iterable[Any], *, durable: bool) -> None:
        """Append events in one write; ``durable`` returns when they are on the disk.

        Raises
        ------
        OSError
            If they could not be written (no space): then the log is as it was, and trying again is safe.
        ValueError
            If an event is longer than `MAX_LINE_BYTES`.
        """
        lines = [b"\n"] if self._torn else []
        for event in new:
            payload = _encode(event)
            if len(payload) > MAX_LINE_BYTES:
                raise ValueError(f"an event of {len(payload)} bytes does not fit a line of {MAX_LINE_BYTES}")
            lines.append(frame(payload))
        self._write(b"".join(lines))
        if durable:
            os.fdatasync(self._fd)

    def sync(self) -> None:
        """Let what was appended reach the disk.

        Raises
        ------
        OSError
            If that failed.
        """
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Let the log go."""
        os.close(self._fd)

    def _write(self, data: bytes) -> None:
        try:
            _write_all(self._fd, data)
        except OSError:
            try:
                os.ftruncate(self._fd, self._end)
            except OSError:
                self._torn = True  # half a line stays: the next write begins a new one
            raise
        self._torn = False
        self._end += len(data)

    def _mend(self) -> int:
        """Cut a torn tail off, set a damaged log aside; returns where the log ends."""
        size = os.fstat(self._fd).st_size
        if not size:
            _sync_folder(self.path)
            return 0
        good, damage = _survey(self._fd)
        if damage:
            self._replace(damage)
            return os.fstat(self._fd).st_size
        if good < size:
            os.ftruncate(self._fd, good)
            os.fsync(self._fd)
            self.repair = Repair(cut_bytes=size - good)
        return good

    def _replace(self, damage: list[Damage]) -> None:
        """Put a file with the good lines in the place of the log, and keep the log beside it."""
        fresh = self.path.with_name(self.path.name + ".mended")
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for payloads, _, _ in _stretches(self._fd):
                _write_all(fd, b"".join(map(frame, payloads)))
            os.fsync(fd)
            aside = _free_name(self.path, damage[0].offset)
            os.link(self.path, aside)
            fresh.replace(self.path)
            _sync_folder(self.path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd
        self.repair = Repair(damage=tuple(damage), aside=aside.name)


def _survey(fd: int) -> tuple[int, list[Damage]]:
    """Where the last good line of a log ends, and what is damaged before it."""
    good, found = 0, list[Damage]()
    for _, ends, damage in _stretches(fd):
        found += damage
        good = ends[-1] if ends else good
    return good, [d for d in found if d.offset < good]


def _stretches(fd: int) -> Iterator[tuple[list[bytes], list[int], list[Damage]]]:
    """A whole log, a stretch at a time, as `parse` sees it."""
    offset, at_end = 0, False
    while not at_end:
        payloads, ends, damage, consumed, at_end = _take(fd, offset, _LONGEST_LINE)
        offset += consumed
        yield payloads, ends, damage


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _free_name(path: Path, offset: int) -> Path:
    number = 0
    while True:
        name = path.with_name(f"{path.name}.damaged-at-{offset}" + (f".{number}" if number else ""))
        if not name.exists():
            return name
        number += 1


def _sync_folder(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
