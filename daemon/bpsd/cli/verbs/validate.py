"""``bpsctl validate``: every mistake of a workflow, before anything runs."""

from __future__ import annotations

__all__ = ["arguments", "run", "tell"]

from bpsd.cli.documents import read_document
from bpsd.cli.live import sending
from bpsd.cli.options import add_json, add_one_backend
from bpsd.cli.problems import problem_lines
from bpsd.cli.render import clean, plural

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session


def arguments(to: Arguments) -> None:
    """Define the options."""
    to.add("file", metavar="FILE", completes="file", help="the workflow, YAML or JSON; - reads standard input")
    add_one_backend(to, "check it for this backend")
    add_json(to)


def run(session: Session) -> int:
    """Ask and tell."""
    data, source = read_document(session.args.file)
    answer = session.client.validate_document(
        data, source=source, backend=session.args.backend, progress=sending(session, len(data))
    )
    return tell(session, answer, source)


def tell(session: Session, answer: dict[str, Any], source: str) -> int:
    """Print a `~bpsd.messages.ValidateResult`; return the exit code."""
    if session.json:
        session.document({"source": source, **answer})
        return 0 if answer["ok"] else 1
    session.print(*problem_lines({**answer, "source": source}))
    session.print(*(f"{clean(source)}: warning: {clean(warning)}" for warning in answer.get("warnings", ())))
    if not answer["ok"]:
        total = max(answer.get("total", 0), len(answer.get("problems", ())))
        session.say(f"bpsctl: {clean(source)}: {plural(total, 'mistake')}, found for backend {answer['backend']}")
        return 1
    labels = ", ".join(f"{clean(label)} {number}" for label, number in answer.get("labels", {}).items())
    session.print(
        f"{clean(source)}: {clean(answer.get('name') or '')} {plural(answer.get('job_count', 0), 'job')}"
        f"{f' ({labels})' if labels else ''}, fine for backend {answer['backend']}"
    )
    return 0
