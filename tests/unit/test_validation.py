"""Workflows: every mistake of a document in one reading, and the canonical form of one that has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd import validation
from bpsd.documents import PROBLEMS_MAX
from bpsd.errors import Problem, WorkflowInvalid
from bpsd.interface import FieldSupport
from bpsd.validate_worker import Instructions, work
from bpsd.workflow import JOB_FIELDS, Executable, File, Group, Job, Workflow
from bpsd.workflowchecks import LABELS_MAX

JOB = "{name: a, executable: x}"


def mistakes(text: str, **fields: tuple[FieldSupport, str]) -> list[str]:
    """What is wrong with it, as LINE KEY: MESSAGE."""
    with pytest.raises(WorkflowInvalid) as caught:
        validation.load_workflow(text.encode(), "w.yaml", fields=fields, backend="usdf")
    assert caught.value.total == len(caught.value.problems)
    return [f"{p.line} {p.key}: {p.message}" for p in caught.value.problems]


def load(text: str) -> Workflow:
    return validation.load_workflow(text.encode(), "w.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["1 name: the key 'name' is missing", "1 jobs: the workflow has no jobs"]),
        ("name: w", ["1 jobs: the workflow has no jobs"]),
        ("name: w\njobs: []", ["2 jobs: the workflow has no jobs"]),
        ("name: w\njobs: 3", ["2 jobs: expected a list, got the integer 3"]),
        (f"name: /w\njobs: [{JOB}]", ["1 name: '/w' begins with a slash"]),
        (f"bpsd: 2\nname: w\njobs: [{JOB}]", ["1 bpsd: expected 1, got the integer 2"]),
        (f"name: w\nrun: {{operator: \"a\\eb\", attrs: {{'': x}}}}\njobs: [{JOB}]",
         ["2 run.operator: contains the control character U+001B", "2 run.attrs.: must not be empty"]),
        (f"name: w\nenvironment: {{'A=B': x}}\njobs: [{JOB}]", ["2 environment.A=B: 'A=B' contains '='"]),
        (f"name: w\njobs:\n- {JOB}\n- {JOB}", ["4 jobs[1].name: 'a' is the name of jobs[0] already"]),
        (f"name: w\ngroups: [{{name: a}}]\njobs:\n- {JOB}", ["4 jobs[0].name: 'a' is the name of groups[0] already"]),
        (f"name: w\njobs:\n- {JOB}\nfinal: {JOB}", ["4 final.name: 'a' is the name of jobs[0] already"]),
        ("name: w\njobs: [{name: a/b, executable: x}]", ["2 jobs[0].name: 'a/b' contains a slash"]),
        ("name: w\njobs: [{name: a, label: 'x;y', executable: x}]",
         ["2 jobs[0].label: 'x;y' contains ':' or ';', of which the run summary is made"]),
        (f"name: w\nexecutables: [{{name: x}}, {{name: x}}, {{name: ''}}]\njobs: [{JOB}]",
         ["2 executables[1].name: 'x' is the name of executables[0] already",
          "2 executables[2].name: must not be empty"]),
        (f"name: w\nexecutables:\n- {{name: x, transfer_executable: true}}\njobs: [{JOB}]",
         ["3 executables[0]: transfer_executable needs a src_uri"]),
        (f"name: w\nfiles: [{{name: f}}, {{name: f}}]\njobs: [{JOB}]",
         ["2 files[1].name: 'f' is the name of files[0] already"]),
        ("name: w\njobs: [{name: a}]", ["2 jobs[0].executable: the job has no executable"]),
        ("name: w\njobs: [{name: a, executable: x, request_cpus: 0}]",
         ["2 jobs[0].request_cpus: must be at least 1, but is 0"]),
        (f"name: w\njobs:\n- {JOB}\n- {{name: b, executable: x, parents: [aa]}}",
         ["4 jobs[1].parents[0]: no job or group is named 'aa'; did you mean 'a'?"]),
        ("name: w\njobs:\n- {name: a, executable: x, parents: [a]}", ["3 jobs[0].parents[0]: 'a' waits for itself"]),
        ("name: w\njobs:\n- {name: a, executable: x, group: gg}\ngroups: [{name: g}]",
         ["3 jobs[0].group: no group is named 'gg'; did you mean 'g'?"]),
        ("name: w\njobs:\n- {name: a, executable: x, group: g, parents: [g]}\ngroups: [{name: g}]",
         ["3 jobs[0].parents[0]: 'a' waits for 'g', the group it belongs to"]),
        (f"name: w\njobs: [{JOB}]\ngroups:\n- {{name: g, parents: [g, b]}}",
         ["4 groups[0].parents[0]: 'g' waits for itself", "4 groups[0].parents[1]: no job or group is named 'b'"]),
        ("name: w\njobs:\n- {name: a, executable: x, parents: [end]}\nfinal: {name: end, executable: x}",
         ["3 jobs[0].parents[0]: nothing can wait for 'end', the final job"]),
        (f"name: w\njobs: [{JOB}]\nfinal: {{name: f, executable: x, parents: [a], group: g, kind: noop}}",
         ["3 final.executable: a noop job runs nothing, so executable means nothing",
          "3 final.parents: the final job waits for all others; name no parents",
          "3 final.group: the final job is in no group",
          "3 final.kind: the final job cannot be a noop job"]),
        ("name: w\njobs: [{name: a, kind: noop, executable: x, request_memory: 5, tags: {b: c}}]",
         ["2 jobs[0].executable: a noop job runs nothing, so executable means nothing",
          "2 jobs[0].request_memory: a noop job runs nothing, so request_memory means nothing"]),
        (f"name: w\ncategory_limits: {{bigg: 1}}\njobs: [{JOB}, {{name: b, executable: x, category: big}}]",
         ["2 category_limits.bigg: no job has the category 'bigg'; did you mean 'big'?"]),
        ("name: w\ncategory_limits: {big: 0}\njobs: [{name: b, executable: x, category: big}]",
         ["2 category_limits.big: must be at least 1, but is 0: its jobs would never run"]),
        ("""name: w
files: [{name: graph}]
jobs:
- {name: a, executable: x, inputs: [graph, grahp], outputs: [zzz], arguments: "'<FILE:grap>"}""",
         ["4 jobs[0].inputs[1]: no entry of files is named 'grahp'; did you mean 'graph'?",
          "4 jobs[0].outputs[0]: no entry of files is named 'zzz'",
          "4 jobs[0].arguments: the quote ' at character 1 is not closed",
          "4 jobs[0].arguments: no entry of files is named 'grap'; did you mean 'graph'?"]),
        ("name: w\njobs: [{name: a, executable: '<FILE:e>', pre_cmdline: 'ls <FILE:p>'}]",
         ["2 jobs[0].executable: no entry of files is named 'e'",
          "2 jobs[0].pre_cmdline: no entry of files is named 'p'"]),
        ("""name: w
jobs:
- {name: a, executable: x, arguments: 'x {nod}', cmdvals: {node: 5}}
- {name: b, executable: x, arguments: '<FILE:{f}> {q}', cmdvals: {f: g, q: "'"}}""",
         ["3 jobs[0].arguments: {nod}: cmdvals has no 'nod'; it has node",
          "4 jobs[1].arguments: the quote ' at character 10 is not closed",
          "4 jobs[1].arguments: no entry of files is named 'g'"]),
        ("name: w\njobs: [{name: a, executable: x, environment: {'': y}, quanta_counts: {isr: -1}}]",
         ["2 jobs[0].environment.: a variable needs a name",
          "2 jobs[0].quanta_counts.isr: must be at least 0, but is -1"]),
        ("name: w\njobs: [{name: a, executable: x, tags: {t: " + "[" * 33 + "]" * 33 + "}}]",
         ["2 jobs[0].tags.t: is nested more than 32 deep"]),
        (f"name: w\ndefaults: {{name: b, exectuable: c, request_cpus: x}}\njobs: [{JOB}]",
         [f"2 defaults.name: unknown key 'name'; known are label, {', '.join(JOB_FIELDS)}",
          "2 defaults.exectuable: unknown key 'exectuable'; did you mean 'executable'?",
          "2 defaults.request_cpus: expected an integer, got the text 'x'"]),
    ],
)  # fmt: skip
def test_mistake_is_named_and_located(text: str, expected: list[str]) -> None:
    assert mistakes(text) == expected


def test_mistakes_of_form_and_of_sense_are_listed_together_in_the_order_of_the_text() -> None:
    found = mistakes(
        """name: w
runn: {}
jobs:
  - {name: a, executable: x, parents: [c]}
  - {name: b, exectuable: x, parents: [a]}
  - {name: c, executable: x, parents: [b], request_memory: much}
  - {executable: x, parents: [nobody]}
  - 5
  - {name: a, executable: x}
"""
    )

    assert found == [
        "2 runn: unknown key 'runn'; did you mean 'run'?",
        "4 jobs[0].parents[0]: these wait for one another: a -> b -> c -> a",
        "5 jobs[1].executable: the job has no executable",
        "5 jobs[1].exectuable: unknown key 'exectuable'; did you mean 'executable'?",
        "6 jobs[2].request_memory: expected an integer, got the text 'much'",
        "7 jobs[3].name: the key 'name' is missing",
        "7 jobs[3].parents[0]: no job or group is named 'nobody'",
        "8 jobs[4]: expected a mapping, got the integer 5",
        "9 jobs[5].name: 'a' is the name of jobs[0] already",
    ]


def test_each_knot_of_jobs_and_groups_shows_one_cycle() -> None:
    found = mistakes(
        """name: w
groups:
  - {name: g, parents: [d]}
  - {name: h, parents: [k]}
  - {name: k, parents: [h]}
jobs:
  - {name: a, executable: x, parents: [b]}
  - {name: b, executable: x, parents: [a]}
  - {name: c, executable: x, group: g}
  - {name: d, executable: x, parents: [g]}
"""
    )

    assert found == [
        "4 groups[1].parents[0]: these wait for one another: group h -> group k -> group h",
        "7 jobs[0].parents[0]: these wait for one another: a -> b -> a",
        "9 jobs[2].group: these wait for one another: c -> group g -> d -> group g -> c",
    ]


def test_long_cycle_is_shown_by_its_ends() -> None:
    workflow = {
        "name": "w",
        "jobs": [{"name": f"j{i}", "executable": "x", "parents": [f"j{i - 1}"]} for i in range(500)],
    }
    workflow["jobs"][0]["parents"] = ["j499"]  # type: ignore[index]

    (found,) = mistakes(msgspec.json.encode(workflow).decode())

    assert "j0 -> j1 -> " in found
    assert "(485 more)" in found
    assert found.endswith(" -> j499 -> j0")


def test_what_a_backend_finds_is_placed_in_the_text() -> None:
    text = "name: w\ndefaults: {executable: /bin/tru}\njobs:\n- {name: a}\n- {name: b, executable: /bin/fals}\n"
    found = [Problem(("jobs", n, "executable"), f"there is no program ({name})") for n, name in enumerate("ab")]

    placed = validation.placed(text.encode(), "w.yaml", WorkflowInvalid("w", found, total=7))

    assert [(p.line, p.column, p.message) for p in placed.problems] == [
        (4, 3, "there is no program (a)"),  # it came from the defaults: the job is the nearest place
        (5, 25, "there is no program (b)"),
    ]
    assert (placed.source, placed.total) == ("w.yaml", 7)


def test_configuration_of_bps_is_told_from_a_workflow_with_mistakes() -> None:
    config = "pipelineYaml: DRP.yaml\npayload: {runInit: true}\nproject: dev\n"

    assert mistakes(config) == [
        "1 : this is what `bps submit` takes, not a workflow; docs/lsst.md says how `bps` goes through bpsd"
    ]
    assert mistakes(f"{config}name: w\njobs: [{JOB}]")[0].startswith("1 pipelineYaml: unknown key")


def test_field_that_the_backend_refuses_is_refused_with_its_reason() -> None:
    found = mistakes(
        "name: w\njobs:\n- {name: a, executable: x, queue: short}\n- {name: b, executable: x}",
        queue=(FieldSupport.REFUSES, "there are no queues here"),
    )

    assert found == ["3 jobs[0].queue: backend usdf refuses queue: there are no queues here"]


def test_mistake_in_the_defaults_is_told_once_and_there() -> None:
    found = mistakes(
        """name: w
defaults: {queue: short, request_memory: -1, environment: {'A=B': x}, inputs: [f], arguments: "'"}
jobs:
  - {name: a, executable: x}
  - {name: b, executable: x, request_memory: -2, environment: {'C=D': x}}
""",
        queue=(FieldSupport.REFUSES, "there are none"),
    )

    assert found == [
        "2 defaults.queue: backend usdf refuses queue: there are none",
        "2 defaults.request_memory: must be at least 1, but is -1",
        "2 defaults.environment.A=B: 'A=B' contains '='",
        "2 defaults.inputs[0]: no entry of files is named 'f'",
        "2 defaults.arguments: the quote ' at character 1 is not closed",
        "5 jobs[1].request_memory: must be at least 1, but is -2",
        "5 jobs[1].environment.C=D: 'C=D' contains '='",
    ]


def test_default_that_contradicts_a_job_is_told_at_the_job() -> None:
    found = mistakes("name: w\ndefaults: {request_memory: 9}\njobs:\n- {name: a, executable: x, request_memory_max: 8}")

    assert found == ["4 jobs[0].request_memory_max: is 8 MB, less than request_memory (9 MB)"]


def test_unknown_name_among_many_is_compared_with_those_around_it() -> None:
    jobs: list[dict[str, Any]] = [{"name": f"isr_{i:05}_x", "executable": "x"} for i in range(3000)]
    jobs[0]["parents"] = ["isr_02999"]
    jobs[1]["parents"] = ["usr_00007_x"]

    found = mistakes(msgspec.json.encode({"name": "w", "jobs": jobs}).decode())

    assert [line.partition("; ")[2] for line in found] == [
        "did you mean 'isr_02999_x'?",
        "did you mean 'isr_00007_x'?",
    ]


def test_mistakes_beyond_the_limit_are_counted_and_those_of_structure_come_first() -> None:
    jobs: list[dict[str, Any]] = [{"name": f"j{i}", "executable": "x", "inputs": ["f"]} for i in range(300)]
    jobs[7]["parents"] = ["j8"]
    jobs[8]["parents"] = ["j7"]

    with pytest.raises(WorkflowInvalid) as caught:
        validation.load_workflow(msgspec.json.encode({"name": "w", "jobs": jobs}), "w.json")

    assert caught.value.total == 301
    assert len(caught.value.problems) == PROBLEMS_MAX
    assert any("j7 -> j8 -> j7" in problem.message for problem in caught.value.problems)


def test_parents_are_counted_as_they_stand_in_the_text() -> None:
    assert mistakes(
        "name: w\njobs:\n- {name: a, executable: x}\n- {name: b, executable: x, parents: [a, a,\n nobody]}"
    ) == ["5 jobs[1].parents[2]: no job or group is named 'nobody'"]


def test_more_attributes_of_a_run_than_the_daemon_keeps_are_refused() -> None:
    document = {
        "name": "w",
        "run": {"attrs": {f"a{i}": "x" for i in range(101)}},
        "jobs": [{"name": "a", "executable": "x"}],
    }

    assert mistakes(msgspec.json.encode(document).decode()) == ["1 run.attrs: has 101 entries; at most 100 are allowed"]


def test_more_labels_than_a_report_can_show_are_refused() -> None:
    jobs = [{"name": f"j{i}", "label": f"l{i}", "executable": "x"} for i in range(LABELS_MAX + 1)]

    assert mistakes(msgspec.json.encode({"name": "w", "jobs": jobs}).decode()) == [
        f"1 jobs: {LABELS_MAX + 1} different labels; at most {LABELS_MAX} are allowed"
    ]


# -- what is valid -----------------------------------------------------------------------------------------------------


def test_defaults_fill_what_a_payload_job_leaves_open() -> None:
    workflow = load(
        """name: w
defaults: {label: d, executable: e, request_memory: 5, environment: {A: "1", B: "1"}, tags: {t: 1}, arguments: x}
jobs:
  - {name: a}
  - {name: b, label: l, executable: f, request_memory: 6, environment: {B: "2"}, arguments: y}
  - {name: c, kind: noop}
final: {name: z}
"""
    )

    a, b, c = workflow.jobs
    assert (a.label, a.executable, a.request_memory, a.arguments) == ("d", "e", 5, "x")
    assert (b.label, b.executable, b.request_memory, b.arguments) == ("l", "f", 6, "y")
    assert b.environment == {"A": "1", "B": "2"}
    assert b.tags == {"t": 1}
    assert c == Job(name="c", kind="noop", label="noop")
    assert workflow.final is not None
    assert (workflow.final.label, workflow.final.executable) == ("final", "e")
    assert workflow.defaults == {}


def test_job_without_a_label_has_one_by_its_kind() -> None:
    workflow = load(f"name: w\njobs: [{JOB}, {{name: n, kind: noop}}]\nfinal: {{name: f, executable: x}}")

    assert [job.label for job in workflow.jobs] == ["payload", "noop"]
    assert workflow.final is not None
    assert workflow.final.label == "final"


def test_braces_mean_nothing_without_cmdvals() -> None:
    assert (
        load("name: w\njobs: [{name: a, executable: awk, arguments: \"'{print $1}'\"}]").jobs[0].arguments
        == "'{print $1}'"
    )


def test_parent_that_is_named_twice_is_one_parent() -> None:
    workflow = load(
        f"name: w\njobs: [{JOB}, {{name: b, executable: x}}, {{name: c, executable: x, parents: [b, a, b]}}]"
    )

    assert workflow.jobs[2].parents == ["b", "a"]


def test_summary_counts_what_runs_in_the_order_in_which_labels_become_ready() -> None:
    text = """name: w
defaults: {executable: x}
jobs:
  - {name: last, label: coadd, parents: [i1, g]}
  - {name: i2, label: isr, parents: [n]}
  - {name: i1, label: isr, parents: [n]}
  - {name: n, kind: noop, parents: [start]}
  - {name: start, label: init}
  - {name: m, label: member, group: g}
groups: [{name: g, parents: [i2]}]
final: {name: f, label: init}
"""

    valid = validation.validate(text.encode(), "w")

    assert valid.run_summary == "isr:2;member:1;coadd:1;init:2"
    assert validation.run_summary(valid.workflow) == valid.run_summary
    assert valid.job_count == 6
    assert dict(valid.label_counts) == validation.label_counts(valid.workflow)


def test_warnings_say_what_is_approximated_useless_or_empty() -> None:
    text = """name: w
defaults: {priority: 5}
groups: [{name: g}]
jobs:
  - {name: a, executable: x, request_memory_max: 5}
  - {name: b, executable: x, queue: q}
"""
    fields = {
        "priority": (FieldSupport.APPROXIMATES, "as nice does"),
        "queue": (FieldSupport.HONOURS, ""),
        "request_disk": (FieldSupport.REFUSES, "no"),
    }

    assert validation.validate(text.encode(), "w", fields=fields, backend="here").warnings == (
        "priority of 2 jobs is approximated by backend here: as nice does",
        "request_memory_max has no effect without request_memory (1 job)",
        "groups without jobs: g",
    )


def test_document_of_the_module_is_valid() -> None:
    import bpsd.workflow

    text = bpsd.workflow.__doc__
    assert text is not None
    example = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))

    assert validation.run_summary(load(example)) == "init:1;isr:1;final:1"


@st.composite
def workflows(draw: st.DrawFn) -> dict[str, Any]:
    """A valid workflow as a document."""
    names = draw(
        st.lists(st.from_regex(r"[a-z][a-z0-9_é -]{0,5}[a-z0-9]", fullmatch=True), min_size=2, max_size=8, unique=True)
    )
    groups = names[: draw(st.integers(0, len(names) // 3))]
    files = ["f1", "f 2"]
    jobs: list[dict[str, Any]] = []
    for index, name in enumerate(names[len(groups) :]):
        # Parents come before; a group is a parent only of jobs that come after its last member, which keeps out cycles.
        parents = draw(st.lists(st.sampled_from([job["name"] for job in jobs]), max_size=3)) if jobs else []
        job: dict[str, Any] = {"name": name, "parents": parents}
        if groups and index == 0:
            job["group"] = draw(st.sampled_from(groups))
        elif groups:
            job["parents"] += draw(st.lists(st.sampled_from(groups), max_size=1))
        if draw(st.booleans()):
            job["kind"] = "noop"
        else:
            job |= draw(PAYLOAD)
            job["inputs"] = draw(st.lists(st.sampled_from(files), max_size=2))
        jobs.append(job)
    defaults = draw(PAYLOAD) | {"executable": "d"}
    return {
        "name": "u/op/w",
        "defaults": defaults,
        "files": [{"name": name} for name in files],
        "groups": [{"name": name} for name in groups],
        "jobs": jobs,
    } | ({"final": {"name": "the end"}} if draw(st.booleans()) else {})


PAYLOAD = st.fixed_dictionaries(
    {},
    optional={
        "label": st.sampled_from(["isr", "coadd"]),
        "executable": st.sampled_from(["/bin/true", "x"]),
        "arguments": st.sampled_from(["", "a 'b c'", "<FILE:f1>"]),
        "request_memory": st.integers(1, 9),
        "request_walltime": st.sampled_from([5, "1:30:00"]),
        "retry_unless_exit": st.integers(0, 255) | st.lists(st.integers(0, 255), max_size=2),
        "environment": st.dictionaries(st.sampled_from("AB"), st.text(st.sampled_from("xé "), max_size=2)),
        "tags": st.dictionaries(st.sampled_from("tu"), st.integers().filter(lambda i: abs(i) < 2**63)),
        "preemptible": st.booleans(),
    },
)


@given(workflows())
def test_canonical_form_is_a_document_that_validates_to_itself(document: dict[str, Any]) -> None:
    first = validation.validate(msgspec.json.encode(document), "w")
    canonical = validation.canonical_json(first.workflow)

    second = validation.validate(canonical, "w")

    assert second.workflow == first.workflow
    assert validation.canonical_json(second.workflow) == canonical
    assert msgspec.json.decode(canonical, type=Workflow) == first.workflow
    assert second.label_counts == first.label_counts
    runs = [job for job in first.workflow.jobs if job.kind == "payload"] + (
        [first.workflow.final] if first.workflow.final else []
    )
    assert first.job_count == len(runs)
    assert all(job.label and job.executable for job in runs)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["", "a", "b", "g", "x y", "'", "<FILE:", "é\n", "noop"]),
    lambda each: st.lists(each, max_size=3),
    max_leaves=4,
)


def _like(struct: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from([*struct.__struct_fields__, "nmae"]), JUNK, max_size=5)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": JUNK,
            "defaults": _like(Job),
            "category_limits": st.dictionaries(st.sampled_from("ab"), JUNK),
            "executables": st.lists(_like(Executable), max_size=2),
            "files": st.lists(_like(File), max_size=2),
            "groups": st.lists(_like(Group), max_size=3) | JUNK,
            "jobs": st.lists(_like(Job), max_size=4) | JUNK,
            "final": _like(Job),
        },
    )
)
def test_nothing_that_looks_like_a_workflow_raises_anything_else(document: dict[str, Any]) -> None:
    refused = dict.fromkeys(JOB_FIELDS[::3], (FieldSupport.REFUSES, "no"))
    with pytest.raises(WorkflowInvalid) as caught:  # no job has an executable that any junk could name and a name
        validation.validate(msgspec.json.encode({**document, "never": 0}), "w", fields=refused)

    assert caught.value.total >= len(caught.value.problems) >= 1


# -- the helper process, without its process ---------------------------------------------------------------------------


def test_worker_writes_the_canonical_form_with_the_token(tmp_path: Path) -> None:
    source, output = tmp_path / "w.yaml", tmp_path / "out.json"
    source.write_text(
        f"name: w\nrun: {{project: p, attrs: {{a: b}}}}\njobs: [{JOB}, {{name: b, executable: x, queue: q}}]"
    )
    order = Instructions(
        input=str(source),
        source="w.yaml",
        output=str(output),
        fields={"queue": ("approximates", "so")},
        backend="here",
        token="t" * 20,
    )

    answer = work(order)

    assert answer == {
        "ok": True,
        "name": "w",
        "token": "t" * 20,
        "run": {"project": "p", "attrs": {"a": "b", "bps_token": "t" * 20}},
        "job_count": 2,
        "run_summary": "payload:2",
        "labels": {"payload": 2},
        "size_bytes": output.stat().st_size,
        "umask": "",
        "warnings": ["queue of 1 job is approximated by backend here: so"],
    }
    workflow = msgspec.json.decode(output.read_bytes(), type=Workflow)
    assert workflow.run.attrs["bps_token"] == "t" * 20
    assert output.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "w.yaml"]


def test_worker_answers_with_the_mistakes_and_writes_nothing(tmp_path: Path) -> None:
    source, output = tmp_path / "w.yaml", tmp_path / "out.json"
    source.write_text("name: w\njobs: [{name: a}]")

    answer = work(Instructions(input=str(source), source="w.yaml", output=str(output)))

    assert answer == {
        "ok": False,
        "code": "workflow_invalid",
        "message": "the workflow w.yaml has 1 mistake",
        "advice": "nothing was changed; mend the places listed and try again",
        "total": 1,
        "problems": [{"key": "jobs[0].executable", "message": "the job has no executable", "line": 2, "column": 8}],
    }
    assert not output.exists()


def test_worker_that_cannot_read_or_write_says_so(tmp_path: Path) -> None:
    source = tmp_path / "w.yaml"
    unread = work(Instructions(input=str(source), source="w.yaml"))
    assert (unread["ok"], unread["code"]) == (False, "storage")
    assert "cannot read or keep the workflow w.yaml" in unread["message"]

    source.write_text(f"name: w\njobs: [{JOB}]")
    unwritten = work(Instructions(input=str(source), source="w.yaml", output=str(tmp_path / "no" / "out.json")))
    assert (unwritten["ok"], unwritten["code"]) == (False, "storage")


def test_worker_may_only_validate(tmp_path: Path) -> None:
    source = tmp_path / "w.yaml"
    source.write_text(f"name: w\njobs: [{JOB}]")

    assert work(Instructions(input=str(source), source="w.yaml"))["ok"]
    assert list(tmp_path.iterdir()) == [source]
