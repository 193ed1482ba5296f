"""`BpsdService`: the ``bps`` command of LSST, over a bpsd daemon.

``BPS_WMS_SERVICE_CLASS=bpsd.lsst.BpsdService`` in the environment or ``wmsServiceClass: bpsd.lsst.BpsdService`` in a
submit file. ``prepare`` needs no daemon and writes ``bpsd.json`` into the submit directory: a workflow document of
bpsd, with the token under which it is submitted, so the same directory is the same run however often it is sent. The
other methods ask the daemon whose socket ``BPSD_SOCKET`` names, else the user's own, else the system's.
"""

from __future__ import annotations

__all__ = ["DOCUMENT_NAME", "BpsdService", "BpsdServiceError", "BpsdWorkflow"]

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from lsst.ctrl.bps import BaseWmsService, BaseWmsWorkflow, BpsConfig, GenericWorkflow, WmsRunReport, WmsStates

from bpsd import wire
from bpsd.client.failures import ClientError, NoDaemon
from bpsd.client.sync import Client
from bpsd.lsst import convert, preparing, reports

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

DOCUMENT_NAME = "bpsd.json"
"""The file in a submit directory that makes it one of ours."""

_TOKEN_ATTRIBUTE = "bps_token"
_OF_ONE_USER = 0o600  # the document holds the user's environment


class BpsdServiceError(click.ClickException, RuntimeError):
    """What went wrong and what to do now; the ``bps`` command prints it without a traceback and exits with 1."""


class BpsdWorkflow(BaseWmsWorkflow):  # type: ignore[misc]  # lsst has no types
    """A workflow that is ready to be sent to the daemon.

    Parameters
    ----------
    name : `str`
        Its name (``uniqProcName``).
    config : `lsst.ctrl.bps.BpsConfig`, optional
        Its configuration.
    """

    def __init__(self, name: str, config: BpsConfig | None = None) -> None:
        super().__init__(name, config)
        self.document: dict[str, Any] = {}

    @property
    def token(self) -> str:
        """The identity under which it is submitted."""
        token: str = self.document["run"]["attrs"][_TOKEN_ATTRIBUTE]
        return token

    @classmethod
    def from_generic_workflow(
        cls, config: BpsConfig, generic_workflow: GenericWorkflow, out_prefix: str, service_class: str
    ) -> BpsdWorkflow:
        """Make one of a generic workflow; upstream's signature."""
        workflow = cls(generic_workflow.name, config)
        workflow.document = preparing.prepared_document(config, generic_workflow, os.environ)
        workflow.submit_path = out_prefix
        workflow.service_class = service_class
        return workflow

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> BpsdWorkflow:
        """The workflow that was prepared in a submit directory."""
        path = Path(folder, DOCUMENT_NAME)
        try:
            document = json.loads(path.read_bytes())
            name = document["name"]
        except (OSError, ValueError, LookupError, TypeError) as exc:
            raise _unreadable(path, exc) from exc
        workflow = cls(name, convert.config_from_document(document))
        workflow.document = document
        workflow.submit_path = str(folder)
        workflow.service_class = f"{BpsdService.__module__}.{BpsdService.__qualname__}"
        return workflow

    def write(self, out_prefix: str) -> None:
        """Write ``bpsd.json``. If it says the same as the one that is there, it keeps that one's token."""
        path = Path(out_prefix, DOCUMENT_NAME)
        there = _read(path)
        attributes = self.document["run"]["attrs"]
        attributes[_TOKEN_ATTRIBUTE] = _token_in(there)
        if there != self.document:
            attributes[_TOKEN_ATTRIBUTE] = wire.new_token()
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_privately(path, self.document)
        self.submit_path = str(out_prefix)

    def add_to_parent_workflow(self, config: BpsConfig) -> None:
        """Refuse: runs of bpsd are whole when they are submitted."""
        raise BpsdServiceError(_NO_BATCH)


_NO_BATCH = (
    "bpsd takes workflows that are complete: set bpsBatchSubmission to false, so that bps builds the quantum graph here"
)
_NO_REMOTE_BUILD = (
    "bpsd does not build quantum graphs on a remote site: set remoteBuild.enabled to false, so that bps builds the "
    "graph here, or submit this one run with --wms-service lsst.ctrl.bps.panda.PanDAService"
)


class BpsdService(BaseWmsService):  # type: ignore[misc]  # lsst has no types
    """What ``bps`` asks of a workload management system, asked of bpsd; every method of the base class.

    Parameters
    ----------
    config : `lsst.ctrl.bps.BpsConfig` or `dict`
        The configuration of a submission; empty for all else.
    """

    # -- submitting --------------------------------------------------------------------------------------------------

    def run_submission_checks(self) -> None:
        """See early what would fail late: a daemon that does not run, a backend that it does not have.

        ``bps prepare`` needs no daemon, so there only the configuration is checked.
        """
        if preparing.searched(self.config, "bpsBatchSubmission"):
            raise BpsdServiceError(_NO_BATCH)
        remote = preparing.searched(self.config, "remoteBuild")
        if remote and remote.search("enabled", opt={"default": False})[1]:
            raise BpsdServiceError(_NO_REMOTE_BUILD)
        if _command_line() != "prepare":
            self._ask("check", lambda client: _choose_backend(client, self.config))

    def prepare(
        self, config: BpsConfig, generic_workflow: GenericWorkflow, out_prefix: str | os.PathLike[str] | None = None
    ) -> BpsdWorkflow:
        """Check a workflow and write it into the submit directory.

        Raises
        ------
        BpsdServiceError
            If bpsd cannot run it: every mistake is named.
        """
        from bpsd import validation  # not before: the other commands of bps need neither it nor msgspec
        from bpsd.errors import WorkflowInvalid

        prefix = str(out_prefix if out_prefix is not None else config["submitPath"])
        try:
            workflow = BpsdWorkflow.from_generic_workflow(
                config, generic_workflow, prefix, f"{type(self).__module__}.{type(self).__qualname__}"
            )
            validation.validate(json.dumps(workflow.document, allow_nan=False).encode(), generic_workflow.name)
        except (convert.CannotConvert, preparing.CannotPrepare, WorkflowInvalid) as exc:
            raise BpsdServiceError(f"the workflow {generic_workflow.name} cannot be run by bpsd: {exc}") from exc
        workflow.write(prefix)
        return workflow

    def submit(self, workflow: BpsdWorkflow | None, **kwargs: Any) -> BpsdWorkflow:
        """Send a prepared workflow, wait until its backend has it, and set ``run_id``.

        What was sent before is found again by its token and not submitted twice.
        """
        if kwargs.get("remote_build") or workflow is None:
            raise BpsdServiceError(_NO_REMOTE_BUILD)
        path = Path(workflow.submit_path, DOCUMENT_NAME)
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise _unreadable(path, exc) from exc
        config = kwargs.get("config") or workflow.config

        def send(client: Client) -> dict[str, Any]:
            backend = _choose_backend(client, config)
            command = client.submit_document(data, token=workflow.token, source=str(path), backend=backend)
            if not command.get("created", True):
                _LOG.info("This directory was submitted before, as run %s", command["run"])
            try:
                return client.wait_command(command["id"])
            except KeyboardInterrupt:
                _LOG.warning("Not waited for: run %s goes on all the same (`bps cancel --id` ends it)", command["run"])
                raise

        command = self._ask("submit", send)
        if command["state"] != "DONE":
            raise BpsdServiceError(_outcome(command))
        workflow.run_id = command["run"]
        return workflow

    # -- commands on runs --------------------------------------------------------------------------------------------

    def restart(self, wms_workflow_id: str) -> tuple[str | None, str | None, str]:
        """Restart a run from where it failed; returns its id (it keeps it), its name, and what went wrong."""
        name = _run_name(wms_workflow_id)

        def act(client: Client) -> tuple[str | None, str | None, str]:
            try:
                command = client.wait_command(client.restart(name)["id"])
            except NoDaemon:
                raise
            except ClientError as exc:
                return None, None, str(exc)
            if command["state"] != "DONE":
                return None, None, _outcome(command)
            status = client.status(command["run"])
            return status["id"], status["name"], ""

        return self._ask("restart", act)

    def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        """Cancel a run; returns whether its backend agreed, and why not."""
        name = _run_name(wms_id)

        def act(client: Client) -> tuple[bool, str]:
            try:
                command = client.wait_command(client.cancel(name, pass_thru=pass_thru)["id"])
            except NoDaemon:
                raise
            except ClientError as exc:
                return False, str(exc)
            return command["state"] == "DONE", "" if command["state"] == "DONE" else _outcome(command)

        return self._ask("cancel", act)

    # -- questions ---------------------------------------------------------------------------------------------------

    def list_submitted_jobs(
        self,
        wms_id: str | int | None = None,
        user: str | None = None,
        require_bps: bool = True,
        pass_thru: str | None = None,
        is_global: bool = False,
    ) -> list[str]:
        """Ids of runs that are not over: of one, of a user's, or of all. All backends are always looked at.

        To ``bps cancel`` without ``--id`` and ``--user`` no run matches, as ever: it would end everybody's.
        """
        if wms_id is None and user is None and _command_line() == "cancel":
            return []

        def act(client: Client) -> list[str]:
            if wms_id is not None:
                row = _found(client.status, _run_name(wms_id))
                return [row["id"]] if row is not None and row["state"] not in wire.TERMINAL_STATES else []
            pages = client.pages(client.list_runs, "runs", None, user=[user] if user else [], active=True)
            return [row["id"] for page in pages for row in page["runs"]]

        return self._ask("list", act)

    def report(
        self,
        wms_workflow_id: str | int | None = None,
        user: str | None = None,
        hist: float = 0,
        pass_thru: str | None = None,
        is_global: bool = False,
        return_exit_codes: bool = False,
    ) -> tuple[list[WmsRunReport], str]:
        """Runs as the daemon last saw them, and what a reader should know beside.

        With an id, that run with all its jobs; without, the runs that are not over and those that ended in the last
        ``hist`` days, with counts and without jobs. All backends are always looked at.
        """

        def act(client: Client) -> tuple[list[WmsRunReport], list[str]]:
            if wms_workflow_id is not None:
                return _one_report(client, _run_name(wms_workflow_id))
            conditions: dict[str, Any] = {"user": [user] if user else []}
            conditions |= {"hist": hist} if hist else {"active": True}
            found, messages = [], []
            for page in client.pages(client.report, "runs", None, **conditions):
                found += [reports.run_report(row) for row in page["runs"]]
                messages = _messages(page)
            return found, messages

        found, messages = self._ask("report", act)
        if pass_thru:
            messages.append(f"bpsd answers from what it knows; --pass-thru {pass_thru!r} was not used")
        return found, "\n".join(messages)

    def get_status(self, wms_workflow_id: str | int, hist: float = 1, is_global: bool = False) -> tuple[WmsStates, str]:
        """The state of a run, and why nothing better is known; a run that bpsd does not know is UNKNOWN."""

        def act(client: Client) -> tuple[WmsStates, str]:
            try:
                row = client.status(_run_name(wms_workflow_id))
            except ClientError as exc:
                if exc.code != "run_not_found":
                    raise
                return WmsStates.UNKNOWN, str(exc)
            return reports.run_state(row["state"]), row.get("note") or row.get("error") or ""

        return self._ask("status", act)

    def ping(self, pass_thru: str | None = None) -> tuple[int, str]:
        """Whether the daemon and each backend answer: 0, or how many do not. ``pass_thru`` names one backend."""
        try:
            answers = self._ask("ping", lambda client: client.backend_ping(pass_thru or None)["answers"])
        except BpsdServiceError as exc:
            return 1, exc.message
        failed = [name for name, (status, _, _) in answers.items() if status]
        lines = [
            f"{name}: {message or ('fine' if not status else 'no answer')}" if len(answers) > 1 else message
            for name, (status, message, _) in answers.items()
        ]
        return len(failed), "\n".join(lines)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _client(self, verb: str) -> Client:
        return Client(name=f"bps {verb} ({Path(sys.argv[0]).name})")

    def _ask(self, verb: str, act: Callable[[Client], _T]) -> _T:
        """Ask the daemon; what it refuses, or that it does not run, is an error of ``bps`` (which has no --socket)."""
        try:
            with self._client(verb) as client:
                return act(client)
        except ClientError as exc:
            raise BpsdServiceError(str(exc).replace("--socket or BPSD_SOCKET", "BPSD_SOCKET")) from exc


def _command_line() -> str | None:
    """The subcommand of ``bps`` that runs, if one does."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.info_name


def _choose_backend(client: Client, config: BpsConfig) -> str | None:
    """The backend that the configuration means: ``bpsdBackend``, else the one called like the compute site, else the
    only one.
    """
    named, site = preparing.backend_setting(config)
    known: list[str] = [row["name"] for row in client.backends()["backends"]]
    if named is not None and named in known:
        return named
    if named is None and site in known:
        return site
    if named is None and len(known) == 1:
        return known[0]
    what = f"bpsdBackend {named!r}" if named is not None else f"computeSite {site!r}"
    raise BpsdServiceError(
        f"{what} is none of the backends of the daemon on {client.socket_path}: {', '.join(known)}; "
        f"set {preparing.BACKEND_SETTING} to one of them, for all sites or in a site: section"
    )


def _one_report(client: Client, name: str) -> tuple[list[WmsRunReport], list[str]]:
    page = _found(client.report, name)
    if page is None:
        return [], []
    row = page["runs"][0]
    pages = client.pages(client.jobs, "jobs", None, run=row["id"])
    jobs = [job for each in pages for job in each["jobs"]]
    return [reports.run_report(row, jobs)], _messages(page)


def _found(ask: Callable[[str], dict[str, Any]], name: str) -> dict[str, Any] | None:
    try:
        return ask(name)
    except ClientError as exc:
        if exc.code != "run_not_found":
            raise
        return None


def _messages(page: dict[str, Any]) -> list[str]:
    return [str(message) for message in page.get("messages", ())]


def _run_name(wms_id: object) -> str:
    """What the daemon calls a run that a person calls so; a submit directory of ours is known by its token."""
    text = str(wms_id).strip()
    token = _token_in(_read(Path(text, DOCUMENT_NAME))) if text else None
    if token is not None:
        return token
    is_path = "/" in text or text.startswith(".")  # what is called like an id is one, whatever lies here
    return str(Path(text).resolve()) if is_path else text


def _outcome(command: dict[str, Any]) -> str:
    """Why a command did not come to a good end, and what to do now."""
    error = command.get("error") or {}
    said = f"{command['verb']} of run {command['run']} on {command['backend']}: {command['state']}"
    reasons = [error.get("message") or command.get("note"), *(_problems(error)), error.get("advice")]
    if command["state"] == "IN_DOUBT":
        reasons.append(f"it is looked up again and again; `bpsctl commands {command['id']}` tells")
    return "\n  ".join([said, *(str(reason) for reason in reasons if reason)])


def _problems(error: dict[str, Any]) -> list[str]:
    return [f"{problem['key']}: {problem['message']}" for problem in error.get("problems", ())]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _unreadable(path: Path, exc: Exception) -> BpsdServiceError:
    return BpsdServiceError(f"{path} cannot be read: {exc!r}; prepare the run again")


def _token_in(document: dict[str, Any] | None) -> str | None:
    try:
        token = (document or {})["run"]["attrs"][_TOKEN_ATTRIBUTE]
    except (LookupError, TypeError):
        return None
    return token if isinstance(token, str) else None


def _write_privately(path: Path, document: dict[str, Any]) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, allow_nan=False)
        Path(name).chmod(_OF_ONE_USER)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
