"""What becomes of a workflow on its way to the daemon, in the client, where the user's environment is.

`bpsd.lsst.convert` writes what ctrl_bps made. Here is added what a submission from the user's shell would have found
there: the environment, programs looked up in ``PATH``, and what ctrl_bps's HTCondor plugin reads in the configuration
while it submits (the limit of memory scaling, the lines of ``profile``). Pure functions, but for looking up programs.
"""

from __future__ import annotations

__all__ = ["CannotPrepare", "backend_setting", "prepared_document", "searched", "shell_environment"]

import logging
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lsst.ctrl.bps import BpsConfig, GenericWorkflow, GenericWorkflowJob

from bpsd.lsst import convert
from bpsd.patterns import Glob

_LOG = logging.getLogger(__name__)

BACKEND_SETTING = "bpsdBackend"
"""Setting of bps (anywhere in its search order, as in ``site:``): the backend to submit to."""

ENVIRONMENT_SETTING = "bpsdEnvironment"
"""Setting of bps: true (the default) gives jobs the variables of the shell that prepared them, as HTCondor's
``getenv`` does; a list of shell patterns gives them those; false none.
"""

_OF_THE_SESSION = (
    "BASH_FUNC_*",
    "BPSD_*",
    "BPS_WMS_SERVICE_CLASS",
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_*",
    "LS_COLORS",
    "NOTIFY_SOCKET",
    "OLDPWD",
    "PROMPT_COMMAND",
    "PS[0-9]",
    "PWD",
    "SHLVL",
    "SSH_*",
    "STY",
    "TERM",
    "TMUX*",
    "WATCHDOG_*",
    "WAYLAND_DISPLAY",
    "WINDOWID",
    "XAUTHORITY",
    "XDG_*",
    "_",
)
"""What belongs to a terminal, a login or a service, and means nothing to a job."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+=,~-]*")
"""Values that can stand anywhere in a command line and mean themselves."""

_PLACEHOLDER = re.compile(r"<ENV:([A-Za-z_][A-Za-z0-9_]*)>")


class CannotPrepare(ValueError):
    """The configuration asks for what bpsd cannot do; the message says what to change."""


def backend_setting(config: BpsConfig) -> tuple[str | None, str | None]:
    """The backend that the configuration names, and its compute site."""
    backend, site = (searched(config, name) for name in (BACKEND_SETTING, "computeSite"))
    return (str(backend) if backend else None), (str(site) if site else None)


def searched(config: BpsConfig, name: str, label: str | None = None, default: Any = None) -> Any:
    """A setting as jobs of a label find it: in their cluster, their task, the section of their own, their site, their
    cloud, and then at the root. (``BpsConfig.get_search_opts`` does the same, but the release for 3.11 has none.)
    """
    options: dict[str, Any] = {"curvals": {}}
    if label:
        options["curvals"]["label"] = label
        for section in ("cluster", "pipetask"):
            if label in config[section]:
                options["curvals"][f"curr_{section}"] = label
                break
        else:
            if label in config:
                options["searchobj"] = config[label]
    for setting, section in (("computeSite", "curr_site"), ("computeCloud", "curr_cloud")):
        found, value = config.search(setting, opt=options)
        if found:
            options["curvals"][section] = value
    return config.search(name, opt={**options, "default": default})[1]


def shell_environment(wanted: Any, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that jobs get from the shell in which they are prepared.

    Parameters
    ----------
    wanted : `bool`, `str` or `list` [`str`]
        True for all but those of the session itself, false for none, else shell patterns (in a text, with commas).
    environ : `~collections.abc.Mapping`
        The variables of the shell.
    """
    if isinstance(wanted, bool) or str(wanted).lower() in ("true", "false"):
        patterns = ["*"] if str(wanted).lower() == "true" else []
    else:
        patterns = [each.strip() for each in (wanted.split(",") if isinstance(wanted, str) else map(str, wanted))]
    globs = [Glob(pattern) for pattern in patterns]
    without = [Glob(pattern) for pattern in _OF_THE_SESSION] if patterns == ["*"] else []
    kept, left_out = {}, []
    for name, value in sorted(environ.items()):
        if not any(glob.matches(name) for glob in globs) or any(glob.matches(name) for glob in without):
            continue
        if _NAME.fullmatch(name) and value.isprintable():
            kept[name] = value
        else:
            left_out.append(name)
    if left_out:
        _LOG.warning("Jobs do not get these variables, which are not of one printable line: %s", ", ".join(left_out))
    return kept


def prepared_document(config: BpsConfig, workflow: GenericWorkflow, environ: Mapping[str, str]) -> dict[str, Any]:
    """The document of a workflow that is prepared for submission.

    Parameters
    ----------
    config : `lsst.ctrl.bps.BpsConfig`
        Its configuration.
    workflow : `lsst.ctrl.bps.GenericWorkflow`
        The workflow; its jobs get what the configuration says of them beside.
    environ : `~collections.abc.Mapping`
        The environment of the user who submits.

    Raises
    ------
    CannotPrepare
        If the configuration asks for what bpsd cannot do.
    bpsd.lsst.convert.CannotConvert
        If the workflow has what a document cannot hold.
    """
    labels = _LabelSettings(config)
    for job in _payload_jobs(workflow):
        job.profile = {**job.profile, **labels.of(job.label).profile}
    document = convert.to_document(workflow, config)
    for entry in _job_entries(document):
        _limit_memory(entry, labels)
    environment = shell_environment(searched(config, ENVIRONMENT_SETTING, default=True), environ)
    if environment:
        document["environment"] = environment
    if any("<WMS:" in job.get("arguments", "") for job in document["jobs"]):
        _LOG.warning("Arguments have <WMS:...> in them, which only backends that are plugins of ctrl_bps fill in")
    _expand(document, environment, lambda program: shutil.which(program, path=environ.get("PATH")))
    return document


class _OfLabel(NamedTuple):
    """What the configuration says of jobs of a label, beside what ctrl_bps has put into the jobs already."""

    memory_limit: int | None
    profile: dict[str, Any]


class _LabelSettings:
    """The settings of each label, looked up once."""

    def __init__(self, config: BpsConfig) -> None:
        self._config = config
        self._known: dict[str, _OfLabel] = {}

    def of(self, label: str) -> _OfLabel:
        """Those of one label."""
        if label not in self._known:
            self._known[label] = self._read(label)
        return self._known[label]

    def _read(self, label: str) -> _OfLabel:
        if searched(self._config, "bpsMakeCommand", label) in (False, "false", "False"):
            raise CannotPrepare(
                f"bpsMakeCommand is false for {label}: the plugin would have to put payloadCommand together, and bpsd "
                "runs commands as bps makes them; set bpsMakeCommand to true, and environment or bpsdEnvironment to "
                "what the jobs need"
            )
        limit = searched(self._config, "memoryLimit", label)
        profile = searched(self._config, "profile", label)
        lines = profile["condor"] if profile and "condor" in profile else {}
        try:
            return _OfLabel(int(limit) if limit else None, dict(lines.items()) if lines else {})
        except ValueError as exc:
            raise CannotPrepare(f"memoryLimit for {label} is {limit!r}: it is a number of MB") from exc


def _limit_memory(entry: dict[str, Any], labels: _LabelSettings) -> None:
    """Let the memory of a job grow as far as ``memoryLimit`` lets it, as ctrl_bps_htcondor does."""
    limit = labels.of(entry["label"]).memory_limit if entry.get("memory_multiplier") else None
    if limit is not None and limit >= entry.get("request_memory", 0):
        entry["request_memory_max"] = min(entry.get("request_memory_max", limit), limit)


def _job_entries(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [*document["jobs"], *([document["final"]] if "final" in document else [])]


def _payload_jobs(workflow: GenericWorkflow) -> list[GenericWorkflowJob]:
    graphs = [workflow]
    graphs += [node for name in workflow.nodes if isinstance(node := workflow.get_job(name), GenericWorkflow)]
    jobs = [graph.get_job(name) for graph in graphs for name in graph.nodes]
    return [job for job in [*jobs, workflow.get_final()] if isinstance(job, GenericWorkflowJob)]


def _expand(document: dict[str, Any], environment: Mapping[str, str], which: Callable[[str], str | None]) -> None:
    """Put values of the environment into the document, where that changes no quoting, and programs' full paths.

    What stays a placeholder is put in when the job runs, from the same environment.
    """

    def value(found: re.Match[str]) -> str:
        known = environment.get(found[1])
        return known if known is not None and _PLAIN.fullmatch(known) else found[0]

    def expand(entry: dict[str, Any], *names: str) -> None:
        for name in names:
            text = entry.get(name)
            if isinstance(text, str) and "<ENV:" in text:
                entry[name] = _PLACEHOLDER.sub(value, text)

    for file in document["files"]:
        expand(file, "src_uri")
    for executable in document["executables"]:
        expand(executable, "src_uri")
        program = executable["src_uri"] or executable["name"]
        if "/" not in program and not executable["transfer_executable"]:
            executable["src_uri"] = which(program) or executable["src_uri"]
    for job in _job_entries(document):
        expand(job, "arguments", "pre_cmdline", "post_cmdline")
        for mapping in (job.get("environment", {}), job.get("cmdvals", {})):
            expand(mapping, *mapping)
