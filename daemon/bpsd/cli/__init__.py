"""The two command lines: ``bpsctl`` for people and scripts, ``bpsd`` for the daemon itself."""

from __future__ import annotations

__all__: list[str] = []
