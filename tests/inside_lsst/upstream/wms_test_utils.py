"""The service classes that ctrl_bps's own unit tests name, made of `BpsdService`.

Upstream's have answers of their own in place of a WMS. Here the answers come from where ours come from: from a daemon,
for which a few lines stand in; everything between is `BpsdService`.
"""

from __future__ import annotations

import logging
from typing import Any

from lsst.ctrl.bps import WmsSpecificInfo

from bpsd.client.failures import NoDaemon
from bpsd.client.sync import Client
from bpsd.lsst import BpsdService, reports

_LOG = logging.getLogger(__name__)

ROW: dict[str, Any] = {
    "id": "rbcdfghjk",
    "backend": "pool",
    "wms_id": "1.0",
    "name": "run",
    "state": "SUCCEEDED",
    "total": 1,
    "counts": {"SUCCEEDED": 1},
    "run_summary": "foo:1",
    "labels": {"foo": {"SUCCEEDED": 1}},
}
BARE_ROW: dict[str, Any] = {"id": "rbcdfghjk", "backend": "pool", "wms_id": "", "name": "run", "state": "FAILED"}
JOB: dict[str, Any] = {"name": "job", "label": "foo", "state": "SUCCEEDED"}


class Answering(Client):
    """A client whose daemon gives the answers of a script."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__("/nobody")
        self._answers = answers

    def connect(self) -> dict[str, Any]:
        """Nothing to connect to."""
        return {}

    def request(self, method: str, params: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Answer."""
        answer = self._answers.get(method)
        if answer is None:
            _LOG.warning("service failure")
            raise NoDaemon("Couldn't contact service X")
        found: dict[str, Any] = answer(params) if callable(answer) else answer
        return found


def _pinged(params: dict[str, Any]) -> dict[str, Any]:
    _LOG.info("%s", params.get("backend"))
    return {"answers": {"pool": [0, params.get("backend") or "", 0.1]}}


class _Scripted(BpsdService):
    answers: dict[str, Any] = {}  # noqa: RUF012  # each class below has its own

    def _client(self, verb: str) -> Client:
        return Answering(self.answers)


class WmsServiceSuccess(_Scripted):
    """All is well."""

    answers = {  # noqa: RUF012
        "backend.ping": _pinged,
        "status": {"state": "SUCCEEDED"},
        "report": {"runs": [ROW]},
        "jobs": {"jobs": [JOB]},
        "backends": {"backends": [{"name": "pool"}]},
    }


class WmsServiceFailure(_Scripted):
    """A run that failed, of which nothing else is known; and what pings gets no answer."""

    answers = {  # noqa: RUF012
        "status": {"state": "FAILED", "note": "Dummy error message."},
        "report": {"runs": [BARE_ROW]},
        "jobs": {"jobs": []},
    }


class WmsServicePassThru(WmsServiceSuccess):
    """Names a backend by what is passed through."""


class WmsServiceDefault(_Scripted):
    """The class of the defaults."""

    answers = {  # noqa: RUF012
        "backend.ping": {"answers": {"pool": [0, "DEFAULT None", 0.1]}},
        "status": {"state": "RUNNING"},
    }


class WmsServiceDummy(WmsServiceSuccess):
    """Only named."""


class _WithDefaults(_Scripted):
    corge = ""

    @property
    def defaults(self) -> dict[str, str]:
        """Settings that only this class has."""
        return {"corge": self.corge}


class WmsServiceFromCmdline(_WithDefaults):
    """Named on the command line."""

    corge = "cmdline"


class WmsServiceFromConfig(_WithDefaults):
    """Named in a submit file."""

    corge = "config"


class WmsServiceFromEnv(_WithDefaults):
    """Named in the environment."""

    corge = "env"


class WmsServiceFromDefaults(_WithDefaults):
    """Named in the defaults."""

    corge = "defaults"


class WmsServiceInvalid:
    """No service class."""


class _AnyInfo(WmsSpecificInfo):  # type: ignore[misc]  # lsst has no types
    """Compares by its text: upstream's class has no equality, and our reports always carry one."""

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other)

    __hash__ = None  # type: ignore[assignment]  # as with any mutable object


TEST_REPORT = reports.run_report(ROW, [JOB])
_INFO = _AnyInfo()
_INFO.add_message(str(TEST_REPORT.specific_info))
TEST_REPORT.specific_info = _INFO
