"""``docs/admin.md`` tells of every figure for Prometheus, of every kind of notification, and of nothing else."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec
import yaml
from prometheus_client.parser import text_string_to_metric_families

from bpsd.config import ConfigFile
from bpsd.logs.events import LogEvent
from bpsd.metrics import Metrics
from bpsd.monitor import HELP
from bpsd.notices import Group, Message
from bpsd.outlets import NotificationKind
from bpsd.server.figures import COUNTERS

TEXT = (Path(__file__).parents[2] / "docs" / "admin.md").read_text(encoding="utf-8")


def figures() -> set[str]:
    """The names that there are, counters with the ending that Prometheus gives them."""
    metrics = Metrics(version="1")
    metrics.add(lambda: dict.fromkeys(HELP, 0.0), counters=COUNTERS, help=HELP)
    families = text_string_to_metric_families(metrics.render().decode())
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def test_every_figure_is_told_and_no_other() -> None:
    assert set(re.findall(r"`(bpsd_\w+)`", TEXT)) == figures()


def test_every_kind_of_notification_and_every_key_of_a_message_is_told() -> None:
    section = TEXT.partition("## Notifications")[2].partition("\n## ")[0]
    keys = [*typing.get_args(NotificationKind), *Message.__struct_fields__, *Group.__struct_fields__]

    assert [key for key in keys if f"`{key}`" not in section] == []


def test_every_example_is_a_configuration() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        msgspec.convert(yaml.safe_load(example), ConfigFile)


def test_every_event_of_the_log_is_one() -> None:
    section = TEXT.partition("### The log")[2].partition("\n## ")[0]
    told = set(re.findall(r"`([a-z]+_[a-z_]+)`", section)) - {"left_out"}

    assert told
    assert told - set(LogEvent) == set()
