"""Room for file descriptors is made as far as it may be."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpsd.openfiles import BESIDE_CLIENTS, make_room, open_files

BEFORE = resource.getrlimit(resource.RLIMIT_NOFILE)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, BEFORE)


def test_the_soft_limit_is_raised_to_what_is_needed_and_no_further() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, BEFORE[1]))
    wanted = 300 + BESIDE_CLIENTS

    assert make_room(300) == (wanted, wanted)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (wanted, BEFORE[1])
    assert make_room(10) == (10 + BESIDE_CLIENTS, 10 + BESIDE_CLIENTS)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (wanted, BEFORE[1])


def test_the_hard_limit_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 600))
    monkeypatch.setattr("resource.setrlimit", lambda _, limits: asked.append(limits))

    assert make_room(1000) == (600, 1000 + BESIDE_CLIENTS)
    assert asked == [(600, 600)]


def test_descriptors_are_counted() -> None:
    before = open_files()
    with Path("/dev/null").open("rb"), Path("/dev/null").open("rb"):
        assert open_files() == before + 2
