"""A configuration, grown along the code that reads it: ``python -m tests.fuzz.config [OPTIONS] CORPUS``.

Whatever the file holds: it is a configuration, or every mistake in it is told with a place that exists.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["bpsd"]):
    from bpsd import config
    from bpsd.errors import ConfigInvalid
    from bpsd.registry import adapter_config, known_adapters

ENVIRON = {"HOME": "/h", "XDG_RUNTIME_DIR": "/run/user/7"}
KNOWN = known_adapters()


def one_input(data: bytes) -> None:
    """Read these bytes as a file."""
    try:
        loaded = config._drafted(data, "fuzz.yaml", adapter_config, KNOWN, ENVIRON, 7)
        loaded.document.check()
    except ConfigInvalid as error:
        if not error.problems:
            raise AssertionError("refused, and nothing is wrong") from error
        lines = data.count(b"\n") + data.count(b"\r") + 2
        for problem in error.problems:
            if not (0 <= problem.line <= lines and problem.message):
                raise AssertionError(f"there is no such place: {problem}") from error
        str(error)
    else:
        repr(loaded.config)


def main() -> None:
    """Fuzz as the command line says."""
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
