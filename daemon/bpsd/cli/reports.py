"""Reports as operators of ``bps report`` know them, as pure functions from answers of the daemon to lines.

The columns, the flag, the table by label with its rules (counts that are missing go to UNREADY, a label that was never
seen shows -1) and the split of exit codes follow ``lsst.ctrl.bps.bps_reports``; backend, age and source are ours.
"""

from __future__ import annotations

__all__ = [
    "backend_lines",
    "detail_lines",
    "exit_code_lines",
    "expected_of",
    "is_stale",
    "label_lines",
    "summary_lines",
]

from bpsd import wire
from bpsd.cli.render import MIN_COLUMN, age, clean, clock, duration, long_age, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Row = dict[str, Any]
    Paint = Callable[[str, str], str]

PAYLOAD_CODES = (1, 2)
"""Exit codes of the payload: 1 a failure of its own, 2 an unusable command line. All others are infrastructure's."""

_COLUMNS: tuple[tuple[str, str], ...] = (
    ("OPERATOR", "operator"),
    ("PROJECT", "project"),
    ("CAMPAIGN", "campaign"),
    ("SITE", "site"),
    ("PAYLOAD", "payload"),
    ("RUN", "name"),
    ("BACKEND", "backend"),
)
_RIGHT = ("%S", "AGE")
_SHRINK = ("OPERATOR", "PROJECT", "CAMPAIGN", "SITE", "PAYLOAD", "RUN")
_DROP = ("SOURCE", "PROJECT", "CAMPAIGN", "SITE", "OPERATOR", "BACKEND", "PAYLOAD", "WMS ID", "AGE")


def summary_lines(
    rows: Sequence[Row],
    now: float,
    backends: dict[str, Row],
    *,
    width: int | None = None,
    paint: Paint | None = None,
    is_global: bool = False,
) -> list[str]:
    """One line a run, as they come. An age with a star is that of a run whose backend does not answer.

    Parameters
    ----------
    rows, backends
        Those of a `~bpsd.messages.ReportResult`.
    now : `float`
        Its ``time``.
    width, paint
        As of `bpsd.cli.render.table`.
    is_global : `bool`, optional
        Show the global id of the WMS in place of its local one.
    """
    wms = "global_wms_id" if is_global else "wms_id"
    header = ["X", "STATE", "%S", "ID", *(name for name, _ in _COLUMNS), "WMS ID", "AGE", "SOURCE"]
    lines = []
    for row in rows:
        percent = row.get("percent")
        lines.append(
            [
                row.get("flag", " "),
                row["state"],
                "UNK" if percent is None else str(percent),
                row["id"],
                *(row.get(field) for _, field in _COLUMNS),
                row.get(wms) if row.get(wms) != row["id"] else None,
                _age_of(row, now, backends),
                row.get("source", ""),
            ]
        )
    return table(
        header, lines, right=_RIGHT, shrink=_SHRINK, drop=_DROP, optional=("SITE", "WMS ID"), width=width, paint=paint
    )


def _age_of(row: Row, now: float, backends: dict[str, Row]) -> str:
    seen = row.get("observed_at")
    if seen is None:
        return "-"
    return age(now - seen) + ("*" if is_stale(row, backends) else "")


def is_stale(row: Row, backends: dict[str, Row]) -> bool:
    """Whether a live run may have changed: its backend, or what there knows of it, does not answer, or is gone."""
    backend = backends.get(row["backend"])
    if row["state"] in wire.TERMINAL_STATES:
        return False
    if backend is None or backend.get("stale") or backend.get("state") != "up":
        return True
    seen, before = row.get("observed_at"), backend.get("stale_before")
    return seen is not None and before is not None and bool(seen < before)


def backend_lines(backends: dict[str, Row], now: float) -> list[str]:
    """A sentence about every backend, or source of one, that does not answer."""
    lines = []
    for name, backend in backends.items():
        if backend.get("state") == "up" and not backend.get("stale"):
            silent = [source for source in backend.get("sources", ()) if source["status"] != "ok"]
            lines += [f"backend {clean(name)}, {clean(s['name'])}: {clean(s.get('error', ''))}" for s in silent]
            continue
        good = backend.get("last_good_at")
        text = f"backend {clean(name)}: " + ("not seen yet" if good is None else f"not seen for {long_age(now - good)}")
        if backend.get("state") == "auth":
            text += ": it refuses us"
        if backend.get("error"):
            text += f": {clean(backend['error'])}"
        if backend.get("state") == "stopped":
            text += "; its adapter has stopped, see `bpsctl backends -v`"
        elif backend.get("next_poll_at") is not None:
            text += f"; next try in {long_age(max(0.0, backend['next_poll_at'] - now))}"
        lines.append(text)
    return lines


# -- one run -----------------------------------------------------------------------------------------------------------


def detail_lines(row: Row, now: float, width: int | None = None) -> list[str]:
    """What stands between the summary and the table by label."""
    lines = [f"Path: {clean(row.get('path'))}", f"Global job id: {clean(row.get('global_wms_id'))}"]
    if row.get("owner"):
        lines.append(f"Owner: {clean(row['owner'])}")
    times = [
        f"{word} {clock(row[key])}"
        for word, key in (("submitted", "submitted_at"), ("started", "started_at"), ("ended", "ended_at"))
        if row.get(key) is not None
    ]
    if times:
        lines.append(f"Times: {', '.join(times)}{_took(row, now)}")
    if row["state"] == "UNKNOWN" and row.get("last_known"):
        ago = f" {long_age(now - row['last_known_at'])} ago" if row.get("last_known_at") is not None else ""
        lines.append(f"Last known: {row['last_known']}{ago}")
    if row.get("note"):
        head, *rest = str(row["note"]).splitlines() or [""]
        lines += [f"Note: {clean(head)}", *(clean(line) for line in rest)]
    if row.get("info"):
        lines += [clean(line) for line in str(row["info"]).splitlines()]
    attempts = row.get("attempts") or []
    if len(attempts) > 1:
        lines += ["", "Attempts:"]
        lines += table(
            ("ATTEMPT", "WMS ID", "STATE", "SINCE", "COMMAND"),
            [(a["attempt"], a.get("wms_id"), a.get("state"), clock(a.get("at")), a.get("command")) for a in attempts],
            right=("ATTEMPT",),
            optional=("COMMAND",),
            shrink=("WMS ID", "COMMAND"),
            width=width,
        )
    return lines


def _took(row: Row, now: float) -> str:
    start = row.get("started_at") or row.get("submitted_at")
    end = row.get("ended_at") or (None if row["state"] in wire.TERMINAL_STATES else now)
    return "" if start is None or end is None or end < start else f" ({duration(end - start)})"


def expected_of(row: Row) -> dict[str, int]:
    """How many jobs of each label the run is to have, in the order of the pipeline; empty if nobody knows."""
    if row.get("expected"):
        return dict(row["expected"])
    expected: dict[str, int] = {}
    for part in (row.get("run_summary") or "").split(";"):
        label, colon, number = part.rpartition(":")
        if colon and number.strip().isdigit():
            expected[label] = int(number)
    return expected


def label_lines(row: Row, width: int | None = None) -> tuple[list[str], list[str]]:
    """The table of states by label, and what is to be said below it."""
    expected, counts, labels = expected_of(row), row.get("counts") or {}, row.get("labels")
    states = tuple(wire.STATES)
    total = sum(expected.values()) if expected else row.get("total")
    rows: list[list[object]] = [["TOTAL", *(counts.get(state, 0) for state in states), total]]
    warnings = []
    if labels is None:
        warnings.append(f"WARNING: Job summary for run '{row['id']}' not available, report may be incomplete.")
    else:
        if not expected:
            warnings.append("WARNING: Could not determine order of pipeline, instead sorted alphabetically.")
        rows += (
            [label, *_label_counts(labels.get(label), expected.get(label)), expected.get(label, -1)]
            for label in expected or sorted(labels)
        )
    header = (" ", *states, "EXPECTED")
    drop = [state for state in states if state not in ("FAILED", "RUNNING")]
    lines = table(header, rows, right=header[1:], shrink=(" ",), drop=drop, width=width, rule_after_first=True)
    return lines, warnings


def _label_counts(counts: dict[str, int] | None, expected: int | None) -> list[int]:
    if counts is None:
        return [-1] * len(wire.STATES)
    numbers = {state: counts.get(state, 0) for state in wire.STATES}
    if expected is not None:
        numbers["UNREADY"] += expected - sum(numbers.values())
    return [*numbers.values()]


def exit_code_lines(row: Row, width: int | None = None) -> tuple[list[str], list[str]]:
    """The exit codes of failed jobs by label, those of the payload apart from all others, and what is to be said."""
    summary = _code_summary(row)
    if not summary:
        return [], [f"WARNING: Exit code summary for run '{row['id']}' not available, report may be incomplete."]
    warnings = []
    order = [*expected_of(row)]
    if not order:
        order = sorted(summary)
        warnings.append("WARNING: Could not determine order of pipeline, instead sorted alphabetically.")
    missing = [label for label in order if label not in summary]
    if missing:
        warnings.append(f"WARNING: Exit code summary was not available for job labels: {', '.join(missing)}")
    rows = []
    for label in order:
        if label not in summary:
            continue
        payload = {code: n for code, n in summary[label].items() if code in PAYLOAD_CODES}
        rest = {code: n for code, n in summary[label].items() if code not in PAYLOAD_CODES}
        rows.append((label, sum(payload.values()), _codes(payload), sum(rest.values()), _codes(rest)))
    header = (
        " ",
        "PAYLOAD ERROR COUNT",
        "PAYLOAD ERROR CODES",
        "INFRASTRUCTURE ERROR COUNT",
        "INFRASTRUCTURE ERROR CODES",
    )
    if width is not None and width < MIN_COLUMN + len(" ".join(header)):
        header = (" ", "PAYLOAD COUNT", "PAYLOAD CODES", "INFRA COUNT", "INFRA CODES")
    return table(header, rows, right=header[1:], shrink=(" ", *header[2::2]), width=width), warnings


def _code_summary(row: Row) -> dict[str, dict[int, int]]:
    """Label to exit code to count; a label of which no job failed has none, and that is known."""
    codes = row.get("exit_codes") or {}
    summary = {label: {int(code): n for code, n in counts.items()} for label, counts in codes.items()}
    for label, counts in (row.get("labels") or {}).items():
        if not counts.get("FAILED"):
            summary.setdefault(label, {})
    return summary


def _codes(counts: dict[int, int]) -> str:
    return ", ".join(sorted(str(code) for code in counts)) or "None"
