"""For those who write adapters: a scripted WMS with faults, and the contract suite that every adapter passes."""

from __future__ import annotations

__all__: list[str] = []
