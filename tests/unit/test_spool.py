from __future__ import annotations

import hashlib
import os
import random
import stat
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd.errors import BlobNotFound, Conflict, InvalidParams, LimitExceeded, StorageError
from bpsd.spool import Spool
from tests.disks import DISKS, small_disk

ALICE, BOB = 1000, 1001
MIB = 1024 * 1024


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


DATA = random.Random(1).randbytes(10_000)
NAME = _name(DATA)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path) -> Spool:
    return Spool(folder, quota_bytes_per_user=10 * MIB, max_blob_bytes=MIB)


async def _put(spool: Spool, data: bytes = DATA, uid: int = ALICE) -> None:
    assert await spool.put(_name(data), len(data), 0, data, uid) == len(data)


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _age(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*"):
        facts = path.stat()
        os.utime(path, (facts.st_atime - seconds, facts.st_mtime - seconds))


# -- uploading -------------------------------------------------------------------------------------------------------


async def test_document_in_pieces(spool: Spool, folder: Path) -> None:
    for offset in range(0, len(DATA), 3000):
        piece = DATA[offset : offset + 3000]
        assert await spool.put(NAME, len(DATA), offset, piece, ALICE) == offset + len(piece)

    path = await spool.open_blob(NAME, ALICE)
    assert path == folder / str(ALICE) / NAME
    assert _read(path) == DATA
    assert list(_files(folder)) == [f"{ALICE}/{NAME}"]
    assert repr(spool) == f"<Spool {str(folder)!r}, 0 uploads under way>"


async def test_empty_piece_asks_where_to_go_on(spool: Spool) -> None:
    assert await spool.put(NAME, len(DATA), 0, b"", ALICE) == 0
    await spool.put(NAME, len(DATA), 0, DATA[:4000], ALICE)
    assert await spool.put(NAME, len(DATA), 0, b"", ALICE) == 4000
    assert "1 uploads" in repr(spool)
    await spool.put(NAME, len(DATA), 4000, DATA[4000:], ALICE)
    assert await spool.put(NAME, len(DATA), 0, b"", ALICE) == len(DATA)


async def test_piece_that_came_before_or_too_early_changes_nothing(spool: Spool) -> None:
    await spool.put(NAME, len(DATA), 0, DATA[:4000], ALICE)

    assert await spool.put(NAME, len(DATA), 0, DATA[:4000], ALICE) == 4000  # its answer was lost
    assert await spool.put(NAME, len(DATA), 5000, DATA[5000:], ALICE) == 4000
    assert await spool.put(NAME, len(DATA), 2000, DATA[2000:6000], ALICE) == 4000
    await spool.put(NAME, len(DATA), 4000, DATA[4000:], ALICE)
    assert await spool.put(NAME, len(DATA), 0, DATA, ALICE) == len(DATA)
    assert _read(await spool.open_blob(NAME, ALICE)) == DATA


async def test_upload_goes_on_after_a_restart(spool: Spool, folder: Path) -> None:
    await spool.put(NAME, len(DATA), 0, DATA[:4000], ALICE)
    after = Spool(folder, 10 * MIB, MIB)

    assert await after.put(NAME, len(DATA), 0, b"", ALICE) == 4000
    assert await after.put(NAME, len(DATA), 4000, DATA[4000:], ALICE) == len(DATA)
    assert _read(await after.open_blob(NAME, ALICE)) == DATA


async def test_restart_between_the_last_piece_and_the_end(spool: Spool, folder: Path) -> None:
    await spool.put(NAME, len(DATA), 0, DATA[:4000], ALICE)
    _write(folder / str(ALICE) / f"{NAME}.part", DATA)

    assert await Spool(folder, 10 * MIB, MIB).put(NAME, len(DATA), 0, b"", ALICE) == len(DATA)


async def test_what_lies_there_and_cannot_be_the_beginning_is_begun_anew(spool: Spool, folder: Path) -> None:
    await spool.put(NAME, len(DATA), 0, DATA[:4000], ALICE)
    _write(folder / str(ALICE) / f"{NAME}.part", DATA + b"too much")

    after = Spool(folder, 10 * MIB, MIB)
    assert await after.put(NAME, len(DATA), 0, b"", ALICE) == 0
    await _put(after)


async def test_torn_piece_is_found_at_the_end(spool: Spool, folder: Path) -> None:
    """After a power cut a file may be longer than what was synced, and hold anything."""
    await spool.put(NAME, len(DATA), 0, DATA[:4000], ALICE)
    _write(folder / str(ALICE) / f"{NAME}.part", DATA[:4000] + bytes(1000))
    after = Spool(folder, 10 * MIB, MIB)

    assert await after.put(NAME, len(DATA), 0, b"", ALICE) == 5000
    with pytest.raises(Conflict, match=f"announced as {NAME}"):
        await after.put(NAME, len(DATA), 5000, DATA[5000:], ALICE)
    await _put(after)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


async def test_bytes_that_are_not_those_of_the_name(spool: Spool, folder: Path) -> None:
    wrong = DATA[:-1] + b"?"

    with pytest.raises(Conflict, match="upload it from the beginning"):
        await spool.put(NAME, len(DATA), 0, wrong, ALICE)

    assert _files(folder) == {}
    with pytest.raises(BlobNotFound):
        await spool.open_blob(NAME, ALICE)
    await _put(spool)


async def test_size_that_changes(spool: Spool) -> None:
    await spool.put(NAME, len(DATA), 0, DATA[:10], ALICE)
    with pytest.raises(Conflict, match="announced with 10000 bytes, and now with 9999"):
        await spool.put(NAME, len(DATA) - 1, 10, DATA[10:20], ALICE)
    await spool.put(NAME, len(DATA), 10, DATA[10:], ALICE)
    with pytest.raises(Conflict, match="announced with 10000 bytes, and now with 5"):
        await spool.put(NAME, 5, 0, b"", ALICE)


async def test_more_than_was_announced(spool: Spool) -> None:
    with pytest.raises(InvalidParams, match="10001 bytes of a document of 10000"):
        await spool.put(NAME, len(DATA), 0, DATA + b"x", ALICE)
    await _put(spool)


@pytest.mark.parametrize(
    "name", ["", "x", NAME.upper(), NAME + "0", "../../../../etc/passwd", "0" * 63 + "\n", "é" * 64]
)
async def test_names_that_are_none(spool: Spool, tmp_path: Path, name: str) -> None:
    for ask in (spool.put(name, 1, 0, b"x", ALICE), spool.open_blob(name, ALICE), spool.drop(name, ALICE)):
        with pytest.raises(InvalidParams, match="is no sha256"):
            await ask
    assert _files(tmp_path) == {}


async def test_two_connections_upload_the_same(spool: Spool) -> None:
    async def upload() -> None:
        have = 0
        while have < len(DATA):
            have = await spool.put(NAME, len(DATA), have, DATA[have : have + 700], ALICE)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(upload)

    assert _read(await spool.open_blob(NAME, ALICE)) == DATA


async def test_client_that_goes_away_leaves_what_is_known_true(spool: Spool, folder: Path) -> None:
    for size in (1000, 2000, 3000):
        async with anyio.create_task_group() as group:
            group.start_soon(spool.put, NAME, len(DATA), 0, DATA[:size], ALICE)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        have = await spool.put(NAME, len(DATA), 0, b"", ALICE)
        part = folder / str(ALICE) / f"{NAME}.part"
        assert have == (len(_read(part)) if have else 0)
    have = await spool.put(NAME, len(DATA), 0, b"", ALICE)
    assert await spool.put(NAME, len(DATA), have, DATA[have:], ALICE) == len(DATA)


@given(
    st.binary(min_size=1, max_size=300),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.booleans()), max_size=30),
)
def test_whatever_comes_in_whatever_order_what_is_whole_is_right(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, pieces: list[tuple[int, int, bool]]
) -> None:
    """Pieces from anywhere in the document, with restarts between them."""
    folder = tmp_path_factory.mktemp("spool")

    async def upload() -> None:
        spool = Spool(folder, MIB, MIB)
        have = 0
        for start, length, restart in pieces:
            if restart:
                spool = Spool(folder, MIB, MIB)
            now = await spool.put(_name(data), len(data), start, data[start : start + length], ALICE)
            assert now >= have
            have = now
        have = await spool.put(_name(data), len(data), have, data[have:], ALICE)
        assert have == len(data)
        assert _read(await spool.open_blob(_name(data), ALICE)) == data

    anyio.run(upload)


# -- whose -----------------------------------------------------------------------------------------------------------


async def test_documents_of_others_are_not_there(spool: Spool) -> None:
    await _put(spool)

    with pytest.raises(BlobNotFound, match=f"no document {NAME} of yours"):
        await spool.open_blob(NAME, BOB)
    assert await spool.put(NAME, len(DATA), 0, b"", BOB) == 0  # not even its size can be told
    await spool.drop(NAME, BOB)
    await _put(spool, uid=BOB)
    await spool.drop(NAME, BOB)
    assert _read(await spool.open_blob(NAME, ALICE)) == DATA


async def test_files_and_folders_are_private(spool: Spool, folder: Path) -> None:
    await _put(spool)
    await spool.put(_name(b"other"), 5, 0, b"ot", ALICE)

    modes = _modes(folder)
    assert set(modes.values()) == {0o600, 0o700}
    assert len(modes) == 4


def _modes(folder: Path) -> dict[str, int]:
    return {str(path): stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}


# -- limits ----------------------------------------------------------------------------------------------------------


async def test_document_that_is_too_big(spool: Spool, folder: Path) -> None:
    with pytest.raises(LimitExceeded, match=f"{MIB + 1} bytes, more than the {MIB}"):
        await spool.put(NAME, MIB + 1, 0, b"x", ALICE)
    assert _files(folder.parent) == {}


async def test_quota_counts_what_is_there_and_what_is_announced(folder: Path) -> None:
    spool = Spool(folder, quota_bytes_per_user=25_000, max_blob_bytes=MIB)
    await _put(spool)
    await spool.put("1" * 64, 10_000, 0, b"x" * 100, ALICE)
    assert await spool.usage(ALICE) == 20_000

    with pytest.raises(LimitExceeded, match="you have 20000 of 25000 bytes"):
        await spool.put("2" * 64, 10_000, 0, b"x", ALICE)

    await spool.put("2" * 64, 10_000, 0, b"x", BOB)
    await spool.put("2" * 64, 5_000, 0, b"x", ALICE)
    assert await spool.usage(ALICE) == 25_000
    await spool.put("1" * 64, 10_000, 100, b"x" * 100, ALICE)  # what was taken on goes on
    assert await spool.put(NAME, len(DATA), 0, b"", ALICE) == len(DATA)
    await spool.drop(NAME, ALICE)
    assert await spool.usage(ALICE) == 15_000


async def test_quota_counts_uploads_of_an_earlier_daemon_once(folder: Path) -> None:
    before = Spool(folder, quota_bytes_per_user=12_000, max_blob_bytes=MIB)
    await before.put(NAME, len(DATA), 0, DATA[:9_000], ALICE)
    spool = Spool(folder, quota_bytes_per_user=12_000, max_blob_bytes=MIB)

    assert await spool.usage(ALICE) == 9_000
    assert await spool.put(NAME, len(DATA), 9_000, DATA[9_000:], ALICE) == len(DATA)


async def test_uploads_at_once_are_bounded(spool: Spool) -> None:
    spool.set_limits(10 * MIB, MIB, uploads_per_user=2)
    await spool.put("1" * 64, 100, 0, b"x", ALICE)
    await _put(spool)
    await spool.put("2" * 64, 100, 0, b"", ALICE)

    with pytest.raises(LimitExceeded, match=r"2 unfinished uploads, .* limits\.uploads_per_user"):
        await spool.put("3" * 64, 100, 0, b"x", ALICE)
    await spool.put("3" * 64, 100, 0, b"x", BOB)
    await spool.collect(3600)  # what was only asked for is forgotten
    await spool.put("3" * 64, 100, 0, b"x", ALICE)


# -- owners ----------------------------------------------------------------------------------------------------------


async def test_what_a_connection_brought_goes_with_it(spool: Spool, folder: Path) -> None:
    spool.set_limits(10 * MIB, MIB, uploads_per_user=16)
    pinned = {(_name(b"submitted"), ALICE)}
    for number in range(16):
        name = f"{number:064x}"
        spool.own("her connection", name, ALICE)
        await spool.put(name, 100, 0, b"x", ALICE)
    for data in (b"whole", b"submitted", b"shared"):
        spool.own("her connection", _name(data), ALICE)
        with pytest.raises(LimitExceeded):
            await spool.put(_name(data), len(data), 0, data, ALICE)
    await spool.release("her connection", lambda: pinned)
    assert _files(folder) == {}

    for data in (b"whole", b"submitted", b"shared"):
        spool.own("her connection", _name(data), ALICE)
        await _put(spool, data)
    spool.own("another", _name(b"shared"), ALICE)
    spool.own("his", _name(b"whole"), BOB)
    await _put(spool, b"whole", BOB)
    await spool.release("her connection", lambda: pinned)

    left = {f"{ALICE}/{_name(b'submitted')}", f"{ALICE}/{_name(b'shared')}", f"{BOB}/{_name(b'whole')}"}
    assert set(_files(folder)) == left
    assert await spool.usage(ALICE) == len(b"submitted") + len(b"shared")


async def test_an_owner_may_be_forgotten_without_its_documents(spool: Spool, folder: Path) -> None:
    spool.own("her connection", NAME, ALICE)
    await spool.put(NAME, len(DATA), 0, DATA[:4000], ALICE)

    assert spool.forget("her connection") == [(NAME, ALICE)]

    assert await Spool(folder, 10 * MIB, MIB).put(NAME, len(DATA), 0, b"", ALICE) == 4000


# -- collecting ------------------------------------------------------------------------------------------------------


async def test_old_documents_go_unless_they_are_pinned(spool: Spool, folder: Path) -> None:
    pinned, old, used, new = b"pinned", b"old", b"used", b"new"
    for data in (pinned, old, used):
        await _put(spool, data)
    await _put(spool, pinned, BOB)
    await spool.put(NAME, len(DATA), 0, DATA[:1000], ALICE)
    _age(folder, 7200)
    await _put(spool, new)
    await spool.open_blob(_name(used), ALICE)

    freed = await spool.collect(3600, {(_name(pinned), ALICE)})

    assert freed == len(old) + len(pinned) + 1000
    assert {file.rpartition("/")[2] for file in _files(folder)} == {_name(data) for data in (pinned, used, new)}
    assert await spool.put(NAME, len(DATA), 0, b"", ALICE) == 0
    await _put(spool)


async def test_collecting_where_nothing_is(spool: Spool) -> None:
    assert await spool.collect(0) == 0
    assert await spool.usage(ALICE) == 0
    await spool.drop(NAME, ALICE)


async def test_uploading_again_counts_as_use(spool: Spool, folder: Path) -> None:
    await _put(spool)
    _age(folder, 7200)
    assert await spool.put(NAME, len(DATA), 0, b"", ALICE) == len(DATA)

    assert await spool.collect(3600) == 0


# -- the disk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DISKS)
async def test_full_disk_keeps_what_was_acknowledged(tmp_path: Path, kind: str) -> None:
    data = random.Random(2).randbytes(600_000)
    name = _name(data)
    with small_disk(kind, tmp_path) as disk:
        spool = Spool(disk.folder / "spool", 10 * MIB, MIB)
        await spool.put(name, len(data), 0, data[:100_000], ALICE)
        disk.fill()
        with pytest.raises(StorageError, match="the upload goes on where it ended"):
            await spool.put(name, len(data), 100_000, data[100_000:], ALICE)
        assert await spool.put(name, len(data), 0, b"", ALICE) == 100_000
        disk.free()
        assert await spool.put(name, len(data), 100_000, data[100_000:], ALICE) == len(data)
        assert _read(await spool.open_blob(name, ALICE)) == data


async def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    _write(tmp_path / "spool", b"a file")

    with pytest.raises(StorageError, match="make sure that the folder is there and that bpsd may write to it"):
        await _put(Spool(tmp_path / "spool", MIB, MIB))
