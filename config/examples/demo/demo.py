"""The tour of ``make demo``: a daemon that is killed, and a workflow that goes on, fails, is mended and succeeds.

``python demo.py [FOLDER]`` (default ``demo-run``) says each command as a person would type it and runs it. Whatever
happens, the daemon that it started is stopped, its run is over, and FOLDER is all that is left.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import yaml

HERE = Path(__file__).resolve().parent
MARK = ".made-by-the-demo"
"""In a folder that the demo made, and may therefore remove."""
CUT_SHORT = "v5_d2.pgm"
"""The exposure whose transfer "breaks off"."""
START_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0
TIME_OVER, NO_DAEMON, RUNNING, FAILED = 3, 4, 15, 19
"""Exit codes of bpsctl: the time of a ``wait`` is over, no daemon answers, and what ``status`` says."""
SOCKET_MAX_BYTES = 100
"""A Unix socket's path has 107 bytes at most; a checkout may lie deeper than that."""


class DemoFailed(Exception):
    """Something went otherwise than the tour tells it."""


def tell(text: str) -> None:
    """Say what comes next, and why."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def show(command: str) -> None:
    """Show a command as it is typed."""
    print(f"\033[32m$ {command}\033[0m" if sys.stdout.isatty() else f"$ {command}", flush=True)


def run(*command: str, expect: Sequence[int] = (0,)) -> None:
    """Show a command and run it here, where the person watches."""
    show(shlex.join(command))
    code = subprocess.run(command, check=False).returncode
    if code not in expect:
        raise DemoFailed(f"`{shlex.join(command)}` ended with {code}")


def read(*command: str) -> str:
    """Show a command, run it, show its output and return it."""
    show(shlex.join(command))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise DemoFailed(f"`{shlex.join(command)}` ended with {done.returncode}")
    return done.stdout


def prepare(folder: Path) -> None:
    """Make the folder, with the exposures of the repository in it, one of them cut short."""
    if folder.exists():
        if not (folder / MARK).exists():
            raise DemoFailed(f"{folder} is there and was not made by the demo; remove it, or name another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    for name in ("raw", "calib"):
        shutil.copytree(HERE / name, folder / name)
    broken = folder / "raw" / CUT_SHORT
    os.truncate(broken, broken.stat().st_size // 2)


@contextmanager
def socket_for(folder: Path) -> Iterator[Path]:
    """Where the daemon listens: in the folder, or in a short one that goes when it stops."""
    here = folder / "bpsd.sock"
    if len(os.fsencode(here)) <= SOCKET_MAX_BYTES:
        yield here
        return
    with tempfile.TemporaryDirectory(prefix="bpsd-demo-") as short:
        yield Path(short) / "bpsd.sock"


class Daemon:
    """A daemon with a configuration of its own, until we leave; in between it may be killed and started again."""

    def __init__(self, folder: Path, shown: Path) -> None:
        self._config, self._log = shown / "bpsd.yaml", shown / "bpsd.log"
        # The ledger of the machine's cores is in memory, shared by all of a user's daemons: none is left behind.
        backend = {"type": "local", "ledger": str(folder / "ledger")}
        settings = {"state_dir": str(folder / "state"), "backends": {"here": backend}}
        self._config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def start(self) -> None:
        """Start it and wait until it answers."""
        show(f"bpsd serve --config {self._config} 2>> {self._log} &")
        with self._log.open("ab") as out:
            # A process group of its own: Ctrl-C is for the tour, which then cancels its run and stops the daemon.
            serve = ["bpsd", "serve", "--config", str(self._config)]
            self._process = subprocess.Popen(serve, stdin=subprocess.DEVNULL, stderr=out, process_group=0)
        deadline = time.monotonic() + START_LIMIT_S
        while subprocess.run(["bpsctl", "ping"], capture_output=True, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text(encoding="utf-8")
                raise DemoFailed(f"the daemon does not answer; its log says:\n{said}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as a crash would, without time for a last word."""
        show(f"kill -9 {self._process.pid}")
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop it in good order, if it runs."""
        if self._process.poll() is not None:
            return
        show(f"kill {self._process.pid}")
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            print(f"the daemon did not stop within {STOP_LIMIT_S:g} s; its log is {self._log}", file=sys.stderr)


@contextmanager
def run_of(document: Path) -> Iterator[str]:
    """Submit a workflow; should we leave before its run is over, cancel it, since runs outlive the daemon."""
    found = re.search(r"\br[a-z0-9]{8}\b", read("bpsctl", "submit", str(document)))
    if found is None:
        raise DemoFailed("bpsctl submit named no run")
    identity = found.group()
    try:
        yield identity
    except BaseException:
        subprocess.run(["bpsctl", "cancel", identity], check=False)
        raise


def outlive(daemon: Daemon, identity: str) -> None:
    """Kill the daemon while the run goes on, and start it again, whatever becomes of us in between."""
    try:
        daemon.kill()
        run("bpsctl", "status", identity, expect=(NO_DAEMON,))
    finally:
        daemon.start()
    run("bpsctl", "status", identity, expect=(RUNNING, FAILED))


def tour(folder: Path, shown: Path, daemon: Daemon) -> None:
    """The tour itself, with the daemon up."""
    tell("The daemon is up. Who are you, and what do you run on?")
    run("bpsctl", "ping")

    tell("A workflow of 56 jobs: forty exposures of one night, calibrated visit by visit, stacked to one picture")
    document = shown / "workflow.yaml"
    show(f"python {os.path.relpath(HERE / 'workflow.py')} {shown} > {document}")
    with document.open("wb") as out:
        subprocess.run([sys.executable, str(HERE / "workflow.py"), str(folder)], stdout=out, check=True)
    with run_of(document) as identity:
        run("bpsctl", "wait", identity, "--timeout", "10s", expect=(TIME_OVER, 1))

        tell("It runs. What if the daemon dies now, in the middle? The run does not need it, and goes on")
        outlive(daemon, identity)
        run("bpsctl", "wait", identity, expect=(1,))

        tell("It failed. What does the report say, which job was it, and what did that job print?")
        run("bpsctl", "report", expect=(0,))
        run("bpsctl", "report", "--id", identity)
        run("bpsctl", "jobs", identity, "--state", "FAILED")
        run("bpsctl", "logs", identity, "--failed")

        tell("One exposure was cut short on its way here. Copy it again, and go on from where it failed")
        run("cp", os.path.relpath(HERE / "raw" / CUT_SHORT), str(shown / "raw"))
        run("bpsctl", "restart", identity)
        run("bpsctl", "wait", identity)
        run("bpsctl", "report", "--id", identity)
        run("bpsctl", "status", identity)

    tell("The result")
    run("head", "-n", "4", str(shown / "summary.json"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if not summary["complete"]:
        raise DemoFailed("the run succeeded, and its summary is not complete")


def main() -> None:
    """Run the tour."""
    shown = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-run")
    folder = shown.resolve()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    began = time.monotonic()
    try:
        prepare(folder)
        with socket_for(folder) as socket:
            os.environ["BPSD_SOCKET"] = str(socket)
            tell("A daemon of its own, with its state in " + str(shown))
            show(f"export BPSD_SOCKET={shlex.quote(str(socket))}")
            with Daemon(folder, shown) as daemon:
                tour(folder, shown, daemon)
    except DemoFailed as exc:
        sys.exit(f"demo: {exc}")
    except KeyboardInterrupt:
        sys.exit(130)
    tell(
        f"That took {time.monotonic() - began:.0f} s. Look at {shown / 'mosaic.pgm'}; `rm -r {shown}` removes all of it"
    )


if __name__ == "__main__":
    main()
