"""`validate`, `submit --dry-run` and `submit` give one answer, on every backend that can be had here at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpsd.client.sync import Client
from tests.integration.daemons import PATIENCE_S, RunningDaemon, document, true_job

MACHINE = {"type": "local", "cores": 2, "memory_mb": 1500}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "cores": ({"request_cpus": 64}, "asks for 64 cores"),
    "memory": ({"request_memory": 999_999}, "asks for 999999 MB"),
    "program": ({"executable": "/no/such/program"}, "/no/such/program"),
    "folder": ({"working_directory": "/no/such/folder"}, "/no/such/folder"),
}


def problems_of(client: Client, data: bytes) -> tuple[list[Any], list[Any], str]:
    """The mistakes that validate finds, those that a submission is refused with, and the run's id."""
    told = client.validate_document(data, source="w.yaml", backend="here")
    command = client.wait_command(
        client.submit_document(data, source="w.yaml", backend="here")["id"], timeout_s=PATIENCE_S
    )
    return told["problems"], (command["error"] or {}).get("problems", []), command["run"]


def test_each_mistake_and_all_of_them(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, {"here": MACHINE}).start() as daemon, daemon.client() as client:
        for fields, words in REFUSED.values():
            validated, submitted, run = problems_of(client, document({**true_job("a_1"), **fields}))
            assert [words in problem["message"] for problem in validated] == [True]
            assert submitted == validated
            with pytest.raises(Exception, match=f"run {run} does not exist: its submission was refused"):
                client.status(run)
        jobs = [{**true_job(f"a_{n}"), **fields} for n, (fields, _) in enumerate(REFUSED.values())]
        validated, submitted, _ = problems_of(client, document(*jobs))
        assert len(validated) == len(REFUSED)
        assert submitted == validated
        assert all(problem["line"] for problem in validated)

        assert client.report()["runs"] == []
        assert not list(daemon.state.glob("backends/*/runs/*"))
        fine = client.validate_document(document(true_job("a_1")), backend="here")
        assert (fine["ok"], fine["warnings"]) == (True, [])


def test_a_copy_that_somebody_asks_for_replaces_none(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, {"here": MACHINE}).start() as daemon, daemon.client() as client:
        first = client.admin("backup")["done"]
        second = client.admin("backup")["done"]
    written = [line.removeprefix("wrote ") for line in (*first, *second)]
    assert len(set(written)) == 4
    assert all(Path(path).exists() for path in written)
