"""What becomes of each field of a job: a plugin's own matter, told here as far as it is known of upstream's plugins."""

from __future__ import annotations

__all__ = ["fields_of"]

from collections.abc import Mapping

from bpsd.interface import FieldSupport
from bpsd.workflow import JOB_FIELDS

_Support = tuple[FieldSupport, str]


def _approximates(how: str) -> _Support:
    return FieldSupport.APPROXIMATES, how


def _refuses(why: str) -> _Support:
    return FieldSupport.REFUSES, why


_HANDED_ON = _approximates("handed on; what becomes of it is the plugin's")
_NO_WORD = _refuses("lsst.ctrl.bps has no word for it")
_HONOURS = (FieldSupport.HONOURS, "")

_PARSL_IGNORES = _approximates("ctrl_bps_parsl does not look at it")

_PARSL: Mapping[str, _Support] = {
    **dict.fromkeys(JOB_FIELDS, _PARSL_IGNORES),
    "inputs": _approximates("named in command lines; nothing is staged"),
    "executable": _HONOURS,
    "arguments": _approximates("read by bash, and braces are filled in with cmdvals"),
    "cmdvals": _HONOURS,
    "tags": _approximates("used in the names of output files (subDirTemplate)"),
    "request_memory": _approximates("as far as the site's executor looks at it"),
    "request_cpus": _approximates("as far as the site's executor looks at it"),
    "request_disk": _approximates("as far as the site's executor looks at it"),
    "request_walltime": _approximates("as far as the site's executor looks at it"),
    "priority": _approximates("as far as the site's executor looks at it"),
    "compute_site": _approximates("one site for the whole run: computeSite in the settings"),
    "number_of_retries": _approximates("ctrl_bps_parsl retries as often as site.SITE.retries says"),
    "environment": _refuses("ctrl_bps_parsl does not set it; put it into site.SITE.commandPrefix"),
    "pre_cmdline": _refuses("ctrl_bps_parsl does not run it"),
    "post_cmdline": _refuses("ctrl_bps_parsl does not run it"),
    "working_directory": _NO_WORD,
}

_KNOWN: Mapping[str, Mapping[str, _Support]] = {
    "lsst.ctrl.bps.parsl.ParslService": _PARSL,
    "lsst.ctrl.bps.parsl.service.ParslService": _PARSL,
}


def fields_of(plugin: str) -> Mapping[str, _Support]:
    """The declaration for a plugin's class."""
    return _KNOWN.get(plugin, {**dict.fromkeys(JOB_FIELDS, _HANDED_ON), "working_directory": _NO_WORD})
