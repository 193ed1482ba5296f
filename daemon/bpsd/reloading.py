"""What a running daemon takes of a new configuration, and what has to wait until it is started again. Pure."""

from __future__ import annotations

__all__ = ["NEEDS_RESTART", "applicable"]

from typing import Any

import msgspec

from bpsd.config import Config

NEEDS_RESTART = ("mode", "socket", "state_dir", "state_on_network", "logs.format")
"""Settings that a daemon reads when it starts, and never again. A reload applies all others."""


def applicable(old: Config, new: Config) -> tuple[Config, list[str]]:
    """The configuration to be in force after a reload, and the settings that need a restart.

    With another ``mode`` the whole configuration waits: rights and backends of a system's daemon mean something else in
    a person's own.
    """
    waiting = [name for name in NEEDS_RESTART if _get(new, name) != _get(old, name)]
    if "mode" in waiting:
        return old, waiting
    in_force = new
    for name in waiting:
        in_force = _with(in_force, name, _get(old, name))
    return in_force, waiting


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _with(config: Any, name: str, value: Any) -> Any:
    field, _, rest = name.partition(".")
    if rest:
        value = _with(getattr(config, field), rest, value)
    return msgspec.structs.replace(config, **{field: value})
