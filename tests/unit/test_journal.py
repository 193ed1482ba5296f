from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd import commandlog, filesystems, sqlitefile, wire
from bpsd import journal as journal_module
from bpsd.commandlog import TRANSITIONS, may_follow
from bpsd.errors import (
    CannotStart,
    CommandNotFound,
    Conflict,
    PermissionDenied,
    ReadOnly,
    RunNotFound,
    StorageError,
)
from bpsd.journal import SCHEMA, CommandRecord, Journal, RunIdentity, Sighting
from tests.disks import DISKS, small_disk
from tests.figures import figure
from tests.fixtures.schemas import KEPT, NOW, build

KILLS = figure("KILLS", test=30, soak=500)
"""Processes that are killed while they write the journal."""

CUTS = figure("JOURNAL_CUTS", test=40, soak=2000)
"""Places where the files of a journal are cut off or hit."""

BLOB = "0" * 64
ROOT = Path(__file__).parents[2]


def _command(verb: str = "submit", **facts: Any) -> CommandRecord:
    given = {"backend": "here", "uid": 1000, "pid": 4711, "user": "op", "accepted_at": time.time(), **facts}
    if verb == "submit":
        given = {"token": wire.new_token(), "args": {"blob": BLOB}, **given}
    return CommandRecord(verb=verb, **given)


async def _submitted(journal: Journal, **facts: Any) -> CommandRecord:
    command, created = await journal.accept(_command(**facts))
    assert created
    return command


async def _done(journal: Journal, command: CommandRecord) -> None:
    await journal.begin(command.id)
    await journal.finish(command.id, "DONE")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    async with Journal(path, backups=3) as journal:
        yield journal


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# -- accepting -------------------------------------------------------------------------------------------------------


async def test_submit_makes_a_command_and_a_run(journal: Journal) -> None:
    asked = _command(client="bpsctl", expires_at=5e9)

    command, created = await journal.accept(asked, name="u_op_demo")

    assert created
    assert command.id[0] == "c"
    assert command.run_id[0] == "r"
    assert set(command.id[1:] + command.run_id[1:]) <= set(wire.RUN_ID_ALPHABET)
    assert (command.state, command.attempt, command.token) == ("ACCEPTED", 1, asked.token)
    assert command == await journal.command(command.id)
    (run,) = await journal.identities()
    assert (run.run_id, run.token, run.uid, run.name) == (command.run_id, asked.token, 1000, "u_op_demo")
    assert run.backend_uid == await journal.backend_uid("here")
    assert [(a.attempt, a.wms_id, a.command_id) for a in run.attempts] == [(1, None, command.id)]


async def test_same_token_is_the_same_command(journal: Journal) -> None:
    asked = _command()
    first, _ = await journal.accept(asked)
    await _done(journal, first)

    again, created = await journal.accept(asked)

    assert not created
    assert (again.id, again.run_id, again.state) == (first.id, first.run_id, "DONE")
    assert len(await journal.identities()) == 1
    assert asked.token is not None
    assert await journal.by_token(asked.token) == again
    assert await journal.by_token("z" * 20) is None


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"uid": 1001}, PermissionDenied),
        ({"uid": 1001, "args": {"blob": "1" * 64}}, PermissionDenied),  # says nothing of what it was
        ({"args": {"blob": "1" * 64}}, Conflict),
        ({"backend": "there"}, Conflict),
    ],
)
async def test_same_token_for_something_else(journal: Journal, change: dict[str, Any], error: type[Exception]) -> None:
    asked = _command()
    await journal.accept(asked)

    with pytest.raises(error, match=f"{asked.token}.*make a new token"):
        await journal.accept(_command(**{"token": asked.token, **change}))

    assert len(await journal.commands()) == 1


async def test_token_of_a_run_that_this_journal_did_not_submit(journal: Journal) -> None:
    """Everybody can read a token in the WMS: it gives no right to a run."""
    uid = await journal.backend_uid("here")
    token = wire.new_token()
    (run_id,) = await journal.identify([Sighting(backend_uid=uid, wms_id="12", token=token)])

    with pytest.raises(Conflict, match=f"run {run_id} has the token"):
        await journal.accept(_command(token=token))
    assert (await journal.accept(_command(token=token, backend="there")))[1]


async def test_racing_submissions_of_one_token_make_one_run(journal: Journal) -> None:
    asked = _command()
    outcomes: list[tuple[CommandRecord, bool]] = []

    async def submit() -> None:
        outcomes.append(await journal.accept(asked))

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(submit)

    assert sum(created for _, created in outcomes) == 1
    assert len({command.id for command, _ in outcomes}) == 1
    assert len(await journal.identities()) == 1


async def test_two_thousand_at_once_share_their_syncs(journal: Journal) -> None:
    before = journal.statistics
    async with anyio.create_task_group() as group:
        for _ in range(2000):
            group.start_soon(_submitted, journal)

    after = journal.statistics
    assert after.jobs - before.jobs == 2000
    assert after.commits - before.commits <= 20
    unfinished = await journal.unfinished()
    assert len(unfinished) == 2000
    assert len({command.id for command in unfinished} | {command.run_id for command in unfinished}) == 4000


async def test_restart_gets_the_next_number(journal: Journal) -> None:
    submit = await _submitted(journal)
    numbers = []
    for known in (None, None, 7):
        restart, created = await journal.accept(_command("restart", run_id=submit.run_id, attempt=known))
        assert created
        numbers.append(restart.attempt)
        await _done(journal, restart)

    assert numbers == [2, 3, 8]
    (run,) = await journal.identities([submit.run_id])
    assert [a.attempt for a in run.attempts] == [1, 2, 3, 8]


@pytest.mark.parametrize("state", ["ACCEPTED", "RUNNING", "IN_DOUBT"])
async def test_restart_of_what_is_being_restarted_is_that_restart(journal: Journal, state: str) -> None:
    submit = await _submitted(journal)
    restart, _ = await journal.accept(_command("restart", run_id=submit.run_id))
    if state != "ACCEPTED":
        await journal.begin(restart.id)
    if state == "IN_DOUBT":
        await journal.finish(restart.id, "IN_DOUBT")

    again, created = await journal.accept(_command("restart", run_id=submit.run_id, uid=1001))

    assert not created
    assert (again.id, again.attempt) == (restart.id, 2)


async def test_other_verbs_need_a_run_and_change_none(journal: Journal) -> None:
    with pytest.raises(RunNotFound, match="rzzzzzzzz"):
        await journal.accept(_command("cancel", run_id="rzzzzzzzz"))
    submit = await _submitted(journal)
    cancels = [await journal.accept(_command("cancel", run_id=submit.run_id)) for _ in range(2)]

    assert [created for _, created in cancels] == [True, True]
    assert [command.attempt for command, _ in cancels] == [None, None]
    (run,) = await journal.identities()
    assert len(run.attempts) == 1


async def test_what_is_not_unicode_is_kept_readable(journal: Journal) -> None:
    submit = await _submitted(journal, client="bad \udce9", args={"blob": BLOB, "source": "bad \udcea"})
    await journal.begin(submit.id)
    await journal.finish(submit.id, "FAILED", error={"message": "bad \udceb"}, note="bad \udcec")

    found = await journal.command(submit.id)

    assert (found.client, found.args["source"], found.note) == ("bad \\udce9", "bad ?", "bad \\udcec")
    assert found.error == {"message": "bad ?"}


# -- states ----------------------------------------------------------------------------------------------------------


async def test_life_of_a_command(journal: Journal) -> None:
    submit = await _submitted(journal)

    begun = await journal.begin(submit.id)
    assert (begun.state, begun.ended_at) == ("RUNNING", None)
    assert begun.started_at is not None
    doubted = await journal.finish(submit.id, "IN_DOUBT", note="no answer")
    assert (doubted.state, doubted.note, doubted.ended_at, doubted.started_at) == (
        "IN_DOUBT",
        "no answer",
        None,
        begun.started_at,
    )
    again = await journal.finish(submit.id, "ACCEPTED", note="proved absent", expires_at=2e9)
    assert (again.state, again.started_at, again.expires_at) == ("ACCEPTED", None, 2e9)
    assert again == await journal.command(submit.id)
    await journal.begin(submit.id)
    noted = await journal.note(submit.id, "waiting")
    assert (noted.state, noted.note) == ("RUNNING", "waiting")
    done = await journal.finish(submit.id, "DONE", result={"wms_id": "12"})
    assert (done.state, done.result, done.note) == ("DONE", {"wms_id": "12"}, "waiting")
    assert done.ended_at is not None
    assert done == await journal.command(submit.id)


async def test_states_that_may_not_follow(journal: Journal) -> None:
    submit = await _submitted(journal)
    with pytest.raises(Conflict, match=f"{submit.id} .*is ACCEPTED and cannot become DONE"):
        await journal.finish(submit.id, "DONE")
    await _done(journal, submit)
    with pytest.raises(Conflict, match="is DONE and cannot become RUNNING"):
        await journal.begin(submit.id)

    assert (await journal.command(submit.id)).state == "DONE"


async def test_unknown_command(journal: Journal) -> None:
    for ask in (journal.command("czzzzzzzz"), journal.begin("czzzzzzzz"), journal.note("czzzzzzzz", "x")):
        with pytest.raises(CommandNotFound, match="czzzzzzzz"):
            await ask


def test_table_names_every_state() -> None:
    assert set(TRANSITIONS) == set(wire.COMMAND_STATES)
    assert {state for state, then in TRANSITIONS.items() if then} == commandlog.OPEN_STATES


@given(st.lists(st.sampled_from(wire.COMMAND_STATES), max_size=30))
def test_any_order_of_states_keeps_the_promises(asked: list[str]) -> None:
    """What is over stays over, nothing is done that was not begun, and nothing begun is dropped."""
    state = "ACCEPTED"
    for then in asked:
        if not may_follow(state, then):
            continue
        assert state in commandlog.OPEN_STATES
        if then in {"DONE", "IN_DOUBT"}:
            assert state in {"RUNNING", "IN_DOUBT"}
        if then in {"EXPIRED", "SUPERSEDED"}:
            assert state == "ACCEPTED"
        if then == "RUNNING":
            assert state == "ACCEPTED"
        state = then


# -- lists -----------------------------------------------------------------------------------------------------------


async def test_unfinished_come_in_the_order_of_acceptance(journal: Journal) -> None:
    commands = [await _submitted(journal) for _ in range(5)]
    await _done(journal, commands[1])
    await journal.begin(commands[3].id)
    await journal.finish(commands[0].id, "EXPIRED")
    await journal.begin(commands[4].id)
    await journal.finish(commands[4].id, "IN_DOUBT")

    assert [(c.id, c.state) for c in await journal.unfinished()] == [
        (commands[2].id, "ACCEPTED"),
        (commands[3].id, "RUNNING"),
        (commands[4].id, "IN_DOUBT"),
    ]


async def test_commands_are_filtered_and_paged(journal: Journal) -> None:
    a = await _submitted(journal, accepted_at=10.0)
    b = await _submitted(journal, accepted_at=20.0, backend="there", user="her", uid=1001)
    c, _ = await journal.accept(_command("cancel", run_id=a.run_id, accepted_at=30.0))
    await journal.begin(c.id)

    async def ids(**filters: Any) -> list[str]:
        return [command.id for command in await journal.commands(**filters)]

    assert await ids() == [c.id, b.id, a.id]
    assert await ids(run_id=a.run_id) == [c.id, a.id]
    assert await ids(backend="there") == [b.id]
    assert await ids(states=["RUNNING", "DONE"]) == [c.id]
    assert await ids(user="her") == await ids(uid=1001) == [b.id]
    assert await ids(since=20.0) == [c.id, b.id]
    assert await ids(limit=2) == [c.id, b.id]
    assert await ids(limit=2, before=b.id) == [a.id]
    assert await ids(run_id=a.run_id, states=["ACCEPTED"], user="op") == [a.id]


async def test_renamed_backend_keeps_its_commands(journal: Journal) -> None:
    command = await _submitted(journal)
    uid = await journal.rename_backend("here", "there")

    assert await journal.backend_uid("there") == uid
    assert (await journal.command(command.id)).backend == "there"
    assert [found.id for found in await journal.commands(backend="there")] == [command.id]


async def test_sightings_and_bindings(journal: Journal) -> None:
    submit = await _submitted(journal)
    await journal.begin(submit.id)
    uid = await journal.backend_uid("here")
    (phantom,) = await journal.identify([Sighting(backend_uid=uid, wms_id="12.0", path="/run")])

    assert await journal.bind(submit.run_id, 1, "12.0", "/run", submit.id) == [phantom]
    assert await journal.identify([Sighting(backend_uid=uid, wms_id="12.0")]) == [submit.run_id]
    assert await journal.identities([phantom, submit.run_id]) == await journal.identities()


async def test_prune_leaves_the_young_the_open_and_the_tokens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "PRUNE_STEP", 10)
    now = [1e9]
    async with Journal(path, backups=1, keep_days=10, clock=lambda: now[0]) as journal:
        old = [await _submitted(journal) for _ in range(36)]
        for command in old[1:]:
            await journal.finish(command.id, "EXPIRED")
        now[0] += 20 * 86400
        young = await _submitted(journal)
        await _done(journal, young)

        assert await journal.prune(now[0] + 1) == 35
        assert {command.id for command in await journal.commands()} == {old[0].id, young.id}
        assert await journal.prune(now[0] + 1) == 0
        assert len(await journal.identities()) == 37
        with pytest.raises(Conflict, match=f"run {old[5].run_id} has the token"):
            await journal.accept(_command(token=old[5].token))


# -- opening again ---------------------------------------------------------------------------------------------------


async def test_everything_is_there_after_a_restart(path: Path) -> None:
    async with Journal(path, backups=1) as journal:
        assert journal.status.kind == "fresh"
        command = await _submitted(journal)
        identities = await journal.identities()
    async with Journal(path, backups=1) as journal:
        assert (journal.status.kind, journal.status.read_only) == ("ok", False)
        assert await journal.unfinished() == [command]
        assert await journal.identities() == identities
        assert repr(journal) == f"<Journal {str(path)!r} ok>"


@pytest.mark.parametrize("dump", KEPT["journal"], ids=lambda dump: dump.stem)
async def test_journal_of_every_earlier_version_opens(path: Path, dump: Path) -> None:
    path.parent.mkdir()
    build(dump, path)

    async with Journal(path, backups=1) as journal:
        commands = await journal.commands()
        runs = await journal.identities()
        assert await journal.check() == []
        restart, created = await journal.accept(_command("restart", run_id=commands[0].run_id))

    assert [(c.verb, c.state, c.attempt) for c in commands] == [
        ("cancel", "ACCEPTED", None),
        ("restart", "IN_DOUBT", 2),
        ("submit", "DONE", 1),
    ]
    assert (commands[2].result, commands[2].user, commands[2].accepted_at) == ({"wms_id": "12.0"}, "op", NOW)
    assert [(r.name, r.token, r.path, r.uid, r.owner, r.wms_ids) for r in runs] == [
        ("u_op_demo", "abcdefghij0123456789", "/data/submit/demo", 1000, None, ("12.0",)),
        ("", None, "/far/run", None, "her", ("7",)),
    ]
    assert (restart.id, created) == (commands[1].id, False)


@pytest.mark.parametrize("dump", KEPT["journal"], ids=lambda dump: dump.stem)
def test_migrations_lead_to_the_schema_that_new_journals_have(tmp_path: Path, dump: Path) -> None:
    build(dump, tmp_path / "old.db")
    sqlitefile.create(tmp_path / "new.db", SCHEMA)

    assert _schema_of(tmp_path / "old.db") == _schema_of(tmp_path / "new.db")


def _schema_of(path: Path) -> set[tuple[str, str]]:
    connection = sqlitefile.open_checked(
        path, SCHEMA, use_wal=True, check_s=None, copies_folder=path.parent, accept_cut=None
    )
    with contextlib.closing(connection):
        rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    return {(name, " ".join(sql.split())) for name, sql in rows}


async def test_newer_journal_is_refused(path: Path) -> None:
    async with Journal(path, backups=1):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=99")

    with pytest.raises(CannotStart, match="schema 99"):
        async with Journal(path, backups=1):
            pass


async def test_network_file_system(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"1 0 0:1 / {tmp_path} rw - lustre x rw\n")
    monkeypatch.setattr(filesystems, "MOUNTINFO", mountinfo)

    with pytest.raises(CannotStart, match="lustre"):
        async with Journal(path, backups=1):
            pass
    async with Journal(path, backups=1, allow_network=True) as journal:
        command = await _submitted(journal)
    async with Journal(path, backups=1, allow_network=True) as journal:
        assert await journal.unfinished() == [command]


# -- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DISKS)
async def test_full_disk_refuses_and_keeps_what_it_accepted(tmp_path: Path, kind: str) -> None:
    accepted: list[CommandRecord] = []
    with small_disk(kind, tmp_path) as disk:
        path = disk.folder / "state" / "journal.db"
        async with Journal(path, backups=1) as journal:
            accepted.append(await _submitted(journal))
            disk.fill()
            with pytest.raises(StorageError, match="the next attempt may work"):
                await _accept_on(journal, accepted)
            assert [command.id for command in await journal.unfinished()] == [command.id for command in accepted]
            disk.free()
            accepted.append(await _submitted(journal))
            await journal.backup()
        async with Journal(path, backups=1) as journal:
            assert journal.status.kind == "ok"
            assert await journal.unfinished() == accepted


async def _accept_on(journal: Journal, accepted: list[CommandRecord]) -> None:
    while True:
        accepted.append(await _submitted(journal, args={"blob": BLOB, "padding": "x" * 10_000}))


# -- damage ----------------------------------------------------------------------------------------------------------


async def _with_copies(path: Path, days: int, monkeypatch: pytest.MonkeyPatch) -> list[list[CommandRecord]]:
    """A journal with a copy of each day; returns what was unfinished at each, and at the end."""
    states = []
    async with Journal(path, backups=10) as journal:
        for day in range(1, days + 1):
            await _submitted(journal)
            states.append(await journal.unfinished())
            monkeypatch.setattr(sqlitefile, "copy_name", lambda _, day=day: f"journal-2026-01-0{day}.db")
            await journal.backup()
        await _submitted(journal)
        states.append(await journal.unfinished())
    return states


def _ruin(path: Path) -> None:
    path.write_bytes(b"ruined" * 1000)


def _remove(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [_ruin, _remove, _empty])
async def test_newest_copy_takes_the_place_of_a_damaged_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch, harm: Any
) -> None:
    states = await _with_copies(path, 3, monkeypatch)
    harm(path)

    aside = None
    for _ in range(2):  # also over a restart
        async with Journal(path, backups=3) as journal:
            status = journal.status
            assert (status.kind, status.read_only) == ("restored", True)
            assert status.restored_from == str(path.parent / "copies" / "journal-2026-01-03.db")
            assert status.reason
            assert (status.set_aside is None) == (harm is _remove)
            assert "restored, read-only" in repr(journal)
            assert await journal.unfinished() == states[2]
            aside = status.set_aside
    assert aside is None or _is_ruined(Path(aside))


def _is_ruined(path: Path) -> bool:
    return path.read_bytes() in {b"", b"ruined" * 1000}


async def test_copy_that_is_damaged_too_is_passed_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = await _with_copies(path, 3, monkeypatch)
    _ruin(path)
    _ruin(path.parent / "copies" / "journal-2026-01-03.db")
    with contextlib.closing(sqlite3.connect(path.parent / "copies" / "journal-2026-01-02.db")) as connection:
        connection.execute("PRAGMA user_version=99")

    async with Journal(path, backups=3) as journal:
        assert journal.status.restored_from == str(path.parent / "copies" / "journal-2026-01-01.db")
        assert await journal.unfinished() == states[0]


async def test_without_a_copy_the_journal_is_empty_and_says_so(path: Path) -> None:
    async with Journal(path, backups=3) as journal:
        await _submitted(journal)
    _ruin(path)

    async with Journal(path, backups=3) as journal:
        assert (journal.status.kind, journal.status.restored_from) == ("restored", None)
        assert await journal.unfinished() == []
        with pytest.raises(ReadOnly, match="restored from nothing, for want of a copy"):
            await _submitted(journal)


async def test_restored_journal_takes_no_commands_until_a_person_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = await _with_copies(path, 1, monkeypatch)
    _ruin(path)
    async with Journal(path, backups=3) as journal:
        id_ = states[0][0].id
        for write in (
            journal.accept(_command()),
            journal.begin(id_),
            journal.finish(id_, "EXPIRED"),
            journal.note(id_, "x"),
            journal.prune(5e9),
            journal.backup(),
        ):
            with pytest.raises(ReadOnly, match="bpsctl admin accept"):
                await write
        # Runs are named all the same.
        uid = await journal.backend_uid("here")
        named = await journal.identify([Sighting(backend_uid=uid, wms_id="77")])

        await journal.accept_restored()
        assert (journal.status.kind, journal.status.read_only) == ("ok", False)
        await journal.begin(id_)
        with pytest.raises(Conflict, match="not a restored one"):
            await journal.accept_restored()
    async with Journal(path, backups=3) as journal:
        assert journal.status.kind == "ok"
        assert await journal.identify([Sighting(backend_uid=uid, wms_id="77")]) == named


async def test_full_disk_keeps_a_journal_from_being_restored_and_leaves_the_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk("file_size", tmp_path) as disk:
        path = disk.folder / "state" / "journal.db"
        states = await _with_copies(path, 2, monkeypatch)
        _ruin(path)
        disk.fill()
        with pytest.raises(StorageError, match="restoring the database"):
            async with Journal(path, backups=3):
                pass
        disk.free()
        async with Journal(path, backups=3) as journal:
            assert await journal.unfinished() == states[1]


@pytest.fixture
async def crashed(tmp_path: Path) -> tuple[Path, list[CommandRecord]]:
    """A journal as a crash leaves it, with a copy, and all its commands in the order of acceptance."""
    live = tmp_path / "live" / "journal.db"
    image = tmp_path / "image"
    async with Journal(live, backups=1) as journal:
        for _ in range(30):
            await _submitted(journal)
        await journal.backup()
        for _ in range(30):
            await _submitted(journal)
        await anyio.to_thread.run_sync(shutil.copytree, live.parent, image)
        commands = await journal.unfinished()
    (image / "journal.db-shm").unlink()  # as after a power cut
    return image, commands


async def _open_image(image: Path, folder: Path) -> tuple[str, list[CommandRecord]]:
    async with Journal(folder / "journal.db", backups=1) as journal:
        found = await journal.unfinished()
        assert len(await journal.identities()) == len(found)
        assert await journal.check() == []
        return journal.status.kind, found


async def test_log_that_is_cut_anywhere_leaves_a_beginning(
    crashed: tuple[Path, list[CommandRecord]], tmp_path: Path
) -> None:
    image, commands = crashed
    log = (image / "journal.db-wal").read_bytes()
    assert len(log) > 100_000
    chance = random.Random(1)
    counts = {}
    for cut in sorted({0, 1, 31, 32, len(log) - 1, len(log), *chance.choices(range(len(log)), k=CUTS)}):
        folder = tmp_path / "cut"
        shutil.copytree(image, folder)
        (folder / "journal.db-wal").write_bytes(log[:cut])

        kind, found = await _open_image(image, folder)

        assert kind == "ok"
        assert found == commands[: len(found)]
        counts[cut] = len(found)
        shutil.rmtree(folder)
    assert list(counts.values()) == sorted(counts.values())
    assert counts[len(log)] == 60


async def test_database_that_is_cut_or_hit_anywhere_is_restored_or_whole(
    crashed: tuple[Path, list[CommandRecord]], tmp_path: Path
) -> None:
    """The files of a clean stop, so that there is no log to heal them with."""
    image, commands = crashed
    async with Journal(image / "journal.db", backups=1):
        pass
    content = (image / "journal.db").read_bytes()
    chance = random.Random(2)
    kinds = []
    for _ in range(CUTS):
        folder = tmp_path / "hit"
        shutil.copytree(image, folder)
        hit = bytearray(content)
        if chance.random() < 0.5:
            del hit[chance.randrange(len(hit)) :]
        else:
            start = chance.randrange(len(hit))
            hit[start : start + 512] = chance.randbytes(len(hit[start : start + 512]))
        (folder / "journal.db").write_bytes(hit)

        kind, found = await _open_image(image, folder)

        kinds.append(kind)
        if kind == "restored":
            assert found == commands[:30]
        else:
            assert [command.id for command in found] == [command.id for command in commands]
        shutil.rmtree(folder)
    assert "restored" in kinds


async def test_log_with_a_hole_keeps_what_is_before_it_and_waits_for_a_person(
    crashed: tuple[Path, list[CommandRecord]],
) -> None:
    image, commands = crashed
    path = image / "journal.db"
    log = bytearray((image / "journal.db-wal").read_bytes())
    log[len(log) * 3 // 4] ^= 0xFF
    (image / "journal.db-wal").write_bytes(log)

    async with Journal(path, backups=1) as journal:
        found = await journal.unfinished()
        assert (journal.status.kind, journal.status.read_only) == ("restored", True)
        assert journal.status.restored_from == str(path)
        assert "commits behind that place are lost" in journal.status.reason
        assert 30 < len(found) < 60  # more than the copy has
        assert found == commands[: len(found)]
        aside = journal.status.set_aside
        await journal.accept_restored()
        await _submitted(journal)
    assert aside is not None
    assert Path(aside).read_bytes() == log  # noqa: ASYNC240 - nothing else runs here
    async with Journal(path, backups=1) as journal:
        assert journal.status.kind == "ok"


# -- killed ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def victims(path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _start(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.unit.journal_victim", str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.timeout(60 + 4 * KILLS)
def test_nothing_that_was_acknowledged_is_lost_when_killed(path: Path, victims: list[subprocess.Popen[bytes]]) -> None:
    """SIGKILL at any moment; what was said to be in a state is in that state or in a later one."""
    chance = random.Random(KILLS)
    order = {"ACCEPTED": 0, "RUNNING": 1, "DONE": 2}
    said: dict[str, str] = {}
    for _ in range(KILLS):
        victim = _start(path)
        victims.append(victim)
        assert victim.stdout is not None
        lines = [victim.stdout.readline() for _ in range(chance.randrange(1, 60))]
        victim.kill()
        lines += victim.stdout.readlines()  # what it said before it died
        victim.wait()
        for line in lines:
            id_, state = line.decode().split()
            said[id_] = state

        found = {command.id: command for command in _all_commands(path)}
        for id_, state in said.items():
            assert order[found[id_].state] >= order[state]
    assert len(said) > KILLS


def _all_commands(path: Path) -> list[CommandRecord]:
    async def ask() -> tuple[list[CommandRecord], list[RunIdentity]]:
        async with Journal(path, backups=1) as journal:
            assert journal.status.kind == "ok"
            return await journal.commands(limit=1_000_000), await journal.identities()

    commands, runs = anyio.run(ask)
    bound = {run.run_id: run.wms_ids for run in runs}
    assert len(bound) == len(commands)
    assert all(bound[c.run_id] == (f"{c.run_id}.0",) for c in commands if c.state == "DONE")
    return commands
