"""``bpsd`` as a later version would be whose schemas have a step more: as a program, with that step's SQL, in a file,
before the arguments of bpsd.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from bpsd import journal, store
from bpsd.sqlitefile import Schema

STEP = Path(sys.argv.pop(1)).read_text(encoding="utf-8")


def _later(schema: Schema) -> Schema:
    return dataclasses.replace(schema, steps=(*schema.steps, STEP))


journal.SCHEMA, store.SCHEMA = _later(journal.SCHEMA), _later(store.SCHEMA)

if __name__ == "__main__":
    from bpsd.cli.bpsd import main

    sys.exit(main())
