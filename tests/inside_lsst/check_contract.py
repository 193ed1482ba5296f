"""Our types are those of the installed ctrl_bps, field by field and value by value; what upstream adds fails here."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from importlib.metadata import version
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import lsst.ctrl.bps
import msgspec
import pytest
from lsst.ctrl.bps import (
    BPS_SEARCH_ORDER,
    BaseWmsService,
    BaseWmsWorkflow,
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowGroup,
    GenericWorkflowJob,
    GenericWorkflowNode,
    GenericWorkflowNoopJob,
)
from lsst.ctrl.bps import generic_workflow as upstream_workflow
from lsst.ctrl.bps import wms_service as upstream
from lsst.ctrl.bps.transform import _ATTRS_ALL

from bpsd import models, wire, workflow
from bpsd.interface import WmsService
from bpsd.lsst.service import BpsdService, BpsdWorkflow

LAST_FOR_3_11 = version("lsst-ctrl-bps").split(".")[:3] == ["30", "2026", "300"]
"""The last release for Python 3.11 lacks a few things that the current one has; they are named where they matter."""


def fields_of(kind: type[Any]) -> list[str]:
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return list(kind.__struct_fields__)


def shape(hint: Any) -> Any:
    """A type, with what is called differently here and there brought together."""
    origin, inner = get_origin(hint), tuple(shape(part) for part in get_args(hint))
    if origin in (typing.Union, type(int | None)):
        return frozenset(inner)
    if origin is not None:
        return (getattr(origin, "__name__", str(origin)), *inner)
    return None if hint is NoneType else getattr(hint, "__name__", str(hint))


def shapes_of(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {name: shape(hints[name]) for name in fields_of(kind)}


# -- reports ---------------------------------------------------------------------------------------------------------


def test_states() -> None:
    theirs = {state.name: state.value for state in upstream.WmsStates}

    assert {state.name: state.value for state in models.WmsStates} == theirs
    assert theirs == wire.STATES
    assert [state.name for state in models.WmsStates] == [state.name for state in upstream.WmsStates]


@pytest.mark.parametrize("name", ["WmsJobReport", "WmsRunReport"])
def test_reports_have_the_same_fields_of_the_same_types(name: str) -> None:
    ours, theirs = shapes_of(getattr(models, name)), shapes_of(getattr(upstream, name))

    if LAST_FOR_3_11 and name == "WmsRunReport":
        del ours["site"]
    assert ours == theirs
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("name", ["WmsJobReport", "WmsRunReport"])
def test_reports_are_empty_alike(name: str) -> None:
    theirs: dict[str, Any] = {}
    for field in dataclasses.fields(getattr(upstream, name)):
        assert field.default_factory is dataclasses.MISSING
        theirs[field.name] = "required" if field.default is dataclasses.MISSING else field.default
    ours = {field.name: "required" if field.required else field.default for field in ours_of(getattr(models, name))}

    assert {field: ours[field] for field in theirs} == theirs


def ours_of(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def test_specific_info_behaves_alike() -> None:
    pair: list[Any] = [models.WmsSpecificInfo(), upstream.WmsSpecificInfo()]
    public = {name for name in dir(upstream.WmsSpecificInfo) if not name.startswith("_")}

    assert public == {"add_message", "context", "templates"}
    for info in pair:
        assert not info
        info.add_message("{a} of {b}", {"a": 1}, b=2)
        info.add_message("plain")
        assert info
        assert str(info) == "1 of 2\nplain"
        assert (info.templates, info.context) == (["{a} of {b}", "plain"], {"a": 1, "b": 2})
        with pytest.raises(ValueError, match=r"\{c\}"):
            info.add_message("{c}")
        with pytest.raises(ValueError, match=r"change.*a"):
            info.add_message("{a}", {"a": 3})


# -- workflows -------------------------------------------------------------------------------------------------------


def test_executables_and_files() -> None:
    assert shapes_of(workflow.Executable) == shapes_of(GenericWorkflowExec)
    assert shapes_of(workflow.File) == shapes_of(GenericWorkflowFile)


STRUCTURE = {"kind", "group", "parents", "inputs", "outputs"}
"""What a job of a document says by itself and a ``GenericWorkflow`` says of its nodes."""

OURS_ALONE = {"working_directory"}

TYPES_THAT_DIFFER = {
    # a name in the document's list of executables, where upstream has the object
    "executable": ("str", None),
    # what configurations really give, whatever upstream's annotation says
    "priority": ("int", "str", None),
    "request_walltime": ("int", "str", None),
    # an empty text says nothing
    "arguments": ("str",),
    # JSON's objects
    "quanta_counts": ("dict", "str", "int"),
    "environment": ("dict", "str", "str"),
}
"""Fields of a job that a document types otherwise, with our type and the reason."""


def test_jobs() -> None:
    ours, theirs = shapes_of(workflow.Job), shapes_of(GenericWorkflowJob)

    assert set(theirs) <= set(ours), "a field of upstream's that no document holds"
    assert set(ours) - set(theirs) == STRUCTURE | OURS_ALONE
    differing = {name for name in theirs if ours[name] != theirs[name]}
    assert differing == set(TYPES_THAT_DIFFER)
    for name in differing:
        mine = ours[name]
        assert set(mine if isinstance(mine, (tuple, frozenset)) else (mine,)) == set(TYPES_THAT_DIFFER[name]), name
    assert {field for field in theirs if field not in ("name", "label")} <= set(workflow.JOB_FIELDS)
    assert set(_ATTRS_ALL) == set(theirs)


def test_groups() -> None:
    assert set(inspect.signature(GenericWorkflowGroup).parameters) == {"name", "label", "blocking"}
    assert set(fields_of(workflow.Group)) == {"name", "label", "blocking", "parents"}


def test_kinds_of_nodes() -> None:
    """A new kind of node would be a new thing that a workflow can hold."""
    kinds = {kind.__name__ for kind in _descendants(GenericWorkflowNode)}

    lazy = set() if LAST_FOR_3_11 else {"GenericWorkflowLazyGroup"}  # refused by convert, with advice
    assert kinds == {"GenericWorkflowNoopJob", "GenericWorkflowJob", "GenericWorkflowGroup", *lazy}
    assert {kind.name for kind in upstream_workflow.GenericWorkflowNodeType} == {
        *("NOOP", "PAYLOAD", "GROUP"),
        *(() if LAST_FOR_3_11 else ("LAZY_GROUP",)),
    }
    assert fields_of(GenericWorkflowNoopJob) == ["name", "label"]


def _descendants(kind: type[Any]) -> set[type[Any]]:
    found = set(kind.__subclasses__())
    return found.union(*(_descendants(each) for each in found)) if found else found


def test_what_a_workflow_remembers() -> None:
    """What ``convert`` must carry: the attributes of a new workflow, beside those of its base class."""
    known = {"_name", "run_attrs", "_job_labels", "_files", "_executables", "_inputs", "_outputs", "run_id", "_final"}
    base = set(vars(type(GenericWorkflow("x")).__mro__[1]()))

    assert set(vars(GenericWorkflow("x"))) - base == known


def test_sections_of_a_configuration() -> None:
    assert BPS_SEARCH_ORDER == ["bps_cmdline", "payload", "cluster", "pipetask", "site", "cloud", "bps_defined"]


# -- services --------------------------------------------------------------------------------------------------------


def parameters(method: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(method).parameters.items()}


METHODS = sorted(name for name, value in vars(BaseWmsService).items() if inspect.isfunction(value) and name[0] != "_")


def test_methods_of_a_service_are_the_known_ones() -> None:
    assert METHODS == [
        "cancel",
        "get_status",
        "list_submitted_jobs",
        "ping",
        "prepare",
        "report",
        "restart",
        "run_submission_checks",
        "submit",
    ]
    properties = {name for name, value in vars(BaseWmsService).items() if isinstance(value, property)}
    assert properties == {"defaults", "defaults_uri"}


@pytest.mark.parametrize("name", METHODS)
def test_bpsd_service_implements_each_with_upstreams_parameters(name: str) -> None:
    assert name in vars(BpsdService), f"{name} is not implemented"
    ours, theirs = parameters(getattr(BpsdService, name)), parameters(getattr(BaseWmsService, name))

    if name == "ping":
        theirs["pass_thru"] = None  # ours may be left out
    assert ours == theirs


@pytest.mark.parametrize("name", METHODS)
def test_backends_have_upstreams_parameters(name: str) -> None:
    ours, theirs = parameters(getattr(WmsService, name)), parameters(getattr(BaseWmsService, name))

    if name == "ping":
        theirs["pass_thru"] = None
    if name == "restart":
        theirs["attempt_token"] = None  # the identity of the new attempt, which upstream has not
    assert ours == theirs


def test_a_workflow_of_ours_is_one_of_upstreams() -> None:
    abstract = {
        name for name, value in vars(BaseWmsWorkflow).items() if callable(value) or isinstance(value, classmethod)
    }

    assert set(vars(BaseWmsWorkflow("x", {}) if not inspect.isabstract(BaseWmsWorkflow) else BpsdWorkflow("x"))) >= {
        *("name", "config", "service_class", "run_id", "submit_path")
    }
    later = set() if LAST_FOR_3_11 else {"add_to_parent_workflow"}
    assert {name for name in abstract if not name.startswith("_")} == {"from_generic_workflow", "write", *later}
    for name in ("from_generic_workflow", "write", *later):
        assert list(parameters(getattr(BpsdWorkflow, name))) == list(parameters(getattr(BaseWmsWorkflow, name)))


def test_what_is_public_is_known() -> None:
    """A new public name may be a new thing to carry; add it here when it has been looked at."""
    names = {name for name in dir(lsst.ctrl.bps) if name.startswith(("GenericWorkflow", "Wms", "BaseWms"))}

    assert names - {"GenericWorkflowLazyGroup"} == {
        *("BaseWmsService", "BaseWmsWorkflow"),
        *("GenericWorkflow", "GenericWorkflowExec", "GenericWorkflowFile", "GenericWorkflowGroup"),
        *("GenericWorkflowJob", "GenericWorkflowNode", "GenericWorkflowNodeType", "GenericWorkflowNoopJob"),
        *("WmsJobReport", "WmsRunReport", "WmsSpecificInfo", "WmsStates"),
    }
