"""What is kept, for how long, and how a person looks after it: on real daemons, and on the state of an earlier one."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from bpsd.client.sync import Client
from bpsd.journal import SCHEMA as JOURNAL
from bpsd.store import SCHEMA as STORE
from bpsd.testing.wms import add_run
from tests.fixtures.state import BACKENDS, KEPT, restore
from tests.integration.bpsctl import bpsctl
from tests.integration.daemons import FAST, RunningDaemon, document, true_job, until

RUNS = 500
DAY_S = 86_400.0
FOR_EVER = {"hot_days": 30_000.0, "keep_days": 36_500.0}


def rows_of(client: Client, hist: float) -> list[dict[str, Any]]:
    """All rows of a report, from memory and from the history."""
    return [row for page in client.pages(client.report, "runs", None, hist=hist) for row in page["runs"]]


def listed(client: Client, hist: float, **conditions: Any) -> list[dict[str, Any]]:
    """All rows of a list, in pages of one."""

    def one(**params: Any) -> dict[str, Any]:
        return client.list_runs(**{**params, "limit": 1})

    pages = client.pages(one, "runs", None, hist=hist, **conditions)
    return [row for page in pages for row in page["runs"]]


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: str(path.name))
def test_the_state_of_an_earlier_daemon_is_gone_on_with(state_dir: Path, kept: Path) -> None:
    told = restore(kept, state_dir / "state")
    with RunningDaemon(state_dir, BACKENDS, history=FOR_EVER) as daemon, daemon.client() as client:
        assert client.backends("toy")["backends"][0]["uid"] == told["backend"]["uid"]
        until(lambda: client.backends("toy")["backends"][0]["state"] == "up", "the backend is polled")
        for before in told["runs"]:
            after = client.report(before["id"])["runs"][0]
            for attempt in after["attempts"]:
                assert attempt.pop("global_wms_id") is None  # later than that state
            changing = ("observed_at", "source")
            assert {k: v for k, v in after.items() if k in before and k not in changing} == {
                k: v for k, v in before.items() if k not in changing
            }
            assert client.jobs(before["id"])["jobs"] == told["jobs"][before["id"]]
            kinds = [event["kind"] for event in client.events(before["id"])["events"]]
            assert kinds[: len(told["events"][before["id"]])] == told["events"][before["id"]]
        commands = {row["id"]: row for row in client.commands()["commands"]}
        for row in told["commands"]:
            assert {k: v for k, v in commands[row["id"]].items() if k in row} == row
        running = next(run for run in told["runs"] if run["state"] == "RUNNING")
        daemon.wms("toy").change(running["wms_id"], state="SUCCEEDED", jobs="SUCCEEDED")
        until(lambda: client.status(running["id"])["state"] == "SUCCEEDED", "the run that was under way goes on")
        assert client.admin("check")["problems"] == []


ENDLESS = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c;"
"""A statement of a migration in which a daemon is killed."""


def test_a_later_schema_is_migrated_to_with_copies_and_the_way_back_is_as_told(state_dir: Path) -> None:
    """To a daemon that is one schema further: killed in the middle, finished, refused by this one, put back."""
    step = state_dir / "step.sql"
    versions = {"journal": JOURNAL.version, "store": STORE.version}
    with RunningDaemon(state_dir, BACKENDS) as daemon:
        with daemon.client() as client:
            run = client.wait_command(client.submit_document(document(true_job("a_1")), backend="toy")["id"])["run"]
        assert daemon.stop() == 0
        daemon.program = (str(Path(__file__).with_name("later_daemon.py")), str(step))
        copies = daemon.state / "copies"

        step.write_text(f"CREATE TABLE later (n INTEGER); DELETE FROM commands; {ENDLESS}")
        daemon.start(wait=False)
        until(lambda: [*copies.glob(f"journal-*-schema-{versions['journal']}.db")], "the journal is copied")
        until(lambda: _is_writing(daemon.state / "journal.db"), "the migration is in its middle")
        daemon.kill()
        assert _versions(daemon.state) == versions

        step.write_text("CREATE TABLE later (n INTEGER);")
        daemon.start()
        with daemon.client() as client:
            assert client.commands()["commands"][0]["run"] == run
            assert client.admin("check")["problems"] == []
        assert daemon.stop() == 0
        assert _versions(daemon.state) == {kind: version + 1 for kind, version in versions.items()}

        daemon.program = RunningDaemon.program
        daemon.start(wait=False)
        assert daemon.process is not None
        assert daemon.process.wait(60) == 1
        said = daemon.log.read_text()
        newer = versions["journal"] + 1
        assert f"was written by a newer bpsd (schema {newer}, this one knows {versions['journal']})" in said
        assert "put back the copy that was taken before the upgrade, in the folder 'copies'" in said

        for kind, version in versions.items():
            (copy,) = copies.glob(f"{kind}-*-schema-{version}.db")
            for file in daemon.state.glob(f"{kind}.db*"):
                file.unlink()
            shutil.copy(copy, daemon.state / f"{kind}.db")
        daemon.start()
        with daemon.client() as client:
            assert client.status(run)["id"] == run
            assert client.commands()["commands"][0]["state"] == "DONE"


def _is_writing(path: Path) -> bool:
    """Whether somebody is in the middle of a transaction that writes."""
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
    return False


def _versions(state: Path) -> dict[str, int]:
    found = {}
    for kind in ("journal", "store"):
        with contextlib.closing(sqlite3.connect(state / f"{kind}.db")) as connection:
            found[kind] = int(connection.execute("PRAGMA user_version").fetchone()[0])
    return found


def test_there_is_a_state_of_an_earlier_daemon() -> None:
    assert KEPT


def test_history_outlives_the_wms_and_goes_when_it_is_old(state_dir: Path) -> None:
    now = time.time()
    with RunningDaemon(state_dir, BACKENDS, history={"hot_days": 0.5, "keep_days": 100.0}) as daemon:
        wms = daemon.wms("toy")
        ages = {"today": 0.0, "month": 30.0, "ancient": 101.0}
        for name, days in ages.items():
            run = wms.add(f"u/her/{name}", jobs=3, state="RUNNING", attributes={"global_wms_id": f"toy#{name}#1"})
            wms.change(run.wms_id, state="SUCCEEDED", jobs="SUCCEEDED", end_time=now - days * DAY_S)
        with daemon.client() as client:
            until(lambda: len(rows_of(client, 200)) == 3, "all are seen")
        with wms.edit() as file:
            file.runs.clear()  # the WMS's own purge
        assert daemon.stop() == 0
        daemon.start()  # what is old goes in the first round of upkeep
        with daemon.client() as client:

            def names() -> set[str]:
                return {row["name"] for row in rows_of(client, 200)}

            until(lambda: names() == {"u/her/today", "u/her/month"}, "the oldest is forgotten")
            row = next(row for row in rows_of(client, 200) if row["name"] == "u/her/month")
            assert (row["state"], row["counts"]) == ("SUCCEEDED", {"SUCCEEDED": 3})
            assert len(client.jobs(row["id"])["jobs"]) == 3
            called = (row["wms_id"], f"{row['wms_id']}.0", "toy#month#1")
            assert {client.status(name)["id"] for name in called} == {row["id"]}
            for hist, told in ((200, {"u/her/today", "u/her/month"}), (2, {"u/her/today"})):
                assert {run["name"] for run in listed(client, hist)} == told
            assert listed(client, 200, state=["FAILED"]) == listed(client, 200, active=True) == []


def test_history_beyond_its_size_goes_oldest_first_and_the_file_shrinks(state_dir: Path) -> None:
    mib = 1024 * 1024
    with RunningDaemon(state_dir, BACKENDS, history={"hot_days": 0.001}) as daemon:
        wms = daemon.wms("toy")
        with wms.edit() as file:
            for number in range(RUNS):
                ended = time.time() - DAY_S * (20 - number / RUNS)
                note = f"{number} " + "x" * 4000
                add_run(file, f"u/her/run{number:03}", state="SUCCEEDED", end_time=ended, note=note)
        with daemon.client() as client:
            until(lambda: len(rows_of(client, 30)) == RUNS, "all are seen")
        with wms.edit() as file:
            file.runs.clear()
        assert daemon.stop() == 0
        store = daemon.state / "store.db"
        assert store.stat().st_size > 1.5 * mib
        daemon.configure({**FAST, "backends": BACKENDS, "history": {"hot_days": 0.001, "store_bytes": mib}})
        daemon.start()
        with daemon.client() as client:
            left = until(lambda: (rows := rows_of(client, 30)) and len(rows) < RUNS and rows, "some are forgotten")
            until(lambda: store.stat().st_size <= 1.1 * mib, "the file is smaller")
            left = rows_of(client, 30)
            assert {row["name"] for row in left} == {f"u/her/run{n:03}" for n in range(RUNS - len(left), RUNS)}
            assert 0 < len(left) < RUNS
            assert client.admin("check")["problems"] == []


def test_admin_looks_after_the_records(state_dir: Path) -> None:
    with RunningDaemon(state_dir, BACKENDS) as daemon:
        with daemon.client() as client:
            command = client.wait_command(
                client.submit_document(document(true_job("a_1"), name="u/her/kept"), backend="toy")["id"]
            )
        assert bpsctl(daemon.socket, "admin", "check").code == 0
        backup = json.loads(bpsctl(daemon.socket, "admin", "backup", "--json").out)
        copies = [Path(line.removeprefix("wrote ")) for line in backup["done"]]
        assert all(copy.stat().st_mode & 0o077 == 0 for copy in copies)
        assert "bytes were given back" in bpsctl(daemon.socket, "admin", "vacuum").out
        refused = bpsctl(daemon.socket, "admin", "accept")
        assert (refused.code, "nothing needs to be accepted" in refused.err) == (1, True)
        assert daemon.stop() == 0

    elsewhere = state_dir / "restored"
    (elsewhere / "state").mkdir(parents=True)
    for copy in copies:
        kind = "journal" if "journal" in copy.name else "store"
        copy.rename(elsewhere / "state" / f"{kind}.db")
    with RunningDaemon(elsewhere, BACKENDS) as restored, restored.client() as client:
        assert client.status(command["run"])["id"] == command["run"]
        assert client.commands()["commands"][0]["id"] == command["id"]


def test_admin_check_finds_damage(state_dir: Path) -> None:
    with RunningDaemon(state_dir, BACKENDS) as daemon:
        with daemon.wms("toy").edit() as wms:
            for number in range(300):
                add_run(wms, f"u/her/run{number}" + "x" * 500, state="RUNNING")
        with daemon.client() as client:
            until(lambda: len(client.list_runs(limit=1000)["runs"]) == 300, "all are seen")
            client.events()
        assert daemon.stop() == 0
        _damage_an_index(daemon.state / "store.db")
        daemon.start()

        found = bpsctl(daemon.socket, "admin", "check")

        assert (found.code, "DAMAGED: history: " in found.out) == (1, True)


def _damage_an_index(path: Path) -> None:
    """Take entries out of an index behind SQLite's back: nothing that a quick look at start-up would notice."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_schema SET sql = replace(sql, '(name)', '(wms_id)') WHERE name = 'runs_by_name'"
        )
        connection.execute("PRAGMA writable_schema=RESET")
    connection.close()
