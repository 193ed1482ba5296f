"""What an SSH transport sends to a login shell: run by the shells of this machine, with startup files that talk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpsd_adapters.transports.loginshell import BAD_SHELL, after_mark, login_script

SHELLS = [shell for shell in ("bash", "dash", "ksh", "zsh", "tcsh", "fish") if shutil.which(shell)]
WORDS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), max_size=4)


def run(
    argv: Sequence[str],
    *,
    shell: str = "bash",
    startup: str = "",
    given: bytes = b"",
    cut: int | None = None,
    cwd: str | None = None,
    environment: dict[str, str] | None = None,
    home: Path | None = None,
) -> tuple[int, bytes | None, bytes | None]:
    """Run a program as if ``shell`` were the login shell, after these lines of a startup file."""
    script = login_script(argv, environment=environment or {}, path=["/opt/a b"], cwd=cwd, deadline_s=50)
    done = subprocess.run(
        [shell, "-c", f"{startup}\n{script.line}" if startup else script.line],
        input=(script.script + given)[:cut],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home or "/")},
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode, after_mark(done.stdout, script.mark), after_mark(done.stderr, script.mark)


@pytest.mark.parametrize("shell", SHELLS)
@given(words=WORDS, given_input=st.binary(max_size=50))
def test_words_and_input_arrive_through_any_login_shell(shell: str, words: list[str], given_input: bytes) -> None:
    argv = ["sh", "-c", 'printf "%s\\0" "$X" "$@"; cat', "sh", *words]
    code, out, err = run(argv, shell=shell, given=given_input, environment={"X": "1 '2'\n!x"})
    assert (code, err) == (0, b"")
    assert out == b"".join(word.encode() + b"\0" for word in ["1 '2'\n!x", *words]) + given_input


def test_the_line_has_nothing_that_a_shell_would_change() -> None:
    script = login_script(["sh", "-c", "x'\n\\!"], environment={"A": "!'"}, path=(), cwd="/a'b", deadline_s=None)
    inside = script.line.removeprefix("exec /bin/sh -c '").removesuffix("'")
    assert len(inside) == len(script.line) - len("exec /bin/sh -c ''")
    assert not set(inside) & set("\n\\!'`")
    assert script.line.isascii()


STARTUPS = {
    "prints": 'echo "*** Welcome ***"; printf "no line end"; echo "stty: no terminal" >&2',
    "changes folder": "cd /usr/lib",
    "sets aliases": 'shopt -s expand_aliases; alias ls="ls -l" cat="cat -n" rm="rm -i" dd=false env=false',
    "has functions": "cat() { echo no; }; cd() { echo no; }; export -f cat cd; CDPATH=/usr; export CDPATH",
    "protects files": "set -o noclobber; umask 002",
}


@pytest.mark.parametrize("name", STARTUPS)
def test_startup_files_change_nothing(name: str, tmp_path: Path) -> None:
    argv = ["sh", "-c", "pwd; cat; echo said >&2; exit 3"]
    code, out, err = run(argv, startup=STARTUPS[name], given=b"in", home=tmp_path)
    if name == "has functions":  # those of the account's own that it exports are meant for its programs
        assert code == 3
        return
    assert (code, out, err) == (3, f"{tmp_path}\nin".encode(), b"said\n")


def test_a_working_folder_is_taken_or_it_is_an_error() -> None:
    assert run(["pwd"], cwd="/usr/lib")[:2] == (0, b"/usr/lib\n")
    assert run(["pwd"], cwd="/not/there")[:2] == (1, b"")


@pytest.mark.parametrize("cut", [0, 1, 40, 120])
def test_a_script_that_came_in_part_is_not_run(cut: int, tmp_path: Path) -> None:
    code, out, _ = run(["touch", str(tmp_path / "ran")], cut=cut)
    assert (code, out) == (BAD_SHELL, None)
    assert not (tmp_path / "ran").exists()


def test_a_startup_file_that_reads_its_input_is_found_out(tmp_path: Path) -> None:
    code, out, _ = run(["touch", str(tmp_path / "ran")], startup="read -n 5 x")
    assert (code, out) == (BAD_SHELL, None)
    assert not (tmp_path / "ran").exists()


def test_without_the_mark_nothing_is_an_answer() -> None:
    assert after_mark(b"Welcome\n", b"bpsd-1\n") is None
    assert after_mark(b"Welcome bpsd-1\nanswer", b"bpsd-1\n") == b"answer"
    assert after_mark(b"bpsd-1\n", b"bpsd-1\n") == b""
