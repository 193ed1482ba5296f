"""The settings of a backend that is a plugin of ``bps``, and what is known of the plugins that there are."""

from __future__ import annotations

__all__ = ["PANDA_VARIABLES", "BpsPluginConfig", "Traits", "traits_of"]

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bpsd_adapters.transports.settings import SshSettings

PANDA_VARIABLES = ("PANDA_URL", "PANDA_URL_SSL", "PANDA_API_URL", "PANDA_API_URL_SSL")
"""Without any of these PanDA's clients try a production server of their own choice."""


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin does differently from what upstream's docstrings say.

    ``blocks``
        ``submit`` and ``restart`` come back only when the run is over.
    ``lists``
        ``report`` without an id shows the runs that there are.
    ``variables``
        The environment variables without which it must not be started.
    ``id_pattern``
        What an id must look like: others are not handed on.
    ``token_query``
        A ``pass_thru`` for ``report`` that finds a run by ``{token}``; empty if there is none.
    ``failed_if_cancelled``
        It may call a run failed that was cancelled.
    ``status_decides``
        Its ``report`` calls runs succeeded of which jobs failed; its ``get_status`` knows better.
    """

    blocks: bool = False
    lists: bool = True
    variables: tuple[str, ...] = ()
    id_pattern: str = r".+"
    token_query: str = ""
    failed_if_cancelled: bool = False
    status_decides: bool = False


_CONDOR_QUERY = 'bps_token =?= "{token}" && JobUniverse == 7'

_KNOWN = {
    "HTCondorService": Traits(token_query=_CONDOR_QUERY),
    "PanDAService": Traits(
        lists=False,
        variables=PANDA_VARIABLES,
        id_pattern=r"\d+",
        failed_if_cancelled=True,
        status_decides=True,
    ),
    "ParslService": Traits(blocks=True),
}
"""Upstream's plugins, by the name of the class in ``lsst.ctrl.bps``."""


class BpsPluginConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Settings of a backend of the kind ``bps_plugin``.

    ``plugin``
        The class with its module, as in ``wmsServiceClass``.
    ``python``
        The interpreter (3.10 or newer) in whose environment the plugin is installed.
    ``ssh``
        The host on which that is; without it, this machine.
    ``environment``
        Every variable that the plugin finds, beside HOME, USER, LOGNAME, LANG and a plain PATH.
    ``settings``
        BPS settings that all runs have (``site``, ``computeSite``, ``memoryLimit``, ...); a run's own come after them.
    ``submit_root``
        Folder on the plugin's host under which each run gets its own; ``~/`` is the account's home there.
    ``check_executables``
        Whether a program that a job names by its path must be there on the plugin's host.
    ``blocks``, ``lists``, ``token_query``
        What a plugin of a third party is like (`Traits`); upstream's own are known.
    ``start_deadline_s``, ``call_deadline_s``, ``submit_deadline_s``
        How long loading the plugin, a question, and a submission or a restart may take; then its process is ended.
    ``settle_s``
        How long after a submission was cut off "not found" begins to be proof, and how long after a restart under the
        same id the old end of a run may still be reported.
    ``cancel_grace_s``
        How long a host may take to end its run before it is killed.
    ``leftover_processes``
        What becomes of the processes that a killed host left: ``wait`` (the run is RUNNING until the last has ended) or
        ``end``.
    ``history_days``
        How far back runs that have ended are asked for.
    ``idle_s``
        After how long without a command the process for commands is ended.
    """

    plugin: Annotated[str, Meta(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
    python: str
    ssh: SshSettings | None = None
    environment: dict[str, str] = {}
    settings: dict[str, Any] = {}
    submit_root: Annotated[str, Meta(pattern="^(/|~/)")] = "~/bpsd-runs"
    check_executables: bool = True
    blocks: bool | None = None
    lists: bool | None = None
    token_query: str | None = None
    start_deadline_s: Annotated[float, Meta(gt=0)] = 120.0
    call_deadline_s: Annotated[float, Meta(gt=0)] = 120.0
    submit_deadline_s: Annotated[float, Meta(gt=0)] = 1800.0
    settle_s: Annotated[float, Meta(ge=0)] = 60.0
    cancel_grace_s: Annotated[float, Meta(ge=0)] = 30.0
    leftover_processes: Literal["wait", "end"] = "wait"
    history_days: Annotated[float, Meta(gt=0)] = 2.0
    idle_s: Annotated[float, Meta(gt=0)] = 300.0

    def __post_init__(self) -> None:
        missing = [name for name in traits_of(self).variables if not self.environment.get(name)]
        if missing:
            raise ValueError(
                f"{self.plugin} needs {', '.join(missing)} in `environment`: without them its clients would ask a "
                "production server that nobody named"
            )


def traits_of(config: BpsPluginConfig) -> Traits:
    """What the plugin of a backend is like: what the settings say, else what is known of it."""
    module, _, name = config.plugin.rpartition(".")
    known = _KNOWN.get(name, Traits()) if module.startswith("lsst.ctrl.bps.") else Traits()
    said = {
        field: value for field in ("blocks", "lists", "token_query") if (value := getattr(config, field)) is not None
    }
    return msgspec.structs.replace(known, **said)
