"""Rows of the daemon as the reports of ctrl_bps; pure functions."""

from __future__ import annotations

__all__ = ["run_report", "run_state"]

import time
from collections.abc import Iterable, Mapping
from typing import Any

from lsst.ctrl.bps import WmsJobReport, WmsRunReport, WmsSpecificInfo, WmsStates

_FIELDS = frozenset(WmsRunReport.__dataclass_fields__)


def run_state(name: str) -> WmsStates:
    """A state by its name; one that this release of ctrl_bps does not know fits none of its states."""
    return WmsStates.__members__.get(name, WmsStates.MISFIT)


def run_report(row: Mapping[str, Any], jobs: Iterable[Mapping[str, Any]] = ()) -> WmsRunReport:
    """A run as ``bps report`` shows it. Every field is filled: the last release for Python 3.11 cannot show `None`, and
    lsst-dm/cm-service reads ``jobs`` unguarded.

    Parameters
    ----------
    row : `~collections.abc.Mapping`
        A `bpsd.messages.RunRow`.
    jobs : `~collections.abc.Iterable`, optional
        The run's `bpsd.messages.JobRow`, where one run was asked for.
    """
    labels = row.get("labels") or {}
    report = WmsRunReport(
        wms_id=row["id"],
        global_wms_id=row.get("global_wms_id") or f"{row['backend']}:{row['wms_id'] or row['id']}",
        path=row.get("path") or "",
        label=row.get("label") or "",
        run=row["name"],
        project=row.get("project") or "",
        campaign=row.get("campaign") or "",
        payload=row.get("payload") or "",
        operator=row.get("operator") or row.get("owner") or "",
        run_summary=row.get("run_summary") or _summary(row.get("expected") or {}),
        state=run_state(row["state"]),
        jobs=[_job_report(job) for job in jobs],
        total_number_jobs=row.get("total") or 0,
        job_state_counts=_counts(row.get("counts") or {}),
        job_summary={label: _counts(counts) for label, counts in labels.items()},
        exit_code_summary=_exit_codes(row.get("exit_codes") or {}, labels),
        specific_info=_specific_info(row),
    )
    if "site" in _FIELDS:  # not in the last release for Python 3.11
        report.site = row.get("site") or ""
    return report


def _job_report(job: Mapping[str, Any]) -> WmsJobReport:
    return WmsJobReport(
        wms_id=job.get("wms_id") or "", name=job["name"], label=job["label"], state=run_state(job["state"])
    )


def _counts(counts: Mapping[str, int]) -> dict[WmsStates, int]:
    found = dict.fromkeys(WmsStates, 0)
    for name, count in counts.items():
        found[run_state(name)] += count
    return found


def _summary(expected: Mapping[str, int]) -> str:
    return ";".join(f"{label}:{count}" for label, count in expected.items())


def _exit_codes(
    codes: Mapping[str, Mapping[str, int]], labels: Mapping[str, Mapping[str, int]]
) -> dict[str, list[int]]:
    """Every label's exit codes of failed jobs, one entry for each failure, in order."""
    found: dict[str, list[int]] = {label: [] for label in labels}
    for label, counts in codes.items():
        found[label] = sorted(int(code) for code, count in counts.items() for _ in range(count) if int(code))
    return found


def _specific_info(row: Mapping[str, Any]) -> WmsSpecificInfo:
    """What bpsd knows beside: where the run is, when that was seen, and why it is as it is."""
    info = WmsSpecificInfo()
    info.add_message(
        "Backend: {backend} (id there: {id_there})", backend=row["backend"], id_there=row["wms_id"] or "none"
    )
    if row.get("observed_at"):
        seen = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(row["observed_at"]))
        info.add_message("Seen: {seen}, in {source}", seen=seen, source=row.get("source") or "its backend")
    if row.get("attempt", 1) > 1:
        info.add_message("Attempt: {attempt}", attempt=row["attempt"])
    for name in ("note", "info"):
        if row.get(name):
            info.add_message(f"{{{name}}}", {name: row[name]})
    if row.get("last_known"):
        info.add_message("Last known: {last_known}", last_known=row["last_known"])
    return info
