"""Workflows of ctrl_bps become documents and come back as they were, on the real classes."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import pathlib
import uuid
from collections import Counter
from typing import Any

import hypothesis
import msgspec
import numpy as np
import pytest
from hypothesis import strategies as st
from lsst.ctrl.bps import (
    BPS_DEFAULTS,
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowGroup,
    GenericWorkflowJob,
    GenericWorkflowNoopJob,
    WmsJobReport,
    WmsRunReport,
    WmsSpecificInfo,
    WmsStates,
)
from lsst.ctrl.bps.tests import gw_test_utils

from bpsd import validation
from bpsd.lsst import convert

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789_.-#", min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
WORDS = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f'\"\\{}<>", exclude_categories=["C"]),
    min_size=1,
    max_size=20,
).filter(lambda text: text.strip() == text)
AMOUNTS = st.none() | st.integers(1, 10**6)
CODES = st.none() | st.integers(0, 255)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
MAPPINGS = st.dictionaries(NAMES, PLAIN, max_size=3)
EXECUTABLES = st.builds(
    GenericWorkflowExec,
    name=NAMES,
    src_uri=WORDS.map(lambda text: "/bin/" + text),
    transfer_executable=st.booleans(),
)

TRIED = hypothesis.settings(
    max_examples=int(os.environ.get("BPSD_EXAMPLES", "50")),
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    database=None,
)

JOB_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "quanta_counts": st.dictionaries(NAMES, st.integers(0, 1000), max_size=3).map(Counter),
    "tags": MAPPINGS,
    "executable": EXECUTABLES,
    "arguments": st.none() | WORDS,
    "cmdvals": MAPPINGS,
    "memory_multiplier": st.none() | st.floats(1, 10),
    "request_memory": st.none() | st.integers(1, 1000),
    "request_memory_max": st.none() | st.integers(1000, 10**6),
    "request_cpus": AMOUNTS,
    "request_disk": AMOUNTS,
    "request_walltime": AMOUNTS | st.sampled_from(["90", "1:00:00"]),
    "compute_site": st.none() | WORDS,
    "accounting_group": st.none() | WORDS,
    "accounting_user": st.none() | WORDS,
    "mail_to": st.none() | WORDS,
    "when_to_mail": st.none() | WORDS,
    "number_of_retries": st.none() | st.integers(0, 20),
    "retry_unless_exit": CODES | st.lists(st.integers(0, 255), min_size=1, max_size=4),
    "abort_on_value": CODES,
    "abort_return_value": CODES,
    "priority": st.none() | st.integers(-10, 10) | WORDS,
    "category": st.none() | WORDS,
    "concurrency_limit": st.none() | WORDS,
    "queue": st.none() | WORDS,
    "pre_cmdline": st.none() | WORDS,
    "post_cmdline": st.none() | WORDS,
    "preemptible": st.none() | st.booleans(),
    "profile": MAPPINGS,
    "attrs": MAPPINGS,
    "environment": st.dictionaries(NAMES, WORDS, max_size=3),
    "compute_cloud": st.none() | WORDS,
}
"""How to make each field of a job; one that upstream adds has none here, and the tests say so."""


@st.composite
def workflows(draw: st.DrawFn) -> GenericWorkflow:
    """A workflow with jobs, noop jobs, groups, files and a final job, as ctrl_bps could make it."""
    names = draw(st.lists(NAMES, min_size=2, max_size=10, unique=True))
    final, first, *rest = names
    workflow = GenericWorkflow(draw(NAMES))
    workflow.run_attrs.update(draw(st.dictionaries(st.sampled_from(list(convert.RUN_ATTRIBUTES.values())), WORDS)))
    files = [
        GenericWorkflowFile(name, *draw(st.tuples(st.none() | WORDS, st.booleans(), st.booleans(), st.booleans())))
        for name in draw(st.lists(NAMES, max_size=4, unique=True))
    ]
    for file in files:
        workflow.add_file(file)
    graphs: list[GenericWorkflow] = [workflow]
    for name in (first, *rest):
        graph = draw(st.sampled_from(graphs))
        kind = "job" if name == first else draw(st.sampled_from(["job", "job", "noop", "group"]))
        before = draw(st.lists(st.sampled_from(list(graph.nodes)), unique=True)) if graph.nodes else []
        if kind == "group":
            graph = workflow
            before = draw(st.lists(st.sampled_from(list(graph.nodes)), unique=True))
            node: Any = GenericWorkflowGroup(name, draw(NAMES), draw(st.booleans()))
            graphs.append(node)
        elif kind == "noop":
            node = GenericWorkflowNoopJob(name, draw(NAMES))
        else:
            node = draw(jobs(name))
        graph.add_job(node)
        graph.add_edges_from((parent, name) for parent in before)
        if kind == "job" and files:
            chosen = draw(st.lists(st.sampled_from(files), unique_by=lambda file: file.name))
            graph.add_job_inputs(name, chosen[::2])
            graph.add_job_outputs(name, chosen[1::2])
    if draw(st.booleans()):
        workflow.add_final(draw(jobs(final)))
    return workflow


def jobs(name: str) -> st.SearchStrategy[GenericWorkflowJob]:
    return st.builds(GenericWorkflowJob, name=st.just(name), label=NAMES, **JOB_FIELDS)


def assert_same(one: GenericWorkflow, other: GenericWorkflow) -> None:
    assert gw_test_utils.compare_generic_workflows(one, other)
    assert one.run_attrs == other.run_attrs
    assert {file.name: file for file in one.get_files(data=True, transfer_only=False)} == {
        file.name: file for file in other.get_files(data=True, transfer_only=False)
    }
    assert one.get_final() == other.get_final()
    assert_same_graph(one, other)


def assert_same_graph(one: GenericWorkflow, other: GenericWorkflow) -> None:
    assert set(one.nodes) == set(other.nodes)
    assert set(one.edges) == set(other.edges)
    for name in one.nodes:
        left, right = one.get_job(name), other.get_job(name)
        assert type(left) is type(right)
        assert (left.name, left.label) == (right.name, right.label)
        if isinstance(left, GenericWorkflowGroup):
            assert left.blocking == right.blocking
            assert_same_graph(left, right)
        else:
            assert left == right
            assert one.get_job_inputs(name) == other.get_job_inputs(name)
            assert one.get_job_outputs(name) == other.get_job_outputs(name)


def through_json(document: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    return read


def test_every_field_of_a_job_is_tried() -> None:
    assert {field.name for field in dataclasses.fields(GenericWorkflowJob)} == {"name", "label", *JOB_FIELDS}


@TRIED
@hypothesis.given(workflows())
def test_round_trip(workflow: GenericWorkflow) -> None:
    document = convert.to_document(workflow)

    assert through_json(document) == document
    assert_same(convert.from_document(through_json(document)), workflow)


@TRIED
@hypothesis.given(workflows())
def test_round_trip_by_way_of_the_daemon(workflow: GenericWorkflow) -> None:
    """What the daemon makes of the document, after all its checks, still is the same workflow."""
    validated = validation.validate(json.dumps(convert.to_document(workflow)).encode(), "made up")

    back = convert.from_document(json.loads(validation.canonical_json(validated.workflow)))

    for graph in (
        workflow,
        *(n for name in workflow.nodes if isinstance(n := workflow.get_job(name), GenericWorkflow)),
    ):
        for name in graph.nodes:
            if not graph.get_job(name).label:
                graph.get_job(name).label = "payload"
    assert_same(back, workflow)


@pytest.mark.parametrize("name", [name for name in gw_test_utils.__all__ if name != "make_lazy_workflow"])
@pytest.mark.parametrize("final", [True, False])
def test_upstreams_own_examples(name: str, final: bool) -> None:
    workflow = getattr(gw_test_utils, name)("example", final)

    back = convert.from_document(through_json(convert.to_document(workflow)))

    assert_same(back, workflow)
    assert sorted(back.quanta_counts) == sorted(workflow.quanta_counts)


def test_groups_that_upstream_makes_are_counted_as_upstream_counts_them() -> None:
    workflow = gw_test_utils.make_3_label_workflow("grouped", True)
    workflow.add_special_job_ordering(
        {"order1": {"labels": "label1,label2", "dimensions": "visit,detector", "ordering_type": "sort"}}
    )
    assert any(isinstance(workflow.get_job(name), GenericWorkflowGroup) for name in workflow.nodes)

    back = convert.from_document(through_json(convert.to_document(workflow)))

    assert_same(back, workflow)
    assert back.job_counts == workflow.job_counts


def test_programs_of_one_name_stay_apart() -> None:
    workflow = GenericWorkflow("stacks")
    for number, path in enumerate(["/one/pipetask", "/two/pipetask", "/one/pipetask"]):
        job = GenericWorkflowJob(f"job{number}", "job", executable=GenericWorkflowExec("pipetask", path))
        workflow.add_job(job)

    document = convert.to_document(workflow)

    assert len({entry["name"] for entry in document["executables"]}) == 2
    validation.validate(json.dumps(document).encode(), "stacks")
    back = convert.from_document(document)
    assert [back.get_job(name).executable.src_uri for name in ("job0", "job1", "job2")] == [
        "/one/pipetask",
        "/two/pipetask",
        "/one/pipetask",
    ]
    assert {back.get_job(name).executable.name for name in back.nodes} == {"pipetask"}


def test_two_files_of_one_name_are_refused() -> None:
    workflow = GenericWorkflow("files")
    for number in (1, 2):
        workflow.add_job(GenericWorkflowJob(f"job{number}", "job", executable=GenericWorkflowExec("true", "/bin/true")))
        workflow.add_job_inputs(f"job{number}", GenericWorkflowFile("table", src_uri=f"/data/{number}"))

    with pytest.raises(convert.CannotConvert, match="two files are named table: /data/1 and /data/2"):
        convert.to_document(workflow)


def test_what_no_document_holds_is_refused() -> None:
    inner, outer = GenericWorkflowGroup("inner", "g"), GenericWorkflowGroup("outer", "g")
    nested = GenericWorkflow("nested")
    nested.add_job(outer)
    outer.add_job(inner)
    with pytest.raises(convert.CannotConvert, match="inner is a group in the group outer"):
        convert.to_document(nested)

    ended_by_workflow = gw_test_utils.make_3_label_workflow("whole", False)
    ended_by_workflow.add_final(GenericWorkflow("at the end"))
    with pytest.raises(convert.CannotConvert, match="the final job is a whole workflow"):
        convert.to_document(ended_by_workflow)

    if hasattr(gw_test_utils, "make_lazy_workflow"):
        with pytest.raises(convert.CannotConvert, match="set bpsBatchSubmission to false"):
            convert.to_document(gw_test_utils.make_lazy_workflow("lazy", True))


class _Colour(enum.Enum):
    RED = "red"


def test_values_that_configurations_give_in_other_types() -> None:
    node = uuid.uuid4()
    job = GenericWorkflowJob(
        "job",
        "job",
        executable=GenericWorkflowExec("true", "/bin/true"),
        request_memory="2048",
        request_disk=10.2,
        number_of_retries="3",
        retry_unless_exit=("1", 2),
        memory_multiplier="1.5",
        preemptible="False",
        compute_site=7,
        tags={"visit": np.int64(42), "node": node, "path": pathlib.Path("/x"), "pair": (1, 2), 3: _Colour.RED},
        profile={"condor": BpsConfig({"+JobFlavour": "long", "text": "{jobName}"}, search_order=[])},
    )
    workflow = GenericWorkflow("types")
    workflow.add_job(job)

    (entry,) = convert.to_document(workflow)["jobs"]

    assert entry | {"request_memory": 2048, "request_disk": 11, "number_of_retries": 3, "preemptible": False} == entry
    assert entry | {"retry_unless_exit": [1, 2], "memory_multiplier": 1.5, "compute_site": "7"} == entry
    assert entry["tags"] == {"visit": 42, "node": str(node), "path": "/x", "pair": [1, 2], "3": "red"}
    assert entry["profile"] == {"condor": {"+JobFlavour": "long", "text": "{jobName}"}}


@pytest.mark.parametrize(
    ("field", "value"),
    [("request_memory", "much"), ("preemptible", "perhaps"), ("tags", {"x": float("nan")}), ("environment", "A=1")],
)
def test_values_that_mean_nothing_are_refused_by_name(field: str, value: object) -> None:
    workflow = GenericWorkflow("types")
    workflow.add_job(GenericWorkflowJob("job7", "job", **{field: value}))

    with pytest.raises(convert.CannotConvert, match=f"^{field} of the job job7 is "):
        convert.to_document(workflow)


def test_configuration_travels_as_it_was_read() -> None:
    config = BpsConfig(
        {"payload": {"payloadName": "{name}"}, "site": {"s": {"profile": {"condor": {"a": "${HOME}"}}}}},
        defaults=BPS_DEFAULTS,
        wms_service_class_fqn="bpsd.lsst.BpsdService",
    )

    document = through_json(convert.to_document(GenericWorkflow("w"), config))
    back = convert.config_from_document(document, "lsst.ctrl.bps.parsl.ParslService")

    assert back.search_order == config.search_order
    assert back["wmsServiceClass"] == "lsst.ctrl.bps.parsl.ParslService"
    back["wmsServiceClass"] = "bpsd.lsst.BpsdService"
    assert back.toDict() == config.toDict()


def test_environment_of_the_workflow_becomes_that_of_its_jobs() -> None:
    job = {"name": "a", "executable": "true", "environment": {"B": "2"}}
    workflow = convert.from_document({"bpsd": 1, "name": "w", "environment": {"A": "1", "B": "1"}, "jobs": [job]})

    assert workflow.get_job("a").environment == {"A": "1", "B": "2"}
    assert workflow.get_job("a").executable == GenericWorkflowExec("true", "true")


def test_documents_that_ctrl_bps_has_no_word_for_are_refused() -> None:
    job = {"name": "a", "executable": "true"}
    for document, said in (
        ({"bpsd": 2, "name": "w", "jobs": [job]}, "format 2"),
        ({"name": "w", "jobs": [{**job, "working_directory": "/tmp"}]}, "working_directory"),
        (
            {
                "name": "w",
                "groups": [{"name": "g"}],
                "jobs": [job, {**job, "name": "b", "group": "g", "parents": ["a"]}],
            },
            "across the edge of a group",
        ),
    ):
        with pytest.raises(convert.CannotConvert, match=said):
            convert.from_document(document)


def test_reports_as_documents() -> None:
    info = WmsSpecificInfo()
    info.add_message("held: {count}", count=2)
    report = WmsRunReport(
        wms_id="7.0",
        run="night",
        state=WmsStates.HELD,
        jobs=[WmsJobReport("8.0", "isr_1", "isr", WmsStates.FAILED)],
        total_number_jobs=2,
        job_state_counts=dict.fromkeys(WmsStates, 0) | {WmsStates.HELD: 2},
        job_summary={"isr": {WmsStates.HELD: 2}},
        exit_code_summary={"isr": [1, 137]},
        specific_info=info,
    )

    document = through_json(convert.report_document(report))

    assert set(document) == {field.name for field in dataclasses.fields(WmsRunReport)}
    assert document["state"] == "HELD"
    assert document["jobs"] == [{"wms_id": "8.0", "name": "isr_1", "label": "isr", "state": "FAILED"}]
    assert document["job_summary"] == {"isr": {"HELD": 2}}
    assert document["exit_code_summary"] == {"isr": [1, 137]}
    assert document["specific_info"] == {"templates": ["held: {count}"], "context": {"count": 2}}
    assert msgspec.json.decode(msgspec.json.encode(document)) == document
