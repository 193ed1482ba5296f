"""What monitoring sees of a real daemon: ``bpsctl health``, and the figures in a file and over HTTP.

What a real Prometheus makes of them is in `tests.integration.test_prometheus`.
"""

from __future__ import annotations

import json
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.bpsctl import bpsctl
from tests.integration.daemons import FAST, RunningDaemon, document, true_job, until
from tests.integration.prometheusbed import free_port

MONITORING = Path(__file__).parents[2] / "config" / "monitoring"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def daemon(state_dir: Path, port: int) -> Iterator[RunningDaemon]:
    metrics = {"textfile": str(state_dir / "bpsd.prom"), "interval_s": 1, "listen": f"127.0.0.1:{port}"}
    notifications = {"routes": {"ops": {"command": ["/bin/true"]}}}
    backends = {"toy": {"type": "scripted"}}
    with RunningDaemon(state_dir, backends, metrics=metrics, notifications=notifications) as running:
        yield running


def parsed(text: str) -> Samples:
    """Every sample as Prometheus' own parser reads it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def get(port: int, path: str = "/metrics", **options: Any) -> tuple[int, str]:
    """Status and body of a request."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", **options)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scraped(port: int) -> Samples:
    """What Prometheus would see now; nothing if nobody answers."""
    try:
        return parsed(get(port)[1])
    except OSError:
        return {}


def sample(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def test_figures_are_in_the_file_and_over_http(daemon: RunningDaemon, port: int) -> None:
    with daemon.client() as client:
        command = client.wait_command(client.submit_document(document(true_job("a_1")), backend="toy")["id"])
        daemon.wms("toy").change("1", state="RUNNING", jobs="RUNNING")
        until(lambda: client.status(command["run"])["state"] == "RUNNING", "RUNNING is seen")

        seen = until(
            lambda: (now := scraped(port)) and sample(now, "bpsd_runs", backend="toy", state="RUNNING") == 1.0 and now,
            "the run is scraped",
        )

        assert sample(seen, "bpsd_jobs", backend="toy", state="RUNNING") == 1
        assert sample(seen, "bpsd_backend_up", backend="toy") == 1
        assert sample(seen, "bpsd_backend_breaker", backend="toy", state="closed") == 1
        assert sample(seen, "bpsd_commands_total", verb="submit", state="DONE") == 1
        assert sample(seen, "bpsd_command_seconds_count", verb="submit") == 1
        assert (sample(seen, "bpsd_polls_total", backend="toy", outcome="ok") or 0) > 0
        assert (sample(seen, "bpsd_clients") or 0) >= 1
        assert (sample(seen, "bpsd_memory_bytes") or 0) > 1e6
        assert (sample(seen, "bpsd_loop_delay_seconds_count") or 0) > 0
    file = daemon.folder / "bpsd.prom"
    until(lambda: sample(parsed(file.read_text()), "bpsd_runs", backend="toy", state="RUNNING") == 1, "it is written")
    assert {name for name, _ in parsed(file.read_text())} == {name for name, _ in scraped(port)}
    assert [path.name for path in daemon.folder.glob("*.prom*")] == ["bpsd.prom"]


def test_a_sick_backend_and_a_refused_reload_are_seen_and_gone_when_they_are_mended(
    daemon: RunningDaemon, port: int
) -> None:
    assert bpsctl(daemon.socket, "health").code == 0
    good = daemon.config.read_text()
    daemon.wms("toy").fault("poll", "error")
    until(lambda: sample(scraped(port), "bpsd_backend_up", backend="toy") == 0, "the backend is down")
    until(
        lambda: sample(scraped(port), "bpsd_backend_breaker", backend="toy", state="closed") == 0, "the breaker opens"
    )
    until(lambda: sample(scraped(port), "bpsd_backend_stale", backend="toy") == 1, "it is stale")
    assert (sample(scraped(port), "bpsd_polls_total", backend="toy", outcome="failed") or 0) >= 5
    down = bpsctl(daemon.socket, "health")
    assert down.code == 2
    assert down.out.startswith("BPSD CRITICAL - backend toy is down (")
    daemon.wms("toy").fault("poll", None)
    until(lambda: bpsctl(daemon.socket, "health").code == 0, "the backend is well again")

    assert daemon.process is not None
    daemon.config.write_text(good.replace("metrics", "metirsc"))
    daemon.process.send_signal(signal.SIGHUP)
    refused = until(lambda: (done := bpsctl(daemon.socket, "health")).code == 1 and done, "the refusal is told")
    assert "the last reload was refused" in refused.out
    assert "`bpsd check-config` lists what is wrong" in refused.out
    until(lambda: sample(scraped(port), "bpsd_config_refused") == 1, "that is scraped")
    [check] = [c for c in json.loads(bpsctl(daemon.socket, "health", "--json").out)["checks"] if c["name"] == "config"]
    assert (check["status"], "metirsc" in check["message"] or "1 mistake" in check["message"]) == (1, True)
    daemon.config.write_text(good)
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: bpsctl(daemon.socket, "health").code == 0, "the refusal is over")
    until(lambda: sample(scraped(port), "bpsd_config_refused") == 0, "that is scraped")


def test_a_reload_moves_the_endpoint_and_forgets_a_backend(daemon: RunningDaemon, port: int) -> None:
    until(lambda: scraped(port), "the endpoint answers")
    other = free_port()
    daemon.configure({**FAST, "backends": {"toy2": {"type": "scripted"}}, "metrics": {"listen": f"127.0.0.1:{other}"}})

    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)

    seen = until(
        lambda: (now := scraped(other)) and sample(now, "bpsd_backend_up", backend="toy2") == 1 and now, "it has moved"
    )
    assert scraped(port) == {}
    assert not [labels for _, labels in seen if ("backend", "toy") in labels]


def test_the_endpoint_takes_little_of_anybody(daemon: RunningDaemon, port: int) -> None:
    until(lambda: scraped(port), "the endpoint answers")

    assert get(port, "/")[0] == 404
    assert get(port, "/metrics?x=1")[0] == 200
    assert get(port, data=b"x")[0] == 405
    with socket.create_connection(("127.0.0.1", port), timeout=60) as rude:
        rude.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n")
        assert rude.recv(1024).startswith(b"HTTP/1.1 431 ")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as silent:
        assert silent.recv(1024) == b""  # let go, unanswered
    crowd = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(40)]
    try:
        until(lambda: len([one for one in crowd if _ended(one)]) >= 40 - 16, "but for 16, all are turned away")
    finally:
        for one in crowd:
            one.close()
    until(lambda: scraped(port), "the endpoint answers again")


def _ended(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_an_address_that_is_taken_hurts_nothing_else(state_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        metrics = {"listen": address, "textfile": str(state_dir / "none" / "x.prom")}
        with RunningDaemon(state_dir, {"toy": {"type": "scripted"}}, metrics=metrics) as daemon:
            failed = until(
                lambda: {line["what"]: line["error"] for line in daemon.logged() if line["event"] == "metrics_failed"},
                "it is logged",
            )
            until(lambda: len([line for line in daemon.logged() if line["event"] == "metrics_failed"]) == 2, "both are")
            health = bpsctl(daemon.socket, "health")
            assert (health.code, "metrics.textfile: cannot write" in health.out) == (1, True)  # the daemon goes on
        assert set(failed) <= {address, metrics["textfile"]}


def test_alerts_say_what_happened_and_what_to_do() -> None:
    [group] = yaml.safe_load((MONITORING / "bpsd-alerts.yaml").read_text())["groups"]

    for rule in group["rules"]:
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
