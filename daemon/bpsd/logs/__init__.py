"""Structured logs: what happened, as one of `LogEvent`, with the facts as fields.

People read lines with colours on a terminal, systemd's journal gets fields (`bpsd.logs.journald`), and everything else
reads one JSON object a line (``timestamp``, ``level``, ``event`` and the fields). A log call never waits, never raises
for what it is given, and tells no secret::

    log call -> context of the task -> time, level, traceback -> redaction -> rendering -> LogSink -> stderr
                                                                                           (thread, bounded queue)
"""

from __future__ import annotations

__all__ = ["LEVELS", "LogControl", "LogEvent", "LogSink", "get_logger", "log_context", "log_to", "redact"]

import functools
import json
import logging
import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import structlog
from structlog.contextvars import bound_contextvars as log_context
from structlog.typing import FilteringBoundLogger, Processor

from bpsd.logs import journald
from bpsd.logs.events import LogEvent
from bpsd.logs.redaction import redact
from bpsd.logs.sink import LogSink

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
"""Names of levels, as the configuration has them, with the numbers of `logging`."""

_LIBRARIES_LEVEL = logging.WARNING


def get_logger(**fields: Any) -> FilteringBoundLogger:
    """Return a logger that adds ``fields`` to all it says. It may be made before `log_to` says where to."""
    return cast("FilteringBoundLogger", structlog.get_logger(**fields))


class LogControl:
    """What can be asked and changed while logs are written."""

    def __init__(self, sink: LogSink, level: str) -> None:
        self._sink = sink
        self._threshold = LEVELS[level]

    @property
    def dropped(self) -> int:
        """Lines that were dropped because nobody read them."""
        return self._sink.dropped

    def set_level(self, level: str) -> None:
        """Leave out what is below ``level`` (a key of `LEVELS`) from now on, in all loggers."""
        self._threshold = LEVELS[level]

    def _filter(self, _: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if LEVELS.get(method, logging.ERROR) < self._threshold:  # "exception" is an error
            raise structlog.DropEvent
        return event


@contextmanager
def log_to(
    fd: int = 2, *, level: str = "info", form: Literal["auto", "console", "journald", "json"] = "auto"
) -> Iterator[LogControl]:
    """Write all logs of the process to a file descriptor until the context ends.

    What libraries tell `logging`, and warnings, become the event ``library_message``.

    Parameters
    ----------
    fd : `int`, optional
        Where to; it is not closed.
    level : `str`, optional
        A key of `LEVELS`.
    form : `str`, optional
        ``console`` for people, ``json`` for programs, ``journald`` for systemd's journal (not to ``fd``); ``auto`` by
        what ``fd`` is.
    """
    console = os.isatty(fd) if form == "auto" else form == "console"
    journal = journald.is_journal(fd, os.environ) if form == "auto" else form == "journald"
    render = _console_renderer(colors=os.isatty(fd)) if console else structlog.processors.JSONRenderer()
    finish: list[Processor] = [
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S" if console else "iso", utc=not console),
        structlog.processors.format_exc_info,
        redact,
        functools.partial(_render, render),
    ]
    sink = LogSink(
        fd,
        describe_loss=functools.partial(_describe_loss, finish),
        deliver=journald.send_lines if journal else None,
    )
    control = LogControl(sink, level)
    before = structlog.get_config()
    structlog.configure(
        processors=[
            control._filter,  # noqa: SLF001 - its own module
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            *finish,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=structlog.WriteLoggerFactory(file=cast("Any", sink)),
        cache_logger_on_first_use=False,  # a cached logger would outlive this context
    )
    bridge = _LibraryHandler(_LIBRARIES_LEVEL)
    logging.root.addHandler(bridge)
    logging.captureWarnings(capture=True)
    try:
        yield control
    finally:
        logging.captureWarnings(capture=False)
        logging.root.removeHandler(bridge)
        structlog.configure(**before)
        sink.close()


class _LibraryHandler(logging.Handler):
    """Hands what libraries say through `logging` to our own loggers."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit the format
            text = str(record.msg)
        get_logger().log(level, LogEvent.LIBRARY_MESSAGE, logger=record.name, text=text, exc_info=record.exc_info)


def _console_renderer(*, colors: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)


def _render(render: Processor, logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    try:
        return cast("str", render(logger, method, event))
    except Exception as error:  # noqa: BLE001 - a value that cannot be shown must not break who logs it
        return json.dumps({"event": str(event.get("event")), "level": method, "log_error": repr(error)[:500]})


def _describe_loss(finish: list[Processor], count: int) -> str:
    """Make the line that stands for ``count`` lines that were dropped."""
    event: Any = {"event": LogEvent.LOG_LINES_DROPPED, "level": "warning", "count": count}
    for processor in finish:
        event = processor(None, "warning", event)
    return cast("str", event)
