"""``bpsctl health``: one line in the manner of monitoring plugins (Nagios, Icinga): word, text, figures, exit code."""

from __future__ import annotations

__all__ = ["EPILOG", "USAGE_CODE", "arguments", "run"]

from bpsd.cli.options import add_json
from bpsd.cli.render import clean
from bpsd.client.endpoint import is_lost
from bpsd.client.failures import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

EPILOG = "Exit code: 0 fine, 1 warning, 2 critical (also: no daemon answers), 3 it cannot be told."

USAGE_CODE = 3
"""A command line that makes no sense is UNKNOWN to monitoring, not CRITICAL."""

WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


def arguments(to: Arguments) -> None:
    """Define the options."""
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell. Errors are an answer here, on standard output, as monitoring wants it."""
    try:
        answer = session.client.health()
    except ClientError as error:
        status = 2 if is_lost(error) else 3
        if session.json:
            session.document({"status": status, "message": error.message, "checks": [], "figures": {}})
        else:
            session.print(f"BPSD {WORDS[status]} - {_one_part(error.message)}")
        return status
    status = answer["status"] if answer["status"] in (0, 1, 2) else 3
    if session.json:
        session.document(answer)
        return int(status)
    figures = " ".join(f"{clean(name)}={_plain(value)}{_unit(name)}" for name, value in answer["figures"].items())
    message = _one_part(answer["message"]).removeprefix(f"{WORDS[status]}: ")
    session.print(f"BPSD {WORDS[status]} - {message}" + (f" | {figures}" if figures else ""))
    if session.args.verbose:
        for check in answer["checks"]:
            session.print(f"{WORDS[check['status']]}: {clean(check['name'])}: {clean(check['message'])}")
    return int(status)


def _one_part(text: str) -> str:
    """A line without the character behind which plugins give their figures."""
    return clean(text).replace("|", "/")


def _unit(name: str) -> str:
    """The unit of a figure as plugins write it."""
    return "s" if name.endswith("_s") else "B" if name.endswith("_bytes") else ""


def _plain(value: float) -> str:
    """A number without an exponent, which plugins may not use."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
