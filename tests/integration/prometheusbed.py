"""A real Prometheus for tests, on loopback: it scrapes, evaluates the rules, and answers queries."""

from __future__ import annotations

__all__ = ["NodeExporter", "Prometheus", "free_port", "promtool"]

import json
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.integration.condorbed import bed_folder
from tests.integration.daemons import PATIENCE_S, until


def free_port() -> int:
    """A port of loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program(name: str) -> str:
    path = bed_folder() / "prometheus" / name
    assert path.exists(), f"there is no {path}: `make beds` fetches it"
    return str(path)


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end."""
    return subprocess.run([_program("promtool"), *words], capture_output=True, text=True, check=False, timeout=60)


class _Server:
    """A process that answers HTTP on a port of its own. A context manager that ends it."""

    def __init__(self, folder: Path, ready: str) -> None:
        self.folder, self.port, self._ready = folder, free_port(), ready
        self._log = folder / f"{type(self).__name__}.log"

    def argv(self) -> Sequence[str]:
        """How it is started."""
        raise NotImplementedError

    def get(self, path: str) -> bytes:
        """The body of a page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE_S) as answer:
            body: bytes = answer.read()
        return body

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            self.get(self._ready)
        except OSError:
            return False
        return True

    def __enter__(self) -> Any:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self.argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            until(self._answers, f"{type(self).__name__} answers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_S)


class NodeExporter(_Server):
    """The collector of text files alone: what it finds as ``*.prom`` in ``figures``."""

    def __init__(self, folder: Path, figures: Path) -> None:
        super().__init__(folder, "/metrics")
        self._figures = figures

    def argv(self) -> Sequence[str]:
        """Without what else it would tell of this host."""
        return (
            _program("prometheus-node-exporter"),
            "--collector.disable-defaults",
            "--collector.textfile",
            f"--collector.textfile.directory={self._figures}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        )


class Prometheus(_Server):
    """The server: scrapes ``ports`` each second, and evaluates ``rules`` as often.

    Parameters
    ----------
    folder : `~pathlib.Path`
        An empty one for what it keeps.
    ports : `~collections.abc.Mapping` [`str`, `int`]
        Job to the port of loopback that is scraped.
    rules : `dict`
        The document of a file of rules.
    """

    def __init__(self, folder: Path, ports: Mapping[str, int], rules: Mapping[str, Any]) -> None:
        folder.mkdir()
        super().__init__(folder, "/-/ready")
        settings = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in ports.items()
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
        (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules)))

    def argv(self) -> Sequence[str]:
        """On loopback, with all it keeps in its folder."""
        return (
            _program("prometheus"),
            f"--config.file={self.folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        )

    def ask(self, path: str, **parameters: str) -> Any:
        """What a page of its API answers."""
        body = self.get(f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        answer = json.loads(body)
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression comes to now: labels (``metric``) and ``value``."""
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result

    def firing(self) -> dict[str, list[str]]:
        """The alerts that fire: name to what each says."""
        found: dict[str, list[str]] = {}
        for alert in self.ask("alerts")["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["annotations"]["summary"])
        return found
