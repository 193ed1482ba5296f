"""``bpsd`` with a clock on the wall that a test sets: as a program, with the file of the offset (seconds) before the
arguments of bpsd. The clock that counts from the boot goes on as it does on a machine whose time is corrected.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

OFFSET = Path(sys.argv.pop(1))
_true_time = time.time


def shifted() -> float:
    """What a clock shows that was set."""
    return _true_time() + float(OFFSET.read_text(encoding="ascii") or 0)


time.time = shifted

if __name__ == "__main__":
    from bpsd.cli.bpsd import main

    sys.exit(main())
