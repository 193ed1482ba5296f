"""Two parsers of one definition: the quick one may give up, but never says anything else than the full one."""

from __future__ import annotations

import time
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bpsd.cli import verbs
from bpsd.cli.arguments import Arguments, BadValue, Values
from bpsd.cli.bpsctl import arguments_of, usage
from bpsd.cli.options import UsageError, filters_of, moment, moved_behind
from bpsd.cli.parser import full_parser, parse

WORDS = st.sampled_from(
    [
        "r1",
        "1234.0",
        "FAILED",
        "held,running",
        "90",
        "2h",
        "0",
        "stderr",
        "done",
        "again",
        "bash",
        "x y",
        "",
        "a=b",
        "é",
    ]
)


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A verb and words that may follow it: mostly its own options, some of them misused."""
    verb = draw(st.sampled_from(verbs.names()))
    options = [name for argument in arguments_of(verb).all() if not argument.positional for name in argument.names]
    option = st.sampled_from([*options, "--nonsense", "--"])
    word = st.one_of(WORDS, option, st.builds(lambda o, w: f"{o}={w}", option, WORDS))
    return verb, draw(st.lists(word, max_size=6))


@given(command_lines())
@settings(max_examples=400)
@example(("status", ["r1", "-b", "here", "--json"]))
@example(("report", ["--state", "failed", "-s", "HELD,DELETED", "--hist=2", "--mine"]))
@example(("wait", ["r1", "--any", "r2", "--until", "running"]))
def test_the_quick_parser_agrees_with_the_full_one(line: tuple[str, list[str]]) -> None:
    verb, words = line
    with patch("time.time", return_value=1_780_000_000.0):  # "2h ago" is the same for both
        quick = arguments_of(verb).quick(words)
        try:
            full = parse(verb, arguments_of(verb), words, None)
        except UsageError:
            full = None

    if quick is not None:
        assert full is not None
        assert vars(quick) == vars(full)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("status", ["r1"]),
        ("status", ["--backend", "here", "r1", "--json"]),
        ("report", []),
        ("report", ["--mine", "--state", "FAILED", "--limit", "5"]),
        ("wait", ["r1", "--any", "r2", "--timeout", "2h"]),
        ("cancel", ["--label", "isr", "--yes"]),
        ("submit", ["flow.yaml", "-b", "here", "--wait"]),
    ],
)
def test_everyday_command_lines_are_plain(verb: str, words: list[str]) -> None:
    assert arguments_of(verb).quick(words) is not None


def quickly(verb: str, *words: str) -> Values:
    values = arguments_of(verb).quick(words)
    assert values is not None
    return values


def test_values() -> None:
    args = quickly("report", "-s", "failed,held", "--state", "running", "-b", "a", "--backend=b", "--hist", "0")

    assert (args.state, args.backend, args.hist, args.limit) == (["FAILED", "HELD", "RUNNING"], ["a", "b"], 0.0, 1000)
    assert filters_of(args) == {"state": ["FAILED", "HELD", "RUNNING"], "backend": ["a", "b"], "hist": 0.0}
    assert quickly("wait", "r1", "--timeout", "15m").timeout == 900.0
    assert quickly("wait", "r1", "--until", "Done,held").until == ["done", "HELD"]
    with pytest.raises(AttributeError, match="no argument 'nonsense'"):
        _ = args.nonsense


def test_two_command_lines_share_no_list() -> None:
    arguments = arguments_of("report")
    first, second = arguments.quick(["-b", "a"]), arguments.quick([])

    assert first is not None
    assert second is not None
    assert (first.backend, second.backend) == (["a"], [])


def complaint(verb: str, *words: str) -> tuple[str, str]:
    assert arguments_of(verb).quick(words) is None
    with pytest.raises(UsageError) as caught:
        parse(verb, arguments_of(verb), words, None)
    return caught.value.message, caught.value.advice


def test_mistakes_come_with_what_was_meant() -> None:
    assert complaint("report", "--stat", "FAILED") == ("report: --stat: no such option", "did you mean --state?")
    assert complaint("status", "r1", "r2") == (
        "status: r2: one word too many",
        "`bpsctl status --help` lists what there is",
    )
    assert complaint("report", "-s", "FALED") == (
        "report: argument -s/--state: FALED is no state of a run or job; did you mean FAILED?",
        "`bpsctl report --help` lists what there is",
    )
    assert "--hist: 'soon' is no number of days" in complaint("report", "--hist", "soon")[0]
    assert "--timeout: 'x' is no time; write seconds, or 15m, 2h, 1d" in complaint("wait", "r", "--timeout", "x")[0]
    assert "--limit: '-1' is no number of things" in complaint("jobs", "r", "--limit=-1")[0]
    assert "--until: runing is no state; did you mean RUNNING?" in complaint("wait", "r", "--until", "runing")[0]
    assert "--token: 'x' is no token: 20 characters" in complaint("submit", "f", "--token", "x")[0]
    assert "the name of a run is empty" in complaint("status", " ")[0]
    assert "required: RUN" in complaint("status")[0]
    assert "OUTCOME: invalid choice: 'perhaps'" in complaint("commands resolve", "c1", "perhaps")[0]
    assert complaint("ping", "--daemon=yes")[0] == "ping: argument --daemon: ignored explicit argument 'yes'"


def test_options_before_the_verb() -> None:
    assert moved_behind(["--socket", "/s", "-v", "list", "-q"]) == (["--socket", "/s", "-v"], ["list", "-q"])
    assert moved_behind(["--socket=/s", "list"]) == (["--socket=/s"], ["list"])
    assert moved_behind(["--socket"]) == (["--socket"], [])
    assert moved_behind([]) == ([], [])


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("2h", "2025-12-31 22:00:00"),
        ("90", "2025-12-31 23:58:30"),
        ("00:00", "2026-01-01 00:00:00"),
        ("2025-12-31", "2025-12-31 00:00:00"),
        ("2025-12-31 03:05", "2025-12-31 03:05:00"),
        ("2025-12-31T03:05:07", "2025-12-31 03:05:07"),
    ],
)
def test_moments_are_local_time_or_so_long_ago(text: str, ago: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/Santiago")
    time.tzset()
    try:
        midnight = time.mktime((2026, 1, 1, 0, 0, 0, 0, 0, -1))
        with patch("time.time", return_value=midnight), patch("time.strftime", return_value="2026-01-01 "):
            at = moment(text)
        assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) == ago
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "yesterday", "25:00", "2026-13-01", "-2h", "9999999999999"])
def test_what_is_no_moment_is_said_so(text: str) -> None:
    with pytest.raises(BadValue, match=r"write 2h \(ago\), 03:00 or"):
        moment(text)


def test_folders_are_made_full_paths(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))

    assert quickly("status", ".").run == str(tmp_path)
    assert quickly("status", "./x").run == f"{tmp_path}/x"
    assert quickly("status", "sched#1.0#2").run == "sched#1.0#2"
    assert quickly("status", "a/b").run == "a/b"  # no folder of that name is here: it may be one on the submit host


@pytest.mark.parametrize("verb", verbs.names())
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(verb, arguments_of(verb), ["--help"], None) is None

    out = capsys.readouterr().out
    assert out.startswith(f"usage: bpsctl {verb} ")
    for argument in arguments_of(verb).all():
        assert (argument.names[-1] if not argument.positional else argument.metavar or "") in out
        assert argument.help
    assert max(map(len, out.splitlines())) <= 100


def test_usage_names_every_verb_and_every_exit_code() -> None:
    text = usage()

    assert [verb for verb in verbs.names() if f"\n  {verb} " not in text] == []
    for words in (
        "1    it failed",
        "2    the command line",
        "3    the time is over",
        "4    no daemon",
        "130  Ctrl-C",
        "141  the reader",
    ):
        assert words in text
    assert "SUCCEEDED 0" in text
    assert "PRUNED 20" in text


def test_the_parser_of_everything_is_for_completion() -> None:
    root = full_parser(arguments_of)
    choices = root._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert choices is not None

    assert {*choices} == {verb for verb in verbs.names() if " " not in verb}


def test_groups() -> None:
    arguments = Arguments()
    arguments.add("--a", help="first")
    arguments.begin_group("more", "of it")
    arguments.add("b", help="second", nargs="?")

    assert [(title, [*map(repr, members)]) for title, _, members in arguments.groups] == [
        ("", ["<Argument --a>"]),
        ("more", ["<Argument b>"]),
    ]
    assert repr(arguments.quick(["x"])) == "<Values {'a': None, 'b': 'x'}>"
