"""``bpsctl completion``: what a shell needs to complete our verbs and options."""

from __future__ import annotations

__all__ = ["EPILOG", "arguments", "run"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpsd.cli.arguments import Arguments
    from bpsd.cli.session import Session

EPILOG = (
    "bash: mkdir -p ~/.local/share/bash-completion/completions; "
    "bpsctl completion bash > ~/.local/share/bash-completion/completions/bpsctl; "
    "zsh: bpsctl completion zsh > a folder of $fpath, as _bpsctl; "
    "tcsh: bpsctl completion tcsh | source /dev/stdin"
)


def arguments(to: Arguments) -> None:
    """Define the options."""
    to.add("shell", metavar="SHELL", choices=("bash", "zsh", "tcsh"), help="bash, zsh or tcsh")


def run(session: Session) -> int:
    """Print the script."""
    import shtab

    from bpsd.cli.bpsctl import arguments_of
    from bpsd.cli.parser import PREAMBLES, full_parser

    shell = session.args.shell
    session.print(shtab.complete(full_parser(arguments_of), shell, preamble=PREAMBLES.get(shell, "")))
    return 0
