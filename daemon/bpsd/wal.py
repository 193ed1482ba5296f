"""Telling a torn write-ahead log from a damaged one.

SQLite reads its log up to the first frame that does not check out and says nothing of the rest. After a crash that is
right: the rest was never acknowledged. But with ``synchronous=FULL`` a transaction begins only when the one before is
on the disk, so at most *one* commit can lie behind a torn frame. More of them mean that acknowledged commits are lost,
which nobody would otherwise hear of.

The format is that of https://www.sqlite.org/fileformat2.html#walformat.
"""

from __future__ import annotations

__all__ = ["FRAME_HEADER_BYTES", "HEADER_BYTES", "commits_cut_off", "frame_headers"]

import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
"""First word of a log to the byte order of its checksums."""


def frame_headers(log: BinaryIO, page_bytes: int) -> Iterator[bytes]:
    """The header of each whole frame of a log that is open at its beginning (the log's own header is skipped)."""
    offset = HEADER_BYTES
    while True:
        log.seek(offset)
        header = log.read(FRAME_HEADER_BYTES)
        if len(header) < FRAME_HEADER_BYTES:
            return
        offset += FRAME_HEADER_BYTES + page_bytes
        log.seek(offset - 1)
        if not log.read(1):
            return
        yield header


def _header_is_whole(header: bytes) -> bool:
    """Whether the log's own header checks out."""
    if len(header) < HEADER_BYTES:
        return False
    order = _MAGIC.get(int.from_bytes(header[:4], "big"))
    if order is None:
        return False
    a = b = 0
    for first, second in struct.iter_unpack(f"{order}II", header[:24]):
        a = (a + first + b) & 0xFFFFFFFF
        b = (b + second + a) & 0xFFFFFFFF
    return struct.unpack(">II", header[24:]) == (a, b)


def commits_cut_off(header: bytes, frames: Sequence[bytes], valid: int) -> int:
    """How many acknowledged commits of a ``synchronous=FULL`` log SQLite does not see.

    Parameters
    ----------
    header : `bytes`
        The first `HEADER_BYTES` of the log.
    frames : `~collections.abc.Sequence` [`bytes`]
        What `frame_headers` found before SQLite opened the log.
    valid : `int`
        How many frames SQLite took (second column of ``PRAGMA wal_checkpoint``).

    Returns
    -------
    count : `int`
        0 for a whole log and for one that a crash tore.
    """
    if len(header) == HEADER_BYTES and _header_is_whole(header):
        salts = header[16:24]
    elif frames:
        salts = frames[0][8:16]  # the header is damaged: the first frame knows its generation too
    else:
        return 0
    behind = sum(1 for frame in frames[valid:] if frame[8:16] == salts and frame[4:8] != b"\0\0\0\0")
    return behind if behind > 1 else 0
