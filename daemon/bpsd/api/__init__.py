"""What every method does: one module for each group of them, and `table` that puts them together.

A method that only reads memory is a plain function and is answered in the turn of the loop in which it came; whatever
may have to wait (the journal, history, a WMS) is a coroutine.
"""

from __future__ import annotations

__all__: list[str] = []
