"""Where the daemon tells of itself: what a configuration may say of it, and that no secret is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpsd.config import Config, load_config
from bpsd.errors import ConfigInvalid
from bpsd.outlets import Route, Webhook, loopback_address
from bpsd.registry import adapter_config, known_adapters


def load(folder: Path, text: str) -> Config:
    path = folder / "bpsd.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, adapter_config, known_adapters(), environ={"HOME": "/h"}, uid=7)


def problems(folder: Path, text: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigInvalid) as caught:
        load(folder, text)
    return [(problem.key, problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("{listen: '0.0.0.0:9469'}", "is no loopback address"),
        ("{listen: 'localhost'}", "is no loopback address"),
        ("{listen: '127.0.0.1:99999'}", "is no loopback address"),
        ("{textfile: /var/lib/x.txt}", "does not have the form"),
        ("{textfile: x.prom}", "does not have the form"),
        ("{interval_s: 0}", "at least 1"),
    ],
)
def test_figures_stay_on_this_host(tmp_path: Path, metrics: str, message: str) -> None:
    [(key, told)] = problems(tmp_path, f"metrics: {metrics}")

    assert key.startswith("metrics")
    assert message in told


def test_loopback_addresses() -> None:
    assert loopback_address("127.0.0.1:9469") == ("127.0.0.1", 9469)
    assert loopback_address("[::1]:0") == ("::1", 0)
    with pytest.raises(ValueError, match="no loopback address"):
        loopback_address("192.0.2.1:9469")


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ("{}", "exactly one of command, webhook and mail"),
        ("{command: [/bin/true], webhook: {url: 'http://x'}}", "exactly one of"),
        ("{command: [true-or-not]}", "is not absolute"),
        ("{webhook: {}}", "either url or url_file"),
        ("{webhook: {url: 'http://x', url_file: /x}}", "either url or url_file"),
        ("{webhook: {url: 'ftp://x'}}", "does not begin with http"),
        ("{mail: {to: [], from: a@b}}", "must not be empty"),
        ("{mail: {to: ['a b'], from: a@b}}", "does not have the form"),
        ("{mail: {to: [a@b], from: a@b, user: x}}", "both user and password_file"),
        ("{mail: {to: [a@b], from: a@b, user: x, password_file: /x}}", "unprotected"),
        ("{command: [/bin/true], tell: [everything]}", "expected one of"),
        ("{command: [/bin/true], backends: [usdf]}", "there is no backend 'usdf'"),
    ],
)
def test_mistakes_in_a_route_are_told_with_their_place(tmp_path: Path, route: str, message: str) -> None:
    told = problems(tmp_path, f"notifications: {{routes: {{ops: {route}}}}}")

    assert any(message in text and key.startswith("notifications.routes.ops") for key, text in told), told


def test_pauses_must_make_sense(tmp_path: Path) -> None:
    [(key, told)] = problems(tmp_path, "notifications: {retry_initial_s: 9, retry_max_s: 5}")

    assert (key, "less than retry_initial_s" in told) == ("notifications.retry_max_s", True)


def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    config = load(tmp_path, "notifications: {routes: {ops: {webhook: {url: 'http://x/S3CRET'}}}}")

    for shown in (config, config.notifications, config.notifications.routes["ops"]):
        assert "S3CRET" not in repr(shown)
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, "notifications: {routes: {ops: {webhook: {url: 'ftp://x/S3CRET'}}}}")
    assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({}, True),
        ({"tell": ["held"]}, False),
        ({"backends": ["usdf"]}, True),
        ({"backends": ["lyon"]}, False),
        ({"users": ["her", "him"]}, True),
        ({"users": ["him"]}, False),
        ({"pattern": "u/her/*"}, True),
        ({"pattern": "campaign?"}, True),
        ({"pattern": "her"}, False),
    ],
)
def test_filters(filters: dict[str, Any], passes: bool) -> None:
    route = Route(webhook=Webhook(url="http://x"), **filters)

    assert route.takes("failed", "usdf", frozenset({"her"}), frozenset({"u/her/dr1", "campaign1"})) is passes
    if not filters.get("tell"):
        assert route.takes("backend_down", "usdf", frozenset(), frozenset()) is (filters.get("backends") != ["lyon"])
