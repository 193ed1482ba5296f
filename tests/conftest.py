"""What every test has: a world of its own, an event loop that nothing blocks, and nobody left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from blockbuster import BlockBuster, BlockBusterFunction

from tests.figures import figure
from tests.leftovers import SESSION_VARIABLE, end_leftovers

pytest_plugins = ["tests.pythons", "tests.soak_table"]

EXAMPLES = figure("EXAMPLES", test=50, soak=500)
"""How many examples hypothesis tries for a property that names no number of its own."""

ALSO_BLOCKING = ("builtins.open", "fcntl.flock", "io.open", "os.fdatasync", "os.fsync")
"""Calls that stop the event loop and that blockbuster does not watch by itself."""

IMPORTING = ("<frozen importlib._bootstrap>", "_find_and_load")

ALLOWED_TO_BLOCK: tuple[tuple[str, str, str], ...] = (
    # A module that is imported when it is first needed (anyio's own submodules are): once in the life of a daemon.
    *((call, *IMPORTING) for call in ("builtins.open", "io.open", "os.stat", "os.listdir", "io.BufferedReader.read")),
    # A pipe to a new process gets a file object: nothing on a disk is opened.
    ("io.open", "subprocess.py", "__init__"),
)
"""Exceptions as (call, end of the file's path, function): the one place where it may, with a comment why it must."""

hypothesis.settings.register_profile(
    "default",
    max_examples=EXAMPLES,
    deadline=None,  # the machine is shared: how long an example takes proves nothing
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "mutants",  # of `tests.mutants`: whether a property fails counts, not the smallest example
    hypothesis.settings.get_profile("default"),
    max_examples=25,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    database=None,
)
hypothesis.settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    """Mark what this session starts, before anything is started (see `tests.leftovers`)."""
    os.environ[SESSION_VARIABLE] = uuid.uuid4().hex
    # A shell starts what it puts in the background with Ctrl-C ignored, and so would be what the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_leftovers() -> Iterator[None]:
    """Every process that the tests started is gone when they are over. Set up first, so torn down last."""
    yield
    leftovers = end_leftovers(os.environ[SESSION_VARIABLE], patience_s=10.0)
    assert not leftovers, "processes that the tests left behind:\n" + "\n".join(map(str, leftovers))


@pytest.fixture(scope="session", autouse=True)
def world_of_its_own() -> Iterator[None]:
    """No test finds the daemon, state or configuration of the person who runs it, nor do the processes it starts."""
    home = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("BPSD_") and n not in (SESSION_VARIABLE, "BPSD_BEDS")]:
            patch.delenv(name)
        for variable, folder in (
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_STATE_HOME", "state"),
        ):
            (home / folder).mkdir(mode=0o700)
            patch.setenv(variable, str(home / folder))
        yield
    with contextlib.suppress(FileNotFoundError):  # somebody tidied up the machine's temporary folder meanwhile
        shutil.rmtree(home)


@pytest.fixture(autouse=True)
def nothing_blocks(request: pytest.FixtureRequest) -> Iterator[None]:
    """A call from bpsd's code that would stop the event loop is an error (`blockbuster.BlockingError`)."""
    if request.node.get_closest_marker("blocking_allowed"):
        yield
        return
    # Looked up here: a test may be about a package that cannot be imported.
    import bpsd
    import bpsd_adapters

    # The contract suite is test code, though it lies in the package: its tests may read files as any other test does.
    tests = [f"bpsd.testing.{n}" for n in ("contract", "observer", "steady", "wms")]
    packages = [bpsd, bpsd_adapters]
    buster = BlockBuster(packages, excluded_modules=tests)
    for call in ALSO_BLOCKING:
        buster.functions[call] = BlockBusterFunction(
            None, call, scanned_modules=packages, excluded_modules=tests, can_block_predicate=_is_prompt
        )
    for call, file, function in ALLOWED_TO_BLOCK:
        buster.functions[call].can_block_in(file, function)
    buster.activate()
    yield
    buster.deactivate()


def _is_prompt(*args: object, **kwargs: object) -> bool:
    """Whether these arguments keep the call from waiting: only `fcntl.flock` can be told to."""
    return len(args) == 2 and isinstance(args[1], int) and bool(args[1] & (fcntl.LOCK_NB | fcntl.LOCK_UN))


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """An empty folder for a daemon's state; its path is short, since a Unix socket's may have 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def socket_path(state_dir: Path) -> Path:
    """Where a daemon of this test may listen; nothing is there yet."""
    return state_dir / "s"
