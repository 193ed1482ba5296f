"""The configuration: zero of it, all of it, and every mistake in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bpsd import config, wire
from bpsd.config import Config, ConfigFile, Polling, default_config, find_config, load_config
from bpsd.errors import CannotStart, ConfigInvalid

ROOT = Path(__file__).parents[2]
ENVIRON = {"HOME": "/h", "XDG_RUNTIME_DIR": "/run/user/7"}
UID = 7


class LocalSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stands for the settings of an adapter."""

    cores: Annotated[int, msgspec.Meta(ge=1)] | None = None
    password: str = ""
    folders: list[str] = []


class SiteSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """With one that must be given, and a check of the whole."""

    host: str
    low: int = 0
    high: int = 9

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


SETTINGS: dict[str, type[msgspec.Struct]] = {"local": LocalSettings, "site": SiteSettings}


def load(text: str, tmp_path: Path, environ: dict[str, str] | None = None) -> Config:
    path = tmp_path / "bpsd.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, SETTINGS.__getitem__, list(SETTINGS), environ=environ or ENVIRON, uid=UID)


def mistakes(text: str, tmp_path: Path) -> list[str]:
    with pytest.raises(ConfigInvalid) as caught:
        load(text, tmp_path)
    assert caught.value.total == len(caught.value.problems)
    return [f"{p.line} {p.key}: {p.message}" for p in caught.value.problems]


def zero() -> Config:
    return default_config(ENVIRON, UID, SETTINGS.__getitem__, list(SETTINGS))


def test_zero_configuration_is_one_local_backend_for_one_person() -> None:
    zero_config = zero()

    assert zero_config.mode == "user"
    assert zero_config.socket == "/run/user/7/bpsd/bpsd.sock" == wire.default_socket(ENVIRON, UID)
    assert zero_config.state_dir == "/h/.local/state/bpsd"
    (here,) = zero_config.backends.values()
    assert (here.name, here.type, here.settings) == ("here", "local", LocalSettings())
    assert here.polling == zero_config.polling == Polling()
    assert here.commands_at_once == zero_config.commands.at_once_per_backend
    assert here.commands_deadline_s == zero_config.commands.deadline_s


@pytest.mark.parametrize("text", ["", "# all of it commented out\n", "{}", "backends:\n", '{"mode": "user"}'])
def test_file_that_says_nothing_is_zero_configuration(text: str, tmp_path: Path) -> None:
    assert load(text, tmp_path) == zero()


def test_backend_has_what_it_shares_with_others_unless_it_says_otherwise(tmp_path: Path) -> None:
    loaded = load(
        """
polling: {min_interval_s: 3, jitter: 0.2}
commands: {deadline_s: 100, at_once_per_backend: 2}
backends:
  a: {type: local, cores: 4, folders: [x], poll: {min_interval_s: 5}, commands_at_once: 9}
  b-1_x: {type: site, host: h, commands_deadline_s: 7}
""",
        tmp_path,
    )

    a, b = loaded.backends.values()
    assert a.settings == LocalSettings(cores=4, folders=["x"])
    assert a.polling == Polling(min_interval_s=5, jitter=0.2)
    assert (a.commands_at_once, a.commands_deadline_s) == (9, 100)
    assert b.settings == SiteSettings(host="h")
    assert b.polling == loaded.polling == Polling(min_interval_s=3, jitter=0.2)
    assert (b.commands_at_once, b.commands_deadline_s) == (2, 7)


def test_system_mode_has_the_systems_places(tmp_path: Path) -> None:
    loaded = load("mode: system\nbackends: {s: {type: site, host: h}}\nrights: {others: [read]}", tmp_path)

    assert (loaded.socket, loaded.state_dir) == ("/run/bpsd/bpsd.sock", "/var/lib/bpsd")
    assert loaded.rights.others == ["read"]


def test_paths_may_begin_at_home_and_the_environment_names_the_socket_last(tmp_path: Path) -> None:
    text = "socket: ~/s\nstate_dir: /var/tmp/x"
    assert (load(text, tmp_path).socket, load(text, tmp_path).state_dir) == ("/h/s", "/var/tmp/x")

    assert load(text, tmp_path, {**ENVIRON, config.SOCKET_VARIABLE: "/tmp/other"}).socket == "/tmp/other"
    assert load("", tmp_path, {**ENVIRON, "XDG_STATE_HOME": "/s"}).state_dir == "/s/bpsd"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mode: sytem", ["1 mode: expected one of 'system', 'user', got the text 'sytem'"]),
        ("limit: {}", ["1 limit: unknown key 'limit'; did you mean 'limits'?"]),
        ("limits: {clients: 0, cleints: 5}", ["1 limits.clients: must be at least 1, but is 0",
                                              "1 limits.cleints: unknown key 'cleints'; did you mean 'clients'?"]),
        ("polling:\n  jitter: 1\n  min_interval_s: soon",
         ["2 polling.jitter: must be below 1, but is 1",
          "3 polling.min_interval_s: expected a number, got the text 'soon'"]),
        ("polling:\n  min_interval_s: 40\n  max_interval_s: 20\n  backoff_max_s: 1",
         ["2 polling.idle_interval_s: is 30, less than min_interval_s (40)",
          "3 polling.max_interval_s: is 20, less than idle_interval_s (30)",
          "4 polling.backoff_max_s: is 1, less than backoff_initial_s (2)"]),
        ("commands: {doubt_retry_max_s: 1}", ["1 commands.doubt_retry_max_s: is less than doubt_retry_initial_s"]),
        ("history: {keep_days: 2}", ["1 history.keep_days: is less than hot_days"]),
        ("rights: {others: [read, write]}",
         ["1 rights: only a daemon in mode system serves others",
          ("1 rights.others[1]: expected one of 'audit', 'command', 'output', 'read', 'status', 'submit', "
           "got the text 'write'")]),
        ("socket: run/s", ["1 socket: 'run/s' is not absolute (it may begin with ~/)"]),
        (f"socket: /{'s' * 107}", ["1 socket: is 108 bytes long; a Unix socket takes 107"]),
        ("state_dir: 5", ["1 state_dir: expected text, got the integer 5; put it in quotes"]),
        ("backends: [here]", ["1 backends: expected a mapping, got a list"]),
        ("backends: {}",
         ["1 backends: there is no backend; leave the section out for the one that is there by default"]),
        ("mode: system", ["1 backends: a daemon in mode system needs at least one backend"]),
        ("mode: system\nbackends: {a: {type: local}}", [f"2 backends.a.type: {config._RUNS_AS['system']}"]),
        ("backends:\n  Here: {type: local}",
         ["2 backends.Here: a name of a backend is a-z, then up to 31 of a-z, 0-9, _ and -"]),
        ("backends:\n  a: {type: lokal, pol: 5, poll: {jitter: 7}}",
         ["2 backends.a.type: there is no adapter 'lokal'; did you mean 'local'?",
          "2 backends.a.poll.jitter: must be below 1, but is 7"]),
        ("backends:\n  a: {type: zzz}", ["2 backends.a.type: there is no adapter 'zzz'; known are local, site"]),
        ("backends:\n  a: {poll: 5}", ["2 backends.a.type: the key 'type' is missing",
                                       "2 backends.a.poll: expected a mapping, got the integer 5"]),
        ("backends:\n  a: {type: 5}", ["2 backends.a.type: expected text, got the integer 5; put it in quotes"]),
        ("backends:\n  a:\n  b: x", ["2 backends.a: expected a mapping, got nothing",
                                     "3 backends.b: expected a mapping, got the text 'x'"]),
        ("backends:\n  a:\n    type: local\n    coers: 4\n    folders: [1]\n    poll: {max_interval_s: 1}",
         ["4 backends.a.coers: unknown key 'coers'; did you mean 'cores'?",
          "5 backends.a.folders[0]: expected text, got the integer 1; put it in quotes",
          "6 backends.a.poll.max_interval_s: is 1, less than idle_interval_s (30)"]),
        ("backends:\n  a: {type: site}", ["2 backends.a.host: the key 'host' is missing"]),
        ("backends:\n  a: {type: site, host: h, low: 10}", ["2 backends.a: low is above high"]),
        ("backends:\n  a: {type: local}\n  a: {type: local}",
         ["3 backends.a: the key 'a' is given more than once (first on line 2)"]),
        ("- mode: user", ["1 : expected a mapping, got a list"]),
        ("mode: [", ["1 : this is not YAML: did not find expected node content (while parsing a flow node)"]),
    ],
)  # fmt: skip
def test_mistake_is_named_and_located(text: str, expected: list[str], tmp_path: Path) -> None:
    assert mistakes(text, tmp_path) == expected


def test_all_mistakes_of_a_file_are_listed_at_once(tmp_path: Path) -> None:
    found = mistakes(
        """mode: user
stop: {timeout_s: 0}
backends:
  a: {type: local, cores: none}
  b: {type: site, host: h, low: 10, high: 3}
  c: {type: site, low: 10, hgih: 3}
logs: {level: loud}
""",
        tmp_path,
    )

    assert found == [
        "2 stop.timeout_s: must be at least 1, but is 0",
        "4 backends.a.cores: expected an integer, got the text 'none'",
        "5 backends.b: low is above high",
        "6 backends.c.host: the key 'host' is missing",
        "6 backends.c.hgih: unknown key 'hgih'; did you mean 'high'?",
        "7 logs.level: expected one of 'debug', 'error', 'info', 'warning', got the text 'loud'",
    ]


def test_file_that_cannot_be_read_is_told_with_advice(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="No such file or directory") as caught:
        load_config(tmp_path / "none.yaml", SETTINGS.__getitem__, list(SETTINGS))

    assert "--config" in caught.value.advice


def test_adapter_whose_settings_hide_those_of_all_is_a_mistake_of_the_adapter(tmp_path: Path) -> None:
    class Clashing(msgspec.Struct):
        poll: int = 1

    with pytest.raises(TypeError, match="takes names that all backends have: \\['poll'\\]"):
        default_config(ENVIRON, UID, lambda _: Clashing, ["local"])


def test_repr_shows_no_settings_of_adapters(tmp_path: Path) -> None:
    loaded = load("backends: {a: {type: local, password: hush}}", tmp_path)

    assert repr(loaded) == (
        "<Config mode=user socket=/run/user/7/bpsd/bpsd.sock state_dir=/h/.local/state/bpsd backends: a (local)>"
    )
    assert "hush" not in repr(loaded.backends)
    assert loaded.backends["a"].settings == LocalSettings(password="hush")


def test_search_goes_from_the_variable_over_the_person_to_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "etc.yaml"
    monkeypatch.setattr(config, "SYSTEM_CONFIG", str(system))
    own = tmp_path / "bpsd" / "bpsd.yaml"
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}

    assert find_config(environ, 0) is None
    system.touch()
    assert find_config(environ, 0) == system
    assert find_config(environ, UID) is None
    own.parent.mkdir()
    own.touch()
    assert find_config(environ, 0) == find_config(environ, UID) == own
    assert find_config({**environ, config.CONFIG_VARIABLE: "/not/there"}, UID) == Path("/not/there")
    (tmp_path / ".config").symlink_to(tmp_path)
    assert find_config({"HOME": str(tmp_path)}, UID) == tmp_path / ".config/bpsd/bpsd.yaml"


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.sampled_from(["local", "site", "user", "system", "x", "~/"]),
    lambda each: st.lists(each, max_size=2) | st.dictionaries(st.sampled_from(["type", "poll", "cores", "host"]), each),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from([*ConfigFile.__struct_fields__, "zzz"]),
        JUNK | st.dictionaries(st.sampled_from(["a", "B", "clients", "jitter", "others", "level"]), JUNK),
        max_size=5,
    )
)
def test_nothing_that_looks_like_a_configuration_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    try:
        loaded = load_config(path, SETTINGS.__getitem__, list(SETTINGS), environ=ENVIRON, uid=UID)
    except ConfigInvalid as exc:
        assert exc.problems  # noqa: PT017 - either outcome is fine
    else:
        assert loaded.backends


def test_a_user_without_an_entry_needs_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, or while LDAP does not answer."""
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)

    assert find_config({"HOME": "/h"}, UID) is None
    with pytest.raises(CannotStart, match="cannot find the home directory: user 2147483641 has no entry") as caught:
        find_config({}, UID)
    assert "set HOME" in caught.value.advice
