"""What a notifier says of backends that it looks at: no event tells it that one has fallen silent."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import anyio
import msgspec
import pytest
import structlog

from bpsd import notifier
from bpsd.cache import Cache
from bpsd.config import Polling
from bpsd.events import EventBus
from bpsd.metrics import Metrics
from bpsd.notifier import Notifier
from bpsd.outlets import Notifications, Route
from bpsd.poller import Backend
from bpsd.store import TimelineEvent


class Half:
    """A backend that answers; one of its sources does not, and began that lately."""

    class settings:  # noqa: N801 - an instance of it would be no simpler
        polling = Polling()

    stale = False
    last_good_at = 1.0
    silent: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.looks = 0
        self.answers = False

    @property
    def is_whole(self) -> bool:
        self.looks += 1
        return self.answers


class QuietCache:
    """A cache in which nothing happens."""

    seq = 0
    events = EventBus(lambda: 0.0)


async def test_after_a_restart_a_source_that_still_does_not_answer_has_not_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "LOOK_S", 0.02)
    told = {"open": [("stale backend usdf", "no answer from queue 2")]}
    kept = tmp_path / "notifications.json"
    kept.write_bytes(msgspec.json.encode({"seq": {"ops": 0}, "memory": {"ops": told}}))
    usdf = Half()

    async def timeline(_after: int, _limit: int) -> list[TimelineEvent]:
        return []

    made = Notifier(
        Notifications(digest_s=3600.0, routes={"ops": Route(command=["/bin/false"])}),
        path=kept,
        cache=cast("Cache", QuietCache()),
        backends={"usdf": cast("Backend", usdf)},
        timeline=timeline,
        metrics=Metrics(version="1"),
        daemon="here",
        log=structlog.get_logger(),
        clock=lambda: 2.0,
    )
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            await tasks.start(made.run)
            while usdf.looks < 3:  # noqa: ASYNC110 - it has no event for that
                await anyio.sleep(0.02)
            assert made.waiting() == {"ops": 0}
            usdf.answers = True
            while made.waiting() != {"ops": 1}:  # noqa: ASYNC110 - nor for that
                await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
