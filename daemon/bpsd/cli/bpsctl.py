"""``bpsctl``: the command line of people and scripts.

It imports the standard library, `bpsd.wire` and `bpsd.client.sync`, builds the parser of the one verb that was said,
and loads anything heavier (rich, shtab) only where a verb draws or completes: a person waits for every import.
"""

from __future__ import annotations

__all__ = ["BROKEN_PIPE", "arguments_of", "main", "report_error", "usage"]

import os
import sys

from bpsd import __version__, wire
from bpsd.cli import verbs
from bpsd.cli.arguments import Arguments
from bpsd.cli.options import UsageError, add_common, moved_behind, nearest
from bpsd.cli.session import Session
from bpsd.client.endpoint import is_lost
from bpsd.client.failures import ClientError, NoDaemon, TimedOut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import TextIO

    from bpsd.cli.arguments import Values

BROKEN_PIPE = 141
"""Exit code where the reader of our output went away (`bpsctl report | head`): what a shell shows for SIGPIPE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bpsctl``; return the exit code."""
    given = sys.argv[1:] if argv is None else [*argv]
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a run named in Greek must not break a report in Latin-1
    try:
        code = _run(given)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:  # before the verb began
        code = wire.EXIT_CODES["interrupted"]
    except BrokenPipeError:
        _silence(sys.stdout)
        code = BROKEN_PIPE
    except UsageError as error:
        _complain(f"bpsctl: {error.message}", error.advice)
        code = error.exit_code
    except OSError as error:
        _silence(sys.stdout)
        _complain(f"bpsctl: writing the output: {error.strerror or error}", "")
        code = wire.EXIT_CODES["failed"]
    return code


def _run(argv: list[str]) -> int:
    before, rest = moved_behind(argv)
    if "--version" in before:
        print(f"bpsctl {__version__} (protocol {wire.PROTOCOL_VERSION})")
        return 0
    if "-h" in before or "--help" in before:
        print(usage())
        return 0
    if not rest and before:
        raise UsageError(f"{before[-1]}: and no verb", "`bpsctl --help` lists the verbs")
    if not rest:
        print(usage())
        return wire.EXIT_CODES["usage"]
    if rest[0] == "help":
        before, rest = [*before, "--help"], rest[1:]
        if not rest:
            print(usage())
            return 0
    verb, rest = _verb_of(rest)
    module = _module(verb)
    try:
        args = _parsed(verb, module, [*before, *rest])
    except UsageError as error:
        error.exit_code = getattr(module, "USAGE_CODE", error.exit_code)
        raise
    if args is None:
        return 0
    session = Session(verb, args, argv)
    try:
        try:
            session.bind()
            return int(module.run(session))
        finally:
            session.unbind()
    except KeyboardInterrupt:
        _complain(f"\nbpsctl: {session.interrupted or 'interrupted'}", "")
        return wire.EXIT_CODES["interrupted"]
    except ClientError as error:
        return report_error(session, error)
    finally:
        session.close()


def _parsed(verb: str, module: ModuleType, words: list[str]) -> Values | None:
    """The values of the options; `None` if help was asked for and given."""
    arguments = arguments_of(verb, module)
    args = arguments.quick(words)
    if args is None:
        from bpsd.cli.parser import parse

        args = parse(verb, arguments, words, getattr(module, "EPILOG", None))
    return args


def _verb_of(words: list[str]) -> tuple[str, list[str]]:
    known = verbs.names()
    if " ".join(words[:2]) in known:
        return " ".join(words[:2]), words[2:]
    if words[0] in known:
        return words[0], words[1:]
    advice = nearest(words[0], known) or "`bpsctl --help` lists the verbs"
    raise UsageError(f"{words[0]}: no such verb", advice)


def _module(verb: str) -> ModuleType:
    module: ModuleType = __import__(verbs.module_of(verb), fromlist=["run"])
    return module


def arguments_of(verb: str, module: ModuleType | None = None) -> Arguments:
    """The arguments of one verb."""
    arguments = Arguments()
    (module or _module(verb)).arguments(arguments)
    add_common(arguments)
    return arguments


def usage() -> str:
    """The text of ``bpsctl --help``."""
    lines = ["usage: bpsctl [--socket PATH] [-v] [--no-color] VERB ...", ""]
    for title, group in verbs.GROUPS.items():
        lines += [f"{title}:", *(f"  {verb:<17} {summary}" for verb, summary in group.items()), ""]
    lines += [
        "`bpsctl VERB --help` tells the options of a verb; --json gives a versioned document for scripts.",
        "",
        "The socket is --socket, else $BPSD_SOCKET, else that of your own daemon ($XDG_RUNTIME_DIR/bpsd/bpsd.sock),",
        f"else the system's ({wire.SYSTEM_SOCKET}).",
        "",
        "Exit codes:",
        "  0    done, or the answer is good",
        "  1    it failed: refused, not found, ended in another way than was waited for",
        "  2    the command line makes no sense",
        "  3    the time is over (--timeout), or the daemon did not answer in time",
        "  4    no daemon answers",
        "  130  Ctrl-C; what the daemon was asked for goes on",
        f"  {BROKEN_PIPE}  the reader of the output went away (bpsctl report | head)",
        "  status exits with the state: " + ", ".join(f"{name} {number}" for name, number in wire.STATES.items()),
        "  health exits as monitoring plugins do: 0 fine, 1 warning, 2 critical, 3 unknown",
    ]
    return "\n".join(lines)


def report_error(session: Session, error: ClientError) -> int:
    """Tell an error to people and, with ``--json``, to scripts; return the exit code."""
    if session.json:
        session.document(
            {"error": {**error.fields, "code": error.code, "message": error.message, "advice": error.advice}}
        )
    problems = error.fields.get("problems")
    if isinstance(problems, list) and problems:
        from bpsd.cli.problems import problem_lines

        session.say(*problem_lines(error.fields))
    _complain(f"bpsctl: {session.verb}: {error.message}", error.advice)
    if error.fields.get("candidates"):
        from bpsd.cli.problems import candidate_lines

        session.say(*candidate_lines(error.fields))
    if session.interrupted and session.client.hello and (is_lost(error) or isinstance(error, TimedOut)):
        session.say(f"bpsctl: {session.interrupted}")  # it was asked already: what of that goes on, or is not known
    if session.args.verbose:
        session.say(f"  code: {error.code}")
    if isinstance(error, NoDaemon):
        return wire.EXIT_CODES["no_daemon"]
    return wire.EXIT_CODES["timeout" if isinstance(error, TimedOut) else "failed"]


def _complain(what: str, advice: str) -> None:
    if sys.stderr is None:
        return
    try:
        if sys.stdout is not None:
            sys.stdout.flush()  # in a log that takes both, an error stands behind what came before it
        sys.stderr.write(what + "\n" + (f"  {advice}\n" if advice else ""))
        sys.stderr.flush()
    except BrokenPipeError:
        _silence(sys.stderr)


def _silence(stream: TextIO | None) -> None:
    """Let what is still buffered for a reader that is gone go to nowhere, or Python complains about it at its end."""
    if stream is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
