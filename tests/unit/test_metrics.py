"""Figures as Prometheus reads them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bpsd.cache import Cache
from bpsd.commands.engine import CommandEngine
from bpsd.metrics import Metrics
from bpsd.monitor import HELP, Monitor


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Name and labels to value, as Prometheus' own parser reads them."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_what_happens_is_counted() -> None:
    metrics = Metrics(version="1.2.3")

    metrics.polls.labels("here", "ok").inc()
    metrics.polls.labels("here", "ok").inc()
    metrics.poll_s.labels("here").observe(0.2)
    metrics.runs.labels("here", "RUNNING").set(3)

    seen = samples(metrics)
    assert seen["bpsd_build_info", (("version", "1.2.3"),)] == 1
    assert seen["bpsd_polls_total", (("backend", "here"), ("outcome", "ok"))] == 2
    assert seen["bpsd_poll_seconds_bucket", (("backend", "here"), ("le", "0.1"))] == 0
    assert seen["bpsd_poll_seconds_bucket", (("backend", "here"), ("le", "0.3"))] == 1
    assert seen["bpsd_runs", (("backend", "here"), ("state", "RUNNING"))] == 3


def test_what_is_expected_is_counted_from_zero() -> None:
    metrics = Metrics(version="1")

    metrics.expect_commands(["submit"], ["DONE", "FAILED"])
    metrics.expect_backend("here")

    seen = samples(metrics)
    assert seen["bpsd_commands_total", (("state", "FAILED"), ("verb", "submit"))] == 0
    assert seen["bpsd_polls_total", (("backend", "here"), ("outcome", "failed"))] == 0
    assert not [name for name, _ in seen if name.endswith("_created")]


def test_what_is_counted_elsewhere_is_read_when_asked() -> None:
    metrics = Metrics(version="1")
    figures = {"clients": 1.0, "requests": 10.0, "not_told": 1.0}
    metrics.add(lambda: figures, counters=["requests"], help={"clients": "Connected", "requests": "Since the start"})
    assert samples(metrics)["bpsd_requests_total", ()] == 10

    figures["requests"] = 11.0

    seen = samples(metrics)
    assert seen["bpsd_requests_total", ()] == 11
    assert seen["bpsd_clients", ()] == 1
    assert not [name for name, _ in seen if "not_told" in name]
    assert b"# HELP bpsd_clients Connected\n# TYPE bpsd_clients gauge" in metrics.render()


def test_two_sources_of_one_name_are_noticed() -> None:
    metrics = Metrics(version="1")

    with pytest.raises(ValueError, match="Duplicated"):
        metrics.add(lambda: {"runs": 1.0}, counters=[], help={"runs": "again"})


def test_two_daemons_in_one_process_do_not_share() -> None:
    one, other = Metrics(version="1"), Metrics(version="1")

    one.polls.labels("here", "ok").inc()

    assert ("bpsd_polls_total", (("backend", "here"), ("outcome", "ok"))) not in samples(other)


class Nothing:
    """A cache without runs, and an engine without commands."""

    def records(self) -> list[object]:
        return []

    def open_by_state(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize(("state", "is_known"), [("", True), ("taken/away", False)])
async def test_figures_are_told_though_the_disk_is_away(tmp_path: Path, state: str, is_known: bool) -> None:
    metrics = Metrics(version="1")
    monitor = Monitor(
        metrics=metrics,
        cache=cast("Cache", Nothing()),
        engine=cast("CommandEngine", Nothing()),
        backends={},
        figures=lambda: dict.fromkeys(HELP, 7.0),
        waiting=dict,
        state_dir=tmp_path / state,
        clock=lambda: 1.0,
    )

    await monitor.page()

    seen = samples(metrics)
    assert seen["bpsd_memory_bytes", ()] == 7.0
    assert math.isnan(seen["bpsd_disk_free_bytes", ()]) is not is_known
