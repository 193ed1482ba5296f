"""A real Prometheus scrapes a real daemon: each alert fires in it and ends, each panel of the dashboard has its curves.

The server gets the rules as they are but for their patience, which no test has: without ``for``, and over seconds where
they say minutes. What they say in minutes is proved by promtool, on made-up series, with the files as they are.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.bpsctl import bpsctl
from tests.integration.daemons import FAST, RunningDaemon, document, true_job, until
from tests.integration.prometheusbed import NodeExporter, Prometheus, free_port, promtool

MONITORING = Path(__file__).parents[2] / "config" / "monitoring"
ALERTS = MONITORING / "bpsd-alerts.yaml"
UNIT_TESTS = Path(__file__).with_name("alerts.promtool.yaml")

SLOW = {"BpsdPollsSlow", "BpsdHistoryNotWritten", "BpsdDiskNearlyFull"}
"""Alerts on what takes half a minute a poll, or needs a disk that is full: `test_promtool_*` alone."""

BACKENDS = {name: {"type": "scripted"} for name in ("good", "down", "auth", "stopped", "doubt")}


def all_alerts() -> set[str]:
    return {rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}


def impatient_rules() -> dict[str, Any]:
    """The rules with seconds for minutes: see the module."""
    rules: dict[str, Any] = yaml.safe_load(ALERTS.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
            rule["expr"] = re.sub(r"\[\d+m\]", "[10s]", rule["expr"])
            rule["expr"] = re.sub(r"\[\d+h\]", "[30s]", rule["expr"])  # 25 commands may take a while
    return rules


def test_promtool_takes_the_rules() -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", str(ALERTS))

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_promtool_sees_each_alert_fire_in_its_time_and_not_before() -> None:
    tried = promtool("test", "rules", str(UNIT_TESTS))

    assert tried.returncode == 0, tried.stdout + tried.stderr
    cases = [case for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == all_alerts()
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == all_alerts()


class World:
    """A daemon whose endpoint and file a Prometheus scrapes."""

    def __init__(self, folder: Path) -> None:
        self.folder, endpoint = folder, free_port()
        self.figures = folder / "figures"
        self.figures.mkdir()
        self.file = self.figures / "bpsd.prom"
        self.settings: dict[str, Any] = {
            "metrics": {"textfile": str(self.file), "interval_s": 1, "listen": f"127.0.0.1:{endpoint}"},
            "notifications": {
                "routes": {"nobody": {"command": ["/bin/false"]}},
                "digest_s": 0.1,
                "retry_initial_s": 0.1,
                "retry_max_s": 0.2,
                "give_up_s": 1.0,
            },
            "limits": {"clients_per_user": 10, "clients_reserved": 0},
        }
        self.daemon = RunningDaemon(folder, BACKENDS, **self.settings)
        self.node = NodeExporter(folder, self.figures)
        self.prometheus = Prometheus(
            folder / "prometheus", {"bpsd": endpoint, "node": self.node.port}, impatient_rules()
        )

    def reload(self, backends: Mapping[str, Any]) -> None:
        """Give the daemon another configuration."""
        self.daemon.configure({**FAST, **self.settings, "backends": backends})
        assert self.daemon.process is not None
        self.daemon.process.send_signal(signal.SIGHUP)

    def until_firing(self, *alerts: str) -> None:
        def missing() -> set[str]:
            return {*alerts} - {*self.prometheus.firing()}

        until(lambda: not missing(), f"{alerts} fire, but {missing()} do not")

    def until_quiet(self, *but: str) -> None:
        def left() -> set[str]:
            return {*self.prometheus.firing()} - {*but}

        until(lambda: not left(), f"all alerts end, but {left()} do not")


@pytest.fixture
def world(state_dir: Path) -> Iterator[World]:
    world = World(state_dir)
    with world.daemon, world.node, world.prometheus:
        scraped = 'count(bpsd_build_info{job="bpsd"}) + count(bpsd_build_info{job="node"})'
        until(lambda: world.prometheus.query(scraped), "both are scraped")
        yield world


@pytest.mark.timeout(300)
def test_each_alert_fires_in_a_real_server_and_ends_there(world: World) -> None:
    daemon = world.daemon
    world.until_quiet()

    # What goes wrong while the daemon runs.
    for name, fault in (("down", "error"), ("auth", "auth"), ("stopped", "crash")):
        daemon.wms(name).fault("poll", fault)
    with daemon.wms("doubt").edit() as wms:
        wms.token_asks_tell = False
    daemon.wms("doubt").fault("submit", "lost", times=1)
    daemon.wms("good").fault("submit", "refuse", times=25)
    with daemon.client() as client:
        doubt = client.submit_document(document(true_job("a_1")), backend="doubt")["id"]
        for number in range(25):
            client.submit_document(document(true_job("a_1"), name=f"u/her/{number}"), backend="good")
    daemon.wms("good").add("u/her/failed", state="FAILED")  # told to a route that takes nothing
    world.until_firing("BpsdCommandsFail", "BpsdNotificationsDropped", "BpsdCommandsInDoubt")
    world.until_firing("BpsdBackendDown", "BpsdBackendRefusesUs", "BpsdBackendStopped")
    world.reload({"good": {"type": "scritped"}})
    with ExitStack() as crowd:
        for _ in range(world.settings["limits"]["clients_per_user"]):
            crowd.enter_context(daemon.client()).ping()
        for _ in range(10):
            assert bpsctl(daemon.socket, "ping").code != 0
        world.until_firing("BpsdClientsTurnedAway")
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGSTOP)
    time.sleep(2.0)  # longer than a loop may be held up
    os.kill(daemon.process.pid, signal.SIGCONT)
    world.until_firing("BpsdConfigRefused", "BpsdLoopHeldUp")
    world.until_firing("BpsdBackendDown", "BpsdBackendRefusesUs", "BpsdBackendStopped", "BpsdCommandsInDoubt")
    told = world.prometheus.firing()
    assert {said.partition(" on ")[0] for said in told["BpsdBackendDown"]} >= {"down does not answer bpsd"}
    assert {said.partition(" on ")[0] for said in told["BpsdBackendRefusesUs"]} == {"auth does not let bpsd"}
    fired = {*told, "BpsdCommandsFail", "BpsdNotificationsDropped", "BpsdClientsTurnedAway"}

    # All is mended, but for the lag, which is that of the last minute.
    for name in ("down", "auth", "stopped"):
        daemon.wms(name).fault("poll", None)
    with daemon.client() as client:
        client.commands_resolve(doubt, "done", wms_id="1")
    world.reload(BACKENDS)
    world.until_quiet("BpsdLoopHeldUp")

    # What is wrong with a daemon that was killed, and with its journal.
    daemon.kill()
    world.until_firing("BpsdNotScraped")
    fired |= {*world.prometheus.firing()}
    age_s = 301  # the file as one finds it five minutes later
    at = re.compile(r"(?m)^(bpsd_collected_timestamp_seconds) (\S+)$")
    world.file.write_text(at.sub(lambda found: f"{found[1]} {float(found[2]) - age_s}", world.file.read_text()))
    world.until_firing("BpsdFiguresOld")
    world.file.unlink()
    world.until_firing("BpsdGone")
    fired |= {"BpsdFiguresOld", *world.prometheus.firing()}
    (daemon.state / "journal.db-wal").unlink()  # which would mend what is damaged here
    (daemon.state / "journal.db").write_bytes(b"\xff" * 20_000)
    daemon.start()
    world.until_firing("BpsdJournalReadOnly")
    fired |= {*world.prometheus.firing()}
    with daemon.client() as client:
        client.admin("accept")
    world.until_quiet()

    assert fired == all_alerts() - SLOW


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((MONITORING / "bpsd-dashboard.json").read_text())
    return document


def values_of(server: Prometheus, query: str) -> list[str]:
    """What Grafana offers for a variable: it asks the server for series, and takes a label of theirs."""
    found = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
    assert found is not None, query
    return sorted({series[found[2]] for series in server.ask("series", **{"match[]": found[1]})})


def test_each_panel_and_each_rule_asks_for_what_there_is(world: World) -> None:
    """Also the rules that no test makes fire: a name that nobody exports would keep an alert silent for ever."""
    daemon, server = world.daemon, world.prometheus
    daemon.wms("down").fault("poll", "error")
    daemon.wms("good").add("u/her/run", jobs=3)

    def commands_shown() -> list[Any]:
        """Some more: of a rate, Prometheus sees nothing in what happened before it first looked."""
        with daemon.client() as client:
            client.wait_command(client.submit_document(document(true_job("a_1")), backend="good")["id"])
        return server.query('increase(bpsd_command_seconds_count{verb="submit"}[5m]) > 0')

    until(commands_shown, "how long commands take")
    chosen: dict[str, str] = {}
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            values = until(partial(values_of, server, _replaced(variable["query"], chosen)), variable["name"])
            chosen[variable["name"]] = f"({'|'.join(map(re.escape, values))})"  # as Grafana writes "All"
    assert chosen["backend"] == "(auth|doubt|down|good|stopped)"
    targets = [(panel["title"], target["expr"]) for panel in dashboard()["panels"] for target in panel["targets"]]
    assert len(targets) > 20
    for title, expression in targets:
        asked = _replaced(expression, chosen)
        assert "$" not in asked, title
        rows = server.query(asked)
        assert [row for row in rows if not math.isnan(float(row["value"][1]))], f"{title}: {asked}"

    rules = [rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    series = {found for rule in rules for found in re.findall(r"\bbpsd_\w+(?:\{[^}]*\})?", rule)}
    assert len(series) > 10
    assert [each for each in series if not server.query(each)] == []


def _replaced(text: str, chosen: Mapping[str, str]) -> str:
    """With variables in the place of their names, in the quoted strings of PromQL."""
    return re.sub(r"\$(\w+)", lambda found: chosen[found[1]].replace("\\", "\\\\"), text)


def test_panels_have_places_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])
