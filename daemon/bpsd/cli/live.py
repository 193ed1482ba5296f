"""Showing that something goes on, on standard error: bars on a terminal (rich, loaded only then), lines elsewhere."""

from __future__ import annotations

__all__ = ["Bars", "sending"]

import sys

from bpsd.cli.render import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

    from rich.progress import Progress, TaskID

    from bpsd.cli.session import Session

BIG_BYTES = 4 * 1024 * 1024
"""Documents from here on take long enough to show a bar."""

MOST_BARS = 20
"""More runs than that have one bar together."""


def _on_terminal(session: Session) -> bool:
    return bool(sys.stderr) and sys.stderr.isatty() and not session.json


def sending(session: Session, size: int) -> Callable[[int, int], object] | None:
    """What to tell of a document's way to the daemon; `None` where it is too short a way for words."""
    if size < BIG_BYTES or session.json:
        return None
    if not _on_terminal(session):
        session.say(f"sending {size / 1e6:.0f} MB")
        return None
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("sending"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True, no_color=session.args.no_color),
        transient=True,
    )
    task = bar.add_task("sending", total=size)
    bar.start()

    def tell(have: int, total: int) -> None:
        bar.update(task, completed=have)
        if have >= total:
            bar.stop()

    return tell


class Bars:
    """The progress of runs while somebody waits.

    Parameters
    ----------
    session : `~bpsd.cli.session.Session`
        Where to show it.
    runs : `dict` [`str`, `str`]
        Our ids to the names that people gave.
    """

    def __init__(self, session: Session, runs: dict[str, str]) -> None:
        self._session = session
        self._runs = runs
        self._told: dict[str, tuple[str, int]] = {}
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if _on_terminal(session) and len(runs) <= MOST_BARS:
            self._begin()

    def _begin(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.fields[state]:>9}"),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True, no_color=self._session.args.no_color),
        )
        for run, name in self._runs.items():
            text = run if name == run else f"{run} {clean(name)}"
            self._tasks[run] = self._progress.add_task(text, total=100, state="")
        self._progress.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, row: dict[str, Any]) -> None:
        """Take a run as it is now (a status or a report row): the bar follows; a line tells states and tenths."""
        run, state, percent = row["id"], row["state"], row.get("percent")
        if self._progress is not None:
            if run in self._tasks:
                self._progress.update(self._tasks[run], completed=percent or 0, state=state)
            return
        news = (state, -1 if percent is None else percent // 10)
        if self._told.get(run) != news:
            self._told[run] = news
            self.say(f"{run}  {state}" + ("" if percent is None else f"  {percent}%"))

    def say(self, text: str) -> None:
        """Say a sentence without spoiling the bars."""
        if self._session.json:
            return
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            self._session.say(text)
