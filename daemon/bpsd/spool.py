"""The spool: documents that are too big for one message, brought in pieces and named by their sha256.

Each user has a folder of their own, so that nobody can name, read or fill up what is another's. A piece is on the disk
before it is acknowledged; an upload that a restart of the daemon cut off goes on where it ended. What is whole was
compared with its name. A document belongs to the connections that brought it: it goes with the last of them, unless a
command needs it. Nothing is removed that is pinned; the rest goes when it is old.

::

    FOLDER/UID/SHA256         whole
    FOLDER/UID/SHA256.part    on its way
"""

from __future__ import annotations

__all__ = ["Spool"]

import hashlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from bpsd.diskfull import describe
from bpsd.errors import BlobNotFound, Conflict, InvalidParams, LimitExceeded, StorageError

if TYPE_CHECKING:
    from hashlib import _Hash

T = TypeVar("T")

THREADS = 4
"""Threads that may work on the disk at once."""

READ_BYTES = 1024 * 1024
"""How much of a file is hashed at a time, when an upload goes on after a restart."""

_PART = ".part"
_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True, eq=False)
class _Upload:
    """A document on its way: ``have`` bytes are on the disk, and ``digest`` has seen them."""

    size: int
    have: int = 0
    digest: _Hash = field(default_factory=hashlib.sha256)


class Spool:
    """Documents of all users.

    Parameters
    ----------
    folder : `~pathlib.Path`
        Where they lie; made if need be, for our eyes only.
    quota_bytes_per_user : `int`
        What one user may have here, including what is announced of uploads under way.
    max_blob_bytes : `int`
        The largest document.
    uploads_per_user : `int`
        Unfinished uploads of one user at once.
    """

    def __init__(
        self, folder: Path, quota_bytes_per_user: int, max_blob_bytes: int, uploads_per_user: int = 16
    ) -> None:
        self._folder = folder
        self._quota_bytes = quota_bytes_per_user
        self._max_blob_bytes = max_blob_bytes
        self._uploads_per_user = uploads_per_user
        self._owners: dict[tuple[str, int], set[object]] = {}  # of documents (sha256, uid); on the loop only
        self._uploads: dict[int, dict[str, _Upload]] = defaultdict(dict)
        # One user's requests go one at a time: what is on the disk and what we know of it change together.
        self._locks: dict[int, anyio.Lock] = defaultdict(anyio.Lock)
        self._threads = anyio.CapacityLimiter(THREADS)

    def __repr__(self) -> str:
        return f"<Spool {str(self._folder)!r}, {sum(map(len, self._uploads.values()))} uploads under way>"

    def set_limits(self, quota_bytes_per_user: int, max_blob_bytes: int, uploads_per_user: int) -> None:
        """Use other limits from now on; what is here stays."""
        self._quota_bytes, self._max_blob_bytes = quota_bytes_per_user, max_blob_bytes
        self._uploads_per_user = uploads_per_user

    def own(self, owner: object, sha256: str, uid: int) -> None:
        """Keep a document of this user, whole or not, until `release` was called for every owner."""
        self._owners.setdefault((sha256, uid), set()).add(owner)

    def forget(self, owner: object) -> list[tuple[str, int]]:
        """Let an owner go but leave the files; return the documents that have no owner any more."""
        left = []
        for document, owners in list(self._owners.items()):
            owners.discard(owner)
            if not owners:
                del self._owners[document]
                left.append(document)
        return left

    async def release(self, owner: object, pinned: Callable[[], Collection[tuple[str, int]]]) -> None:
        """Let an owner go, and remove each document that was its alone and is not ``pinned``."""
        for sha256, uid in self.forget(owner):
            async with self._locks[uid]:
                if (sha256, uid) not in self._owners and (sha256, uid) not in pinned():
                    await self._in_thread(lambda sha256=sha256, uid=uid: self._remove(sha256, uid))  # type: ignore[misc]

    async def put(self, sha256: str, size: int, offset: int, data: bytes, uid: int) -> int:
        """Take a piece of a document.

        A piece that begins elsewhere than at the end of what is there is not taken: the answer says where to go on. An
        empty piece only asks that.

        Parameters
        ----------
        sha256 : `str`
            The document's name: its SHA-256 in hexadecimal, small letters.
        size : `int`
            Bytes of the whole document.
        offset : `int`
            Where ``data`` begins in it.
        data : `bytes`
            The piece.
        uid : `int`
            Whose it is.

        Returns
        -------
        have : `int`
            How many bytes are on the disk. As many as ``size``: the document is whole, and is what its name says.

        Raises
        ------
        LimitExceeded
            If the document, all that the user has here, or the number of uploads would be too big.
        Conflict
            If the size is not the one announced first, or the bytes are not those of the name (they are then gone).
        InvalidParams
            If the name is none, or there are more bytes than ``size``.
        StorageError
            If the disk fails; what was acknowledged stays.
        """
        self._check(sha256)
        async with self._locks[uid]:
            return await self._in_thread(lambda: self._put(uid, sha256, size, offset, data))

    async def open_blob(self, sha256: str, uid: int) -> Path:
        """The file of a whole document of this user, which counts as used now.

        Raises
        ------
        BlobNotFound
            If this user has none of that name here.
        """
        self._check(sha256)
        path = self._path(uid, sha256)
        if not await self._in_thread(lambda: _touch(path)):
            raise BlobNotFound(
                f"no document {sha256} of yours is here", advice="upload it (again) with blob.put", sha256=sha256
            )
        return path

    async def drop(self, sha256: str, uid: int) -> None:
        """Remove a whole document that is not needed any more, if it is there."""
        self._check(sha256)
        await self._in_thread(lambda: self._path(uid, sha256).unlink(missing_ok=True))

    async def collect(self, older_than_s: float, pinned: Collection[tuple[str, int]] = ()) -> int:
        """Remove what has not been used for so long, but nothing of ``pinned`` (pairs of sha256 and uid).

        Returns
        -------
        freed : `int`
            Bytes.
        """
        before = time.time() - older_than_s
        keep = {self._path(uid, sha256) for sha256, uid in pinned}
        freed = 0
        for uid in await self._in_thread(self._users):
            async with self._locks[uid]:
                freed += await self._in_thread(lambda uid=uid: self._collect(uid, before, keep))  # type: ignore[misc]
        return freed

    async def usage(self, uid: int) -> int:
        """How many bytes a user has here, including what is announced of uploads under way."""
        async with self._locks[uid]:
            return await self._in_thread(lambda: self._used(uid))

    # -- in a thread, with the user's lock ---------------------------------------------------------------------------

    def _put(self, uid: int, sha256: str, size: int, offset: int, data: bytes) -> int:
        uploads = self._uploads[uid]
        upload = uploads.get(sha256)
        announced = upload.size if upload is not None else self._size_of_whole(uid, sha256)
        if announced is not None and announced != size:
            raise Conflict(
                f"the document {sha256} was announced with {announced} bytes, and now with {size}",
                advice="read the file again: it has changed",
            )
        if upload is None:
            if announced is not None:
                _touch(self._path(uid, sha256))
                return size
            upload = uploads[sha256] = self._begin(uid, sha256, size)
        if data and offset == upload.have:
            if offset + len(data) > size:
                raise InvalidParams(f"blob.put: {offset + len(data)} bytes of a document of {size}")
            self._append(self._part(uid, sha256), upload, data)
        if upload.have == size:
            del uploads[sha256]
            self._complete(uid, sha256, upload)
        return upload.have

    def _begin(self, uid: int, sha256: str, size: int) -> _Upload:
        """Start an upload, or take up one that an earlier daemon began."""
        if size > self._max_blob_bytes:
            raise LimitExceeded(
                f"the document has {size} bytes, more than the {self._max_blob_bytes} that one may have",
                advice="split the workflow, or have the limit raised",
                limit="max_blob_bytes",
                value=self._max_blob_bytes,
            )
        if len(self._uploads[uid]) >= self._uploads_per_user:
            raise LimitExceeded(
                f"you have {len(self._uploads[uid])} unfinished uploads, as many as limits.uploads_per_user allows",
                advice="finish them, or close the connections that began them",
                limit="uploads_per_user",
                value=self._uploads_per_user,
            )
        part = self._part(uid, sha256)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.parent.mkdir(mode=0o700, exist_ok=True)
        upload = _resume(part, size)
        used = self._used(uid)
        if used + size - upload.have > self._quota_bytes:
            raise LimitExceeded(
                f"the document of {size} bytes does not fit: you have {used} of {self._quota_bytes} bytes in the spool",
                advice="wait until submissions under way are over, or have the limit raised",
                limit="quota_bytes_per_user",
                value=self._quota_bytes,
                used=used,
            )
        return upload

    def _append(self, part: Path, upload: _Upload, data: bytes) -> None:
        """Put a piece on the disk, or leave the file as it was."""
        handle = os.open(part, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(handle, data[written:], upload.have + written)
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, upload.have)
                raise
        finally:
            os.close(handle)
        upload.digest.update(data)
        upload.have += len(data)

    def _complete(self, uid: int, sha256: str, upload: _Upload) -> None:
        part = self._part(uid, sha256)
        found = upload.digest.hexdigest()
        if found != sha256:
            part.unlink()
            raise Conflict(
                f"the bytes that came have the sha256 {found}, and were announced as {sha256}",
                advice="read the file again and upload it from the beginning: it has changed",
            )
        part.rename(self._path(uid, sha256))
        handle = os.open(part.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _remove(self, sha256: str, uid: int) -> None:
        self._uploads[uid].pop(sha256, None)
        self._part(uid, sha256).unlink(missing_ok=True)
        self._path(uid, sha256).unlink(missing_ok=True)

    def _size_of_whole(self, uid: int, sha256: str) -> int | None:
        try:
            return self._path(uid, sha256).stat().st_size
        except FileNotFoundError:
            return None

    def _used(self, uid: int) -> int:
        announced = sum(upload.size - upload.have for upload in self._uploads[uid].values())
        folder = self._folder / str(uid)
        return announced + (sum(entry.stat().st_size for entry in folder.iterdir()) if folder.is_dir() else 0)

    def _users(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return [int(entry.name) for entry in self._folder.iterdir() if entry.name.isdigit()]

    def _collect(self, uid: int, before: float, keep: Collection[Path]) -> int:
        folder = self._folder / str(uid)
        freed = 0
        for entry in list(folder.iterdir()):
            facts = entry.stat()
            if facts.st_mtime < before and entry not in keep:
                entry.unlink()
                freed += facts.st_size
        for sha256 in list(self._uploads[uid]):
            if not self._part(uid, sha256).exists():
                del self._uploads[uid][sha256]  # collected now, or never begun; it is taken up again when asked for
        return freed

    # -- names and threads -------------------------------------------------------------------------------------------

    def _check(self, sha256: str) -> None:
        if not _NAME.fullmatch(sha256):
            raise InvalidParams(f"{sha256[:80]!r} is no sha256", advice="64 hexadecimal digits, small letters")

    def _path(self, uid: int, sha256: str) -> Path:
        return self._folder / str(uid) / sha256

    def _part(self, uid: int, sha256: str) -> Path:
        return self._folder / str(uid) / (sha256 + _PART)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Do ``work`` in a thread and wait for its end, also when cancelled: the lock is held until then."""
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._threads)
        except OSError as exc:
            reason, advice = await anyio.to_thread.run_sync(describe, exc, self._folder, limiter=self._threads)
            raise StorageError(
                f"keeping a document in the spool failed: {reason}",
                advice=f"{advice}; the upload goes on where it ended",
                path=str(self._folder),
            ) from exc


def _touch(path: Path) -> bool:
    """Let a file count as used now; `False` if it is not there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _resume(part: Path, size: int) -> _Upload:
    """What is known of an upload from its file: nothing if there is none, or if it is not of this document."""
    upload = _Upload(size)
    try:
        with part.open("rb") as file:
            if os.fstat(file.fileno()).st_size <= size:
                while piece := file.read(READ_BYTES):
                    upload.digest.update(piece)
                    upload.have += len(piece)
            else:
                part.unlink()
    except FileNotFoundError:
        pass
    return upload
