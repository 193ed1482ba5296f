"""The jobs of one run as columns: about 110 bytes a job with its name, and counts that are never recounted.

A struct for each job would cost four times as much (a million jobs are what the daemon must hold), and a report would
have to walk over all of them. Here a change of one job touches a few array cells and two counters.

The decision whether an observation may change a job is `bpsd.reducer.job_wins`; this module only keeps what was
decided.
"""

from __future__ import annotations

__all__ = ["ROWS_PER_PART", "JobTable", "encode_changes"]

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec

from bpsd.messages import JobRow
from bpsd.models import TERMINAL, JobObservation, WmsStates, normal_exit_code, signal_of
from bpsd.reducer import JobKey, job_wins

_ORDER = tuple(WmsStates)
# By the number of a state as the columns hold it: looking it up is ten times as fast as making a `WmsStates`.
_NAMES = tuple(state.name for state in _ORDER)
_STATE = {int(state): state for state in _ORDER}
_POSITION = {int(state): position for position, state in enumerate(_ORDER)}
_FAULTS = frozenset({WmsStates.FAILED, WmsStates.HELD, WmsStates.DELETED})
_NO_CODE = -(2**31)
_NO_ATTEMPT = -1
_MOST = 2**31 - 1
_MOST_CAUSES = 10_000
_MOST_SHORT = 2**15 - 1


ROWS_PER_PART = 4096
"""Jobs in one part of a snapshot: about a millisecond to write or to read, so the loop can answer in between."""


class _Part(msgspec.Struct, array_like=True):
    """Some rows of a table, as `JobTable.parts` writes them; fields are only ever appended."""

    names: list[str]
    labels: list[str]
    hosts: list[str]
    label_of: bytes
    state: bytes
    run_attempt: bytes
    attempt: bytes
    rank: bytes
    code: bytes
    time: bytes
    start: bytes
    end: bytes
    host_of: bytes
    wms_ids: list[str]
    notes: dict[int, str]


class JobTable:
    """The jobs of one run.

    ``version`` grows with every change. Rows keep their place for ever, in the order of first sight, so that a page of
    jobs can go on where the one before ended.
    """

    __slots__ = (
        "_attempt",
        "_code",
        "_codes",
        "_counts",
        "_end",
        "_host_index",
        "_host_of",
        "_hosts",
        "_index",
        "_label_of",
        "_labels",
        "_names",
        "_notes",
        "_rank",
        "_run_attempt",
        "_start",
        "_state",
        "_time",
        "_totals",
        "_wms_ids",
        "version",
    )

    def __init__(self) -> None:
        self.version = 0
        self._names: list[str] = []
        # Name to row. Costs more than all columns together, so it goes when the run falls quiet (`forget_index`).
        self._index: dict[str, int] | None = {}
        self._labels: list[str] = []
        self._hosts: list[str] = [""]
        self._host_index: dict[str, int] | None = None  # made and dropped with the index of names
        self._label_of = array("I")
        self._state = array("b")
        self._run_attempt = array("h")
        self._attempt = array("i")
        self._rank = array("h")
        self._code = array("i")
        self._time = array("d")
        self._start = array("d")
        self._end = array("d")
        self._host_of = array("I")
        # Empty until the first id comes: local jobs have none.
        self._wms_ids: list[str] = []
        self._notes: dict[int, str] = {}
        # Per label: how many jobs are in each state, and which non-zero exit codes its faulty jobs have.
        self._counts: list[list[int]] = []
        self._codes: list[Counter[int]] = []
        self._totals = [0] * len(_ORDER)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<JobTable {len(self)} jobs, {self.state_counts()}>"

    # -- writing -----------------------------------------------------------------------------------------------------

    def apply(self, run_attempt: int, jobs: Sequence[JobObservation]) -> list[JobObservation]:
        """Take what may be taken of ``jobs``; returns those that changed a state or an attempt, in order."""
        changed = []
        index = self._indexed()
        run_attempt = min(run_attempt, _MOST_SHORT)
        for job in jobs:
            if not _fits(job):
                job = _fitted(job)  # noqa: PLW2901  # as the columns can hold it
            row = index.get(job.name)
            if row is None:
                index[job.name] = self._append(run_attempt, job)
                changed.append(job)
            elif self._update(row, run_attempt, job):
                changed.append(job)
        if changed:
            self.version += 1
        return changed

    def forget_index(self) -> None:
        """Drop the indexes of names and hosts; the next `apply` makes them anew."""
        self._index = self._host_index = None

    def _indexed(self) -> dict[str, int]:
        if self._index is None:
            self._index = {name: row for row, name in enumerate(self._names)}
        return self._index

    def _append(self, run_attempt: int, job: JobObservation) -> int:
        row = len(self._names)
        self._names.append(job.name)
        self._label_of.append(self._label_number(job.label))
        self._state.append(job.state)
        self._run_attempt.append(run_attempt)
        self._attempt.append(_NO_ATTEMPT if job.attempt is None else job.attempt)
        self._rank.append(job.rank)
        self._code.append(_NO_CODE if job.exit_code is None else job.exit_code)
        self._time.append(job.time or 0.0)
        self._start.append(job.start_time or 0.0)
        self._end.append(job.end_time or 0.0)
        self._host_of.append(0)
        self._texts(row, job)
        self._count(row, +1)
        return row

    def _update(self, row: int, run_attempt: int, job: JobObservation) -> bool:
        old_attempt = self._attempt[row]
        old_state = self._state[row]
        before = JobKey(
            self._run_attempt[row],
            None if old_attempt == _NO_ATTEMPT else old_attempt,
            _STATE[old_state],
            self._rank[row],
            self._time[row] or None,
        )
        after = JobKey(run_attempt, job.attempt, job.state, job.rank, job.time)
        if not job_wins(before, after):
            return False
        self._count(row, -1)
        new_attempt = _NO_ATTEMPT if job.attempt is None else job.attempt
        again = run_attempt != before.run_attempt or (job.attempt is not None and new_attempt != old_attempt)
        # An end that a better source has told stays as firm as that when a weaker one repeats it.
        confirmed = job.state == old_state and not again and job.state in TERMINAL
        self._rank[row] = max(before.rank, job.rank) if confirmed else job.rank
        self._state[row] = job.state
        self._run_attempt[row] = run_attempt
        if job.attempt is not None:
            self._attempt[row] = new_attempt
        if job.time is not None:
            self._time[row] = job.time
        if again:  # what belonged to the attempt before says nothing about this one
            self._code[row] = _NO_CODE
            self._start[row] = self._end[row] = 0.0
            self._notes.pop(row, None)
        if job.exit_code is not None:
            self._code[row] = job.exit_code
        if job.start_time is not None:
            self._start[row] = job.start_time
        if job.end_time is not None:
            self._end[row] = job.end_time
        if job.state != old_state:
            self._notes.pop(row, None)
        self._texts(row, job)
        self._count(row, +1)
        return again or job.state != old_state

    def _texts(self, row: int, job: JobObservation) -> None:
        if job.wms_id:
            missing = row + 1 - len(self._wms_ids)
            if missing > 0:
                self._wms_ids.extend([""] * missing)
            self._wms_ids[row] = job.wms_id
        if job.note:
            self._notes[row] = job.note
        if job.host:
            self._host_of[row] = self._host_number(job.host)

    def _host_number(self, host: str) -> int:
        if self._host_index is None:
            self._host_index = {known: number for number, known in enumerate(self._hosts)}
        number = self._host_index.setdefault(host, len(self._hosts))
        if number == len(self._hosts):
            self._hosts.append(host)
        return number

    def _label_number(self, label: str) -> int:
        try:
            return self._labels.index(label)  # a handful of labels: a scan beats a second dict
        except ValueError:
            self._labels.append(label)
            self._counts.append([0] * len(_ORDER))
            self._codes.append(Counter())
            return len(self._labels) - 1

    def _count(self, row: int, step: int) -> None:
        state = self._state[row]
        label = self._label_of[row]
        position = _POSITION[state]
        self._counts[label][position] += step
        self._totals[position] += step
        code = self._code[row]
        if code not in (0, _NO_CODE) and state in _FAULTS:
            codes = self._codes[label]
            codes[code] += step
            if not codes[code]:
                del codes[code]

    def _count_from(self, first: int) -> None:
        """Count the rows from ``first`` on, with no step of Python for each job (a daemon starts with a million)."""
        for _ in range(len(self._labels) - len(self._counts)):
            self._counts.append([0] * len(_ORDER))
            self._codes.append(Counter())
        columns = self._label_of[first:], self._state[first:], self._code[first:]
        for (label, state, code), count in Counter(zip(*columns, strict=True)).items():
            self._counts[label][_POSITION[state]] += count
            self._totals[_POSITION[state]] += count
            if code not in (0, _NO_CODE) and state in _FAULTS:
                self._codes[label][code] += count

    # -- reading -----------------------------------------------------------------------------------------------------

    def state_counts(self) -> dict[str, int]:
        """Jobs by state (only states that occur), in the order of `WmsStates`."""
        return {name: n for name, n in zip(_NAMES, self._totals, strict=True) if n}

    def in_state(self, state: WmsStates) -> int:
        """How many jobs are in ``state``."""
        return self._totals[_POSITION[state]]

    def label_counts(self) -> dict[str, dict[str, int]]:
        """Per label, jobs by state (only states that occur)."""
        return {
            label: {name: n for name, n in zip(_NAMES, counts, strict=True) if n}
            for label, counts in zip(self._labels, self._counts, strict=True)
        }

    def exit_codes(self) -> dict[str, dict[int, int]]:
        """Per label, how often each non-zero exit code stands behind a failed, held or deleted job."""
        return {label: dict(sorted(codes.items())) for label, codes in zip(self._labels, self._codes, strict=True)}

    def causes(self) -> dict[str, dict[str, int]]:
        """Per label, how often each note, or exit code where there is no note, stands behind a faulty job."""
        found = {label: {str(code): n for code, n in codes.items()} for label, codes in self.exit_codes().items()}
        for row, note in islice(self._notes.items(), _MOST_CAUSES):
            if self._state[row] != WmsStates.FAILED:
                continue
            causes, code = found[self._labels[self._label_of[row]]], str(self._code[row])
            causes[note] = causes.get(note, 0) + 1
            if causes.get(code):
                causes[code] -= 1
        return {label: {cause: n for cause, n in causes.items() if n} for label, causes in found.items()}

    def row(self, row: int) -> JobRow:
        """One job as a client sees it."""
        attempt, code = self._attempt[row], self._code[row]
        return JobRow(
            name=self._names[row],
            label=self._labels[self._label_of[row]],
            state=WmsStates(self._state[row]).name,  # type: ignore[arg-type]  # the names are those of StateName
            attempt=None if attempt == _NO_ATTEMPT else attempt,
            wms_id=self._wms_ids[row] if row < len(self._wms_ids) else "",
            exit_code=None if code == _NO_CODE else code,
            started_at=self._start[row] or None,
            ended_at=self._end[row] or None,
            host=self._hosts[self._host_of[row]],
            note=self._notes.get(row) or self._signal(row),
        )

    def _signal(self, row: int) -> str:
        """Why a job failed of which no source said more than the signal that ended it."""
        code = self._code[row]
        return "" if code == _NO_CODE or self._state[row] != WmsStates.FAILED else signal_of(code)

    def since(self, row: int) -> float | None:
        """When a job came into its state (epoch seconds of its WMS), if a source said so."""
        return self._time[row] or None

    def find(self, name: str) -> JobRow | None:
        """The job called ``name``."""
        row = self._indexed().get(name)
        return None if row is None else self.row(row)

    def names(self) -> Sequence[str]:
        """All names, in the order of rows."""
        return self._names

    def select(self, states: frozenset[WmsStates], label: str | None) -> Iterator[int]:
        """The rows in one of ``states`` (empty: any) with ``label`` (`None`: any), in order."""
        return (row for row in self.scan(states, label) if row is not None)

    def scan(self, states: frozenset[WmsStates], label: str | None) -> Iterator[int | None]:
        """Go over all rows as `select` does, with `None` for each that is not chosen: a caller can pause anywhere.

        Rows that come meanwhile are left out.
        """
        number = None
        if label is not None:
            if label not in self._labels:
                return
            number = self._labels.index(label)
        wanted = {int(state) for state in states}
        state_of, label_of = self._state, self._label_of
        for row in range(len(self)):
            fits = (not wanted or state_of[row] in wanted) and (number is None or label_of[row] == number)
            yield row if fits else None

    # -- keeping -----------------------------------------------------------------------------------------------------

    def parts(self) -> Iterator[bytes]:
        """The whole table for the store, part by part; joined they are its snapshot.

        Nothing may be applied until the last one is taken.
        """
        for first in range(0, len(self), ROWS_PER_PART):
            rows = slice(first, first + ROWS_PER_PART)
            columns = (getattr(self, column)[rows].tobytes() for column in _COLUMNS)
            notes = {row - first: self._notes[row] for row in range(first, rows.stop) if row in self._notes}
            part = msgspec.msgpack.encode(
                (self._names[rows], self._labels, self._hosts, *columns, self._wms_ids[rows], notes)
            )
            yield len(part).to_bytes(4) + part

    def dump(self) -> bytes:
        """The whole table as a snapshot for the store."""
        return b"".join(self.parts())

    def loading(self, snapshot: bytes | None, appended: Sequence[bytes] = ()) -> Iterator[None]:
        """Take in what the store has of a run, into an empty table, step by step: see `load`."""
        data = memoryview(snapshot or b"")
        # A snapshot of 0.1.0.dev0 is one part without its length; a length never begins with that byte.
        if data[:1] == _ARRAY_OF_15:
            self._extend(data)
            data = data[:0]
        while data:
            length = int.from_bytes(data[:4])
            self._extend(data[4 : 4 + length])
            data = data[4 + length :]
            yield
        for piece in appended:
            run_attempt, jobs = _CHANGES.decode(piece)
            self.apply(run_attempt, jobs)
            yield
        self.forget_index()

    @classmethod
    def load(cls, snapshot: bytes | None, appended: Sequence[bytes] = ()) -> JobTable:
        """The table that `dump` wrote, with the changes that came later (`encode_changes`).

        Raises
        ------
        ValueError
            If the bytes are not such a table.
        """
        table = cls()
        for _ in table.loading(snapshot, appended):
            pass
        return table

    def _extend(self, data: memoryview) -> None:
        part = _PARTS.decode(data)
        first = len(self._names)
        self._names += part.names
        for column in _COLUMNS:
            cells: array[int] | array[float] = getattr(self, column)
            cells.frombytes(getattr(part, column[1:]))
            if len(cells) != len(self._names):
                raise ValueError(f"the column {column[1:]} has {len(cells)} rows for {len(self._names)} jobs")
        if part.wms_ids:
            self._wms_ids.extend([""] * (first - len(self._wms_ids)))
            self._wms_ids += part.wms_ids
        self._notes.update((first + row, note) for row, note in part.notes.items())
        self._labels, self._hosts = part.labels, part.hosts  # the same in each part
        try:
            self._count_from(first)
        except LookupError as exc:
            raise ValueError(f"a job has a state or a label that there is not: {exc}") from exc
        self._index = self._host_index = None


_COLUMNS = (
    "_label_of",
    "_state",
    "_run_attempt",
    "_attempt",
    "_rank",
    "_code",
    "_time",
    "_start",
    "_end",
    "_host_of",
)
"""The arrays with a cell for each job, in the order in which `_Part` has them."""

_ARRAY_OF_15 = b"\x9f"
_PARTS = msgspec.msgpack.Decoder(_Part)
_CHANGES = msgspec.msgpack.Decoder(tuple[int, list[JobObservation]])


def _fits(job: JobObservation) -> bool:
    code, attempt = job.exit_code, job.attempt
    return (
        (code is None or 0 <= code <= _MOST)
        and (attempt is None or 0 <= attempt <= _MOST)
        and -_MOST_SHORT <= job.rank <= _MOST_SHORT
    )


def _fitted(job: JobObservation) -> JobObservation:
    """Return the observation with a signal as 128 + N, and its numbers cut to what a column holds.

    One absurd number is no reason to poll in vain.
    """
    return msgspec.structs.replace(
        job,
        exit_code=None if job.exit_code is None else max(-_MOST, min(normal_exit_code(job.exit_code), _MOST)),
        attempt=None if job.attempt is None else max(0, min(job.attempt, _MOST)),
        rank=max(-_MOST_SHORT, min(job.rank, _MOST_SHORT)),
    )


def encode_changes(run_attempt: int, jobs: Sequence[JobObservation]) -> bytes:
    """Job observations as bytes that `JobTable.load` takes in ``appended``."""
    return msgspec.msgpack.encode((run_attempt, list(jobs)))
