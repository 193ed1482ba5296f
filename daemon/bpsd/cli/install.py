"""``bpsd install`` and ``bpsd uninstall``: what systemd must know of a daemon, put in place and taken away again.

What is to be done is decided first (`installation`, `removal`: lists of acts, no I/O but looking) and then shown or
done. The files are those of the folder ``systemd`` of the distribution, with the program that was asked in place of
those of ``/opt/bpsd``.
"""

from __future__ import annotations

__all__ = [
    "MAN_PAGES",
    "UNITS",
    "Act",
    "Place",
    "Remove",
    "Run",
    "Write",
    "installation",
    "perform",
    "programs_folder",
    "removal",
    "system_place",
    "user_place",
]

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bpsd
from bpsd import wire
from bpsd.errors import CannotStart

PREFIX = "/opt/bpsd/"
"""Where the files of the folder ``systemd`` have this installation; its programs are in ``bin``."""

MAN_PAGES = ("man1/bpsctl.1", "man5/bpsd.yaml.5", "man8/bpsd.8")
"""The manual pages; `bpsd install --system` puts them where `man` looks."""

UNITS = ("bpsd.service", "bpsd.socket")
"""What is enabled, started and stopped together."""


@dataclass(frozen=True)
class Write:
    """Make a file; ``keep``: one that is there stays as it is, for somebody may have changed it."""

    path: Path
    text: str
    mode: int = 0o644
    keep: bool = False

    def __str__(self) -> str:
        return f"{'write, unless it is there,' if self.keep else 'write'} {self.path}"


@dataclass(frozen=True)
class Remove:
    """Remove a file, if it is there."""

    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}"


@dataclass(frozen=True)
class Run:
    """Run a program; where it ``may_fail``, what it says is enough."""

    argv: tuple[str, ...]
    may_fail: bool = False

    def __str__(self) -> str:
        return f"run {' '.join(self.argv)}"


Act = Write | Remove | Run


@dataclass(frozen=True)
class Place:
    """Where things go: of the system, or of one person.

    ``files`` maps a file of the folder ``systemd`` to its place; ``config`` is that of the configuration, where one is
    installed; ``man`` is the folder of the manual pages that the units name.
    """

    systemctl: tuple[str, ...]
    files: Mapping[str, Path]
    rule: Path | None = None
    config: Path | None = None
    man: Path | None = None


def system_place(root: Path = Path("/")) -> Place:
    """The system's: units in ``/etc/systemd/system`` (``root`` stands before all paths)."""
    units = root / "etc/systemd/system"
    return Place(
        systemctl=("systemctl",),
        files={
            **{f"system/{name}": units / name for name in UNITS},
            "sysusers.conf": root / "etc/sysusers.d/bpsd.conf",
            "tmpfiles.conf": root / "etc/tmpfiles.d/bpsd.conf",
        },
        rule=root / "etc/polkit-1/rules.d/50-bpsd.rules",
        config=root / "etc/bpsd/bpsd.yaml",
        man=root / "usr/local/share/man",
    )


def user_place(environ: Mapping[str, str]) -> Place:
    """A person's own: units in ``~/.config/systemd/user``."""
    from bpsd.config import home_folder  # it takes long to import

    home = wire.xdg(environ, "XDG_CONFIG_HOME") or f"{home_folder(environ)}/.config"
    units = Path(home) / "systemd/user"
    return Place(systemctl=("systemctl", "--user"), files={f"user/{name}": units / name for name in UNITS})


def installation(place: Place, programs: str, *, run_as_submitter: bool | None = None) -> list[Act]:
    """What makes a daemon of ``place`` that starts at boot (or login).

    Parameters
    ----------
    place : `Place`
        Where to.
    programs : `str`
        The folder of ``bpsd`` and ``bpsctl``.
    run_as_submitter : `bool`, optional
        Whether to have the polkit rule that lets a local backend start runs as other users; `None`: as it was.
    """
    acts: list[Act] = [Write(path, _template(name, programs)) for name, path in place.files.items()]
    acts += [Write(path, source.read_text(encoding="utf-8")) for source, path in _man_pages(place)]
    if place.rule is not None:
        wanted = place.rule.exists() if run_as_submitter is None else run_as_submitter
        acts.append(Write(place.rule, _template("polkit.rules", programs)) if wanted else Remove(place.rule))
    if place.config is not None:
        # The account before what belongs to it.
        acts.append(Run(("systemd-sysusers", str(place.files["sysusers.conf"]))))
        acts.append(Write(place.config, _template("bpsd.yaml", programs), 0o640, keep=True))
        acts.append(Run(("systemd-tmpfiles", "--create", str(place.files["tmpfiles.conf"]))))
    acts.append(Run((*place.systemctl, "daemon-reload")))
    acts.append(Run((*place.systemctl, "enable", *UNITS)))
    return acts


def removal(place: Place) -> list[Act]:
    """What takes it away again. State, configuration and account stay: they are not ours to throw away."""
    files = [*place.files.values(), *([place.rule] if place.rule else []), *(path for _, path in _man_pages(place))]
    return [
        Run((*place.systemctl, "disable", "--now", *UNITS), may_fail=True),
        # A folder for a socket says that there is a daemon of the system's; a person's may be that of one run by hand.
        *([Run((*place.systemctl, "clean", "--what=runtime", UNITS[0]), may_fail=True)] if place.config else []),
        *(Remove(path) for path in files),
        Run((*place.systemctl, "daemon-reload")),
    ]


def perform(acts: Sequence[Act]) -> Iterator[str]:
    """Do it, act by act; yields a line about each when it is done.

    Raises
    ------
    CannotStart
        With the act that failed; those before it are done, and doing all again does no harm.
    """
    for act in acts:
        try:
            yield _done(act)
        except OSError as exc:
            raise CannotStart(
                f"cannot {act}: {exc.strerror or exc}",
                advice="a system's daemon is installed by root (sudo), a person's own by that person (--user)",
            ) from exc


def _done(act: Act) -> str:
    if isinstance(act, Write):
        if act.keep and act.path.exists():
            return f"left {act.path} as it is"
        act.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = act.path.with_name(f".{act.path.name}.{os.getpid()}")
        fresh.write_text(act.text, encoding="utf-8")
        fresh.chmod(act.mode)
        fresh.replace(act.path)
        return f"wrote {act.path}"
    if isinstance(act, Remove):
        there = act.path.exists()
        act.path.unlink(missing_ok=True)
        return f"removed {act.path}" if there else f"there is no {act.path}"
    return _ran(act)


def _ran(act: Run) -> str:
    if shutil.which(act.argv[0]) is None:
        raise CannotStart(f"cannot {act}: there is no {act.argv[0]} here", advice="this needs a host with systemd")
    done = subprocess.run(act.argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    said = " ".join(done.stderr.split())
    if done.returncode and not act.may_fail:
        raise CannotStart(
            f"{' '.join(act.argv)} failed with exit code {done.returncode}: {said or 'it said nothing'}",
            advice="mend that and install again: what is done already is done again without harm",
        )
    return f"ran {' '.join(act.argv)}" + (f" ({said})" if done.returncode else "")


def _template(name: str, programs: str) -> str:
    text = (_folder() / name).read_text(encoding="utf-8")
    return text.replace(PREFIX, f"{Path(programs).parent}/")


def _folder() -> Path:
    """The folder ``systemd``: beside the package in a wheel, at the top of a source tree."""
    package = Path(bpsd.__file__).parent
    for folder in (package / "systemd", package.parents[1] / "systemd"):
        if (folder / "system").is_dir():
            return folder
    raise CannotStart("this installation of bpsd has no unit files", advice="install the wheel or the source tree")


def _man_pages(place: Place) -> list[tuple[Path, Path]]:
    """Each manual page of this distribution (in ``share/man``, or ``docs/man`` of a source tree), and its place."""
    if place.man is None:
        return []
    for folder in (Path(bpsd.__file__).parents[2] / "docs/man", Path(sys.prefix) / "share/man"):
        if pages := [page for name in MAN_PAGES if (page := folder / name).exists()]:
            return [(page, place.man / page.relative_to(folder)) for page in pages]
    return []


def programs_folder() -> str:
    """Where the programs of this installation are."""
    return str(Path(sys.executable).parent)
