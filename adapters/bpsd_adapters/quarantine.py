"""Runs in quarantine: an unexpected error in one run pauses that run, and every other run of its backend goes on.

An adapter wraps each part of the work that it does for one run, and skips the part while the run pauses::

    for run in runs:
        if quarantine.is_due(run, READING):
            with quarantine.guard(run, READING):
                ...

A part that went well ends the quarantine for that part. Errors that the adapter foresees (`BpsdError`, and those named
in ``expected``) pass through: they are the caller's. `Quarantine.noted` puts the error into the run's note.
"""

from __future__ import annotations

__all__ = ["FIRST_PAUSE_S", "LONGEST_PAUSE_S", "Quarantine"]

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from bpsd.errors import BpsdError
from bpsd.logs import LogEvent
from bpsd.models import KnownRun, RunObservation

FIRST_PAUSE_S = 10.0
"""Pause after the first unexpected error of a run; each further error doubles it."""

LONGEST_PAUSE_S = 900.0
"""Longest pause between two tries of a run in quarantine."""

ERROR_MAX_CHARS = 300
"""Length at which the text of an error is cut in a note."""


@dataclass(slots=True)
class _Case:
    """A part of the work for one run that failed."""

    error: str
    failures: int
    due: float
    """When it is tried again, by the clock of `Quarantine`."""


class Quarantine:
    """The runs of one backend that failed in an unexpected way. Thread-safe.

    Parameters
    ----------
    log : `typing.Any`
        The log of the backend (`~bpsd.interface.ServiceContext.log`).
    backend : `str`
        Name of the backend, for the log.
    expected : `tuple` [`type`], optional
        Further errors that the adapter handles itself.
    clock : `~collections.abc.Callable`, optional
        Monotonic seconds.
    """

    def __init__(
        self,
        log: Any,
        backend: str,
        *,
        expected: tuple[type[Exception], ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._backend = backend
        self._expected: tuple[type[Exception], ...] = (BpsdError, *expected)
        self._clock = clock
        self._lock = threading.Lock()
        self._cases: dict[str, dict[str, _Case]] = {}
        """By run and part of the work."""

        self._reported: dict[str, str] = {}
        """The error that each live run was last reported with; empty if none."""

    def __repr__(self) -> str:
        return f"<Quarantine of {self._backend}: {len(self._cases)} runs>"

    def __contains__(self, run: str) -> bool:
        return run in self._cases

    def is_due(self, run: str, part: str) -> bool:
        """Return whether a part of the work for a run may be tried now: it did not fail, or its pause is over."""
        with self._lock:
            case = self._cases.get(run, {}).get(part)
            return case is None or self._clock() >= case.due

    def note(self, run: str) -> str:
        """Return why a run is in quarantine; empty if it is not."""
        with self._lock:
            return "; ".join(case.error for case in self._cases.get(run, {}).values())

    @contextmanager
    def guard(self, run: str, part: str) -> Iterator[None]:
        """Put the run into quarantine if the body raises an unexpected error, and end the body there.

        Parameters
        ----------
        run : `str`
            Id of the run.
        part : `str`
            The part of the work, as in "reading its log": each pauses by itself.
        """
        try:
            yield
        except self._expected:
            raise
        except ExceptionGroup as group:
            foreseen, unexpected = group.split(self._expected)
            if unexpected is None:
                raise
            self.add(run, part, unexpected)
            if foreseen is not None:
                raise foreseen from None
        except Exception as exc:  # noqa: BLE001  # any error of one run, so that the other runs go on
            self.add(run, part, exc)
        else:
            self._passed(run, part)

    def add(self, run: str, part: str, exc: Exception) -> None:
        """Put a run into quarantine, or prolong its pause. The log gets the traceback once for each error."""
        cause = _first(exc)
        error = f"internal error while {part}: {type(cause).__name__}: {cause}"[:ERROR_MAX_CHARS]
        with self._lock:
            cases = self._cases.setdefault(run, {})
            before = cases.get(part)
            failures = 1 if before is None else before.failures + 1
            pause_s = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 20), LONGEST_PAUSE_S)
            cases[part] = _Case(error, failures, self._clock() + pause_s)
        fields = {"backend": self._backend, "run": run, "error": error, "failures": failures, "retry_s": pause_s}
        if before is not None and before.error == error:
            self._log.info(LogEvent.RUN_QUARANTINED, **fields)
        else:
            self._log.error(LogEvent.RUN_QUARANTINED, **fields, exc_info=exc)

    def _passed(self, run: str, part: str) -> None:
        if run not in self._cases:
            return
        with self._lock:
            cases = self._cases.get(run, {})
            recovered = cases.pop(part, None) is not None
            if not cases:
                self._cases.pop(run, None)
        if recovered:
            self._log.info(LogEvent.RUN_RECOVERED, backend=self._backend, run=run, part=part)

    def retry_now(self, run: str) -> None:
        """Make a run due, because a person gave a command for it."""
        with self._lock:
            for case in self._cases.get(run, {}).values():
                case.due = self._clock()

    def forget(self, run: str) -> None:
        """Forget a run that is over or gone."""
        with self._lock:
            self._cases.pop(run, None)

    def noted(
        self,
        observations: Sequence[RunObservation],
        known: Iterable[KnownRun],
        source: str,
        usual_note: Callable[[KnownRun], str | None] | None = None,
    ) -> list[RunObservation]:
        """Return the observations of a poll with the error as the note of each known run in quarantine.

        A run without an observation gets one, with no state. A run's key in the quarantine is its ``key`` or its
        ``wms_id``.

        Parameters
        ----------
        observations : `~collections.abc.Sequence` [`~bpsd.models.RunObservation`]
            What the poll saw.
        known : `~collections.abc.Iterable` [`~bpsd.models.KnownRun`]
            Live runs as the daemon named them.
        source : `str`
            Name of the source of added observations.
        usual_note : `~collections.abc.Callable`, optional
            Returns the note of a run that is in no quarantine, or `None` if it is not known now. For adapters whose
            observations do not repeat the note: it replaces the error of a run that recovered. What the poll itself
            says of a run goes before it.
        """
        found = list(observations)
        place = {seen.key: number for number, seen in enumerate(found)}
        told = {seen.key for seen in found if seen.note is not None}
        reported: dict[str, str] = {}
        for run in known:
            error = self.note(run.key) or self.note(run.wms_id)
            note: str | None = error
            if not error:
                if usual_note is None or run.key in told or self._reported.get(run.key) == "":
                    reported[run.key] = ""
                    continue
                note = usual_note(run)  # also when a run is first seen: an earlier process may have reported an error
            if note is None:
                continue
            reported[run.key] = error
            number = place.get(run.key)
            if number is not None:
                found[number] = msgspec.structs.replace(found[number], note=note)
            else:
                found.append(
                    RunObservation(
                        wms_id=run.wms_id,
                        global_wms_id=run.global_wms_id,
                        source=source,
                        token=run.token,
                        attempt=run.attempt,
                        note=note,
                    )
                )
        self._reported = reported
        return found


def _first(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
