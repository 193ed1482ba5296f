"""``bpsd``: the daemon itself, and what can be said of its configuration without it."""

from __future__ import annotations

__all__ = ["command_parser", "main"]

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bpsd import __version__
from bpsd.cli.install import (
    UNITS,
    Act,
    Place,
    installation,
    perform,
    programs_folder,
    removal,
    system_place,
    user_place,
)
from bpsd.errors import BpsdError, CannotStart, ConfigInvalid, Problem
from bpsd.signals import Signals

TYPE_CHECKING = False
if TYPE_CHECKING:  # what takes long to import comes after the signals are taken
    from bpsd.config import Config, Draft
    from bpsd.supervisor import Daemon

PRIVATE = ("/home", "/root", "/run/user")
"""Folders that a system's service does not see (ProtectHome= in its unit)."""

CANNOT_START = 1
BAD_CONFIG = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bpsd``; returns its exit code (0: ended in good order, 1: cannot start, 2: bad configuration or usage)."""
    signals = Signals()
    if [*(sys.argv[1:] if argv is None else argv)][:1] == ["serve"]:
        signals.install()  # before anything that takes long
    arguments = command_parser().parse_args(argv)
    arguments.signals = signals
    try:
        return int(arguments.act(arguments))
    except BpsdError as exc:
        print(f"bpsd: {exc}", file=sys.stderr)
        return BAD_CONFIG if exc.code == "config_invalid" else CANNOT_START


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line of ``bpsd``."""
    parser = argparse.ArgumentParser(
        prog="bpsd",
        description="The daemon between people and their workload management systems; talk to it with bpsctl.",
        epilog="exit codes: 0 ended in good order, 1 cannot start (check-config: this host lacks something that "
        "the configuration names), 2 mistakes in the configuration file or the command line",
    )
    parser.add_argument("--version", action="version", version=f"bpsd {__version__}")
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    serve = verbs.add_parser("serve", help="run the daemon in the foreground (as systemd does)")
    check = verbs.add_parser("check-config", help="list everything that is wrong with the configuration on this host")
    for verb in (serve, check):
        verb.add_argument(
            "--config",
            metavar="FILE",
            help="default: $BPSD_CONFIG, ~/.config/bpsd/bpsd.yaml, /etc/bpsd/bpsd.yaml (root); none is needed",
        )
        verb.add_argument("--socket", metavar="PATH", help="listen there instead of where the configuration says")
        verb.add_argument("--state-dir", metavar="FOLDER", help="keep the state there instead")
    check.add_argument(
        "--reload",
        action="store_true",
        help="exit with 0 if a running daemon can apply the file, even if a backend or a notification cannot work",
    )
    serve.set_defaults(act=_serve)
    check.set_defaults(act=_check)
    install = verbs.add_parser("install", help="make systemd run this daemon, for the system or for you alone")
    uninstall = verbs.add_parser("uninstall", help="take away what install brought; state and configuration stay")
    for verb in (install, uninstall):
        whose = verb.add_mutually_exclusive_group(required=True)
        whose.add_argument("--system", action="store_true", help="one daemon for the users of this host (root)")
        whose.add_argument("--user", action="store_true", help="your own daemon")
        verb.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    install.add_argument(
        "--run-as-submitter",
        action=argparse.BooleanOptionalAction,
        help="with --system: install (or remove) the polkit rule that lets a local backend run jobs as their "
        "submitters; without either option the rule stays as it is",
    )
    install.set_defaults(act=_install)
    uninstall.set_defaults(act=_uninstall)
    return parser


def _draft(arguments: argparse.Namespace) -> tuple[Draft, str | None]:
    """The configuration with its mistakes, with what the command line says, and the file it came from."""
    import msgspec

    from bpsd.config import draft_config, find_config
    from bpsd.registry import adapter_config, known_adapters

    path = Path(arguments.config) if arguments.config else find_config(os.environ, os.getuid())
    draft = draft_config(path, adapter_config, known_adapters())
    changes = {
        name: str(Path(value).absolute())
        for name, value in (("socket", arguments.socket), ("state_dir", arguments.state_dir))
        if value is not None
    }
    in_force = msgspec.structs.replace(draft.config, **changes)
    return draft._replace(config=in_force), None if path is None else str(path)


def _config(arguments: argparse.Namespace) -> tuple[Config, str | None]:
    """The configuration in force, and the file it came from."""
    draft, path = _draft(arguments)
    draft.document.check()
    return draft.config, path


def _use_utf8() -> None:
    """Begin again in Python's UTF-8 mode if the locale is another: documents are UTF-8, and jobs get what they say."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  # ourselves


def _serve(arguments: argparse.Namespace) -> int:
    _use_utf8()

    import faulthandler

    import anyio

    from bpsd.logs import get_logger, log_to
    from bpsd.server import turn_away
    from bpsd.supervisor import Daemon

    os.umask(0o077)
    faulthandler.enable()  # systemd's watchdog ends a daemon that hangs with SIGABRT: this writes where it hung
    try:
        config, path = _config(arguments)
    except ConfigInvalid as exc:
        turn_away(f"the daemon cannot start: {exc.message}; its log lists the mistakes", os.environ)
        raise
    with log_to(level=config.logs.level, form=config.logs.format) as control:
        daemon = Daemon(
            config,
            config_path=path,
            reload=lambda: _config(arguments)[0],
            signals=arguments.signals,
            set_level=control.set_level,
            log=get_logger(),
        )
        try:
            anyio.run(_run, daemon)
        except* BpsdError as group:
            raise _first(group) from None
    return 0


async def _run(daemon: Daemon) -> None:
    if sys.version_info < (3, 12):
        # Python 3.11 starts a thread for each process and waits until it runs: up to 80 ms on a busy machine.
        import asyncio

        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)
    await daemon.run()


def _first(group: BaseExceptionGroup[BpsdError]) -> BpsdError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found if isinstance(found, BpsdError) else CannotStart(str(found))


def _check(arguments: argparse.Namespace) -> int:
    """Print every mistake of the file and of what it names on this host, all at once."""
    from bpsd.preflight import all_findings

    draft, path = _draft(arguments)
    config, document = draft
    invalid = document.total
    found = all_findings(config)
    for finding in found:
        if finding.stops != "note":
            document.add(finding.where, finding.message)
    print(f"configuration: {path or 'none, the defaults hold'}")
    print(f"mode:          {config.mode}")
    print(f"socket:        {config.socket}")
    print(f"state:         {config.state_dir}")
    for backend in config.backends.values():
        print(f"backend:       {backend.name} ({backend.type})")
    for finding in found:
        if finding.stops == "note":
            print(f"unknown:       {finding.message} ({Problem(finding.where, '').key})")
    if not document.total:
        return 0
    mistakes = document.invalid()
    print(f"bpsd: {mistakes.message}:", file=sys.stderr)
    for problem in mistakes.problems:
        place = "" if path is None else f"{path}:{problem.line}:{problem.column}: "
        print(f"  {place}{problem.key}: {problem.message}", file=sys.stderr)
    if document.total > len(mistakes.problems):
        print(f"  ... and {document.total - len(mistakes.problems)} more", file=sys.stderr)
    if invalid:
        return BAD_CONFIG
    only_parts = all(finding.stops != "daemon" for finding in found)
    return 0 if arguments.reload and only_parts else CANNOT_START


def _place(arguments: argparse.Namespace) -> Place:
    return system_place() if arguments.system else user_place(os.environ)


def _carry_out(acts: Sequence[Act], arguments: argparse.Namespace) -> None:
    for line in (f"would {act}" for act in acts) if arguments.dry_run else perform(acts):
        print(line)


def _install(arguments: argparse.Namespace) -> int:
    if arguments.run_as_submitter and not arguments.system:
        raise CannotStart(
            "--run-as-submitter goes with --system", advice="your own daemon runs your jobs as you anyway"
        )
    place, programs = _place(arguments), programs_folder()
    if arguments.system and any(Path(programs).is_relative_to(folder) for folder in PRIVATE):
        raise CannotStart(
            f"the account bpsd cannot run the programs in {programs}",
            advice="make a virtual environment in /opt/bpsd, install bpsd there, and run its `bpsd install`",
        )
    acts = installation(place, programs, run_as_submitter=arguments.run_as_submitter)
    _carry_out(acts, arguments)
    if not arguments.dry_run:
        control = " ".join(place.systemctl)
        first = f"say in {place.config} which backends there are, then: " if place.config else "start it with: "
        print(f"{first}{control} restart {' '.join(UNITS)}")
    return 0


def _uninstall(arguments: argparse.Namespace) -> int:
    place = _place(arguments)
    _carry_out(removal(place), arguments)
    if arguments.system:
        what = "/etc/bpsd, /var/lib/bpsd, /var/lib/bpsd-runs and the account bpsd stay"
        runs = "local runs go on (`systemctl stop bpsd.slice` ends them), as those in any other WMS do"
    else:
        what, runs = "your state and settings stay", "runs go on"
    print(f"{what}: remove them yourself if nobody needs them any more")
    if not arguments.dry_run:
        print(runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
