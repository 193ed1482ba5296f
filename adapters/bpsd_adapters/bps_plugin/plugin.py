"""A plugin of ``bps`` where it lives: its class, what it is configured with, and its answers as JSON can say them.

Sent as ``bpsd_plugin.py`` with ``worker.py`` and ``host.py``, which both drive a plugin: standard library (Python 3.10
or newer) and the ``lsst`` packages.
"""

from __future__ import annotations

__all__ = ["Plugin", "plain", "says_no"]

import contextlib
import importlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

TEXT_CHARS = 8000
"""The most that is sent of a text that somebody else wrote."""

METHODS = (
    "prepare", "submit", "restart", "list_submitted_jobs", "report", "get_status", "cancel", "run_submission_checks",
    "ping",
)  # fmt: skip
"""Upstream's methods; a plugin implements those that it does not inherit."""

RUN_FIELDS = (
    "wms_id", "global_wms_id", "path", "label", "run", "project", "campaign", "payload", "operator", "site",
    "run_summary", "state", "jobs", "total_number_jobs", "job_state_counts", "job_summary", "exit_code_summary",
    "specific_info",
)  # fmt: skip

_ATTRIBUTES = ("bps_project", "bps_campaign", "bps_operator", "bps_payload", "bps_runsite")


class Plugin:
    """A plugin and what it is configured with.

    Parameters
    ----------
    name : `str`
        The class, with its module.
    settings : `dict`
        BPS settings that every run of this backend has.
    """

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name, self.settings = name, settings
        self.convert = importlib.import_module("bpsd_convert")
        self.bps = importlib.import_module("lsst.ctrl.bps")
        module, _, attribute = name.rpartition(".")
        self.kind: type[Any] = getattr(importlib.import_module(module), attribute)
        self._service: Any = None
        self._prepared: dict[str, Any] = {}

    @property
    def implements(self) -> list[str]:
        """Which of upstream's methods the plugin does not inherit."""
        base = self.bps.BaseWmsService
        return [m for m in METHODS if getattr(self.kind, m, None) is not getattr(base, m, None)]

    def config(self, more: dict[str, Any]) -> Any:
        """A ``BpsConfig`` with upstream's defaults, the plugin's, the backend's settings, and more."""
        config = self.bps.BpsConfig({"wmsServiceClass": self.name}, defaults=self.bps.BPS_DEFAULTS)
        config.update(self.settings)
        config.update(more)
        return config

    @property
    def service(self) -> Any:
        """The plugin for questions that are about no run in particular."""
        if self._service is None:
            self._service = self.kind(self.config({}))
        return self._service

    def ask(self, method: str, arguments: dict[str, Any]) -> Any:
        """One of upstream's methods, as it is, and its answer as plain values."""
        return plain(getattr(self.service, method)(**arguments))

    def restart(self, wms_id: str) -> tuple[str | None, Any, Any]:
        """The id that a run has after its restart (`None`: the WMS said no), its name, and the plugin's message."""
        new_id, name, message = plain(self.service.restart(wms_id))
        return None if new_id is None or says_no(message) else str(new_id), name, message

    def forget(self, token: str) -> None:
        """Forget what was prepared for a token: its files are about to be removed."""
        self._prepared.pop(token, None)

    def prepare(self, folder: Path, token: str) -> tuple[Any, Any]:
        """The plugin for a run, and the run as it made it; what was made for the same token before is taken again."""
        os.chdir(folder)  # plugins write beside themselves (Parsl: runinfo)
        if token in self._prepared:
            return self._prepared[token]  # type: ignore[no-any-return]
        document = json.loads((folder / "workflow.json").read_bytes())
        workflow = self.convert.from_document(document)
        config = self.config(self.run_settings(document, folder, workflow))
        # What every workflow of ``bps prepare`` has (transform.py), and plugins rely on.
        given = {**dict.fromkeys(_ATTRIBUTES, ""), "bps_isjob": "True", "bps_run": workflow.name}
        workflow.run_attrs.update({**given, **workflow.run_attrs, "bps_token": token})
        service = self.kind(config)
        with contextlib.suppress(NotImplementedError):
            service.run_submission_checks()
        prepared = service.prepare(config, workflow, str(folder))
        prepared.submit_path = prepared.submit_path or str(folder)
        self._prepared = {token: (service, prepared)}  # only the last: a workflow may be large
        return service, prepared

    def run_settings(self, document: dict[str, Any], folder: Path, workflow: Any) -> dict[str, Any]:
        """BPS settings of one run: those that ``bps prepare`` had, and where its files go here."""
        run = document.get("run", {})
        settings = dict(document.get("bps_config") or {})  # as it was read: what it names is looked up by the plugin
        settings.update({name: run[name] for name in ("project", "campaign", "operator") if run.get(name)})
        settings.setdefault("payload", {})
        if run.get("payload"):
            settings["payload"] = {**settings["payload"], "payloadName": run["payload"]}
        settings.update({"submitPath": str(folder), "uniqProcName": workflow.name.replace("/", "_")})
        settings["wmsServiceClass"] = self.name
        defined = dict(settings.get("bps_defined") or {})
        settings["bps_defined"] = {
            **defined,
            "submitPath": str(folder),
            "uniqProcName": settings["uniqProcName"],
            "timestamp": defined.get("timestamp") or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        }
        return settings


def says_no(message: Any) -> bool:
    """Whether a plugin agreed although the WMS did not: PanDA's hands on iDDS's answer, ``[[-1, {...}]]``, as it is."""
    try:
        first = json.loads(message)[0]
        return first is False or (isinstance(first[0], int) and first[0] != 0)
    except (TypeError, ValueError, LookupError):
        return False


def _sayable(value: Any) -> Any:
    """A simple value, as its text if JSON does not have it: NaN, infinity, half a character (a lone surrogate)."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def plain(value: Any) -> Any:
    """A value as JSON can say it: states become numbers, dataclasses dictionaries, what else there is its text.

    What JSON does not have becomes text too, so that one bad field of one run spoils no more than itself.
    """
    if hasattr(type(value), "__members__"):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return _sayable(value)
    if isinstance(value, dict):
        return {str(plain(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if hasattr(value, "templates") and hasattr(value, "context"):
        return {"templates": list(value.templates), "context": {key: plain(str(v)) for key, v in value.context.items()}}
    if hasattr(value, "run_summary"):
        report = {name: plain(getattr(value, name, None)) for name in RUN_FIELDS}
        return {**report, "wms_id": None if value.wms_id is None else plain(str(value.wms_id))}
    if hasattr(value, "wms_id") and hasattr(value, "label"):
        texts = {name: plain(str(getattr(value, name))) for name in ("wms_id", "name", "label")}
        return {**texts, "state": plain(value.state)}
    return _sayable(str(value)[:TEXT_CHARS])
